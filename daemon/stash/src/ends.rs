//! What ends without a call: by time, by a hang-up, with a connection. It may be any number, so no more
//! than so much of it ends in one step.

use fdstash_proto::{Change, Name};

use crate::{ConnectionId, Effects, EntryId, Now, Stash, transaction::Due};

/// How much of what ends without a call, and could be any number, ends in one step, for which all wait.
const MANY: usize = 128;

impl<F> Stash<F> {
    /// Takes note that an entry with [`Effect::Poll`](crate::Effect::Poll) polls as hung up or failed.
    pub fn hung_up(&mut self, id: EntryId, now: Now) -> Effects<F> {
        let mut effects = Effects::new();
        if let Some(name) = self.polled.get(&id).cloned() {
            self.end(vec![(name, Change::HungUp)], &mut effects, now);
        }
        effects
    }

    /// Does what is due, or the first part of it: [`Stash::next_due`] tells whether there is more.
    pub fn tick(&mut self, now: Now) -> Effects<F> {
        let mut effects = Effects::new();
        let (mut expired, mut idle) = (Vec::new(), Vec::new());
        for _ in 0..MANY {
            let due = self.due.first_entry().filter(|due| due.key().0 <= now.boot_usec);
            let Some(due) = due else { break };
            match due.key().1 {
                Due::Entry(_) => expired.extend(due.remove().map(|name| (name, Change::Expired))),
                Due::Wait(id) => {
                    due.remove();
                    self.stop_waiting(id, &mut effects, now);
                }
                Due::Idle(id) => {
                    due.remove();
                    idle.push(id);
                }
            }
        }
        self.end(expired, &mut effects, now);
        // What they hold and has expired, ends with the hold, and nobody gets it.
        idle.into_iter().for_each(|id| self.fail_transaction(id, &mut effects, now));
        effects
    }

    /// When [`Stash::tick`] has something to do next, in microseconds on the boot clock.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.due.first_key_value().map(|((boot_usec, _), _)| *boot_usec)
    }

    /// Ends some of what a connection that is at its end gave for its lifetime. None, if so little of it is
    /// left that [`Stash::disconnect`] may end it in one step.
    pub fn shed(&mut self, id: ConnectionId, now: Now) -> Option<Effects<F>> {
        let ephemeral = &self.clients.get(&id)?.ephemeral;
        let is_doomed = |name: &Name| self.slots.get(name).is_none_or(|slot| slot.doom.is_some());
        let left = ephemeral.values().filter(|name| !is_doomed(name));
        let mut ends: Vec<_> = left.take(MANY + 1).map(|it| (it.clone(), Change::Closed)).collect();
        if ends.len() <= MANY {
            return None;
        }
        ends.truncate(MANY);
        let mut effects = Effects::new();
        self.end(ends, &mut effects, now);
        Some(effects)
    }
}
