//! The descriptor that is to be given: standard input, one that this process was started with, or
//! one of a file that is opened for it.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use anyhow::Context;
use fdstash::Access;
use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};

/// A duplicate of the descriptor of that number, as whoever started this process left it. To be
/// called before anything is opened, so that it cannot be one of our own.
pub(crate) fn inherited(number: i32) -> anyhow::Result<OwnedFd> {
    let is_open = fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    anyhow::ensure!(is_open, "descriptor {number} is not open");
    // The kernel lets a process look up its own numbers like those of another, so that none needs
    // to be trusted here.
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    pidfd_getfd(&this, number, PidfdGetfdFlags::empty()).with_context(|| {
        format!(
            "the kernel does not hand out descriptor {number} here; give it as standard input \
             instead: <&{number}"
        )
    })
}

/// Opens a file for reading and writing, or for reading if that is all that can be, unless `access`
/// says for what.
pub(crate) fn opened(
    path: &Path,
    access: Option<Access>,
    others: OFlags,
) -> anyhow::Result<OwnedFd> {
    let open_for = |access| open(path, access | others | always(), Mode::empty());
    let outcome = match access.map(mode_of) {
        Some(mode) => open_for(mode),
        None => match open_for(OFlags::RDWR) {
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::ISDIR | Errno::TXTBSY) => {
                open_for(OFlags::RDONLY)
            }
            outcome => outcome,
        },
    };
    outcome.map_err(io::Error::from).with_context(|| format!("could not open {}", path.display()))
}

fn always() -> OFlags {
    OFlags::CLOEXEC | OFlags::NOCTTY
}

fn mode_of(access: Access) -> OFlags {
    match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
        Access::ReadWrite => OFlags::RDWR,
        Access::Path => OFlags::PATH,
    }
}
