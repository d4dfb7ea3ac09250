//! [`Stage`]: a transaction in either way to wait, so that what is built on transactions is written once.

use std::{io, os::fd::OwnedFd};

use fdstash_proto::Reply;

#[cfg(feature = "tokio")]
use crate::tokio::Waiting;
use crate::{
    Error,
    blocking::Blocking,
    core::{Core, Staged},
    job::Job,
    transport::Transport,
};

/// A transaction. Dropped, it is rolled back.
pub(crate) enum Stage<'a> {
    Blocking(Staged<'a, Blocking>),
    #[cfg(feature = "tokio")]
    Waiting(Staged<'a, Waiting>),
}

impl<'a> Stage<'a> {
    pub(crate) async fn begin<T: Transport>(core: &'a mut Core<T>) -> Result<Self, Error> {
        Staged::begin(core).await.map(T::stage)
    }

    pub(crate) async fn run(&mut self, job: Job<'_>) -> Result<Vec<Reply<OwnedFd>>, Error> {
        match self {
            Self::Blocking(staged) => staged.run(job).await,
            #[cfg(feature = "tokio")]
            Self::Waiting(staged) => staged.run(job).await,
        }
    }

    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        match &mut self {
            Self::Blocking(staged) => staged.commit().await,
            #[cfg(feature = "tokio")]
            Self::Waiting(staged) => staged.commit().await,
        }
    }

    /// When it returns, the names are free for others, unless the connection was lost.
    pub(crate) async fn rollback(mut self) {
        match &mut self {
            Self::Blocking(staged) => staged.rollback().await,
            #[cfg(feature = "tokio")]
            Self::Waiting(staged) => staged.rollback().await,
        }
    }

    /// Does what may wait for a file system, and lets other tasks run meanwhile, if there are any.
    pub(crate) async fn wait_for<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<R> + Send + 'static,
    ) -> io::Result<R> {
        match self {
            Self::Blocking(_) => work(),
            #[cfg(feature = "tokio")]
            Self::Waiting(_) => ::tokio::task::spawn_blocking(work).await?,
        }
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        match self {
            Self::Blocking(staged) => staged.abandon(),
            #[cfg(feature = "tokio")]
            Self::Waiting(staged) => staged.abandon(),
        }
    }
}
