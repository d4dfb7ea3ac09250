//! Under a real systemd: installed as an operator does it, started, restarted, killed and reloaded.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Seek, Write},
    ops::Deref,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fdstash::{Access, Gift, Mirror, Reopening, blocking::Client};
use kit::{
    SOON, Systemd, User, file, gift, identity, install, name, names, only, pattern,
    raise_open_files, skipped, uninstall, wait_until,
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    pipe::PipeFlags,
    process::{Gid, Uid},
};

const SERVICE: &str = "fdstashd.service";

/// What is on its way in sockets counts for a user, whatever namespace it is in; where root may not
/// exceed that either, a test with very many descriptors has the machine to itself.
static ON_THEIR_WAY: RwLock<()> = RwLock::new(());

/// A systemd, and the right to have some descriptors on their way.
struct Booted<G>(Systemd, G);

impl<G> Deref for Booted<G> {
    type Target = Systemd;

    fn deref(&self) -> &Systemd {
        &self.0
    }
}

/// A systemd with nothing running yet.
fn booted() -> Option<Booted<RwLockReadGuard<'static, ()>>> {
    let some = ON_THEIR_WAY.read().unwrap_or_else(PoisonError::into_inner);
    Some(Booted(Systemd::boot()?, some))
}

/// A systemd with the stash running.
fn running() -> Option<Booted<RwLockReadGuard<'static, ()>>> {
    let systemd = booted()?;
    systemd.works(START);
    Some(systemd)
}

/// The same, and nobody else has descriptors on their way.
fn running_alone() -> Option<Booted<RwLockWriteGuard<'static, ()>>> {
    let all = ON_THEIR_WAY.write().unwrap_or_else(PoisonError::into_inner);
    let systemd = Booted(Systemd::boot()?, all);
    systemd.works(START);
    Some(systemd)
}

const START: &str =
    "systemd-sysusers && systemctl enable --now --quiet fdstashd.socket fdstashd.service";

#[test]
fn what_is_installed_is_all_removed_again() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");

    let before_253 = "usr/local/lib/systemd/system/fdstashd.service.d/before-253.conf";
    let since_262 = "usr/local/lib/systemd/system/fdstashd.socket.d/since-262.conf";
    install(&tree, &["SYSTEMD=262"]);
    assert!(tree.join(since_262).exists());
    install(&tree, &["SYSTEMD=252"]);
    assert!(tree.join(before_253).exists() && !tree.join(since_262).exists());
    install(&tree, &["SYSTEMD=253"]);
    assert!(!tree.join(before_253).exists());

    let local = tree.join("usr/local");
    for path in [
        "bin/fdstash",
        "bin/fdstashd",
        "lib/systemd/system/fdstashd.service",
        "lib/systemd/system/fdstashd.socket",
        "lib/systemd/system/fdstashd-metrics.socket",
        "lib/systemd/user/fdstashd.service",
        "lib/systemd/user/fdstashd.socket",
        "lib/sysusers.d/fdstash.conf",
        "lib/tmpfiles.d/fdstash.conf",
        "share/doc/fdstash/LICENSE-MIT",
        "share/doc/fdstash/org.fdstash.Stash.varlink",
        "share/doc/fdstash/policy.toml",
        "share/man/man1/fdstash.1",
        "share/man/man1/fdstash-give.1",
        "share/man/man5/fdstash-policy.5",
        "share/man/man7/org.fdstash.Stash.7",
        "share/man/man8/fdstashd.8",
        "share/bash-completion/completions/fdstash",
        "share/zsh/site-functions/_fdstash",
        "share/fish/vendor_completions.d/fdstash.fish",
    ] {
        assert!(local.join(path).is_file(), "{path}");
    }
    for manager in ["system", "user"] {
        let unit = local.join("lib/systemd").join(manager).join(SERVICE);
        let unit = fs::read_to_string(unit).unwrap();
        assert!(unit.contains("\nExecStart=/usr/local/bin/fdstashd\n"), "{unit}");
    }

    uninstall(&tree);

    assert_eq!(files_below(&tree), [""; 0]);
}

fn files_below(folder: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(folder).expect("a folder can be read").flatten().map(|entry| entry.path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let below = folders.iter().flat_map(|folder| files_below(folder));
    below.chain(files.iter().map(|path| path.display().to_string())).collect()
}

#[test]
fn it_is_started_by_its_socket_and_used_by_its_command() {
    let Some(systemd) = booted() else { return };
    systemd.works("systemd-sysusers && systemd-tmpfiles --create fdstash.conf");
    systemd.works("getent group fdstash");
    systemd.works("systemctl enable --now --quiet fdstashd.socket");
    assert_eq!(systemd.property(SERVICE, "ActiveState"), "inactive");

    systemd.works("echo content >/root/file && fdstash give a /root/file");

    assert_eq!(systemd.property(SERVICE, "ActiveState"), "active");
    assert!(systemd.works("fdstash list").contains('a'));
    assert_eq!(systemd.works("fdstash take a -- cat"), "content\n");
    let by_name = "FDSTASH_SOCKET=/run/varlink/registry/org.fdstash.Stash fdstash status";
    assert!(systemd.works(by_name).contains("entries       0 "));

    systemd.works("systemctl stop fdstashd.service");
    systemd.works("fdstash give a /root/file");
    assert_eq!(systemd.property(SERVICE, "Result"), "success");

    systemd.works("systemctl stop fdstashd.socket");
    assert_eq!(systemd.property(SERVICE, "ActiveState"), "inactive");
    systemd.works("test ! -e /run/fdstash/org.fdstash.Stash");
    systemd.works("test ! -L /run/varlink/registry/org.fdstash.Stash");
}

#[test]
fn while_it_is_restarted_who_connects_is_not_refused() {
    let Some(systemd) = running() else { return };
    let over = AtomicBool::new(false);

    let connected = thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            let mut connected = 0;
            while !over.load(Ordering::Relaxed) {
                UnixStream::connect(systemd.socket()).expect("nobody is refused");
                connected += 1;
            }
            connected
        });
        for _ in 0..3 {
            systemd.works("systemctl restart fdstashd.service");
            systemd.client().statistics().unwrap();
        }
        systemd.works("systemctl kill --signal=KILL fdstashd.service");
        systemd.client().statistics().unwrap();
        over.store(true, Ordering::Relaxed);
        connecting.join().unwrap()
    });

    assert!(connected > 100, "{connected}");
    wait_until(SOON, || systemd.property(SERVICE, "ActiveState") == "active");
}

#[test]
fn it_serves_on_while_systemd_itself_is_loaded_anew() {
    let Some(systemd) = running() else { return };
    let mut client = systemd.client();
    client.give(&[gift("a", File::open("/dev/null").unwrap())]).unwrap();
    let process = systemd.property(SERVICE, "MainPID");
    shows(&systemd, "Descriptors held: 1; connections: 1.");

    systemd.works("systemctl daemon-reload && systemctl daemon-reexec && systemctl daemon-reload");

    client.give(&[gift("b", File::open("/dev/null").unwrap())]).unwrap();
    shows(&systemd, "Descriptors held: 2; connections: 1.");
    assert_eq!(systemd.property(SERVICE, "MainPID"), process);
    only(client.take(&names(["a"])).unwrap());
}

/// Waits until `systemctl status` shows a text.
#[track_caller]
fn shows(systemd: &Systemd, text: &str) {
    let status = "systemctl status --no-pager fdstashd.service";
    wait_until(SOON, || systemd.works(status).contains(&format!("Status: \"{text}\"")));
}

#[test]
fn its_sandbox_takes_nothing_from_it_that_it_needs() {
    let Some(systemd) = running() else { return };

    for (what, works) in needs(&systemd) {
        assert!(works, "{what}");
    }

    let score = systemd.works("systemd-analyze security --no-pager fdstashd.service | tail -n 1");
    let score = score.split(": ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    let score: f32 = score.expect("systemd-analyze tells the exposure");
    assert!(score <= 1.5, "{score}");
}

#[test]
fn what_its_sandbox_leaves_out_would_break_it() {
    let Some(systemd) = running() else { return };

    for (setting, broken) in [
        ("DeviceAllow=\\nDeviceAllow=char-* rw", "a device is opened anew"),
        ("PrivateUsers=yes", "a file of somebody else's is opened anew"),
        ("CapabilityBoundingSet=~CAP_DAC_OVERRIDE", "a file of somebody else's is opened anew"),
        ("CapabilityBoundingSet=~CAP_FOWNER", "a file of somebody else's is read without a trace"),
        ("CapabilityBoundingSet=~CAP_SETUID", "a user's own right is taken on"),
        ("CapabilityBoundingSet=~CAP_SETGID", "a user's own right is taken on"),
    ] {
        with(&systemd, setting);
        let broke: Vec<&str> =
            needs(&systemd).iter().filter(|(_, works)| !works).map(|(what, _)| *what).collect();
        println!("{setting} breaks: {broke:?}");
        // A machine may have no block device that the test could use.
        let can_tell = broken != "a device is opened anew" || block_device().is_some();
        assert!(!can_tell || broke.contains(&broken), "{setting} breaks {broke:?}");
    }
}

/// Restarts the service with one more setting.
fn with(systemd: &Systemd, setting: &str) {
    let folder = "/run/systemd/system/fdstashd.service.d";
    systemd.works(&format!(
        "mkdir -p {folder} && printf '[Service]\\n{setting}\\n' >{folder}/test.conf && \
         systemctl daemon-reload && systemctl restart {SERVICE}"
    ));
}

/// What the daemon must be able to do with what it is given from anywhere, and whether it can.
fn needs(systemd: &Systemd) -> Vec<(&'static str, bool)> {
    let mut client = systemd.client();
    let folder = tempfile::tempdir().expect("a folder can be made");
    // On this side of the box, whose root file system the daemon never sees.
    let path = folder.path().join("outside");
    let outside = file(&path, "content");
    fs::remove_file(&path).expect("it is ours");
    let plain = Reopening::new(name("again"));
    let mut all = vec![
        ("a file outside of its view is opened anew", again(&mut client, &outside, &plain)),
        ("a file below a folder that it does not see is opened anew", again_in_box(systemd)),
    ];
    if let Some(device) = block_device() {
        all.push(("a device is opened anew", again(&mut client, &device, &plain)));
    }
    all.extend(needs_for_users(systemd, &plain));
    all
}

fn needs_for_users(systemd: &Systemd, plain: &Reopening) -> [(&'static str, bool); 4] {
    let (user, mut client) = (User::new(61001), systemd.client());
    let theirs = tempfile::tempfile().expect("a file can be made");
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::fs::fchmod(&theirs, Mode::RUSR | Mode::WUSR).expect("root can");
    rustix::fs::fchown(&theirs, Some(uid), Some(gid)).expect("root can");
    let read_only = user.run(|| reopened_by_path(&theirs));
    let mut of_user = user.run(|| systemd.client());
    let wider = Reopening { access: Some(Access::ReadWrite), ..plain.clone() };
    let traceless = Reopening { noatime: Some(true), ..plain.clone() };
    [
        ("a file of somebody else's is opened anew", again(&mut client, &theirs, plain)),
        (
            "a file of somebody else's is read without a trace",
            again(&mut client, &theirs, &traceless),
        ),
        ("who connects is known", client_is(&mut of_user, user.uid)),
        ("a user's own right is taken on", again(&mut of_user, &read_only, &wider)),
    ]
}

fn reopened_by_path(file: &File) -> File {
    let number = rustix::path::DecInt::from_fd(file);
    File::open(format!("/proc/thread-self/fd/{}", number.as_str())).expect("it is the user's")
}

fn block_device() -> Option<File> {
    let paths = fs::read_dir("/sys/class/block").ok()?.flatten();
    let mut devices =
        paths.filter_map(|entry| File::open(Path::new("/dev").join(entry.file_name())).ok());
    devices.next()
}

/// Whether what is given can be opened anew.
fn again(client: &mut Client, file: &File, how: &Reopening) -> bool {
    let given = Gift { may_reopen: how.access, ..gift("again", file) };
    if let Err(error) = client.give(&[given]) {
        println!("not given: {error}");
        return false;
    }
    let reopened = client.reopen(std::slice::from_ref(how));
    let _ = client.close(&names(["again"]));
    match reopened {
        Ok(handed) => identity(only(handed)) == identity(file),
        Err(error) => {
            println!("not opened: {error}");
            false
        }
    }
}

/// Whether the daemon takes a client for the user that it is.
fn client_is(client: &mut Client, uid: u32) -> bool {
    if client.give(&[gift("who", std::io::stderr())]).is_err() {
        // Whom the daemon does not know may give nothing.
        return false;
    }
    let listed = client.list(&pattern("who")).expect("a user can list");
    let known = listed.first().is_some_and(|entry| entry.giver.uid == uid);
    let _ = client.close(&names(["who"]));
    known
}

/// Whether a file of the box's own can be opened anew, below `/home`, which the daemon does not see.
fn again_in_box(systemd: &Systemd) -> bool {
    let line = "echo content >/home/file && fdstash give in-box /home/file && \
        fdstash reopen in-box --sync on && fdstash close in-box";
    systemd.run(line).status.success()
}

#[test]
fn its_policy_is_what_stands_in_etc_and_by_path_it_writes_where_its_unit_lets_it() {
    let Some(systemd) = running() else { return };
    systemd.works("mkdir -p /etc/fdstash /var/log/vms && echo old >/var/log/vms/log");
    systemd.works("fdstash give log /var/log/vms/log");
    systemd.works("mv /var/log/vms/log /var/log/vms/log.1 && echo new >/var/log/vms/log");
    let by_path = "fdstash reopen log --path /var/log/vms/log";
    let refusal = || String::from_utf8_lossy(&systemd.run(by_path).stderr).into_owned();
    let refused = |why: &str| {
        let said = refusal();
        assert!(said.contains(why), "{said}");
    };
    refused("not allowed to reopen by path");

    // A name that is to be looked up, in the sandbox.
    let rule =
        "users = ['root']\nnames = ['log']\nverbs = ['reopen by path']\nbelow = ['/var/log/vms']";
    fs::write(systemd.path("/etc/fdstash/policy.toml"), format!("[[allow]]\n{rule}\n")).unwrap();
    systemd.works("systemctl reload fdstashd.service");
    if systemd.version() < 253 {
        // That only sends the signal.
        wait_until(SOON, || !refusal().contains("not allowed to reopen by path"));
    }
    refused("ReadWritePaths=");
    systemd.works("fdstash reopen log --path /var/log/vms/log --access read");
    assert_eq!(systemd.works("fdstash take log --copy -- cat"), "new\n");

    systemd.works("fdstash close log && fdstash give log /var/log/vms/log.1");
    with(&systemd, "ReadWritePaths=/var/log/vms");
    systemd.works(by_path);
    assert_eq!(systemd.works("fdstash take log -- cat"), "new\n");
}

#[test]
fn a_user_has_one_too() {
    let Some(systemd) = booted() else { return };
    systemd.works(
        "systemd-sysusers --inline 'u somebody 61001 - /tmp/home' && mkdir -p /run/user && \
         install -d -o 61001 -g 61001 -m 700 /run/user/61001 /tmp/home && \
         systemd-run --quiet --uid=61001 --property=Delegate=yes --property=Type=notify \
         --setenv=XDG_RUNTIME_DIR=/run/user/61001 --setenv=HOME=/tmp/home /lib/systemd/systemd --user",
    );
    let by_user = |line: &str| {
        systemd.works(&format!(
            "cd / && XDG_RUNTIME_DIR=/run/user/61001 HOME=/tmp/home \
             setpriv --reuid=61001 --regid=61001 --clear-groups -- {line}"
        ))
    };

    by_user("systemctl --user enable --now fdstashd.socket");
    by_user("fdstash give a /etc/machine-id");
    by_user("fdstash reopen a --sync on");

    assert_eq!(by_user("fdstash take a -- wc -c"), "33\n");
    let status = by_user("systemctl --user status --no-pager fdstashd.service");
    assert!(status.contains("Active: active (running)"), "{status}");
    assert!(by_user("fdstash status").contains("/run/user/61001/fdstash/org.fdstash.Stash"));
}

/// How long systemd may be busy with nothing but loading its units again.
const RELOAD: Duration = Duration::from_millis(200);

#[test]
fn what_is_kept_is_still_there_after_a_restart() {
    let Some(systemd) = running() else { return };
    comes_back(&systemd, "systemctl restart fdstashd.service");
    // What comes back is kept as what was given is.
    comes_back(&systemd, "systemctl restart fdstashd.service");
}

#[test]
fn what_is_kept_is_still_there_after_all_its_processes_were_killed() {
    let Some(systemd) = running() else { return };
    comes_back(&systemd, KILL);
    comes_back(&systemd, &format!("systemctl daemon-reexec && {KILL}"));
    comes_back(&systemd, &format!("systemctl daemon-reload && {KILL}"));
}

#[test]
fn what_is_kept_is_still_there_after_one_of_its_processes_was_killed() {
    let Some(systemd) = running() else { return };
    let process = systemd.property(SERVICE, "MainPID");

    comes_back(
        &systemd,
        "kill -KILL $(grep -vx $(systemctl show --value -p MainPID fdstashd) \
        /sys/fs/cgroup/system.slice/fdstashd.service/cgroup.procs)",
    );
    assert_eq!(systemd.property(SERVICE, "MainPID"), process);
    assert_eq!(systemd.property(SERVICE, "NRestarts"), "0", "systemd has nothing to do with it");

    comes_back(&systemd, &KILL.replace("systemctl kill", "systemctl kill --kill-whom=main"));
}

#[test]
fn what_is_kept_is_still_there_after_a_stop_where_systemd_keeps_it() {
    let Some(systemd) = running() else { return };
    if systemd.version() < 254 {
        return skipped("systemd keeps what is stored over a stop from 254 on");
    }
    comes_back(&systemd, "systemctl stop fdstashd.service && systemctl start fdstashd.service");
}

#[test]
fn a_reload_of_the_service_goes_on_in_the_same_process_with_all_that_is_kept() {
    let Some(systemd) = running() else { return };
    let process = systemd.property(SERVICE, "MainPID");

    comes_back(&systemd, "systemctl reload fdstashd.service");

    assert_eq!(systemd.property(SERVICE, "MainPID"), process);
    assert_eq!(systemd.property(SERVICE, "NRestarts"), "0");
}

#[test]
fn what_is_given_right_before_a_reload_leaves_nothing_in_the_store_when_it_is_closed() {
    let Some(systemd) = running() else { return };
    for pause in [0, 10, 20, 30, 40] {
        systemd.works("systemctl restart fdstashd.service");
        let mut client = systemd.client();
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        client.give(&[gift("pipe", reader)]).unwrap();

        // Before, while and after it is mirrored.
        systemd.works(&format!("sleep 0.0{pause}; systemctl reload fdstashd.service"));
        wait_until(SOON, || mirror(&mut client).waiting == 0);
        client.close(&names(["pipe"])).unwrap();

        wait_until(SOON, || rustix::io::write(&writer, b"x") == Err(Errno::PIPE));
    }
}

#[test]
fn what_finds_no_room_at_the_start_stays_in_the_store_until_there_is_some() {
    let Some(systemd) = running() else { return };
    let mut client = systemd.client();
    let all: Vec<String> = (0..600).map(|number| format!("many/{number}")).collect();
    for some in all.chunks(200) {
        let open = |name: &String| gift(name, File::open("/dev/null").unwrap());
        client.give(&some.iter().map(open).collect::<Vec<_>>()).unwrap();
    }
    wait_until(SOON, || mirror(&mut client).waiting == 0);

    let folder = "/run/systemd/system/fdstashd.service.d";
    systemd.works(&format!(
        "mkdir -p {folder} && printf '[Service]\\nLimitNOFILE=300\\n' >{folder}/test.conf && \
         systemctl daemon-reload && systemctl restart {SERVICE} || true"
    ));
    let log = "journalctl --quiet --unit fdstashd.service | grep -q 'raise LimitNOFILE='";
    wait_until(SOON, || systemd.run(log).status.success());
    systemd.works(&format!(
        "rm {folder}/test.conf && systemctl daemon-reload && systemctl restart {SERVICE}"
    ));

    assert_eq!(systemd.client().list(&pattern("many/*")).unwrap().len(), 600);
}

#[test]
fn ten_thousand_entries_and_more_do_not_hold_up_systemd_and_all_come_back() {
    let Some(systemd) = running_alone() else { return };
    raise_open_files();
    let mut client = systemd.client();
    // More only where the kernel lets the service have more on their way than it may have open.
    let most = if may_exceed(&systemd) { client.statistics().unwrap().max_entries } else { 0 };
    let most = most.clamp(10_000, 30_000);
    let all: Vec<String> = (0..most).map(|number| format!("many/{number}")).collect();
    for some in all.chunks(200) {
        let open = |name: &String| gift(name, File::open("/dev/null").unwrap());
        client.give(&some.iter().map(open).collect::<Vec<_>>()).unwrap();
    }

    let took = systemd.works(
        "before=$(date +%s%N); systemctl daemon-reload; echo $((($(date +%s%N) - before) / 1000))",
    );
    systemd.works(KILL);

    let took = Duration::from_micros(took.trim().parse().unwrap());
    println!("a daemon-reload with {most} entries held takes {took:?}");
    assert!(took < RELOAD, "{took:?}");
    let back = systemd.client().list(&pattern("many/*")).unwrap().len();
    assert_eq!(back as u64, most);
}

/// Whether the service has CAP_SYS_RESOURCE, which its unit lets it have.
fn may_exceed(systemd: &Systemd) -> bool {
    const SYS_RESOURCE: u64 = 1 << 24;
    let process = systemd.property(SERVICE, "MainPID");
    let line = systemd.works(&format!("grep CapEff /proc/{process}/status"));
    let own = line.split_whitespace().last().and_then(|hex| u64::from_str_radix(hex, 16).ok());
    own.expect("capabilities") & SYS_RESOURCE != 0
}

#[test]
fn killed_at_any_moment_it_lacks_only_what_came_last() {
    let Some(systemd) = running() else { return };
    let (began, mut client) = (Instant::now(), systemd.client());
    let giving = thread::spawn(move || {
        let mut given: Vec<(String, Instant)> = Vec::new();
        // On a machine that is busy with other things it takes longer until there are some.
        while began.elapsed() < Duration::from_millis(1500) || given.len() < 200 {
            let text = format!("one/{}", given.len());
            client.give(&[gift(&text, File::open("/dev/null").unwrap())]).unwrap();
            given.push((text, Instant::now()));
        }
        given
    });
    wait_until(SOON, || systemd.client().list(&pattern("one/*")).unwrap().len() > 100);

    systemd.works("systemctl kill --signal=KILL fdstashd.service");
    let killed = Instant::now();

    let given = giving.join().unwrap();
    let back = systemd.client().list(&pattern("one/*")).unwrap();
    let back: BTreeSet<String> = back.iter().map(|entry| entry.name.to_string()).collect();
    let missing = given.iter().filter(|(text, _)| !back.contains(text));
    let ages: Vec<_> = missing.map(|(_, at)| killed.saturating_duration_since(*at)).collect();
    let oldest = ages.iter().max().copied().unwrap_or_default();
    println!("of {} entries {} are missing, {oldest:?} old at most", given.len(), ages.len());
    assert!(given.len() > 200 && oldest < Duration::from_secs(1), "{oldest:?}");
    assert_eq!(systemd.property(SERVICE, "NRestarts"), "1");
}

#[test]
fn what_the_store_has_no_room_for_is_told_and_what_has_room_comes_back() {
    let Some(systemd) = running() else { return };
    with(&systemd, "FileDescriptorStoreMax=1\\nEnvironment=FDSTORE=1");
    let mut client = systemd.client();
    let all: Vec<String> = (0..3000).map(|number| format!("many/{number}")).collect();
    for some in all.chunks(200) {
        let open = |name: &String| gift(name, File::open("/dev/null").unwrap());
        client.give(&some.iter().map(open).collect::<Vec<_>>()).unwrap();
    }

    // A bundle has 1,008; a message has 252 at most, and one that does not fit is not cut.
    wait_until(SOON, || mirror(&mut client).entries > 1008 - 252);

    let told = mirror(&mut client);
    assert_eq!(told.bundles, 1);
    assert_eq!(told.entries + told.waiting, 3000);
    assert!(told.behind_usec > 0);
    let log = "journalctl --quiet --unit fdstashd.service | grep -q 'cannot mirror everything'";
    // Where it found no room among what is audited, it is said again after ten seconds.
    wait_until(2 * SOON, || systemd.run(log).status.success());
    let most: Vec<_> = all[100..].iter().map(|text| name(text)).collect();
    client.close(&most).unwrap();
    wait_until(SOON, || mirror(&mut client).waiting == 0);
    systemd.works(KILL);
    assert_eq!(systemd.client().list(&pattern("many/*")).unwrap().len(), 100);
}

#[test]
fn what_is_closed_is_soon_closed_in_the_store_and_systemd_is_told_nothing() {
    let Some(systemd) = running() else { return };
    let mut client = systemd.client();
    let (longest, puts) = (0..20).fold((Duration::ZERO, 0), |(longest, _), _| {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        client.give(&[gift("pipe", reader)]).unwrap();
        wait_until(SOON, || mirror(&mut client).waiting == 0);

        let began = Instant::now();
        client.close(&names(["pipe"])).unwrap();
        // Nobody has the other end any more.
        wait_until(SOON, || rustix::io::write(&writer, b"x") == Err(Errno::PIPE));

        (longest.max(began.elapsed()), mirror(&mut client).puts)
    });
    println!("what was closed was so in systemd's store after {longest:?} at most");
    assert!(puts <= 3, "20 entries came and went, and systemd was told {puts} times");
}

fn mirror(client: &mut Client) -> Mirror {
    client.statistics().expect("it answers").mirror.expect("there is a store")
}

/// Kills every process of the service, at a moment when systemd's store is not behind, and returns when
/// systemd has seen it.
const KILL: &str = "until fdstash status --json | grep --quiet '\"waiting\":0'; do sleep 0.01; done; \
    was=$(systemctl show --value --property=NRestarts fdstashd.service); \
    systemctl kill --signal=KILL fdstashd.service; \
    for _ in $(seq 1000); do \
    [ $(systemctl show --value --property=NRestarts fdstashd.service) = $was ] || exit 0; \
    sleep 0.01; done; exit 1";

/// One of each that systemd by itself would lose, and of what is kept most.
const KINDS: [&str; 7] = ["file", "same", "path", "hung-up", "pipe", "memfd", "socket"];

fn one_of_each() -> std::io::Result<[OwnedFd; 7]> {
    let file: OwnedFd = tempfile::tempfile()?.into();
    let same = file.try_clone()?;
    let path = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let (hung_up, _) = UnixStream::pair()?;
    let (pipe, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::write(writer, b"unread")?;
    let memfd = rustix::fs::memfd_create("memfd", rustix::fs::MemfdFlags::CLOEXEC)?;
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    Ok([file, same, path, hung_up.into(), pipe, memfd, socket.into()])
}

/// Gives one of each, so that nobody but the stash has them, has something happen, and takes them all.
#[track_caller]
fn comes_back(systemd: &Systemd, after: &str) {
    // The longest names that there are.
    let all = KINDS.map(|kind| name(&format!("{kind:n<255}")));
    let fds = one_of_each().expect("there is one of each");
    let before = fds.each_ref().map(identity);
    let gifts = all.iter().zip(fds).map(|(name, fd)| Gift::new(name.clone(), fd));
    systemd.client().give(&gifts.collect::<Vec<_>>()).expect("all can be given");

    systemd.works(after);

    let mut client = systemd.client();
    let back = client.take(&all).expect("all are still there");
    let now: Vec<_> = back.iter().map(|handed| identity(&handed.fd)).collect();
    assert_eq!(now, before, "{after}");
    let [mut file, mut same, _, _, mut pipe, ..] =
        <[_; 7]>::try_from(back).expect("it is seven").map(|handed| File::from(handed.fd));
    file.write_all(b"content").expect("it is a file");
    let place = same.stream_position().expect("it is a file");
    assert_eq!(place, 7, "two names of one description: {after}");
    let mut unread = String::new();
    pipe.read_to_string(&mut unread).expect("it is a pipe");
    assert_eq!(unread, "unread", "{after}");
    assert_eq!(client.statistics().expect("it answers").entries, 0);
}
