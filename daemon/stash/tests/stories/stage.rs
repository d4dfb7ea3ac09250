//! [`Stage`]: a stash over words, which tells what it does in words.
//!
//! | effect | reads |
//! | --- | --- |
//! | a record of what is kept and what is gone | `record +disk=new -disk=old` |
//! | one with the ticket of the call that did it | `record +disk=new done t1` |
//! | an answer | `vmm: done`, `vmm: given`, `vmm: given, for disk`, `vmm: NotFound a` |
//! | one that hands out | `vmm: has disk=image`, with `, if it leaves` where it must be confirmed |
//! | files to open | `open for vmm: disk=image read_write {"direct"} 1x+read as daemon` |
//! | others | `close image`, `poll image`, `unpoll image`, `tell vmm: given disk=image`, `audit vmm: given disk` |

use std::{collections::BTreeMap, iter, sync::Arc};

use fdstash_proto::{
    Access, Call, Clash, Entry, Flags, Gift, Keeper, Kind, Labels, Mode, Name, Pattern, Peer,
    Refusal, Reopening, Reply, Share, Taking, Ticket,
};
use fdstash_stash::{
    Begin, Carried, ConnectionId, Deed, Details, Doing, Effect, Effects, EntryId, Facts, Inspected,
    Kept, Limits, Line, Now, OpenFailure, Opening, Quota, Record, Replay, Rights, Rules, Stash,
    Who, write_handover,
};

/// What stands in the place of a descriptor.
pub(crate) type Word = &'static str;

/// A stash, its connections and its clock.
pub(crate) struct Stage {
    pub(crate) stash: Stash<Word>,
    limits: Limits,
    rules: Rules,
    now_usec: u64,
    connections: BTreeMap<ConnectionId, Word>,
    people: BTreeMap<ConnectionId, Who>,
    /// All that was written down, a line each.
    journal: Vec<Vec<u8>>,
    entries: BTreeMap<EntryId, String>,
    polled: BTreeMap<Word, EntryId>,
    openings: BTreeMap<ConnectionId, Vec<Opening<Word>>>,
}

impl Stage {
    /// With room for all.
    pub(crate) fn new() -> Self {
        Self::with_room_for(100, 100, 200)
    }

    pub(crate) fn with_room_for(entries: usize, connections: usize, places: usize) -> Self {
        Self::with_limits(Limits::new(entries, connections, places))
    }

    /// With room for all, and so much of it for each user.
    pub(crate) fn with_quota(quota: Quota) -> Self {
        Self::with_limits(Limits { quota, ..Limits::new(100, 100, 200) })
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        Self {
            stash: Stash::new(limits, Keeper::Process),
            limits,
            rules: Rules::default(),
            now_usec: 0,
            connections: BTreeMap::new(),
            people: BTreeMap::new(),
            journal: vec![line(|line| Begin::default().write(line))],
            entries: BTreeMap::new(),
            polled: BTreeMap::new(),
            openings: BTreeMap::new(),
        }
    }

    /// Somebody of a user connects.
    pub(crate) fn connect(&mut self, called: Word, uid: u32) -> ConnectionId {
        let id = self.stash.connect(who(uid)).expect("there is room");
        self.connections.insert(id, called);
        self.people.insert(id, who(uid));
        id
    }

    /// Some of what a connection gave for its lifetime ends, before it does.
    pub(crate) fn shed(&mut self, id: ConnectionId) -> Option<Vec<String>> {
        let effects = self.stash.shed(id, self.now())?;
        Some(self.tell(effects))
    }

    pub(crate) fn disconnect(&mut self, id: ConnectionId) -> Vec<String> {
        let effects = self.stash.disconnect(id, self.now());
        self.tell(effects)
    }

    pub(crate) fn call(&mut self, by: ConnectionId, call: Call<Inspected<Word>>) -> Vec<String> {
        let effects = self.stash.call(by, call, self.now());
        self.tell(effects)
    }

    /// What a connection's call waits for is open: each file as often as asked for.
    pub(crate) fn opened(&mut self, by: ConnectionId, files: &[&[Word]]) -> Vec<String> {
        let openings = self.openings.remove(&by).expect("something is to be opened");
        let opened = openings.iter().zip(files).map(|(opening, words)| {
            assert_eq!(words.len(), opening.wanted().count(), "as many as asked for");
            let facts = |access| Facts { access, flags: opening.flags, ..opening.facts.clone() };
            let files = words.iter().zip(opening.wanted());
            files.map(|(word, access)| Inspected { fd: *word, facts: facts(access) }).collect()
        });
        let effects = self.stash.opened(by, Ok(opened.collect()), self.now());
        self.tell(effects)
    }

    /// One of the files that a connection's call waits for cannot be opened.
    pub(crate) fn not_opened(&mut self, by: ConnectionId, at: usize) -> Vec<String> {
        self.openings.remove(&by).expect("something is to be opened");
        let failure =
            OpenFailure { at, errno: 5, errno_name: "EIO".into(), message: "bad disk".into() };
        let effects = self.stash.opened(by, Err(failure), self.now());
        self.tell(effects)
    }

    pub(crate) fn sent(&mut self, by: ConnectionId) -> Vec<String> {
        let effects = self.stash.sent(by, self.now());
        self.tell(effects)
    }

    pub(crate) fn unsent(&mut self, by: ConnectionId) -> Vec<String> {
        let effects = self.stash.unsent(by, self.now());
        self.tell(effects)
    }

    pub(crate) fn hung_up(&mut self, word: Word) -> Vec<String> {
        let effects = self.stash.hung_up(self.polled[word], self.now());
        self.tell(effects)
    }

    /// Another stash goes on, with those connections of which this is true; the others were lost on
    /// the way.
    pub(crate) fn upgrade(&mut self, goes_on: impl Fn(ConnectionId) -> bool) -> Vec<String> {
        let going_on = self.stash.carry().into_iter().filter(|(id, _)| goes_on(*id));
        let carried = going_on.map(|(id, doing)| carried(id, doing)).collect::<Vec<_>>();
        let mut handover = Vec::new();
        write_handover(&carried, &mut handover);
        let lines = self.journal.drain(..).chain([handover]);
        let mut replay = Replay::default();
        lines.for_each(|line| replay.add(Line::read(&line).expect("its own bytes")));
        let fds: BTreeMap<_, _> =
            self.stash.kept().map(|kept| (kept.details.id, Arc::clone(&kept.fd))).collect();
        let carried = replay.take_carried();
        let claim = |kept: &Kept<_>| fds.get(&kept.details.id).cloned();
        let (stash, mut effects) = Stash::restore(self.limits, Keeper::Process, replay, claim);
        self.stash = stash;
        self.journal = journal_of(&self.stash);
        effects.extend(self.stash.set_rules(self.rules.clone(), self.now()));
        for Carried { id, doing, .. } in carried {
            self.stash.resume(id, self.people[&id].clone(), doing, self.now());
        }
        effects.extend(self.stash.go_without(self.now()));
        self.tell(effects)
    }

    /// Other rules are in force from here on.
    pub(crate) fn set_rules(&mut self, rules: Rules) -> Vec<String> {
        self.rules = rules.clone();
        let effects = self.stash.set_rules(rules, self.now());
        self.tell(effects)
    }

    /// So much time passes.
    pub(crate) fn tick(&mut self, usec: u64) -> Vec<String> {
        self.now_usec += usec;
        let effects = self.stash.tick(self.now());
        self.tell(effects)
    }

    /// What a connection sees.
    pub(crate) fn list(&self, by: ConnectionId) -> Vec<String> {
        let (listed, _) = self.stash.list(by, &Pattern::all(), None, usize::MAX);
        listed.iter().map(|listed| format!("{}={}", listed.entry.name, listed.fd)).collect()
    }

    /// How an entry is shown to a connection that sees it.
    pub(crate) fn entry(&self, by: ConnectionId, called: &str) -> Entry {
        let pattern = Pattern::new(called).expect("a pattern");
        let (listed, _) = self.stash.list(by, &pattern, None, 1);
        listed.into_iter().next().expect("it is there").entry
    }

    fn now(&self) -> Now {
        Now { boot_usec: self.now_usec, wall_usec: 1_000_000 + self.now_usec }
    }

    fn tell(&mut self, effects: Effects<Word>) -> Vec<String> {
        effects.into_iter().map(|effect| self.tell_one(effect)).collect()
    }

    fn tell_one(&mut self, effect: Effect<Word>) -> String {
        match effect {
            Effect::Record(record) => {
                self.journal.push(line(|bytes| record.write(|_| 4, bytes)));
                format!("record {}", self.recorded(&record))
            }
            Effect::Answer { to, outcome, confirm } => {
                let said = outcome.map_or_else(refused, said);
                let confirm = if confirm { ", if it leaves" } else { "" };
                format!("{}: {said}{confirm}", self.connections[&to])
            }
            Effect::List { to, pattern } => {
                format!("{}: list of {}", self.connections[&to], pattern.as_str())
            }
            Effect::Open { by, openings } => {
                let files: Vec<_> = openings.iter().map(opening).collect();
                self.openings.insert(by, openings);
                format!("open for {}: {}", self.connections[&by], files.join(", "))
            }
            Effect::Poll(id, fd) => {
                self.polled.insert(*fd, id);
                format!("poll {fd}")
            }
            Effect::Unpoll(_, fd) => format!("unpoll {fd}"),
            Effect::Forget(by, names) => {
                format!("forget {} names of {}", names.len(), self.connections[&by])
            }
            Effect::Close(fds) => {
                let words: Vec<Word> = fds.iter().map(|fd| **fd).collect();
                format!("close {}", words.join(" "))
            }
            Effect::Tell { to, change, entry, fd } => {
                let to = to.iter().filter(|id| self.stash.watches(**id, &entry.name));
                let to: Vec<_> = to.map(|id| self.connections[id]).collect();
                format!("tell {}: {} {}={fd}", to.join(" "), change.as_str(), entry.name)
            }
            Effect::Audit { by, done } => {
                let by = by.map_or("nobody", |by| self.connections[&by]);
                let word = |(deed, details): &(Deed, Arc<Details>)| {
                    format!("{} {}", deed.as_str(), details.name)
                };
                let words: Vec<_> = done.iter().map(word).collect();
                format!("audit {by}: {}", words.join(", "))
            }
        }
    }

    fn recorded(&mut self, record: &Record<Word>) -> String {
        let mut words = Vec::new();
        for kept in &record.put {
            let entry = format!("{}={}", kept.details.name, kept.fd);
            words.push(format!("+{entry}"));
            self.entries.insert(kept.details.id, entry);
        }
        let gone = record.gone.iter().map(|id| format!("-{}", self.entries[id]));
        words.extend(gone);
        words.extend(record.done.iter().map(|done| format!("done {}", done.ticket.as_str())));
        words.join(" ")
    }
}

/// A user with a group of the same number.
fn who(uid: u32) -> Who {
    Who { peer: Peer { uid, gid: uid, pid: 1 }, groups: [].into() }
}

pub(crate) fn give<const N: usize>(gifts: [Gift<Inspected<Word>>; N]) -> Call<Inspected<Word>> {
    Call::Give { gifts: gifts.into(), clash: Clash::Replace, ticket: None }
}

/// A file for reading and writing.
pub(crate) fn gift(called: &str, fd: Word) -> Gift<Inspected<Word>> {
    gift_of(Kind::Regular, Access::ReadWrite, called, fd)
}

pub(crate) fn gift_of(kind: Kind, access: Access, called: &str, fd: Word) -> Gift<Inspected<Word>> {
    let target = Some(format!("/images/{fd}").into());
    let facts = Facts { kind, access, flags: Flags::NONE, device: 1, inode: 2, target };
    Gift::new(name(called), Inspected { fd, facts })
}

/// The same gift, of which a description of the stash's own is to be kept.
pub(crate) fn fresh(gift: Gift<Inspected<Word>>) -> Gift<Inspected<Word>> {
    Gift { fresh: true, ..gift }
}

/// The same gift, to be closed with its giver's connection.
pub(crate) fn ephemeral(gift: Gift<Inspected<Word>>) -> Gift<Inspected<Word>> {
    Gift { ephemeral: true, ..gift }
}

/// The same gift, to be closed when it hangs up.
pub(crate) fn polled(gift: Gift<Inspected<Word>>) -> Gift<Inspected<Word>> {
    Gift { close_on_hangup: true, ..gift }
}

/// The same gift, to be closed after so long.
pub(crate) fn expiring(after_usec: u64, gift: Gift<Inspected<Word>>) -> Gift<Inspected<Word>> {
    Gift { expire_usec: Some(after_usec), ..gift }
}

/// The same gift, with a label of one byte and this.
pub(crate) fn labelled(note: &str, gift: Gift<Inspected<Word>>) -> Gift<Inspected<Word>> {
    Gift { labels: Labels::from([("k".into(), note.into())]), ..gift }
}

/// The same gift, for these users too.
pub(crate) fn shared<const N: usize>(
    uids: [u32; N],
    gift: Gift<Inspected<Word>>,
) -> Gift<Inspected<Word>> {
    Gift { share: Share { uids: uids.into(), gids: Vec::new() }, ..gift }
}

pub(crate) fn take<const N: usize>(called: [&str; N]) -> Call<Inspected<Word>> {
    Call::Take { names: names(called), taking: Taking::Move, timeout_usec: 0 }
}

pub(crate) fn copy<const N: usize>(called: [&str; N]) -> Call<Inspected<Word>> {
    Call::Take { names: names(called), taking: Taking::Copy, timeout_usec: 0 }
}

pub(crate) fn fresh_copy<const N: usize>(called: [&str; N]) -> Call<Inspected<Word>> {
    Call::Take { names: names(called), taking: Taking::Fresh, timeout_usec: 0 }
}

/// A Take that waits so long.
pub(crate) fn wait<const N: usize>(called: [&str; N], timeout_usec: u64) -> Call<Inspected<Word>> {
    Call::Take { names: names(called), taking: Taking::Move, timeout_usec }
}

pub(crate) fn close<const N: usize>(called: [&str; N]) -> Call<Inspected<Word>> {
    Call::Close { names: names(called), ticket: None }
}

pub(crate) fn commit() -> Call<Inspected<Word>> {
    Call::Commit { ticket: None }
}

/// The same call, with a ticket.
pub(crate) fn ticketed(text: &str, mut call: Call<Inspected<Word>>) -> Call<Inspected<Word>> {
    let of_call = match &mut call {
        Call::Give { ticket, .. } | Call::Close { ticket, .. } | Call::Commit { ticket } => ticket,
        Call::Take { .. }
        | Call::Reopen { .. }
        | Call::Begin
        | Call::Rollback
        | Call::List { .. }
        | Call::Watch { .. }
        | Call::GetStatistics
        | Call::ExplainPolicy { .. } => panic!("no call with a ticket"),
    };
    *of_call = Some(Ticket::new(text).expect("a ticket"));
    call
}

/// A Reopen that changes nothing but the open file description.
pub(crate) fn reopen<const N: usize>(called: [&str; N]) -> Call<Inspected<Word>> {
    Call::Reopen { reopenings: names(called).into_iter().map(Reopening::new).collect() }
}

pub(crate) fn name(called: &str) -> Name {
    Name::new(called).expect("a name")
}

fn names<const N: usize>(called: [&str; N]) -> Vec<Name> {
    called.map(name).into()
}

fn said(reply: Reply<Arc<Word>>) -> String {
    match reply {
        Reply::Done => "done".into(),
        Reply::Given { replaced } if replaced.is_empty() => "given".into(),
        Reply::Given { replaced } => {
            let replaced: Vec<_> = replaced.iter().map(Name::as_str).collect();
            format!("given, for {}", replaced.join(" "))
        }
        Reply::Handed(handed) => {
            let handed: Vec<_> =
                handed.iter().map(|handed| format!("{}={}", handed.name, handed.fd)).collect();
            format!("has {}", handed.join(" "))
        }
        Reply::Listed(_)
        | Reply::Notice(_)
        | Reply::Statistics(_)
        | Reply::Explained(_)
        | Reply::Info(_)
        | Reply::Description(_) => format!("{reply:?}"),
    }
}

fn refused(refusal: Refusal) -> String {
    match refusal {
        Refusal::NotFound { name } => format!("NotFound {name}"),
        Refusal::AlreadyExists { name } => format!("AlreadyExists {name}"),
        Refusal::Busy { name, held_by } => format!("Busy {name}, held by {}", held_by.uid),
        Refusal::TransactionState { .. } => "TransactionState".into(),
        Refusal::AccessDenied { name, verb } => format!("AccessDenied {verb} {name}"),
        Refusal::ReopenFailed { name, errno_name, .. } => {
            format!("ReopenFailed {name} {errno_name}")
        }
        Refusal::LimitExceeded { limit, value } => format!("LimitExceeded {limit} {value}"),
        Refusal::InvalidParameter { parameter } => format!("InvalidParameter {parameter}"),
        Refusal::InvalidName { .. }
        | Refusal::FileDescriptorMissing { .. }
        | Refusal::NotDurable { .. }
        | Refusal::InterfaceNotFound { .. }
        | Refusal::MethodNotFound { .. }
        | Refusal::MethodNotImplemented { .. }
        | Refusal::PermissionDenied
        | Refusal::ExpectedMore => format!("{refusal:?}"),
    }
}

fn opening(opening: &Opening<Word>) -> String {
    let Opening { name, fd, access, flags, count, hand_out, rights, asker, .. } = opening;
    let rights = match rights {
        Rights::Daemon => "daemon".into(),
        Rights::Asker => format!("uid {}", asker.peer.uid),
    };
    let handed = hand_out.map(|access| format!("+{}", access.as_str())).unwrap_or_default();
    format!("{name}={fd} {} {flags:?} {count}x{handed} as {rights}", access.as_str())
}

/// A journal that is written anew.
fn journal_of(stash: &Stash<Word>) -> Vec<Vec<u8>> {
    let begin = line(|bytes| stash.begin_journal().write(bytes));
    let records = stash.records().map(|record| line(|bytes| record.write(|_| 4, bytes)));
    iter::once(begin).chain(records).collect()
}

fn line(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

fn carried(id: ConnectionId, doing: Doing) -> Carried {
    let (bytes, fds) = (Vec::new(), Vec::new());
    Carried { id, number: 3, mode: Mode::Once, doing, lost: 0, bytes, fds }
}
