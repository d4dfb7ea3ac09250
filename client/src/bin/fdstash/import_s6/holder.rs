//! [`Holder`]: what an s6-fdholder-daemon holds, asked of it in its own protocol, which leaves all of it there.
//!
//! Messages go both ways: the length, four bytes, and the number of descriptors, two, the higher ones first,
//! and then so many bytes, with the descriptors beside them. An answer begins with a status: 0, or an errno.
//!
//! A dump tells when each expires. One of more than 253 descriptors the daemon cannot send (2.11: it puts
//! 255 beside a message, which the kernel refuses, and hangs up), and not everybody may ask for one. Then
//! there is the list, and each descriptor for itself.

use std::{
    collections::VecDeque,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail, ensure};
use fdstash_proto::{
    MAX_DESCRIPTORS,
    socket::{self, Received},
};
use rustix::io::Errno;

/// What a message begins with.
const HEAD: usize = 6;

/// No message has more bytes: the longest list of identifiers that is of any use here.
const LONGEST: usize = 64 << 20;

/// What a time begins with, as a label: TAI64's zero, and how many seconds TAI is ahead of UTC.
const EPOCH: u64 = 1 << 62;
const AHEAD: u64 = 37;

/// Later than that is never.
const NEVER: u64 = EPOCH + (1 << 40);

/// How many bytes a time has.
const TIME: usize = 12;

/// One descriptor that is held.
#[derive(Debug)]
pub(crate) struct Held {
    /// Its identifier, any bytes but NUL.
    pub(crate) id: Vec<u8>,
    pub(crate) fd: OwnedFd,
    /// When it expires.
    pub(crate) until: Option<SystemTime>,
}

/// All that is held.
pub(crate) struct Dump {
    pub(crate) held: Vec<Held>,
    /// Whether it was told when they expire.
    pub(crate) has_times: bool,
}

/// Copies all that is held, of which a caller wants to know.
///
/// # Errors
///
/// If nobody can be reached, or the daemon refuses.
pub(crate) fn dump(path: &Path, is_wanted: impl Fn(&[u8]) -> bool) -> anyhow::Result<Dump> {
    if let Some(mut held) = Holder::connect(path)?.dump()? {
        held.retain(|held| is_wanted(&held.id));
        return Ok(Dump { held, has_times: true });
    }
    let mut holder = Holder::connect(path)?;
    let mut held = Vec::new();
    for id in holder.list()?.into_iter().filter(|id| is_wanted(id)) {
        held.extend(holder.retrieve(id)?);
    }
    Ok(Dump { held, has_times: false })
}

/// A connection to the daemon.
struct Holder {
    socket: UnixStream,
    /// What has come and belongs to no message yet.
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

/// One message.
struct Message {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Holder {
    fn connect(path: &Path) -> anyhow::Result<Self> {
        let socket = UnixStream::connect(path).with_context(|| {
            format!("no s6-fdholder-daemon can be reached at {}", path.display())
        })?;
        Ok(Self { socket, bytes: Vec::new(), fds: VecDeque::new() })
    }

    /// All that is held; nothing if it cannot be told so.
    fn dump(&mut self) -> anyhow::Result<Option<Vec<Held>>> {
        self.ask(b"?")?;
        let answer = self.answer()?;
        let counts = match answer.bytes.split_first() {
            Some((0, counts)) => <[u8; 8]>::try_from(counts),
            Some(_) => return Ok(None),
            None => bail!(STRANGE),
        };
        let counts = u64::from_be_bytes(counts.ok().context(STRANGE)?);
        let (messages, descriptors) = (counts >> 32, (counts & u64::from(u32::MAX)) as usize);
        if descriptors > MAX_DESCRIPTORS {
            return Ok(None);
        }
        let mut held = Vec::new();
        for _ in 0..messages {
            let Message { bytes, fds } = self.answer()?;
            held.extend(entries(&bytes, fds).context(STRANGE)?);
        }
        ensure!(held.len() == descriptors, STRANGE);
        Ok(Some(held))
    }

    /// The identifiers of all that is held.
    fn list(&mut self) -> anyhow::Result<Vec<Vec<u8>>> {
        self.ask(b"L")?;
        let Message { bytes, .. } = self.answer()?;
        let (status, rest) = bytes.split_first().context(STRANGE)?;
        refused(*status, "list what it holds", "S6_FDHOLDER_LIST")?;
        let (count, ids) = rest.split_at_checked(4).context(STRANGE)?;
        let ids: Vec<_> = ids.split_inclusive(|byte| *byte == 0).map(without_nul).collect();
        let count = u32::from_be_bytes(count.try_into()?);
        ensure!(ids.len() == count as usize, STRANGE);
        ids.into_iter().collect::<Option<_>>().context(STRANGE)
    }

    /// A copy of one; nothing if it has gone meanwhile.
    fn retrieve(&mut self, id: Vec<u8>) -> anyhow::Result<Option<Held>> {
        let mut request = vec![b'R', 0, u8::try_from(id.len())?];
        request.extend(&id);
        request.push(0);
        self.ask(&request)?;
        let Message { bytes, mut fds } = self.answer()?;
        let status = *bytes.first().context(STRANGE)?;
        if Errno::from_raw_os_error(i32::from(status)) == Errno::NOENT {
            return Ok(None);
        }
        let what = format!("retrieve {:?}", String::from_utf8_lossy(&id));
        refused(status, &what, "S6_FDHOLDER_RETRIEVE_REGEX")?;
        let fd = fds.pop().context(STRANGE)?;
        Ok(Some(Held { id, fd, until: None }))
    }

    fn ask(&self, request: &[u8]) -> anyhow::Result<()> {
        let mut bytes = u32::try_from(request.len())?.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(request);
        let sent = socket::send(&self.socket, &bytes, &[] as &[OwnedFd]);
        // Who is not let in is hung up on, which may be before this.
        ensure!(sent.context(HUNG_UP)? == bytes.len(), HUNG_UP);
        Ok(())
    }

    fn answer(&mut self) -> anyhow::Result<Message> {
        loop {
            if let Some(message) = take_message(&mut self.bytes, &mut self.fds)? {
                return Ok(message);
            }
            let (mut buffer, mut fds) = ([0; 16 << 10], Vec::new());
            let received = socket::receive(&self.socket, &mut buffer, &mut fds);
            self.fds.extend(fds);
            match received {
                Ok(Received::Bytes(count)) => self.bytes.extend(&buffer[..count]),
                Ok(Received::Truncated(_)) => bail!(
                    "this process has no room for more descriptors: raise the limit (ulimit -n)"
                ),
                Ok(Received::End) => bail!(HUNG_UP),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => bail!(HUNG_UP),
                Err(error) => return Err(error).context("reading its answer"),
            }
        }
    }
}

const STRANGE: &str = "what listens there does not answer as s6-fdholder-daemon does";
const HUNG_UP: &str =
    "s6-fdholder-daemon hung up: its rules (-i, -x) may not let this user in, or it has ended";

/// The next message, if it is there whole. Descriptors belong to messages in the order of both.
fn take_message(
    bytes: &mut Vec<u8>,
    fds: &mut VecDeque<OwnedFd>,
) -> anyhow::Result<Option<Message>> {
    let Some((&[a, b, c, d, high, low], rest)) = bytes.split_first_chunk::<HEAD>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let count = usize::from(u16::from_be_bytes([high, low]));
    ensure!(length <= LONGEST, STRANGE);
    if rest.len() < length {
        return Ok(None);
    }
    // They come with the first bytes of their message.
    ensure!(fds.len() >= count, STRANGE);
    let message = Message { bytes: rest[..length].to_vec(), fds: fds.drain(..count).collect() };
    bytes.drain(..HEAD + length);
    Ok(Some(message))
}

/// The entries of one message of a dump; nothing if they are not exactly as many as its descriptors.
fn entries(mut bytes: &[u8], fds: Vec<OwnedFd>) -> Option<Vec<Held>> {
    let mut held = Vec::with_capacity(fds.len());
    for fd in fds {
        let (time, rest) = bytes.split_first_chunk::<TIME>()?;
        let (length, rest) = rest.split_first()?;
        let (id, rest) = rest.split_at_checked(usize::from(*length) + 1)?;
        held.push(Held { id: without_nul(id)?, fd, until: until(*time)? });
        bytes = rest;
    }
    bytes.is_empty().then_some(held)
}

fn without_nul(id: &[u8]) -> Option<Vec<u8>> {
    id.split_last().filter(|(nul, _)| **nul == 0).map(|(_, id)| id.to_vec())
}

/// When that is, by a clock that shows UTC; nothing at all if it is no time.
fn until(time: [u8; TIME]) -> Option<Option<SystemTime>> {
    let (seconds, nanoseconds) = time.split_first_chunk::<8>()?;
    let seconds = u64::from_be_bytes(*seconds);
    let nanoseconds = u32::from_be_bytes(nanoseconds.try_into().ok()?);
    if seconds >= NEVER {
        return Some(None);
    }
    let since_1970 = Duration::new(seconds.saturating_sub(EPOCH + AHEAD), nanoseconds);
    Some(Some(SystemTime::UNIX_EPOCH + since_1970))
}

fn refused(status: u8, what: &str, right: &str) -> anyhow::Result<()> {
    match Errno::from_raw_os_error(i32::from(status)) {
        _ if status == 0 => Ok(()),
        Errno::PERM => {
            bail!("s6-fdholder-daemon does not let this user {what}: give it {right} in its rules")
        }
        error => bail!("s6-fdholder-daemon does not {what}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn nulls(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect()
    }

    #[test]
    fn a_message_is_taken_when_it_is_there_whole() {
        let whole = b"\0\0\0\x03\0\x01abc\0\0\0\x01\0\0d";
        for cut in 0..9 {
            let (mut bytes, mut fds) = (whole[..cut].to_vec(), VecDeque::from(nulls(1)));
            assert!(take_message(&mut bytes, &mut fds).unwrap().is_none(), "{cut}");
            assert_eq!((bytes.len(), fds.len()), (cut, 1));
        }
        let (mut bytes, mut fds) = (whole.to_vec(), VecDeque::from(nulls(1)));

        let first = take_message(&mut bytes, &mut fds).unwrap().unwrap();
        let second = take_message(&mut bytes, &mut fds).unwrap().unwrap();

        assert_eq!((&first.bytes[..], first.fds.len()), (&b"abc"[..], 1));
        assert_eq!((&second.bytes[..], second.fds.len()), (&b"d"[..], 0));
        assert!(take_message(&mut b"\0\0\0\0\0\x01".to_vec(), &mut fds).is_err());
        assert!(take_message(&mut b"\xff\0\0\0\0\0".to_vec(), &mut fds).is_err());
    }

    #[test]
    fn an_entry_has_a_time_a_length_and_an_identifier() {
        let never = b"\x60\0\0\0\x6b\x04\x5c\x6d\x12\xd5\xbe\x7c\x02ab\0";
        let soon = b"\x40\0\0\0\x6b\x04\x5c\xa9\x13\x48\x4f\xf0\x01c\0";
        let both = [&never[..], soon].concat();

        let held = entries(&both, nulls(2)).unwrap();

        assert_eq!((&held[0].id[..], held[0].until), (&b"ab"[..], None));
        let until = SystemTime::UNIX_EPOCH + Duration::new(0x6b04_5ca9 - 37, 0x1348_4ff0);
        assert_eq!((&held[1].id[..], held[1].until), (&b"c"[..], Some(until)));
        for count in [0, 1, 3] {
            assert!(entries(&both, nulls(count)).is_none(), "{count}");
        }
        for cut in 1..both.len() {
            assert!(entries(&both[..cut], nulls(2)).is_none(), "{cut}");
        }
    }
}
