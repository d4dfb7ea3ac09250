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

use fdstash_proto::{Call, Change, Keeper, Name, Pattern, Refusal, Reply, Ticket};

use crate::{
    Effect, Effects, EntryId, Inspected, Limits, Now, OpenFailure, Rules, Verb, Who,
    entry::{Slot, Then},
    idle::Transaction,
    opening::Purpose,
    take::{Waiters, Waiting},
    tickets::Tickets,
    transaction::{Counts, Due},
    usage::Usage,
};

/// So many names of a refused call are not freed on the way.
const MANY: usize = 1000;

/// Names one connection; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Which descriptors are kept under which names. Owns what it keeps, and lends it.
pub struct Stash<F> {
    pub(crate) limits: Limits,
    pub(crate) rules: Rules,
    pub(crate) keeper: Keeper,
    pub(crate) slots: BTreeMap<Name, Slot<F>>,
    pub(crate) clients: BTreeMap<ConnectionId, Client<F>>,
    pub(crate) watchers: BTreeMap<ConnectionId, Pattern>,
    pub(crate) waiters: Waiters,
    /// With the names of those entries that expire.
    pub(crate) due: BTreeMap<(u64, Due), Option<Name>>,
    pub(crate) polled: BTreeMap<EntryId, Name>,
    /// What came back that was given for the lifetime of connections that have not, yet.
    pub(crate) orphans: BTreeMap<ConnectionId, BTreeMap<EntryId, Name>>,
    pub(crate) tickets: Tickets,
    /// For which calls files are being opened, also those whose connection has ended, with their users:
    /// each has a thread.
    pub(crate) openings: BTreeMap<ConnectionId, u32>,
    /// What every user has who has anything.
    pub(crate) usage: BTreeMap<u32, Usage>,
    pub(crate) counts: Counts,
    pub(crate) last_connection: u64,
    pub(crate) last_entry: u64,
    pub(crate) revision: u64,
    pub(crate) restores: u64,
    /// Whether what is done with entries is told.
    pub(crate) is_audited: bool,
}

/// One connection.
pub(crate) struct Client<F> {
    pub(crate) who: Who,
    pub(crate) transaction: Transaction,
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
    /// In its user's quota, beside what its holds take.
    pub(crate) quota: Usage,
}

impl<F> Client<F> {
    pub(crate) fn new(who: Who) -> Self {
        Self {
            who,
            transaction: Transaction::None,
            holds: BTreeSet::new(),
            ephemeral: BTreeMap::new(),
            unfinished: None,
            ticket: None,
        }
    }

    pub(crate) fn uid(&self) -> u32 {
        self.who.peer.uid
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
            openings: BTreeMap::new(),
            usage: BTreeMap::new(),
            counts: Counts::default(),
            last_connection: 0,
            last_entry: 0,
            revision: 0,
            restores: 0,
            is_audited: false,
        }
    }

    /// Admits a connection.
    ///
    /// # Errors
    ///
    /// LimitExceeded where there is no room for one more.
    pub fn connect(&mut self, who: Who) -> Result<ConnectionId, Refusal> {
        self.check_connection(&who)?;
        self.last_connection += 1;
        let id = ConnectionId(self.last_connection);
        self.clients.insert(id, Client::new(who));
        self.charge_client(id, Usage::CONNECTION);
        Ok(id)
    }

    /// Forgets a connection: its transaction and its unfinished call never were, and what it gave
    /// for its own lifetime is closed.
    pub fn disconnect(&mut self, id: ConnectionId, now: Now) -> Effects<F> {
        let mut effects = Effects::new();
        if self.watchers.remove(&id).is_some() {
            self.discharge_client(id, Usage::WATCH);
        }
        let unwanted = self.drop_unfinished(id);
        close_all(unwanted, &mut effects);
        let ephemeral = self.clients.get(&id).into_iter().flat_map(|client| &client.ephemeral);
        let ends = ephemeral.map(|(_, name)| (name.clone(), Change::Closed)).collect();
        // Before its holds end, or who waits for these names would still get what must go.
        self.end(ends, &mut effects, now);
        let names = self.leave_transaction(id, Transaction::None);
        self.release(id, names, &mut effects, now);
        self.discharge_client(id, Usage::CONNECTION);
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
        self.stop_idling(by);
        self.call_now(by, call, now, &mut effects);
        self.begin_idling(by, now);
        effects
    }

    fn call_now(
        &mut self,
        by: ConnectionId,
        call: Call<Inspected<F>>,
        now: Now,
        effects: &mut Effects<F>,
    ) {
        let Some(call) = self.unless_failed(by, call, effects) else { return };
        let Some(call) = self.unless_done(by, call, now, effects) else { return };
        match call {
            Call::Give { gifts, clash, ticket: _ } => self.give(by, gifts, clash, now, effects),
            Call::Take { names, taking, timeout_usec } => {
                self.take_or_wait(by, names, taking, timeout_usec, now, effects);
            }
            Call::Close { names, ticket: _ } => self.close(by, names, now, effects),
            Call::Reopen { reopenings } => self.reopen(by, &reopenings, effects),
            Call::Begin => self.begin(by, effects),
            Call::Commit { ticket: _ } => self.commit(by, now, effects),
            Call::Rollback => self.rollback(by, now, effects),
            Call::List { pattern } => effects.push(Effect::List { to: by, pattern }),
            Call::Watch { pattern } => self.watch(by, pattern, effects),
            Call::GetStatistics => {
                answer(by, Ok(Reply::Statistics(self.statistics())), effects);
            }
            Call::ExplainPolicy { uid, gids, verb, name } => {
                match self.explain(by, uid, &gids, verb, &name) {
                    Ok(explained) => answer(by, Ok(Reply::Explained(explained)), effects),
                    Err(refusal) => self.refuse(by, refusal, Vec::new(), effects),
                }
            }
        }
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
        if let Some(uid) = self.openings.remove(&by) {
            self.discharge(uid, Usage::OPEN);
        }
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
        self.begin_idling(by, now);
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

    fn close(&mut self, by: ConnectionId, names: Vec<Name>, now: Now, effects: &mut Effects<F>) {
        let closes = |name| self.existing(by, name, Verb::Close).map(drop);
        let checked = names.iter().try_for_each(closes);
        if let Err(refusal) = checked.and_then(|()| self.check_names(by, &names)) {
            self.refuse(by, refusal, Vec::new(), effects);
            if names.len() > MANY {
                effects.push(Effect::Forget(by, names));
            }
            return;
        }
        let gone = || Then::Gone(Change::Closed);
        if !self.client(by).is_ok_and(Client::in_transaction) {
            let changes = names.into_iter().map(|name| (name, gone())).collect();
            return self.settle_free(by, changes, Some(Reply::Done), now, effects);
        }
        for name in &names {
            self.hold(by, name);
            self.stage(by, name, gone(), effects);
        }
        answer(by, Ok(Reply::Done), effects);
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
