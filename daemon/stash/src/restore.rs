//! Coming back to what was kept: what the lines of a journal come to, and a stash of that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fdstash_proto::Keeper;

use crate::{
    Begin, Carried, ConnectionId, Details, Doing, Done, Effect, Effects, EntryId, Kept, Limits,
    Line, Number, Record, Stash, Who,
    entry::Slot,
    stash::{Client, Unfinished},
    take::Waiting,
    transaction::Due,
};

/// What the lines of a journal come to, one after the other.
#[derive(Debug, Default)]
pub struct Replay {
    /// None where there never was a journal.
    begin: Option<Begin>,
    entries: BTreeMap<EntryId, Kept<Number>>,
    /// The last of each connection.
    done: Vec<Done>,
    carried: Vec<Carried>,
}

impl Replay {
    /// Takes in the next line.
    pub fn add(&mut self, line: Line) {
        // What comes after a handover says that it did not come about.
        self.carried.clear();
        match line {
            Line::Begin(begin) => self.begin = Some(begin),
            Line::Change(Record { put, gone, done }) => {
                self.done.extend(done);
                for id in gone {
                    self.entries.remove(&id);
                }
                for kept in put {
                    let Details { id, revision, .. } = *kept.details;
                    let begin = self.begin.get_or_insert_default();
                    begin.last_entry = begin.last_entry.max(id.0);
                    begin.revision = begin.revision.max(revision);
                    self.entries.insert(id, kept);
                }
            }
            Line::Handover(carried) => self.carried = carried,
        }
    }

    /// Forgets the connections that were to go on: the daemon that had them has died with them.
    pub fn forget_connections(&mut self) {
        self.carried.clear();
    }

    /// Takes out the connections that go on; what was given for the lifetime of any other is kept no
    /// longer.
    pub fn take_carried(&mut self) -> Vec<Carried> {
        let carried = std::mem::take(&mut self.carried);
        let ids: BTreeSet<_> = carried.iter().map(|carried| carried.id).collect();
        self.entries.retain(|_, kept| kept.details.ephemeral_of.is_none_or(|of| ids.contains(&of)));
        if let (Some(begin), Some(last)) = (&mut self.begin, ids.last()) {
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
    /// was a journal. `claim` makes descriptors of
    /// numbers, each once; an entry whose number it knows nothing of is left out.
    pub fn restore(
        limits: Limits,
        keeper: Keeper,
        replay: Replay,
        mut claim: impl FnMut(&Kept<Number>) -> Option<Arc<F>>,
    ) -> (Self, Effects<F>) {
        let mut stash = Self::new(limits, keeper);
        let mut effects = Effects::new();
        if let Some(Begin { restores, last_entry, last_connection, revision }) = replay.begin {
            stash.restores = restores + 1;
            (stash.last_entry, stash.last_connection) = (last_entry, last_connection);
            stash.revision = revision;
        }
        for written in replay.entries.into_values() {
            let Some(fd) = claim(&written) else { continue };
            stash.put_back(Kept { fd, details: written.details }, &mut effects);
        }
        replay.done.into_iter().for_each(|done| stash.remember(done));
        (stash, effects)
    }

    /// Admits a connection that goes on with what it was doing, however many there are: it had its
    /// place before. Connections that wait come in the order in which they do.
    pub fn resume(&mut self, id: ConnectionId, who: Who, doing: Doing) {
        self.clients.insert(id, Client::new(who));
        self.tickets.go_on(id);
        let kept = self.slots.values().filter_map(|slot| slot.kept.as_ref());
        let own = kept.filter(|kept| kept.details.ephemeral_of == Some(id));
        let own = own.map(|kept| (kept.details.id, kept.details.name.clone())).collect();
        if let Some(client) = self.clients.get_mut(&id) {
            client.ephemeral = own;
        }
        match doing {
            Doing::Nothing => {}
            Doing::Waiting { names, taking, until_boot_usec } => {
                self.queue(id, names, taking, until_boot_usec);
            }
            Doing::Watching(pattern) => {
                self.watchers.insert(id, pattern);
            }
        }
    }

    /// What the connections do that can go on with another daemon: those that are in no transaction,
    /// and wait for nothing but names.
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
            waits && !client.in_transaction
        })
    }

    fn carry_one(
        &self,
        id: ConnectionId,
        client: &Client<F>,
    ) -> Option<(u64, ConnectionId, Doing)> {
        if client.in_transaction {
            return None;
        }
        match &client.unfinished {
            None => {
                let watched = self.watchers.get(&id).cloned();
                Some((0, id, watched.map_or(Doing::Nothing, Doing::Watching)))
            }
            Some(Unfinished::Waiting(waiting)) => {
                let Waiting { names, taking, turn, until_boot_usec } = waiting.clone();
                Some((turn, id, Doing::Waiting { names, taking, until_boot_usec }))
            }
            Some(Unfinished::Opening(..) | Unfinished::Leaving(_)) => None,
        }
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
        let Details { id, ref name, expiry, close_on_hangup, .. } = *kept.details;
        if let Some(expiry) = expiry {
            self.due.insert((expiry.boot_usec, Due::Entry(id)), name.clone());
        }
        if close_on_hangup {
            self.polled.insert(id, name.clone());
            effects.push(Effect::Poll(id, Arc::clone(&kept.fd)));
        }
        self.counts.kept += 1;
        self.counts.held += 1;
        self.counts.given += 1;
        self.counts.bytes_kept += kept.details.weight();
        let mut slot = Slot::empty();
        let name = name.clone();
        slot.kept = Some(kept);
        self.slots.insert(name, slot);
    }
}
