//! Which descriptors are passed, and what they are called there.

use std::{collections::BTreeSet, os::fd::OwnedFd, str::FromStr};

use anyhow::{Context, bail};
use fdstash::{Entry, Name, Pattern, Refusal, blocking::Client};

/// How often what a pattern matches may go away while it is copied.
const ATTEMPTS: usize = 20;

/// What `--take` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pattern: Pattern,
    called: Option<Name>,
}

impl Wanted {
    fn is_one_name(&self) -> bool {
        !self.pattern.as_str().contains(['*', '?'])
    }
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A name has none, and neither has what systemd calls a descriptor.
        let (pattern, called) = match text.split_once(':') {
            Some((pattern, called)) => (pattern, Some(called)),
            None => (text, None),
        };
        let called = called.map(Name::new).transpose();
        Ok(Self {
            pattern: Pattern::new(pattern).map_err(|error| error.to_string())?,
            called: called.map_err(|error| format!("the FDNAME: {error}"))?,
        })
    }
}

/// Descriptors, and what each is called.
#[derive(Debug, Default)]
pub(super) struct Passed {
    pub(super) names: Vec<String>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Passed {
    pub(super) fn append(&mut self, mut others: Self) {
        self.names.append(&mut others.names);
        self.fds.append(&mut others.fds);
    }
}

/// Copies of all that is wanted, each once: in the order of what is wanted, and then of the names.
pub(super) fn choose(
    client: &mut Client,
    wanted: &[Wanted],
    allow_none: bool,
    trusted: &[u32],
) -> anyhow::Result<Passed> {
    let mut attempts = ATTEMPTS;
    loop {
        attempts -= 1;
        let (names, called) = matching(client, wanted, allow_none, trusted)?;
        if names.is_empty() {
            return Ok(Passed::default());
        }
        match client.copy(&names) {
            Err(fdstash::Error::Refused(Refusal::NotFound { .. })) if attempts > 0 => {}
            handed => {
                let fds = handed?.into_iter().map(|handed| handed.fd).collect();
                return Ok(Passed { names: called, fds });
            }
        }
    }
}

fn matching(
    client: &mut Client,
    wanted: &[Wanted],
    allow_none: bool,
    trusted: &[u32],
) -> anyhow::Result<(Vec<Name>, Vec<String>)> {
    let (mut names, mut called) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for wanted in wanted {
        let entries = client.list(&wanted.pattern)?;
        let is_strange = |entry: &&Entry| !trusted.contains(&entry.giver.uid);
        for stranger in entries.iter().filter(is_strange) {
            refuse(wanted, stranger)?;
        }
        let ours: Vec<_> = entries.iter().filter(|entry| !is_strange(entry)).collect();
        if ours.is_empty() && !allow_none {
            let pattern = wanted.pattern.as_str();
            bail!("nothing in the stash matches \"{pattern}\": `fdstash list` shows what there is");
        }
        for entry in ours.into_iter().filter(|entry| seen.insert(entry.name.clone())) {
            names.push(entry.name.clone());
            called.push(wanted.called.as_ref().unwrap_or(&entry.name).to_string());
        }
    }
    Ok((names, called))
}

/// Names are one space for all users, and what a stranger puts under one that matches may be anything.
/// By its name alone it is what was meant, so that is an error; a pattern goes on without.
fn refuse(wanted: &Wanted, stranger: &Entry) -> anyhow::Result<()> {
    let (name, uid) = (&stranger.name, stranger.giver.uid);
    let told = format!("entry \"{name}\" was given by uid {uid}: pass it with --trust {uid}");
    if wanted.is_one_name() {
        return Err(anyhow::Error::msg(told)).context("what a stranger gave is not passed");
    }
    crate::complain(format_args!("left out: {told}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_a_pattern_and_how_to_call_it() {
        let plain: Wanted = "web-*".parse().unwrap();
        assert_eq!((plain.pattern.as_str(), plain.called.as_ref()), ("web-*", None));
        assert!(!plain.is_one_name());

        let called: Wanted = "web:http".parse().unwrap();
        assert_eq!(called.pattern.as_str(), "web");
        assert_eq!(called.called.as_ref().map(Name::as_str), Some("http"));
        assert!(called.is_one_name());

        for bad in ["web:", "web:a:b", "web:ä"] {
            assert!(bad.parse::<Wanted>().is_err(), "{bad}");
        }
    }
}
