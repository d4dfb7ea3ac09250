//! Sending and receiving over a borrowed socket: the one file that moves descriptors between
//! processes.
//!
//! Sending goes through `sendfd`. Receiving does not, because sendfd 0.4.5 sets no
//! `MSG_CMSG_CLOEXEC`, so that a fork in another thread would leak a descriptor to its child, and
//! does not tell of `MSG_CTRUNC`, so that descriptors without room here would vanish silently.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg,
        send as send_bytes,
    },
};
use sendfd::SendWithFd;

use crate::MAX_DESCRIPTORS;

/// What one read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many bytes; never zero.
    Bytes(usize),
    /// The other side will send no more.
    End,
    /// So many bytes, but not all of the descriptors that were sent with them: this process had no
    /// room for the rest, and they are gone.
    Truncated(usize),
}

/// Reads once into `buffer`, and appends the descriptors that came to `fds`, which owns them from
/// then on; they are close-on-exec from the first instant. On a non-blocking socket it does not
/// wait.
///
/// # Errors
///
/// What `recvmsg` fails with; an interrupted one is tried again.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    // With room for the most that the kernel passes in one message, a lack of it is the process's.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(buffer)];
        recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            fds.extend(received);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Received::Truncated(message.bytes));
    }
    Ok(if message.bytes == 0 { Received::End } else { Received::Bytes(message.bytes) })
}

/// Waits until something can be read, be it the end.
///
/// # Errors
///
/// What `poll` fails with; an interrupted one is tried again.
pub fn wait(socket: impl AsFd) -> io::Result<()> {
    let mut ask = [PollFd::new(&socket, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut ask, None))?;
    Ok(())
}

/// Reads once into `buffer`, if no descriptors come with what stands there; else nothing is read, and
/// there is nothing to tell. So who has no room for descriptors goes on with what brings none.
///
/// # Errors
///
/// What `recvmsg` fails with; an interrupted one is tried again.
pub fn receive_without_descriptors(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<Option<Received>> {
    // A read that has no room for descriptors says that there were some; and one that only looks
    // leaves them where they are.
    let look = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    let message = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(buffer)];
        recvmsg(&socket, &mut parts, &mut RecvAncillaryBuffer::default(), look)
    })?;
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(None);
    }
    // No more than that: behind it there may be descriptors.
    let seen = &mut buffer[..message.bytes];
    receive(socket, seen, &mut Vec::new()).map(Some)
}

/// Sends once, and tells how many bytes the kernel accepted; if it accepted one, all descriptors
/// are on their way. It only borrows them. On a non-blocking socket it does not wait.
///
/// With descriptors it raises `SIGPIPE` where the other side is gone, which Rust programs ignore
/// from their start, and which the C library takes off before its callers see it.
///
/// # Errors
///
/// What `sendmsg` fails with; an interrupted one is tried again.
pub fn send(
    socket: &(impl AsFd + SendWithFd),
    bytes: &[u8],
    fds: &[impl AsFd],
) -> io::Result<usize> {
    if fds.is_empty() {
        let sent = rustix::io::retry_on_intr(|| send_bytes(socket, bytes, SendFlags::NOSIGNAL))?;
        return Ok(sent);
    }
    #[expect(clippy::disallowed_methods, reason = "sendfd takes numbers; `fds` outlives the call")]
    let number = |fd: &_| AsFd::as_fd(fd).as_raw_fd();
    let (one, many): (_, Vec<_>);
    let numbers = if let [fd] = fds {
        one = [number(fd)];
        &one[..]
    } else {
        many = fds.iter().map(number).collect();
        &many
    };
    loop {
        match socket.send_with_fd(bytes, numbers) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}
