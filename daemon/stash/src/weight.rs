//! How many bytes it takes at most to write things down: so that room for the record of a call can be
//! seen to before the call changes anything.

use fdstash_proto::{Call, Gift, Labels, Name, Share};

use crate::{Details, Facts, Inspected, Stash};

/// Room for everything in an entry that has a bound of its own: fifteen numbers of at most ten bytes,
/// some of one, and the frame around its line.
const FIXED: usize = 240;

/// Room for one number of 32 bits, or a length.
const LENGTH: usize = 5;

/// Room for the line that says that an entry has gone.
const END: usize = 40;

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
        weight(&self.name, &self.facts, &self.share, &self.labels)
    }
}

impl<F> Stash<F> {
    /// What it takes to write down.
    #[must_use]
    pub fn weight(&self) -> Weight {
        let promised = self.counts.bytes_promised + self.counts.kept * END + END;
        Weight { kept: self.counts.bytes_kept, promised }
    }

    /// How much a call adds to what is promised, at most.
    #[must_use]
    pub fn weight_of(&self, call: &Call<Inspected<F>>) -> usize {
        match call {
            Call::Give { gifts, .. } => gifts.iter().map(weight_of_gift).sum(),
            Call::Reopen { reopenings } => {
                let names = reopenings.iter().map(|reopening| &reopening.name);
                names.map(|name| self.weight_under(name)).sum()
            }
            Call::Take { .. }
            | Call::Close { .. }
            | Call::Begin
            | Call::Commit
            | Call::Rollback
            | Call::List { .. }
            | Call::Watch { .. }
            | Call::GetStatistics => 0,
        }
    }

    /// The heaviest of what is kept and staged under a name.
    pub(crate) fn weight_under(&self, name: &Name) -> usize {
        let all = self.slots.get(name).into_iter().flat_map(|slot| slot.all());
        all.map(|kept| kept.details.weight()).max().unwrap_or_default()
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
    FIXED + name.as_str().len() + target + ids * LENGTH + notes
}
