//! What the header of an image says about other files that belong to it.

use std::{io, os::fd::BorrowedFd};

use anyhow::Context;

/// As much as is read of a header, and as a direct read must be aligned.
const BLOCK: usize = 4096;

const QCOW2: &[u8] = b"QFI\xfb";

/// Of a VMDK image that has its descriptor in itself: hosted sparse, and that of ESX.
const SPARSE_VMDK: [&[u8]; 2] = [b"KDMV", b"COWD"];

/// QEMU reads no more of a descriptor.
const LONGEST_DESCRIPTOR: u64 = 1 << 20;

/// The descriptor of a VMDK image.
pub(super) struct Vmdk {
    pub text: Vec<u8>,
    /// Whether it is all of the file, and names other files, which have the extents.
    pub is_alone: bool,
}

/// What else a qcow2 image needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Qcow2 {
    /// The backing file, as the header names it.
    pub backing: Option<String>,
    /// Whether its data is in a file of its own.
    pub has_data_file: bool,
}

/// Reads what the header of a qcow2 image says.
///
/// # Errors
///
/// If it is none.
pub(super) fn qcow2(fd: BorrowedFd<'_>) -> anyhow::Result<Qcow2> {
    let bytes = begin(fd).context("the image could not be read")?;
    parse_qcow2(&bytes).context("it has no qcow2 header")
}

/// Reads the descriptor of a VMDK image.
///
/// # Errors
///
/// If there is none.
pub(super) fn vmdk(fd: BorrowedFd<'_>) -> anyhow::Result<Vmdk> {
    let bytes = begin(fd).context("the image could not be read")?;
    if bytes.starts_with(SPARSE_VMDK[1]) {
        anyhow::bail!("it is a sparse VMDK image of ESX's, whose descriptor is not known here");
    }
    if bytes.starts_with(SPARSE_VMDK[0]) {
        let (offset, size) = embedded(&bytes).context("its VMDK header ends too early")?;
        let text = read_range(fd, offset, size)?;
        // Behind its end there are zeroes.
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        return Ok(Vmdk { text: text[..end].to_vec(), is_alone: false });
    }
    let text = read_range(fd, 0, LONGEST_DESCRIPTOR)?;
    let begins_well = text.starts_with(b"# Disk DescriptorFile");
    anyhow::ensure!(begins_well, "it is no VMDK image, and no VMDK descriptor");
    Ok(Vmdk { text, is_alone: true })
}

/// Where a hosted sparse extent has its descriptor, in bytes: sectors, little-endian.
fn embedded(bytes: &[u8]) -> Option<(u64, u64)> {
    let offset = u64::from_le_bytes(field(bytes, 28)?).checked_mul(512)?;
    let size = u64::from_le_bytes(field(bytes, 36)?).checked_mul(512)?;
    Some((offset, size.min(LONGEST_DESCRIPTOR)))
}

/// Reads so many bytes, fewer at the file's end.
fn read_range(fd: BorrowedFd<'_>, offset: u64, size: u64) -> anyhow::Result<Vec<u8>> {
    let block = BLOCK as u64;
    let first = offset - offset % block;
    let mut bytes = Vec::new();
    while first + (bytes.len() as u64) < offset + size {
        let more = read_at(fd, first + bytes.len() as u64)?;
        bytes.extend_from_slice(&more);
        if more.len() < BLOCK {
            break;
        }
    }
    let begin = usize::try_from(offset - first)?;
    let end = bytes.len().min(begin.saturating_add(usize::try_from(size)?));
    Ok(bytes.get(begin..end).unwrap_or_default().to_vec())
}

/// Reads the first block of a file. It is read whole and into memory that is aligned, as a descriptor
/// with `O_DIRECT` wants it.
fn begin(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    read_at(fd, 0)
}

/// Reads the block at an offset, which is a multiple of a block's size; less of it at the file's end.
fn read_at(fd: BorrowedFd<'_>, offset: u64) -> io::Result<Vec<u8>> {
    let mut space = vec![0; 2 * BLOCK];
    let first = space.as_ptr().align_offset(BLOCK);
    let aligned = &mut space[first..first + BLOCK];
    let count = rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut *aligned, offset))?;
    Ok(aligned[..count].to_vec())
}

fn parse_qcow2(bytes: &[u8]) -> Option<Qcow2> {
    // The format's specification: version, backing_file_offset, backing_file_size, and from version 3
    // on incompatible_features, whose bit 2 is that of an external data file; all big-endian.
    if !bytes.starts_with(QCOW2) {
        return None;
    }
    let version = u32::from_be_bytes(field(bytes, 4)?);
    let offset = usize::try_from(u64::from_be_bytes(field(bytes, 8)?)).ok()?;
    let size = usize::try_from(u32::from_be_bytes(field(bytes, 16)?)).ok()?;
    let incompatible = if version < 3 { 0 } else { u64::from_be_bytes(field(bytes, 72)?) };
    let name = offset.checked_add(size).and_then(|end| bytes.get(offset..end));
    // A name that lies further on is one all the same.
    let name = name.map_or("?".into(), |name| String::from_utf8_lossy(name).into_owned());
    Some(Qcow2 {
        backing: (offset != 0 && size != 0).then_some(name),
        has_data_file: incompatible & 4 != 0,
    })
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd, process::Command};

    use super::*;

    #[test]
    fn what_qemu_img_writes_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let made = |name: &str, arguments: &str| {
            let path = folder.path().join(name);
            let made = Command::new("qemu-img")
                .args(["create", "-q"])
                .args(arguments.split(' '))
                .arg(&path)
                .arg("1M")
                .current_dir(folder.path())
                .status();
            assert!(made.expect("qemu-img can be run").success(), "{arguments}");
            File::open(path).unwrap()
        };

        let base = made("base", "-f qcow2");
        let over = made("over", "-f qcow2 -b base -F qcow2");
        let old = made("old", "-f qcow2 -o compat=0.10 -b base -F qcow2");
        let data = made("data", "-f qcow2 -o data_file=data.raw,data_file_raw=on");
        let flat = made("flat", "-f vmdk -o subformat=twoGbMaxExtentFlat");
        let sparse = made("sparse", "-f vmdk -b flat -F vmdk");

        let told = |file: &File| qcow2(file.as_fd()).unwrap();
        let named = |name: &str| Qcow2 { backing: Some(name.to_owned()), has_data_file: false };
        assert_eq!(told(&base), Qcow2 { backing: None, has_data_file: false });
        assert_eq!(told(&over), named("base"));
        assert_eq!(told(&old), named("base"));
        assert_eq!(told(&data), Qcow2 { backing: None, has_data_file: true });
        assert!(qcow2(flat.as_fd()).is_err());
        let flat = vmdk(flat.as_fd()).unwrap();
        assert!(flat.is_alone);
        assert_eq!(super::super::vmdk::extents(&flat.text).unwrap(), ["flat-f001"]);
        let sparse = vmdk(sparse.as_fd()).unwrap();
        assert!(!sparse.is_alone);
        assert_eq!(super::super::vmdk::parent(&sparse.text).as_deref(), Some("flat"));
        assert!(vmdk(base.as_fd()).is_err());
    }

    #[test]
    fn a_name_that_lies_further_on_is_one_all_the_same() {
        let mut header = vec![0; 512];
        header[..4].copy_from_slice(QCOW2);
        header[7] = 3;
        header[8..16].copy_from_slice(&70_000u64.to_be_bytes());
        header[16..20].copy_from_slice(&9u32.to_be_bytes());

        assert_eq!(parse_qcow2(&header).unwrap().backing.as_deref(), Some("?"));
        assert_eq!(parse_qcow2(&header[..70]), None);
        assert_eq!(parse_qcow2(b""), None);
    }

    #[test]
    fn a_range_is_read_that_begins_within_a_block_and_ends_with_the_file() {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..10_000u32).map(|at| at.to_le_bytes()[0]).collect();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();

        for (offset, size) in [(0, 10), (512, 9000), (4096, 4096), (9999, 50), (20_000, 5)] {
            let end = bytes.len().min(offset + size);
            let expected = bytes.get(offset..end).unwrap_or_default();
            let read = read_range(file.as_fd(), offset as u64, size as u64).unwrap();
            assert_eq!(read, expected, "{offset} {size}");
        }
    }
}
