//! The journal, written anew: of all that is kept, when it has grown to much more than that.

use std::{cell::RefCell, io, rc::Rc};

use fdstash_stash::Stash;
use tokio::task::{spawn_local, yield_now};

use crate::{descriptor::Descriptor, inherited::number, journal::Journal, run::Daemon};

/// Writes all of a journal anew, with room for what may have to follow.
///
/// # Errors
///
/// If there is no memory for it; then it is as it was.
pub(crate) fn rewrite(journal: &mut Journal, stash: &Stash<Descriptor>) -> io::Result<()> {
    journal.rewrite(stash.weight().promised, |lines| {
        lines.push(|bytes| stash.begin_journal().write(bytes));
        for record in stash.records() {
            lines.push(|bytes| record.write(|fd| number(fd), bytes));
        }
    })
}

impl Daemon {
    /// Has it write the journal anew whenever it is worth that: in a go of its own, behind the answer to the
    /// call that made it so long.
    pub(crate) fn rewrite_when_heavy(daemon: &Rc<RefCell<Self>>) {
        let (daemon, heavy) = (Rc::clone(daemon), Rc::clone(&daemon.borrow().heavy));
        spawn_local(async move {
            loop {
                heavy.notified().await;
                // Whoever is ready by now is not to wait for both.
                yield_now().await;
                daemon.borrow_mut().lighten();
            }
        });
    }

    fn lighten(&mut self) {
        if self.pause.is_still || !self.journal.is_heavy(self.stash.weight().kept) {
            return;
        }
        if let Err(error) = rewrite(&mut self.journal, &self.stash) {
            tracing::warn!(%error, "writing the journal anew failed, it goes on growing");
        }
    }

    /// Writes the journal anew, after others may have done so.
    pub(crate) fn reopen_journal(&mut self) {
        let outcome = self.journal.reopen().and_then(|()| rewrite(&mut self.journal, &self.stash));
        if let Err(error) = outcome {
            tracing::error!(%error, "writing the journal failed, starting anew from what it says");
            std::process::abort();
        }
    }
}
