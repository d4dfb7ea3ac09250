//! [`Job`]: what one method of a client asks of the daemon, as requests that can be sent again.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use fdstash_proto::{
    Call, Clash, Gift, Handed, MAX_DESCRIPTORS, Mode, Name, Pattern, Refusal, Reopening, Request,
    Taking, Ticket, Verb,
    call::{self, write_get_info},
    reply::Expect,
};

use crate::Error;

/// How many names one Close has: twice their longest, with every byte escaped, fits a message.
const NAMES_A_CALL: usize = 1000;

/// No wait is longer, so that a time can be counted with.
const LONGEST_WAIT: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Requests that belong together. Descriptors are only borrowed.
pub(crate) struct Job<'fd> {
    requests: Vec<Request<BorrowedFd<'fd>>>,
    pub(crate) finality: Finality,
    /// Until when a Take waits.
    deadline: Option<Instant>,
}

/// When it is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finality {
    /// With its reply: it is one request.
    AtOnce,
    /// With the Commit of a transaction around it.
    Together,
}

impl<'fd> Job<'fd> {
    pub(crate) fn give<F: AsFd>(gifts: &'fd [Gift<F>], clash: Clash) -> Result<Self, Error> {
        distinct(gifts.iter().map(|gift| &gift.name), gifts.len() > MAX_DESCRIPTORS)?;
        let calls = gifts.chunks(MAX_DESCRIPTORS).map(|gifts| {
            let gifts = gifts.iter().map(lend).collect();
            Call::Give { gifts, clash, ticket: None }
        });
        Ok(Self::cheapest(calls))
    }

    /// Leaves the stash at Commit only, when all has arrived.
    pub(crate) fn take(names: &[Name], wait: Duration) -> Result<Self, Error> {
        let calls = takes(names, Taking::Move)?;
        Ok(Self { finality: Finality::Together, ..Self::waiting(calls, wait) })
    }

    pub(crate) fn copy(names: &[Name], taking: Taking, wait: Duration) -> Result<Self, Error> {
        let calls = takes(names, taking)?;
        Ok(Self::waiting(calls, wait))
    }

    pub(crate) fn close(names: &[Name]) -> Result<Self, Error> {
        distinct(names, names.len() > NAMES_A_CALL)?;
        let calls = names
            .chunks(NAMES_A_CALL)
            .map(|names| Call::Close { names: names.to_vec(), ticket: None });
        Ok(Self::cheapest(calls))
    }

    /// Is undone where what it hands out does not arrive.
    pub(crate) fn reopen(reopenings: &[Reopening]) -> Result<Self, Error> {
        let names = reopenings.iter().map(|reopening| &reopening.name);
        distinct(names, reopenings.len() > MAX_DESCRIPTORS)?;
        let calls = reopenings
            .chunks(MAX_DESCRIPTORS)
            .map(|reopenings| Call::Reopen { reopenings: reopenings.to_vec() });
        Ok(Self { finality: Finality::Together, ..Self::cheapest(calls) })
    }

    /// Begins a transaction, which the connection's end undoes.
    pub(crate) fn begin() -> Self {
        Self::cheapest([Call::Begin])
    }

    pub(crate) fn list(pattern: &Pattern) -> Self {
        Self::cheapest([Call::List { pattern: pattern.clone() }])
    }

    pub(crate) fn statistics() -> Self {
        Self::cheapest([Call::GetStatistics])
    }

    pub(crate) fn explain_policy(uid: u32, gids: &[u32], verb: Verb, name: &Name) -> Self {
        let (gids, name) = (gids.to_vec(), name.clone());
        Self::cheapest([Call::ExplainPolicy { uid, gids, verb, name }])
    }

    pub(crate) fn info() -> Self {
        let requests = vec![Request::GetInfo];
        Self { requests, ..Self::cheapest([]) }
    }

    /// How many requests it is.
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether it changes what is kept, and so would have done something if it was carried out.
    pub(crate) fn changes(&self) -> bool {
        self.requests.iter().any(|request| match request {
            Request::Stash(Call::Take { taking, .. }) => *taking == Taking::Move,
            Request::Stash(Call::Give { .. } | Call::Close { .. } | Call::Reopen { .. }) => true,
            Request::Stash(
                Call::Begin
                | Call::Commit { .. }
                | Call::Rollback
                | Call::List { .. }
                | Call::Watch { .. }
                | Call::GetStatistics
                | Call::ExplainPolicy { .. },
            )
            | Request::GetInfo
            | Request::GetInterfaceDescription(_) => false,
        })
    }

    /// What to send, with what is left of the time to wait, and with this ticket where a call that
    /// is final at once has one.
    pub(crate) fn questions(&self, by: Option<&Ticket>) -> impl Iterator<Item = Question<'fd>> {
        self.requests.iter().map(move |request| {
            let mut request = request.clone();
            if let (Request::Stash(Call::Take { timeout_usec, .. }), Some(deadline)) =
                (&mut request, self.deadline)
            {
                let left = deadline.saturating_duration_since(Instant::now());
                *timeout_usec = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
            }
            if let Request::Stash(Call::Give { ticket, .. } | Call::Close { ticket, .. }) =
                &mut request
            {
                *ticket = by.cloned();
            }
            Question::new(request)
        })
    }

    /// As few round trips as it takes: a transaction only around several requests.
    fn cheapest(calls: impl IntoIterator<Item = Call<BorrowedFd<'fd>>>) -> Self {
        let requests: Vec<_> = calls.into_iter().map(Request::Stash).collect();
        let finality = if requests.len() > 1 { Finality::Together } else { Finality::AtOnce };
        Self { requests, finality, deadline: None }
    }

    fn waiting(calls: Vec<Call<BorrowedFd<'fd>>>, wait: Duration) -> Self {
        let deadline = (!wait.is_zero()).then(|| Instant::now() + wait.min(LONGEST_WAIT));
        Self { deadline, ..Self::cheapest(calls) }
    }
}

/// One request as a message, and what its answer must be.
pub(crate) struct Question<'fd> {
    pub(crate) message: fdstash_proto::Frame<BorrowedFd<'fd>>,
    pub(crate) due: Expect,
    /// Whether the answer may come in several parts.
    pub(crate) in_parts: bool,
    /// Whose descriptors the answer must have, each once.
    asked: Vec<Name>,
}

impl<'fd> Question<'fd> {
    pub(crate) fn new(request: Request<BorrowedFd<'fd>>) -> Self {
        let Request::Stash(call) = request else {
            let message = write_get_info();
            return Self { message, due: Expect::Info, in_parts: false, asked: Vec::new() };
        };
        let (due, mode) = match &call {
            Call::Give { .. } => (Expect::Given, Mode::Once),
            Call::Take { .. } | Call::Reopen { .. } => (Expect::Handed, Mode::Once),
            Call::Close { .. } | Call::Begin | Call::Commit { .. } | Call::Rollback => {
                (Expect::Done, Mode::Once)
            }
            Call::List { .. } => (Expect::Listed, Mode::More),
            Call::Watch { .. } => (Expect::Notice, Mode::More),
            Call::GetStatistics => (Expect::Statistics, Mode::Once),
            Call::ExplainPolicy { .. } => (Expect::Explained, Mode::Once),
        };
        let asked = match &call {
            Call::Take { names, .. } => names.clone(),
            Call::Reopen { reopenings } => {
                reopenings.iter().map(|reopening| reopening.name.clone()).collect()
            }
            Call::Give { .. }
            | Call::Close { .. }
            | Call::Begin
            | Call::Commit { .. }
            | Call::Rollback
            | Call::List { .. }
            | Call::Watch { .. }
            | Call::GetStatistics
            | Call::ExplainPolicy { .. } => Vec::new(),
        };
        Self { message: call::write(call, mode), due, in_parts: mode == Mode::More, asked }
    }

    /// What was handed out, in the order in which it was asked for; nothing if it is not exactly
    /// that. The surplus is closed.
    pub(crate) fn check(&self, handed: Vec<Handed<OwnedFd>>) -> Option<Vec<Handed<OwnedFd>>> {
        if handed.len() != self.asked.len() {
            return None;
        }
        if handed.iter().map(|handed| &handed.name).eq(&self.asked) {
            return Some(handed);
        }
        let mut by_name: BTreeMap<Name, Handed<OwnedFd>> =
            handed.into_iter().map(|handed| (handed.name.clone(), handed)).collect();
        self.asked.iter().map(|name| by_name.remove(name)).collect()
    }
}

fn takes<'fd>(names: &[Name], taking: Taking) -> Result<Vec<Call<BorrowedFd<'fd>>>, Error> {
    distinct(names, names.len() > MAX_DESCRIPTORS)?;
    let calls = names.chunks(MAX_DESCRIPTORS);
    Ok(calls.map(|names| Call::Take { names: names.to_vec(), taking, timeout_usec: 0 }).collect())
}

fn lend<F: AsFd>(gift: &Gift<F>) -> Gift<BorrowedFd<'_>> {
    Gift {
        name: gift.name.clone(),
        fd: gift.fd.as_fd(),
        fresh: gift.fresh,
        may_reopen: gift.may_reopen,
        expire_usec: gift.expire_usec,
        ephemeral: gift.ephemeral,
        close_on_hangup: gift.close_on_hangup,
        share: gift.share.clone(),
        labels: gift.labels.clone(),
    }
}

/// The daemon refuses a name that stands twice in one call; one that stands in two of the calls
/// which a job `is_split` into, it could not see.
fn distinct<'a>(names: impl IntoIterator<Item = &'a Name>, is_split: bool) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    let twice = names.into_iter().filter(|_| is_split).find(|name| !seen.insert(*name));
    twice.map_or(Ok(()), |name| {
        let reason = "it is named twice in one call".to_owned();
        Err(Refusal::InvalidName { name: name.as_str().to_owned(), reason }.into())
    })
}
