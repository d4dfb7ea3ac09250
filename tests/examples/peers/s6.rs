//! s6-fdholder-daemon as it is installed, where it is.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::Pid;
use tempfile::TempDir;

use crate::{
    CROWD, IDLE,
    peer::Peer,
    rounds::Bench,
    stash::{beyond, memory, run, told_or_none},
    told::until,
};

/// What Debian calls what it takes.
pub(crate) const PACKAGES: &str = "s6 libs6-dev skalibs-dev";

/// The client of libs6, compiled when it is needed.
const CLIENT: &str = include_str!("s6.c");

/// As many as one message carries.
const MOST: usize = 253;

/// Room for what is given and taken beside what is held.
const SPARE: usize = 64;

/// Its program and ours, ready to be started.
pub(crate) struct S6 {
    folder: PathBuf,
    client: PathBuf,
    pub(crate) version: String,
}

impl S6 {
    /// Compiles the client, if what it takes is installed.
    pub(crate) fn installed(folder: &Path) -> io::Result<Option<Self>> {
        let source = folder.join("s6.c");
        let client = folder.join("s6-client");
        fs::write(&source, CLIENT)?;
        let mut look = Command::new("cc");
        look.args(["-E", "-include", "s6/fdholder.h", "-x", "c", "/dev/null"]);
        let has = |command: &mut Command| {
            let ran = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // The daemon, asked for nothing, says how it is used.
            ran.status().map(|status| status.success())
        };
        if !has(&mut look)? || has(&mut Command::new("s6-fdholder-daemon")).is_err() {
            return Ok(None);
        }
        let mut compile = Command::new("cc");
        compile.args(["-O2", "-o"]).arg(&client).arg(&source).args(["-ls6", "-lskarnet"]);
        succeed(&mut compile)?;
        let version = Command::new(&client).arg("--version").output()?.stdout;
        let version = String::from_utf8_lossy(&version).trim().to_owned();
        let s6 = Self { folder: folder.into(), client, version };
        s6.write_rules()?;
        Ok(Some(s6))
    }

    /// Rules by which this user may do everything, in the form that costs least.
    fn write_rules(&self) -> io::Result<()> {
        let rules = self.folder.join("rules");
        let user = rules.join(format!("uid/{}", rustix::process::geteuid().as_raw()));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(user.join("env"))?;
        fs::write(user.join("allow"), "")?;
        for right in ["STORE_REGEX", "RETRIEVE_REGEX", "LIST", "GETDUMP", "SETDUMP"] {
            let value = if right.ends_with("REGEX") { ".\n" } else { "1\n" };
            fs::write(user.join("env").join(format!("S6_FDHOLDER_{right}")), value)?;
        }
        let mut compile = Command::new("s6-accessrules-cdb-from-fs");
        succeed(compile.arg(self.folder.join("rules.cdb")).arg(&rules))
    }

    /// Has its daemons measured. They have to live as long.
    pub(crate) fn add(&self, bench: &mut Bench, held: usize) -> io::Result<Daemons> {
        let (mut daemons, mut bytes) = (Vec::new(), None);
        for (tag, count) in [("", 1), ("h1000.", 1000), ("h10000.", 10_000), ("h19900.", held)] {
            let count = count.min(held);
            let daemon = self.start(count)?;
            let empty = memory(&[daemon.pid()]);
            let peer = bench.peer(Peer::start(&mut self.client(&daemon, count, 0))?);
            if tag == "h19900." {
                let full = memory(&[daemon.pid()]);
                bytes = told_or_none(empty.and_then(|empty| Ok(beyond(empty, full?, count))));
            }
            bench.ask(&format!("s6.{tag}give"), "raw.give", &peer, "give");
            bench.ask(&format!("s6.{tag}take"), "raw.take", &peer, "take");
            bench.ask(&format!("s6.{tag}cycle"), "raw.cycle", &peer, "cycle");
            match tag {
                "" => {
                    bench.ask("s6.conn_give", "floor.conn_give", &peer, "conn_give");
                    bench.ask("s6.pipe16_give", "raw.pipe16_give", &peer, "pipe16_give");
                    bench.ask("s6.pipe16_take", "raw.pipe16_take", &peer, "pipe16_take");
                    daemon.add_commands(bench);
                }
                "h10000." => {
                    bench.ask("s6.list", "", &peer, "list").longer(4);
                }
                _ => {}
            }
            daemons.push(daemon);
        }
        daemons.extend(self.add_apart(bench)?);
        Ok(Daemons { bytes, _daemons: daemons })
    }

    /// What has a daemon of its own, since each connection costs all others time.
    fn add_apart(&self, bench: &mut Bench) -> io::Result<[Daemon; 3]> {
        let idle = self.start(IDLE)?;
        let peer = bench.peer(Peer::start(&mut self.client(&idle, 0, IDLE))?);
        bench.ask("s6.idle200_cycle", "raw.cycle", &peer, "cycle");
        // It needs room for new ones before it lets go of the old.
        let dump = self.start(2 * MOST)?;
        let peer = bench.peer(Peer::start(&mut self.client(&dump, MOST, 0))?);
        bench.ask("s6.give253", "raw.give253", &peer, "give253");
        bench.ask("s6.take253", "raw.take253", &peer, "take253");
        let crowd = self.start(CROWD)?;
        let peers = bench.crowd(|_| Peer::start(&mut self.client(&crowd, 0, 0)))?;
        bench.ask("s6.c8_cycle", "floor.c8_cycle", &peers, "cycle").anywhere().longer(4);
        Ok([idle, dump, crowd])
    }

    /// Starts a daemon with room for so many descriptors and some.
    fn start(&self, held: usize) -> io::Result<Daemon> {
        let folder = tempfile::tempdir_in(&self.folder)?;
        let socket = folder.path().join("socket");
        let most = (held + SPARE).to_string();
        // It has what it holds on its stack, and ends with whoever has started it.
        const START: &str = "ulimit -s 262144 || :; exec \"$@\"";
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "sh", "-c", START, "sh", "s6-fdholder-daemon"]);
        command.args(["-1", "-c", "250", "-n", &most, "-x"]);
        command.arg(self.folder.join("rules.cdb")).arg(&socket).stdout(Stdio::piped());
        let child = command.stdin(Stdio::null()).spawn()?;
        let mut daemon = Daemon { child, socket, _folder: folder };
        // It writes a line when it is ready.
        let ready = daemon.child.stdout.as_mut().map(|out| out.read(&mut [0]));
        if !matches!(ready, Some(Ok(1))) {
            return Err(io::Error::other("s6-fdholder-daemon does not start"));
        }
        Ok(daemon)
    }

    /// A client that has the daemon hold so many, and opens so many connections that say nothing.
    fn client(&self, daemon: &Daemon, held: usize, idle: usize) -> Command {
        let mut command = Command::new(&self.client);
        command.arg(&daemon.socket).arg(daemon.child.id().to_string());
        command.args([held, idle].map(|count| count.to_string()));
        command
    }
}

/// Its daemons that are measured, until this is dropped.
pub(crate) struct Daemons {
    /// Of memory, for each entry that is held.
    pub(crate) bytes: Option<f64>,
    _daemons: Vec<Daemon>,
}

/// A daemon, killed when it is dropped.
struct Daemon {
    child: Child,
    socket: PathBuf,
    _folder: TempDir,
}

impl Daemon {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Adds its commands, each as a whole process.
    fn add_commands(&self, bench: &mut Bench) {
        let command = |words: &[&str]| {
            let mut command = Command::new(format!("s6-fdholder-{}", words[0]));
            command.args(&words[1..]).arg(&self.socket).arg("bench/command");
            command
        };
        let (mut store, mut delete) = (command(&["store"]), command(&["delete"]));
        let give = move |time| {
            until(time, || {
                let took = run(&mut store)?;
                run(&mut delete)?;
                Ok(took)
            })
        };
        bench.own("s6.command_give", "true", self.pid(), give).longer(4);
        let (mut store, mut retrieve) = (command(&["store"]), command(&["retrieve", "-D"]));
        retrieve.arg("true");
        let take = move |time| {
            until(time, || {
                run(&mut store)?;
                run(&mut retrieve)
            })
        };
        bench.own("s6.command_take", "true", self.pid(), take).longer(4);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}
