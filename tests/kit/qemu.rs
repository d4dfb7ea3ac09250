//! A real QEMU of the test's own, without a machine in it: block nodes, monitors and an NBD server.
//!
//! `QEMU` names another program to start than `qemu-system-x86_64`, for another version's; words
//! before the program's name that it needs may stand in front of it, parted by blanks:
//! `QEMU='chroot /srv/testing qemu-system-x86_64' cargo test --package fdstash-tests --test qemu_facts`.
//! It must see the same temporary folder, and run in the same process and user namespaces.
//!
//! It stays one file: a QEMU and the monitor by which all is said to it.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use fdstash_proto::socket;
use rustix::{
    fs::OFlags,
    net::sockopt::socket_peercred,
    process::{Pid, Resource, Rlimit, getrlimit, prlimit},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Group, SOON, wait_until};

/// A QEMU, killed when it is dropped.
#[derive(Debug)]
pub struct Qemu {
    process: Group,
    pid: Pid,
    version: (u64, u64),
    folder: TempDir,
}

/// Which monitor of a QEMU: each serves one client at a time.
const OPERATORS: &str = "qmp";
const TESTS: &str = "qmp-tests";
const NBD: &str = "nbd";

/// How many are started until one answers.
const STARTS: usize = 3;

/// Between two tries to connect.
const PAUSE: Duration = Duration::from_millis(10);

impl Qemu {
    /// Starts one, and returns when it answers; none, where there is no QEMU.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    #[must_use]
    pub fn start() -> Option<Self> {
        let mut command = program();
        let known = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !known.is_ok_and(|status| status.success()) {
            crate::skipped("there is no qemu-system-x86_64, or what the variable QEMU names");
            return None;
        }
        // Now and then, on a busy machine, one of 7.2 never comes to serve its monitors.
        let started = (0..STARTS).find_map(|_| Self::try_start());
        Some(started.expect("one of several answers"))
    }

    fn try_start() -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("fdstash-qemu-").tempdir();
        let folder = folder.expect("a folder can be made");
        let mut command = program();
        command.args(["-nodefaults", "-machine", "none", "-display", "none"]);
        for monitor in [OPERATORS, TESTS] {
            let socket = folder.path().join(monitor);
            let options = format!("unix:{},server=on,wait=off", socket.display());
            command.arg("-qmp").arg(options);
        }
        let log = File::create(folder.path().join("log")).expect("a log can be made");
        let process = Group::spawn(command.stdin(Stdio::null()).stderr(log));
        let mut monitor = match Monitor::connect_soon(&folder.path().join(TESTS)) {
            Ok(monitor) => monitor,
            Err(error) => {
                eprintln!("a QEMU does not answer, {error}: {}", told_of(&process, folder.path()));
                return None;
            }
        };
        // Of whoever listens: a program that starts QEMU may stand between.
        let listener = socket_peercred(&monitor.stream).expect("the kernel knows who listens");
        let version = monitor.works("query-version", json!({}));
        let part = |name: &str| version["qemu"][name].as_u64().unwrap_or_default();
        let version = (part("major"), part("minor"));
        Some(Self { process, pid: listener.pid, version, folder })
    }

    /// Its version: major and minor.
    #[must_use]
    pub fn version(&self) -> (u64, u64) {
        self.version
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The socket of the monitor that the tests leave to others.
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.folder.path().join(OPERATORS)
    }

    /// A connection to the other monitor.
    #[must_use]
    pub fn monitor(&self) -> Monitor {
        Monitor::connect(&self.folder.path().join(TESTS))
    }

    /// Has a command executed, over a connection that ends with it: descriptors that no node uses are
    /// gone with QEMU's last monitor connection, and nothing here shall keep them.
    ///
    /// # Errors
    ///
    /// QEMU's own words.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value, String> {
        self.monitor().execute(command, arguments)
    }

    /// Has a command executed that must succeed.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn works(&self, command: &str, arguments: Value) -> Value {
        self.monitor().works(command, arguments)
    }

    /// Exports a node by its name, over NBD; tells the socket, which all exports have in common.
    ///
    /// # Errors
    ///
    /// QEMU's own words, if it does not export it so.
    pub fn export(&self, node: &str, writable: bool) -> Result<PathBuf, String> {
        let socket = self.folder.path().join(NBD);
        let mut monitor = self.monitor();
        if !socket.exists() {
            let at = json!({"type": "unix", "data": {"path": socket}});
            monitor.works("nbd-server-start", json!({"addr": at}));
        }
        monitor.execute(
            "block-export-add",
            json!({"id": node, "type": "nbd", "node-name": node, "name": node, "writable": writable}),
        )?;
        Ok(socket)
    }

    /// Ends an export, with the connections that it has.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn end_export(&self, node: &str) {
        let mut monitor = self.monitor();
        monitor.works("block-export-del", json!({"id": node, "mode": "hard"}));
        // It has ended when QEMU says so, not when it has replied.
        wait_until(SOON, || {
            let exports = monitor.works("query-block-exports", json!({}));
            exports.as_array().is_some_and(|exports| exports.iter().all(|one| one["id"] != node))
        });
    }

    /// What QEMU tells of a node; nothing, if there is none.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<Value> {
        let nodes = self.works("query-named-block-nodes", json!({"flat": true}));
        nodes.as_array()?.iter().find(|node| node["node-name"] == name).cloned()
    }

    /// The names of all nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let nodes = self.works("query-named-block-nodes", json!({"flat": true}));
        let nodes = nodes.as_array().into_iter().flatten();
        nodes.filter_map(|node| node["node-name"].as_str().map(str::to_owned)).collect()
    }

    /// The sets of descriptors that it was sent.
    #[must_use]
    pub fn fdsets(&self) -> Vec<Value> {
        let sets = self.works("query-fdsets", json!({}));
        sets.as_array().cloned().unwrap_or_default()
    }

    /// The flags of each descriptor that it has of a file, by device and inode.
    #[must_use]
    pub fn flags_of(&self, file: (u64, u64)) -> Vec<OFlags> {
        use std::os::unix::fs::MetadataExt;
        let process = PathBuf::from(format!("/proc/{}", self.pid.as_raw_pid()));
        let fds = fs::read_dir(process.join("fd")).expect("its descriptors can be read");
        let flags = fds.flatten().filter_map(|fd| {
            let target = fs::metadata(fd.path()).ok()?;
            let is_it = (target.dev(), target.ino()) == file;
            let info = fs::read_to_string(process.join("fdinfo").join(fd.file_name())).ok()?;
            let line = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
            let flags = u32::from_str_radix(line.trim(), 8).ok()?;
            is_it.then(|| OFlags::from_bits_retain(flags))
        });
        flags.collect()
    }

    /// Leaves it one free descriptor, which a monitor's connection takes; none are free for what is sent.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub fn exhaust_descriptors(&self) {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid.as_raw_pid()));
        let fds = fds.expect("its descriptors can be read").flatten();
        let numbers = fds.filter_map(|fd| fd.file_name().to_str()?.parse().ok());
        let numbers: BTreeSet<u64> = numbers.collect();
        let free = (0..).find(|number| !numbers.contains(number));
        self.limit_descriptors(free.map(|number| number + 1));
    }

    /// Lets it have as many as it may again.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub fn restore_descriptors(&self) {
        self.limit_descriptors(getrlimit(Resource::Nofile).maximum);
    }

    fn limit_descriptors(&self, most: Option<u64>) {
        let limit = Rlimit { current: most, ..getrlimit(Resource::Nofile) };
        prlimit(Some(self.pid), Resource::Nofile, limit).expect("its limit can be set");
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// What it has said on its standard error.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// What can be seen of a QEMU from outside.
fn told_of(process: &Group, folder: &Path) -> String {
    let proc = PathBuf::from(format!("/proc/{}", process.pid().as_raw_pid()));
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let status = read(proc.join("status"));
    let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or("ended");
    format!("{state}, in {}; it said {:?}", read(proc.join("wchan")), read(folder.join("log")))
}

/// The program to start, with what stands in front of it.
fn program() -> Command {
    let words = env::var("QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// A connection to a monitor: commands, and descriptors beside them.
#[derive(Debug)]
pub struct Monitor {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects, and waits for its turn.
    ///
    /// # Panics
    ///
    /// If no monitor answers there soon.
    #[must_use]
    pub fn connect(socket: &Path) -> Self {
        Self::connect_soon(socket).expect("a monitor answers")
    }

    fn connect_soon(socket: &Path) -> io::Result<Self> {
        let until = Instant::now() + SOON;
        loop {
            match Self::try_connect(socket) {
                Err(_) if Instant::now() < until => thread::sleep(PAUSE),
                outcome => return outcome,
            }
        }
    }

    fn try_connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        // Now and then a QEMU that is just starting does not greet whoever is the first.
        stream.set_read_timeout(Some(SOON / 10))?;
        let reader = BufReader::new(stream.try_clone()?);
        let mut monitor = Self { stream, reader };
        // It may tell of an event before it greets, too.
        let greeting = monitor.answer().inspect_err(|error| eprintln!("no greeting: {error}"))?;
        monitor.stream.set_read_timeout(Some(SOON))?;
        assert!(greeting["QMP"].is_object(), "a monitor greets: {greeting}");
        monitor.say(&message("qmp_capabilities", &json!({})), &[] as &[File]);
        monitor.answer()?;
        Ok(monitor)
    }

    /// Has a command executed.
    ///
    /// # Errors
    ///
    /// QEMU's own words.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        self.say(&message(command, &arguments), &[] as &[File]);
        self.reply()
    }

    /// Has a command executed, with a descriptor beside it.
    ///
    /// # Errors
    ///
    /// QEMU's own words.
    pub fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
        fd: impl AsFd,
    ) -> Result<Value, String> {
        self.say(&message(command, &arguments), &[fd]);
        self.reply()
    }

    /// Has a command executed that must succeed.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn works(&mut self, command: &str, arguments: Value) -> Value {
        match self.execute(command, arguments) {
            Ok(returned) => returned,
            Err(error) => panic!("{command}: {error}"),
        }
    }

    /// Sends a message as it is, and descriptors with it.
    ///
    /// # Panics
    ///
    /// If QEMU does not read.
    pub fn say(&mut self, message: &str, fds: &[impl AsFd]) {
        let sent = socket::send(&self.stream, message.as_bytes(), fds).expect("QEMU reads");
        (&self.stream).write_all(&message.as_bytes()[sent..]).expect("QEMU reads on");
    }

    /// The next reply.
    ///
    /// # Errors
    ///
    /// QEMU's own words.
    pub fn reply(&mut self) -> Result<Value, String> {
        let message = self.answer().expect("QEMU answers");
        if let Some(returned) = message.get("return") {
            return Ok(returned.clone());
        }
        let why = message["error"]["desc"].as_str();
        Err(why.unwrap_or_else(|| panic!("what QEMU says is known: {message}")).to_owned())
    }

    /// The next that it says but events.
    fn answer(&mut self) -> io::Result<Value> {
        loop {
            let message = self.message()?;
            if !message["event"].is_string() {
                return Ok(message);
            }
        }
    }

    fn message(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(io::Error::from)
    }
}

impl Drop for Monitor {
    /// Waits until QEMU has seen the end: QEMU 7.2 can hang, or die, of a connection that begins while it
    /// still handles the end of another.
    fn drop(&mut self) {
        if self.stream.shutdown(Shutdown::Write).is_ok() {
            let _ = io::copy(&mut self.reader, &mut io::sink());
        }
    }
}

fn message(command: &str, arguments: &Value) -> String {
    json!({"execute": command, "arguments": arguments}).to_string()
}
