//! Calls, replies and effects with numbers in the place of descriptors; and what the number of a
//! descriptor says of it.

use std::{convert::Infallible, sync::Arc};

use fdstash_proto::{Access, Call, Entry, Flags, Handed, Kind, Name, Reply, Taking};
use fdstash_stash::{Facts, Kept, Opening, Verb};

use super::{
    token::Token,
    trace::{Waits, Written},
};

/// What is given, told by its number: mostly files for reading and writing, and some others.
pub(crate) fn facts_of(number: u64) -> Facts {
    let (kind, access, flags) = match number % 9 {
        0 => (Kind::Regular, Access::Read, Flags::NONE),
        1 => (Kind::Fifo, Access::Read, Flags::NONBLOCK),
        2 => (Kind::Socket, Access::ReadWrite, Flags::NONE),
        3 => (Kind::Regular, Access::ReadWrite, Flags::APPEND),
        4 => (Kind::Block, Access::ReadWrite, Flags::DIRECT),
        _ => (Kind::Regular, Access::ReadWrite, Flags::NONE),
    };
    // Of every other it is said only later.
    let target = (number % 2 == 1).then(|| target_of(number));
    Facts { kind, access, flags, device: 7, inode: number, target }
}

/// Where a descriptor of such a file points.
pub(crate) fn target_of(inode: u64) -> Box<str> {
    format!("/images/{inode}").into()
}

/// An entry as the daemon shows it, which asks where it points, if that is not known yet.
pub(crate) fn shown(entry: Entry) -> Entry {
    let target = entry.target.or_else(|| Some(target_of(entry.inode).into()));
    Entry { target, ..entry }
}

/// What a call waits for when it is made, if it waits.
pub(crate) fn waits_of(call: &Call<()>, now_usec: u64) -> Waits {
    match call {
        Call::Take { timeout_usec, .. } if *timeout_usec > 0 => {
            Waits::Names(now_usec + timeout_usec)
        }
        Call::Watch { .. } => Waits::Changes,
        Call::Give { .. }
        | Call::Take { .. }
        | Call::Close { .. }
        | Call::Reopen { .. }
        | Call::Begin
        | Call::Commit { .. }
        | Call::Rollback
        | Call::List { .. }
        | Call::GetStatistics
        | Call::ExplainPolicy { .. } => Waits::Answer,
    }
}

/// What a call wants, if that is one thing of one name.
pub(crate) fn only_wish<F>(call: &Call<F>) -> Option<(Name, Verb)> {
    match call {
        Call::Give { gifts, .. } => {
            let [only] = gifts.as_slice() else { return None };
            Some((only.name.clone(), Verb::Give))
        }
        Call::Take { names, taking, .. } => {
            let verb = if *taking == Taking::Move { Verb::Take } else { Verb::Copy };
            <[Name; 1]>::try_from(names.clone()).ok().map(|[name]| (name, verb))
        }
        Call::Close { names, .. } => {
            <[Name; 1]>::try_from(names.clone()).ok().map(|[name]| (name, Verb::Close))
        }
        Call::Reopen { reopenings } => {
            let [only] = reopenings.as_slice() else { return None };
            let verb = if only.path.is_some() { Verb::ReopenByPath } else { Verb::Reopen };
            Some((only.name.clone(), verb))
        }
        Call::Begin
        | Call::Commit { .. }
        | Call::Rollback
        | Call::List { .. }
        | Call::Watch { .. }
        | Call::GetStatistics
        | Call::ExplainPolicy { .. } => None,
    }
}

/// The same call with other descriptors.
pub(crate) fn with_descriptors<F, G>(call: Call<F>, mut step: impl FnMut(F) -> G) -> Call<G> {
    match call.try_map(|fd| Ok::<G, Infallible>(step(fd))) {
        Ok(call) => call,
    }
}

pub(crate) fn numbers_of(reply: Reply<Arc<Token>>) -> Reply<u64> {
    match reply {
        Reply::Handed(handed) => {
            let numbers =
                handed.into_iter().map(|Handed { name, fd }| Handed { name, fd: fd.number });
            Reply::Handed(numbers.collect())
        }
        Reply::Done => Reply::Done,
        Reply::Given { replaced } => Reply::Given { replaced },
        Reply::Listed(entries) => Reply::Listed(entries),
        Reply::Notice(notice) => Reply::Notice(notice),
        Reply::Statistics(statistics) => Reply::Statistics(statistics),
        Reply::Explained(explanation) => Reply::Explained(explanation),
        Reply::Info(info) => Reply::Info(info),
        Reply::Description(text) => Reply::Description(text),
    }
}

pub(crate) fn number_of(opening: &Opening<Token>) -> Opening<u64> {
    Opening {
        name: opening.name.clone(),
        fd: opening.fd.number.into(),
        place: opening.place.clone(),
        facts: opening.facts.clone(),
        access: opening.access,
        flags: opening.flags,
        rights: opening.rights,
        asker: opening.asker.clone(),
        count: opening.count,
        hand_out: opening.hand_out,
    }
}

pub(crate) fn written(kept: &Kept<Token>) -> Written {
    let details = &kept.details;
    Written {
        id: details.id,
        name: details.name.clone(),
        details: (**details).clone(),
        fd: kept.fd.number,
        ephemeral: details.ends().ephemeral_of.is_some(),
    }
}
