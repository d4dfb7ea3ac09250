//! [`Descriptor`]: what the stash of the daemon holds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::closer::Closer;

/// An open descriptor that is closed away from the event loop, whoever drops it last: the last close
/// of a file may wait for a server that is dead.
#[derive(Debug)]
pub(crate) struct Descriptor {
    /// There until the drop.
    fd: Option<OwnedFd>,
    closer: Closer,
}

impl Descriptor {
    /// Owns the descriptor from here on.
    pub(crate) fn new(fd: OwnedFd, closer: &Closer) -> Self {
        Self { fd: Some(fd), closer: closer.clone() }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Some(fd) => fd.as_fd(),
            None => unreachable!("a descriptor is there until its drop"),
        }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.closer.close(fd);
        }
    }
}
