//! The stash alone: calls, with little and much held.
//!
//! `cargo bench --package fdstash-stash`. What it holds are numbers here.

use std::hint::black_box;

use criterion::Criterion;
use fdstash_proto::{Access, Call, Clash, Flags, Gift, Keeper, Kind, Name, Pattern, Peer, Taking};
use fdstash_stash::{ConnectionId, Facts, Inspected, Limits, Line, Now, Replay, Stash, Who};

const NOW: Now = Now { boot_usec: 1, wall_usec: 1 };

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    calls(&mut criterion);
    restore(&mut criterion);
    criterion.final_summary();
}

/// A stash that holds so many, and who calls.
fn stash(held: usize) -> (Stash<u32>, ConnectionId) {
    let limits = Limits::new(20_000, 20_000, 40_000);
    let mut stash = Stash::new(limits, Keeper::Process);
    let peer = Peer { uid: 0, gid: 0, pid: 1 };
    let caller = stash.connect(Who { peer, groups: [].into() }).expect("there is room");
    for at in 0..held {
        let side = if at % 2 == 0 { "a" } else { "c" };
        stash.call(caller, give(&format!("{side}/{at}")), NOW);
    }
    (stash, caller)
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a good name")
}

fn give(text: &str) -> Call<Inspected<u32>> {
    let (kind, access, flags) = (Kind::Regular, Access::ReadWrite, Flags::NONE);
    let facts = Facts { kind, access, flags, device: 1, inode: 1, target: None };
    let gifts = vec![Gift::new(name(text), Inspected { fd: 7, facts })];
    Call::Give { gifts, clash: Clash::Replace, ticket: None }
}

fn calls(criterion: &mut Criterion) {
    for held in [1, 10_000] {
        let mut group = criterion.benchmark_group(format!("stash/{held} held"));
        let (mut stash, caller) = stash(held);
        let names = vec![name("b")];
        let take = |taking| Call::Take { names: names.clone(), taking, timeout_usec: 0 };
        group.bench_function("give and close", |bencher| {
            bencher.iter(|| {
                black_box(stash.call(caller, give("b"), NOW));
                let close = Call::Close { names: names.clone(), ticket: None };
                black_box(stash.call(caller, close, NOW));
            });
        });
        group.bench_function("give and take", |bencher| {
            bencher.iter(|| {
                black_box(stash.call(caller, give("b"), NOW));
                black_box(stash.call(caller, take(Taking::Move), NOW));
                black_box(stash.sent(caller, NOW));
            });
        });
        stash.call(caller, give("b"), NOW);
        group.bench_function("copy", |bencher| {
            bencher.iter(|| black_box(stash.call(caller, take(Taking::Copy), NOW)));
        });
        let one = Pattern::new("b").expect("a good pattern");
        group.bench_function("list one", |bencher| {
            bencher.iter(|| black_box(stash.list(caller, &one, None, 16)));
        });
        group.finish();
    }
}

/// What a server does that comes back to much: the lines that say what is kept, read.
fn restore(criterion: &mut Criterion) {
    let (stash, _) = stash(10_000);
    let lines: Vec<Vec<u8>> = stash
        .records()
        .map(|record| {
            let mut bytes = Vec::new();
            record.write(|fd| *fd, &mut bytes);
            bytes
        })
        .collect();
    criterion.bench_function("stash/read 10000 records", |bencher| {
        bencher.iter(|| {
            let mut replay = Replay::default();
            for line in &lines {
                replay.add(Line::read(line).expect("it was just written"));
            }
            black_box(replay.len())
        });
    });
}
