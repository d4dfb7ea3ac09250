//! `fdstash status`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use fdstash::{Info, Keeper, Mirror, Statistics};

use crate::{Door, words::plain};

const EXAMPLES: &str = "\
Examples:
  fdstash status
  fdstash status --json | jq .entries";

/// Show how the daemon is
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Status {
    /// Write the figures as one JSON object, as the interface has it
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let mut client = door.connect()?;
        let statistics = client.statistics()?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", statistics.to_json())?;
            return Ok(ExitCode::SUCCESS);
        }
        let info = client.info()?;
        for (what, value) in lines(&info, &statistics) {
            writeln!(out, "{what:<12}  {value}")?;
        }
        if let Some(mirror) = &statistics.mirror {
            writeln!(out, "{:<12}  {}", "with systemd", store(mirror))?;
        }
        writeln!(out, "{:<12}  {}", "socket", client.socket().display())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn lines(info: &Info, figures: &Statistics) -> [(&'static str, String); 7] {
    let Statistics { entries, max_entries, connections, transactions, .. } = figures;
    let Statistics { given, taken, copied, closed, reopened, expired, refused, .. } = figures;
    let survives = match figures.keeper {
        Keeper::Process => "crashes and upgrades of the daemon; they end when it is asked to end",
        Keeper::ProcessAndSystemd => "crashes, upgrades and restarts of the daemon",
        Keeper::Nobody => "nothing: they end with the daemon",
    };
    [
        ("daemon", plain(&format!("{} {}", info.product, info.version))),
        ("entries", format!("{entries} of at most {max_entries}")),
        ("they outlive", survives.to_owned()),
        ("came back", format!("{} times, after crashes and upgrades", figures.restores)),
        ("connections", format!("{connections}, {transactions} of them in a transaction")),
        (
            "since then",
            format!(
                "{given} given or come back, {taken} taken, {copied} copied, {closed} closed, {reopened} reopened, {expired} expired"
            ),
        ),
        ("refused", format!("{refused} calls")),
    ]
}

/// What systemd's store has.
fn store(mirror: &Mirror) -> String {
    let Mirror { bundles, entries, waiting, behind_usec, .. } = mirror;
    let behind = match waiting {
        0 => "all there is".to_owned(),
        _ => format!("{waiting} changes behind, by {} ms", behind_usec / 1000),
    };
    format!("{entries} entries in {bundles} bundles, {behind}")
}
