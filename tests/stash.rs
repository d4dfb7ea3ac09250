//! Every method, end to end: through the blocking library, and the main ones through the async one.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::{
        fd::AsFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    thread,
    time::Duration,
};

use fdstash::{
    Access, Change, Client, Error, Flags, Gift, Keeper, Kind, Labels, Notice, Refusal, Reopening,
    Share, blocking,
};
use kit::{
    Daemon, Raw, SOON, call, file, gift, gifts, identity, listed, name, names, not_found, only,
    pattern, refusal, wait_until,
};
use rustix::{
    fs::{FlockOperation, OFlags, fcntl_getfl, fcntl_setfl, flock},
    pipe::pipe,
};
use serde_json::json;

fn changes(watch: &mut blocking::Watch, count: usize) -> Vec<(Change, String)> {
    let changed = watch.by_ref().take(count).map(|notice| match notice.expect("a notice") {
        Notice::Changed { change, entry } => (change, entry.name.to_string()),
        other @ (Notice::Standing | Notice::Lost(_)) => panic!("no change: {other:?}"),
    });
    changed.collect()
}

#[test]
fn what_is_given_is_what_is_taken_and_then_it_is_gone() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut given = file(daemon.path("a"), "0123456789");
    given.seek(SeekFrom::Start(4)).unwrap();
    let before = daemon.held_at_rest();

    let replaced = client.give(&[gift("a", &given)]).unwrap();
    let mut taken = only(client.take(&names(["a"])).unwrap());

    assert_eq!(replaced, []);
    assert_eq!(identity(&taken), identity(&given));
    assert_eq!(taken.stream_position().unwrap(), 4, "it is the same open file description");
    assert_eq!(refusal(client.take(&names(["a"]))), not_found("a"));
    wait_until(SOON, || daemon.held() == before);
}

#[test]
fn a_taken_descriptor_is_close_on_exec() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    client.give(&[gift("a", file(daemon.path("a"), ""))]).unwrap();

    let taken = only(client.take(&names(["a"])).unwrap());

    let flags = rustix::io::fcntl_getfd(&taken).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn a_second_gift_of_a_name_makes_the_first_go() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let (old, new) = (file(daemon.path("old"), "old"), file(daemon.path("new"), "new"));
    client.give(&[gift("a", &old), gift("b", &old)]).unwrap();

    let replaced = client.give(&[gift("a", &new), gift("c", &new)]).unwrap();

    assert_eq!(replaced, names(["a"]));
    assert_eq!(identity(only(client.copy(&names(["a"])).unwrap())), identity(&new));
    assert_eq!(identity(only(client.copy(&names(["b"])).unwrap())), identity(&old));
}

#[test]
fn an_exclusive_gift_of_a_taken_name_gives_nothing() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let (old, new) = (file(daemon.path("old"), ""), file(daemon.path("new"), ""));
    client.give_new(&[gift("a", &old)]).unwrap();
    let before = daemon.held_at_rest();

    let refused = refusal(client.give_new(&[gift("b", &new), gift("a", &new)]));

    assert_eq!(refused, Refusal::AlreadyExists { name: "a".into() });
    assert_eq!(listed(&mut client), ["a"]);
    assert_eq!(identity(only(client.copy(&names(["a"])).unwrap())), identity(&old));
    wait_until(SOON, || daemon.held() == before);
}

#[test]
fn a_call_of_many_names_takes_all_or_none() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("a"), "");
    client.give(&[gift("a", &kept), gift("b", &kept)]).unwrap();

    assert_eq!(refusal(client.take(&names(["a", "none", "b"]))), not_found("none"));
    assert_eq!(refusal(client.close(&names(["a", "none"]))), not_found("none"));
    assert_eq!(refusal(client.copy(&names(["none", "b"]))), not_found("none"));
    assert_eq!(listed(&mut client), ["a", "b"]);

    let taken = client.take(&names(["b", "a"])).unwrap();
    assert_eq!(taken.iter().map(|handed| handed.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(listed(&mut client), [""; 0]);
}

#[test]
fn a_thousand_descriptors_are_given_and_taken_in_one_call_of_the_library() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("a"), "");
    let many: Vec<_> = (0..1000).map(|number| name(&format!("n{number:04}"))).collect();
    let gifts: Vec<_> = many.iter().map(|name| Gift::new(name.clone(), &kept)).collect();

    client.give(&gifts).unwrap();
    assert_eq!(daemon.statistics().entries, 1000);
    let taken = client.take(&many).unwrap();

    assert_eq!(taken.len(), 1000);
    assert!(taken.iter().all(|handed| identity(&handed.fd) == identity(&kept)));
    assert_eq!(daemon.statistics().entries, 0);
}

#[test]
fn a_copy_shares_all_with_what_is_kept_and_a_fresh_one_nothing() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    client.give(&[gift("a", file(daemon.path("a"), "0123456789"))]).unwrap();
    let mut copy = only(client.copy(&names(["a"])).unwrap());
    let mut other = only(client.copy(&names(["a"])).unwrap());
    let mut fresh = only(client.copy_fresh(&names(["a"])).unwrap());

    copy.seek(SeekFrom::Start(5)).unwrap();
    fcntl_setfl(&copy, OFlags::APPEND | OFlags::NONBLOCK).unwrap();
    flock(&copy, FlockOperation::NonBlockingLockExclusive).unwrap();

    assert_eq!(other.stream_position().unwrap(), 5);
    assert!(fcntl_getfl(&other).unwrap().contains(OFlags::APPEND));
    flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(identity(&fresh), identity(&copy));
    assert_eq!(fresh.stream_position().unwrap(), 0);
    assert!(!fcntl_getfl(&fresh).unwrap().contains(OFlags::APPEND));
    assert!(flock(&fresh, FlockOperation::NonBlockingLockExclusive).is_err());
    assert_eq!(listed(&mut client), ["a"]);
}

#[test]
fn a_fresh_gift_is_immune_to_what_its_sender_does_later() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut sent = file(daemon.path("a"), "0123456789");
    client.give(&[Gift { fresh: true, ..gift("a", &sent) }]).unwrap();

    sent.seek(SeekFrom::Start(5)).unwrap();
    fcntl_setfl(&sent, OFlags::APPEND).unwrap();
    flock(&sent, FlockOperation::NonBlockingLockExclusive).unwrap();

    let mut kept = only(client.copy(&names(["a"])).unwrap());
    assert_eq!(identity(&kept), identity(&sent));
    assert_eq!(kept.stream_position().unwrap(), 0);
    assert!(!fcntl_getfl(&kept).unwrap().contains(OFlags::APPEND));
    assert!(flock(&kept, FlockOperation::NonBlockingLockExclusive).is_err());
    assert_eq!(client.list(&pattern("a")).unwrap()[0].drifted, Flags::NONE);
}

#[test]
fn only_files_and_block_devices_are_given_fresh() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let (reader, _writer) = pipe().unwrap();

    let refused = refusal(client.give(&[Gift { fresh: true, ..gift("a", &reader) }]));

    assert_eq!(refused, Refusal::InvalidParameter { parameter: "entries[0].fresh".into() });
    assert_eq!(listed(&mut client), [""; 0]);
}

#[test]
fn what_is_closed_is_closed() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let (reader, writer) = pipe().unwrap();
    client.give(&[gift("writer", &writer)]).unwrap();
    drop(writer);

    client.close(&names(["writer"])).unwrap();

    // It ends only when nobody holds the other end any more.
    assert_eq!(File::from(reader).read(&mut [0]).unwrap(), 0);
    assert_eq!(refusal(client.close(&names(["writer"]))), not_found("writer"));
}

#[test]
fn a_reopen_turns_the_page_cache_off_and_on() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let given = file(daemon.path("a"), "content");
    client.give(&[gift("a", &given)]).unwrap();
    let direct = |on| [Reopening { direct: Some(on), ..Reopening::new(name("a")) }];

    let off = match client.reopen(&direct(true)) {
        Err(Error::Refused(Refusal::ReopenFailed { errno_name, .. })) if errno_name == "EINVAL" => {
            return kit::skipped("the file system of the temporary folder has no O_DIRECT");
        }
        outcome => only(outcome.unwrap()),
    };
    let flags = client.list(&pattern("a")).unwrap()[0].flags;
    let on = only(client.reopen(&direct(false)).unwrap());

    assert!(fcntl_getfl(&off).unwrap().contains(OFlags::DIRECT));
    assert_eq!(flags, Flags::DIRECT);
    assert!(!fcntl_getfl(&on).unwrap().contains(OFlags::DIRECT));
    assert!(!fcntl_getfl(&given).unwrap().contains(OFlags::DIRECT), "the sender's is untouched");
    for handed in [&off, &on] {
        assert_eq!(identity(handed), identity(&given));
    }
    assert_eq!(daemon.statistics().reopened, 2);
}

#[test]
fn a_reopen_changes_access_and_flags_and_remembers_them() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    client.give(&[gift("a", file(daemon.path("a"), "0123"))]).unwrap();

    let append = Reopening {
        access: Some(Access::Write),
        append: Some(true),
        sync: Some(true),
        nonblock: Some(true),
        ..Reopening::new(name("a"))
    };
    let mut log = only(client.reopen(&[append]).unwrap());
    log.write_all(b"4").unwrap();

    let flags = fcntl_getfl(&log).unwrap();
    assert_eq!(flags & OFlags::ACCMODE, OFlags::WRONLY);
    assert!(flags.contains(OFlags::APPEND | OFlags::SYNC | OFlags::NONBLOCK));
    assert_eq!(fs::read_to_string(daemon.path("a")).unwrap(), "01234");
    let entry = &client.list(&pattern("a")).unwrap()[0];
    assert_eq!((entry.access, entry.may_reopen), (Access::Write, Access::ReadWrite));
    assert_eq!(entry.flags.words().collect::<Vec<_>>(), ["sync", "append", "nonblock"]);

    let dsync = Reopening {
        access: Some(Access::ReadWrite),
        sync: Some(false),
        dsync: Some(true),
        ..Reopening::new(name("a"))
    };
    let again = only(client.reopen(&[dsync]).unwrap());
    // The constant of rustix 1.1.6 is that of O_SYNC.
    let dsync = OFlags::from_bits_retain(0x1000);

    let flags = fcntl_getfl(&again).unwrap();
    assert_eq!(flags & OFlags::ACCMODE, OFlags::RDWR);
    assert!(flags.contains(dsync | OFlags::APPEND) && !flags.contains(OFlags::SYNC));
}

#[test]
fn what_a_reopen_hands_out_shares_nothing_with_what_is_kept() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    client.give(&[gift("a", file(daemon.path("a"), "0123456789"))]).unwrap();

    let mut handed = only(client.reopen(&[Reopening::new(name("a"))]).unwrap());
    handed.seek(SeekFrom::Start(5)).unwrap();
    flock(&handed, FlockOperation::NonBlockingLockExclusive).unwrap();

    let mut kept = only(client.copy(&names(["a"])).unwrap());
    assert_eq!(kept.stream_position().unwrap(), 0);
    assert!(flock(&kept, FlockOperation::NonBlockingLockExclusive).is_err());
}

#[test]
fn a_reopen_never_gives_more_access_than_the_gift_allowed() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    file(daemon.path("a"), "");
    let read_only = File::open(daemon.path("a")).unwrap();
    let wider = Gift { may_reopen: Some(Access::ReadWrite), ..gift("wider", &read_only) };
    client.give(&[gift("plain", &read_only), wider]).unwrap();
    let to_write =
        |text| [Reopening { access: Some(Access::ReadWrite), ..Reopening::new(name(text)) }];

    let refused = refusal(client.reopen(&to_write("plain")));
    let written = only(client.reopen(&to_write("wider")).unwrap());

    assert_eq!(refused, Refusal::AccessDenied { name: "plain".into(), verb: "reopen".into() });
    written.write_at(b"x", 0).unwrap();
    assert_eq!(fs::read_to_string(daemon.path("a")).unwrap(), "x");
}

#[test]
fn the_very_file_is_reopened_whatever_its_path_is_called_now() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let renamed = file(daemon.path("renamed"), "renamed");
    let unlinked = file(daemon.path("unlinked"), "unlinked");
    client.give(&[gift("renamed", &renamed), gift("unlinked", &unlinked)]).unwrap();
    fs::rename(daemon.path("renamed"), daemon.path("elsewhere")).unwrap();
    fs::remove_file(daemon.path("unlinked")).unwrap();
    let impostors = [file(daemon.path("renamed"), "no"), file(daemon.path("unlinked"), "no")];

    let both = ["renamed", "unlinked"].map(|text| Reopening::new(name(text)));
    let handed = client.reopen(&both).unwrap();

    assert_eq!(identity(&handed[0].fd), identity(&renamed));
    assert_eq!(identity(&handed[1].fd), identity(&unlinked));
    assert_ne!(identity(&handed[1].fd), identity(&impostors[1]));
    let target = client.list(&pattern("renamed")).unwrap()[0].target.clone();
    assert_eq!(target.as_deref(), daemon.path("renamed").to_str(), "as it was when it was given");
}

#[test]
fn where_the_second_of_two_files_cannot_be_reopened_all_is_as_it_was() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let (socket, _other) = UnixStream::pair().unwrap();
    client.give(&[gift("a", file(daemon.path("a"), ""))]).unwrap();
    client.give(&[gift("b", &socket)]).unwrap();
    let before = client.list(&pattern("*")).unwrap();
    let before_held = daemon.held_at_rest();

    let both = ["a", "b"].map(|text| Reopening { sync: Some(true), ..Reopening::new(name(text)) });
    let refused = refusal(client.reopen(&both));

    let Refusal::ReopenFailed { name, errno, errno_name, .. } = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((name.as_str(), errno, errno_name.as_str()), ("b", 6, "ENXIO"));
    assert_eq!(client.list(&pattern("*")).unwrap(), before);
    wait_until(SOON, || daemon.held() == before_held);
    let kept = only(client.copy(&names(["a"])).unwrap());
    assert!(!fcntl_getfl(&kept).unwrap().contains(OFlags::SYNC));
}

#[test]
fn a_transaction_is_seen_by_others_at_its_commit_and_not_before() {
    let daemon = Daemon::spawn();
    let (mut one, mut other) = (daemon.client(), daemon.client());
    let kept = file(daemon.path("kept"), "");
    one.give(&[gift("closed", &kept), gift("taken", &kept), gift("replaced", &kept)]).unwrap();
    one.give(&[gift("reopened", &kept)]).unwrap();
    let new = file(daemon.path("new"), "");
    let as_before = other.list(&pattern("*")).unwrap();

    let mut transaction = one.transaction().unwrap();
    transaction.close(&names(["closed"])).unwrap();
    let taken = only(transaction.take(&names(["taken"])).unwrap());
    transaction.give(&[gift("replaced", &new), gift("new", &new)]).unwrap();
    let sync = Reopening { sync: Some(true), ..Reopening::new(name("reopened")) };
    transaction.reopen(&[sync]).unwrap();

    assert_eq!(identity(&taken), identity(&kept));
    let meanwhile = other.list(&pattern("*")).unwrap();
    assert!(meanwhile.iter().all(|entry| entry.held_by.is_some()));
    let without_holder: Vec<_> =
        meanwhile.into_iter().map(|entry| fdstash::Entry { held_by: None, ..entry }).collect();
    assert_eq!(without_holder, as_before);
    for text in ["closed", "taken", "replaced", "reopened"] {
        assert!(matches!(refusal(other.copy(&names([text]))), Refusal::Busy { .. }), "{text}");
    }
    assert!(matches!(refusal(other.give(&[gift("new", &kept)])), Refusal::Busy { .. }));
    assert_eq!(daemon.statistics().transactions, 1);

    transaction.commit().unwrap();

    assert_eq!(listed(&mut other), ["new", "reopened", "replaced"]);
    assert_eq!(identity(only(other.copy(&names(["replaced"])).unwrap())), identity(&new));
    let entries = other.list(&pattern("*")).unwrap();
    assert!(entries.iter().all(|entry| entry.revision == entries[0].revision));
    assert_eq!(entries[1].flags, Flags::SYNC);
}

#[test]
fn a_rolled_back_transaction_was_never_there() {
    let daemon = Daemon::spawn();
    let (mut one, mut other) = (daemon.client(), daemon.client());
    let kept = file(daemon.path("kept"), "");
    one.give(&[gift("a", &kept), gift("b", &kept)]).unwrap();
    let before = other.list(&pattern("*")).unwrap();
    let before_held = daemon.held_at_rest();

    let mut transaction = one.transaction().unwrap();
    transaction.close(&names(["a"])).unwrap();
    let new = file(daemon.path("new"), "");
    transaction.give(&[gift("b", &new), gift("c", &kept)]).unwrap();
    drop(new);
    transaction.rollback();

    assert_eq!(other.list(&pattern("*")).unwrap(), before);
    assert_eq!(identity(only(other.copy(&names(["b"])).unwrap())), identity(&kept));
    wait_until(SOON, || daemon.held() == before_held);
}

#[test]
fn the_end_of_a_connection_rolls_its_transaction_back() {
    let daemon = Daemon::spawn();
    let mut other = daemon.client();
    let kept = file(daemon.path("kept"), "");
    other.give(&[gift("a", &kept)]).unwrap();
    let before_held = daemon.held_at_rest();
    let mut raw = daemon.raw();
    raw.call("Begin", &json!({}));
    raw.call("Close", &json!({"names": ["a"]}));
    raw.give(&["b"], &[&kept]);
    assert!(matches!(refusal(other.take(&names(["a"]))), Refusal::Busy { .. }));

    drop(raw);

    // It waits until the name is free again.
    let taken = only(other.take_within(&names(["a"]), SOON).unwrap());
    assert_eq!(identity(&taken), identity(&kept));
    assert_eq!(listed(&mut other), [""; 0]);
    wait_until(SOON, || daemon.held() == before_held - 1);
}

#[test]
fn a_call_that_is_sent_again_on_another_connection_is_done_once() {
    let daemon = Daemon::spawn();
    let (image, other) = (file(daemon.path("a"), ""), file(daemon.path("b"), ""));
    let mut parameters = gifts(&["disk"]);
    parameters["ticket"] = json!("t1");
    let give = call("Give", &parameters);
    let commit = |ticket: &str| call("Commit", &json!({ "ticket": ticket }));
    let mut lost = Raw::connect(daemon.socket());
    lost.give(&["disk"], &[&other]);
    let before = daemon.held_at_rest();

    lost.send(&give, &[&image]);
    let first = lost.reply();
    drop(lost);
    let mut peer = Raw::connect(daemon.socket());
    peer.send(&give, &[&other]);
    let again = peer.reply();
    peer.say(&commit("t1"));
    let done = peer.reply();
    peer.say(&commit("t2"));
    let not_done = peer.reply();

    assert_eq!(first, json!({ "parameters": { "replaced": ["disk"] } }));
    assert_eq!(again, first);
    assert_eq!(done, json!({ "parameters": {} }));
    assert_eq!(not_done["error"], "org.fdstash.Stash.TransactionState");
    wait_until(SOON, || daemon.held() == before);
    let kept = only(daemon.client().take(&names(["disk"])).unwrap());
    assert_eq!(identity(&kept), identity(&image));
}

#[test]
fn a_take_waits_for_what_is_given_later() {
    let daemon = Daemon::spawn();
    let kept = file(daemon.path("kept"), "");
    let mut waiting = daemon.client();

    thread::scope(|scope| {
        let taken = scope.spawn(|| waiting.take_within(&names(["a", "b"]), SOON));
        let mut client = daemon.client();
        client.give(&[gift("a", &kept)]).unwrap();
        // The library takes in a transaction, which stands while it waits.
        wait_until(SOON, || client.statistics().unwrap().transactions == 1);
        client.give(&[gift("b", &kept)]).unwrap();

        assert_eq!(taken.join().unwrap().unwrap().len(), 2);
        assert_eq!(listed(&mut client), [""; 0]);
    });
}

#[test]
fn a_take_that_waits_too_long_is_refused_as_if_it_had_not_waited() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();

    let refused = refusal(client.take_within(&names(["a"]), Duration::from_millis(30)));

    assert_eq!(refused, not_found("a"));
}

#[test]
fn what_expires_is_closed_in_time() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let (reader, writer) = pipe().unwrap();
    let brief = Gift { expire_usec: Some(50_000), ..gift("brief", &writer) };
    let long = Gift { expire_usec: Some(3_600_000_000), ..gift("long", &writer) };
    let longest = Gift { expire_usec: Some(i64::MAX.unsigned_abs()), ..gift("longest", &writer) };
    client.give(&[brief, long, longest]).unwrap();
    drop(writer);
    let given = client.list(&pattern("long")).unwrap().remove(0);

    wait_until(SOON, || listed(&mut client) == ["long", "longest"]);

    assert_eq!(given.expires_at_usec, Some(given.given_at_usec + 3_600_000_000));
    assert_eq!(daemon.statistics().expired, 1);
    client.close(&names(["long", "longest"])).unwrap();
    assert_eq!(File::from(reader).read(&mut [0]).unwrap(), 0);
}

#[test]
fn an_ephemeral_entry_ends_with_the_connection_that_gave_it() {
    let daemon = Daemon::spawn();
    let (mut giver, mut other) = (daemon.client(), daemon.client());
    let kept = file(daemon.path("kept"), "");
    giver.give(&[Gift { ephemeral: true, ..gift("gone", &kept) }, gift("stays", &kept)]).unwrap();
    assert_eq!(listed(&mut other), ["gone", "stays"]);

    drop(giver);

    wait_until(SOON, || listed(&mut other) == ["stays"]);
}

#[test]
fn what_hangs_up_is_closed_where_that_is_asked_for() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut watch = client.watch(&pattern("*")).unwrap();
    let (reader, writer) = pipe().unwrap();
    let (socket, peer) = UnixStream::pair().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let watched = |gift: Gift<_>| Gift { close_on_hangup: true, ..gift };
    client
        .give(&[
            watched(gift("pipe", reader.as_fd())),
            watched(gift("socket", socket.as_fd())),
            watched(gift("tcp", accepted.as_fd())),
            gift("kept", socket.as_fd()),
        ])
        .unwrap();
    changes(&mut watch, 4);
    drop((reader, socket, accepted));

    drop(writer);
    let first = changes(&mut watch, 1);
    drop(peer);
    let second = changes(&mut watch, 1);
    // A socket of TCP has hung up when both sides have ended it.
    client.copy(&names(["tcp"])).map(only).unwrap();
    let copy = only(client.copy(&names(["tcp"])).unwrap());
    rustix::net::shutdown(&copy, rustix::net::Shutdown::Write).unwrap();
    drop(connected);
    let third = changes(&mut watch, 1);

    let hung_up = |text: &str| vec![(Change::HungUp, text.to_owned())];
    assert_eq!([first, second, third], [hung_up("pipe"), hung_up("socket"), hung_up("tcp")]);
    assert_eq!(listed(&mut client), ["kept"]);
}

#[test]
fn what_hangs_up_while_a_transaction_holds_it_goes_afterwards_and_costs_nothing_until_then() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let (reader, writer) = pipe().unwrap();
    client.give(&[Gift { close_on_hangup: true, ..gift("pipe", &reader) }]).unwrap();
    let mut raw = daemon.raw();
    raw.call("Begin", &json!({}));
    raw.call("Take", &json!({"names": ["pipe"], "copy": true}));

    drop((reader, writer));
    for _ in 0..100 {
        // It answers all the while.
        assert_eq!(listed(&mut client), ["pipe"]);
    }
    let busy = daemon.busy();
    assert!(busy < Duration::from_secs(2), "{busy:?}");
    raw.call("Rollback", &json!({}));

    wait_until(SOON, || listed(&mut client) == [""; 0]);
}

#[test]
fn a_watch_tells_every_change_in_its_order() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut watch = client.watch(&pattern("w*")).unwrap();
    let kept = file(daemon.path("kept"), "");
    let (reader, writer) = pipe().unwrap();

    client.give(&[gift("w1", &kept), gift("other", &kept)]).unwrap();
    client.give(&[gift("w1", &kept)]).unwrap();
    client.reopen(&[Reopening { sync: Some(true), ..Reopening::new(name("w1")) }]).unwrap();
    client.take(&names(["w1"])).unwrap();
    client.give(&[Gift { expire_usec: Some(1000), ..gift("w2", &kept) }]).unwrap();
    let told = changes(&mut watch, 6);
    client.give(&[Gift { close_on_hangup: true, ..gift("w3", &reader) }]).unwrap();
    drop((reader, writer));
    let hung_up = changes(&mut watch, 2);
    client.give(&[gift("w4", &kept)]).unwrap();
    client.close(&names(["w4"])).unwrap();
    let closed = changes(&mut watch, 2);

    let all: Vec<_> = told.into_iter().chain(hung_up).chain(closed).collect();
    let all: Vec<_> = all.iter().map(|(change, name)| (*change, name.as_str())).collect();
    assert_eq!(
        all,
        [
            (Change::Given, "w1"),
            (Change::Replaced, "w1"),
            (Change::Reopened, "w1"),
            (Change::Taken, "w1"),
            (Change::Given, "w2"),
            (Change::Expired, "w2"),
            (Change::Given, "w3"),
            (Change::HungUp, "w3"),
            (Change::Given, "w4"),
            (Change::Closed, "w4"),
        ]
    );
}

#[test]
fn a_slow_watcher_is_told_how_much_it_has_missed_and_then_goes_on() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let mut slow = daemon.raw();
    slow.say(&kit::messages(&[json!({"method": "org.fdstash.Stash.Watch", "more": true})]));
    assert_eq!(slow.reply(), json!({"parameters": {}, "continues": true}));
    let kept = file(daemon.path("kept"), "");
    let labels = Labels::from([("note".to_owned(), "x".repeat(20_000))]);
    let rounds = 150;

    for _ in 0..rounds {
        client.give(&[Gift { labels: labels.clone(), ..gift("a", &kept) }]).unwrap();
    }
    let (mut told, mut lost) = (0, 0);
    while lost == 0 {
        let reply = slow.reply();
        match reply["parameters"]["lost"].as_u64() {
            Some(count) => lost = count,
            None => told += 1,
        }
    }
    client.close(&names(["a"])).unwrap();

    assert_eq!(told + lost, rounds);
    assert_eq!(slow.reply()["parameters"]["change"], "closed");
}

#[test]
fn thousands_of_entries_are_listed_in_parts_in_the_order_of_their_names() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("kept"), "");
    // Not in the order of their names.
    let many: Vec<_> = (0..1500).map(|number| format!("n{:04}", number * 7 % 1500)).collect();
    let gifts: Vec<_> = many.iter().map(|text| gift(text, &kept)).collect();
    client.give(&gifts).unwrap();
    let mut raw = daemon.raw();
    raw.say(&kit::messages(&[json!({
        "method": "org.fdstash.Stash.List", "parameters": {"pattern": "n*"}, "more": true,
    })]));

    let (mut parts, mut seen) = (0, Vec::new());
    loop {
        let reply = raw.reply();
        let entries = reply["parameters"]["entries"].as_array().unwrap();
        seen.extend(entries.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()));
        parts += 1;
        if reply["continues"] != true {
            break;
        }
    }

    let mut sorted = many;
    sorted.sort();
    assert_eq!(seen, sorted);
    assert!(parts > 10, "{parts}");
    let whole = raw.call("List", &json!({"pattern": "n00??"}));
    assert_eq!(whole["parameters"]["entries"].as_array().unwrap().len(), 100);
}

#[test]
fn entries_with_long_labels_are_listed_too() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("kept"), "");
    let labels = Labels::from([("note".to_owned(), "x".repeat(900_000))]);

    for number in 0..19 {
        let long = Gift { labels: labels.clone(), ..gift(&format!("n{number:02}"), &kept) };
        match client.give(&[long]) {
            // A stash that limits them has no such lists.
            Err(Error::Refused(
                Refusal::LimitExceeded { .. } | Refusal::InvalidParameter { .. },
            )) => {
                return;
            }
            outcome => drop(outcome.unwrap()),
        }
    }

    assert_eq!(client.list(&pattern("*")).unwrap().len(), 19);
}

#[test]
fn flags_that_somebody_else_has_changed_are_told() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let sent = File::options().append(true).create(true).open(daemon.path("log")).unwrap();
    client.give(&[gift("log", &sent)]).unwrap();

    fcntl_setfl(&sent, OFlags::NONBLOCK).unwrap();

    let entry = client.list(&pattern("*")).unwrap().remove(0);
    assert_eq!(entry.flags, Flags::APPEND);
    assert_eq!(entry.drifted.words().collect::<Vec<_>>(), ["append", "nonblock"]);
    let fresh = only(client.copy_fresh(&names(["log"])).unwrap());
    let flags = fcntl_getfl(&fresh).unwrap();
    assert!(flags.contains(OFlags::APPEND) && !flags.contains(OFlags::NONBLOCK));
}

#[test]
fn an_entry_shows_what_was_said_and_what_the_kernel_knows() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("kept"), "");
    let labels = Labels::from([("owner".to_owned(), "vm7 \"ä\"\n".to_owned())]);
    let all = Gift {
        may_reopen: Some(Access::Read),
        expire_usec: Some(60_000_000),
        labels: labels.clone(),
        share: Share { uids: vec![1000], gids: vec![2000] },
        ..gift("all", &kept)
    };
    client.give(&[all]).unwrap();

    let entry = client.list(&pattern("all")).unwrap().remove(0);

    assert_eq!((entry.kind, entry.access), (Kind::Regular, Access::ReadWrite));
    assert_eq!((entry.may_reopen, entry.labels), (Access::Read, labels));
    assert_eq!((entry.device, entry.inode), identity(&kept));
    assert_eq!(entry.target.as_deref(), daemon.path("kept").to_str());
    assert_eq!(entry.giver.uid, rustix::process::geteuid().as_raw());
    assert_eq!(entry.giver.pid, i32::try_from(std::process::id()).unwrap());
    assert_eq!(entry.expires_at_usec, Some(entry.given_at_usec + 60_000_000));
    assert_eq!((entry.held_by, entry.flags), (None, Flags::NONE));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    assert!(now.abs_diff(entry.given_at_usec.into()) < 60_000_000);
}

#[test]
fn the_statistics_add_up() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("kept"), "");
    for text in ["a", "b", "c", "d", "a"] {
        client.give(&[gift(text, &kept)]).unwrap();
    }
    client.give(&[Gift { expire_usec: Some(1), ..gift("e", &kept) }]).unwrap();
    client.take(&names(["a"])).unwrap();
    client.copy(&names(["b", "c"])).unwrap();
    client.copy_fresh(&names(["b"])).unwrap();
    client.close(&names(["b"])).unwrap();
    client.reopen(&[Reopening::new(name("c"))]).unwrap();
    refusal(client.take(&names(["none"])));
    wait_until(SOON, || client.statistics().unwrap().expired == 1);

    let told = client.statistics().unwrap();

    assert_eq!((told.entries, told.given, told.taken), (2, 6, 1));
    assert_eq!((told.copied, told.closed, told.reopened), (3, 2, 1));
    assert_eq!((told.expired, told.refused, told.connections), (1, 1, 1));
    assert_eq!(told.entries, told.given - told.taken - told.closed - told.expired);
    assert_eq!((told.transactions, told.keeper, told.restores), (0, Keeper::Process, 0));
}

#[test]
fn the_service_tells_what_it_is() {
    let daemon = Daemon::spawn();
    let mut raw = daemon.raw();
    let ask = |method: &str, parameters: serde_json::Value| {
        let method = format!("org.varlink.service.{method}");
        kit::messages(&[json!({"method": method, "parameters": parameters})])
    };

    raw.say(&ask("GetInfo", json!({})));
    let info = raw.reply();
    raw.say(&ask("GetInterfaceDescription", json!({"interface": "org.fdstash.Stash"})));
    let description = raw.reply();
    raw.say(&ask("GetInterfaceDescription", json!({"interface": "org.nobody"})));
    let unknown = raw.reply();

    assert_eq!(info["parameters"]["product"], "fdstashd");
    let interfaces = json!(["org.varlink.service", "org.fdstash.Stash"]);
    assert_eq!(info["parameters"]["interfaces"], interfaces);
    let text = description["parameters"]["description"].as_str().unwrap();
    assert_eq!(text, include_str!("../proto/org.fdstash.Stash.varlink"));
    assert_eq!(unknown["error"], "org.varlink.service.InterfaceNotFound");
}

#[tokio::test]
async fn the_async_library_does_the_same() {
    let daemon = Daemon::spawn();
    let mut client = Client::connect_to(daemon.socket()).await.unwrap();
    let mut watch = client.watch(&pattern("*")).await.unwrap();
    let kept = file(daemon.path("kept"), "");

    client.give(&[gift("a", &kept), gift("b", &kept)]).await.unwrap();
    assert_eq!(
        refusal(client.give_new(&[gift("a", &kept)]).await),
        Refusal::AlreadyExists { name: "a".into() }
    );
    let copy = only(client.copy(&names(["a"])).await.unwrap());
    let fresh = only(client.copy_fresh(&names(["a"])).await.unwrap());
    let sync = Reopening { sync: Some(true), ..Reopening::new(name("a")) };
    let reopened = only(client.reopen(&[sync]).await.unwrap());
    let mut transaction = client.transaction().await.unwrap();
    transaction.close(&names(["b"])).await.unwrap();
    transaction.rollback().await;
    let mut transaction = client.transaction().await.unwrap();
    let taken = only(transaction.take(&names(["a"])).await.unwrap());
    transaction.commit().await.unwrap();
    client.close(&names(["b"])).await.unwrap();

    for fd in [&copy, &fresh, &reopened, &taken] {
        assert_eq!(identity(fd), identity(&kept));
    }
    assert!(client.list(&pattern("*")).await.unwrap().is_empty());
    assert_eq!(client.statistics().await.unwrap().reopened, 1);
    assert_eq!(client.info().await.unwrap().product, "fdstashd");
    let mut told = Vec::new();
    while told.len() < 5 {
        match watch.next().await.unwrap().unwrap() {
            Notice::Changed { change, .. } => told.push(change),
            other @ (Notice::Standing | Notice::Lost(_)) => panic!("no change: {other:?}"),
        }
    }
    use Change::{Closed, Given, Reopened, Taken};
    assert_eq!(told, [Given, Given, Reopened, Taken, Closed]);
}

#[tokio::test]
async fn an_async_take_waits_while_another_gives() {
    let daemon = Daemon::spawn();
    let mut waiting = Client::connect_to(daemon.socket()).await.unwrap();
    let mut giver = Client::connect_to(daemon.socket()).await.unwrap();
    let kept = file(daemon.path("kept"), "");
    let wanted = names(["a"]);

    let (taken, ()) = tokio::join!(waiting.take_within(&wanted, SOON), async {
        while giver.statistics().await.unwrap().transactions == 0 {
            tokio::task::yield_now().await;
        }
        giver.give(&[gift("a", &kept)]).await.unwrap();
    });

    assert_eq!(identity(only(taken.unwrap())), identity(&kept));
}
