//! [`Effect`]: what a step of the stash asks of the world around it.

use std::sync::Arc;

use fdstash_proto::{Change, Entry, Name, Pattern, Refusal, Reply};

use crate::{ConnectionId, Deed, Details, Done, EntryId, Kept, Opening};

/// The effects of one step, in the order in which they must happen.
pub type Effects<F> = Vec<Effect<F>>;

/// One thing to do.
#[derive(Debug)]
pub enum Effect<F> {
    /// Write this down so that it survives a crash, before anything that follows.
    Record(Record<F>),
    /// Answer a connection's call.
    Answer {
        /// The connection.
        to: ConnectionId,
        /// What its call came to; descriptors in it are lent.
        outcome: Result<Reply<Arc<F>>, Refusal>,
        /// Whether the stash must be told what became of the answer, by [`Stash::sent`] or
        /// [`Stash::unsent`]: what it hands out stays in the stash until then.
        ///
        /// [`Stash::sent`]: crate::Stash::sent
        /// [`Stash::unsent`]: crate::Stash::unsent
        confirm: bool,
    },
    /// Answer a connection's List, from [`Stash::list`], at the pace of its reader.
    ///
    /// [`Stash::list`]: crate::Stash::list
    List {
        /// The connection.
        to: ConnectionId,
        /// Which entries it wants to see.
        pattern: Pattern,
    },
    /// Open files, all or none, and tell the stash by [`Stash::opened`].
    ///
    /// [`Stash::opened`]: crate::Stash::opened
    Open {
        /// The connection whose call waits for it.
        by: ConnectionId,
        /// The files.
        openings: Vec<Opening<F>>,
    },
    /// Tell the stash by [`Stash::hung_up`] when this one polls as hung up or failed.
    ///
    /// [`Stash::hung_up`]: crate::Stash::hung_up
    Poll(EntryId, Arc<F>),
    /// Poll this one no longer.
    Unpoll(EntryId, Arc<F>),
    /// Give up the stash's hold of these. The last holder closes, and that may take its time.
    Close(Vec<Arc<F>>),
    /// Free the names of a call of this connection that was refused, which are so many that even that takes
    /// its time.
    Forget(ConnectionId, Vec<Name>),
    /// Tell watchers of a change.
    Tell {
        /// The connections that may know, and may watch this name: of each [`Stash::watches`] says whether
        /// it does. That takes its time, so it is not said here for all of them at once.
        ///
        /// [`Stash::watches`]: crate::Stash::watches
        to: Vec<ConnectionId>,
        /// What happened.
        change: Change,
        /// The entry as it is now, or was before it went.
        entry: Box<Entry>,
        /// Its descriptor, lent, to see which flags have drifted.
        fd: Arc<F>,
    },
    /// Account for what was done; asked of nobody but where [`Stash::set_audited`] has said so.
    ///
    /// [`Stash::set_audited`]: crate::Stash::set_audited
    Audit {
        /// Whose call did it; none, where it was the stash itself.
        by: Option<ConnectionId>,
        /// What was done with which entry, in this order.
        done: Vec<(Deed, Arc<Details>)>,
    },
}

/// What one call, or one moment, has changed: all of it is replayed, or nothing.
#[derive(Debug)]
pub struct Record<F> {
    /// The entries that are kept from now on.
    pub put: Vec<Kept<F>>,
    /// The entries that are kept no longer.
    pub gone: Vec<EntryId>,
    /// The call that did it, if that bore a ticket; also where it has changed nothing.
    pub done: Option<Done>,
}
