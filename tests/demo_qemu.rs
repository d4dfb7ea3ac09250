//! The demonstration with a running QEMU, to its end, and ended by a signal.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
};

use kit::{Qemu, program};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A folder for all that it makes, on a file system with O_DIRECT, and whose path leaves room for a
/// socket's name.
fn temporary() -> TempDir {
    tempfile::Builder::new().prefix("demo-").tempdir_in("/var/tmp").expect("a folder can be made")
}

fn demonstration(folder: &Path, switches: u32) -> Command {
    let mut command = Command::new(program("examples/qemu"));
    command.arg(switches.to_string()).env("TMPDIR", folder);
    command
}

#[test]
fn a_running_qemu_keeps_its_disks_whoever_dies() {
    let Some(_there_is_one) = Qemu::start() else { return };
    let folder = temporary();

    let output = demonstration(folder.path(), 6).output().unwrap();

    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    for sentence in [
        "12 switches done",
        "The switch is refused",
        "The stash is as it was",
        "deaths",
        "Each had its disks again",
        "I/O operations, 0 errors",
        "disk0: qemu-img check finds no error",
        "disk1: qemu-img check finds no error",
    ] {
        assert!(said.contains(sentence), "{sentence:?} is missing:\n{said}{complained}");
    }
    assert_eq!(left_in(folder.path()), [""; 0]);
}

#[test]
fn a_demonstration_that_is_ended_by_a_signal_leaves_nothing_behind() {
    let Some(_there_is_one) = Qemu::start() else { return };
    for (signal, step) in [(Signal::INT, "1."), (Signal::TERM, "5."), (Signal::HUP, "8.")] {
        let folder = temporary();
        let switches = if step == "8." { 2 } else { 100_000 };
        let mut command = demonstration(folder.path(), switches);
        let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with(step)), "{step} is a step");

        kill_process(Pid::from_child(&running), signal).unwrap();

        lines.for_each(drop);
        let ended = running.wait().unwrap();
        let mut complained = String::new();
        running.stderr.take().unwrap().read_to_string(&mut complained).unwrap();
        assert_eq!(ended.code(), Some(130), "{complained}");
        assert_eq!(complained, "qemu: interrupted\n");
        assert_eq!(left_in(folder.path()), [""; 0]);
    }
}

/// What there is in a folder, and which processes have been started with it.
fn left_in(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).expect("a folder can be read").flatten();
    let files = files.map(|file| file.path().display().to_string());
    let named = folder.to_str().expect("a plain path");
    let processes = fs::read_dir("/proc").expect("there is a /proc").flatten();
    let processes = processes.filter_map(|process| {
        let command = fs::read(process.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).into_owned();
        command.contains(named).then_some(command)
    });
    files.chain(processes).collect()
}
