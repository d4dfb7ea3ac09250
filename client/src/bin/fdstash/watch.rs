//! `fdstash watch`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use fdstash::{Change, Entry, Notice, Pattern};

use crate::{
    Door,
    words::{flags, plain},
};

const EXAMPLES: &str = "\
Examples:
  fdstash watch
  fdstash watch 'vm7-*'
  fdstash watch --json | jq -r 'select(.change == \"hung_up\").entry.name'

The first line says that the watch stands: the heading, or {} with --json. It comes again where the
daemon was restarted; what changed meanwhile is not told.";

/// Show every change as it happens
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Watch {
    /// Only names that match: '*' stands for any characters, '?' for one
    #[arg(value_parser = Pattern::new, default_value = "*", hide_default_value = true)]
    pattern: Pattern,

    /// Write one JSON object a line, as the interface has it
    #[arg(long)]
    json: bool,
}

impl Watch {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let notices = door.connect()?.watch(&self.pattern)?;
        let mut out = io::stdout().lock();
        for notice in std::iter::once(Ok(Notice::Standing)).chain(notices) {
            let notice = notice?;
            let line = if self.json { notice.to_json() } else { sentence(&notice) };
            writeln!(out, "{line}")?;
            out.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn sentence(notice: &Notice) -> String {
    match notice {
        Notice::Standing => row(["CHANGE", "NAME", "KIND", "ACCESS", "FLAGS", "TARGET"]),
        Notice::Changed { change, entry } => changed(*change, entry),
        Notice::Lost(count) => format!("{count} changes came too fast to be told: list anew"),
    }
}

fn changed(change: Change, entry: &Entry) -> String {
    let (name, kind, access) = (entry.name.as_str(), entry.kind.as_str(), entry.access.as_str());
    let target = entry.target.as_deref().map(plain).unwrap_or_default();
    row([change.as_str(), name, kind, access, &flags(entry.flags), &target])
}

/// Nobody knows how wide the cells to come will be, so these are as wide as most are.
fn row(cells: [&str; 6]) -> String {
    let [change, name, kind, access, flags, target] =
        cells.map(|cell| if cell.is_empty() { "-" } else { cell });
    format!("{change:<8}  {name:<24}  {kind:<9}  {access:<10}  {flags:<12}  {target}")
}
