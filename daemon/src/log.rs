//! The log: each event with its fields to the journal, where it is the journal that reads, and as one line
//! of text elsewhere. Nobody ever waits for whoever reads it: what finds no room is counted, and that is
//! said as soon as there is some again.
//!
//! To the journal an event is one datagram in its native protocol, over one socket that is made before the
//! first server and is in the table that all processes of the daemon share. It is connected to nothing, so
//! that a journal which begins anew is found by its path again. (The crate tracing-journald waits for room,
//! and with it would the event loop.)

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, Mode, OFlags, fstat, open},
    net::{SendFlags, SocketAddrUnix, sendto},
    stdio::stderr,
};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

/// Where the journal reads.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The most bytes of a line of text: so many a pipe takes whole, or not at all. And the most of a value.
const LONGEST: usize = 4096;

/// By which the journal is told, or who reads the lines: in the second case a way of our own, on which to
/// write never waits. Others who have standard error open do not see that of theirs.
static WAY: OnceLock<OwnedFd> = OnceLock::new();

/// How many events this process could not tell; and of how many nothing has been said yet.
static LOST: AtomicU64 = AtomicU64::new(0);
static UNTOLD: AtomicU64 = AtomicU64::new(0);

/// Begins to log what is no less important. To be called while there is one thread, and once.
pub(crate) fn start(most: LevelFilter) {
    if let Some(socket) = journal() {
        // Nobody has set it before.
        let _ = WAY.set(socket.into());
        return tracing_subscriber::registry().with(most).with(Journal).init();
    }
    if let Some(own) = own_way() {
        let _ = WAY.set(own);
    }
    tracing_subscriber::fmt()
        .with_max_level(most)
        .with_writer(|| Lines)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        // It would tell of a log that nobody reads any more on that very log, and panic.
        .log_internal_errors(false)
        .init();
}

/// What the log has for itself. It is the daemon's own for as long as there is a process of it.
pub(crate) fn way() -> Option<BorrowedFd<'static>> {
    WAY.get().map(AsFd::as_fd)
}

/// How many events this process could not tell.
pub(crate) fn lost() -> u64 {
    LOST.load(Relaxed)
}

/// A way to the journal, if standard error leads there (`JOURNAL_STREAM` in systemd.exec(5)).
fn journal() -> Option<UnixDatagram> {
    let said = std::env::var("JOURNAL_STREAM").ok()?;
    let file = fstat(stderr()).ok()?;
    if said != format!("{}:{}", file.st_dev, file.st_ino) {
        return None;
    }
    let socket = UnixDatagram::unbound().ok()?;
    // What is empty the journal ignores.
    send(socket.as_fd(), &[]).ok()?;
    Some(socket)
}

/// Another way to where standard error leads, if that is a pipe or a terminal. A terminal says that there is
/// room where there is some for a part of a line, and to write it all waits; and so it does on a pipe where
/// another process has taken the room meanwhile.
fn own_way() -> Option<OwnedFd> {
    let file = fstat(stderr()).ok()?;
    if FileType::from_raw_mode(file.st_mode) != FileType::Fifo && !io::stderr().is_terminal() {
        return None;
    }
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    open("/proc/self/fd/2", flags, Mode::empty()).ok()
}

fn send(socket: BorrowedFd<'_>, entry: &[u8]) -> io::Result<()> {
    let place = SocketAddrUnix::new(JOURNAL)?;
    sendto(socket, entry, SendFlags::NOSIGNAL | SendFlags::DONTWAIT, &place)?;
    Ok(())
}

/// Takes note of whether something could be told; if so, how many could not be told before it.
fn note(outcome: &io::Result<()>) -> Option<u64> {
    if outcome.is_err() {
        LOST.fetch_add(1, Relaxed);
        UNTOLD.fetch_add(1, Relaxed);
        return None;
    }
    (UNTOLD.load(Relaxed) > 0).then(|| UNTOLD.swap(0, Relaxed)).filter(|lost| *lost > 0)
}

fn of_lost(lost: u64) -> String {
    format!("{lost} messages of this log found no room and are lost")
}

/// Tells the journal.
struct Journal;

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(socket) = way() else { return };
        let mut entry = Entry::default();
        event.record(&mut entry);
        let outcome = send(socket, &entry.finish(*event.metadata().level()));
        if let Some(lost) = note(&outcome) {
            let entry = Entry { message: of_lost(lost), ..Entry::default() };
            if send(socket, &entry.finish(Level::WARN)).is_err() {
                UNTOLD.fetch_add(lost, Relaxed);
            }
        }
    }
}

/// An event, as the journal takes it: fields, and a message for people that has them, too.
#[derive(Default)]
struct Entry {
    message: String,
    /// What the message has behind its text.
    beside: String,
    fields: Vec<u8>,
}

impl Entry {
    fn finish(mut self, level: Level) -> Vec<u8> {
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        self.message.push_str(&self.beside);
        for (name, value) in [
            ("PRIORITY", priority),
            ("SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME")),
            ("MESSAGE", &self.message),
        ] {
            append(&mut self.fields, name, value);
        }
        self.fields
    }

    fn add(&mut self, field: &Field, value: &str, quoted: &str) {
        if field.name() == "message" {
            return self.message.push_str(cut(value));
        }
        let name = field.name();
        // What is written to a text is written.
        let _ = write!(self.beside, " {name}={}", cut(quoted));
        let name = format!("FDSTASH_{}", name.to_ascii_uppercase());
        append(&mut self.fields, &name, value);
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value, &format!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        self.add(field, &value, &value);
    }
}

/// Appends a field, with its length, so that it may have any bytes.
fn append(to: &mut Vec<u8>, name: &str, value: &str) {
    let value = cut(value);
    to.extend_from_slice(name.as_bytes());
    to.push(b'\n');
    to.extend_from_slice(&(value.len() as u64).to_le_bytes());
    to.extend_from_slice(value.as_bytes());
    to.push(b'\n');
}

/// No more than so much of a text.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(LONGEST)).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// Writes lines to standard error.
struct Lines;

impl io::Write for Lines {
    /// Writes one event, which comes whole: as one line, whatever a peer has said.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        if let Some(lost) = note(&write_line(event)) {
            if write_line(of_lost(lost).as_bytes()).is_err() {
                UNTOLD.fetch_add(lost, Relaxed);
            }
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a line if that does not wait.
fn write_line(event: &[u8]) -> io::Result<()> {
    let line = one_line(event);
    if let Some(own) = way() {
        rustix::io::write(own, &line)?;
        return Ok(());
    }
    let mut room = [PollFd::from_borrowed_fd(stderr(), PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut room, Some(&now))? == 0 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    rustix::io::write(stderr(), &line)?;
    Ok(())
}

/// The event with one end of line, which is its last byte, and none too long.
fn one_line(event: &[u8]) -> Vec<u8> {
    let event = event.strip_suffix(b"\n").unwrap_or(event);
    let mut line = Vec::with_capacity(event.len() + 1);
    for byte in event {
        match byte {
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            byte => line.push(*byte),
        }
    }
    line.truncate(LONGEST - 1);
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_and_none_too_long() {
        assert_eq!(one_line(b"one\ntwo\r\n"), b"one\\ntwo\\r\n");
        assert_eq!(one_line(b"none"), b"none\n");
        let long = one_line(&[b'\n'; LONGEST]);
        assert_eq!((long.len(), long.last()), (LONGEST, Some(&b'\n')));
    }

    #[test]
    fn a_field_for_the_journal_says_how_long_it_is() {
        let mut fields = Vec::new();
        append(&mut fields, "NAME", "a\nb");
        assert_eq!(fields, b"NAME\n\x03\0\0\0\0\0\0\0a\nb\n");
        assert_eq!(cut(&"\u{e9}".repeat(LONGEST)).len(), LONGEST);
        assert_eq!(cut(&format!("a{}", "\u{e9}".repeat(LONGEST))).len(), LONGEST - 1);
    }
}
