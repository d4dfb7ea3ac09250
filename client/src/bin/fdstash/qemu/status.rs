//! `fdstash qemu status`.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use fdstash::{Access, Entry, Flags, Name, Pattern};
use serde_json::{Value, json};

use super::{
    Site,
    foreign::Foreign,
    images,
    nodes::{FileNode, Image, Mark, Seen, Set, nodes, read_only, sets},
    qmp::Monitor,
    reopen, unknown,
};
use crate::{
    Door,
    table::{Table, terminal_width},
    words::{flags, plain},
};

const USAGE: &str = "\
fdstash qemu status [OPTIONS] --qmp <SOCKET> [--node <NODE>]
       fdstash qemu status [OPTIONS] --libvirt <URI> --domain <DOMAIN> --disk <TARGET>";

const EXAMPLES: &str = "\
Examples:
  fdstash qemu status --qmp /run/vm7.qmp
  fdstash qemu status --qmp /run/vm7.qmp --node disk0 --json | jq '.nodes[].direct'
  fdstash qemu status --libvirt qemu:///system --domain vm7 --disk vda

Without --node it shows all images that were attached. An image's own node comes before its files'.

QEMU may have less access than the stash keeps: a file that QEMU only reads is handed out read-only,
and kept read-write, so that it can be written again. Of a VMDK QEMU has a rewritten copy of its
descriptor, and the stash keeps what was given.

SET is the number of the set of descriptors (fdset) from which QEMU has opened the file, and FDS how
many descriptors in it fit the node. More than one are left over from a reopen that was cut off, or
from any while the guest is stopped (QEMU 7.2 closes none meanwhile); the next reopen removes them.";

/// Show the nodes of an image, or of all, as QEMU has them and as the stash keeps their files
#[derive(Args)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
pub(super) struct Status {
    #[command(flatten)]
    site: Site,

    /// Write it as one JSON object
    #[arg(long)]
    json: bool,
}

/// A file node, as QEMU says and as the stash does.
struct Line<'a> {
    image: &'a str,
    file: &'a FileNode,
    format: String,
    set: Option<&'a Set>,
    seen: Option<&'a Seen>,
    kept: Option<&'a Entry>,
}

impl Status {
    pub(super) fn run(self, door: &Door) -> anyhow::Result<ExitCode> {
        let mut monitor = self.site.monitor()?;
        let mut stash = door.connect()?;
        let entries = stash.list(&Pattern::new("*")?)?;
        let (sets, seen) = (sets(&mut *monitor)?, nodes(&mut *monitor)?);
        let found = self.find(&*monitor, &sets, &seen)?;
        let (mut all, mut drifts) = (Vec::new(), Vec::new());
        for (node, image) in &found {
            let lines = lines(node, image, &sets, &seen, &entries);
            drifts.extend(lines.iter().flat_map(Line::drifts));
            let layers = image.layers.iter();
            drifts.extend(layers.filter_map(|layer| no_backing(seen.get(&layer.node)?)));
            drifts.extend(Image::strays(node, &sets, &seen).iter().map(|set| {
                let id = set.id;
                format!(
                    "set {id} was meant for image {node}, and no node uses it: detach removes it"
                )
            }));
            all.extend(lines);
        }
        let mut out = io::stdout().lock();
        if self.json {
            let nodes: Vec<Value> = all.iter().map(Line::to_json).collect();
            writeln!(out, "{}", json!({ "nodes": nodes, "drifts": drifts }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table =
            Table::new(&["NODE", "FORMAT", "NAME", "SET", "QEMU HAS", "STASH KEEPS", "FDS"]);
        let mut above = "";
        for line in &all {
            if line.file.mark.of != above {
                above = &line.file.mark.of;
                seen.get(above)
                    .filter(|node| !node.is_file())
                    .map(heading)
                    .into_iter()
                    .for_each(|row| table.push(row));
            }
            table.push(line.cells());
        }
        table.write(&mut out, terminal_width())?;
        for drift in drifts {
            writeln!(out, "{}", plain(&drift))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Status {
    /// The image that was asked for, or all that were attached, with their topmost nodes.
    fn find(
        &self,
        monitor: &dyn Monitor,
        sets: &[Set],
        seen: &BTreeMap<String, Seen>,
    ) -> anyhow::Result<Vec<(String, Image)>> {
        if self.site.node.is_none() && self.site.disk.is_none() {
            let found = |&node: &&str| (node.to_owned(), Image::find(node, sets, seen));
            return Ok(images(sets).iter().map(found).collect());
        }
        let (node, image) = self.site.find(monitor, &Foreign::default(), sets, seen)?;
        if image.layers.is_empty() && Image::strays(&node, sets, seen).is_empty() {
            return Err(unknown(&node, sets));
        }
        Ok(vec![(node, image)])
    }
}

/// The row of a format node, which stands on the files below it.
fn heading(node: &Seen) -> [String; 7] {
    let access = if node.read_only { "read-only" } else { "read-write" };
    let nothing = String::new;
    let (name, driver) = (plain(&node.node), plain(&node.driver));
    [name, driver, nothing(), nothing(), access.to_owned(), nothing(), nothing()]
}

fn lines<'a>(
    node: &'a str,
    image: &'a Image,
    sets: &'a [Set],
    seen: &'a BTreeMap<String, Seen>,
    entries: &'a [Entry],
) -> Vec<Line<'a>> {
    let mut lines = Vec::new();
    for layer in &image.layers {
        let format = seen.get(&layer.node).map(|node| node.driver.clone()).unwrap_or_default();
        lines.extend(layer.files.iter().map(|file| Line {
            image: node,
            file,
            format: format.clone(),
            set: sets.iter().find(|set| set.id == file.set),
            seen: seen.get(file.node()),
            kept: entries.iter().find(|entry| Some(&entry.name) == kept_as(file)),
        }));
    }
    lines
}

/// The entry that has its file, or what that was copied from.
fn kept_as(file: &FileNode) -> Option<&Name> {
    file.mark.entry.as_ref().or(file.mark.copy_of.as_ref())
}

/// What is missing below an image, if its header names another that QEMU was not given: then the guest
/// reads zeroes, and QEMU says nothing.
fn no_backing(seen: &Seen) -> Option<String> {
    let named = seen.all["image"]["backing-filename"].as_str()?;
    let node = &seen.node;
    let message = || {
        format!(
            "{node}: the image stands on {named:?}, and QEMU has no image below it: where that has \
             data, the guest reads zeroes"
        )
    };
    seen.all["backing_file"].is_null().then(message)
}

impl Line<'_> {
    /// How many descriptors its set has. A copy lies there for reading and for writing, of which one
    /// fits the node.
    fn count(&self) -> usize {
        let Some(set) = self.set else { return 0 };
        if self.file.mark.copy_of.is_none() {
            return set.members.len();
        }
        let fits =
            |mark: &Mark| self.seen.is_some_and(|seen| read_only(&mark.options) == seen.read_only);
        set.marked().filter(|(_, mark)| fits(mark)).count()
    }

    fn name(&self) -> Option<&str> {
        kept_as(self.file).map(Name::as_str)
    }

    fn cells(&self) -> [String; 7] {
        let has = self.seen.map(|seen| reopen::Flags::of(seen).words());
        let kept = self.kept.map(|entry| {
            let others = flags(entry.flags.with(Flags::DIRECT, false));
            let direct = entry.flags.contains(Flags::DIRECT);
            let own = reopen::Flags { direct, read_only: entry.access == Access::Read }.words();
            if others.is_empty() { own } else { format!("{own}, {others}") }
        });
        [
            plain(self.file.node()),
            plain(&self.format),
            self.name().unwrap_or_default().to_owned(),
            self.file.set.to_string(),
            has.unwrap_or_default(),
            kept.unwrap_or_default(),
            self.count().to_string(),
        ]
    }

    /// What does not fit together.
    fn drifts(&self) -> Vec<String> {
        let (node, mut drifts) = (self.file.node(), Vec::new());
        if let Some(name) = &self.file.mark.entry {
            let name = name.as_str();
            match self.kept {
                None => drifts.push(format!(
                    "{node}: the stash has no entry {name:?} that may be used; where it was started \
                     anew, give the file again under that name (fdstash give {name} FILE)"
                )),
                Some(kept) => drifts.extend(self.drifts_from(kept)),
            }
            if self.count() != 1 {
                drifts.push(format!("{node}: its set has {} descriptors", self.count()));
            }
        }
        // Beside what libvirt has put there, or who started QEMU, stands no mark until a reopen.
        let marked = self.set.filter(|set| set.marked().next().is_some());
        if marked.zip(self.seen).is_some_and(|(set, seen)| set.in_force(seen).is_none()) {
            drifts.push(format!("{node}: no descriptor of its set has the flags that it has"));
        }
        drifts
    }

    fn drifts_from(&self, kept: &Entry) -> Vec<String> {
        let (node, name, mut drifts) = (self.file.node(), kept.name.as_str(), Vec::new());
        if self.file.mark.file.is_some_and(|file| file != (kept.device, kept.inode)) {
            drifts.push(format!("{node}: entry {name:?} has another file now"));
        }
        if self.seen.is_some_and(|seen| seen.direct != kept.flags.contains(Flags::DIRECT)) {
            drifts.push(format!("{node}: QEMU and the stash differ in whether it is direct"));
        }
        drifts
    }

    fn to_json(&self) -> Value {
        json!({
            "image": self.image,
            "node": self.file.node(),
            "format": self.format,
            "name": self.name(),
            "set": self.file.set,
            "direct": self.seen.map(|seen| seen.direct),
            "readOnly": self.seen.map(|seen| seen.read_only),
            "keptDirect": self.kept.map(|kept| kept.flags.contains(Flags::DIRECT)),
            "keptAccess": self.kept.map(|kept| kept.access.as_str()),
            "descriptors": self.count(),
        })
    }
}
