//! `fdstash run`: starts a program as a service manager does that activates it by sockets and stores
//! descriptors for it, with the stash as the store.
//!
//! What can go wrong, and what then happens: no daemon at the start is an error, before anything runs. A
//! daemon that ends later is waited for; what is to be stored meanwhile waits with us, and so does a
//! barrier behind it. Two runs with one prefix would take each other's descriptors for their own, so the
//! second is refused. Where this process is killed, its command is asked to end, and the next run finds in
//! the stash what was acknowledged.

mod heard;
mod manager;
mod message;
mod passed;
mod same;
mod serve;
mod socket;
mod store;
mod variables;

use std::{ffi::OsString, process::ExitCode};

use clap::Args;
use fdstash::blocking::Client;

use crate::{
    Door,
    spawn::{self, Seats},
};

pub(crate) use self::passed::Wanted;
use self::{
    passed::Passed,
    store::{Prefix, Store},
    variables::Inherited,
};

const EXAMPLES: &str = "\
Examples:
  fdstash listen web tcp:8080 --if-missing
  fdstash run --take web -- /usr/bin/server
  # Several, in the order of their names, and one that is called otherwise:
  fdstash run --take 'web-*' --take admin:control -- /usr/bin/server
  # nginx is told of the number:
  fdstash run --take web -- env 'NGINX=3;' nginx -g 'daemon off;'
  # A server that stores its connections, and has them again when it was killed:
  fdstash run --take web --store server -- /usr/bin/server

COMMAND finds the descriptors from 3 on: LISTEN_FDS says how many, LISTEN_FDNAMES what they are
called, and LISTEN_PID that they are for it (sd_listen_fds(3)). They are copies: the stash keeps
its own, and the next start has them again. First come those that fdstash itself was started with
by a service manager, then those of each --take in the order of their names, then what is stored.

Without --store, fdstash becomes COMMAND. With it, it stays as its parent and its notification
socket (NOTIFY_SOCKET, sd_pid_notify_with_fds(3)): FDSTORE=1, FDNAME=, FDPOLL=0, FDSTOREREMOVE=1
and BARRIER=1 go to the stash, under PREFIX/FDNAME, and come back at the next start. What hangs up
is dropped, but with FDPOLL=0. A barrier is answered when all before it is in the stash; what the
daemon refuses is told on standard error. READY=1, STATUS= and the like go on to the manager above,
if there is one; and signals to COMMAND, whose end is fdstash's own. COMMAND must stay in the
foreground; with MAINPID= it hands over to another of its processes.";

/// Start a program with sockets and files from the stash, and be its descriptor store
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    /// Pass what matches: '*' stands for any characters, '?' for one (may be repeated). With :FDNAME, it
    /// is called so, and not as in the stash
    #[arg(long = "take", value_name = "PATTERN[:FDNAME]")]
    wanted: Vec<Wanted>,

    /// Start COMMAND also where a pattern matches nothing
    #[arg(long)]
    allow_none: bool,

    /// Store what COMMAND sends as its service manager's descriptor store would, under this prefix, and
    /// pass what is stored
    #[arg(long, value_name = "PREFIX")]
    store: Option<Prefix>,

    /// How many descriptors COMMAND may store
    #[arg(long, value_name = "N", default_value_t = 512, requires = "store")]
    store_max: usize,

    /// Pass also what this user has given (may be repeated) [default: only what you or root
    /// has given]
    #[arg(long = "trust", value_name = "UID")]
    trusted: Vec<u32>,

    /// The command to run, with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Run {
    pub(crate) fn run(mut self, door: &Door) -> anyhow::Result<ExitCode> {
        self.trusted.extend([0, rustix::process::geteuid().as_raw()]);
        let mut client = door.connect()?;
        let mut passed = passed::choose(&mut client, &self.wanted, self.allow_none, &self.trusted)?;
        match self.store.take() {
            Some(prefix) => self.with_store(client, prefix, passed),
            None => self.without(&mut passed),
        }
    }

    fn without(&self, passed: &mut Passed) -> anyhow::Result<ExitCode> {
        let inherited = Inherited::from_env();
        let mut command = spawn::of(&self.command)?;
        variables::set(&mut command, &inherited, &passed.names);
        if !variables::are_none(&inherited, &passed.names) {
            // An exec leaves a process its number.
            command.env("LISTEN_PID", std::process::id().to_string());
        }
        spawn::become_it(command, std::mem::take(&mut passed.fds), Seats::From(inherited.next()))
    }

    fn with_store(
        &self,
        client: Client,
        prefix: Prefix,
        mut passed: Passed,
    ) -> anyhow::Result<ExitCode> {
        let mut store = Store::new(client, prefix, self.trusted.clone(), self.store_max);
        let _lock = store.lock()?;
        passed.append(store.copies()?);
        serve::serve(&self.command, passed, store)
    }
}
