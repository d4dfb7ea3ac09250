//! A bundle: one end of a socketpair with messages in its queue, each with the descriptors of some
//! entries and, in a memfd before them, what they are.
//!
//! Whoever holds the receiving end holds all of it, and what is sent later too. So systemd is told
//! of a bundle once. What is received here leaves the queue for systemd as well.
//!
//! What the kernel does with such a queue is asked of it in `daemon/tests/bundle_facts.rs`.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::{MaybeUninit, size_of},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use fdstash_stash::mirror::{BundleId, MESSAGE_ENTRIES};
use rustix::{
    fs::fstat,
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv,
        recvmsg, sendmsg, socketpair,
        sockopt::{socket_peercred, socket_type},
    },
    process::geteuid,
};

use crate::{
    inherited::set_survives_exec,
    inspect::{identity, look},
    journal::memory,
};

/// What every message begins with: whose it is, and how it is to be read.
const MAGIC: [u8; 8] = *b"fdstash1";

/// The magic, how many entries, how many bytes the memfd has, and their checksum, against a memfd that
/// is not what was sent.
const PAYLOAD: usize = MAGIC.len() + 3 * size_of::<u32>();

/// What stands before each record in the memfd.
const LENGTH: usize = size_of::<u32>();

/// No message is read that has more to say of its entries.
const MOST_BYTES: usize = 64 << 20;

/// Both ends of a bundle.
#[derive(Debug)]
pub(crate) struct Bundle {
    sender: OwnedFd,
    receiver: Arc<OwnedFd>,
}

/// A message of a bundle that could not be read, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message {number} of bundle {bundle}: {reason}")]
pub(crate) struct Unread {
    /// Which one of the bundles that were to be read.
    pub(crate) bundle: usize,
    /// Which one of the bundle's messages.
    pub(crate) number: usize,
    /// Why.
    pub(crate) reason: Reason,
}

impl Unread {
    /// Whether it could be read where there is more room.
    pub(crate) fn is_for_lack_of_room(&self) -> bool {
        match self.reason {
            Reason::NoRoom => true,
            Reason::Kernel(errno) => {
                matches!(errno, Errno::NOMEM | Errno::NOBUFS | Errno::MFILE | Errno::NFILE)
            }
            Reason::Damaged(_) => false,
        }
    }
}

/// Why a message could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reason {
    /// This process had no room for all of the descriptors.
    #[error("no room for its descriptors here")]
    NoRoom,
    /// It is not ours, or damaged.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// The kernel's.
    #[error("{0}")]
    Kernel(Errno),
}

/// The name under which a bundle is stored, by the daemon's how manieth life.
pub(crate) fn name(life: u64, id: BundleId) -> String {
    name_of(life, id.0)
}

/// The same, by its number.
pub(crate) fn name_of(life: u64, number: u64) -> String {
    format!("fdstash.{life}.{number}")
}

/// The life that a bundle's name tells of, and its number in that, if it is one's.
pub(crate) fn parse(name: &str) -> Option<(u64, u64)> {
    let (life, number) = name.strip_prefix("fdstash.")?.split_once('.')?;
    Some((life.parse().ok()?, number.parse().ok()?))
}

/// Whether a descriptor is the receiving end of a bundle that has something in it. Only what this very
/// user has made can be one, or root, whose the daemon may have been, whatever somebody else's says.
pub(crate) fn is_one(fd: &OwnedFd) -> bool {
    let mut magic = [0; MAGIC.len()];
    let is_packets = socket_type(fd).is_ok_and(|kind| kind == SocketType::SEQPACKET);
    is_packets
        && socket_peercred(fd).is_ok_and(|maker| maker.uid == geteuid() || maker.uid.is_root())
        && recv(fd, &mut magic, RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok()
        && magic == MAGIC
}

impl Bundle {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn new() -> io::Result<Self> {
        let (sender, receiver) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // The next version of this program empties it before the store has the last hold of it.
        set_survives_exec(&receiver, true)?;
        Ok(Self { sender, receiver: Arc::new(receiver) })
    }

    /// The device and inode number of each end.
    pub(crate) fn identities(&self) -> impl Iterator<Item = (u64, u64)> {
        let ends = [self.sender.as_fd(), self.receiver.as_fd()];
        ends.into_iter().filter_map(|end| look(end).ok()).map(|end| identity(&end))
    }

    /// Sends a message that is none of ours.
    #[cfg(test)]
    pub(crate) fn append_garbage(&self) {
        rustix::net::send(&self.sender, &[7; 100], SendFlags::empty()).unwrap();
    }

    /// What is to be stored, and what messages are taken from.
    pub(crate) fn receiver(&self) -> &Arc<OwnedFd> {
        &self.receiver
    }

    /// Sends some entries, at most as many as a message takes, each a record and its descriptor.
    /// Does not wait. It only borrows the descriptors.
    ///
    /// # Errors
    ///
    /// The kernel's, and then nothing has been sent.
    pub(crate) fn append(&self, records: &[Vec<u8>], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = join(records)?;
        // In a memfd, since what stands in the message itself fills the socket's buffer.
        let memfd = memory("fdstash-records")?;
        write_all(memfd.as_fd(), &bytes)?;
        let all: Vec<BorrowedFd<'_>> = [memfd.as_fd()].into_iter().chain(fds.to_vec()).collect();
        let payload = payload(fds.len(), &bytes)?;

        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_ENTRIES + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&all)) {
            return Err(Errno::INVAL.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let parts = [IoSlice::new(&payload)];
        retry_on_intr(|| sendmsg(&self.sender, &parts, &mut control, flags))?;
        Ok(())
    }
}

/// Takes the oldest message off a bundle, by its receiving end, and tells whether there was one.
///
/// There is no room for descriptors in this receive, so that the kernel drops them instead of
/// giving them numbers. What it closes so for good may make it wait; by then the message has left
/// the queue, so that others go on.
pub(crate) fn take_oldest(receiver: &OwnedFd) -> io::Result<bool> {
    let mut payload = [0; PAYLOAD];
    match retry_on_intr(|| recv(receiver, &mut payload, RecvFlags::DONTWAIT)) {
        Ok((_, count)) => Ok(count > 0),
        Err(Errno::AGAIN) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads bundles, by their receiving ends, and leaves them as they are. Each entry goes to `found`,
/// as its record and its descriptor, the oldest of each bundle first; an entry can be found twice.
/// Tells which messages it could not read: nothing of those has gone to `found`.
pub(crate) fn read_back(
    receivers: &[OwnedFd],
    mut found: impl FnMut(Vec<u8>, OwnedFd),
) -> Vec<Unread> {
    let mut unread = Vec::new();
    for (bundle, receiver) in receivers.iter().enumerate() {
        let mut offset = 0;
        for number in 0.. {
            let reason = match peek(receiver.as_fd(), offset) {
                Ok(None) => break,
                Ok(Some(peeked)) => {
                    offset += peeked.length;
                    match peeked.entries() {
                        Ok(entries) => {
                            entries.into_iter().for_each(|(record, fd)| found(record, fd));
                            continue;
                        }
                        Err(reason) => reason,
                    }
                }
                Err(errno) => {
                    unread.push(Unread { bundle, number, reason: Reason::Kernel(errno) });
                    break;
                }
            };
            unread.push(Unread { bundle, number, reason });
        }
        // As it was before.
        let _ = peek_from(receiver.as_fd(), -1);
    }
    unread
}

/// A message as it was found.
struct Peeked {
    payload: [u8; PAYLOAD],
    /// How long its payload is, also where that is more than there was room for.
    length: usize,
    fds: Vec<OwnedFd>,
    truncated: bool,
}

/// Looks at the message at an offset of a queue's bytes.
fn peek(receiver: BorrowedFd<'_>, offset: usize) -> Result<Option<Peeked>, Errno> {
    peek_from(receiver, i32::try_from(offset).map_err(|_| Errno::OVERFLOW)?)?;
    let mut payload = [0; PAYLOAD];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_ENTRIES + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // TRUNC makes the kernel tell how long the message is, and not how much of it was read.
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let outcome = retry_on_intr(|| {
        recvmsg(receiver, &mut [IoSliceMut::new(&mut payload)], &mut control, flags)
    });
    let message = match outcome {
        Ok(message) if message.bytes > 0 => message,
        // Its sender is gone, or there is no more.
        Ok(_) | Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let mut fds = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            fds.extend(received);
        }
    }
    let truncated = message.flags.contains(ReturnFlags::CTRUNC);
    Ok(Some(Peeked { payload, length: message.bytes, fds, truncated }))
}

/// Says from which byte of its queue a socket peeks next; -1 is from the first, always.
#[expect(unsafe_code, clippy::disallowed_methods, reason = "rustix has no SO_PEEK_OFF")]
fn peek_from(socket: BorrowedFd<'_>, offset: i32) -> Result<(), Errno> {
    // An int's size always fits.
    let size = size_of::<i32>() as libc::socklen_t;
    let option = (&raw const offset).cast();
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEEK_OFF);
    // SAFETY: `option` points at an int of that size, which outlives the call; the kernel reads it
    // and keeps nothing of it, and the descriptor is borrowed for as long.
    let outcome = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, option, size) };
    if outcome == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

impl Peeked {
    /// The records and their descriptors.
    fn entries(self) -> Result<Vec<(Vec<u8>, OwnedFd)>, Reason> {
        if self.truncated {
            return Err(Reason::NoRoom);
        }
        let mut fds = self.fds.into_iter();
        let memfd = fds.next().ok_or(Reason::Damaged("it has no descriptors"))?;
        let size = fstat(&memfd).map_err(Reason::Kernel)?.st_size;
        let size = usize::try_from(size).ok().filter(|size| *size <= MOST_BYTES);
        let size = size.ok_or(Reason::Damaged("it says too much"))?;
        let bytes = read_all(memfd.as_fd(), size).map_err(Reason::Kernel)?;
        let expected = payload(fds.len(), &bytes).ok();
        if self.length != PAYLOAD || expected != Some(self.payload) {
            return Err(Reason::Damaged("its header does not fit"));
        }
        let records = split(&bytes).ok_or(Reason::Damaged("its records are cut off"))?;
        if records.len() != fds.len() {
            return Err(Reason::Damaged("it has more or fewer records than descriptors"));
        }
        Ok(records.into_iter().zip(fds).collect())
    }
}

fn payload(count: usize, bytes: &[u8]) -> io::Result<[u8; PAYLOAD]> {
    let parts = [
        MAGIC.as_slice(),
        &length(count)?.to_le_bytes(),
        &length(bytes.len())?.to_le_bytes(),
        &crc32fast::hash(bytes).to_le_bytes(),
    ];
    let mut payload = [0; PAYLOAD];
    payload.copy_from_slice(&parts.concat());
    Ok(payload)
}

/// The records, each after its length.
fn join(records: &[Vec<u8>]) -> io::Result<Vec<u8>> {
    let size = records.iter().map(|record| LENGTH + record.len()).sum();
    let mut bytes = Vec::with_capacity(size);
    for record in records {
        bytes.extend(length(record.len())?.to_le_bytes());
        bytes.extend(record);
    }
    Ok(bytes)
}

fn split(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut records = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() {
        let (record, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        records.push(record.to_vec());
        bytes = rest;
    }
    bytes.is_empty().then_some(records)
}

fn length(count: usize) -> io::Result<u32> {
    u32::try_from(count).map_err(|_| Errno::OVERFLOW.into())
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = retry_on_intr(|| rustix::io::write(file, bytes))?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

fn read_all(file: BorrowedFd<'_>, size: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; size];
    let mut at = 0;
    while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
        // The memfd's own offset stands at its end, and is every reader's.
        match retry_on_intr(|| rustix::io::pread(file, &mut *rest, at as u64))? {
            0 => break,
            count => at += count,
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}
