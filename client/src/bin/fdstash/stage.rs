//! `fdstash become`, which `fdstash run --store` starts itself as, and which becomes the service: only a
//! process that has been started knows its number, and that is what `LISTEN_PID` says.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use anyhow::ensure;
use clap::Args;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};

use crate::spawn::{self, Seats};

/// Become the command of `fdstash run`
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct Stage {
    /// The process that has started this one
    parent: i32,

    /// How many files the command may have open; none, if any number
    #[arg(long, value_name = "N")]
    files: Option<u64>,

    /// The command to become, with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What has this very program become a command, in a process of its own.
/// It may have so many files open, whatever the caller may.
pub(crate) fn command(words: &[OsString], files: Option<u64>) -> Command {
    // Not its path, where another version may stand by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("fdstash").arg("become").arg(std::process::id().to_string());
    command.args(files.map(|files| format!("--files={files}")));
    command.arg("--").args(words);
    command
}

impl Stage {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        // Nobody would do what the service wishes, and the next start would find it in the way.
        set_parent_process_death_signal(Some(Signal::TERM))?;
        let parent = getppid().map(Pid::as_raw_pid);
        ensure!(parent == Some(self.parent), "who has started this has ended");
        let limit = Rlimit { current: self.files, ..getrlimit(Resource::Nofile) };
        setrlimit(Resource::Nofile, limit)?;
        let mut command = spawn::of(&self.command)?;
        let own = std::process::id().to_string();
        if env::var_os("LISTEN_FDS").is_some() {
            command.env("LISTEN_PID", &own);
        }
        // Our parent is whom the manager above has meant.
        let watched = env::var_os("WATCHDOG_PID");
        if watched.as_deref() == Some(OsStr::new(&self.parent.to_string())) {
            command.env("WATCHDOG_PID", &own);
        }
        spawn::become_it(command, Vec::new(), Seats::From(3))
    }
}
