//! `fdstash locks`: what a program that was killed has left standing on a kept description, and how that
//! is freed. With the real QEMU, whose locks they are as a rule.

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use fdstash::{Gift, Share};
use kit::{Daemon, Group, SOON, User, file, gift, is_root, program, skipped, wait_until};
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, open},
    path::DecInt,
    pipe::pipe,
};
use serde_json::{Value, json};

const ALICE: u32 = 61001;

/// What a QEMU has locked that writes to a qcow2 image (7.2 and 11.1).
const OF_QEMU: &str = "\
NAME  KIND  MODE  START  END  MEANING
disk  ofd   read  100    101  QEMU: reads, writes
disk  ofd   read  103    103  QEMU: resizes
disk  ofd   read  201    201  QEMU: lets nobody else write
disk  ofd   read  203    203  QEMU: lets nobody else resize
";

#[test]
fn the_locks_of_a_killed_vmm_stay_until_they_are_cleared() {
    let Some((daemon, image)) = with_image() else { return };
    let mut vmm = start_qemu(&daemon, "--copy");
    wait_until(SOON, || works(&daemon, &["locks", "disk"]) == OF_QEMU);

    vmm.kill();
    let dead = works(&daemon, &["locks", "disk"]);
    let refused = write_on_its_own(&image);
    let unread = run(Command::new("qemu-img").arg("info").arg(&image));
    let cleared = works(&daemon, &["locks", "disk", "--clear"]);
    let after = works(&daemon, &["locks", "disk"]);

    assert_eq!(dead, OF_QEMU, "they are ghosts");
    assert!(refused.contains("Failed to get \"write\" lock"), "{refused}");
    assert!(text(&unread.stderr).contains("Failed to get shared \"write\" lock"), "{unread:?}");
    assert_eq!(cleared, "disk: 4 locks freed\n");
    assert!(after.contains("no locks"), "{after}");
    assert_eq!(write_on_its_own(&image), "");
    assert!(run(Command::new("qemu-img").arg("info").arg(&image)).status.success());
}

#[test]
fn a_vmm_with_a_description_of_its_own_leaves_no_locks() {
    let Some((daemon, image)) = with_image() else { return };
    let mut vmm = start_qemu(&daemon, "--fresh");
    wait_until(SOON, || is_locked(&image));
    let kept = works(&daemon, &["locks", "disk"]);

    vmm.kill();

    assert!(kept.contains("no locks"), "{kept}");
    // Its threads may end a moment after the first of them, and with the last go the locks.
    wait_until(SOON, || !is_locked(&image));
    assert_eq!(write_on_its_own(&image), "");
}

#[test]
fn locks_are_told_with_their_mode_and_their_bytes() {
    let daemon = Daemon::spawn();
    let given = file(daemon.path("a"), "content");
    daemon.client().give(&[gift("a", &given), gift("\"\\b", &given)]).unwrap();
    lock(&given, libc::F_RDLCK, 10, 10);
    lock(&given, libc::F_WRLCK, 30, 0);
    flock(&given, FlockOperation::LockShared).unwrap();
    // That is this process's own, whatever descriptor it was taken with.
    fcntl(&given, FcntlArg::F_SETLK(&range(libc::F_WRLCK, 20, 1))).unwrap();

    let shown = works(&daemon, &["locks", "a"]);
    let lines = works(&daemon, &["locks", "a", "--json"]);
    let quoted = works(&daemon, &["locks", "\"\\b", "--json"]);

    assert_eq!(
        shown,
        "NAME  KIND   MODE   START  END  MEANING\n\
         a     flock  read   0      EOF  -\n\
         a     ofd    read   10     19   -\n\
         a     ofd    write  30     EOF  -\n"
    );
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines,
        [
            json!({"name": "a", "kind": "flock", "mode": "read", "start": 0}),
            json!({"name": "a", "kind": "ofd", "mode": "read", "start": 10, "end": 19}),
            json!({"name": "a", "kind": "ofd", "mode": "write", "start": 30}),
        ]
    );
    let quoted: Value = serde_json::from_str(quoted.lines().next().unwrap()).unwrap();
    assert_eq!(quoted["name"], "\"\\b");
}

#[test]
fn what_is_cleared_others_can_lock() {
    let daemon = Daemon::spawn();
    let given = file(daemon.path("a"), "content");
    daemon.client().give(&[gift("a", &given), gift("b", &file(daemon.path("b"), ""))]).unwrap();
    lock(&given, libc::F_WRLCK, 0, 0);
    flock(&given, FlockOperation::LockExclusive).unwrap();
    drop(given);
    let other = File::options().read(true).write(true).open(daemon.path("a")).unwrap();
    let locked = || {
        let by_fcntl = fcntl(&other, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, 0, 1)));
        (by_fcntl.is_ok(), flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok())
    };

    let before = locked();
    let cleared = works(&daemon, &["locks", "a", "b", "--clear"]);
    let again = works(&daemon, &["locks", "a", "b", "--clear"]);

    assert_eq!(before, (false, false), "they stand with nobody but the stash");
    assert_eq!(cleared, "a: 2 locks freed\nb: no locks\n");
    assert_eq!(again, "a: no locks\nb: no locks\n");
    assert_eq!(locked(), (true, true));
}

#[test]
fn what_can_have_no_locks_has_none() {
    let daemon = Daemon::spawn();
    let (socket, _other) = UnixStream::pair().unwrap();
    let (reader, _writer) = pipe().unwrap();
    let path = open("/", OFlags::PATH, Mode::empty()).unwrap();
    let fds = [OwnedFd::from(socket), reader, path];
    let gifts: Vec<_> = ["n1", "n2", "n3"].iter().zip(&fds).map(|(n, fd)| gift(n, fd)).collect();
    daemon.client().give(&gifts).unwrap();

    let shown = works(&daemon, &["locks", "n1", "n2", "n3"]);
    let lines = works(&daemon, &["locks", "n1", "n2", "n3", "--json"]);
    let cleared = works(&daemon, &["locks", "n1", "n2", "n3", "--clear"]);

    let rows: Vec<_> = shown.lines().skip(1).collect();
    assert_eq!(rows, ["n1    no locks", "n2    no locks", "n3    no locks"]);
    assert_eq!(lines, "");
    assert_eq!(cleared, "n1: no locks\nn2: no locks\nn3: no locks\n");
}

#[test]
fn only_the_giver_and_root_may_clear() {
    if !is_root() {
        return skipped("to be another user takes root");
    }
    let daemon = Daemon::spawn();
    let (mine, hers) = (file(daemon.path("mine"), ""), file(daemon.path("hers"), ""));
    let share = Share { uids: vec![ALICE], gids: vec![] };
    daemon.client().give(&[Gift { share, ..gift("mine", &mine) }]).unwrap();
    daemon.client_as(&User::new(ALICE)).give(&[gift("hers", &hers)]).unwrap();
    for file in [&mine, &hers] {
        lock(file, libc::F_WRLCK, 0, 0);
    }

    let seen = as_alice(&daemon, &["locks", "mine"]);
    let refused = as_alice(&daemon, &["locks", "hers", "mine", "--clear"]);
    let untouched = works(&daemon, &["locks", "mine", "hers", "--json"]).lines().count();
    let allowed = as_alice(&daemon, &["locks", "hers", "--clear"]);
    lock(&hers, libc::F_WRLCK, 0, 0);
    let by_root = works(&daemon, &["locks", "hers", "mine", "--clear"]);

    assert!(text(&seen.stdout).contains("write"), "{seen:?}");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        text(&refused.stderr),
        "fdstash: entry \"mine\" was given by uid 0: only that user and root may free its locks\n"
    );
    assert_eq!(untouched, 2, "none is freed where one may not be");
    assert_eq!(text(&allowed.stdout), "hers: 1 lock freed\n");
    assert_eq!(by_root, "hers: 1 lock freed\nmine: 1 lock freed\n");
}

#[test]
fn of_what_is_not_there_no_locks_are_told() {
    let daemon = Daemon::spawn();

    let none = run(daemon.command().args(["locks", "none"]));
    let both = run(daemon.command().args(["locks", "none", "--json", "--clear"]));
    let nothing = run(daemon.command().arg("locks"));

    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("there is no entry \"none\""), "{none:?}");
    assert_eq!((both.status.code(), nothing.status.code()), (Some(2), Some(2)));
}

/// A daemon that keeps an image, opened for reading and writing, as `disk`; none without QEMU.
fn with_image() -> Option<(Daemon, PathBuf)> {
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !["qemu-system-x86_64", "qemu-img", "qemu-io"].into_iter().all(has) {
        skipped("there is no QEMU that could lock an image");
        return None;
    }
    let daemon = Daemon::spawn();
    let image = daemon.path("disk.qcow2");
    let made =
        run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("1M"));
    assert!(made.status.success(), "{made:?}");
    let given = OpenOptions::new().read(true).write(true).open(&image).expect("it is there");
    daemon.client().give(&[gift("disk", given)]).expect("it is kept");
    Some((daemon, image))
}

/// QEMU with the image that the stash keeps, of which it is handed a copy.
fn start_qemu(daemon: &Daemon, how: &str) -> Group {
    let mut command = daemon.command();
    command.args(["take", "disk", how, "--fd", "3", "--", "qemu-system-x86_64"]);
    command.args(["-machine", "none", "-nodefaults", "-display", "none"]);
    command.args(["-add-fd", "fd=3,set=1", "-blockdev"]);
    command.arg("driver=qcow2,node-name=disk,file.driver=file,file.filename=/dev/fdset/1");
    Group::spawn(command.stdin(Stdio::null()))
}

/// Whether anybody lets nobody else write to the image, which is looked up and not tried: who tries takes
/// locks as well, and could be in QEMU's way.
fn is_locked(image: &Path) -> bool {
    let inode = fs::metadata(image).expect("the image is there").ino();
    let locks = fs::read_to_string("/proc/locks").expect("there is a /proc");
    locks
        .lines()
        .any(|line| line.contains("OFDLCK") && line.ends_with(&format!(":{inode} 201 201")))
}

/// What QEMU complains when it opens the image by its path, and writes to it.
fn write_on_its_own(image: &Path) -> String {
    let output = run(Command::new("qemu-io").args(["-f", "qcow2", "-c", "write 0 512"]).arg(image));
    let complained = text(&output.stderr);
    assert_eq!(output.status.success(), complained.is_empty(), "{output:?}");
    complained
}

/// What the command writes, which works.
#[track_caller]
fn works(daemon: &Daemon, args: &[&str]) -> String {
    let output = run(daemon.command().args(args));
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{args:?}");
    text(&output.stdout)
}

fn as_alice(daemon: &Daemon, args: &[&str]) -> Output {
    // By its descriptor: another user may not be able to reach its path.
    let binary = File::open(program("fdstash")).expect("the command is built");
    let mut command = Command::new(format!("/proc/self/fd/{}", DecInt::from_fd(&binary).as_str()));
    command.args(args).env("FDSTASH_SOCKET", daemon.socket()).uid(ALICE).gid(ALICE);
    run(&mut command)
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("a program can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lock(fd: impl AsFd, mode: libc::c_int, start: i64, len: i64) {
    fcntl(fd, FcntlArg::F_OFD_SETLK(&range(mode, start, len))).expect("it can be locked");
}

fn range(mode: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: mode as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}
