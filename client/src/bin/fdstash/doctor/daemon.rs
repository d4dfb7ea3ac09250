//! The daemon that answers: its version, its program, its limits, and what its entries outlive.

use std::{fs, path::Path, time::Duration};

use fdstash::{Keeper, Pattern, Statistics, blocking::Client};

use super::{Finding, entries, socket::Reached, units::Manager};
use crate::words::plain;

/// Below this many entries somebody has forgotten a limit.
const FEW_ENTRIES: u64 = 1024;

/// For how long the mirror may be behind where all is well.
const BEHIND: Duration = Duration::from_secs(10);

/// A user that this user namespace has no number for.
const NOBODY: u32 = 65534;

/// What is wrong, and what is to be said of a daemon with which nothing is.
pub(crate) fn look(
    socket: &Path,
    reached: &Reached,
    manager: Option<&Manager>,
) -> Result<(Vec<Finding>, String), fdstash::Error> {
    let mut client = Client::connect_to(socket)?;
    let (info, figures) = (client.info()?, client.statistics()?);
    let mut findings = Vec::new();
    findings.extend(other_version(&info.version));
    let main = manager.and_then(Manager::main_pid);
    let pid = main.or_else(|| reached.pid.filter(|pid| command_of(*pid) == "fdstashd"));
    findings.extend(pid.and_then(replaced));
    findings.extend(pid.and_then(few_files));
    findings.extend(pid.and_then(open_to_all_calls));
    findings.extend(elsewhere(reached));
    findings.extend(outlives(&figures, main.is_some()));
    findings.extend(room(&figures));
    findings.extend(entries::look(&client.list(&Pattern::all())?));
    let (entries, version) = (figures.entries, plain(&info.version));
    let plural = if entries == 1 { "entry" } else { "entries" };
    let says = format!("fdstashd {version} serves at {} with {entries} {plural}", socket.display());
    Ok((findings, says))
}

fn other_version(daemons: &str) -> Option<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    (daemons != own).then(|| {
        Finding::wrong(
            format!("the daemon is version {daemons}, and this command {own}"),
            "one of them was not upgraded with the other; what only one of them knows does not work",
            "have the daemon upgrade itself, which loses nothing: systemctl reload fdstashd, or SIGHUP",
        )
    })
}

/// Only root can see which program a process runs that is not dumpable.
fn replaced(pid: i32) -> Option<Finding> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let program = program.to_string_lossy().into_owned();
    let path = program.strip_suffix(" (deleted)")?;
    Some(Finding::wrong(
        format!("the daemon's program {path} was replaced, and the daemon is still the old one"),
        "it runs what is no longer installed: mended faults are still in it",
        format!(
            "have it upgrade itself, which loses nothing: systemctl reload fdstashd, or kill -HUP {pid}"
        ),
    ))
}

fn few_files(pid: i32) -> Option<Finding> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let hard: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    (hard < FEW_ENTRIES * 4).then(|| {
        Finding::wrong(
            format!("the daemon may have no more than {hard} files open"),
            "every entry, connection and descriptor on its way takes one",
            "start it with more: ulimit -Hn 524288, or LimitNOFILE=524288 in its unit",
        )
    })
}

/// Whether the process that serves has a filter for its system calls: it is the main one's child.
fn open_to_all_calls(pid: i32) -> Option<Finding> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let server: i32 = children.split_whitespace().next()?.parse().ok()?;
    let status = fs::read_to_string(format!("/proc/{server}/status")).ok()?;
    let filter = status.lines().find_map(|line| line.strip_prefix("Seccomp:"))?;
    (filter.trim() == "0").then(|| {
        Finding::note(
            "the serving process has no filter for its system calls",
            "this kernel lacks seccomp, or the daemon could not use it; everything works without",
            "see the daemon's log for `sandbox`",
        )
    })
}

/// Namespaces between this process and the daemon.
fn elsewhere(reached: &Reached) -> Vec<Finding> {
    let mut findings = Vec::new();
    if reached.pid.is_none() {
        findings.push(Finding::note(
            "the daemon runs in another PID namespace",
            "the pids that it tells are not those that are seen here",
            "look for them on the host",
        ));
    }
    if reached.uid == NOBODY {
        findings.push(Finding::note(
            "the daemon's user has no number in this user namespace",
            "and this user may have none where the daemon is: then it can give nothing",
            "see /proc/self/uid_map, and map this user, or call from the host",
        ));
    }
    findings
}

/// What the entries outlive, and what they could.
fn outlives(figures: &Statistics, is_service: bool) -> Option<Finding> {
    match (figures.keeper, &figures.mirror) {
        (Keeper::Nobody, _) => Some(Finding::wrong(
            "the daemon has no keeper",
            "what is kept ends with the one process that serves",
            "see its log for why, and restart it when nothing is kept that would be missed",
        )),
        (Keeper::Process, _) if is_service => Some(Finding::wrong(
            "systemd stores nothing for the daemon",
            "what is kept does not outlive a restart of the service",
            "FileDescriptorStoreMax=2048, Environment=FDSTORE=2048 and NotifyAccess=all in its unit",
        )),
        (Keeper::ProcessAndSystemd, Some(mirror)) if mirror.behind_usec > usec(BEHIND) => {
            let (waiting, seconds) = (mirror.waiting, mirror.behind_usec / 1_000_000);
            Some(Finding::wrong(
                format!("systemd's store is {waiting} changes behind, by {seconds} s"),
                "a restart of the service now would lose those",
                "see the daemon's log; a full store wants more of FileDescriptorStoreMax=",
            ))
        }
        (Keeper::Process | Keeper::ProcessAndSystemd, _) => None,
    }
}

fn usec(span: Duration) -> u64 {
    span.as_micros().try_into().unwrap_or(u64::MAX)
}

fn room(figures: &Statistics) -> Vec<Finding> {
    let Statistics { entries, max_entries, restores, .. } = figures;
    let mut findings = Vec::new();
    if *max_entries < FEW_ENTRIES {
        findings.push(Finding::note(
            format!("the stash holds at most {max_entries} entries"),
            "so many are soon used up, and Give is refused then",
            "give it more files (ulimit -Hn, LimitNOFILE=), or raise --max-entries",
        ));
    }
    if entries.saturating_mul(10) >= max_entries.saturating_mul(9) {
        findings.push(Finding::wrong(
            format!("the stash is nearly full: {entries} entries of at most {max_entries}"),
            "the last part is root's alone; Give is refused when it is used up",
            "see whose they are (fdstash list --long), and close what nobody needs",
        ));
    }
    if *restores > 0 {
        findings.push(Finding::note(
            format!("the daemon has come back {restores} times to what it kept"),
            "each was an upgrade or a crash; nothing was lost by it",
            "the daemon's log says which",
        ));
    }
    findings
}

fn command_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}
