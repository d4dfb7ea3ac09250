//! [`Journal`]: what survives the process that writes it, in memory that belongs to no process.
//!
//! It is two memfds, of which one counts at a time: the one with the higher generation in its head.
//! Lines are appended to that. When it has grown to much more than what is kept, all of it is written
//! anew to the other one, whose head is written last: so at every moment one of them is whole.
//!
//! A line is framed by its length and a checksum. What was written when its writer died is there
//! whole, or in part and then worth nothing. (Whoever is killed in the middle of a write leaves a part;
//! `tests/crash.rs` kills there.) Behind the last line there are zeroes, up to where there is memory for
//! more: that is mapped, so that to append a line takes no system call.
//!
//! Reading and writing stand in one file, since each is right only as the other's mirror.

use std::{io, os::fd::OwnedFd};

use fdstash_stash::{Line, Unreadable};
use rustix::{
    fs::{FallocateFlags, MemfdFlags, fallocate, fstat, ftruncate, memfd_create},
    io::{Errno, pread, pwrite},
};

use crate::{
    mapped::Mapped,
    steps::{CAN_DIE, step},
};

/// The two files of a journal.
pub(crate) type Files = [OwnedFd; 2];

/// What a file begins with that is a journal's.
const MAGIC: [u8; 8] = *b"fdstash\0";

/// The magic, the generation, and a checksum of both.
const HEAD: usize = 8 + 8 + 4;

/// The length and the checksum of a line.
const FRAME: usize = 8;

/// No line is longer: a transaction of all that the daemon can hold fits.
const MAX_LINE: usize = 1 << 30;

/// How much room is asked for at a time.
const PIECE: u64 = 64 << 10;

/// How far it may grow beyond twice of what is kept.
const SLACK: usize = 64 << 10;

/// The writer. Borrows its files, which outlive the process.
pub(crate) struct Journal {
    files: &'static Files,
    /// Which of them counts.
    active: usize,
    generation: u64,
    end: u64,
    /// Up to where the kernel has given memory.
    room: u64,
    /// That memory, from the last line on. Where it cannot be mapped, it is written to by a call.
    mapped: Option<Mapped>,
    /// From where on writing it anew is tried again, after that has failed.
    again_at: u64,
    frame: Vec<u8>,
}

/// Makes the files of a journal that says nothing.
///
/// # Errors
///
/// If there are no descriptors or no memory for them.
pub(crate) fn create() -> io::Result<Files> {
    Ok([memory("fdstash-journal")?, memory("fdstash-journal")?])
}

/// Makes a file in memory, which nobody can execute, where the kernel knows how to say so (6.3).
///
/// # Errors
///
/// The kernel's.
pub(crate) fn memory(name: &str) -> Result<OwnedFd, Errno> {
    match memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, MemfdFlags::CLOEXEC),
        outcome => outcome,
    }
}

/// What a journal says, as far as it is whole.
///
/// # Errors
///
/// If its bytes cannot be read, or were written by a version that is unknown here; a last line that
/// is not whole is none.
pub(crate) fn read(files: &Files, mut each: impl FnMut(Line)) -> io::Result<()> {
    let Some((active, _)) = active(files)? else { return Ok(()) };
    let bytes = read_all(&files[active])?;
    let mut rest = bytes.get(HEAD..).unwrap_or_default();
    while let Some((line, after)) = split(rest) {
        each(Line::read(line).map_err(unreadable)?);
        rest = after;
    }
    Ok(())
}

impl Journal {
    /// Goes on with what is there, which is to be written anew before anything is appended.
    ///
    /// # Errors
    ///
    /// If its files cannot be read.
    pub(crate) fn open(files: &'static Files) -> io::Result<Self> {
        let frame = Vec::new();
        let mut journal = Self {
            files,
            active: 1,
            generation: 0,
            end: 0,
            room: 0,
            mapped: None,
            again_at: 0,
            frame,
        };
        journal.reopen()?;
        Ok(journal)
    }

    /// The same, after another process may have written.
    ///
    /// # Errors
    ///
    /// If its files cannot be read.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        (self.active, self.generation) = active(self.files)?.unwrap_or((1, 0));
        (self.end, self.room, self.mapped) = (0, 0, None);
        Ok(())
    }

    /// Sees to it that so many bytes can be appended.
    ///
    /// # Errors
    ///
    /// If the machine has no memory for them.
    pub(crate) fn make_room(&mut self, bytes: usize) -> io::Result<()> {
        let needed = self.end + bytes as u64;
        if needed <= self.room {
            return Ok(());
        }
        let room = needed.next_multiple_of(PIECE);
        let file = &self.files[self.active];
        fallocate(file, FallocateFlags::empty(), self.room, room - self.room)?;
        self.room = room;
        self.map();
        Ok(())
    }

    fn map(&mut self) {
        self.mapped = Mapped::new(&self.files[self.active], self.end, self.room).ok();
    }

    /// Appends a line that `write` writes.
    ///
    /// # Errors
    ///
    /// The kernel's. With room made before, none is known.
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        push_line(&mut frame, write);
        step("before a record");
        let outcome = self.write_torn(&frame);
        step("after a record");
        self.end += frame.len() as u64;
        self.frame = frame;
        outcome
    }

    /// Writes in two parts, where a test may have the server die between them, and else in one.
    fn write_torn(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (one, other) = bytes.split_at(if CAN_DIE { bytes.len() / 2 } else { 0 });
        self.write(one, self.end)?;
        step("within a record");
        self.write(other, self.end + one.len() as u64)
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        if self.mapped.as_mut().is_some_and(|mapped| mapped.write(bytes, at)) {
            return Ok(());
        }
        write_all(&self.files[self.active], bytes, at)
    }

    /// Whether it is worth writing anew what is kept.
    pub(crate) fn is_heavy(&self, kept: usize) -> bool {
        self.end > self.again_at.max((2 * kept + SLACK) as u64)
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> u64 {
        self.end
    }

    /// Writes all of it anew: the lines that `lines` pushes take the place of those that are there,
    /// and so many bytes can be appended.
    ///
    /// # Errors
    ///
    /// If there is no memory for it. Then it goes on as it was.
    pub(crate) fn rewrite(
        &mut self,
        room: usize,
        lines: impl FnOnce(&mut Lines),
    ) -> io::Result<()> {
        let other = 1 - self.active;
        let file = &self.files[other];
        step("before a rewrite");
        ftruncate(file, 0)?;
        let mut writer = Lines { file, end: HEAD as u64, buffer: Vec::new(), outcome: Ok(()) };
        lines(&mut writer);
        writer.flush();
        let Lines { end, outcome, .. } = writer;
        let up_to = (end + room as u64).next_multiple_of(PIECE);
        let outcome = outcome
            .and_then(|()| Ok(fallocate(file, FallocateFlags::empty(), 0, up_to)?))
            .and_then(|()| {
                step("before the head of a rewrite");
                write_all(file, &head(self.generation + 1), 0)
            });
        if let Err(error) = outcome {
            let _ = ftruncate(file, 0);
            // Where there is no memory, trying again at every call would only cost time.
            self.again_at = self.end + SLACK as u64;
            return Err(error);
        }
        step("after the head of a rewrite");
        let old = std::mem::replace(&mut self.active, other);
        self.generation += 1;
        (self.end, self.room, self.again_at) = (end, up_to, 0);
        self.map();
        // To make a file shorter takes no memory.
        let _ = ftruncate(&self.files[old], 0);
        step("after a rewrite");
        Ok(())
    }
}

/// The lines of a journal that is being written anew.
pub(crate) struct Lines<'a> {
    file: &'a OwnedFd,
    end: u64,
    buffer: Vec<u8>,
    outcome: io::Result<()>,
}

impl Lines<'_> {
    /// Appends a line that `write` writes.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        push_line(&mut self.buffer, write);
        if self.buffer.len() as u64 > PIECE {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.outcome.is_ok() {
            step("within a rewrite");
            self.outcome = write_all(self.file, &self.buffer, self.end);
        }
        self.end += self.buffer.len() as u64;
        self.buffer.clear();
    }
}

fn push_line(to: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    to.extend([0; FRAME]);
    write(to);
    let line = &to[start + FRAME..];
    let len = u32::try_from(line.len()).unwrap_or(u32::MAX);
    let check = crc32fast::hash(line);
    to[start..start + 4].copy_from_slice(&len.to_le_bytes());
    to[start + 4..start + FRAME].copy_from_slice(&check.to_le_bytes());
}

/// The first line of some bytes and what comes after it; nothing, if it is not whole.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (frame, rest) = bytes.split_at_checked(FRAME)?;
    let (len, check) = frame.split_at(4);
    let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
    if len == 0 || len > MAX_LINE {
        return None;
    }
    let (line, after) = rest.split_at_checked(len)?;
    (crc32fast::hash(line).to_le_bytes() == check).then_some((line, after))
}

fn head(generation: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&MAGIC);
    head[8..16].copy_from_slice(&generation.to_le_bytes());
    let check = crc32fast::hash(&head[..16]);
    head[16..].copy_from_slice(&check.to_le_bytes());
    head
}

/// Which file counts, and its generation; none, if nothing was ever written.
fn active(files: &Files) -> io::Result<Option<(usize, u64)>> {
    let mut found = None;
    for (at, file) in files.iter().enumerate() {
        let mut bytes = [0; HEAD];
        let count = pread(file, &mut bytes, 0)?;
        let generation = u64::from_le_bytes(std::array::from_fn(|at| bytes[8 + at]));
        let is_whole = count == HEAD && bytes == head(generation);
        if is_whole && found.is_none_or(|(_, before)| before < generation) {
            found = Some((at, generation));
        }
    }
    Ok(found)
}

/// Whether nothing was ever written.
#[cfg(feature = "crash-steps")]
pub(crate) fn is_new(files: &Files) -> io::Result<bool> {
    Ok(active(files)?.is_none())
}

fn read_all(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let size = usize::try_from(fstat(file)?.st_size).unwrap_or_default();
    let mut bytes = vec![0; size];
    let mut read = 0;
    while read < size {
        match pread(file, &mut bytes[read..], read as u64)? {
            0 => break,
            count => read += count,
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

fn write_all(file: &OwnedFd, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        match pwrite(file, &bytes[written..], at + written as u64)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => written += count,
        }
    }
    Ok(())
}

fn unreadable(error: Unreadable) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use fdstash_proto::{
        Access, Call, Clash, Flags, Gift, Keeper, Kind, Labels, Name, Peer, Ticket,
    };
    use fdstash_stash::{Begin, Effect, Facts, Inspected, Limits, Now, Stash, Who};
    use rustix::fs::{SealFlags, fcntl_add_seals};

    use super::*;

    fn files() -> &'static Files {
        Box::leak(Box::new(create().unwrap()))
    }

    fn begin(restores: u64) -> Begin {
        Begin { restores, ..Begin::default() }
    }

    fn said(files: &Files) -> Vec<u64> {
        let mut said = Vec::new();
        read(files, |line| match line {
            Line::Begin(begin) => said.push(begin.restores),
            Line::Change(_) | Line::Handover(_) => panic!("nobody has written {line:?}"),
        })
        .unwrap();
        said
    }

    fn written(files: &'static Files, lines: impl IntoIterator<Item = u64>) -> Journal {
        let mut journal = Journal::open(files).unwrap();
        journal.rewrite(0, |_| {}).unwrap();
        for line in lines {
            journal.append(|bytes| begin(line).write(bytes)).unwrap();
        }
        journal
    }

    #[test]
    fn what_was_appended_is_read_in_its_order() {
        let files = files();
        assert!(said(files).is_empty());

        written(files, [1, 2, 3]);

        assert_eq!(said(files), [1, 2, 3]);
    }

    #[test]
    fn a_last_line_that_was_cut_anywhere_is_none() {
        let files = files();
        let before = written(files, [1, 2]).len();
        let whole = written(files, [1, 2, 3]).len();
        let (active, _) = active(files).unwrap().unwrap();

        for cut in (before..whole).rev() {
            ftruncate(&files[active], cut).unwrap();

            assert_eq!(said(files), [1, 2], "cut at {cut} of {whole}");
        }
    }

    #[test]
    fn a_line_with_a_wrong_byte_is_none() {
        let files = files();
        let before = written(files, [1, 2]).len();
        let whole = written(files, [1, 2, 3]).len();
        let (active, _) = active(files).unwrap().unwrap();

        for at in before..whole {
            let mut byte = [0];
            pread(&files[active], &mut byte, at).unwrap();
            pwrite(&files[active], &[byte[0] ^ 0x20], at).unwrap();

            assert_eq!(said(files), [1, 2], "byte {at}");

            pwrite(&files[active], &byte, at).unwrap();
        }
        assert_eq!(said(files), [1, 2, 3]);
    }

    #[test]
    fn a_rewrite_takes_the_place_of_all_that_was_there() {
        let files = files();
        let mut journal = written(files, 0..1000);
        let before = journal.len();

        journal.rewrite(0, |lines| lines.push(|bytes| begin(7).write(bytes))).unwrap();
        journal.append(|bytes| begin(8).write(bytes)).unwrap();

        assert_eq!(said(files), [7, 8]);
        assert!(journal.len() < before / 100);
    }

    #[test]
    fn a_rewrite_without_its_head_never_was() {
        let files = files();
        written(files, [1, 2]);
        let (active, generation) = active(files).unwrap().unwrap();
        let other = &files[1 - active];
        let mut lines = Vec::new();
        push_line(&mut lines, |bytes| begin(9).write(bytes));
        write_all(other, &lines, HEAD as u64).unwrap();
        assert_eq!(said(files), [1, 2]);
        let whole = head(generation + 1);

        for cut in 1..HEAD {
            write_all(other, &whole[..cut], 0).unwrap();
            assert_eq!(said(files), [1, 2], "{cut} bytes of the head");
        }

        write_all(other, &whole, 0).unwrap();
        assert_eq!(said(files), [9]);
    }

    #[test]
    fn a_line_of_another_version_is_an_error_and_not_the_end() {
        let files = files();
        let mut journal = written(files, [1]);

        journal.append(|bytes| bytes.extend([200, 1])).unwrap();

        let error = read(files, drop).unwrap_err();
        assert_eq!(error.to_string(), "a record of version 200, which is unknown");
    }

    #[test]
    fn with_room_made_an_append_asks_for_no_memory() {
        let files = files();
        let mut journal = written(files, []);

        journal.make_room(1 << 20).unwrap();

        let blocks = fstat(&files[journal.active]).unwrap().st_blocks;
        assert!(blocks * 512 >= 1 << 20, "{blocks} blocks");
        assert!(journal.mapped.as_mut().unwrap().write(&[0; 1000], journal.end + (1 << 20) - 1000));
    }

    #[test]
    fn a_rewrite_that_finds_no_room_leaves_it_as_it_was() {
        let files = files_without_room(1);
        let mut journal = written_to_first(files, [1, 2]);
        let before = journal.len();

        for _ in 0..3 {
            let outcome = journal.rewrite(0, |lines| lines.push(|bytes| begin(9).write(bytes)));

            outcome.unwrap_err();
            assert_eq!(said(files), [1, 2]);
            assert_eq!((journal.active, journal.len()), (0, before));
        }

        journal.append(|bytes| begin(3).write(bytes)).unwrap();
        assert_eq!(said(files), [1, 2, 3]);
        let mut again = Journal::open(files).unwrap();
        again.rewrite(0, |_| {}).unwrap_err();
        assert_eq!(said(files), [1, 2, 3]);
    }

    #[test]
    fn a_rewrite_that_has_failed_is_not_tried_at_every_call() {
        let files = files_without_room(1);
        let mut journal = written_to_first(files, []);
        let mut tries = Vec::new();

        while journal.len() < 4 * SLACK as u64 {
            journal.append(|bytes| begin(1).write(bytes)).unwrap();
            if journal.is_heavy(0) {
                tries.push(journal.len());
                journal.rewrite(0, |_| {}).unwrap_err();
            }
        }

        assert_eq!(tries.len(), 3, "{tries:?}");
    }

    #[test]
    fn room_that_cannot_be_made_leaves_it_as_it_was() {
        let files = files_without_room(1);
        let mut journal = written_to_first(files, [1, 2]);
        let before = journal.len();
        fcntl_add_seals(&files[0], SealFlags::GROW).unwrap();

        journal.make_room(1 << 20).unwrap_err();

        assert_eq!((said(files), journal.len()), (vec![1, 2], before));
        journal.make_room(0).unwrap();
        let lines =
            (3..).take_while(|line| journal.append(|bytes| begin(*line).write(bytes)).is_ok());
        let last = lines.last().unwrap();
        assert_eq!(said(files), (1..=last).collect::<Vec<_>>());
        assert!(journal.len() - before < PIECE);
    }

    #[test]
    fn what_is_written_anew_is_never_more_than_what_was_appended() {
        for (name, names, label, tickets) in [
            ("few small entries", 5, 0, false),
            ("many small entries", 400, 0, false),
            ("many tickets", 5, 0, true),
            ("large labels", 40, 4000, true),
        ] {
            let files = files();
            let mut journal = written(files, []);
            let mut filer = Filer::new(names, label, tickets);
            let (mut appended, mut anew) = (0, 0);

            for _ in 0..8000 {
                let before = journal.len();
                filer.step(&mut journal);
                appended += journal.len() - before;
                let kept = filer.stash.weight().kept;
                if journal.is_heavy(kept) {
                    filer.rewrite(&mut journal);
                    anew += journal.len();
                }
                assert!(!journal.is_heavy(kept), "{name}: {} bytes for {kept}", journal.len());
            }

            assert!(appended > 3 * SLACK as u64, "{name}: or there was nothing to see");
            assert!(anew > 0 && anew <= appended, "{name}: {anew} anew, {appended} appended");
        }
    }

    /// A journal's files of which this one cannot grow, once it says something.
    fn files_without_room(which: usize) -> &'static Files {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let files = [(); 2].map(|()| memfd_create("fdstash-journal", flags).unwrap());
        fcntl_add_seals(&files[which], SealFlags::GROW).unwrap();
        Box::leak(Box::new(files))
    }

    fn written_to_first(files: &'static Files, lines: impl IntoIterator<Item = u64>) -> Journal {
        let journal = written(files, lines);
        assert_eq!(journal.active, 0);
        journal
    }

    /// Gives and closes without end, and writes it down.
    struct Filer {
        stash: Stash<u32>,
        names: u64,
        label: usize,
        tickets: bool,
        random: u64,
        steps: u64,
    }

    impl Filer {
        fn new(names: u64, label: usize, tickets: bool) -> Self {
            let limits = Limits::new(1000, 1000, 10_000);
            let stash = Stash::new(limits, Keeper::Process);
            Self { stash, names, label, tickets, random: 1, steps: 0 }
        }

        /// A new connection gives what is not there, or closes what is, and mostly ends.
        fn step(&mut self, journal: &mut Journal) {
            self.steps += 1;
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let now = Now { boot_usec: self.steps * 1_000_000, wall_usec: 0 };
            let name = Name::new(&format!("name-{}", (self.random >> 33) % self.names)).unwrap();
            let ticket = Ticket::new(&self.steps.to_string()).ok().filter(|_| self.tickets);
            let is_there = self.stash.kept().any(|kept| kept.details.name == name);
            let call = if is_there {
                Call::Close { names: vec![name], ticket }
            } else {
                let labels = Labels::from([("label".to_owned(), "x".repeat(self.label))]);
                let gifts = vec![Gift { labels, ..Gift::new(name, file()) }];
                Call::Give { gifts, clash: Clash::Replace, ticket }
            };
            let peer = Peer { uid: 0, gid: 0, pid: 1 };
            let by = self.stash.connect(Who { peer, groups: [].into() }).unwrap();
            let mut effects = self.stash.call(by, call, now);
            effects.extend(self.stash.disconnect(by, now));
            for effect in &effects {
                if let Effect::Record(record) = effect {
                    journal.append(|bytes| record.write(|fd| *fd, bytes)).unwrap();
                }
            }
        }

        fn rewrite(&self, journal: &mut Journal) {
            let lines = |lines: &mut Lines| {
                lines.push(|bytes| self.stash.begin_journal().write(bytes));
                for record in self.stash.records() {
                    lines.push(|bytes| record.write(|fd| *fd, bytes));
                }
            };
            journal.rewrite(self.stash.weight().promised, lines).unwrap();
        }
    }

    fn file() -> Inspected<u32> {
        let (kind, access, flags) = (Kind::Regular, Access::ReadWrite, Flags::NONE);
        let facts = Facts { kind, access, flags, device: 1, inode: 1, target: None };
        Inspected { fd: 7, facts }
    }
}
