//! Files that are opened through the stash, as fdstash_open and its kin do: flags of open(2) into
//! options, and what is kept of each descriptor.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use fdstash::{
    Access, Error, OpenOptions, Refusal,
    blocking::{Client, File},
};
use libc::{c_int, mode_t};
use rustix::fs::fstat;

use crate::{
    failure::Failure,
    session::{self, Opened},
};

/// What every descriptor is opened with, or what changes nothing on this machine.
const IMPLIED: c_int = libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_LARGEFILE;

/// How long a name that another holds is tried for: others that open the same file hold it for moments,
/// but there may be many of them.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest pause between two tries. Longer ones would give way to whoever tries more often.
const PAUSE: Duration = Duration::from_millis(8);

/// Opens a file, out of the stash if it is there.
pub(crate) fn open(path: &Path, flags: c_int, mode: mode_t) -> Result<(OwnedFd, Opened), Failure> {
    let mut options = options(flags & !libc::O_CREAT)?;
    if flags & libc::O_CREAT != 0 {
        if options.access() == Access::Read {
            return Err(Failure::Flags { flags, why: "O_CREAT makes no file that is only read" });
        }
        options = options.create(mode);
    }
    let file = patiently(|| session::with(|stash| open_with(stash, path, &options)))?;
    let opened = Opened { name: file.name().clone(), identity: identity(&file)? };
    Ok((file.into(), opened))
}

/// So that it can be opened for reading and writing later, if that is this user's right; the daemon
/// refuses to keep it so where it is not.
fn open_with(stash: &mut Client, path: &Path, options: &OpenOptions) -> Result<File, Failure> {
    if options.access() != Access::ReadWrite {
        let widely = options.clone().may_reopen(Access::ReadWrite);
        match File::open(stash, path, &widely) {
            Err(Error::Refused(_)) => {}
            outcome => return Ok(outcome?),
        }
    }
    Ok(File::open(stash, path, options)?)
}

/// Opens again the very file that a descriptor refers to.
pub(crate) fn reopen(number: c_int, fd: BorrowedFd<'_>, flags: c_int) -> Result<OwnedFd, Failure> {
    let options = options(flags)?;
    let opened = kept_of(number, fd)?;
    let open = |stash: &mut Client| Ok(File::open_kept(stash, &opened.name, &options)?);
    let file = patiently(|| session::with(open))?;
    if identity(&file)? != opened.identity {
        return Err(Failure::AnotherFile { name: opened.name });
    }
    Ok(file.into())
}

/// Does again what another process's opening of the same file stood against, which holds its name for
/// as long as that takes. The calls of other threads are not held up meanwhile.
fn patiently<T>(mut call: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let outcome = call();
        let is_held = matches!(
            outcome,
            Err(Failure::Stash(Error::Refused(
                Refusal::Busy { .. } | Refusal::AlreadyExists { .. }
            )))
        );
        if !is_held || begun.elapsed() > PATIENCE {
            return outcome;
        }
        thread::sleep(pause);
        pause = PAUSE.min(pause * 2);
    }
}

/// Has the stash forget the file that a descriptor refers to.
pub(crate) fn forget(number: c_int, fd: BorrowedFd<'_>) -> Result<(), Failure> {
    let opened = kept_of(number, fd)?;
    let names = [opened.name];
    let closed = patiently(|| session::with(|stash| Ok(stash.close(&names)?)));
    match closed {
        Err(Failure::Stash(Error::Refused(Refusal::NotFound { .. }))) => Ok(()),
        outcome => outcome,
    }
}

/// What a number was noted for, if it is still that.
fn kept_of(number: c_int, fd: BorrowedFd<'_>) -> Result<Opened, Failure> {
    let identity = identity(fd)?;
    let opened = session::noted(number).filter(|opened| opened.identity == identity);
    opened.ok_or(Failure::NotOpened { fd: number })
}

fn options(flags: c_int) -> Result<OpenOptions, Failure> {
    let options = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => OpenOptions::read(),
        libc::O_WRONLY => OpenOptions::write(),
        libc::O_RDWR => OpenOptions::read_write(),
        _ => return Err(Failure::Flags { flags, why: "there is no such access mode" }),
    };
    let mut left = flags & !libc::O_ACCMODE & !IMPLIED;
    // O_SYNC is O_DSYNC and one bit more, so whichever comes first takes both.
    let mut has = |flag: c_int| {
        let has = left & flag == flag;
        left &= if has { !flag } else { !0 };
        has
    };
    let options = options
        .sync(has(libc::O_SYNC))
        .dsync(has(libc::O_DSYNC))
        .direct(has(libc::O_DIRECT))
        .at_end(has(libc::O_APPEND))
        .noatime(has(libc::O_NOATIME));
    if left != 0 {
        return Err(Failure::Flags { flags: left, why: "these are not for what a stash keeps" });
    }
    Ok(options)
}

fn identity(fd: impl AsFd) -> Result<(u64, u64), Failure> {
    let stat = fstat(fd).map_err(|error| Failure::system("look at a descriptor", error))?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_open_become_options() {
        let table = [
            (libc::O_RDONLY, OpenOptions::read()),
            (libc::O_RDWR | libc::O_CLOEXEC, OpenOptions::read_write()),
            (libc::O_WRONLY | libc::O_APPEND, OpenOptions::append()),
            (libc::O_RDWR | libc::O_DIRECT, OpenOptions::read_write().direct(true)),
            (libc::O_RDWR | libc::O_SYNC, OpenOptions::read_write().sync(true)),
            (libc::O_RDWR | libc::O_DSYNC, OpenOptions::read_write().dsync(true)),
            (libc::O_RDONLY | libc::O_NOATIME, OpenOptions::read().noatime(true)),
        ];

        for (flags, expected) in table {
            assert_eq!(options(flags).unwrap(), expected, "{flags:o}");
        }
        for flags in [
            libc::O_ACCMODE,
            libc::O_RDWR | libc::O_TRUNC,
            libc::O_RDWR | libc::O_EXCL,
            libc::O_PATH,
            libc::O_RDONLY | libc::O_DIRECTORY,
        ] {
            let refused = options(flags).map(|_| ()).unwrap_err();
            assert_eq!(refused.errno(), libc::EINVAL, "{flags:o}");
        }
    }
}
