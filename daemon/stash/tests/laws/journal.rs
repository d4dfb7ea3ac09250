//! [`Journal`]: what a history has written down, as the bytes of its lines; and what comes back of it.

use std::sync::Arc;

use fdstash_proto::{Call, Keeper, Mode};
use fdstash_stash::{
    Carried, Details, Effect, Effects, Inspected, Limits, Line, Number, Pointed, Record, Replay,
    Stash, write_handover,
};

use super::token::Token;

/// What the daemon puts around each line.
pub(crate) const FRAME: usize = 8;

/// All that is written down since it was last written anew.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    lines: Vec<Vec<u8>>,
    /// How many bytes there are, and for how many room was made.
    pub(crate) written: usize,
    pub(crate) room: usize,
}

impl Journal {
    /// Makes room for a call and what it may lead to, as the daemon does before it begins one.
    pub(crate) fn make_room(&mut self, stash: &Stash<Token>, call: &Call<Inspected<Token>>) {
        let added = stash.weight_of(call);
        if added > 0 {
            self.room = self.room.max(self.written + stash.weight().promised + added);
        }
    }

    /// The same for where descriptors point.
    pub(crate) fn make_room_for_targets(&mut self, stash: &Stash<Token>, pointed: &[Pointed]) {
        let added = stash.weight().promised + stash.weight_of_targets(pointed);
        self.room = self.room.max(self.written + added);
    }

    /// Writes a record down, and hands back its line.
    pub(crate) fn append(&mut self, record: &Record<Token>) -> Vec<u8> {
        let line = line(|bytes| record.write(number, bytes));
        self.written += FRAME + line.len();
        self.lines.push(line.clone());
        line
    }

    /// Writes all of it anew.
    pub(crate) fn rewrite(&mut self, stash: &Stash<Token>) {
        self.lines = vec![line(|bytes| stash.begin_journal().write(bytes))];
        let records = stash.records().map(|record| line(|bytes| record.write(number, bytes)));
        self.lines.extend(records);
        self.written = self.lines.iter().map(|line| FRAME + line.len()).sum();
        self.room = self.written + stash.weight().promised;
    }

    /// What the next daemon reads: all of this, and who goes on.
    pub(crate) fn handed_over(&self, stash: &Stash<Token>) -> Replay {
        let carried = stash.carry().into_iter().map(|(id, doing)| Carried {
            id,
            number: 7,
            mode: Mode::More,
            doing,
            lost: id.0,
            bytes: id.0.to_le_bytes().to_vec(),
            fds: vec![8, 9],
        });
        let carried: Vec<_> = carried.collect();
        let begin = line(|bytes| stash.begin_journal().write(bytes));
        let handover = line(|bytes| write_handover(&carried, bytes));
        let Ok(Line::Handover(read)) = Line::read(&handover) else { panic!("a handover") };
        assert_eq!(read, carried);
        replay(self.lines.iter().chain([&begin, &handover]))
    }
}

/// What comes back after a crash: a stash of numbers, and what is to be done for it.
pub(crate) fn restored<'a>(
    lines: impl IntoIterator<Item = &'a Vec<u8>>,
) -> (Stash<u64>, Effects<u64>) {
    let limits = Limits::new(100, 1000, 10_000);
    let mut replay = replay(lines);
    replay.forget_connections();
    assert!(replay.take_carried().is_empty());
    Stash::restore(limits, Keeper::Nobody, replay, |kept| Some(Arc::new(u64::from(*kept.fd))))
}

/// What is kept, with all that is known of it.
pub(crate) fn kept(stash: &Stash<u64>) -> Vec<(u64, Details)> {
    let mut kept: Vec<_> =
        stash.kept().map(|kept| (*kept.fd, Details::clone(&kept.details))).collect();
    kept.sort_by_key(|(_, details)| details.id);
    kept
}

/// What is polled.
pub(crate) fn polled(effects: &Effects<u64>) -> Vec<u64> {
    let polled = effects.iter().map(|effect| {
        let Effect::Poll(_, fd) = effect else { panic!("a restored stash wants {effect:?}") };
        **fd
    });
    let mut polled: Vec<_> = polled.collect();
    polled.sort_unstable();
    polled
}

pub(crate) fn line(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

pub(crate) fn replay<'a>(lines: impl IntoIterator<Item = &'a Vec<u8>>) -> Replay {
    let mut replay = Replay::default();
    for line in lines {
        replay.add(Line::read(line).expect("its own bytes"));
    }
    replay
}

fn number(token: &Token) -> Number {
    Number::try_from(token.number).expect("a small number")
}
