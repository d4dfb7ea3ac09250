//! [`Model`]: what a stash does, said as shortly as possible and without a thought for its cost.
//!
//! Everybody who holds names has copies of what is kept there, and changes these; what is kept is
//! what is written back. Nothing is indexed: all questions are answered by looking at everything.
//!
//! It is long, and in one file, since it is to be read from its beginning to its end beside the
//! interface, and the stash's way to cut things up shall not be its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use fdstash_proto::{
    Call, Change, Clash, Entry, Flags, Gift, Handed, Keeper, Kind, Labels, Name, Notice, Pattern,
    Refusal, Reopening, Reply, Share, Statistics, Taking, Ticket,
};
use fdstash_stash::{
    ConnectionId, Inspected, Limits, OpenFailure, Pointed, Rules, UNMAPPED, Usage, Verb, Verdict,
    Who,
};

use super::{
    numbers::shown,
    reference,
    trace::{Entries, Predicted, Recorded, Said, Told},
    world::BOOTED_AT_USEC,
};

pub(crate) struct Model {
    limits: Limits,
    rules: Rules,
    now_usec: u64,
    kept: BTreeMap<Name, Item>,
    clients: BTreeMap<ConnectionId, Client>,
    /// In the order of their arrival.
    waiting: Vec<Waiting>,
    /// The line of what ends as soon as nobody holds its name.
    doomed: BTreeMap<Name, (u64, Change)>,
    /// What has expired, but was held.
    overdue: BTreeSet<u64>,
    /// Whose files are being opened.
    opens: Vec<(ConnectionId, u32)>,
    /// What was done with a ticket, the last of each connection.
    done: Vec<Done>,
    /// The figures that only grow.
    counted: Statistics,
    revision: u64,
    lines: u64,
}

/// Something kept, or to be kept.
#[derive(Debug, Clone)]
struct Item {
    fd: u64,
    /// The same for what is reopened as for what was given.
    line: u64,
    entry: Entry,
    share: Share,
    expires_usec: Option<u64>,
    ephemeral_of: Option<ConnectionId>,
    close_on_hangup: bool,
}

struct Client {
    who: Who,
    in_transaction: bool,
    /// Whether its transaction was rolled back, and it does not know yet.
    has_failed: bool,
    /// Since when its transaction has no call in progress.
    idle_since: Option<u64>,
    watches: Option<Pattern>,
    own: BTreeMap<Name, Own>,
    unfinished: Option<Unfinished>,
    /// Of the call in progress.
    ticket: Option<Ticket>,
}

/// A call that was done.
struct Done {
    by: ConnectionId,
    uid: u32,
    ticket: Ticket,
    replaced: Vec<Name>,
    /// Until when it is remembered, once its connection has ended.
    until_usec: Option<u64>,
    /// The same, as it is written down.
    written_usec: u64,
}

/// What stands under a name for the one who holds it.
#[derive(Debug, Clone)]
struct Own {
    item: Option<Item>,
    /// The line that was last taken out.
    taken: Option<u64>,
}

/// A call that goes on when something is open, or has left.
struct Unfinished {
    purpose: Purpose,
    names: Vec<Name>,
    /// The names that it alone holds.
    newly: Vec<Name>,
    /// The places that are kept for it.
    room: usize,
    /// What is kept for it of its user's quota.
    promised: Usage,
}

enum Purpose {
    Give(Vec<Gift<Inspected<u64>>>, Vec<Name>),
    Copy,
    Reopen,
    Leave,
}

struct Waiting {
    by: ConnectionId,
    names: Vec<Name>,
    taking: Taking,
    until_usec: u64,
}

impl Model {
    pub(crate) fn new(limits: Limits) -> Self {
        let counted = Statistics {
            entries: 0,
            max_entries: limits.entries as u64,
            connections: 0,
            transactions: 0,
            keeper: Keeper::Nobody,
            restores: 0,
            given: 0,
            taken: 0,
            copied: 0,
            closed: 0,
            reopened: 0,
            expired: 0,
            refused: 0,
            mirror: None,
        };
        Self {
            limits,
            rules: Rules::default(),
            now_usec: 0,
            kept: BTreeMap::new(),
            clients: BTreeMap::new(),
            waiting: Vec::new(),
            doomed: BTreeMap::new(),
            overdue: BTreeSet::new(),
            opens: Vec::new(),
            done: Vec::new(),
            counted,
            revision: 0,
            lines: 0,
        }
    }

    pub(crate) fn pass(&mut self, now_usec: u64) {
        self.now_usec = now_usec;
    }

    /// Why a connection is not admitted; or it has the name that it was given.
    pub(crate) fn connect(&mut self, who: &Who, id: Option<&ConnectionId>) -> Option<Refusal> {
        let more = Usage { connections: 1, ..Usage::default() };
        if let Err(refusal) = self.check_quota(who, more) {
            return Some(refusal);
        }
        let Limits { connections, places, .. } = self.limits_of(who);
        if self.clients.len() >= connections {
            return Some(limit_exceeded("connections", connections));
        }
        if self.places() >= places {
            return Some(limit_exceeded("descriptors", places));
        }
        let client = Client {
            who: who.clone(),
            in_transaction: false,
            has_failed: false,
            idle_since: None,
            watches: None,
            own: BTreeMap::new(),
            unfinished: None,
            ticket: None,
        };
        self.clients.extend(id.map(|id| (*id, client)));
        None
    }

    pub(crate) fn disconnect(&mut self, by: ConnectionId) -> Predicted {
        let mut said = Predicted::default();
        let Some(client) = self.clients.get_mut(&by) else { return said };
        client.watches = None;
        self.waiting.retain(|waiting| waiting.by != by);
        let client = self.client(by);
        if let Some(Unfinished { purpose: Purpose::Give(gifts, _), .. }) = client.unfinished.take()
        {
            said.closed.extend(gifts.iter().map(|gift| gift.fd.fd));
        }
        let ends = self.kept.values().filter(|item| item.ephemeral_of == Some(by));
        let ends = ends.map(|item| (item.entry.name.clone(), Change::Closed)).collect();
        self.end(ends, &mut said);
        let names = self.clients[&by].own.keys().cloned().collect();
        self.clients.get_mut(&by).into_iter().for_each(|client| client.in_transaction = false);
        self.release(by, names, &mut said);
        self.clients.remove(&by);
        let ended = self.done.iter_mut().filter(|done| done.by == by);
        ended.for_each(|done| done.until_usec = Some(self.now_usec + 60_000_000));
        said
    }

    pub(crate) fn call(&mut self, by: ConnectionId, call: Call<Inspected<u64>>) -> Predicted {
        let mut said = Predicted::default();
        self.client(by).idle_since = None;
        let Some(call) = self.unless_failed(by, call, &mut said) else { return said };
        let Some(call) = self.unless_done(by, call, &mut said) else { return said };
        let outcome = match call {
            Call::Give { gifts, clash, ticket: _ } => self.give(by, gifts, clash, &mut said),
            Call::Take { names, taking, timeout_usec } => {
                match self.take(by, &names, taking, &mut said) {
                    Err(Refusal::NotFound { .. } | Refusal::Busy { .. }) if timeout_usec > 0 => {
                        let more = Usage { waits: names.len() as u64, ..Usage::default() };
                        self.check_quota(&self.clients[&by].who, more).map(|()| {
                            let until_usec = self.now_usec + timeout_usec;
                            self.waiting.push(Waiting { by, names, taking, until_usec });
                        })
                    }
                    outcome => outcome,
                }
            }
            Call::Close { names, ticket: _ } => self.close(by, names, &mut said),
            Call::Reopen { reopenings } => self.reopen(by, &reopenings, &mut said),
            Call::Begin => self.begin(by, &mut said),
            Call::Commit { ticket: _ } => self.commit(by, &mut said),
            Call::Rollback => self.roll_back(by, &mut said),
            Call::List { .. } => {
                said.say(by, Said::Listing);
                Ok(())
            }
            Call::Watch { pattern } => {
                let more = Usage { watches: 1, ..Usage::default() };
                self.check_quota(&self.clients[&by].who, more).map(|()| {
                    self.client(by).watches = Some(pattern);
                    said.answer(by, Reply::Notice(Notice::Standing));
                })
            }
            Call::ExplainPolicy { .. } => panic!("what it says is told by tests/policy.rs"),
            Call::GetStatistics => {
                said.answer(by, Reply::Statistics(self.statistics()));
                Ok(())
            }
        };
        if let Err(refusal) = outcome {
            self.refuse(by, refusal, &mut said);
        }
        said
    }

    /// Finds out whether somebody may hold all these names, and those that it holds, at once.
    fn check_names<'a>(
        &'a self,
        by: ConnectionId,
        names: impl IntoIterator<Item = &'a Name>,
    ) -> Result<(), Refusal> {
        let client = &self.clients[&by];
        let all: BTreeSet<&Name> = client.own.keys().chain(names).collect();
        let most = reference::quota(&self.limits, &self.rules, &client.who).names;
        if all.len() > client.own.len() && all.len() as u64 > most {
            let (limit, value) = ("namesPerTransaction".into(), most as i64);
            return Err(Refusal::LimitExceeded { limit, value });
        }
        Ok(())
    }

    /// Refuses all that a transaction wants that was rolled back, until its client knows.
    fn unless_failed(
        &mut self,
        by: ConnectionId,
        call: Call<Inspected<u64>>,
        said: &mut Predicted,
    ) -> Option<Call<Inspected<u64>>> {
        if !self.client(by).has_failed {
            return Some(call);
        }
        let was = "the transaction was idle for too long, and was rolled back: ";
        let (is_over, then) = match call {
            Call::Commit { .. } => (true, "none is open now, begin again"),
            Call::Rollback => (true, ""),
            Call::Give { .. }
            | Call::Take { .. }
            | Call::Close { .. }
            | Call::Reopen { .. }
            | Call::Begin
            | Call::List { .. }
            | Call::Watch { .. }
            | Call::GetStatistics
            | Call::ExplainPolicy { .. } => (false, "call Rollback, and begin again"),
        };
        self.client(by).has_failed = !is_over;
        if then.is_empty() {
            said.answer(by, Reply::Done);
        } else {
            self.refuse(by, Refusal::TransactionState { reason: format!("{was}{then}") }, said);
        }
        if let Call::Give { gifts, .. } = call {
            said.closed.extend(gifts.iter().map(|gift| gift.fd.fd));
        }
        None
    }

    /// Answers what was done before as it was then, and takes note of the ticket of what was not.
    fn unless_done(
        &mut self,
        by: ConnectionId,
        call: Call<Inspected<u64>>,
        said: &mut Predicted,
    ) -> Option<Call<Inspected<u64>>> {
        let (uid, now_usec) = (self.clients[&by].who.peer.uid, self.now_usec);
        let in_transaction = self.clients[&by].in_transaction;
        let is_commit = matches!(call, Call::Commit { .. });
        let counts = uid != UNMAPPED && (is_commit || !in_transaction);
        let ticket = call.ticket().filter(|_| counts).cloned();
        self.client(by).ticket = ticket.clone();
        self.done.retain(|done| done.until_usec.is_none_or(|usec| now_usec < usec));
        let done = self.done.iter().find(|it| it.uid == uid && Some(&it.ticket) == ticket.as_ref());
        let Some(done) = done else { return Some(call) };
        let replaced = done.replaced.clone();
        said.is_repeated = true;
        if in_transaction {
            let reason = "the ticket is of another call, which was done before".into();
            self.refuse(by, Refusal::TransactionState { reason }, said);
        } else if let Call::Give { gifts, .. } = call {
            said.answer(by, Reply::Given { replaced });
            said.closed.extend(gifts.iter().map(|gift| gift.fd.fd));
        } else {
            said.answer(by, Reply::Done);
        }
        None
    }

    pub(crate) fn opened(
        &mut self,
        by: ConnectionId,
        files: Vec<Vec<Inspected<u64>>>,
    ) -> Predicted {
        let mut said = Predicted::default();
        self.opens.retain(|(opening, _)| *opening != by);
        let unfinished = self.clients.get_mut(&by).and_then(|client| client.unfinished.take());
        let Some(Unfinished { purpose, names, .. }) = unfinished else {
            said.closed.extend(files.into_iter().flatten().map(|file| file.fd));
            return said;
        };
        match purpose {
            Purpose::Give(gifts, replaced) => {
                let fresh = files.into_iter().flatten();
                self.keep(by, gifts, replaced, fresh, &mut said);
            }
            Purpose::Copy => {
                self.counted.copied += names.len() as u64;
                let fds = files.iter().flatten().map(|file| file.fd);
                said.hand_over(by, names.iter().cloned().zip(fds));
            }
            Purpose::Reopen => {
                let mut lent = Vec::new();
                for (name, copies) in names.iter().zip(&files) {
                    let [kept, other] = copies.as_slice() else { panic!("two of each") };
                    lent.push((name.clone(), other.fd));
                    self.put_anew(by, name, kept, &mut said);
                }
                said.handed_over = lent.iter().map(|(_, fd)| *fd).collect();
                self.finish(by, names, handed(lent), &mut said);
            }
            Purpose::Leave => panic!("nothing was to be opened"),
        }
        said
    }

    pub(crate) fn not_opened(
        &mut self,
        by: ConnectionId,
        name: &Name,
        failure: &OpenFailure,
    ) -> Predicted {
        let mut said = Predicted::default();
        self.opens.retain(|(opening, _)| *opening != by);
        let unfinished = self.clients.get_mut(&by).and_then(|client| client.unfinished.take());
        let Some(Unfinished { purpose, newly, .. }) = unfinished else { return said };
        if let Purpose::Give(gifts, _) = purpose {
            said.closed.extend(gifts.iter().map(|gift| gift.fd.fd));
        }
        let refusal = Refusal::ReopenFailed {
            name: name.as_str().into(),
            errno: failure.errno,
            errno_name: failure.errno_name.clone(),
            message: failure.message.clone(),
        };
        self.refuse(by, refusal, &mut said);
        self.release(by, newly, &mut said);
        said
    }

    pub(crate) fn sent(&mut self, by: ConnectionId) -> Predicted {
        let mut said = Predicted::default();
        if let Some(Unfinished { names, .. }) = self.client(by).unfinished.take() {
            self.write_back(by, names, None, &mut said);
        }
        said
    }

    pub(crate) fn unsent(&mut self, by: ConnectionId) -> Predicted {
        let mut said = Predicted::default();
        if let Some(Unfinished { names, .. }) = self.client(by).unfinished.take() {
            self.release(by, names, &mut said);
        }
        said
    }

    pub(crate) fn hung_up(&mut self, fd: u64) -> Predicted {
        let mut said = Predicted::default();
        let it = self.kept.values().find(|item| item.fd == fd && item.close_on_hangup);
        let ends = it.map(|item| (item.entry.name.clone(), Change::HungUp));
        self.end(ends.into_iter().collect(), &mut said);
        said
    }

    pub(crate) fn pointed(&mut self, pointed: &Pointed) -> Predicted {
        let mut said = Predicted::default();
        if self.is_held(&pointed.name) {
            return said;
        }
        if let Some(item) = self.kept.get_mut(&pointed.name) {
            item.entry.target = Some(pointed.target.clone().into());
            said.records.push(self.recorded(Vec::new(), None));
        }
        said
    }

    pub(crate) fn tick(&mut self) -> Predicted {
        let mut said = Predicted::default();
        let now_usec = self.now_usec;
        let idle = self.clients.keys().filter_map(|id| Some((self.idle_until(*id)?, *id)));
        let idle: BTreeSet<_> = idle.filter(|(usec, _)| *usec <= now_usec).collect();
        let (mut ended, waiting): (Vec<_>, Vec<_>) =
            mem::take(&mut self.waiting).into_iter().partition(|it| it.until_usec <= now_usec);
        self.waiting = waiting;
        ended.sort_by_key(|waiting| (waiting.until_usec, waiting.by));
        for Waiting { by, names, taking, .. } in ended {
            let Err(refusal) = self.take(by, &names, taking, &mut said) else {
                panic!("it would have been served before")
            };
            self.refuse(by, refusal, &mut said);
        }
        let due = |item: &&Item| item.expires_usec.is_some_and(|usec| usec <= now_usec);
        let expired = self.kept.values().filter(due);
        let expired: Vec<_> = expired.filter(|item| !self.overdue.contains(&item.fd)).collect();
        let ends = expired.iter().map(|item| (item.entry.name.clone(), Change::Expired)).collect();
        self.overdue.extend(expired.iter().map(|item| item.fd).collect::<Vec<_>>());
        self.end(ends, &mut said);
        for (_, by) in idle {
            let client = self.client(by);
            (client.in_transaction, client.has_failed) = (false, true);
            let names = client.own.keys().cloned().collect();
            self.release(by, names, &mut said);
        }
        said
    }

    /// Ends a step: whoever has a transaction and no call in progress, is idle since now, if not before.
    pub(crate) fn rest(&mut self) {
        let waiting: BTreeSet<_> = self.waiting.iter().map(|waiting| waiting.by).collect();
        for (id, client) in &mut self.clients {
            let is_busy = client.unfinished.is_some() || waiting.contains(id);
            let is_idle = client.in_transaction && !is_busy;
            client.idle_since = is_idle.then(|| client.idle_since.unwrap_or(self.now_usec));
        }
    }

    /// When a transaction has been idle for too long.
    fn idle_until(&self, by: ConnectionId) -> Option<u64> {
        let client = &self.clients[&by];
        let most = reference::quota(&self.limits, &self.rules, &client.who).idle_usec;
        if most == u64::MAX { None } else { Some(client.idle_since? + most) }
    }

    /// Other rules are in force, and all who wait have another try.
    pub(crate) fn set_rules(&mut self, rules: Rules) -> Predicted {
        let mut said = Predicted::default();
        self.rules = rules;
        self.try_all_again(&mut said);
        said
    }

    /// All is written down anew.
    pub(crate) fn rewrite(&mut self) {
        for done in &mut self.done {
            done.written_usec = done.until_usec.unwrap_or(done.written_usec);
        }
    }

    /// Goes on from what is written down. Nobody holds anything, and nobody notices.
    pub(crate) fn upgrade(&mut self) -> Predicted {
        for done in &mut self.done {
            done.until_usec = done.until_usec.map(|_| done.written_usec);
        }
        let Statistics { max_entries, restores, .. } = self.counted;
        let counted = Self::new(self.limits).counted;
        let given = self.kept.len() as u64;
        // It is idle anew.
        self.clients.values_mut().for_each(|client| client.idle_since = None);
        self.opens.clear();
        self.counted = Statistics { max_entries, restores: restores + 1, given, ..counted };
        Predicted::default()
    }

    /// What a connection may see.
    pub(crate) fn entries_of(&self, by: ConnectionId) -> Entries {
        let Some(client) = self.clients.get(&by) else { return Vec::new() };
        let names: BTreeSet<_> = self.kept.keys().chain(client.own.keys()).collect();
        let items = names.into_iter().filter_map(|name| self.view(by, name));
        let known = items.filter(|item| self.lists(&client.who, item));
        let show = |item: &Item| {
            let holder = self.holder(&item.entry.name).map(|id| self.clients[&id].who.peer);
            let entry = shown(Entry { held_by: holder, ..item.entry.clone() });
            let asks = client.who.peer.uid;
            let is_told = asks == 0 || (asks == entry.giver.uid && asks != UNMAPPED);
            let entry = Entry {
                share: is_told.then(|| item.share.clone()),
                ephemeral: is_told.then_some(item.ephemeral_of.is_some()),
                close_on_hangup: is_told.then_some(item.close_on_hangup),
                ..entry
            };
            (entry, item.fd)
        };
        known.map(show).collect()
    }

    pub(crate) fn statistics(&self) -> Statistics {
        Statistics {
            entries: self.kept.len() as u64,
            connections: self.clients.len() as u64,
            transactions: self.clients.values().filter(|client| client.in_transaction).count()
                as u64,
            ..self.counted
        }
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        let items = self.kept.values().filter(|item| !self.overdue.contains(&item.fd));
        let expiries = items.filter_map(|item| item.expires_usec);
        let idle = self.clients.keys().filter_map(|id| self.idle_until(*id));
        expiries.chain(self.waiting.iter().map(|waiting| waiting.until_usec)).chain(idle).min()
    }

    /// Whether somebody holds a name.
    pub(crate) fn is_held(&self, name: &Name) -> bool {
        self.holder(name).is_some()
    }

    pub(crate) fn polled(&self) -> BTreeSet<u64> {
        self.kept.values().filter(|item| item.close_on_hangup).map(|item| item.fd).collect()
    }

    /// All that is held: kept, staged, or given by a call that is not finished.
    pub(crate) fn held(&self) -> BTreeSet<u64> {
        let clients = || self.clients.values();
        let staged =
            clients().flat_map(|client| client.own.values()).filter_map(|own| own.item.as_ref());
        let unfinished = clients().filter_map(|client| client.unfinished.as_ref());
        let given = unfinished.flat_map(|unfinished| match &unfinished.purpose {
            Purpose::Give(gifts, _) => gifts.as_slice(),
            Purpose::Copy | Purpose::Reopen | Purpose::Leave => &[],
        });
        let items = self.kept.values().chain(staged).map(|item| item.fd);
        items.chain(given.map(|gift| gift.fd.fd)).collect()
    }

    /// The places taken, by descriptors kept, staged and to be staged, and by connections.
    fn places(&self) -> usize {
        self.descriptors() + self.clients.len()
    }

    fn descriptors(&self) -> usize {
        let clients = || self.clients.values();
        let staged =
            clients().flat_map(|client| client.own.values()).filter_map(|own| own.item.as_ref());
        let items: BTreeSet<_> = self.kept.values().chain(staged).map(|item| item.fd).collect();
        let unfinished = clients().filter_map(|client| client.unfinished.as_ref());
        items.len() + unfinished.map(|unfinished| unfinished.room).sum::<usize>()
    }

    /// What every user has who has anything, counted anew.
    pub(crate) fn usage(&self) -> BTreeMap<u32, Usage> {
        let mut all = self.usage_under(self.standings());
        let mut of = |uid: u32, count: &dyn Fn(&mut Usage)| count(all.entry(uid).or_default());
        for client in self.clients.values() {
            let uid = client.who.peer.uid;
            of(uid, &|usage| usage.connections += 1);
            of(uid, &|usage| usage.watches += u64::from(client.watches.is_some()));
            of(uid, &|usage| usage.transactions += u64::from(client.in_transaction));
            let promised = client.unfinished.as_ref().map(|unfinished| unfinished.promised);
            of(uid, &|usage| *usage = sum(*usage, promised.unwrap_or_default()));
        }
        for waiting in &self.waiting {
            let uid = self.clients[&waiting.by].who.peer.uid;
            of(uid, &|usage| usage.waits += waiting.names.len() as u64);
        }
        for (_, uid) in &self.opens {
            of(*uid, &|usage| usage.opens += 1);
        }
        all.retain(|_, usage| *usage != Usage::default());
        all
    }

    /// What stands under every name.
    fn standings(&self) -> BTreeMap<Name, Standing> {
        let standing = |name: &Name| {
            let holder = self.holder(name).map(|id| &self.clients[&id]);
            let staged = holder.and_then(|client| client.own[name].item.as_ref());
            Standing {
                kept: self.kept.get(name).map(counted),
                holder: holder.map(|client| client.who.peer.uid),
                staged: staged.filter(|item| !self.is_kept(item)).map(counted),
            }
        };
        self.names().into_iter().map(|name| (name.clone(), standing(name))).collect()
    }

    /// What everybody has by what stands under names: a name counts once for each who has anything to do
    /// with it, with the longest labels; and what stands in for another once more.
    fn usage_under(&self, standings: BTreeMap<Name, Standing>) -> BTreeMap<u32, Usage> {
        let mut all: BTreeMap<u32, Usage> = BTreeMap::new();
        for Standing { kept, holder, staged } in standings.into_values() {
            let mut longest: BTreeMap<u32, u64> = BTreeMap::new();
            for (uid, bytes) in kept.into_iter().chain(staged) {
                let longest = longest.entry(uid).or_default();
                *longest = bytes.max(*longest);
            }
            if let (None, None, Some(holder)) = (kept, staged, holder) {
                longest.insert(holder, 0);
            }
            for (uid, bytes) in longest {
                let usage = all.entry(uid).or_default();
                usage.entries += 1;
                usage.label_bytes += bytes;
            }
            if let (Some(_), Some((_, bytes)), Some(holder)) = (kept, staged, holder) {
                let usage = all.entry(holder).or_default();
                usage.staged += 1;
                usage.staged_label_bytes += bytes;
            }
        }
        all
    }

    /// What somebody has by what stands under names, when it has changed some of that.
    fn usage_then(&self, by: ConnectionId, items: &[(Name, (u32, u64))]) -> Usage {
        let Client { who, in_transaction, .. } = &self.clients[&by];
        let mut standings = self.standings();
        for (name, item) in items {
            let before = standings.remove(name);
            let kept = before.and_then(|before| before.kept).filter(|_| *in_transaction);
            let staged = Some(*item);
            let then = if *in_transaction {
                Standing { kept, holder: Some(who.peer.uid), staged }
            } else {
                Standing { kept: staged, holder: None, staged: None }
            };
            standings.insert(name.clone(), then);
        }
        self.usage_under(standings).get(&who.peer.uid).copied().unwrap_or_default()
    }

    /// The same, as it is.
    fn usage_now(&self, by: ConnectionId) -> Usage {
        let uid = self.clients[&by].who.peer.uid;
        self.usage_under(self.standings()).get(&uid).copied().unwrap_or_default()
    }

    fn check_quota(&self, who: &Who, more: Usage) -> Result<(), Refusal> {
        let quota = reference::quota(&self.limits, &self.rules, who);
        let now = self.usage().get(&who.peer.uid).copied().unwrap_or_default();
        let then = sum(now, more);
        for (limit, more, then, most) in [
            ("entriesPerUser", more.entries, then.entries, quota.entries),
            ("entriesPerUser", more.staged, then.staged, quota.entries),
            ("labelBytesPerUser", more.label_bytes, then.label_bytes, quota.label_bytes),
            (
                "labelBytesPerUser",
                more.staged_label_bytes,
                then.staged_label_bytes,
                quota.label_bytes,
            ),
            ("connectionsPerUser", more.connections, then.connections, quota.connections),
            ("waitsPerUser", more.waits, then.waits, quota.waits),
            ("watchesPerUser", more.watches, then.watches, quota.watches),
            ("transactionsPerUser", more.transactions, then.transactions, quota.transactions),
            ("opensPerUser", more.opens, then.opens, quota.opens),
        ] {
            if more > 0 && then > most {
                return Err(limit_exceeded(limit, most as usize));
            }
        }
        Ok(())
    }

    fn check_open(&self, who: &Who) -> Result<(), Refusal> {
        self.check_quota(who, Usage { opens: 1, ..Usage::default() })?;
        let most = self.limits_of(who).opens;
        if self.opens.len() >= most { Err(limit_exceeded("opens", most)) } else { Ok(()) }
    }

    /// The limits, without what is for others.
    fn limits_of(&self, who: &Who) -> Limits {
        reference::limits(&self.limits, who)
    }

    /// Has files opened for somebody.
    fn open(
        &mut self,
        by: ConnectionId,
        files: Vec<Name>,
        unfinished: Unfinished,
        said: &mut Predicted,
    ) {
        said.openings.push((by, files));
        let uid = self.clients[&by].who.peer.uid;
        self.opens.push((by, uid));
        self.client(by).unfinished = Some(unfinished);
    }

    fn names(&self) -> BTreeSet<&Name> {
        let own = self.clients.values().flat_map(|client| client.own.keys());
        self.kept.keys().chain(own).collect()
    }

    fn give(
        &mut self,
        by: ConnectionId,
        gifts: Vec<Gift<Inspected<u64>>>,
        clash: Clash,
        said: &mut Predicted,
    ) -> Result<(), Refusal> {
        let checked = self.check(by, &gifts, clash);
        let (room, then, openings) = match checked {
            Ok(checked) => checked,
            Err(refusal) => {
                said.closed.extend(gifts.iter().map(|gift| gift.fd.fd));
                return Err(refusal);
            }
        };
        let names: Vec<_> = gifts.iter().map(|gift| gift.name.clone()).collect();
        let there = |name: &&Name| self.view(by, name).is_some();
        let replaced = names.iter().filter(there).cloned().collect();
        let newly = self.hold(by, &names);
        if openings.is_empty() {
            self.keep(by, gifts, replaced, [].into_iter(), said);
        } else {
            let purpose = Purpose::Give(gifts, replaced);
            let promised = left(then, self.usage_now(by));
            self.open(by, openings, Unfinished { purpose, names, newly, room, promised }, said);
        }
        Ok(())
    }

    /// How much room a Give needs, what its user has when it is done, and for which of its names something
    /// is opened.
    fn check(
        &self,
        by: ConnectionId,
        gifts: &[Gift<Inspected<u64>>],
        clash: Clash,
    ) -> Result<(usize, Usage, Vec<Name>), Refusal> {
        let client = &self.clients[&by];
        let mut openings = Vec::new();
        for (at, gift) in gifts.iter().enumerate() {
            if reference::is_kept_from(&self.rules, &client.who, &gift.name) {
                return Err(denied(&gift.name, "give"));
            }
            if let Some(old) = self.find(by, &gift.name, Verb::Give)? {
                let verdict = self.verdict(&client.who, Verb::Give, old);
                if clash == Clash::Refuse && verdict != Verdict::Hidden {
                    return Err(Refusal::AlreadyExists { name: gift.name.as_str().into() });
                }
                if verdict != Verdict::Allowed {
                    return Err(denied(&gift.name, "give"));
                }
            }
            let facts = &gift.fd.facts;
            if gift.fresh && facts.kind != Kind::Regular && facts.kind != Kind::Block {
                return Err(Refusal::InvalidParameter {
                    parameter: format!("entries[{at}].fresh"),
                });
            }
            if gift.may_reopen.is_some_and(|most| !facts.access.covers(most)) {
                if facts.kind == Kind::Fifo {
                    return Err(denied(&gift.name, "reopen"));
                }
                openings.push(gift.name.clone());
            }
            openings.extend(gift.fresh.then(|| gift.name.clone()));
        }
        self.check_names(by, gifts.iter().map(|gift| &gift.name))?;
        let needs = |gift: &&Gift<Inspected<u64>>| match self.view(by, &gift.name) {
            Some(old) if client.in_transaction => self.is_kept(old),
            Some(_) => false,
            None => true,
        };
        let room = gifts.iter().filter(needs).count();
        let names: BTreeSet<_> =
            self.names().into_iter().chain(gifts.iter().map(|g| &g.name)).collect();
        let item = |gift: &Gift<Inspected<u64>>| {
            (gift.name.clone(), (client.who.peer.uid, bytes_of(&gift.labels, &gift.share)))
        };
        let then = self.usage_then(by, &gifts.iter().map(item).collect::<Vec<_>>());
        self.check_quota(&client.who, left(then, self.usage_now(by)))?;
        let Limits { entries, places, .. } = self.limits_of(&client.who);
        if names.len() > self.names().len().max(entries) {
            return Err(limit_exceeded("entries", entries));
        }
        if room > 0 && self.places() + room > places {
            return Err(limit_exceeded("descriptors", places));
        }
        if !openings.is_empty() {
            self.check_open(&client.who)?;
        }
        Ok((room, then, openings))
    }

    fn keep(
        &mut self,
        by: ConnectionId,
        gifts: Vec<Gift<Inspected<u64>>>,
        replaced: Vec<Name>,
        mut fresh: impl Iterator<Item = Inspected<u64>>,
        said: &mut Predicted,
    ) {
        let mut names = Vec::new();
        for gift in gifts {
            let mut sent = gift.fd.clone();
            if gift.fresh {
                said.closed.insert(sent.fd);
                let opened = fresh.next().expect("one for each");
                sent.fd = opened.fd;
                sent.facts = fdstash_stash::Facts { target: sent.facts.target, ..opened.facts };
            }
            let item = self.item(by, &gift, sent);
            self.put(by, &gift.name, Some(item), said);
            names.push(gift.name);
        }
        self.finish(by, names, Reply::Given { replaced }, said);
    }

    fn item(
        &mut self,
        by: ConnectionId,
        gift: &Gift<Inspected<u64>>,
        sent: Inspected<u64>,
    ) -> Item {
        self.lines += 1;
        let Inspected { fd, facts } = sent;
        let wall_usec = BOOTED_AT_USEC + self.now_usec;
        let entry = Entry {
            name: gift.name.clone(),
            kind: facts.kind,
            access: facts.access,
            flags: facts.flags,
            drifted: Flags::NONE,
            may_reopen: gift.may_reopen.unwrap_or(facts.access),
            target: facts.target.as_deref().map(Into::into),
            device: facts.device,
            inode: facts.inode,
            giver: self.clients[&by].who.peer,
            given_at_usec: wall_usec,
            expires_at_usec: gift.expire_usec.map(|usec| wall_usec + usec),
            revision: 0,
            held_by: None,
            labels: gift.labels.clone(),
            share: None,
            ephemeral: None,
            close_on_hangup: None,
        };
        Item {
            fd,
            line: self.lines,
            entry,
            share: gift.share.clone(),
            expires_usec: gift.expire_usec.map(|usec| self.now_usec + usec),
            ephemeral_of: gift.ephemeral.then_some(by),
            close_on_hangup: gift.close_on_hangup,
        }
    }

    fn take(
        &mut self,
        by: ConnectionId,
        names: &[Name],
        taking: Taking,
        said: &mut Predicted,
    ) -> Result<(), Refusal> {
        let mut lent = Vec::new();
        for name in names {
            let verb = if taking == Taking::Move { Verb::Take } else { Verb::Copy };
            lent.push((name.clone(), self.existing(by, name, verb)?.fd));
        }
        let in_transaction = self.clients[&by].in_transaction;
        let holds = in_transaction || taking == Taking::Move;
        if holds {
            self.check_names(by, names)?;
        }
        if taking == Taking::Fresh && !names.is_empty() {
            self.check_open(&self.clients[&by].who)?;
        }
        let newly = if holds { self.hold(by, names) } else { Vec::new() };
        let unfinished = |purpose| {
            let promised = Usage::default();
            Unfinished { purpose, names: names.to_vec(), newly, room: 0, promised }
        };
        match taking {
            Taking::Move => {
                for name in names {
                    let line = self.view(by, name).map(|item| item.line);
                    self.put(by, name, None, said);
                    self.own(by, name).taken = line;
                }
                if in_transaction {
                    said.answer(by, handed(lent));
                } else {
                    said.say(by, Said::ToConfirm(handed(lent)));
                    self.client(by).unfinished = Some(unfinished(Purpose::Leave));
                }
            }
            Taking::Fresh if !names.is_empty() => {
                self.open(by, names.to_vec(), unfinished(Purpose::Copy), said);
            }
            Taking::Copy | Taking::Fresh => {
                self.counted.copied += names.len() as u64;
                said.answer(by, handed(lent));
            }
        }
        Ok(())
    }

    fn close(
        &mut self,
        by: ConnectionId,
        names: Vec<Name>,
        said: &mut Predicted,
    ) -> Result<(), Refusal> {
        for name in &names {
            self.existing(by, name, Verb::Close)?;
        }
        self.check_names(by, &names)?;
        self.hold(by, &names);
        for name in &names {
            self.put(by, name, None, said);
            self.own(by, name).taken = None;
        }
        self.finish(by, names, Reply::Done, said);
        Ok(())
    }

    fn reopen(
        &mut self,
        by: ConnectionId,
        reopenings: &[Reopening],
        said: &mut Predicted,
    ) -> Result<(), Refusal> {
        for wanted in reopenings {
            let verb = if wanted.path.is_some() { Verb::ReopenByPath } else { Verb::Reopen };
            let item = self.existing(by, &wanted.name, verb)?;
            let who = &self.clients[&by].who;
            let leads = |path| reference::may_open_at(&self.rules, who, &wanted.name, path);
            if wanted.path.as_deref().is_some_and(|path| !leads(path)) {
                return Err(denied(&wanted.name, verb.as_str()));
            }
            let Entry { access, kind, may_reopen, .. } = item.entry;
            let then = wanted.access.unwrap_or(access);
            let more = wanted.hand_out.is_some_and(|handed| !then.covers(handed));
            if more || !may_reopen.covers(then) || (kind == Kind::Fifo && !access.covers(then)) {
                return Err(denied(&wanted.name, "reopen"));
            }
        }
        let names: Vec<_> = reopenings.iter().map(|wanted| wanted.name.clone()).collect();
        self.check_names(by, &names)?;
        if names.is_empty() {
            said.answer(by, handed(Vec::new()));
            return Ok(());
        }
        let in_transaction = self.clients[&by].in_transaction;
        let needs =
            |name: &&Name| in_transaction && self.view(by, name).is_some_and(|it| self.is_kept(it));
        let room = names.iter().filter(needs).count();
        let item = |name: &Name| Some((name.clone(), counted(self.view(by, name)?)));
        let items: Vec<_> = names.iter().filter_map(item).collect();
        let then = self.usage_then(by, &items);
        let who = &self.clients[&by].who;
        self.check_quota(who, left(then, self.usage_now(by)))?;
        let places = self.limits_of(who).places;
        if room > 0 && self.places() + room > places {
            return Err(limit_exceeded("descriptors", places));
        }
        self.check_open(who)?;
        let newly = self.hold(by, &names);
        let promised = left(then, self.usage_now(by));
        let (purpose, files) = (Purpose::Reopen, names.clone());
        self.open(by, files, Unfinished { purpose, names, newly, room, promised }, said);
        Ok(())
    }

    fn put_anew(
        &mut self,
        by: ConnectionId,
        name: &Name,
        opened: &Inspected<u64>,
        said: &mut Predicted,
    ) {
        let Some(old) = self.view(by, name).cloned() else { panic!("it is held") };
        let Inspected { fd, facts } = opened.clone();
        let (access, flags, inode) = (facts.access, facts.flags, facts.inode);
        let was = old.entry.clone();
        // By path it is another file, which stands elsewhere.
        let target = if inode == was.inode { was.target } else { facts.target.map(Into::into) };
        let entry = Entry { access, flags, inode, target, ..old.entry.clone() };
        self.put(by, name, Some(Item { fd, entry, ..old }), said);
    }

    fn begin(&mut self, by: ConnectionId, said: &mut Predicted) -> Result<(), Refusal> {
        let client = &self.clients[&by];
        if client.in_transaction {
            let reason = "a transaction is open on this connection already".into();
            return Err(Refusal::TransactionState { reason });
        }
        self.check_quota(&client.who, Usage { transactions: 1, ..Usage::default() })?;
        self.client(by).in_transaction = true;
        said.answer(by, Reply::Done);
        Ok(())
    }

    fn commit(&mut self, by: ConnectionId, said: &mut Predicted) -> Result<(), Refusal> {
        let names = self.end_transaction(by)?;
        self.write_back(by, names, Some(Reply::Done), said);
        Ok(())
    }

    fn roll_back(&mut self, by: ConnectionId, said: &mut Predicted) -> Result<(), Refusal> {
        let names = self.end_transaction(by)?;
        said.answer(by, Reply::Done);
        self.release(by, names, said);
        Ok(())
    }

    fn end_transaction(&mut self, by: ConnectionId) -> Result<Vec<Name>, Refusal> {
        let client = self.client(by);
        if !mem::replace(&mut client.in_transaction, false) {
            let reason = "no transaction is open on this connection".into();
            return Err(Refusal::TransactionState { reason });
        }
        Ok(client.own.keys().cloned().collect())
    }

    /// What somebody sees under a name, if nobody else holds it.
    fn find(&self, by: ConnectionId, name: &Name, verb: Verb) -> Result<Option<&Item>, Refusal> {
        let Some(holder) = self.holder(name).filter(|holder| *holder != by) else {
            return Ok(self.view(by, name));
        };
        let (who, holder) = (&self.clients[&by].who, &self.clients[&holder]);
        let held = self.kept.get(name).into_iter().chain(&holder.own[name].item);
        let held: Vec<_> = held.collect();
        let held_by = holder.who.peer;
        let known = if held.is_empty() {
            who.peer.uid == 0 || (who.peer.uid == held_by.uid && held_by.uid != UNMAPPED)
        } else {
            held.iter().any(|item| self.verdict(who, Verb::List, item) != Verdict::Hidden)
        };
        match verb {
            _ if known => Err(Refusal::Busy { name: name.as_str().into(), held_by }),
            Verb::Give => Err(denied(name, "give")),
            Verb::Take
            | Verb::Copy
            | Verb::Close
            | Verb::Reopen
            | Verb::ReopenByPath
            | Verb::List => Err(Refusal::NotFound { name: name.as_str().into() }),
        }
    }

    fn existing(&self, by: ConnectionId, name: &Name, verb: Verb) -> Result<&Item, Refusal> {
        let item = self.find(by, name, verb)?;
        let who = &self.clients[&by].who;
        match item.map(|item| (item, self.verdict(who, verb, item))) {
            Some((item, Verdict::Allowed)) => Ok(item),
            Some((_, Verdict::Denied)) => Err(denied(name, verb.as_str())),
            Some((_, Verdict::Hidden)) | None => {
                Err(Refusal::NotFound { name: name.as_str().into() })
            }
        }
    }

    fn verdict(&self, who: &Who, verb: Verb, item: &Item) -> Verdict {
        let giver = item.entry.giver.uid;
        reference::verdict(&self.rules, who, verb, &item.entry.name, giver, &item.share)
    }

    /// Whether somebody may know of something.
    fn lists(&self, who: &Who, item: &Item) -> bool {
        self.verdict(who, Verb::List, item) == Verdict::Allowed
    }

    fn view(&self, by: ConnectionId, name: &Name) -> Option<&Item> {
        match self.clients.get(&by).and_then(|client| client.own.get(name)) {
            Some(own) => own.item.as_ref(),
            None => self.kept.get(name),
        }
    }

    fn holder(&self, name: &Name) -> Option<ConnectionId> {
        self.clients.iter().find(|(_, client)| client.own.contains_key(name)).map(|(id, _)| *id)
    }

    fn is_kept(&self, item: &Item) -> bool {
        self.kept.get(&item.entry.name).is_some_and(|kept| kept.fd == item.fd)
    }

    fn client(&mut self, by: ConnectionId) -> &mut Client {
        self.clients.get_mut(&by).expect("it is connected")
    }

    fn own(&mut self, by: ConnectionId, name: &Name) -> &mut Own {
        self.client(by).own.get_mut(name).expect("it is held")
    }

    /// Has somebody hold names; which of them it did not hold before.
    fn hold(&mut self, by: ConnectionId, names: &[Name]) -> Vec<Name> {
        let mut newly = Vec::new();
        for name in names {
            let item = self.kept.get(name).cloned();
            let own = &mut self.client(by).own;
            if !own.contains_key(name) {
                own.insert(name.clone(), Own { item, taken: None });
                newly.push(name.clone());
            }
        }
        newly
    }

    /// Changes what somebody has under a name that it holds.
    fn put(&mut self, by: ConnectionId, name: &Name, item: Option<Item>, said: &mut Predicted) {
        let before = mem::replace(&mut self.own(by, name).item, item);
        said.closed.extend(before.filter(|item| !self.is_kept(item)).map(|item| item.fd));
    }

    fn finish(
        &mut self,
        by: ConnectionId,
        names: Vec<Name>,
        reply: Reply<u64>,
        said: &mut Predicted,
    ) {
        if self.clients[&by].in_transaction {
            said.answer(by, reply);
        } else {
            self.write_back(by, names, Some(reply), said);
        }
    }

    /// Makes what somebody has under these names what is kept there.
    fn write_back(
        &mut self,
        by: ConnectionId,
        names: Vec<Name>,
        reply: Option<Reply<u64>>,
        said: &mut Predicted,
    ) {
        let mut changes = Vec::new();
        for name in &names {
            let Some(Own { item, taken }) = self.client(by).own.remove(name) else { continue };
            let old = self.kept.get(name).cloned();
            let change = match (&old, &item) {
                (None, None) => continue,
                (Some(old), Some(new)) if old.fd == new.fd => continue,
                (Some(old), Some(new)) if old.line == new.line => Change::Reopened,
                (Some(_), Some(_)) => Change::Replaced,
                (None, Some(_)) => Change::Given,
                (Some(old), None) if taken == Some(old.line) => Change::Taken,
                (Some(_), None) => Change::Closed,
            };
            changes.push((name.clone(), item, change));
        }
        let ticket = reply.as_ref().and_then(|reply| self.note_done(by, reply));
        self.record(changes, ticket, said);
        if let Some(reply) = reply {
            said.answer(by, reply);
        }
        self.set_free(&names, said);
    }

    fn note_done(&mut self, by: ConnectionId, reply: &Reply<u64>) -> Option<Ticket> {
        let ticket = self.client(by).ticket.take()?;
        let uid = self.clients[&by].who.peer.uid;
        let replaced =
            if let Reply::Given { replaced } = reply { replaced.clone() } else { vec![] };
        self.done.retain(|done| done.by != by);
        let written_usec = self.now_usec + 60_000_000;
        let ticket_of = ticket.clone();
        self.done.push(Done { by, uid, ticket, replaced, until_usec: None, written_usec });
        Some(ticket_of)
    }

    /// Drops what somebody has under these names.
    fn release(&mut self, by: ConnectionId, names: Vec<Name>, said: &mut Predicted) {
        for name in &names {
            let own = self.client(by).own.remove(name);
            let item = own.and_then(|own| own.item).filter(|item| !self.is_kept(item));
            said.closed.extend(item.map(|item| item.fd));
        }
        self.set_free(&names, said);
    }

    /// Ends entries, at once or when nobody holds them any more.
    fn end(&mut self, ends: Vec<(Name, Change)>, said: &mut Predicted) {
        let mut now = Vec::new();
        for (name, change) in ends {
            if self.holder(&name).is_some() {
                let line = self.kept[&name].line;
                self.doomed.entry(name).or_insert((line, change));
            } else {
                now.push((name, None, change));
            }
        }
        self.record(now, None, said);
    }

    fn set_free(&mut self, names: &[Name], said: &mut Predicted) {
        let mut ends = Vec::new();
        for name in names {
            let Some((line, change)) = self.doomed.remove(name) else { continue };
            if self.kept.get(name).is_some_and(|kept| kept.line == line) {
                ends.push((name.clone(), change));
            }
        }
        self.end(ends, said);
        self.try_all_again(said);
    }

    fn try_all_again(&mut self, said: &mut Predicted) {
        for waiting in mem::take(&mut self.waiting) {
            match self.take(waiting.by, &waiting.names, waiting.taking, said) {
                Ok(()) => {}
                Err(Refusal::NotFound { .. } | Refusal::Busy { .. }) => self.waiting.push(waiting),
                Err(refusal) => self.refuse(waiting.by, refusal, said),
            }
        }
    }

    /// Changes what is kept, all of it at one moment.
    fn record(
        &mut self,
        changes: Vec<(Name, Option<Item>, Change)>,
        ticket: Option<Ticket>,
        said: &mut Predicted,
    ) {
        if changes.is_empty() && ticket.is_none() {
            return;
        }
        self.revision += u64::from(!changes.is_empty());
        let mut told = Vec::new();
        for (name, item, change) in changes {
            let old = self.kept.remove(&name);
            said.closed.extend(old.as_ref().map(|old| old.fd));
            match change {
                Change::Given => self.counted.given += 1,
                Change::Replaced => {
                    self.counted.given += 1;
                    self.counted.closed += 1;
                }
                Change::Taken => self.counted.taken += 1,
                Change::Closed | Change::HungUp => self.counted.closed += 1,
                Change::Reopened => self.counted.reopened += 1,
                Change::Expired => self.counted.expired += 1,
            }
            if let Some(mut item) = item {
                item.entry.revision = self.revision;
                told.extend(self.tell(&item, change, None));
                let hidden = old.filter(|_| change == Change::Replaced);
                told.extend(hidden.and_then(|old| self.tell(&old, Change::Closed, Some(&item))));
                self.kept.insert(name, item);
            } else {
                told.extend(old.and_then(|old| self.tell(&old, change, None)));
            }
        }
        said.records.push(self.recorded(told, ticket));
    }

    fn recorded(&self, told: Vec<Told>, ticket: Option<Ticket>) -> Recorded {
        let lasting = self.kept.iter().filter(|(_, item)| item.ephemeral_of.is_none());
        let lasting = lasting.map(|(name, item)| (name.clone(), item.fd)).collect();
        Recorded { told, ticket, lasting }
    }

    /// What is told of a change, to all who may know, but for those who know what is there instead.
    fn tell(&self, item: &Item, change: Change, instead: Option<&Item>) -> Option<Told> {
        let watching = |client: &&Client| {
            client.watches.as_ref().is_some_and(|pattern| pattern.matches(&item.entry.name))
        };
        let may_know = |client: &&Client| {
            let lists = |item| self.lists(&client.who, item);
            lists(item) && !instead.is_some_and(lists)
        };
        let told = self.clients.iter().filter(|(_, client)| watching(client) && may_know(client));
        let to: Vec<_> = told.map(|(id, _)| *id).collect();
        let entry = shown(Entry { revision: self.revision, ..item.entry.clone() });
        (!to.is_empty()).then_some(Told { to, change, entry, fd: item.fd })
    }

    fn refuse(&mut self, by: ConnectionId, refusal: Refusal, said: &mut Predicted) {
        self.counted.refused += 1;
        said.say(by, Said::Plain(Err(refusal)));
    }
}

impl Predicted {
    fn say(&mut self, to: ConnectionId, what: Said) {
        self.answers.push((self.records.len(), to, what));
    }

    fn answer(&mut self, to: ConnectionId, reply: Reply<u64>) {
        self.say(to, Said::Plain(Ok(reply)));
    }

    fn hand_over(&mut self, to: ConnectionId, fds: impl Iterator<Item = (Name, u64)>) {
        let fds: Vec<_> = fds.collect();
        self.handed_over.extend(fds.iter().map(|(_, fd)| *fd));
        self.answer(to, handed(fds));
    }
}

fn handed(fds: Vec<(Name, u64)>) -> Reply<u64> {
    Reply::Handed(fds.into_iter().map(|(name, fd)| Handed { name, fd }).collect())
}

fn denied(name: &Name, verb: &str) -> Refusal {
    Refusal::AccessDenied { name: name.as_str().into(), verb: verb.into() }
}

fn limit_exceeded(limit: &str, value: usize) -> Refusal {
    Refusal::LimitExceeded { limit: limit.into(), value: value as i64 }
}

/// What stands under a name: by whom it was given, with how many bytes of labels.
struct Standing {
    kept: Option<(u32, u64)>,
    holder: Option<u32>,
    staged: Option<(u32, u64)>,
}

fn counted(item: &Item) -> (u32, u64) {
    (item.entry.giver.uid, bytes_of(&item.entry.labels, &item.share))
}

fn bytes_of(labels: &Labels, share: &Share) -> u64 {
    let texts = labels.iter().flat_map(|(key, note)| [key, note]);
    let ids = share.uids.len() + share.gids.len();
    (texts.map(String::len).sum::<usize>() + 4 * ids) as u64
}

fn sum(one: Usage, other: Usage) -> Usage {
    Usage {
        entries: one.entries + other.entries,
        label_bytes: one.label_bytes + other.label_bytes,
        staged: one.staged + other.staged,
        staged_label_bytes: one.staged_label_bytes + other.staged_label_bytes,
        connections: one.connections + other.connections,
        waits: one.waits + other.waits,
        watches: one.watches + other.watches,
        transactions: one.transactions + other.transactions,
        opens: one.opens + other.opens,
    }
}

/// What somebody has more by names than before.
fn left(then: Usage, before: Usage) -> Usage {
    Usage {
        entries: then.entries.saturating_sub(before.entries),
        label_bytes: then.label_bytes.saturating_sub(before.label_bytes),
        staged: then.staged.saturating_sub(before.staged),
        staged_label_bytes: then.staged_label_bytes.saturating_sub(before.staged_label_bytes),
        ..Usage::default()
    }
}
