//! `fdstash qemu`: images attached to a real QEMU, and what it does not do to them.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader},
    net::Shutdown,
    os::unix::{
        fs::{MetadataExt, OpenOptionsExt},
        net::UnixStream,
    },
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use fdstash_proto::socket;
use kit::{Daemon, SOON, pattern, program, skipped, wait_until};
use rustix::{
    fs::OFlags,
    process::{Pid, Signal, kill_process},
};
use serde_json::{Value, json};

/// Starts a QEMU without a machine, whose monitors are in the daemon's folder; nothing, where there
/// is none. `QEMU` may name another than `qemu-system-x86_64`, with words in front of it that start it.
fn start<'a>(daemon: &'a Daemon, before: &[&str], arguments: &[&str]) -> Option<Qemu<'a>> {
    let words = env::var("QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    let words: Vec<&str> = words.split_whitespace().collect();
    let known = Command::new(words[0]).args(&words[1..]).arg("--version").output();
    if !known.is_ok_and(|known| known.status.success()) {
        skipped("there is no qemu-system-x86_64");
        return None;
    }
    let all: Vec<&str> = before.iter().copied().chain(words).collect();
    let monitor = |name: &str| format!("unix:{},server=on,wait=off", daemon.path(name).display());
    let process = Command::new(all[0])
        .args(&all[1..])
        .args(["-machine", "none", "-nodefaults", "-display", "none"])
        .args(["-qmp", &monitor("qmp"), "-qmp", &monitor("qmp-tests")])
        .args(arguments)
        .env("FDSTASH_SOCKET", daemon.socket())
        .current_dir(daemon.path(""))
        .stdin(Stdio::null())
        .stdout(File::create(daemon.path("said")).expect("a log can be made"))
        .spawn()
        .expect("QEMU can be started");
    let mut qemu = Qemu { process, daemon, pid: None };
    // It makes this one last. While it starts, QEMU 7.2 can die of a connection that ends before it has
    // greeted, so each is used.
    let mut socket = None;
    wait_until(SOON, || {
        socket = UnixStream::connect(daemon.path("qmp-tests")).ok();
        socket.is_some()
    });
    let socket = socket.expect("a monitor");
    // What starts it may stand between.
    qemu.pid = rustix::net::sockopt::socket_peercred(&socket).ok().map(|peer| peer.pid);
    execute(&socket, "query-status", json!({}), &[]);
    Some(qemu)
}

/// A running QEMU, killed when it is dropped.
struct Qemu<'a> {
    process: Child,
    daemon: &'a Daemon,
    pid: Option<Pid>,
}

impl Qemu<'_> {
    /// Has a command executed, over a connection that ends with it.
    #[track_caller]
    fn executes(&self, command: &str, arguments: Value) -> Value {
        self.executes_with(command, arguments, &[])
    }

    #[track_caller]
    fn executes_with(&self, command: &str, arguments: Value, fds: &[File]) -> Value {
        let socket = UnixStream::connect(self.daemon.path("qmp-tests")).expect("a monitor");
        execute(&socket, command, arguments, fds)
    }

    /// Writes or reads 64 KiB of a node, which must work; what is read is compared with a pattern.
    #[track_caller]
    fn io(&self, node: &str, command: &str) {
        let before = self.said().len();
        let line = format!("qemu-io {node} \"{command} 64k\"");
        let told = self.executes("human-monitor-command", json!({ "command-line": line }));
        assert_eq!(told, "", "{command}");
        let said = self.said()[before..].to_owned();
        assert!(
            said.contains("65536/65536 bytes") && !said.contains("failed"),
            "{command}: {said}"
        );
    }

    fn said(&self) -> String {
        fs::read_to_string(self.daemon.path("said")).expect("a log")
    }

    fn count(&self, query: &str) -> usize {
        self.executes(query, json!({})).as_array().map_or(0, Vec::len)
    }

    /// Puts a descriptor of a file beside the one of the only set, as a reopen does before it lets the
    /// node go over; tells the set, and the options with which the node would.
    fn leave_over(&self, path: &Path, direct: bool) -> (u64, Value) {
        let sets = self.executes("query-fdsets", json!({}));
        let set = sets[0]["fdset-id"].as_u64().expect("a set");
        let mark = sets[0]["fds"][0]["opaque"].as_str().expect("a mark");
        let mut mark: Value = serde_json::from_str(mark).expect("JSON");
        mark["fdstash"]["options"]["cache"]["direct"] = direct.into();
        let flags = OFlags::DIRECT.bits().try_into().expect("a flag of open");
        let file = File::options().read(true).write(true).custom_flags(flags).open(path);
        let arguments = json!({ "fdset-id": set, "opaque": mark.to_string() });
        self.executes_with("add-fd", arguments, &[file.expect("a file")]);
        let mut options = mark["fdstash"]["options"].take();
        options["filename"] = format!("/dev/fdset/{set}").into();
        (set, options)
    }

    fn is_version(&self, major: u64) -> bool {
        self.executes("query-version", json!({}))["qemu"]["major"] == major
    }

    /// How many descriptors it has of a file.
    fn has_open(&self, path: &Path) -> usize {
        let file = fs::metadata(path).expect("a file");
        let pid = self.pid.expect("the kernel knows who listens").as_raw_pid();
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").flatten();
        let targets = fds.filter_map(|fd| fs::metadata(fd.path()).ok());
        targets.filter(|other| (other.dev(), other.ino()) == (file.dev(), file.ino())).count()
    }
}

impl Drop for Qemu<'_> {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Has a command executed over a new connection, with descriptors beside it.
#[track_caller]
fn execute(socket: &UnixStream, command: &str, arguments: Value, fds: &[File]) -> Value {
    let mut lines = BufReader::new(socket.try_clone().expect("a duplicate")).lines();
    let negotiation = json!({ "execute": "qmp_capabilities" });
    let command = json!({ "execute": command, "arguments": arguments });
    let answers = [(negotiation, &[][..]), (command, fds)].map(|(command, fds)| {
        socket::send(socket, command.to_string().as_bytes(), fds).expect("QEMU reads");
        loop {
            let line = lines.next().expect("an answer").expect("an answer");
            let said: Value = serde_json::from_str(&line).expect("JSON");
            assert!(said.get("error").is_none(), "{command}: {said}");
            if let Some(answer) = said.get("return") {
                break answer.clone();
            }
        }
    });
    let [_, answer] = answers;
    // QEMU 7.2 can hang, or die, of a connection that begins while it still handles the end of another.
    socket.shutdown(Shutdown::Write).expect("a connection can be ended");
    lines.by_ref().for_each(drop);
    answer
}

/// Makes an image in the daemon's folder, by `qemu-img create`.
fn image(daemon: &Daemon, arguments: &[&str]) {
    let made = Command::new("qemu-img")
        .args(["create", "-q"])
        .args(arguments)
        .current_dir(daemon.path(""))
        .status();
    assert!(made.expect("qemu-img can be run").success(), "{arguments:?}");
}

/// Gives files of the daemon's folder under their own names, with a description of the stash's own.
fn give(daemon: &Daemon, files: &[&str]) {
    for file in files {
        let name = file.replace(' ', "_");
        let given =
            daemon.command().args(["give", &name, "--fresh"]).arg(daemon.path(file)).status();
        assert!(given.expect("the command can be run").success(), "{file}");
    }
}

/// `fdstash qemu` with a line of arguments, in which no argument has a blank.
fn qemu(daemon: &Daemon, line: &str) -> Command {
    let mut command = daemon.command();
    command.arg("qemu").args(line.split_whitespace()).arg("--qmp").arg(daemon.path("qmp"));
    command
}

#[track_caller]
fn works(daemon: &Daemon, line: &str) -> String {
    let Output { status, stdout, stderr } = qemu(daemon, line).output().expect("it can be run");
    let complained = String::from_utf8_lossy(&stderr);
    assert_eq!((status.code(), &*complained), (Some(0), ""), "{line}");
    String::from_utf8(stdout).expect("it writes text")
}

#[track_caller]
fn fails(daemon: &Daemon, line: &str, complaint: &str) {
    let Output { status, stderr, .. } = qemu(daemon, line).output().expect("it can be run");
    let complained = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(1), "{line}: {complained}");
    assert!(complained.contains(complaint), "{line}: {complained}");
}

/// What `status` says of a node: its name, whether it is direct and read-only, how many descriptors its
/// set has.
type Told = (String, bool, bool, u64);

/// What it says of each, and what drifts.
fn status(daemon: &Daemon, node: &str) -> (Vec<Told>, Vec<String>) {
    let told = works(daemon, &format!("status --json --node {node}"));
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let node = |node: &Value| {
        let flag = |key: &str| node[key].as_bool().expect("a flag");
        let name = node["node"].as_str().expect("a name").to_owned();
        (name, flag("direct"), flag("readOnly"), node["descriptors"].as_u64().expect("a number"))
    };
    let nodes = told["nodes"].as_array().expect("nodes").iter().map(node).collect();
    let drifts = told["drifts"].as_array().expect("drifts").iter();
    (nodes, drifts.map(|drift| drift.as_str().expect("text").to_owned()).collect())
}

fn node(name: &str, direct: bool, read_only: bool) -> Told {
    (name.to_owned(), direct, read_only, 1)
}

/// What is kept: name, access and flags.
fn kept(daemon: &Daemon) -> Vec<String> {
    let entries = daemon.client().list(&pattern("*")).expect("a list");
    let told = |entry: &fdstash::Entry| {
        format!("{} {} {:?}", entry.name, entry.access.as_str(), entry.flags)
    };
    entries.iter().map(told).collect()
}

#[test]
fn a_chain_keeps_its_options_over_reopens_and_leaves_nothing_in_qemu() {
    let daemon = Daemon::spawn();
    let Some(running) = start(&daemon, &[], &[]) else { return };
    image(&daemon, &["-f", "raw", "root.raw", "16M"]);
    image(&daemon, &["-f", "qcow2", "-b", "root.raw", "-F", "raw", "base.qcow2"]);
    image(&daemon, &["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]);
    give(&daemon, &["root.raw", "base.qcow2", "top.qcow2"]);

    works(
        &daemon,
        "attach --node disk0 --image qcow2=top.qcow2 --image qcow2=base.qcow2 --image raw=root.raw \
         --option aio=threads --option locking=on --option disk0.lazy-refcounts=true \
         --option disk0-file.discard=unmap --option disk0.detect-zeroes=on",
    );
    running.io("disk0", "write -P 7 1M");
    works(&daemon, "reopen --node disk0 --direct on");
    let chain = |direct, below, read_only| {
        vec![
            node("disk0-file", direct, read_only),
            node("disk0-backing1-file", below, true),
            node("disk0-backing2-file", below, true),
        ]
    };
    assert_eq!(status(&daemon, "disk0").0, chain(true, false, false));
    works(&daemon, "reopen --node disk0 --direct off --read-only on");
    assert_eq!(status(&daemon, "disk0").0, chain(false, false, true));
    works(&daemon, "reopen --node disk0 --direct on --read-only off --chain");
    assert_eq!(status(&daemon, "disk0"), (chain(true, true, false), vec![]));
    running.io("disk0", "read -P 7 1M");
    running.io("disk0", "write -P 8 2M");
    assert_eq!(running.has_open(&daemon.path("base.qcow2")), 2, "its own, and that in its set");

    works(&daemon, "detach --node disk0");
    assert_eq!((running.count("query-fdsets"), running.count("query-named-block-nodes")), (0, 0));
    for file in ["root.raw", "base.qcow2", "top.qcow2"] {
        assert_eq!(running.has_open(&daemon.path(file)), 0, "{file}");
    }
    let all = "read_write {\"direct\"}";
    let names = ["base.qcow2", "root.raw", "top.qcow2"];
    assert_eq!(kept(&daemon), names.map(|name| format!("{name} {all}")));
}

#[test]
fn a_vmdk_image_with_strange_names_is_written_read_only_and_written_again() {
    let daemon = Daemon::spawn();
    let Some(running) = start(&daemon, &[], &[]) else { return };
    let name = "a disk, (1).vmdk";
    image(&daemon, &["-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", name, "3G"]);
    let extents = ["a disk, (1)-f001.vmdk", "a disk, (1)-f002.vmdk"];
    give(&daemon, &[&[name], &extents[..]].concat());

    works(
        &daemon,
        "attach --node disk0 --image vmdk=a_disk,_(1).vmdk --option aio=threads \
         --extent a_disk,_(1)-f001.vmdk --extent a_disk,_(1)-f002.vmdk",
    );
    running.io("disk0", "write -P 3 2147450880");
    works(&daemon, "reopen --node disk0 --direct on --read-only on");
    running.io("disk0", "read -P 3 2147450880");
    works(&daemon, "reopen --node disk0 --read-only off");
    running.io("disk0", "write -P 4 2200M");
    let (nodes, drifts) = status(&daemon, "disk0");
    let mut expected = [("disk0-extent1", true), ("disk0-extent2", true), ("disk0-file", false)]
        .map(|(name, direct)| node(name, direct, false));
    expected[2].3 = 2;
    assert_eq!((nodes, drifts), (expected.to_vec(), vec![]));
    works(&daemon, "detach --node disk0");

    assert_eq!((running.count("query-fdsets"), running.count("query-named-block-nodes")), (0, 0));
    let read = Command::new("qemu-io")
        .args(["-f", "vmdk", "-c", "read -P 3 2147450880 64k", "-c", "read -P 4 2200M 64k", name])
        .current_dir(daemon.path(""))
        .output()
        .expect("qemu-io can be run");
    let said = String::from_utf8_lossy(&read.stdout).into_owned();
    assert!(read.status.success() && !said.contains("failed"), "{said}");
}

#[test]
fn an_image_with_a_part_that_nobody_named_is_refused() {
    let daemon = Daemon::spawn();
    let Some(running) = start(&daemon, &[], &[]) else { return };
    image(&daemon, &["-f", "qcow2", "base.qcow2", "1M"]);
    image(&daemon, &["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]);
    image(&daemon, &["-f", "qcow2", "-o", "data_file=data.raw", "data.qcow2", "1M"]);
    image(&daemon, &["-f", "vmdk", "base.vmdk", "1M"]);
    image(&daemon, &["-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "top.vmdk"]);
    image(&daemon, &["-f", "vmdk", "-o", "subformat=monolithicFlat", "flat.vmdk", "1M"]);
    let files =
        ["base.qcow2", "top.qcow2", "data.qcow2", "data.raw", "base.vmdk", "top.vmdk", "flat.vmdk"];
    give(&daemon, &files);
    let before = kept(&daemon);

    let table = [
        ("--image qcow2=top.qcow2", "whose backing file nobody named: it has one, \"base.qcow2\""),
        ("--image vmdk=top.vmdk", "whose backing file nobody named: it has one, \"base.vmdk\""),
        ("--image qcow2=base.qcow2 --image qcow2=top.qcow2", "has no backing file"),
        ("--image raw=data.raw --image qcow2=base.qcow2", "has no backing file"),
        ("--image qcow2=data.qcow2", "name it with --data-file"),
        ("--image vmdk=flat.vmdk", "name the entry of each with --extent"),
        ("--image qcow2=flat.vmdk", "has no qcow2 header"),
        ("--image vmdk=base.qcow2", "no VMDK image"),
        ("--image raw=data.raw --option nonsense=1", "nothing was attached"),
        ("--image qcow2=base.qcow2 --option disk0.nonsense=1", "nothing was attached"),
        ("--image vmdk=flat.vmdk --extent data.raw --option x=1", "nothing was attached"),
    ];
    for (arguments, complaint) in table {
        fails(&daemon, &format!("attach --node disk0 --direct on {arguments}"), complaint);
        assert_eq!(kept(&daemon), before, "{arguments}");
        let left = (running.count("query-fdsets"), running.count("query-named-block-nodes"));
        assert_eq!(left, (0, 0), "{arguments}");
    }
    works(&daemon, "attach --node disk0 --image qcow2=data.qcow2 --data-file data.raw");
    works(&daemon, "reopen --node disk0 --direct on");
    let both = vec![node("disk0-data", true, false), node("disk0-file", true, false)];
    assert_eq!(status(&daemon, "disk0"), (both, vec![]));
}

#[test]
fn nodes_that_qemu_was_started_with_are_reopened_when_their_entries_are_named() {
    let daemon = Daemon::spawn();
    image(&daemon, &["-f", "qcow2", "disk.qcow2", "16M"]);
    fs::copy(daemon.path("disk.qcow2"), daemon.path("other.qcow2")).expect("a copy");
    give(&daemon, &["disk.qcow2", "other.qcow2"]);
    let fdstash = program("fdstash");
    let fdstash = fdstash.to_str().expect("a plain path");
    let before = [fdstash, "take", "disk.qcow2", "--copy", "--fresh", "--fd", "3", "--"];
    let nodes = [
        "-add-fd",
        "fd=3,set=1,opaque=disk0",
        "-blockdev",
        "driver=file,node-name=disk0-file,filename=/dev/fdset/1,aio=threads,locking=on",
        "-blockdev",
        "driver=qcow2,node-name=disk0,file=disk0-file",
    ];
    let Some(running) = start(&daemon, &before, &nodes) else { return };
    running.io("disk0", "write -P 1 0");

    let reopen = "reopen --node disk0 --direct on";
    fails(&daemon, reopen, "say which entry has which node's file");
    fails(&daemon, &format!("{reopen} --name disk0=disk.qcow2"), "only files and block devices");
    // QEMU's pid namespace and ours are the same, and so it is seen which file its node has.
    fails(&daemon, &format!("{reopen} --name disk0-file=other.qcow2"), "has another file");
    fails(&daemon, &format!("{reopen} --name disk0-file=disk.qcow2"), "cannot be reset");
    let named = "--name disk0-file=disk.qcow2 --option aio=threads --option locking=on";
    works(&daemon, &format!("{reopen} {named}"));
    running.io("disk0", "read -P 1 0");
    works(&daemon, "reopen --node disk0 --read-only on");
    works(&daemon, "reopen --node disk0 --read-only off");
    running.io("disk0", "write -P 2 0");

    assert_eq!(status(&daemon, "disk0"), (vec![node("disk0-file", true, false)], vec![]));
    // From here on QEMU remembers it, and its word can be checked.
    fails(&daemon, &format!("{reopen} --name disk0-file=other.qcow2"), "and no --name does");
    works(&daemon, &format!("{reopen} --name disk0-file=disk.qcow2"));
    works(&daemon, "detach --node disk0");
    assert_eq!((running.count("query-fdsets"), running.count("query-named-block-nodes")), (0, 0));
}

#[test]
fn what_a_killed_reopen_has_left_is_told_and_goes_with_the_next() {
    let daemon = Daemon::spawn();
    let Some(running) = start(&daemon, &[], &[]) else { return };
    image(&daemon, &["-f", "qcow2", "disk.qcow2", "16M"]);
    give(&daemon, &["disk.qcow2"]);
    works(&daemon, "attach --node disk0 --image qcow2=disk.qcow2");

    // Killed before QEMU went over: the new descriptor lies in the set, and the node has the old one.
    let (set, options) = running.leave_over(&daemon.path("disk.qcow2"), true);
    let (nodes, drifts) = status(&daemon, "disk0");
    assert_eq!(nodes, [("disk0-file".to_owned(), false, false, 2)]);
    assert_eq!(drifts, ["disk0-file: its set has 2 descriptors"]);
    works(&daemon, "reopen --node disk0 --read-only on");
    assert_eq!(status(&daemon, "disk0"), (vec![node("disk0-file", false, true)], vec![]));
    // A lock of a descriptor that is left over would forbid this.
    works(&daemon, "reopen --node disk0 --read-only off");

    // Killed after QEMU went over: the node has the new one, and the stash knows nothing of it.
    assert_eq!(running.leave_over(&daemon.path("disk.qcow2"), true), (set, options.clone()));
    running.executes("blockdev-reopen", json!({ "options": [options] }));
    let (nodes, drifts) = status(&daemon, "disk0");
    assert_eq!(nodes, [("disk0-file".to_owned(), true, false, 2)]);
    assert_eq!(drifts.len(), 2, "{drifts:?}");
    works(&daemon, "reopen --node disk0");
    assert_eq!(status(&daemon, "disk0"), (vec![node("disk0-file", true, false)], vec![]));
    assert_eq!(kept(&daemon), ["disk.qcow2 read_write {\"direct\"}"]);
    assert_eq!(running.has_open(&daemon.path("disk.qcow2")), 2, "its own, and that in its set");
    running.io("disk0", "write -P 1 0");
}

#[test]
fn a_chain_that_a_block_job_has_changed_is_not_put_back() {
    let daemon = Daemon::spawn();
    let Some(running) = start(&daemon, &[], &[]) else { return };
    image(&daemon, &["-f", "qcow2", "base.qcow2", "16M"]);
    image(&daemon, &["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"]);
    give(&daemon, &["base.qcow2", "top.qcow2"]);
    works(&daemon, "attach --node disk0 --image qcow2=top.qcow2 --image qcow2=base.qcow2");
    running.executes("block-stream", json!({ "job-id": "stream", "device": "disk0" }));
    wait_until(SOON, || running.count("query-block-jobs") == 0);

    fails(&daemon, "reopen --node disk0 --read-only on", "has changed since");
    works(&daemon, "reopen --node disk0 --direct on");
    running.io("disk0", "write -P 1 0");
    works(&daemon, "detach --node disk0");

    assert_eq!((running.count("query-fdsets"), running.count("query-named-block-nodes")), (0, 0));
}

#[test]
fn a_node_in_use_is_not_detached_and_nothing_has_changed() {
    let daemon = Daemon::spawn();
    let Some(running) = start(&daemon, &[], &[]) else { return };
    image(&daemon, &["-f", "raw", "disk.raw", "16M"]);
    give(&daemon, &["disk.raw"]);
    works(&daemon, "attach --node disk0 --image raw=disk.raw");
    let at = json!({ "type": "unix", "data": { "path": daemon.path("nbd") } });
    running.executes("nbd-server-start", json!({ "addr": at }));
    let export = json!({ "id": "e", "type": "nbd", "node-name": "disk0", "writable": true });
    running.executes("block-export-add", export);

    fails(&daemon, "detach --node disk0", "nothing has changed: node \"disk0\" is not deleted");
    fails(&daemon, "reopen --node disk0 --read-only on", "the stash is as it was: QEMU refuses");
    works(&daemon, "reopen --node disk0 --direct on");

    assert_eq!(status(&daemon, "disk0"), (vec![node("disk0-file", true, false)], vec![]));
}

#[test]
fn while_the_guest_is_stopped_images_are_reopened_as_well() {
    let daemon = Daemon::spawn();
    let Some(running) = start(&daemon, &[], &["-S"]) else { return };
    image(&daemon, &["-f", "qcow2", "disk.qcow2", "16M"]);
    give(&daemon, &["disk.qcow2"]);
    works(&daemon, "attach --node disk0 --image qcow2=disk.qcow2");

    works(&daemon, "reopen --node disk0 --direct on");
    works(&daemon, "reopen --node disk0 --read-only on");
    // QEMU 7.2 closes no descriptor that is taken out of a set until the guest runs, and their locks stay.
    if running.is_version(7) {
        fails(&daemon, "reopen --node disk0 --read-only off", "until the guest runs");
        running.executes("cont", json!({}));
    }
    works(&daemon, "reopen --node disk0 --read-only off");

    assert_eq!(status(&daemon, "disk0"), (vec![node("disk0-file", true, false)], vec![]));
}
