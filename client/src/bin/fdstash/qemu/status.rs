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
    nodes::{FileNode, Image, Seen, Set, nodes, sets},
    reopen,
};
use crate::{
    Door,
    table::{Table, terminal_width},
    words::{flags, plain},
};

const EXAMPLES: &str = "\
Examples:
  fdstash qemu status --qmp /run/vm7.qmp --node disk0
  fdstash qemu status --qmp /run/vm7.qmp --node disk0 --json | jq '.nodes[].direct'
  fdstash qemu status --libvirt qemu:///system --domain vm7 --disk vda

FDS is how many descriptors the node's set has. More than one are left over from a reopen that was
cut off, or from any while the guest is stopped (QEMU 7.2 closes none meanwhile); the next reopen
removes them.";

/// Show the nodes of an image, as QEMU has them and as the stash keeps their files
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Status {
    #[command(flatten)]
    site: Site,

    /// Write it as one JSON object
    #[arg(long)]
    json: bool,
}

/// A file node, as QEMU says and as the stash does.
struct Line<'a> {
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
        let (node, image) = self.site.find(&*monitor, &Foreign::default(), &sets, &seen)?;
        let strays = Image::strays(&node, &sets, &seen);
        anyhow::ensure!(
            !image.layers.is_empty() || !strays.is_empty(),
            "QEMU has no image {node:?} that was attached"
        );
        let lines = lines(&image, &sets, &seen, &entries);
        let mut drifts: Vec<String> = lines.iter().flat_map(Line::drifts).collect();
        drifts.extend(image.layers.iter().filter_map(|layer| no_backing(seen.get(&layer.node)?)));
        drifts.extend(strays.iter().map(|set| {
            let id = set.id;
            format!("set {id} was meant for this image, and no node uses it: detach removes it")
        }));
        let mut out = io::stdout().lock();
        if self.json {
            let nodes: Vec<Value> = lines.iter().map(Line::to_json).collect();
            writeln!(out, "{}", json!({ "nodes": nodes, "drifts": drifts }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table =
            Table::new(&["NODE", "FORMAT", "NAME", "SET", "QEMU HAS", "STASH KEEPS", "FDS"]);
        lines.iter().for_each(|line| table.push(line.cells()));
        table.write(&mut out, terminal_width())?;
        for drift in drifts {
            writeln!(out, "{}", plain(&drift))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn lines<'a>(
    image: &'a Image,
    sets: &'a [Set],
    seen: &'a BTreeMap<String, Seen>,
    entries: &'a [Entry],
) -> Vec<Line<'a>> {
    let mut lines = Vec::new();
    for layer in &image.layers {
        let format = seen.get(&layer.node).map(|node| node.driver.clone()).unwrap_or_default();
        lines.extend(layer.files.iter().map(|file| Line {
            file,
            format: format.clone(),
            set: sets.iter().find(|set| set.id == file.set),
            seen: seen.get(file.node()),
            kept: entries.iter().find(|entry| Some(&entry.name) == file.mark.entry.as_ref()),
        }));
    }
    lines
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
    fn count(&self) -> usize {
        self.set.map_or(0, |set| set.members.len())
    }

    fn name(&self) -> Option<&str> {
        self.file.mark.entry.as_ref().map(Name::as_str)
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
        if let Some(name) = self.name() {
            match self.kept {
                None => {
                    drifts.push(format!("{node}: the stash has no entry {name:?} that may be used"))
                }
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
