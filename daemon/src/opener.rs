//! [`Opener`]: opens files for calls, on threads of its own, when there is room for them.

use std::time::Duration;

use fdstash_stash::{ConnectionId, Opening};
use tokio::{runtime::Handle, sync::mpsc::UnboundedSender};

use crate::{
    descriptor::Descriptor,
    ledger::{Account, Load, Room},
    open::{no_thread, open_all},
    pool::{Bounds, Job, Pool},
    run::Input,
};

/// So many calls can have their files opened at a time. Each takes a second thread while it opens with
/// a peer's rights.
pub(crate) const MOST: usize = 448;

/// How many there may be of one user, and what is left for root, the stash says: also of those that
/// nobody waits for any more.
const BOUNDS: Bounds = Bounds {
    name: "open",
    most: MOST,
    most_of_one: MOST,
    share: 0,
    is_hurried: true,
    gives_up: Duration::from_secs(1),
};

/// Descriptors beside those that are wanted: to look at what stands at a path, link by link.
pub(crate) const BESIDE: usize = 2;

/// Opens what calls wait for; what comes of it comes back as an input.
#[derive(Clone)]
pub(crate) struct Opener(Pool<Call>);

/// The files of one call, and what they are counted to.
pub(crate) struct Call {
    pub(crate) by: ConnectionId,
    pub(crate) openings: Vec<Opening<Descriptor>>,
    pub(crate) account: Account,
    pub(crate) inputs: UnboundedSender<Input>,
    /// What came with the call, and is neither in the stash nor away.
    pub(crate) gifts: Load,
    pub(crate) room: Room,
}

impl Opener {
    /// An opener whose threads a runtime watches.
    pub(crate) fn new(runtime: Handle) -> Self {
        Self(Pool::new(BOUNDS, runtime))
    }

    /// Makes its first thread, which stays: so that there is one, however full the machine is.
    pub(crate) fn start(&self) {
        self.0.start();
    }

    /// Opens the files of a call soon.
    pub(crate) fn open(&self, call: Call) {
        self.0.push(call.account.uid(), call);
    }

    /// Forgets the call of a connection that has ended, if it has not begun. Whether there was one:
    /// nothing comes back of it any more.
    pub(crate) fn forget(&self, by: ConnectionId, uid: u32) -> bool {
        self.0.forget(uid, |call| call.by == by)
    }
}

impl Job for Call {
    fn work(self) {
        let Self { by, openings, account, inputs, gifts, room } = self;
        let outcome = open_all(&openings, &account);
        // What was opened counts itself.
        drop((gifts, room));
        // Fails only when the daemon ends, and everything with it.
        let _ = inputs.send(Input::Opened(by, outcome));
    }

    fn give_up(self) {
        let _ = self.inputs.send(Input::Opened(self.by, Err(no_thread())));
    }
}
