//! Nodes that somebody else has made, from sets of descriptors that hold what the stash keeps.
//!
//! Beside their descriptors stands nothing of ours: which entry has a node's file must be said, and
//! those options of it that QEMU does not tell. The first reopen puts marks there, and from then on
//! the image is known as one that was attached.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use clap::Args;
use fdstash::Name;
use serde_json::json;

use super::{
    nodes::{FileNode, Identity, Image, Layer, Mark, Options, Seen, Set},
    qmp::Monitor,
    words::{self, Setting},
};
use crate::Misuse;

/// What must be said of such nodes.
#[derive(Args, Default)]
pub(super) struct Foreign {
    /// The entry that has a file node's file (may be repeated): of an image that was not attached, but
    /// given to QEMU at its start; of one that was attached all, not to take QEMU's word for it
    #[arg(long = "name", value_name = "NODE=NAME", value_parser = words::named)]
    names: Vec<(String, Name)>,

    /// An option that a node of an image has that was not attached; without NODE, each file node. QEMU
    /// tells its driver, its cache mode and detect-zeroes; what else it was made with must be said, or
    /// goes back to its default (may be repeated)
    #[arg(
        long = "option", value_name = "[NODE.]KEY=VALUE", value_parser = Setting::parse,
        requires = "names"
    )]
    settings: Vec<Setting>,
}

impl Foreign {
    /// Whether any are named.
    pub(super) fn is_some(&self) -> bool {
        !self.names.is_empty()
    }

    /// The entry that has a node's file, if that was said.
    pub(super) fn name_of(&self, node: &str) -> Option<&Name> {
        self.names.iter().find(|(named, _)| named == node).map(|(_, entry)| entry)
    }

    /// Refuses names for other nodes than these.
    pub(super) fn check_names(&self, nodes: &[String]) -> anyhow::Result<()> {
        let other = self.names.iter().map(|(named, _)| named).find(|named| !nodes.contains(named));
        ensure!(
            other.is_none(),
            "node {:?} is no file of this image; it has {nodes:?}",
            other.map(String::as_str).unwrap_or_default()
        );
        Ok(())
    }

    /// Puts those options among a file node's that were said of it.
    pub(super) fn apply(&self, node: &str, nodes: &[&str], options: &mut Options) {
        words::apply(&self.settings, node, true, nodes, options);
    }

    /// Refuses to take QEMU's word for which entries an image has that was attached, where that is not
    /// what was said.
    ///
    /// # Errors
    ///
    /// If an entry was not named, or options were: those are known.
    pub(super) fn confirm(&self, image: &Image) -> anyhow::Result<()> {
        if !self.settings.is_empty() {
            return Err(Misuse("the image was attached, and its options are known").into());
        }
        for file in image.layers.iter().flat_map(|layer| &layer.files) {
            let Some(entry) = &file.mark.entry else { continue };
            let is_named =
                self.names.iter().any(|(node, name)| (&**node, name) == (file.node(), entry));
            ensure!(
                is_named,
                "QEMU says that node {:?} has the file of entry {:?}, and no --name does",
                file.node(),
                entry.as_str()
            );
        }
        Ok(())
    }

    /// The image of the named nodes, below a topmost one.
    ///
    /// # Errors
    ///
    /// If one of them could not be reopened without a risk to what the guest sees.
    pub(super) fn image(
        &self,
        top: &str,
        monitor: &mut dyn Monitor,
        sets: &[Set],
        seen: &BTreeMap<String, Seen>,
    ) -> anyhow::Result<Image> {
        let all: Vec<&str> =
            self.names.iter().map(|(node, _)| node.as_str()).chain([top]).collect();
        let top_node = seen.get(top).with_context(|| format!("QEMU has no node {top:?}"))?;
        let format = self.format(top_node, &all);
        let mut files = Vec::new();
        for (node, entry) in &self.names {
            let node = seen.get(node).with_context(|| format!("QEMU has no node {node:?}"))?;
            let set = set_of(node, sets, seen)?;
            let mut options = known(node);
            words::apply(&self.settings, &node.node, true, &all, &mut options);
            let mark = Mark {
                entry: Some(entry.clone()),
                file: behind(monitor, set, node)?,
                options,
                image: top.to_owned(),
                of: top.to_owned(),
                format: format.clone().filter(|format| format["file"] == *node.node),
            };
            files.push(FileNode { set: set.id, mark });
        }
        Ok(Image { layers: vec![Layer { node: top.to_owned(), format, files }] })
    }

    /// The options of a format node; none if they are not all known.
    fn format(&self, node: &Seen, all: &[&str]) -> Option<Options> {
        if node.is_file() {
            return None;
        }
        let mut options = known(node);
        options.remove("cache");
        if let [(file, _)] = self.names.as_slice() {
            options.insert("file".into(), file.clone().into());
        }
        words::apply(&self.settings, &node.node, false, all, &mut options);
        let has_backing = node.all["backing_file"].is_string();
        let is_whole =
            options.contains_key("file") && (!has_backing || options.contains_key("backing"));
        is_whole.then_some(options)
    }
}

/// What QEMU tells of a node's options.
pub(super) fn known(node: &Seen) -> Options {
    let cache = &node.all["cache"];
    let mut options = json!({
        "driver": node.driver,
        "node-name": node.node,
        "read-only": node.read_only,
        "cache": { "direct": cache["direct"], "no-flush": cache["no-flush"] },
    });
    if node.all["detect_zeroes"] != "off" {
        options["detect-zeroes"] = node.all["detect_zeroes"].clone();
    }
    options.as_object_mut().map(std::mem::take).unwrap_or_default()
}

/// The set that a node is opened from, and it alone.
pub(super) fn set_of<'a>(
    node: &Seen,
    sets: &'a [Set],
    seen: &BTreeMap<String, Seen>,
) -> anyhow::Result<&'a Set> {
    let name = &node.node;
    ensure!(
        node.is_file(),
        "node {name:?} is of driver {:?}: only files and block devices can be opened anew here",
        node.driver
    );
    let set = sets.iter().find(|set| set.path() == node.path).with_context(|| {
        format!(
            "node {name:?} was opened from {:?} and not from a set of descriptors, and QEMU cannot \
             change that; start it with -add-fd and filename=/dev/fdset/N",
            node.path
        )
    })?;
    let other = seen
        .values()
        .find(|other| other.is_file() && other.path == node.path && other.node != node.node);
    ensure!(
        other.is_none(),
        "node {name:?} is opened from the same set as another, {:?}, whose descriptors would be \
         taken out with its own",
        other.map(|other| other.node.as_str()).unwrap_or_default()
    );
    Ok(set)
}

/// Which file the descriptors of a set are of. Where nobody can look into QEMU it is not known, and
/// who named the entry is trusted.
pub(super) fn behind(
    monitor: &dyn Monitor,
    set: &Set,
    node: &Seen,
) -> anyhow::Result<Option<Identity>> {
    let mut files = set.members.iter().filter_map(|member| monitor.file_behind(member.number));
    let Some(file) = files.next() else { return Ok(None) };
    ensure!(
        files.all(|other| other == file),
        "the set of node {:?} has descriptors of more than one file",
        node.node
    );
    Ok(Some(file))
}
