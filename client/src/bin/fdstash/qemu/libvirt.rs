//! A disk of a libvirt domain: which nodes it has, and QEMU's monitor, by `virsh`.
//!
//! libvirt has the monitor's socket to itself, and carries commands with files for others (from 8.2
//! on). Nothing is a name made up here: the index of each image of a disk stands in the domain's
//! description, and libvirt names its nodes after that; the group (`fdgroup`) is the entry's name, where
//! nothing else is said.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use fdstash::Name;
use roxmltree::{Document, Node};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    foreign::{Foreign, behind, known, set_of},
    nodes::{FileNode, Identity, Image, Layer, Mark, Options, Seen, Set},
    qmp::{Failure, Monitor, result_of},
};
use crate::run::Process;

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
        let (uri, domain) = (self.uri.clone(), self.domain.clone());
        let mut virsh = Virsh { uri, domain, limit, process: None };
        virsh.process = find_process(&virsh.describe()?);
        Ok(virsh)
    }

    /// The image, and the name of its topmost node.
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
        let description = self.monitor(limit)?.describe()?;
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
            let entry =
                foreign.name_of(&storage.node).or(before.and_then(|mark| mark.entry.as_ref()));
            let mark = Mark {
                entry: Some(entry.map_or_else(|| file.entry(), |entry| Ok(entry.clone()))?),
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

/// A file of a disk, as the domain's description has it.
#[derive(Debug, PartialEq)]
struct Described {
    index: u32,
    group: Option<String>,
    /// The driver's attributes `io` and `discard`.
    io: Option<String>,
    discard: Option<String>,
}

impl Described {
    fn storage(&self) -> String {
        format!("libvirt-{}-storage", self.index)
    }

    /// What a device, or the image above, stands on. Above a raw file there may be nothing.
    fn top(&self, seen: &BTreeMap<String, Seen>) -> String {
        let format = format!("libvirt-{}-format", self.index);
        if seen.contains_key(&format) { format } else { self.storage() }
    }

    /// The options of its file's node: what QEMU tells, and what libvirt has told QEMU beyond that.
    fn options(&self, storage: &Seen, top: &str) -> Options {
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

    fn entry(&self) -> anyhow::Result<Name> {
        let group = self.group.as_deref().unwrap_or_default();
        Name::new(group).with_context(|| {
            format!(
                "the group {group:?} cannot be an entry's name; say which it is, --name {}=NAME",
                self.storage()
            )
        })
    }
}

/// The files of a disk, the topmost first.
fn described(description: &str, target: &str) -> anyhow::Result<Vec<Described>> {
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

fn child<'a, 'input>(node: Node<'a, 'input>, name: &'static str) -> Option<Node<'a, 'input>> {
    children(node, name).next()
}

/// Waits until it ends, and ends it when that takes too long.
fn wait(child: Child, limit: Duration) -> io::Result<Output> {
    let process = Process::of(&child);
    let (end, ended) = mpsc::channel();
    thread::spawn(move || end.send(child.wait_with_output()));
    ended.recv_timeout(limit).unwrap_or_else(|_| {
        process.signal(Signal::KILL);
        Err(io::ErrorKind::TimedOut.into())
    })
}

/// What virsh has said against it.
fn complaint(said: &Output) -> String {
    let said = String::from_utf8_lossy(&said.stderr);
    let said: Vec<&str> = said.lines().map(|line| line.trim_start_matches("error: ")).collect();
    format!("virsh says: {}", said.join("; "))
}

/// The monitor of a domain's QEMU. Each command is a virsh of its own.
pub(super) struct Virsh {
    uri: String,
    domain: String,
    limit: Duration,
    /// QEMU's folder in /proc, if it can be found.
    process: Option<PathBuf>,
}

impl Virsh {
    fn describe(&self) -> anyhow::Result<String> {
        let said = self
            .run("dumpxml", None, |virsh| virsh.args(["--domain", &self.domain]))?
            .with_context(|| format!("virsh has not answered within {:?}", self.limit))?;
        ensure!(said.status.success(), "{}", complaint(&said));
        Ok(String::from_utf8(said.stdout)?)
    }

    /// Runs one of virsh's commands, and tells what it says, or why that is not known. In its error
    /// nothing was done.
    fn run(
        &self,
        verb: &str,
        fd: Option<OwnedFd>,
        add: impl FnOnce(&mut Command) -> &mut Command,
    ) -> anyhow::Result<io::Result<Output>> {
        let mut virsh = Command::new("virsh");
        // What it says is looked at here, and shown as it is.
        virsh.env("LC_ALL", "C").args(["--connect", &self.uri, verb]);
        add(&mut virsh);
        virsh.stdin(fd.map_or_else(Stdio::null, Stdio::from));
        virsh.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = virsh.spawn().context("could not run virsh, which speaks to libvirt")?;
        // Until then it has a duplicate of the descriptor.
        drop(virsh);
        Ok(wait(child, self.limit))
    }
}

/// The folder in /proc of the QEMU that has the described domain's UUID among its arguments.
fn find_process(description: &str) -> Option<PathBuf> {
    let document = Document::parse(description).ok()?;
    let uuid = child(document.root_element(), "uuid")?.text()?;
    let is_meant = |process: &PathBuf| {
        let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = arguments.split(|&byte| byte == 0).collect();
        let named = [b"-uuid".as_slice(), uuid.as_bytes()];
        comm.starts_with("qemu") && arguments.windows(2).any(|two| two == named)
    };
    fs::read_dir("/proc").ok()?.flatten().map(|process| process.path()).find(is_meant)
}

impl Monitor for Virsh {
    fn execute(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<Value> {
        let message = json!({ "execute": command, "arguments": arguments }).to_string();
        let fd = fd.map(|fd| fd.try_clone_to_owned()).transpose()?;
        // It is virsh's standard input, which it hands on and does not read.
        let passed: &[&str] = if fd.is_some() { &["--pass-fds", "0"] } else { &[] };
        let said = self.run("qemu-monitor-command", fd, |virsh| {
            virsh.args(["--domain", &self.domain]).args(passed).args(["--cmd", &message])
        })?;
        let said = said.map_err(|why| Failure::of_waiting(command, self.limit, why))?;
        let command_of = || command.to_owned();
        if !said.status.success() {
            let why = io::Error::other(complaint(&said));
            return Err(Failure::Lost { command: command_of(), why }.into());
        }
        let answer = serde_json::from_slice(&said.stdout);
        let answer =
            answer.map_err(|why| Failure::Lost { command: command_of(), why: why.into() })?;
        result_of(command, answer)
    }

    fn file_behind(&self, number: i64) -> Option<Identity> {
        let process = self.process.as_ref()?;
        let file = fs::metadata(process.join(format!("fd/{number}"))).ok()?;
        Some((file.dev(), file.ino()))
    }
}

#[cfg(test)]
mod tests {
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
