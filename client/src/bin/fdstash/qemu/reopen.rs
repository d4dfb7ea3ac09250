//! `fdstash qemu reopen`.
//!
//! The order of the steps is what keeps the disk:
//!
//! 1. The stash opens all files anew, in a transaction: nothing of that is final.
//! 2. QEMU gets each new descriptor beside the old one, in the same set. Its nodes go on with the old.
//! 3. One `blockdev-reopen` of all nodes: all of them are on the new descriptors, or all on the old.
//! 4. The stash commits, or rolls back.
//! 5. The descriptors that are not in use are taken out of the sets.
//!
//! At whatever step something dies, QEMU has open descriptors, the old or the new ones, and so has the
//! stash. What is left over in the sets then is seen by its marks, and goes at the next reopen.

mod plan;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    os::fd::OwnedFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use fdstash::{Handed, Name, Refusal, Reopening, blocking::Transaction};
use rustix::fs::fstat;
use serde_json::{Value, json};

pub(super) use self::plan::Flags;
use self::plan::{Plan, Step};
use super::{
    ATTEMPTS, Site,
    attach::settle,
    foreign::Foreign,
    is_undone,
    nodes::{Image, Mark, Seen, Set, add_fd, nodes, remove_fd, sets},
    qmp::{Failure, Monitor},
    unknown,
};
use crate::{
    Door, Misuse,
    progress::Progress,
    table::Table,
    words::{Switch, plain},
};

const USAGE: &str = "\
fdstash qemu reopen [OPTIONS] --qmp <SOCKET> --node <NODE>
       fdstash qemu reopen [OPTIONS] --libvirt <URI> --domain <DOMAIN> --disk <TARGET>";

const EXAMPLES: &str = "\
Examples:
  fdstash qemu reopen --qmp /run/vm7.qmp --node disk0 --direct on
  fdstash qemu reopen --qmp /run/vm7.qmp --node disk0 --direct off --chain
  fdstash qemu reopen --libvirt qemu:///system --domain vm7 --disk vda --direct on

All nodes change in one step, or none. If it fails, QEMU goes on with the descriptors that it
had, and the stash is as it was.

Of nodes that QEMU was started with, and not those of `fdstash qemu attach`, it must be said
which entry has which file, and once what options they have:
  fdstash take vm7-disk0 --copy --fresh --fd 3 -- qemu-system-x86_64 \\
      -qmp unix:/run/vm7.qmp,server=on,wait=off -add-fd fd=3,set=1,opaque=vm7-disk0 \\
      -blockdev driver=file,node-name=disk0-file,filename=/dev/fdset/1,aio=threads \\
      -blockdev driver=qcow2,node-name=disk0,file=disk0-file
  fdstash qemu reopen --qmp /run/vm7.qmp --node disk0 --direct on \\
      --name disk0-file=vm7-disk0 --option aio=threads
QEMU must have opened them from sets of descriptors (/dev/fdset/N), a set for each.";

/// Have QEMU go over to newly opened files of an image, while its guest runs
#[derive(Args)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
pub(super) struct Reopen {
    #[command(flatten)]
    site: Site,

    /// Past the host's page cache, or through it [default: as it is]
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    direct: Option<Switch>,

    /// Only for reading, or for writing too [default: as it is]. The files below the topmost image
    /// always are only for reading.
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    read_only: Option<Switch>,

    /// The files of the backing images too, not only those of the topmost
    #[arg(long)]
    chain: bool,

    #[command(flatten)]
    foreign: Foreign,

    /// Write what was done as one JSON object
    #[arg(long)]
    json: bool,
}

/// What QEMU has gone over to.
struct Swap {
    /// How long it took to.
    took: Duration,
    /// What it has changed beyond that, and could not take back.
    wrong: Option<String>,
    /// The descriptors that it has used before.
    old: Vec<Place>,
}

impl Reopen {
    pub(super) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let mut monitor = self.site.monitor()?;
        let mut stash = door.connect()?;
        let mut attempts = ATTEMPTS;
        let plan = self.look(&mut *monitor)?;
        let reopenings = plan.reopenings();
        let progress = Progress::soon("waiting for QEMU");
        let (swap, committed) = loop {
            attempts -= 1;
            match reopen(&mut *monitor, stash.transaction()?, &plan, &reopenings) {
                Err(error) if is_undone(&error) && attempts > 0 => {}
                outcome => break outcome?,
            }
        };
        drop(progress);
        let settled = settle(committed, &mut stash, &reopenings);
        remove_old(&mut *monitor, &swap.old);
        self.tell(&plan, swap.took)?;
        if let Some(wrong) = swap.wrong {
            anyhow::bail!("reopened, but {wrong}");
        }
        settled.map(|()| ExitCode::SUCCESS)
    }

    /// Finds the image, and plans what is to change.
    fn look(&self, monitor: &mut dyn Monitor) -> anyhow::Result<Plan> {
        self.foreign.check()?;
        let is_of_libvirt = self.site.disk.is_some();
        if is_of_libvirt && self.read_only.is_some() {
            return Err(Misuse("whether a disk is read-only is for libvirt to say").into());
        }
        let (sets, seen) = (sets(monitor)?, nodes(monitor)?);
        let (node, mut image) = self.site.find(monitor, &self.foreign, &sets, &seen)?;
        if is_of_libvirt {
            check_entries(&image)?;
        } else if self.foreign.is_some() {
            if image.layers.is_empty() {
                image = self.foreign.image(&node, monitor, &sets, &seen)?;
            } else {
                self.foreign.confirm(&image)?;
            }
        }
        if image.layers.is_empty() {
            let unknown = unknown(&node, &sets);
            anyhow::bail!(
                "{unknown}; of one that QEMU was started with, say which entry has which node's file, with \
                 --name"
            );
        }
        self.plan(&image, &seen)
    }

    fn tell(&self, plan: &Plan, took: Duration) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            let nodes: Vec<Value> = plan.steps.iter().map(Step::to_json).collect();
            let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            return writeln!(out, "{}", json!({ "nodes": nodes, "tookUSec": took }));
        }
        let mut table = Table::new(&["NODE", "NAME", "WAS", "IS"]);
        for step in &plan.steps {
            let entry = step.entry().map(Name::to_string).unwrap_or_default();
            table.push([plain(step.file.node()), entry, step.was.words(), step.is.words()]);
        }
        table.write(&mut out, None)?;
        if plan.options().is_empty() {
            return writeln!(out, "nothing to do: QEMU has the files so already");
        }
        writeln!(out, "reopened in {:.1} ms", took.as_secs_f64() * 1000.0)
    }
}

/// Refuses an image of which it is not known which entries have its files.
fn check_entries(image: &Image) -> anyhow::Result<()> {
    let mut files = image.layers.iter().flat_map(|layer| &layer.files);
    let Some(file) = files.find(|file| file.mark.entry.is_none()) else { return Ok(()) };
    anyhow::bail!(
        "the group of node {0:?} cannot be an entry's name: say which entry has its file, --name \
         {0}=NAME",
        file.node()
    )
}

/// Does all of it, and tells what the commit came to. Where anything fails before that, all is as it
/// was.
fn reopen(
    monitor: &mut dyn Monitor,
    mut transaction: Transaction<'_>,
    plan: &Plan,
    reopenings: &[Reopening],
) -> anyhow::Result<(Swap, Result<(), fdstash::Error>)> {
    // Until the transaction ends, nobody else who goes this way has these entries, and so their nodes.
    let handed = transaction.reopen(reopenings).map_err(not_opened)?;
    let mut added = Vec::new();
    match go_over(monitor, plan, handed, &mut added) {
        Ok(swap) => Ok((swap, transaction.commit())),
        Err(error) => {
            let told = take_back(monitor, &added, &error);
            transaction.rollback();
            Err(error.context(told))
        }
    }
}

/// Says how things stand where the stash has not opened the files, and what to do.
fn not_opened(error: fdstash::Error) -> anyhow::Error {
    let is_gone = matches!(error.refusal(), Some(Refusal::NotFound { .. }));
    let stands = "not reopened: QEMU goes on with the descriptors that it had";
    let error = anyhow::Error::new(error);
    if is_gone {
        return error.context(format!(
            "{stands}; where the stash was started anew, give the file again under the same name \
             (fdstash give NAME FILE)"
        ));
    }
    error.context(stands)
}

/// Gives QEMU the new descriptors, and has its nodes go over to them, all or none.
fn go_over(
    monitor: &mut dyn Monitor,
    plan: &Plan,
    handed: Vec<Handed<OwnedFd>>,
    added: &mut Vec<Place>,
) -> anyhow::Result<Swap> {
    let (sets, before) = (sets(monitor)?, nodes(monitor)?);
    for step in &plan.steps {
        let is_as_planned =
            before.get(step.file.node()).is_some_and(|node| Flags::of(node) == step.was);
        anyhow::ensure!(is_as_planned, "node {:?} has changed meanwhile", step.file.node());
    }
    let (old, over) = leftovers(plan, &sets, &before);
    let stuck = tidy(monitor, &over)?;
    add_new(monitor, plan, handed, added)?;
    let options = plan.options();
    let began = Instant::now();
    if !options.is_empty() {
        let went = monitor.execute("blockdev-reopen", json!({ "options": options }), None);
        went.map_err(|error| with_locks(error, stuck))?;
    }
    let took = began.elapsed();
    let wrong = check(monitor, plan, &before)?;
    Ok(Swap { took, wrong, old })
}

/// Puts the new descriptors beside the old ones.
fn add_new(
    monitor: &mut dyn Monitor,
    plan: &Plan,
    handed: Vec<Handed<OwnedFd>>,
    added: &mut Vec<Place>,
) -> anyhow::Result<()> {
    for ((step, _), Handed { name, fd }) in plan.kept().zip(handed) {
        let stat = fstat(&fd)?;
        anyhow::ensure!(
            step.mark.file.is_none_or(|file| file == (stat.st_dev, stat.st_ino)),
            "entry {:?} has another file now than node {:?} was opened from, and a guest must not go on \
             in another file",
            name.as_str(),
            step.file.node()
        );
        if step.changes() {
            let mark = Mark { file: Some((stat.st_dev, stat.st_ino)), ..step.mark.clone() };
            added.push(add_fd(monitor, Some(step.file.set), fd, &mark)?);
        }
    }
    Ok(())
}

/// Says of descriptors that could not be taken out that their locks may be why.
fn with_locks(error: anyhow::Error, stuck: usize) -> anyhow::Error {
    if stuck == 0 {
        return error;
    }
    error.context(format!(
        "this QEMU closes no descriptor until the guest runs, and {stuck} that were taken out of its \
         sets keep their locks"
    ))
}

/// A descriptor in QEMU: its set, and QEMU's number of it.
type Place = (i64, i64);

/// What is in the sets: what nodes that are to change have been opened from, and what a reopen has left
/// behind that was cut off, before or after they went over.
fn leftovers(plan: &Plan, sets: &[Set], seen: &BTreeMap<String, Seen>) -> (Vec<Place>, Vec<Place>) {
    let (mut used, mut over) = (Vec::new(), Vec::new());
    for (step, _) in plan.kept() {
        let Some(set) = sets.iter().find(|set| set.id == step.file.set) else { continue };
        let in_force = seen.get(step.file.node()).and_then(|node| set.in_force(node));
        for member in &set.members {
            // What bears no mark of ours somebody else has put there.
            let is_over = member.mark.is_some()
                && in_force.is_some_and(|(in_force, _)| in_force.number != member.number);
            let place = (set.id, member.number);
            if is_over {
                over.push(place);
            } else if step.changes() {
                used.push(place);
            }
        }
    }
    (used, over)
}

/// Takes out what is left over, and tells how many of them stay all the same. No node misses one, since
/// it has a duplicate of its own of what it was opened from; but their locks are in the way of whoever is
/// to write.
fn tidy(monitor: &mut dyn Monitor, over: &[Place]) -> anyhow::Result<usize> {
    for &(set, number) in over {
        remove_fd(monitor, set, number)?;
    }
    if over.is_empty() {
        return Ok(0);
    }
    let left = sets(monitor)?;
    let is_left = |&&(id, number): &&Place| {
        let set = left.iter().find(|set| set.id == id);
        set.is_some_and(|set| set.members.iter().any(|member| member.number == number))
    };
    Ok(over.iter().filter(is_left).count())
}

/// Whether the nodes are as was asked, and nothing else has changed. If not, they go back, and that is
/// a failure; what has changed all the same is told, if they do not.
fn check(
    monitor: &mut dyn Monitor,
    plan: &Plan,
    before: &BTreeMap<String, Seen>,
) -> anyhow::Result<Option<String>> {
    let after = nodes(monitor)?;
    let mut wrong = Vec::new();
    for (name, was) in before {
        match after.get(name) {
            Some(is) => wrong.extend(is.changes_since(was)),
            None => wrong.push(format!("node {name} is gone")),
        }
    }
    for step in &plan.steps {
        let name = step.file.node();
        if after.get(name).is_some_and(|node| Flags::of(node) != step.is) {
            wrong.push(format!("{name} is not {}", step.is.words()));
        }
    }
    if wrong.is_empty() {
        return Ok(None);
    }
    let wrong = format!("QEMU has changed more than that: {}", wrong.join("; "));
    let back = monitor.execute("blockdev-reopen", json!({ "options": plan.old_options() }), None);
    match back {
        Ok(_) => anyhow::bail!(wrong),
        Err(error) => Ok(Some(format!("{wrong}, and it did not go back ({error:#})"))),
    }
}

/// Takes out the new descriptors where QEMU has not gone over to them, and tells how things stand.
fn take_back(monitor: &mut dyn Monitor, added: &[Place], why: &anyhow::Error) -> &'static str {
    if Failure::leaves_open(why) {
        return "QEMU has the old and the new descriptors and works with either; `fdstash qemu status` \
                tells which, and the next reopen removes the others. The stash is as it was";
    }
    let removed = added.iter().map(|&(set, number)| remove_fd(monitor, set, number));
    // Each is tried, whatever became of the one before.
    if removed.filter(Result::is_err).count() == 0 {
        "not reopened: QEMU goes on with the descriptors that it had, and the stash is as it was"
    } else {
        "not reopened: QEMU goes on with the descriptors that it had, and the stash is as it was; the \
         new ones could not be taken back, and the next reopen removes them"
    }
}

/// Takes out what QEMU no longer uses. What cannot be taken out the next reopen tries again.
fn remove_old(monitor: &mut dyn Monitor, old: &[Place]) {
    for &(set, number) in old {
        if let Err(error) = remove_fd(monitor, set, number) {
            crate::complain(format_args!("an old descriptor stays in set {set}: {error:#}"));
        }
    }
}
