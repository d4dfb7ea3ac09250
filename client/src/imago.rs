//! Disk images by the `imago` crate (raw, qcow2 with backing files and external data files, VMDK with flat
//! extents, which it only reads), all files of which come through the stash.
//!
//! [`Disk`] is the [`Driver`] for an [`Image`](crate::Image):
//!
//! ```no_run
//! # #[cfg(feature = "tokio")] {
//! use fdstash::{Client, Image, OpenOptions, ReopenOptions, imago::{Disk, Format}};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = Client::connect().await?;
//! let mut disk = Disk::at("/images/vm7.qcow2", Format::Qcow2);
//! let options = OpenOptions::read_write().under("vm7");
//! let mut image = Image::open(&mut client, &mut disk, &options).await?;
//!
//! // What serves the guest has this, and asks it for each of the guest's requests.
//! let shared = disk.shared().ok_or("it is open")?;
//! let mut block = vec![0; 4096];
//! shared.read().await.read(&mut block[..], 0).await?;
//!
//! // All files of the image past the host's page cache, or all as they were.
//! if let Err(error) = image.reopen(&mut client, &mut disk, &ReopenOptions::new().direct(true)).await {
//!     eprintln!("the disk goes on as it was: {error}");
//! }
//! # Ok(())
//! # }
//! # }
//! ```
//!
//! A VMM that shall open nothing itself says [`OpenOptions::only_stash`](crate::OpenOptions::only_stash): then it opens what management has
//! given to the stash, by name or by the paths that the images' headers have, and refuses all else.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use ::imago::{FormatAccess, file::File as StorageFile, format::Format};
use ::imago::{
    FormatDriverBuilder, StorageExt, StorageOpenOptions, file::File,
    format::gate::ImplicitOpenGate, qcow2::Qcow2, raw::Raw, vmdk::Vmdk,
};
use fdstash_proto::{Access, Flags, Name};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};

use crate::{Driver, Files};

/// An open image, as everybody has it who serves a guest from it. Whoever holds it for reading keeps a
/// reopening waiting, so hold it for one request.
pub type Shared = Arc<RwLock<FormatAccess<File>>>;

/// How much of each file is read to see that it works.
const SAMPLE: u64 = 4096;

/// A disk image, opened by `imago` over files from the stash.
#[derive(Debug)]
pub struct Disk {
    top: Top,
    format: Format,
    open: Option<Shared>,
    resting: Option<OwnedRwLockWriteGuard<FormatAccess<File>>>,
}

/// Where the image begins: the one file that no other refers to.
#[derive(Debug)]
enum Top {
    At(PathBuf),
    Kept(Name),
}

impl Disk {
    /// The image at a path. Where the stash keeps it, the path is only what it is called.
    pub fn at(path: impl Into<PathBuf>, format: Format) -> Self {
        Self { top: Top::At(path.into()), format, open: None, resting: None }
    }

    /// The image that the stash keeps under a name. Files that it names by relative paths are looked for
    /// beside the path that it had when it was given.
    #[must_use]
    pub fn kept(name: Name, format: Format) -> Self {
        Self { top: Top::Kept(name), format, open: None, resting: None }
    }

    /// The open image; none before it was opened. It stays the same over every reopening.
    #[must_use]
    pub fn shared(&self) -> Option<Shared> {
        self.open.clone()
    }
}

impl Driver for Disk {
    type Disk = FormatAccess<File>;

    async fn open(&mut self, files: &mut Files<'_>) -> io::Result<FormatAccess<File>> {
        let access = files.options().access();
        let (file, path) = match &self.top {
            Top::At(path) => (files.open(path, access).await?, path.clone()),
            Top::Kept(name) => files.open_kept(name, access).await?,
        };
        open(file, &path, self.format, access, files).await
    }

    /// Reads a little of each file, and of the guest's disk.
    async fn check(&mut self, disk: &FormatAccess<File>) -> io::Result<()> {
        let mut sample = vec![0; SAMPLE as usize];
        for storage in disk.inner().collect_storage_dependencies() {
            storage.read(&mut sample[..], 0).await?;
        }
        disk.read(&mut sample[..], 0).await?;
        let end = disk.size().saturating_sub(SAMPLE);
        disk.read(&mut sample[..], end).await
    }

    async fn quiesce(&mut self) -> io::Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let resting = Arc::clone(open).write_owned().await;
        resting.flush().await?;
        self.resting = Some(resting);
        Ok(())
    }

    fn resume(&mut self, disk: Option<FormatAccess<File>>) {
        match (self.resting.take(), disk) {
            (Some(mut resting), Some(mut disk)) => {
                std::mem::swap(&mut *resting, &mut disk);
                // The guest does not wait until the old descriptors are closed.
                drop(resting);
                drop(disk);
            }
            (None, Some(disk)) => self.open = Some(Arc::new(RwLock::new(disk))),
            (_, None) => {}
        }
    }
}

/// Opens an image and what it refers to.
async fn open(
    file: fs::File,
    path: &Path,
    format: Format,
    access: Access,
    files: &mut Files<'_>,
) -> io::Result<FormatAccess<File>> {
    let storage = storage(file, path, files, access)?;
    let is_writable = access.covers(Access::Write);
    match format {
        Format::Raw => build(Raw::builder(storage), Gate { files, is_writable }).await,
        Format::Vmdk => build(Vmdk::<File>::builder(storage), Gate { files, is_writable }).await,
        Format::Qcow2 => {
            let mut image = Qcow2::<File>::open_image(storage, is_writable).await?;
            if let Some((backing, format)) = backing(&image, path)? {
                let file = files.open(&backing, Access::Read).await?;
                // Boxed, since a backing file may have one too.
                let open = Box::pin(open(file, &backing, format, Access::Read, files));
                image.set_backing(Some(open.await?));
            }
            // A data file, and a backing file of whose format nothing is said.
            image.open_implicit_dependencies_gated(Gate { files, is_writable }).await?;
            Ok(FormatAccess::new(image))
        }
        other => Err(io::Error::other(format!("images of the format {other:?} are not known"))),
    }
}

async fn build<B: FormatDriverBuilder<File>>(
    builder: B,
    gate: Gate<'_, '_>,
) -> io::Result<FormatAccess<File>> {
    builder.write(gate.is_writable).open(gate).await.map(FormatAccess::new)
}

/// Which backing file an image has, of a format that its header names: of these, `imago` would open only
/// raw and qcow2 by itself.
fn backing(image: &Qcow2<File>, path: &Path) -> io::Result<Option<(PathBuf, Format)>> {
    let (Some(backing), Some(format)) =
        (image.implicit_backing_file(), image.implicit_backing_format())
    else {
        return Ok(None);
    };
    let format = match format.as_str() {
        "raw" | "file" => Format::Raw,
        "qcow2" => Format::Qcow2,
        "vmdk" => Format::Vmdk,
        other => {
            let path = path.display();
            let message =
                format!("{path} has a backing file of the format {other}, which is not known");
            return Err(io::Error::other(message));
        }
    };
    Ok(Some((path.parent().unwrap_or(Path::new("/")).join(backing), format)))
}

/// Lets `imago` open only what comes through the stash.
struct Gate<'g, 'a> {
    files: &'g mut Files<'a>,
    /// Whether the image is: `imago` would open a data file for writing anyway.
    is_writable: bool,
}

impl ImplicitOpenGate<File> for Gate<'_, '_> {
    async fn open_format<B: FormatDriverBuilder<File>>(
        &mut self,
        builder: B,
    ) -> io::Result<FormatAccess<File>> {
        let gate = Gate { files: self.files, is_writable: false };
        Box::pin(builder.open(gate)).await.map(FormatAccess::new)
    }

    async fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<File> {
        let Some(path) = options.get_filename() else {
            return Err(io::Error::other("the image refers to a file without a name"));
        };
        let is_written = self.is_writable && options.get_writable();
        let access = if is_written { Access::ReadWrite } else { Access::Read };
        let file = self.files.open(path, access).await?;
        storage(file, path, self.files, access)
    }
}

/// A file as `imago` has it. What it is told must be as the file was opened.
fn storage(file: fs::File, path: &Path, files: &Files<'_>, access: Access) -> io::Result<File> {
    let options = StorageOpenOptions::new()
        .filename(path)
        .write(access.covers(Access::Write))
        .direct(files.options().flags().contains(Flags::DIRECT));
    File::from_open_file(file, options)
}
