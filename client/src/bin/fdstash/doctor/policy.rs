//! The policy's files, as the program beside this one reads them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{Access, access};

use super::Finding;

/// Where the system's daemon reads it.
const POLICY: &str = "/etc/fdstash/policy.toml";
const FOLDER: &str = "/etc/fdstash/policy.d";

/// Whether what the files say now would load.
pub(crate) fn look() -> Option<Finding> {
    let [file, folder] = [POLICY, FOLDER].map(Path::new);
    if !file.exists() && !folder.exists() {
        return None;
    }
    let is_shut = |path: &Path| path.exists() && access(path, Access::READ_OK).is_err();
    if is_shut(file) || is_shut(folder) {
        return Some(Finding::note(
            format!("{POLICY} cannot be read by this user"),
            "whether it would load was not looked at",
            "sudo fdstash doctor",
        ));
    }
    let program = program();
    let mut check = Command::new(&program);
    let output = check.args(["--check-policy", POLICY]).output().ok()?;
    if output.status.success() {
        return None;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("fdstashd: ").replace('\n', "; ");
    Some(Finding::wrong(
        format!("the policy does not load: {said}"),
        "the rules that were loaded before stay in force; a daemon that is started does not start so",
        format!(
            "mend the file, see `{} --check-policy`, and systemctl reload fdstashd",
            program.display()
        ),
    ))
}

/// The daemon's program: beside this one, as packages put it, or on the way of `$PATH`.
fn program() -> PathBuf {
    let beside = env::current_exe().ok().map(|own| own.with_file_name("fdstashd"));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "fdstashd".into())
}
