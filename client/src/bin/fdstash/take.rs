//! `fdstash take`.

use std::{
    ffi::OsString,
    os::fd::OwnedFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use fdstash::{
    Handed, Name,
    blocking::{Client, Transaction},
};

use crate::{
    Door,
    progress::Progress,
    spawn::{NotRunning, Running, Seats, start},
    words::{quoted, span},
};

/// How often the daemon may end while something is taken.
const ATTEMPTS: usize = 20;

const EXAMPLES: &str = "\
Examples:
  fdstash take vm7-disk0 -- sha256sum
  fdstash take listener connection --fd 3 -- /usr/bin/server    # 3 and 4
  fdstash take vm7-disk0 --fresh -- dd of=backup.img bs=1M
  fdstash take ticket --wait 30 -- cat

The stash lets go of the descriptors when COMMAND has been executed with them. If it cannot be, or
anything else fails before, they stay. The environment says nothing of them. COMMAND is a process of its
own: fdstash waits for it, passes signals on to it, and ends as it does.";

/// Run a command with descriptors that leave the stash
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Take {
    /// Which ones: all of them, or none
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Name>,

    /// Leave them in the stash, and share offset, flags and locks with it
    #[arg(long)]
    copy: bool,

    /// Leave them in the stash, and open the same files anew, so that nothing is shared
    #[arg(long)]
    fresh: bool,

    /// Wait so long for names that are not there or held by another: seconds, or as in '1min 30s'
    #[arg(long, value_name = "SECS", value_parser = span)]
    wait: Option<Duration>,

    /// Put them at this number and those after it [default: the first at 0, the others from 3 on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    fd: Option<i32>,

    /// The command to run, with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Take {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let mut client = door.connect()?;
        let started = if self.copy || self.fresh {
            let handed = self.copies(&mut client)?;
            start(&self.command, fds_of(handed), self.seats())
        } else {
            self.take(&mut client)?
        };
        drop(client);
        finish(started)
    }

    /// Takes in a transaction, and again in another one where the daemon ends meanwhile.
    fn take(&self, client: &mut Client) -> Result<Result<Running, NotRunning>, fdstash::Error> {
        let wait = self.wait.unwrap_or_default();
        let began = Instant::now();
        let mut attempts = ATTEMPTS;
        loop {
            attempts -= 1;
            let mut transaction = client.transaction()?;
            let progress = self.progress();
            let handed = transaction.take_within(&self.names, wait.saturating_sub(began.elapsed()));
            drop(progress);
            match handed {
                Err(fdstash::Error::ConnectionLost { may_be_done: false }) if attempts > 0 => {}
                handed => {
                    return Ok(start_and_commit(transaction, &self.command, handed?, self.seats()));
                }
            }
        }
    }

    fn copies(&self, client: &mut Client) -> Result<Vec<Handed<OwnedFd>>, fdstash::Error> {
        let wait = self.wait.unwrap_or_default();
        let _progress = self.progress();
        if self.fresh {
            client.copy_fresh_within(&self.names, wait)
        } else {
            client.copy_within(&self.names, wait)
        }
    }

    /// For as long as nothing runs that has the terminal.
    fn progress(&self) -> Progress {
        let names = self.names.iter().map(|name| quoted(name.as_str())).collect::<Vec<_>>();
        Progress::soon(format!("waiting for {}", names.join(", ")))
    }

    fn seats(&self) -> Seats {
        self.fd.map_or(Seats::InputFirst, Seats::From)
    }
}

/// Makes the transaction final when the command has been executed, and undoes it when it could not
/// be.
pub(crate) fn start_and_commit(
    transaction: Transaction<'_>,
    command: &[OsString],
    handed: Vec<Handed<OwnedFd>>,
    seats: Seats,
) -> Result<Running, NotRunning> {
    let running = match start(command, fds_of(handed), seats) {
        Ok(running) => running,
        Err(why) => {
            transaction.rollback();
            return Err(why);
        }
    };
    if let Err(error) = transaction.commit() {
        crate::complain(format_args!("the command has the descriptors, but: {error}"));
        crate::complain(format_args!("the stash may still keep them as they were before"));
    }
    Ok(running)
}

/// Waits for the command, if there is one.
pub(crate) fn finish(started: Result<Running, NotRunning>) -> anyhow::Result<ExitCode> {
    match started {
        Ok(running) => running.wait(),
        Err(NotRunning::NotExecuted(code)) => Ok(code),
        Err(NotRunning::Failed(error)) => Err(error),
    }
}

fn fds_of(handed: Vec<Handed<OwnedFd>>) -> Vec<OwnedFd> {
    handed.into_iter().map(|handed| handed.fd).collect()
}
