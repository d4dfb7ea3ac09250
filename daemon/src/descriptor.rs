//! [`Descriptor`]: what the stash of the daemon holds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::ledger::{Account, Charge};

/// An open descriptor that is counted, and closed away from the event loop, whoever drops it last: the
/// last close of a file may wait for a server that is dead.
#[derive(Debug)]
pub(crate) struct Descriptor {
    /// There until the drop.
    inner: Option<(OwnedFd, Charge)>,
}

impl Descriptor {
    /// Owns the descriptor from here on, and counts it to a user.
    pub(crate) fn new(fd: OwnedFd, account: &Account) -> Self {
        Self { inner: Some((fd, account.charge())) }
    }

    /// Is the stash's from here on, which counts it itself.
    pub(crate) fn hold(&self) {
        if let Some((_, charge)) = &self.inner {
            charge.hold();
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.inner {
            Some((fd, _)) => fd.as_fd(),
            None => unreachable!("a descriptor is there until its drop"),
        }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let Some((fd, charge)) = self.inner.take() {
            charge.close(fd);
        }
    }
}
