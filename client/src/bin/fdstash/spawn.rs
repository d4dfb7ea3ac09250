//! Running a command with descriptors in place, and standing in for it until it ends.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
    thread,
};

use anyhow::Context;
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
    iterator::{SignalsInfo, exfiltrator::WithRawSiginfo},
};

/// What is passed on to the command.
const FORWARDED: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

/// `si_code` of a signal that the kernel itself sent, as a terminal does: sigaction(2).
const SI_KERNEL: i32 = 0x80;

/// More than a process's status has, in bytes.
const STATUS: usize = 8 << 10;

/// Where the descriptors go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seats {
    /// The first to standard input, further ones to 3, 4 and so on.
    InputFirst,
    /// To this number and those after it.
    From(i32),
}

impl Seats {
    fn numbers(self) -> Box<dyn Iterator<Item = i32>> {
        match self {
            Self::InputFirst => Box::new([0].into_iter().chain(3..)),
            Self::From(first) => Box::new(first..),
        }
    }
}

/// A command that has been executed.
pub(crate) struct Running {
    child: Child,
    signals: SignalsInfo<WithRawSiginfo>,
}

/// Why there is none.
pub(crate) enum NotRunning {
    /// The kernel would not execute it.
    NotExecuted(ExitCode),
    /// What should have been around it failed.
    Failed(anyhow::Error),
}

/// Executes a command with the descriptors in their seats, and closes them here, so that the command
/// and whoever else has them decide when they are gone.
pub(crate) fn start(
    command: &[OsString],
    fds: Vec<OwnedFd>,
    seats: Seats,
) -> Result<Running, NotRunning> {
    let prepared = of(command).map_err(NotRunning::Failed)?;
    spawn(prepared, fds, seats)
}

/// The command that these words are.
pub(crate) fn of(words: &[OsString]) -> anyhow::Result<Command> {
    let (program, arguments) = words.split_first().context("there is no command to run")?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

/// Executes a command as [`start`] does, with an environment of its own.
pub(crate) fn spawn(
    mut command: Command,
    fds: Vec<OwnedFd>,
    seats: Seats,
) -> Result<Running, NotRunning> {
    let reserved = seat(&mut command, fds, seats).map_err(NotRunning::Failed)?;
    let signals = not_ignored()
        .and_then(SignalsInfo::new)
        .context("could not prepare for signals")
        .map_err(NotRunning::Failed)?;
    let outcome = command.spawn();
    drop(reserved);
    match outcome {
        Ok(child) => Ok(Running { child, signals }),
        Err(error) => Err(NotRunning::NotExecuted(not_executed(&command, &error))),
    }
}

/// Becomes a command, with the descriptors in their seats; returns only where it cannot.
pub(crate) fn become_it(
    mut command: Command,
    fds: Vec<OwnedFd>,
    seats: Seats,
) -> anyhow::Result<ExitCode> {
    let _reserved = seat(&mut command, fds, seats)?;
    let error = command.exec();
    Ok(not_executed(&command, &error))
}

/// Says that a command could not be executed, with the exit code that a shell has for it.
fn not_executed(command: &Command, error: &io::Error) -> ExitCode {
    let program = Path::new(command.get_program()).display();
    crate::complain(format_args!("could not run {program}: {error}"));
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

impl Running {
    /// Waits for the end of the command, passes signals on to it until then, and tells its exit
    /// code as a shell would.
    pub(crate) fn wait(mut self) -> anyhow::Result<ExitCode> {
        let process = Process::of(&self.child);
        pass_on(self.signals, move |signal| process.signal(signal));
        Ok(exit_code(self.child.wait().context("could not wait for the command")?))
    }

    /// Its number.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Tells of signals from here on, for who waits for it in another way.
    pub(crate) fn watched_by(self, tell: impl FnMut(Signal) + Send + 'static) {
        pass_on(self.signals, tell);
    }
}

fn pass_on(
    mut signals: SignalsInfo<WithRawSiginfo>,
    mut tell: impl FnMut(Signal) + Send + 'static,
) {
    thread::spawn(move || {
        for signal in signals.forever() {
            // What a terminal sends, it sends to the command too, since it is in our group.
            let known = Signal::from_named_raw(signal.si_signo);
            if let Some(known) = known.filter(|_| signal.si_code != SI_KERNEL) {
                tell(known);
            }
        }
    });
}

/// Whom to pass signals on to.
pub(crate) enum Process {
    /// The process itself: its number could be another's by the time of a signal.
    Itself(OwnedFd),
    /// Its number, where the kernel or a sandbox has no handle on processes.
    Numbered(Pid),
}

impl Process {
    pub(crate) fn of(child: &Child) -> Self {
        Self::numbered(Pid::from_child(child))
    }

    /// The process that has this number now.
    pub(crate) fn numbered(pid: Pid) -> Self {
        pidfd_open(pid, PidfdFlags::empty()).map_or(Self::Numbered(pid), Self::Itself)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It may just have ended, and then there is nothing to tell it.
        let _ = match self {
            Self::Itself(process) => pidfd_send_signal(process, signal),
            Self::Numbered(pid) => kill_process(*pid, signal),
        };
    }
}

/// Gives a command its descriptors, and tells what keeps their numbers reserved until it is executed.
fn seat(command: &mut Command, fds: Vec<OwnedFd>, seats: Seats) -> anyhow::Result<Vec<OwnedFd>> {
    // The standard library learns of a failed exec through a pipe that it opens while it spawns.
    // Were the pipe to get one of these numbers, a descriptor would be put over it, and the failure
    // be written into that file (tests/command.rs).
    let mut reserved = Vec::with_capacity(fds.len());
    for (number, fd) in seats.numbers().zip(&fds).filter(|(number, _)| *number > 2) {
        let fd = rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), number)
            .with_context(|| format!("there can be no descriptor {number}"))?;
        reserved.push(fd);
    }
    let mut mappings = Vec::new();
    for (child_fd, parent_fd) in seats.numbers().zip(fds) {
        match child_fd {
            0 => drop(command.stdin(parent_fd)),
            _ => mappings.push(FdMapping { parent_fd, child_fd }),
        }
    }
    // Where there is nothing but a standard input, the new process shares our memory until it executes the
    // command, which takes a fraction of a fork.
    if !mappings.is_empty() {
        command.fd_mappings(mappings)?;
    }
    Ok(reserved)
}

/// The forwarded signals but those that whoever started us ignores, as nohup does: they stay
/// ignored, also in the command.
fn not_ignored() -> io::Result<Vec<i32>> {
    // All of it in one read: the kernel writes it anew for each.
    let mut status = String::with_capacity(STATUS);
    File::open("/proc/self/status")?.take(STATUS as u64).read_to_string(&mut status)?;
    Ok(FORWARDED.into_iter().filter(|&signal| !is_ignored(&status, signal)).collect())
}

fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    exit_code_of(status.code(), status.signal())
}

/// The exit code by which a shell tells how a process has ended.
pub(crate) fn exit_code_of(code: Option<i32>, signal: Option<i32>) -> ExitCode {
    let code = code.or_else(|| signal.map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(crate::REFUSED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_kernels_mask() {
        let status = "SigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";

        let ignored = FORWARDED.map(|signal| is_ignored(status, signal));

        assert_eq!(ignored, [true, false, false, false, false, false]);
        assert!(!is_ignored("", SIGHUP));
    }

    #[test]
    fn seats_are_counted_from_standard_input_or_from_a_number() {
        assert_eq!(Seats::InputFirst.numbers().take(3).collect::<Vec<_>>(), [0, 3, 4]);
        assert_eq!(Seats::From(7).numbers().take(3).collect::<Vec<_>>(), [7, 8, 9]);
    }
}
