//! Waiting for a descriptor for which Tokio has no type of its own, or one that asks for too much.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    rc::Rc,
};

use tokio::io::{Interest, unix::AsyncFd};

/// What keeps its number, and keeps it open, until it is dropped.
pub(crate) trait Steady: AsRawFd {}

impl Steady for OwnedFd {}
impl Steady for UnixListener {}
impl Steady for Rc<UnixStream> {}

/// Registers a descriptor with the event loop, which hears of nothing else than is asked for. Owns it.
///
/// # Errors
///
/// The kernel's, for what cannot be polled.
#[expect(unsafe_code, reason = "Tokio cannot know that a type's number stays what it is")]
pub(crate) fn polled<T: Steady>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: what is Steady keeps its number, and keeps it open, until it is dropped; the AsyncFd
    // has it, or shares it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
