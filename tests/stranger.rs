//! A client that has never seen this project's code: Python's standard library and the interface's
//! text are all it stands on.

use kit::{Daemon, python};

#[test]
fn a_client_of_another_language_does_all_that_the_interface_says() {
    let daemon = Daemon::spawn();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/stranger.py");

    let output = python().arg(script).arg(daemon.socket()).output().unwrap();

    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    assert!(said.ends_with("all is as the interface says\n"), "{said}");
}
