//! Who may do what, between real users of the kernel: what is one's own is nobody else's, and a daemon
//! that runs as root lends its power to nobody.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::Read,
    os::unix::{
        fs::{FileExt, PermissionsExt, chown},
        net::UnixStream,
    },
};

use fdstash::{Access, Change, Gift, Notice, Refusal, Reopening, Share};
use kit::{
    Daemon, Lease, SOON, User, can_be_others, denied, errno_name, file, gift, identity, listed,
    name, names, only, pattern, refusal, shared, wait_until,
};
use rustix::{
    fs::{OFlags, fcntl_getfl},
    process::{Pid, test_kill_process},
};

const ALICE: u32 = 61001;
const BOB: u32 = 61002;
const TEAM: u32 = 61100;

fn reopening(access: Access) -> [Reopening; 1] {
    [Reopening { access: Some(access), ..Reopening::new(name("a")) }]
}

/// A file of root's with a mode, opened with an access.
fn of_root(daemon: &Daemon, mode: u32, options: &OpenOptions) -> File {
    let path = daemon.path("of-root");
    file(&path, "of root");
    fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode can be set");
    options.open(&path).expect("root opens its file")
}

fn read_only() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true);
    options
}

#[test]
fn what_others_gave_is_not_there() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let (alice, bob) = (User::new(ALICE), User::new(BOB));
    let (mut of_alice, mut of_bob) = (daemon.client_as(&alice), daemon.client_as(&bob));
    let mut watch = bob.run(|| of_bob.watch(&pattern("*")).unwrap());
    let kept = file(daemon.path("kept"), "");

    of_alice.give(&[gift("a", &kept)]).unwrap();

    let not_found = Refusal::NotFound { name: "a".into() };
    assert_eq!(refusal(of_bob.take(&names(["a"]))), not_found);
    assert_eq!(refusal(of_bob.copy(&names(["a"]))), not_found);
    assert_eq!(refusal(of_bob.copy_fresh(&names(["a"]))), not_found);
    assert_eq!(refusal(of_bob.close(&names(["a"]))), not_found);
    assert_eq!(refusal(of_bob.reopen(&reopening(Access::Read))), not_found);
    assert_eq!(listed(&mut of_bob), [""; 0]);
    assert_eq!(refusal(of_bob.give(&[gift("a", &kept)])), denied("a", "give"));
    assert_eq!(identity(only(of_alice.copy(&names(["a"])).unwrap())), identity(&kept));
    // The first change that the watch tells is of an entry of its own user's.
    of_bob.give(&[gift("b", &kept)]).unwrap();
    let told = watch.next().unwrap().unwrap();
    let Notice::Changed { change: Change::Given, entry } = told else { panic!("{told:?}") };
    assert_eq!(entry.name, name("b"));
}

#[test]
fn what_anothers_transaction_holds_is_not_there_either() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let (mut of_alice, mut of_bob) =
        (daemon.client_as(&User::new(ALICE)), daemon.client_as(&User::new(BOB)));
    let kept = file(daemon.path("kept"), "");
    of_alice.give(&[gift("old", &kept)]).unwrap();

    let mut transaction = of_alice.transaction().unwrap();
    transaction.give(&[gift("new", &kept)]).unwrap();
    transaction.close(&names(["old"])).unwrap();

    for text in ["old", "new"] {
        let not_found = Refusal::NotFound { name: text.into() };
        assert_eq!(refusal(of_bob.take(&names([text]))), not_found);
        assert_eq!(refusal(of_bob.give(&[gift(text, &kept)])), denied(text, "give"));
    }
}

#[test]
fn whom_it_is_shared_with_may_do_everything_to_it() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let kept = file(daemon.path("kept"), "");
    let mut of_alice = daemon.client_as(&User::new(ALICE));
    let by_primary_group = User { gid: TEAM, ..User::new(BOB) };
    let by_supplementary_group = User::new(BOB).in_groups(&[7, TEAM]);
    let cases = [
        (User::new(BOB), vec![BOB], vec![]),
        (by_primary_group, vec![], vec![TEAM]),
        (by_supplementary_group, vec![], vec![TEAM]),
        (User::new(0), vec![], vec![]),
    ];

    for (user, uids, gids) in cases {
        let mut other = daemon.client_as(&user);
        of_alice.give(&[shared(gift("a", &kept), &uids, &gids)]).unwrap();

        assert_eq!(listed(&mut other), ["a"], "{user:?}");
        only(other.copy(&names(["a"])).unwrap());
        only(other.reopen(&reopening(Access::Read)).unwrap());
        only(other.take(&names(["a"])).unwrap());
        of_alice.give(&[shared(gift("a", &kept), &uids, &gids)]).unwrap();
        other.close(&names(["a"])).unwrap();
    }
}

#[test]
fn what_was_said_when_it_was_given_is_told_to_the_givers_user_and_to_root() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let kept = file(daemon.path("kept"), "");
    let mut of_alice = daemon.client_as(&User::new(ALICE));
    let said = Gift { ephemeral: true, ..shared(gift("a", &kept), &[BOB], &[TEAM]) };
    of_alice.give(&[said]).unwrap();
    of_alice.give(&[Gift { close_on_hangup: true, ..gift("b", &kept) }]).unwrap();
    let told = |user| {
        let entries = daemon.client_as(&user).list(&pattern("*")).unwrap().into_iter();
        entries.map(|it| (it.share, it.ephemeral, it.close_on_hangup)).collect::<Vec<_>>()
    };

    let with = Share { uids: vec![BOB], gids: vec![TEAM] };
    let all =
        [(Some(with), Some(true), Some(false)), (Some(Share::default()), Some(false), Some(true))];
    assert_eq!(told(User::new(ALICE)), all);
    assert_eq!(told(User::new(0)), all);
    assert_eq!(told(User::new(BOB)), [(None, None, None)]);
}

#[test]
fn a_group_that_it_is_not_shared_with_does_not_see_it() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let kept = file(daemon.path("kept"), "");
    let mut of_alice = daemon.client_as(&User::new(ALICE));
    of_alice.give(&[shared(gift("a", &kept), &[7], &[TEAM])]).unwrap();

    for user in [User::new(BOB), User::new(BOB).in_groups(&[TEAM + 1])] {
        assert_eq!(listed(&mut daemon.client_as(&user)), [""; 0], "{user:?}");
    }
}

#[test]
fn who_could_not_open_a_file_for_writing_cannot_give_it_away_so() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let read_only = of_root(&daemon, 0o644, &read_only());
    let mut of_alice = daemon.client_as(&User::new(ALICE));

    let wider = Gift { may_reopen: Some(Access::ReadWrite), ..gift("a", &read_only) };
    assert_eq!(errno_name(of_alice.give(&[wider])), "EACCES");
    assert_eq!(listed(&mut of_alice), [""; 0]);

    of_alice.give(&[gift("a", &read_only)]).unwrap();
    let refused = refusal(of_alice.reopen(&reopening(Access::ReadWrite)));
    assert_eq!(refused, denied("a", "reopen"));
}

#[test]
fn who_is_given_leave_to_write_needs_the_right_to_it_as_well() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let read_only = of_root(&daemon, 0o664, &read_only());
    chown(daemon.path("of-root"), Some(0), Some(TEAM)).unwrap();
    let wider = Gift { may_reopen: Some(Access::ReadWrite), ..gift("a", &read_only) };
    daemon.client().give(&[shared(wider, &[ALICE], &[])]).unwrap();
    let mut of_alice = daemon.client_as(&User::new(ALICE));
    let before = of_alice.list(&pattern("*")).unwrap();

    assert_eq!(errno_name(of_alice.reopen(&reopening(Access::ReadWrite))), "EACCES");
    assert_eq!(errno_name(of_alice.reopen(&reopening(Access::Write))), "EACCES");
    assert_eq!(of_alice.list(&pattern("*")).unwrap(), before);

    // Of the file's group she may; the kernel decides, with her groups.
    let mut in_team = daemon.client_as(&User::new(ALICE).in_groups(&[TEAM]));
    let written = only(in_team.reopen(&reopening(Access::ReadWrite)).unwrap());
    written.write_at(b"by", 0).unwrap();
}

#[test]
fn an_append_only_gift_cannot_be_made_to_overwrite() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let mut options = OpenOptions::new();
    options.append(true);
    let log = of_root(&daemon, 0o644, &options);
    daemon.client().give(&[shared(gift("a", &log), &[ALICE], &[])]).unwrap();
    let mut of_alice = daemon.client_as(&User::new(ALICE));

    let overwriting = Reopening { append: Some(false), ..Reopening::new(name("a")) };
    assert_eq!(errno_name(of_alice.reopen(&[overwriting])), "EACCES");

    let sync = Reopening { sync: Some(true), ..Reopening::new(name("a")) };
    let handed = only(of_alice.reopen(&[sync]).unwrap());
    assert!(fcntl_getfl(&handed).unwrap().contains(OFlags::APPEND | OFlags::SYNC));
}

#[test]
fn reading_without_a_trace_is_the_owners_alone() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let read_only = of_root(&daemon, 0o644, &read_only());
    daemon.client().give(&[shared(gift("a", &read_only), &[ALICE], &[])]).unwrap();
    let unseen = [Reopening { noatime: Some(true), ..Reopening::new(name("a")) }];

    let by_alice = daemon.client_as(&User::new(ALICE)).reopen(&unseen);
    let by_root = daemon.client().reopen(&unseen);

    assert_eq!(errno_name(by_alice), "EPERM");
    assert!(fcntl_getfl(only(by_root.unwrap())).unwrap().contains(OFlags::NOATIME));
}

#[test]
fn what_one_was_given_is_opened_anew_for_who_could_not_open_it() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let secret = of_root(&daemon, 0o600, &read_only());
    daemon.client().give(&[shared(gift("a", &secret), &[ALICE], &[])]).unwrap();
    let mut of_alice = daemon.client_as(&User::new(ALICE));

    let mut fresh = only(of_alice.copy_fresh(&names(["a"])).unwrap());
    let mut reopened = only(of_alice.reopen(&[Reopening::new(name("a"))]).unwrap());

    for handed in [&mut fresh, &mut reopened] {
        let mut content = String::new();
        handed.read_to_string(&mut content).unwrap();
        assert_eq!(content, "of root");
        assert_eq!(fcntl_getfl(&*handed).unwrap() & OFlags::ACCMODE, OFlags::RDONLY);
    }
}

#[test]
fn nobody_reopens_by_path_without_a_policy() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    client.give(&[gift("a", file(daemon.path("a"), ""))]).unwrap();

    let path = daemon.path("a").to_str().map(str::to_owned);
    let by_path = Reopening { path, ..Reopening::new(name("a")) };

    assert_eq!(refusal(client.reopen(&[by_path])), denied("a", "reopen by path"));
}

#[test]
fn a_reopen_lends_no_power_over_other_processes() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let mut of_alice = daemon.client_as(&User::new(ALICE));
    // As if it were of a program of hers, which then executes a set-user-id one.
    let memory = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
    of_alice.give(&[gift("a", &memory)]).unwrap();

    assert_eq!(errno_name(of_alice.reopen(&reopening(Access::ReadWrite))), "EOPNOTSUPP");
    assert_eq!(errno_name(of_alice.copy_fresh(&names(["a"]))), "EOPNOTSUPP");
    let fresh = Gift { fresh: true, ..gift("b", &memory) };
    assert_eq!(errno_name(of_alice.give(&[fresh])), "EOPNOTSUPP");
    assert_eq!(identity(only(of_alice.take(&names(["a"])).unwrap())), identity(&memory));
}

#[test]
fn who_makes_the_daemon_open_a_file_cannot_send_it_signals_meanwhile() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let alice = User::new(ALICE);
    let path = daemon.path("of-alice");
    file(&path, "");
    chown(&path, Some(ALICE), Some(ALICE)).unwrap();
    let mut of_alice = daemon.client_as(&alice);
    let read_only = alice.run(|| File::open(&path)).unwrap();
    let wider = Gift { may_reopen: Some(Access::ReadWrite), ..gift("a", &read_only) };
    of_alice.give(&[wider]).unwrap();
    let lease = Lease::of(&path);

    std::thread::scope(|scope| {
        let reopened = scope.spawn(|| of_alice.reopen(&reopening(Access::ReadWrite)));
        let mut opener = None;
        wait_until(SOON, || {
            opener = thread_of(&daemon, ALICE);
            opener.is_some()
        });
        let may_signal = alice.run(|| test_kill_process(opener.unwrap()));
        lease.end();

        assert_eq!(may_signal, Err(rustix::io::Errno::PERM));
        assert_eq!(identity(only(reopened.join().unwrap().unwrap())), identity(&read_only));
    });
}

/// The daemon's thread that acts with a user's rights, if there is one.
fn thread_of(daemon: &Daemon, uid: u32) -> Option<Pid> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.server().0)).ok()?;
    tasks.flatten().find_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        let effective: u32 = uids.split_whitespace().nth(1)?.parse().ok()?;
        let thread = Pid::from_raw(task.file_name().to_str()?.parse().ok()?);
        thread.filter(|_| effective == uid)
    })
}

#[test]
fn a_daemon_that_is_nobody_serves_everybody_within_its_power() {
    if !can_be_others() {
        return;
    }
    let nobody = User::new(65534);
    let daemon = Daemon::builder().user(nobody.clone()).spawn();
    let alice = User::new(ALICE);
    let mut of_alice = daemon.client_as(&alice);
    let path = daemon.path("of-alice");
    file(&path, "");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    chown(&path, Some(ALICE), Some(ALICE)).unwrap();
    let read_only = alice.run(|| File::open(&path)).unwrap();

    of_alice.give(&[gift("a", &read_only)]).unwrap();
    only(of_alice.copy_fresh(&names(["a"])).unwrap());
    // It cannot find out what she may.
    let wider = Gift { may_reopen: Some(Access::ReadWrite), ..gift("b", &read_only) };
    assert_eq!(errno_name(of_alice.give(&[wider])), "EPERM");
    assert_eq!(listed(&mut daemon.client_as(&User::new(BOB))), [""; 0]);
    assert_eq!(identity(only(of_alice.take(&names(["a"])).unwrap())), identity(&read_only));

    // Its own files it opens for its own user.
    let own = daemon.path("of-nobody");
    file(&own, "");
    chown(&own, Some(65534), Some(65534)).unwrap();
    let read_only = nobody.run(|| File::open(&own)).unwrap();
    let mut of_nobody = daemon.client_as(&nobody);
    let wider = Gift { may_reopen: Some(Access::ReadWrite), ..gift("a", &read_only) };
    of_nobody.give(&[wider]).unwrap();
    only(of_nobody.reopen(&reopening(Access::ReadWrite)).unwrap());
}

#[test]
fn a_daemon_with_capabilities_lends_them_to_nobody_but_root() {
    if !can_be_others() {
        return;
    }
    let (alice, own) = (User::new(ALICE), User::new(BOB));
    let daemon = Daemon::builder().user(own.clone()).capable().spawn();
    let of_root = of_root(&daemon, 0o644, &read_only());
    let unseen = [Reopening { noatime: Some(true), ..Reopening::new(name("a")) }];
    let wider = |fd| Gift { may_reopen: Some(Access::ReadWrite), ..gift("a", fd) };

    for user in [&alice, &own] {
        let mut client = daemon.client_as(user);
        assert_eq!(errno_name(client.give(&[wider(&of_root)])), "EACCES", "{user:?}");
        client.give(&[gift("a", &of_root)]).unwrap();
        assert_eq!(errno_name(client.reopen(&unseen)), "EPERM", "{user:?}");
        client.close(&names(["a"])).unwrap();
    }
    // In a group of the file's she may, and so may she what is her own, as ever.
    fs::set_permissions(daemon.path("of-root"), Permissions::from_mode(0o660)).unwrap();
    chown(daemon.path("of-root"), Some(0), Some(TEAM)).unwrap();
    let mut in_team = daemon.client_as(&alice.clone().in_groups(&[TEAM]));
    in_team.give(&[wider(&of_root)]).unwrap();
    only(in_team.reopen(&reopening(Access::ReadWrite)).unwrap()).write_at(b"by", 0).unwrap();
    // Root is root, and what gives no more than is kept is the daemon's to open.
    fs::set_permissions(daemon.path("of-root"), Permissions::from_mode(0o000)).unwrap();
    chown(daemon.path("of-root"), Some(0), Some(0)).unwrap();
    let mut client = daemon.client();
    client.give(&[shared(wider(&of_root), &[ALICE], &[])]).unwrap();
    only(client.reopen(&unseen).unwrap());
    only(daemon.client_as(&alice).copy_fresh(&names(["a"])).unwrap());
}

#[test]
fn a_daemon_with_capabilities_has_them_after_an_upgrade_and_with_a_spare_keeper() {
    if !can_be_others() {
        return;
    }
    let alice = User::new(ALICE);
    let mut daemon = Daemon::builder().user(User::new(BOB)).capable().spawn();
    let path = daemon.path("of-alice");
    file(&path, "");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    chown(&path, Some(ALICE), Some(ALICE)).unwrap();
    let read_only = alice.run(|| File::open(&path)).unwrap();
    let wider = Gift { may_reopen: Some(Access::ReadWrite), ..gift("a", &read_only) };
    let mut of_alice = daemon.client_as(&alice);
    of_alice.give(&[wider]).unwrap();

    daemon.upgrade();
    only(of_alice.reopen(&reopening(Access::ReadWrite)).unwrap());
    daemon.kill_keeper();
    wait_until(SOON, || daemon.log().contains("made another"));
    daemon.kill_server();
    only(daemon.client_as(&alice).reopen(&reopening(Access::ReadWrite)).unwrap());
}

#[test]
fn the_giver_is_who_connected_and_not_who_opened_the_file() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let mut of_alice = daemon.client_as(&User::new(ALICE));

    of_alice.give(&[gift("a", &socket)]).unwrap();

    let giver = of_alice.list(&pattern("a")).unwrap()[0].giver;
    assert_eq!((giver.uid, giver.gid), (ALICE, ALICE));
}
