//! Whether what was named can be attached: nodes that QEMU has not yet, and the files that an image's
//! header means. Of other files QEMU does not see the difference: a guest would read, and write, in the
//! wrong places.

use std::os::fd::AsFd;

use anyhow::{Context, bail, ensure};
use fdstash::Name;
use rustix::fs::{SeekFrom, seek};

use super::plan::{File, Format, Needs};
use crate::qemu::{
    header, images,
    nodes::{nodes, sets},
    qmp::Monitor,
    vmdk::Extent,
    words::LONGEST_NODE,
};

/// Refuses a name that QEMU has a node of.
pub(super) fn check_node(monitor: &mut dyn Monitor, node: &str) -> anyhow::Result<()> {
    if !nodes(monitor)?.contains_key(node) {
        return Ok(());
    }
    let is_ours = images(&sets(monitor)?).contains(node);
    ensure!(!is_ours, "{node:?} is attached already: detach it, or choose another --node");
    bail!("QEMU has a node {node:?} already, that was not attached: choose another --node")
}

/// Refuses a name from which names are made that QEMU does not take.
pub(super) fn check_lengths(node: &str, all: &[&str]) -> anyhow::Result<()> {
    let longest = all.iter().map(|name| name.len()).max().unwrap_or_default();
    let over = longest.saturating_sub(LONGEST_NODE);
    ensure!(
        over == 0,
        "QEMU takes node names of at most {LONGEST_NODE} characters, and those of the files would be \
         longer: choose a --node of at most {} characters",
        node.len().saturating_sub(over)
    );
    Ok(())
}

/// Refuses a file that cannot be that extent. What was named after the descriptor's own name for it is
/// trusted in that, and not in its size.
pub(super) fn check_extent(
    extent: &Extent,
    file: &File,
    by_position: bool,
    is_whole_file: bool,
) -> anyhow::Result<()> {
    let (entry, name) = (file.entry.as_str(), &extent.name);
    let target = file.target.as_deref().filter(|target| base_name(target) != base_name(name));
    ensure!(
        target.is_none() || !by_position,
        "entry {entry:?} has the file {:?}, and in its place the descriptor names {name:?}: say which \
         entry has which extent, --extent {name}=NAME",
        target.unwrap_or_default()
    );
    match extent.kind.as_str() {
        "FLAT" | "VMFS" => check_flat(extent, file, is_whole_file),
        "SPARSE" => {
            let sectors = header::sparse_sectors(file.fd.as_fd())
                .with_context(|| format!("entry {entry:?}, for the extent {name:?}"))?;
            ensure!(
                sectors == extent.sectors,
                "entry {entry:?} is a sparse extent of {sectors} sectors, and the descriptor says that \
                 {name:?} has {}: it is not that extent",
                extent.sectors
            );
            Ok(())
        }
        // QEMU itself compares their headers' beginnings.
        _ => Ok(()),
    }
}

fn check_flat(extent: &Extent, file: &File, is_whole_file: bool) -> anyhow::Result<()> {
    const SECTOR: u128 = 512;
    // The description is ours alone until QEMU has it, and nobody uses its position.
    let size = u128::from(seek(&file.fd, SeekFrom::End(0))?);
    let needed = (u128::from(extent.offset) + u128::from(extent.sectors)) * SECTOR;
    let fits = if is_whole_file && file.driver == "file" { size == needed } else { size >= needed };
    ensure!(
        fits,
        "entry {:?} has a file of {size} bytes, and the descriptor says that {:?} has {needed}: it is not \
         that extent",
        file.entry.as_str(),
        extent.name
    );
    Ok(())
}

/// Warns of an image that is given to a guest as it is, with its header. A guest can have written that.
pub(super) fn warn_of_raw(file: &File) {
    // What cannot be read so QEMU reads in its own way, or says why not.
    if let Ok(Some(format)) = header::begins_as(file.fd.as_fd()) {
        let entry = file.entry.as_str();
        crate::complain(format_args!(
            "entry {entry:?} begins as a {format} image does, and the guest sees that as the beginning of \
             its disk; if it is one, detach it and say --image {format}={entry}"
        ));
    }
}

/// Refuses another format of a backing file than the header names, and warns of another name.
pub(super) fn check_backing_file(
    image: &str,
    needs: &Needs,
    format: Format,
    entry: &Name,
    target: Option<&str>,
) -> anyhow::Result<()> {
    let entry = entry.as_str();
    // Both once were said of raw images.
    let is_raw = |named: &str| ["file", "host_device"].contains(&named) && format == Format::Raw;
    if let Some(named) = &needs.backing_format {
        ensure!(
            named == format.driver() || is_raw(named),
            "{image:?} says that its backing file is of the format {named:?}: say --image \
             {named}={entry}, not {}",
            format.driver()
        );
    }
    // It may be too far on in the header to be read, or not be a name at all.
    let backing =
        needs.backing.as_deref().filter(|name| *name != "?" && !name.starts_with("json:"));
    if let Some((backing, target)) = backing.zip(target) {
        if base_name(backing) != base_name(target) {
            crate::complain(format_args!(
                "{image:?} says that its backing file is {backing:?}, and entry {entry:?} has {target:?}: \
                 if it is another image, the guest reads what it has never written"
            ));
        }
    }
    Ok(())
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}
