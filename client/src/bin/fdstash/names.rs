//! Users and groups by their names, where this machine knows them.

use std::{cell::RefCell, collections::BTreeMap, process::Command};

use anyhow::{Context, bail};

use crate::words::plain;

/// The exit code by which getent(1) tells that there is no such key.
const NOT_KNOWN: i32 = 2;

thread_local! {
    /// The names that have been looked up, by database and number.
    static NAMES: RefCell<BTreeMap<(&'static str, u32), Option<String>>> = RefCell::default();
}

/// As `alice (uid 1000)`.
pub(crate) fn user(uid: u32) -> String {
    match name("passwd", uid) {
        Some(name) => format!("{} (uid {uid})", plain(&name)),
        None => format!("uid {uid}"),
    }
}

/// As `kvm (gid 109)`.
pub(crate) fn group(gid: u32) -> String {
    match name("group", gid) {
        Some(name) => format!("group {} (gid {gid})", plain(&name)),
        None => format!("gid {gid}"),
    }
}

fn name(database: &'static str, number: u32) -> Option<String> {
    let find = || {
        let line = known(database, &number.to_string()).ok()??;
        Some(line.split(':').next()?.to_owned())
    };
    NAMES.with_borrow_mut(|names| names.entry((database, number)).or_insert_with(find).clone())
}

/// The line that the machine has for a user or a group, whoever told it of them. A program of the machine's
/// own is asked: this one may be linked statically, and then could not ask a directory service itself.
pub(crate) fn known(database: &str, key: &str) -> anyhow::Result<Option<String>> {
    let asked = Command::new("getent").arg(database).arg(key).output();
    let asked = asked.context("could not run getent, which looks up users and groups")?;
    match asked.status.code() {
        Some(0) => Ok(Some(String::from_utf8(asked.stdout)?.trim_end().to_owned())),
        Some(NOT_KNOWN) => Ok(None),
        _ => bail!("getent {database} {key}: {}", String::from_utf8_lossy(&asked.stderr).trim()),
    }
}
