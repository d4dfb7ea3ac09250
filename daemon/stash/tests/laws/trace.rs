//! [`Trace`]: what there was to see when a history was played, as plain data for the laws.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
};

use fdstash_proto::{Call, Change, Entry, Name, Refusal, Reply, Statistics, Ticket};
use fdstash_stash::{
    ConnectionId, Deed, Details, Done, EntryId, Inspected, Limits, OpenFailure, Opening, Rules,
    Usage, Verb, Verdict, Who,
};

/// A history as it was played. Descriptors are the numbers of their tokens.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) limits: Limits,
    /// Root, and somebody else: they watch, and do nothing else.
    pub(crate) watchers: [ConnectionId; 2],
    /// The stash before the first moment.
    pub(crate) first: Picture,
    pub(crate) moments: Vec<Moment>,
    /// Who called, one after another.
    pub(crate) people: BTreeMap<ConnectionId, Who>,
}

/// What one step did.
#[derive(Debug)]
pub(crate) struct Moment {
    pub(crate) input: Input,
    pub(crate) performed: Vec<Performed>,
    pub(crate) predicted: Predicted,
    /// The stash afterwards, and the model.
    pub(crate) after: Picture,
    pub(crate) expected: Picture,
    /// What the one who acted sees afterwards, and what the model shows it.
    pub(crate) view: Entries,
    pub(crate) expected_view: Entries,
    /// What root was told of the verb and the name of a call, just before it, if it has one name and
    /// nobody held that.
    pub(crate) explained: Option<(Name, Verb, Verdict)>,
    /// What has happened to tokens that must not, until now.
    pub(crate) faults: Vec<String>,
    /// How many bytes the journal has, and for how many room was made.
    pub(crate) written: usize,
    pub(crate) room: usize,
}

/// Entries and the tokens that they hold, in the order of their names.
pub(crate) type Entries = Vec<(Entry, u64)>;

/// What can be seen of a stash from outside.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Picture {
    /// What root sees, and what a watcher does who is not root.
    pub(crate) entries: Entries,
    pub(crate) known: Entries,
    pub(crate) statistics: Statistics,
    pub(crate) next_due: Option<u64>,
    /// The tokens that the stash holds.
    pub(crate) held: BTreeSet<u64>,
    /// Those that are polled.
    pub(crate) polled: BTreeSet<u64>,
    /// Who has a call without an answer, and what that waits for.
    pub(crate) unanswered: BTreeMap<ConnectionId, Waits>,
    /// What every user has who has anything.
    pub(crate) usage: BTreeMap<u32, Usage>,
    /// On the boot clock.
    pub(crate) now_usec: u64,
}

/// What a call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Its answer, for which nothing else has to happen.
    Answer,
    /// Files to be opened.
    Opening,
    /// Word whether its answer has left.
    Leaving,
    /// Names, until then at most.
    Names(u64),
    /// Changes, for ever.
    Changes,
}

/// A step, with what its numbers stood for.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Connect,
    Disconnect(ConnectionId),
    Call(ConnectionId, Call<Inspected<u64>>),
    Opened(ConnectionId, Result<Vec<Vec<Inspected<u64>>>, OpenFailure>),
    Sent(ConnectionId),
    Unsent(ConnectionId),
    HangUp,
    Point,
    Tick,
    /// Other rules are in force.
    Rules(Rules),
    /// Another stash goes on.
    Upgrade,
    /// Nothing that the stash has heard of.
    Nothing,
}

/// An effect that was carried out.
#[derive(Debug, Clone)]
pub(crate) enum Performed {
    Record { put: Vec<Written>, gone: Vec<EntryId>, done: Option<Done>, line: Vec<u8> },
    Answer { to: ConnectionId, outcome: Result<Reply<u64>, Refusal>, confirm: bool },
    List { to: ConnectionId },
    Open { by: ConnectionId, openings: Vec<Opening<u64>> },
    Poll,
    Unpoll,
    Close(Vec<u64>),
    Forget,
    Tell(Box<Told>),
    Audit { by: Option<ConnectionId>, done: Vec<(Deed, EntryId, Name)> },
}

/// What a record says of an entry that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) id: EntryId,
    pub(crate) name: Name,
    pub(crate) fd: u64,
    pub(crate) ephemeral: bool,
    pub(crate) details: Details,
}

/// What the model says that a step does.
#[derive(Debug, Default)]
pub(crate) struct Predicted {
    /// In this order, each when so many records are written.
    pub(crate) answers: Vec<(usize, ConnectionId, Said)>,
    /// In this order.
    pub(crate) records: Vec<Recorded>,
    /// Whose files are to be opened, and for which names.
    pub(crate) openings: Vec<(ConnectionId, Vec<Name>)>,
    pub(crate) closed: BTreeSet<u64>,
    /// What was opened for a peer and goes to it.
    pub(crate) handed_over: BTreeSet<u64>,
    /// Whether it was a call that had been done already.
    pub(crate) is_repeated: bool,
}

/// What a connection is answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    Plain(Result<Reply<u64>, Refusal>),
    /// It hands out what is kept no longer when it has left.
    ToConfirm(Reply<u64>),
    /// Entries, at the pace of their reader.
    Listing,
}

/// What one record says, and what watchers are told of it.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub(crate) told: Vec<Told>,
    /// Of the call that did it.
    pub(crate) ticket: Option<Ticket>,
    /// What is kept from then on, but for what is ephemeral.
    pub(crate) lasting: BTreeMap<Name, u64>,
}

/// What watchers are told of one change.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Told {
    pub(crate) to: Vec<ConnectionId>,
    pub(crate) change: Change,
    pub(crate) entry: Entry,
    pub(crate) fd: u64,
}

impl Trace {
    /// Each moment, with its place in the history and the picture before it.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (usize, &Picture, &Moment)> {
        let before = iter::once(&self.first).chain(self.moments.iter().map(|moment| &moment.after));
        before.zip(&self.moments).enumerate().map(|(at, (before, moment))| (at, before, moment))
    }

    /// The story so far, for the message of a law that was broken.
    pub(crate) fn until(&self, at: usize) -> String {
        let moments = self.moments.iter().take(at + 1);
        moments.fold(String::new(), |mut story, Moment { input, performed, .. }| {
            story.push_str(&format!("\n{input:?}"));
            performed.iter().for_each(|effect| story.push_str(&format!("\n    {effect:?}")));
            story
        })
    }
}

impl Picture {
    /// What is kept.
    pub(crate) fn kept(&self) -> BTreeMap<Name, u64> {
        self.entries.iter().map(|(entry, fd)| (entry.name.clone(), *fd)).collect()
    }
}

impl Moment {
    /// The call that it begins.
    pub(crate) fn call(&self) -> Option<(ConnectionId, &Call<Inspected<u64>>)> {
        let Input::Call(by, call) = &self.input else { return None };
        Some((*by, call))
    }

    /// Whose call it begins or goes on with.
    pub(crate) fn caller(&self) -> Option<ConnectionId> {
        let (Input::Call(by, _) | Input::Opened(by, _)) = self.input else { return None };
        Some(by)
    }

    /// Who does it.
    pub(crate) fn actor(&self) -> Option<ConnectionId> {
        let (Input::Sent(by) | Input::Unsent(by)) = self.input else { return self.caller() };
        Some(by)
    }

    /// What was answered, to whom, in this order, each when so many records were written.
    pub(crate) fn answers(&self) -> Vec<(usize, ConnectionId, Said)> {
        let (mut written, mut answers) = (0, Vec::new());
        for effect in &self.performed {
            written += usize::from(matches!(effect, Performed::Record { .. }));
            answers.extend(effect.says().map(|(to, said)| (written, to, said)));
        }
        answers
    }

    /// Whether the call that it begins or goes on with is refused.
    pub(crate) fn is_refused(&self) -> bool {
        let said = self.performed.iter().filter_map(Performed::says);
        let mut own = said.filter(|(to, _)| Some(*to) == self.caller());
        own.any(|(_, said)| matches!(said, Said::Plain(Err(_))))
    }

    /// Whether the call is refused since its transaction was rolled back before.
    pub(crate) fn says_rolled_back(&self) -> bool {
        let mut said = self.performed.iter().filter_map(Performed::says);
        said.any(|(_, said)| match said {
            Said::Plain(Err(Refusal::TransactionState { reason })) => {
                reason.contains("rolled back")
            }
            Said::Plain(_) | Said::ToConfirm(_) | Said::Listing => false,
        })
    }

    /// The records that were written: what is kept from then on, and what no longer.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&[Written], &[EntryId])> {
        self.performed.iter().filter_map(|effect| {
            let Performed::Record { put, gone, .. } = effect else { return None };
            Some((put.as_slice(), gone.as_slice()))
        })
    }

    /// The tickets that were written down, with the records of which they are a part.
    pub(crate) fn done(&self) -> Vec<Option<Ticket>> {
        let done = self.performed.iter().filter_map(|effect| {
            let Performed::Record { done, .. } = effect else { return None };
            Some(done.as_ref().map(|done| done.ticket.clone()))
        });
        done.collect()
    }

    /// What was to be opened.
    pub(crate) fn openings(&self) -> impl Iterator<Item = (ConnectionId, &[Opening<u64>])> {
        self.performed.iter().filter_map(|effect| {
            let Performed::Open { by, openings } = effect else { return None };
            Some((*by, openings.as_slice()))
        })
    }

    /// What was given up to be closed.
    pub(crate) fn closed(&self) -> impl Iterator<Item = u64> {
        let closed = self.performed.iter().filter_map(|effect| {
            let Performed::Close(fds) = effect else { return None };
            Some(fds)
        });
        closed.flatten().copied()
    }

    /// What was accounted for: who did it, what, and with which entry.
    pub(crate) fn audited(
        &self,
    ) -> impl Iterator<Item = (Option<ConnectionId>, Deed, EntryId, &Name)> {
        self.performed.iter().flat_map(|effect| {
            let (by, done) = match effect {
                Performed::Audit { by, done } => (*by, done.as_slice()),
                Performed::Record { .. }
                | Performed::Answer { .. }
                | Performed::List { .. }
                | Performed::Open { .. }
                | Performed::Poll
                | Performed::Unpoll
                | Performed::Forget
                | Performed::Close(_)
                | Performed::Tell(_) => (None, [].as_slice()),
            };
            done.iter().map(move |(deed, id, name)| (by, *deed, *id, name))
        })
    }

    /// What watchers were told, sorted.
    pub(crate) fn told(&self) -> Vec<Told> {
        let told = self.performed.iter().filter_map(|effect| {
            let Performed::Tell(told) = effect else { return None };
            Some(Told::clone(told))
        });
        sorted(told.collect())
    }
}

impl Performed {
    /// What it answers, and whom.
    pub(crate) fn says(&self) -> Option<(ConnectionId, Said)> {
        match self {
            Self::Answer { to, outcome: Ok(reply), confirm: true } => {
                Some((*to, Said::ToConfirm(reply.clone())))
            }
            Self::Answer { to, outcome, confirm: _ } => Some((*to, Said::Plain(outcome.clone()))),
            Self::List { to } => Some((*to, Said::Listing)),
            Self::Record { .. }
            | Self::Open { .. }
            | Self::Poll
            | Self::Unpoll { .. }
            | Self::Forget
            | Self::Close(_)
            | Self::Tell(_)
            | Self::Audit { .. } => None,
        }
    }

    /// Whether it answers this connection.
    pub(crate) fn is_for(&self, id: ConnectionId) -> bool {
        self.says().is_some_and(|(to, _)| to == id)
    }

    /// What it hands out that is not taken by that, and to whom.
    pub(crate) fn handed_for_now(&self) -> Vec<(ConnectionId, &Name)> {
        match self {
            Self::Answer { to, outcome: Ok(Reply::Handed(handed)), confirm: false } => {
                handed.iter().map(|handed| (*to, &handed.name)).collect()
            }
            Self::Answer { .. }
            | Self::Record { .. }
            | Self::List { .. }
            | Self::Open { .. }
            | Self::Poll
            | Self::Unpoll
            | Self::Forget
            | Self::Close(_)
            | Self::Tell(_)
            | Self::Audit { .. } => Vec::new(),
        }
    }

    /// The descriptors that it hands out.
    pub(crate) fn handed(&self) -> impl Iterator<Item = u64> {
        let handed = match self {
            Self::Answer { outcome: Ok(Reply::Handed(handed)), .. } => handed.as_slice(),
            Self::Answer { .. }
            | Self::Record { .. }
            | Self::List { .. }
            | Self::Open { .. }
            | Self::Poll
            | Self::Unpoll { .. }
            | Self::Forget
            | Self::Close(_)
            | Self::Tell(_)
            | Self::Audit { .. } => &[],
        };
        handed.iter().map(|handed| handed.fd)
    }
}

impl Input {
    /// The descriptors that come with it.
    pub(crate) fn brings(&self) -> Vec<u64> {
        match self {
            Self::Call(_, call) => gifts(call).collect(),
            Self::Opened(_, Ok(files)) => files.iter().flatten().map(|file| file.fd).collect(),
            Self::Opened(_, Err(_))
            | Self::Connect
            | Self::Disconnect(_)
            | Self::Sent(_)
            | Self::Unsent(_)
            | Self::HangUp
            | Self::Point
            | Self::Tick
            | Self::Rules(_)
            | Self::Upgrade
            | Self::Nothing => Vec::new(),
        }
    }
}

/// The descriptors that come with a call.
pub(crate) fn gifts(call: &Call<Inspected<u64>>) -> impl Iterator<Item = u64> {
    let gifts = if let Call::Give { gifts, .. } = call { gifts.as_slice() } else { &[] };
    gifts.iter().map(|gift| gift.fd.fd)
}

impl Predicted {
    /// What watchers are to be told, sorted.
    pub(crate) fn told(&self) -> Vec<Told> {
        sorted(self.records.iter().flat_map(|record| record.told.clone()).collect())
    }
}

fn sorted(mut told: Vec<Told>) -> Vec<Told> {
    told.sort_by_key(|told| (told.entry.revision, told.fd));
    told
}
