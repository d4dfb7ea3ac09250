//! The variables by which a program learns of its descriptors: sd_listen_fds(3), sd_pid_notify_with_fds(3).

use std::{env, process::Command};

/// The first number after standard input, output and error.
const FIRST: i32 = 3;

/// What systemd calls a descriptor that has no name.
const UNKNOWN: &str = "unknown";

/// The descriptors that a service manager has started this process with, from 3 on, which stay where they
/// are: what they are called.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inherited(Vec<String>);

impl Inherited {
    pub(super) fn from_env() -> Self {
        let variable = |name: &str| env::var(name).ok();
        Self::from(variable, std::process::id())
    }

    fn from(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Self {
        let number = |name: &str| variable(name).and_then(|value| value.parse::<u32>().ok());
        // Else they were meant for a process that has started this one, and has closed them.
        if number("LISTEN_PID") != Some(pid) {
            return Self::default();
        }
        let count = number("LISTEN_FDS").and_then(|count| usize::try_from(count).ok());
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let names =
            names.split(':').map(str::to_owned).chain(std::iter::repeat(UNKNOWN.to_owned()));
        let named = names.map(|name| if name.is_empty() { UNKNOWN.to_owned() } else { name });
        Self(named.take(count.unwrap_or_default()).collect())
    }

    /// The first number after them.
    pub(super) fn next(&self) -> i32 {
        let count = i32::try_from(self.0.len()).unwrap_or_default();
        FIRST.saturating_add(count)
    }
}

/// Whether no descriptors are passed at all.
pub(super) fn are_none(inherited: &Inherited, names: &[String]) -> bool {
    inherited.0.is_empty() && names.is_empty()
}

/// Says which descriptors there are; but not whose they are (`LISTEN_PID`), which only a process that
/// has been started knows.
pub(super) fn set(command: &mut Command, inherited: &Inherited, names: &[String]) {
    // A newer one's word on who LISTEN_PID is, which here would be about another process.
    for name in ["LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    if are_none(inherited, names) {
        return;
    }
    let all: Vec<&str> = inherited.0.iter().chain(names).map(String::as_str).collect();
    command.env("LISTEN_FDS", all.len().to_string());
    command.env("LISTEN_FDNAMES", all.join(":"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_manager_has_passed_counts_only_if_it_is_for_this_process() {
        let table = [
            (
                &[("LISTEN_PID", "7"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a:b")][..],
                vec!["a", "b"],
            ),
            (
                &[("LISTEN_PID", "7"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a")],
                vec!["a", UNKNOWN],
            ),
            (&[("LISTEN_PID", "7"), ("LISTEN_FDS", "1")], vec![UNKNOWN]),
            (&[("LISTEN_PID", "8"), ("LISTEN_FDS", "2")], vec![]),
            (&[("LISTEN_FDS", "2")], vec![]),
            (&[("LISTEN_PID", "7"), ("LISTEN_FDS", "-1")], vec![]),
            (&[], vec![]),
        ];

        for (variables, expected) in table {
            let variable = |name: &str| {
                let found = variables.iter().find(|(other, _)| *other == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(Inherited::from(variable, 7).0, expected, "{variables:?}");
        }
    }

    #[test]
    fn the_variables_count_what_was_there_first() {
        let inherited = Inherited(vec!["http".into()]);
        let mut command = Command::new("true");

        set(&mut command, &inherited, &["a".into(), "b".into()]);

        assert_eq!(inherited.next(), 4);
        let value = |name: &str| {
            let mut all = command.get_envs();
            all.find(|(other, _)| *other == name).and_then(|(_, value)| value)
        };
        assert_eq!(value("LISTEN_FDS"), Some("3".as_ref()));
        assert_eq!(value("LISTEN_FDNAMES"), Some("http:a:b".as_ref()));
        assert_eq!(value("LISTEN_PID"), None);
    }
}
