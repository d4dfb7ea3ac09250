//! A short soak, whose verdict is the program's own: `make soak` has a day's worth of it.

use std::process::{Command, Stdio};

use kit::program;

/// A leak of some bytes a call is more by then than what allocators and threads make of differences.
const CALLS: &str = "100000";

#[test]
fn nothing_in_the_daemon_grows_with_the_calls_it_has_served() {
    let soak = Command::new(program("examples/soak")).arg(CALLS).stderr(Stdio::piped()).output();

    let soak = soak.expect("it can be started");
    let said = [soak.stdout, soak.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(soak.status.success(), "{}\n{}", said[0], said[1]);
    assert!(said[0].contains("nothing has grown since"), "{}", said[0]);
}
