//! `fdstash close`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use fdstash::{Error, Refusal};

use crate::{
    Door,
    chosen::{self, Choice, choice},
    progress::Progress,
    words::quoted,
};

/// How often what a pattern matches may be gone before it is closed.
const ATTEMPTS: usize = 5;

const EXAMPLES: &str = "\
Examples:
  fdstash close vm7-disk0
  fdstash close vm7-disk0 vm7-disk1 vm7-log    # all of them, or none
  fdstash close 'vm7-*'                        # all that begin so; says which those were

A NAME with '*' (any characters) or '?' (one character) in it is a pattern, and stands for all entries
that match: put it in quotes, so that the shell leaves it alone. One that no entry matches is an error.
See first what it means: fdstash list 'vm7-*'";

/// Have the stash close descriptors and forget them
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Close {
    /// Which ones: all of them, or none
    #[arg(required = true, value_name = "NAME", value_parser = choice)]
    names: Vec<Choice>,
}

impl Close {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let _progress = Progress::soon("closing");
        let mut client = door.connect()?;
        let has_pattern = chosen::has_pattern(&self.names);
        let mut attempts = ATTEMPTS;
        let closed = loop {
            attempts -= 1;
            let names = chosen::names(&mut client, &self.names)?;
            match client.close(&names) {
                // What a pattern matched can have ended since; then nothing was closed.
                Err(Error::Refused(Refusal::NotFound { .. })) if has_pattern && attempts > 0 => {}
                outcome => break outcome.map(|()| names)?,
            }
        };
        if has_pattern {
            let mut out = io::stdout().lock();
            for name in &closed {
                writeln!(out, "{}: closed", quoted(name.as_str()))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
