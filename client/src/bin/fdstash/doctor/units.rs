//! The units, where the service manager is systemd and the socket is one of theirs.

use std::{collections::BTreeMap, env, path::Path, process::Command, thread, time::Duration};

use rustix::process::geteuid;

use super::Finding;

/// Few files for a program that is there to keep them.
const FEW_FILES: u64 = 4096;

/// How often, and how fast, a service is looked at that is being started again: its unit waits for 100 ms.
const LOOKS: usize = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

const PROPERTIES: &str = "--property=Id,LoadState,ActiveState,SubState,UnitFileState,Result,MainPID,NRestarts,\
                          ExecMainStatus,FileDescriptorStoreMax,LimitNOFILESoft,NeedDaemonReload";

/// A service manager that may have the daemon's units: the system's, or the user's.
pub(crate) struct Manager {
    is_user: bool,
    socket: Unit,
    service: Unit,
}

/// A unit's properties.
struct Unit(BTreeMap<String, String>);

impl Unit {
    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name).parse().ok()
    }

    /// Whether it has failed before and is not running.
    fn is_started_again(&self) -> bool {
        let fails = self.get("SubState") == "auto-restart" || self.number("NRestarts") > Some(0);
        self.get("ActiveState") == "activating" && fails
    }

    fn is_loaded(&self) -> bool {
        self.get("LoadState") == "loaded"
    }
}

impl Manager {
    /// The one whose units would listen at a socket; none, where there is no such, or it cannot be asked.
    pub(crate) fn of(socket: &Path) -> Option<Self> {
        let is_user = match env::var_os("XDG_RUNTIME_DIR") {
            Some(own) if !geteuid().is_root() => socket.starts_with(own),
            Some(_) | None => false,
        };
        if !is_user
            && !socket.starts_with("/run/fdstash")
            && !socket.starts_with("/var/run/fdstash")
        {
            return None;
        }
        // So do systemd's own programs see whether it is process 1.
        if !Path::new("/run/systemd/system").exists() {
            return None;
        }
        let socket = show(is_user, "fdstashd.socket")?;
        Some(Self { is_user, socket, service: show_at_rest(is_user)? })
    }

    pub(crate) fn has_units(&self) -> bool {
        self.socket.is_loaded()
    }

    /// The service's process, if it runs.
    pub(crate) fn main_pid(&self) -> Option<i32> {
        self.service.get("MainPID").parse().ok().filter(|pid| *pid > 0)
    }

    /// A line for a shell.
    pub(crate) fn command(&self, words: &str) -> String {
        format!("systemctl {}{words}", self.flag())
    }

    pub(crate) fn log(&self, unit: &str) -> String {
        format!("journalctl {}-u {unit} -n 20 --no-pager", self.flag())
    }

    fn flag(&self) -> &'static str {
        if self.is_user { "--user " } else { "" }
    }

    /// What is wrong with the units; a socket that answers is not said to be down.
    pub(crate) fn look(&self, answers: bool) -> Vec<Finding> {
        let mut findings = Vec::new();
        match self.socket.get("LoadState") {
            "loaded" => {}
            "masked" => findings.push(Finding::wrong(
                "fdstashd.socket is masked",
                "systemd starts the stash neither at boot nor when it is asked to",
                self.command("unmask fdstashd.socket fdstashd.service"),
            )),
            _ if answers => {}
            _ => findings.push(Finding::note(
                "systemd knows no fdstashd.socket",
                "without the units, nothing starts the daemon, and what is kept ends with it",
                "install the package, or `make install`; then systemctl daemon-reload",
            )),
        }
        if !self.socket.is_loaded() {
            return findings;
        }
        findings.extend(self.look_at_socket(answers));
        findings.extend(self.look_at_service());
        for unit in [&self.socket, &self.service] {
            if unit.get("NeedDaemonReload") == "yes" {
                findings.push(Finding::wrong(
                    format!("{} has changed on disk since systemd read it", unit.get("Id")),
                    "what it says now is not in force",
                    self.command("daemon-reload"),
                ));
            }
        }
        findings
    }

    fn look_at_socket(&self, answers: bool) -> Vec<Finding> {
        let mut findings = Vec::new();
        let state = self.socket.get("ActiveState");
        if state == "failed" {
            findings.push(Finding::wrong(
                format!("fdstashd.socket has failed: {}", self.socket.get("Result")),
                "nobody listens there",
                self.log("fdstashd.socket"),
            ));
        } else if state != "active" {
            let what = if answers {
                "a daemon that systemd has not started answers"
            } else {
                "it is not started"
            };
            findings.push(Finding::wrong(
                format!("fdstashd.socket is {state}: {what}"),
                "systemd listens for nobody, and stores nothing",
                self.command("start fdstashd.socket"),
            ));
        }
        if self.socket.get("UnitFileState") == "disabled" {
            findings.push(Finding::wrong(
                "fdstashd.socket is not enabled",
                "after the next boot there will be no stash",
                self.command("enable fdstashd.socket"),
            ));
        }
        findings
    }

    fn look_at_service(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let service = &self.service;
        let fails = service.get("ActiveState") == "failed" || service.is_started_again();
        if fails {
            let (result, status) = (service.get("Result"), service.get("ExecMainStatus"));
            findings.push(Finding::wrong(
                format!("fdstashd.service does not start: {result}, status {status}"),
                "who connects waits for it, and for as long as systemd stores what was kept it is not lost",
                // systemd's own numbers, for what went wrong before the program ran.
                match status {
                    "217" => "systemd-sysusers, which makes the user fdstash".to_owned(),
                    "203" => "install fdstashd where ExecStart= in the unit has it".to_owned(),
                    _ => self.log("fdstashd.service"),
                },
            ));
        }
        if service.number("FileDescriptorStoreMax") == Some(0) {
            findings.push(Finding::wrong(
                "fdstashd.service has FileDescriptorStoreMax=0",
                "what is kept does not outlive a restart of the daemon",
                self.edit("FileDescriptorStoreMax=2048"),
            ));
        }
        if service.number("LimitNOFILESoft").is_some_and(|most| most < FEW_FILES) {
            let most = service.get("LimitNOFILESoft");
            findings.push(Finding::wrong(
                format!("fdstashd.service may have no more than {most} files open (LimitNOFILE=)"),
                "little can be kept; and systemd cannot start it again with more stored than that",
                self.edit("LimitNOFILE=524288"),
            ));
        }
        findings
    }

    fn edit(&self, line: &str) -> String {
        let edit = self.command("edit fdstashd.service");
        let restart = self.command("restart fdstashd.service");
        format!("{edit}, [Service] {line}; then {restart}")
    }
}

/// The service when it has failed, if it is being started again and again: only then is said why.
fn show_at_rest(is_user: bool) -> Option<Unit> {
    let mut service = show(is_user, "fdstashd.service")?;
    for _ in 0..LOOKS {
        if !service.is_started_again() || service.get("SubState") == "auto-restart" {
            break;
        }
        thread::sleep(BETWEEN_LOOKS);
        service = show(is_user, "fdstashd.service")?;
    }
    Some(service)
}

fn show(is_user: bool, unit: &str) -> Option<Unit> {
    let mut systemctl = Command::new("systemctl");
    systemctl.args(if is_user { &["--user"][..] } else { &[] });
    let output = systemctl.args(["show", PROPERTIES, unit]).output().ok()?;
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Some(Unit(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
}
