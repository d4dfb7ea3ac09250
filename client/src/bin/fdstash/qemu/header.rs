//! What the header of an image says about other files that belong to it.

use std::{io, os::fd::BorrowedFd};

use anyhow::Context;

/// As much as is read of a header, and as a direct read must be aligned.
const BLOCK: usize = 4096;

const QCOW2: &[u8] = b"QFI\xfb";

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

/// Reads the first block of a file. It is read whole and into memory that is aligned, as a descriptor
/// with `O_DIRECT` wants it.
pub(super) fn begin(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    read_at(fd, 0)
}

/// Reads the block at an offset, which is a multiple of a block's size; less of it at the file's end.
pub(super) fn read_at(fd: BorrowedFd<'_>, offset: u64) -> io::Result<Vec<u8>> {
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
