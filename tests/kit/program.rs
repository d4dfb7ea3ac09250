//! The programs that the tests run.

use std::{
    env,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A program of this workspace, built: `fdstashd`, `fdstash` or `examples/vmm`.
///
/// # Panics
///
/// If it is not.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let path = profile().join(name);
    assert!(
        path.exists(),
        "{} is not built: run `make test`, or before the tests \
         `cargo build --workspace --lib --bins --examples`",
        path.display()
    );
    path
}

/// The daemon that dies at steps, built.
///
/// # Panics
///
/// If it is not.
#[must_use]
pub fn program_with_steps() -> PathBuf {
    let profile = profile();
    let target = profile.with_file_name("crash-steps");
    let path = target.join(profile.file_name().unwrap_or_default()).join("fdstashd");
    assert!(
        path.exists(),
        "{} is not built: run `make test`, or before the tests \
         `cargo build --package fdstashd --features crash-steps --target-dir {}`",
        path.display(),
        target.display()
    );
    path
}

/// A varlinkctl that passes descriptors on: the one that `tests/varlinkctl` has got, or this machine's.
#[must_use]
pub fn varlinkctl() -> Option<PathBuf> {
    let got = profile().with_file_name("varlinkctl").join("varlinkctl");
    if got.exists() {
        return Some(got);
    }
    let said = Command::new("varlinkctl").arg("--version").output().ok()?.stdout;
    let said = String::from_utf8(said).ok()?;
    let version: u32 = said.split_whitespace().nth(1)?.parse().ok()?;
    (version >= 258).then(|| PathBuf::from("varlinkctl"))
}

/// Puts a copy of a program at a path, in one step, in the place of what is there.
///
/// # Panics
///
/// If that cannot be.
pub fn install_program(built: &Path, at: &Path) {
    let beside = at.with_extension("new");
    // By another process: one that another test starts just now must not have it open for writing,
    // or it could not be started.
    let copied = Command::new("cp").arg(built).arg(&beside).status();
    assert!(copied.is_ok_and(|status| status.success()), "a program can be copied");
    fs::rename(&beside, at).expect("and put in another's place");
}

/// Puts a script that can be run at a path, in one step, in the place of what is there.
///
/// # Panics
///
/// If that cannot be.
pub fn install_script(script: &str, at: &Path) {
    let text = at.with_extension("text");
    fs::write(&text, script).expect("a file can be written");
    fs::set_permissions(&text, Permissions::from_mode(0o755)).expect("it is ours");
    install_program(&text, at);
}

/// The folder of the profile that the test is built with.
fn profile() -> PathBuf {
    let here = env::current_exe().expect("a test knows where it is");
    // A test is in target/<profile>/deps.
    here.ancestors().nth(2).expect("a test is in a folder of the target").to_owned()
}
