//! How many bytes it takes at most to write things down: so that room for the record of a call can be
//! seen to before the call changes anything.

use fdstash_proto::{Call, Gift, Labels, Name, Reopening, Share};

use crate::{Details, Done, Facts, Inspected, Notes, Stash};

/// Room for everything in an entry that has a bound of its own: fifteen numbers of at most ten bytes,
/// some of one, the frame around its line, and the ticket of the call that gave it.
const FIXED: usize = 360;

/// Room for one number of 32 bits, or a length.
const LENGTH: usize = 5;

/// Room for the line that says that an entry has gone: the frame around it, what every line begins with,
/// two counts, a number and a flag. Every entry has it all the time.
const END: usize = 8 + 2 + 2 + 10 + 1;

/// Room for the line of a call with a ticket that has changed nothing else.
const CALL: usize = 160;

/// Room for what a file that is not open yet will be said to stand at: a page, which is all that the
/// kernel ever says, where every byte can become the three of a replacement character.
const TARGET: usize = 3 * 4096;

/// Bytes that the stash needs to be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weight {
    /// For all that is kept.
    pub kept: usize,
    /// For what may follow without anybody asking first: the end of all that is kept, and what is
    /// staged or being opened.
    pub promised: usize,
}

impl Details {
    /// How many bytes it takes at most to write them down.
    #[must_use]
    pub fn weight(&self) -> usize {
        let Notes { share, labels, .. } = self.notes();
        weight(&self.name, &self.facts, share, labels)
    }
}

impl<F> Stash<F> {
    /// How many entries are kept.
    #[must_use]
    pub fn count(&self) -> usize {
        self.counts.kept
    }

    /// What it takes to write down.
    #[must_use]
    pub fn weight(&self) -> Weight {
        let promised = self.counts.bytes_promised + self.counts.kept * END + CALL;
        Weight { kept: self.counts.bytes_kept + self.tickets.weight(), promised }
    }

    /// How much a call adds to what is promised, at most. What adds nothing, and what others do than
    /// calls, is promised already.
    #[must_use]
    pub fn weight_of(&self, call: &Call<Inspected<F>>) -> usize {
        match call {
            Call::Give { gifts, .. } => CALL + gifts.iter().map(weight_of_gift).sum::<usize>(),
            Call::Reopen { reopenings } => {
                let weight =
                    |wanted: &Reopening| self.weight_reopened(&wanted.name, wanted.path.is_some());
                reopenings.iter().map(weight).sum()
            }
            Call::Close { .. } | Call::Commit { .. } => CALL,
            Call::Take { .. }
            | Call::Begin
            | Call::Rollback
            | Call::List { .. }
            | Call::Watch { .. }
            | Call::GetStatistics
            | Call::ExplainPolicy { .. } => 0,
        }
    }

    /// What becomes of a name by a Reopen, at most.
    pub(crate) fn weight_reopened(&self, name: &Name, by_path: bool) -> usize {
        self.weight_under(name) + if by_path { TARGET } else { 0 }
    }

    /// The heaviest of what is kept and staged under a name.
    pub(crate) fn weight_under(&self, name: &Name) -> usize {
        let all = self.slots.get(name).into_iter().flat_map(|slot| slot.all());
        all.map(|kept| kept.details.weight()).max().unwrap_or_default()
    }
}

impl Done {
    /// How many bytes it takes at most to write it down.
    pub(crate) fn weight(&self) -> usize {
        CALL + self.replaced.iter().map(|name| name.as_str().len() + LENGTH).sum::<usize>()
    }
}

/// How many bytes it takes at most to write down what becomes of a gift.
pub(crate) fn weight_of_gift<F>(gift: &Gift<Inspected<F>>) -> usize {
    weight(&gift.name, &gift.fd.facts, &gift.share, &gift.labels)
}

fn weight(name: &Name, facts: &Facts, share: &Share, labels: &Labels) -> usize {
    let notes: usize = labels.iter().map(|(key, note)| key.len() + note.len() + 2 * LENGTH).sum();
    let ids = share.uids.len() + share.gids.len();
    let target = facts.target.as_deref().map_or(0, str::len);
    // Its name stands a second time where the ticket's call is said to have replaced it.
    FIXED + 2 * name.as_str().len() + target + ids * LENGTH + notes
}
