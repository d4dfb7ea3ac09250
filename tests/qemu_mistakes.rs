//! `fdstash qemu`, told the wrong thing: what would harm a disk is refused or warned of, and each message
//! says what to do.

use std::{
    fs::{self, File},
    process::Command,
};

use fdstash::{Gift, Share};
use kit::{Daemon, Qemu, User, gift, is_root, skipped};

/// A daemon with images in its folder and in its stash, and a QEMU.
struct Site {
    daemon: Daemon,
    qemu: Qemu,
}

impl Site {
    fn new() -> Option<Self> {
        let qemu = Qemu::start()?;
        Some(Self { daemon: Daemon::spawn(), qemu })
    }

    /// Makes an image by `qemu-img create` with a line of arguments, in which none has a blank.
    fn image(&self, line: &str) {
        let made = Command::new("qemu-img")
            .args(["create", "-q"])
            .args(line.split_whitespace())
            .current_dir(self.daemon.path(""))
            .status();
        assert!(made.expect("qemu-img can be run").success(), "{line}");
    }

    /// Gives files under their own names, with a description of the stash's own.
    fn give(&self, files: &[&str]) {
        for file in files {
            self.give_as(file, file);
        }
    }

    fn give_as(&self, name: &str, file: &str) {
        let mut give = self.daemon.command();
        let given = give.args(["give", name, "--fresh"]).arg(self.daemon.path(file)).status();
        assert!(given.expect("the command can be run").success(), "{file}");
    }

    /// `fdstash qemu` with a line of arguments, in which none has a blank: its exit code, and what it
    /// says.
    fn run(&self, line: &str) -> (Option<i32>, String, String) {
        let mut command = self.daemon.command();
        command.arg("qemu").args(line.split_whitespace()).arg("--qmp").arg(self.qemu.qmp());
        let output = command.output().expect("the command can be run");
        let text = |bytes| String::from_utf8(bytes).expect("it writes text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Tells what it writes.
    #[track_caller]
    fn works(&self, line: &str) -> String {
        let (code, said, complained) = self.run(line);
        assert_eq!((code, &*complained), (Some(0), ""), "{line}");
        said
    }

    #[track_caller]
    fn fails(&self, line: &str, complaint: &str) {
        let (code, _, complained) = self.run(line);
        assert_eq!(code, Some(1), "{line}: {complained}");
        assert!(complained.contains(complaint), "{line}: {complained}");
    }

    /// Fails, and QEMU has nothing of it.
    #[track_caller]
    fn leaves_nothing(&self, line: &str, complaint: &str) {
        self.fails(line, complaint);
        assert_eq!((self.qemu.nodes(), self.qemu.fdsets()), (vec![], vec![]), "{line}");
    }

    /// Works all the same, and is undone.
    #[track_caller]
    fn warns(&self, line: &str, warning: &str) {
        let (code, _, complained) = self.run(line);
        assert_eq!(code, Some(0), "{line}: {complained}");
        assert!(complained.contains(warning), "{line}: {complained}");
        self.works("detach --node d");
    }
}

#[test]
fn a_flat_extent_in_the_place_of_another_is_refused() {
    let Some(site) = Site::new() else { return };
    site.image("-f vmdk -o subformat=twoGbMaxExtentFlat a.vmdk 5G");
    site.image("-f vmdk -o subformat=monolithicFlat m.vmdk 1M");
    site.image("-f raw large.raw 3G");
    let files = ["a.vmdk", "a-f001.vmdk", "a-f002.vmdk", "a-f003.vmdk", "m.vmdk", "m-flat.vmdk"];
    site.give(&files);
    site.give(&["large.raw"]);
    // Of the same size as its neighbour, so that only its name tells that it is not the one.
    for (name, file) in [("e1", "a-f001.vmdk"), ("e2", "a-f002.vmdk"), ("e3", "a-f003.vmdk")] {
        site.give_as(name, file);
    }

    let attach = "attach --node d --image vmdk=a.vmdk";
    for (extents, complaint) in [
        ("--extent e2 --extent e1 --extent e3", "--extent a-f001.vmdk=NAME"),
        (
            "--extent a-f001.vmdk=e1 --extent a-f002.vmdk=e3 --extent a-f003.vmdk=e2",
            "of 1073741824 bytes, and the descriptor says that \"a-f002.vmdk\" has 2147483648",
        ),
        (
            "--extent a-f001.vmdk=large.raw --extent e2 --extent e3",
            "of 3221225472 bytes, and the descriptor says that \"a-f001.vmdk\" has 2147483648",
        ),
        (
            "--extent a-f001.vmdk=e1 --extent x.vmdk=e2 --extent e3",
            "no extent \"x.vmdk\"; it has [\"a-f001.vmdk\", \"a-f002.vmdk\", \"a-f003.vmdk\"]",
        ),
        ("--extent e1", "--extent FILENAME=NAME"),
    ] {
        site.leaves_nothing(&format!("{attach} {extents}"), complaint);
    }
    let by_name = "--extent a-f003.vmdk=e3 --extent a-f002.vmdk=e2 --extent a-f001.vmdk=e1";
    let mixed = "--extent a-f002.vmdk=e2 --extent e1 --extent e3";
    for extents in ["--extent e1 --extent e2 --extent e3", by_name, mixed] {
        site.works(&format!("{attach} {extents}"));
        site.works("detach --node d");
    }
    // An extent of this kind may end before its file does, but not after it.
    let attach = "attach --node d --image vmdk=m.vmdk --extent m-flat.vmdk=";
    site.works(&format!("{attach}large.raw"));
    site.works("detach --node d");
    let extent = File::options().write(true).open(site.daemon.path("m-flat.vmdk"));
    extent.expect("it is there").set_len(1 << 19).expect("it can be cut off");
    site.leaves_nothing(&format!("{attach}m-flat.vmdk"), "of 524288 bytes");
}

#[test]
fn a_sparse_extent_in_the_place_of_another_is_refused() {
    let Some(site) = Site::new() else { return };
    site.image("-f vmdk -o subformat=twoGbMaxExtentSparse s.vmdk 3G");
    site.image("-f raw plain.raw 2G");
    site.give(&["s.vmdk", "s-s001.vmdk", "s-s002.vmdk", "plain.raw"]);

    let attach = "attach --node d --image vmdk=s.vmdk";
    let swapped = "--extent s-s001.vmdk=s-s002.vmdk --extent s-s002.vmdk=s-s001.vmdk";
    for (extents, complaint) in [
        ("--extent s-s002.vmdk --extent s-s001.vmdk", "--extent s-s001.vmdk=NAME"),
        (swapped, "a sparse extent of 2097152 sectors, and the descriptor says that"),
        ("--extent s-s001.vmdk=plain.raw --extent s-s002.vmdk", "no sparse extent"),
    ] {
        site.leaves_nothing(&format!("{attach} {extents}"), complaint);
    }
    site.works(&format!("{attach} --extent s-s001.vmdk --extent s-s002.vmdk"));
}

#[test]
fn an_image_that_is_given_as_raw_is_warned_of() {
    let Some(site) = Site::new() else { return };
    site.image("-f qcow2 q.qcow2 1M");
    site.image("-f vmdk v.vmdk 1M");
    site.image("-f vmdk -o subformat=monolithicFlat m.vmdk 1M");
    site.image("-f raw plain.raw 1M");
    site.give(&["q.qcow2", "v.vmdk", "m.vmdk", "plain.raw"]);

    site.warns("attach --node d --image raw=q.qcow2", "say --image qcow2=q.qcow2");
    site.warns("attach --node d --image raw=q.qcow2 --direct on", "say --image qcow2=q.qcow2");
    site.warns("attach --node d --image raw=v.vmdk", "say --image vmdk=v.vmdk");
    site.warns("attach --node d --image raw=m.vmdk", "say --image vmdk=m.vmdk");
    site.works("attach --node d --image raw=plain.raw");
}

#[test]
fn another_backing_file_than_the_header_names_is_warned_of_and_another_format_refused() {
    let Some(site) = Site::new() else { return };
    site.image("-f raw root.raw 1M");
    site.image("-f qcow2 -b root.raw -F raw base.qcow2");
    site.image("-f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    site.image("-f qcow2 -o compat=0.10 -b base.qcow2 -F qcow2 old.qcow2");
    site.image("-f vmdk base.vmdk 1M");
    site.image("-f vmdk -b base.vmdk -F vmdk top.vmdk");
    fs::copy(site.daemon.path("base.vmdk"), site.daemon.path("other.vmdk")).expect("a copy");
    fs::copy(site.daemon.path("root.raw"), site.daemon.path("other.raw")).expect("a copy");
    site.give(&["root.raw", "base.qcow2", "top.qcow2", "old.qcow2", "other.raw"]);
    site.give(&["base.vmdk", "top.vmdk", "other.vmdk"]);

    let attach = "attach --node d";
    for top in ["top.qcow2", "old.qcow2"] {
        let line = format!("{attach} --image qcow2={top} --image raw=base.qcow2");
        site.leaves_nothing(&line, "say --image qcow2=base.qcow2, not raw");
    }
    let line = format!("{attach} --image qcow2=top.qcow2 --image qcow2=base.qcow2");
    site.warns(&format!("{line} --image raw=other.raw"), "its backing file is \"root.raw\"");
    site.warns(
        &format!("{attach} --image vmdk=top.vmdk --image vmdk=other.vmdk"),
        "its backing file is \"base.vmdk\"",
    );
    site.works(&format!("{line} --image raw=root.raw"));
}

#[test]
fn a_node_that_is_no_image_of_its_own_is_told_to_be_part_of_one() {
    let Some(site) = Site::new() else { return };
    site.image("-f raw base.raw 1M");
    site.image("-f qcow2 -b base.raw -F raw o.qcow2");
    site.give(&["base.raw", "o.qcow2"]);

    site.fails("detach --node o", "QEMU has no image \"o\" that was attached, and no other");
    site.works("attach --node o --image qcow2=o.qcow2 --image raw=base.raw");

    for part in ["o-file", "o-backing1", "o-backing1-file"] {
        for verb in ["reopen --direct on", "status", "detach"] {
            let told = format!("node {part:?} is a node of image \"o\": say --node o");
            site.fails(&format!("{verb} --node {part}"), &told);
        }
    }
    for verb in ["reopen --direct on", "status", "detach"] {
        site.fails(&format!("{verb} --node x"), "no image \"x\" that was attached; it has {\"o\"}");
    }
}

#[test]
fn a_name_that_is_taken_or_too_long_is_refused_before_anything_is_done() {
    let Some(site) = Site::new() else { return };
    site.image("-f raw a.raw 1M");
    site.give(&["a.raw"]);

    let long = "n".repeat(27);
    let told = "choose a --node of at most 26 characters";
    site.leaves_nothing(&format!("attach --node {long} --image raw=a.raw"), told);
    site.works("attach --node d --image raw=a.raw");
    let nodes = site.qemu.nodes();
    // Not even the entry is looked at.
    let told = "\"d\" is attached already: detach it, or choose another --node";
    site.fails("attach --node d --image raw=nothing", told);
    let told = "QEMU has a node \"d-file\" already, that was not attached";
    site.fails("attach --node d-file --image raw=a.raw", told);

    assert_eq!(site.qemu.nodes(), nodes);
}

#[test]
fn who_is_in_the_way_is_told_where_qemu_refuses() {
    let Some(site) = Site::new() else { return };
    site.image("-f qcow2 a.qcow2 1M");
    site.give_as("one", "a.qcow2");
    site.give_as("two", "a.qcow2");
    site.works("attach --node d --image qcow2=one --option locking=on");

    let again = "attach --node e --image qcow2=two --option locking=on";
    site.fails(again, "lslocks shows who");
    site.qemu.export("d", true).expect("QEMU exports it");
    site.fails("reopen --node d --read-only on", "remove that first");
    site.fails("detach --node d", "block-export-del");
    site.qemu.end_export("d");

    site.works("reopen --node d --read-only on");
    site.works("detach --node d");
}

#[test]
fn an_entry_that_is_only_read_or_that_is_gone_is_told_with_what_to_do() {
    let Some(site) = Site::new() else { return };
    site.image("-f raw a.raw 1M");
    let mut give = site.daemon.command();
    give.args(["give", "r", "--fresh", "--access", "read"]).arg(site.daemon.path("a.raw"));
    assert!(give.status().expect("the command can be run").success());

    let told = "kept for reading only: say --read-only on, or give it with --may-reopen read-write";
    site.leaves_nothing("attach --node d --image raw=r", told);
    site.works("attach --node d --image raw=r --read-only on");
    let mut close = site.daemon.command();
    assert!(close.args(["close", "r"]).status().expect("the command can be run").success());
    let again = "fdstash give r FILE";
    assert!(site.works("status --node d").contains(again));
    let told = "not reopened: QEMU goes on with the descriptors that it had; where the stash";
    site.fails("reopen --node d --direct on", told);
    site.give_as("r", "a.raw");

    site.works("reopen --node d --direct on");
}

#[test]
fn a_monitor_that_is_not_there_or_silent_is_told() {
    let Some(site) = Site::new() else { return };
    let said = |socket: &str| {
        let mut command = site.daemon.command();
        command.args(["qemu", "status", "--limit", "1", "--qmp", socket]);
        let output = command.output().expect("the command can be run");
        assert_eq!(output.status.code(), Some(1), "{socket}");
        String::from_utf8(output.stderr).expect("it writes text")
    };

    assert!(said("/nowhere/q").contains("-qmp unix:/nowhere/q,server=on,wait=off"));
    assert!(said("tcp:localhost:4444").contains("only Unix sockets"));
    let other = site.daemon.path("silent");
    let _listener = std::os::unix::net::UnixListener::bind(&other).expect("it can be bound");
    let silent = said(other.to_str().expect("a plain path"));
    assert!(silent.contains("most likely another client is connected"), "{silent}");
    assert!(!silent.contains("Resource temporarily"), "{silent}");
    assert_eq!(site.run("reopen --direct on").0, Some(2), "no image is named");
    let (code, _, complained) = site.run("reopen --node d --direct on --option aio=threads");
    assert_eq!(code, Some(2), "{complained}");
    assert!(complained.contains("needs --name to say which"), "{complained}");
}

#[test]
fn all_images_are_shown_with_their_own_nodes_and_what_is_usual_is_no_drift() {
    let Some(site) = Site::new() else { return };
    site.image("-f qcow2 q.qcow2 1M");
    site.image("-f vmdk -o subformat=monolithicFlat m.vmdk 1M");
    site.give(&["q.qcow2", "m.vmdk", "m-flat.vmdk"]);
    assert_eq!(site.works("status").lines().count(), 1, "there is none");

    let attached = site.works("attach --node q --image qcow2=q.qcow2");
    assert_eq!(attached, "attached: a device refers to it by drive=q\n");
    site.works("attach --node v --image vmdk=m.vmdk --extent m-flat.vmdk --read-only on");

    let told = site.works("status");
    let lines: Vec<Vec<&str>> =
        told.lines().map(|line| line.split_whitespace().collect()).collect();
    let firsts: Vec<&str> = lines[1..].iter().map(|line| line[0]).collect();
    assert_eq!(firsts, ["q", "q-file", "v", "v-extent1", "v-file"], "{told}");
    assert_eq!((lines[1][1], lines[3][4]), ("qcow2", "read-only"));
    assert_eq!((lines[5][2], lines[5].last()), ("m.vmdk", Some(&"1")), "{told}");
    assert_eq!(site.works("status --node q").lines().count(), 3);
    let same = site.works("reopen --node q --direct off");
    assert!(same.contains("nothing to do"), "{same}");
    assert!(site.works("reopen --node q --direct on").contains("reopened in"));
}

#[test]
fn what_a_stranger_gave_is_attached_only_when_that_is_said() {
    if !is_root() {
        return skipped("only root can be another user too");
    }
    let Some(site) = Site::new() else { return };
    site.image("-f raw disk 1M");
    let file = File::options().read(true).write(true).open(site.daemon.path("disk")).unwrap();
    let share = Share { uids: vec![0], gids: Vec::new() };
    let given = Gift { share, ..gift("disk", file) };
    site.daemon.client_as(&User::new(12345)).give(&[given]).unwrap();

    let (code, _, complained) = site.run("attach --node disk0 --image raw=disk");

    assert_eq!(code, Some(1));
    assert!(complained.contains("--trust 12345"), "{complained}");
    site.works("attach --node disk0 --image raw=disk --trust 12345");
}
