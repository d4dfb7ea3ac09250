//! The entries that this user may see: which of them are no longer what they were given as.

use std::{
    os::fd::OwnedFd,
    time::{Duration, SystemTime},
};

use fdstash::Entry;

use super::Finding;
use crate::{
    show::path::{Path, path_of},
    words::quoted,
};

/// How many are told by name.
const MOST: usize = 5;

/// What expires within this is told.
const SOON: Duration = Duration::from_secs(3600);

pub(crate) fn look(entries: &[Entry]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let names = |is: &dyn Fn(&&Entry) -> bool| -> Vec<&str> {
        entries.iter().filter(is).map(|entry| entry.name.as_str()).collect()
    };
    let drifted = names(&|entry| entry.drifted.words().next().is_some());
    if !drifted.is_empty() {
        findings.push(Finding::wrong(
            format!("somebody has changed the flags of {}", several(&drifted)),
            "a program that has the same open file: what is written without O_APPEND may overwrite, and so on",
            format!("fdstash show {}; then a reopen without options, which opens it as it was given", quoted(drifted[0])),
        ));
    }
    let stands = |wanted: Path| {
        names(&|entry| path_of(entry, None::<OwnedFd>).is_some_and(|path| path == wanted))
    };
    let (gone, replaced) = (stands(Path::Gone), stands(Path::Replaced));
    if !gone.is_empty() {
        findings.push(Finding::note(
            format!("nothing stands any more where {} was opened", several(&gone)),
            "the file was deleted or renamed, and is kept all the same: its space is not free",
            format!("fdstash show {}; and fdstash close, if nobody needs it", quoted(gone[0])),
        ));
    }
    if !replaced.is_empty() {
        findings.push(Finding::note(
            format!("another file stands where {} was opened", several(&replaced)),
            "a log that was rotated, or an image that was put in its place: what is kept is the old one",
            format!("fdstash show {}; to keep the new one give it anew", quoted(replaced[0])),
        ));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let limit = u64::try_from((now + SOON).as_micros()).unwrap_or(u64::MAX);
    let soon = names(&|entry| entry.expires_at_usec.is_some_and(|at| at < limit));
    if !soon.is_empty() {
        findings.push(Finding::note(
            format!("within the hour {} expires", several(&soon)),
            "it is closed then, as its giver has said",
            "take or copy it before, or give it anew",
        ));
    }
    findings
}

fn several(names: &[&str]) -> String {
    let shown: Vec<_> = names.iter().take(MOST).map(|name| format!("\"{name}\"")).collect();
    let rest = names.len().saturating_sub(MOST);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    shown.join(", ") + &more
}
