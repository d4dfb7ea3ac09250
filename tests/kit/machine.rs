//! What only the machine can do: leases, mounts, other programs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Whether the test runs as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says that a test was left out, and why.
pub fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// Lets this process have as many descriptors as it may.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).expect("a limit can be raised as far as it goes");
}

/// A Python that every user can run.
#[must_use]
pub fn python() -> Command {
    let system = Path::new("/usr/bin/python3");
    Command::new(if system.exists() { system } else { Path::new("python3") })
}

/// A lease on a file, by which whoever opens it for writing waits until it is given back.
///
/// With it a test stops an open at a time of its choice, as a server that does not answer would.
#[derive(Debug)]
pub struct Lease(Child);

impl Lease {
    /// Takes one. Nobody may have the file open for writing.
    ///
    /// # Panics
    ///
    /// If the file system has none.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        // Whoever holds a lease gets SIGIO when somebody opens the file.
        const HOLD: &str = "
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDONLY)
for _ in range(1000):
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        print('held', flush=True)
        break
    except BlockingIOError:
        # A process that another test is just starting still has it open for writing.
        time.sleep(0.01)
sys.stdin.read()
";
        let mut holder = python();
        holder.args(["-c", HOLD]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.spawn().expect("Python can be started");
        let mut said = String::new();
        let stdout = holder.stdout.take().expect("its output is a pipe");
        BufReader::new(stdout).read_line(&mut said).expect("Python says something");
        assert_eq!(said, "held\n", "there is a lease on {}", path.display());
        Self(holder)
    }

    /// Gives it back.
    pub fn end(self) {}
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            let _ = stdin.flush();
        }
        let _ = self.0.wait();
    }
}

/// Something mounted over a folder. It takes root, and the right to mount.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// The folder once more over itself; none, where this machine does not let us.
    #[must_use]
    pub fn over_itself(folder: &Path) -> Option<Self> {
        mount(&[Path::new("--bind"), folder, folder]).then(|| Self(folder.to_owned()))
    }

    /// A file system that has no O_DIRECT; none, where this machine does not let us.
    #[must_use]
    pub fn without_direct(folder: &Path) -> Option<Self> {
        let ramfs = ["-t", "ramfs", "ramfs"].map(Path::new);
        mount(&[&ramfs[..], &[folder]].concat()).then(|| Self(folder.to_owned()))
    }

    /// Lets nobody write below it from here on. What is open for writing there must be closed before.
    #[must_use]
    pub fn make_read_only(&self) -> bool {
        mount(&[Path::new("-o"), Path::new("remount,bind,ro"), &self.0])
    }
}

fn mount(args: &[&Path]) -> bool {
    let mounted = Command::new("mount").args(args).stderr(Stdio::null()).status();
    mounted.is_ok_and(|status| status.success())
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Sets an attribute of a file for as long as it lives.
#[derive(Debug)]
pub struct Attribute(PathBuf, char);

impl Attribute {
    /// Sets it; none, where the file system has none, or without root.
    #[must_use]
    pub fn set(path: &Path, attribute: char) -> Option<Self> {
        let mut chattr = Command::new("chattr");
        chattr.arg(format!("+{attribute}")).arg(path);
        let done = chattr.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        done.then(|| Self(path.to_owned(), attribute))
    }
}

impl Drop for Attribute {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg(format!("-{}", self.1)).arg(&self.0).status();
    }
}
