//! The keeper: a process that holds what the server holds, and starts the next one when it dies.
//!
//! A server is cloned from its keeper with `CLONE_FILES` and without `CLONE_VM`: two processes with
//! memory of their own and *one table of descriptors*. However the server dies, the table lives on in
//! the keeper, with every descriptor that is stashed in it; the next server finds in the journal which
//! are what (`tests/crash.rs`). The keeper itself does nothing but wait: it has one thread, opens
//! nothing, and its memory is as clean as it was before the first server.
//!
//! On `SIGHUP` it makes way for the next version of the program: it has that look at the journal, and
//! load the policy anew (a rehearsal), lets the server stop where it is, and execs. The server stays until the next one says
//! that it has taken over (`handover.rs`), so that a program which does not start loses nothing.
//!
//! It is one file, since whatever happens to one of them decides what becomes of the other two.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};

use crate::{
    heart::{Heart, Pulse, State, Wish},
    lasting::{self, Lasting},
    listen::Place,
    process,
    systemd::Notify,
};

/// Between two looks at the server.
const LOOK: Duration = Duration::from_secs(1);

/// How many looks a server that was killed has until it is held for dead.
const LAST_BREATHS: u32 = 2;

/// Between two looks at the server in an upgrade.
const GLANCE: Duration = Duration::from_millis(20);

/// The longest pause before the next server, when one after the other dies without having answered a
/// call. What is kept is kept however long it takes.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long an upgrade may take until the server has stopped.
const UPGRADE: Duration = Duration::from_secs(20);

/// What a server is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// To serve, from what the journal says.
    Serve,
    /// To go on where the server of an earlier version of the program has stopped.
    TakeOver,
}

/// Waits for a server, and starts the next, until one ends as it was asked to.
pub(crate) struct Keeper<'a> {
    heart: Heart,
    lasting: &'static Lasting,
    program: PathBuf,
    serve: &'a dyn Fn(Start) -> u8,
    server: Option<Pid>,
    start: Start,
    /// Whether any server has ever served: before, a failure is one of the whole daemon.
    has_served: bool,
    is_ending: bool,
    /// How many servers have died one after the other without having answered a call.
    failures: u32,
    next_start: Instant,
    pulse: Pulse,
    /// For how many looks the server has been dead to us and not to the kernel.
    dying: Option<u32>,
    next_look: Instant,
    upgrade: Upgrade,
}

/// How far an upgrade has come.
enum Upgrade {
    None,
    /// It begins as soon as there is a server that serves: while one restores, nobody else may open
    /// anything in the table that they share.
    Wanted,
    /// The next version looks whether it could.
    Rehearsing(Child, Instant),
    /// The server stops where it is.
    Draining(Instant),
    /// There is none, but this version loads the policy anew.
    Reloading(Child, Instant),
}

impl<'a> Keeper<'a> {
    /// A keeper that has no server yet; `is_going_on` tells whether there were some before this program
    /// was. `serve` is what a server does in a process of its own, and
    /// gives its exit code.
    ///
    /// # Errors
    ///
    /// If `/proc` does not tell where this program is.
    pub(crate) fn new(
        heart: Heart,
        lasting: &'static Lasting,
        start: Start,
        is_going_on: bool,
        serve: &'a dyn Fn(Start) -> u8,
    ) -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            heart,
            lasting,
            program: lasting::program()?,
            serve,
            server: None,
            start,
            // What goes on has served before.
            has_served: is_going_on,
            is_ending: false,
            failures: 0,
            next_start: now,
            pulse: Pulse::default(),
            dying: None,
            next_look: now + LOOK,
            upgrade: Upgrade::None,
        })
    }

    /// Keeps, until the daemon ends; gives its exit code.
    pub(crate) fn run(mut self) -> u8 {
        loop {
            self.heart.keeper_beats();
            if self.server.is_none() && Instant::now() >= self.next_start {
                self.start();
            }
            match process::wait_for_signal(self.patience()) {
                Some(Signal::TERM | Signal::INT) => self.end(),
                Some(Signal::HUP) => self.want_upgrade(),
                // A child has died, or the server has news.
                Some(_) | None => {}
            }
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                if let Some(code) = self.has_ended(pid, status) {
                    return code;
                }
            }
            if self.is_ending && self.server.is_none() {
                self.tidy_up();
                return 0;
            }
            self.go_on_with_upgrade();
            if let Some(code) = self.look() {
                return code;
            }
        }
    }

    fn patience(&self) -> Duration {
        let now = Instant::now();
        let next_start = if self.server.is_none() { self.next_start } else { self.next_look };
        let patience = next_start.min(self.next_look).saturating_duration_since(now);
        match self.upgrade {
            Upgrade::None => patience,
            // The server says nothing of how far it has come.
            Upgrade::Wanted
            | Upgrade::Rehearsing(..)
            | Upgrade::Draining(_)
            | Upgrade::Reloading(..) => patience.min(GLANCE),
        }
    }

    fn start(&mut self) {
        self.heart.begin();
        match process::clone() {
            Ok(Some(server)) => {
                self.server = Some(server);
                self.pulse = Pulse::default();
                self.dying = None;
            }
            Ok(None) => {
                let code = (self.serve)(self.start);
                // Nothing is dropped: what it would close is the keeper's, too.
                std::process::exit(code.into());
            }
            Err(error) => {
                tracing::error!(%error, "starting a server failed, trying again");
                self.pause();
            }
        }
    }

    /// Takes note of a child's end. The exit code, if the daemon ends with it.
    fn has_ended(&mut self, pid: Pid, status: WaitStatus) -> Option<u8> {
        if self.server != Some(pid) {
            // A rehearsal that was given up, or the server of an earlier version.
            match &self.upgrade {
                Upgrade::Rehearsing(child, _) if Pid::from_child(child) == pid => {
                    self.rehearsed(status);
                }
                Upgrade::Reloading(child, _) if Pid::from_child(child) == pid => self.reloaded(),
                Upgrade::None
                | Upgrade::Wanted
                | Upgrade::Rehearsing(..)
                | Upgrade::Draining(_)
                | Upgrade::Reloading(..) => {}
            }
            return None;
        }
        let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
        match status.terminating_signal() {
            Some(signal) => {
                tracing::error!(signal, pid = pid.as_raw_pid(), "the server was killed");
            }
            None if code != Some(0) => {
                tracing::error!(code, pid = pid.as_raw_pid(), "the server has failed");
            }
            None => {}
        }
        self.go_on_without(code)
    }

    /// Sees to what is to be done without the server that there was. The exit code, if the daemon ends
    /// with it.
    fn go_on_without(&mut self, code: Option<u8>) -> Option<u8> {
        self.server = None;
        let state = self.heart.state();
        self.has_served |= state != State::Starting;
        if state == State::Ended {
            return Some(code.unwrap_or(1));
        }
        if self.is_ending {
            self.tidy_up();
            return Some(code.unwrap_or(1));
        }
        if !self.has_served {
            // It has said why.
            self.tidy_up();
            return Some(code.filter(|code| *code != 0).unwrap_or(1));
        }
        if state != State::Starting {
            self.start = Start::Serve;
        }
        self.pause();
        None
    }

    /// Removes what a server would have removed that ends in order.
    fn tidy_up(&self) {
        self.lasting.place.iter().filter(|place| place.is_ours()).for_each(Place::remove);
    }

    /// Puts off the next server, if the last ones have not been of any use.
    fn pause(&mut self) {
        self.failures = if self.heart.has_answered() { 0 } else { self.failures + 1 };
        let steps = self.failures.saturating_sub(3).min(10);
        let pause = if steps == 0 { Duration::ZERO } else { Duration::from_millis(5 << steps) };
        self.next_start = Instant::now() + pause.min(LONGEST_PAUSE);
    }

    /// Looks whether the server is alive, once a second. The exit code, if the daemon ends.
    fn look(&mut self) -> Option<u8> {
        if Instant::now() < self.next_look {
            return None;
        }
        self.next_look = Instant::now() + LOOK;
        let server = self.server?;
        if let Some(looks) = &mut self.dying {
            *looks += 1;
            if *looks < LAST_BREATHS {
                return None;
            }
            // One of its threads waits in the kernel, for a file server that is dead, say, and cannot be
            // woken. It will do nothing any more but wait; so nobody needs to wait for it.
            tracing::error!(
                pid = server.as_raw_pid(),
                "the server cannot die, going on without it"
            );
            return self.go_on_without(None);
        }
        if self.pulse.hangs(self.heart.beats()) {
            tracing::error!(pid = server.as_raw_pid(), "the server hangs, replacing it");
            signal(server, Signal::KILL);
            self.dying = Some(0);
        }
        None
    }

    fn end(&mut self) {
        self.is_ending = true;
        // Nor will there be a next version: the server, also one that has stopped for it, ends.
        if let Upgrade::Rehearsing(child, _) | Upgrade::Reloading(child, _) = &mut self.upgrade {
            let _ = child.kill();
        }
        if let Upgrade::Draining(_) = std::mem::replace(&mut self.upgrade, Upgrade::None) {
            self.tell(Wish::Serve);
        }
        if self.server.is_none() {
            // What is kept is yet to be written out for whoever comes after this daemon.
            self.start();
        }
        if let Some(server) = self.server {
            signal(server, Signal::TERM);
        }
    }

    fn want_upgrade(&mut self) {
        if !matches!(self.upgrade, Upgrade::None) || self.is_ending {
            return tracing::warn!(
                "ignoring a SIGHUP: an upgrade is under way, or the daemon ends"
            );
        }
        self.upgrade = Upgrade::Wanted;
    }

    /// Has the program that stands there now see whether it could go on.
    fn rehearse(&mut self) {
        let told = self.lasting.manager.as_ref().map(Notify::reloading);
        if let Some(Err(error)) = told {
            tracing::warn!(%error, "telling the service manager of the upgrade failed");
        }
        tracing::info!(program = %self.program.display(), "trying whether this could go on");
        match self.spawn(&self.program) {
            Ok(child) => {
                self.upgrade = Upgrade::Rehearsing(child, Instant::now() + UPGRADE);
            }
            Err(error) => self.cannot(&format!("starting it: {error}")),
        }
    }

    /// Starts a program to rehearse.
    fn spawn(&self, program: &Path) -> io::Result<Child> {
        let (key, value) = self.lasting.rehearsal();
        let mut command = Command::new(program);
        command.args(env::args_os().skip(1)).env(key, value).stdin(Stdio::null());
        process::leaving_open(&mut command, self.lasting.of_rehearsal()).spawn()
    }

    /// Gives up an upgrade to a program that cannot be the next version. Nor can it have loaded the
    /// policy, then; so this version does, in a process of its own, since that may have to wait.
    fn cannot(&mut self, why: &str) {
        self.stays(why);
        match self.spawn(Path::new("/proc/self/exe")) {
            Ok(child) => self.upgrade = Upgrade::Reloading(child, Instant::now() + UPGRADE),
            Err(error) => tracing::error!(%error, "loading the policy anew failed"),
        }
    }

    /// Has the server go by what was loaded; if nothing was, somebody has said why.
    fn reloaded(&mut self) {
        self.upgrade = Upgrade::None;
        self.tell(Wish::Serve);
    }

    fn rehearsed(&mut self, status: WaitStatus) {
        match status.exit_status() {
            Some(code) if code == i32::from(lasting::COULD) => {
                self.upgrade = Upgrade::Draining(Instant::now() + UPGRADE);
            }
            Some(0) => self.cannot("it is another program, or one from before there were upgrades"),
            Some(code) => self.cannot(&format!(
                "it ended with status {code} when it was tried, and has said why if it is fdstashd"
            )),
            None => self.cannot("it was killed when it was tried"),
        }
    }

    fn go_on_with_upgrade(&mut self) {
        if self.is_ending {
            return;
        }
        match &mut self.upgrade {
            Upgrade::None => {}
            Upgrade::Wanted => {
                if self.server.is_some() && self.heart.state() == State::Serving {
                    self.rehearse();
                }
            }
            Upgrade::Rehearsing(child, until) => {
                if Instant::now() > *until {
                    let _ = child.kill();
                    self.stays("it did not say in time whether it could go on");
                }
            }
            Upgrade::Reloading(child, until) => {
                if Instant::now() > *until {
                    tracing::error!(
                        "the policy did not load in time, the rules before stay in force"
                    );
                    let _ = child.kill();
                    self.reloaded();
                }
            }
            Upgrade::Draining(until) => {
                let is_late = Instant::now() > *until;
                match (self.heart.state(), self.heart.wish()) {
                    (State::Drained, _) => self.make_way(),
                    (State::Serving, Wish::Serve) => self.tell(Wish::Drain),
                    (_, _) if is_late => self.stays("the server did not stop in time"),
                    (_, _) => {}
                }
            }
        }
    }

    /// Becomes the next version of the program. Returns only if that fails.
    fn make_way(&mut self) {
        let kept = self.lasting.tell(Some(self.heart.baton()), self.heart.stored());
        let Err(error) = self.lasting.leave().and_then(|()| process::exec(&self.program, kept));
        self.lasting.stay();
        self.stays(&format!("starting it: {error}"));
    }

    /// Gives up an upgrade.
    fn stays(&mut self, why: &str) {
        let program = self.program.display();
        tracing::error!(%program, "the upgrade failed, this version goes on: {why}");
        self.upgrade = Upgrade::None;
        self.tell(Wish::Serve);
    }

    fn tell(&self, wish: Wish) {
        self.heart.set_wish(wish);
        if let Some(server) = self.server {
            signal(server, Signal::USR1);
        }
    }
}

fn signal(pid: Pid, signal: Signal) {
    // Fails if it is gone; then its end is yet to be taken note of.
    let _ = kill_process(pid, signal);
}
