//! The policy: where it is read from, and what of it outlives the server that goes by it.
//!
//! It is read by a process that ends soon, or before there is any server: asking for the number of a
//! user can wait for a directory service. What was read stays in memory of its own (`kept.rs`), names
//! resolved, so that a server that starts again goes by what was in force, whatever the files say now.

mod form;
mod kept;
mod names;
mod text;

use std::{
    fmt::Write as _,
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use fdstash_proto::Pattern;
use fdstash_stash::{Quota, Rules, Whom};
use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, Serialize};

use form::KEYS;
use names::Names;

use crate::process;

pub(crate) use kept::Kept;

/// Where it is if nobody says otherwise.
const PLACE: &str = "/etc/fdstash/policy.toml";

/// No file of it is longer.
const MAX_LEN: u64 = 1 << 20;

/// Where a policy is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In this file, and what lies beside it.
    Named(PathBuf),
    /// The same, if there are any.
    Usual(PathBuf),
    /// Nowhere: what a user keeps is that user's own.
    Nowhere,
}

/// What was read: the texts, and the numbers of the names in them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policy {
    #[serde(default)]
    files: Vec<Text>,
    #[serde(default)]
    names: Names,
}

/// A file, as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Text {
    path: String,
    text: String,
}

impl Place {
    /// The one that the command line names, or else the system's, for a daemon that serves that.
    pub(crate) fn new(named: Option<PathBuf>) -> Self {
        match named {
            Some(file) => Self::Named(file),
            None if process::can_be_others() => Self::usual(),
            None => Self::Nowhere,
        }
    }

    /// The one that root's daemon reads if nobody says otherwise.
    pub(crate) fn usual() -> Self {
        Self::Usual(PLACE.into())
    }

    fn file(&self) -> Option<&Path> {
        match self {
            Self::Named(file) | Self::Usual(file) => Some(file),
            Self::Nowhere => None,
        }
    }
}

impl Policy {
    /// Reads a policy, and finds out the numbers of those whom it names.
    ///
    /// # Errors
    ///
    /// That name the file, the line and what should stand there.
    pub(crate) fn from_files(place: &Place) -> Result<(Self, Rules)> {
        let mut read = Self { files: Vec::new(), names: Names::to_be_found() };
        let Some(file) = place.file() else { return Ok((read, Rules::default())) };
        let must_be = matches!(place, Place::Named(_));
        read.add(file, must_be)?;
        let folder = file.with_extension("d");
        for file in drop_ins(&folder).with_context(|| format!("reading {}", folder.display()))? {
            read.add(&file, true)?;
        }
        let rules = read.rules()?;
        Ok((read, rules))
    }

    /// What it says.
    ///
    /// # Errors
    ///
    /// What this version does not understand of it.
    pub(crate) fn rules(&mut self) -> Result<Rules> {
        let mut rules = Rules::default();
        for Text { path, text } in &self.files {
            text::read(path, text, &mut self.names, &mut rules)?;
        }
        Ok(rules)
    }

    fn add(&mut self, file: &Path, must_be: bool) -> Result<()> {
        let path = file.display().to_string();
        match read_text(file) {
            Ok(text) => self.files.push(Text { path, text }),
            Err(error) if !must_be && is_not_there(&error) => {}
            Err(error) => return Err(error.context(format!("{path}: cannot be read"))),
        }
        Ok(())
    }
}

fn is_not_there(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The files of a folder that are read, too, in the order of their names; none, if it is not there.
fn drop_ins(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let is_one = |path: &PathBuf| {
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        !is_hidden && path.extension().is_some_and(|extension| extension == "toml")
    };
    let mut paths: Vec<_> =
        paths.filter(|path| path.as_ref().map_or(true, is_one)).collect::<Result<_, _>>()?;
    paths.sort();
    Ok(paths)
}

fn read_text(path: &Path) -> Result<String> {
    // Where a pipe stands there, it is not waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = fs::File::from(open(path, flags, Mode::empty()).map_err(io::Error::from)?);
    let facts = file.metadata()?;
    ensure!(facts.is_file(), "it is no plain file");
    let mode = std::os::unix::fs::PermissionsExt::mode(&facts.permissions());
    ensure!(mode & 0o002 == 0, "everybody may write it, and so give anything away (chmod o-w it)");
    let mut bytes = Vec::new();
    file.take(MAX_LEN + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MAX_LEN, "it is longer than {MAX_LEN} bytes");
    let Ok(text) = String::from_utf8(bytes) else { bail!("it is not UTF-8") };
    Ok(text)
}

/// Reads the policy, and has it in force from now on for every server, if it can be. The rules before
/// it stay where it cannot.
///
/// # Errors
///
/// If those, too, say nothing to this version.
pub(crate) fn reload(place: &Place, kept: &Kept) -> Result<()> {
    let stored = Policy::from_files(place).and_then(|(read, rules)| {
        kept.store(&read).context("keeping it")?;
        Ok(rules)
    });
    match stored {
        Ok(rules) => {
            let (allow, reserve, quota) =
                (rules.allow.len(), rules.reserve.len(), rules.quota.len());
            tracing::info!(allow, reserve, quota, "read the policy");
            Ok(())
        }
        Err(error) => {
            tracing::error!(
                "the policy could not be loaded, the rules before stay in force: {error:#}"
            );
            kept.rules().map(|_| ())
        }
    }
}

/// Says what a policy comes to.
///
/// # Errors
///
/// As [`Policy::from_files`].
pub(crate) fn check(place: &Place) -> Result<String> {
    let (read, rules) = Policy::from_files(place)?;
    let mut said = String::new();
    for Text { path, .. } in &read.files {
        writeln!(said, "read {path}")?;
    }
    for rule in &rules.allow {
        let verbs: Vec<_> = rule.verbs.iter().map(|verb| verb.as_str()).collect();
        let below = if rule.below.is_empty() { "" } else { " below " };
        let (origin, whom, names) = (&rule.origin, show(&rule.whom), show_names(&rule.names));
        let (verbs, at) = (verbs.join(", "), rule.below.join(", "));
        writeln!(said, "{}:{}: {whom} may {verbs}: {names}{below}{at}", origin.file, origin.line)?;
    }
    for rule in &rules.reserve {
        let (origin, whom, names) = (&rule.origin, show(&rule.whom), show_names(&rule.names));
        writeln!(said, "{}:{}: only {whom} and root may give: {names}", origin.file, origin.line)?;
    }
    for rule in &rules.quota {
        let (origin, quota) = (&rule.origin, show_quota(&rule.quota));
        let whom = rule.whom.as_ref().map_or("everybody but root".to_owned(), show);
        writeln!(said, "{}:{}: {whom} may have, each: {quota}", origin.file, origin.line)?;
    }
    if rules == Rules::default() {
        writeln!(said, "no rules: all is its giver's, root's, and theirs whom it is shared with")?;
    }
    Ok(said)
}

fn show(whom: &Whom) -> String {
    let users = whom.users.iter().map(|uid| format!("uid {uid}"));
    let all: Vec<_> = users.chain(whom.groups.iter().map(|gid| format!("gid {gid}"))).collect();
    all.join(", ")
}

fn show_quota(quota: &Quota<Option<u64>>) -> String {
    let seconds = quota.idle_usec.map(|usec| usec / 1_000_000);
    let Quota { entries, connections, label_bytes, waits, watches, transactions, .. } = *quota;
    let stash = [entries, connections, label_bytes, waits, watches, transactions, quota.opens];
    let all = stash.into_iter().chain([quota.descriptors, quota.bytes, quota.names, seconds]);
    let all = KEYS.into_iter().zip(all);
    let said: Vec<_> =
        all.filter_map(|(key, most)| most.map(|most| format!("{key} {most}"))).collect();
    said.join(", ")
}

fn show_names(names: &[Pattern]) -> String {
    names.iter().map(Pattern::as_str).collect::<Vec<_>>().join(" ")
}
