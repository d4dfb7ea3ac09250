//! The laws of [`Inbox`] and [`Outbox`]: however messages and their descriptors are split over
//! sends and reads, the same come out together, or the connection ends.
//!
//! Properties first, then the edges one by one. A descriptor is a number here, so that each can be
//! told from all others and counted; what the kernel does with them is `kernel::Stream`.
//!
//! Half of the file is fixtures: senders and readers that the properties share.

mod kernel;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use fdstash_proto::{
    Call, Clash, Frame, Gift, Handed, Hangup, INTERFACE_NAME, Inbox, Incoming, MAX_DESCRIPTORS,
    MAX_MESSAGE, Mode, Name, Outbox, Refusal, Reply, Request, call,
    proptest::{call, name, refusal, reply, ticket},
    reply::{self, Answer, Expect, Refused},
};
use proptest::{
    collection,
    prelude::*,
    sample::{self, Index},
    test_runner::FileFailurePersistence,
};
use serde_json::{Value, json};

use kernel::Stream;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_same_calls_come_out_with_the_same_descriptors(
        asked in collection::vec(asked(), 1..12),
        plan in plan(),
    ) {
        let mut tokens = 0u32..;
        let asked: Vec<_> = asked.into_iter().map(|asked| asked.numbered(&mut tokens)).collect();
        let frames = asked.iter().map(|(frame, _)| frame.clone()).collect();
        let mut inbox = Inbox::for_calls();
        let mut heard = Vec::new();

        let delivery = plan.deliver(frames, &mut inbox, |inbox| {
            Ok(inbox.next_call()?.map(|incoming| heard.push(incoming)))
        })?;

        let due = asked.into_iter().map(|(_, due)| due);
        let due = due.take(if delivery.whole { usize::MAX } else { heard.len() });
        prop_assert_eq!(heard.iter().map(Heard::of).collect::<Vec<_>>(), Vec::from_iter(due));
        prop_assert!(!delivery.whole || inbox.is_empty());
        let out = heard.into_iter().flat_map(fds_of_incoming).chain(inbox.take_unnamed());
        prop_assert_eq!(sorted(out), delivery.received);
    }

    #[test]
    fn the_same_replies_come_out_with_the_same_descriptors(
        answers in collection::vec((answer(), any::<bool>()), 1..12),
        plan in plan(),
    ) {
        let mut tokens = 0u32..;
        let answers: Vec<Answer<u32>> = answers
            .into_iter()
            .map(|(outcome, continues)| numbered_answer(outcome, continues, &mut tokens))
            .collect();
        let frames = answers.iter().map(to_frame).collect();
        let mut inbox = Inbox::for_replies();
        let mut heard = Vec::new();

        let delivery = plan.deliver(frames, &mut inbox, |inbox| {
            let due = answers.get(heard.len()).map_or(Expect::Done, expect);
            Ok(inbox.next_reply(due)?.map(|answer| heard.push(answer)))
        })?;

        let due = if delivery.whole { &answers[..] } else { &answers[..heard.len()] };
        prop_assert_eq!(&heard[..], due);
        let out = heard.into_iter().flat_map(fds_of_answer).chain(inbox.take_unnamed());
        prop_assert_eq!(sorted(out), delivery.received);
    }

    // The plain form is read without serde, which reads whatever begins with a blank: both have to
    // agree on what is accepted, and as what.
    #[test]
    fn a_blank_that_serde_passes_over_changes_nothing(
        call in any_call(),
        answer in answer(),
        edits in collection::vec(edit(), 0..3),
        count in proptest::option::weighted(0.2, 0u32..4),
    ) {
        let answer = numbered_answer(answer, false, &mut (0u32..));
        let due = expect(&answer);
        let mut call = call::write(numbered(call, &mut (0u32..)), Mode::Once);
        let mut reply = to_frame(&answer);
        for frame in [&mut call, &mut reply] {
            frame.bytes.pop();
            edits.iter().for_each(|(index, edit)| edit.make(&mut frame.bytes, index));
            frame.bytes.push(0);
            frame.fds = count.map_or(std::mem::take(&mut frame.fds), |count| (0..count).collect());
        }
        let heard_after = |before: &[u8]| {
            let [mut calls, mut replies] = [Inbox::for_calls(), Inbox::for_replies()];
            calls.feed(&[before, &call.bytes].concat(), call.fds.clone()).unwrap();
            replies.feed(&[before, &reply.bytes].concat(), reply.fds.clone()).unwrap();
            let heard = (calls.next_call(), replies.next_reply(due));
            (heard, calls.take_unnamed(), replies.take_unnamed())
        };

        prop_assert_eq!(heard_after(b""), heard_after(b" "));
    }

    #[test]
    fn whatever_the_kernel_accepts_the_receiver_gets_the_same_messages(
        calls in collection::vec(any_call(), 1..12),
        steps in collection::vec(step(), 0..40),
        mosts in mosts(),
    ) {
        let mut tokens = 0u32..;
        let calls: Vec<_> = calls.into_iter().map(|call| numbered(call, &mut tokens)).collect();
        let frames = calls.iter().cloned().map(|call| call::write(call, Mode::More));
        let frames: Vec<_> = frames.collect();
        let mut sending = Sending::default();

        let mut yet = frames.iter().cloned();
        for step in steps {
            match step {
                Step::Push => yet.next().into_iter().for_each(|frame| sending.push(frame)),
                Step::Send { most, accepted } => sending.send(most, Some(accepted))?,
            }
        }
        yet.for_each(|frame| sending.push(frame));
        while !sending.outbox.is_empty() {
            sending.send(1000, None)?;
        }

        prop_assert_eq!(sending.left, frames);
        let mut inbox = Inbox::for_calls();
        let mut heard = Vec::new();
        for most in mosts.iter().cycle() {
            let (bytes, fds) = sending.stream.read(most.bytes(|| 1));
            if bytes.is_empty() {
                break;
            }
            prop_assert_eq!(inbox.feed(&bytes, fds), Ok(()));
            while let Some(incoming) = inbox.next_call().map_err(fail)? {
                heard.push(incoming.request);
            }
            prop_assert!(!inbox.is_stranded());
        }
        let due: Vec<_> = calls.into_iter().map(|call| Ok(Request::Stash(call))).collect();
        prop_assert_eq!(heard, due);
    }

    #[test]
    fn every_descriptor_comes_out_once_whatever_is_said_of_it(
        messages in collection::vec((message(), 0usize..4), 1..8),
    ) {
        let mut tokens = 0u32..;
        let (mut given, mut out) = (Vec::new(), Vec::new());
        let mut inbox = Inbox::for_calls();

        for (message, count) in messages {
            let fds: Vec<u32> = tokens.by_ref().take(count).collect();
            given.extend(fds.clone());
            let mut go_on = inbox.feed(&framed(&message), fds).is_ok();
            while let Ok(Some(incoming)) = inbox.next_call() {
                go_on &= !incoming.last;
                out.extend(fds_of_incoming(incoming));
            }
            if !go_on {
                break;
            }
        }

        out.extend(inbox.take_unnamed());
        prop_assert_eq!(sorted(out), given);
    }

    #[test]
    fn every_descriptor_of_a_reply_comes_out_once_whatever_is_said_of_it(
        (parameters, due, count) in (parameters(), due(), 0u32..4),
    ) {
        let mut inbox = Inbox::for_replies();
        inbox.feed(&framed(&json!({ "parameters": parameters })), 0..count).map_err(fail)?;

        let answer = inbox.next_reply(due);

        let named = answer.ok().flatten().into_iter().flat_map(fds_of_answer);
        prop_assert_eq!(sorted(named.chain(inbox.take_unnamed())), Vec::from_iter(0..count));
    }

    #[test]
    fn garbage_ends_in_a_hangup(
        pieces in collection::vec(collection::vec(any::<u8>(), 0..60), 1..5),
        due in due(),
    ) {
        let mut calls = Inbox::for_calls();
        let mut replies = Inbox::for_replies();

        let (mut from_call, mut from_reply) = (Ok(None), Ok(None));
        for piece in pieces.iter().map(Vec::as_slice).chain([b"\0".as_slice()]) {
            calls.feed(piece, 0..1u32).ok();
            replies.feed(piece, 0..1u32).ok();
            from_call = from_call.and_then(|_| calls.next_call());
            from_reply = from_reply.and_then(|_| replies.next_reply(due));
        }

        prop_assert_eq!(from_call, Err(Hangup::NotACall));
        prop_assert_eq!(from_reply, Err(Hangup::NotAReply));
    }

    #[test]
    fn a_damaged_call_is_a_call_or_a_refusal_or_a_hangup(
        call in any_call(),
        damages in collection::vec((any::<Index>(), any::<u8>(), 0..3), 1..4),
    ) {
        let Frame { mut bytes, fds } = call::write(numbered(call, &mut (0u32..)), Mode::Once);
        for (index, byte, how) in damages {
            let at = index.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at + 1),
            }
        }
        let mut inbox = Inbox::for_calls();
        let mut out = Vec::new();

        inbox.feed(&bytes, fds.clone()).map_err(fail)?;
        while let Ok(Some(incoming)) = inbox.next_call() {
            prop_assert!(incoming.unused.is_empty() || incoming.request.is_err());
            out.extend(fds_of_incoming(incoming));
        }

        out.extend(inbox.take_unnamed());
        prop_assert_eq!(sorted(out), fds);
    }
}

#[test]
fn a_message_of_exactly_the_limit_passes() {
    let mut inbox = Inbox::<u32>::for_calls();

    let incoming = heard(&mut inbox, &begin_of_length(MAX_MESSAGE), []).unwrap();

    assert_eq!(incoming.request, Ok(Request::Stash(Call::Begin)));
}

#[test]
fn a_message_of_one_byte_more_is_too_long() {
    let mut inbox = Inbox::<u32>::for_calls();

    let hangup = heard(&mut inbox, &begin_of_length(MAX_MESSAGE + 1), []);

    assert_eq!(hangup, Err(Hangup::MessageTooLong { limit: MAX_MESSAGE }));
}

#[test]
fn a_message_that_would_be_too_long_with_its_end_is_too_long_without_it() {
    let mut inbox = Inbox::<u32>::for_calls();

    inbox.feed(&vec![b' '; MAX_MESSAGE - 1], []).unwrap();
    let one_less = inbox.next_call();
    inbox.feed(b" ", []).unwrap();
    let without_end = inbox.next_call();

    assert_eq!(one_less, Ok(None));
    assert_eq!(without_end, Err(Hangup::MessageTooLong { limit: MAX_MESSAGE }));
}

#[test]
fn the_limit_is_of_one_message_and_not_of_what_waits() {
    let mut inbox = Inbox::<u32>::for_calls();
    let mut many = begin_of_length(MAX_MESSAGE);
    many.extend(begin_of_length(MAX_MESSAGE));
    many.extend(begin_of_length(MAX_MESSAGE + 1));

    inbox.feed(&many, []).unwrap();

    assert!(inbox.next_call().unwrap().is_some());
    assert!(inbox.next_call().unwrap().is_some());
    assert_eq!(inbox.next_call(), Err(Hangup::MessageTooLong { limit: MAX_MESSAGE }));
}

#[test]
fn a_reply_may_be_sixteen_times_as_long() {
    let limit = 16 * MAX_MESSAGE;
    let mut inbox = Inbox::<u32>::for_replies();
    let mut longest = vec![b' '; limit - 1];
    longest[..2].copy_from_slice(b"{}");
    longest.push(0);

    inbox.feed(&longest, []).unwrap();
    let passes = inbox.next_reply(Expect::Done).unwrap().unwrap();
    inbox.feed(&longest[..limit - 1], []).unwrap();
    inbox.feed(b" ", []).unwrap();
    let too_long = inbox.next_reply(Expect::Done);

    assert_eq!(passes.outcome, Ok(Reply::Done));
    assert_eq!(too_long, Err(Hangup::MessageTooLong { limit }));
}

#[test]
fn a_message_that_comes_byte_by_byte_is_whole_with_its_last() {
    let mut inbox = Inbox::<u32>::for_calls();
    let frame = call::write::<u32>(Call::Begin, Mode::Once);
    let (last, bytes) = frame.bytes.split_last().unwrap();

    for byte in bytes {
        inbox.feed(&[*byte], []).unwrap();
        assert_eq!(inbox.next_call(), Ok(None));
        assert!(!inbox.is_empty() && !inbox.is_stranded());
    }

    let incoming = heard(&mut inbox, &[*last], []).unwrap();
    assert_eq!(incoming.request, Ok(Request::Stash(Call::Begin)));
    assert!(inbox.is_empty());
}

#[test]
fn descriptors_that_come_before_the_end_of_their_message_wait_for_it() {
    let mut inbox = Inbox::for_calls();
    let frame = call::write(give(&["a"], &[7]), Mode::Once);
    let (begin, end) = frame.bytes.split_at(20);

    inbox.feed(begin, frame.fds).unwrap();
    assert_eq!(inbox.next_call(), Ok(None));
    assert!(!inbox.is_stranded() && !inbox.is_empty());

    let incoming = heard(&mut inbox, end, []).unwrap();
    assert_eq!(incoming.request, Ok(Request::Stash(give(&["a"], &[7]))));
}

#[test]
fn descriptors_that_no_message_names_strand() {
    let mut inbox = Inbox::for_calls();

    let incoming = heard(&mut inbox, &begin(), [7]).unwrap();

    assert_eq!(incoming.request, Ok(Request::Stash(Call::Begin)));
    assert!(inbox.is_stranded() && !inbox.is_empty());
    assert_eq!(inbox.take_unnamed(), [7]);
    assert!(!inbox.is_stranded() && inbox.is_empty());
}

#[test]
fn the_next_descriptors_after_stranded_ones_end_the_connection() {
    let mut inbox = Inbox::for_calls();
    heard(&mut inbox, &begin(), [7]).unwrap();

    let frame = call::write(give(&["a"], &[8]), Mode::Once);
    let hangup = inbox.feed(&frame.bytes, frame.fds);

    assert_eq!(hangup, Err(Hangup::UnnamedDescriptors));
    assert_eq!(inbox.take_unnamed(), [7, 8]);
}

#[test]
fn stranded_descriptors_are_named_by_the_rest_of_their_send() {
    let mut inbox = Inbox::for_calls();
    heard(&mut inbox, &begin(), [7]).unwrap();

    let rest = call::write(give(&["a"], &[7]), Mode::Once).bytes;
    let incoming = heard(&mut inbox, &rest, []).unwrap();

    assert_eq!(incoming.request, Ok(Request::Stash(give(&["a"], &[7]))));
    assert!(inbox.is_empty());
}

#[test]
fn three_full_sends_may_wait_and_no_more() {
    // A first send ends within its last message; a second brings the end of that and the begin of
    // another; a read that brings the rest of both goes on into a third.
    const FULL: u32 = MAX_DESCRIPTORS as u32;
    let names: Vec<String> = (0..FULL).map(|at| at.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let calls = [0, 1, 2].map(|at| give(&names, &(at * FULL..(at + 1) * FULL).collect::<Vec<_>>()));
    let [first, second, third] = calls.clone().map(|call| call::write(call, Mode::Once).bytes);
    let mut inbox = Inbox::for_calls();

    inbox.feed(&first[..9], 0..FULL).unwrap();
    assert_eq!(inbox.next_call(), Ok(None));
    inbox.feed(&first[9..99], FULL..2 * FULL).unwrap();
    assert_eq!(inbox.next_call(), Ok(None));
    inbox.feed(&[&first[99..], &second, &third[..9]].concat(), 2 * FULL..3 * FULL).unwrap();

    let heard: Vec<_> = std::iter::from_fn(|| inbox.next_call().unwrap()).collect();
    let due = calls[..2].iter().cloned().map(|call| Ok(Request::Stash(call)));
    assert!(heard.into_iter().map(|incoming| incoming.request).eq(due));
    inbox.feed(b" ", 3 * FULL..5 * FULL).unwrap();
    assert_eq!(inbox.feed(b" ", [5 * FULL]), Err(Hangup::UnnamedDescriptors));
    assert_eq!(inbox.take_unnamed(), Vec::from_iter(2 * FULL..5 * FULL + 1));
}

#[test]
fn what_is_no_call_ends_the_connection_and_its_descriptors_are_there_to_be_closed() {
    let table: [&[u8]; 11] = [
        b"",
        b" ",
        b"null",
        b"\"org.fdstash.Stash.Begin\"",
        b"{}",
        br#"{"method":null}"#,
        br#"{"method":1}"#,
        br#"{"method":"org.fdstash.Stash.Begin"} {}"#,
        br#"{"method":"org.fdstash.Stash.Begin","method":"org.fdstash.Stash.Begin"}"#,
        br#"["org.fdstash.Stash.Begin",{},null,null,null]"#,
        b"{\"method\":\"org.fdstash.Stash.\xff\"}",
    ];

    for message in table {
        let mut inbox = Inbox::for_calls();

        let hangup = heard(&mut inbox, &[message, b"\0"].concat(), [7]);

        let message = String::from_utf8_lossy(message);
        assert_eq!(hangup, Err(Hangup::NotACall), "{message}");
        assert_eq!(inbox.take_unnamed(), [7], "{message}");
    }
}

#[test]
fn what_is_not_the_reply_that_was_due_ends_the_connection() {
    let handed = |entries: &str| format!(r#"{{"parameters":{{"entries":[{entries}]}}}}"#);
    let table = [
        ("".to_owned(), Expect::Done),
        ("null".to_owned(), Expect::Done),
        ("[]".to_owned(), Expect::Done),
        (r#"{"parameters":1}"#.to_owned(), Expect::Done),
        (r#"{"parameters":[]}"#.to_owned(), Expect::Done),
        ("{}".to_owned(), Expect::Given),
        (r#"{"parameters":{"replaced":["a:b"]}}"#.to_owned(), Expect::Given),
        (handed(r#"{"name":"a","fileDescriptor":1}"#), Expect::Handed),
        (handed(r#"{"name":"a","fileDescriptor":-1}"#), Expect::Handed),
        (handed(r#"{"name":"a:b","fileDescriptor":0}"#), Expect::Handed),
        (
            handed(r#"{"name":"a","fileDescriptor":0},{"name":"b","fileDescriptor":0}"#),
            Expect::Handed,
        ),
        (
            handed(r#"{"name":"a","fileDescriptor":0},{"name":"b","fileDescriptor":1}"#),
            Expect::Handed,
        ),
        (r#"{"parameters":{"change":"given"}}"#.to_owned(), Expect::Notice),
        (r#"{"parameters":{"change":"given","lost":1}}"#.to_owned(), Expect::Notice),
        (r#"{"parameters":{"lost":-1}}"#.to_owned(), Expect::Notice),
    ];

    for (message, due) in table {
        let mut inbox = Inbox::for_replies();
        inbox.feed(format!("{message}\0").as_bytes(), [7]).unwrap();

        let hangup = inbox.next_reply(due);

        assert_eq!(hangup, Err(Hangup::NotAReply), "{message}");
        assert_eq!(inbox.take_unnamed(), [7], "{message}");
    }
}

#[test]
fn an_error_of_a_later_version_is_told_as_it_came() {
    let table = [
        ("org.fdstash.Stash.Later", r#"{"name":"a"}"#),
        ("org.fdstash.Stash.NotFound", r#"{"later":"a"}"#),
        ("org.example.NotFound", r#"{"name":"a"}"#),
        ("NotFound", r#"{"name":"a"}"#),
    ];

    for (error, parameters) in table {
        let mut inbox = Inbox::<u32>::for_replies();
        let message = format!("{{\"error\":{error:?},\"parameters\":{parameters}}}\0");
        inbox.feed(message.as_bytes(), []).unwrap();

        let answer = inbox.next_reply(Expect::Done).unwrap().unwrap();

        let unknown = Refused::Unknown { error: error.into(), parameters: parameters.into() };
        assert_eq!(answer.outcome, Err(unknown));
    }
}

#[test]
fn a_field_that_a_later_version_adds_to_a_reply_is_overlooked() {
    let mut inbox = Inbox::for_replies();
    let message = json!({
        "parameters": { "entries": [{ "name": "a", "fileDescriptor": 0, "later": 1 }], "later": 1 },
        "later": 1,
    });

    inbox.feed(&framed(&message), [7]).unwrap();
    let answer = inbox.next_reply(Expect::Handed).unwrap().unwrap();

    let name = Name::new("a").unwrap();
    assert_eq!(answer.outcome, Ok(Reply::Handed(vec![Handed { name, fd: 7 }])));
}

#[test]
fn messages_without_descriptors_share_a_send_of_at_most_so_many_bytes() {
    let mut outbox = Outbox::<u32, _>::new();
    for length in [10, 20, 30, 40, 200, 5] {
        outbox.push(Frame { bytes: vec![b'x'; length], fds: vec![] }, length);
    }
    let (mut bytes, mut sends) = (Vec::new(), Vec::new());

    while !outbox.is_empty() {
        assert!(outbox.next_send(&mut bytes, 60).is_empty());
        let mut shared = Vec::new();
        outbox.advance(bytes.len(), |_, length| shared.push(length));
        sends.push(shared);
    }

    assert_eq!(sends, [vec![10, 20, 30], vec![40], vec![200], vec![5]]);
}

#[test]
fn a_message_with_descriptors_shares_its_send_with_no_other() {
    let mut outbox = Outbox::new();
    let (with, without) = (give(&["a"], &[7]), Call::Begin);
    for call in [without.clone(), with.clone(), with, without] {
        outbox.push(call::write(call, Mode::Once), ());
    }
    let (mut bytes, mut sends) = (Vec::new(), Vec::new());

    while !outbox.is_empty() {
        sends.push(outbox.next_send(&mut bytes, 10_000).to_vec());
        outbox.advance(bytes.len(), |_, ()| {});
    }

    assert_eq!(sends, [vec![], vec![7], vec![7], vec![]]);
}

#[test]
fn the_rest_of_a_message_brings_its_descriptors_no_second_time() {
    let mut outbox = Outbox::new();
    let frame = call::write(give(&["a"], &[7]), Mode::Once);
    outbox.push(frame.clone(), "with");
    outbox.push(call::write(Call::Begin, Mode::Once), "without");
    let (mut bytes, mut left) = (Vec::new(), Vec::new());

    let of_begin = outbox.next_send(&mut bytes, 10_000).to_vec();
    outbox.advance(1, |_, token| left.push(token));
    let of_rest = outbox.next_send(&mut bytes, 10_000).to_vec();

    assert_eq!((of_begin, of_rest), (vec![7], vec![]));
    assert!(bytes.starts_with(&frame.bytes[1..]));
    assert_eq!(left, [] as [&str; 0]);
    outbox.advance(frame.bytes.len() - 1, |frame, token| {
        assert_eq!(frame.fds, [7]);
        left.push(token);
    });
    assert_eq!(left, ["with"]);
    assert_eq!(outbox.len(), begin().len());
}

fn config() -> ProptestConfig {
    let persistence = FileFailurePersistence::Direct("tests/codec.proptest-regressions");
    ProptestConfig { failure_persistence: Some(Box::new(persistence)), ..ProptestConfig::default() }
}

/// How messages are cut into sends, and what is sent into reads.
#[derive(Debug, Clone)]
struct Plan {
    /// For each message, whether a send begins with it, and where within it others do.
    cuts: Vec<(bool, Vec<Index>)>,
    mosts: Vec<Most>,
}

/// The most that a read asks for.
#[derive(Debug, Clone)]
enum Most {
    Bytes(usize),
    ToTheEndOfAMessage,
}

/// One `sendmsg`: where in the stream its bytes stand, and what goes beside them.
struct Sent {
    bytes: Range<usize>,
    fds: Vec<u32>,
}

struct Delivery {
    /// Whether all has been read, and not only what came before a hang-up.
    whole: bool,
    /// The descriptors that have come, in the order of their numbers.
    received: Vec<u32>,
}

impl Plan {
    /// Sends all the frames, and reads them into `inbox`, calling `next` until it has no more.
    fn deliver(
        &self,
        frames: Vec<Frame<u32>>,
        inbox: &mut Inbox<u32>,
        mut next: impl FnMut(&mut Inbox<u32>) -> Result<Option<()>, Hangup>,
    ) -> Result<Delivery, TestCaseError> {
        let (sends, ends) = self.sends(&frames);
        let all: Vec<u8> = frames.iter().flat_map(|frame| frame.bytes.clone()).collect();
        let mut stream = Stream::new();
        for send in &sends {
            stream.send(&all[send.bytes.clone()], send.fds.clone());
        }
        let (mut at, mut received) = (0, Vec::new());
        for most in self.mosts.iter().cycle() {
            let to_the_end = || ends.iter().find(|&&end| end > at).map_or(1, |end| end - at);
            let (bytes, fds) = stream.read(most.bytes(to_the_end));
            if bytes.is_empty() {
                break;
            }
            received.extend(fds.clone());
            let came = !fds.is_empty();
            match inbox.feed(&bytes, fds) {
                Ok(()) => while next(inbox).map_err(fail)?.is_some() {},
                Err(hangup) => {
                    prop_assert_eq!(hangup, Hangup::UnnamedDescriptors);
                    prop_assert!(came && between_two_of_one_send(at, &frames, &sends));
                    return Ok(Delivery { whole: false, received });
                }
            }
            at += bytes.len();
        }
        prop_assert_eq!(at, all.len());
        Ok(Delivery { whole: true, received })
    }

    /// The sends, and where each message ends.
    fn sends(&self, frames: &[Frame<u32>]) -> (Vec<Sent>, BTreeSet<usize>) {
        let mut sends: Vec<Sent> = Vec::new();
        let (mut at, mut ends) = (0, BTreeSet::new());
        for (frame, (before, within)) in frames.iter().zip(self.cuts.iter().cycle()) {
            let full = |last: &&mut Sent| last.fds.len() + frame.fds.len() > MAX_DESCRIPTORS;
            match sends.last_mut().filter(|last| !before && !full(last)) {
                Some(last) => last.fds.extend(&frame.fds),
                None => sends.push(Sent { bytes: at..at, fds: frame.fds.clone() }),
            }
            let end = at + frame.bytes.len();
            let within: BTreeSet<_> =
                within.iter().map(|index| at + index.index(frame.bytes.len())).collect();
            for cut in within.into_iter().filter(|&cut| cut > end - frame.bytes.len()).chain([end])
            {
                match sends.last_mut() {
                    Some(last) if last.bytes.end == at => last.bytes.end = cut,
                    Some(_) | None => sends.push(Sent { bytes: at..cut, fds: vec![] }),
                }
                at = cut;
            }
            ends.insert(end);
        }
        (sends, ends)
    }
}

/// Whether `at` stands between two messages of one send that has descriptors of a later one.
fn between_two_of_one_send(at: usize, frames: &[Frame<u32>], sends: &[Sent]) -> bool {
    let Some(send) = sends.iter().find(|send| send.bytes.start < at && at < send.bytes.end) else {
        return false;
    };
    let mut end = 0;
    let mut begins = BTreeMap::new();
    for frame in frames {
        begins.insert(end, frame);
        end += frame.bytes.len();
    }
    let named_later = begins.range(at..send.bytes.end).any(|(_, frame)| !frame.fds.is_empty());
    begins.contains_key(&at) && named_later
}

impl Most {
    fn bytes(&self, to_the_end: impl FnOnce() -> usize) -> usize {
        match self {
            Self::Bytes(count) => *count,
            Self::ToTheEndOfAMessage => to_the_end(),
        }
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    let within = prop_oneof![3 => Just(vec![]), 1 => collection::vec(any::<Index>(), 1..3)];
    (collection::vec((prop::bool::weighted(0.3), within), 12), mosts())
        .prop_map(|(cuts, mosts)| Plan { cuts, mosts })
}

fn mosts() -> impl Strategy<Value = Vec<Most>> {
    let most = prop_oneof![
        2 => (1usize..20).prop_map(Most::Bytes),
        2 => (1usize..300).prop_map(Most::Bytes),
        1 => (1usize..100_000).prop_map(Most::Bytes),
        2 => Just(Most::ToTheEndOfAMessage),
    ];
    collection::vec(most, 1..20)
}

/// A call, and what is wrong with the message that it is put into.
#[derive(Debug, Clone)]
struct Asked {
    call: Call<()>,
    mode: Mode,
    flaw: Option<Flaw>,
}

#[derive(Debug, Clone, Copy)]
enum Flaw {
    UnknownField,
    UnknownMethod,
    UnknownInterface,
    Upgrade,
    BadName,
    /// A label that looks like the index of a descriptor, beside an unknown field.
    Label,
}

/// What a reader makes of a message.
#[derive(Debug, Clone, PartialEq)]
enum Heard {
    Call(Call<u32>, Mode),
    Refused(Vec<u32>),
    OutOfOrder,
}

impl Heard {
    fn of(incoming: &Incoming<u32>) -> Self {
        match incoming {
            Incoming { request: Ok(Request::Stash(call)), mode, unused, last: false }
                if unused.is_empty() =>
            {
                Self::Call(call.clone(), *mode)
            }
            Incoming { request: Err(_), unused, last: false, .. } => Self::Refused(unused.clone()),
            Incoming { .. } => Self::OutOfOrder,
        }
    }
}

impl Asked {
    fn numbered(self, tokens: &mut impl Iterator<Item = u32>) -> (Frame<u32>, Heard) {
        let call = numbered(self.call, tokens);
        let mut frame = call::write(call.clone(), self.mode);
        match self.flaw {
            None => (frame, Heard::Call(call, self.mode)),
            Some(flaw) => {
                frame.bytes = flaw.put_into(&frame.bytes);
                let refused = Heard::Refused(frame.fds.clone());
                (frame, refused)
            }
        }
    }
}

impl Flaw {
    fn put_into(self, frame: &[u8]) -> Vec<u8> {
        let mut message: Value = serde_json::from_slice(&frame[..frame.len() - 1]).expect("JSON");
        let first = message.pointer_mut("/parameters/entries/0");
        match (self, first) {
            (Self::UnknownMethod, _) => message["method"] = "org.fdstash.Stash.Later".into(),
            (Self::UnknownInterface, _) => message["method"] = "org.example.Later.Give".into(),
            (Self::Upgrade, _) => message["upgrade"] = true.into(),
            (Self::BadName, Some(first)) => first["name"] = "a:b".into(),
            (Self::Label, Some(first)) => {
                first["labels"] = json!({ "fileDescriptor": "1" });
                first["bogus"] = true.into();
            }
            (Self::UnknownField | Self::BadName | Self::Label, _) => {
                message["parameters"]["bogus"] = true.into();
            }
        }
        framed(&message)
    }
}

/// What somebody else may write otherwise.
#[derive(Debug, Clone)]
enum Edit {
    Put(u8),
    Change(u8),
    Cut,
    Double,
}

impl Edit {
    fn make(&self, message: &mut Vec<u8>, index: &Index) {
        let at = index.index(message.len());
        match self {
            Self::Put(byte) => message.insert(at, *byte),
            Self::Change(byte) => message[at] = *byte,
            Self::Cut => message.truncate(at.max(1)),
            Self::Double => message.extend_from_within(at..),
        }
    }
}

fn edit() -> impl Strategy<Value = (Index, Edit)> {
    let byte = || prop_oneof![4 => sample::select(br#" "\,:{}[]0123at"#.to_vec()), 1 => 1u8..];
    let edit = prop_oneof![
        4 => byte().prop_map(Edit::Put),
        4 => byte().prop_map(Edit::Change),
        1 => Just(Edit::Cut),
        1 => Just(Edit::Double),
    ];
    (any::<Index>(), edit)
}

fn asked() -> impl Strategy<Value = Asked> {
    let flaw = sample::select(vec![
        Flaw::UnknownField,
        Flaw::UnknownMethod,
        Flaw::UnknownInterface,
        Flaw::Upgrade,
        Flaw::BadName,
        Flaw::Label,
    ]);
    let mode = sample::select(vec![Mode::Once, Mode::More, Mode::Oneway]);
    (any_call(), mode, proptest::option::weighted(0.15, flaw)).prop_map(|(call, mode, flaw)| {
        let mode = if matches!(call, Call::Watch { .. }) { Mode::More } else { mode };
        Asked { call, mode, flaw }
    })
}

/// A call of a few names, or now and then a Give of very many.
fn any_call() -> impl Strategy<Value = Call<()>> {
    let many = (1..=MAX_DESCRIPTORS).prop_map(|count| {
        let names: Vec<String> = (0..count).map(|at| at.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        give(&names, &vec![(); count])
    });
    prop_oneof![15 => call(name, ticket), 1 => many]
}

fn numbered(call: Call<()>, tokens: &mut impl Iterator<Item = u32>) -> Call<u32> {
    match call {
        Call::Give { gifts, clash, ticket } => {
            let gifts = gifts.into_iter().zip(tokens).map(|(gift, token)| gift.map(|()| token));
            Call::Give { gifts: gifts.collect(), clash, ticket }
        }
        Call::Take { names, taking, timeout_usec } => Call::Take { names, taking, timeout_usec },
        Call::Close { names, ticket } => Call::Close { names, ticket },
        Call::Reopen { reopenings } => Call::Reopen { reopenings },
        Call::Begin => Call::Begin,
        Call::Commit { ticket } => Call::Commit { ticket },
        Call::Rollback => Call::Rollback,
        Call::List { pattern } => Call::List { pattern },
        Call::Watch { pattern } => Call::Watch { pattern },
        Call::GetStatistics => Call::GetStatistics,
        Call::ExplainPolicy { uid, gids, verb, name } => {
            Call::ExplainPolicy { uid, gids, verb, name }
        }
    }
}

fn answer() -> impl Strategy<Value = Result<Reply<()>, Refusal>> {
    prop_oneof![4 => reply().prop_map(Ok), 1 => refusal().prop_map(Err)]
}

fn numbered_answer(
    outcome: Result<Reply<()>, Refusal>,
    continues: bool,
    tokens: &mut impl Iterator<Item = u32>,
) -> Answer<u32> {
    let outcome = outcome.map(|reply| match reply {
        Reply::Done => Reply::Done,
        Reply::Given { replaced } => Reply::Given { replaced },
        Reply::Handed(handed) => Reply::Handed(
            handed
                .into_iter()
                .zip(tokens)
                .map(|(Handed { name, .. }, fd)| Handed { name, fd })
                .collect(),
        ),
        Reply::Listed(entries) => Reply::Listed(entries),
        Reply::Notice(notice) => Reply::Notice(notice),
        Reply::Statistics(statistics) => Reply::Statistics(statistics),
        Reply::Explained(explanation) => Reply::Explained(explanation),
        Reply::Info(info) => Reply::Info(info),
        Reply::Description(description) => Reply::Description(description),
    });
    let continues = continues && outcome.is_ok();
    Answer { outcome: outcome.map_err(Refused::Known), continues }
}

fn to_frame(answer: &Answer<u32>) -> Frame<u32> {
    let outcome = answer.outcome.clone().map_err(|refused| match refused {
        Refused::Known(refusal) => refusal,
        Refused::Unknown { error, .. } => panic!("nobody writes {error}"),
    });
    reply::write(outcome, answer.continues)
}

fn expect(answer: &Answer<u32>) -> Expect {
    match &answer.outcome {
        Ok(Reply::Done) | Err(_) => Expect::Done,
        Ok(Reply::Given { .. }) => Expect::Given,
        Ok(Reply::Handed(_)) => Expect::Handed,
        Ok(Reply::Listed(_)) => Expect::Listed,
        Ok(Reply::Notice(_)) => Expect::Notice,
        Ok(Reply::Statistics(_)) => Expect::Statistics,
        Ok(Reply::Explained(_)) => Expect::Explained,
        Ok(Reply::Info(_)) => Expect::Info,
        Ok(Reply::Description(_)) => Expect::Description,
    }
}

fn due() -> impl Strategy<Value = Expect> {
    sample::select(vec![
        Expect::Done,
        Expect::Given,
        Expect::Handed,
        Expect::Listed,
        Expect::Notice,
        Expect::Statistics,
        Expect::Explained,
        Expect::Info,
        Expect::Description,
    ])
}

/// A sender and what it has sent, with the promises of [`Outbox`] checked at every step.
struct Sending {
    outbox: Outbox<u32, usize>,
    stream: Stream<u32>,
    pushed: usize,
    /// The bytes that have been pushed and not been accepted.
    waiting: usize,
    /// What has left, in that order.
    left: Vec<Frame<u32>>,
}

#[derive(Debug, Clone)]
enum Step {
    Push,
    Send { most: usize, accepted: Index },
}

impl Default for Sending {
    fn default() -> Self {
        Self { outbox: Outbox::new(), stream: Stream::new(), pushed: 0, waiting: 0, left: vec![] }
    }
}

impl Sending {
    fn push(&mut self, frame: Frame<u32>) {
        self.waiting += frame.bytes.len();
        self.outbox.push(frame, self.pushed);
        self.pushed += 1;
    }

    fn send(&mut self, most: usize, accepted: Option<Index>) -> Result<(), TestCaseError> {
        let mut bytes = b"cleared".to_vec();
        let fds = self.outbox.next_send(&mut bytes, most).to_vec();
        if bytes.is_empty() {
            prop_assert!(self.outbox.is_empty() && fds.is_empty());
            return Ok(());
        }
        let messages = bytes.iter().filter(|&&byte| byte == 0).count();
        prop_assert_eq!(bytes.last(), Some(&0));
        prop_assert!(messages == 1 || (fds.is_empty() && bytes.len() <= most));
        prop_assert!(
            fds.is_empty() || bytes[0] == b'{',
            "descriptors beside the rest of a message"
        );
        let accepted = accepted.map_or(bytes.len(), |index| 1 + index.index(bytes.len()));
        self.stream.send(&bytes[..accepted], fds);
        let left = &mut self.left;
        let mut tokens = Vec::new();
        let before = left.len();
        self.outbox.advance(accepted, |frame, token| {
            left.push(frame);
            tokens.push(token);
        });
        prop_assert_eq!(tokens, (before..left.len()).collect::<Vec<_>>());
        self.waiting -= accepted;
        prop_assert_eq!(self.outbox.len(), self.waiting);
        prop_assert_eq!(self.outbox.is_empty(), self.waiting == 0);
        Ok(())
    }
}

fn step() -> impl Strategy<Value = Step> {
    let most = prop_oneof![Just(1usize), 1usize..400, Just(100_000)];
    prop_oneof![
        1 => Just(Step::Push),
        2 => (most, any::<Index>()).prop_map(|(most, accepted)| Step::Send { most, accepted }),
    ]
}

/// A message that is a call as far as its envelope goes.
fn message() -> impl Strategy<Value = Value> {
    let methods = vec!["Give", "Give", "Give", "Take", "Reopen", "Begin", "Later"];
    (sample::select(methods), parameters()).prop_map(|(method, parameters)| {
        json!({ "method": format!("{INTERFACE_NAME}.{method}"), "parameters": parameters })
    })
}

/// What parameters may look like, right and wrong.
fn parameters() -> impl Strategy<Value = Value> {
    let index = prop_oneof![
        6 => (0i64..3).prop_map(Value::from),
        1 => sample::select(vec![json!(-1), json!(1.0), json!("0"), json!(null), json!(i64::MAX)]),
    ];
    let name = sample::select(vec![json!("a"), json!("b"), json!("c"), json!("d:"), json!(1)]);
    let more = sample::select(vec![
        json!({}),
        json!({ "bogus": { "fileDescriptor": 1 } }),
        json!({ "labels": { "fileDescriptor": "x" } }),
        json!({ "expireUSec": -1 }),
    ]);
    let entry = (name, index, prop_oneof![3 => Just(json!({})), 1 => more]).prop_map(
        |(name, index, mut entry)| {
            entry["name"] = name;
            entry["fileDescriptor"] = index;
            entry
        },
    );
    let well_numbered = collection::vec(entry.clone(), 0..4).prop_map(|mut entries| {
        for (at, entry) in entries.iter_mut().enumerate() {
            entry["fileDescriptor"] = at.into();
        }
        json!({ "entries": entries })
    });
    prop_oneof![
        3 => well_numbered,
        3 => collection::vec(entry, 0..4).prop_map(|entries| json!({ "entries": entries })),
        1 => sample::select(vec![json!(null), json!([]), json!(1), json!({ "entries": [[]] })]),
    ]
}

/// The next call, of what these bytes complete.
fn heard(
    inbox: &mut Inbox<u32>,
    bytes: &[u8],
    fds: impl IntoIterator<Item = u32>,
) -> Result<Incoming<u32>, Hangup> {
    inbox.feed(bytes, fds)?;
    Ok(inbox.next_call()?.expect("a whole message"))
}

fn give<F: Clone>(names: &[&str], fds: &[F]) -> Call<F> {
    let name = |name: &&str| Name::new(name).expect("a name");
    let gifts = names.iter().zip(fds).map(|(text, fd)| Gift::new(name(text), fd.clone()));
    Call::Give { gifts: gifts.collect(), clash: Clash::Replace, ticket: None }
}

fn begin() -> Vec<u8> {
    call::write::<u32>(Call::Begin, Mode::Once).bytes
}

/// A Begin that has so many bytes, its NUL included.
fn begin_of_length(length: usize) -> Vec<u8> {
    let mut bytes = begin();
    bytes.pop();
    bytes.resize(length - 1, b' ');
    bytes.push(0);
    bytes
}

fn framed(message: &Value) -> Vec<u8> {
    format!("{message}\0").into_bytes()
}

fn fds_of_incoming(incoming: Incoming<u32>) -> Vec<u32> {
    let mut fds = incoming.unused;
    if let Ok(Request::Stash(Call::Give { gifts, .. })) = incoming.request {
        fds.extend(gifts.into_iter().map(|gift| gift.fd));
    }
    fds
}

fn fds_of_answer(answer: Answer<u32>) -> Vec<u32> {
    match answer.outcome {
        Ok(Reply::Handed(handed)) => handed.into_iter().map(|handed| handed.fd).collect(),
        Ok(_) | Err(_) => Vec::new(),
    }
}

fn sorted(tokens: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut tokens = Vec::from_iter(tokens);
    tokens.sort_unstable();
    tokens
}

fn fail(hangup: Hangup) -> TestCaseError {
    TestCaseError::fail(format!("hung up: {hangup}"))
}
