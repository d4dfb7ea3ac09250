//! [`Lasting`]: what there is before the first server and after the last, and goes on where this
//! program is replaced by its next version.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io, iter,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use fdstash_stash::Number;

use crate::{
    args::{Config, default_socket},
    heart::{Heart, Stored},
    inherited::{Inherited, number, set_survives_exec},
    journal,
    listen::{self, Place},
    log,
    policy::{self, Policy},
    scrape,
    systemd::Notify,
};

/// Says to the next version of this program which numbers are what.
const KEPT: &str = "FDSTASH_KEPT";

/// Says to the next version which numbers are the sockets at which metrics are told.
const METRICS: &str = "FDSTASH_METRICS";

/// Says to a program that it shall only see whether it could go on with the journal of these numbers.
const REHEARSAL: &str = "FDSTASH_REHEARSAL";

/// How a program ends a rehearsal that could go on. Not with success, which every other program has,
/// too, and which would then be this one's end.
pub(crate) const COULD: u8 = 93;

/// What outlives every server. It is never dropped: the servers and their keeper have one table of
/// descriptors, and memory of their own with this in each.
pub(crate) struct Lasting {
    pub(crate) listener: OwnedFd,
    /// The listening socket's place, where this daemon has made it.
    pub(crate) place: Option<Place>,
    pub(crate) journal: journal::Files,
    /// The policy that is in force.
    pub(crate) policy: policy::Kept,
    /// Whoever has started this daemon and wants to be told.
    pub(crate) manager: Option<Notify>,
    /// What the service manager had kept for an earlier daemon: its numbers when this one was started.
    pub(crate) stored: Vec<Number>,
    /// By which the first server says to the one before that it has taken over.
    pub(crate) baton: Option<OwnedFd>,
    /// The sockets at which metrics are told, if they are; and its place, where this daemon has made it.
    pub(crate) metrics: Vec<OwnedFd>,
    pub(crate) metrics_place: Option<scrape::Place>,
}

impl Lasting {
    /// What there is at the start of all.
    ///
    /// # Errors
    ///
    /// If there can be no socket or no journal, or the policy cannot be loaded.
    pub(crate) fn new(
        passed: Option<OwnedFd>,
        mut metrics: Vec<OwnedFd>,
        stored: Vec<Number>,
        config: &Config,
    ) -> Result<Self> {
        // Before the socket, which would stay behind.
        let journal = journal::create().context("making a journal")?;
        let policy = policy::Kept::create().context("keeping the policy")?;
        let (read, _) = Policy::from_files(&config.policy).context("loading the policy")?;
        policy.store(&read).context("keeping the policy")?;
        let metrics_place = config.metrics.clone().filter(|_| metrics.is_empty());
        metrics.extend(metrics_place.as_ref().map(scrape::Place::listen).transpose()?);
        let (listener, place) = match passed {
            Some(listener) => {
                tracing::info!("serving the socket that was passed");
                (listener, None)
            }
            None => {
                let path = config.socket.clone().map_or_else(default_socket, Ok)?;
                let (listener, place) = listen::listen(&path)?;
                tracing::info!(socket = %path.display(), "serving");
                (listener.into(), Some(place))
            }
        };
        let manager = Notify::from_env()?;
        Ok(Self {
            listener,
            place,
            journal,
            policy,
            manager,
            stored,
            baton: None,
            metrics,
            metrics_place,
        })
    }

    /// What an earlier version of this program has left for this one, if there was one.
    ///
    /// # Errors
    ///
    /// If what it says of it cannot be.
    pub(crate) fn from_before(config: &Config, heart: Heart) -> Result<Option<Self>> {
        let Some(numbers) = env::var_os(KEPT) else { return Ok(None) };
        let numbers = to_numbers(&numbers)?;
        let [Some(listener), Some(one), Some(other), baton, lock, ref stored @ ..] = numbers[..]
        else {
            bail!("{KEPT} does not have the numbers that it should");
        };
        let [Some(first_life), Some(next_life), Some(most_bundles), Some(rules), Some(before)] =
            stored[..]
        else {
            bail!("{KEPT} does not tell what is stored, and which rules are in force");
        };
        let [first_life, next_life, most_bundles] =
            [first_life, next_life, most_bundles].map(u64::from);
        heart.set_stored(Stored { first_life, next_life, most_bundles });
        // Whatever is wrong with them, what is kept does not depend on it.
        let metrics = env::var_os(METRICS).and_then(|numbers| to_numbers(&numbers).ok());
        let metrics: Vec<_> = metrics.into_iter().flatten().flatten().collect();
        let open = [listener, one, other, rules, before].map(Some).into_iter();
        let open = open.chain([baton, lock]).chain(metrics.iter().copied().map(Some));
        let mut inherited = Inherited::from_before(open.flatten());
        let metrics = inherited.claim_listening(&metrics);
        let mut claim = |number| -> Result<OwnedFd> {
            inherited.claim(number).with_context(|| format!("{KEPT}: {number} is not there"))
        };
        let place = match lock {
            Some(lock) => {
                let path = config.socket.clone().map_or_else(default_socket, Ok)?;
                Some(Place::from_before(path, File::from(claim(lock)?)))
            }
            None => None,
        };
        Ok(Some(Self {
            listener: claim(listener)?,
            place,
            journal: [claim(one)?, claim(other)?],
            policy: policy::Kept::from_before([claim(rules)?, claim(before)?]),
            manager: Notify::from_env()?,
            stored: Vec::new(),
            baton: baton.map(&mut claim).transpose()?,
            metrics_place: config.metrics.clone().filter(|place| place.is_of(&metrics)),
            metrics,
        }))
    }

    /// What a program is to be told that goes on with all of it, and with what is stored.
    pub(crate) fn tell(&self, baton: Option<Number>, stored: Stored) -> Vec<(OsString, OsString)> {
        let [one, other] = &self.journal;
        let lock = self.place.as_ref().map(|place| number(place.lock()));
        let open =
            [Some(number(&self.listener)), Some(number(one)), Some(number(other)), baton, lock];
        let Stored { first_life, next_life, most_bundles } = stored;
        let counts = [first_life, next_life, most_bundles]
            .map(|count| Some(Number::try_from(count).unwrap_or(Number::MAX)));
        let policy = self.policy.fds().map(|fd| Some(number(fd)));
        let kept = (KEPT.into(), to_text(&[open.as_slice(), &counts, &policy].concat()));
        let metrics: Vec<_> = self.metrics.iter().map(|fd| Some(number(fd))).collect();
        let metrics = (!metrics.is_empty()).then(|| (METRICS.into(), to_text(&metrics)));
        iter::once(kept).chain(metrics).collect()
    }

    /// Leaves all of it open for the program that this one becomes.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn leave(&self) -> io::Result<()> {
        self.fds().try_for_each(|fd| set_survives_exec(fd, true))
    }

    /// Takes back that they are left open.
    pub(crate) fn stay(&self) {
        for fd in self.fds() {
            // It was possible when they were left.
            let _ = set_survives_exec(fd, false);
        }
    }

    /// The numbers of all of it, and that of the log, which this program has for itself.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = Number> {
        let log = log::way().map(number);
        self.fds().map(number).chain(self.baton.as_ref().map(number)).chain(log)
    }

    /// The listening sockets, the journal, the policy, and the lock of the place.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let lock = self.place.iter().map(|place| place.lock());
        let [one, other] = &self.journal;
        let of_all = [&self.listener, one, other].into_iter().map(AsFd::as_fd);
        let metrics = self.metrics.iter().map(AsFd::as_fd);
        of_all.chain(self.policy.fds()).chain(lock).chain(metrics)
    }
}

impl Lasting {
    /// What a rehearsal needs: the journal, and the policy.
    pub(crate) fn of_rehearsal(&self) -> [BorrowedFd<'_>; 4] {
        let ([one, other], [rules, before]) = (&self.journal, self.policy.fds());
        [one.as_fd(), other.as_fd(), rules, before]
    }

    /// What says to a program that it shall only see whether it could go on.
    pub(crate) fn rehearsal(&self) -> (OsString, OsString) {
        (REHEARSAL.into(), to_text(&self.of_rehearsal().map(|fd| Some(number(fd)))))
    }
}

/// Loads the policy anew, and sees whether this program could go on with the journal of an earlier one,
/// if that is all it was started for.
///
/// # Errors
///
/// If it could not. A policy that cannot be loaded keeps nobody from going on: there is the one before.
pub(crate) fn rehearse(policy: &policy::Place) -> Result<bool> {
    let Some(numbers) = env::var_os(REHEARSAL) else { return Ok(false) };
    let numbers = to_numbers(&numbers)?;
    let mut inherited = Inherited::from_before(numbers.iter().flatten().copied());
    let numbers = numbers.into_iter().flatten();
    let files: Vec<_> = numbers.filter_map(|number| inherited.claim(number)).collect();
    let Ok([one, other, rules, before]) = <[OwnedFd; 4]>::try_from(files) else {
        bail!("{REHEARSAL}: not four numbers")
    };
    policy::reload(policy, &policy::Kept::from_before([rules, before]))
        .context("reading the rules that are in force")?;
    journal::read(&[one, other], drop).context("reading the journal of the version that runs")?;
    Ok(true)
}

/// Whether a variable of the environment is for one process alone.
pub(crate) fn is_for_one_process(key: &std::ffi::OsStr) -> bool {
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID", KEPT, METRICS, REHEARSAL]
        .iter()
        .any(|one| key == *one)
}

/// Where the next version of this program will stand: where this one was started from, by the path
/// that it was called by, so that a link is followed anew; and where that path leads nowhere else, by
/// the kernel's word, also if another file stands there now.
///
/// # Errors
///
/// If `/proc` does not tell.
pub(crate) fn program() -> io::Result<PathBuf> {
    let running = env::current_exe()?;
    let called = env::args_os().next().map(PathBuf::from);
    let called = called.filter(|path| path.is_absolute() && !path.starts_with("/proc"));
    let is_same = |path: &PathBuf| path.canonicalize().is_ok_and(|path| path == running);
    if let Some(called) = called.filter(is_same) {
        return Ok(called);
    }
    let text = running.to_string_lossy();
    // The kernel appends this where the file was replaced since.
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| running.clone(), PathBuf::from))
}

/// Numbers, and a dash where there is none.
fn to_numbers(text: &OsString) -> Result<Vec<Option<Number>>> {
    let text = text.to_str().context("numbers of descriptors")?;
    let one = |text: &str| match text {
        "-" => Ok(None),
        number => number.parse().map(Some).context("a descriptor's number"),
    };
    text.split(' ').map(one).collect()
}

fn to_text(numbers: &[Option<Number>]) -> OsString {
    let one = |number: &Option<Number>| number.map_or("-".to_owned(), |number| number.to_string());
    let texts: Vec<_> = numbers.iter().map(one).collect();
    texts.join(" ").into()
}
