//! `fdstash qemu attach`.

mod check;
mod plan;

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use fdstash::{
    Entry, Name, Pattern, Reopening,
    blocking::{Client, Transaction},
};
use rustix::{fs::fstat, process::geteuid};
use serde_json::{Value, json};

pub(super) use self::plan::opening;
use self::{
    check::{check_lengths, check_node},
    plan::{File, Format, Opener, Parts, Planned, image},
};
use super::{
    ATTEMPTS, Target, is_undone,
    nodes::{FileNode, Identity, Mark, Options, add_fd, name_of, remove_fd, set_path},
    qmp::{Failure, Monitor},
    vmdk,
    words::{self, Setting},
};
use crate::{
    Door,
    progress::Progress,
    words::{Switch, plain},
};

const EXAMPLES: &str = "\
Examples:
  fdstash qemu attach --qmp /run/vm7.qmp --node disk0 --image qcow2=vm7-disk0 --direct on
  fdstash qemu attach --qmp /run/vm7.qmp --node disk0 \\
      --image qcow2=vm7-disk0 --image qcow2=vm7-base --image raw=vm7-root \\
      --option aio=threads --option disk0.discard=unmap --option disk0-file.discard=unmap
  fdstash qemu attach --qmp /run/vm7.qmp --node disk0 --image vmdk=vm7-disk \\
      --extent vm7-f001.vmdk=vm7-disk-f001 --extent vm7-f002.vmdk=vm7-disk-f002

The nodes are named after the image: disk0, its file disk0-file; the image below disk0-backing1,
its file disk0-backing1-file, and so on; a data file disk0-data; extents disk0-extent1,
disk0-extent2 and so on. A VMDK's descriptor is rewritten for QEMU, in memory, and what QEMU
writes into it stays there: a new identifier of the content, with the first write. A device then
refers to disk0:
  device_add virtio-blk-pci,drive=disk0
The stash opens each file anew, as it is to be (--direct), and keeps that in place of what it kept;
QEMU gets an open file description of its own, which nobody else has.
What fails is undone: then there is no node, and the stash is as it was.";

/// Give QEMU the files of an image, and make its block nodes of them
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Attach {
    #[command(flatten)]
    target: Target,

    /// An image, by its format and the entry that has its file; the top of a chain first, then each
    /// backing file
    #[arg(long = "image", required = true, value_name = "FORMAT=NAME", value_parser = image)]
    images: Vec<(Format, Name)>,

    /// The entry that has the external data file of an image; the topmost image's first
    #[arg(long = "data-file", value_name = "NAME")]
    data_files: Vec<Name>,

    /// The entry that has an extent of a VMDK image, by the file's name in its descriptor (may be
    /// repeated). Without FILENAME=, of the next extent that is not named, and the file that was given
    /// to the stash must have been called as the descriptor calls it
    #[arg(long = "extent", value_name = "[FILENAME=]NAME")]
    extents: Vec<String>,

    /// Past the host's page cache, for all files
    #[arg(long, value_name = "on|off", hide_possible_values = true, default_value = "off")]
    direct: Switch,

    /// Only for reading. Backing files always are.
    #[arg(long, value_name = "on|off", hide_possible_values = true, default_value = "off")]
    read_only: Switch,

    /// Attach also what this user has given (may be repeated) [default: what you or root gave]
    #[arg(long = "trust", value_name = "UID")]
    trusted: Vec<u32>,

    /// An option of one node; without NODE, of every file node (may be repeated). `true`, `false` and
    /// numbers are such, all else is text.
    #[arg(long = "option", value_name = "[NODE.]KEY=VALUE", value_parser = Setting::parse)]
    settings: Vec<Setting>,
}

impl Attach {
    pub(super) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let mut monitor = self.target.monitor()?;
        check_node(&mut *monitor, &self.target.node)?;
        let mut stash = door.connect()?;
        let mut attempts = ATTEMPTS;
        let progress = Progress::soon("waiting for QEMU");
        let (committed, reopenings) = loop {
            attempts -= 1;
            let kept = stash.list(&Pattern::new("*")?)?;
            match self.attach(&mut *monitor, stash.transaction()?, &kept) {
                Err(error) if is_undone(&error) && attempts > 0 => {}
                outcome => break outcome?,
            }
        };
        drop(progress);
        settle(committed, &mut stash, &reopenings)?;
        writeln!(io::stdout(), "attached: a device refers to it by drive={}", self.target.node)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Gives QEMU all of it, and tells what the commit of that came to, or undoes it.
    fn attach(
        &self,
        monitor: &mut dyn Monitor,
        transaction: Transaction<'_>,
        kept: &[Entry],
    ) -> anyhow::Result<(Result<(), fdstash::Error>, Vec<Reopening>)> {
        let mut trusted = self.trusted.clone();
        trusted.extend([0, geteuid().as_raw()]);
        let mut opener = Opener { transaction, reopenings: Vec::new(), kept, trusted: &trusted };
        let plan = self.plan(&mut opener)?;
        let mut done = Vec::new();
        if let Err(error) = self.add(monitor, plan, &mut done) {
            let undone = undo(monitor, done, &error);
            opener.transaction.rollback();
            return Err(error.context(undone));
        }
        Ok((opener.transaction.commit(), opener.reopenings))
    }

    /// Makes the nodes, the lowest first.
    fn add(
        &self,
        monitor: &mut dyn Monitor,
        plan: Vec<Planned>,
        done: &mut Vec<Done>,
    ) -> anyhow::Result<()> {
        let all = names(&plan);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        check_lengths(&self.target.node, &all)?;
        let mut below = None;
        for planned in plan.into_iter().rev() {
            below = Some(self.add_layer(monitor, planned, below, &all, done)?);
        }
        Ok(())
    }

    /// Makes the nodes of one image, and tells the name of its format node.
    fn add_layer(
        &self,
        monitor: &mut dyn Monitor,
        planned: Planned,
        below: Option<String>,
        all: &[&str],
        done: &mut Vec<Done>,
    ) -> anyhow::Result<String> {
        let Planned { node, format, read_only, file, parts } = planned;
        let mut options = options(format.driver(), &node, read_only);
        let file_node = format!("{node}-file");
        options.insert("file".into(), file_node.clone().into());
        match (format, below) {
            (Format::Raw, _) | (Format::Vmdk, None) => {}
            (Format::Qcow2 | Format::Vmdk, below) => {
                options.insert("backing".into(), below.map_or(Value::Null, Value::from));
            }
        }
        words::apply(&self.settings, &node, false, all, &mut options);
        let mut layer = Layer { monitor, attach: self, node: &node, read_only, all, done };
        match parts {
            Parts::None => {}
            Parts::Data(data) => {
                let data_node = format!("{node}-data");
                options.insert("data-file".into(), data_node.clone().into());
                layer.add_file(data, &data_node, None)?;
            }
            Parts::Extents(text, extents) => {
                layer.add_vmdk(options, &text, file, extents)?;
                return Ok(node);
            }
        }
        layer.add_file(file, &file_node, Some(options.clone()))?;
        blockdev_add(layer.monitor, options, layer.done)?;
        Ok(node)
    }
}

/// One image of the chain, while its nodes are made.
struct Layer<'a> {
    monitor: &'a mut dyn Monitor,
    attach: &'a Attach,
    node: &'a str,
    read_only: bool,
    /// The names of all nodes there will be.
    all: &'a [&'a str],
    done: &'a mut Vec<Done>,
}

impl Layer<'_> {
    /// Gives QEMU a file, and makes its node.
    fn add_file(&mut self, file: File, node: &str, format: Option<Options>) -> anyhow::Result<()> {
        let options = self.file_options(file.driver, node, self.attach.direct.into(), true);
        let mark = self.mark(Some(file.entry), file.identity, options, format);
        let set = self.give(None, file.fd, &mark)?;
        blockdev_add(self.monitor, FileNode { set, mark }.options(), self.done)
    }

    /// Gives QEMU a VMDK image's extents, and a descriptor that says where they are now, and makes the
    /// nodes of all. Extents of blockdev-add would get names that QEMU makes up, and could not be
    /// reopened: only drive_add takes names for them.
    fn add_vmdk(
        &mut self,
        mut options: Options,
        text: &[u8],
        descriptor: File,
        extents: Vec<File>,
    ) -> anyhow::Result<()> {
        let format = options.clone();
        let mut paths = Vec::new();
        for (at, extent) in extents.into_iter().enumerate() {
            let node = format!("{}-extent{}", self.node, at + 1);
            let file = self.file_options(extent.driver, &node, self.attach.direct.into(), true);
            let mark = self.mark(Some(extent.entry), extent.identity, file.clone(), None);
            let set = self.give(None, extent.fd, &mark)?;
            paths.push(set_path(set));
            // Its file name stands in the descriptor.
            options.insert(format!("extents.{at}"), file.into());
        }
        let node = format!("{}-file", self.node);
        // Nobody else has this file. It is not the one that the entry has, and the stash does not keep it.
        let mut set = None;
        for (fd, read_only) in
            vmdk::in_memory(&vmdk::rewritten(text, &paths)?)?.into_iter().zip([false, true])
        {
            let stat = fstat(&fd)?;
            let mut file = self.file_options("file", &node, false, false);
            file.insert("locking".into(), "off".into());
            file.insert("read-only".into(), read_only.into());
            let mark =
                self.mark(None, (stat.st_dev, stat.st_ino), file.clone(), Some(format.clone()));
            let mark = Mark { copy_of: Some(descriptor.entry.clone()), ..mark };
            let id = self.give(set, fd, &mark)?;
            set = Some(id);
            if read_only == self.read_only {
                options.insert("file".into(), FileNode { set: id, mark }.options().into());
            }
        }
        drop(descriptor);
        drive_add(self.monitor, &options, self.done)
    }

    fn give(&mut self, set: Option<i64>, fd: OwnedFd, mark: &Mark) -> anyhow::Result<i64> {
        let (set, number) = add_fd(self.monitor, set, fd, mark)?;
        self.done.push(Done::Descriptor(set, number));
        Ok(set)
    }

    fn file_options(&self, driver: &str, node: &str, direct: bool, is_kept: bool) -> Options {
        let mut options = options(driver, node, self.read_only);
        // QEMU would otherwise open it anew by itself, when it is to be written or no longer.
        options.insert("auto-read-only".into(), false.into());
        options.insert("cache".into(), json!({ "direct": direct }));
        words::apply(&self.attach.settings, node, is_kept, self.all, &mut options);
        options
    }

    fn mark(
        &self,
        entry: Option<Name>,
        file: Identity,
        options: Options,
        format: Option<Options>,
    ) -> Mark {
        let image = self.attach.target.node.clone();
        let of = self.node.to_owned();
        Mark { entry, copy_of: None, file: Some(file), options, image, of, format }
    }
}

/// Makes a node, and the nodes below it whose options stand among its own.
fn drive_add(
    monitor: &mut dyn Monitor,
    options: &Options,
    done: &mut Vec<Done>,
) -> anyhow::Result<()> {
    let line = format!("drive_add -n 0 {}", words::line(options)?);
    let said = monitor.execute("human-monitor-command", json!({ "command-line": line }), None)?;
    let said = said.as_str().unwrap_or_default().trim();
    let node = name_of(options).to_owned();
    if !said.is_empty() {
        let desc = plain(said.trim_start_matches("Error: "));
        let (command, class) = ("drive_add".to_owned(), "GenericError".to_owned());
        return Err(Failure::Refused { command, class, desc })
            .context(format!("QEMU has not made node {node:?}"));
    }
    done.push(Done::Node(node));
    Ok(())
}

fn options(driver: &str, node: &str, read_only: bool) -> Options {
    let options = [
        ("driver", Value::from(driver)),
        ("node-name", node.into()),
        ("read-only", read_only.into()),
    ];
    options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The names of all nodes there will be.
fn names(plan: &[Planned]) -> Vec<String> {
    let below = |planned: &Planned| {
        let extents = match &planned.parts {
            Parts::None | Parts::Data(_) => 0,
            Parts::Extents(_, files) => files.len(),
        };
        let extents = (1..=extents).map(|at| format!("-extent{at}"));
        let endings = ["", "-file", "-data"].map(str::to_owned).into_iter().chain(extents);
        endings.map(|ending| format!("{}{ending}", planned.node)).collect::<Vec<_>>()
    };
    plan.iter().flat_map(below).collect()
}

/// What is to be undone where something fails later.
enum Done {
    Descriptor(i64, i64),
    Node(String),
}

fn blockdev_add(
    monitor: &mut dyn Monitor,
    options: Options,
    done: &mut Vec<Done>,
) -> anyhow::Result<()> {
    let node = name_of(&options).to_owned();
    monitor
        .execute("blockdev-add", options.into(), None)
        .with_context(|| format!("QEMU has not made node {node:?}"))?;
    done.push(Done::Node(node));
    Ok(())
}

/// Undoes what was done, the last first, and tells how that went.
fn undo(monitor: &mut dyn Monitor, done: Vec<Done>, why: &anyhow::Error) -> String {
    if Failure::leaves_open(why) {
        return "QEMU may have some of it: see `fdstash qemu status`, and undo it with \
                `fdstash qemu detach`"
            .into();
    }
    let mut failed = Vec::new();
    for step in done.into_iter().rev() {
        let (what, outcome) = match step {
            Done::Descriptor(set, number) => {
                (format!("descriptor {number} of set {set}"), remove_fd(monitor, set, number))
            }
            Done::Node(node) => {
                let deleted = monitor.execute("blockdev-del", json!({ "node-name": node }), None);
                (format!("node {node:?}"), deleted.map(drop))
            }
        };
        if let Err(error) = outcome {
            failed.push(format!("{what} ({error:#})"));
        }
    }
    if failed.is_empty() {
        return "nothing was attached".into();
    }
    format!("not attached, but QEMU still has {}", failed.join(", "))
}

/// Sees to it that the stash keeps the files as QEMU has them now, where a commit has failed that was
/// to do so: then it opens them so once more, and what that hands out is not needed.
pub(super) fn settle(
    committed: Result<(), fdstash::Error>,
    stash: &mut Client,
    reopenings: &[Reopening],
) -> anyhow::Result<()> {
    const AGAIN: usize = 3;
    let Err(mut error) = committed else { return Ok(()) };
    for _ in 0..AGAIN {
        match stash.reopen(reopenings) {
            Ok(_) => return Ok(()),
            Err(again) => error = again,
        }
        if !matches!(error, fdstash::Error::ConnectionLost { .. }) {
            break;
        }
    }
    // In words, since what the library advises is for who has lost something.
    Err(anyhow::anyhow!(
        "QEMU has the new descriptors and works with them, but the stash still keeps the files as they \
         were before: {error}; `fdstash qemu reopen` of the node makes them agree"
    ))
}
