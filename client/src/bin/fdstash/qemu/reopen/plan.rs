//! What one `blockdev-reopen` is to change.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use fdstash::{Name, Reopening};
use serde_json::{Value, json};

use super::Reopen;
use crate::qemu::{
    attach::opening,
    nodes::{FileNode, Image, Layer, Mark, Options, Seen, name_of, read_only},
    words::set,
};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::qemu) struct Flags {
    pub direct: bool,
    pub read_only: bool,
}

impl Flags {
    pub(in crate::qemu) fn of(node: &Seen) -> Self {
        Self { direct: node.direct, read_only: node.read_only }
    }

    pub(in crate::qemu) fn words(self) -> String {
        let cache = if self.direct { "direct" } else { "cached" };
        let access = if self.read_only { "read-only" } else { "read-write" };
        format!("{cache}, {access}")
    }

    /// Options of a file node, with these flags.
    fn among(self, options: &Options) -> Options {
        let mut options = with_read_only(options, self.read_only);
        set(&mut options, "cache.direct", self.direct.into());
        options
    }

    fn to_json(self) -> Value {
        json!({ "direct": self.direct, "readOnly": self.read_only })
    }
}

/// One file node, and what shall become of it.
pub(super) struct Step {
    pub file: FileNode,
    pub was: Flags,
    pub is: Flags,
    /// What stands beside its new descriptor, its new options among it.
    pub mark: Mark,
}

impl Step {
    /// The entry that has its file; none if the stash does not keep it.
    pub(super) fn entry(&self) -> Option<&Name> {
        self.mark.entry.as_ref()
    }

    /// Whether QEMU has to do anything. A read-only node that is reopened as it was keeps its old
    /// descriptor at the next reopen too, whatever that asks for and QEMU then says of it.
    pub(super) fn changes(&self) -> bool {
        self.was != self.is
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "node": self.file.node(),
            "name": self.entry().map(Name::as_str),
            "was": self.was.to_json(),
            "is": self.is.to_json(),
        })
    }

    fn options(&self, flags: Flags) -> Value {
        let mut file = self.file.clone();
        file.mark.options = flags.among(&file.mark.options);
        file.options().into()
    }
}

/// All of it.
pub(super) struct Plan {
    pub steps: Vec<Step>,
    /// Format nodes that change with their files: their options as they were, and as they will be.
    formats: Vec<(Options, Options)>,
}

impl Plan {
    /// The steps whose files the stash keeps.
    pub(super) fn kept(&self) -> impl Iterator<Item = (&Step, &Name)> {
        self.steps.iter().filter_map(|step| Some((step, step.entry()?)))
    }

    fn changing(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.changes())
    }

    /// Of every file, also where QEMU has it as it is to be: what the stash keeps may differ.
    pub(super) fn reopenings(&self) -> Vec<Reopening> {
        let opening =
            |(step, entry): (&Step, &Name)| opening(entry, step.is.direct, step.is.read_only);
        self.kept().map(opening).collect()
    }

    /// What `blockdev-reopen` is told. A format node that changes does so in the same call as its
    /// files: neither can be written alone.
    pub(super) fn options(&self) -> Vec<Value> {
        let files = self.changing().map(|step| step.options(step.is));
        files.chain(self.formats.iter().map(|(_, is)| Value::from(is.clone()))).collect()
    }

    /// What undoes that.
    pub(super) fn old_options(&self) -> Vec<Value> {
        let files = self.changing().map(|step| step.options(step.was));
        files.chain(self.formats.iter().map(|(was, _)| Value::from(was.clone()))).collect()
    }
}

impl Reopen {
    pub(super) fn plan(
        &self,
        image: &Image,
        seen: &BTreeMap<String, Seen>,
    ) -> anyhow::Result<Plan> {
        let chosen = if self.chain { image.layers.len() } else { 1 };
        let mut plan = Plan { steps: Vec::new(), formats: Vec::new() };
        for (at, layer) in image.layers.iter().take(chosen).enumerate() {
            let turns = self.read_only.map(bool::from).filter(|_| at == 0);
            let format = self.format(layer, turns, seen)?;
            for file in &layer.files {
                let node = seen.get(file.node());
                let node = node.with_context(|| format!("QEMU has no node {:?}", file.node()))?;
                let step = self.step(file, node, turns, format.as_ref().map(|(_, is)| is));
                // A VMDK descriptor that lies in memory is opened anew only where it must be.
                if step.entry().is_some() || step.changes() {
                    plan.steps.push(step);
                }
            }
            plan.formats.extend(format.filter(|(was, is)| was != is));
        }
        Ok(plan)
    }

    /// The options of a layer's format node, as they are and as they are to be.
    fn format(
        &self,
        layer: &Layer,
        turns: Option<bool>,
        seen: &BTreeMap<String, Seen>,
    ) -> anyhow::Result<Option<(Options, Options)>> {
        let Some(format) = &layer.format else {
            let is_alone = layer.files.iter().all(|file| file.node() == layer.node);
            if turns.is_some() && !is_alone {
                bail!(
                    "node {0:?} changes together with its files, and not all of its options are \
                     known: say which its file and its backing node are, --option {0}.file=NODE \
                     --option {0}.backing=NODE, and what else it has",
                    layer.node
                );
            }
            return Ok(None);
        };
        let now = turns.unwrap_or(read_only(format));
        if now != read_only(format) {
            check_below(format, seen)?;
        }
        Ok(Some((format.clone(), with_read_only(format, now))))
    }

    fn step(
        &self,
        file: &FileNode,
        node: &Seen,
        turns: Option<bool>,
        format: Option<&Options>,
    ) -> Step {
        let was = Flags::of(node);
        let is_kept = file.mark.entry.is_some();
        let is = Flags {
            direct: self.direct.filter(|_| is_kept).map_or(was.direct, bool::from),
            read_only: turns.unwrap_or(was.read_only),
        };
        let mut mark = file.mark.clone();
        mark.options = is.among(&mark.options);
        mark.format = mark.format.and(format.cloned());
        Step { file: file.clone(), was, is, mark }
    }
}

/// Refuses to say to QEMU again what stands below a format node where something else does by now, as
/// after block-stream or a snapshot: it would be put back there.
fn check_below(format: &Options, seen: &BTreeMap<String, Seen>) -> anyhow::Result<()> {
    let name = name_of(format);
    let node = seen.get(name).with_context(|| format!("QEMU has no node {name:?}"))?;
    let below = |key: &str| format.get(key).and_then(Value::as_str);
    let backing = below("backing").and_then(|backing| seen.get(backing));
    let is_same =
        backing.map_or(&Value::Null, |node| &node.all["file"]) == &node.all["backing_file"];
    // QEMU tells the children themselves from 10.1 on.
    let children = node.all["children"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_child = |child: &Value| {
        let known = child["child"].as_str().and_then(below);
        known.is_none_or(|known| child["node-name"] == *known)
    };
    ensure!(
        is_same && children.iter().all(is_child),
        "what stands below node {name:?} has changed since, by a block job or a snapshot, and it \
         cannot be reopened with that; reopen without --read-only can still be"
    );
    Ok(())
}

fn with_read_only(options: &Options, read_only: bool) -> Options {
    let mut options = options.clone();
    options.insert("read-only".into(), read_only.into());
    options
}
