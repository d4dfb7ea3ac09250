//! `fdstash list`.

mod sizes;
mod tree;

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    process::ExitCode,
    time::SystemTime,
};

use clap::Args;
use fdstash::{Entry, Pattern, Peer, blocking::Client};

use self::{sizes::Sizes, tree::tree};
use crate::{
    Door,
    progress::Progress,
    table::{Table, terminal_width},
    words::{bytes, distance, flags, labels, plain, quoted},
};

const EXAMPLES: &str = "\
Examples:
  fdstash list
  fdstash list 'vm7-*' 'vm8-*' --long
  fdstash list --tree
  fdstash list --json | jq -r 'select(.kind == \"socket\").name'

What this user may not use is not shown. Names that a shell would take apart are shown in quotes. On
a terminal that is too narrow, columns are left out; what is cut off ends in '…': --long has it all.

FLAGS: those that an entry was given or reopened with; behind a '!' those that somebody else who has
the same open file has changed since.
SIZE: of the file that stands at the target's path, if that is the kept one and this user may look.";

/// Show what is kept
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct List {
    /// Only names that match one of these: '*' stands for any characters, '?' for one
    #[arg(value_name = "PATTERN", value_parser = Pattern::new)]
    patterns: Vec<Pattern>,

    /// Show all that is known, however long the lines
    #[arg(long, short, conflicts_with = "json")]
    long: bool,

    /// Show names that have a '/' as a tree
    #[arg(long, short, conflicts_with = "json")]
    tree: bool,

    /// Write one JSON object a line, as the interface has it
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let entries = {
            let _progress = Progress::soon("listing");
            entries(&mut door.connect()?, &self.patterns)?
        };
        let mut out = BufWriter::new(io::stdout().lock());
        if self.json {
            for entry in &entries {
                writeln!(out, "{}", entry.to_json())?;
            }
            out.flush()?;
            return Ok(ExitCode::SUCCESS);
        }
        let (header, cells) = if self.long { long() } else { short() };
        let of = Of { now: SystemTime::now(), sizes: Sizes::of(&entries) };
        let mut table = Table::new(&[&["NAME"], header].concat());
        let row = |name: String, entry: Option<&Entry>| {
            let cells = entry.map(|entry| cells(entry, &of)).unwrap_or_default();
            [vec![name], cells].concat()
        };
        if self.tree {
            tree(&entries, |name, entry| table.push(row(name, entry)));
        } else {
            for entry in &entries {
                table.push(row(quoted(entry.name.as_str()), Some(entry)));
            }
        }
        if self.long {
            table.write(&mut out, None)?;
        } else {
            table.may_leave_out(&["SIZE", "FLAGS", "AGE", "KIND", "ACCESS"]);
            table.write(&mut out, terminal_width())?;
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// All that match one of the patterns, each once, in the order of their names; without any, all.
fn entries(client: &mut Client, patterns: &[Pattern]) -> Result<Vec<Entry>, fdstash::Error> {
    match patterns {
        [] => client.list(&Pattern::all()),
        [pattern] => client.list(pattern),
        patterns => {
            let mut all = BTreeMap::new();
            for pattern in patterns {
                let listed = client.list(pattern)?;
                all.extend(listed.into_iter().map(|entry| (entry.name.clone(), entry)));
            }
            Ok(all.into_values().collect())
        }
    }
}

/// What else the cells are made of.
struct Of {
    now: SystemTime,
    sizes: Sizes,
}

/// The titles of the columns behind the name, and their cells of an entry.
type Columns = (&'static [&'static str], fn(&Entry, &Of) -> Vec<String>);

fn short() -> Columns {
    (&["KIND", "ACCESS", "FLAGS", "SIZE", "AGE", "TARGET"], |entry, of| {
        vec![
            entry.kind.as_str().to_owned(),
            entry.access.as_str().to_owned(),
            all_flags(entry),
            of.sizes.get(entry).map(bytes).unwrap_or_default(),
            distance(entry.given_at_usec, of.now),
            entry.target.as_deref().map(plain).unwrap_or_default(),
        ]
    })
}

fn long() -> Columns {
    const TITLES: &[&str] = &[
        "KIND",
        "ACCESS",
        "FLAGS",
        "MAY REOPEN",
        "SIZE",
        "AGE",
        "EXPIRES IN",
        "GIVER",
        "HELD BY",
        "REVISION",
        "DEVICE:INODE",
        "LABELS",
        "TARGET",
    ];
    (TITLES, |entry, of| {
        vec![
            entry.kind.as_str().to_owned(),
            entry.access.as_str().to_owned(),
            all_flags(entry),
            entry.may_reopen.as_str().to_owned(),
            of.sizes.get(entry).map(bytes).unwrap_or_default(),
            distance(entry.given_at_usec, of.now),
            entry.expires_at_usec.map(|usec| distance(usec, of.now)).unwrap_or_default(),
            peer(entry.giver),
            entry.held_by.map(peer).unwrap_or_default(),
            entry.revision.to_string(),
            format!("{}:{}", entry.device, entry.inode),
            labels(&entry.labels),
            entry.target.as_deref().map(plain).unwrap_or_default(),
        ]
    })
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
