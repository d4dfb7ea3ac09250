//! What comes from elsewhere to a daemon: under which names, and all of it or nothing, where what an earlier
//! try has brought already is no obstacle.

use std::{os::fd::OwnedFd, time::Duration};

use anyhow::bail;
use clap::Args;
use fdstash::{Entry, Error, Gift, Name, Pattern, Refusal, blocking::Client};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::kcmp::is_same;

/// How many names a message about names has.
const TOLD: usize = 5;

/// The pauses before something is tried again that failed in passing, some two seconds in all.
const PAUSES_MSEC: [u64; 9] = [0, 5, 20, 50, 100, 200, 400, 600, 800];

/// What becomes of names.
#[derive(Args)]
pub(crate) struct Renaming {
    /// Take this off the beginning of the names: all of them must begin so
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    strip_prefix: String,

    /// Put this before the names
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    prefix: String,
}

impl Renaming {
    /// Whether it leaves all names as they are.
    pub(crate) fn is_none(&self) -> bool {
        self.prefix == self.strip_prefix
    }

    /// The name that something has where it comes to.
    ///
    /// # Errors
    ///
    /// If it would be none.
    pub(crate) fn rename(&self, name: &str) -> anyhow::Result<Name> {
        let Some(rest) = name.strip_prefix(&self.strip_prefix) else {
            bail!("{name:?} does not begin with {:?}, which is to be taken off", self.strip_prefix);
        };
        let renamed = format!("{}{rest}", self.prefix);
        Name::new(&renamed).map_err(|why| anyhow::anyhow!("{name:?} cannot be {renamed:?}: {why}"))
    }
}

/// Keeps descriptors at a daemon, all of them or none, and tells how many of them were there already:
/// under their names, and the very same open file descriptions, which are left as they are.
///
/// # Errors
///
/// If something else stands under one of the names, and any error of the daemon's; then none is kept,
/// unless it is [`Error::ConnectionLost`] that may be done.
pub(crate) fn keep(daemon: &mut Client, gifts: &[Gift<OwnedFd>]) -> anyhow::Result<usize> {
    match daemon.give_new(gifts) {
        Ok(()) => return Ok(0),
        Err(Error::Refused(Refusal::AlreadyExists { .. })) => {}
        Err(error) => return Err(error.into()),
    }
    let names: Vec<_> = gifts.iter().map(|gift| gift.name.clone()).collect();
    let standing: Vec<_> =
        entries_of(daemon, &names)?.into_iter().map(|entry| entry.name).collect();
    let is_standing = |gift: &&Gift<_>| standing.binary_search(&gift.name).is_ok();
    let mut transaction = daemon.transaction()?;
    // What has been copied in a transaction is held in it, so it is still there when that is final.
    let copies = transaction.copy(&standing)?;
    let mut others = Vec::new();
    for (gift, copy) in gifts.iter().filter(is_standing).zip(copies) {
        match is_same(&gift.fd, &copy.fd) {
            Ok(true) => {}
            Ok(false) => others.push(&gift.name),
            Err(error) => bail!(
                "{:?} stands there already, and the kernel does not tell if it is the same (kcmp: {error})",
                gift.name
            ),
        }
    }
    if !others.is_empty() {
        bail!("something else stands there already under {}", told(&others));
    }
    let rest: Vec<_> = gifts.iter().filter(|gift| !is_standing(gift)).map(borrowed).collect();
    transaction.give_new(&rest)?;
    transaction.commit()?;
    Ok(standing.len())
}

/// Those of the entries with these names, which are in their order, that there are.
pub(crate) fn entries_of(daemon: &mut Client, names: &[Name]) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::with_capacity(names.len());
    for name in names {
        // A name with a '*' or '?' in it matches itself, and may match others.
        let listed = daemon.list(&Pattern::new(name.as_str())?)?;
        entries.extend(listed.into_iter().find(|entry| entry.name == *name));
    }
    Ok(entries)
}

fn borrowed(gift: &Gift<OwnedFd>) -> Gift<&OwnedFd> {
    Gift {
        fresh: gift.fresh,
        may_reopen: gift.may_reopen,
        expire_usec: gift.expire_usec,
        ephemeral: gift.ephemeral,
        close_on_hangup: gift.close_on_hangup,
        share: gift.share.clone(),
        labels: gift.labels.clone(),
        ..Gift::new(gift.name.clone(), &gift.fd)
    }
}

/// Does something again as long as it fails in passing: the daemon was killed or upgraded in the middle of
/// it, or somebody else, as a transfer that has just been killed, still holds a name.
pub(crate) fn persist<T>(mut act: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    for pause in PAUSES_MSEC {
        std::thread::sleep(Duration::from_millis(pause));
        match act() {
            Err(error) if is_passing(&error) => {}
            outcome => return outcome,
        }
    }
    act()
}

fn is_passing(error: &anyhow::Error) -> bool {
    let Some(error) = error.downcast_ref() else { return false };
    matches!(
        error,
        Error::ConnectionLost { may_be_done: false }
            | Error::RolledBack
            | Error::Refused(
                Refusal::Busy { .. }
                    | Refusal::NotFound { .. }
                    | Refusal::AlreadyExists { .. }
                    | Refusal::TransactionState { .. }
            )
    )
}

/// The first of some names, and how many more there are.
pub(crate) fn told(names: &[&Name]) -> String {
    let mut told: Vec<_> = names.iter().take(TOLD).map(|name| format!("{name:?}")).collect();
    if names.len() > TOLD {
        told.push(format!("and {} more", names.len() - TOLD));
    }
    told.join(", ")
}

/// Lets this process have as many descriptors as it may.
pub(crate) fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it cannot be, those fit that fit, and who has too many is told.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_taken_off_before_another_is_put_there() {
        let renaming = |strip: &str, prefix: &str| Renaming {
            strip_prefix: strip.to_owned(),
            prefix: prefix.to_owned(),
        };
        let renamed = |strip, prefix| renaming(strip, prefix).rename("vm7/disk0");

        assert_eq!(renamed("", "").unwrap().as_str(), "vm7/disk0");
        assert_eq!(renamed("vm7/", "").unwrap().as_str(), "disk0");
        assert_eq!(renamed("vm7/", "vm8/").unwrap().as_str(), "vm8/disk0");
        for (strip, prefix) in [("vm8/", ""), ("", "a:"), ("vm7/disk0", "")] {
            assert!(renamed(strip, prefix).is_err(), "{strip} {prefix}");
        }
    }

    #[test]
    fn of_many_names_the_first_are_told() {
        let names: Vec<_> = (0..7).map(|at| Name::new(&format!("n{at}")).unwrap()).collect();
        let names: Vec<_> = names.iter().collect();

        assert_eq!(told(&names[..2]), r#""n0", "n1""#);
        assert_eq!(told(&names), r#""n0", "n1", "n2", "n3", "n4", and 2 more"#);
    }
}
