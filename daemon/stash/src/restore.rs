//! Coming back to what was kept: what the lines of a journal come to, and a stash of that.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    sync::Arc,
};

use fdstash_proto::{Change, Keeper, Name};

use crate::{
    Begin, Carried, ConnectionId, Details, Doing, Done, Effect, Effects, EntryId, Kept, Limits,
    Line, Now, Number, Record, Stash, Who,
    entry::{Ends, Slot},
    idle::Transaction,
    stash::{Client, Unfinished, close_all},
    take::Waiting,
    transaction::Due,
    usage::{Standing, Usage},
};

/// What the lines of a journal come to, one after the other.
#[derive(Debug, Default)]
pub struct Replay {
    /// None where there never was a journal.
    begin: Option<Begin>,
    entries: BTreeMap<EntryId, Kept<Number>>,
    /// In the order in which they were done.
    done: Vec<Done>,
    carried: Vec<Carried>,
    /// What was kept elsewhere.
    adopted: BTreeMap<Name, EntryId>,
    /// The connections that go on, when they were taken out.
    going_on: BTreeSet<ConnectionId>,
}

impl Replay {
    /// Takes in the next line.
    pub fn add(&mut self, line: Line) {
        // What comes after a handover says that it did not come about.
        self.carried.clear();
        match line {
            Line::Begin(begin) => {
                let before = self.begin.get_or_insert_default();
                // Counting never goes back, or a number would be given away twice.
                *before = Begin {
                    restores: before.restores.max(begin.restores),
                    last_entry: before.last_entry.max(begin.last_entry),
                    last_connection: before.last_connection.max(begin.last_connection),
                    revision: before.revision.max(begin.revision),
                };
            }
            Line::Change(record) => self.change(record),
            Line::Handover(carried) => self.carried = carried,
        }
    }

    /// Whether there never was a journal.
    #[must_use]
    pub fn is_the_first(&self) -> bool {
        self.begin.is_none() && self.entries.is_empty()
    }

    /// Takes in an entry that was kept elsewhere. Whether it is one that is not here yet; of several
    /// under one name the one that came last stays.
    pub fn adopt(&mut self, kept: Kept<Number>) -> bool {
        let Details { id, revision, ref name, .. } = *kept.details;
        let begin = self.begin.get_or_insert_default();
        begin.last_entry = begin.last_entry.max(id.0);
        begin.revision = begin.revision.max(revision);
        let other = self.adopted.get(name).copied();
        if other.is_some_and(|other| other >= id) {
            return false;
        }
        if let Some(other) = self.adopted.insert(name.clone(), id) {
            self.entries.remove(&other);
        }
        self.entries.insert(id, kept);
        true
    }

    fn change(&mut self, Record { put, gone, done }: Record<Number>) {
        let begin = self.begin.get_or_insert_default();
        if put.is_empty() && !gone.is_empty() {
            // What only ends something has a revision as well, which stands nowhere.
            begin.revision = begin.revision.saturating_add(1);
        }
        self.done.extend(done);
        for id in gone {
            self.entries.remove(&id);
        }
        for kept in put {
            let Details { id, revision, .. } = *kept.details;
            begin.last_entry = begin.last_entry.max(id.0);
            begin.revision = begin.revision.max(revision);
            let giver = kept.details.ends().ephemeral_of.map_or(0, |giver| giver.0);
            begin.last_connection = begin.last_connection.max(giver);
            self.entries.insert(id, kept);
        }
    }

    /// Forgets the connections that were to go on: the daemon that had them has died with them. What
    /// was given for the lifetime of one is kept no longer, and told here.
    pub fn forget_connections(&mut self) -> Vec<Arc<Details>> {
        self.carried.clear();
        let ends = |kept: &Kept<Number>| kept.details.ends().ephemeral_of.is_some();
        let ended = self.entries.values().filter(|kept| ends(kept));
        let ended = ended.map(|kept| Arc::clone(&kept.details)).collect();
        self.entries.retain(|_, kept| !ends(kept));
        ended
    }

    /// Takes out the connections that go on.
    pub fn take_carried(&mut self) -> Vec<Carried> {
        let carried = std::mem::take(&mut self.carried);
        self.going_on = carried.iter().map(|carried| carried.id).collect();
        if let (Some(begin), Some(last)) = (&mut self.begin, self.going_on.last()) {
            begin.last_connection = begin.last_connection.max(last.0);
        }
        carried
    }

    /// The numbers of all that is kept.
    pub fn numbers(&self) -> impl Iterator<Item = Number> {
        self.entries.values().map(|kept| *kept.fd)
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<F> Stash<F> {
    /// A stash of what was kept, and what has to be done for it; the first of all, where there never
    /// was a journal. `claim` makes descriptors of numbers, each once; an entry whose number it knows
    /// nothing of is left out. The connections that go on are then resumed, each by [`Stash::resume`],
    /// and with [`Stash::go_without`] those are seen to that do not.
    pub fn restore(
        limits: Limits,
        keeper: Keeper,
        replay: Replay,
        mut claim: impl FnMut(&Kept<Number>) -> Option<Arc<F>>,
    ) -> (Self, Effects<F>) {
        let mut stash = Self::new(limits, keeper);
        let mut effects = Effects::new();
        if let Some(Begin { restores, last_entry, last_connection, revision }) = replay.begin {
            stash.restores = restores.saturating_add(1);
            (stash.last_entry, stash.last_connection) = (last_entry, last_connection);
            stash.revision = revision;
        }
        // The last first: should two ever be under one name, it is that which stays.
        for written in replay.entries.into_values().rev() {
            let Some(fd) = claim(&written) else { continue };
            stash.put_back(Kept { fd, details: written.details }, &mut effects);
        }
        for done in replay.done {
            if replay.going_on.contains(&done.by) {
                stash.remember_standing(done);
            } else {
                stash.remember(done);
            }
        }
        (stash, effects)
    }

    /// Says what keeps the descriptors across a crash.
    pub fn set_keeper(&mut self, keeper: Keeper) {
        self.keeper = keeper;
    }

    /// Admits a connection that goes on with what it was doing, however many there are: it had its
    /// place before. Connections that wait come in the order in which they do.
    /// A transaction is idle from now on, if its connection waits for nothing.
    pub fn resume(&mut self, id: ConnectionId, who: Who, doing: Doing, now: Now) {
        let ephemeral = self.orphans.remove(&id).unwrap_or_default();
        self.clients.insert(id, Client { ephemeral, ..Client::new(who) });
        self.charge_client(id, Usage::CONNECTION);
        self.resume_doing(id, doing);
        self.begin_idling(id, now);
    }

    fn resume_doing(&mut self, id: ConnectionId, doing: Doing) {
        match doing {
            Doing::Nothing => {}
            Doing::Waiting { names, taking, until_boot_usec } => {
                self.queue(id, names, taking, until_boot_usec);
            }
            Doing::Watching(pattern) => self.begin_watch(id, pattern),
            Doing::InTransaction(doing) => {
                self.resume_doing(id, *doing);
                self.open_transaction(id);
            }
            Doing::Failed(doing) => {
                self.resume_doing(id, *doing);
                if let Some(client) = self.clients.get_mut(&id) {
                    client.transaction = Transaction::Failed;
                }
            }
        }
    }

    /// Sees to what was of connections that do not go on, now that all others do: what was given for
    /// the lifetime of one is closed, its tickets are on their way to be forgotten, and who has waited
    /// for a name that it held is next.
    pub fn go_without(&mut self, now: Now) -> Effects<F> {
        let mut effects = Effects::new();
        let orphans = std::mem::take(&mut self.orphans).into_values().flatten();
        let ends = orphans.map(|(_, name)| (name, Change::Closed)).collect();
        self.end(ends, &mut effects, now);
        self.tickets.end_all_but(|id| self.clients.contains_key(&id));
        let awaited = self.awaited();
        self.wake(&awaited, &mut effects, now);
        effects
    }

    /// What the connections do that can go on with another daemon: those that have nothing staged, and
    /// wait for nothing but names.
    #[must_use]
    pub fn carry(&self) -> Vec<(ConnectionId, Doing)> {
        let mut carried: Vec<_> =
            self.clients.iter().filter_map(|(id, client)| self.carry_one(*id, client)).collect();
        carried.sort_by_key(|(turn, ..)| *turn);
        carried.into_iter().map(|(_, id, doing)| (id, doing)).collect()
    }

    /// Whether a connection can go on with another daemon as it is.
    #[must_use]
    pub fn can_be_carried(&self, id: ConnectionId) -> bool {
        self.clients.get(&id).is_some_and(|client| {
            let waits = matches!(client.unfinished, None | Some(Unfinished::Waiting(_)));
            waits && client.holds.is_empty()
        })
    }

    fn carry_one(
        &self,
        id: ConnectionId,
        client: &Client<F>,
    ) -> Option<(u64, ConnectionId, Doing)> {
        if !client.holds.is_empty() {
            return None;
        }
        let (turn, doing) = match &client.unfinished {
            None => {
                let watched = self.watchers.get(&id).cloned();
                (0, watched.map_or(Doing::Nothing, Doing::Watching))
            }
            Some(Unfinished::Waiting(waiting)) => {
                let Waiting { names, taking, turn, until_boot_usec } = waiting.clone();
                (turn, Doing::Waiting { names, taking, until_boot_usec })
            }
            Some(Unfinished::Opening(..) | Unfinished::Leaving(_)) => return None,
        };
        let doing = match client.transaction {
            Transaction::None => doing,
            Transaction::Open(_) => Doing::InTransaction(Box::new(doing)),
            Transaction::Failed => Doing::Failed(Box::new(doing)),
        };
        Some((turn, id, doing))
    }

    /// How far counting has come.
    #[must_use]
    pub fn begin_journal(&self) -> Begin {
        Begin {
            restores: self.restores,
            last_entry: self.last_entry,
            last_connection: self.last_connection,
            revision: self.revision,
        }
    }

    /// All that is kept, to be written down anew: as many records as it takes, none of them long.
    pub fn records(&self) -> impl Iterator<Item = Record<F>> {
        let record = |put: Option<&Kept<F>>, done: Option<&Done>| Record {
            put: put.cloned().into_iter().collect(),
            gone: Vec::new(),
            done: done.cloned(),
        };
        let kept = self.kept().map(move |kept| record(Some(kept), None));
        kept.chain(self.tickets().map(move |done| record(None, Some(done))))
    }

    /// All that is kept.
    pub fn kept(&self) -> impl Iterator<Item = &Kept<F>> {
        self.slots.values().filter_map(|slot| slot.kept.as_ref())
    }

    fn put_back(&mut self, kept: Kept<F>, effects: &mut Effects<F>) {
        let Details { id, ref name, .. } = *kept.details;
        let Ends { expiry, ephemeral_of, close_on_hangup } = kept.details.ends();
        let btree_map::Entry::Vacant(place) = self.slots.entry(name.clone()) else {
            return close_all(vec![kept.fd], effects);
        };
        if let Some(expiry) = expiry {
            self.due.insert((expiry.boot_usec, Due::Entry(id)), Some(name.clone()));
        }
        if let Some(giver) = ephemeral_of {
            self.orphans.entry(giver).or_default().insert(id, name.clone());
        }
        if close_on_hangup {
            self.polled.insert(id, name.clone());
            effects.push(Effect::Poll(id, Arc::clone(&kept.fd)));
        }
        self.counts.kept += 1;
        self.counts.held += 1;
        self.counts.given += 1;
        self.counts.restored += 1;
        self.counts.kinds[kept.details.facts.kind as usize] += 1;
        self.counts.bytes_kept += kept.details.weight();
        let after = place.insert(Slot { kept: Some(kept), ..Slot::empty() }).standing();
        self.recount(Standing::default(), after);
    }
}
