//! An image in QEMU: its nodes, their options, and the sets of descriptors that their files are opened
//! from.
//!
//! QEMU has all of it, so that no file of ours can disagree with it. What it does not tell (which
//! options a node was made with, and which entry has its file) stands in a [`Mark`] beside each
//! descriptor, as the `opaque` of `add-fd`, for which QEMU has no limit in length.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::Context;
use fdstash::Name;
use serde_json::{Map, Value, json};

use super::qmp::Monitor;

/// Options of a node, as `blockdev-add` and `blockdev-reopen` take them.
pub(super) type Options = Map<String, Value>;

/// Which file a descriptor is of: device and inode.
pub(super) type Identity = (u64, u64);

/// What we write beside a descriptor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mark {
    /// The entry that has the file; none if the stash does not keep it, as a rewritten VMDK descriptor.
    pub entry: Option<Name>,
    /// Which file it is, if that is known.
    pub file: Option<Identity>,
    /// The options of the file node that is opened from it, but for its `filename`.
    pub options: Options,
    /// The image that it is a part of, by its topmost node.
    pub image: String,
    /// The format node whose file it is.
    pub of: String,
    /// The options of that, with the first of its files.
    pub format: Option<Options>,
}

impl Mark {
    fn to_text(&self) -> String {
        let Self { entry, file, options, image, of, format } = self;
        let entry = entry.as_ref().map(Name::to_string);
        let file = file.map(|(device, inode)| [device, inode]);
        let mark = json!({
            "name": entry, "node": self.node(), "file": file, "options": options,
            "image": image, "of": of, "format": format,
        });
        json!({ "fdstash": mark }).to_string()
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut text: Value = serde_json::from_str(text).ok()?;
        let mark = text.get_mut("fdstash")?;
        let entry = mark["name"].as_str().map(Name::new).transpose().ok()?;
        let file = mark["file"][0].as_u64().zip(mark["file"][1].as_u64());
        let image = mark["image"].as_str()?.to_owned();
        let of = mark["of"].as_str()?.to_owned();
        let mut taken = |key: &str| mark[key].as_object_mut().map(std::mem::take);
        let (options, format) = (taken("options")?, taken("format"));
        Some(Self { entry, file, options, image, of, format })
    }

    pub(super) fn node(&self) -> &str {
        name_of(&self.options)
    }
}

/// The node that options are of.
pub(super) fn name_of(options: &Options) -> &str {
    text(options, "node-name")
}

/// Whether they are those of a node that is only read.
pub(super) fn read_only(options: &Options) -> bool {
    options.get("read-only").and_then(Value::as_bool).unwrap_or_default()
}

/// Whether they are those of a node whose file is opened past the page cache.
pub(super) fn direct(options: &Options) -> bool {
    let cache = options.get("cache");
    cache.and_then(|cache| cache.get("direct")).and_then(Value::as_bool).unwrap_or_default()
}

/// An option that is text; empty where there is none.
pub(super) fn text<'a>(options: &'a Options, key: &str) -> &'a str {
    options.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A descriptor in a set.
#[derive(Debug)]
pub(super) struct Member {
    /// QEMU's number of it.
    pub number: i64,
    /// What stands beside it, if that is ours.
    pub mark: Option<Mark>,
}

/// A set of descriptors, the newest last. Of those that fit the flags that a node wants QEMU takes the
/// newest, and a duplicate of it: so none that is removed is missed by a node that is open.
#[derive(Debug)]
pub(super) struct Set {
    pub id: i64,
    pub members: Vec<Member>,
}

impl Set {
    /// What a node opens that is made from it.
    pub(super) fn path(&self) -> String {
        set_path(self.id)
    }

    /// Whether it was made for a node of that image.
    pub(super) fn is_of(&self, image: &str) -> bool {
        self.marked().next_back().is_some_and(|(_, mark)| mark.image == image)
    }

    /// The one that a node was opened from: the newest that has the flags that it has.
    pub(super) fn in_force(&self, seen: &Seen) -> Option<(&Member, &Mark)> {
        let mut marked = self.marked().filter(|(_, mark)| mark.node() == seen.node);
        marked.rfind(|(_, mark)| {
            (read_only(&mark.options), direct(&mark.options)) == (seen.read_only, seen.direct)
        })
    }

    pub(super) fn marked(&self) -> impl DoubleEndedIterator<Item = (&Member, &Mark)> {
        self.members.iter().filter_map(|member| Some((member, member.mark.as_ref()?)))
    }
}

pub(super) fn set_path(id: i64) -> String {
    format!("/dev/fdset/{id}")
}

/// All sets that QEMU has.
pub(super) fn sets(monitor: &mut dyn Monitor) -> anyhow::Result<Vec<Set>> {
    let answer = monitor.execute("query-fdsets", json!({}), None)?;
    let members = |set: &Value| {
        let members = set["fds"].as_array().map(Vec::as_slice).unwrap_or_default();
        let member = |member: &Value| Member {
            number: member["fd"].as_i64().unwrap_or_default(),
            mark: member["opaque"].as_str().and_then(Mark::from_text),
        };
        members.iter().map(member).collect()
    };
    let sets = answer.as_array().context("QEMU tells no sets of descriptors")?.iter();
    let set = |set: &Value| Set {
        id: set["fdset-id"].as_i64().unwrap_or_default(),
        members: members(set),
    };
    Ok(sets.map(set).collect())
}

/// Puts a descriptor into a set, or into a new one, and tells the set and QEMU's number of it. Ours is
/// closed: as long as anybody has a duplicate of what QEMU has locked, the lock stays.
pub(super) fn add_fd(
    monitor: &mut dyn Monitor,
    set: Option<i64>,
    fd: OwnedFd,
    mark: &Mark,
) -> anyhow::Result<(i64, i64)> {
    let mut arguments = json!({ "opaque": mark.to_text() });
    if let Some(set) = set {
        arguments["fdset-id"] = set.into();
    }
    let added = monitor.execute("add-fd", arguments, Some(fd.as_fd()))?;
    let number = |key: &str| added[key].as_i64().with_context(|| format!("add-fd tells no {key}"));
    Ok((number("fdset-id")?, number("fd")?))
}

/// Takes a descriptor out of a set.
pub(super) fn remove_fd(monitor: &mut dyn Monitor, set: i64, number: i64) -> anyhow::Result<()> {
    monitor.execute("remove-fd", json!({ "fdset-id": set, "fd": number }), None).map(drop)
}

/// A node, as QEMU tells of it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub node: String,
    pub driver: String,
    pub path: String,
    pub read_only: bool,
    pub direct: bool,
    pub all: Value,
}

impl Seen {
    pub(super) fn new(mut all: Value) -> Self {
        let text = |key: &str| all[key].as_str().unwrap_or_default().to_owned();
        let flag = |value: &Value| value.as_bool().unwrap_or_default();
        let (read_only, direct) = (flag(&all["ro"]), flag(&all["cache"]["direct"]));
        let (node, driver, mut path) = (text("node-name"), text("drv"), text("file"));
        if let Some(options) = path.strip_prefix("json:") {
            let options: Value = serde_json::from_str(options).unwrap_or_default();
            path = options["filename"].as_str().unwrap_or_default().to_owned();
        }
        Self { node, driver, path, read_only, direct, all: all.take() }
    }

    /// Whether it opens a file itself.
    pub(super) fn is_file(&self) -> bool {
        ["file", "host_device"].contains(&self.driver.as_str())
    }

    /// What of it differs from what it was, but for what a reopen is to change.
    pub(super) fn changes_since(&self, before: &Self) -> Vec<String> {
        // What a node's options decide, and what nothing else changes.
        const TOLD: [&str; 12] = [
            "drv",
            "file",
            "backing_file",
            "detect_zeroes",
            "encrypted",
            "write_threshold",
            "bps",
            "bps_rd",
            "bps_wr",
            "iops",
            "iops_rd",
            "iops_wr",
        ];
        let cache = |key| [&before.all["cache"][key], &self.all["cache"][key]];
        let told = TOLD.iter().map(|&key| (key, [&before.all[key], &self.all[key]]));
        let cached = ["no-flush", "writeback"].into_iter().map(|key| (key, cache(key)));
        let differing = told.chain(cached).filter(|(_, [was, is])| was != is);
        differing
            .map(|(key, [was, is])| format!("{}: {key} was {was} and is {is}", self.node))
            .collect()
    }
}

/// All nodes that QEMU has, by their names.
pub(super) fn nodes(monitor: &mut dyn Monitor) -> anyhow::Result<BTreeMap<String, Seen>> {
    let mut answer = monitor.execute("query-named-block-nodes", json!({ "flat": true }), None)?;
    let nodes = answer.as_array_mut().context("QEMU tells no nodes")?.iter_mut();
    let nodes = nodes.map(|node| Seen::new(node.take()));
    Ok(nodes.map(|node| (node.node.clone(), node)).collect())
}

/// The node that is opened from a set.
fn user<'a>(set: &Set, mark: &Mark, seen: &'a BTreeMap<String, Seen>) -> Option<&'a Seen> {
    seen.get(mark.node()).filter(|node| node.path == set.path())
}

/// A file node of an image.
#[derive(Debug, Clone)]
pub(super) struct FileNode {
    /// The set that it is opened from.
    pub set: i64,
    /// What is known of it. A node that is not ours has none until its first reopen.
    pub mark: Mark,
}

impl FileNode {
    pub(super) fn node(&self) -> &str {
        self.mark.node()
    }

    /// Its options as QEMU takes them.
    pub(super) fn options(&self) -> Options {
        let mut options = self.mark.options.clone();
        options.insert("filename".into(), set_path(self.set).into());
        options
    }
}

/// A format node and its files; or a file node alone.
#[derive(Debug)]
pub(super) struct Layer {
    pub node: String,
    /// Its options, if it is a format node, and they are known.
    pub format: Option<Options>,
    pub files: Vec<FileNode>,
}

/// An image, its topmost layer first.
#[derive(Debug)]
pub(super) struct Image {
    pub layers: Vec<Layer>,
}

impl Image {
    /// The image whose topmost node that is, as the marks in the sets tell; it has no layer if there
    /// is none.
    pub(super) fn find(node: &str, sets: &[Set], seen: &BTreeMap<String, Seen>) -> Self {
        let mut files: BTreeMap<String, Vec<FileNode>> = BTreeMap::new();
        for set in sets {
            let Some((_, newest)) = set.marked().next_back() else { continue };
            let user = user(set, newest, seen).filter(|_| newest.image == node);
            let Some(user) = user else { continue };
            let mark = set.in_force(user).map_or(newest, |(_, mark)| mark).clone();
            files.entry(mark.of.clone()).or_default().push(FileNode { set: set.id, mark });
        }
        let mut layers = Vec::new();
        let mut next = Some(node.to_owned());
        while let Some(node) = next {
            let Some(mut files) = files.remove(&node) else { break };
            files.sort_by(|one, other| one.node().cmp(other.node()));
            let format = files.iter().find_map(|file| file.mark.format.clone());
            let format = format.map(|mut format| {
                let is = seen.get(&node).is_some_and(|node| node.read_only);
                format.insert("read-only".into(), is.into());
                format
            });
            let backing = format.as_ref().map(|format| text(format, "backing").to_owned());
            next = backing.filter(|backing| !backing.is_empty());
            layers.push(Layer { node, format, files });
        }
        Self { layers }
    }

    /// Sets that were meant for nodes of that image, and that no node is opened from.
    pub(super) fn strays<'a>(
        node: &str,
        sets: &'a [Set],
        seen: &BTreeMap<String, Seen>,
    ) -> Vec<&'a Set> {
        let is_stray = |set: &&Set| {
            let newest = set.marked().next_back();
            set.is_of(node) && newest.is_some_and(|(_, mark)| user(set, mark, seen).is_none())
        };
        sets.iter().filter(is_stray).collect()
    }

    /// The names of all its nodes, those first on which no other stands.
    pub(super) fn node_names(&self) -> Vec<String> {
        let layer = |layer: &Layer| {
            let files = layer.files.iter().map(|file| file.node().to_owned());
            let format = layer.format.is_some().then(|| layer.node.clone());
            format.into_iter().chain(files).collect::<Vec<_>>()
        };
        self.layers.iter().flat_map(layer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let options = |value: Value| value.as_object().cloned().unwrap();
        let file = options(json!({ "node-name": "disk0-file", "cache": { "direct": true } }));
        let mark = Mark {
            entry: Some(Name::new("vm7/\"disk0\"").unwrap()),
            file: Some((u64::MAX, 7)),
            options: file,
            image: "disk0".into(),
            of: "disk0".into(),
            format: Some(options(json!({ "driver": "qcow2", "backing": null }))),
        };
        let bare = Mark { entry: None, file: None, format: None, ..mark.clone() };

        for mark in [mark, bare] {
            assert_eq!(Mark::from_text(&mark.to_text()), Some(mark));
        }
        for others in
            ["", "disk", "{}", "{\"fdstash\":{}}", "{\"fdstash\":{\"name\":\":\"}}", "[1]"]
        {
            assert_eq!(Mark::from_text(others), None, "{others}");
        }
    }

    #[test]
    fn of_a_set_that_was_left_in_the_middle_the_newest_with_the_nodes_flags_is_in_force() {
        let member = |number, direct, read_only| {
            let options = json!({
                "node-name": "f", "read-only": read_only, "cache": { "direct": direct },
            });
            let mark = json!({ "options": options, "image": "d", "of": "d" });
            let opaque = json!({ "fdstash": mark }).to_string();
            Member { number, mark: Mark::from_text(&opaque) }
        };
        let others = Member { number: 9, mark: None };
        let members =
            vec![member(3, false, false), member(4, true, false), member(5, true, false), others];
        let set = Set { id: 1, members };
        let node = |direct: bool, read_only: bool| {
            Seen::new(json!({ "node-name": "f", "ro": read_only, "cache": { "direct": direct } }))
        };

        let in_force = |direct, read_only| {
            set.in_force(&node(direct, read_only)).map(|(member, _)| member.number)
        };

        assert_eq!(in_force(false, false), Some(3));
        assert_eq!(in_force(true, false), Some(5));
        assert_eq!(in_force(true, true), None);
    }
}
