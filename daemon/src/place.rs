//! Finding what stands at a path below a directory, and nothing that the path leads to elsewhere.
//!
//! It is found before it is opened, so that nothing is opened that is not what an entry can be: the open
//! of a pipe would wait for its other end, and that of a device can do something by itself.

use std::os::fd::{AsFd, OwnedFd};

use fdstash_proto::Kind;
use fdstash_stash::Place;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2},
    io::Errno,
};

use crate::inspect::{kind, look};

/// How often it is tried anew where something is renamed on the way meanwhile.
const TRIES: u32 = 8;

/// A file that was found, and is not open: it can only be opened anew.
pub(crate) struct Found {
    pub(crate) fd: OwnedFd,
    pub(crate) kind: Kind,
}

/// Finds the file at a place, for an entry of a kind. With the rights of the thread that calls this.
///
/// # Errors
///
/// The kernel's: EXDEV where the path leads out of the directory, ELOOP where it leads over what
/// `/proc` has of other processes. EOPNOTSUPP for what is neither a regular file nor a block device, nor
/// of the entry's kind.
pub(crate) fn find(place: &Place, entry: Kind) -> Result<Found, Errno> {
    const FOUND: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
    let below = openat(CWD, &*place.below, FOUND | OFlags::DIRECTORY, Mode::empty())?;
    let path = if place.path.is_empty() { "." } else { &place.path };
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    let fd = loop {
        tries += 1;
        match openat2(&below, path, FOUND, Mode::empty(), within) {
            Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => {}
            outcome => break outcome?,
        }
    };
    let kind = kind(&look(fd.as_fd())?);
    if !matches!(kind, Kind::Regular | Kind::Block) && kind != entry {
        return Err(Errno::OPNOTSUPP);
    }
    Ok(Found { fd, kind })
}
