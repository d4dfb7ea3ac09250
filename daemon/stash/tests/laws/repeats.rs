//! What a ticket promises: a call that a crash cuts anywhere, sent again to the stash that comes back,
//! has happened exactly once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fdstash_proto::{Call, Name, Pattern, Refusal, Reply, Ticket};
use fdstash_stash::{
    ConnectionId, Done, Effect, Effects, Facts, Inspected, Now, Opening, Rules, Stash, Who,
};
use proptest::prelude::*;

use super::{
    config,
    cuts::Journal,
    history::histories,
    trace::{Input, Moment, Trace},
    world::play,
};

/// Where the numbers of descriptors begin that are sent again, or opened for what is.
const AGAIN: u64 = 1_000_000;

laws! {
    #[test]
    fn a_call_cut_anywhere_and_sent_again_happens_exactly_once(history in histories()) {
        let trace = play(&history);

        let mut journal = Journal::default();
        let (mut calls, mut rules) = (BTreeMap::new(), Rules::default());
        for (at, _, moment) in trace.steps() {
            if let Input::Rules(others) = &moment.input {
                rules = others.clone();
            }
            calls.extend(moment.call().map(|(by, call)| (by, (call, rules.clone()))));
            let settled = settled(moment).map(|(by, ticket)| (by, ticket, &trace.people[&by]));
            for cut in 0..=moment.performed.len() {
                if let Some((by, ticket, who)) = &settled {
                    let outcome = send_again(&journal, moment, (*by, who), &calls[by], ticket);
                    prop_assert_eq!(outcome, Ok(()), "cut at {} of the last: {}", cut, trace.until(at));
                }
                moment.performed.get(cut).map(|effect| journal.write(effect));
            }
        }
    }
}

/// The call with a ticket that is done at a moment, if one is.
fn settled(moment: &Moment) -> Option<(ConnectionId, Ticket)> {
    let ticket = moment.done().into_iter().flatten().next()?;
    Some((moment.caller()?, ticket))
}

/// Restores a stash from what is in the journal, sends a call to it, and that once more; says what
/// is wrong with what comes of it.
fn send_again(
    journal: &Journal,
    moment: &Moment,
    (by, who): (ConnectionId, &Who),
    (call, rules): &(&Call<Inspected<u64>>, Rules),
    ticket: &Ticket,
) -> Result<(), String> {
    let boot_usec = moment.after.now_usec;
    let now = Now { boot_usec, wall_usec: boot_usec };
    let (mut stash, _) = journal.stash();
    // Those by which it was done the first time, for which there was room.
    stash.set_rules(Rules { quota: Vec::new(), ..rules.clone() }, now);
    stash.go_without(now);
    let before = names_of(&mut stash);
    // A ticket is one call's: whoever gives it to two of them at once gets the answer of one for both.
    let is_its = |done: &Done| done.uid == who.peer.uid && done.ticket == *ticket;
    if journal.done().any(|done| is_its(done) && done.by != by) {
        return Ok(());
    }
    let last = journal.done().filter(|done| done.by == by).last();
    let was_done = last.is_some_and(|done| done.ticket == *ticket);
    let is_commit = matches!(call, Call::Commit { .. });
    let Some(expected) = (if was_done { Some(before) } else { kept_after(call, before) }) else {
        return Ok(());
    };

    let first = carry_out(&mut stash, who, call, now);
    let after_first = names_of(&mut stash);
    let second = carry_out(&mut stash, who, call, now);
    let after_second = names_of(&mut stash);

    let is_undone = is_commit && !was_done;
    let fits = |came: &Came, is_new: bool| {
        let recorded = usize::from(is_new && !is_commit);
        let gifts = if is_new { 0 } else { gifts_of(call) };
        let refused = matches!(came.outcome, Some(Err(Refusal::TransactionState { .. })));
        let done = matches!(came.outcome, Some(Ok(Reply::Done | Reply::Given { .. })));
        came.records == recorded && came.closed >= gifts && if is_undone { refused } else { done }
    };
    let holds = fits(&first, !was_done)
        && fits(&second, false)
        && after_first == expected
        && after_second == expected;
    holds.then_some(()).ok_or_else(|| {
        format!("was done: {was_done}, {first:?} {after_first:?}, then {second:?} {after_second:?}")
    })
}

/// What is kept when a call is done where this was kept; nothing if it cannot be done there, since
/// the crash has ended what is ephemeral.
fn kept_after(call: &Call<Inspected<u64>>, mut kept: BTreeSet<Name>) -> Option<BTreeSet<Name>> {
    match call {
        Call::Give { gifts, .. } => kept.extend(gifts.iter().map(|gift| gift.name.clone())),
        Call::Close { names, .. } if names.iter().all(|name| kept.contains(name)) => {
            kept.retain(|name| !names.contains(name));
        }
        Call::Close { .. } => return None,
        Call::Take { .. }
        | Call::Reopen { .. }
        | Call::Begin
        | Call::Commit { .. }
        | Call::Rollback
        | Call::List { .. }
        | Call::Watch { .. }
        | Call::GetStatistics
        | Call::ExplainPolicy { .. } => {}
    }
    Some(kept)
}

/// What comes of a call.
#[derive(Debug)]
struct Came {
    outcome: Option<Result<Reply<Arc<u64>>, Refusal>>,
    /// How many records with a ticket.
    records: usize,
    closed: usize,
}

/// Calls on a new connection, with descriptors of its own, and opens what is to be opened.
fn carry_out(stash: &mut Stash<u64>, who: &Who, call: &Call<Inspected<u64>>, now: Now) -> Came {
    let by = stash.connect(who.clone()).expect("room");
    let anew = |file: Inspected<u64>| Inspected { fd: AGAIN + file.fd, ..file };
    let call = super::numbers::with_descriptors(call.clone(), anew);
    let mut effects = stash.call(by, call, now);
    let openings = effects.iter().find_map(|effect| {
        let Effect::Open { openings, .. } = effect else { return None };
        Some(openings.iter().map(opened).collect())
    });
    if let Some(files) = openings {
        effects = stash.opened(by, Ok(files), now);
    }
    came(by, effects)
}

fn opened(opening: &Opening<u64>) -> Vec<Inspected<u64>> {
    let facts = |access| Facts { access, flags: opening.flags, ..opening.facts.clone() };
    opening.wanted().map(|access| Inspected { fd: 2 * AGAIN, facts: facts(access) }).collect()
}

fn came(by: ConnectionId, effects: Effects<u64>) -> Came {
    let mut came = Came { outcome: None, records: 0, closed: 0 };
    for effect in effects {
        match effect {
            Effect::Record(record) => came.records += record.done.iter().len(),
            Effect::Answer { to, outcome, .. } if to == by => came.outcome = Some(outcome),
            Effect::Close(fds) => came.closed += fds.len(),
            Effect::Answer { .. }
            | Effect::List { .. }
            | Effect::Open { .. }
            | Effect::Poll(..)
            | Effect::Unpoll(..)
            | Effect::Forget(..)
            | Effect::Tell { .. }
            | Effect::Audit { .. } => {}
        }
    }
    came
}

fn gifts_of(call: &Call<Inspected<u64>>) -> usize {
    if let Call::Give { gifts, .. } = call { gifts.len() } else { 0 }
}

/// What is kept, as root sees it.
fn names_of(stash: &mut Stash<u64>) -> BTreeSet<Name> {
    let [.., root] = super::history::people();
    let by = stash.connect(root).expect("room");
    let (listed, _) = stash.list(by, &Pattern::all(), None, usize::MAX);
    listed.into_iter().map(|listed| listed.entry.name).collect()
}
