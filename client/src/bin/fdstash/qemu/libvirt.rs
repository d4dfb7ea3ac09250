//! A disk of a libvirt domain: which nodes it has, and which entries have their files.
//!
//! Nothing is a name made up here: the index of each image of a disk stands in the domain's description,
//! and libvirt names its nodes after that; the group (`fdgroup`) is the entry's name, where nothing else is
//! said.

mod description;
mod virsh;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use clap::Args;

use self::{
    description::{Described, described},
    virsh::Virsh,
};
use super::{
    foreign::{Foreign, behind, set_of},
    nodes::{FileNode, Image, Layer, Mark, Seen, Set},
    qmp::Monitor,
};

/// Which disk of which domain.
#[derive(Args)]
pub(super) struct Disk {
    /// In the place of QEMU's own socket: the domain is libvirt's, at this URI
    #[arg(
        long = "libvirt", value_name = "URI", required = false, requires_all = ["domain", "disk"],
        conflicts_with = "qmp"
    )]
    uri: String,

    /// The domain, by its name or UUID
    #[arg(long, required = false, requires = "uri")]
    domain: String,

    /// Its disk, by its target, as vda; each file of it must have been given as a group (fdgroup)
    #[arg(long, value_name = "TARGET", required = false, requires = "uri")]
    disk: String,
}

impl Disk {
    /// The monitor of its QEMU, of which each answer may take so long.
    ///
    /// # Errors
    ///
    /// If libvirt knows no such domain.
    pub(super) fn monitor(&self, limit: Duration) -> anyhow::Result<Virsh> {
        Virsh::new(&self.uri, &self.domain, limit).find()
    }

    /// The image, and the name of its topmost node. Of a file whose group cannot be an entry's name, and
    /// of which nothing was said, the entry is not known.
    ///
    /// # Errors
    ///
    /// If there is none, or one of its files was not given as a group.
    pub(super) fn image(
        &self,
        monitor: &dyn Monitor,
        limit: Duration,
        foreign: &Foreign,
        sets: &[Set],
        seen: &BTreeMap<String, Seen>,
    ) -> anyhow::Result<(String, Image)> {
        let description = Virsh::new(&self.uri, &self.domain, limit).describe()?;
        let described = described(&description, &self.disk)
            .with_context(|| format!("domain {:?}, as libvirt describes it", self.domain))?;
        let nodes: Vec<String> = described.iter().map(|file| file.top(seen)).collect();
        let storages: Vec<String> = described.iter().map(Described::storage).collect();
        foreign.check_names(&storages)?;
        let all: Vec<&str> = nodes.iter().chain(&storages).map(String::as_str).collect();
        let mut layers = Vec::new();
        for (file, node) in described.iter().zip(&nodes) {
            let storage = file.storage();
            let storage = seen.get(&storage).with_context(|| {
                format!("QEMU has no node {storage:?}, which libvirt should have made of this disk")
            })?;
            let set = self.set_of(file, storage, sets, seen)?;
            let before = set.in_force(storage).map(|(_, mark)| mark);
            let mut options =
                before.map_or_else(|| file.options(storage, node), |mark| mark.options.clone());
            foreign.apply(&storage.node, &all, &mut options);
            let mark = Mark {
                // libvirt has it from whoever manages the domain. What QEMU says is not taken: it would
                // have itself given whatever it names.
                entry: foreign.name_of(&storage.node).cloned().or_else(|| file.entry()),
                file: behind(monitor, set, storage)?,
                options,
                image: nodes[0].clone(),
                of: node.clone(),
                format: None,
            };
            let files = vec![FileNode { set: set.id, mark }];
            layers.push(Layer { node: node.clone(), format: None, files });
        }
        Ok((nodes[0].clone(), Image { layers }))
    }

    fn set_of<'a>(
        &self,
        file: &Described,
        storage: &Seen,
        sets: &'a [Set],
        seen: &BTreeMap<String, Seen>,
    ) -> anyhow::Result<&'a Set> {
        ensure!(
            file.group.is_some(),
            "libvirt has had QEMU open {:?} of disk {:?} by its path, and QEMU cannot change that \
             while it runs: start the domain with an fdgroup for each file of the disk, and with \
             descriptors from the stash (virsh dom-fd-associate)",
            storage.path,
            self.disk
        );
        set_of(storage, sets, seen)
    }
}
