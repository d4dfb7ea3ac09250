//! What nobody gets out of the daemon's own processes, and what the daemon cannot be made to do: they are
//! closed to others of their user, and what they have for themselves is not kept for anybody.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            net::{UnixDatagram, UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use fdstash::{Error, Refusal};
use fdstash_proto::socket::{self, Received};
use kit::{Daemon, SOON, User, file, gift, identity, is_root, names, only, skipped, wait_until};
use nix::sys::ptrace;
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    fs::{MemfdFlags, memfd_create},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
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
