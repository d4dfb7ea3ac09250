//! `fdstash show`: what is known of an entry, by the daemon, the kernel and `/proc`.

mod descriptor;
mod holders;
pub(crate) mod path;

use std::{
    io::{self, BufWriter, Write},
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    time::SystemTime,
};

use anyhow::Context;
use clap::Args;
use fdstash::{Entry, Error, Name, Pattern, Peer, Refusal, Share, blocking::Client};
use serde_json::{Map, Value, json};

use crate::{
    Door,
    locks::{Lock, locks_of},
    names::{group, user},
    words::{distance, flags, labels, plain},
};
use descriptor::{Fact, facts};
use holders::{Holder, Holders};
use path::{Path, path_of};

/// How many holders are shown of one kind: a /dev/null is held by everybody.
const MOST_HOLDERS: usize = 16;

const EXAMPLES: &str = "\
Examples:
  fdstash show vm7-disk0
  sudo fdstash show vm7-disk0                    # and who of all processes holds it
  fdstash show vm7-disk0 --json | jq .holders.same

It takes a copy of the entry for a moment, looks at that and at /proc, and closes it. \"held by\" says
who has a duplicate of the very open file that is kept: they share its offset, its flags and its
locks. \"same file\" says who has opened it on their own. Of other users' processes only root can see
what they hold, and what is on its way in a socket nobody sees.";

/// Show all that can be known of an entry, and who else holds it
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Show {
    /// Of which ones
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Name>,

    /// Write one JSON object an entry: as `list --json` has it, with `now` and `holders`
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(crate) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let mut client = door.connect()?;
        let mut out = BufWriter::new(io::stdout().lock());
        for (at, name) in self.names.iter().enumerate() {
            let shown = Shown::of(&mut client, name)?;
            if self.json {
                writeln!(out, "{}", shown.to_json()?)?;
                continue;
            }
            if at > 0 {
                writeln!(out)?;
            }
            writeln!(out, "{name}")?;
            for (what, value) in shown.lines() {
                writeln!(out, "  {what:<12}  {value}")?;
            }
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The entry of a name, as List shows it.
///
/// # Errors
///
/// NotFound, if there is none, or none that this user may know of.
pub(crate) fn entry_of(client: &mut Client, name: &Name) -> anyhow::Result<Entry> {
    // A name may have a '*' or '?' in it, and then matches others too.
    let listed = client.list(&Pattern::new(name.as_str())?)?;
    let entry = listed.into_iter().find(|entry| entry.name == *name);
    let not_found = || Error::from(Refusal::NotFound { name: name.to_string() });
    Ok(entry.ok_or_else(not_found)?)
}

/// What is known of an entry.
struct Shown {
    entry: Entry,
    path: Option<Path>,
    /// What a copy of it tells; else, why there is none.
    now: Result<Now, String>,
}

/// What a copy tells.
struct Now {
    facts: Vec<Fact>,
    locks: Vec<Lock>,
    holders: Holders,
}

impl Shown {
    fn of(client: &mut Client, name: &Name) -> anyhow::Result<Self> {
        let entry = entry_of(client, name)?;
        let copy = match client.copy(std::slice::from_ref(name)) {
            Ok(copies) => copies.into_iter().next().context("the daemon handed nothing out")?.fd,
            Err(Error::Refused(refusal)) => {
                let path = path_of(&entry, None::<OwnedFd>);
                return Ok(Self { entry, path, now: Err(refusal.to_string()) });
            }
            Err(error) => return Err(error.into()),
        };
        let path = path_of(&entry, Some(&copy));
        let now = Now {
            facts: facts(copy.as_fd(), entry.kind),
            locks: locks_of(name, &copy)?,
            holders: Holders::find(copy.as_fd(), entry.kind, client.socket())
                .context("/proc cannot be read")?,
        };
        Ok(Self { entry, path, now: Ok(now) })
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let Entry { kind, access, target, may_reopen, device, inode, .. } = &self.entry;
        let mut lines = Vec::new();
        if let Some(target) = target {
            let path = self.path.as_ref().map(|path| format!(" ({})", plain(&path.tell())));
            lines.push(("target", format!("{}{}", plain(target), path.unwrap_or_default())));
        }
        lines.push(("kind", kind.as_str().to_owned()));
        if let Ok(now) = &self.now {
            lines.extend(now.facts.iter().map(|fact| (fact.key, fact.value.tell())));
        }
        let (major, minor) = (rustix::fs::major(*device), rustix::fs::minor(*device));
        lines.push(("inode", format!("{inode} on device {major}:{minor}")));
        let may = format!("{}, a reopen gives at most {}", access.as_str(), may_reopen.as_str());
        lines.push(("access", may));
        lines.push(("flags", none_if_empty(flags(self.entry.flags))));
        lines.extend(drift(&self.entry).map(|drift| ("drifted", drift)));
        lines.extend(self.terms());
        match &self.now {
            Ok(now) => lines.extend(now.lines()),
            Err(why) => lines.push((
                "not shown",
                format!("offset, locks and who holds it, which take a copy: {}", plain(why)),
            )),
        }
        lines
    }

    /// What its giver said.
    fn terms(&self) -> Vec<(&'static str, String)> {
        let Entry { giver, given_at_usec, expires_at_usec, held_by, .. } = &self.entry;
        let now = SystemTime::now();
        let given = format!("{} ago by {}", distance(*given_at_usec, now), peer(*giver));
        let mut lines = vec![("given", given)];
        lines.extend(expires_at_usec.map(|at| ("expires", format!("in {}", distance(at, now)))));
        lines.extend(held_by.map(|by| ("transaction", format!("of {}", peer(by)))));
        match &self.entry.share {
            Some(share) => lines.push(("shared with", shared(share))),
            None => lines.push(("shared with", "told to its giver and to root alone".to_owned())),
        }
        if self.entry.ephemeral == Some(true) {
            lines.push(("closes", "when the connection that gave it ends".to_owned()));
        }
        if self.entry.close_on_hangup == Some(true) {
            lines.push(("closes", "when it has hung up".to_owned()));
        }
        if !self.entry.labels.is_empty() {
            lines.push(("labels", labels(&self.entry.labels)));
        }
        lines.push(("revision", self.entry.revision.to_string()));
        lines
    }

    fn to_json(&self) -> anyhow::Result<String> {
        let mut shown: Map<String, Value> = serde_json::from_str(&self.entry.to_json())?;
        let path = self.path.as_ref().map(|path| match path {
            Path::Renamed(now) => json!({ "state": path.as_str(), "now": now }),
            Path::Same | Path::Replaced | Path::Gone | Path::Unseen(_) => {
                json!({ "state": path.as_str() })
            }
        });
        shown.extend(path.map(|path| ("path".to_owned(), path)));
        match &self.now {
            Ok(now) => now.add_to(&mut shown, &self.entry.name)?,
            Err(why) => {
                shown.insert("notShown".to_owned(), json!(why));
            }
        }
        Ok(serde_json::to_string(&shown)?)
    }
}

impl Now {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines: Vec<_> = self.locks.iter().map(|lock| ("lock", lock.tell())).collect();
        if lines.is_empty() {
            lines.push(("locks", "none".to_owned()));
        }
        let Holders { keepers, same, separate, either, unseen } = &self.holders;
        lines.extend(several("kept by", keepers));
        lines.extend(several("held by", same));
        lines.extend(several("same file", separate));
        lines.extend(several("one of these", either));
        if same.is_empty() {
            let who = if *unseen == 0 { "nobody else" } else { "nobody else that can be seen" };
            lines.push(("held by", who.to_owned()));
        }
        if *unseen > 0 {
            let whose = "processes that this user may not look into; run as root to see all";
            lines.push(("not seen", format!("{unseen} {whose}")));
        }
        lines
    }

    fn add_to(&self, shown: &mut Map<String, Value>, name: &Name) -> anyhow::Result<()> {
        let mut now = Map::new();
        let (of_kind, facts): (Vec<_>, Vec<_>) =
            self.facts.iter().partition(|fact| fact.key == "kernel");
        for Fact { key, value } in facts {
            now.insert((*key).to_owned(), value.to_json());
        }
        let lines: Vec<_> = of_kind.iter().map(|fact| fact.value.to_json()).collect();
        now.insert("kernel".to_owned(), Value::Array(lines));
        let locks = self.locks.iter().map(|lock| serde_json::from_str(&lock.to_json(name)));
        now.insert("locks".to_owned(), Value::Array(locks.collect::<Result<_, _>>()?));
        shown.insert("now".to_owned(), Value::Object(now));
        let Holders { keepers, same, separate, either, unseen } = &self.holders;
        let all = |holders: &[Holder]| holders.iter().map(Holder::to_json).collect::<Vec<_>>();
        let holders = json!({
            "keepers": all(keepers),
            "same": all(same),
            "separate": all(separate),
            "either": all(either),
            "unseen": unseen,
        });
        shown.insert("holders".to_owned(), holders);
        Ok(())
    }
}

impl Holder {
    fn tell(&self) -> String {
        let fds = self.fds.iter().map(|(number, access)| match access {
            Some(access) => format!("{number} {}", access.as_str()),
            None => number.to_string(),
        });
        let fds: Vec<_> = fds.collect();
        let Self { pid, command, uid, .. } = self;
        format!("{command}, pid {pid}, {}: descriptor {}", user(*uid), fds.join(", "))
    }

    fn to_json(&self) -> Value {
        let fds = self.fds.iter().map(|(number, access)| match access {
            Some(access) => json!({ "number": number, "access": access.as_str() }),
            None => json!({ "number": number }),
        });
        let fds: Vec<_> = fds.collect();
        json!({ "pid": self.pid, "command": self.command, "uid": self.uid, "descriptors": fds })
    }
}

fn several(what: &'static str, holders: &[Holder]) -> Vec<(&'static str, String)> {
    let shown = holders.iter().take(MOST_HOLDERS);
    let mut lines: Vec<_> = shown.map(|holder| (what, holder.tell())).collect();
    let rest = holders.len().saturating_sub(MOST_HOLDERS);
    if rest > 0 {
        lines.push((what, format!("and {rest} more, all in --json")));
    }
    lines
}

/// Which flags are otherwise than they were given, and what that means.
fn drift(entry: &Entry) -> Option<String> {
    let words = entry.drifted.words().map(|word| {
        let was_on = entry.flags.words().any(|flag| flag == word);
        format!("{word} was switched {}", if was_on { "off" } else { "on" })
    });
    let words: Vec<_> = words.collect();
    let by = "by somebody who shares it (a reopen without options sets it right)";
    (!words.is_empty()).then(|| format!("{}, {by}", words.join(", ")))
}

fn shared(share: &Share) -> String {
    let users = share.uids.iter().map(|uid| user(*uid));
    let words: Vec<_> = users.chain(share.gids.iter().map(|gid| group(*gid))).collect();
    if words.is_empty() {
        "nobody, but for what the policy grants".to_owned()
    } else {
        words.join(", ")
    }
}

fn peer(peer: Peer) -> String {
    format!("{}, pid {}", user(peer.uid), peer.pid)
}

fn none_if_empty(words: String) -> String {
    if words.is_empty() { "none".to_owned() } else { words }
}
