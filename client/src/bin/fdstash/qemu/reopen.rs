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

use std::{
    collections::BTreeMap,
    io::{self, Write},
    os::fd::OwnedFd,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use fdstash::{Handed, Name, Reopening};
use rustix::fs::fstat;
use serde_json::{Value, json};

use super::{
    Target,
    attach::{opening, settle},
    nodes::{
        FileNode, Image, Mark, Member, Options, Seen, Set, add_fd, nodes, read_only, remove_fd,
        sets,
    },
    qmp::{Failure, Monitor},
    words::set,
};
use crate::{Door, table::Table, words::Switch};

const EXAMPLES: &str = "\
Examples:
  fdstash qemu reopen --qmp /run/vm7.qmp --node disk0 --direct on
  fdstash qemu reopen --qmp /run/vm7.qmp --node disk0 --direct off --chain

All nodes change in one step, or none. If it fails, QEMU goes on with the descriptors that it had, and
the stash is as it was.";

/// Have QEMU go over to newly opened files of an image, while its guest runs
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Reopen {
    #[command(flatten)]
    target: Target,

    /// Past the host's page cache, or through it [default: as it is]
    #[arg(long)]
    direct: Option<Switch>,

    /// Only for reading, or for writing too [default: as it is]. The files below the topmost image
    /// always are only for reading.
    #[arg(long)]
    read_only: Option<Switch>,

    /// The files of the backing images too, not only those of the topmost
    #[arg(long)]
    chain: bool,

    /// Write what was done as one JSON object
    #[arg(long)]
    json: bool,
}

/// One file node, and what shall become of it.
struct Step {
    file: FileNode,
    was: Flags,
    is: Flags,
    /// What stands beside its new descriptor, its new options among it.
    mark: Mark,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flags {
    direct: bool,
    read_only: bool,
}

/// What one `blockdev-reopen` is to change.
struct Plan {
    steps: Vec<Step>,
    /// Format nodes that change with their files: their options as they were, and as they will be.
    formats: Vec<(Options, Options)>,
}

impl Reopen {
    pub(super) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let mut monitor = self.target.monitor()?;
        let mut stash = door.connect()?;
        let (sets, before) = (sets(&mut *monitor)?, nodes(&mut *monitor)?);
        let image = Image::find(&self.target.node, &sets, &before);
        let plan = self.plan(&image, &before)?;
        tidy(&mut *monitor, &plan, &sets, &before)?;

        let reopenings = plan.reopenings();
        let mut transaction = stash.transaction()?;
        let handed = transaction.reopen(&reopenings)?;
        let mut added = Vec::new();
        let went = go_over(&mut *monitor, &plan, handed, &before, &mut added);
        let took = match went {
            Ok(took) => took,
            Err(error) => {
                let told = take_back(&mut *monitor, &added, &error);
                transaction.rollback();
                return Err(error.context(told));
            }
        };
        let settled = settle(transaction.commit(), &mut stash, &reopenings);
        remove_old(&mut *monitor, &plan, &sets, &added);
        self.tell(&plan, took)?;
        settled.map(|()| ExitCode::SUCCESS)
    }

    fn plan(&self, image: &Image, seen: &BTreeMap<String, Seen>) -> anyhow::Result<Plan> {
        let node = &self.target.node;
        anyhow::ensure!(!image.layers.is_empty(), "QEMU has no image {node:?} that was attached");
        let chosen = if self.chain { image.layers.len() } else { 1 };
        let mut plan = Plan { steps: Vec::new(), formats: Vec::new() };
        for (at, layer) in image.layers.iter().take(chosen).enumerate() {
            let turns = self.read_only.map(bool::from).filter(|_| at == 0);
            let format = layer.format.as_ref().map(|format| {
                let now = turns.unwrap_or(read_only(format));
                (format.clone(), with(format, "read-only", now))
            });
            for file in &layer.files {
                let seen = seen.get(file.node());
                let seen = seen.with_context(|| format!("QEMU has no node {:?}", file.node()))?;
                let format = format.as_ref().map(|(_, format)| format);
                let step = self.step(file, seen, turns, format);
                // A descriptor that lies in memory is opened anew only where it must be.
                if step.entry().is_some() || step.was != step.is {
                    plan.steps.push(step);
                }
            }
            plan.formats.extend(format.filter(|(was, is)| was != is));
        }
        Ok(plan)
    }

    fn step(
        &self,
        file: &FileNode,
        seen: &Seen,
        turns: Option<bool>,
        format: Option<&Options>,
    ) -> Step {
        let was = Flags { direct: seen.direct, read_only: seen.read_only };
        let is = Flags {
            direct: self
                .direct
                .filter(|_| file.mark.entry.is_some())
                .map_or(was.direct, bool::from),
            read_only: turns.unwrap_or(was.read_only),
        };
        let mut mark = file.mark.clone();
        mark.options = is.of(&mark.options);
        mark.format = mark.format.and(format.cloned());
        Step { file: file.clone(), was, is, mark }
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
            let entry = step.mark.entry.as_ref().map(Name::to_string).unwrap_or_default();
            table.push([step.file.node().to_owned(), entry, step.was.words(), step.is.words()]);
        }
        table.write(&mut out, None)?;
        writeln!(out, "reopened in {:.1} ms", took.as_secs_f64() * 1000.0)
    }
}

impl Plan {
    fn reopenings(&self) -> Vec<Reopening> {
        let opening = |step: &Step| Some(opening(step.entry()?, step.is.direct, step.is.read_only));
        self.steps.iter().filter_map(opening).collect()
    }

    fn options(&self) -> Vec<Value> {
        let files = self.steps.iter().map(|step| {
            Value::from(FileNode { set: step.file.set, mark: step.mark.clone() }.options())
        });
        files.chain(self.formats.iter().map(|(_, is)| Value::from(is.clone()))).collect()
    }

    /// What undoes them.
    fn old_options(&self) -> Vec<Value> {
        let files = self.steps.iter().map(|step| {
            let mut mark = step.file.mark.clone();
            mark.options = step.was.of(&mark.options);
            Value::from(FileNode { set: step.file.set, mark }.options())
        });
        files.chain(self.formats.iter().map(|(was, _)| Value::from(was.clone()))).collect()
    }
}

impl Step {
    /// The entry that has its file; none if the stash does not keep it.
    fn entry(&self) -> Option<&Name> {
        self.mark.entry.as_ref()
    }

    fn to_json(&self) -> Value {
        json!({
            "node": self.file.node(),
            "name": self.entry().map(Name::as_str),
            "was": { "direct": self.was.direct, "readOnly": self.was.read_only },
            "is": { "direct": self.is.direct, "readOnly": self.is.read_only },
        })
    }
}

impl Flags {
    fn words(self) -> String {
        let cache = if self.direct { "direct" } else { "cached" };
        let access = if self.read_only { "read-only" } else { "read-write" };
        format!("{cache}, {access}")
    }

    /// Options of a file node, with these flags.
    fn of(self, options: &Options) -> Options {
        let mut options = with(options, "read-only", self.read_only);
        set(&mut options, "cache.direct", self.direct.into());
        options
    }
}

fn with(options: &Options, key: &str, value: bool) -> Options {
    let mut options = options.clone();
    options.insert(key.to_owned(), value.into());
    options
}

/// Takes out what an earlier reopen has left behind that was cut off. A node has a duplicate of its own
/// of what it was opened from, but a lock on what is left over would be in the way of a writer.
fn tidy(
    monitor: &mut dyn Monitor,
    plan: &Plan,
    sets: &[Set],
    seen: &BTreeMap<String, Seen>,
) -> anyhow::Result<()> {
    for step in plan.steps.iter().filter(|step| step.entry().is_some()) {
        let set = sets.iter().find(|set| set.id == step.file.set);
        let Some((set, node)) = set.zip(seen.get(step.file.node())) else { continue };
        let Some((in_force, _)) = set.in_force(node) else { continue };
        for (member, _) in set.marked().filter(|(member, _)| member.number != in_force.number) {
            remove_fd(monitor, set.id, member.number)?;
        }
    }
    Ok(())
}

/// Gives QEMU the new descriptors, has its nodes go over to them, all or none, and tells how long that
/// took.
fn go_over(
    monitor: &mut dyn Monitor,
    plan: &Plan,
    handed: Vec<Handed<OwnedFd>>,
    before: &BTreeMap<String, Seen>,
    added: &mut Vec<(i64, i64)>,
) -> anyhow::Result<Duration> {
    let with_entry = plan.steps.iter().filter(|step| step.entry().is_some());
    for (step, Handed { name, fd }) in with_entry.zip(handed) {
        let stat = fstat(&fd)?;
        anyhow::ensure!(
            (stat.st_dev, stat.st_ino) == step.mark.file,
            "entry {:?} has another file now than node {:?} was opened from, and a guest must not go on \
             in another file",
            name.as_str(),
            step.file.node()
        );
        added.push(add_fd(monitor, Some(step.file.set), fd, &step.mark)?);
    }
    let began = Instant::now();
    monitor.execute("blockdev-reopen", json!({ "options": plan.options() }), None)?;
    let took = began.elapsed();
    check(monitor, plan, before)?;
    Ok(took)
}

/// Whether the nodes are as was asked, and nothing else has changed; if not, they go back.
fn check(
    monitor: &mut dyn Monitor,
    plan: &Plan,
    before: &BTreeMap<String, Seen>,
) -> anyhow::Result<()> {
    let after = nodes(monitor)?;
    let mut wrong: Vec<String> = before
        .iter()
        .flat_map(|(name, was)| match after.get(name) {
            Some(is) => is.changes_since(was),
            None => vec![format!("{name} is gone")],
        })
        .collect();
    for step in &plan.steps {
        let node = after.get(step.file.node());
        let is = node.map(|node| Flags { direct: node.direct, read_only: node.read_only });
        if is.is_some_and(|is| is != step.is) {
            wrong.push(format!("{} is not {}", step.file.node(), step.is.words()));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let back = monitor.execute("blockdev-reopen", json!({ "options": plan.old_options() }), None);
    let back = back.map_or_else(
        |error| format!("and it did not go back ({error:#})"),
        |_| "and was taken back".to_owned(),
    );
    Err(Failure::Refused {
        command: "blockdev-reopen".into(),
        class: "carried out".into(),
        desc: format!("it changed more than it was to, {back}: {}", wrong.join("; ")),
    }
    .into())
}

/// Takes out the new descriptors where QEMU has not gone over to them, and tells how things stand.
fn take_back(monitor: &mut dyn Monitor, added: &[(i64, i64)], why: &anyhow::Error) -> &'static str {
    if !Failure::is_refusal(why) && why.downcast_ref::<Failure>().is_some() {
        return "QEMU has the old and the new descriptors and works with either; `fdstash qemu status` \
                tells which, and the next reopen removes the others. The stash is as it was";
    }
    let removed = added.iter().all(|&(set, number)| remove_fd(monitor, set, number).is_ok());
    if removed {
        "not reopened: QEMU goes on with the descriptors that it had, and the stash is as it was"
    } else {
        "not reopened: QEMU goes on with the descriptors that it had, and the stash is as it was; the \
         new ones could not be taken back, and the next reopen removes them"
    }
}

/// Takes out what QEMU no longer uses. What cannot be taken out now is left over, and harms no reader.
fn remove_old(monitor: &mut dyn Monitor, plan: &Plan, sets: &[Set], added: &[(i64, i64)]) {
    for step in plan.steps.iter().filter(|step| step.entry().is_some()) {
        let old = sets.iter().filter(|set| set.id == step.file.set).flat_map(|set| &set.members);
        // A new one can have the number of what was left over from earlier, and is gone already.
        let is_new = |member: &&Member| added.contains(&(step.file.set, member.number));
        for member in old.filter(|member| !is_new(member)) {
            if let Err(error) = remove_fd(monitor, step.file.set, member.number) {
                let is_gone = Failure::is_refusal(&error);
                if !is_gone {
                    crate::complain(format_args!("an old descriptor stays in QEMU: {error:#}"));
                }
            }
        }
    }
}
