//! QMP, the language of QEMU's monitor, with descriptors beside the commands.

use std::{
    fs,
    io::{self, Read},
    net::Shutdown,
    os::{
        fd::BorrowedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt, net::UnixStream},
    },
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use fdstash_proto::socket;
use serde_json::{Value, json};

use super::nodes::Identity;
use crate::words::plain;

/// More than any answer: what is longer comes from no QEMU.
const LONGEST_LINE: usize = 64 << 20;

/// How long QEMU is waited for at the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whoever carries commands to QEMU's monitor.
pub(crate) trait Monitor {
    /// Has QEMU carry out a command, with a descriptor beside it, which is only borrowed. QEMU keeps a
    /// descriptor that came beside a command that wants none, and gives it to the next `add-fd`: so
    /// one goes with `add-fd` alone.
    ///
    /// # Errors
    ///
    /// A [`Failure`], which tells whether the command may have been carried out.
    fn execute(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<Value>;

    /// Which file a descriptor of QEMU's is of, by QEMU's number of it; nothing where that cannot be
    /// seen from here.
    fn file_behind(&self, number: i64) -> Option<Identity> {
        let _ = number;
        None
    }
}

/// Why there is no answer that a command has been carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("QEMU refuses {command}: {desc} ({class})")]
    Refused { command: String, class: String, desc: String },

    #[error(
        "QEMU has not answered {command} within {limit:?}; whether it has carried it out, or will, is \
         not known"
    )]
    Unanswered { command: String, limit: Duration },

    #[error(
        "the connection to QEMU was lost; whether it has carried out {command} is not known: {why}"
    )]
    Lost { command: String, why: io::Error },
}

impl Failure {
    /// Whether, for all that is known, QEMU may have carried out what failed so.
    pub(crate) fn leaves_open(error: &anyhow::Error) -> bool {
        match error.downcast_ref() {
            Some(Self::Unanswered { .. } | Self::Lost { .. }) => true,
            Some(Self::Refused { .. }) | None => false,
        }
    }

    pub(crate) fn of_waiting(command: &str, limit: Duration, why: io::Error) -> Self {
        let command = command.to_owned();
        if is_late(&why) {
            return Self::Unanswered { command, limit };
        }
        Self::Lost { command, why }
    }
}

/// Whether it is the time that has run out, in any of the kernel's words for it.
fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What a command comes to, by QEMU's answer to it.
pub(crate) fn result_of(command: &str, mut answer: Value) -> anyhow::Result<Value> {
    if let Some(error) = answer.get("error") {
        let text = |key: &str| plain(error[key].as_str().unwrap_or_default());
        let (class, desc) = (text("class"), text("desc"));
        return Err(Failure::Refused { command: command.to_owned(), class, desc }.into());
    }
    Ok(answer["return"].take())
}

/// A connection to a monitor's own socket.
pub(crate) struct Qmp {
    socket: UnixStream,
    received: Vec<u8>,
    commands: u64,
    limit: Duration,
}

impl Qmp {
    /// Connects, and waits at most `limit` for the greeting, and for the answer to each command later.
    pub(crate) fn connect(path: &Path, limit: Duration) -> anyhow::Result<Self> {
        let shown = path.display();
        anyhow::ensure!(
            !["tcp:", "unix:"]
                .iter()
                .any(|kind| path.as_os_str().as_bytes().starts_with(kind.as_bytes())),
            "{shown} is no path: only Unix sockets, by their paths, since descriptors go over no other"
        );
        let socket = UnixStream::connect(path).with_context(|| {
            format!(
                "could not connect to QEMU's monitor at {shown}; start QEMU with -qmp \
                 unix:{shown},server=on,wait=off"
            )
        })?;
        socket.set_write_timeout(Some(limit))?;
        let mut qmp = Self { socket, received: Vec::new(), commands: 0, limit };
        let greeting = match qmp.greeting() {
            Err(why) if is_late(&why) => anyhow::bail!(
                "nobody at {shown} greets as QEMU does within {limit:?}: most likely another client is \
                 connected (it speaks with one client at a time), or QEMU hangs"
            ),
            greeting => {
                greeting.with_context(|| format!("what is at {shown} is no QMP monitor"))?
            }
        };
        anyhow::ensure!(greeting.get("QMP").is_some(), "what is at {shown} is no QMP monitor");
        qmp.execute("qmp_capabilities", json!({}), None)?;
        Ok(qmp)
    }

    /// The first that it says of itself: a QEMU that is just starting can tell of events before it.
    fn greeting(&mut self) -> io::Result<Value> {
        let deadline = Instant::now() + self.limit;
        loop {
            let said = self.line(deadline)?;
            if said.get("event").is_none() {
                return Ok(said);
            }
        }
    }

    fn send(&self, mut bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        // With its first byte, so that QEMU has the descriptor when it has read the command.
        let mut fds = fd.as_slice();
        while !bytes.is_empty() {
            let sent = socket::send(&self.socket, bytes, fds)?;
            bytes = &bytes[sent..];
            fds = &[];
        }
        Ok(())
    }

    /// The answer to the command of that id. What is said of anything else is skipped: events, and
    /// answers that come after their time.
    fn answer(&mut self, id: u64) -> io::Result<Value> {
        let deadline = Instant::now() + self.limit;
        loop {
            let said = self.line(deadline)?;
            let is_answer = said.get("return").is_some() || said.get("error").is_some();
            if is_answer && said["id"] == id {
                return Ok(said);
            }
        }
    }

    fn line(&mut self, deadline: Instant) -> io::Result<Value> {
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(io::Error::from);
            }
            if self.received.len() > LONGEST_LINE {
                return Err(io::Error::other("it says more than any QEMU does"));
            }
            self.receive(deadline)?;
        }
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        let mut buffer = [0; 16384];
        match self.socket.read(&mut buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.received.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Qmp {
    /// Waits until QEMU has seen the end: QEMU 7.2 can hang, or die, of a connection that begins while it
    /// still handles the end of another.
    fn drop(&mut self) {
        if self.socket.shutdown(Shutdown::Write).is_ok() {
            let deadline = Instant::now() + self.limit.min(FAREWELL);
            while self.receive(deadline).is_ok() {}
        }
    }
}

impl Monitor for Qmp {
    fn execute(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<Value> {
        self.commands += 1;
        let id = self.commands;
        let message = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        let sent = self.send(message.as_bytes(), fd);
        let answered = sent.and_then(|()| self.answer(id));
        let answer = answered.map_err(|why| Failure::of_waiting(command, self.limit, why))?;
        result_of(command, answer)
    }

    fn file_behind(&self, number: i64) -> Option<Identity> {
        let peer = rustix::net::sockopt::socket_peercred(&self.socket).ok()?;
        let process = format!("/proc/{}", peer.pid.as_raw_pid());
        // The socket may have been made by whoever started QEMU, whose descriptors are others.
        let is_qemu = fs::read_to_string(format!("{process}/comm")).ok()?.starts_with("qemu");
        let file = fs::metadata(format!("{process}/fd/{number}")).ok().filter(|_| is_qemu)?;
        Some((file.dev(), file.ino()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Write,
        os::{fd::AsFd, unix::net::UnixListener},
        process::{Child, Command, Stdio},
        thread,
    };

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    /// A QEMU without a machine, killed when it is dropped.
    struct Qemu {
        process: Child,
        folder: tempfile::TempDir,
    }

    impl Qemu {
        /// Starts one; none, where there is none.
        fn start() -> Option<Self> {
            let folder = tempfile::tempdir().unwrap();
            let monitor =
                format!("unix:{},server=on,wait=off", folder.path().join("qmp").display());
            let process = Command::new("qemu-system-x86_64")
                .args(["-machine", "none", "-nodefaults", "-display", "none", "-qmp", &monitor])
                .stdin(Stdio::null())
                .spawn();
            let Ok(process) = process else {
                println!("skipped: there is no qemu-system-x86_64");
                return None;
            };
            let qemu = Self { process, folder };
            // While it starts, QEMU 7.2 can die of a connection that ends before it has greeted.
            let deadline = Instant::now() + LONG;
            while qemu.connect(LONG).is_err() {
                assert!(Instant::now() < deadline, "QEMU does not listen");
                thread::sleep(Duration::from_millis(2));
            }
            Some(qemu)
        }

        fn connect(&self, limit: Duration) -> anyhow::Result<Qmp> {
            Qmp::connect(&self.folder.path().join("qmp"), limit)
        }

        fn signal(&self, signal: Signal) {
            kill_process(Pid::from_child(&self.process), signal).unwrap();
        }
    }

    impl Drop for Qemu {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(200);

    /// QEMU 7.2 does so once in some two thousand starts; this says what it said then.
    #[test]
    fn an_event_may_come_before_the_greeting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let monitor = UnixListener::bind(&path).unwrap();

        let qmp = thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = monitor.accept().unwrap();
                let said = [
                    json!({ "event": "RESUME", "timestamp": { "seconds": 1, "microseconds": 2 } }),
                    json!({ "QMP": { "version": {}, "capabilities": ["oob"] } }),
                    json!({ "return": {}, "id": 1 }),
                ];
                said.iter().for_each(|said| write!(stream, "{said}\r\n").unwrap());
                let mut heard = String::new();
                stream.read_to_string(&mut heard).unwrap();
                assert!(heard.contains("qmp_capabilities"), "{heard}");
            });
            Qmp::connect(&path, LONG).map(drop)
        });

        qmp.unwrap();
    }

    #[test]
    fn answers_are_told_from_events_and_refusals_in_qemus_words() {
        let Some(qemu) = Qemu::start() else { return };
        let mut qmp = qemu.connect(LONG).unwrap();

        // Each brings an event before its answer.
        for command in ["stop", "cont", "stop"] {
            assert_eq!(qmp.execute(command, json!({}), None).unwrap(), json!({}));
        }
        let status = qmp.execute("query-status", json!({}), None).unwrap();
        assert_eq!(status["status"], "paused");
        let refused = qmp.execute("blockdev-del", json!({ "node-name": "x" }), None).unwrap_err();
        let told =
            "QEMU refuses blockdev-del: Failed to find node with node-name='x' (GenericError)";
        assert_eq!(refused.to_string(), told);
        assert!(!Failure::leaves_open(&refused));
    }

    #[test]
    fn a_descriptor_goes_with_its_command_and_is_the_same_file() {
        let Some(qemu) = Qemu::start() else { return };
        let mut qmp = qemu.connect(LONG).unwrap();
        let file = File::open("/proc/self/exe").unwrap();

        let added = qmp.execute("add-fd", json!({ "opaque": "x" }), Some(file.as_fd())).unwrap();

        let metadata = file.metadata().unwrap();
        let behind = qmp.file_behind(added["fd"].as_i64().unwrap());
        assert_eq!(behind, Some((metadata.dev(), metadata.ino())));
        assert!(qmp.execute("add-fd", json!({}), None).is_err(), "none has come with it");
    }

    #[test]
    fn a_qemu_that_does_not_answer_in_time_is_told_and_its_late_answer_skipped() {
        let Some(qemu) = Qemu::start() else { return };
        let mut qmp = qemu.connect(LONG).unwrap();
        qmp.limit = SHORT;

        qemu.signal(Signal::STOP);
        let unanswered = qmp.execute("stop", json!({}), None).unwrap_err();
        assert!(Failure::leaves_open(&unanswered));
        assert!(unanswered.to_string().contains("has not answered stop within 200ms"));
        qemu.signal(Signal::CONT);
        qmp.limit = LONG;
        assert_eq!(qmp.execute("query-status", json!({}), None).unwrap()["status"], "paused");

        let other = qemu.connect(SHORT).err().map(|error| format!("{error:#}"));
        assert!(other.unwrap().contains("it speaks with one client at a time"));
        drop(qemu);
        let lost = qmp.execute("query-status", json!({}), None).unwrap_err();
        assert!(Failure::leaves_open(&lost) && lost.to_string().contains("was lost"), "{lost}");
    }
}
