//! `fdstash show`: that what it says of an entry, and of who else holds it, is what is so.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Child, Command, Output, Stdio},
};

use fdstash::{Gift, Labels};
use kit::{
    Daemon, SOON, User, can_be_others, file, gift, identity, is_root, program, shared, skipped,
    wait_until,
};
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{
        FlockOperation, MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_setfl, flock,
        memfd_create,
    },
    path::DecInt,
    pipe::pipe,
};
use serde_json::{Value, json};

const ALICE: u32 = 61001;
const BOB: u32 = 61002;

#[test]
fn an_entry_is_shown_with_all_that_was_said_and_all_that_is_so() {
    let daemon = Daemon::spawn();
    let given = file(daemon.path("disk"), "content");
    let said = Gift {
        close_on_hangup: true,
        expire_usec: Some(3_600_000_000),
        labels: Labels::from([("vm".to_owned(), "7".to_owned())]),
        ..shared(gift("disk", &given), &[61009], &[61010])
    };
    daemon.client().give(&[said]).unwrap();
    fcntl_setfl(&given, OFlags::APPEND).unwrap();
    flock(&given, FlockOperation::LockShared).unwrap();
    rustix::fs::seek(&given, rustix::fs::SeekFrom::Start(3)).unwrap();

    let shown = works(&daemon, &["show", "disk"]);

    let path = daemon.path("disk").display().to_string();
    for line in [
        format!("target        {path} (still this very file)"),
        "kind          regular".to_owned(),
        "size          7 B".to_owned(),
        "offset        3".to_owned(),
        format!("inode         {} on device ", identity(&given).1),
        "access        read_write, a reopen gives at most read_write".to_owned(),
        "flags         none".to_owned(),
        "drifted       append was switched on, by somebody".to_owned(),
        format!("pid {}", std::process::id()),
        "expires       in 59min".to_owned(),
        "closes        when it has hung up".to_owned(),
        "shared with   uid 61009, gid 61010".to_owned(),
        "labels        vm=7".to_owned(),
        "lock          flock read 0-EOF".to_owned(),
    ] {
        assert!(shown.contains(&line), "{line:?} is not in\n{shown}");
    }
}

#[test]
fn what_has_become_of_the_path_is_told() {
    let daemon = Daemon::spawn();
    for text in ["same", "renamed", "gone", "replaced"] {
        daemon.client().give(&[gift(text, file(daemon.path(text), ""))]).unwrap();
    }
    fs::rename(daemon.path("renamed"), daemon.path("new")).unwrap();
    fs::remove_file(daemon.path("gone")).unwrap();
    fs::rename(file_at(&daemon, "other"), daemon.path("replaced")).unwrap();

    let path = |text| json_of(&daemon, text)["path"].clone();

    assert_eq!(path("same"), json!({ "state": "same" }));
    assert_eq!(path("renamed"), json!({ "state": "renamed", "now": daemon.path("new") }));
    assert_eq!(path("gone"), json!({ "state": "gone" }));
    assert_eq!(path("replaced"), json!({ "state": "replaced" }));
    assert!(works(&daemon, &["show", "gone"]).contains("names         none: deleted"));
}

#[test]
fn who_shares_the_open_file_is_told_from_who_has_opened_the_file() {
    let daemon = Daemon::spawn();
    let given = file(daemon.path("disk"), "");
    daemon.client().give(&[gift("disk", &given)]).unwrap();
    let (duplicate, another) =
        (given.try_clone().unwrap(), File::open(daemon.path("disk")).unwrap());
    let mut sharer = holding(duplicate);
    let mut opener = holding(another);

    let own = i64::from(std::process::id());
    let (of_sharer, of_opener) = (i64::from(sharer.id()), i64::from(opener.id()));
    // What another test starts has duplicates of all that is open here, for as long as it has not begun.
    let settles = |same: Vec<i64>, separate: Vec<i64>| {
        wait_until(SOON, || {
            let holders = &json_of(&daemon, "disk")["holders"];
            (pids(&holders["same"]), pids(&holders["separate"])) == (same.clone(), separate.clone())
        });
    };

    settles(sorted([own, of_sharer]), vec![of_opener]);
    let holders = &json_of(&daemon, "disk")["holders"];
    let people = works(&daemon, &["show", "disk"]);
    end(&mut sharer);
    end(&mut opener);
    settles(vec![own], vec![]);

    let opened = &holders["separate"][0]["descriptors"];
    assert_eq!(opened, &json!([{ "number": 0, "access": "read" }]));
    assert!(people.contains(&format!("held by       sleep, pid {of_sharer}, ")), "{people}");
    assert!(people.contains(&format!("same file     sleep, pid {of_opener}, ")), "{people}");
    if !is_root() {
        return skipped("to see who keeps it takes root");
    }
    // The process that keeps, and the one that serves.
    let keepers = pids(&holders["keepers"]);
    assert_eq!(keepers.len(), 2, "{holders}");
    assert!(people.contains(&format!("kept by       fdstashd, pid {}, ", keepers[0])), "{people}");
}

#[test]
fn sockets_pipes_and_what_has_no_file_are_told_apart() {
    let daemon = Daemon::spawn();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let caller = TcpStream::connect(address).unwrap();
    let (reader, writer) = pipe().unwrap();
    rustix::io::write(&writer, b"12345").unwrap();
    let memory = memfd_create("it", MemfdFlags::ALLOW_SEALING).unwrap();
    fcntl_add_seals(&memory, SealFlags::GROW).unwrap();
    let (event, other) = (event(), event());
    let mut client = daemon.client();
    client.give(&[gift("listener", listener.as_fd()), gift("caller", caller.as_fd())]).unwrap();
    client.give(&[gift("pipe", reader.as_fd()), gift("memory", memory.as_fd())]).unwrap();
    client.give(&[gift("event", event.as_fd()), gift("other", other.as_fd())]).unwrap();

    let now = |text| json_of(&daemon, text)["now"].clone();

    let (listening, calling) = (now("listener"), now("caller"));
    assert_eq!(listening["socket"], "ipv4 stream, listening");
    assert_eq!(listening["local"], address.to_string());
    assert_eq!(listening["unaccepted"], 1);
    assert_eq!(calling["peer"], address.to_string());
    assert_eq!(calling["local"], caller.local_addr().unwrap().to_string());
    assert_eq!((&now("pipe")["unread"], &now("pipe")["room"]), (&json!(5), &json!(65536)));
    assert_eq!(now("memory")["seals"], "grow");
    assert!(now("event")["kernel"].to_string().contains("eventfd-count: 7"), "{}", now("event"));
    // All eventfds have one inode, and yet they are different things.
    let event = &json_of(&daemon, "event")["holders"];
    assert_eq!(event["separate"], json!([]));
    let numbers = &event["same"][0]["descriptors"];
    assert_eq!(numbers.as_array().unwrap().len(), 1, "{event}");
}

#[test]
fn what_one_may_only_list_is_shown_as_far_as_that_goes() {
    if !can_be_others() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    fs::write(
        &policy,
        format!("[[allow]]\nusers = [{BOB}]\nnames = [\"*\"]\nverbs = [\"list\"]\n"),
    )
    .unwrap();
    let daemon = Daemon::builder().arg("--policy").arg(&policy).spawn();
    daemon.client_as(&User::new(ALICE)).give(&[gift("a", kit::null())]).unwrap();

    let shown = text(&as_user(&daemon, BOB, &["show", "a"]).stdout);
    let owned = text(&as_user(&daemon, ALICE, &["show", "a"]).stdout);

    assert!(shown.contains("not shown     offset, locks and who holds it"), "{shown}");
    assert!(shown.contains("not allowed to copy entry \"a\""), "{shown}");
    assert!(shown.contains("shared with   told to its giver and to root alone"), "{shown}");
    assert!(owned.contains("shared with   nobody"), "{owned}");
    // Root's processes, the daemon's too, are closed to her.
    assert!(owned.contains("run as root to see all"), "{owned}");
    assert!(owned.contains("nobody else that can be seen"), "{owned}");
}

#[test]
fn a_name_with_a_star_in_it_is_a_name() {
    let daemon = Daemon::spawn();
    daemon.client().give(&[gift("a*", kit::null()), gift("ab", kit::null())]).unwrap();

    assert_eq!(json_of(&daemon, "a*")["name"], "a*");
    let missing = daemon.command().args(["show", "a?"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("there is no entry \"a?\""), "{missing:?}");
}

/// A process that does nothing but hold this as its standard input.
fn holding(file: File) -> Child {
    Command::new("sleep").arg("1000").stdin(file).spawn().expect("there is a sleep")
}

fn end(child: &mut Child) {
    child.kill().expect("it lives");
    child.wait().expect("it is ours");
}

fn event() -> rustix::fd::OwnedFd {
    eventfd(7, EventfdFlags::CLOEXEC).expect("an eventfd can be made")
}

fn file_at(daemon: &Daemon, below: &str) -> std::path::PathBuf {
    drop(file(daemon.path(below), ""));
    daemon.path(below)
}

fn pids(holders: &Value) -> Vec<i64> {
    let holders = holders.as_array().expect("a list").iter();
    sorted(holders.map(|holder| holder["pid"].as_i64().expect("a pid")))
}

fn sorted(pids: impl IntoIterator<Item = i64>) -> Vec<i64> {
    let mut pids: Vec<_> = pids.into_iter().collect();
    pids.sort_unstable();
    pids
}

fn json_of(daemon: &Daemon, name: &str) -> Value {
    serde_json::from_str(&works(daemon, &["show", name, "--json"])).expect("it is JSON")
}

fn works(daemon: &Daemon, args: &[&str]) -> String {
    let output = daemon.command().args(args).output().expect("the command can be run");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{args:?}");
    text(&output.stdout)
}

fn as_user(daemon: &Daemon, uid: u32, args: &[&str]) -> Output {
    // By its descriptor: another user may not be able to reach its path.
    let binary = File::open(program("fdstash")).expect("the command is built");
    let mut command = Command::new(format!("/proc/self/fd/{}", DecInt::from_fd(&binary).as_str()));
    command.args(args).env("FDSTASH_SOCKET", daemon.socket()).uid(uid).gid(uid);
    command.stdin(Stdio::null()).output().expect("it can be run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it writes text")
}
