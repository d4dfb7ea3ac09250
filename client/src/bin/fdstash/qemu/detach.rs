//! `fdstash qemu detach`.

use std::process::ExitCode;

use anyhow::Context;
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

A node that a device or an export uses cannot be deleted: remove that first (device_del and wait for
DEVICE_DELETED, block-export-del). What the stash keeps stays there.";

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
        let (sets, seen) = (sets(&mut *monitor)?, nodes(&mut *monitor)?);
        let image = Image::find(node, &sets, &seen);
        let strays = Image::strays(node, &sets, &seen);
        anyhow::ensure!(
            !image.layers.is_empty() || !strays.is_empty(),
            "QEMU has no image {node:?} that was attached"
        );
        for name in image.node_names() {
            // The extents of a VMDK image go with it.
            if nodes(&mut *monitor)?.contains_key(&name) {
                delete(&mut *monitor, &name)?;
            }
        }
        let of_image = |set: &&Set| image.files().any(|file| file.set == set.id);
        for set in sets.iter().filter(of_image).chain(strays) {
            for member in &set.members {
                remove_fd(&mut *monitor, set.id, member.number)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn delete(monitor: &mut dyn Monitor, node: &str) -> anyhow::Result<()> {
    let deleted = monitor.execute("blockdev-del", json!({ "node-name": node }), None);
    deleted.map(drop).with_context(|| {
        format!("node {node:?} could not be deleted; what stands above it in the image is gone")
    })
}
