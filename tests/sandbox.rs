//! What nobody gets out of the daemon's own processes, and what the daemon cannot be made to do: they are
//! closed to others of their user, and what they have for themselves is not kept for anybody. It is one file with
//! the service manager that shows what the daemon stores.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net::{UnixDatagram, UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use fdstash::{Error, Refusal, Reopening};
use fdstash_proto::socket::{self, Received};
use kit::{
    Daemon, SOON, User, file, gift, identity, is_root, name, names, only, skipped, wait_until,
};
use nix::sys::ptrace;
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    fs::{MemfdFlags, ioctl_blksszget, memfd_create},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open},
};
use serde_json::json;
use tempfile::TempDir;

const ALICE: u32 = 61001;

/// Whether the test may do what only root may; says so if not.
fn is_privileged() -> bool {
    if !is_root() {
        skipped("to be other users, and to get at the daemon's descriptors, takes root");
    }
    is_root()
}

/// Which ways into a process are open to a user: its descriptors by `/proc`, one of them by
/// `pidfd_getfd`, and all of it by tracing it.
fn ways_into(user: &User, pid: Pid) -> [bool; 3] {
    user.run(|| {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid())).is_ok();
        let process = pidfd_open(pid, PidfdFlags::empty()).expect("everybody can watch a process");
        let one = pidfd_getfd(process, 0, PidfdGetfdFlags::empty()).is_ok();
        // Ends with this thread.
        let traced = nix::unistd::Pid::from_raw(pid.as_raw_pid());
        let traced = ptrace::seize(traced, ptrace::Options::empty()).is_ok();
        [descriptors, one, traced]
    })
}

/// A process of a user's that is like any other, until it is dropped.
struct Plain(Child);

impl Plain {
    fn of(user: &User) -> Self {
        let mut cat = Command::new("cat");
        cat.uid(user.uid).gid(user.gid).stdin(Stdio::piped()).stdout(Stdio::null());
        Self(cat.spawn().expect("there is a cat"))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the machine keeps processes of one user from each other by itself.
fn is_tracing_restricted() -> bool {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    !matches!(scope.trim(), "" | "0")
}

#[test]
fn no_process_of_the_same_user_gets_into_one_of_the_daemons() {
    if !is_privileged() {
        return;
    }
    let alice = User::new(ALICE);
    let plain = Plain::of(&alice);
    let open = !is_tracing_restricted();
    assert_eq!(ways_into(&alice, plain.pid()), [true, open, open]);
    let mut daemon = Daemon::builder().user(alice.clone()).own_program().spawn();
    let closed = |daemon: &Daemon, when: &str| {
        let (server, keeper) = daemon.server();
        for (process, pid) in [("server", server), ("keeper", keeper)] {
            assert_eq!(ways_into(&alice, pid), [false; 3], "the {process} {when}");
        }
    };

    closed(&daemon, "at first");
    daemon.kill_server();
    closed(&daemon, "after the death of a server");
    daemon.upgrade();
    closed(&daemon, "after an upgrade");
    daemon.kill_keeper();
    let spare = spare_of(&daemon);
    assert_eq!(ways_into(&alice, spare), [false; 3], "the spare keeper");
    daemon.kill_server();
    assert_eq!(daemon.server().1, spare);
    closed(&daemon, "after the spare keeper has gone on");
}

/// The spare keeper that a server has made last.
fn spare_of(daemon: &Daemon) -> Pid {
    let mut spare = None;
    wait_until(SOON, || {
        let log = daemon.log();
        let said = log.lines().rev().find_map(|line| line.split(" spare=").nth(1));
        spare = said.and_then(|rest| rest.split(' ').next()?.parse().ok()).and_then(Pid::from_raw);
        spare.is_some()
    });
    spare.expect("it was waited for")
}

/// A descriptor of another process.
fn get(pid: Pid, number: i32) -> OwnedFd {
    let process = pidfd_open(pid, PidfdFlags::empty()).expect("the process lives");
    pidfd_getfd(process, number, PidfdGetfdFlags::empty()).expect("root may")
}

/// What a process has open: the numbers, and what they point at.
fn open_in(pid: Pid) -> Vec<(i32, String)> {
    let folder = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid())).expect("root may look");
    let entries = folder.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
    });
    entries.collect()
}

/// What is refused of a Give of this one descriptor, if it is.
fn refused(daemon: &Daemon, fd: impl AsFd) -> Option<Refusal> {
    match daemon.client().give(&[gift("own", fd)]) {
        Ok(_) => None,
        Err(Error::Refused(refusal)) => Some(refusal),
        Err(error) => panic!("no refusal: {error}"),
    }
}

fn its_own() -> Option<Refusal> {
    Some(Refusal::InvalidParameter { parameter: "entries[0].fileDescriptor".into() })
}

#[test]
fn nothing_that_the_daemon_has_for_itself_is_kept() {
    if !is_privileged() {
        return;
    }
    let manager = Manager::new();
    let place = &manager.place;
    let daemon = Daemon::builder().env("NOTIFY_SOCKET", place).env("FDSTORE", "10").spawn();
    let (_other, ours) = UnixStream::pair().unwrap();
    daemon.client().give(&[gift("kept", &ours)]).unwrap();
    wait_until(SOON, || daemon.statistics().mirror.is_some_and(|mirror| mirror.entries == 1));
    daemon.kill_server();
    wait_until(SOON, || daemon.statistics().mirror.is_some_and(|mirror| mirror.entries == 1));
    let server = daemon.server().0;
    // Its standard ones others have too; what it keeps was given; its keeper everybody may watch; and
    // a /dev/null is nobody's own.
    let is_for_all =
        |number: i32, target: &str| number < 3 || target == "/dev/null" || target.contains("pidfd");
    let own: Vec<_> = open_in(server)
        .into_iter()
        .filter(|(number, target)| !is_for_all(*number, target))
        .map(|(number, target)| (get(server, number), target))
        .filter(|(fd, _)| identity(fd) != identity(&ours))
        .collect();

    let kinds = ["fdstash-journal", "fdstash-policy", "eventpoll", "eventfd", "timerfd", "socket:"];
    for kind in kinds {
        assert!(own.iter().any(|(_, target)| target.contains(kind)), "no {kind} in {own:?}");
    }
    // The listening socket twice, two pairs of tokio's, and of the mirror's two bundles both ends.
    assert!(own.iter().filter(|(_, target)| target.starts_with("socket:")).count() >= 6);
    for (fd, target) in &own {
        assert_eq!(refused(&daemon, fd), its_own(), "{target}");
    }
    let stored = manager.stored.lock().unwrap();
    // Those of the server that was killed the next one has removed.
    let own_bundle =
        stored.iter().find(|one| own.iter().any(|(fd, _)| identity(fd) == identity(one)));
    assert_eq!(refused(&daemon, own_bundle.expect("it has stored one")), its_own());
}

/// A service manager that keeps what it is given to store.
struct Manager {
    stored: Arc<Mutex<Vec<OwnedFd>>>,
    place: PathBuf,
    _folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let place = folder.path().join("notify");
        let socket = UnixDatagram::bind(&place).expect("a socket can be bound");
        let stored: Arc<Mutex<Vec<OwnedFd>>> = Arc::default();
        let all = Arc::clone(&stored);
        // Ends with the test's process.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                // What does not say that it is to be stored is closed: a barrier waits for that.
                let mut fds = Vec::new();
                let received = socket::receive(&socket, &mut buffer, &mut fds);
                let is_to_be_stored = |count: usize| buffer[..count].starts_with(b"FDSTORE=1");
                if matches!(received, Ok(Received::Bytes(count)) if is_to_be_stored(count)) {
                    all.lock().expect("nobody panics here").extend(fds);
                }
            }
        });
        Self { stored, place, _folder: folder }
    }
}

/// Where a socket points is written down a moment after it was given: one that goes just then has gone, in
/// the store as well, where nothing else takes it along.
#[test]
fn a_socket_that_goes_a_moment_after_it_came_leaves_the_store_as_well() {
    let manager = Manager::new();
    let place = &manager.place;
    let daemon = Daemon::builder().env("NOTIFY_SOCKET", place).env("FDSTORE", "100").spawn();
    let mut client = daemon.client();
    let (_other, ours) = UnixStream::pair().unwrap();
    // Of so many it takes the daemon longer to ask than to have the first of them stored.
    let gifts: Vec<_> = (0..2000).map(|at| gift(&format!("socket-{at}"), &ours)).collect();
    let all: Vec<_> = gifts.iter().map(|gift| gift.name.clone()).collect();
    let mirrored = || daemon.statistics().mirror.map_or(0, |mirror| mirror.entries);

    for round in 0..10 {
        client.give(&gifts).unwrap();
        wait_until(SOON, || mirrored() > 0);
        let at = 1990 - 100 * round;
        client.close(&all[at..=at]).unwrap();

        wait_until(SOON, || mirrored() == 1999);

        client.close(&all[..at]).unwrap();
        client.close(&all[at + 1..]).unwrap();
        wait_until(SOON, || mirrored() == 0);
    }
}

#[test]
fn neither_end_of_a_connection_is_kept() {
    let daemon = Daemon::spawn();
    let raw = daemon.raw();
    let mut other = daemon.raw();
    let gone = daemon.raw();
    let end_of_gone = gone.stream().try_clone().unwrap();
    end_of_gone.shutdown(std::net::Shutdown::Both).unwrap();

    assert_eq!(refused(&daemon, raw.stream()), its_own(), "another's");
    assert_eq!(refused(&daemon, &end_of_gone), its_own(), "one that has ended");
    let own = other.stream().try_clone().unwrap();
    let answer = other.give(&["own"], &[own]);
    assert_eq!(answer["error"], "org.varlink.service.InvalidParameter", "{answer}");
    assert_eq!(answer["parameters"], json!({"parameter": "entries[0].fileDescriptor"}));
    // One among others: none is kept.
    let plain = file(daemon.path("plain"), "");
    let answer = other.give(&["a", "b"], &[plain.as_fd(), raw.stream().as_fd()]);
    assert_eq!(answer["parameters"], json!({"parameter": "entries[1].fileDescriptor"}));
    assert_eq!(daemon.statistics().entries, 0);

    // So the end of each is seen, with what hangs on it.
    drop((raw, other));
    wait_until(SOON, || daemon.statistics().connections == 1);
}

#[test]
fn what_only_looks_like_the_daemons_own_is_kept() {
    let daemon = Daemon::spawn();
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("other")).unwrap();
    let connected = UnixStream::connect(folder.path().join("other")).unwrap();
    let flags = SocketFlags::CLOEXEC;
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let memory = memfd_create("fdstash-journal", MemfdFlags::CLOEXEC).unwrap();
    let all: [(&str, OwnedFd); 8] = [
        ("listener", listener.into()),
        ("connection", connected.into()),
        ("one end", one),
        ("other end", other),
        ("memory", memory),
        ("epoll", epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()),
        ("event", eventfd(0, EventfdFlags::CLOEXEC).unwrap()),
        ("process", pidfd_open(daemon.pid(), PidfdFlags::empty()).unwrap()),
    ];

    for (what, fd) in &all {
        assert_eq!(refused(&daemon, fd), None, "{what}");
        let back = only(daemon.client().take(&names(["own"])).unwrap());
        assert_eq!(identity(back), identity(fd), "{what}");
    }
}

/// What the kernel says of a thread's sandbox: whether it can gain power by an exec, and how many filters
/// its system calls pass.
fn sandbox_of(status: &Path) -> (bool, u32) {
    let status = fs::read_to_string(status).expect("everybody may read it");
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|value| value.trim().parse::<u32>().ok())
    };
    let filters = value("Seccomp_filters:").or(value("Seccomp:"));
    (value("NoNewPrivs:") == Some(1), filters.unwrap_or_default())
}

fn sandbox_of_process(pid: Pid) -> (bool, u32) {
    sandbox_of(Path::new(&format!("/proc/{}/status", pid.as_raw_pid())))
}

/// What a server says when it enters its sandbox on a kernel that has all that it needs.
const IN_SANDBOX: [&str; 2] =
    ["the server's system calls are filtered", "confined by Landlock status=FullyEnforced"];

#[test]
fn every_thread_of_a_server_is_in_the_sandbox_and_its_keeper_is_not() {
    let daemon = Daemon::spawn();
    let kept = file(daemon.path("kept"), "");
    // So that there are threads of each sort.
    daemon.client().give(&[gift("a", &kept)]).unwrap();
    only(daemon.client().copy_fresh(&names(["a"])).unwrap());
    daemon.client().close(&names(["a"])).unwrap();
    let (server, keeper) = daemon.server();
    let outside = sandbox_of_process(keeper);

    assert_eq!(outside, sandbox_of(Path::new("/proc/self/status")));
    let threads = fs::read_dir(format!("/proc/{}/task", server.as_raw_pid())).unwrap().flatten();
    let threads: Vec<_> = threads.map(|thread| sandbox_of(&thread.path().join("status"))).collect();
    assert!(threads.len() > 1);
    for thread in threads {
        assert_eq!(thread, (true, outside.1 + 1));
    }
    let log = daemon.log();
    assert!(log.contains(IN_SANDBOX[0]), "{log}");
    if !log.contains(IN_SANDBOX[1]) {
        skipped("the kernel has not all of Landlock");
    }
}

#[test]
fn what_is_opened_anew_in_the_sandbox_is_no_less_for_its_clients() {
    let daemon = Daemon::spawn();
    let plain = file(daemon.path("plain"), "content");
    let mut client = daemon.client();
    client.give(&[gift("a", &plain)]).unwrap();

    let handed = only(client.reopen(&[Reopening::new(name("a"))]).unwrap());
    handed.set_len(3).unwrap();
    assert_eq!(fs::read(daemon.path("plain")).unwrap(), b"con");

    let devices = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let mut devices =
        devices.filter_map(|entry| File::open(Path::new("/dev").join(entry.file_name())).ok());
    let Some(device) = devices.next() else {
        return skipped("there is no block device that could be opened");
    };
    client.give(&[gift("device", &device)]).unwrap();
    let handed = only(client.reopen(&[Reopening::new(name("device"))]).unwrap());
    assert_eq!(ioctl_blksszget(&handed), ioctl_blksszget(&device));
    assert!(ioctl_blksszget(&handed).is_ok());
}

#[test]
fn a_keeper_that_came_out_of_the_sandbox_does_all_that_a_keeper_does() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    fs::write(&policy, "").unwrap();
    let mut daemon = Daemon::builder().own_program().arg("--policy").arg(&policy).spawn();
    let kept = file(daemon.path("kept"), "");
    daemon.client().give(&[gift("a", &kept)]).unwrap();
    let outside = sandbox_of_process(daemon.pid()).1;

    daemon.kill_keeper();
    for round in 1..4 {
        let spare = spare_of(&daemon);
        daemon.kill_server();
        let (server, keeper) = daemon.server();
        assert_eq!(keeper, spare);
        // What has been shut in once stays so, and shuts in once more what it starts.
        assert_eq!(sandbox_of_process(keeper), (true, outside + round));
        assert_eq!(sandbox_of_process(server), (true, outside + round + 1));

        let rule = "[[allow]]\nusers = ['root']\nnames = ['a']\nverbs = ['list']\n";
        fs::write(&policy, rule.repeat(round as usize)).unwrap();
        let servers = daemon.servers();
        kill_process(keeper, Signal::HUP).unwrap();
        wait_until(SOON, || daemon.servers() > servers);
        assert!(daemon.log().contains(&format!("read the policy allow={round}")));
        let fresh = only(daemon.client().copy_fresh(&names(["a"])).unwrap());
        assert_eq!(identity(fresh), identity(&kept));
        if round < 3 {
            let before = daemon.log().matches(" spare=").count();
            kill_process(daemon.server().1, Signal::KILL).unwrap();
            wait_until(SOON, || daemon.log().matches(" spare=").count() > before);
        }
    }

    kill_process(daemon.server().1, Signal::TERM).unwrap();
    wait_until(SOON, || !daemon.socket().exists() && daemon.processes() == 0);
}
