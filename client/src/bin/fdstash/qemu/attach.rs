//! `fdstash qemu attach`.

use std::{
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use fdstash::{
    Access, Handed, Name, Reopening,
    blocking::{Client, Transaction},
};
use rustix::fs::{FileType, fstat};
use serde_json::{Value, json};

use super::{
    Target, header,
    nodes::{FileNode, Identity, Mark, Options, add_fd, name_of, remove_fd},
    qmp::{Failure, Monitor},
    words::{self, Setting},
};
use crate::{Door, Misuse, words::Switch};

const EXAMPLES: &str = "\
Examples:
  fdstash qemu attach --qmp /run/vm7.qmp --node disk0 --image qcow2=vm7-disk0 --direct on
  fdstash qemu attach --qmp /run/vm7.qmp --node disk0 \\
      --image qcow2=vm7-disk0 --image qcow2=vm7-base --image raw=vm7-root \\
      --option aio=threads --option disk0.discard=unmap --option disk0-file.discard=unmap

The nodes are named after the image: disk0, its file disk0-file; the image below disk0-backing1, its
file disk0-backing1-file, and so on; a data file disk0-data. A device then refers to disk0:
  device_add virtio-blk-pci,drive=disk0
QEMU gets an open file description of its own of each file, and what the stash keeps stays there. What
fails is undone: then there is no node, and the stash is as it was.";

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

    /// Past the host's page cache, for all files
    #[arg(long, default_value = "off")]
    direct: Switch,

    /// Only for reading. Backing files always are.
    #[arg(long, default_value = "off")]
    read_only: Switch,

    /// An option of one node; without NODE, of every file node (may be repeated). `true`, `false` and
    /// numbers are such, all else is text.
    #[arg(long = "option", value_name = "[NODE.]KEY=VALUE", value_parser = Setting::parse)]
    settings: Vec<Setting>,
}

/// The formats whose headers are known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Raw,
    Qcow2,
}

impl Format {
    fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

fn image(text: &str) -> Result<(Format, Name), String> {
    let (format, name) = text.split_once('=').ok_or("it is FORMAT=NAME")?;
    let format = Format::from_str(format, false).map_err(|_| {
        let known = Format::value_variants().iter().map(|format| format.driver());
        format!("known formats are {}", known.collect::<Vec<_>>().join(", "))
    })?;
    Ok((format, Name::new(name).map_err(|bad| bad.to_string())?))
}

/// A file that QEMU is to get.
struct File {
    entry: Name,
    fd: OwnedFd,
    identity: Identity,
    driver: &'static str,
}

/// One image of the chain, checked, and before QEMU has any of it.
struct Planned {
    node: String,
    format: Format,
    read_only: bool,
    file: File,
    data: Option<File>,
}

impl Attach {
    pub(super) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let mut monitor = self.target.monitor()?;
        let mut stash = door.connect()?;
        let (committed, reopenings) = self.attach(&mut *monitor, stash.transaction()?)?;
        settle(committed, &mut stash, &reopenings)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Gives QEMU all of it, and tells what the commit of that came to, or undoes it.
    fn attach(
        &self,
        monitor: &mut dyn Monitor,
        transaction: Transaction<'_>,
    ) -> anyhow::Result<(Result<(), fdstash::Error>, Vec<Reopening>)> {
        let mut opener = Opener { transaction, reopenings: Vec::new() };
        let plan = self.plan(&mut opener)?;
        let mut done = Vec::new();
        if let Err(error) = self.add(monitor, plan, &mut done) {
            let undone = undo(monitor, done, &error);
            opener.transaction.rollback();
            return Err(error.context(undone));
        }
        Ok((opener.transaction.commit(), opener.reopenings))
    }

    fn reads_only(&self, layer: usize) -> bool {
        layer > 0 || self.read_only.into()
    }

    fn opening(&self, name: &Name, layer: usize) -> Reopening {
        opening(name, self.direct.into(), self.reads_only(layer))
    }

    /// Has the stash open the files, and refuses what would show a guest something else than the image.
    fn plan(&self, opener: &mut Opener<'_>) -> anyhow::Result<Vec<Planned>> {
        let entries: Vec<&Name> =
            self.images.iter().map(|(_, name)| name).chain(&self.data_files).collect();
        if (1..entries.len()).any(|at| entries[..at].contains(&entries[at])) {
            return Err(Misuse("an entry is named twice: each node has a file of its own").into());
        }
        let openings = self.images.iter().enumerate();
        let openings = openings.map(|(layer, (_, name))| self.opening(name, layer)).collect();
        let mut data_files = self.data_files.iter();
        let mut plan = Vec::new();
        let opened = opener.open(openings)?.into_iter().zip(&self.images);
        for (layer, (file, (format, _))) in opened.enumerate() {
            let has_data_file = self.check(&file, *format, layer + 1 == self.images.len())?;
            let data = if has_data_file {
                let name = data_files.next().with_context(|| {
                    let name = file.entry.as_str();
                    format!(
                        "the data of {name:?} is in a file of its own: name it with --data-file"
                    )
                })?;
                opener.open(vec![self.opening(name, layer)])?.pop()
            } else {
                None
            };
            let node = match layer {
                0 => self.target.node.clone(),
                _ => format!("{}-backing{layer}", self.target.node),
            };
            let read_only = self.reads_only(layer);
            plan.push(Planned { node, format: *format, read_only, file, data });
        }
        if data_files.next().is_some() {
            return Err(Misuse("no image is left that has its data in a file of its own").into());
        }
        Ok(plan)
    }

    /// Whether the image has its data in a file of its own.
    fn check(&self, file: &File, format: Format, is_last: bool) -> anyhow::Result<bool> {
        let name = file.entry.as_str();
        match format {
            Format::Raw if !is_last => anyhow::bail!(
                "a raw image has no backing file, and {name:?} is not the last --image"
            ),
            Format::Raw => Ok(false),
            Format::Qcow2 => {
                let header =
                    header::qcow2(file.fd.as_fd()).with_context(|| format!("entry {name:?}"))?;
                if let Some(backing) = header.backing.filter(|_| is_last) {
                    // QEMU would read zeroes in its place, without an error.
                    anyhow::bail!(
                        "{name:?} is an image whose backing file nobody named: it has one, \
                         {backing:?}; give its entry as one more --image"
                    );
                }
                Ok(header.has_data_file)
            }
        }
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
        let Planned { node, format, read_only, file, data } = planned;
        let mut options = options(format.driver(), &node, read_only);
        options.insert("file".into(), format!("{node}-file").into());
        if format == Format::Qcow2 {
            options.insert("backing".into(), below.map_or(Value::Null, Value::from));
        }
        if let Some(data) = data {
            let data_node = format!("{node}-data");
            options.insert("data-file".into(), data_node.clone().into());
            self.add_file(monitor, data, &data_node, (&node, read_only, None), all, done)?;
        }
        words::apply(&self.settings, &node, false, all, &mut options);
        let format = Some(options.clone());
        let file_node = format!("{node}-file");
        self.add_file(monitor, file, &file_node, (&node, read_only, format), all, done)?;
        blockdev_add(monitor, options, done)?;
        Ok(node)
    }

    fn add_file(
        &self,
        monitor: &mut dyn Monitor,
        file: File,
        node: &str,
        (of, read_only, format): (&str, bool, Option<Options>),
        all: &[&str],
        done: &mut Vec<Done>,
    ) -> anyhow::Result<()> {
        let mut options = options(file.driver, node, read_only);
        // QEMU would otherwise open it anew by itself, when it is to be written or no longer.
        options.insert("auto-read-only".into(), false.into());
        options.insert("cache".into(), json!({ "direct": bool::from(self.direct) }));
        words::apply(&self.settings, node, true, all, &mut options);
        let (entry, image) = (Some(file.entry), self.target.node.clone());
        let mark = Mark { entry, file: file.identity, options, image, of: of.to_owned(), format };
        let (set, number) = add_fd(monitor, None, file.fd, &mark)?;
        done.push(Done::Descriptor(set, number));
        blockdev_add(monitor, FileNode { set, mark }.options(), done)
    }
}

impl File {
    fn new(handed: Handed<OwnedFd>) -> anyhow::Result<Self> {
        let Handed { name: entry, fd } = handed;
        let stat = fstat(&fd)?;
        let driver = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => "file",
            FileType::BlockDevice => "host_device",
            other => anyhow::bail!(
                "entry {:?} is no file and no block device: {other:?}",
                entry.as_str()
            ),
        };
        Ok(Self { entry, fd, identity: (stat.st_dev, stat.st_ino), driver })
    }
}

/// Asks for a descriptor as QEMU wants it for a node: of exactly that access, and from QEMU 9.1 on with
/// exactly that `O_DIRECT`.
pub(super) fn opening(name: &Name, direct: bool, read_only: bool) -> Reopening {
    let access = if read_only { Access::Read } else { Access::ReadWrite };
    Reopening { direct: Some(direct), access: Some(access), ..Reopening::new(name.clone()) }
}

fn options(driver: &str, node: &str, read_only: bool) -> Options {
    let options = [
        ("driver", Value::from(driver)),
        ("node-name", node.into()),
        ("read-only", read_only.into()),
    ];
    options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn names(plan: &[Planned]) -> Vec<String> {
    let nodes = plan.iter().map(|planned| &planned.node);
    nodes.flat_map(|node| [node.clone(), format!("{node}-file"), format!("{node}-data")]).collect()
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
    if !Failure::is_refusal(why) {
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
    let Err(first) = committed else { return Ok(()) };
    let Err(error) = stash.reopen(reopenings) else { return Ok(()) };
    Err(error).context(format!(
        "QEMU has the new descriptors and works with them, but the stash still keeps the files as they \
         were before ({first}); `fdstash qemu reopen` of the node makes them agree"
    ))
}

/// A transaction, and what was opened in it.
struct Opener<'a> {
    transaction: Transaction<'a>,
    reopenings: Vec<Reopening>,
}

impl Opener<'_> {
    fn open(&mut self, reopenings: Vec<Reopening>) -> anyhow::Result<Vec<File>> {
        let handed = self.transaction.reopen(&reopenings)?;
        self.reopenings.extend(reopenings);
        handed.into_iter().map(File::new).collect()
    }
}
