//! `fdstash transfer`.
//!
//! Two daemons have no common commit. So what moves is taken in a transaction of the one, kept by the other,
//! and only then let go of by the first: whoever dies between, it is at one of them or at both, and never at
//! none. Where it is at both, it is the same open file description there, by which the next transfer sees
//! that it has nothing to bring, and has the first let go.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use clap::Args;
use fdstash::{Entry, Error, Gift, Handed, Name, Pattern, Refusal, Share, blocking::Client};
use rustix::process::geteuid;

use crate::{
    Door, Misuse,
    arrival::{Renaming, entries_of, keep, persist, raise_open_files, told},
    complain,
    progress::Progress,
};

/// How many entries a part has: as many descriptors as go into one message.
const PART: usize = 253;

/// How long a name is waited for that somebody else holds.
const HELD: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  fdstash transfer /run/old.sock /run/fdstash/org.fdstash.Stash           # everything
  fdstash transfer /run/old.sock /run/new.sock 'vm7-*' --prefix old/
  fdstash transfer /run/old.sock /run/new.sock 'vm7-*' --copy

All of them are moved, or none: where a name is taken at TO, or something is refused there, all stay at FROM.
Expiry, labels, shares and the rest go along; who moves them is their giver from then on, and shares them
with whom they were from. Ephemeral entries stay, since they end with a connection that cannot be moved.

Whoever is killed meanwhile, nothing is lost. Where it happens between the moment at which TO keeps them and
that at which FROM lets go, both have them, until the same command is run again: what is at TO already, the
very same open file, is not brought again, and leaves FROM.";

/// Move entries from one daemon to another
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Transfer {
    /// The socket of the daemon that has them
    from: PathBuf,

    /// The socket of the daemon that is to have them
    to: PathBuf,

    /// Only names that match one of these: '*' stands for any characters, '?' for one
    #[arg(value_name = "PATTERN", value_parser = Pattern::new)]
    patterns: Vec<Pattern>,

    /// Leave them at FROM too; offset, flags and locks are shared
    #[arg(long)]
    copy: bool,

    /// Move more than one transaction holds, in parts, each of which is moved or is not
    #[arg(long)]
    in_parts: bool,

    #[command(flatten)]
    renaming: Renaming,
}

/// Both daemons, and what has become of what is moved.
struct Way {
    from: Client,
    /// A second connection, which sees what the first one's transaction holds.
    looker: Client,
    to: Client,
    /// Whether TO has all of the part that is being moved.
    has_arrived: bool,
    /// How many were at TO already.
    already: usize,
}

impl Transfer {
    pub(crate) fn run(mut self, door: &Door) -> anyhow::Result<ExitCode> {
        if door.0.is_some() {
            return Err(Misuse("FROM and TO say where the daemons are: leave out --socket").into());
        }
        if self.patterns.is_empty() {
            self.patterns.push(Pattern::all());
        }
        if self.renaming.is_none() && self.is_one_daemon() {
            return Err(Misuse("FROM and TO are one daemon, and the names would stay").into());
        }
        raise_open_files();
        let mut way = Way {
            from: Client::connect_to(&self.from)?,
            looker: Client::connect_to(&self.from)?,
            to: Client::connect_to(&self.to)?,
            has_arrived: false,
            already: 0,
        };
        let names = self.names(&mut way.looker)?;
        let moved = self.move_all(&mut way, &names)?;
        let verb = if self.copy { "copied" } else { "moved" };
        let already = match way.already {
            0 => String::new(),
            already => format!(", {already} of which were there already"),
        };
        writeln!(io::stdout(), "{verb} {moved}{already}")?;
        Ok(ExitCode::SUCCESS)
    }

    fn is_one_daemon(&self) -> bool {
        let identity = |path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        identity(&self.from).is_some_and(|from| identity(&self.to) == Some(from))
    }

    /// The names of what is to be moved, each of which can have its new one.
    fn names(&self, from: &mut Client) -> anyhow::Result<Vec<Name>> {
        let mut entries = Vec::new();
        for pattern in &self.patterns {
            entries.extend(from.list(pattern)?);
        }
        let (ephemeral, entries): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| entry.ephemeral == Some(true));
        let own = geteuid().as_raw();
        let untold = entries.iter().filter(|entry| entry.share.is_none() && entry.giver.uid != own);
        let untold: BTreeSet<_> = untold.map(|entry| &entry.name).collect();
        if !untold.is_empty() {
            let untold: Vec<_> = untold.into_iter().collect();
            complain(format_args!(
                "with whom their givers share them is told to them and to root alone, and does not go \
                 along: {}",
                told(&untold)
            ));
        }
        let names: BTreeSet<_> = entries.into_iter().map(|entry| entry.name).collect();
        let ephemeral: BTreeSet<_> = ephemeral.iter().map(|entry| &entry.name).collect();
        if !ephemeral.is_empty() {
            let ephemeral: Vec<_> = ephemeral.into_iter().collect();
            complain(format_args!(
                "these stay, since they end with their givers' connections: {}",
                told(&ephemeral)
            ));
        }
        if names.is_empty() {
            let from = self.from.display();
            bail!(
                "there is nothing to move at {from}: `fdstash --socket {from} list` shows what is there"
            );
        }
        for name in &names {
            self.renaming.rename(name.as_str())?;
        }
        Ok(names.into_iter().collect())
    }

    /// Tells how many were moved.
    fn move_all(&self, way: &mut Way, names: &[Name]) -> anyhow::Result<usize> {
        let verb = if self.copy { "copying" } else { "moving" };
        let _progress = Progress::soon(format!("{verb} {}", names.len()));
        let mut part = if self.in_parts { PART } else { names.len() };
        let (mut moved, mut rest) = (0, names);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(part.min(rest.len()));
            match self.move_part(way, now) {
                Ok(count) => {
                    moved += count;
                    rest = later;
                }
                Err(error) => match most_names(&error).filter(|most| (1..part).contains(most)) {
                    Some(most) if self.in_parts => part = most,
                    Some(most) => {
                        return Err(error.context(format!(
                            "nothing was moved: these are {}, and one transaction holds {most}: \
                             say --in-parts to move so many at a time",
                            names.len()
                        )));
                    }
                    None => return Err(self.explained(error, way, moved)),
                },
            }
        }
        Ok(moved)
    }

    fn move_part(&self, way: &mut Way, names: &[Name]) -> anyhow::Result<usize> {
        way.has_arrived = false;
        persist(|| self.try_move(way, names))
    }

    /// Moves those of the names that there still are, and tells how many.
    fn try_move(&self, way: &mut Way, names: &[Name]) -> anyhow::Result<usize> {
        let at_from = || format!("at {}", self.from.display());
        let there = entries_of(&mut way.looker, names).with_context(at_from)?;
        let names: Vec<_> = there.into_iter().map(|entry| entry.name).collect();
        let mut transaction = way.from.transaction().with_context(at_from)?;
        let handed = if self.copy {
            transaction.copy_within(&names, HELD)
        } else {
            transaction.take_within(&names, HELD)
        };
        let handed = handed.with_context(at_from)?;
        // What is known of them now stays true, since the transaction holds them.
        let entries = entries_of(&mut way.looker, &names).with_context(at_from)?;
        if entries.len() < names.len() {
            // The daemon has come back meanwhile, without the transaction.
            return Err(Error::RolledBack).with_context(at_from);
        }
        let gifts = entries.into_iter().zip(handed).map(|(entry, handed)| self.gift(entry, handed));
        let gifts = gifts.collect::<anyhow::Result<Vec<_>>>()?;
        let already =
            keep(&mut way.to, &gifts).with_context(|| format!("at {}", self.to.display()))?;
        // What is there since an earlier try of this very command, was not there before it.
        way.already += if way.has_arrived { 0 } else { already };
        way.has_arrived = true;
        if self.copy {
            transaction.rollback();
        } else {
            transaction.commit().with_context(at_from)?;
        }
        Ok(gifts.len())
    }

    fn gift(&self, entry: Entry, handed: Handed<OwnedFd>) -> anyhow::Result<Gift<OwnedFd>> {
        let mut share = entry.share.unwrap_or_default();
        share_with_giver(&mut share, entry.giver.uid);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros();
        let now = u64::try_from(now)?;
        Ok(Gift {
            may_reopen: Some(entry.may_reopen).filter(|most| *most != entry.access),
            expire_usec: entry.expires_at_usec.map(|at| at.saturating_sub(now).max(1)),
            close_on_hangup: entry.close_on_hangup.unwrap_or_default(),
            share,
            labels: entry.labels,
            ..Gift::new(self.renaming.rename(entry.name.as_str())?, handed.fd)
        })
    }

    /// Says of an error what is where.
    fn explained(&self, error: anyhow::Error, way: &Way, before: usize) -> anyhow::Error {
        let may_be_done = error
            .downcast_ref()
            .is_some_and(|error| matches!(error, Error::ConnectionLost { may_be_done: true }));
        let (from, to) = (self.from.display(), self.to.display());
        let before =
            if before > 0 { format!("{before} were moved before; ") } else { String::new() };
        let what = match (way.has_arrived, may_be_done) {
            (false, false) if before.is_empty() => "nothing was moved".to_owned(),
            (false, false) => format!("{before}the others are at {from} as they were"),
            (false, true) => format!(
                "{before}the others are at {from}, and may be at {to} as well: when that is there \
                 again, run the same command, which finishes it"
            ),
            (true, _) => format!(
                "{before}{to} has what {from} may still have as well: when that is there again, run \
                 the same command, which finishes it"
            ),
        };
        error.context(what)
    }
}

/// Who gave it could use it, and still can, though it is no longer its giver.
fn share_with_giver(share: &mut Share, giver: u32) {
    let is_needed = giver != geteuid().as_raw() && giver != 0;
    if is_needed && !share.uids.contains(&giver) {
        share.uids.push(giver);
    }
}

/// How many names a transaction may have, if that is what stood against it.
fn most_names(error: &anyhow::Error) -> Option<usize> {
    let Error::Refused(Refusal::LimitExceeded { limit, value }) = error.downcast_ref()? else {
        return None;
    };
    (limit == "namesPerTransaction").then(|| usize::try_from(*value).ok()).flatten()
}
