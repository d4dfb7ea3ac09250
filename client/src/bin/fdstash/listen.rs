//! `fdstash listen`.

mod address;

use std::{
    fs,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use fdstash::{Gift, Labels, Name, Refusal, Share, blocking::Client};

use crate::{Door, Misuse, give::label, words::mode};

use self::address::{Address, Bound};

/// How often the daemon may end, or another hold the name, while a socket is made.
const ATTEMPTS: usize = 20;

/// How long another's transaction is waited for between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  fdstash listen web tcp:8080                       # all addresses, IPv6 and IPv4
  fdstash listen admin tcp:127.0.0.1:9000 --if-missing
  fdstash listen web6 'tcp6:[::1]:80'               # IPv6 alone
  fdstash listen dns udp:127.0.0.1:53
  fdstash listen app unix:/run/app.sock --mode 660
  fdstash listen bus unix:@app                      # an abstract name, without a file
  port=$(fdstash listen any tcp:127.0.0.1:0)        # writes the address that it has got

Then start a program with it: `fdstash run --take web -- COMMAND`. The socket is the stash's, so
that whoever connects while no program runs waits, and is not refused.

ADDRESS is tcp, tcp4, tcp6, udp, udp4 or udp6 with [HOST:]PORT, where HOST is a number and no name;
or unix, unix-dgram or unix-seqpacket with /PATH or @NAME. As in systemd's ListenStream=, `tcp:` and
`unix:` can be left out. A socket's file that nobody listens at any more is removed first. A name
that is taken is refused before anything is bound.";

/// Make a listening socket and keep it under a name
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Listen {
    /// What to call it: printable ASCII without ':'
    name: Name,

    /// Where to listen, as tcp:PORT, tcp:HOST:PORT, udp:PORT, unix:/PATH
    address: Address,

    /// Do nothing if the name has a socket at this address already
    #[arg(long)]
    if_missing: bool,

    /// How many connections may wait to be accepted [default: the most that the kernel lets]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    backlog: Option<i32>,

    /// The mode of a Unix socket's file, which says who may connect [default: what the umask leaves]
    #[arg(long, value_name = "MODE", value_parser = mode)]
    mode: Option<u32>,

    /// Let this user use it too (may be repeated)
    #[arg(long = "share-uid", value_name = "UID")]
    share_uids: Vec<u32>,

    /// Let members of this group use it too (may be repeated)
    #[arg(long = "share-gid", value_name = "GID")]
    share_gids: Vec<u32>,

    /// A note that is shown with it (may be repeated)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
}

impl Listen {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        if self.mode.is_some() && self.address.path().is_none() {
            return Err(Misuse("--mode is for the file of a Unix socket").into());
        }
        let mut client = door.connect()?;
        let socket = self.address.socket().context("could not make a socket")?;
        let Some(bound) = self.bind_and_give(&mut client, &socket)? else {
            self.check(&mut client)?;
            return Ok(ExitCode::SUCCESS);
        };
        if self.address.has_any_port() {
            writeln!(io::stdout(), "{bound}")?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Holds the name, binds, and lets go of the name when the stash has the socket: so nothing is bound
    /// whose name is not free. Tells none where the name is taken and may be.
    fn bind_and_give(
        &self,
        client: &mut Client,
        socket: &OwnedFd,
    ) -> anyhow::Result<Option<Bound>> {
        let gifts = [self.gift(socket)];
        let mut bound = None;
        let mut attempts = ATTEMPTS;
        loop {
            attempts -= 1;
            let mut transaction = client.transaction()?;
            match transaction.give_new(&gifts) {
                Ok(()) => {}
                Err(fdstash::Error::Refused(Refusal::AlreadyExists { .. })) if self.if_missing => {
                    return Ok(None);
                }
                Err(fdstash::Error::Refused(Refusal::AlreadyExists { .. })) => {
                    let name = &self.name;
                    bail!(
                        "there is an entry \"{name}\" already: --if-missing lets it be if it is a socket \
                         at {}, and `fdstash close {name}` makes room",
                        self.address
                    );
                }
                Err(fdstash::Error::Refused(Refusal::Busy { .. })) if attempts > 0 => {
                    drop(transaction);
                    thread::sleep(PAUSE);
                    continue;
                }
                Err(fdstash::Error::ConnectionLost { may_be_done: false }) if attempts > 0 => {
                    continue;
                }
                Err(error) => return Err(self.unbound(bound, error)),
            }
            if bound.is_none() {
                bound = Some(self.bind(socket)?);
            }
            match transaction.commit() {
                Ok(()) => return Ok(bound),
                Err(fdstash::Error::ConnectionLost { may_be_done: false }) if attempts > 0 => {}
                Err(error) => return Err(self.unbound(bound, error)),
            }
        }
    }

    fn gift<'a>(&self, socket: &'a OwnedFd) -> Gift<&'a OwnedFd> {
        Gift {
            share: Share { uids: self.share_uids.clone(), gids: self.share_gids.clone() },
            labels: Labels::from_iter(self.labels.iter().cloned()),
            ..Gift::new(self.name.clone(), socket)
        }
    }

    fn bind(&self, socket: &OwnedFd) -> anyhow::Result<Bound> {
        let outcome = self.address.bind(socket, self.mode, self.backlog);
        outcome.with_context(|| format!("could not listen at {}", self.address))
    }

    /// Removes the file of a socket that the stash has not, and so nobody will serve.
    fn unbound(&self, bound: Option<Bound>, error: fdstash::Error) -> anyhow::Error {
        let is_kept = matches!(error, fdstash::Error::ConnectionLost { may_be_done: true });
        if let Some(path) = self.address.path().filter(|_| bound.is_some() && !is_kept) {
            let _ = fs::remove_file(path);
        }
        error.into()
    }

    /// Whether what is kept under the name is what would have been made.
    fn check(&self, client: &mut Client) -> anyhow::Result<()> {
        let handed = client.copy(std::slice::from_ref(&self.name))?;
        let kept = handed.first().context("the daemon handed out nothing")?;
        let name = &self.name;
        let advice = format!("`fdstash close {name}` first, or choose another name");
        let bound = Bound::of(kept.fd.as_fd())
            .with_context(|| format!("entry \"{name}\" is not a socket: {advice}"))?;
        anyhow::ensure!(
            self.address.fits(&bound),
            "entry \"{name}\" listens at {bound}, and not at {}: {advice}",
            self.address
        );
        Ok(())
    }
}
