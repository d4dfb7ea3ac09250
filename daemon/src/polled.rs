//! Waiting for a descriptor for which Tokio has no type of its own.

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the event loop. Owns it.
///
/// # Errors
///
/// The kernel's, for what cannot be polled.
#[expect(unsafe_code, reason = "Tokio cannot know that a type's number stays what it is")]
pub(crate) fn polled(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its number, and keeps it open, until it is dropped; the AsyncFd has
    // the only one.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
