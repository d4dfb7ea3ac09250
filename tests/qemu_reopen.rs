//! `fdstash qemu` with a real QEMU and the real daemon, while a client of QEMU's NBD server writes and
//! reads the image and checks what it reads: whatever fails, the I/O goes on over a working set, and
//! what was written is there in the end.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, symlink},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use fdstash::{Access, Entry, Flags, Gift, blocking::Client};
use kit::{
    Attribute, Daemon, Image, ImageFile, Io, Mount, Qemu, Random, SOON, User, Written, gift,
    identity, is_root, name, pattern, seed, skipped, wait_until,
};
use rustix::{
    fs::OFlags,
    path::DecInt,
    process::{Signal, kill_process},
};
use serde_json::Value;
use tempfile::TempDir;

const NODE: &str = "disk0";

/// A daemon that keeps an image's files, and a QEMU that is to use them.
struct Vm {
    daemon: Daemon,
    qemu: Qemu,
    image: Image,
    _folder: TempDir,
}

impl Vm {
    /// None, where there is no QEMU.
    fn with(make: fn(&Path) -> Image) -> Option<Self> {
        Self::over(Daemon::spawn(), make)
    }

    fn over(daemon: Daemon, make: fn(&Path) -> Image) -> Option<Self> {
        let qemu = Qemu::start()?;
        let folder = Image::folder();
        let image = make(folder.path());
        // So that a daemon that runs as somebody else may open them too.
        image.set_mode(0o666);
        image.give(&mut daemon.client());
        Some(Self { daemon, qemu, image, _folder: folder })
    }

    /// The same, attached, exported, and with I/O under way.
    fn running(make: fn(&Path) -> Image) -> Option<(Self, Io)> {
        let vm = Self::with(make)?;
        let io = vm.begin();
        Some((vm, io))
    }

    fn begin(&self) -> Io {
        self.attach(&[]);
        self.write()
    }

    /// Has the image written and read.
    fn write(&self) -> Io {
        let socket = self.qemu.export(NODE, true).expect("QEMU exports it");
        Io::start(&socket, NODE, &self.image.written)
    }

    /// Has it read alone.
    fn read(&self) -> Io {
        let socket = self.qemu.export(NODE, false).expect("QEMU exports it");
        Io::start_reading(&socket, NODE, &self.image.written)
    }

    fn command(&self, verb: &str, args: &[&str]) -> Command {
        let mut command = self.daemon.command();
        command.args(["qemu", verb, "--node", NODE, "--qmp"]).arg(self.qemu.qmp()).args(args);
        command
    }

    fn run(&self, verb: &str, args: &[&str]) -> Output {
        self.command(verb, args).output().expect("the command can be started")
    }

    #[track_caller]
    fn works(&self, verb: &str, args: &[&str]) -> String {
        let output = self.run(verb, args);
        let sets = if output.status.success() { vec![] } else { self.qemu.fdsets() };
        assert!(
            output.status.success(),
            "{verb} {args:?}: {}\nQEMU has {sets:#?}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// What it says when it fails.
    #[track_caller]
    fn fails(&self, verb: &str, args: &[&str]) -> String {
        let output = self.run(verb, args);
        assert!(!output.status.success(), "{verb} {args:?} works: {}", text(&output.stdout));
        text(&output.stderr)
    }

    #[track_caller]
    fn attach(&self, more: &[&str]) {
        let files = self.image.arguments();
        let args: Vec<&str> =
            files.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.works("attach", &args);
    }

    /// Switches the host's cache, and looks at what QEMU has then.
    #[track_caller]
    fn switch(&self, direct: bool, more: &[&str]) {
        self.works("reopen", &[&["--direct", on_or_off(direct)], more].concat());
        let (is, keeps) = (self.is_direct(), self.keeps_direct());
        let changed = if more.contains(&"--chain") { is.len() } else { self.image.data_files() };
        let expected = vec![direct; changed];
        assert_eq!((&is[..changed], &keeps[..changed]), (&expected[..], &expected[..]));
    }

    /// The files of which QEMU has more than a copy, as it has of the descriptor file of a VMDK.
    fn data_files(&self) -> impl Iterator<Item = &ImageFile> {
        self.image.files.iter().filter(|file| file.format != Some("vmdk"))
    }

    /// Whether QEMU has each of these files open past the page cache, as the kernel says of all of its
    /// descriptors.
    #[track_caller]
    fn is_direct(&self) -> Vec<bool> {
        let is_direct = |file: &ImageFile| {
            let open = File::open(&file.path).expect("an image can be looked at");
            let flags = self.qemu.flags_of(identity(&open));
            assert!(!flags.is_empty(), "QEMU has {} open", file.entry);
            let direct = flags.iter().filter(|flags| flags.contains(OFlags::DIRECT)).count();
            assert!(direct == 0 || direct == flags.len(), "of {flags:?} some are direct");
            direct > 0
        };
        self.data_files().map(is_direct).collect()
    }

    fn entries(&self) -> Vec<Entry> {
        self.daemon.client().list(&pattern("*")).expect("a list")
    }

    /// Whether the stash keeps each of these files past the page cache.
    fn keeps_direct(&self) -> Vec<bool> {
        let entries = self.entries();
        let is_direct = |file: &ImageFile| {
            let entry = entries.iter().find(|entry| entry.name.as_str() == file.entry);
            entry.expect("the stash keeps it").flags.contains(Flags::DIRECT)
        };
        self.data_files().map(is_direct).collect()
    }

    /// What QEMU has: how each node is open, and how many descriptors it was sent.
    fn state(&self) -> (Vec<[Value; 3]>, usize) {
        let nodes = self.qemu.nodes().into_iter().filter_map(|name| self.qemu.node(&name));
        let nodes = nodes.map(|mut node| {
            [node["node-name"].take(), node["ro"].take(), node["cache"]["direct"].take()]
        });
        let sets = self.qemu.fdsets();
        let count = |set: &Value| set["fds"].as_array().map_or(0, Vec::len);
        (nodes.collect(), sets.iter().map(count).sum())
    }

    /// A reopen fails with these words, and is as if it had never been asked for.
    #[track_caller]
    fn refuses(&self, io: &Io, args: &[&str], words: &str) {
        let (entries, state) = (self.entries(), self.state());

        let said = self.fails("reopen", args);

        assert!(said.contains(words), "{words:?} is missing: {said}");
        assert_eq!(self.entries(), entries, "{said}");
        assert_eq!(self.state(), state, "{said}");
        io.goes_on_for(100);
    }

    /// Whether there are locks on the descriptions that the stash keeps.
    fn has_ghost_locks(&self) -> bool {
        let names: Vec<_> = self.image.files.iter().map(|file| name(file.entry)).collect();
        let copies = self.daemon.client().copy(&names).expect("copies of what is kept");
        copies.iter().any(|copy| {
            let info = format!("/proc/self/fdinfo/{}", DecInt::from_fd(&copy.fd).as_str());
            let info = fs::read_to_string(info).expect("the kernel tells of a descriptor");
            info.lines().any(|line| line.starts_with("lock:"))
        })
    }

    /// The I/O has seen no error, nothing is left in QEMU, nor locked, and the image has what was
    /// written.
    #[track_caller]
    fn ends_well(&self, io: Io) {
        self.end(io, |_| ());
    }

    #[track_caller]
    fn end(&self, io: Io, before_the_check: impl FnOnce(&Image)) {
        assert!(!self.has_ghost_locks());
        let ended = io.stops_without_an_error();
        self.qemu.end_export(NODE);
        self.works("detach", &[]);
        assert_eq!(self.qemu.nodes(), [""; 0]);
        assert_eq!(self.qemu.fdsets(), [Value::Null; 0]);
        before_the_check(&self.image);
        assert!(!self.has_ghost_locks() && self.image.can_be_opened_by_others());
        self.image.is_sound_and_has(&ended.written);
        let (operations, pause) = (ended.operations, ended.longest_pause);
        eprintln!("{operations} operations, longest pause {pause:?}");
    }
}

fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Two hundred times, each in the other mode.
fn reopens_two_hundred_times(make: fn(&Path) -> Image, more: &[&str]) {
    let Some((vm, io)) = Vm::running(make) else { return };

    for round in 0..200 {
        vm.switch(round % 2 == 0, more);
        io.goes_on_for(5);
    }

    vm.ends_well(io);
}

#[test]
fn a_raw_image_is_reopened_two_hundred_times_under_io() {
    reopens_two_hundred_times(Image::raw, &[]);
}

#[test]
fn a_chain_of_qcow2_images_is_reopened_two_hundred_times_under_io() {
    reopens_two_hundred_times(Image::qcow2, &["--chain"]);
}

#[test]
fn a_vmdk_image_of_two_extents_is_reopened_two_hundred_times_under_io() {
    reopens_two_hundred_times(Image::vmdk, &[]);
}

#[test]
fn what_is_as_asked_already_is_reopened_too() {
    for make in [Image::raw, Image::qcow2, Image::vmdk] {
        let Some((vm, io)) = Vm::running(make) else { return };

        for direct in [false, true, true, false, false, true, false] {
            vm.switch(direct, &["--chain"]);
            io.goes_on_for(20);
        }

        vm.ends_well(io);
    }
}

#[test]
fn an_image_goes_read_only_and_back_under_reading() {
    for make in [Image::raw, Image::qcow2, Image::vmdk] {
        let Some(vm) = Vm::with(make) else { return };
        vm.attach(&[]);
        let reading = vm.read();

        for round in 0..6 {
            let read_only = round % 2 == 0;
            vm.works("reopen", &["--read-only", on_or_off(read_only)]);
            assert_eq!(vm.qemu.node(NODE).unwrap()["ro"], read_only);
            reading.goes_on_for(20);
        }

        let read = reading.stops_without_an_error();
        vm.qemu.end_export(NODE);
        let socket = vm.qemu.export(NODE, true).unwrap();
        let writing = Io::start(&socket, NODE, &read.written);
        writing.goes_on_for(100);
        vm.ends_well(writing);
    }
}

#[test]
fn a_file_system_without_o_direct_leaves_all_extents_as_they_are() {
    let Some(vm) = Vm::with(Image::vmdk) else { return };
    let memory = vm.daemon.path("memory");
    fs::create_dir(&memory).unwrap();
    let Some(_mount) = Mount::without_direct(&memory) else {
        return skipped("a mount takes root, and the right to mount");
    };
    move_below(&memory, &vm.image.files[2].path);
    vm.image.give(&mut vm.daemon.client());
    let io = vm.begin();

    vm.refuses(&io, &["--direct", "on"], "EINVAL");

    vm.ends_well(io);
}

/// Moves a file to another file system, and has its old path lead there.
fn move_below(folder: &Path, path: &Path) {
    let there = folder.join(path.file_name().expect("a file has a name"));
    fs::copy(path, &there).expect("a file can be copied");
    fs::remove_file(path).expect("a file can be removed");
    symlink(there, path).expect("a link can be made");
}

#[test]
fn whichever_file_of_an_image_may_not_be_opened_all_are_as_they_were() {
    if !is_root() {
        return skipped("to run the daemon as somebody else takes root");
    }
    // Root would be allowed whatever the mode says.
    for make in [Image::qcow2, Image::vmdk] {
        let daemon = Daemon::builder().user(User::new(65534)).spawn();
        let Some(vm) = Vm::over(daemon, make) else { return };
        vm.image.set_mode(0o666);
        let io = vm.begin();

        for file in vm.data_files() {
            vm.image.set_mode(0o666);
            vm.switch(false, &["--chain"]);
            fs::set_permissions(&file.path, permissions(0o000)).unwrap();
            vm.refuses(&io, &["--direct", "on", "--chain"], "EACCES");
        }
        vm.image.set_mode(0o666);
        vm.switch(true, &["--chain"]);

        vm.ends_well(io);
    }
}

fn permissions(mode: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}

#[test]
fn an_immutable_file_is_not_reopened_for_writing() {
    let Some(vm) = Vm::with(Image::raw) else { return };
    vm.attach(&[]);
    // Writing fails from here on, through whatever was opened before.
    let Some(immutable) = Attribute::set(vm.image.path(), 'i') else {
        return skipped("chattr +i takes root, and a file system that has it");
    };
    let reading = vm.read();

    vm.refuses(&reading, &["--direct", "on"], "EPERM");

    drop(immutable);
    vm.switch(true, &[]);
    vm.ends_well(reading);
}

/// Gives an image read-only that may be reopened for writing, as long as nothing stands against it.
fn give_for_reading(vm: &Vm) {
    let file = File::open(vm.image.path()).expect("an image can be opened");
    let wider = Gift { may_reopen: Some(Access::ReadWrite), ..gift("vm7-disk0", file) };
    vm.daemon.client().give(&[Gift { fresh: true, ..wider }]).expect("it can be given");
}

#[test]
fn an_image_on_a_read_only_mount_is_not_reopened_for_writing() {
    let Some(vm) = Vm::with(Image::raw) else { return };
    let folder = vm.image.path().parent().unwrap();
    let Some(mount) = Mount::over_itself(folder) else {
        return skipped("a mount takes root, and the right to mount");
    };
    give_for_reading(&vm);
    assert!(mount.make_read_only());
    vm.attach(&["--read-only", "on"]);
    let reading = vm.read();

    vm.refuses(&reading, &["--read-only", "off"], "EROFS");
    vm.switch(true, &[]);

    drop(mount);
    vm.ends_well(reading);
}

#[test]
fn a_program_that_runs_is_not_reopened_for_writing() {
    let Some(mut vm) = Vm::with(Image::raw) else { return };
    // An image that is a program too.
    fs::copy("/bin/sleep", vm.image.path()).unwrap();
    fs::set_permissions(vm.image.path(), permissions(0o755)).unwrap();
    vm.image.written = Written::default();
    give_for_reading(&vm);
    let mut running = started(vm.image.path());
    vm.attach(&["--read-only", "on"]);
    let entries = vm.entries();

    let said = vm.fails("reopen", &["--read-only", "off"]);

    assert!(said.contains("ETXTBSY"), "{said}");
    assert_eq!(vm.entries(), entries);
    assert_eq!(vm.qemu.node(NODE).unwrap()["ro"], true);
    running.kill().unwrap();
    running.wait().unwrap();
    vm.works("reopen", &["--read-only", "off"]);
    vm.works("detach", &[]);
    assert!(!vm.has_ghost_locks());
}

/// Starts a program that was just copied: not while a process that another test is just starting still
/// has what the copy was written by.
fn started(path: &Path) -> Child {
    let mut started = None;
    wait_until(SOON, || {
        started = Command::new(path).arg("60").spawn().ok();
        started.is_some()
    });
    started.expect("it was waited for")
}

#[test]
fn a_qemu_without_a_free_descriptor_goes_on_with_what_it_has() {
    let Some((vm, io)) = Vm::running(Image::qcow2) else { return };

    vm.qemu.exhaust_descriptors();
    vm.refuses(&io, &["--direct", "on", "--chain"], "No file descriptor supplied");

    vm.qemu.restore_descriptors();
    vm.switch(true, &["--chain"]);
    vm.ends_well(io);
}

#[test]
fn a_daemon_without_a_free_descriptor_refuses() {
    let daemon = Daemon::builder().open_files(64).spawn();
    let Some(vm) = Vm::over(daemon, Image::qcow2) else { return };
    let io = vm.begin();
    // Connections, until there is room for that of the command, but for no more files.
    let mut clients = Vec::new();
    while let Some(client) = admitted(&vm.daemon) {
        clients.push(client);
    }
    clients.truncate(clients.len() - 3);
    wait_until(SOON, || admitted(&vm.daemon).is_some());

    vm.refuses(&io, &["--direct", "on", "--chain"], "descriptors");

    drop(clients);
    wait_until(SOON, || vm.run("reopen", &["--direct", "on", "--chain"]).status.success());
    vm.ends_well(io);
}

/// A client, if the daemon has room for it.
fn admitted(daemon: &Daemon) -> Option<Client> {
    let mut client = Client::connect_to(daemon.socket()).ok()?;
    client.statistics().is_ok().then_some(client)
}

#[test]
fn an_entry_that_has_another_file_now_is_not_taken_for_it() {
    let Some((vm, io)) = Vm::running(Image::qcow2) else { return };
    let other = vm.image.path().with_extension("other");
    fs::copy(vm.image.path(), &other).unwrap();
    let file = File::options().read(true).write(true).open(other).unwrap();
    vm.daemon.client().give(&[gift("vm7-disk0", file)]).unwrap();

    vm.refuses(&io, &["--direct", "on"], "has another file");

    vm.image.give(&mut vm.daemon.client());
    vm.switch(true, &["--chain"]);
    vm.ends_well(io);
}

#[test]
fn an_entry_that_is_gone_is_not_reopened() {
    let Some((vm, io)) = Vm::running(Image::vmdk) else { return };
    vm.daemon.client().close(&[name("vm7-ext2")]).unwrap();

    vm.refuses(&io, &["--direct", "on"], "vm7-ext2");

    vm.image.give(&mut vm.daemon.client());
    vm.switch(true, &[]);
    vm.ends_well(io);
}

#[test]
fn an_attach_that_fails_leaves_nothing_behind() {
    let Some(vm) = Vm::with(Image::qcow2) else { return };
    let entries = vm.entries();

    // The backing file is named by nobody; is no qcow2 image; is not there; is no file.
    let top = ["--image", "qcow2=vm7-disk0"];
    for (more, words) in [
        (&[][..], "backing file"),
        (&["--image", "qcow2=vm7-root"], "vm7-root"),
        (&["--image", "qcow2=vm7-nothing"], "vm7-nothing"),
        (&["--image", "qcow2=vm7-base", "--image", "raw=vm7-nothing"], "vm7-nothing"),
    ] {
        let said = vm.fails("attach", &[&top, more].concat());
        assert!(said.contains(words), "{words:?} is missing: {said}");
        assert_eq!((vm.qemu.nodes(), vm.qemu.fdsets()), (vec![], vec![]), "{said}");
        assert_eq!(vm.entries(), entries, "{said}");
    }
    let io = vm.begin();
    vm.ends_well(io);
}

#[test]
fn io_notices_what_it_has_not_written() {
    let Some((vm, io)) = Vm::running(Image::raw) else { return };
    let file = File::options().write(true).open(vm.image.path()).unwrap();

    // A block of a kind that it writes, but an earlier one.
    let mut block = vec![0; 4096];
    File::open(vm.image.path()).unwrap().read_exact_at(&mut block, 0).unwrap();
    io.goes_on_for(1000);
    wait_until(SOON, || {
        file.write_all_at(&block, 0).unwrap();
        io.errors() > 0
    });

    let ended = io.stop();
    assert!(ended.first_error.unwrap().contains("block 0 has generation"));
}

#[test]
fn an_entry_in_anothers_transaction_is_busy() {
    let Some((vm, io)) = Vm::running(Image::qcow2) else { return };
    let mut other = vm.daemon.client();
    let mut transaction = other.transaction().unwrap();
    transaction.close(&[name("vm7-root")]).unwrap();

    let said = vm.fails("reopen", &["--direct", "on", "--chain"]);

    assert!(said.contains("vm7-root") && said.contains("held by"), "{said}");
    io.goes_on_for(100);
    transaction.rollback();
    vm.switch(true, &["--chain"]);
    vm.ends_well(io);
}

#[test]
fn a_writer_keeps_the_image_from_being_made_read_only() {
    for make in [Image::raw, Image::qcow2, Image::vmdk] {
        let Some((vm, io)) = Vm::running(make) else { return };

        vm.refuses(&io, &["--read-only", "on"], "Read-only block node");
        vm.switch(true, &[]);

        vm.ends_well(io);
    }
}

#[test]
fn a_monitor_that_another_has_is_not_waited_for_without_end() {
    let Some((vm, io)) = Vm::running(Image::raw) else { return };
    let other = kit::Monitor::connect(&vm.qemu.qmp());

    vm.refuses(&io, &["--direct", "on", "--limit", "1"], "another");

    drop(other);
    vm.switch(true, &[]);
    vm.ends_well(io);
}

#[test]
fn a_daemon_that_dies_at_any_step_costs_no_io() {
    let plan = format!("{},150", seed());
    let daemon = Daemon::builder().crashing(plan).spawn();
    let Some(vm) = Vm::over(daemon, Image::qcow2) else { return };
    let before = vm.daemon.servers();
    let files = vm.image.arguments();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    while !went_over(&vm.run("attach", &files)) {
        assert_eq!((vm.qemu.nodes(), vm.qemu.fdsets()), (vec![], vec![]));
    }
    let io = vm.write();

    for round in 0..40 {
        // Done, in spite of it; or not, and then as if it had not been asked for.
        let direct = round % 2 == 0;
        let (was, kept) = (vm.is_direct(), vm.keeps_direct());
        let output = vm.run("reopen", &["--chain", "--direct", on_or_off(direct)]);
        let said = text(&output.stderr);
        assert_eq!(
            vm.is_direct(),
            if went_over(&output) { vec![direct; 3] } else { was },
            "{said}"
        );
        let keeps = if output.status.success() { vec![direct; 3] } else { kept };
        assert_eq!(vm.keeps_direct(), keeps, "{said}");
        io.goes_on_for(10);
    }

    let deaths = vm.daemon.servers() - before;
    assert!(deaths > 5, "the server has died {deaths} times only");
    vm.ends_well(io);
}

/// Whether QEMU has what it was to have; if the daemon died too often after that, the stash keeps the
/// files as they were, and the command says so.
fn went_over(output: &Output) -> bool {
    output.status.success() || text(&output.stderr).contains("QEMU has the new descriptors")
}

#[test]
fn a_command_that_is_killed_at_any_moment_costs_no_io() {
    let mut random = Random::new(seed());
    let Some((vm, io)) = Vm::running(Image::qcow2) else { return };
    let descriptors = vm.state().1;
    let mut done = 0;

    for round in 0..40 {
        let args = ["--chain", "--direct", on_or_off(round % 2 == 0)];
        let mut command = vm.command("reopen", &args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut command = command.spawn().unwrap();
        thread::sleep(Duration::from_micros(random.below(30_000) as u64));
        command.kill().unwrap();
        done += i32::from(command.wait().unwrap().success());
        io.goes_on_for(10);
    }

    assert!(done < 40, "none was killed");
    // Whatever was left over is gone with the next.
    vm.switch(true, &["--chain"]);
    vm.switch(false, &["--chain"]);
    assert_eq!(vm.state().1, descriptors);
    vm.ends_well(io);
}

#[test]
fn without_any_daemon_the_image_works_on() {
    let Some((mut vm, io)) = Vm::running(Image::raw) else { return };
    vm.switch(true, &[]);
    let state = vm.state();

    vm.daemon.kill();
    let said = vm.fails("reopen", &["--direct", "off"]);

    assert!(said.contains("could not connect") || said.contains("daemon"), "{said}");
    assert_eq!(vm.state(), state);
    io.goes_on_for(100);
    let ended = io.stops_without_an_error();
    vm.qemu.end_export(NODE);
    vm.works("detach", &[]);
    assert!(vm.image.can_be_opened_by_others());
    vm.image.is_sound_and_has(&ended.written);
}

#[test]
fn a_qemu_that_is_killed_is_started_again_on_what_the_stash_holds() {
    for make in [Image::raw, Image::qcow2, Image::vmdk] {
        let mut random = Random::new(seed());
        let Some(mut vm) = Vm::with(make) else { return };
        let mut written = vm.image.written.clone();
        for round in 0..3 {
            vm.attach(&["--direct", on_or_off(round % 2 == 0)]);
            let socket = vm.qemu.export(NODE, true).unwrap();
            written = written.found_after_a_crash(&socket, NODE).unwrap();
            let io = Io::start(&socket, NODE, &written);
            io.goes_on_for(100);

            let (pid, wait) = (vm.qemu.pid(), random.below(60) as u64);
            let killer = thread::spawn(move || {
                thread::sleep(Duration::from_millis(wait));
                kill_process(pid, Signal::KILL)
            });
            for direct in (0..).map(|round| round % 2 == 0) {
                if !vm.run("reopen", &["--direct", on_or_off(direct)]).status.success() {
                    break;
                }
            }
            killer.join().unwrap().unwrap();
            io.is_cut_off();
            let ended = io.stop();
            assert_eq!((ended.errors, &ended.first_error), (0, &None));
            written = ended.written;
            vm.qemu.kill();
            assert!(!vm.has_ghost_locks());
            vm.qemu = Qemu::start().unwrap();
        }
        vm.attach(&[]);
        let socket = vm.qemu.export(NODE, true).unwrap();
        let written = written.found_after_a_crash(&socket, NODE).unwrap();
        let io = Io::start(&socket, NODE, &written);
        vm.switch(true, &[]);
        io.goes_on_for(100);
        // What QEMU had no time to note down leaks, as after every crash of it, and harms nothing.
        vm.end(io, Image::free_leaks);
    }
}
