//! How long it takes until everything is back: after the server was killed, and over an upgrade.
//!
//! `cargo bench --package fdstash-tests --bench restore`. Times are told beside what the kernel takes
//! in the same run to pass as many descriptors through a socket, bare, which is the least that any
//! other process could take to get them back.

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use fdstash::{Gift, Name};
use kit::{Daemon, pattern, raise_open_files};
use rustix::{
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
    process::{Signal, kill_process},
};

/// How often each is measured.
const ROUNDS: usize = 9;

/// How many descriptors a message carries at most.
const MOST: usize = 253;

fn main() {
    raise_open_files();
    println!("{:>9}  {:>12}  {:>22}  {:>22}", "held", "kernel", "after SIGKILL", "over an upgrade");
    for held in [1, 100, 1000, 5000, 10_000, 19_900] {
        let kernel = median(|| pass(held));
        let (killed, upgraded) = restores(held);
        let ratio = |time: Duration| time.as_secs_f64() / kernel.as_secs_f64();
        println!(
            "{held:>9}  {:>9.2} ms  {:>9.2} ms {:>7.1} x  {:>9.2} ms {:>7.1} x",
            msec(kernel),
            msec(killed),
            ratio(killed),
            msec(upgraded),
            ratio(upgraded),
        );
    }
}

/// From the signal to the first answer, which comes when all is back.
fn restores(held: usize) -> (Duration, Duration) {
    let daemon = Daemon::builder().quiet().spawn();
    let mut client = daemon.client();
    let file = File::open("/dev/null").expect("there is a /dev/null");
    let held = held.min(usize::try_from(daemon.statistics().max_entries).unwrap_or(held));
    for start in (0..held).step_by(MOST) {
        let names = (start..held.min(start + MOST)).map(|at| format!("entry/{at}"));
        let gifts: Vec<_> = names
            .map(|name| Gift::new(Name::new(&name).expect("a good name"), file.as_fd()))
            .collect();
        client.give(&gifts).expect("there is room");
    }
    let server = || daemon.serving().expect("there is a server");
    let killed = median(|| {
        daemon.back_after(|| kill_process(server(), Signal::KILL).expect("it can be killed"))
    });
    let upgraded = median(|| daemon.back_after(|| daemon.signal(Signal::HUP)));
    assert_eq!(client.list(&pattern("*")).expect("a list").len(), held);
    (killed, upgraded)
}

/// Sends so many descriptors through a socket, and receives them.
fn pass(count: usize) -> Duration {
    let flags = SocketFlags::CLOEXEC;
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .expect("sockets can be made");
    let file = File::open("/dev/null").expect("there is a /dev/null");
    let mut received: Vec<OwnedFd> = Vec::with_capacity(count);
    let began = Instant::now();
    for start in (0..count).step_by(MOST) {
        let fds = vec![file.as_fd(); MOST.min(count - start)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&one, &[IoSlice::new(&[0])], &mut control, SendFlags::empty())
            .expect("descriptors can be sent");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        recvmsg(&other, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .expect("descriptors can be received");
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                received.extend(fds);
            }
        }
    }
    let time = began.elapsed();
    assert_eq!(received.len(), count);
    time
}

fn median(mut measure: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = (0..ROUNDS).map(|_| measure()).collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

fn msec(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
