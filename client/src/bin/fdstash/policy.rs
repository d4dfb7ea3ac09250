//! `fdstash policy`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use fdstash::{Explanation, Name, Reason, Verb, Verdict};

use crate::{Door, names::known, words::plain};

const EXAMPLES: &str = "\
Examples:
  fdstash policy explain --user alice copy vm7-disk0
  fdstash policy explain --user 1000 --group kvm 'reopen by path' log/vm7

To ask takes root. An entry need not be there: then it is told what the rules would say.

Verbs: give, take, copy, close, reopen, reopen by path, list.";

/// Ask the daemon for its policy
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Policy {
    #[command(subcommand)]
    question: Question,
}

#[derive(Subcommand)]
enum Question {
    Explain(Explain),
}

/// Show whether a user may do something, and which rule says so
#[derive(Args)]
#[command(after_help = EXAMPLES)]
struct Explain {
    /// Who wants it: a name, with all groups that the machine knows it to be in, or a number
    #[arg(long, value_name = "USER")]
    user: String,
    /// Who is in this group, too
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// What it wants to do
    #[arg(value_parser = verb)]
    verb: Verb,
    /// Of which entry, be there one or not
    name: Name,
}

impl Policy {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let Question::Explain(Explain { user, groups, verb, name }) = self.question;
        let (uid, mut gids) = find_user(&user)?;
        for group in &groups {
            gids.push(find_group(group)?);
        }
        let explained = door.connect()?.explain_policy(uid, &gids, verb, &name)?;
        writeln!(io::stdout(), "{}", show(&explained))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// As the policy and AccessDenied have it, or in one word.
fn verb(text: &str) -> Result<Verb, String> {
    let words = text.replace(['-', '_'], " ");
    let verb = Verb::ALL.into_iter().find(|verb| verb.as_str() == words);
    verb.ok_or_else(|| {
        let verbs = Verb::ALL.map(Verb::as_str).join(", ");
        format!("there is no such verb, only {verbs}")
    })
}

/// A user's number, and those of its groups.
fn find_user(text: &str) -> anyhow::Result<(u32, Vec<u32>)> {
    let number = text.parse().ok();
    let Some(line) = known("passwd", text)? else {
        let uid = number.with_context(|| format!("there is no user {text:?} on this machine"))?;
        return Ok((uid, Vec::new()));
    };
    let mut fields = line.split(':');
    let name = fields.next().unwrap_or_default();
    let [uid, gid] = [fields.nth(1), fields.next()].map(|field| field?.parse().ok());
    let (Some(uid), Some(gid)) = (uid, gid) else { bail!("the user {text} has no numbers") };
    let groups = known("initgroups", name)?.unwrap_or_default();
    let others = groups.split_whitespace().skip(1).filter_map(|gid| gid.parse().ok());
    Ok((uid, [gid].into_iter().chain(others.filter(|other| *other != gid)).collect()))
}

fn find_group(text: &str) -> anyhow::Result<u32> {
    if let Ok(gid) = text.parse() {
        return Ok(gid);
    }
    let line = known("group", text)?;
    let line = line.with_context(|| format!("there is no group {text:?} on this machine"))?;
    let gid = line.split(':').nth(2).and_then(|gid| gid.parse().ok());
    gid.with_context(|| format!("the group {text} has no number"))
}

fn show(explained: &Explanation) -> String {
    let Explanation { verdict, reason, file, line } = explained;
    let verdict = match verdict {
        Verdict::Allowed => "allowed",
        Verdict::Denied => "denied",
        Verdict::Hidden => "hidden, there is no such entry for it",
    };
    let rule = match (file, line) {
        (Some(file), Some(line)) => format!("{}:{line}", plain(file)),
        (_, _) => "a rule".to_owned(),
    };
    let reason = match reason {
        Reason::Root => "root".to_owned(),
        Reason::Giver => "giver".to_owned(),
        Reason::Share => "share".to_owned(),
        Reason::Allow => format!("{rule} allows it"),
        Reason::Reserve => format!("{rule} reserves the name"),
        Reason::Free => "the name is free".to_owned(),
        Reason::Nothing => "nothing allows it".to_owned(),
    };
    format!("{verdict}: {reason}")
}
