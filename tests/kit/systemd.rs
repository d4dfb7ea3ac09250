//! A real systemd of the test's own, with fdstash installed, or what a test lays there.

use std::{
    fs::{self, File, Permissions},
    io::{BufRead, BufReader},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    thread,
    time::Duration,
};

use fdstash::blocking::Client;
use rustix::{
    fs::{Mode, OFlags},
    path::DecInt,
};
use tempfile::TempDir;

use crate::{is_root, program, skipped, wait_until};

/// How long it may take to boot: a copy of what is installed is made before.
const BOOT: Duration = Duration::from_secs(60);

const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A systemd that is process 1 of namespaces of its own, over a copy of this machine's root file
/// system (`tests/systemd-box` says how). It ends with all that runs in it when it is dropped, or when
/// the test's process ends, however that does.
#[derive(Debug)]
pub struct Systemd {
    script: Child,
    // Held open: where it ends, the script takes everything down.
    stdin: Option<ChildStdin>,
    init: u32,
    // Its root, for users too who may not look into another's /proc.
    root: Option<OwnedFd>,
    log: PathBuf,
    _folder: TempDir,
}

impl Systemd {
    /// Boots one with what is built installed; none, where that takes more than the test has.
    ///
    /// # Panics
    ///
    /// If it should boot and does not.
    #[must_use]
    pub fn boot() -> Option<Self> {
        Self::boot_with(|tree| install(tree, &[]))
    }

    /// Boots one, over this machine's root file system with what a test puts into a folder laid over it;
    /// none, where that takes more than the test has.
    ///
    /// # Panics
    ///
    /// If it should boot and does not.
    #[must_use]
    pub fn boot_with(fill: impl FnOnce(&Path)) -> Option<Self> {
        if let Err(lacking) = can_boot() {
            skipped(&format!("to boot a systemd takes {lacking}"));
            return None;
        }
        let folder = tempfile::Builder::new().prefix("fdstash-systemd-").tempdir();
        let folder = folder.expect("a folder can be made");
        let [root, tree] = ["box", "tree"].map(|name| folder.path().join(name));
        fs::create_dir(&root).expect("a folder can be made");
        fs::create_dir(&tree).expect("a folder can be made");
        fill(&tree);
        let log = folder.path().join("log");
        let mut script = Command::new(below("tests/systemd-box"));
        script.arg(&root).arg(&tree).stdin(Stdio::piped()).stdout(Stdio::piped());
        script.stderr(File::create(&log).expect("a log can be made"));
        let mut script = script.spawn().expect("the script can be started");
        let stdin = script.stdin.take();
        let mut said = String::new();
        let stdout = script.stdout.take().expect("its output is a pipe");
        BufReader::new(stdout).read_line(&mut said).expect("it writes text");
        let init = said.trim().parse().unwrap_or_default();
        let mut booted = Self { script, stdin, init, root: None, log, _folder: folder };
        assert_ne!(init, 0, "the script has begun");
        wait_until(BOOT, || booted.run("systemctl is-active --quiet box.target").status.success());
        // It has a copy of its own, and this one is large.
        let _ = fs::remove_dir_all(&tree);
        let root = rustix::fs::open(format!("/proc/{init}/root"), PLACE, Mode::empty());
        booted.root = Some(root.expect("the box has a root"));
        Some(booted)
    }

    /// Runs a line of shell in it, outside of every unit.
    ///
    /// # Panics
    ///
    /// If there is no shell to run.
    #[must_use]
    pub fn run(&self, line: &str) -> Output {
        let mut enter = Command::new("nsenter");
        enter.arg(format!("--target={}", self.init));
        enter.args(["--mount", "--pid", "--cgroup", "--net", "--ipc", "--uts", "--root", "--wd"]);
        enter.args(["env", "-i", "LANG=C.UTF-8"]);
        enter.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        enter.args(["/bin/sh", "-c", line]).stdin(Stdio::null());
        enter.output().expect("nsenter can be started")
    }

    /// What a line writes that works.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn works(&self, line: &str) -> String {
        let output = self.run(line);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {} {complained}", output.status);
        String::from_utf8(output.stdout).expect("it writes text")
    }

    /// A property of a unit, as `systemctl show` tells it.
    #[track_caller]
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.works(&format!("systemctl show --value --property={name} {unit}")).trim().to_owned()
    }

    /// Where something in it is for who is outside of it.
    ///
    /// # Panics
    ///
    /// If it is not yet there.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        let root = DecInt::from_fd(self.root.as_ref().expect("it is there"));
        PathBuf::from(format!("/proc/self/fd/{}{inside}", root.as_str()))
    }

    /// Where the system's stash listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("/run/fdstash/org.fdstash.Stash")
    }

    /// A client of the system's stash, from outside.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::connect_to(self.socket()).expect("the daemon can be reached")
    }

    /// The version of it.
    #[must_use]
    pub fn version(&self) -> u32 {
        let said = self.works("systemctl --version");
        let version = said.split_whitespace().nth(1);
        version.and_then(|version| version.parse().ok()).expect("systemd has a version")
    }

    fn tell(&self) {
        let journal = self.run("journalctl --no-pager --quiet --output=short-monotonic -n 200");
        eprintln!("the journal of the box:\n{}", String::from_utf8_lossy(&journal.stdout));
        eprintln!("{}", fs::read_to_string(&self.log).unwrap_or_default());
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if thread::panicking() {
            self.tell();
        }
        drop(self.stdin.take());
        let _ = self.script.wait();
    }
}

/// What is lacking, where something is.
fn can_boot() -> Result<(), &'static str> {
    if !is_root() {
        return Err("root");
    }
    if !Path::new("/lib/systemd/systemd").exists() {
        return Err("a systemd");
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--cgroup", "--net", "true"]).stderr(Stdio::null());
    let may = unshare.status().is_ok_and(|status| status.success());
    may.then_some(()).ok_or("namespaces, which this machine does not let us have")
}

/// Installs what is built, as an operator does, below a folder that it makes; with variables of make's.
///
/// # Panics
///
/// If that cannot be.
pub fn install(tree: &Path, variables: &[&str]) {
    make(tree, "install", variables);
    // It is to become a root file system, which everybody can look into.
    fs::set_permissions(tree, Permissions::from_mode(0o755)).expect("it is our folder");
}

/// Removes it again.
///
/// # Panics
///
/// If that cannot be.
pub fn uninstall(tree: &Path) {
    make(tree, "uninstall", &[]);
}

fn make(tree: &Path, target: &str, variables: &[&str]) {
    let programs = program("fdstashd").parent().expect("a program is in a folder").to_owned();
    let mut make = Command::new("make");
    make.arg("--directory").arg(below("")).arg(target);
    make.arg(format!("DESTDIR={}", tree.display())).arg(format!("BUILT={}", programs.display()));
    make.args(variables);
    // A make that runs the tests tells its own children of itself.
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    let output = make.output().expect("make can be started");
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "make {target}: {complained}");
}

/// A path below the workspace.
#[must_use]
pub fn below(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
