//! The monitor of a domain's QEMU, by `virsh`: libvirt has it to itself, and carries commands with files for
//! others (from 8.2 on).

use std::{
    fs, io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::description::uuid;
use crate::{
    qemu::{
        nodes::Identity,
        qmp::{Failure, Monitor, result_of},
    },
    spawn::Process,
};

/// The monitor of a domain's QEMU. Each command is a virsh of its own.
pub(in crate::qemu) struct Virsh {
    uri: String,
    domain: String,
    limit: Duration,
    /// QEMU's folder in /proc, if it can be found.
    process: Option<PathBuf>,
}

impl Virsh {
    pub(super) fn new(uri: &str, domain: &str, limit: Duration) -> Self {
        Self { uri: uri.to_owned(), domain: domain.to_owned(), limit, process: None }
    }

    /// Sees whether there is such a domain, and looks for its process.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub(super) fn find(mut self) -> anyhow::Result<Self> {
        self.process = find_process(&self.describe()?);
        Ok(self)
    }

    /// The domain's description, as it runs.
    pub(super) fn describe(&self) -> anyhow::Result<String> {
        let said = self
            .run("dumpxml", None, |virsh| virsh.args(["--domain", &self.domain]))?
            .with_context(|| format!("virsh has not answered within {:?}", self.limit))?;
        ensure!(said.status.success(), "{}", complaint(&said));
        Ok(String::from_utf8(said.stdout)?)
    }

    /// Runs one of virsh's commands, and tells what it says, or why that is not known. In its error
    /// nothing was done.
    fn run(
        &self,
        verb: &str,
        fd: Option<OwnedFd>,
        add: impl FnOnce(&mut Command) -> &mut Command,
    ) -> anyhow::Result<io::Result<Output>> {
        let mut virsh = Command::new("virsh");
        // What it says is looked at here, and shown as it is.
        virsh.env("LC_ALL", "C").args(["--connect", &self.uri, verb]);
        add(&mut virsh);
        virsh.stdin(fd.map_or_else(Stdio::null, Stdio::from));
        virsh.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = virsh.spawn().context("could not run virsh, which speaks to libvirt")?;
        // Until then it has a duplicate of the descriptor.
        drop(virsh);
        Ok(wait(child, self.limit))
    }
}

impl Monitor for Virsh {
    fn execute(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<Value> {
        let message = json!({ "execute": command, "arguments": arguments }).to_string();
        let fd = fd.map(|fd| fd.try_clone_to_owned()).transpose()?;
        // It is virsh's standard input, which it hands on and does not read.
        let passed: &[&str] = if fd.is_some() { &["--pass-fds", "0"] } else { &[] };
        let said = self.run("qemu-monitor-command", fd, |virsh| {
            virsh.args(["--domain", &self.domain]).args(passed).args(["--cmd", &message])
        })?;
        let said = said.map_err(|why| Failure::of_waiting(command, self.limit, why))?;
        let command_of = || command.to_owned();
        if !said.status.success() {
            let why = io::Error::other(complaint(&said));
            return Err(Failure::Lost { command: command_of(), why }.into());
        }
        let answer = serde_json::from_slice(&said.stdout);
        let answer =
            answer.map_err(|why| Failure::Lost { command: command_of(), why: why.into() })?;
        result_of(command, answer)
    }

    fn file_behind(&self, number: i64) -> Option<Identity> {
        let process = self.process.as_ref()?;
        let file = fs::metadata(process.join(format!("fd/{number}"))).ok()?;
        Some((file.dev(), file.ino()))
    }
}

/// Waits until it ends, and ends it when that takes too long.
fn wait(child: Child, limit: Duration) -> io::Result<Output> {
    let process = Process::of(&child);
    let (end, ended) = mpsc::channel();
    thread::spawn(move || end.send(child.wait_with_output()));
    ended.recv_timeout(limit).unwrap_or_else(|_| {
        process.signal(Signal::KILL);
        Err(io::ErrorKind::TimedOut.into())
    })
}

/// What virsh has said against it.
fn complaint(said: &Output) -> String {
    let said = String::from_utf8_lossy(&said.stderr);
    let said: Vec<&str> = said.lines().map(|line| line.trim_start_matches("error: ")).collect();
    format!("virsh says: {}", said.join("; "))
}

/// The folder in /proc of the QEMU that has the described domain's UUID among its arguments.
fn find_process(description: &str) -> Option<PathBuf> {
    let uuid = uuid(description)?;
    let is_meant = |process: &PathBuf| {
        let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = arguments.split(|&byte| byte == 0).collect();
        let named = [b"-uuid".as_slice(), uuid.as_bytes()];
        comm.starts_with("qemu") && arguments.windows(2).any(|two| two == named)
    };
    fs::read_dir("/proc").ok()?.flatten().map(|process| process.path()).find(is_meant)
}
