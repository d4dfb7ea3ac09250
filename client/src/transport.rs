//! [`Transport`]: what the two ways to wait have to offer to the flow that they share.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use fdstash_proto::socket::Received;

use crate::{core::Staged, stage::Stage};

/// One connection's bytes and descriptors. Each method waits in the way of its kind; the blocking
/// kind is always ready when it returns.
pub(crate) trait Transport: Sized {
    /// Connects to the daemon's socket.
    async fn connect(socket: &Path) -> io::Result<Self>;

    /// Waits until something can be sent, and sends once. Tells how many bytes the kernel accepted.
    async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize>;

    /// Waits until something has come, and reads once. Where the future is dropped, nothing has
    /// been read.
    async fn receive(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<Received>;

    /// Lets some time pass.
    async fn pause(span: Duration);

    /// The socket itself, for what needs no waiting.
    fn fd(&self) -> BorrowedFd<'_>;

    /// A transaction of its kind as one of either.
    fn stage(staged: Staged<'_, Self>) -> Stage<'_>;
}
