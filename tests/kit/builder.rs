//! What a daemon of the test's own shall be like, and its start.

use std::{
    ffi::OsString,
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use rustix::{
    path::DecInt,
    process::{Pid, Signal, kill_process},
};

use crate::{
    Daemon, Group, SOON, User, daemon::of_process, install_program, program, program_with_steps,
    wait_until,
};

/// What a daemon shall be like.
#[derive(Debug, Default)]
pub struct Builder {
    args: Vec<OsString>,
    user: Option<User>,
    open_files: Option<u64>,
    crashing: Option<String>,
    has_own_program: bool,
    is_capable: bool,
    variables: Vec<(String, OsString)>,
    launcher: Vec<&'static str>,
    maps: Option<[String; 2]>,
    is_quiet: bool,
}

impl Builder {
    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// With one more variable in its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((key.to_owned(), value.into()));
        self
    }

    /// That logs as little as daemons do by default, for one that is measured: which process is its
    /// server, it does not say then ([`Daemon::serving`] does).
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.is_quiet = true;
        self
    }

    /// Run by another user, which takes root. What it is started under has to see to that itself.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.user = Some(user);
        self
    }

    /// With those capabilities that the system's unit has it act for other users with, run from a file of
    /// its own. It takes root.
    #[must_use]
    pub fn capable(mut self) -> Self {
        self.is_capable = true;
        self.has_own_program = true;
        self
    }

    /// With so few descriptors at most.
    #[must_use]
    pub fn open_files(mut self, most: u64) -> Self {
        self.open_files = Some(most);
        self
    }

    /// Whose servers die at steps as the plan says (`daemon/src/steps.rs`), and which runs from a file
    /// of its own.
    #[must_use]
    pub fn crashing(mut self, plan: String) -> Self {
        self.crashing = Some(plan);
        self.has_own_program = true;
        self
    }

    /// That runs from a file of its own, [`Daemon::program`].
    #[must_use]
    pub fn own_program(mut self) -> Self {
        self.has_own_program = true;
        self
    }

    /// Started by another program, which gets the daemon's, and its arguments, behind these.
    #[must_use]
    pub fn under(mut self, launcher: &[&'static str]) -> Self {
        self.launcher = launcher.to_vec();
        self.own_program()
    }

    /// In a user namespace of its own, in which these users and groups have numbers, as `uid_map` and
    /// `gid_map` have it. It takes root.
    #[must_use]
    pub fn in_user_namespace(mut self, users: &str, groups: &str) -> Self {
        self.maps = Some([users, groups].map(str::to_owned));
        // Whoever it is there is settled at the exec.
        const WAIT: &str =
            "until grep -q . /proc/self/gid_map; do sleep 0.01; done; exec \"$0\" \"$@\"";
        self.under(&["unshare", "--user", "sh", "-c", WAIT])
    }

    /// Starts it in a folder of its own, and returns when it answers.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[must_use]
    pub fn spawn(self) -> Daemon {
        let folder = Permissions::from_mode(0o755);
        let folder = tempfile::Builder::new().prefix("fdstash-").permissions(folder).tempdir();
        let folder = folder.expect("a folder can be made");
        let socket = folder.path().join("stash");
        let log = folder.path().join("log");
        // By its descriptor: another user may not be able to reach its path.
        let built =
            if self.crashing.is_some() { program_with_steps() } else { program("fdstashd") };
        let binary = File::open(&built).expect("the daemon can be opened");
        let mut path = format!("/proc/self/fd/{}", DecInt::from_fd(&binary).as_str());
        if self.has_own_program {
            let own = folder.path().join("fdstashd");
            install_program(&built, &own);
            path = own.to_str().expect("a plain path").to_owned();
        }
        let mut command = match (self.open_files, self.launcher.split_first()) {
            (None, None) if self.is_capable => {
                capable(path, self.user.as_ref().expect("it has a user"))
            }
            (None, None) => Command::new(path),
            (None, Some((launcher, args))) => {
                let mut command = Command::new(launcher);
                command.args(args).arg(path);
                command
            }
            (Some(most), _) => {
                let mut shell = Command::new("/bin/sh");
                let then = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
                let path = if self.has_own_program { path.into() } else { built };
                shell.arg("-c").arg(then).arg(path);
                shell
            }
        };
        command.arg("--socket").arg(&socket).args(&self.args);
        if !self.is_quiet {
            command.args(["--log", "debug"]);
        }
        command.envs(self.variables);
        if let Some(plan) = &self.crashing {
            command.env("FDSTASH_CRASH", plan);
        }
        if let Some(user) = &self.user {
            std::os::unix::fs::chown(folder.path(), Some(user.uid), Some(user.gid))
                .expect("root can give a folder away");
            if !self.is_capable && self.launcher.is_empty() {
                command.uid(user.uid).gid(user.gid);
            }
        }
        let stderr = File::create(&log).expect("a log can be made");
        let processes = Group::spawn(command.stdin(Stdio::null()).stderr(stderr));
        if let Some(maps) = &self.maps {
            map(processes.pid(), maps);
        }
        let daemon = Daemon { processes, socket, log, folder, has_ended: false };
        let is_ready = || UnixStream::connect(&daemon.socket).is_ok();
        wait_until(SOON, || is_ready() && (self.is_quiet || daemon.servers() > 0));
        if self.is_quiet {
            daemon.client().statistics().expect("the daemon answers");
        }
        if self.crashing.is_some() {
            // The first of its servers lives on.
            kill_process(daemon.server().0, Signal::KILL).expect("the server can be killed");
        }
        daemon
    }
}

/// What runs a program as a user with some of root's power.
fn capable(path: String, user: &User) -> Command {
    const POWER: &str = "-all,+dac_override,+fowner,+setgid,+setuid";
    let mut setpriv = Command::new("setpriv");
    setpriv.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
    setpriv.args(["--clear-groups", "--no-new-privs"]);
    setpriv.arg(format!("--inh-caps={POWER}")).arg(format!("--ambient-caps={POWER}"));
    setpriv.arg("--").arg(path);
    setpriv
}

/// Says who has which number in a process's user namespace, when it has one of its own.
fn map(pid: Pid, [users, groups]: &[String; 2]) {
    let namespace = |process: &Path| fs::read_link(process.join("ns/user")).ok();
    let own = namespace(Path::new("/proc/self"));
    wait_until(SOON, || namespace(&of_process(pid, "")) != own);
    fs::write(of_process(pid, "uid_map"), users).expect("root can map users");
    fs::write(of_process(pid, "gid_map"), groups).expect("root can map groups");
}
