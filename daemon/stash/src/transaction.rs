//! Holding names, staging what shall become of them, and settling or releasing them: how a call,
//! and any number of calls in a transaction, are all or nothing. It is one file, since all of it has to keep
//! the same counts.

use std::{collections::btree_map, sync::Arc};

use fdstash_proto::{Change, Entry, Name, Reply};

use crate::{
    ConnectionId, Deed, Details, Effect, Effects, EntryId, Kept, Now, Record, Stash, Verb, Verdict,
    entry::{Became, Ends, Hold, Slot, Then},
    judge,
    opening::Purpose,
    stash::{answer, close_all},
    usage::Standing,
};

/// What becomes due at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// An entry expires.
    Entry(EntryId),
    /// A Take has waited long enough.
    Wait(ConnectionId),
    /// A transaction was idle for too long.
    Idle(ConnectionId),
}

/// How many of what there are, and have been.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Entries that everybody sees.
    pub(crate) kept: usize,
    /// Descriptors, kept and staged, and those for which an unfinished call has a place reserved.
    pub(crate) held: usize,
    /// What it takes to write down what everybody sees.
    pub(crate) bytes_kept: usize,
    /// The same for what is staged or being opened.
    pub(crate) bytes_promised: usize,
    /// Open transactions.
    pub(crate) transactions: u64,
    /// Entries of each kind, in the order in which `Kind` has them.
    pub(crate) kinds: [u64; 7],
    /// Of what was given, what came back.
    pub(crate) restored: u64,
    pub(crate) given: u64,
    pub(crate) taken: u64,
    pub(crate) copied: u64,
    pub(crate) closed: u64,
    pub(crate) reopened: u64,
    pub(crate) expired: u64,
    pub(crate) refused: u64,
}

/// What settling some names has changed.
struct Settled<F> {
    record: Record<F>,
    unpolled: Vec<(EntryId, Arc<F>)>,
    polled: Vec<(EntryId, Arc<F>)>,
    closed: Vec<Arc<F>>,
    changed: Vec<Changed<F>>,
}

impl<F> Settled<F> {
    fn new(names: usize) -> Self {
        Self {
            record: Record { put: Vec::new(), gone: Vec::new(), done: None },
            unpolled: Vec::new(),
            polled: Vec::new(),
            closed: Vec::new(),
            changed: Vec::with_capacity(names),
        }
    }
}

/// A change that watchers are told of.
struct Changed<F> {
    change: Change,
    kept: Kept<F>,
    /// What stands in its place: who may know of this, is told of this alone.
    instead: Option<Arc<Details>>,
}

impl<F> Stash<F> {
    /// Holds a name that no other connection holds; whether it was not held before.
    pub(crate) fn hold(&mut self, by: ConnectionId, name: &Name) -> bool {
        let slot = self.slots.entry(name.clone()).or_insert_with(Slot::empty);
        if slot.hold.is_some() {
            return false;
        }
        let client = self.clients.get_mut(&by);
        let uid = client.as_ref().map(|client| client.uid());
        if let Some(client) = client {
            client.holds.insert(name.clone());
        }
        slot.hold = Some(Box::new(Hold { by, uid, then: Then::Same }));
        if slot.kept.is_none() {
            self.charge_bare_name(by);
        }
        true
    }

    /// Stages what becomes of a held name. What was staged for it before is closed, since nobody
    /// else has seen it and no record names it.
    pub(crate) fn stage(
        &mut self,
        by: ConnectionId,
        name: &Name,
        then: Then<F>,
        effects: &mut Effects<F>,
    ) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let before = slot.standing();
        let Some(hold) = slot.hold.as_mut().filter(|hold| hold.by == by) else { return };
        if let Then::New(kept, _) = &then {
            self.counts.held += 1;
            self.counts.bytes_promised += kept.details.weight();
        }
        let superseded = hold.stage(then);
        let after = slot.standing();
        self.recount(before, after);
        if let Some(kept) = superseded {
            self.counts.held -= 1;
            self.counts.bytes_promised -= kept.details.weight();
            close_all(vec![kept.fd], effects);
        }
    }

    /// Ends a call that has staged all it wants: with an answer in a transaction, for which it goes
    /// on holding its names; and otherwise by settling them.
    pub(crate) fn finish(
        &mut self,
        by: ConnectionId,
        names: Vec<Name>,
        reply: Reply<Arc<F>>,
        now: Now,
        effects: &mut Effects<F>,
    ) {
        if self.clients.get(&by).is_some_and(|client| client.in_transaction()) {
            answer(by, Ok(reply), effects);
        } else {
            self.settle(by, names, Some(reply), now, effects);
        }
    }

    /// Makes final what is staged for these names, and holds them no longer: one record, then the
    /// answer, then everything else.
    pub(crate) fn settle(
        &mut self,
        by: ConnectionId,
        names: Vec<Name>,
        reply: Option<Reply<Arc<F>>>,
        now: Now,
        effects: &mut Effects<F>,
    ) {
        let revision = self.revision + 1;
        let mut settled = Settled::new(names.len());
        for name in &names {
            self.settle_one(by, name, revision, &mut settled);
        }
        self.conclude(by, settled, reply, now, effects);
        self.set_free(names, effects, now);
    }

    /// Makes final, at once, what becomes of names that nobody holds.
    pub(crate) fn settle_free(
        &mut self,
        by: ConnectionId,
        changes: Vec<(Name, Then<F>)>,
        reply: Option<Reply<Arc<F>>>,
        now: Now,
        effects: &mut Effects<F>,
    ) {
        let revision = self.revision + 1;
        let mut settled = Settled::new(changes.len());
        let mut names = Vec::with_capacity(changes.len());
        for (name, then) in changes {
            names.push(name.clone());
            self.settle_free_one(name, then, revision, &mut settled);
        }
        self.conclude(by, settled, reply, now, effects);
        self.wake(&names, effects, now);
    }

    fn conclude(
        &mut self,
        by: ConnectionId,
        settled: Settled<F>,
        reply: Option<Reply<Arc<F>>>,
        now: Now,
        effects: &mut Effects<F>,
    ) {
        let Settled { mut record, unpolled, polled, closed, changed } = settled;
        let changes = !record.put.is_empty() || !record.gone.is_empty();
        self.revision += u64::from(changes);
        record.done = reply.as_ref().and_then(|reply| self.note_done(by, reply, now));
        if changes || record.done.is_some() {
            effects.push(Effect::Record(record));
        }
        if let Some(reply) = reply {
            answer(by, Ok(reply), effects);
        }
        effects.extend(unpolled.into_iter().map(|(id, fd)| Effect::Unpoll(id, fd)));
        effects.extend(polled.into_iter().map(|(id, fd)| Effect::Poll(id, fd)));
        close_all(closed, effects);
        if self.is_audited && !changed.is_empty() {
            let done = changed.iter().map(|it| (Deed::Changed(it.change), &it.kept.details));
            let done = done.map(|(deed, details)| (deed, Arc::clone(details))).collect();
            effects.push(Effect::Audit { by: Some(by).filter(|by| *by != ITSELF), done });
        }
        for changed in changed {
            self.tell(changed, effects);
        }
    }

    fn settle_one(
        &mut self,
        by: ConnectionId,
        name: &Name,
        revision: u64,
        settled: &mut Settled<F>,
    ) {
        let Some(slot) = self.slots.get_mut(name).filter(|slot| slot.held_by() == Some(by)) else {
            return;
        };
        let before = slot.standing();
        let Some(hold) = slot.hold.take() else { return };
        let became = slot.settle(hold.then, revision);
        let after = slot.standing();
        self.recount(before, after);
        self.note(became, settled);
        if let Some(client) = self.clients.get_mut(&by) {
            client.holds.remove(name);
        }
    }

    fn settle_free_one(
        &mut self,
        name: Name,
        then: Then<F>,
        revision: u64,
        settled: &mut Settled<F>,
    ) {
        if let Then::New(kept, _) = &then {
            self.counts.held += 1;
            self.counts.bytes_promised += kept.details.weight();
        }
        let (before, became, after) = match self.slots.entry(name) {
            btree_map::Entry::Occupied(mut slot) => {
                let before = slot.get().standing();
                let became = slot.get_mut().settle(then, revision);
                let after = slot.get().standing();
                if slot.get().kept.is_none() {
                    slot.remove();
                }
                (before, became, after)
            }
            btree_map::Entry::Vacant(place) => {
                let Then::New(..) = then else { return };
                let slot = place.insert(Slot::empty());
                (Standing::default(), slot.settle(then, revision), slot.standing())
            }
        };
        self.recount(before, after);
        self.note(became, settled);
    }

    /// Takes note of what has come under a name, and what has gone.
    fn note(&mut self, became: Became<F>, settled: &mut Settled<F>) {
        let Became { change, came, went } = became;
        let instead = came.as_ref().map(|kept| Arc::clone(&kept.details));
        if let Some(kept) = came {
            self.begin_entry(kept, change, settled);
        }
        if let Some(old) = went {
            self.end_entry(old, change, instead, settled);
        }
    }

    fn begin_entry(&mut self, kept: Kept<F>, change: Change, settled: &mut Settled<F>) {
        let Details { id, ref name, .. } = *kept.details;
        let Ends { expiry, ephemeral_of, close_on_hangup } = kept.details.ends();
        if let Some(expiry) = expiry {
            self.due.insert((expiry.boot_usec, Due::Entry(id)), Some(name.clone()));
        }
        if let Some(giver) = ephemeral_of.and_then(|giver| self.clients.get_mut(&giver)) {
            giver.ephemeral.insert(id, name.clone());
        }
        if close_on_hangup {
            self.polled.insert(id, name.clone());
            settled.polled.push((id, Arc::clone(&kept.fd)));
        }
        self.counts.kept += 1;
        self.counts.kinds[kept.details.facts.kind as usize] += 1;
        let weight = kept.details.weight();
        self.counts.bytes_promised -= weight;
        self.counts.bytes_kept += weight;
        match change {
            Change::Reopened => self.counts.reopened += 1,
            Change::Given
            | Change::Replaced
            | Change::Taken
            | Change::Closed
            | Change::Expired
            | Change::HungUp => self.counts.given += 1,
        }
        settled.record.put.push(kept.clone());
        settled.changed.push(Changed { change, kept, instead: None });
    }

    /// Ends what was kept, for which `change` tells: its own end, or what has taken its place.
    fn end_entry(
        &mut self,
        old: Kept<F>,
        change: Change,
        instead: Option<Arc<Details>>,
        settled: &mut Settled<F>,
    ) {
        let id = old.details.id;
        let Ends { expiry, ephemeral_of, .. } = old.details.ends();
        if let Some(expiry) = expiry {
            self.due.remove(&(expiry.boot_usec, Due::Entry(id)));
        }
        if let Some(giver) = ephemeral_of.and_then(|giver| self.clients.get_mut(&giver)) {
            giver.ephemeral.remove(&id);
        }
        if self.polled.remove(&id).is_some() {
            settled.unpolled.push((id, Arc::clone(&old.fd)));
        }
        self.counts.kept -= 1;
        self.counts.kinds[old.details.facts.kind as usize] -= 1;
        self.counts.held -= 1;
        self.counts.bytes_kept -= old.details.weight();
        settled.record.gone.push(id);
        settled.closed.push(Arc::clone(&old.fd));
        let (count, told) = match change {
            Change::Given | Change::Reopened => return,
            // Who may not know of the new one, still learns that the old one is there no longer.
            Change::Replaced => (&mut self.counts.closed, Change::Closed),
            Change::Taken => (&mut self.counts.taken, change),
            Change::Expired => (&mut self.counts.expired, change),
            Change::Closed | Change::HungUp => (&mut self.counts.closed, change),
        };
        *count += 1;
        settled.changed.push(Changed { change: told, kept: old, instead });
    }

    /// Drops what is staged for these names, and holds them no longer.
    pub(crate) fn release(
        &mut self,
        by: ConnectionId,
        names: Vec<Name>,
        effects: &mut Effects<F>,
        now: Now,
    ) {
        let mut unwanted = Vec::new();
        for name in &names {
            unwanted.extend(self.release_one(by, name));
        }
        close_all(unwanted, effects);
        self.set_free(names, effects, now);
    }

    /// Holds a name no longer; and what was staged for it.
    fn release_one(&mut self, by: ConnectionId, name: &Name) -> Option<Arc<F>> {
        let slot = self.slots.get_mut(name).filter(|slot| slot.held_by() == Some(by))?;
        let before = slot.standing();
        let hold = slot.hold.take()?;
        let after = slot.standing();
        self.recount(before, after);
        if let Some(client) = self.clients.get_mut(&by) {
            client.holds.remove(name);
        }
        let Then::New(kept, _) = hold.then else { return None };
        self.counts.held -= 1;
        self.counts.bytes_promised -= kept.details.weight();
        Some(kept.fd)
    }

    /// Forgets what a connection's call waits for, and what it has that nobody will have now.
    pub(crate) fn drop_unfinished(&mut self, by: ConnectionId) -> Vec<Arc<F>> {
        if let Some(waiting) = self.waiting(by) {
            self.forget_wait(by, &waiting);
        }
        self.opening(by).map(Purpose::into_fds).unwrap_or_default()
    }

    /// Ends entries for a reason of their own, at once or as soon as nobody holds them.
    pub(crate) fn end(&mut self, ends: Vec<(Name, Change)>, effects: &mut Effects<F>, now: Now) {
        let mut changes = Vec::with_capacity(ends.len());
        for (name, change) in ends {
            match self.slots.get_mut(&name).map(|slot| (slot.hold.is_some(), &mut slot.doom)) {
                Some((true, doom)) => drop(doom.get_or_insert(change)),
                Some((false, _)) => changes.push((name, Then::Gone(change))),
                None => {}
            }
        }
        if !changes.is_empty() {
            self.settle_free(ITSELF, changes, None, now, effects);
        }
    }

    /// Sees to names that nobody holds any more: what was doomed meanwhile ends now, and who has
    /// waited for them is next.
    fn set_free(&mut self, names: Vec<Name>, effects: &mut Effects<F>, now: Now) {
        let mut doomed = Vec::new();
        for name in &names {
            let Some(slot) = self.slots.get_mut(name).filter(|slot| slot.hold.is_none()) else {
                continue;
            };
            if slot.kept.is_none() {
                self.slots.remove(name);
            } else if let Some(change) = slot.doom.take() {
                doomed.push((name.clone(), change));
            }
        }
        self.end(doomed, effects, now);
        self.wake(&names, effects, now);
    }

    fn tell(&self, changed: Changed<F>, effects: &mut Effects<F>) {
        let Changed { change, kept, instead } = changed;
        let may_know = |id: &ConnectionId| {
            let who = self.clients.get(id).map(|client| &client.who);
            let knows = |details| {
                who.is_some_and(|who| {
                    judge(&self.rules, who, Verb::List, details) == Verdict::Allowed
                })
            };
            knows(&kept.details) && !instead.as_deref().is_some_and(knows)
        };
        let may_watch = self.watchers.iter().filter(|(_, it)| it.may_match(&kept.details.name));
        let to: Vec<_> = may_watch.map(|(id, _)| *id).filter(may_know).collect();
        if !to.is_empty() {
            // What has gone shows the revision that it went with, not the one that it came with.
            let entry = Box::new(Entry { revision: self.revision, ..kept.details.show(None) });
            effects.push(Effect::Tell { to, change, entry, fd: kept.fd });
        }
    }
}

/// Who ends what the stash ends itself; no connection is called so.
const ITSELF: ConnectionId = ConnectionId(0);
