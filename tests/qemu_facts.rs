//! What QEMU does with descriptors that it is sent: the facts that `fdstash qemu` stands on, so that a
//! version of QEMU that changes one is noticed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use kit::{Image, Monitor, Qemu, identity, python};
use rustix::{
    fs::{Mode, OFlags, fcntl_getfl},
    path::DecInt,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A QEMU, one connection to its monitor, and a folder for images, where O_DIRECT works.
struct Bench {
    qemu: Qemu,
    monitor: Monitor,
    folder: TempDir,
}

/// None, where there is no QEMU.
fn bench() -> Option<Bench> {
    let qemu = Qemu::start()?;
    let monitor = Monitor::connect(&qemu.qmp());
    Some(Bench { qemu, monitor, folder: Image::folder() })
}

impl Bench {
    /// A raw image of a megabyte, every byte of it as said.
    fn image(&self, name: &str, byte: u8) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, vec![byte; 1 << 20]).expect("an image can be made");
        path
    }

    /// Sends a descriptor into a set; tells its number in QEMU.
    fn add(&mut self, set: u64, file: &File) -> i64 {
        let added = self.monitor.execute_with("add-fd", json!({"fdset-id": set}), file);
        added.expect("QEMU takes a descriptor")["fd"].as_i64().expect("it has a number")
    }

    /// A raw node over the file node of that set.
    fn attach(&mut self, node: &str, set: u64, file: Value) -> Result<Value, String> {
        let file = file_node(node, set, file);
        let read_only = file["read-only"] == true;
        let raw = json!({"driver": "raw", "node-name": node, "read-only": read_only, "file": file});
        self.monitor.execute("blockdev-add", raw)
    }

    /// An image of a format that takes no writers beside it.
    fn qcow2(&self) -> PathBuf {
        let path = self.folder.path().join("image.qcow2");
        let create = ["create", "-q", "-f", "qcow2"];
        let made = Command::new("qemu-img").args(create).arg(&path).arg("1M").status();
        assert!(made.is_ok_and(|status| status.success()), "qemu-img makes an image");
        path
    }

    /// A VMDK image, whose files are in the sets 1, 2 and 3.
    fn vmdk(&mut self) -> Image {
        let image = Image::vmdk(self.folder.path());
        for (set, file) in (1..).zip(&image.files) {
            self.add(set, &open(&file.path, false));
        }
        image
    }

    /// Attaches set 1 as such an image, and lets somebody write to it.
    fn use_as_qcow2(&mut self) {
        let file = file_node("disk0", 1, json!({}));
        let qcow2 = json!({"driver": "qcow2", "node-name": "disk0", "file": file});
        self.monitor.works("blockdev-add", qcow2);
        self.qemu.export("disk0", true).expect("QEMU exports it");
    }

    fn reopen(&mut self, nodes: &[Value]) -> Result<Value, String> {
        self.monitor.execute("blockdev-reopen", json!({"options": nodes}))
    }

    fn remove(&mut self, set: u64, fd: i64) {
        self.monitor.works("remove-fd", json!({"fdset-id": set, "fd": fd}));
    }

    /// What QEMU tells of a file node.
    fn file_of(&self, node: &str) -> Value {
        self.qemu.node(&format!("{node}-file")).unwrap_or_default()
    }

    /// Whether O_DIRECT is on, on all descriptors that QEMU has of a file.
    fn has_direct(&self, file: &File) -> Vec<bool> {
        let flags = self.qemu.flags_of(identity(file));
        flags.iter().map(|flags| flags.contains(OFlags::DIRECT)).collect()
    }
}

/// The options of a file node that is opened from a set, with some more.
fn file_node(node: &str, set: u64, more: Value) -> Value {
    let mut options = json!({
        "driver": "file",
        "node-name": format!("{node}-file"),
        "filename": format!("/dev/fdset/{set}"),
        "locking": "on",
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        options[key] = value.clone();
    }
    options
}

fn direct(on: bool) -> Value {
    json!({"cache": {"direct": on}})
}

fn open(path: &Path, direct: bool) -> File {
    open_for(path, OFlags::RDWR, direct)
}

fn open_to_read(path: &Path, direct: bool) -> File {
    open_for(path, OFlags::RDONLY, direct)
}

fn open_for(path: &Path, access: OFlags, direct: bool) -> File {
    let direct = if direct { OFlags::DIRECT } else { OFlags::empty() };
    let flags = access | direct | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).expect("an image can be opened").into()
}

#[test]
fn a_node_is_reopened_to_the_newest_fitting_descriptor_of_its_set() {
    let Some(mut bench) = bench() else { return };
    let image = bench.image("image", 1);
    let (plain, past_cache) = (open(&image, false), open(&image, true));
    let old = bench.add(1, &plain);
    bench.attach("disk0", 1, direct(false)).unwrap();
    assert!(bench.has_direct(&plain).iter().all(|direct| !direct));

    let new = bench.add(1, &past_cache);
    bench.reopen(&[file_node("disk0", 1, direct(true))]).unwrap();
    bench.remove(1, old);

    assert_eq!(bench.file_of("disk0")["cache"]["direct"], true);
    let now = bench.has_direct(&plain);
    assert!(!now.is_empty() && now.iter().all(|direct| *direct), "{now:?}");
    assert!(!fcntl_getfl(&plain).unwrap().contains(OFlags::DIRECT));
    // What the node uses is its own, and outlives what was sent.
    bench.remove(1, new);
    assert_eq!(bench.has_direct(&plain), [true]);
}

#[test]
fn a_read_only_node_that_is_reopened_as_it_was_misses_the_next_change() {
    let Some(mut bench) = bench() else { return };
    let image = bench.image("image", 1);
    let read_only = |direct: bool| json!({"read-only": true, "cache": {"direct": direct}});
    let mut old = bench.add(1, &open_to_read(&image, false));
    bench.attach("disk0", 1, read_only(false)).unwrap();
    // QEMU tells what it was asked for, whatever its descriptor is.
    for (direct, is) in [(true, true), (true, true), (false, true)] {
        let new = bench.add(1, &open_to_read(&image, direct));
        bench.reopen(&[file_node("disk0", 1, read_only(direct))]).unwrap();
        bench.remove(1, std::mem::replace(&mut old, new));

        assert_eq!(bench.file_of("disk0")["cache"]["direct"], direct);
        let has = bench.has_direct(&File::open(&image).unwrap());
        assert!(has.contains(&is), "{direct}: {has:?}");
    }
    bench.remove(1, old);

    assert_eq!(bench.has_direct(&File::open(&image).unwrap()), [true]);
}

#[test]
fn a_node_never_goes_to_another_set() {
    let Some(mut bench) = bench() else { return };
    let image = bench.image("image", 1);
    bench.add(1, &open(&image, false));
    bench.attach("disk0", 1, direct(false)).unwrap();

    bench.add(2, &open(&image, true));
    let refused = bench.reopen(&[file_node("disk0", 2, direct(true))]).unwrap_err();

    assert!(refused.contains("Cannot change the option 'filename'"), "{refused}");
    assert_eq!(bench.file_of("disk0")["cache"]["direct"], false);
}

#[test]
fn a_writable_node_wants_a_descriptor_for_both_and_a_read_only_node_one_for_reading() {
    let Some(mut bench) = bench() else { return };
    let image = bench.image("image", 1);
    bench.add(1, &File::open(&image).unwrap());
    bench.add(2, &open(&image, false));
    let writing = File::options().write(true).open(&image).unwrap();
    bench.add(3, &writing);

    let read_only = json!({"read-only": true});
    let on_reading = bench.attach("for-reading", 1, json!({})).unwrap_err();
    let on_both = bench.attach("for-both", 2, read_only.clone()).unwrap_err();
    let on_writing = bench.attach("for-writing", 3, json!({})).unwrap_err();

    for refused in [on_reading, on_both, on_writing] {
        let no_access = refused.contains("Permission denied") || refused.contains("matching flags");
        assert!(no_access, "{refused}");
    }
    bench.attach("disk0", 2, json!({})).unwrap();
    bench.attach("disk1", 1, json!({"read-only": true, "locking": "off"})).unwrap();
}

#[test]
fn a_set_can_have_a_descriptor_for_each_access() {
    let Some(mut bench) = bench() else { return };
    let image = bench.image("image", 1);
    let both = open(&image, false);
    bench.add(1, &both);
    bench.add(1, &File::open(&image).unwrap());
    bench.attach("disk0", 1, json!({"read-only": true})).unwrap();

    // Both layers, as a writable one does not stand on one that is not.
    let raw = |read_only: bool| {
        let raw = json!({"driver": "raw", "node-name": "disk0", "file": "disk0-file"});
        let mut raw = raw;
        raw["read-only"] = read_only.into();
        [file_node("disk0", 1, json!({"read-only": read_only})), raw]
    };
    bench.reopen(&raw(false)).unwrap();
    assert_eq!(bench.qemu.node("disk0").unwrap()["ro"], false);
    bench.reopen(&raw(true)).unwrap();

    assert_eq!(bench.qemu.node("disk0").unwrap()["ro"], true);
    assert_eq!(bench.file_of("disk0")["ro"], true);
}

#[test]
fn options_that_are_left_out_return_to_their_defaults() {
    let Some(mut bench) = bench() else { return };
    let image = bench.image("image", 1);
    bench.add(1, &open(&image, true));
    let options = json!({"cache": {"direct": true, "no-flush": true}, "detect-zeroes": "on"});
    bench.attach("disk0", 1, options).unwrap();
    let node = bench.file_of("disk0");
    assert_eq!((&node["cache"]["no-flush"], &node["detect_zeroes"]), (&json!(true), &json!("on")));

    bench.reopen(&[file_node("disk0", 1, direct(true))]).unwrap();

    let node = bench.file_of("disk0");
    assert_eq!(node["cache"], json!({"direct": true, "no-flush": false, "writeback": true}));
    assert_eq!(node["detect_zeroes"], "off");
}

#[test]
fn a_reopen_must_name_the_file_again() {
    let Some(mut bench) = bench() else { return };
    let image = bench.image("image", 1);
    bench.add(1, &open(&image, false));
    bench.attach("disk0", 1, direct(false)).unwrap();

    let mut options = file_node("disk0", 1, direct(false));
    options.as_object_mut().unwrap().remove("filename");
    let refused = bench.reopen(&[options]).unwrap_err();

    assert!(refused.contains("filename"), "{refused}");
}

#[test]
fn a_descriptor_beside_an_unrelated_command_waits_for_the_next_that_wants_one() {
    let Some(mut bench) = bench() else { return };
    let (unrelated, meant) = (bench.image("unrelated", 1), bench.image("meant", 2));
    let unrelated = open(&unrelated, false);
    bench.monitor.execute_with("query-status", json!({}), &unrelated).unwrap();

    let meant = open(&meant, false);
    let taken = bench.monitor.execute("add-fd", json!({"fdset-id": 1}));

    assert!(taken.is_ok(), "{taken:?}");
    assert_eq!(bench.qemu.flags_of(identity(&unrelated)).len(), 1);
    let missing = bench.monitor.execute("add-fd", json!({"fdset-id": 2})).unwrap_err();
    assert!(missing.contains("No file descriptor supplied"), "{missing}");
    bench.add(3, &meant);
    assert_eq!(bench.qemu.flags_of(identity(&meant)).len(), 1);
}

#[test]
fn a_descriptor_that_waits_gives_way_to_one_that_comes_later() {
    let Some(mut bench) = bench() else { return };
    let (unrelated, meant) = (bench.image("unrelated", 1), bench.image("meant", 2));
    let (unrelated, meant) = (open(&unrelated, false), open(&meant, false));
    bench.monitor.execute_with("query-status", json!({}), &unrelated).unwrap();

    bench.add(1, &meant);

    assert_eq!(bench.qemu.flags_of(identity(&meant)).len(), 1);
    assert!(bench.qemu.flags_of(identity(&unrelated)).is_empty());
}

#[test]
fn descriptors_that_no_node_uses_may_be_gone_with_the_last_monitor_connection() {
    let Some(mut bench) = bench() else { return };
    let (used, unused) = (bench.image("used", 1), bench.image("unused", 2));
    let (used, unused) = (open(&used, false), open(&unused, false));
    bench.add(1, &used);
    bench.attach("disk0", 1, json!({})).unwrap();
    bench.add(2, &unused);
    assert_eq!(bench.qemu.flags_of(identity(&unused)).len(), 1);

    let Bench { qemu, monitor, folder: _folder } = bench;
    drop(monitor);

    if qemu.version() < (9, 1) {
        kit::wait_until(kit::SOON, || qemu.flags_of(identity(&unused)).is_empty());
    } else {
        // Whoever sent it removes it, or it stays: a further connection has come and gone by now.
        qemu.works("query-status", json!({}));
        assert_eq!(qemu.flags_of(identity(&unused)).len(), 1);
    }
    assert!(!qemu.flags_of(identity(&used)).is_empty());
    assert_eq!(qemu.node("disk0-file").unwrap()["file"], "/dev/fdset/1");
}

#[test]
fn what_stands_beside_a_descriptor_is_told_to_whoever_asks_later() {
    let Some(mut bench) = bench() else { return };
    let image = bench.image("image", 1);
    let opaque = "x".repeat(100_000);
    let arguments = json!({"fdset-id": 7, "opaque": opaque});
    bench.monitor.execute_with("add-fd", arguments, open(&image, false)).unwrap();
    bench.attach("disk0", 7, json!({})).unwrap();
    drop(bench.monitor);

    let sets = bench.qemu.fdsets();

    assert_eq!(sets.len(), 1);
    assert_eq!((&sets[0]["fdset-id"], &sets[0]["fds"][0]["opaque"]), (&json!(7), &json!(opaque)));
}

#[test]
fn the_backing_file_of_an_image_from_a_set_must_be_named() {
    let Some(mut bench) = bench() else { return };
    let image = Image::qcow2(bench.folder.path());
    let read_only = File::open(&image.files[1].path).unwrap();
    bench.add(1, &read_only);
    let mut options = json!({
        "driver": "qcow2",
        "node-name": "disk0",
        "read-only": true,
        "file": file_node("disk0", 1, json!({"read-only": true})),
    });

    // It looks for root.raw in the folder that it thinks the image is in.
    let refused = bench.monitor.execute("blockdev-add", options.clone()).unwrap_err();

    assert!(refused.contains("root.raw") || refused.contains("backing file"), "{refused}");
    bench.add(2, &File::open(&image.files[2].path).unwrap());
    options["backing"] = json!({
        "driver": "raw",
        "read-only": true,
        "file": file_node("root", 2, json!({"read-only": true})),
    });
    bench.monitor.works("blockdev-add", options);
}

#[test]
fn several_nodes_are_reopened_by_one_command_or_none() {
    let Some(mut bench) = bench() else { return };
    let images = [bench.image("one", 1), bench.image("two", 2)];
    let sets = [("disk1", 1), ("disk2", 2)];
    for ((node, set), image) in sets.into_iter().zip(&images) {
        bench.add(set, &open(image, false));
        bench.attach(node, set, direct(false)).unwrap();
    }
    let all = sets.map(|(node, set)| file_node(node, set, direct(true)));

    // A set without a descriptor that fits: on the first the same is fine.
    bench.add(1, &open(&images[0], true));
    let fits_not = json!({"cache": {"direct": true}, "read-only": true});
    let failed = bench.reopen(&[all[0].clone(), file_node("disk2", 2, fits_not)]).unwrap_err();

    assert!(!failed.is_empty());
    for (node, _) in sets {
        assert_eq!(bench.file_of(node)["cache"]["direct"], false, "{failed}");
    }
    bench.add(2, &open(&images[1], true));
    bench.reopen(&all).unwrap();
    for (node, _) in sets {
        assert_eq!(bench.file_of(node)["cache"]["direct"], true);
    }
}

#[test]
fn a_descriptor_without_o_direct_is_refused_or_changed_for_whoever_sent_it() {
    let Some(mut bench) = bench() else { return };
    let image = bench.image("image", 1);
    let lent = open(&image, false);
    bench.add(1, &lent);

    let attached = bench.attach("disk0", 1, direct(true));

    if bench.qemu.version() >= (9, 1) {
        let refused = attached.unwrap_err();
        assert!(refused.contains("matching flags=0x4002"), "{refused}");
        assert!(!fcntl_getfl(&lent).unwrap().contains(OFlags::DIRECT));
    } else {
        attached.unwrap();
        assert!(fcntl_getfl(&lent).unwrap().contains(OFlags::DIRECT));
    }
}

#[test]
fn the_name_of_getfd_is_the_monitors_own_and_begins_with_no_digit() {
    let Some(mut bench) = bench() else { return };
    let image = bench.image("image", 1);
    let sent = open(&image, false);
    let getfd = |name: &str| json!({"fdname": name});

    let digit = bench.monitor.execute_with("getfd", getfd("7disk"), &sent).unwrap_err();
    assert!(digit.contains("digit"), "{digit}");
    assert!(bench.qemu.flags_of(identity(&sent)).is_empty());
    bench.monitor.execute_with("getfd", getfd("disk"), &sent).unwrap();
    let elsewhere = bench.qemu.execute("closefd", getfd("disk")).unwrap_err();
    assert!(elsewhere.contains("not found"), "{elsewhere}");
    bench.monitor.works("closefd", getfd("disk"));
    assert!(bench.qemu.flags_of(identity(&sent)).is_empty());
}

#[test]
fn a_lock_outlives_qemu_while_somebody_holds_a_duplicate() {
    let Some(mut bench) = bench() else { return };
    let path = bench.qcow2();
    let kept = open(&path, false);
    bench.add(1, &kept);
    bench.use_as_qcow2();
    assert!(!opens(&path));

    bench.qemu.kill();

    assert!(has_locks(&kept) && !opens(&path));
    // The holder of a duplicate frees it, without closing it.
    unlock(&kept);
    assert!(!has_locks(&kept) && opens(&path));
}

#[test]
fn a_description_of_qemus_own_leaves_no_lock_behind() {
    let Some(mut bench) = bench() else { return };
    let path = bench.qcow2();
    let kept = open(&path, false);
    bench.add(1, &open(&path, false));
    bench.use_as_qcow2();
    assert!(!opens(&path) && !has_locks(&kept));

    bench.qemu.kill();

    kit::wait_until(kit::SOON, || opens(&path));
}

#[test]
fn the_extents_of_a_vmdk_are_found_by_names_below_dev_fdset() {
    let Some(mut bench) = bench() else { return };
    let image = bench.vmdk();
    let vmdk =
        json!({"driver": "vmdk", "node-name": "disk0", "file": file_node("disk0", 1, json!({}))});

    // By the names in its descriptor file, which are relative to where that lies, it finds none.
    let refused = bench.monitor.execute("blockdev-add", vmdk.clone()).unwrap_err();
    assert!(refused.contains("disk-f001.vmdk") || refused.contains("path"), "{refused}");

    name_sets_in(&image);
    bench.monitor.works("blockdev-add", vmdk);
}

#[test]
fn the_extents_of_a_vmdk_get_names_from_drive_add_alone_and_without_cannot_be_reopened() {
    let Some(mut bench) = bench() else { return };
    let image = bench.vmdk();
    name_sets_in(&image);
    let vmdk =
        json!({"driver": "vmdk", "node-name": "disk0", "file": file_node("disk0", 1, json!({}))});
    bench.monitor.works("blockdev-add", vmdk);
    let nodes = bench.qemu.nodes();
    let unnamed = nodes.iter().find(|name| name.starts_with('#')).unwrap();

    let mut options = file_node("", 2, direct(false));
    options["node-name"] = unnamed.as_str().into();
    options.as_object_mut().unwrap().remove("locking");
    let refused = bench.reopen(&[options]).unwrap_err();

    assert!(refused.contains("node-name"), "{refused}");
    bench.monitor.works("blockdev-del", json!({"node-name": "disk0"}));
    let line = "drive_add -n 0 driver=vmdk,node-name=disk0,file.driver=file,\
                file.filename=/dev/fdset/1,file.node-name=disk0-file,\
                extents.0.node-name=extent1-file,extents.1.node-name=extent2-file";
    let said = bench.monitor.works("human-monitor-command", json!({"command-line": line}));
    assert_eq!(said, "");
    bench.add(2, &open(&image.files[1].path, true));
    let mut named = file_node("extent1", 2, direct(true));
    named.as_object_mut().unwrap().remove("locking");
    bench.reopen(&[named]).unwrap();
    assert_eq!(bench.file_of("extent1")["cache"]["direct"], true);
    assert_eq!(bench.file_of("extent2")["cache"]["direct"], false);
}

/// Has the descriptor file of a VMDK name the sets 2 and 3 for its extents.
fn name_sets_in(image: &Image) {
    let text = fs::read_to_string(image.path()).expect("it is a text");
    let text = text.replace("disk-f001.vmdk", "/dev/fdset/2");
    let text = text.replace("disk-f002.vmdk", "/dev/fdset/3");
    fs::write(image.path(), text).expect("it can be written");
}

/// Whether somebody else can open an image for writing, with QEMU's locks.
fn opens(image: &Path) -> bool {
    let mut open = Command::new("qemu-io");
    open.args(["-f", "qcow2", "-c", "read 0 4k"]).arg(image);
    open.output().is_ok_and(|output| output.status.success())
}

/// Whether an open file description has locks.
fn has_locks(file: &File) -> bool {
    let info = format!("/proc/self/fdinfo/{}", DecInt::from_fd(file).as_str());
    let info = fs::read_to_string(info).expect("the kernel tells of a descriptor");
    info.lines().any(|line| line.starts_with("lock:"))
}

/// Frees all locks of an open file description.
fn unlock(file: &File) {
    const FREE: &str = "
import fcntl, struct
# F_OFD_SETLK of a struct flock: F_UNLCK, from the beginning, over everything, of nobody.
fcntl.fcntl(0, 37, struct.pack('hhqqi4x', fcntl.F_UNLCK, 0, 0, 0, 0))
";
    let stdin = Stdio::from(file.try_clone().expect("a descriptor can be shared"));
    let freed = python().args(["-c", FREE]).stdin(stdin).status();
    assert!(freed.is_ok_and(|status| status.success()), "locks can be freed");
}
