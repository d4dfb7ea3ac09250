//! [`File`]: any file that the stash keeps too, so that it can be opened again with other flags, or anew
//! by its path, and is never lost in between.

use std::{
    fmt,
    fs::File as StdFile,
    marker::PhantomData,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use fdstash_proto::Name;

use crate::{
    Error, OpenOptions, ReopenOptions,
    core::Core,
    files::{Files, Member, Set},
    repetition::Repetitions,
    stage::Stage,
    transport::Transport,
};

/// An open file of which the stash keeps an open file description too, each with an offset, flags and
/// locks of its own. It is a [`std::fs::File`] to everybody who wants one.
///
/// Closed, it stays in the stash: there a program that is started again finds it, whatever has become of
/// its path. To have the stash let go of it, close the entry of its [`name`](File::name).
///
/// Use it as `fdstash::File` with the `Client` on Tokio, and as `fdstash::blocking::File` with the
/// blocking one.
///
/// ```no_run
/// use fdstash::{OpenOptions, ReopenOptions, blocking::{Client, File}};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut client = Client::connect()?;
///
/// let mut disk = File::open(&mut client, "/images/vm7.img", &OpenOptions::read_write())?;
/// disk.reopen(&mut client, &ReopenOptions::new().direct(true))?;
///
/// let options = OpenOptions::append().create(0o640);
/// let mut log = File::open(&mut client, "/var/log/vm7.log", &options)?;
/// // After logrotate has renamed it:
/// log.rotate(&mut client)?;
/// # Ok(())
/// # }
/// ```
pub struct File<C> {
    file: StdFile,
    set: Set,
    client: PhantomData<fn(C)>,
}

impl<C> File<C> {
    /// Under which name the stash keeps it.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.set.members[0].name
    }

    /// By which path it was opened, or what it had when it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.set.members[0].path
    }

    /// How it is opened.
    pub fn options(&self) -> &OpenOptions {
        &self.set.options
    }

    /// Puts what was opened in the place of what is open, which is closed.
    pub(crate) fn swap(&mut self, (file, set): (StdFile, Set)) {
        (self.file, self.set) = (file, set);
    }

    pub(crate) fn set(&self) -> &Set {
        &self.set
    }
}

impl<C> From<(StdFile, Set)> for File<C> {
    fn from((file, set): (StdFile, Set)) -> Self {
        Self { file, set, client: PhantomData }
    }
}

impl<C> Deref for File<C> {
    type Target = StdFile;

    fn deref(&self) -> &StdFile {
        &self.file
    }
}

impl<C> AsFd for File<C> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl<C> From<File<C>> for StdFile {
    fn from(file: File<C>) -> Self {
        file.file
    }
}

impl<C> From<File<C>> for OwnedFd {
    fn from(file: File<C>) -> Self {
        file.file.into()
    }
}

impl<C> fmt::Debug for File<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("name", self.name()).field("file", &self.file).finish()
    }
}

/// What is opened.
#[derive(Clone, Copy)]
pub(crate) enum Which<'a> {
    At(&'a Path),
    Kept(&'a Name),
}

/// Opens a file, out of the stash if it is there.
pub(crate) async fn open<T: Transport>(
    core: &mut Core<T>,
    which: Which<'_>,
    options: &OpenOptions,
) -> Result<(StdFile, Set), Error> {
    let mut repetitions = Repetitions::new();
    loop {
        match try_open(core, which, options).await {
            Ok(opened) => return Ok(opened),
            Err(error) => repetitions.after_undone::<T>(error).await?,
        }
    }
}

async fn try_open<T: Transport>(
    core: &mut Core<T>,
    which: Which<'_>,
    options: &OpenOptions,
) -> Result<(StdFile, Set), Error> {
    let mut files = Files::new(Stage::begin(core).await?, options);
    let access = options.access();
    let outcome = match which {
        Which::At(path) => files.find(path, access).await,
        Which::Kept(name) => files.find_kept(name, access).await.map(|(file, _)| file),
    };
    finish(files, outcome).await
}

/// Opens a file again, out of the stash.
pub(crate) async fn reopen<T: Transport>(
    core: &mut Core<T>,
    set: &Set,
    change: &ReopenOptions,
) -> Result<(StdFile, Set), Error> {
    let options = set.options.clone().changed(change);
    let mut members = set.members.clone();
    for member in &mut members {
        member.access = options.access();
    }
    let mut repetitions = Repetitions::new();
    loop {
        match try_reopen(core, &members, &options).await {
            Ok(opened) => return Ok(opened),
            Err(error) => repetitions.after_undone::<T>(error).await?,
        }
    }
}

async fn try_reopen<T: Transport>(
    core: &mut Core<T>,
    members: &[Member],
    options: &OpenOptions,
) -> Result<(StdFile, Set), Error> {
    let stage = Stage::begin(core).await?;
    let files = Files::reopened(stage, members, options).await?;
    let outcome = files.first();
    finish(files, outcome).await
}

/// Opens anew what stands at the path now, if that is another file.
pub(crate) async fn rotate<T: Transport>(
    core: &mut Core<T>,
    set: &Set,
) -> Result<Option<(StdFile, Set)>, Error> {
    let mut repetitions = Repetitions::new();
    loop {
        match try_rotate(core, set).await {
            Ok(opened) => return Ok(opened),
            Err(error) => repetitions.after_undone::<T>(error).await?,
        }
    }
}

async fn try_rotate<T: Transport>(
    core: &mut Core<T>,
    set: &Set,
) -> Result<Option<(StdFile, Set)>, Error> {
    let mut files = Files::new(Stage::begin(core).await?, &set.options);
    match files.open_anew(&set.members[0]).await {
        Ok(Some(file)) => finish(files, Ok(file)).await.map(Some),
        Ok(None) => {
            files.rollback().await;
            Ok(None)
        }
        Err(error) => finish(files, Err(error)).await.map(Some),
    }
}

/// Makes it final, or undoes it.
async fn finish(
    files: Files<'_>,
    outcome: Result<StdFile, Error>,
) -> Result<(StdFile, Set), Error> {
    match outcome {
        Ok(file) => Ok((file, files.commit().await?)),
        Err(error) => {
            files.rollback().await;
            Err(error)
        }
    }
}
