//! Which entries are meant: by their names, or by patterns.

use anyhow::ensure;
use fdstash::{Name, Pattern, blocking::Client};

/// A name, or a pattern, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    Name(Name),
    Pattern(Pattern),
}

/// Reads a name or a pattern.
pub(crate) fn choice(text: &str) -> Result<Choice, String> {
    if text.contains(['*', '?']) {
        return Pattern::new(text).map(Choice::Pattern).map_err(|error| error.to_string());
    }
    text.parse().map(Choice::Name).map_err(|error: fdstash::BadName| error.to_string())
}

/// Whether a pattern is among them, so that it has to be told what was meant.
pub(crate) fn has_pattern(choices: &[Choice]) -> bool {
    choices.iter().any(|choice| matches!(choice, Choice::Pattern(_)))
}

/// The names, each once, in the order in which they were written; those of a pattern in theirs.
///
/// # Errors
///
/// If a pattern matches nothing, or the daemon does not list.
pub(crate) fn names(client: &mut Client, choices: &[Choice]) -> anyhow::Result<Vec<Name>> {
    let mut names = Vec::new();
    for choice in choices {
        let chosen = match choice {
            Choice::Name(name) => vec![name.clone()],
            Choice::Pattern(pattern) => {
                let entries = client.list(pattern)?;
                ensure!(!entries.is_empty(), "no entry matches \"{}\"", pattern.as_str());
                entries.into_iter().map(|entry| entry.name).collect()
            }
        };
        names.extend(chosen);
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}
