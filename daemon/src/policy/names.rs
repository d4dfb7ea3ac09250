//! The numbers of users and groups that a policy names.
//!
//! `getent` is asked, which knows what the machine knows of them, directory services included. To ask
//! for them in this process would have it load whatever these services need, with descriptors and all.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};

/// Numbers by names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Names {
    #[serde(default)]
    users: BTreeMap<String, u32>,
    #[serde(default)]
    groups: BTreeMap<String, u32>,
    /// Whether those that are missing are asked for.
    #[serde(skip)]
    may_ask: bool,
}

impl Names {
    /// None yet; each is asked for when it is needed.
    pub(crate) fn to_be_found() -> Self {
        Self { may_ask: true, ..Self::default() }
    }

    /// The number of a user; or what is wrong with the name.
    pub(crate) fn user(&mut self, name: &str) -> Result<u32, String> {
        find(&mut self.users, self.may_ask, "passwd", "user", name)
    }

    /// The number of a group; or what is wrong with the name.
    pub(crate) fn group(&mut self, name: &str) -> Result<u32, String> {
        find(&mut self.groups, self.may_ask, "group", "group", name)
    }
}

fn find(
    known: &mut BTreeMap<String, u32>,
    may_ask: bool,
    database: &str,
    what: &str,
    name: &str,
) -> Result<u32, String> {
    if let Some(number) = known.get(name) {
        return Ok(*number);
    }
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("the number of a {what} is written without quotes: {name}"));
    }
    let number = if may_ask { ask(database, name)? } else { None };
    let number = number.ok_or_else(|| format!("there is no {what} {name:?} on this machine"))?;
    known.insert(name.to_owned(), number);
    Ok(number)
}

/// The number that a database of the machine's has for a name.
fn ask(database: &str, name: &str) -> Result<Option<u32>, String> {
    let mut getent = Command::new("getent");
    getent.args([database, "--", name]).stdin(Stdio::null()).stderr(Stdio::inherit());
    let failed = |why: String| {
        format!(
            "the number of {name:?} cannot be found out, {why}: a number itself needs no look-up"
        )
    };
    if name.contains('\0') {
        return Ok(None);
    }
    let output = getent.output().map_err(|error| failed(format!("running getent: {error}")))?;
    match output.status.code() {
        Some(0) => {}
        // It has no such name.
        Some(2) => return Ok(None),
        Some(_) | None => return Err(failed(format!("getent ended with {}", output.status))),
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        // It would also take a number for a name.
        fields.next().filter(|first| *first == name)?;
        fields.nth(1)?.parse().ok()
    });
    Ok(number)
}
