//! The policy: who else may do what, between real users of the kernel, and rules that change while
//! everything goes on.

use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
};

use fdstash::{Access, Entry, Handed, Refusal, Reopening, Share, Verb, blocking::Client};
use kit::{
    Daemon, SOON, User, can_be_others, denied, errno_name, file, gift, identity, install_program,
    name, names, not_found, null, only, pattern, program, refusal, wait_until,
};
use rustix::{
    fs::{FileType, Mode, OFlags, fcntl_getfl, mknodat},
    pipe::pipe,
    process::{Signal, kill_process},
};
use tempfile::TempDir;

const ALICE: u32 = 61001;
const BOB: u32 = 61002;
const RULED: u32 = 61003;
const TEAM: u32 = 61100;
const VERBS: [&str; 6] = ["list", "copy", "reopen", "take", "close", "give"];

/// A policy, and a daemon that goes by it.
struct Ruled {
    folder: TempDir,
    daemon: Daemon,
}

impl Ruled {
    fn by(policy: &str) -> Self {
        let folder = folder();
        let file = folder.path().join("policy.toml");
        fs::write(&file, policy).expect("a policy can be written");
        let daemon = Daemon::builder().own_program().arg("--policy").arg(&file).spawn();
        Self { folder, daemon }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("policy.toml")
    }

    /// Changes the policy, and has the daemon load it, and go on as the next version of itself.
    fn reload(&self, policy: &str) {
        fs::write(self.file(), policy).expect("a policy can be written");
        self.daemon.upgrade();
    }
}

/// A folder that every user can reach.
fn folder() -> TempDir {
    let all = Permissions::from_mode(0o755);
    tempfile::Builder::new().permissions(all).tempdir().expect("a folder can be made")
}

fn entry(client: &mut Client, text: &str) -> Option<Entry> {
    client.list(&pattern(text)).expect("a list").into_iter().next()
}

/// What comes of a verb on a name.
fn attempt(client: &mut Client, verb: &str, text: &str) -> Result<(), Refusal> {
    let all = names([text]);
    let outcome = match verb {
        "list" => return entry(client, text).map(|_| ()).ok_or_else(|| not_found(text)),
        "copy" => client.copy(&all).map(|_| ()),
        "reopen" => client.reopen(&[Reopening::new(name(text))]).map(|_| ()),
        "take" => client.take(&all).map(|_| ()),
        "close" => client.close(&all),
        "give" => client.give(&[gift(text, null())]).map(|_| ()),
        other => panic!("no verb: {other}"),
    };
    outcome.map_err(|error| refusal::<()>(Err(error)))
}

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("it can be run");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

fn allow(user: u32, names: &str, verbs: &str) -> String {
    format!("[[allow]]\nusers = [{user}]\nnames = [{names:?}]\nverbs = [{verbs}]\n")
}

#[test]
fn each_verb_is_for_each_sort_of_peer_what_the_rules_say() {
    if !can_be_others() {
        return;
    }
    let rule = |verb: &&str| {
        let to = format!("users = [{RULED}]\ngroups = [{TEAM}]");
        format!("[[allow]]\n{to}\nnames = ['may/{verb}']\nverbs = ['{verb}']\n")
    };
    let ruled = Ruled::by(&VERBS.iter().map(rule).collect::<String>());
    let mut of_alice = ruled.daemon.client_as(&User::new(ALICE));
    let kept = file(ruled.daemon.path("kept"), "");
    let (all, own, none) = (1, 2, 3);

    for (user, shared, may) in [
        (User::new(ALICE), Share::default(), all),
        (User::new(0), Share::default(), all),
        (User::new(BOB), Share { uids: vec![BOB], gids: vec![] }, all),
        (User::new(BOB).in_groups(&[7, 8]), Share { uids: vec![], gids: vec![8] }, all),
        (User::new(RULED), Share::default(), own),
        (User { gid: TEAM, ..User::new(BOB) }, Share::default(), own),
        (User::new(BOB).in_groups(&[7, TEAM]), Share::default(), own),
        (User::new(BOB), Share::default(), none),
        (User { gid: BOB, ..User::new(TEAM) }, Share::default(), none),
    ] {
        let mut client = ruled.daemon.client_as(&user);
        for of_rule in VERBS {
            for verb in VERBS {
                let text = format!("may/{of_rule}");
                // Whoever has replaced it may have it now.
                let _ = ruled.daemon.client().close(&names([&text]));
                let given = fdstash::Gift { share: shared.clone(), ..gift(&text, &kept) };
                of_alice.give(&[given]).unwrap();

                let outcome = attempt(&mut client, verb, &text);

                let expected = match (may == all || (may == own && verb == of_rule), verb) {
                    (true, _) => Ok(()),
                    (false, "list") => Err(not_found(&text)),
                    (false, "give") => Err(denied(&text, "give")),
                    (false, _) if may == own => Err(denied(&text, verb)),
                    (false, _) => Err(not_found(&text)),
                };
                assert_eq!(outcome, expected, "{user:?}: {verb} {text}");
            }
        }
    }
}

#[test]
fn reserved_names_are_given_by_those_alone_for_whom_they_are() {
    if !can_be_others() {
        return;
    }
    let ruled = Ruled::by(&format!("[[reserve]]\nnames = ['vm*']\nusers = [{BOB}]\n"));
    let kept = file(ruled.daemon.path("kept"), "");
    let mut of_alice = ruled.daemon.client_as(&User::new(ALICE));
    let mut of_bob = ruled.daemon.client_as(&User::new(BOB));

    assert_eq!(refusal(of_alice.give(&[gift("vm7", &kept)])), denied("vm7", "give"));
    assert_eq!(
        refusal(of_alice.give(&[gift("a", &kept), gift("vm7", &kept)])),
        denied("vm7", "give")
    );
    assert_eq!(entry(&mut of_alice, "*"), None);
    of_alice.give(&[gift("a", &kept)]).unwrap();
    of_bob.give(&[gift("vm7", &kept)]).unwrap();
    assert_eq!(refusal(of_alice.give_new(&[gift("vm7", &kept)])), denied("vm7", "give"));
    ruled.daemon.client().give(&[gift("vm8", &kept)]).unwrap();
}

#[test]
fn a_policy_that_does_not_load_is_a_failure_at_the_start_and_says_where() {
    let folder = folder();
    let (socket, policy) = (folder.path().join("stash"), folder.path().join("policy.toml"));
    let start = || {
        output(
            Command::new("timeout")
                .arg("20")
                .arg(program("fdstashd"))
                .arg("--socket")
                .arg(&socket)
                .arg("--policy")
                .arg(&policy),
        )
    };

    let (code, _, said) = start();
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("loading the policy: ") && said.contains("policy.toml: cannot be read"),
        "{said}"
    );

    fs::write(&policy, "\n[[allow]]\nuser = [1]\n").unwrap();
    let (code, _, said) = start();
    assert_eq!(code, Some(1), "{said}");
    let expected = "policy.toml:3: unknown field `user`, expected one of `users`";
    assert!(said.contains(expected), "{said}");
    assert!(!socket.exists());
}

#[test]
fn a_policy_is_checked_without_a_daemon() {
    let folder = folder();
    let policy = folder.path().join("policy.toml");
    let drop_ins = folder.path().join("policy.d");
    fs::create_dir(&drop_ins).unwrap();
    fs::write(&policy, allow(7, "vm*", "'list', 'copy'")).unwrap();
    fs::write(drop_ins.join("20.toml"), "# later\n[[reserve]]\nnames = ['b']\nusers = ['root']\n")
        .unwrap();
    fs::write(drop_ins.join("10.toml"), allow(8, "a b", "'take'")).unwrap();
    fs::write(drop_ins.join("not-one.toml~"), "nonsense").unwrap();
    let check = || output(Command::new(program("fdstashd")).arg("--check-policy").arg(&policy));

    let (code, said, _) = check();

    let at = folder.path().display();
    assert_eq!(
        (code, said),
        (
            Some(0),
            format!(
                "read {at}/policy.toml\nread {at}/policy.d/10.toml\nread {at}/policy.d/20.toml\n\
                 {at}/policy.toml:1: uid 7 may copy, list: vm*\n\
                 {at}/policy.d/10.toml:1: uid 8 may take: a b\n\
                 {at}/policy.d/20.toml:2: only uid 0 and root may give: b\n"
            )
        )
    );
    fs::write(
        drop_ins.join("15.toml"),
        "\n\n[[reserve]]\nusers = ['nobody-of-that-name']\nnames = ['b']\n",
    )
    .unwrap();
    let (code, _, said) = check();
    let expected = format!(
        "fdstashd: {at}/policy.d/15.toml:4: there is no user \"nobody-of-that-name\" on this machine\n"
    );
    assert_eq!((code, said), (Some(1), expected));
    fs::remove_file(drop_ins.join("15.toml")).unwrap();
    fs::set_permissions(&policy, Permissions::from_mode(0o666)).unwrap();
    let (code, _, said) = check();
    assert_eq!(code, Some(1));
    assert!(said.contains("policy.toml: cannot be read: everybody may write it"), "{said}");
}

#[test]
fn the_example_is_a_policy() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/policy.toml");
    let text = fs::read_to_string(example).unwrap();
    let folder = folder();
    let policy = folder.path().join("policy.toml");
    // The rules stand behind a '#', and what is said of them behind one and a space.
    let rule = |line: &str| {
        line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned()
    };
    let rules: Vec<_> = text.lines().map(rule).collect();
    // Users and groups that there are on every machine.
    let rules = ["alice", "kvm", "logs", "libvirt", "backup"]
        .iter()
        .fold(rules.join("\n"), |rules, name| rules.replace(&format!("\"{name}\""), "\"root\""));
    fs::write(&policy, rules).unwrap();

    for (path, count) in [(Path::new(example), 0), (&policy, 5)] {
        let (code, said, wrong) =
            output(Command::new(program("fdstashd")).arg("--check-policy").arg(path));

        assert_eq!(code, Some(0), "{wrong}");
        assert_eq!(said.matches(" may ").count(), count, "{said}");
    }
}

#[test]
fn a_reload_takes_effect_on_connections_that_are_open() {
    if !can_be_others() {
        return;
    }
    let ruled = Ruled::by("");
    let kept = file(ruled.daemon.path("kept"), "");
    ruled.daemon.client().give(&[gift("a", &kept)]).unwrap();
    let mut of_bob = ruled.daemon.client_as(&User::new(BOB));
    assert_eq!(refusal(of_bob.copy(&names(["a"]))), not_found("a"));

    ruled.reload(&allow(BOB, "a", "'copy'"));
    assert_eq!(identity(only(of_bob.copy(&names(["a"])).unwrap())), identity(&kept));
    assert_eq!(refusal(of_bob.take(&names(["a"]))), denied("a", "take"));

    ruled.reload("");
    assert_eq!(refusal(of_bob.copy(&names(["a"]))), not_found("a"));
}

#[test]
fn who_waits_for_what_a_reload_lets_it_have_gets_it() {
    if !can_be_others() {
        return;
    }
    let ruled = Ruled::by("");
    let kept = file(ruled.daemon.path("kept"), "");
    ruled.daemon.client().give(&[gift("a", &kept)]).unwrap();
    let mut of_bob = ruled.daemon.client_as(&User::new(BOB));

    thread::scope(|scope| {
        let waits = scope.spawn(|| of_bob.take_within(&names(["a"]), SOON));
        ruled.reload(&allow(BOB, "a", "'take'"));

        let taken = waits.join().unwrap().unwrap();
        assert_eq!(identity(only(taken)), identity(&kept));
    });
}

#[test]
fn a_policy_that_does_not_load_leaves_the_one_before_in_force_over_crashes_and_upgrades() {
    if !can_be_others() {
        return;
    }
    let mut ruled = Ruled::by(&allow(BOB, "a", "'copy'"));
    let kept = file(ruled.daemon.path("kept"), "");
    ruled.daemon.client().give(&[gift("a", &kept)]).unwrap();
    let may = |ruled: &Ruled| {
        let mut of_bob = ruled.daemon.client_as(&User::new(BOB));
        (attempt(&mut of_bob, "copy", "a"), attempt(&mut of_bob, "close", "a"))
    };
    let before = (Ok(()), Err(denied("a", "close")));
    assert_eq!(may(&ruled), before);

    // The program is replaced all the same, and says why the policy is not.
    ruled.reload("[[allow]]\nusers = 7\n");
    let log = ruled.daemon.log();
    let expected =
        format!("stay in force: {}:2: invalid type: integer `7`", ruled.file().display());
    assert!(log.contains(&expected), "{log}");
    assert_eq!(may(&ruled), before);

    ruled.daemon.kill_server();
    assert_eq!(may(&ruled), before);
    fs::remove_file(ruled.file()).unwrap();
    ruled.daemon.upgrade();
    ruled.daemon.kill_server();
    assert_eq!(may(&ruled), before);

    // What counts is what was loaded last, not what stands there now.
    fs::write(ruled.file(), "").unwrap();
    ruled.daemon.kill_server();
    assert_eq!(may(&ruled), before);

    // The keeper that is made in the place of one that has died begins with another program's memory.
    let servers = ruled.daemon.servers();
    ruled.daemon.kill_keeper();
    wait_until(SOON, || ruled.daemon.log().contains("the keeper has died, made another"));
    kill_process(ruled.daemon.server().0, Signal::KILL).unwrap();
    wait_until(SOON, || ruled.daemon.servers() > servers);
    assert_eq!(may(&ruled), before);
}

#[test]
fn the_policy_is_loaded_also_where_the_upgrade_fails() {
    if !can_be_others() {
        return;
    }
    let ruled = Ruled::by("");
    let kept = file(ruled.daemon.path("kept"), "");
    ruled.daemon.client().give(&[gift("a", &kept)]).unwrap();
    let mut of_bob = ruled.daemon.client_as(&User::new(BOB));
    let server = ruled.daemon.server();

    for (program, verb) in
        [(Some("/bin/true"), "copy"), (Some("/bin/false"), "reopen"), (None, "list")]
    {
        let at = ruled.daemon.program();
        match program {
            Some(program) => install_program(Path::new(program), &at),
            None => fs::remove_file(&at).unwrap(),
        }
        assert_ne!(attempt(&mut of_bob, verb, "a"), Ok(()));

        fs::write(ruled.file(), allow(BOB, "a", &format!("'{verb}'"))).unwrap();
        ruled.daemon.signal(Signal::HUP);

        wait_until(SOON, || attempt(&mut of_bob, verb, "a").is_ok());
        assert_eq!(ruled.daemon.server(), server);
    }
}

#[test]
fn root_is_told_which_rule_decides() {
    if !can_be_others() {
        return;
    }
    let ruled = Ruled::by(&format!(
        "# A line.\n{}[[reserve]]\nnames = ['vm*']\nusers = [{ALICE}]\n",
        allow(RULED, "vm?", "'copy'")
    ));
    let folder = ruled.file().with_extension("d");
    fs::create_dir(&folder).unwrap();
    let drop_in = format!(
        "[[allow]]\ngroups = [{TEAM}]\nnames = ['*']\nverbs = ['reopen by path']\nbelow = ['/']\n"
    );
    fs::write(folder.join("team.toml"), drop_in).unwrap();
    ruled.daemon.upgrade();
    let kept = file(ruled.daemon.path("kept"), "");
    let given =
        fdstash::Gift { share: Share { uids: vec![BOB], gids: vec![] }, ..gift("vm7", &kept) };
    ruled.daemon.client_as(&User::new(ALICE)).give(&[given]).unwrap();
    let (policy, team) = (ruled.file(), folder.join("team.toml"));
    let (policy, team) = (policy.display(), team.display());
    let (alice, bob, ruled_user) = (ALICE.to_string(), BOB.to_string(), RULED.to_string());
    let team_group = TEAM.to_string();

    for (args, expected) in [
        (vec!["--user", "root", "take", "vm7"], "allowed: root".to_owned()),
        (vec!["--user", &alice, "take", "vm7"], "allowed: giver".into()),
        (vec!["--user", &bob, "close", "vm7"], "allowed: share".into()),
        (vec!["--user", &ruled_user, "copy", "vm7"], format!("allowed: {policy}:2 allows it")),
        (vec!["--user", &ruled_user, "take", "vm7"], "denied: nothing allows it".into()),
        (
            vec!["--user", "77", "take", "vm7"],
            "hidden, there is no such entry for it: nothing allows it".into(),
        ),
        (vec!["--user", "77", "give", "vm8"], format!("denied: {policy}:6 reserves the name")),
        (vec!["--user", &alice, "give", "vm8"], format!("allowed: {policy}:6 reserves the name")),
        (vec!["--user", "77", "give", "a"], "allowed: the name is free".into()),
        (
            vec!["--user", "77", "--group", &team_group, "reopen by path", "a"],
            format!("allowed: {team}:1 allows it"),
        ),
        (
            vec!["--user", "77", "reopen-by-path", "vm7"],
            "hidden, there is no such entry for it: nothing allows it".into(),
        ),
    ] {
        let (code, said, wrong) =
            output(ruled.daemon.command().args(["policy", "explain"]).args(&args));

        assert_eq!((code, said), (Some(0), expected + "\n"), "{args:?}: {wrong}");
    }
    let mut of_alice = ruled.daemon.client_as(&User::new(ALICE));
    let asked = of_alice.explain_policy(ALICE, &[], Verb::Take, &name("vm7"));
    assert_eq!(refusal(asked), Refusal::PermissionDenied);
    let explain =
        |args: &[&str]| output(ruled.daemon.command().args(["policy", "explain"]).args(args));
    let (code, _, said) = explain(&["--user", "no-such-user", "take", "a"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("there is no user \"no-such-user\" on this machine"), "{said}");
    let (code, _, said) = explain(&["--user", "root", "chown", "a"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("there is no such verb, only give, take, copy"), "{said}");
}

/// A directory with logs of Alice's in it, who may not change the directory.
struct Logs {
    ruled: Ruled,
    folder: TempDir,
}

impl Logs {
    fn new(access: Access) -> (Self, Client) {
        let folder = folder();
        let below = folder.path().display();
        let ruled = Ruled::by(&format!(
            "[[allow]]\nusers = [{ALICE}]\nnames = ['log']\nverbs = ['reopen by path']\nbelow = ['{below}/logs']\n"
        ));
        let logs = Self { ruled, folder };
        fs::create_dir(logs.path("")).expect("a folder can be made");
        logs.create("vm.log", 0o644, ALICE);
        let alice = User::new(ALICE);
        let mut of_alice = logs.ruled.daemon.client_as(&alice);
        let mut options = File::options();
        options.read(access != Access::Write).append(access != Access::Read);
        let log = alice.run(|| options.open(logs.path("vm.log"))).expect("she opens her log");
        of_alice.give(&[gift("log", &log)]).expect("and gives it");
        (logs, of_alice)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join("logs").join(below)
    }

    /// As root does who rotates them.
    fn create(&self, below: &str, mode: u32, owner: u32) {
        let mut options = File::options();
        options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(self.path(below))
            .expect("a file can be made");
        fs::set_permissions(self.path(below), Permissions::from_mode(mode))
            .expect("a mode can be set");
        chown(self.path(below), Some(owner), Some(owner)).expect("root can give files away");
    }

    fn reopening(&self, below: &str) -> [Reopening; 1] {
        [at(&self.path(below))]
    }
}

fn at(path: &Path) -> Reopening {
    let path = path.to_str().map(str::to_owned);
    Reopening { path, ..Reopening::new(name("log")) }
}

fn refused(logs: &Logs, client: &mut Client, below: &str) -> String {
    errno_name(client.reopen(&logs.reopening(below)))
}

#[test]
fn logs_are_rotated_by_who_may_not_create_them() {
    if !can_be_others() {
        return;
    }
    let (logs, mut of_alice) = Logs::new(Access::Write);
    let before = entry(&mut of_alice, "log").unwrap();
    fs::rename(logs.path("vm.log"), logs.path("vm.log.1")).unwrap();
    // Nothing is created.
    assert_eq!(refused(&logs, &mut of_alice, "vm.log"), "ENOENT");
    assert_eq!(entry(&mut of_alice, "log").unwrap(), before);
    logs.create("vm.log", 0o644, ALICE);
    fs::write(logs.path("vm.log"), "kept\n").unwrap();

    let handed = of_alice.reopen(&logs.reopening("vm.log")).unwrap();

    let [Handed { fd, .. }] = &handed[..] else { panic!("{handed:?}") };
    assert!(fcntl_getfl(fd).unwrap().contains(OFlags::APPEND | OFlags::WRONLY));
    let new = fs::metadata(logs.path("vm.log")).unwrap();
    assert_eq!(identity(fd), (new.dev(), new.ino()));
    let copied = only(of_alice.copy(&names(["log"])).unwrap());
    assert_eq!(identity(&copied), identity(fd));
    let after = entry(&mut of_alice, "log").unwrap();
    assert_eq!((after.device, after.inode), (new.dev(), new.ino()));
    assert_eq!(after.target.as_deref(), logs.path("vm.log").to_str());
    assert_eq!(
        (after.access, after.giver, after.may_reopen),
        (before.access, before.giver, before.may_reopen)
    );
    only(handed).write_all(b"new\n").unwrap();
    assert_eq!(fs::read_to_string(logs.path("vm.log")).unwrap(), "kept\nnew\n");
    // And so it stays after a crash.
    logs.ruled.daemon.kill_server();
    assert_eq!(entry(&mut of_alice, "log").unwrap().inode, new.ino());
}

#[test]
fn a_path_leads_nowhere_but_below_the_directory_that_the_policy_names() {
    if !can_be_others() {
        return;
    }
    let (logs, mut of_alice) = Logs::new(Access::Write);
    let before = entry(&mut of_alice, "log");
    // She may open all of these herself, and elsewhere.
    let outside = logs.folder.path().join("outside");
    file(&outside, "");
    fs::set_permissions(&outside, Permissions::from_mode(0o666)).unwrap();
    symlink("../outside", logs.path("out")).unwrap();
    symlink(&outside, logs.path("out-by-root")).unwrap();
    symlink("/proc/self/fd/1", logs.path("magic")).unwrap();
    symlink("vm.log", logs.path("within")).unwrap();
    let link = logs.folder.path().join("logs-too");
    symlink(logs.path(""), &link).unwrap();

    assert_eq!(refused(&logs, &mut of_alice, "out"), "EXDEV");
    assert_eq!(refused(&logs, &mut of_alice, "out-by-root"), "EXDEV");
    assert_eq!(refused(&logs, &mut of_alice, "magic"), "EXDEV");
    assert_eq!(refused(&logs, &mut of_alice, "../outside"), "EXDEV");
    assert_eq!(refused(&logs, &mut of_alice, "../logs/vm.log"), "EXDEV");
    for path in [outside, link.join("vm.log"), PathBuf::from("logs/vm.log"), PathBuf::from("/")] {
        let outcome = of_alice.reopen(&[at(&path)]);
        assert_eq!(refusal(outcome), denied("log", "reopen by path"), "{path:?}");
    }
    assert_eq!(entry(&mut of_alice, "log"), before);
    only(of_alice.reopen(&logs.reopening("within")).unwrap());
    only(of_alice.reopen(&logs.reopening("./vm.log")).unwrap());
}

#[test]
fn by_path_is_opened_what_the_peer_may_open_and_nothing_that_an_entry_cannot_be() {
    if !can_be_others() {
        return;
    }
    let (logs, mut of_alice) = Logs::new(Access::Write);
    let before = entry(&mut of_alice, "log");
    logs.create("of-root", 0o644, 0);
    fs::create_dir(logs.path("folder")).unwrap();
    fs::create_dir(logs.path("closed")).unwrap();
    fs::set_permissions(logs.path("closed"), Permissions::from_mode(0o700)).unwrap();
    logs.create("closed/of-alice", 0o644, ALICE);
    let _listener = std::os::unix::net::UnixListener::bind(logs.path("socket")).unwrap();
    let fifo = logs.path("fifo");
    mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    chown(&fifo, Some(ALICE), Some(ALICE)).unwrap();

    assert_eq!(refused(&logs, &mut of_alice, "of-root"), "EACCES");
    assert_eq!(refused(&logs, &mut of_alice, "closed/of-alice"), "EACCES");
    // None is opened: that would wait for the pipe's other end.
    for other in ["fifo", "folder", "socket", ""] {
        assert_eq!(refused(&logs, &mut of_alice, other), "EOPNOTSUPP", "{other}");
    }
    assert_eq!(entry(&mut of_alice, "log"), before);

    // A pipe in the place of a pipe is what it was.
    let (reading, _writing) = pipe().unwrap();
    of_alice.give(&[gift("log", &reading)]).unwrap();
    let handed = only(of_alice.reopen(&logs.reopening("fifo")).unwrap());
    assert_eq!(identity(&handed).1, fs::metadata(&fifo).unwrap().ino());
}

#[test]
fn by_path_nobody_gets_more_access_than_the_giver_allowed() {
    if !can_be_others() {
        return;
    }
    let (logs, mut of_alice) = Logs::new(Access::Read);
    let wider = Reopening { access: Some(Access::ReadWrite), ..at(&logs.path("vm.log")) };
    let handed_wider = Reopening { hand_out: Some(Access::Write), ..at(&logs.path("vm.log")) };

    assert_eq!(refusal(of_alice.reopen(&[wider])), denied("log", "reopen"));
    assert_eq!(refusal(of_alice.reopen(&[handed_wider])), denied("log", "reopen"));
    // Nor does a rule that names her name anybody else, root included.
    let outcome = logs.ruled.daemon.client().reopen(&logs.reopening("vm.log"));
    assert_eq!(refusal(outcome), denied("log", "reopen by path"));
    let outcome = logs.ruled.daemon.client_as(&User::new(BOB)).reopen(&logs.reopening("vm.log"));
    assert_eq!(refusal(outcome), not_found("log"));
    only(of_alice.reopen(&logs.reopening("vm.log")).unwrap());
}
