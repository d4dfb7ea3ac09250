//! A daemon of this program's own, and how it is killed.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Child, Command},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use fdstash::blocking::Client;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    iterator::Signals,
};

use crate::Outcome;

/// A daemon, ended with this value.
///
/// For root it runs as an ordinary user, as it well can: it opens the files that it holds, and not
/// those whose path it could reach.
pub(crate) struct Daemon {
    keeper: Child,
    pub(crate) socket: PathBuf,
}

impl Daemon {
    const NOBODY: u32 = 65534;

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    pub(crate) fn user() -> &'static str {
        if Self::is_root() { "an ordinary user (nobody)" } else { "this user" }
    }

    pub(crate) fn start(program: &Path, runtime: &Path) -> Outcome<Self> {
        let socket = runtime.join("stash");
        let binary = File::open(program)
            .map_err(|error| format!("opening {}: {error}", program.display()))?;
        // By its descriptor, since nobody may not be able to reach its path.
        let path = format!(
            "/proc/self/fd/{}",
            rustix::path::DecInt::from_fd(&binary).as_c_str().to_string_lossy()
        );
        let mut command = Command::new(path);
        // Its log would tell of each death that is wanted here.
        let log = runtime.join("log");
        command.arg0("fdstashd").arg("--socket").arg(&socket).stderr(File::create(&log)?);
        if Self::is_root() {
            std::os::unix::fs::chown(runtime, Some(Self::NOBODY), Some(Self::NOBODY))?;
            command.uid(Self::NOBODY).gid(Self::NOBODY);
        }
        let daemon = Self { keeper: command.spawn()?, socket };
        note(&daemon.keeper);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Client::connect_to(&daemon.socket).is_err() {
            if Instant::now() > deadline {
                return Err(format!("fdstashd did not start: {}", fs::read_to_string(log)?).into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(daemon)
    }

    /// Kills the process that serves, and the next one, and so on, ten times a second.
    pub(crate) fn kill_again_and_again(&self) -> Killing {
        let keeper = self.keeper.id();
        let (stop, deaths) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&deaths));
        let thread = thread::spawn(move || {
            let mut last = None;
            while !stopped.load(Ordering::Relaxed) {
                let server = server_of(keeper).filter(|server| last != Some(*server));
                if let Some(server) = server.filter(|pid| kill_process(*pid, Signal::KILL).is_ok())
                {
                    last = Some(server);
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        Killing { stop, deaths, thread }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Asked to, it ends with both of its processes.
        let _ = kill_process(Pid::from_child(&self.keeper), Signal::TERM);
        let _ = self.keeper.wait();
    }
}

/// Somebody who kills servers.
pub(crate) struct Killing {
    stop: Arc<AtomicBool>,
    deaths: Arc<AtomicU32>,
    thread: JoinHandle<()>,
}

impl Killing {
    /// How many were killed.
    pub(crate) fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        // It does nothing that could panic.
        let _ = self.thread.join();
        self.deaths.load(Ordering::Relaxed)
    }
}

/// The process that serves for a keeper.
fn server_of(keeper: u32) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
    Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}

/// The processes that were started, to be ended when this one is.
static STARTED: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Notes a process that was started.
pub(crate) fn note(child: &Child) {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner).push(Pid::from_child(child));
}

/// Leaves neither processes nor these folders behind when the demonstration is ended in its middle.
pub(crate) fn clean_up_when_interrupted(folders: &[&Path]) -> Outcome<()> {
    let folders: Vec<_> = folders.iter().map(|folder| folder.to_path_buf()).collect();
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        for pid in &*STARTED.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = kill_process(*pid, Signal::TERM);
        }
        for folder in folders {
            let _ = fs::remove_dir_all(folder);
        }
        process::exit(128 + signal);
    });
    Ok(())
}
