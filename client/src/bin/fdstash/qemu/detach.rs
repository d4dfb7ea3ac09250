//! `fdstash qemu detach`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{
    Target,
    nodes::{Image, Set, nodes, remove_fd, sets},
    qmp::Monitor,
};

const EXAMPLES: &str = "\
Examples:
  fdstash qemu detach --qmp /run/vm7.qmp --node disk0

A node that a device or an export uses cannot be deleted: remove that first (device_del and wait
for DEVICE_DELETED, block-export-del). What the stash keeps stays there.";

/// Delete the nodes of an image, and take its descriptors from QEMU
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Detach {
    #[command(flatten)]
    target: Target,
}

impl Detach {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut monitor = self.target.monitor()?;
        let node = &self.target.node;
        let (all, seen) = (sets(&mut *monitor)?, nodes(&mut *monitor)?);
        let of_image: Vec<&Set> = all.iter().filter(|set| set.is_of(node)).collect();
        anyhow::ensure!(!of_image.is_empty(), "QEMU has no image {node:?} that was attached");
        let mut names = Image::find(node, &all, &seen).node_names();
        // What an attach or a detach that was cut off has left does not hang together.
        let left = of_image.iter().flat_map(|set| set.marked());
        let left = left.flat_map(|(_, mark)| [mark.of.clone(), mark.node().to_owned()]);
        for name in left {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        delete(&mut *monitor, names)?;
        for set in of_image {
            for member in &set.members {
                remove_fd(&mut *monitor, set.id, member.number)?;
            }
        }
        let left = sets(&mut *monitor)?.iter().filter(|set| set.is_of(node)).count();
        if left > 0 {
            crate::complain(format_args!(
                "{left} of its sets stay until the guest runs again: this QEMU closes no descriptor \
                 while it is stopped"
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Deletes nodes, those first on which no other stands.
fn delete(monitor: &mut dyn Monitor, mut names: Vec<String>) -> anyhow::Result<()> {
    let count = names.len();
    loop {
        let seen = nodes(monitor)?;
        // The extents of a VMDK image go with it.
        names.retain(|name| seen.contains_key(name));
        let before = names.len();
        let mut refused = None;
        let mut left = Vec::new();
        for name in names {
            let deleted = monitor.execute("blockdev-del", json!({ "node-name": name }), None);
            match deleted {
                Ok(_) => {}
                // It may be a part of one that was deleted just now.
                Err(error) => {
                    refused.get_or_insert(error.context(format!("node {name:?} is not deleted")));
                    left.push(name);
                }
            }
        }
        names = left;
        match refused {
            None => return Ok(()),
            Some(error) if names.len() == before => {
                let told =
                    if before == count { "nothing has changed" } else { "others are deleted" };
                return Err(error.context(told));
            }
            Some(_) => {}
        }
    }
}
