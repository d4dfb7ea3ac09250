//! Which calls have been done, by their tickets: so one that is sent again is known.
//!
//! A connection has one call at a time, and its client sends again none but its last. So the last
//! ticket of each connection is remembered, and when the connection has ended, for as long as its
//! client may take to come back; but never so many of one user that another's are forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fdstash_proto::{Call, Name, Refusal, Reply, Ticket};

use crate::{
    ConnectionId, Effects, Inspected, Now, Stash,
    stash::{answer, close_all},
};

/// How long a ticket outlives its connection: a daemon that comes back, and a client that waits for
/// it, take seconds.
const AFTERLIFE_USEC: u64 = 60_000_000;

/// How many tickets of connections that have ended are remembered for each user: as many programs of
/// one user as a crash may interrupt in a call.
const MOST_ENDED: usize = 256;

/// A call with a ticket that has been done, and what it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Whose call it was.
    pub by: ConnectionId,
    /// The user of that connection, whose alone the ticket is.
    pub uid: u32,
    /// Its ticket.
    pub ticket: Ticket,
    /// The names whose old descriptors made room.
    pub replaced: Vec<Name>,
    /// Until when it is remembered, on the boot clock, unless its connection stands longer.
    pub until_boot_usec: u64,
}

/// The calls that are remembered, one of each connection at most.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    last: BTreeMap<ConnectionId, Done>,
    /// How many bytes it takes at most to write them down.
    weight: usize,
    by_ticket: BTreeMap<(u32, Ticket), ConnectionId>,
    /// Those whose connections have ended, in the order in which they will be forgotten.
    ended: BTreeSet<(u64, ConnectionId)>,
    /// The same, of each user.
    ended_by_user: BTreeMap<u32, BTreeSet<(u64, ConnectionId)>>,
}

impl Tickets {
    /// The call of a user that was done for this ticket.
    fn find(&self, uid: u32, ticket: &Ticket, now: Now) -> Option<&Done> {
        let by = self.by_ticket.get(&(uid, ticket.clone()))?;
        let stands = |done: &Done| !self.ended.contains(&(done.until_boot_usec, done.by));
        self.last.get(by).filter(|done| now.boot_usec < done.until_boot_usec || stands(done))
    }

    /// Remembers a call in the place of the one before it on its connection, which stands.
    fn note(&mut self, done: Done) {
        self.forget(done.by);
        let key = (done.uid, done.ticket.clone());
        if let Some(other) = self.by_ticket.get(&key).copied() {
            self.forget(other);
        }
        self.by_ticket.insert(key, done.by);
        self.weight += done.weight();
        self.last.insert(done.by, done);
    }

    /// How many bytes it takes at most to write them down.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    /// Takes note that a connection has ended.
    pub(crate) fn end(&mut self, id: ConnectionId, now: Now) {
        self.forget_expired(now);
        // It has one place among those that have ended, by the time until which it is remembered.
        if let Some(done) =
            self.last.get_mut(&id).filter(|done| !self.ended.contains(&(done.until_boot_usec, id)))
        {
            done.until_boot_usec = now.boot_usec.saturating_add(AFTERLIFE_USEC);
            self.note_end(id);
        }
    }

    /// Takes note that all connections have ended, but for those that stand.
    pub(crate) fn end_all_but(&mut self, stands: impl Fn(ConnectionId) -> bool) {
        let ends: Vec<_> = self.last.keys().copied().filter(|id| !stands(*id)).collect();
        ends.into_iter().for_each(|id| self.note_end(id));
    }

    /// Counts a remembered call among those whose connections have ended, of which its user then has
    /// one too many, at most.
    fn note_end(&mut self, id: ConnectionId) {
        let Some(&Done { uid, until_boot_usec, .. }) = self.last.get(&id) else { return };
        self.ended.insert((until_boot_usec, id));
        let of_user = self.ended_by_user.entry(uid).or_default();
        of_user.insert((until_boot_usec, id));
        if of_user.len() > MOST_ENDED {
            let first = of_user.first().copied();
            first.into_iter().for_each(|(_, id)| self.forget(id));
        }
    }

    fn forget_expired(&mut self, now: Now) {
        while let Some(&(_, id)) = self.ended.first().filter(|(until, _)| *until <= now.boot_usec) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: ConnectionId) {
        let Some(done) = self.last.remove(&id) else { return };
        self.weight -= done.weight();
        let Done { uid, ticket, until_boot_usec, .. } = done;
        self.by_ticket.remove(&(uid, ticket));
        self.ended.remove(&(until_boot_usec, id));
        if let Some(of_user) = self.ended_by_user.get_mut(&uid) {
            of_user.remove(&(until_boot_usec, id));
            if of_user.is_empty() {
                self.ended_by_user.remove(&uid);
            }
        }
    }
}

impl<F> Stash<F> {
    /// The calls that are remembered by their tickets, for a journal that is written anew.
    pub fn tickets(&self) -> impl Iterator<Item = &Done> {
        self.tickets.last.values()
    }

    /// Remembers a call that was done before this stash began, in the order in which they were
    /// recorded. Its connection has ended since, and none of this stash is called as it was.
    pub fn remember(&mut self, done: Done) {
        let by = done.by;
        self.remember_standing(done);
        self.tickets.note_end(by);
    }

    /// The same of a connection that goes on.
    pub(crate) fn remember_standing(&mut self, done: Done) {
        self.last_connection = self.last_connection.max(done.by.0);
        self.tickets.note(done);
    }

    /// Answers a call that has been done already, and hands on any other, whose ticket is then
    /// written down with what it does.
    pub(crate) fn unless_done(
        &mut self,
        by: ConnectionId,
        call: Call<Inspected<F>>,
        now: Now,
        effects: &mut Effects<F>,
    ) -> Option<Call<Inspected<F>>> {
        let Some(replaced) = self.done_before(by, &call, now) else { return Some(call) };
        if self.clients.get(&by).is_some_and(|client| client.in_transaction()) {
            // Done would be said of what this transaction has staged, and it is not.
            let reason = "the ticket is of another call, which was done before".into();
            self.refuse(by, Refusal::TransactionState { reason }, Vec::new(), effects);
            return None;
        }
        let (reply, unwanted) = match call {
            Call::Give { gifts, .. } => (Reply::Given { replaced }, gifts),
            Call::Close { .. } | Call::Commit { .. } => (Reply::Done, Vec::new()),
            Call::Take { .. }
            | Call::Reopen { .. }
            | Call::Begin
            | Call::Rollback
            | Call::List { .. }
            | Call::Watch { .. }
            | Call::GetStatistics
            | Call::ExplainPolicy { .. } => return Some(call),
        };
        answer(by, Ok(reply), effects);
        close_all(unwanted.into_iter().map(|gift| Arc::new(gift.fd.fd)).collect(), effects);
        None
    }

    /// Takes note of a call's ticket, and tells which names it had replaced if it was done before.
    fn done_before(
        &mut self,
        by: ConnectionId,
        call: &Call<Inspected<F>>,
        now: Now,
    ) -> Option<Vec<Name>> {
        let client = self.clients.get_mut(&by)?;
        // In a transaction nothing is done before its Commit.
        let counts = !client.in_transaction() || matches!(call, Call::Commit { .. });
        client.ticket = call.ticket().filter(|_| counts).cloned();
        let done = self.tickets.find(client.who.peer.uid, client.ticket.as_ref()?, now)?;
        Some(done.replaced.clone())
    }

    /// Remembers the call of a connection that is being settled, if it bears a ticket.
    pub(crate) fn note_done(
        &mut self,
        by: ConnectionId,
        reply: &Reply<Arc<F>>,
        now: Now,
    ) -> Option<Done> {
        let client = self.clients.get_mut(&by)?;
        let ticket = client.ticket.take()?;
        let replaced =
            if let Reply::Given { replaced } = reply { replaced.clone() } else { Vec::new() };
        let until_boot_usec = now.boot_usec.saturating_add(AFTERLIFE_USEC);
        let done = Done { by, uid: client.who.peer.uid, ticket, replaced, until_boot_usec };
        self.tickets.note(done.clone());
        Some(done)
    }
}
