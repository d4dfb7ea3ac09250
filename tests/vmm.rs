//! The example of a VMM whose disk never goes away, run to its end.

use std::process::Command;

use kit::{program, skipped};
use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};

#[test]
fn a_vmm_never_loses_its_disk_whoever_dies() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return skipped("there is no qemu-img to make and compare an image with");
    }
    let folder = tempfile::tempdir().unwrap();
    // Asked before: an EINVAL of the guest's I/O is just what must not happen.
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::DIRECT;
    let direct = open(folder.path().join("direct"), flags, Mode::RUSR);
    if direct.is_err_and(|error| error == Errno::INVAL) {
        return skipped("the file system of the temporary folder has no O_DIRECT");
    }

    let output = Command::new(program("examples/vmm"))
        .arg("--fdstashd")
        .arg(program("fdstashd"))
        .arg("--dir")
        .arg(folder.path())
        .args(["--switches", "6"])
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    for sentence in [
        "6 switches done, each of all files at once",
        "The switch is refused",
        "The stash is as it was",
        "6 switches done, over",
        "every block was as it was",
        "20 switches more, without a path",
        "I/O operations, 0 errors",
        "No errors were found",
        "Images are identical",
        "The stash has 6 files",
    ] {
        assert!(said.contains(sentence), "{sentence:?} is missing:\n{said}{complained}");
    }
}
