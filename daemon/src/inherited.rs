//! Descriptors that this process was started with: numbers into owned descriptors, once each.

use std::{
    collections::BTreeSet,
    env, io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use fdstash_stash::Number;
use rustix::{
    fs::{Mode, OFlags, RawDir, open},
    io::{Errno, FdFlags, fcntl_setfd},
    net::{
        AddressFamily, SocketType,
        sockopt::{socket_acceptconn, socket_domain, socket_type},
    },
    process::{Resource, getpid, getrlimit},
};

/// The first number of those that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST: Number = 3;

/// The open descriptors of this process that belong to nobody in it yet.
pub(crate) struct Inherited(BTreeSet<Number>);

impl Inherited {
    /// Those that systemd has passed (`LISTEN_FDS`) to this very process, each with its name
    /// (`LISTEN_FDNAMES`).
    ///
    /// # Errors
    ///
    /// If what the environment says of them cannot be read.
    pub(crate) fn from_systemd() -> Result<(Self, Vec<(Number, String)>)> {
        let for_us =
            env::var("LISTEN_PID").is_ok_and(|pid| pid == getpid().as_raw_pid().to_string());
        let Some(count) = env::var("LISTEN_FDS").ok().filter(|_| for_us) else {
            return Ok((Self(BTreeSet::new()), Vec::new()));
        };
        let count: Number = count.parse().context("reading LISTEN_FDS")?;
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let named = (FIRST..FIRST.saturating_add(count))
            .map(|number| (number, names.next().unwrap_or_default()))
            .collect::<Vec<_>>();
        Ok((Self(named.iter().map(|(number, _)| *number).collect()), named))
    }

    /// Those of these numbers, which whoever this process was before has left open for it.
    pub(crate) fn from_before(numbers: impl IntoIterator<Item = Number>) -> Self {
        Self(numbers.into_iter().collect())
    }

    /// All that are open but `ours`, which somebody in this process owns already.
    ///
    /// # Errors
    ///
    /// If `/proc` does not tell.
    pub(crate) fn all_but(ours: &BTreeSet<Number>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match open("/proc/self/fd", flags, Mode::empty()) {
            // No number is left for it, so every one is of something: the last server died when its
            // clients had sent it as much as it could hold.
            Err(Errno::MFILE) => {
                let limit = getrlimit(Resource::Nofile).current.unwrap_or_default();
                let all = 0..Number::try_from(limit).unwrap_or_default();
                return Ok(Self(&all.collect() - ours));
            }
            outcome => outcome?,
        };
        let own = number(&folder);
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(&folder, &mut buffer);
        let mut numbers = BTreeSet::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_str().unwrap_or_default();
            numbers.extend(name.parse::<Number>().ok());
        }
        numbers.remove(&own);
        Ok(Self(&numbers - ours))
    }

    /// Makes the number its owner's. None, if it is not open, or somebody's already.
    pub(crate) fn claim(&mut self, number: Number) -> Option<OwnedFd> {
        self.0.remove(&number).then(|| owned(number))
    }

    /// Makes all but these their owner's.
    pub(crate) fn claim_all_but(&mut self, others: &BTreeSet<Number>) -> Vec<OwnedFd> {
        let (stay, claimed) = self.0.iter().partition(|number| others.contains(number));
        self.0 = stay;
        let claimed: BTreeSet<Number> = claimed;
        claimed.into_iter().map(owned).collect()
    }
}

/// What a descriptor is called in the process's table.
#[expect(clippy::disallowed_methods, reason = "what outlives this process is known by number")]
pub(crate) fn number(fd: impl AsFd) -> Number {
    fd.as_fd().as_raw_fd().unsigned_abs()
}

/// Lets a descriptor be there after an exec, or not.
pub(crate) fn set_survives_exec(fd: impl AsFd, survives: bool) -> io::Result<()> {
    let flags = if survives { FdFlags::empty() } else { FdFlags::CLOEXEC };
    Ok(fcntl_setfd(fd, flags)?)
}

/// The listening socket among what systemd has passed, if it has passed one.
///
/// # Errors
///
/// If what it has passed under another name than those of `is_other` is not one listening socket.
pub(crate) fn listening_socket(
    inherited: &mut Inherited,
    named: &[(Number, String)],
    is_other: impl Fn(&str) -> bool,
) -> Result<Option<OwnedFd>> {
    let sockets: Vec<_> = named.iter().filter(|(_, name)| !is_other(name)).collect();
    let [(number, _)] = sockets[..] else {
        let count = sockets.len();
        return match count {
            0 => Ok(None),
            _ => bail!("systemd has passed {count} sockets, and fdstashd listens at one"),
        };
    };
    let Some(socket) = inherited.claim(*number) else { return Ok(None) };
    set_survives_exec(&socket, false).context("the descriptor that systemd has passed")?;
    let is_ours = socket_acceptconn(&socket).unwrap_or(false)
        && socket_domain(&socket).is_ok_and(|domain| domain == AddressFamily::UNIX)
        && socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM);
    if !is_ours {
        bail!("the descriptor that systemd has passed is no listening Unix stream socket");
    }
    Ok(Some(socket))
}

#[expect(unsafe_code, clippy::disallowed_methods, reason = "what is inherited comes as numbers")]
fn owned(number: Number) -> OwnedFd {
    // SAFETY: the number is open, as systemd, the process that was here before, or the kernel has
    // said, and nobody in this process owns it: whoever made the `Inherited` has left out what is
    // owned, and `claim` strikes each number from it (a_number_is_claimed_once).
    unsafe { OwnedFd::from_raw_fd(i32::from_ne_bytes(number.to_ne_bytes())) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_number_is_claimed_once() {
        let file = File::open("/dev/null").unwrap();
        let open = number(&file);
        std::mem::forget(file);
        let mut inherited = Inherited::from_before([open]);

        let claimed = inherited.claim(open);

        assert!(claimed.is_some());
        assert!(inherited.claim(open).is_none());
        assert!(inherited.claim_all_but(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn what_is_open_is_found_but_for_what_is_owned() {
        let (one, two) = (File::open("/dev/null").unwrap(), File::open("/dev/null").unwrap());

        let found = Inherited::all_but(&BTreeSet::from([number(&one)])).unwrap();

        assert!(found.0.contains(&number(&two)));
        assert!(!found.0.contains(&number(&one)));
    }
}
