//! [`Closer`]: closes descriptors on threads of its own, one after the other, and more at a time while
//! some of them take long.

use std::{os::fd::OwnedFd, time::Duration};

use tokio::runtime::Handle;

use crate::{
    ledger::Charge,
    pool::{Bounds, Job, Pool},
    steps::step,
};

/// How many closes may hang at a time before the others wait for them; and those of one user.
const BOUNDS: Bounds = Bounds {
    name: "close",
    most: 64,
    most_of_one: 16,
    share: 8,
    is_hurried: false,
    // A close is never given up.
    gives_up: Duration::MAX,
};

/// Closes what it is given, and never lets its giver wait. A clone is the same closer.
#[derive(Clone)]
pub(crate) struct Closer(Pool<Closing>);

/// A descriptor that is to be closed, and counts until it has been.
#[derive(Debug)]
pub(crate) struct Closing {
    // Dropped in this order.
    pub(crate) fd: OwnedFd,
    pub(crate) charge: Charge,
}

impl Closer {
    /// A closer whose threads a runtime watches.
    pub(crate) fn new(runtime: Handle) -> Self {
        Self(Pool::new(BOUNDS, runtime))
    }

    /// Makes its first thread, which stays: so that there is one, however full the machine is.
    pub(crate) fn start(&self) {
        self.0.start();
    }

    /// Closes it soon.
    pub(crate) fn close(&self, uid: u32, closing: Closing) {
        self.0.push(uid, closing);
    }

    /// How many descriptors of a user wait to be closed.
    pub(crate) fn waiting(&self, uid: u32) -> usize {
        self.0.waiting(uid)
    }
}

impl Job for Closing {
    fn work(self) {
        let Self { fd, charge } = self;
        step("before a close");
        drop(fd);
        step("after a close");
        drop(charge);
    }

    fn give_up(self) {
        self.work();
    }
}
