//! The images: made and judged by QEMU's own tools.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    Outcome,
    guest::{self, BLOCK, Content, Record},
};

/// The size of the disk: more than what two extents of a VMDK have.
pub(crate) const BYTES: u64 = 4608 << 20;

/// A qcow2 image over another over a VMDK of several extents.
pub(crate) struct Chain {
    pub(crate) folder: PathBuf,
    /// Every file, the top first, and what it is.
    pub(crate) files: Vec<(PathBuf, &'static str)>,
}

impl Chain {
    pub(crate) fn create(folder: &Path) -> Outcome<Self> {
        fs::create_dir(folder)?;
        let at = |name: &str| folder.join(name);
        let vmdk = ["create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat"];
        qemu_img(&[&vmdk[..], &[text(&at("base.vmdk"))?, &BYTES.to_string()]].concat())?;
        let extents = extents(&at("base.vmdk"))?;
        write_initial(&extents)?;
        let over = ["create", "-q", "-f", "qcow2", "-F"];
        qemu_img(&[&over[..], &["vmdk", "-b", "base.vmdk", text(&at("middle.qcow2"))?]].concat())?;
        qemu_img(&[&over[..], &["qcow2", "-b", "middle.qcow2", text(&at("top.qcow2"))?]].concat())?;

        let mut files = vec![
            (at("top.qcow2"), "what the guest writes"),
            (at("middle.qcow2"), "a snapshot, which it refers to"),
            (at("base.vmdk"), "the text that names the extents"),
        ];
        files.extend(extents.into_iter().map(|extent| (extent.path, "an extent")));
        for (path, _) in &files {
            set_mode(path, 0o666)?;
        }
        Ok(Self { folder: folder.to_owned(), files })
    }

    pub(crate) fn top(&self) -> PathBuf {
        self.folder.join("top.qcow2")
    }

    /// The file that will not be opened: the second extent.
    pub(crate) fn victim(&self) -> &Path {
        &self.files[4].0
    }

    pub(crate) fn check(&self) -> Outcome<String> {
        let said = qemu_img(&["check", text(&self.top())?])?;
        let first = said.lines().next().unwrap_or_default();
        Ok(format!("qemu-img check: {first}"))
    }

    /// Lets `qemu-img` compare the disk with what the guest was told that it has written.
    pub(crate) fn compare(&self, record: &Record) -> Outcome<String> {
        let expected = self.folder.join("expected.raw");
        let file = File::create(&expected)?;
        file.set_len(BYTES)?;
        for block in 0..guest::BLOCKS {
            let content = Content::of(block, record.generation(block)?);
            file.write_all_at(content.bytes(), guest::offset(block))?;
        }
        let formats = ["compare", "-f", "raw", "-F", "qcow2"];
        let top = self.top();
        let said = qemu_img(&[&formats[..], &[text(&expected)?, text(&top)?]].concat())?;
        Ok(format!("qemu-img compare, with what the guest wrote: {}", said.trim()))
    }
}

/// One flat extent: so many bytes of the disk, one after the other.
struct Extent {
    path: PathBuf,
    bytes: u64,
}

/// The extents of a VMDK, as its text names them: RW 4194304 FLAT "base-f001.vmdk" 0
fn extents(descriptor: &Path) -> Outcome<Vec<Extent>> {
    let text = fs::read_to_string(descriptor)?;
    let mut extents = Vec::new();
    for line in text.lines().filter(|line| line.contains(" FLAT ")) {
        let sectors: u64 = line.split(' ').nth(1).ok_or("an extent has a size")?.parse()?;
        let name = line.split('"').nth(1).ok_or("an extent has a name")?;
        extents.push(Extent { path: descriptor.with_file_name(name), bytes: sectors * 512 });
    }
    if extents.len() < 3 {
        return Err("the image has fewer than three extents".into());
    }
    Ok(extents)
}

/// What the guest finds in its blocks at first.
fn write_initial(extents: &[Extent]) -> Outcome<()> {
    for block in 0..guest::BLOCKS {
        let mut offset = guest::offset(block);
        for extent in extents {
            if offset < extent.bytes {
                let file = File::options().write(true).open(&extent.path)?;
                file.write_all_at(Content::of(block, 0).bytes(), offset)?;
                break;
            }
            offset -= extent.bytes;
        }
    }
    Ok(())
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Outcome<()> {
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

fn text(path: &Path) -> Outcome<&str> {
    path.to_str().ok_or_else(|| format!("{} is not in UTF-8", path.display()).into())
}

/// Runs `qemu-img`; tells what it said.
fn qemu_img(args: &[&str]) -> Outcome<String> {
    let mut command = Command::new("qemu-img");
    let output = command.args(args).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("starting qemu-img: {error}"))?;
    if !output.status.success() {
        return Err(format!("qemu-img {} failed", args.join(" ")).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A block lies within one extent.
const _: () = assert!(BYTES % (guest::BLOCKS * BLOCK as u64) == 0);
