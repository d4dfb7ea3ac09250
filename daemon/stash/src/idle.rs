//! Begin, Commit and Rollback; and transactions of which no call comes: they hold their names for so long
//! and no longer, and their clients are told so before any further call of theirs is done.

use fdstash_proto::{Call, Name, Refusal, Reply};

use crate::{
    ConnectionId, Effects, Inspected, Now, Rules, Stash,
    stash::{Client, answer},
    transaction::Due,
    usage::Usage,
};

/// What a connection's calls are part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transaction {
    /// Each is done for itself.
    None,
    /// They become final together.
    Open(Idle),
    /// Of one that was rolled back, which its client does not know yet. None of them is done, or it
    /// would be outside of the transaction that it was meant for.
    Failed,
}

/// Whether a transaction's connection has no call in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Idle {
    /// It has one.
    No,
    /// Since then and until then, both in microseconds on the boot clock; none, if for ever.
    Between(u64, Option<u64>),
}

const WAS_ROLLED_BACK: &str =
    "the transaction was idle for too long, and was rolled back: call Rollback, and begin again";

const NOT_COMMITTED: &str =
    "the transaction was idle for too long, and was rolled back: none is open now, begin again";

impl<F> Client<F> {
    /// Whether a transaction is open.
    pub(crate) fn in_transaction(&self) -> bool {
        matches!(self.transaction, Transaction::Open(_))
    }
}

impl<F> Stash<F> {
    pub(crate) fn begin(&mut self, by: ConnectionId, effects: &mut Effects<F>) {
        match self.check_begin(by) {
            Ok(()) => {
                self.open_transaction(by);
                answer(by, Ok(Reply::Done), effects);
            }
            Err(refusal) => self.refuse(by, refusal, Vec::new(), effects),
        }
    }

    fn check_begin(&self, by: ConnectionId) -> Result<(), Refusal> {
        let client = self.client(by)?;
        if client.in_transaction() {
            return Err(transaction_state("a transaction is open on this connection already"));
        }
        self.check_quota(&client.who, Usage::TRANSACTION)
    }

    pub(crate) fn open_transaction(&mut self, by: ConnectionId) {
        let Some(client) = self.clients.get_mut(&by) else { return };
        client.transaction = Transaction::Open(Idle::No);
        self.counts.transactions += 1;
        self.charge_client(by, Usage::TRANSACTION);
    }

    pub(crate) fn commit(&mut self, by: ConnectionId, now: Now, effects: &mut Effects<F>) {
        match self.end_transaction(by) {
            Ok(names) => self.settle(by, names, Some(Reply::Done), now, effects),
            Err(refusal) => self.refuse(by, refusal, Vec::new(), effects),
        }
    }

    pub(crate) fn rollback(&mut self, by: ConnectionId, now: Now, effects: &mut Effects<F>) {
        match self.end_transaction(by) {
            Ok(names) => {
                answer(by, Ok(Reply::Done), effects);
                self.release(by, names, effects, now);
            }
            Err(refusal) => self.refuse(by, refusal, Vec::new(), effects),
        }
    }

    /// Ends a connection's transaction: what it holds is to be settled, or released.
    fn end_transaction(&mut self, by: ConnectionId) -> Result<Vec<Name>, Refusal> {
        if !self.client(by)?.in_transaction() {
            return Err(transaction_state("no transaction is open on this connection"));
        }
        Ok(self.leave_transaction(by, Transaction::None))
    }

    /// Has a connection's transaction be over, if one is open; and what the connection holds.
    pub(crate) fn leave_transaction(&mut self, by: ConnectionId, then: Transaction) -> Vec<Name> {
        self.stop_idling(by);
        let Some(client) = self.clients.get_mut(&by) else { return Vec::new() };
        let was_open = client.in_transaction();
        client.transaction = then;
        let names = client.holds.iter().cloned().collect();
        if was_open {
            self.counts.transactions -= 1;
            self.discharge_client(by, Usage::TRANSACTION);
        }
        names
    }

    /// Rolls a transaction back that was idle for too long.
    pub(crate) fn fail_transaction(
        &mut self,
        by: ConnectionId,
        effects: &mut Effects<F>,
        now: Now,
    ) {
        let names = self.leave_transaction(by, Transaction::Failed);
        self.release(by, names, effects, now);
    }

    /// Answers a call of a transaction that was rolled back meanwhile, and hands on any other.
    pub(crate) fn unless_failed(
        &mut self,
        by: ConnectionId,
        call: Call<Inspected<F>>,
        effects: &mut Effects<F>,
    ) -> Option<Call<Inspected<F>>> {
        let client = self.clients.get_mut(&by)?;
        if client.transaction != Transaction::Failed {
            return Some(call);
        }
        let (then, outcome, unwanted) = match call {
            Call::Rollback => (Transaction::None, Ok(()), Vec::new()),
            Call::Commit { .. } => (Transaction::None, Err(NOT_COMMITTED), Vec::new()),
            Call::Give { gifts, .. } => (Transaction::Failed, Err(WAS_ROLLED_BACK), gifts),
            Call::Take { .. }
            | Call::Close { .. }
            | Call::Reopen { .. }
            | Call::Begin
            | Call::List { .. }
            | Call::Watch { .. }
            | Call::GetStatistics
            | Call::ExplainPolicy { .. } => (Transaction::Failed, Err(WAS_ROLLED_BACK), Vec::new()),
        };
        client.transaction = then;
        match outcome {
            Ok(()) => answer(by, Ok(Reply::Done), effects),
            Err(reason) => {
                let unwanted = unwanted.into_iter().map(|gift| gift.fd.fd.into()).collect();
                self.refuse(by, transaction_state(reason), unwanted, effects);
            }
        }
        None
    }

    /// Takes note that a connection has a call in progress.
    pub(crate) fn stop_idling(&mut self, by: ConnectionId) {
        let Some(client) = self.clients.get_mut(&by) else { return };
        let Transaction::Open(idle) = &mut client.transaction else { return };
        if let Idle::Between(_, Some(until_usec)) = std::mem::replace(idle, Idle::No) {
            self.due.remove(&(until_usec, Due::Idle(by)));
        }
    }

    /// Takes note that a connection may have no call in progress any more.
    pub(crate) fn begin_idling(&mut self, by: ConnectionId, now: Now) {
        let is_busy = |client: &Client<F>| client.unfinished.is_some();
        if !self.clients.get(&by).is_none_or(is_busy) {
            self.idle_since(by, now.boot_usec);
        }
    }

    /// Has all transactions that are idle go by other rules.
    pub(crate) fn idle_by(&mut self, rules: Rules) {
        self.rules = rules;
        let idle = self.clients.iter().filter_map(|(id, client)| match client.transaction {
            Transaction::Open(Idle::Between(since_usec, _)) => Some((*id, since_usec)),
            Transaction::Open(Idle::No) | Transaction::None | Transaction::Failed => None,
        });
        for (id, since_usec) in idle.collect::<Vec<_>>() {
            self.idle_since(id, since_usec);
        }
    }

    fn idle_since(&mut self, by: ConnectionId, since_usec: u64) {
        self.stop_idling(by);
        let client = self.clients.get(&by).filter(|client| client.in_transaction());
        let Some(most) = client.map(|client| self.quota_of(&client.who).idle_usec) else { return };
        let until_usec = since_usec.checked_add(most).filter(|usec| *usec < u64::MAX);
        let Some(client) = self.clients.get_mut(&by) else { return };
        client.transaction = Transaction::Open(Idle::Between(since_usec, until_usec));
        if let Some(until_usec) = until_usec {
            self.due.insert((until_usec, Due::Idle(by)), None);
        }
    }
}

fn transaction_state(reason: &str) -> Refusal {
    Refusal::TransactionState { reason: reason.to_owned() }
}
