//! The codec alone: from bytes to a call, and from a reply to bytes.
//!
//! `cargo bench --package fdstash-proto`. Descriptors are numbers here.

use std::hint::black_box;

use criterion::{BatchSize, Criterion};
use fdstash_proto::{
    Call, Clash, Gift, Handed, Inbox, Mode, Name, Outbox, Reply, Taking, call, reply,
};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    codec(&mut criterion);
    criterion.final_summary();
}

fn gifts(count: usize) -> Vec<Gift<u32>> {
    (0..).take(count).map(|at| Gift::new(name(at), at)).collect()
}

fn name(at: u32) -> Name {
    Name::new(&format!("entry/{at}")).expect("a good name")
}

fn give(count: usize) -> Call<u32> {
    Call::Give { gifts: gifts(count), clash: Clash::Replace, ticket: None }
}

fn take() -> Call<u32> {
    Call::Take { names: vec![name(0)], taking: Taking::Move, timeout_usec: 0 }
}

/// So many of the same call in one read.
fn read(inbox: &mut Inbox<u32>, bytes: &[u8], fds: &[u32]) {
    inbox.feed(bytes, fds.iter().copied()).expect("they are in order");
    while let Some(incoming) = inbox.next_call().expect("they are calls") {
        black_box(incoming);
    }
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for (what, call, times) in [
        ("read a Give", give(1), 1),
        ("read a Take", take(), 1),
        ("read 16 Gives at once", give(1), 16),
        ("read a Give of 253", give(253), 1),
    ] {
        let frame = call::write(call, Mode::Once);
        let (bytes, fds) = (frame.bytes.repeat(times), frame.fds.repeat(times));
        let mut inbox = Inbox::for_calls();
        group.bench_function(what, |bencher| bencher.iter(|| read(&mut inbox, &bytes, &fds)));
    }
    let handed = |count| (0..count).map(|at| Handed { name: name(at), fd: at }).collect();
    for (what, handed) in [("write a Handed", handed(1)), ("write a Handed of 253", handed(253))] {
        let handed: Vec<_> = handed;
        group.bench_function(what, |bencher| {
            let reply = || Reply::Handed(handed.clone());
            bencher.iter_batched(reply, |it| reply::write(Ok(it), false), BatchSize::SmallInput);
        });
    }
    group.bench_function("send and forget a reply", |bencher| {
        let mut outbox = Outbox::new();
        let mut bytes = Vec::new();
        let frame = || reply::write::<u32>(Ok(Reply::Done), false);
        let send = |frame| {
            outbox.push(frame, ());
            bytes.clear();
            black_box(outbox.next_send(&mut bytes, 1 << 16));
            outbox.advance(bytes.len(), |frame, ()| drop(frame));
        };
        bencher.iter_batched(frame, send, BatchSize::SmallInput);
    });
    group.finish();
}
