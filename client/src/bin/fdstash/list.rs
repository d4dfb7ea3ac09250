//! `fdstash list`.

use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
    time::SystemTime,
};

use clap::Args;
use fdstash::{Entry, Pattern, Peer};

use crate::{
    Door,
    table::{Table, terminal_width},
    words::{distance, flags, labels, plain},
};

const EXAMPLES: &str = "\
Examples:
  fdstash list
  fdstash list 'vm7-*' --long
  fdstash list --json | jq -r 'select(.kind == \"socket\").name'

What this user may not use is not shown.";

/// Show what is kept
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct List {
    /// Only names that match: '*' stands for any characters, '?' for one
    #[arg(value_parser = Pattern::new, default_value = "*", hide_default_value = true)]
    pattern: Pattern,

    /// Show all that is known, however long the lines
    #[arg(long, short, conflicts_with = "json")]
    long: bool,

    /// Write one JSON object a line, as the interface has it
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let entries = door.connect()?.list(&self.pattern)?;
        let mut out = BufWriter::new(io::stdout().lock());
        if self.json {
            for entry in &entries {
                writeln!(out, "{}", entry.to_json())?;
            }
        } else {
            let now = SystemTime::now();
            if self.long {
                long(&entries, now).write(&mut out, None)?;
            } else {
                short(&entries, now).write(&mut out, terminal_width())?;
            }
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn short(entries: &[Entry], now: SystemTime) -> Table {
    let mut table = Table::new(&["NAME", "KIND", "ACCESS", "FLAGS", "AGE", "TARGET"]);
    for entry in entries {
        table.push([
            entry.name.to_string(),
            entry.kind.as_str().to_owned(),
            entry.access.as_str().to_owned(),
            all_flags(entry),
            distance(entry.given_at_usec, now),
            entry.target.as_deref().map(plain).unwrap_or_default(),
        ]);
    }
    table
}

fn long(entries: &[Entry], now: SystemTime) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "KIND",
        "ACCESS",
        "FLAGS",
        "MAY REOPEN",
        "AGE",
        "EXPIRES IN",
        "GIVER",
        "HELD BY",
        "REVISION",
        "DEVICE:INODE",
        "LABELS",
        "TARGET",
    ]);
    for entry in entries {
        table.push([
            entry.name.to_string(),
            entry.kind.as_str().to_owned(),
            entry.access.as_str().to_owned(),
            all_flags(entry),
            entry.may_reopen.as_str().to_owned(),
            distance(entry.given_at_usec, now),
            entry.expires_at_usec.map(|usec| distance(usec, now)).unwrap_or_default(),
            peer(entry.giver),
            entry.held_by.map(peer).unwrap_or_default(),
            entry.revision.to_string(),
            format!("{}:{}", entry.device, entry.inode),
            labels(&entry.labels),
            entry.target.as_deref().map(plain).unwrap_or_default(),
        ]);
    }
    table
}

/// Its flags, and behind a `!` those that somebody else has changed since.
fn all_flags(entry: &Entry) -> String {
    let drifted = entry.drifted.words().map(|word| format!("!{word}"));
    let own = Some(flags(entry.flags)).filter(|words| !words.is_empty());
    own.into_iter().chain(drifted).collect::<Vec<_>>().join(",")
}

fn peer(peer: Peer) -> String {
    format!("{}/{}", peer.uid, peer.pid)
}
