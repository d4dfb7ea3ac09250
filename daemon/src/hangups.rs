//! [`Hangups`]: which held descriptors poll as hung up or failed.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result};
use fdstash_stash::EntryId;
use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    fs::FileType,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{inspect::look, polled::polled};

/// An epoll of its own, so that data that comes for a held socket wakes nobody: it asks for no
/// event, and the kernel tells of errors and hang-ups unasked. It tells of each once: an entry that a
/// transaction holds goes only afterwards, and would keep the event loop busy until then.
pub(crate) struct Hangups {
    epoll: AsyncFd<OwnedFd>,
}

impl Hangups {
    pub(crate) fn new() -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("making an epoll")?;
        Ok(Self { epoll: polled(epoll, Interest::READABLE).context("waiting for an epoll")? })
    }

    /// Looks out for a descriptor from here on. What cannot be polled, like a regular file, never
    /// hangs up; one of FUSE can be, but its server would be asked, and waited for.
    pub(crate) fn add(&self, id: EntryId, fd: impl AsFd) {
        let file = look(fd.as_fd());
        if file.is_ok_and(|file| FileType::from_raw_mode(file.stx_mode.into()).is_file()) {
            return;
        }
        let data = EventData::new_u64(id.0);
        match epoll::add(self.epoll.get_ref(), fd, data, EventFlags::ONESHOT) {
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => {
                tracing::warn!(%error, "polling a descriptor failed, it will not close on hang-up");
            }
        }
    }

    /// Looks out for it no longer. Needed while it is still open: others may hold the same open file
    /// description, and epoll goes by that.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // Fails for what could not be added; then there is nothing to remove.
        let _ = epoll::delete(self.epoll.get_ref(), fd);
    }

    /// Waits until some have hung up.
    pub(crate) async fn next(&self) -> Vec<EntryId> {
        loop {
            let Ok(mut ready) = self.epoll.readable().await else { return Vec::new() };
            let hung_up = ready.try_io(|epoll| {
                let mut events = [MaybeUninit::<Event>::uninit(); 64];
                let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
                let (events, _) = epoll::wait(epoll, &mut events, Some(&at_once))?;
                if events.is_empty() {
                    return Err(std::io::ErrorKind::WouldBlock.into());
                }
                Ok(events.iter().map(|event| EntryId(event.data.u64())).collect())
            });
            if let Ok(Ok(hung_up)) = hung_up {
                return hung_up;
            }
        }
    }
}
