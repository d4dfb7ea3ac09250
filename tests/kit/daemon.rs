//! A daemon of the test's own.

use std::{
    fs,
    hint::spin_loop,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use fdstash::{Error, Refusal, Statistics, blocking::Client};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Builder, Group, Raw, SOON, User, program, wait_until};

/// A running daemon, killed with all its processes when it is dropped.
///
/// A test in which it ends by itself, or panics, fails.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) processes: Group,
    pub(crate) socket: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) folder: TempDir,
    pub(crate) has_ended: bool,
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

    /// The process that serves now, whatever it logs: the child of its first keeper.
    #[must_use]
    pub fn serving(&self) -> Option<Pid> {
        let keeper = self.pid();
        let path = of_process(keeper, &format!("task/{}/children", keeper.as_raw_pid()));
        let children = fs::read_to_string(path).ok()?;
        children.split_whitespace().next()?.parse().ok().and_then(Pid::from_raw)
    }

    /// How long it takes from a signal on, which the server dies of or is replaced by, until the next one
    /// answers, and so has everything.
    pub fn back_after(&self, signal: impl FnOnce()) -> Duration {
        let mut client = self.client();
        let server = self.serving();
        let began = Instant::now();
        signal();
        while self.serving() == server {
            spin_loop();
        }
        client.statistics().expect("an answer");
        began.elapsed()
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

    /// Its figures, when there is room for one more connection: of those that have just ended, it may not
    /// have heard yet.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.asked().1
    }

    /// Its figures, and the connection that was asked for them, which they count.
    fn asked(&self) -> (Client, Statistics) {
        let ask = || {
            let mut client = self.client();
            client.statistics().map(|told| (client, told))
        };
        let mut told = ask();
        let is_full = |told: &Result<_, Error>| {
            matches!(told, Err(Error::Refused(Refusal::LimitExceeded { .. })))
        };
        if is_full(&told) {
            wait_until(SOON, || {
                told = ask();
                !is_full(&told)
            });
        }
        told.expect("the daemon has statistics")
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
        // The connection that asks stays until they are counted, since it is subtracted.
        let (_client, told) = self.asked();
        let connections = usize::try_from(told.connections).unwrap_or_default();
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

pub(crate) fn of_process(pid: Pid, file: &str) -> PathBuf {
    format!("/proc/{}/{file}", pid.as_raw_pid()).into()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let ended = self.processes.first().try_wait().ok().flatten();
        self.processes.end();
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
