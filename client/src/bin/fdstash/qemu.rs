//! `fdstash qemu`: gives a running QEMU the files of an image, and has them opened anew.

mod attach;
mod detach;
mod foreign;
mod header;
mod libvirt;
mod nodes;
mod qmp;
mod reopen;
mod status;
mod vmdk;
mod words;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use self::{
    foreign::Foreign,
    nodes::{Image, Seen, Set},
    qmp::{Monitor, Qmp},
};
use crate::{Door, Misuse, words::span};

const EXAMPLES: &str = "\
Examples:
  fdstash give vm7-disk0 --fresh vm7.qcow2
  fdstash qemu attach --qmp /run/vm7.qmp --node disk0 --image qcow2=vm7-disk0
  fdstash qemu reopen --qmp /run/vm7.qmp --node disk0 --direct on
  fdstash qemu status --qmp /run/vm7.qmp --node disk0
  fdstash qemu detach --qmp /run/vm7.qmp --node disk0
  fdstash qemu reopen --libvirt qemu:///system --domain vm7 --disk vda --direct on

QEMU's socket is that of -qmp unix:/run/vm7.qmp,server=on,wait=off. To start it on an image that
is kept, start it with -S and without that disk, attach the image, add the device, and let the
guest run (cont). What belongs to which entry QEMU remembers itself, beside the descriptors
(query-fdsets shows it); who does not trust it there, names the entries at each reopen (--name).";

/// How often the daemon may end before QEMU has any part of what is done.
const ATTEMPTS: usize = 20;

/// Whether a call was undone since the daemon has ended, so that it can be done anew.
fn is_undone(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(fdstash::Error::ConnectionLost { may_be_done: false } | fdstash::Error::RolledBack)
    )
}

/// Give a running QEMU the files of an image, and have them opened anew while it runs
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Qemu {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Attach(attach::Attach),
    Reopen(reopen::Reopen),
    Detach(detach::Detach),
    Status(status::Status),
}

impl Qemu {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Attach(attach) => attach.run(door),
            Verb::Reopen(reopen) => reopen.run(door),
            Verb::Detach(detach) => detach.run(),
            Verb::Status(status) => status.run(door),
        }
    }
}

/// Which image of which QEMU.
#[derive(Args)]
struct Target {
    /// The socket of QEMU's QMP monitor
    #[arg(long, value_name = "SOCKET")]
    qmp: PathBuf,

    /// The image, by the name of its topmost node
    #[arg(long, value_parser = words::node)]
    node: String,

    /// Wait at most so long for each of QEMU's answers
    #[arg(long, value_name = "SECS", value_parser = span, default_value = "10")]
    limit: Duration,
}

/// The same, or which disk of which domain of libvirt's.
#[derive(Args)]
struct Site {
    /// The socket of QEMU's QMP monitor
    #[arg(long, value_name = "SOCKET", requires = "node", required_unless_present = "uri")]
    qmp: Option<PathBuf>,

    /// The image, by the name of its topmost node
    #[arg(long, value_parser = words::node, requires = "qmp")]
    node: Option<String>,

    #[command(flatten)]
    disk: Option<libvirt::Disk>,

    /// Wait at most so long for each of QEMU's answers
    #[arg(long, value_name = "SECS", value_parser = span, default_value = "10")]
    limit: Duration,
}

impl Site {
    fn monitor(&self) -> anyhow::Result<Box<dyn Monitor>> {
        match (&self.disk, &self.qmp) {
            (Some(disk), _) => Ok(Box::new(disk.monitor(self.limit)?)),
            (None, Some(qmp)) => Ok(Box::new(Qmp::connect(qmp, self.limit)?)),
            (None, None) => Err(Misuse("--qmp or --libvirt must be said").into()),
        }
    }

    /// The image that was attached, or that libvirt has given, by its topmost node; it has no layer
    /// if there is none.
    fn find(
        &self,
        monitor: &dyn Monitor,
        foreign: &Foreign,
        sets: &[Set],
        seen: &BTreeMap<String, Seen>,
    ) -> anyhow::Result<(String, Image)> {
        if let Some(disk) = &self.disk {
            return disk.image(monitor, self.limit, foreign, sets, seen);
        }
        let node = self.node.clone().unwrap_or_default();
        let image = Image::find(&node, sets, seen);
        Ok((node, image))
    }
}

impl Target {
    fn monitor(&self) -> anyhow::Result<Box<dyn Monitor>> {
        Ok(Box::new(Qmp::connect(&self.qmp, self.limit)?))
    }
}
