//! User namespaces: whose root is nobody's outside, and in which most of the machine's users have no
//! number.

use std::{
    fs::{self, File, Permissions},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use fdstash::{Access, Gift, Refusal, Reopening};
use kit::{
    Daemon, SOON, User, denied, file, gift, identity, install_program, is_root, listed, name,
    names, not_found, only, program, refusal, shared, skipped, wait_until,
};

const ALICE: u32 = 61001;
const BOB: u32 = 61002;
const CAROL: u32 = 61003;
const TEAM: u32 = 61100;

/// What the kernel says of everybody who has no number.
const OVERFLOW: u32 = 65534;

/// Whether there can be user namespaces with more users than one; says so if not.
fn can_have_namespaces() -> bool {
    let can = is_root()
        && Command::new("unshare").args(["--user", "true"]).status().is_ok_and(|it| it.success());
    if !can {
        skipped("user namespaces of many users take root");
    }
    can
}

/// The command `fdstash` in namespaces of its own, between the shell and its arguments.
struct Inside {
    daemon: Daemon,
    command: PathBuf,
}

impl Inside {
    /// Root, Alice, Bob, and the group have given something.
    fn new() -> Self {
        let daemon = Daemon::spawn();
        let command = daemon.path("fdstash");
        install_program(&program("fdstash"), &command);
        let kept = file(daemon.path("kept"), "");
        for (user, text) in [(0, "of-root"), (ALICE, "of-alice"), (BOB, "of-bob")] {
            daemon.client_as(&User::new(user)).give(&[gift(text, &kept)]).expect("all may give");
        }
        let of_team = shared(gift("of-team", &kept), &[], &[TEAM]);
        daemon.client().give(&[of_team]).expect("root may give");
        Self { daemon, command }
    }

    /// What it says, and whether that is no failure, run by somebody below other programs. Where a
    /// namespace waits for its maps, they are written.
    fn say(
        &self,
        user: &User,
        launcher: &[&str],
        maps: Option<[&str; 2]>,
        args: &[&str],
    ) -> (bool, String) {
        let groups = match user.groups.as_slice() {
            [] => "--clear-groups".to_owned(),
            groups => {
                let groups: Vec<_> = groups.iter().map(u32::to_string).collect();
                format!("--groups={}", groups.join(","))
            }
        };
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
        command.arg(groups).args(launcher).arg(&self.command).args(args);
        command.env("FDSTASH_SOCKET", self.daemon.socket()).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("a program can be started");
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        if let Some([users, groups]) = maps {
            let own = fs::read_link("/proc/self/ns/user").ok();
            wait_until(SOON, || fs::read_link(process.join("ns/user")).ok() != own);
            fs::write(process.join("uid_map"), users).expect("root can map users");
            fs::write(process.join("gid_map"), groups).expect("root can map groups");
        }
        let output = child.wait_with_output().expect("it ends");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

#[test]
fn root_of_a_user_namespace_is_to_the_daemon_who_it_is_outside() {
    if !can_have_namespaces() {
        return;
    }
    // That denies setgroups, too.
    const AS_ROOT: &[&str] = &["unshare", "--user", "--map-root-user"];
    // There Bob is the user 1, whom its root can become.
    const RANGE: &[&str] = &[
        "unshare",
        "--user",
        "sh",
        "-c",
        "until grep -q . /proc/self/gid_map; do sleep 0.01; done; exec \"$0\" \"$@\"",
    ];
    const AS_ONE: &[&str] = &[
        "unshare",
        "--user",
        "sh",
        "-c",
        "until grep -q . /proc/self/gid_map; do sleep 0.01; done; exec setpriv --reuid=1 --regid=1 --clear-groups \"$0\" \"$@\"",
    ];
    let maps = Some(["0 61001 2", "0 61001 2"]);
    let inside = Inside::new();
    let alice = User::new(ALICE);
    let in_team = User::new(ALICE).in_groups(&[TEAM]);

    for (user, launcher, maps, sees) in [
        (&alice, &[][..], None, &["of-alice"][..]),
        (&alice, AS_ROOT, None, &["of-alice"]),
        (&alice, RANGE, maps, &["of-alice"]),
        (&alice, AS_ONE, maps, &["of-bob"]),
        // The group has no number there, and is what it is all the same.
        (&in_team, AS_ROOT, None, &["of-alice", "of-team"]),
    ] {
        let (done, said) = inside.say(user, launcher, maps, &["list", "--json"]);
        let all = ["of-alice", "of-bob", "of-root", "of-team"];
        let seen: Vec<_> =
            all.into_iter().filter(|text| said.contains(&format!("\"{text}\""))).collect();
        assert!(done, "{launcher:?}: {said}");
        assert_eq!(seen, sees, "{launcher:?}: {said}");
        for args in [&["take", "of-root", "--", "true"][..], &["close", "of-root"]] {
            let (done, said) = inside.say(user, launcher, maps, args);
            assert!(!done, "{launcher:?} {args:?}: {said}");
            let to_nobody = inside.say(user, launcher, maps, &args_of_nothing(args));
            assert_eq!((done, said.replace("of-root", "nothing")), to_nobody, "{launcher:?}");
        }
        let explain = ["policy", "explain", "--user", "0", "take", "of-root"];
        let (done, said) = inside.say(user, launcher, maps, &explain);
        assert!(!done, "what the policy says is told to root alone: {said}");
    }
    assert_eq!(listed(&mut inside.daemon.client()).len(), 4);
}

/// The same arguments for what there is not.
fn args_of_nothing<'a>(args: &[&'a str]) -> Vec<&'a str> {
    args.iter().map(|arg| if *arg == "of-root" { "nothing" } else { arg }).collect()
}

/// A daemon in a user namespace in which only root, Alice, and somebody of the number that is told of all
/// who have none, have numbers.
fn daemon_in_a_namespace() -> Daemon {
    let map = format!("0 0 1\n{ALICE} {ALICE} 1\n{OVERFLOW} {CAROL} 1");
    Daemon::builder().in_user_namespace(&map, &map).spawn()
}

#[test]
fn those_who_have_no_number_are_not_one_user() {
    if !can_have_namespaces() {
        return;
    }
    let daemon = daemon_in_a_namespace();
    let kept = file(daemon.path("kept"), "");
    let numbers = [OVERFLOW, u32::MAX];
    let mut of_root = daemon.client();
    of_root.give(&[shared(gift("a", &kept), &numbers, &numbers)]).unwrap();
    let unmapped = [BOB, BOB + 1000, CAROL].map(|uid| User::new(uid).in_groups(&[TEAM]));

    for user in unmapped {
        let mut client = daemon.client_as(&user);
        assert_eq!(listed(&mut client), [""; 0], "{user:?}");
        assert_eq!(refusal(client.copy(&names(["a"]))), not_found("a"), "{user:?}");
        assert_eq!(refusal(client.close(&names(["a"]))), not_found("a"), "{user:?}");
        // What it gave would be another's as well.
        assert_eq!(refusal(client.give(&[gift("b", &kept)])), denied("b", "give"), "{user:?}");
    }
    assert_eq!(listed(&mut of_root), ["a"]);
}

#[test]
fn who_has_a_number_in_the_daemons_namespace_has_its_rights() {
    if !can_have_namespaces() {
        return;
    }
    let daemon = daemon_in_a_namespace();
    let path = daemon.path("of-alice");
    file(&path, "");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    chown(&path, Some(ALICE), Some(ALICE)).unwrap();
    let read_only = File::open(&path).unwrap();
    let wider = || Gift { may_reopen: Some(Access::ReadWrite), ..gift("a", &read_only) };
    let write = [Reopening { access: Some(Access::ReadWrite), ..Reopening::new(name("a")) }];
    let mut of_alice = daemon.client_as(&User::new(ALICE));

    of_alice.give(&[shared(wider(), &[], &[ALICE])]).unwrap();
    only(of_alice.reopen(&write).unwrap());

    // Bob has none, but his group has: he gets what it may have, and the daemon acts for nobody.
    of_alice.give(&[shared(wider(), &[], &[ALICE])]).unwrap();
    let mut of_bob = daemon.client_as(&User { gid: ALICE, ..User::new(BOB) });
    assert_eq!(identity(only(of_bob.copy(&names(["a"])).unwrap())), identity(&read_only));
    let Refusal::ReopenFailed { errno_name, .. } = refusal(of_bob.reopen(&write)) else {
        panic!("somebody without a number has written");
    };
    assert_eq!(errno_name, "EPERM");
    // So it is with Alice in a group that has none: a file may deny a group what others may.
    let mut in_team = daemon.client_as(&User::new(ALICE).in_groups(&[TEAM]));
    let Refusal::ReopenFailed { errno_name, .. } = refusal(in_team.reopen(&write)) else {
        panic!("a group was left out");
    };
    assert_eq!(errno_name, "EPERM");
}
