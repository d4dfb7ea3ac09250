//! The command `fdstash transfer`: from daemon to daemon, whoever of the three is killed.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Seek, SeekFrom},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use fdstash::{Access, Entry, Gift, Labels, Share, blocking::Client};
use kit::{
    Daemon, Random, SOON, User, can_be_others, file, gift, identity, listed, names, null, nulls,
    only, pattern, program, seed, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};

/// How often somebody is killed while entries are on their way.
const DEATHS: usize = 50;

fn transfer(from: &Daemon, to: &Daemon, args: &[&str]) -> Command {
    let mut command = Command::new(program("fdstash"));
    command.arg("transfer").args([from.socket(), to.socket()]).args(args).stdin(Stdio::null());
    command
}

/// What it writes when it works, and what it notes.
#[track_caller]
fn works(command: &mut Command) -> [String; 2] {
    let Output { status, stdout, stderr } = command.output().expect("it can be started");
    let [stdout, stderr] =
        [stdout, stderr].map(|text| String::from_utf8(text).expect("it writes text"));
    assert_eq!(status.code(), Some(0), "{stderr}");
    [stdout, stderr]
}

/// What it complains when it does not.
#[track_caller]
fn fails(command: &mut Command, code: i32) -> String {
    let Output { status, stderr, .. } = command.output().expect("it can be started");
    let complained = String::from_utf8(stderr).expect("it writes text");
    assert_eq!(status.code(), Some(code), "{complained}");
    complained
}

fn entry(client: &mut Client, name: &str) -> Entry {
    client.list(&pattern(name)).expect("a list").remove(0)
}

#[test]
fn what_is_moved_is_the_same_open_file_with_all_that_was_said_of_it() {
    let [from, to] = [Daemon::spawn(), Daemon::spawn()];
    let mut image = file(from.path("image"), "content");
    let labels = Labels::from([("vm".to_owned(), "7".to_owned())]);
    let gifts = [
        Gift {
            may_reopen: Some(Access::Read),
            expire_usec: Some(3_600_000_000),
            close_on_hangup: true,
            share: Share { uids: vec![71], gids: vec![72] },
            labels,
            ..gift("vm7-disk0", &image)
        },
        gift("vm7-disk1", &image),
        gift("other", &image),
    ];
    from.client().give(&gifts).unwrap();
    let before = entry(&mut from.client(), "vm7-disk0");

    let [told, noted] = works(&mut transfer(&from, &to, &["vm7-*", "vm?-disk0"]));

    assert_eq!((told.as_str(), noted.as_str()), ("moved 2\n", ""));
    assert_eq!(listed(&mut from.client()), ["other"]);
    assert_eq!(listed(&mut to.client()), ["vm7-disk0", "vm7-disk1"]);
    let after = entry(&mut to.client(), "vm7-disk0");
    let late = after.expires_at_usec.unwrap().abs_diff(before.expires_at_usec.unwrap());
    assert!(late < 1_000_000, "it expires {late} µs off");
    let Entry { giver, given_at_usec, expires_at_usec, revision, .. } = after.clone();
    assert_eq!(after, Entry { giver, given_at_usec, expires_at_usec, revision, ..before });
    let mut moved = only(to.client().take(&names(["vm7-disk0"])).unwrap());
    image.seek(SeekFrom::Start(5)).unwrap();
    assert_eq!(moved.stream_position().unwrap(), 5, "they share the offset");
}

#[test]
fn what_is_copied_stays_and_is_finished_by_a_transfer() {
    let [from, to] = [Daemon::spawn(), Daemon::spawn()];
    // One inode for all of them: what they are, no number tells.
    let [one, other] = [0, 1].map(|count| {
        rustix::event::eventfd(count, rustix::event::EventfdFlags::CLOEXEC).expect("an eventfd")
    });
    from.client().give(&[gift("a", &one), gift("b", &other)]).unwrap();

    let [copied, _] = works(&mut transfer(&from, &to, &["--copy"]));
    assert_eq!(copied, "copied 2\n");
    assert_eq!(listed(&mut from.client()), ["a", "b"]);
    from.client().give(&[gift("c", null())]).unwrap();

    // So it is, too, where somebody was killed after TO kept them, and before FROM let go.
    let [moved, _] = works(&mut transfer(&from, &to, &[]));

    assert_eq!(moved, "moved 3, 2 of which were there already\n");
    assert_eq!(listed(&mut from.client()), [""; 0]);
    assert_eq!(listed(&mut to.client()), ["a", "b", "c"]);
    let first = only(to.client().take(&names(["a"])).unwrap());
    assert!(!is_readable(&first), "it is the one that counts nothing");
}

fn is_readable(file: &File) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&now)).expect("it can be polled") > 0
}

#[test]
fn where_a_name_is_taken_nothing_moves() {
    let [from, to] = [Daemon::spawn(), Daemon::spawn()];
    let [image, other] = ["image", "other"].map(|name| file(from.path(name), ""));
    from.client().give(&[gift("a", &image), gift("b", &image), gift("c", &image)]).unwrap();
    to.client().give(&[gift("b", &other), gift("c", &image)]).unwrap();

    let complained = fails(&mut transfer(&from, &to, &[]), 1);

    assert!(complained.contains("nothing was moved"), "{complained}");
    assert!(complained.contains("something else stands there already under \"b\""), "{complained}");
    assert_eq!(listed(&mut from.client()), ["a", "b", "c"]);
    assert_eq!(listed(&mut to.client()), ["b", "c"]);
    let [moved, _] = works(&mut transfer(&from, &to, &["--prefix", "old/"]));
    assert_eq!(moved, "moved 3\n");
    assert_eq!(listed(&mut to.client()), ["b", "c", "old/a", "old/b", "old/c"]);
    assert_eq!(identity(only(to.client().copy(&names(["b"])).unwrap())), identity(&other));
    // Within one daemon it renames.
    works(&mut transfer(&to, &to, &["old/*", "--strip-prefix", "old/", "--prefix", "new/"]));
    assert_eq!(listed(&mut to.client()), ["b", "c", "new/a", "new/b", "new/c"]);
}

#[test]
fn what_makes_no_sense_is_told() {
    let [from, to] = [Daemon::spawn(), Daemon::spawn()];
    from.client().give(&[gift("a", null())]).unwrap();

    let nothing = fails(&mut transfer(&from, &to, &["b*"]), 1);
    let one = fails(&mut transfer(&from, &from, &[]), 2);
    let no_name = fails(&mut transfer(&from, &to, &["--prefix", "a:"]), 1);
    let nobody = fails(Command::new(program("fdstash")).args(["transfer", "/no/a", "/no/b"]), 3);

    assert!(nothing.contains("nothing to move"), "{nothing}");
    assert!(one.contains("one daemon"), "{one}");
    assert!(no_name.contains("cannot be \"a:a\""), "{no_name}");
    assert!(nobody.contains("/no/a"), "{nobody}");
    assert_eq!(listed(&mut from.client()), ["a"]);
}

#[test]
fn what_is_ephemeral_stays() {
    let [from, to] = [Daemon::spawn(), Daemon::spawn()];
    let mut giver = from.client();
    giver.give(&[Gift { ephemeral: true, ..gift("a", null()) }, gift("b", null())]).unwrap();

    let [_, noted] = works(&mut transfer(&from, &to, &[]));

    assert!(noted.contains("these stay") && noted.contains("\"a\""), "{noted}");
    assert_eq!(listed(&mut to.client()), ["b"]);
    assert_eq!(listed(&mut giver), ["a"]);
}

#[test]
fn who_gave_what_somebody_else_moves_can_use_it_still() {
    if !can_be_others() {
        return;
    }
    let [from, to] = [Daemon::spawn(), Daemon::spawn()];
    let alice = User::new(61001);
    let mut of_alice = from.client_as(&alice);
    of_alice.give(&[gift("a", null())]).unwrap();

    works(&mut transfer(&from, &to, &[]));

    let mut of_alice = to.client_as(&alice);
    only(of_alice.take(&names(["a"])).unwrap());
}

#[test]
fn more_than_a_transaction_holds_moves_in_parts_where_that_is_said() {
    if !can_be_others() {
        return;
    }
    let limited = || Daemon::builder().arg("--transaction-names=100").spawn();
    let [from, to] = [limited(), limited()];
    let user = User::new(61001);
    let mut client = from.client_as(&user);
    let many: Vec<_> = (0..300).map(|at| gift(&format!("n{at:03}"), null())).collect();
    for part in many.chunks(100) {
        client.give(part).unwrap();
    }
    // By its own path not every user may be able to reach it.
    let copy = from.path("fdstash");
    kit::install_program(&program("fdstash"), &copy);
    let as_user = |args: &[&str]| {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid=61001", "--regid=61001", "--clear-groups", "--"]);
        let command = transfer(&from, &to, args);
        setpriv.arg(&copy).args(command.get_args());
        setpriv
    };

    let complained = fails(&mut as_user(&[]), 1);
    assert!(complained.contains("one transaction holds 100: say --in-parts"), "{complained}");
    assert_eq!(listed(&mut to.client()), [""; 0]);
    let [moved, _] = works(&mut as_user(&["--in-parts"]));

    assert_eq!(moved, "moved 300\n");
    assert_eq!(listed(&mut to.client()).len(), 300);
    assert_eq!(listed(&mut from.client()), [""; 0]);
}

#[test]
fn more_than_one_message_carries_moves_at_once() {
    let [from, to] = [Daemon::spawn(), Daemon::spawn()];
    let many: Vec<_> = (0..500).map(|at| format!("n{at:03}")).zip(nulls(500)).collect();
    let many: Vec<_> = many.iter().map(|(name, file)| gift(name, file)).collect();
    from.client().give(&many).unwrap();
    let revision = |daemon: &Daemon| {
        let entries = daemon.client().list(&pattern("*")).unwrap();
        (entries.len(), entries.iter().map(|entry| entry.revision).min())
    };

    works(&mut transfer(&from, &to, &["--copy"]));
    // As after a death: all of them are compared.
    works(&mut transfer(&from, &to, &[]));

    assert_eq!(revision(&to), (500, Some(entry(&mut to.client(), "n499").revision)), "one commit");
    assert_eq!(listed(&mut from.client()), [""; 0]);
}

#[test]
fn whoever_is_killed_each_entry_is_at_one_place_after_the_next_transfer() {
    let daemons = [Daemon::spawn(), Daemon::spawn()];
    let mut random = Random::new(seed());
    let files: Vec<_> = (0..40).map(|at| file(daemons[0].path(&format!("file{at}")), "")).collect();
    let gifts: Vec<_> =
        files.iter().enumerate().map(|(at, file)| gift(&format!("n{at:02}"), file)).collect();
    daemons[0].client().give(&gifts).unwrap();
    let all: BTreeMap<_, _> =
        gifts.iter().map(|gift| (gift.name.clone(), identity(gift.fd))).collect();
    let (mut interrupted, mut doubled) = (0, 0);

    for death in 0..DEATHS {
        let [from, to] = [&daemons[death % 2], &daemons[(death + 1) % 2]];
        let mut moving = transfer(from, to, &[]);
        let mut moving = moving.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // Not a wait for anything: it is to be anywhere when somebody is killed.
        thread::sleep(Duration::from_micros(random.number() % 12_000));
        let victim = random.below(3);
        match victim {
            0 => moving.kill().unwrap(),
            1 => kill(from),
            _ => kill(to),
        }
        let ended = moving.wait_with_output().unwrap();
        assert!(victim == 0 || ended.status.success(), "it outlives servers: {ended:?}");
        // What it has sent before its end is done after it.
        wait_until(SOON, || [from, to].iter().all(|daemon| daemon.statistics().connections == 1));

        let [at_from, at_to] = [from, to].map(|daemon| listed(&mut daemon.client()));
        for name in all.keys() {
            let is_at = |names: &[String]| names.iter().any(|at| at == name.as_str());
            assert!(is_at(&at_from) || is_at(&at_to), "{name} is lost: {ended:?}");
        }
        assert!(at_to.is_empty() || at_to.len() == all.len(), "some have arrived: {at_to:?}");
        interrupted += usize::from(!at_from.is_empty());
        doubled += usize::from(!at_from.is_empty() && !at_to.is_empty());
        if !at_from.is_empty() {
            works(&mut transfer(from, to, &[]));
        }

        assert_eq!(listed(&mut from.client()), [""; 0]);
        let names: Vec<_> = all.keys().cloned().collect();
        let kept = to.client().copy(&names).unwrap().into_iter();
        let kept: BTreeMap<_, _> = kept.map(|handed| (handed.name, identity(handed.fd))).collect();
        assert_eq!(kept, all);
    }

    println!("{interrupted} of {DEATHS} were interrupted, {doubled} of them with all at both");
}

/// Ends the server without a warning. The next one comes by itself.
fn kill(daemon: &Daemon) {
    let serving: Option<Pid> = daemon.serving();
    if let Some(server) = serving {
        // One that has ended since has been replaced.
        let _ = kill_process(server, Signal::KILL);
    }
    wait_until(SOON, || daemon.serving().is_some_and(|now| Some(now) != serving));
}
