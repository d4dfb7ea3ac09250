//! [`Store`]: a service's descriptor store, in the stash under a prefix. Names in the stash are there once,
//! but several descriptors may be called the same by a service: so what a service calls one is a label of it,
//! and the name has a number where needed.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use fdstash::{Entry, Gift, Labels, Name, Pattern, Refusal, blocking::Client};
use rustix::{
    fs::fstat,
    pipe::{PipeFlags, pipe_with},
};

use super::{
    passed::Passed,
    same::{Likeness, compare},
};

/// The label that says what a service calls a descriptor.
const CALLED: &str = "fdname";

/// What keeps a second run off a prefix, below it.
const LOCK: &str = ".run";

/// How long a run that has just been killed may stand in the way.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often something may change between a look and what follows of it.
const ATTEMPTS: usize = 20;

/// Under what a service's descriptors are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prefix(String);

impl Prefix {
    /// So that there is room for what a service calls its descriptors, most of the time.
    const MAX_LEN: usize = 200;

    fn all(&self) -> anyhow::Result<Pattern> {
        Pattern::new(&format!("{}/*", self.0)).map_err(anyhow::Error::from)
    }

    /// What a name has behind the prefix.
    fn below<'a>(&self, name: &'a Name) -> Option<&'a str> {
        name.as_str().strip_prefix(self.0.as_str())?.strip_prefix('/')
    }

    fn lock(&self) -> anyhow::Result<Name> {
        Name::new(&format!("{}/{LOCK}", self.0)).map_err(anyhow::Error::from)
    }

    /// The first name for what is called so that is not among those taken.
    fn free(&self, called: &Name, taken: &BTreeSet<Name>) -> anyhow::Result<Name> {
        for number in 1.. {
            let name = self.numbered(called, number)?;
            if !taken.contains(&name) {
                return Ok(name);
            }
        }
        bail!("there is no free name for \"{called}\"")
    }

    fn numbered(&self, called: &Name, number: usize) -> anyhow::Result<Name> {
        let number = if number == 1 { String::new() } else { format!("#{number}") };
        let room = Name::MAX_LEN.saturating_sub(self.0.len() + 1 + number.len());
        // All of it is ASCII; what is cut here, the label has.
        let called: String = called.as_str().chars().take(room).collect();
        Name::new(&format!("{}/{called}{number}", self.0)).map_err(anyhow::Error::from)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_suffix('/').unwrap_or(text);
        Name::new(text).map_err(|error| error.to_string())?;
        let is_short = text.len() <= Self::MAX_LEN;
        is_short.then(|| Self(text.to_owned())).ok_or_else(|| {
            format!("a prefix has at most {} characters, so that names have room", Self::MAX_LEN)
        })
    }
}

/// A service's descriptors in the stash.
pub(super) struct Store {
    client: Client,
    prefix: Prefix,
    trusted: Vec<u32>,
    most: usize,
}

/// One that is kept, and what the service calls it.
struct Kept {
    entry: Entry,
    called: String,
}

impl Store {
    pub(super) fn new(client: Client, prefix: Prefix, trusted: Vec<u32>, most: usize) -> Self {
        Self { client, prefix, trusted, most }
    }

    /// How many descriptors it has room for.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Keeps other runs off the prefix for as long as what is returned is open.
    ///
    /// It is the other end of a pipe in the stash, which hangs up when this process ends, however it does,
    /// and which outlives the daemon's own end.
    pub(super) fn lock(&mut self) -> anyhow::Result<OwnedFd> {
        let (kept, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        let gift = Gift { close_on_hangup: true, ..Gift::new(self.prefix.lock()?, &kept) };
        let end = Instant::now() + PATIENCE;
        loop {
            match self.client.give_new(std::slice::from_ref(&gift)) {
                Ok(()) => return Ok(ours),
                Err(fdstash::Error::Refused(Refusal::AlreadyExists { .. })) => {}
                Err(error) => return Err(error.into()),
            }
            // Who held it may just have been killed.
            if Instant::now() > end {
                bail!("{}", self.locked()?);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn locked(&mut self) -> anyhow::Result<String> {
        let lock = self.prefix.lock()?;
        let entries = self.client.list(&Pattern::new(lock.as_str())?)?;
        let giver = entries.iter().find(|entry| entry.name == lock).map(|entry| entry.giver);
        let who = giver.map(|giver| format!(" by process {} of uid {}", giver.pid, giver.uid));
        Ok(format!(
            "the store \"{}\" is in use{}: end that first, or choose another prefix",
            self.prefix.0,
            who.unwrap_or_default()
        ))
    }

    /// Copies of all that is stored, in the order of what they are called.
    pub(super) fn copies(&mut self) -> anyhow::Result<Passed> {
        let mut attempts = ATTEMPTS;
        loop {
            attempts -= 1;
            let (mut kept, _) = self.kept()?;
            kept.sort_by_key(|kept| {
                (kept.called.clone(), kept.entry.name.as_str().len(), kept.entry.name.clone())
            });
            let names: Vec<Name> = kept.iter().map(|kept| kept.entry.name.clone()).collect();
            if names.is_empty() {
                return Ok(Passed::default());
            }
            match self.client.copy(&names) {
                // It may have hung up meanwhile.
                Err(fdstash::Error::Refused(Refusal::NotFound { .. })) if attempts > 0 => {}
                handed => {
                    let fds = handed?.into_iter().map(|handed| handed.fd).collect();
                    return Ok(Passed {
                        names: kept.into_iter().map(|kept| kept.called).collect(),
                        fds,
                    });
                }
            }
        }
    }

    /// Keeps descriptors, but for those that are kept already, as systemd does. Done twice, it has the same
    /// effect.
    pub(super) fn keep(
        &mut self,
        called: &Name,
        close_on_hangup: bool,
        fds: &[OwnedFd],
    ) -> anyhow::Result<()> {
        let (kept, mut taken) = self.kept()?;
        let mut new: Vec<&OwnedFd> = Vec::new();
        for fd in fds {
            let is_new = !new.iter().any(|other| is_same(other, fd));
            if is_new && !self.has(&kept, called, fd)? {
                new.push(fd);
            }
        }
        if kept.len() + new.len() > self.most {
            bail!(
                "the store \"{}\" is full: it has {}, see --store-max",
                self.prefix.0,
                kept.len()
            );
        }
        while !new.is_empty() {
            let gifts = self.gifts(called, close_on_hangup, &new, &taken)?;
            match self.client.give_new(&gifts) {
                // Somebody else's, which does not exist for us, or not yet.
                Err(fdstash::Error::Refused(
                    Refusal::AlreadyExists { name } | Refusal::Busy { name, .. },
                )) => {
                    taken.insert(Name::new(&name)?);
                }
                outcome => return Ok(outcome?),
            }
        }
        Ok(())
    }

    fn gifts<'a>(
        &self,
        called: &Name,
        close_on_hangup: bool,
        fds: &[&'a OwnedFd],
        taken: &BTreeSet<Name>,
    ) -> anyhow::Result<Vec<Gift<&'a OwnedFd>>> {
        let mut taken = taken.clone();
        let gifts = fds.iter().map(|fd| {
            let name = self.prefix.free(called, &taken)?;
            taken.insert(name.clone());
            let labels = Labels::from([(CALLED.to_owned(), called.to_string())]);
            Ok(Gift { close_on_hangup, labels, ..Gift::new(name, *fd) })
        });
        gifts.collect()
    }

    /// Closes all that are called so.
    pub(super) fn remove(&mut self, called: &Name) -> anyhow::Result<()> {
        let mut attempts = ATTEMPTS;
        loop {
            attempts -= 1;
            let (kept, _) = self.kept()?;
            let names = kept.into_iter().filter(|kept| kept.called == called.as_str());
            let names: Vec<Name> = names.map(|kept| kept.entry.name).collect();
            if names.is_empty() {
                return Ok(());
            }
            match self.client.close(&names) {
                Err(fdstash::Error::Refused(Refusal::NotFound { .. })) if attempts > 0 => {}
                outcome => return Ok(outcome?),
            }
        }
    }

    /// What is stored, and all names below the prefix that are taken.
    fn kept(&mut self) -> anyhow::Result<(Vec<Kept>, BTreeSet<Name>)> {
        let lock = self.prefix.lock()?;
        let entries = self.client.list(&self.prefix.all()?)?;
        let mut taken = BTreeSet::from([lock.clone()]);
        let mut kept = Vec::new();
        for entry in entries {
            // A prefix with '*' in it matches others, too.
            let Some(below) = self.prefix.below(&entry.name) else { continue };
            taken.insert(entry.name.clone());
            // What a stranger has given may be anything.
            if entry.name == lock || !self.trusted.contains(&entry.giver.uid) {
                continue;
            }
            let label = entry.labels.get(CALLED).filter(|called| Name::new(called).is_ok());
            if is_deeper(below, label) {
                continue;
            }
            let called = label.map_or(below, String::as_str).to_owned();
            kept.push(Kept { entry, called });
        }
        Ok((kept, taken))
    }

    /// Whether this very description is kept.
    fn has(&mut self, kept: &[Kept], called: &Name, fd: &OwnedFd) -> anyhow::Result<bool> {
        let stat = fstat(fd)?;
        for other in kept {
            let Entry { device, inode, name, .. } = &other.entry;
            if (*device, *inode) != (stat.st_dev, stat.st_ino) {
                continue;
            }
            match self.client.copy(std::slice::from_ref(name)) {
                // One that is in another's transaction may leave with it: to keep one twice is better than
                // to lose it.
                Err(fdstash::Error::Refused(Refusal::NotFound { .. } | Refusal::Busy { .. })) => {}
                handed => {
                    let handed = handed?;
                    let copy = handed.first().context("the daemon handed out nothing")?;
                    match compare(&copy.fd, fd)? {
                        Likeness::Same => return Ok(true),
                        // Only the name tells whether the service means another one.
                        Likeness::Alike if other.called == called.as_str() => return Ok(true),
                        Likeness::Alike | Likeness::Different => {}
                    }
                }
            }
        }
        Ok(false)
    }
}

/// Whether what stands below a prefix is of a store whose prefix is longer: its names begin with what is
/// called so only behind that. The lock has nothing that says what it is called.
fn is_deeper(below: &str, label: Option<&String>) -> bool {
    let Some(called) = label else {
        return below.strip_suffix(LOCK).is_some_and(|before| before.ends_with('/'));
    };
    // Of a long one the end makes room for the number.
    let begin = below.rsplit_once('#').map_or(below, |(begin, _)| begin);
    !below.starts_with(called.as_str()) && !called.starts_with(begin)
}

fn is_same(one: impl AsFd, other: impl AsFd) -> bool {
    matches!(compare(one, other), Ok(Likeness::Same | Likeness::Alike))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_the_same_has_names_of_its_own() {
        let prefix: Prefix = "web/".parse().unwrap();
        let called = Name::new("conn").unwrap();
        let mut taken = BTreeSet::new();

        let names = [(); 3].map(|()| {
            let name = prefix.free(&called, &taken).unwrap();
            taken.insert(name.clone());
            name.to_string()
        });

        assert_eq!(names, ["web/conn", "web/conn#2", "web/conn#3"]);
    }

    #[test]
    fn what_a_store_with_a_longer_prefix_has_is_its_own() {
        for (below, called, expected) in [
            ("conn", Some("conn"), false),
            ("conn#2", Some("conn"), false),
            ("a/conn", Some("a/conn"), false),
            ("con#12", Some("conn-that-is-long"), false),
            ("by-hand", None, false),
            ("a/conn", Some("conn"), true),
            ("a/.run", None, true),
        ] {
            assert_eq!(is_deeper(below, called.map(str::to_owned).as_ref()), expected, "{below}");
        }
    }

    #[test]
    fn the_longest_of_all_is_cut() {
        let prefix: Prefix = "x".repeat(Prefix::MAX_LEN).parse().unwrap();
        let called = Name::new(&"y".repeat(Name::MAX_LEN)).unwrap();
        let first = prefix.free(&called, &BTreeSet::new()).unwrap();

        let second = prefix.free(&called, &BTreeSet::from([first.clone()])).unwrap();

        assert_eq!([first.as_str().len(), second.as_str().len()], [Name::MAX_LEN; 2]);
        assert!(second.as_str().ends_with("y#2"));
    }

    #[test]
    fn a_prefix_is_the_beginning_of_a_name() {
        for bad in ["", "/", "a:b", "ä", &"x".repeat(201)] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        let prefix: Prefix = "a/b".parse().unwrap();
        let below = |name: &str| prefix.below(&Name::new(name).unwrap()).map(str::to_owned);
        assert_eq!(below("a/b/c/d").as_deref(), Some("c/d"));
        assert_eq!(below("a/bc"), None);
    }
}
