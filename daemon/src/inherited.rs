//! Descriptors that this process was started with: numbers into owned descriptors, once each.

use std::{
    env, fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use fdstash_stash::Number;
use rustix::{
    io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd},
    net::{
        AddressFamily, SocketType,
        sockopt::{socket_acceptconn, socket_domain, socket_type},
    },
    process::{Resource, getpid, getrlimit},
};

/// The first number of those that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST: Number = 3;

/// What systemd has passed, and the name of each.
pub(crate) type Passed = (Inherited, Vec<(Number, String)>);

/// The open descriptors of this process that belong to nobody in it yet.
#[derive(Clone)]
pub(crate) struct Inherited {
    /// For each number whether it may be claimed, if it is open.
    free: Vec<bool>,
}

impl Inherited {
    /// Those that systemd has passed (`LISTEN_FDS`) to this very process, each with its name
    /// (`LISTEN_FDNAMES`).
    ///
    /// # Errors
    ///
    /// If what the environment says of them cannot be read.
    pub(crate) fn from_systemd() -> Result<Passed> {
        let for_us =
            env::var("LISTEN_PID").is_ok_and(|pid| pid == getpid().as_raw_pid().to_string());
        let Some(count) = env::var("LISTEN_FDS").ok().filter(|_| for_us) else {
            return Ok((Self { free: Vec::new() }, Vec::new()));
        };
        let count: u16 = count.parse().context("reading LISTEN_FDS")?;
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let named: Vec<_> = (FIRST..FIRST + Number::from(count))
            .map(|number| (number, names.next().unwrap_or_default()))
            .collect();
        let open = named.iter().map(|(number, _)| *number).filter(|number| is_open(*number));
        Ok((Self::from_before(open), named))
    }

    /// Those of these numbers, which whoever this process was before has left open for it.
    pub(crate) fn from_before(numbers: impl IntoIterator<Item = Number>) -> Self {
        let mut inherited = Self { free: Vec::new() };
        for number in numbers {
            inherited.release(number);
        }
        inherited
    }

    /// All that are open but `ours`, which somebody in this process owns already.
    ///
    /// # Errors
    ///
    /// If `/proc` does not tell how many there may be.
    pub(crate) fn all_but(ours: impl IntoIterator<Item = Number>) -> Result<Self> {
        // To list /proc/self/fd takes the kernel an inode for each, 2.4 us of them: with 20,000 open
        // that is half of the time in which all is to be back.
        let size = size_of_table()?;
        // Those that are open now: what is opened later has its owner.
        let mut inherited = Self { free: (0..size).map(is_open).collect() };
        for number in ours {
            if let Some(free) = inherited.free.get_mut(number as usize) {
                *free = false;
            }
        }
        Ok(inherited)
    }

    /// Makes the number its owner's, and sees to it that it closes at an exec. None, if it is not
    /// open, or somebody's already.
    pub(crate) fn claim(&mut self, number: Number) -> Option<OwnedFd> {
        let free = self.free.get_mut(number as usize).filter(|free| **free)?;
        *free = false;
        let fd = owned(number)?;
        set_survives_exec(&fd, false).ok()?;
        Some(fd)
    }

    /// Makes those of these numbers their owner's that are of listening stream sockets, and leaves the rest.
    pub(crate) fn claim_listening(&mut self, numbers: &[Number]) -> Vec<OwnedFd> {
        let mut claimed = Vec::with_capacity(numbers.len());
        for number in numbers {
            match self.claim(*number) {
                Some(fd) if listens(&fd) => claimed.push(fd),
                Some(fd) => self.give_back(fd),
                None => {}
            }
        }
        claimed
    }

    /// Makes all that are open but these their owner's.
    pub(crate) fn claim_all_but(
        &mut self,
        others: impl IntoIterator<Item = Number>,
    ) -> Vec<OwnedFd> {
        let mut claimed = std::mem::take(&mut self.free);
        self.free = vec![false; claimed.len()];
        for number in others {
            if let Some(is_free) = claimed.get_mut(number as usize) {
                self.free[number as usize] = std::mem::take(is_free);
            }
        }
        let numbers =
            claimed.into_iter().zip(0..).filter_map(|(free, number)| free.then_some(number));
        numbers.filter_map(owned).collect()
    }

    /// Takes a descriptor back, to be claimed by its number.
    pub(crate) fn give_back(&mut self, fd: OwnedFd) {
        self.release(fd.into_raw_fd().unsigned_abs());
    }

    /// Looks at all that are open and none of these.
    ///
    /// # Errors
    ///
    /// As [`Inherited::all_but`].
    #[expect(unsafe_code, reason = "whose they are is not known here")]
    pub(crate) fn look_at_others(&self, mut look: impl FnMut(BorrowedFd<'_>)) -> Result<()> {
        let is_one = |number: &Number| self.free.get(*number as usize).is_some_and(|free| *free);
        for number in (0..size_of_table()?).filter(|number| !is_one(number) && is_open(*number)) {
            let Ok(number) = i32::try_from(number) else { continue };
            // SAFETY: the borrow ends with the look; a number that is closed meanwhile is an error to
            // whoever looks, and one that is another's by then is looked at like all others.
            look(unsafe { BorrowedFd::borrow_raw(number) });
        }
        Ok(())
    }

    fn release(&mut self, number: Number) {
        let at = number as usize;
        self.free.resize(self.free.len().max(at + 1), false);
        self.free[at] = true;
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
    let is_ours = socket_acceptconn(&socket).unwrap_or(false)
        && socket_domain(&socket).is_ok_and(|domain| domain == AddressFamily::UNIX)
        && socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM);
    if !is_ours {
        bail!("the descriptor that systemd has passed is no listening Unix stream socket");
    }
    Ok(Some(socket))
}

/// What systemd calls the sockets at which metrics are told (`FileDescriptorName=`).
pub(crate) const METRICS: &str = "metrics";

/// Those sockets, as many as systemd has passed.
///
/// # Errors
///
/// If what it has passed under that name is no listening stream socket.
pub(crate) fn metrics_sockets(
    inherited: &mut Inherited,
    named: &[(Number, String)],
) -> Result<Vec<OwnedFd>> {
    let numbers = named.iter().filter(|(_, name)| name == METRICS).map(|(number, _)| *number);
    let sockets: Vec<_> = numbers.filter_map(|number| inherited.claim(number)).collect();
    if !sockets.iter().all(listens) {
        bail!("what systemd has passed for the metrics is no listening stream socket");
    }
    Ok(sockets)
}

fn listens(socket: &OwnedFd) -> bool {
    socket_acceptconn(socket).unwrap_or(false)
        && socket_type(socket).is_ok_and(|kind| kind == SocketType::STREAM)
}

/// No number of an open descriptor is higher.
fn size_of_table() -> Result<Number> {
    let status = match fs::read_to_string("/proc/self/status") {
        // No number is left for it: the last server died when its clients had sent it as much as it
        // could hold.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::MFILE) => {
            let limit = getrlimit(Resource::Nofile).current.unwrap_or_default();
            return Ok(Number::try_from(limit)?);
        }
        outcome => outcome.context("reading /proc/self/status")?,
    };
    let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
    size.and_then(|size| size.trim().parse().ok())
        .context("there is no FDSize in /proc/self/status")
}

#[expect(unsafe_code, reason = "what is inherited comes as numbers")]
fn is_open(number: Number) -> bool {
    let Ok(number) = i32::try_from(number) else { return false };
    // SAFETY: the borrow ends with the question whether the number is open, which may be asked of any.
    fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).is_ok()
}

/// The owner of a number, if it is open.
#[expect(unsafe_code, clippy::disallowed_methods, reason = "what is inherited comes as numbers")]
fn owned(number: Number) -> Option<OwnedFd> {
    let raw = i32::try_from(number).ok()?;
    // SAFETY: the number is open, and nobody in this process owns it: whoever made the `Inherited` has
    // left out what is owned, and `claim` strikes each number from it (a_number_is_claimed_once).
    is_open(number).then(|| unsafe { OwnedFd::from_raw_fd(raw) })
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
        assert!(inherited.claim_all_but([]).is_empty());
    }

    #[test]
    fn of_what_should_listen_the_rest_is_left_and_stays_open() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let file = File::open("/dev/null").unwrap();
        let numbers = [number(&listener), number(&file), 1_000_000];
        std::mem::forget((listener, file));
        let mut inherited = Inherited::from_before(numbers);

        let claimed = inherited.claim_listening(&numbers);

        assert_eq!(claimed.iter().map(number).collect::<Vec<_>>(), numbers[..1]);
        assert!(inherited.claim(numbers[1]).is_some());
    }

    #[test]
    fn what_is_open_is_found_but_for_what_is_owned() {
        let (one, two) = (File::open("/dev/null").unwrap(), File::open("/dev/null").unwrap());

        let found = Inherited::all_but([number(&one)]).unwrap();

        assert!(found.free[number(&two) as usize]);
        assert!(!found.free[number(&one) as usize]);
    }

    #[test]
    fn what_is_not_open_is_nobodys() {
        let mut inherited = Inherited::from_before([1_000_000]);

        assert!(inherited.claim(1_000_000).is_none());
        assert!(inherited.claim(1_000_001).is_none());
    }
}
