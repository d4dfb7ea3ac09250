//! A daemon of the test's own.

use std::{
    ffi::OsString,
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use fdstash::{Statistics, blocking::Client};
use rustix::{
    path::DecInt,
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;

use crate::{Group, Raw, SOON, User, install_program, program, program_with_steps, wait_until};

/// What a daemon shall be like.
#[derive(Debug, Default)]
pub struct Builder {
    args: Vec<OsString>,
    user: Option<User>,
    open_files: Option<u64>,
    crashing: Option<String>,
    has_own_program: bool,
    is_capable: bool,
    variables: Vec<(String, OsString)>,
    launcher: Vec<&'static str>,
    maps: Option<[String; 2]>,
}

impl Builder {
    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// With one more variable in its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((key.to_owned(), value.into()));
        self
    }

    /// Run by another user, which takes root. What it is started under has to see to that itself.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }

    /// With those capabilities that the system's unit has it act for other users with, run from a file of
    /// its own. It takes root.
    #[must_use]
    pub fn capable(mut self) -> Self {
        self.is_capable = true;
        self.has_own_program = true;
        self
    }

    /// With so few descriptors at most.
    #[must_use]
    pub fn open_files(mut self, most: u64) -> Self {
        self.open_files = Some(most);
        self
    }

    /// Whose servers die at steps as the plan says (`daemon/src/steps.rs`), and which runs from a file
    /// of its own.
    #[must_use]
    pub fn crashing(mut self, plan: String) -> Self {
        self.crashing = Some(plan);
        self.has_own_program = true;
        self
    }

    /// That runs from a file of its own, [`Daemon::program`].
    #[must_use]
    pub fn own_program(mut self) -> Self {
        self.has_own_program = true;
        self
    }

    /// Started by another program, which gets the daemon's, and its arguments, behind these.
    #[must_use]
    pub fn under(mut self, launcher: &[&'static str]) -> Self {
        self.launcher = launcher.to_vec();
        self.own_program()
    }

    /// In a user namespace of its own, in which these users and groups have numbers, as `uid_map` and
    /// `gid_map` have it. It takes root.
    #[must_use]
    pub fn in_user_namespace(mut self, users: &str, groups: &str) -> Self {
        self.maps = Some([users, groups].map(str::to_owned));
        // Whoever it is there is settled at the exec.
        const WAIT: &str =
            "until grep -q . /proc/self/gid_map; do sleep 0.01; done; exec \"$0\" \"$@\"";
        self.under(&["unshare", "--user", "sh", "-c", WAIT])
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
        let built =
            if self.crashing.is_some() { program_with_steps() } else { program("fdstashd") };
        let binary = File::open(&built).expect("the daemon can be opened");
        let mut path = format!("/proc/self/fd/{}", DecInt::from_fd(&binary).as_str());
        if self.has_own_program {
            let own = folder.path().join("fdstashd");
            install_program(&built, &own);
            path = own.to_str().expect("a plain path").to_owned();
        }
        let mut command = match (self.open_files, self.launcher.split_first()) {
            (None, None) if self.is_capable => {
                capable(path, self.user.as_ref().expect("it has a user"))
            }
            (None, None) => Command::new(path),
            (None, Some((launcher, args))) => {
                let mut command = Command::new(launcher);
                command.args(args).arg(path);
                command
            }
            (Some(most), _) => {
                let mut shell = Command::new("/bin/sh");
                let then = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
                let path = if self.has_own_program { path.into() } else { built };
                shell.arg("-c").arg(then).arg(path);
                shell
            }
        };
        command.arg("--socket").arg(&socket).args(["--log", "debug"]).args(&self.args);
        command.envs(self.variables);
        if let Some(plan) = &self.crashing {
            command.env("FDSTASH_CRASH", plan);
        }
        if let Some(user) = &self.user {
            std::os::unix::fs::chown(folder.path(), Some(user.uid), Some(user.gid))
                .expect("root can give a folder away");
            if !self.is_capable && self.launcher.is_empty() {
                command.uid(user.uid).gid(user.gid);
            }
        }
        let stderr = File::create(&log).expect("a log can be made");
        let processes = Group::spawn(command.stdin(Stdio::null()).stderr(stderr));
        if let Some(maps) = &self.maps {
            map(processes.pid(), maps);
        }
        let daemon = Daemon { processes, socket, log, folder, has_ended: false };
        wait_until(SOON, || UnixStream::connect(&daemon.socket).is_ok() && daemon.servers() > 0);
        if self.crashing.is_some() {
            // The first of its servers lives on.
            kill_process(daemon.server().0, Signal::KILL).expect("the server can be killed");
        }
        daemon
    }
}

/// What runs a program as a user with some of root's power.
fn capable(path: String, user: &User) -> Command {
    const POWER: &str = "-all,+dac_override,+fowner,+setgid,+setuid";
    let mut setpriv = Command::new("setpriv");
    setpriv.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
    setpriv.args(["--clear-groups", "--no-new-privs"]);
    setpriv.arg(format!("--inh-caps={POWER}")).arg(format!("--ambient-caps={POWER}"));
    setpriv.arg("--").arg(path);
    setpriv
}

/// A running daemon, killed with all its processes when it is dropped.
///
/// A test in which it ends by itself, or panics, fails.
#[derive(Debug)]
pub struct Daemon {
    processes: Group,
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

    /// Where its program stands, if that is its own.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.path("fdstashd")
    }

    /// Its first process, the keeper.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.processes.pid()
    }

    /// The process that serves, and the one that keeps for it, as it has said last.
    ///
    /// # Panics
    ///
    /// If none has said so yet.
    #[must_use]
    pub fn server(&self) -> (Pid, Pid) {
        let log = self.log();
        let line = log.lines().rev().find(|line| line.contains("server ready"));
        let line = line.expect("a server is ready");
        let number = |key: &str| {
            let value = line.split(key).nth(1).and_then(|rest| rest.split(' ').next());
            let number = value.and_then(|value| value.parse().ok());
            number.and_then(Pid::from_raw).expect("a process has a number")
        };
        (number(" pid="), number(" keeper="))
    }

    /// How many servers there have been.
    #[must_use]
    pub fn servers(&self) -> usize {
        self.log().matches("server ready").count()
    }

    /// Ends the server without a warning, and waits until the next one serves.
    pub fn kill_server(&self) {
        let before = self.servers();
        kill_process(self.server().0, Signal::KILL).expect("the server can be killed");
        wait_until(SOON, || self.servers() > before);
    }

    /// Has it replaced by what stands at its path, and waits until that serves.
    pub fn upgrade(&self) {
        let before = self.servers();
        self.signal(Signal::HUP);
        wait_until(SOON, || self.servers() > before);
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
        let folder = of_process(self.pid(), "fd");
        // The folder's size is their number (Linux 6.2), also for who may not look into it.
        let size = fs::metadata(&folder).map_or(0, |folder| folder.len());
        let size = usize::try_from(size).unwrap_or_default();
        if size > 0 { size } else { fs::read_dir(folder).map_or(0, Iterator::count) }
    }

    /// How much of the machine's memory it takes, in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(of_process(self.server().0, "status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.unwrap_or_default() << 10
    }

    /// How long it has kept a processor busy.
    #[must_use]
    pub fn busy(&self) -> Duration {
        let stat = fs::read_to_string(of_process(self.server().0, "stat")).unwrap_or_default();
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
        self.processes.wait()
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        self.has_ended = true;
        self.processes.kill();
    }

    /// Ends its first keeper without a warning. The server serves on.
    pub fn kill_keeper(&mut self) {
        self.has_ended = true;
        self.processes.kill_first();
    }

    /// How many of its processes live.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.processes.alive()
    }
}

/// Says who has which number in a process's user namespace, when it has one of its own.
fn map(pid: Pid, [users, groups]: &[String; 2]) {
    let namespace = |process: &Path| fs::read_link(process.join("ns/user")).ok();
    let own = namespace(Path::new("/proc/self"));
    wait_until(SOON, || namespace(&of_process(pid, "")) != own);
    fs::write(of_process(pid, "uid_map"), users).expect("root can map users");
    fs::write(of_process(pid, "gid_map"), groups).expect("root can map groups");
}

fn of_process(pid: Pid, file: &str) -> PathBuf {
    format!("/proc/{}/{file}", pid.as_raw_pid()).into()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let ended = self.processes.first().try_wait().ok().flatten();
        self.processes.kill();
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
