//! The command line, and what becomes of it: one validated [`Config`].

use std::{env, path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum, builder::FalseyValueParser};
use fdstash_proto::MAX_DESCRIPTORS;
use fdstash_stash::{Limits, Quota};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::level_filters::LevelFilter;

use crate::{ledger::Table, opener, policy, process, scrape, systemd::capacity};

/// Descriptors that the daemon needs for itself: its standard ones, its listening socket, epolls,
/// timers, and room for a connection to be turned away on and for files being opened.
const OWN: usize = 32;

/// Of so many places one is left free for the mirror in the service manager's store, which has two
/// descriptors for each bundle of a thousand entries, and while it begins anew twice as many; and a few.
const PER_MIRROR: usize = 200;

/// The least that it needs.
const MIRROR: usize = 24;

/// Places that entries leave free unless the command line says otherwise.
const SPARE: usize = 64;

/// One in so many numbers is no place for what is kept, but room to receive, to open and to close with.
const PER_SLACK: usize = 64;

/// The least room of that kind: twice for root, and twice for all others, for the largest message. Of a
/// small table it is a quarter.
const SLACK: usize = 4 * MAX_DESCRIPTORS;

const EXAMPLES: &str = "\
Examples:
  # Serve this user's stash, or for root the system's:
  fdstashd
  # Try it out, and see from elsewhere whether it is there:
  fdstashd --socket /tmp/stash --log debug
  fdstash --socket /tmp/stash status
  # Tell in the log who does what, and tell Prometheus figures:
  fdstashd --audit --metrics 127.0.0.1:9123
  # Say what the policy comes to, or what is wrong with it:
  fdstashd --check-policy /etc/fdstash/policy.toml

Signals: to the first of its two processes
  SIGTERM, SIGINT   end; what was given ends with it, except in systemd's store
  SIGHUP            load the policy anew, and upgrade to the program that stands at its path now

Exit codes: 0 ended when it was asked to, or the policy is in order; 1 it could not start, or the
policy is not; 2 called wrongly.

Environment:
  XDG_RUNTIME_DIR  where a user's own daemon listens
  LISTEN_FDS       what systemd passes: the listening socket, and what its store has kept
  JOURNAL_STREAM   whether it is the journal that reads standard error, and gets events with their fields
  NOTIFY_SOCKET    whom it tells that it serves, and has store what it holds

Files:
  /run/fdstash/org.fdstash.Stash              the system's socket
  $XDG_RUNTIME_DIR/fdstash/org.fdstash.Stash  a user's own
  /etc/fdstash/policy.toml, policy.d/*.toml   the system's policy: fdstash-policy(5)";

/// Holds open file descriptors by name, hands them out over a Unix socket, and reopens their files
/// with other flags without ever letting go of the old ones first.
///
/// Anybody may connect; who may do what is decided by the credentials that the kernel vouches for:
/// a user may do everything to what it gave, and root to all. Talk to it with the command fdstash,
/// or with any Varlink client.
#[derive(Debug, Parser)]
#[command(
    name = "fdstashd",
    version,
    after_help = EXAMPLES
)]
pub(crate) struct Args {
    /// Where to listen, unless systemd passes a socket [default:
    /// /run/fdstash/org.fdstash.Stash for root,
    /// $XDG_RUNTIME_DIR/fdstash/org.fdstash.Stash for others]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// How long a client may leave a message half sent, or what it is sent unread
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..))]
    patience: u64,

    /// Who may do what, beside what a user may do to its own and root to all; and the files *.toml in
    /// the directory of its name with .d instead of .toml [default: for root
    /// /etc/fdstash/policy.toml and policy.d, if they are there; for others none]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// Only say what the policy comes to, or what is wrong with it
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    check_policy: Option<Option<PathBuf>>,

    /// Tell in the log who has given, taken, copied, reopened or closed which descriptor, and what was
    /// refused
    #[arg(long, env = "FDSTASHD_AUDIT", hide_env_values = true, value_parser = FalseyValueParser::new())]
    audit: bool,

    /// Tell metrics, as OpenMetrics over HTTP, at unix:PATH, or at 127.0.0.1:PORT for every user of this
    /// machine
    #[arg(long, value_name = "WHERE")]
    metrics: Option<scrape::Place>,

    /// How much to log, to standard error; with its fields, if that is the journal
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: Level,

    #[command(flatten)]
    most: Most,
}

/// How much there may be. What is bounded for each user is not bounded for root, nor for the user whose
/// daemon it is, unless the policy says so.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
struct Most {
    /// The most entries to hold [default: as many as the limit on open files leaves room for]
    #[arg(long, value_name = "COUNT")]
    max_entries: Option<usize>,

    /// The most connections to serve at a time
    #[arg(long, value_name = "COUNT", default_value_t = 16384)]
    max_connections: usize,

    /// How much of the entries, connections, descriptors and opens only root can use
    #[arg(long, value_name = "PERCENT", default_value_t = 12,
        value_parser = clap::value_parser!(u8).range(..=90))]
    root_share: u8,

    /// The most entries that a user may keep or hold [default: a quarter of all]
    #[arg(long, value_name = "COUNT")]
    user_entries: Option<u32>,

    /// The most connections that a user may have [default: a quarter of all]
    #[arg(long, value_name = "COUNT")]
    user_connections: Option<u32>,

    /// The most bytes that the labels and share lists of a user's entries may have
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 10)]
    user_label_bytes: u32,

    /// The most names for which a user's calls may wait
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    user_waits: u32,

    /// The most watches that a user may have
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    user_watches: u32,

    /// The most transactions that a user may have open
    #[arg(long, value_name = "COUNT", default_value_t = 256)]
    user_transactions: u32,

    /// The most calls of a user for which files may be being opened at a time
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    user_opens: u32,

    /// The most descriptors that a user may have on their way in and out
    #[arg(long, value_name = "COUNT", default_value_t = 2048)]
    user_descriptors: u32,

    /// The most bytes that a user may have half sent or not read
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    user_bytes: u32,

    /// The most names that a user's transaction, or its call without one, may hold
    #[arg(long, value_name = "COUNT", default_value_t = 512)]
    transaction_names: u32,

    /// For how long a user's transaction may hold names without a call, before it is rolled back
    #[arg(long, value_name = "SECONDS", default_value_t = 300,
        value_parser = clap::value_parser!(u32).range(1..))]
    idle_transaction: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// What the daemon shall be like.
pub(crate) struct Config {
    /// Where to listen, unless a socket was passed.
    pub(crate) socket: Option<PathBuf>,
    /// How much of everything there may be.
    pub(crate) limits: Limits,
    /// How many numbers the process's table has for that, and for what comes and goes.
    pub(crate) table: Table,
    /// Where the policy is.
    pub(crate) policy: policy::Place,
    /// How long a client may leave a message half sent, or an answer unread.
    pub(crate) patience: Duration,
    /// Whether it is told who does what.
    pub(crate) audit: bool,
    /// Where metrics are told, unless a socket was passed.
    pub(crate) metrics: Option<scrape::Place>,
}

impl Args {
    /// How much to log.
    pub(crate) fn log(&self) -> LevelFilter {
        match self.log {
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
        }
    }

    /// Where the policy is.
    pub(crate) fn policy(&self) -> policy::Place {
        policy::Place::new(self.policy.clone())
    }

    /// Where the policy is that is to be checked, and nothing else done.
    pub(crate) fn policy_to_check(&self) -> Option<policy::Place> {
        let named = self.check_policy.clone()?.or_else(|| self.policy.clone());
        Some(named.map_or_else(policy::Place::usual, policy::Place::Named))
    }

    /// Raises the limit on open files as far as it goes, and settles everything that depends on it.
    ///
    /// # Errors
    ///
    /// If that leaves no room for a single entry.
    pub(crate) fn into_config(self) -> Result<Config> {
        let open_files = raise_open_files();
        let mirror = if capacity().is_some() { MIRROR + open_files / PER_MIRROR } else { 0 };
        let Some(size) = open_files.checked_sub(OWN + mirror).filter(|size| *size > 1) else {
            bail!("the limit on open files (ulimit -n) is {open_files}: too few to hold anything");
        };
        let slack = (open_files / PER_SLACK).max(SLACK).min(size / 4);
        let places = size - slack;
        // A Reopen in a transaction needs a place beside what is kept, also where the stash is full.
        let spare = SPARE.min(places / 4);
        let limits = self.most.limits(places, places - spare);
        let table = Table { size, slack, owner: limits.owner };
        let (policy, patience) = (self.policy(), Duration::from_secs(self.patience));
        let Self { socket, audit, metrics, .. } = self;
        Ok(Config { socket, limits, table, policy, patience, audit, metrics })
    }
}

impl Most {
    /// The limits of a daemon with so many places, of which so many are for entries unless somebody says
    /// otherwise.
    fn limits(&self, places: usize, for_entries: usize) -> Limits {
        let entries = self.max_entries.unwrap_or(for_entries).min(places);
        let quarter = |of: usize| of.div_ceil(4) as u64;
        Limits {
            opens: opener::MOST,
            root_share: self.root_share.into(),
            owner: rustix::process::geteuid().as_raw(),
            quota: Quota {
                entries: self.user_entries.map_or(quarter(entries), u64::from),
                connections: self.user_connections.map_or(quarter(self.max_connections), u64::from),
                label_bytes: self.user_label_bytes.into(),
                waits: self.user_waits.into(),
                watches: self.user_watches.into(),
                transactions: self.user_transactions.into(),
                opens: self.user_opens.into(),
                descriptors: self.user_descriptors.into(),
                bytes: self.user_bytes.into(),
                names: self.transaction_names.into(),
                idle_usec: u64::from(self.idle_transaction) * 1_000_000,
            },
            ..Limits::new(entries, self.max_connections, places)
        }
    }
}

/// Where to listen when nobody says.
///
/// # Errors
///
/// For a user without `XDG_RUNTIME_DIR`.
pub(crate) fn default_socket() -> Result<PathBuf> {
    const BELOW: &str = "fdstash/org.fdstash.Stash";
    if process::can_be_others() {
        return Ok(PathBuf::from("/run").join(BELOW));
    }
    match env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if !folder.is_empty() => Ok(PathBuf::from(folder).join(BELOW)),
        Some(_) | None => bail!("XDG_RUNTIME_DIR is not set: say where to listen with --socket"),
    }
}

/// How many files may be open, as many as the hard limit allows from now on.
fn raise_open_files() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let most = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "raising the limit on open files failed");
            current
        }
    };
    usize::try_from(most.unwrap_or(u64::MAX)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_manual_page_and_the_reference_are_what_the_help_says() {
        let also =
            ["fdstash(1)", "fdstash-policy(5)", "org.fdstash.Stash(7)", "systemd.service(5)"];
        let pages = fdstash_reference::command(Args::command(), 8, &also);

        fdstash_reference::keep("fdstashd", &pages, |name| name.ends_with(".8"));
    }
}
