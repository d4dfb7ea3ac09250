//! [`Job`]: what one method of a client asks of the daemon, as requests that can be sent again.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use fdstash_proto::{
    Call, Clash, Frame, Gift, Handed, MAX_DESCRIPTORS, Mode, Name, Pattern, Refusal, Reopening,
    Request, Taking, Ticket, Verb,
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

    /// Leaves the stash with the answer, where one message has room for it, and else as a take does.
    pub(crate) fn take_at_once(names: &[Name], wait: Duration) -> Result<Self, Error> {
        Ok(Self::waiting(takes(names, Taking::Move)?, wait))
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

    /// Whether its connection's loss leaves it open whether it was carried out.
    pub(crate) fn leaves_doubt(&self) -> bool {
        self.requests.iter().any(|request| match request {
            Request::Stash(call) => leaves_doubt(call),
            Request::GetInfo | Request::GetInterfaceDescription(_) => false,
        })
    }

    /// What to send, with what is left of the time to wait, and with this ticket where a call that
    /// is final at once has one.
    pub(crate) fn questions(
        &mut self,
        by: Option<&Ticket>,
    ) -> impl Iterator<Item = Question<'_, 'fd>> {
        let deadline = self.deadline;
        self.requests.iter_mut().map(move |request| {
            if let Request::Stash(call) = request {
                if let (Call::Take { timeout_usec, .. }, Some(deadline)) = (&mut *call, deadline) {
                    let left = deadline.saturating_duration_since(Instant::now());
                    *timeout_usec = u64::try_from(left.as_micros()).unwrap_or(u64::MAX);
                }
                put_ticket(call, by);
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
pub(crate) struct Question<'a, 'fd> {
    pub(crate) message: Frame<BorrowedFd<'fd>>,
    pub(crate) due: Expect,
    /// Whether the answer may come in several parts.
    pub(crate) in_parts: bool,
    /// Whose descriptors the answer must have, each once.
    pub(crate) asked: Cow<'a, [Name]>,
}

impl<'a, 'fd> Question<'a, 'fd> {
    pub(crate) fn new(request: &'a Request<BorrowedFd<'fd>>) -> Self {
        let Request::Stash(call) = request else {
            let (message, asked) = (write_get_info(), Cow::Borrowed(&[][..]));
            return Self { message, due: Expect::Info, in_parts: false, asked };
        };
        let (due, mode) = due(call);
        let mut message = Frame { bytes: Vec::new(), fds: Vec::new() };
        put(&mut message, call, mode);
        Self { message, due, in_parts: mode == Mode::More, asked: asked(call) }
    }
}

/// Puts a call behind those that a message has in it already, and its descriptors behind theirs.
pub(crate) fn put<'fd>(
    message: &mut Frame<BorrowedFd<'fd>>,
    call: &Call<BorrowedFd<'fd>>,
    mode: Mode,
) {
    call::append(&mut message.bytes, call, mode);
    if let Call::Give { gifts, .. } = call {
        message.fds.extend(gifts.iter().map(|gift| gift.fd));
    }
}

/// Which answer is due a call, and how it is asked for.
pub(crate) fn due<F>(call: &Call<F>) -> (Expect, Mode) {
    match call {
        Call::Give { .. } => (Expect::Given, Mode::Once),
        Call::Take { .. } | Call::Reopen { .. } => (Expect::Handed, Mode::Once),
        Call::Close { .. } | Call::Begin | Call::Commit { .. } | Call::Rollback => {
            (Expect::Done, Mode::Once)
        }
        Call::List { .. } => (Expect::Listed, Mode::More),
        Call::Watch { .. } => (Expect::Notice, Mode::More),
        Call::GetStatistics => (Expect::Statistics, Mode::Once),
        Call::ExplainPolicy { .. } => (Expect::Explained, Mode::Once),
    }
}

/// Whose descriptors the answer to a call must have, each once.
pub(crate) fn asked<F>(call: &Call<F>) -> Cow<'_, [Name]> {
    match call {
        Call::Take { names, .. } => names.into(),
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
        | Call::ExplainPolicy { .. } => Cow::Borrowed(&[]),
    }
}

/// Has a call that is final at once known by a ticket.
pub(crate) fn put_ticket<F>(call: &mut Call<F>, by: Option<&Ticket>) {
    if let Call::Give { ticket, .. } | Call::Close { ticket, .. } = call {
        *ticket = by.cloned();
    }
}

/// Whether the loss of its connection leaves it open whether a call was carried out.
pub(crate) fn leaves_doubt<F>(call: &Call<F>) -> bool {
    match call {
        Call::Give { .. } | Call::Close { .. } | Call::Reopen { .. } | Call::Commit { .. } => true,
        // What is taken leaves the stash when the answer has left for here, and what has left can be
        // read also when the connection has ended. So where no answer comes, nothing was taken.
        Call::Take { .. }
        | Call::Begin
        | Call::Rollback
        | Call::List { .. }
        | Call::Watch { .. }
        | Call::GetStatistics
        | Call::ExplainPolicy { .. } => false,
    }
}

/// What was handed out, in the order in which it was asked for; nothing if it is not exactly that. The
/// surplus is closed.
pub(crate) fn in_order(
    asked: &[Name],
    handed: Vec<Handed<OwnedFd>>,
) -> Option<Vec<Handed<OwnedFd>>> {
    if handed.len() != asked.len() {
        return None;
    }
    if handed.iter().map(|handed| &handed.name).eq(asked) {
        return Some(handed);
    }
    let mut by_name: BTreeMap<Name, Handed<OwnedFd>> =
        handed.into_iter().map(|handed| (handed.name.clone(), handed)).collect();
    asked.iter().map(|name| by_name.remove(name)).collect()
}

fn takes<'fd>(names: &[Name], taking: Taking) -> Result<Vec<Call<BorrowedFd<'fd>>>, Error> {
    distinct(names, names.len() > MAX_DESCRIPTORS)?;
    let calls = names.chunks(MAX_DESCRIPTORS);
    Ok(calls.map(|names| Call::Take { names: names.to_vec(), taking, timeout_usec: 0 }).collect())
}

pub(crate) fn lend<F: AsFd>(gift: &Gift<F>) -> Gift<BorrowedFd<'_>> {
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
    if !is_split {
        return Ok(());
    }
    let mut seen = BTreeSet::new();
    let twice = names.into_iter().find(|name| !seen.insert(*name));
    twice.map_or(Ok(()), |name| {
        let reason = "it is named twice in one call".to_owned();
        Err(Refusal::InvalidName { name: name.as_str().to_owned(), reason }.into())
    })
}
