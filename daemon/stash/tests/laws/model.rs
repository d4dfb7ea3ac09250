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
    Call, Change, Clash, Entry, Flags, Gift, Handed, Keeper, Kind, Name, Notice, Pattern, Refusal,
    Reopening, Reply, Share, Statistics, Taking, Ticket,
};
use fdstash_stash::{ConnectionId, Inspected, Limits, OpenFailure, Rules, Verb, Verdict, Who};

use super::{
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
        if self.clients.len() >= self.limits.connections {
            return Some(limit_exceeded("connections", self.limits.connections));
        }
        if self.places() >= self.limits.places {
            return Some(limit_exceeded("descriptors", self.limits.places));
        }
        let client = Client {
            who: who.clone(),
            in_transaction: false,
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
        let Some(call) = self.unless_done(by, call, &mut said) else { return said };
        let outcome = match call {
            Call::Give { gifts, clash, ticket: _ } => self.give(by, gifts, clash, &mut said),
            Call::Take { names, taking, timeout_usec } => {
                match self.take(by, &names, taking, &mut said) {
                    Err(Refusal::NotFound { .. } | Refusal::Busy { .. }) if timeout_usec > 0 => {
                        let until_usec = self.now_usec + timeout_usec;
                        self.waiting.push(Waiting { by, names, taking, until_usec });
                        Ok(())
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
                self.client(by).watches = Some(pattern);
                said.answer(by, Reply::Notice(Notice::Standing));
                Ok(())
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
        let ticket = call.ticket().filter(|_| is_commit || !in_transaction).cloned();
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

    pub(crate) fn tick(&mut self) -> Predicted {
        let mut said = Predicted::default();
        let now_usec = self.now_usec;
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
        said
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
            (Entry { held_by: holder, ..item.entry.clone() }, item.fd)
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
        expiries.chain(self.waiting.iter().map(|waiting| waiting.until_usec)).min()
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
        let (room, openings) = match checked {
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
            said.openings.push((by, openings));
            let purpose = Purpose::Give(gifts, replaced);
            self.client(by).unfinished = Some(Unfinished { purpose, names, newly, room });
        }
        Ok(())
    }

    /// How much room a Give needs, and for which of its names something is opened.
    fn check(
        &self,
        by: ConnectionId,
        gifts: &[Gift<Inspected<u64>>],
        clash: Clash,
    ) -> Result<(usize, Vec<Name>), Refusal> {
        let client = &self.clients[&by];
        let mut openings = Vec::new();
        for (at, gift) in gifts.iter().enumerate() {
            if reference::is_kept_from(&self.rules, &client.who, &gift.name) {
                return Err(denied(&gift.name, "give"));
            }
            if let Some(old) = self.find(by, &gift.name, Verb::Give)? {
                if clash == Clash::Refuse {
                    return Err(Refusal::AlreadyExists { name: gift.name.as_str().into() });
                }
                if self.verdict(&client.who, Verb::Give, old) != Verdict::Allowed {
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
        let needs = |gift: &&Gift<Inspected<u64>>| match self.view(by, &gift.name) {
            Some(old) if client.in_transaction => self.is_kept(old),
            Some(_) => false,
            None => true,
        };
        let room = gifts.iter().filter(needs).count();
        let names: BTreeSet<_> =
            self.names().into_iter().chain(gifts.iter().map(|g| &g.name)).collect();
        let Limits { entries, places, .. } = self.limits;
        if names.len() > entries {
            return Err(limit_exceeded("entries", entries));
        }
        if self.places() + room > places {
            return Err(limit_exceeded("descriptors", places));
        }
        Ok((room, openings))
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
        let moves = taking == Taking::Move;
        let newly = if in_transaction || moves { self.hold(by, names) } else { Vec::new() };
        let unfinished =
            |purpose| Some(Unfinished { purpose, names: names.to_vec(), newly, room: 0 });
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
                    self.client(by).unfinished = unfinished(Purpose::Leave);
                }
            }
            Taking::Fresh if !names.is_empty() => {
                said.openings.push((by, names.to_vec()));
                self.client(by).unfinished = unfinished(Purpose::Copy);
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
        if names.is_empty() {
            said.answer(by, handed(Vec::new()));
            return Ok(());
        }
        let in_transaction = self.clients[&by].in_transaction;
        let needs =
            |name: &&Name| in_transaction && self.view(by, name).is_some_and(|it| self.is_kept(it));
        let room = names.iter().filter(needs).count();
        let places = self.limits.places;
        if self.places() + room > places {
            return Err(limit_exceeded("descriptors", places));
        }
        let newly = self.hold(by, &names);
        said.openings.push((by, names.clone()));
        let purpose = Purpose::Reopen;
        self.client(by).unfinished = Some(Unfinished { purpose, names, newly, room });
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
        let client = self.client(by);
        if mem::replace(&mut client.in_transaction, true) {
            let reason = "a transaction is open on this connection already".into();
            return Err(Refusal::TransactionState { reason });
        }
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
            who.peer.uid == 0 || who.peer.uid == held_by.uid
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
        let lasting = self.kept.iter().filter(|(_, item)| item.ephemeral_of.is_none());
        let lasting = lasting.map(|(name, item)| (name.clone(), item.fd)).collect();
        said.records.push(Recorded { told, ticket, lasting });
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
        let entry = Entry { revision: self.revision, ..item.entry.clone() };
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
