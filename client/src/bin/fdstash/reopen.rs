//! `fdstash reopen`.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use fdstash::{Access, Name, Reopening};

use crate::{
    Door, Misuse,
    progress::Progress,
    spawn::Seats,
    take::{finish, start_and_commit},
    words::{AccessWord, Switch},
};

const EXAMPLES: &str = "\
Examples:
  fdstash reopen vm7-disk0 --direct on
  fdstash reopen vm7-disk0 vm7-disk1 --access read    # both, or none
  fdstash reopen vm7-disk0 --direct on -- ./hand-over
  fdstash reopen vm7-disk0 --hand-out read -- ./hand-over    # read-only from here on,
  fdstash reopen vm7-disk0 -- ./hand-over                    # and back

The stash opens the very file that it keeps, whatever its path is called today, and lets go of the
old one only when the new one stands; what is not named stays as it is. COMMAND gets descriptors
of the same kind: the first as its standard input, the others from 3 on. If it cannot be executed,
the stash keeps all as it was.

--access narrows what is kept too, and to widen that again takes rights of your own on the file;
--hand-out narrows only what COMMAND gets.";

/// Have the stash open kept files anew, with other flags
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Reopen {
    /// Which ones: all of them, or none
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Name>,

    /// Open for this
    #[arg(long)]
    access: Option<AccessWord>,

    /// Hand out no more than this to COMMAND, of what is kept
    #[arg(long, value_name = "ACCESS")]
    hand_out: Option<AccessWord>,

    /// Past the page cache (O_DIRECT)
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    direct: Option<Switch>,

    /// Each write waits for the disk (O_SYNC)
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    sync: Option<Switch>,

    /// Each write waits for its data to be on the disk (O_DSYNC)
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    dsync: Option<Switch>,

    /// Each write goes to the end (O_APPEND)
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    append: Option<Switch>,

    /// Do not wait for reads and writes (O_NONBLOCK)
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    nonblock: Option<Switch>,

    /// Leave the time of last access alone (O_NOATIME)
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    noatime: Option<Switch>,

    /// Open what stands at this path now, not the file that is kept; for those alone whom
    /// the daemon's policy lets
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,

    /// The command to run with the descriptors, with its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Reopen {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let reopenings = self.reopenings()?;
        let mut client = door.connect()?;
        let progress = Progress::soon("opening the files");
        if self.command.is_empty() {
            client.reopen(&reopenings)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut transaction = client.transaction()?;
        let handed = transaction.reopen(&reopenings)?;
        drop(progress);
        let started = start_and_commit(transaction, &self.command, handed, Seats::InputFirst);
        drop(client);
        finish(started)
    }

    fn reopenings(&self) -> anyhow::Result<Vec<Reopening>> {
        if self.path.is_some() && self.names.len() > 1 {
            return Err(Misuse("--path is for one name: several would all be the same file").into());
        }
        // The daemon stands in a directory of its own.
        let path = self.path.as_ref().map(std::path::absolute).transpose()?;
        let path = path.map(|path| path.into_os_string().into_string());
        let path = path.transpose().ok().context("the path is not UTF-8, and so has no JSON")?;
        let reopenings = self.names.iter().map(|name| Reopening {
            access: self.access.map(Access::from),
            hand_out: self.hand_out.map(Access::from),
            direct: self.direct.map(bool::from),
            sync: self.sync.map(bool::from),
            dsync: self.dsync.map(bool::from),
            append: self.append.map(bool::from),
            nonblock: self.nonblock.map(bool::from),
            noatime: self.noatime.map(bool::from),
            path: path.clone(),
            ..Reopening::new(name.clone())
        });
        Ok(reopenings.collect())
    }
}
