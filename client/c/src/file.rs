//! Files that are opened through the stash, as fdstash_open and its kin do: flags of open(2) into
//! options, and what is kept of each descriptor.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    slice, thread,
    time::{Duration, Instant},
};

use fdstash::{
    Access, Error, OpenOptions, Pattern, Refusal,
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

/// How long a name that another holds is tried for before it is closed, and the pause between two tries.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(4);

/// Opens a file, out of the stash if it is there.
pub(crate) fn open(path: &Path, flags: c_int, mode: mode_t) -> Result<(OwnedFd, Opened), Failure> {
    let mut options = options(flags & !libc::O_CREAT)?;
    if flags & libc::O_CREAT != 0 {
        if options.access() == Access::Read {
            return Err(Failure::Flags { flags, why: "O_CREAT makes no file that is only read" });
        }
        options = options.create(mode);
    }
    let file = session::with(|stash| Ok(File::open(stash, path, &options)?))?;
    let opened = Opened { name: file.name().clone(), identity: identity(&file)? };
    Ok((file.into(), opened))
}

/// Opens again the very file that a descriptor refers to.
pub(crate) fn reopen(number: c_int, fd: BorrowedFd<'_>, flags: c_int) -> Result<OwnedFd, Failure> {
    let options = options(flags)?;
    let opened = kept_of(number, fd)?;
    let file = session::with(|stash| Ok(File::open_kept(stash, &opened.name, &options)?))?;
    if identity(&file)? != opened.identity {
        return Err(Failure::AnotherFile { name: opened.name });
    }
    Ok(file.into())
}

/// Has the stash forget the file that a descriptor refers to.
pub(crate) fn forget(number: c_int, fd: BorrowedFd<'_>) -> Result<(), Failure> {
    let opened = kept_of(number, fd)?;
    let begun = Instant::now();
    loop {
        match session::with(|stash| forget_in(stash, &opened)) {
            Err(Failure::Stash(Error::Refused(Refusal::NotFound { .. }))) => return Ok(()),
            // Others that open the same file hold its name for moments.
            Err(Failure::Stash(Error::Refused(Refusal::Busy { .. })))
                if begun.elapsed() < PATIENCE =>
            {
                thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Others may have put another file there, which this process has no business to close.
fn forget_in(stash: &mut Client, opened: &Opened) -> Result<(), Failure> {
    let Opened { name, identity } = opened;
    // A name can have a '*' in it, and so match more than itself.
    let pattern = Pattern::new(name.as_str()).unwrap_or_else(|_| Pattern::all());
    let listed = stash.list(&pattern)?;
    let Some(entry) = listed.into_iter().find(|entry| entry.name == *name) else { return Ok(()) };
    if (entry.device, entry.inode) != *identity {
        return Err(Failure::AnotherFile { name: name.clone() });
    }
    Ok(stash.close(slice::from_ref(name))?)
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
