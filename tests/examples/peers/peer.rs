//! A program that is measured: a server, and a client of it that does what it is told to.

use std::{
    io::{self, BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use rustix::process::Pid;

use crate::told::Told;

/// One that runs, until it is dropped.
pub(crate) struct Peer {
    child: Child,
    /// It ends when this does.
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    /// The server's process and the client's.
    pub(crate) processes: [Pid; 2],
}

impl Peer {
    /// Starts it, and waits until it is ready.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let piped = || io::Error::other("it has no pipes");
        let to = child.stdin.take();
        let mut from = BufReader::new(child.stdout.take().ok_or_else(piped)?);
        let mut line = String::new();
        from.read_line(&mut line)?;
        let wrong =
            || io::Error::other(format!("{command:?} says {line:?}, and not that it is ready"));
        let numbers = line.strip_prefix("ready ").ok_or_else(wrong)?;
        let processes: Vec<_> = numbers
            .split_whitespace()
            .filter_map(|number| number.parse().ok().and_then(Pid::from_raw))
            .collect();
        let processes = processes.try_into().map_err(|_| wrong())?;
        Ok(Self { child, to, from, processes })
    }

    /// Tells it to do an operation for so long.
    pub(crate) fn ask(&mut self, operation: &str, time: Duration) -> io::Result<()> {
        let to = self.to.as_mut().ok_or_else(|| io::Error::other("it has ended"))?;
        // In one write, so that it is woken once.
        to.write_all(format!("{operation} {}\n", time.as_millis()).as_bytes())
    }

    /// What the operations took that it was told to do, if it knows them.
    pub(crate) fn told(&mut self) -> io::Result<Option<Told>> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        Told::from_line(&line)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.to = None;
        let _ = self.child.wait();
    }
}
