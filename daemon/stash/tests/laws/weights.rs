//! How much room what is written down takes: never more than was said before, and nothing when all
//! has gone. Everything is as long here as it can be.

use std::{collections::BTreeMap, sync::Arc};

use fdstash_proto::{
    Access, Call, Flags, Keeper, Kind, Labels, Name, Pattern, Peer, Ticket, proptest as proto,
};
use fdstash_stash::{
    Allow, Begin, ConnectionId, Effect, Effects, Facts, Inspected, Limits, Line, Now, OpenFailure,
    Opening, Origin, Replay, Rules, Stash, Verb, Weight, Who, Whom,
};
use proptest::{collection, prelude::*, sample};

use super::{
    config,
    journal::{FRAME, line},
    numbers::with_descriptors,
};

/// Where counting begins, so that numbers are long.
const FAR: u64 = u64::MAX / 2;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_written_takes_no_more_room_than_was_said_and_nothing_when_all_is_gone(
        steps in collection::vec(step(), 1..30),
    ) {
        let mut scale = Scale::new();

        for step in steps {
            scale.step(step);
            prop_assert!(scale.written <= scale.room, "{} of {}", scale.written, scale.room);
            let (bytes, Weight { kept, .. }) = (scale.bytes(), scale.stash.weight());
            prop_assert!(bytes <= kept, "{bytes} bytes are kept, and {kept} were said");
        }

        scale.end();
        prop_assert!(scale.written <= scale.room, "{} of {}", scale.written, scale.room);
        prop_assert_eq!(scale.stash.weight(), Scale::new().stash.weight());
    }
}

#[test]
fn the_longest_of_calls_finds_room_and_all_that_follows_from_it() {
    let names: Vec<_> = (0..253).map(|at| Name::new(&format!("{at:0>255}")).unwrap()).collect();
    let ticket = |at: usize| Some(Ticket::new(&format!("{at:0>64}")).unwrap());
    let gifts = |scale: &Scale| {
        let gift = |name: &Name| fdstash_proto::Gift {
            ephemeral: true,
            expire_usec: Some(FAR),
            close_on_hangup: true,
            labels: Labels::from([("k".repeat(100), "n".repeat(100))]),
            ..fdstash_proto::Gift::new(name.clone(), scale.file())
        };
        names.iter().map(gift).collect::<Vec<_>>()
    };
    let mut scale = Scale::new();
    let by = scale.callers[0];
    for at in 0..3 {
        let clash = fdstash_proto::Clash::Replace;
        scale.call(by, Call::Give { gifts: gifts(&scale), clash, ticket: ticket(at) });
        assert!(scale.written <= scale.room, "the record of all, and of all that they replace");
    }

    let effects = scale.stash.disconnect(by, scale.now());
    scale.perform(effects);

    assert!(scale.written <= scale.room, "and their end");
}

#[test]
fn a_reopen_by_path_finds_room_for_the_longest_way_to_a_file() {
    let name = Name::new("a").unwrap();
    let allow = Allow {
        whom: Whom { users: [u32::MAX - 1].into(), ..Whom::default() },
        names: vec![Pattern::all()],
        verbs: [Verb::ReopenByPath].into(),
        below: vec!["/".into()],
        origin: Origin { file: "policy.toml".into(), line: 1 },
    };
    let mut scale = Scale::new();
    let by = scale.callers[0];
    let rules = Rules { allow: vec![allow], ..Rules::default() };
    scale.stash.set_rules(rules, scale.now());
    let gifts = vec![fdstash_proto::Gift::new(name.clone(), scale.file())];
    scale.call(by, Call::Give { gifts, clash: fdstash_proto::Clash::Replace, ticket: None });
    let reopening =
        fdstash_proto::Reopening { path: Some("/b".into()), ..fdstash_proto::Reopening::new(name) };
    scale.call(by, Call::Reopen { reopenings: vec![reopening] });
    assert_eq!(scale.openings.len(), 1);

    // All that the kernel ever says, of which nothing is UTF-8.
    let target = Some("\u{fffd}".repeat(4096).into());
    let facts = Facts { inode: 1, target, ..scale.file().facts };
    let file = Inspected { fd: 2, facts };
    let effects = scale.stash.opened(by, Ok(vec![vec![file.clone(), file]]), scale.now());
    scale.perform(effects);

    assert!(scale.written > 12_000);
    assert!(scale.written <= scale.room, "{} of {}", scale.written, scale.room);
    assert!(scale.bytes() <= scale.stash.weight().kept);
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    Call(usize, Call<()>),
    Opened(bool),
    Left(usize, bool),
    Tick(u64),
    HangUp,
    Reconnect(usize),
    Rewrite,
}

fn step() -> impl Strategy<Value = Step> {
    let name = || {
        sample::select(vec!["a", "b", "c", "d"])
            .prop_map(|text| Name::new(&text.repeat(255)).expect("as it should be"))
    };
    let ticket =
        || (0u32..8).prop_map(|at| Ticket::new(&format!("{at:0>64}")).expect("as it should be"));
    let which = || 0usize..4;
    prop_oneof![
        20 => (which(), proto::call(name, ticket)).prop_map(|(by, call)| Step::Call(by, call)),
        5 => prop::bool::weighted(0.8).prop_map(Step::Opened),
        5 => (which(), any::<bool>()).prop_map(|(by, left)| Step::Left(by, left)),
        2 => (0u64..1000).prop_map(Step::Tick),
        1 => Just(Step::HangUp),
        2 => which().prop_map(Step::Reconnect),
        1 => Just(Step::Rewrite),
    ]
}

/// A stash, and what is written down of it, weighed.
struct Scale {
    stash: Stash<u64>,
    callers: Vec<ConnectionId>,
    /// Whose calls have no answer yet, or one that is to leave.
    busy: BTreeMap<ConnectionId, bool>,
    openings: Vec<(ConnectionId, Vec<Opening<u64>>)>,
    polled: Vec<fdstash_stash::EntryId>,
    boot_usec: u64,
    written: usize,
    room: usize,
}

impl Scale {
    fn new() -> Self {
        let begin = Begin { restores: FAR, last_entry: FAR, last_connection: FAR, revision: FAR };
        let mut replay = Replay::default();
        replay.add(Line::Begin(begin));
        let limits = Limits::new(1000, 1000, 10_000);
        let (stash, _) = Stash::restore(limits, Keeper::Nobody, replay, |_| None);
        let mut scale = Self {
            stash,
            callers: Vec::new(),
            busy: BTreeMap::new(),
            openings: Vec::new(),
            polled: Vec::new(),
            boot_usec: FAR,
            written: 0,
            room: 0,
        };
        for _ in 0..4 {
            let by = scale.stash.connect(somebody()).expect("room");
            scale.callers.push(by);
        }
        scale.rewrite();
        scale
    }

    fn step(&mut self, step: Step) {
        let effects = match step {
            Step::Call(which, call) => {
                let by = self.callers[which];
                if !self.busy.contains_key(&by) {
                    let file = self.file();
                    self.call(by, with_descriptors(call, |()| file.clone()));
                }
                return;
            }
            Step::Opened(well) => {
                let Some((by, openings)) = self.openings.pop() else { return };
                let opened = |opening: &Opening<u64>| vec![self.file(); opening.wanted().count()];
                let (errno, errno_name, message) = (5, String::new(), String::new());
                let outcome = well
                    .then(|| openings.iter().map(opened).collect())
                    .ok_or(OpenFailure { at: 0, errno, errno_name, message });
                self.stash.opened(by, outcome, self.now())
            }
            Step::Left(which, left) => {
                let by = self.callers[which];
                if self.busy.get(&by) != Some(&true) {
                    return;
                }
                self.busy.remove(&by);
                let now = self.now();
                if left { self.stash.sent(by, now) } else { self.stash.unsent(by, now) }
            }
            Step::Tick(usec) => {
                self.boot_usec += usec;
                self.stash.tick(self.now())
            }
            Step::HangUp => {
                let Some(id) = self.polled.pop() else { return };
                self.stash.hung_up(id, self.now())
            }
            Step::Reconnect(which) => {
                let by = std::mem::replace(
                    &mut self.callers[which],
                    self.stash.connect(somebody()).expect("room"),
                );
                self.busy.remove(&by);
                self.stash.disconnect(by, self.now())
            }
            Step::Rewrite => return self.rewrite(),
        };
        self.perform(effects);
    }

    /// Calls, with room made before it as the daemon does.
    fn call(&mut self, by: ConnectionId, call: Call<Inspected<u64>>) {
        let added = self.stash.weight_of(&call);
        if added > 0 {
            self.room = self.room.max(self.written + self.stash.weight().promised + added);
        }
        self.busy.insert(by, false);
        let effects = self.stash.call(by, call, self.now());
        self.perform(effects);
    }

    fn perform(&mut self, effects: Effects<u64>) {
        for effect in effects {
            match effect {
                Effect::Record(record) => {
                    let line = line(|bytes| record.write(|_| u32::MAX, bytes));
                    self.written += FRAME + line.len();
                }
                Effect::Answer { to, confirm: true, .. } => drop(self.busy.insert(to, true)),
                Effect::Answer { to, .. } | Effect::List { to, .. } => {
                    self.busy.remove(&to);
                }
                Effect::Open { by, openings } => self.openings.push((by, openings)),
                Effect::Poll(id, _) => self.polled.push(id),
                Effect::Unpoll(..)
                | Effect::Forget(..)
                | Effect::Close(_)
                | Effect::Tell { .. }
                | Effect::Audit { .. } => {}
            }
        }
    }

    fn rewrite(&mut self) {
        self.written = FRAME + line(|bytes| self.stash.begin_journal().write(bytes)).len();
        self.written += self.bytes();
        self.room = self.written + self.stash.weight().promised;
    }

    /// What it takes to write down all that is kept.
    fn bytes(&self) -> usize {
        let lines = self.stash.records().map(|it| line(|bytes| it.write(|_| u32::MAX, bytes)));
        lines.map(|line| FRAME + line.len()).sum()
    }

    /// Everybody goes, everything is closed, and long enough passes for all tickets to be forgotten.
    fn end(&mut self) {
        for which in 0..self.callers.len() {
            self.step(Step::Reconnect(which));
        }
        while !self.openings.is_empty() {
            self.step(Step::Opened(true));
        }
        let names: Vec<_> = self.stash.kept().map(|kept| kept.details.name.clone()).collect();
        self.call(self.callers[0], Call::Close { names, ticket: None });
        self.boot_usec += 60_000_000;
        self.step(Step::Reconnect(0));
    }

    fn now(&self) -> Now {
        Now { boot_usec: self.boot_usec, wall_usec: u64::MAX }
    }

    fn file(&self) -> Inspected<u64> {
        let facts = Facts {
            kind: Kind::Regular,
            access: Access::ReadWrite,
            flags: Flags::NONE,
            device: u64::MAX,
            inode: u64::MAX,
            target: Some("/t".repeat(200).into()),
        };
        Inspected { fd: 1, facts }
    }
}

fn somebody() -> Who {
    Who { peer: Peer { uid: u32::MAX - 1, gid: u32::MAX - 1, pid: -1 }, groups: Arc::new([]) }
}
