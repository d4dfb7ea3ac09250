//! The daemon is no confused deputy: it lends its power to nobody, whatever it is talked into.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
};

use fdstash::{Access, Gift, Refusal, Reopening, blocking::Client};
use kit::{
    Daemon, Fuse, User, can_be_others, denied, errno_name, file, gift, name, names, only, refusal,
    shared, skipped,
};
use rustix::{
    fs::{
        CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_getfl, memfd_create,
        openat,
    },
    io::Errno,
};

const ALICE: u32 = 61001;
const BOB: u32 = 61002;
const STASH: u32 = 61050;
const DISK: u32 = 61200;

fn wider<F>(text: &str, fd: F, access: Access) -> Gift<F> {
    Gift { may_reopen: Some(access), ..gift(text, fd) }
}

fn to(access: Access) -> [Reopening; 1] {
    [Reopening { access: Some(access), ..Reopening::new(name("a")) }]
}

/// Makes a file of somebody's.
fn owned(path: &Path, uid: u32, gid: u32, mode: u32) -> PathBuf {
    file(path, "secret");
    chown(path, Some(uid), Some(gid)).expect("root can give a file away");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode can be set");
    path.to_owned()
}

fn path_of(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("it can be found")
}

fn content(mut file: File) -> String {
    let mut content = String::new();
    file.read_to_string(&mut content).expect("it can be read");
    content
}

#[test]
fn who_has_only_found_a_file_gets_nothing_of_what_is_in_it() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let mut of_alice = daemon.client_as(&User::new(ALICE));
    let secret = owned(&daemon.path("secret"), 0, 0, 0o600);
    let folder = daemon.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();

    for path in [secret, folder] {
        let found = path_of(&path);
        assert_eq!(errno_name(of_alice.give(&[wider("a", &found, Access::Read)])), "EACCES");
        of_alice.give(&[gift("a", &found)]).unwrap();
        assert_eq!(refusal(of_alice.reopen(&to(Access::Read))), denied("a", "reopen"));
        let fresh = only(of_alice.copy_fresh(&names(["a"])).unwrap());
        assert!(fcntl_getfl(&fresh).unwrap().contains(OFlags::PATH));
        let reopened = only(of_alice.reopen(&to(Access::Path)).unwrap());
        assert!(fcntl_getfl(&reopened).unwrap().contains(OFlags::PATH));
    }
}

#[test]
fn who_may_read_what_was_found_needs_the_right_to_it_at_the_time() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let path = owned(&daemon.path("file"), ALICE, ALICE, 0o600);
    let found = path_of(&path);
    let mut of_alice = daemon.client_as(&User::new(ALICE));
    // She could read it when she gave it, and shares it; but it is her right, and not the daemon's.
    of_alice.give(&[shared(wider("a", &found, Access::Read), &[BOB], &[])]).unwrap();
    let mut of_bob = daemon.client_as(&User::new(BOB));

    assert_eq!(errno_name(of_bob.reopen(&to(Access::Read))), "EACCES");
    chown(&path, Some(0), Some(0)).unwrap();
    assert_eq!(errno_name(of_alice.reopen(&to(Access::Read))), "EACCES");
    chown(&path, Some(BOB), Some(BOB)).unwrap();
    assert_eq!(content(only(of_bob.reopen(&to(Access::Read)).unwrap())), "secret");
}

#[test]
fn what_was_narrowed_is_wide_again_only_by_ones_own_right() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let path = owned(&daemon.path("file"), 0, 0, 0o600);
    let both = File::options().read(true).write(true).open(path).unwrap();
    daemon.client().give(&[shared(gift("a", &both), &[ALICE], &[])]).unwrap();
    let mut of_alice = daemon.client_as(&User::new(ALICE));

    only(of_alice.reopen(&to(Access::Read)).unwrap());

    assert_eq!(errno_name(of_alice.reopen(&to(Access::ReadWrite))), "EACCES");
    assert_eq!(errno_name(of_alice.reopen(&to(Access::Write))), "EACCES");
    // It is the same in a transaction, by which nothing is kept before its end.
    let mut transaction = of_alice.transaction().unwrap();
    only(transaction.reopen(&to(Access::Path)).unwrap());
    assert_eq!(errno_name(transaction.reopen(&to(Access::Read))), "EACCES");
}

#[test]
fn what_was_received_from_others_is_given_with_no_more_than_it_has() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let secret = owned(&daemon.path("secret"), 0, 0, 0o600);
    // As root would pass it to her.
    let received = File::open(secret).unwrap();
    let mut of_alice = daemon.client_as(&User::new(ALICE));

    for may_reopen in [Access::ReadWrite, Access::Write] {
        for fresh in [false, true] {
            let given = Gift { fresh, ..wider("a", &received, may_reopen) };
            assert_eq!(errno_name(of_alice.give(&[given])), "EACCES");
        }
    }
    of_alice.give(&[Gift { fresh: true, ..gift("a", &received) }]).unwrap();
    let mut taken = only(of_alice.take(&names(["a"])).unwrap());
    assert_eq!(taken.write(b"x").unwrap_err().raw_os_error(), Some(Errno::BADF.raw_os_error()));
}

#[test]
fn no_reopen_truncates_or_makes_a_file() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let path = owned(&daemon.path("file"), ALICE, ALICE, 0o600);
    let flags = (OFlags::TRUNC | OFlags::CREATE | OFlags::EXCL).bits().try_into().unwrap();
    let opened = File::options().read(true).write(true).open(&path).unwrap();
    let mut of_alice = daemon.client_as(&User::new(ALICE));
    of_alice.give(&[gift("a", &opened)]).unwrap();
    // A description that was opened to truncate and to create does not say so any more.
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(flags)
        .open(daemon.path("made"))
        .unwrap();
    (&made).write_all(b"secret").unwrap();
    of_alice.give(&[Gift { fresh: true, ..gift("made", &made) }]).unwrap();

    only(of_alice.reopen(&to(Access::ReadWrite)).unwrap());
    only(of_alice.reopen(&[Reopening::new(name("made"))]).unwrap());
    only(of_alice.copy_fresh(&names(["made"])).unwrap());

    assert_eq!(fs::read(path).unwrap(), b"secret");
    assert_eq!(fs::read(daemon.path("made")).unwrap(), b"secret");
}

#[test]
fn the_kernels_own_files_are_opened_anew_for_nobody() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let alice = User::new(ALICE);
    let mut of_alice = daemon.client_as(&alice);
    let files =
        ["/proc/self/status", "/proc/self/environ", "/proc/version", "/sys/kernel/uevent_seqnum"];
    let folders = ["/proc", "/proc/self/fd", "/sys/kernel"];

    for path in files.into_iter().chain(folders) {
        // Her thread's own; found only, to be read by the daemon.
        let Ok(found) =
            alice.run(|| openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()))
        else {
            skipped(&format!("{path} is not there"));
            continue;
        };
        let given = wider("a", &found, Access::Read);
        assert_eq!(errno_name(of_alice.give(&[given])), "EOPNOTSUPP", "{path}");
        let opened = File::open(path).unwrap();
        of_alice.give(&[gift("a", &opened)]).unwrap();
        assert_eq!(errno_name(of_alice.reopen(&to(Access::Read))), "EOPNOTSUPP", "{path}");
        assert_eq!(errno_name(of_alice.copy_fresh(&names(["a"]))), "EOPNOTSUPP", "{path}");
        assert_eq!(errno_name(daemon.client().reopen(&to(Access::Read))), "EOPNOTSUPP", "{path}");
    }
}

#[test]
fn the_console_in_front_is_another_one_each_time() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let path = daemon.path("tty0");
    let device = rustix::fs::makedev(4, 0);
    let kind = rustix::fs::FileType::CharacterDevice;
    if rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), device).is_err() {
        return skipped("device nodes cannot be made here");
    }
    // Whether there is a console or not: nothing of it is opened.
    let found = path_of(&path);

    let outcome = client.give(&[wider("a", &found, Access::Read)]);

    assert_eq!(errno_name(outcome), "EOPNOTSUPP");
}

#[test]
fn a_seal_holds_for_whoever_reopens() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let sealed = File::from(memfd_create("sealed", flags).unwrap());
    sealed.write_all_at(b"sealed", 0).unwrap();
    fcntl_add_seals(&sealed, SealFlags::WRITE | SealFlags::SEAL).unwrap();
    client.give(&[gift("a", &sealed)]).unwrap();

    let reopened = only(client.reopen(&to(Access::ReadWrite)).unwrap());
    let fresh = only(client.copy_fresh(&names(["a"])).unwrap());

    for handed in [reopened, fresh] {
        let written = handed.write_at(b"x", 0).unwrap_err();
        assert_eq!(written.raw_os_error(), Some(Errno::PERM.raw_os_error()));
    }
}

#[test]
fn a_daemon_with_more_groups_than_the_asker_lends_none_of_them() {
    if !can_be_others() {
        return;
    }
    // As a service's own user, whose unit adds a group.
    const LAUNCHER: &[&str] = &["setpriv", "--reuid=61050", "--regid=61050", "--groups=61200"];
    let daemon = Daemon::builder().user(User::new(STASH)).under(LAUNCHER).spawn();
    let path = owned(&daemon.path("disk"), 0, DISK, 0o640);
    let found = path_of(&path);

    let without = User::new(STASH);
    let given = daemon.client_as(&without).give(&[wider("a", &found, Access::Read)]);
    assert_eq!(errno_name(given), "EPERM");

    let with = User::new(STASH).in_groups(&[DISK]);
    let mut of_disk = daemon.client_as(&with);
    of_disk.give(&[wider("a", &found, Access::Read)]).unwrap();
    assert_eq!(content(only(of_disk.reopen(&to(Access::Read)).unwrap())), "secret");
}

#[test]
fn what_the_daemon_may_not_open_is_opened_by_who_asks_if_that_may() {
    if !can_be_others() {
        return;
    }
    // To a file server that knows no root, the daemon is nobody.
    const SQUASHED: &[&str] = &["setpriv", "--bounding-set=-dac_override,-dac_read_search"];
    let daemon = Daemon::builder().under(SQUASHED).spawn();
    let path = owned(&daemon.path("file"), ALICE, ALICE, 0o600);
    let alice = User::new(ALICE);
    let both = alice.run(|| File::options().read(true).write(true).open(&path)).unwrap();
    let mut of_alice = daemon.client_as(&alice);
    of_alice.give(&[shared(Gift { fresh: true, ..gift("a", &both) }, &[BOB], &[])]).unwrap();
    let mut of_bob = daemon.client_as(&User::new(BOB));

    // Neither the daemon may nor Bob; what is kept is there all the same.
    assert_eq!(errno_name(of_bob.copy_fresh(&names(["a"]))), "EACCES");
    assert_eq!(errno_name(of_bob.reopen(&[Reopening::new(name("a"))])), "EACCES");
    assert_eq!(content(only(of_bob.copy(&names(["a"])).unwrap())), "secret");
    assert_eq!(content(only(of_alice.copy_fresh(&names(["a"])).unwrap())), "secret");
    let sync = Reopening { sync: Some(true), ..Reopening::new(name("a")) };
    let handed = only(of_alice.reopen(&[sync]).unwrap());
    assert!(fcntl_getfl(&handed).unwrap().contains(OFlags::SYNC | OFlags::RDWR));
}

#[test]
fn what_only_the_daemon_may_open_is_opened_by_it_and_nothing_else() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let path = owned(&daemon.path("file"), ALICE, ALICE, 0o600);
    let read_only = File::open(&path).unwrap();
    let mut of_alice = daemon.client_as(&User::new(ALICE));
    of_alice.give(&[shared(wider("a", &read_only, Access::ReadWrite), &[BOB], &[])]).unwrap();
    let mut of_bob = daemon.client_as(&User::new(BOB));

    only(of_bob.reopen(&to(Access::Read)).unwrap());
    assert_eq!(errno_name(of_bob.reopen(&to(Access::ReadWrite))), "EACCES");
    // Whatever else is asked for with it: of one call all is opened, or none.
    let two = [Reopening::new(name("b")), to(Access::Write)[0].clone()];
    of_bob.give(&[gift("b", &read_only)]).unwrap();
    assert_eq!(errno_name(of_bob.reopen(&two)), "EACCES");
    let clients: &mut Client = &mut of_alice;
    only(clients.reopen(&to(Access::ReadWrite)).unwrap());
}

#[test]
fn what_a_file_system_shows_to_its_user_alone_is_kept_by_that_users_daemon() {
    if !can_be_others() {
        return;
    }
    let alice = User::new(ALICE);
    let Some(fuse) = Fuse::mount_for(Some(&alice)) else {
        return skipped("a FUSE file system takes root, and /dev/fuse");
    };
    let opened = alice.run(|| fuse.open(7, OFlags::empty()));
    let daemon = Daemon::spawn();
    let of_alice = Daemon::builder().user(alice.clone()).spawn();

    // Not even root may look at it.
    let refused = refusal(daemon.client_as(&alice).give(&[gift("a", &opened)]));
    let Refusal::NotDurable { reason } = refused else { panic!("{refused:?}") };
    assert!(reason.contains("looking at the descriptor failed"), "{reason}");

    let mut client = of_alice.client_as(&alice);
    client.give(&[gift("a", &opened)]).unwrap();
    only(client.copy_fresh(&names(["a"])).unwrap());
    only(client.reopen(&to(Access::Read)).unwrap());
}
