//! The journal alone: a record appended, all of it written anew, and read.
//!
//! `cargo bench --package fdstashd`.

#[path = "../src/journal.rs"]
#[allow(dead_code, unreachable_pub, reason = "the daemon's own, of which this needs a part")]
mod journal;
#[path = "../src/mapped.rs"]
mod mapped;
#[path = "../src/steps.rs"]
#[allow(dead_code, unused_imports, reason = "the daemon's own, of which this needs a part")]
mod steps;

use std::hint::black_box;

use criterion::Criterion;
use fdstash_proto::{Access, Call, Clash, Flags, Gift, Keeper, Kind, Name, Peer};
use fdstash_stash::{Effect, Facts, Inspected, Limits, Now, Record, Stash, Who};

use crate::journal::Journal;

/// How many entries are held when all of them are written and read.
const HELD: usize = 10_000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    journal(&mut criterion);
    criterion.final_summary();
}

/// A stash that holds so many, and the last record of it.
fn stash() -> (Stash<u32>, Record<u32>) {
    let mut stash = Stash::new(Limits::new(20_000, 100, 40_000), Keeper::Process);
    let peer = Peer { uid: 0, gid: 0, pid: 1 };
    let by = stash.connect(Who { peer, groups: [].into() }).expect("there is room");
    let mut last = None;
    for at in 0..HELD {
        let name = Name::new(&format!("entry/{at}")).expect("a good name");
        let (kind, access, flags) = (Kind::Regular, Access::ReadWrite, Flags::NONE);
        let facts = Facts { kind, access, flags, device: 1, inode: 1, target: None };
        let gifts = vec![Gift::new(name, Inspected { fd: 7, facts })];
        let call = Call::Give { gifts, clash: Clash::Refuse, ticket: None };
        for effect in stash.call(by, call, Now { boot_usec: 1, wall_usec: 1 }) {
            if let Effect::Record(record) = effect {
                last = Some(record);
            }
        }
    }
    (stash, last.expect("a gift leaves a record"))
}

fn rewrite(journal: &mut Journal, stash: &Stash<u32>) {
    let lines = |lines: &mut journal::Lines| {
        lines.push(|bytes| stash.begin_journal().write(bytes));
        for record in stash.records() {
            lines.push(|bytes| record.write(|fd| *fd, bytes));
        }
    };
    journal.rewrite(stash.weight().promised, lines).expect("there is memory");
}

fn journal(criterion: &mut Criterion) {
    let files = Box::leak(Box::new(journal::create().expect("there is memory")));
    let mut journal = Journal::open(files).expect("it is new");
    let (stash, record) = stash();
    let mut group = criterion.benchmark_group("journal");
    group.bench_function(format!("write {HELD} entries anew"), |bencher| {
        bencher.iter(|| rewrite(&mut journal, &stash));
    });
    group.bench_function(format!("read {HELD} entries"), |bencher| {
        bencher.iter(|| journal::read(files, |line| drop(black_box(line))).expect("it is whole"));
    });
    group.bench_function("append a record", |bencher| {
        bencher.iter(|| {
            journal.append(|bytes| record.write(|fd| *fd, bytes)).expect("there is memory");
            // As the daemon does, now and then.
            if journal.is_heavy(stash.weight().kept) {
                rewrite(&mut journal, &stash);
            }
        });
    });
    group.finish();
}
