//! A daemon of the test's own.

use std::{
    env,
    ffi::OsString,
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use fdstash::{Statistics, blocking::Client};
use rustix::{
    path::DecInt,
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;

use crate::{Raw, SOON, User, wait_until};

/// A program of this workspace, built: `fdstashd`, `fdstash` or `examples/vmm`.
///
/// # Panics
///
/// If it is not.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let here = env::current_exe().expect("a test knows where it is");
    // A test is in target/<profile>/deps.
    let profile = here.ancestors().nth(2).expect("a test is in a folder of the target");
    let path = profile.join(name);
    assert!(
        path.exists(),
        "{} is not built: run `make test`, or before the tests \
         `cargo build --workspace --bins --examples`",
        path.display()
    );
    path
}

/// What a daemon shall be like.
#[derive(Debug, Default)]
pub struct Builder {
    args: Vec<OsString>,
    user: Option<User>,
    open_files: Option<u64>,
}

impl Builder {
    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Run by another user, which takes root.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }

    /// With so few descriptors at most.
    #[must_use]
    pub fn open_files(mut self, most: u64) -> Self {
        self.open_files = Some(most);
        self
    }

    /// Starts it in a folder of its own, and returns when it answers.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[must_use]
    pub fn spawn(self) -> Daemon {
        let folder = Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new().prefix("fdstash-").permissions(folder).tempdir();
        let folder = folder.expect("a folder can be made");
        let socket = folder.path().join("stash");
        let log = folder.path().join("log");
        // By its descriptor: another user may not be able to reach its path.
        let binary = File::open(program("fdstashd")).expect("the daemon can be opened");
        let path = format!("/proc/self/fd/{}", DecInt::from_fd(&binary).as_str());
        let mut command = match self.open_files {
            None => Command::new(path),
            Some(most) => {
                let mut shell = Command::new("/bin/sh");
                let then = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
                shell.arg("-c").arg(then).arg(program("fdstashd"));
                shell
            }
        };
        command.arg("--socket").arg(&socket).args(["--log", "debug"]).args(&self.args);
        if let Some(user) = &self.user {
            std::os::unix::fs::chown(folder.path(), Some(user.uid), Some(user.gid))
                .expect("root can give a folder away");
            command.uid(user.uid).gid(user.gid);
        }
        let stderr = File::create(&log).expect("a log can be made");
        let child = command.stdin(Stdio::null()).stderr(stderr).spawn();
        let child = child.expect("the daemon can be started");
        let daemon = Daemon { child, socket, log, folder, has_ended: false };
        wait_until(SOON, || UnixStream::connect(&daemon.socket).is_ok());
        daemon
    }
}

/// A running daemon, killed when it is dropped.
///
/// A test in which it ends by itself, or panics, fails.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    folder: TempDir,
    has_ended: bool,
}

impl Daemon {
    /// One without particularities.
    #[must_use]
    pub fn spawn() -> Self {
        Builder::default().spawn()
    }

    /// One with some.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A path in its folder, which every user can reach.
    #[must_use]
    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// A client of the library's, as the user who runs the test.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::connect_to(&self.socket).expect("the daemon can be reached")
    }

    /// A client of the library's, as another user.
    #[must_use]
    pub fn client_as(&self, user: &User) -> Client {
        user.run(|| self.client())
    }

    /// A peer that says whatever it is told to.
    #[must_use]
    pub fn raw(&self) -> Raw {
        Raw::connect(&self.socket)
    }

    /// The command `fdstash`, told of this daemon.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(program("fdstash"));
        command.env("FDSTASH_SOCKET", &self.socket);
        command
    }

    /// Its figures.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.client().statistics().expect("the daemon has statistics")
    }

    /// How many descriptors it has open.
    #[must_use]
    pub fn open_descriptors(&self) -> usize {
        fs::read_dir(self.proc("fd")).map_or(0, Iterator::count)
    }

    /// How much of the machine's memory it takes, in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(self.proc("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.unwrap_or_default() << 10
    }

    /// How long it has kept a processor busy.
    #[must_use]
    pub fn busy(&self) -> Duration {
        let stat = fs::read_to_string(self.proc("stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let fields = after_name.split_whitespace();
        // utime and stime, in hundredths of a second.
        let ticks: u64 =
            fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How many descriptors it has open beside its connections.
    #[must_use]
    pub fn held(&self) -> usize {
        let connections = usize::try_from(self.statistics().connections).unwrap_or_default();
        self.open_descriptors().saturating_sub(connections)
    }

    /// The same, when it has been at rest for a while.
    #[must_use]
    pub fn held_at_rest(&self) -> usize {
        let (mut last, mut times) = (0, 0);
        wait_until(SOON, || {
            let held = self.held();
            times = if held == last { times + 1 } else { 0 };
            last = held;
            times == 5
        });
        last
    }

    /// Waits until it has so many descriptors open beside its connections, and nobody but who asks is
    /// connected.
    #[track_caller]
    pub fn settles_at(&self, held: usize) {
        wait_until(SOON, || self.held() == held && self.statistics().connections == 1);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the daemon can be sent a signal");
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.has_ended = true;
        wait_until(SOON, || self.child.try_wait().is_ok_and(|ended| ended.is_some()));
        self.child.wait().expect("it has ended")
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        self.has_ended = true;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.child.id()).into()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if thread::panicking() {
            eprintln!("the daemon's log:\n{log}");
            return;
        }
        assert!(!log.contains("panicked"), "the daemon has panicked:\n{log}");
        if !self.has_ended {
            assert!(ended.is_none(), "the daemon has ended by itself, {ended:?}:\n{log}");
        }
    }
}
