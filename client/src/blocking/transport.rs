//! How the blocking client's bytes and descriptors go.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use fdstash_proto::socket::{self, Received};

use crate::{core::Staged, stage::Stage, transport::Transport};

/// A transport that has waited when its futures are first asked.
pub(crate) struct Blocking {
    socket: UnixStream,
    /// Whether nothing has come since something was sent.
    has_sent: AtomicBool,
}

impl Transport for Blocking {
    async fn connect(socket: &Path) -> io::Result<Self> {
        loop {
            match UnixStream::connect(socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => {
                    return outcome.map(|socket| Self { socket, has_sent: AtomicBool::new(false) });
                }
            }
        }
    }

    async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.has_sent.store(true, Ordering::Relaxed);
        socket::send(&self.socket, bytes, fds)
    }

    async fn receive(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<Received> {
        // A read that waits by itself is woken as well when the other side takes what was sent to it: to
        // find nothing, and wait on.
        if self.has_sent.swap(false, Ordering::Relaxed) {
            socket::wait(&self.socket)?;
        }
        socket::receive(&self.socket, buffer, fds)
    }

    async fn pause(span: Duration) {
        thread::sleep(span);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn stage(staged: Staged<'_, Self>) -> Stage<'_> {
        Stage::Blocking(staged)
    }
}
