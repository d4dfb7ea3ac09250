//! `fdstash give`.

use std::{
    fs::File,
    io::{self, IsTerminal},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use fdstash::{Access, Gift, Labels, Name, Share};
use rustix::fs::{OFlags, fstat};

use crate::{
    Door, Misuse, descriptor,
    words::{AccessWord, span},
};

const EXAMPLES: &str = "\
Examples:
  fdstash give vm7-disk0 /var/lib/images/vm7.img
  fdstash give vm7-log --append --access write /var/log/vm7.log
  fdstash give ticket --expire 10min < /run/ticket
  fdstash give listener --fd 3 --share-gid 107
  fdstash give vm7-disk0 --fresh --may-reopen read-write --label vm=vm7 vm7.img

The stash gets a duplicate, which shares offset, flags and locks with the one that is given, unless
--fresh is said. A name that is taken loses its old descriptor, unless --exclusive is said.";

/// Keep a descriptor under a name
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Give {
    /// What to call it: printable ASCII without ':'
    name: Name,

    /// The file to open and give [default: standard input, as it is]
    file: Option<PathBuf>,

    /// Give this descriptor, with which the command was started
    #[arg(long, value_name = "N", conflicts_with = "file", value_parser = clap::value_parser!(i32).range(0..))]
    fd: Option<i32>,

    /// Open FILE for this [default: read-write where possible, else read]
    #[arg(long, requires = "file")]
    access: Option<AccessWord>,

    /// Open FILE for appending
    #[arg(long, requires = "file")]
    append: bool,

    /// Open FILE past the page cache
    #[arg(long, requires = "file")]
    direct: bool,

    /// Keep an open file description of the stash's own, which nobody else can change
    #[arg(long)]
    fresh: bool,

    /// The most that a reopen may open it for [default: what it is open for]
    #[arg(long, value_name = "ACCESS")]
    may_reopen: Option<AccessWord>,

    /// Close it after so long: seconds, or as in '1h 30min'
    #[arg(long, value_name = "DURATION", value_parser = span)]
    expire: Option<Duration>,

    /// Close it when its other end is gone
    #[arg(long)]
    close_on_hangup: bool,

    /// Let this user use it too (may be repeated)
    #[arg(long = "share-uid", value_name = "UID")]
    share_uids: Vec<u32>,

    /// Let members of this group use it too (may be repeated)
    #[arg(long = "share-gid", value_name = "GID")]
    share_gids: Vec<u32>,

    /// A note that is shown with it (may be repeated)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,

    /// Refuse if the name is taken
    #[arg(long)]
    exclusive: bool,
}

impl Give {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let fd = self.descriptor()?;
        let gift = Gift {
            fresh: self.fresh,
            may_reopen: self.may_reopen.map(Access::from),
            expire_usec: self.expire.map(|span| span.as_micros().try_into().unwrap_or(u64::MAX)),
            close_on_hangup: self.close_on_hangup,
            share: Share { uids: self.share_uids, gids: self.share_gids },
            labels: Labels::from_iter(self.labels),
            ..Gift::new(self.name, fd)
        };
        let mut client = door.connect()?;
        if self.exclusive {
            client.give_new(&[gift])?;
        } else {
            client.give(&[gift])?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn descriptor(&self) -> anyhow::Result<OwnedFd> {
        if let Some(file) = &self.file {
            let mut flags = OFlags::empty();
            flags.set(OFlags::APPEND, self.append);
            flags.set(OFlags::DIRECT, self.direct);
            return descriptor::opened(file, self.access.map(Access::from), flags);
        }
        if let Some(number) = self.fd {
            return descriptor::inherited(number);
        }
        let input = io::stdin();
        if input.is_terminal() {
            return Err(Misuse(
                "standard input is a terminal: name a FILE, or say --fd 0 to give the terminal",
            )
            .into());
        }
        // What a program is started with that is to read nothing: hardly what was meant.
        if fstat(&input)?.st_rdev == fstat(File::open("/dev/null")?)?.st_rdev {
            return Err(Misuse(
                "standard input is /dev/null: name a FILE after the NAME, or say --fd 0 to give it",
            )
            .into());
        }
        Ok(input.as_fd().try_clone_to_owned()?)
    }
}

/// A label, as KEY=VALUE.
pub(crate) fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("a label is KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
