//! What the kernel says of a descriptor, without waiting for any file system.

use std::os::fd::{AsFd, BorrowedFd};

use fdstash_proto::{Access, Flags, Kind};
use fdstash_stash::{Facts, Inspected};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, FileType, OFlags, Statx, StatxFlags, fcntl_getfl, makedev, readlink, statx},
    io::Errno,
    path::DecInt,
};

use crate::descriptor::Descriptor;

/// `O_DSYNC`: the constant of rustix 1.1.6 is `O_SYNC`.
pub(crate) const DSYNC: OFlags = OFlags::from_bits_retain(libc::O_DSYNC as u32);

/// Finds out what a descriptor is, but for where it points ([`Targets`](crate::targets::Targets)). Owns it, and closes it on failure.
///
/// # Errors
///
/// The kernel's: EACCES for what is on a FUSE file system that shows itself to its own user alone, which
/// is whoever has it as real, effective and saved user, and so none of our threads.
pub(crate) fn inspect(fd: Descriptor) -> Result<Inspected<Descriptor>, Errno> {
    let facts = facts(fd.as_fd(), &look(fd.as_fd())?, None)?;
    Ok(Inspected { fd, facts })
}

/// The status flags that a descriptor has now.
pub(crate) fn flags_now(fd: impl AsFd) -> Option<Flags> {
    fcntl_getfl(fd).ok().map(to_flags)
}

/// Whether a descriptor polls as hung up: a socket whose other side is closed for both directions, or
/// a terminal that was taken back from all who had it. Not for what FUSE may have to answer.
pub(crate) fn is_hung_up(fd: impl AsFd) -> bool {
    let mut ask = [PollFd::new(&fd, PollFlags::empty())];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut ask, Some(&at_once)).is_ok() && ask[0].revents().contains(PollFlags::HUP)
}

/// Looks at a file without asking its server: with `AT_STATX_DONT_SYNC`, NFS and FUSE answer from
/// what they have, so that a dead server costs nobody else's call a moment.
pub(crate) fn look(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS)
}

/// The device and inode number of a file.
pub(crate) fn identity(file: &Statx) -> (u64, u64) {
    (makedev(file.stx_dev_major, file.stx_dev_minor), file.stx_ino)
}

/// What is known of a descriptor of which this was seen, and which points there.
pub(crate) fn facts(
    fd: BorrowedFd<'_>,
    file: &Statx,
    target: Option<Box<str>>,
) -> Result<Facts, Errno> {
    let flags = fcntl_getfl(fd)?;
    let (device, inode) = identity(file);
    Ok(Facts {
        kind: kind(file),
        access: access(flags),
        flags: to_flags(flags),
        device,
        inode,
        target,
    })
}

/// What kind of file it is.
pub(crate) fn kind(file: &Statx) -> Kind {
    match FileType::from_raw_mode(file.stx_mode.into()) {
        FileType::RegularFile => Kind::Regular,
        FileType::Directory => Kind::Directory,
        FileType::BlockDevice => Kind::Block,
        FileType::CharacterDevice => Kind::Character,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        // A symbolic link, opened with O_PATH, has no word in the interface either.
        FileType::Symlink | FileType::Unknown => Kind::Anonymous,
    }
}

fn access(flags: OFlags) -> Access {
    if flags.contains(OFlags::PATH) {
        return Access::Path;
    }
    match flags & OFlags::ACCMODE {
        OFlags::RDONLY => Access::Read,
        OFlags::WRONLY => Access::Write,
        OFlags::RDWR => Access::ReadWrite,
        // Linux has a fourth, for ioctl alone: it neither reads nor writes.
        _ => Access::Path,
    }
}

fn to_flags(flags: OFlags) -> Flags {
    // O_SYNC has the bit of O_DSYNC in it.
    let sync = flags.contains(OFlags::SYNC);
    Flags::NONE
        .with(Flags::DIRECT, flags.contains(OFlags::DIRECT))
        .with(Flags::SYNC, sync)
        .with(Flags::DSYNC, !sync && flags.contains(DSYNC))
        .with(Flags::APPEND, flags.contains(OFlags::APPEND))
        .with(Flags::NONBLOCK, flags.contains(OFlags::NONBLOCK))
        .with(Flags::NOATIME, flags.contains(OFlags::NOATIME))
}

/// Where the descriptor points, as `/proc` tells it; a path that is no UTF-8 is told as well as it
/// can be.
pub(crate) fn target(fd: impl AsFd) -> Option<Box<str>> {
    let link = readlink(proc_path(fd.as_fd()), Vec::new()).ok()?;
    Some(link.to_string_lossy().into())
}

/// The path by which the kernel finds the very file of a descriptor of ours.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> std::path::PathBuf {
    std::path::Path::new("/proc/self/fd").join(DecInt::from_fd(fd))
}
