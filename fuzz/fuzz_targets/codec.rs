//! Any bytes, with any descriptors beside them, in any cuts, into an inbox.
//!
//! The first byte says whether they are calls or which replies they are. In the rest a byte from 0xf8
//! on, which no UTF-8 has, begins another `sendmsg`, with as many descriptors beside it as its last
//! three bits say. Descriptors are numbers here, so that each can be told from all others.
#![no_main]

use std::fmt::Debug;

use fdstash_proto::{
    Call, Handed, Hangup, Inbox, Incoming, Mode, Outbox, Refusal, Reply, Request, call,
    reply::{self, Answer, Expect, Refused},
};
use libfuzzer_sys::fuzz_target;

const EXPECTED: [Expect; 9] = [
    Expect::Done,
    Expect::Given,
    Expect::Handed,
    Expect::Listed,
    Expect::Notice,
    Expect::Statistics,
    Expect::Explained,
    Expect::Info,
    Expect::Description,
];

fuzz_target!(|data: &[u8]| {
    let Some((kind, stream)) = data.split_first() else { return };
    let pieces = Piece::all_of(stream);
    match EXPECTED.get(usize::from(*kind)) {
        Some(due) => replies(&pieces, *due),
        None => calls(&pieces),
    }
});

/// What one `sendmsg` sent.
#[derive(Clone)]
struct Piece {
    bytes: Vec<u8>,
    fds: Vec<u32>,
}

impl Piece {
    fn all_of(stream: &[u8]) -> Vec<Self> {
        let mut numbers = 0..;
        let mut count = 0;
        let mut pieces = Vec::new();
        for part in stream.split_inclusive(|byte| *byte >= 0xf8) {
            let (bytes, next) = match part.split_last() {
                Some((last, bytes)) if *last >= 0xf8 => (bytes, usize::from(last & 7)),
                Some(_) | None => (part, 0),
            };
            // Without a byte nothing is sent.
            if !bytes.is_empty() {
                let fds = numbers.by_ref().take(count).collect();
                pieces.push(Self { bytes: bytes.to_vec(), fds });
            }
            count = next;
        }
        pieces
    }
}

/// What came of some reads.
#[derive(Debug, PartialEq)]
struct Heard<T> {
    messages: Vec<T>,
    hangup: Option<Hangup>,
    /// How many descriptors came, and those that no message has named.
    came: u32,
    unnamed: Vec<u32>,
}

/// How the reads are made of what was sent.
#[derive(Clone, Copy)]
enum Cut {
    /// One read for each `sendmsg`.
    AsSent,
    /// A byte at a time; the descriptors come with the first of their `sendmsg`.
    Bytes,
    /// As sent, but after every read another inbox goes on from what is not yet understood.
    HandedOver,
    /// As much at once as the kernel joins: up to the end of what brought descriptors.
    Joined,
    /// As sent, with a blank before every message: whoever has a short way to read what is said plainly
    /// then goes the long one.
    WithBlanks,
}

fn reads(pieces: &[Piece], cut: Cut) -> Vec<Piece> {
    let mut reads: Vec<Piece> = Vec::new();
    let mut is_at_end = true;
    for piece in pieces {
        match cut {
            Cut::AsSent | Cut::HandedOver => reads.push(piece.clone()),
            Cut::WithBlanks => {
                let mut bytes = Vec::new();
                for byte in &piece.bytes {
                    bytes.extend(is_at_end.then_some(b' '));
                    bytes.push(*byte);
                    is_at_end = *byte == 0;
                }
                reads.push(Piece { bytes, fds: piece.fds.clone() });
            }
            Cut::Bytes => {
                let mut fds = piece.fds.clone();
                reads.extend(
                    piece
                        .bytes
                        .iter()
                        .map(|byte| Piece { bytes: vec![*byte], fds: std::mem::take(&mut fds) }),
                );
            }
            Cut::Joined => match reads.last_mut().filter(|read| read.fds.is_empty()) {
                Some(read) => {
                    read.bytes.extend(&piece.bytes);
                    read.fds.extend(&piece.fds);
                }
                None => reads.push(piece.clone()),
            },
        }
    }
    reads
}

fn hear<T>(
    pieces: &[Piece],
    cut: Cut,
    new: fn() -> Inbox<u32>,
    next: impl Fn(&mut Inbox<u32>) -> Result<Option<T>, Hangup>,
    is_last: impl Fn(&T) -> bool,
) -> Heard<T> {
    let (mut inbox, mut messages, mut hangup) = (new(), Vec::new(), None);
    let (mut goes_on, mut came) = (true, 0);
    for Piece { bytes, fds } in reads(pieces, cut) {
        came += fds.len() as u32;
        hangup = inbox.feed(&bytes, fds).err();
        while hangup.is_none() && goes_on {
            match next(&mut inbox) {
                Ok(Some(message)) => {
                    goes_on = !is_last(&message);
                    messages.push(message);
                }
                Ok(None) => break,
                Err(error) => hangup = Some(error),
            }
        }
        if hangup.is_some() || !goes_on {
            break;
        }
        if let Cut::HandedOver = cut {
            let mut after = new();
            let (bytes, fds) = inbox.unread();
            after.feed(bytes, fds.copied()).expect("what another inbox had");
            inbox = after;
        }
    }
    assert!(!inbox.is_stranded() || !inbox.is_empty());
    Heard { messages, hangup, came, unnamed: inbox.take_unnamed() }
}

/// The same comes out however it was cut; of what is joined perhaps less. Every descriptor that came
/// comes out once.
fn all_cuts<T: Debug + PartialEq>(
    pieces: &[Piece],
    new: fn() -> Inbox<u32>,
    next: impl Fn(&mut Inbox<u32>) -> Result<Option<T>, Hangup>,
    is_last: impl Fn(&T) -> bool,
    fds_of: impl Fn(&T) -> Vec<u32>,
    is_sound: impl Fn(&T) -> bool,
) -> Heard<T> {
    let heard = hear(pieces, Cut::AsSent, new, &next, &is_last);
    let by_bytes = hear(pieces, Cut::Bytes, new, &next, &is_last);
    let over = hear(pieces, Cut::HandedOver, new, &next, &is_last);
    let joined = hear(pieces, Cut::Joined, new, &next, &is_last);
    let with_blanks = hear(pieces, Cut::WithBlanks, new, &next, &is_last);

    assert_eq!(by_bytes, heard, "byte by byte, and as it was sent");
    assert_eq!(over, heard, "by several inboxes, and by one");
    assert_eq!(with_blanks, heard, "with a blank before every message, and as it was sent");
    let is_whole = heard.hangup.is_none() && heard.messages.iter().all(is_sound);
    if is_whole && heard.unnamed.is_empty() {
        match joined.hangup {
            None => assert_eq!(joined.messages, heard.messages, "joined, and as it was sent"),
            Some(hangup) => {
                assert_eq!(hangup, Hangup::UnnamedDescriptors);
                assert!(heard.messages.starts_with(&joined.messages));
            }
        }
    }
    for heard in [&heard, &joined] {
        let named = heard.messages.iter().flat_map(&fds_of);
        let mut out: Vec<_> = named.chain(heard.unnamed.iter().copied()).collect();
        out.sort_unstable();
        assert!(out.iter().copied().eq(0..heard.came), "{out:?} came out of {}", heard.came);
    }
    heard
}

fn calls(pieces: &[Piece]) {
    let fds_of = |incoming: &Incoming<u32>| match &incoming.request {
        Ok(Request::Stash(Call::Give { gifts, .. })) => {
            gifts.iter().map(|gift| gift.fd).chain(incoming.unused.iter().copied()).collect()
        }
        Ok(_) | Err(_) => incoming.unused.clone(),
    };
    let heard = all_cuts(
        pieces,
        Inbox::for_calls,
        Inbox::next_call,
        |incoming| incoming.last,
        fds_of,
        |incoming| incoming.request.is_ok(),
    );

    let mut outbox = Outbox::new();
    let mut said = Vec::new();
    for incoming in heard.messages {
        assert!(incoming.unused.is_empty() || incoming.request.is_err(), "{incoming:?}");
        match incoming.request {
            Ok(Request::Stash(call)) => {
                said.push(call.clone());
                outbox.push(call::write(call, incoming.mode), incoming.mode);
            }
            Ok(Request::GetInfo | Request::GetInterfaceDescription(_)) => {}
            Err(refusal) => refused(refusal),
        }
    }
    // What was understood can be said again, and is understood as the same.
    let mut inbox = Inbox::for_calls();
    let mut understood = Vec::new();
    send_all(outbox, |bytes, fds| {
        inbox.feed(bytes, fds).expect("what was written here");
        while let Some(incoming) = inbox.next_call().expect("what was written here") {
            let Ok(Request::Stash(call)) = incoming.request else { panic!("{incoming:?}") };
            understood.push(call);
        }
    });
    assert_eq!(understood, said);
    assert!(inbox.is_empty());
}

fn replies(pieces: &[Piece], due: Expect) {
    let fds_of = |answer: &Answer<u32>| match &answer.outcome {
        Ok(Reply::Handed(handed)) => handed.iter().map(|Handed { fd, .. }| *fd).collect(),
        Ok(_) | Err(_) => Vec::new(),
    };
    let heard = all_cuts(
        pieces,
        Inbox::for_replies,
        |inbox| inbox.next_reply(due),
        |_| false,
        fds_of,
        |_| true,
    );

    let mut outbox = Outbox::new();
    let mut said = Vec::new();
    for answer in heard.messages {
        let outcome = match answer.outcome.clone() {
            Ok(reply) => Ok(reply),
            Err(Refused::Known(refusal)) => Err(refusal),
            Err(Refused::Unknown { .. }) => continue,
        };
        outbox.push(reply::write(outcome, answer.continues), Mode::Once);
        said.push(answer);
    }
    let mut inbox = Inbox::for_replies();
    let mut understood = Vec::new();
    send_all(outbox, |bytes, fds| {
        inbox.feed(bytes, fds).expect("what was written here");
        while let Some(answer) = inbox.next_reply(due).expect("what was written here") {
            understood.push(answer);
        }
    });
    assert_eq!(understood, said);
    assert!(inbox.is_empty());
}

/// A refusal is told, and understood as the same.
fn refused(refusal: Refusal) {
    let frame = reply::write::<u32>(Err(refusal.clone()), false);
    let mut inbox = Inbox::for_replies();
    inbox.feed(&frame.bytes, frame.fds).expect("what was written here");
    let answer = inbox.next_reply(Expect::Done).expect("what was written here");
    assert_eq!(answer.map(|answer| answer.outcome), Some(Err(Refused::Known(refusal))));
}

/// Sends all, of which the kernel accepts now less and now more.
fn send_all(mut outbox: Outbox<u32, Mode>, mut read: impl FnMut(&[u8], Vec<u32>)) {
    let mut bytes = Vec::new();
    for accepted in (1..).map(|turn| 1 + 37 * turn % 64) {
        if outbox.is_empty() {
            return;
        }
        let fds = outbox.next_send(&mut bytes, 100).to_vec();
        let accepted = accepted.min(bytes.len());
        read(&bytes[..accepted], fds);
        outbox.advance(accepted, |_, _| {});
    }
}
