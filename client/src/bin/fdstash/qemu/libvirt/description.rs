//! A domain's description, as far as a disk and its files go.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use fdstash::Name;
use roxmltree::{Document, Node};

use crate::qemu::{
    foreign::known,
    nodes::{Options, Seen},
};

/// A file of a disk, as the domain's description has it.
#[derive(Debug, PartialEq)]
pub(super) struct Described {
    index: u32,
    /// The group of descriptors that it is opened from.
    pub(super) group: Option<String>,
    /// The driver's attributes `io` and `discard`.
    io: Option<String>,
    discard: Option<String>,
}

impl Described {
    pub(super) fn storage(&self) -> String {
        format!("libvirt-{}-storage", self.index)
    }

    /// What a device, or the image above, stands on. Above a raw file there may be nothing.
    pub(super) fn top(&self, seen: &BTreeMap<String, Seen>) -> String {
        let format = format!("libvirt-{}-format", self.index);
        if seen.contains_key(&format) { format } else { self.storage() }
    }

    /// The options of its file's node: what QEMU tells, and what libvirt has told QEMU beyond that.
    pub(super) fn options(&self, storage: &Seen, top: &str) -> Options {
        let mut options = known(storage);
        // Where a node of the format stands above, that is where the description's `discard` is.
        let below = Some("unmap").filter(|_| top != storage.node);
        let discard = below.or(self.discard.as_deref());
        for (key, value) in [("aio", self.io.as_deref()), ("discard", discard)] {
            if let Some(value) = value {
                options.insert(key.into(), value.into());
            }
        }
        options
    }

    /// The entry that has the file, if the group is called as one can be.
    pub(super) fn entry(&self) -> Option<Name> {
        Name::new(self.group.as_deref()?).ok()
    }
}

/// The files of a disk, the topmost first.
pub(super) fn described(description: &str, target: &str) -> anyhow::Result<Vec<Described>> {
    let document = Document::parse(description).context("this is not what was expected")?;
    let is_meant = |disk: &Node| {
        child(*disk, "target").is_some_and(|its| its.attribute("dev") == Some(target))
    };
    let devices = child(document.root_element(), "devices");
    let mut disks = devices.into_iter().flat_map(|devices| children(devices, "disk"));
    let disk = disks.find(is_meant).with_context(|| format!("it has no disk {target:?}"))?;
    let driver = child(disk, "driver");
    let mut files = Vec::new();
    let mut next = Some(disk);
    while let Some(source) = next.and_then(|layer| child(layer, "source")) {
        let layer = next.unwrap_or(disk);
        // Of the topmost it stands in the source, of the others in backingStore.
        let index = source.attribute("index").or(layer.attribute("index"));
        let index = index.and_then(|index| index.parse().ok());
        let Some(index) = index else {
            bail!("disk {target:?} has no index: is the domain running?")
        };
        ensure!(
            child(layer, "dataStore").is_none() && child(source, "dataStore").is_none(),
            "disk {target:?} has an external data file, which only --qmp can reopen"
        );
        let text = |key: &str| Some(driver?.attribute(key)?.to_owned());
        let group = source.attribute("fdgroup").map(str::to_owned);
        files.push(Described { index, group, io: text("io"), discard: text("discard") });
        next = child(layer, "backingStore");
    }
    ensure!(!files.is_empty(), "disk {target:?} is empty");
    Ok(files)
}

fn children<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

pub(super) fn child<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> Option<Node<'a, 'input>> {
    children(node, name).next()
}

/// The domain's UUID.
pub(super) fn uuid(description: &str) -> Option<String> {
    let document = Document::parse(description).ok()?;
    Some(child(document.root_element(), "uuid")?.text()?.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DOMAIN: &str = "
<domain type='kvm' id='3'>
  <devices>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' io='native' discard='ignore'/>
      <source file='/images/vm7.qcow2' fdgroup='vm7-disk0' index='3'/>
      <backingStore type='file' index='4'>
        <format type='raw'/>
        <source file='/images/base.raw'/>
        <backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>";

    fn storage() -> Seen {
        let told = json!({
            "node-name": "libvirt-3-storage", "drv": "file", "file": "/dev/fdset/0", "ro": false,
            "cache": { "direct": true, "no-flush": false }, "detect_zeroes": "off",
        });
        Seen::new(told)
    }

    #[test]
    fn a_disks_files_are_read_from_the_domains_description() {
        let files = described(DOMAIN, "vda").unwrap();

        let told = |file: &Described| (file.storage(), file.group.clone());
        assert_eq!(
            files.iter().map(told).collect::<Vec<_>>(),
            [
                ("libvirt-3-storage".to_owned(), Some("vm7-disk0".to_owned())),
                ("libvirt-4-storage".to_owned(), None)
            ]
        );
        assert_eq!(files[0].entry().unwrap().as_str(), "vm7-disk0");
        for (target, why) in [("sda", "is empty"), ("vdb", "has no disk")] {
            let error = format!("{:#}", described(DOMAIN, target).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
        assert!(described("no description", "vda").is_err());
    }

    #[test]
    fn an_inactive_domain_or_an_external_data_file_is_refused() {
        let inactive = DOMAIN.replace(" index='3'", "");
        let data =
            DOMAIN.replace("fdgroup='vm7-disk0' index='3'/>", "index='3'><dataStore/></source>");

        for (description, why) in [(inactive, "running"), (data, "data file")] {
            let error = format!("{:#}", described(&description, "vda").unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_file_has_the_options_that_libvirt_has_given_it() {
        let file = &described(DOMAIN, "vda").unwrap()[0];
        let options = |top| Value::from(file.options(&storage(), top));

        let below_its_format = options("libvirt-3-format");
        let alone = options("libvirt-3-storage");

        assert_eq!(
            below_its_format,
            json!({
                "driver": "file", "node-name": "libvirt-3-storage", "read-only": false,
                "cache": { "direct": true, "no-flush": false }, "aio": "native", "discard": "unmap",
            })
        );
        assert_eq!(alone["discard"], "ignore");
    }
}
