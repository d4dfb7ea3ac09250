//! `fdstash`: the command. Maps what a verb comes to to an exit code, and errors to plain words.
// But for kcmp.rs.
#![deny(unsafe_code)]

mod arrival;
mod chosen;
mod close;
mod completions;
mod descriptor;
mod doctor;
mod give;
mod help;
mod import_s6;
mod kcmp;
mod list;
mod listen;
mod locks;
mod names;
mod policy;
mod progress;
mod qemu;
mod reopen;
mod run;
mod show;
mod spawn;
mod stage;
mod status;
mod table;
mod take;
mod transfer;
mod watch;
mod words;

use std::{
    env,
    error::Error,
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use fdstash::blocking::Client;

/// The daemon refused, or this machine failed.
const REFUSED: u8 = 1;
/// The command was called in a way that makes no sense; clap's own exit code for it, too.
const USAGE: u8 = 2;
/// No daemon can be reached.
const NO_DAEMON: u8 = 3;

/// Keeps open file descriptors in a daemon, and takes, copies and reopens them
#[derive(Parser)]
#[command(name = "fdstash", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    /// The daemon's socket [default: $FDSTASH_SOCKET, else the user's own or the system's]
    #[arg(long, global = true, value_name = "PATH", display_order = 900)]
    socket: Option<PathBuf>,

    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  # Keep a disk image open for reading and writing, whatever becomes of its path:
  fdstash give vm7-disk0 /var/lib/images/vm7.img
  # Have the stash open the very same file again past the page cache:
  fdstash reopen vm7-disk0 --direct on
  # Run a program with it as its standard input; the stash lets go when the program has it:
  fdstash take vm7-disk0 -- sha256sum
  # Start a server with a socket that the stash listens with, so that nobody is ever refused:
  fdstash listen web tcp:8080 --if-missing
  fdstash run --take web -- /usr/bin/server
  # See what there is, and what changes:
  fdstash list 'vm7-*'
  fdstash watch 'vm7-*'
  # See all about one, and find out why something does not work:
  fdstash show vm7-disk0
  fdstash doctor

Each command has examples of its own: fdstash give --help";

#[derive(Subcommand)]
#[command(defer = true)]
enum Verb {
    Give(give::Give),
    Take(take::Take),
    Close(close::Close),
    Reopen(reopen::Reopen),
    Listen(listen::Listen),
    Run(run::Run),
    List(list::List),
    Show(show::Show),
    Watch(watch::Watch),
    Locks(locks::Locks),
    Transfer(transfer::Transfer),
    ImportS6(import_s6::ImportS6),
    Policy(policy::Policy),
    Status(status::Status),
    Doctor(doctor::Doctor),
    Qemu(qemu::Qemu),
    #[command(name = "become", hide = true)]
    Stage(stage::Stage),
    Completions(completions::Completions),
    #[command(hide = true)]
    Complete(completions::Complete),
}

/// Where the daemon is.
struct Door(Option<PathBuf>);

impl Door {
    /// The path of its socket.
    fn path(&self) -> PathBuf {
        self.0.clone().unwrap_or_else(fdstash::default_socket)
    }

    /// Whether the call of the command says where.
    fn is_named(&self) -> bool {
        self.0.is_some()
    }

    fn connect(&self) -> Result<Client, fdstash::Error> {
        match &self.0 {
            Some(socket) => Client::connect_to(socket),
            None => Client::connect(),
        }
    }
}

/// A call of the command that makes no sense, found out after its arguments were parsed.
#[derive(Debug)]
struct Misuse(&'static str);

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Misuse {}

fn main() -> ExitCode {
    let Cli { socket, verb } = help::parse();
    let door = Door(socket);
    let outcome = match verb {
        Verb::Give(give) => give.run(&door),
        Verb::Take(take) => take.run(&door),
        Verb::Close(close) => close.run(&door),
        Verb::Reopen(reopen) => reopen.run(&door),
        Verb::Listen(listen) => listen.run(&door),
        Verb::Run(run) => run.run(&door),
        Verb::List(list) => list.run(&door),
        Verb::Show(show) => show.run(&door),
        Verb::Watch(watch) => watch.run(&door),
        Verb::Locks(locks) => locks.run(&door),
        Verb::Transfer(transfer) => transfer.run(&door),
        Verb::ImportS6(import) => import.run(&door),
        Verb::Policy(policy) => policy.run(&door),
        Verb::Status(status) => status.run(&door),
        Verb::Doctor(doctor) => doctor.run(&door),
        Verb::Qemu(qemu) => qemu.run(&door),
        Verb::Stage(stage) => stage.run(),
        Verb::Completions(completions) => completions.run(),
        Verb::Complete(complete) => complete.run(),
    };
    outcome.unwrap_or_else(|error| report(&error, &door))
}

/// Says what went wrong and what to do about it, and tells the exit code.
fn report(error: &anyhow::Error, door: &Door) -> ExitCode {
    // Whoever read our output has seen enough.
    if error
        .downcast_ref()
        .is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe)
    {
        return ExitCode::SUCCESS;
    }
    complain(format_args!("{error:#}"));
    if error.is::<Misuse>() {
        return ExitCode::from(USAGE);
    }
    if let Some(advice) = qemu::advice(error) {
        complain(format_args!("{advice}"));
    }
    let Some(refused) = error.downcast_ref::<fdstash::Error>() else {
        return ExitCode::from(REFUSED);
    };
    if let Some(advice) = refused.advice() {
        complain(format_args!("{advice}"));
    }
    let fdstash::Error::NoDaemon { socket, .. } = refused else {
        return ExitCode::from(REFUSED);
    };
    complain(format_args!("{}`fdstash doctor` looks for what is wrong", origin(door, socket)));
    ExitCode::from(NO_DAEMON)
}

/// Where it stands which socket that is, if somebody may have forgotten it. A command may have tried
/// another one, as that which a transfer goes to.
fn origin(door: &Door, tried: &Path) -> &'static str {
    let is_set = env::var_os("FDSTASH_SOCKET").is_some_and(|socket| socket == tried.as_os_str());
    if is_set && !door.is_named() { "the socket is that of $FDSTASH_SOCKET; " } else { "" }
}

/// Writes a line to standard error; where that is gone, there is nobody left to tell.
fn complain(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "fdstash: {line}");
}
