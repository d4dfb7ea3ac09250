//! `fdstash close`.

use std::process::ExitCode;

use clap::Args;
use fdstash::Name;

use crate::Door;

const EXAMPLES: &str = "\
Examples:
  fdstash close vm7-disk0
  fdstash close vm7-disk0 vm7-disk1 vm7-log    # all of them, or none";

/// Have the stash close descriptors and forget them
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Close {
    /// Which ones: all of them, or none
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Name>,
}

impl Close {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        door.connect()?.close(&self.names)?;
        Ok(ExitCode::SUCCESS)
    }
}
