//! [`Reader`]: reads messages that are so long that it takes milliseconds, on threads, so that nobody
//! else waits for it; and frees there what was in them.

use std::time::Duration;

use fdstash_proto::{Hangup, Inbox, Incoming, Name};
use tokio::{runtime::Handle, sync::oneshot};

use crate::{
    descriptor::Descriptor,
    pool::{Bounds, Job, Pool},
};

/// It computes and waits for nothing, so a few are enough.
const BOUNDS: Bounds = Bounds {
    name: "read",
    most: 4,
    most_of_one: 1,
    share: 1,
    is_hurried: true,
    // Without a thread the loop does it.
    gives_up: Duration::from_secs(1),
};

/// Reads long messages. A clone is the same reader.
#[derive(Clone)]
pub(crate) struct Reader(Pool<Work>);

enum Work {
    Read { inbox: Inbox<Descriptor>, then: oneshot::Sender<Read> },
    Forget(Vec<Name>),
}

/// What has come, without its next call; and that.
type Read = (Inbox<Descriptor>, Result<Option<Incoming<Descriptor>>, Hangup>);

impl Reader {
    /// A reader whose threads a runtime watches.
    pub(crate) fn new(runtime: Handle) -> Self {
        Self(Pool::new(BOUNDS, runtime))
    }

    /// Takes the next call out of what has come from a user. None only when the daemon ends.
    pub(crate) async fn next_call(&self, uid: u32, inbox: Inbox<Descriptor>) -> Option<Read> {
        let (then, read) = oneshot::channel();
        self.0.push(uid, Work::Read { inbox, then });
        read.await.ok()
    }

    /// Frees names that a user had sent, in that user's turn.
    pub(crate) fn forget(&self, uid: u32, names: Vec<Name>) {
        self.0.push(uid, Work::Forget(names));
    }
}

impl Job for Work {
    fn work(self) {
        match self {
            Self::Read { mut inbox, then } => {
                let call = inbox.next_call();
                // Whoever asked has gone, if nobody takes it.
                let _ = then.send((inbox, call));
            }
            Self::Forget(names) => drop(names),
        }
    }

    fn give_up(self) {
        self.work();
    }
}
