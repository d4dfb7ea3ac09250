//! Any bytes as the two files of a journal, and journals that were written and then damaged: what is read
//! of them, and the stash that comes of that.
//!
//! The journal is the daemon's own file, on real memfds. The first byte says what is done with the rest,
//! which is either the files as they are, or [`Deed`]s. Descriptors are numbers, of which each can be
//! claimed once.
#![no_main]

#[allow(dead_code, unexpected_cfgs)]
#[path = "../../daemon/src/journal.rs"]
mod journal;
#[path = "../../daemon/src/mapped.rs"]
mod mapped;
#[allow(dead_code, unexpected_cfgs)]
#[path = "../../daemon/src/steps.rs"]
mod steps;

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
};

use fdstash_proto::{Call, Keeper, Name, Peer};
use fdstash_stash::{
    Begin, Carried, ConnectionId, Details, Done, Effect, Effects, Kept, Limits, Line, Now, Number,
    Replay, Stash, Who,
};
use journal::{Files, Journal};
use libfuzzer_sys::fuzz_target;
use rustix::{
    fs::{fstat, ftruncate},
    io::{pread, pwrite},
};

static FILES: LazyLock<Files> = LazyLock::new(|| journal::create().expect("memory"));

/// What stands before the first line, and before each.
const HEAD: u64 = 20;
const FRAME: u64 = 8;

/// Sooner than anything is due.
const START: Now = Now { boot_usec: 0, wall_usec: 0 };

/// Later than anything is due.
const LATE: Now = Now { boot_usec: u64::MAX / 2, wall_usec: u64::MAX / 2 };

fuzz_target!(|data: &[u8]| {
    let Some((how, rest)) = data.split_first() else { return };
    FILES.iter().for_each(|file| ftruncate(file, 0).expect("shorter"));
    let goes_on = how & 2 != 0;
    if how & 1 == 0 {
        let (at, rest) = rest.split_at(rest.len().min(2));
        let at = at.iter().fold(0, |at, byte| at << 8 | usize::from(*byte));
        let (first, second) = rest.split_at(at.min(rest.len()));
        put(0, first, 0);
        put(1, second, 0);
        come_back(read().0, goes_on);
    } else {
        let (lines, is_readable) = read_of(rest);
        if is_readable {
            come_back(lines, goes_on);
        }
    }
});

/// What is done to a journal: as many bytes as the number behind its own byte says belong to it.
enum Deed {
    /// They are appended, as a line.
    Append,
    /// It is written anew, and they are its one line.
    Rewrite,
    /// The byte at the place that they name becomes another. Nothing is written afterwards.
    Damage,
    /// It ends at the place that they name. Nothing is written afterwards.
    Cut,
}

/// Writes a journal as it is told, and reads it; whether all that was written can be read. What is read is
/// what was written, up to where it is damaged.
fn read_of(mut deeds: &[u8]) -> (Vec<Line>, bool) {
    let mut journal = Journal::open(&FILES).expect("a journal");
    journal.rewrite(0, |_| {}).expect("memory");
    // Behind the last line there is room for more.
    let mut end = HEAD;
    // With the place where each ends.
    let mut written: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut whole_up_to = u64::MAX;
    while let Some((deed, bytes, rest)) = next_deed(deeds) {
        deeds = rest;
        let at = bytes.iter().take(2).fold(0, |at, byte| at << 8 | u64::from(*byte));
        match deed {
            Deed::Append if !bytes.is_empty() => {
                journal.append(|to| to.extend(bytes)).expect("memory");
                end += FRAME + bytes.len() as u64;
                written.push((end, bytes.to_vec()));
            }
            Deed::Rewrite if !bytes.is_empty() => {
                journal.rewrite(0, |lines| lines.push(|to| to.extend(bytes))).expect("memory");
                end = HEAD + FRAME + bytes.len() as u64;
                written = vec![(end, bytes.to_vec())];
            }
            // No line is empty.
            Deed::Append | Deed::Rewrite => {}
            Deed::Damage => {
                whole_up_to = at % end;
                damage(whole_up_to, bytes.get(2).copied().unwrap_or(1).max(1));
                break;
            }
            Deed::Cut => {
                whole_up_to = at % end;
                ftruncate(&FILES[active()], whole_up_to).expect("shorter");
                break;
            }
        }
    }

    let whole = written.iter().take_while(|(end, _)| *end <= whole_up_to).map(|(_, line)| line);
    let expected: Vec<_> = whole.map(|line| Line::read(line)).collect();
    let readable: Vec<_> = expected.iter().map_while(|line| line.as_ref().ok()).collect();
    let (lines, is_read) = read();
    let is_readable = readable.len() == expected.len();
    assert_eq!(format!("{lines:?}"), format!("{readable:?}"));
    assert_eq!(is_read, is_readable);
    (lines, is_readable)
}

fn next_deed(deeds: &[u8]) -> Option<(Deed, &[u8], &[u8])> {
    let (&[deed, high, low], rest) = deeds.split_first_chunk()?;
    let count = usize::from(u16::from_be_bytes([high, low]));
    let (bytes, rest) = rest.split_at(count.min(rest.len()));
    let deed = match deed % 16 {
        0 => Deed::Damage,
        1 => Deed::Cut,
        2 => Deed::Rewrite,
        _ => Deed::Append,
    };
    Some((deed, bytes, rest))
}

fn read() -> (Vec<Line>, bool) {
    let mut lines = Vec::new();
    let outcome = journal::read(&FILES, |line| lines.push(line));
    (lines, outcome.is_ok())
}

/// The file that was written last: the other has been made empty.
fn active() -> usize {
    usize::from(fstat(&FILES[1]).is_ok_and(|facts| facts.st_size > 0))
}

fn put(file: usize, bytes: &[u8], at: u64) {
    assert_eq!(pwrite(&FILES[file], bytes, at), Ok(bytes.len()));
}

fn damage(at: u64, by: u8) {
    let mut byte = [0];
    assert_eq!(pread(&FILES[active()], &mut byte, at), Ok(1));
    put(active(), &[byte[0] ^ by], at);
}

/// Goes on as the daemon does, and ends everything.
fn come_back(lines: Vec<Line>, goes_on: bool) {
    let mut replay = Replay::default();
    lines.into_iter().for_each(|line| replay.add(line));
    if !goes_on {
        replay.forget_connections();
    }
    let carried = replay.take_carried();
    let numbers: BTreeSet<Number> = replay.numbers().collect();
    let mut claimed = BTreeSet::new();
    let mut claim = |number: Number| claimed.insert(number).then_some(number);
    let carried: Vec<_> = carried
        .into_iter()
        .filter(|one| {
            let all_fds = one.fds.iter().all(|fd| claim(*fd).is_some());
            claim(one.number).is_some() && all_fds
        })
        .collect();
    let of_connections = claimed.clone();
    let (mut stash, mut effects) =
        restored(replay, |number| claimed.insert(number).then_some(number));

    let held: BTreeSet<_> = stash.kept().map(|kept| *kept.fd).collect();
    let of_stash: BTreeSet<_> = claimed.difference(&of_connections).copied().collect();
    let closed = closed(&effects);
    assert!(held.is_disjoint(&closed));
    assert_eq!(&held | &closed, of_stash, "what was claimed is held, or is to be closed");
    assert!(held.is_subset(&numbers), "of what is claimed, the journal knows");
    assert_eq!(stash.count(), held.len());
    assert_eq!(stash.statistics().entries, held.len() as u64);
    written_anew(&stash);

    let Begin { last_entry, last_connection, revision, .. } = stash.begin_journal();
    if [last_entry, last_connection, revision].into_iter().any(|count| count > u64::MAX / 2) {
        // Nobody has ever counted so far, and from the highest number nobody can count on.
        return;
    }
    let mut connections: BTreeSet<ConnectionId> = BTreeSet::new();
    for Carried { id, doing, .. } in carried {
        stash.resume(id, somebody(), doing, START);
        connections.insert(id);
    }
    effects.extend(stash.go_without(START));
    end(stash, effects, connections, &of_stash);
}

fn restored(
    replay: Replay,
    mut claim: impl FnMut(Number) -> Option<Number>,
) -> (Stash<Number>, Effects<Number>) {
    let limits = Limits::new(1 << 20, 1 << 20, 1 << 21);
    let claim = |kept: &Kept<Number>| claim(*kept.fd).map(Arc::new);
    Stash::restore(limits, Keeper::Process, replay, claim)
}

/// What is written anew comes to the same.
fn written_anew(stash: &Stash<Number>) {
    let mut lines = vec![line(|bytes| stash.begin_journal().write(bytes))];
    lines.extend(stash.records().map(|record| line(|bytes| record.write(|fd| *fd, bytes))));
    let mut replay = Replay::default();
    lines.iter().for_each(|line| replay.add(Line::read(line).expect("what was written here")));
    let (again, _) = restored(replay, Some);

    assert_eq!(all_of(&again), all_of(stash));
    let Begin { restores, .. } = stash.begin_journal();
    let begin = Begin { restores: restores.saturating_add(1), ..stash.begin_journal() };
    assert_eq!(again.begin_journal(), begin);
}

fn all_of(stash: &Stash<Number>) -> (Vec<(Number, Details)>, Vec<Done>, Option<u64>) {
    let kept = stash.kept().map(|kept| (*kept.fd, Details::clone(&kept.details))).collect();
    (kept, stash.tickets().cloned().collect(), stash.next_due())
}

fn line(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

/// Everybody leaves, and root closes what is left: every descriptor ends once.
fn end(
    mut stash: Stash<Number>,
    mut effects: Effects<Number>,
    connections: BTreeSet<ConnectionId>,
    held: &BTreeSet<Number>,
) {
    effects.extend(stash.tick(LATE));
    for id in connections {
        // Either the answer of a Take that has waited has left, or nothing was to leave.
        effects.extend(stash.sent(id, LATE));
        effects.extend(stash.disconnect(id, LATE));
    }
    let root = Who { peer: Peer { uid: 0, gid: 0, pid: 1 }, groups: [].into() };
    let by = stash.connect(root).expect("room");
    let names: Vec<Name> = stash.kept().map(|kept| kept.details.name.clone()).collect();
    effects.extend(stash.call(by, Call::Close { names, ticket: None }, LATE));
    effects.extend(stash.disconnect(by, LATE));

    assert_eq!(&closed(&effects), held, "all that was held is closed");
    assert_eq!(stash.count(), 0);
    assert_eq!(stash.statistics().entries, 0);
}

/// What is to be closed, each once.
fn closed(effects: &Effects<Number>) -> BTreeSet<Number> {
    let mut closed = BTreeSet::new();
    for effect in effects {
        if let Effect::Close(fds) = effect {
            for fd in fds {
                assert!(closed.insert(**fd), "{fd} is closed twice");
            }
        }
    }
    closed
}

fn somebody() -> Who {
    Who { peer: Peer { uid: 1, gid: 1, pid: 1 }, groups: [2].into() }
}
