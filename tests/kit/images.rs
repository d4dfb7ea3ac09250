//! Disk images of each kind, small, made with QEMU's own tools, and filled with what
//! [`Io`](crate::Io) finds again.

use std::{
    env,
    fs::{self, File, Permissions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use fdstash::{Gift, blocking::Client};
use tempfile::TempDir;

use crate::{
    io::{BLOCK, Written, filled},
    name,
};

/// How large each image is, in bytes: blocks enough to spread the I/O over both extents of a VMDK.
const SIZE: u64 = 8 << 20;

/// An image with all files that it consists of.
#[derive(Debug)]
pub struct Image {
    /// Its files: the image itself first, then what it stands on.
    pub files: Vec<ImageFile>,
    /// What is written in it.
    pub written: Written,
}

/// One file of an image, and the name of its entry in the stash.
#[derive(Debug)]
pub struct ImageFile {
    /// As `qemu-img` names it; none for an extent.
    pub format: Option<&'static str>,
    /// Under which the stash keeps it.
    pub entry: &'static str,
    /// Where it lies.
    pub path: PathBuf,
    /// Whether it is given for writing too.
    pub writable: bool,
}

impl Image {
    /// A folder for images: in `/var/tmp`, which is on a disk and so has O_DIRECT, or where `TMPDIR`
    /// says.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    #[must_use]
    pub fn folder() -> TempDir {
        let temporary = env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
        let folder = tempfile::Builder::new().prefix("fdstash-images-").tempdir_in(temporary);
        folder.expect("a folder can be made")
    }

    /// A raw image.
    #[must_use]
    pub fn raw(folder: &Path) -> Self {
        let path = folder.join("disk.raw");
        let written = Written::every(2, 1);
        fill_raw(&path, &written);
        Self { files: vec![layer("raw", "vm7-disk0", path, true)], written }
    }

    /// A qcow2 image over another one over a raw image, each with some of the blocks.
    #[must_use]
    pub fn qcow2(folder: &Path) -> Self {
        let [top, base, root] =
            ["disk.qcow2", "base.qcow2", "root.raw"].map(|file| folder.join(file));
        let mut written = Written::every(2, 1);
        fill_raw(&root, &written);
        overlay(&base, &root, "raw");
        let above = Written::every(3, 2);
        fill_with_qemu_io(&base, &above, folder);
        written.add(&above);
        overlay(&top, &base, "qcow2");
        let files = vec![
            layer("qcow2", "vm7-disk0", top, true),
            layer("qcow2", "vm7-base", base, false),
            layer("raw", "vm7-root", root, false),
        ];
        Self { files, written }
    }

    /// A VMDK image with two flat extents.
    #[must_use]
    pub fn vmdk(folder: &Path) -> Self {
        let path = folder.join("disk.vmdk");
        let half = SIZE / 2;
        fs::write(&path, vmdk_descriptor(["disk-f001.vmdk", "disk-f002.vmdk"], half / 512))
            .expect("a descriptor file can be written");
        let mut files = vec![layer("vmdk", "vm7-disk", path, true)];
        for (entry, file) in [("vm7-ext1", "disk-f001.vmdk"), ("vm7-ext2", "disk-f002.vmdk")] {
            let path = folder.join(file);
            let extent = File::create(&path).expect("an extent can be made");
            extent.set_len(half).expect("an extent can have holes");
            files.push(ImageFile { format: None, entry, path, writable: true });
        }
        Self { files, written: Written::default() }
    }

    /// The image's own path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.files[0].path
    }

    /// How many of its files have its data, and not that of images below it.
    #[must_use]
    pub fn data_files(&self) -> usize {
        self.files.iter().filter(|file| file.format.is_none()).count().max(1)
    }

    /// Gives its files to the stash, an open file description of its own for each, by somebody who may
    /// open them all.
    ///
    /// # Panics
    ///
    /// If they cannot be opened, or the stash does not take them.
    pub fn give(&self, stash: &mut Client) {
        let gift = |file: &ImageFile| {
            let options = File::options().read(true).write(file.writable).open(&file.path);
            let opened = options.expect("the file of an image can be opened");
            Gift { fresh: true, ..Gift::new(name(file.entry), opened) }
        };
        let gifts: Vec<_> = self.files.iter().map(gift).collect();
        stash.give(&gifts).expect("the stash takes an image's files");
    }

    /// How `fdstash qemu attach` is told of its files.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let words = |file: &ImageFile| match file.format {
            Some(format) => ["--image".to_owned(), format!("{format}={}", file.entry)],
            None => ["--extent".to_owned(), file.entry.to_owned()],
        };
        self.files.iter().flat_map(words).collect()
    }

    /// Lets everybody open its files, or nobody.
    ///
    /// # Panics
    ///
    /// If their mode cannot be set.
    pub fn set_mode(&self, mode: u32) {
        for file in &self.files {
            fs::set_permissions(&file.path, Permissions::from_mode(mode)).expect("a mode is set");
        }
    }

    /// Lets QEMU's tools find that it is sound, and has exactly what was written.
    ///
    /// Both open the image by its path, as nobody else may while it is in use.
    ///
    /// # Panics
    ///
    /// If it is not.
    #[track_caller]
    pub fn is_sound_and_has(&self, written: &Written) {
        let format = self.files[0].format.unwrap_or_default();
        // Of a raw image there is nothing to check but what it has.
        if format != "raw" {
            tool(Command::new("qemu-img").args(["check", "-q", "-f", format]).arg(self.path()));
        }
        let expected = self.path().with_extension("expected");
        fill_raw(&expected, written);
        let compare = ["compare", "-f", format, "-F", "raw"];
        let said = tool(Command::new("qemu-img").args(compare).args([self.path(), &expected]));
        assert!(said.contains("Images are identical"), "{said}");
        fs::remove_file(expected).expect("a file can be removed");
    }

    /// Frees what QEMU had taken for data and not noted down when it was killed.
    ///
    /// # Panics
    ///
    /// If that cannot be, or if anything but that is wrong with the image.
    pub fn free_leaks(&self) {
        if self.files[0].format == Some("qcow2") {
            let mut check = Command::new("qemu-img");
            tool(check.args(["check", "-q", "-r", "leaks", "-f", "qcow2"]).arg(self.path()));
        }
    }

    /// Whether somebody who has nothing to do with the stash or QEMU can open it with all locks.
    #[must_use]
    pub fn can_be_opened_by_others(&self) -> bool {
        let format = self.files[0].format.unwrap_or_default();
        ["-r", ""].iter().all(|mode| {
            let mut open = Command::new("qemu-io");
            open.args(mode.split_terminator(' ')).args(["-f", format, "-c", "read 0 4k"]);
            open.arg(self.path()).output().is_ok_and(|output| output.status.success())
        })
    }
}

fn layer(format: &'static str, entry: &'static str, path: PathBuf, writable: bool) -> ImageFile {
    ImageFile { format: Some(format), entry, path, writable }
}

/// Makes a raw file of what is written.
fn fill_raw(path: &Path, written: &Written) {
    let file = File::create(path).expect("an image can be made");
    file.set_len(SIZE).expect("an image can have holes");
    for (block, generation) in written.blocks() {
        let at = block * BLOCK as u64;
        file.write_all_at(&filled(block, generation), at).expect("an image can be filled");
    }
}

/// Makes a qcow2 image over another.
fn overlay(path: &Path, backing: &Path, format: &str) {
    let create = ["create", "-q", "-f", "qcow2", "-F", format, "-b"];
    // By its name alone, as it lies beside it.
    let backing = backing.file_name().expect("a file has a name");
    tool(Command::new("qemu-img").args(create).arg(backing).arg(path));
}

fn fill_with_qemu_io(image: &Path, written: &Written, folder: &Path) {
    let pattern = folder.join("pattern");
    for (block, generation) in written.blocks() {
        fs::write(&pattern, filled(block, generation)).expect("a file can be written");
        let write = format!("write -s {} {} {BLOCK}", pattern.display(), block * BLOCK as u64);
        tool(Command::new("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(image));
    }
}

/// What `qemu-img` writes for `subformat=twoGbMaxExtentFlat`, with extents of less than two gigabytes.
fn vmdk_descriptor(extents: [&str; 2], sectors: u64) -> String {
    let lines = extents.map(|extent| format!("RW {sectors} FLAT \"{extent}\" 0\n")).concat();
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=7ab30c4e\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n\n# Extent description\n{lines}\n\
         # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\n\
         ddb.geometry.cylinders = \"16\"\nddb.geometry.heads = \"16\"\n\
         ddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n"
    )
}

/// Runs one of QEMU's tools to its end; tells what it says.
#[track_caller]
fn tool(command: &mut Command) -> String {
    let output = command.output().expect("QEMU's tools are there");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{complained}");
    said
}
