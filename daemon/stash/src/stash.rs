//! [`Stash`]: every call's transition, one short method a verb.
//!
//! Every call that changes something goes the same way: check all of it (`lookup.rs`); hold the names;
//! stage what shall become of them; and settle, at once or, in a transaction, at Commit
//! (`transaction.rs`). The longer calls have a file each: `give.rs`, `take.rs`, `opening.rs`. What has
//! been done already is not done again (`tickets.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fdstash_proto::{
    Call, Change, Keeper, Name, Notice, Pattern, Refusal, Reply, Statistics, Ticket,
};

use crate::{
    Effect, Effects, EntryId, Inspected, Now, OpenFailure, Quota, Rules, Verb, Who,
    entry::{Slot, Then},
    opening::Purpose,
    take::{Waiters, Waiting},
    tickets::Tickets,
    transaction::{Counts, Due},
};

/// Names one connection; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// How much there may be of what peers can make grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Names, kept and held.
    pub entries: usize,
    /// Connections.
    pub connections: usize,
    /// Descriptors, kept and staged, and connections together: each takes a place in the process's
    /// table.
    pub places: usize,
    /// Calls whose files are being opened: each takes a thread.
    pub opens: usize,
    /// How much of each of these is for root and the owner alone, in percent.
    pub root_share: usize,
    /// The user whose daemon it is.
    pub owner: u32,
    /// What others may have, each, unless the rules say otherwise.
    pub quota: Quota,
}

impl Limits {
    /// As much of everything for everybody as there is of it, in a daemon of root's.
    #[must_use]
    pub fn new(entries: usize, connections: usize, places: usize) -> Self {
        let opens = usize::MAX;
        let quota = Quota::NONE;
        Self { entries, connections, places, opens, root_share: 0, owner: 0, quota }
    }

    /// Whether a user is bound by no quota, and has the share of root.
    pub(crate) fn is_exempt(&self, uid: u32) -> bool {
        uid == 0 || uid == self.owner
    }
}

/// Which descriptors are kept under which names. Owns what it keeps, and lends it.
pub struct Stash<F> {
    pub(crate) limits: Limits,
    pub(crate) rules: Rules,
    pub(crate) keeper: Keeper,
    pub(crate) slots: BTreeMap<Name, Slot<F>>,
    pub(crate) clients: BTreeMap<ConnectionId, Client<F>>,
    pub(crate) watchers: BTreeMap<ConnectionId, Pattern>,
    pub(crate) waiters: Waiters,
    pub(crate) due: BTreeMap<(u64, Due), Name>,
    pub(crate) polled: BTreeMap<EntryId, Name>,
    /// What came back that was given for the lifetime of connections that have not, yet.
    pub(crate) orphans: BTreeMap<ConnectionId, BTreeMap<EntryId, Name>>,
    pub(crate) tickets: Tickets,
    pub(crate) counts: Counts,
    pub(crate) last_connection: u64,
    pub(crate) last_entry: u64,
    pub(crate) revision: u64,
    pub(crate) restores: u64,
}

/// One connection.
pub(crate) struct Client<F> {
    pub(crate) who: Who,
    /// Whether a transaction is open.
    pub(crate) in_transaction: bool,
    /// The names it holds, by its transaction or its unfinished call.
    pub(crate) holds: BTreeSet<Name>,
    /// What it gave that goes when it does.
    pub(crate) ephemeral: BTreeMap<EntryId, Name>,
    pub(crate) unfinished: Option<Unfinished<F>>,
    /// That of its call in progress, which is written down when the call is settled.
    pub(crate) ticket: Option<Ticket>,
}

/// A call that waits for something.
pub(crate) enum Unfinished<F> {
    /// Its files to be opened, for which room is kept.
    Opening(Purpose<F>, Room),
    /// Its answer to have left, with the descriptors of these names.
    Leaving(Vec<Name>),
    /// Names to be there and free.
    Waiting(Waiting),
}

/// Room that is kept for what is being opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// In the process's table.
    pub(crate) places: usize,
    /// Where records are written.
    pub(crate) bytes: usize,
}

impl<F> Client<F> {
    pub(crate) fn new(who: Who) -> Self {
        Self {
            who,
            in_transaction: false,
            holds: BTreeSet::new(),
            ephemeral: BTreeMap::new(),
            unfinished: None,
            ticket: None,
        }
    }
}

impl<F> Stash<F> {
    /// An empty stash.
    #[must_use]
    pub fn new(limits: Limits, keeper: Keeper) -> Self {
        Self {
            limits,
            rules: Rules::default(),
            keeper,
            slots: BTreeMap::new(),
            clients: BTreeMap::new(),
            watchers: BTreeMap::new(),
            waiters: Waiters::default(),
            due: BTreeMap::new(),
            polled: BTreeMap::new(),
            orphans: BTreeMap::new(),
            tickets: Tickets::default(),
            counts: Counts::default(),
            last_connection: 0,
            last_entry: 0,
            revision: 0,
            restores: 0,
        }
    }

    /// Admits a connection.
    ///
    /// # Errors
    ///
    /// LimitExceeded where there is no room for one more.
    pub fn connect(&mut self, who: Who) -> Result<ConnectionId, Refusal> {
        if self.clients.len() >= self.limits.connections {
            return Err(limit_exceeded("connections", self.limits.connections));
        }
        if self.counts.held + self.clients.len() >= self.limits.places {
            return Err(limit_exceeded("descriptors", self.limits.places));
        }
        self.last_connection += 1;
        let id = ConnectionId(self.last_connection);
        self.clients.insert(id, Client::new(who));
        Ok(id)
    }

    /// Forgets a connection: its transaction and its unfinished call never were, and what it gave
    /// for its own lifetime is closed.
    pub fn disconnect(&mut self, id: ConnectionId, now: Now) -> Effects<F> {
        let mut effects = Effects::new();
        self.watchers.remove(&id);
        let unwanted = self.drop_unfinished(id);
        close_all(unwanted, &mut effects);
        let ephemeral = self.clients.get(&id).into_iter().flat_map(|client| &client.ephemeral);
        let ends = ephemeral.map(|(_, name)| (name.clone(), Change::Closed)).collect();
        // Before its holds end, or who waits for these names would still get what must go.
        self.end(ends, &mut effects, now);
        self.roll_back(id, &mut effects, now);
        self.clients.remove(&id);
        self.tickets.end(id, now);
        effects
    }

    /// Carries out one call. A connection has one call at a time: the next one comes when this one
    /// has its answer, and, where that must be confirmed, when it is. One that has been done already,
    /// as its ticket tells, is only answered. Owns the descriptors in it, also those of a call that
    /// it refuses.
    pub fn call(&mut self, by: ConnectionId, call: Call<Inspected<F>>, now: Now) -> Effects<F> {
        let mut effects = Effects::new();
        let Some(call) = self.unless_done(by, call, now, &mut effects) else { return effects };
        match call {
            Call::Give { gifts, clash, ticket: _ } => {
                self.give(by, gifts, clash, now, &mut effects)
            }
            Call::Take { names, taking, timeout_usec } => {
                self.take_or_wait(by, names, taking, timeout_usec, now, &mut effects);
            }
            Call::Close { names, ticket: _ } => self.close(by, names, now, &mut effects),
            Call::Reopen { reopenings } => self.reopen(by, &reopenings, &mut effects),
            Call::Begin => self.begin(by, &mut effects),
            Call::Commit { ticket: _ } => self.commit(by, now, &mut effects),
            Call::Rollback => self.rollback(by, now, &mut effects),
            Call::List { pattern } => effects.push(Effect::List { to: by, pattern }),
            Call::Watch { pattern } => {
                self.watchers.insert(by, pattern);
                answer(by, Ok(Reply::Notice(Notice::Standing)), &mut effects);
            }
            Call::GetStatistics => {
                answer(by, Ok(Reply::Statistics(self.statistics())), &mut effects);
            }
            Call::ExplainPolicy { uid, gids, verb, name } => {
                match self.explain(by, uid, &gids, verb, &name) {
                    Ok(explained) => answer(by, Ok(Reply::Explained(explained)), &mut effects),
                    Err(refusal) => self.refuse(by, refusal, Vec::new(), &mut effects),
                }
            }
        }
        effects
    }

    /// Answers a call that was refused before it was understood.
    pub fn misunderstood(&mut self, by: ConnectionId, refusal: Refusal) -> Effects<F> {
        let mut effects = Effects::new();
        self.refuse(by, refusal, Vec::new(), &mut effects);
        effects
    }

    /// Goes on with a call whose [`Effect::Open`] was carried out: with the opened files, as many of
    /// each as were asked for, or with none of them. Owns them.
    pub fn opened(
        &mut self,
        by: ConnectionId,
        outcome: Result<Vec<Vec<Inspected<F>>>, OpenFailure>,
        now: Now,
    ) -> Effects<F> {
        let mut effects = Effects::new();
        let Some(purpose) = self.opening(by) else {
            // The connection has gone meanwhile, and the call with it.
            let unwanted = outcome.into_iter().flatten().flatten().map(|file| file.fd.into());
            close_all(unwanted.collect(), &mut effects);
            return effects;
        };
        match outcome {
            Ok(files) => {
                let files = files
                    .into_iter()
                    .map(|copies| copies.into_iter().map(Inspected::shared).collect())
                    .collect();
                self.go_on(by, purpose, files, now, &mut effects);
            }
            Err(failure) => self.give_up(by, purpose, failure, now, &mut effects),
        }
        effects
    }

    /// Takes note that the answer to a Take has left: what it handed out is kept no longer.
    pub fn sent(&mut self, by: ConnectionId, now: Now) -> Effects<F> {
        let mut effects = Effects::new();
        if let Some(names) = self.leaving(by) {
            self.settle(by, names, None, now, &mut effects);
        }
        effects
    }

    /// Takes note that the answer to a Take will not leave: what it would have handed out stays.
    pub fn unsent(&mut self, by: ConnectionId, now: Now) -> Effects<F> {
        let mut effects = Effects::new();
        if let Some(names) = self.leaving(by) {
            self.release(by, names, &mut effects, now);
        }
        effects
    }

    /// Takes note that an entry with [`Effect::Poll`] polls as hung up or failed.
    pub fn hung_up(&mut self, id: EntryId, now: Now) -> Effects<F> {
        let mut effects = Effects::new();
        if let Some(name) = self.polled.get(&id).cloned() {
            self.end(vec![(name, Change::HungUp)], &mut effects, now);
        }
        effects
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Now) -> Effects<F> {
        let mut effects = Effects::new();
        let mut expired = Vec::new();
        while let Some(due) = self.due.first_entry().filter(|due| due.key().0 <= now.boot_usec) {
            match due.key().1 {
                Due::Entry(_) => expired.push((due.remove(), Change::Expired)),
                Due::Wait(id) => {
                    due.remove();
                    self.stop_waiting(id, &mut effects);
                }
            }
        }
        self.end(expired, &mut effects, now);
        effects
    }

    /// When [`Stash::tick`] has something to do next, in microseconds on the boot clock.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        self.due.first_key_value().map(|((boot_usec, _), _)| *boot_usec)
    }

    /// The figures.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let counts = &self.counts;
        Statistics {
            entries: counts.kept as u64,
            max_entries: self.limits.entries as u64,
            connections: self.clients.len() as u64,
            transactions: self.clients.values().filter(|client| client.in_transaction).count()
                as u64,
            keeper: self.keeper,
            restores: self.restores,
            given: counts.given,
            taken: counts.taken,
            copied: counts.copied,
            closed: counts.closed,
            reopened: counts.reopened,
            expired: counts.expired,
            refused: counts.refused,
            mirror: None,
        }
    }

    fn close(&mut self, by: ConnectionId, names: Vec<Name>, now: Now, effects: &mut Effects<F>) {
        let refusal = names.iter().find_map(|name| self.existing(by, name, Verb::Close).err());
        if let Some(refusal) = refusal {
            return self.refuse(by, refusal, Vec::new(), effects);
        }
        for name in &names {
            self.hold(by, name);
            self.stage(by, name, Then::Gone(Change::Closed), effects);
        }
        self.finish(by, names, Reply::Done, now, effects);
    }

    fn begin(&mut self, by: ConnectionId, effects: &mut Effects<F>) {
        let Some(client) = self.clients.get_mut(&by) else { return };
        if client.in_transaction {
            let reason = "a transaction is open on this connection already".into();
            return self.refuse(by, Refusal::TransactionState { reason }, Vec::new(), effects);
        }
        client.in_transaction = true;
        answer(by, Ok(Reply::Done), effects);
    }

    fn commit(&mut self, by: ConnectionId, now: Now, effects: &mut Effects<F>) {
        match self.end_transaction(by) {
            Ok(names) => self.settle(by, names, Some(Reply::Done), now, effects),
            Err(refusal) => self.refuse(by, refusal, Vec::new(), effects),
        }
    }

    fn rollback(&mut self, by: ConnectionId, now: Now, effects: &mut Effects<F>) {
        match self.end_transaction(by) {
            Ok(names) => {
                answer(by, Ok(Reply::Done), effects);
                self.release(by, names, effects, now);
            }
            Err(refusal) => self.refuse(by, refusal, Vec::new(), effects),
        }
    }

    pub(crate) fn refuse(
        &mut self,
        by: ConnectionId,
        refusal: Refusal,
        unwanted: Vec<Arc<F>>,
        effects: &mut Effects<F>,
    ) {
        self.counts.refused += 1;
        answer(by, Err(refusal), effects);
        close_all(unwanted, effects);
    }

    pub(crate) fn wait_for(&mut self, by: ConnectionId, unfinished: Unfinished<F>) {
        if let Some(client) = self.clients.get_mut(&by) {
            client.unfinished = Some(unfinished);
        }
    }

    pub(crate) fn next_entry(&mut self) -> EntryId {
        self.last_entry += 1;
        EntryId(self.last_entry)
    }
}

pub(crate) fn answer<F>(
    to: ConnectionId,
    outcome: Result<Reply<Arc<F>>, Refusal>,
    effects: &mut Effects<F>,
) {
    effects.push(Effect::Answer { to, outcome, confirm: false });
}

pub(crate) fn close_all<F>(fds: Vec<Arc<F>>, effects: &mut Effects<F>) {
    if !fds.is_empty() {
        effects.push(Effect::Close(fds));
    }
}

pub(crate) fn limit_exceeded(limit: &str, value: usize) -> Refusal {
    Refusal::LimitExceeded {
        limit: limit.to_owned(),
        value: i64::try_from(value).unwrap_or(i64::MAX),
    }
}
