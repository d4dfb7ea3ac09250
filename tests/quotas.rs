//! What one user can have, at the quota and one past it, by a flag and by the policy; that it is free
//! again when what counted has ended; and root's share of everything. It is one file, since all of that
//! is one table, of which a test is a line.

use std::{
    fs::{self, File, Permissions},
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::Stdio,
    thread,
};

use fdstash::{Refusal, Reopening, blocking::Client};
use fdstash_proto::{Gift, Labels};
use kit::{
    Daemon, Fuse, Opens, Raw, SOON, User, can_be_others, exceeded, file, gift, name, names, null,
    only, pattern, refusal, skipped, wait_until,
};
use rustix::{
    fs::OFlags,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const ALICE: u32 = 61001;
const BOB: u32 = 61002;

/// A daemon that bounds users.
struct Bounded {
    daemon: Daemon,
    folder: TempDir,
}

impl Bounded {
    /// By flags alone.
    fn by_flags(flags: &[&str]) -> Self {
        Self::new("", flags)
    }

    /// By the policy.
    fn by_policy(policy: &str) -> Self {
        Self::new(policy, &[])
    }

    fn new(policy: &str, flags: &[&str]) -> Self {
        let all = Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new().permissions(all).tempdir().expect("a folder");
        let file = folder.path().join("policy.toml");
        fs::write(&file, policy).expect("a policy can be written");
        let builder = Daemon::builder().own_program().arg("--policy").arg(file);
        let daemon = flags.iter().fold(builder, |builder, flag| builder.arg(flag)).spawn();
        Self { daemon, folder }
    }

    fn policy(&self) -> PathBuf {
        self.folder.path().join("policy.toml")
    }

    fn alice(&self) -> Client {
        self.daemon.client_as(&User::new(ALICE))
    }

    fn bob(&self) -> Client {
        self.daemon.client_as(&User::new(BOB))
    }

    fn raw_of(&self, uid: u32) -> Raw {
        User::new(uid).run(|| self.daemon.raw())
    }

    /// Returns when the daemon has come to all that it was asked before. What is answered second was
    /// seen to have come later.
    fn come_to_it(&self) {
        let mut root = self.daemon.raw();
        for _ in 0..2 {
            root.call("GetStatistics", &json!({}));
        }
    }

    /// Raw connections of a user.
    fn raws<const N: usize>(&self, uid: u32) -> [Raw; N] {
        [(); N].map(|()| self.raw_of(uid))
    }
}

/// Does the same where a flag bounds something, and where the policy does.
fn both(flag: &str, key: &str, most: u64, test: impl Fn(&Bounded)) {
    if !can_be_others() {
        return;
    }
    test(&Bounded::by_flags(&[&format!("{flag}={most}")]));
    // What the policy says comes before the flag.
    let policy = format!("[[quota]]\nusers = [{ALICE}]\n{key} = {most}\n[[quota]]\n{key} = 4000\n");
    test(&Bounded::new(&policy, &[&format!("{flag}=3600")]));
}

#[track_caller]
fn assert_exceeds(reply: &Value, limit: &str, value: u64) {
    assert_eq!(reply["error"], "org.fdstash.Stash.LimitExceeded", "{reply}");
    assert_eq!(reply["parameters"], json!({ "limit": limit, "value": value }));
}

fn is_done(reply: &Value) -> bool {
    reply["error"].is_null()
}

/// A Take that waits for so many seconds.
fn takes(seconds: u64, texts: &[&str]) -> Vec<u8> {
    kit::call("Take", &json!({ "names": texts, "timeoutUSec": seconds * 1_000_000 }))
}

fn labelled(text: &str, note: &str) -> Gift<File> {
    Gift { labels: Labels::from([("k".into(), note.into())]), ..gift(text, null()) }
}

#[test]
fn so_many_entries_of_a_user_and_no_more() {
    both("--user-entries", "entries", 2, |bounded| {
        let (mut alice, mut bob) = (bounded.alice(), bounded.bob());
        alice.give(&[gift("a", null()), gift("b", null())]).unwrap();

        let third = refusal(alice.give(&[gift("c", null())]));
        alice.give(&[gift("a", null())]).unwrap();
        let three = ["r", "s", "t"].map(|text| gift(text, null()));

        assert_eq!(third, exceeded("entriesPerUser", 2));
        bounded.daemon.client().give(&three).unwrap();
        bob.give(&[gift("c", null())]).unwrap();
        alice.close(&names(["a"])).unwrap();
        alice.give(&[gift("d", null())]).unwrap();
        bounded.daemon.kill_server();
        // They are their giver's whoever has the daemon started anew.
        assert_eq!(refusal(bounded.alice().give(&[gift("e", null())])), third);
    });
}

#[test]
fn what_ends_with_a_client_leaves_its_user_room() {
    both("--user-entries", "entries", 2, |bounded| {
        let mut raw = bounded.raw_of(ALICE);
        let gifts = |text: &str| json!({"name": text, "fileDescriptor": 0, "ephemeral": true});
        raw.send(&kit::call("Give", &json!({ "entries": [gifts("a")] })), &[null()]);
        assert!(is_done(&raw.reply()));
        assert!(is_done(&raw.call("Begin", &json!({}))));
        assert!(is_done(&raw.give(&["b"], &[null()])));
        let mut alice = bounded.alice();
        assert_eq!(refusal(alice.give(&[gift("c", null())])), exceeded("entriesPerUser", 2));

        drop(raw);

        wait_until(SOON, || alice.give(&[gift("c", null()), gift("d", null())]).is_ok());
    });
}

#[test]
fn so_many_connections_of_a_user_and_no_more() {
    both("--user-connections", "connections", 2, |bounded| {
        let [mut one, two] = bounded.raws(ALICE);

        let mut third = bounded.raw_of(ALICE);
        let told = third.reply();

        assert_exceeds(&told, "connectionsPerUser", 2);
        assert!(third.is_hung_up_on());
        assert!(is_done(&one.call("GetStatistics", &json!({}))), "who is in, stays in");
        assert!(is_done(&bounded.daemon.raw().call("GetStatistics", &json!({}))));
        drop(two);
        wait_until(SOON, || {
            let mut raw = bounded.raw_of(ALICE);
            raw.try_send(&kit::call("GetStatistics", &json!({})), &[] as &[File]);
            raw.try_reply().is_ok_and(|reply| reply.is_some_and(|reply| is_done(&reply)))
        });
    });
}

#[test]
fn so_many_bytes_of_labels_of_a_user_and_no_more() {
    both("--user-label-bytes", "label_bytes", 10, |bounded| {
        let (mut alice, mut root) = (bounded.alice(), bounded.daemon.client());
        alice.give(&[labelled("a", "1234"), labelled("b", "1234")]).unwrap();

        let one_more = refusal(alice.give(&[labelled("b", "12345")]));
        let another = refusal(alice.give(&[labelled("c", "")]));

        assert_eq!([one_more, another], [(); 2].map(|()| exceeded("labelBytesPerUser", 10)));
        alice.give(&[labelled("a", "12345"), labelled("b", "123")]).unwrap();
        alice.close(&names(["b"])).unwrap();
        alice.give(&[labelled("c", "123")]).unwrap();
        root.give(&[labelled("r", &"1".repeat(100))]).unwrap();
    });
}

#[test]
fn a_user_waits_for_so_many_names_and_no_more() {
    both("--user-waits", "waits", 3, |bounded| {
        let [one, mut two, mut three] = bounded.raws(ALICE);
        one.say(&takes(600, &["a", "b"]));
        bounded.come_to_it();

        two.say(&takes(600, &["c", "d"]));
        assert_exceeds(&two.reply(), "waitsPerUser", 3);
        two.say(&takes(600, &["c"]));
        bounded.come_to_it();
        three.say(&takes(0, &["e"]));
        assert_eq!(
            three.reply()["error"],
            "org.fdstash.Stash.NotFound",
            "who does not wait may ask"
        );
        three.say(&takes(600, &["e"]));
        assert_exceeds(&three.reply(), "waitsPerUser", 3);

        drop(one);
        wait_until(SOON, || {
            three.say(&kit::call("Take", &json!({ "names": ["e", "f"], "timeoutUSec": 1 })));
            three.reply()["error"] == "org.fdstash.Stash.NotFound"
        });
        bounded.alice().give(&[gift("c", null())]).unwrap();
        assert!(is_done(&two.reply()), "who may wait gets what comes");
    });
}

#[test]
fn so_many_watches_of_a_user_and_no_more() {
    both("--user-watches", "watches", 1, |bounded| {
        let mut watching = bounded.daemon.command();
        watching.arg("watch").uid(ALICE).gid(ALICE).stdout(Stdio::piped());
        let mut watching = watching.spawn().unwrap();
        let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
        let first_line = thread::spawn(move || (lines.next(), lines));
        wait_until(SOON, || {
            bounded.alice().give(&[gift("a", null())]).unwrap();
            first_line.is_finished()
        });
        // It would end if nobody read from it any more.
        let _lines = first_line.join().unwrap();
        let watch = kit::messages(&[json!({
            "method": "org.fdstash.Stash.Watch", "parameters": {}, "more": true,
        })]);
        let told = |uid| {
            let mut raw = bounded.raw_of(uid);
            raw.say(&watch);
            raw.reply()
        };

        assert_exceeds(&told(ALICE), "watchesPerUser", 1);
        assert!(is_done(&told(0)), "root is not bound");
        watching.kill().unwrap();
        watching.wait().unwrap();
        wait_until(SOON, || is_done(&told(ALICE)));
    });
}

#[test]
fn so_many_names_in_a_transaction_and_no_more() {
    both("--transaction-names", "transaction_names", 2, |bounded| {
        let mut alice = bounded.raw_of(ALICE);
        let nulls = [null(), null(), null()];
        assert!(is_done(&alice.give(&["a", "b"], &nulls[..2])));
        assert_exceeds(&alice.give(&["c", "d", "e"], &nulls), "namesPerTransaction", 2);
        assert!(is_done(&alice.give(&["c"], &nulls[..1])));

        let close = |names: &[&str]| json!({ "names": names });
        assert_exceeds(&alice.call("Close", &close(&["a", "b", "c"])), "namesPerTransaction", 2);
        assert!(is_done(&alice.call("Begin", &json!({}))));
        assert!(is_done(&alice.call("Close", &close(&["a"]))));
        assert!(is_done(&alice.give(&["a", "b"], &nulls[..2])), "it holds one of them already");
        assert_exceeds(&alice.call("Close", &close(&["c"])), "namesPerTransaction", 2);
        let copy = json!({ "names": ["a", "b", "c"], "copy": true });
        assert_exceeds(&alice.call("Take", &copy), "namesPerTransaction", 2);
        assert!(is_done(&alice.call("Commit", &json!({}))));
        let copied = alice.call("Take", &copy);
        assert!(is_done(&copied), "outside of a transaction a copy holds nothing: {copied}");

        let mut root = bounded.daemon.raw();
        assert!(is_done(&root.call("Close", &close(&["a", "b", "c"]))), "root is not bound");
    });
}

#[test]
fn so_many_transactions_of_a_user_and_no_more() {
    both("--user-transactions", "transactions", 1, |bounded| {
        let [mut one, mut two] = bounded.raws(ALICE);
        assert!(is_done(&one.call("Begin", &json!({}))));

        let second = two.call("Begin", &json!({}));

        assert_exceeds(&second, "transactionsPerUser", 1);
        assert!(is_done(&bounded.daemon.raw().call("Begin", &json!({}))), "root is not bound");
        assert!(is_done(&one.call("Commit", &json!({}))));
        assert!(is_done(&two.call("Begin", &json!({}))));
        drop(two);
        wait_until(SOON, || is_done(&one.call("Begin", &json!({}))));
    });
}

#[test]
fn so_many_opens_of_a_user_and_no_more_though_its_clients_are_killed() {
    let Some(fuse) = Fuse::mount() else { return skipped("FUSE takes root and /dev/fuse") };
    drop(fuse);
    both("--user-opens", "opens", 2, |bounded| {
        let mut fuse = Fuse::mount().expect("it could be mounted before");
        let (mut alice, fresh) = (bounded.alice(), fresh_copy("slow"));
        alice.give(&[gift("slow", fuse.open(0, OFlags::empty())), gift("fast", null())]).unwrap();
        fuse.set(0, Opens::Hang);
        let [one, two, mut three] = bounded.raws(ALICE);
        one.say(&fresh);
        two.say(&fresh);
        wait_until(SOON, || fuse.hanging() == 2);

        three.say(&fresh);
        let third = three.reply();
        drop((one, two));
        wait_until(SOON, || bounded.daemon.statistics().connections <= 3);
        three.say(&fresh);
        let after_their_end = three.reply();

        assert_exceeds(&third, "opensPerUser", 2);
        assert_exceeds(&after_their_end, "opensPerUser", 2);
        fuse.kill();
        wait_until(SOON, || {
            three.say(&fresh);
            three.reply()["error"] == "org.fdstash.Stash.ReopenFailed"
        });
    });
}

#[test]
fn messages_half_sent_are_bounded_by_their_bytes() {
    both("--user-bytes", "bytes", 200_000, |bounded| {
        let long = [vec![b' '; 110_000], kit::call("Take", &json!({ "names": ["none"] }))].concat();
        let (half, rest) = long.split_at(100_000);
        let none: [File; 0] = [];
        let [mut one, mut two] = bounded.raws(ALICE);
        one.send(half, &none);
        two.send(half, &none);
        // It reads them in some turns of the user.
        (0..20).for_each(|_| bounded.come_to_it());
        let both_are_in = one.is_quiet() && two.is_quiet();

        two.send(&rest[..1], &none);
        let refused = two.reply();
        let is_hung_up_on = two.is_hung_up_on();
        bounded.come_to_it();
        one.send(rest, &none);

        assert!(both_are_in && is_hung_up_on);
        assert_exceeds(&refused, "bytesPerUser", 200_000);
        assert_eq!(one.reply()["error"], "org.fdstash.Stash.NotFound");
        assert!(is_done(&bounded.raw_of(BOB).call("GetStatistics", &json!({}))));
    });
}

#[test]
fn a_list_in_one_message_is_bounded_by_its_bytes_and_one_in_parts_is_not() {
    both("--user-bytes", "bytes", 200_000, |bounded| {
        let mut alice = bounded.alice();
        let note = "x".repeat(2_300);
        for at in 0..100 {
            alice.give(&[labelled(&format!("a{at}"), &note)]).unwrap();
        }

        let in_one = bounded.raw_of(ALICE).call("List", &json!({}));
        let in_parts = alice.list(&pattern("*")).unwrap();

        assert_exceeds(&in_one, "bytesPerUser", 200_000);
        assert_eq!(in_parts.len(), 100);
    });
}

#[test]
fn opens_of_others_that_hang_leave_threads_for_root() {
    if !can_be_others() {
        return;
    }
    let Some(fuse) = Fuse::mount() else { return skipped("FUSE takes root and /dev/fuse") };
    raise_open_files();
    let bounded = Bounded::by_flags(&["--user-opens=1000"]);
    let mut root = bounded.daemon.client();
    let slow = gift("slow", fuse.open(0, OFlags::empty()));
    bounded.alice().give(&[slow]).unwrap();
    root.give(&[gift("fast", file(bounded.daemon.path("fast"), ""))]).unwrap();
    fuse.set(0, Opens::Hang);
    // All that there are threads for, but for root's share of 12 percent.
    let most: usize = 448 - 448 * 12 / 100;

    let raws: Vec<Raw> = (0..most).map(|_| bounded.raw_of(ALICE)).collect();
    raws.iter().for_each(|raw| raw.say(&fresh_copy("slow")));
    wait_until(SOON, || fuse.hanging() == most);
    let mut past = bounded.raw_of(ALICE);
    past.say(&fresh_copy("slow"));

    assert_exceeds(&past.reply(), "opens", most as u64);
    for _ in 0..20 {
        only(root.reopen(&[Reopening::new(name("fast"))]).unwrap());
    }
    assert_eq!(fuse.hanging(), most, "they hang all the while");
}

#[test]
fn a_transaction_that_is_idle_is_rolled_back_and_its_client_told() {
    both("--idle-transaction", "idle_transaction", 3, |bounded| {
        let mut idle = bounded.raw_of(ALICE);
        let mut other = bounded.raw_of(ALICE);
        bounded.alice().give(&[gift("kept", null())]).unwrap();
        assert!(is_done(&idle.call("Begin", &json!({}))));
        assert!(is_done(&idle.give(&["new"], &[null()])));
        assert!(is_done(&idle.call("Take", &json!({ "names": ["kept"] }))));
        assert_eq!(busy(&other.call("Take", &json!({ "names": ["kept"] }))), "kept");
        assert_eq!(bounded.daemon.statistics().transactions, 1);

        // It gets what the transaction held, as soon as that is over.
        other.say(&takes(600, &["kept"]));
        assert!(is_done(&other.reply()));

        assert_eq!(bounded.daemon.statistics().transactions, 0);
        bounded.daemon.upgrade();
        for (method, parameters) in [
            ("List", json!({})),
            ("Take", json!({ "names": ["kept"] })),
            ("Close", json!({ "names": ["new"] })),
            ("Begin", json!({})),
        ] {
            assert_rolled_back(&idle.call(method, &parameters));
        }
        assert_rolled_back(&idle.give(&["new"], &[null()]));
        assert!(is_done(&idle.call("Rollback", &json!({}))));
        assert!(is_done(&idle.call("Begin", &json!({}))));
        assert!(is_done(&idle.give(&["new"], &[null()])));
        assert!(is_done(&idle.call("Commit", &json!({}))));
        assert_eq!(bounded.alice().list(&pattern("*")).unwrap().len(), 1);
    });
}

#[test]
fn a_commit_that_comes_too_late_is_refused_and_ends_it() {
    both("--idle-transaction", "idle_transaction", 1, |bounded| {
        let mut idle = bounded.raw_of(ALICE);
        assert!(is_done(&idle.call("Begin", &json!({}))));
        assert!(is_done(&idle.give(&["new"], &[null()])));
        wait_until(SOON, || bounded.daemon.statistics().transactions == 0);

        let commit = idle.call("Commit", &json!({}));

        assert_rolled_back(&commit);
        assert_eq!(bounded.alice().list(&pattern("*")).unwrap(), []);
        assert!(is_done(&idle.give(&["alone"], &[null()])));
        assert_eq!(bounded.alice().list(&pattern("*")).unwrap().len(), 1);
    });
}

#[test]
fn the_library_says_of_an_idle_transaction_that_it_was_rolled_back() {
    if !can_be_others() {
        return;
    }
    let bounded = Bounded::by_flags(&["--idle-transaction=1"]);
    let mut alice = bounded.alice();
    let mut transaction = alice.transaction().unwrap();
    transaction.give(&[gift("a", null())]).unwrap();
    wait_until(SOON, || bounded.daemon.statistics().transactions == 0);

    let late = refusal(transaction.give(&[gift("b", null())]));
    drop(transaction);

    assert!(matches!(late, Refusal::TransactionState { .. }), "{late:?}");
    alice.give(&[gift("b", null())]).unwrap();
    assert_eq!(alice.list(&pattern("*")).unwrap().len(), 1);
}

#[test]
fn a_transaction_of_root_may_be_idle() {
    if !can_be_others() {
        return;
    }
    let bounded = Bounded::by_flags(&["--idle-transaction=1"]);
    let [mut root, mut alice] = [0, ALICE].map(|uid| bounded.raw_of(uid));
    for raw in [&mut root, &mut alice] {
        assert!(is_done(&raw.call("Begin", &json!({}))));
    }

    wait_until(SOON, || bounded.daemon.statistics().transactions == 1);

    assert_rolled_back(&alice.call("Commit", &json!({})));
    assert!(is_done(&root.call("Commit", &json!({}))));
}

#[test]
fn the_last_part_of_the_entries_is_for_root() {
    if !can_be_others() {
        return;
    }
    let flags = ["--max-entries=10", "--root-share=30", "--user-entries=100"];
    let bounded = Bounded::by_flags(&flags);
    let (mut alice, mut root) = (bounded.alice(), bounded.daemon.client());
    let many = |from: usize, to: usize| -> Vec<_> {
        (from..to).map(|number| gift(&format!("n{number}"), null())).collect()
    };
    alice.give(&many(0, 7)).unwrap();

    let eighth = refusal(alice.give(&many(7, 8)));
    root.give(&many(7, 10)).unwrap();
    let eleventh = refusal(root.give(&many(10, 11)));

    assert_eq!(eighth, exceeded("entries", 7));
    assert_eq!(eleventh, exceeded("entries", 10));
    alice.give(&many(0, 7)).unwrap();
    assert_eq!(refusal(alice.give(&[gift("x", null())])), exceeded("entries", 7));
}

#[test]
fn the_last_part_of_the_connections_is_for_root() {
    if !can_be_others() {
        return;
    }
    let flags = ["--max-connections=10", "--root-share=20", "--user-connections=100"];
    let bounded = Bounded::by_flags(&flags);
    let mut root = bounded.daemon.client();
    wait_until(SOON, || root.statistics().expect("it is connected").connections == 1);
    let mut alices: Vec<Raw> = Vec::new();
    wait_until(SOON, || {
        let mut raw = bounded.raw_of(ALICE);
        raw.try_send(&kit::call("GetStatistics", &json!({})), &[] as &[File]);
        let reply = raw.reply();
        let is_in = is_done(&reply);
        if is_in {
            alices.push(raw);
        } else {
            assert_exceeds(&reply, "connections", 8);
        }
        !is_in
    });

    // Root's first connection counts too.
    let mut roots: Vec<Raw> = (0..2).map(|_| bounded.daemon.raw()).collect();
    let mut past = bounded.daemon.raw();

    assert_eq!(alices.len(), 7);
    assert!(roots.iter_mut().all(|raw| is_done(&raw.call("GetStatistics", &json!({})))));
    assert_exceeds(&past.reply(), "connections", 10);
}

#[test]
fn the_last_part_of_the_descriptors_is_for_root() {
    if !can_be_others() {
        return;
    }
    let flags = ["--max-entries=1000", "--user-entries=1000", "--root-share=50"];
    let builder = flags.iter().fold(Daemon::builder(), |builder, flag| builder.arg(flag));
    let daemon = builder.open_files(96).spawn();
    let (mut alice, mut root) = (daemon.client_as(&User::new(ALICE)), daemon.client());
    wait_until(SOON, || root.statistics().unwrap().connections == 2);
    // A quarter of the table is for what comes and goes.
    let places = (96 - 32) / 4 * 3;
    let many = |called: &str, count: usize| -> Vec<_> {
        (0..count).map(|number| gift(&format!("{called}{number}"), null())).collect()
    };

    alice.give(&many("a", places / 2 - 2)).unwrap();
    let one_more = refusal(alice.give(&[gift("more", null())]));
    root.give(&many("r", places / 2)).unwrap();
    let past_all = refusal(root.give(&[gift("more", null())]));

    assert_eq!(one_more, exceeded("descriptors", 24));
    assert_eq!(past_all, exceeded("descriptors", 48));
}

#[test]
fn root_is_bound_by_a_rule_that_names_it() {
    if !can_be_others() {
        return;
    }
    let bounded = Bounded::by_policy("[[quota]]\nusers = ['root']\nentries = 1\n");
    let mut root = bounded.daemon.client();
    root.give(&[gift("a", null())]).unwrap();

    let second = refusal(root.give(&[gift("b", null())]));

    assert_eq!(second, exceeded("entriesPerUser", 1));
    bounded.alice().give(&[gift("b", null()), gift("c", null())]).unwrap();
}

#[test]
fn a_users_own_daemon_is_all_that_users() {
    if !can_be_others() {
        return;
    }
    let builder = Daemon::builder().user(User::new(ALICE)).arg("--user-entries=1");
    let daemon = builder.arg("--max-entries=8").arg("--root-share=50").spawn();
    let mut alice = daemon.client_as(&User::new(ALICE));

    let many: Vec<_> = (0..8).map(|number| gift(&format!("n{number}"), null())).collect();

    alice.give(&many).unwrap();
    assert_eq!(refusal(alice.give(&[gift("more", null())])), exceeded("entries", 8));
}

#[test]
fn other_rules_bound_those_who_are_connected() {
    if !can_be_others() {
        return;
    }
    let group = 61100;
    let bounded = Bounded::by_policy("");
    let mut member = bounded.daemon.client_as(&User::new(ALICE).in_groups(&[group]));
    member.give(&[gift("a", null()), gift("b", null())]).unwrap();
    let mut idle = bounded.raw_of(BOB);
    assert!(is_done(&idle.call("Begin", &json!({}))));

    let rules =
        format!("[[quota]]\ngroups = [{group}]\nentries = 1\n[[quota]]\nidle_transaction = 1\n");
    fs::write(bounded.policy(), rules).unwrap();
    bounded.daemon.upgrade();

    wait_until(SOON, || bounded.daemon.statistics().transactions == 0);
    assert_rolled_back(&idle.call("Commit", &json!({})));
    let third = refusal(member.give(&[gift("c", null())]));
    assert_eq!(third, exceeded("entriesPerUser", 1));
    assert_eq!(member.list(&pattern("*")).unwrap().len(), 2, "what is there stays");
    member.give(&[gift("a", null())]).unwrap();
    member.close(&names(["a"])).unwrap();
    assert_eq!(refusal(member.give(&[gift("c", null())])), third);
    member.close(&names(["b"])).unwrap();
    member.give(&[gift("c", null())]).unwrap();
}

#[test]
fn the_check_of_a_policy_tells_quotas() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.toml");
    let policy =
        "[[quota]]\nusers = [7]\nentries = 9\nidle_transaction = 60\n[[quota]]\nwaits = 5\n";
    fs::write(&path, policy).unwrap();

    let output = std::process::Command::new(kit::program("fdstashd"))
        .arg("--check-policy")
        .arg(&path)
        .output()
        .unwrap();

    let path = path.display();
    let expected = format!(
        "read {path}\n{path}:1: uid 7 may have, each: entries 9, idle_transaction 60\n\
         {path}:5: everybody but root may have, each: waits 5\n"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

fn fresh_copy(text: &str) -> Vec<u8> {
    kit::call("Take", &json!({ "names": [text], "copy": true, "fresh": true }))
}

#[track_caller]
fn assert_rolled_back(reply: &Value) {
    assert_eq!(reply["error"], "org.fdstash.Stash.TransactionState", "{reply}");
    let reason = reply["parameters"]["reason"].as_str().expect("a reason");
    assert!(reason.contains("was rolled back"), "{reason}");
}

fn busy(reply: &Value) -> &str {
    assert_eq!(reply["error"], "org.fdstash.Stash.Busy", "{reply}");
    reply["parameters"]["name"].as_str().expect("a name")
}

/// As many files as this process may ever have open.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("it may be raised");
}
