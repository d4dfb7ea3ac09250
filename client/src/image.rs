//! [`Image`]: all files of a VMM's image, opened and reopened together; and [`Driver`], what it needs of
//! the VMM for that.

use std::{fmt, io, marker::PhantomData};

use fdstash_proto::Name;

use crate::{
    Error, Files, OpenOptions, ReopenOptions, core::Core, files::Set, repetition::Repetitions,
    stage::Stage, transport::Transport,
};

/// A VMM's driver for one image: what opens the files of its format, and what is running over them.
///
/// All of it is called from the task that opens or reopens the image, one after the other. A driver that
/// never awaits can be used with the blocking client as well as with the asynchronous one.
pub trait Driver {
    /// The image while it is open: it owns the descriptors that it was opened with.
    type Disk;

    /// Opens the image over these files, every one of them through [`Files::open`] or
    /// [`Files::open_kept`], as [`Files::options`] tell. It must change nothing in them: what is running
    /// goes on over the same files if something fails after it. It may be called more than once.
    ///
    /// # Errors
    ///
    /// Why it cannot be opened.
    fn open(&mut self, files: &mut Files<'_>) -> impl Future<Output = io::Result<Self::Disk>>;

    /// Reads from what was just opened, every file of it, and so finds out that it works before it is
    /// relied on.
    ///
    /// # Errors
    ///
    /// Why it does not.
    fn check(&mut self, disk: &Self::Disk) -> impl Future<Output = io::Result<()>>;

    /// Waits until nothing that is under way is left, writes back what is only in memory, and holds back
    /// what the guest asks for from then on, until [`Driver::resume`].
    ///
    /// # Errors
    ///
    /// Why it cannot. Then it is resumed, and the image not reopened.
    fn quiesce(&mut self) -> impl Future<Output = io::Result<()>>;

    /// Goes on: over this, in the place of what was, whose descriptors can be closed; or over what was,
    /// as if nothing had happened.
    fn resume(&mut self, disk: Option<Self::Disk>);
}

/// The files of an image that is open, of each of which the stash keeps an open file description: they
/// are opened again all together, or not at all.
///
/// Closed, they stay in the stash: there a VMM that is started again finds them, whatever has become of
/// their paths. To have the stash let go of them, close the entries of its [`names`](Image::names).
///
/// Use it as `fdstash::Image` with the `Client` on Tokio, and as `fdstash::blocking::Image` with the
/// blocking one.
pub struct Image<C> {
    set: Set,
    client: PhantomData<fn(C)>,
}

impl<C> Image<C> {
    /// Under which names the stash keeps its files, in the order in which the driver asked for them.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.set.members.iter().map(|member| &member.name)
    }

    /// How they are opened.
    pub fn options(&self) -> &OpenOptions {
        &self.set.options
    }

    pub(crate) fn set(&self) -> &Set {
        &self.set
    }

    pub(crate) fn swap(&mut self, set: Set) {
        self.set = set;
    }
}

impl<C> From<Set> for Image<C> {
    fn from(set: Set) -> Self {
        Self { set, client: PhantomData }
    }
}

impl<C> fmt::Debug for Image<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// Why an image was not opened, or not reopened: then the driver goes on over the files that it had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The stash, or a file.
    #[error(transparent)]
    Stash(#[from] Error),

    /// The driver.
    #[error("{}", step.told())]
    Driver {
        /// At what.
        step: Step,
        /// What it said.
        source: io::Error,
    },
}

/// What a driver does for a reopening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// [`Driver::quiesce`].
    Quiesce,
    /// [`Driver::open`].
    Open,
    /// [`Driver::check`].
    Check,
}

impl Step {
    fn told(self) -> &'static str {
        match self {
            Self::Quiesce => "the image did not come to rest",
            Self::Open => "the image could not be opened",
            Self::Check => "the image could not be read",
        }
    }

    fn failed(self) -> impl FnOnce(io::Error) -> ImageError {
        move |source| ImageError::Driver { step: self, source }
    }
}

/// Opens an image, its files out of the stash where they are there.
pub(crate) async fn open<T: Transport>(
    core: &mut Core<T>,
    driver: &mut impl Driver,
    options: &OpenOptions,
) -> Result<Set, ImageError> {
    let mut repetitions = Repetitions::new();
    loop {
        match try_open(core, driver, options).await {
            Ok(set) => return Ok(set),
            Err(error) => again::<T>(&mut repetitions, error).await?,
        }
    }
}

async fn try_open<T: Transport>(
    core: &mut Core<T>,
    driver: &mut impl Driver,
    options: &OpenOptions,
) -> Result<Set, ImageError> {
    let mut files = Files::new(Stage::begin(core).await?, options);
    match open_and_check(driver, &mut files).await {
        Ok(disk) => {
            let set = files.commit().await?;
            driver.resume(Some(disk));
            Ok(set)
        }
        Err(error) => Err(files.rollback().await.map_or(error, ImageError::Stash)),
    }
}

/// Opens all files of an image again, out of the stash.
pub(crate) async fn reopen<T: Transport>(
    core: &mut Core<T>,
    driver: &mut impl Driver,
    set: &Set,
    change: &ReopenOptions,
) -> Result<Set, ImageError> {
    let wanted = Set { options: set.options.clone().changed(change), ..set.clone() };
    let mut repetitions = Repetitions::new();
    loop {
        match try_reopen(core, driver, &wanted).await {
            Ok(set) => return Ok(set),
            Err(error) => again::<T>(&mut repetitions, error).await?,
        }
    }
}

/// The guest waits only from the quiesce on, when all files are open.
async fn try_reopen<T: Transport>(
    core: &mut Core<T>,
    driver: &mut impl Driver,
    wanted: &Set,
) -> Result<Set, ImageError> {
    let stage = Stage::begin(core).await?;
    let mut files = Files::reopened(stage, &wanted.members, &wanted.options).await?;
    let mut resting = Resting { driver, disk: None };
    match quiesce_and_open(resting.driver, &mut files).await {
        Ok(disk) => {
            let set = files.commit().await?;
            resting.disk = Some(disk);
            Ok(set)
        }
        Err(error) => {
            // The guest does not wait until the stash is as it was.
            drop(resting);
            Err(files.rollback().await.map_or(error, ImageError::Stash))
        }
    }
}

async fn quiesce_and_open<D: Driver>(
    driver: &mut D,
    files: &mut Files<'_>,
) -> Result<D::Disk, ImageError> {
    driver.quiesce().await.map_err(Step::Quiesce.failed())?;
    open_and_check(driver, files).await
}

/// A driver that is resumed whatever happens: with what was opened, or as before.
struct Resting<'d, D: Driver> {
    driver: &'d mut D,
    disk: Option<D::Disk>,
}

impl<D: Driver> Drop for Resting<'_, D> {
    fn drop(&mut self) {
        self.driver.resume(self.disk.take());
    }
}

/// Opens the image over files that are not final yet, and tries it.
async fn open_and_check<D: Driver>(
    driver: &mut D,
    files: &mut Files<'_>,
) -> Result<D::Disk, ImageError> {
    let disk = driver.open(files).await.map_err(Step::Open.failed())?;
    files.no_failure()?;
    driver.check(&disk).await.map_err(Step::Check.failed())?;
    Ok(disk)
}

/// Waits until it is to be done anew, where the connection was lost in its middle.
async fn again<T: Transport>(
    repetitions: &mut Repetitions,
    error: ImageError,
) -> Result<(), ImageError> {
    match error {
        ImageError::Stash(error) => Ok(repetitions.after_undone::<T>(error).await?),
        ImageError::Driver { .. } => Err(error),
    }
}
