//! A Reopen that hands out less than is kept: who has no rights on a file can give up writing to it and
//! come back to it.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, PermissionsExt},
    },
    path::PathBuf,
};

use fdstash::{Access, Entry, Error, Gift, Refusal, Reopening, Share, blocking::Client};
use kit::{Daemon, User, can_be_others, file, gift, identity, name, only, pattern};
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, mknodat};

const ALICE: u32 = 61001;

const READ: Option<Access> = Some(Access::Read);
const WRITE: Option<Access> = Some(Access::Write);
const BOTH: Option<Access> = Some(Access::ReadWrite);
const PATH: Option<Access> = Some(Access::Path);

#[test]
fn who_has_no_rights_on_a_file_makes_it_read_only_and_writable_again() {
    let Some(Shared { daemon, path, mut of_alice, .. }) = Shared::new() else { return };
    let theirs = User::new(ALICE).run(|| File::open(&path));

    let reading = reopen(&mut of_alice, None, READ).unwrap();
    let meanwhile = entry(&mut of_alice);
    daemon.kill_server();
    let after_the_crash = entry(&mut of_alice);
    let again = reopen(&mut of_alice, None, READ).unwrap();
    daemon.upgrade();
    let writing = reopen(&mut of_alice, None, None).unwrap();

    assert!(theirs.is_err(), "she could open it herself, which would show nothing");
    for reading in [reading, again] {
        assert_eq!(access_mode(&reading), OFlags::RDONLY);
        assert_eq!(identity(&reading), identity(&writing));
        assert!(reading.write_at(b"by her", 0).is_err());
    }
    assert_eq!((meanwhile.access, after_the_crash.access), (Access::ReadWrite, Access::ReadWrite));
    assert_eq!(access_mode(&writing), OFlags::RDWR);
    writing.write_all_at(b"by her", 0).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "by hert");
}

#[test]
fn what_was_narrowed_by_its_access_who_has_no_rights_cannot_widen() {
    let Some(mut shared) = Shared::new() else { return };
    let of_alice = &mut shared.of_alice;

    reopen(of_alice, READ, None).unwrap();

    let widened = reopen(of_alice, BOTH, None);
    let Err(Refusal::ReopenFailed { errno_name, .. }) = widened else { panic!("{widened:?}") };
    assert_eq!(errno_name, "EACCES");
}

#[test]
fn more_than_what_is_kept_is_handed_to_nobody_and_changes_nothing() {
    let Some(Shared { daemon, mut of_alice, .. }) = Shared::new() else { return };
    let mut of_root = daemon.client();
    let before = entry(&mut of_root);

    for client in [&mut of_alice, &mut of_root] {
        for (access, hand_out) in [(READ, BOTH), (READ, WRITE), (WRITE, READ), (PATH, READ)] {
            let wider = reopen(client, access, hand_out).unwrap_err();
            assert_eq!(wider, denied(), "{access:?} to keep, {hand_out:?} to hand out");
        }
    }

    assert_eq!(entry(&mut of_root), before);
    assert_eq!(access_mode(reopen(&mut of_alice, None, None).unwrap()), OFlags::RDWR);
}

#[test]
fn it_takes_the_rights_for_what_is_kept_to_be_handed_less() {
    let Some(Shared { daemon, path, mut of_alice, .. }) = Shared::new() else { return };
    let wider = Gift {
        may_reopen: BOTH,
        share: Share { uids: vec![ALICE], gids: vec![] },
        ..gift("it", File::open(&path).unwrap())
    };
    daemon.client().give(&[wider]).unwrap();

    let to_write_later = reopen(&mut of_alice, BOTH, READ);

    let Err(Refusal::ReopenFailed { errno_name, .. }) = to_write_later else {
        panic!("{to_write_later:?}")
    };
    assert_eq!(errno_name, "EACCES");
    assert_eq!(entry(&mut of_alice).access, Access::Read);
}

#[test]
fn what_is_handed_out_has_the_flags_of_what_is_kept() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    file(daemon.path("it"), "content");
    let log = OpenOptions::new().read(true).append(true).open(daemon.path("it")).unwrap();
    client.give(&[gift("it", &log)]).unwrap();
    let wanted = Reopening { hand_out: READ, sync: Some(true), ..Reopening::new(name("it")) };

    let handed = only(client.reopen(&[wanted]).unwrap());

    let flags = OFlags::ACCMODE | OFlags::APPEND | OFlags::SYNC;
    let expected = OFlags::RDONLY | OFlags::APPEND | OFlags::SYNC;
    assert_eq!(fcntl_getfl(&handed).unwrap() & flags, expected);
    let kept = entry(&mut client);
    let words: Vec<_> = kept.flags.words().collect();
    assert_eq!((kept.access, words), (Access::ReadWrite, vec!["sync", "append"]));
}

#[test]
fn what_is_handed_out_may_only_name_the_file() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let kept = file(daemon.path("it"), "content");
    client.give(&[gift("it", &kept)]).unwrap();

    let named = reopen(&mut client, None, PATH).unwrap();
    let opened = reopen(&mut client, None, None).unwrap();

    assert!(fcntl_getfl(&named).unwrap().contains(OFlags::PATH));
    assert_eq!(identity(&named), identity(&kept));
    assert_eq!(access_mode(opened), OFlags::RDWR);
}

#[test]
fn of_a_pipe_kept_with_both_its_ends_one_is_handed_out() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let path = daemon.path("pipe");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    client.give(&[gift("it", &both)]).unwrap();
    drop(both);

    let reader = reopen(&mut client, None, READ).unwrap();
    let writer = reopen(&mut client, None, WRITE).unwrap();

    assert_eq!((access_mode(&reader), access_mode(&writer)), (OFlags::RDONLY, OFlags::WRONLY));
    std::io::Write::write_all(&mut &writer, b"through").unwrap();
    let mut through = [0; 7];
    std::io::Read::read_exact(&mut &reader, &mut through).unwrap();
    assert_eq!(&through, b"through");

    // A pipe's end never becomes the other, whatever is handed out.
    reopen(&mut client, READ, None).unwrap();
    for (access, hand_out) in [(None, WRITE), (None, BOTH), (BOTH, READ)] {
        assert_eq!(reopen(&mut client, access, hand_out).unwrap_err(), denied());
    }
}

/// A file of root's that nobody else has rights on, kept for reading and writing, and shared with Alice.
struct Shared {
    daemon: Daemon,
    path: PathBuf,
    of_alice: Client,
}

impl Shared {
    /// None without root.
    fn new() -> Option<Self> {
        if !can_be_others() {
            return None;
        }
        let daemon = Daemon::builder().own_program().spawn();
        let path = daemon.path("of-root");
        let kept = file(&path, "of root");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("a mode can be set");
        let share = Share { uids: vec![ALICE], gids: vec![] };
        daemon.client().give(&[Gift { share, ..gift("it", kept) }]).expect("root gives it");
        let of_alice = daemon.client_as(&User::new(ALICE));
        Some(Self { daemon, path, of_alice })
    }
}

fn reopen(
    client: &mut Client,
    access: Option<Access>,
    hand_out: Option<Access>,
) -> Result<File, Refusal> {
    let wanted = Reopening { access, hand_out, ..Reopening::new(name("it")) };
    match client.reopen(&[wanted]) {
        Ok(handed) => Ok(only(handed)),
        Err(Error::Refused(refusal)) => Err(refusal),
        Err(error) => panic!("{error}"),
    }
}

fn denied() -> Refusal {
    Refusal::AccessDenied { name: "it".into(), verb: "reopen".into() }
}

fn entry(client: &mut Client) -> Entry {
    client.list(&pattern("it")).expect("a list").remove(0)
}

fn access_mode(fd: impl AsFd) -> OFlags {
    fcntl_getfl(fd).expect("it has flags") & OFlags::ACCMODE
}
