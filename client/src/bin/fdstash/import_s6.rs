//! `fdstash import-s6`.

mod holder;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::SystemTime,
};

use anyhow::{Context, bail};
use clap::Args;
use fdstash::{Gift, Name, Pattern};

use crate::{
    Door,
    arrival::{Renaming, keep, persist, raise_open_files},
    complain,
    progress::Progress,
};
use holder::{Dump, Held};

const EXAMPLES: &str = "\
Examples:
  fdstash import-s6 /run/service/s6-fdholder-daemon/s
  fdstash import-s6 /run/service/s6-fdholder-daemon/s 'web-*' --prefix s6/

All of them are kept, or none. They stay where they are, too: stop s6-fdholder-daemon, or say
`s6-fdholder-delete`, when all is well. Run again, it brings what has come since.

What an identifier has in it that a name has not, above all ':', is written as '%' and two hexadecimal
digits: \"unix:/run/x\" becomes \"unix%3A/run/x\". When something expires goes along where
s6-fdholder-daemon tells it: to who may have a dump, of at most 253 descriptors.";

/// Bring over what an s6-fdholder-daemon holds
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ImportS6 {
    /// The socket of the s6-fdholder-daemon
    #[arg(value_name = "S6-SOCKET")]
    from: PathBuf,

    /// Only what matches one of these: '*' stands for any characters, '?' for one
    #[arg(value_name = "PATTERN", value_parser = Pattern::new)]
    patterns: Vec<Pattern>,

    #[command(flatten)]
    renaming: Renaming,
}

impl ImportS6 {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        raise_open_files();
        let _progress = Progress::soon("bringing what is held");
        let mut stash = door.connect()?;
        let is_wanted = |id: &[u8]| self.wants(id);
        let Dump { held, has_times } =
            holder::dump(&self.from, is_wanted).with_context(|| self.from.display().to_string())?;
        if held.is_empty() {
            bail!("there is nothing to bring at {}", self.from.display());
        }
        if !has_times {
            complain(format_args!("if and when these expire was not told, and does not go along"));
        }
        let mut gifts = BTreeMap::new();
        for held in held {
            let (id, gift) = self.gift(held)?;
            let clash = gifts.insert(gift.name.clone(), (id.clone(), gift));
            if let Some((other, gift)) = clash {
                bail!("both {id:?} and {other:?} would be {:?}", gift.name);
            }
        }
        for (name, (id, _)) in &gifts {
            if !self.is_plain(id) {
                complain(format_args!("{id:?} becomes {name:?}"));
            }
        }
        let gifts: Vec<_> = gifts.into_values().map(|(_, gift)| gift).collect();
        let already = persist(|| keep(&mut stash, &gifts)).context("nothing was brought")?;
        let told = match already {
            0 => String::new(),
            already => format!(", {already} of which were there already"),
        };
        writeln!(io::stdout(), "brought {}{told}", gifts.len())?;
        Ok(ExitCode::SUCCESS)
    }

    /// Whether a pattern matches it, as a name.
    fn wants(&self, id: &[u8]) -> bool {
        let Ok(name) = Name::new(&spelled(id)) else { return true };
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| pattern.matches(&name))
    }

    /// Whether nothing had to be spelled otherwise.
    fn is_plain(&self, id: &str) -> bool {
        spelled(id.as_bytes()) == id
    }

    fn gift(&self, held: Held) -> anyhow::Result<(String, Gift<std::os::fd::OwnedFd>)> {
        let id = String::from_utf8_lossy(&held.id).into_owned();
        let name = self.renaming.rename(&spelled(&held.id))?;
        // What has expired meanwhile does so here as well.
        let left = held.until.map(|until| until.duration_since(SystemTime::now()));
        let left = left.map(|left| left.unwrap_or_default().as_micros().max(1));
        let expire_usec = left.map(u64::try_from).transpose()?;
        Ok((id, Gift { expire_usec, ..Gift::new(name, held.fd) }))
    }
}

/// An identifier with what no name has in it as `%` and two digits.
fn spelled(id: &[u8]) -> String {
    let mut spelled = String::with_capacity(id.len());
    for byte in id {
        let character = char::from(*byte);
        if Name::new(character.encode_utf8(&mut [0; 4])).is_ok() {
            spelled.push(character);
        } else {
            spelled.push_str(&format!("%{byte:02X}"));
        }
    }
    spelled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_name_has_in_it_is_spelled_out() {
        assert_eq!(spelled(b"web-1/a b"), "web-1/a b");
        assert_eq!(spelled(b"unix:/run/x"), "unix%3A/run/x");
        assert_eq!(spelled(b"\xff\n"), "%FF%0A");
    }
}
