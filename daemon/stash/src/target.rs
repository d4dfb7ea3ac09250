//! Where descriptors point of which that was not known when they were given: to ask the kernel takes longer
//! than all else that a Give does, and what is taken again soon, nobody asks of.

use std::sync::Arc;

use fdstash_proto::Name;

use crate::{EntryId, Record, Stash, entry::Slot};

/// Where the descriptor of an entry points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointed {
    /// The entry, and the name that it is under.
    pub id: EntryId,
    /// See there.
    pub name: Name,
    /// A path, or what the kernel says in the place of one.
    pub target: Box<str>,
}

impl<F> Stash<F> {
    /// How many bytes it takes at most to write down where these point, beyond what is promised.
    #[must_use]
    pub fn weight_of_targets(&self, pointed: &[Pointed]) -> usize {
        let weight = |one: &Pointed| {
            let kept = self.slots.get(&one.name).and_then(|slot| slot.kept.as_ref());
            kept.map_or(0, |kept| kept.details.weight() + one.target.len())
        };
        pointed.iter().map(weight).sum()
    }

    /// Takes note of where descriptors pointed when they were given; of those that are kept, and of which
    /// that is not known yet; but not of what somebody holds, whose successor has room kept for it as it
    /// is. What of that is to be written down, and nothing else is to be done.
    pub fn pointed(&mut self, pointed: Vec<Pointed>) -> Option<Record<F>> {
        let mut put = Vec::with_capacity(pointed.len());
        for Pointed { id, name, target } in pointed {
            let slot = self.slots.get_mut(&name);
            let Some(Slot { kept: Some(kept), hold: None, .. }) = slot else { continue };
            if kept.details.id != id || kept.details.facts.target.is_some() {
                continue;
            }
            self.counts.bytes_kept += target.len();
            Arc::make_mut(&mut kept.details).facts.target = Some(target);
            put.push(kept.clone());
        }
        (!put.is_empty()).then(|| Record { put, gone: Vec::new(), done: None })
    }
}
