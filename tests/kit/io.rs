//! Verified I/O over NBD: blocks that tell which one they are and how often they were written, written
//! and read back without pause, and a record of what was written.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{Nbd, SOON, wait_until};

/// How much is written or read at once, in bytes: as O_DIRECT wants it.
pub(crate) const BLOCK: usize = 4096;

/// Each on a connection of its own.
const WORKERS: u64 = 2;

/// How many blocks each of them works on, spread over all of the image.
const BLOCKS_EACH: u64 = 32;

/// How many blocks lie between two that are worked on: the last one is within 8 MiB.
const STRIDE: u64 = 32;

/// After so many writes follows a flush.
const WRITES_A_FLUSH: u64 = 32;

/// How often a block was written.
type Generation = u64;

/// What stands in a block, as far as the one who wrote it can know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct History {
    /// The last that was asked for.
    sent: Generation,
    /// The last that was acknowledged.
    done: Generation,
    /// The last that was acknowledged before an acknowledged flush.
    flushed: Generation,
}

/// What is written in an image: in every block that is not named, zeroes.
#[derive(Debug, Clone, Default)]
pub struct Written(BTreeMap<u64, History>);

impl Written {
    /// Every so manyth of the blocks that are worked on, with a generation.
    pub(crate) fn every(nth: usize, generation: Generation) -> Self {
        let blocks = (0..WORKERS * BLOCKS_EACH).map(|number| number * STRIDE).step_by(nth);
        let history = History { sent: generation, done: generation, flushed: generation };
        Self(blocks.map(|block| (block, history)).collect())
    }

    /// Takes over what another has, in place of what is here.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// Each block, and how often it was written.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (u64, Generation)> {
        let acknowledged = self.0.iter().map(|(block, history)| (*block, history.done));
        acknowledged.filter(|(_, generation)| *generation > 0)
    }

    /// What an export has after a crash of QEMU: of each block what was flushed, or something later
    /// that was on its way. That is what is written from here on.
    ///
    /// # Errors
    ///
    /// If a block has anything else, or cannot be read.
    pub fn found_after_a_crash(&self, socket: &Path, export: &str) -> io::Result<Self> {
        let mut nbd = Nbd::connect(socket, export)?;
        let mut found = BTreeMap::new();
        let mut buffer = vec![0; BLOCK];
        for (block, history) in &self.0 {
            nbd.read(block * BLOCK as u64, &mut buffer)?;
            let (flushed, sent) = (history.flushed, history.sent);
            let Some(there) =
                generation_of(*block, &buffer).filter(|one| (flushed..=sent).contains(one))
            else {
                let what = format!("block {block} has not what was written: {history:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            };
            found.insert(*block, History { sent: there, done: there, flushed });
        }
        Ok(Self(found))
    }

    /// How many blocks are written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks().count()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether the I/O also writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    WritesAndReads,
    Reads,
}

/// I/O under way.
#[derive(Debug)]
pub struct Io {
    workers: Vec<thread::JoinHandle<Written>>,
    shared: Arc<Shared>,
}

/// What all workers tell of.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    operations: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
    longest_pause_nsec: AtomicU64,
    is_cut_off: AtomicBool,
}

/// What I/O that has ended came to.
#[derive(Debug)]
pub struct Ended {
    /// Reads, writes and flushes that were done.
    pub operations: u64,
    /// Those that failed, and reads of something else than was written.
    pub errors: u64,
    /// The first of the errors.
    pub first_error: Option<String>,
    /// As [`Io::take_longest_pause`].
    pub longest_pause: Duration,
    /// Whether the connection ended under it.
    pub is_cut_off: bool,
    /// What the image has now.
    pub written: Written,
}

impl Io {
    /// Writes and reads an export without pause, of which is known what is written in it; all of that
    /// is read first.
    #[must_use]
    pub fn start(socket: &Path, export: &str, written: &Written) -> Self {
        Self::begin(socket, export, written, Mode::WritesAndReads)
    }

    /// The same, without writing.
    #[must_use]
    pub fn start_reading(socket: &Path, export: &str, written: &Written) -> Self {
        Self::begin(socket, export, written, Mode::Reads)
    }

    fn begin(socket: &Path, export: &str, written: &Written, mode: Mode) -> Self {
        let shared = Arc::new(Shared::default());
        let workers = (0..WORKERS).map(|number| {
            let nbd = Nbd::connect(socket, export).expect("QEMU exports it");
            let shared = Arc::clone(&shared);
            let written = written.clone();
            thread::spawn(move || Worker { nbd, number, written, shared }.run(mode))
        });
        let workers = workers.collect();
        Self { workers, shared }
    }

    /// How many operations were done so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.shared.operations.load(Ordering::Relaxed)
    }

    /// How many failed so far.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }

    /// The longest time between the ends of one operation and the next of the same worker, since the
    /// I/O began or this was asked for last.
    #[must_use]
    pub fn take_longest_pause(&self) -> Duration {
        Duration::from_nanos(self.shared.longest_pause_nsec.swap(0, Ordering::Relaxed))
    }

    /// Waits until so many more operations were done, without an error.
    ///
    /// # Panics
    ///
    /// If they are not, or one failed.
    #[track_caller]
    pub fn goes_on_for(&self, operations: u64) {
        let before = self.operations();
        wait_until(SOON, || self.operations() >= before + operations || self.errors() > 0);
        assert_eq!(self.errors(), 0, "{:?}", self.shared.first());
    }

    /// Waits until the connection has ended under it.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn is_cut_off(&self) {
        wait_until(SOON, || self.shared.is_cut_off.load(Ordering::Relaxed));
    }

    /// Ends it, when what is under way is done.
    ///
    /// # Panics
    ///
    /// If a worker has panicked.
    #[must_use]
    pub fn stop(self) -> Ended {
        self.shared.stop.store(true, Ordering::Relaxed);
        let longest_pause = self.take_longest_pause();
        let mut written = Written::default();
        for worker in self.workers {
            written.add(&worker.join().expect("a worker does not panic"));
        }
        let shared = &self.shared;
        Ended {
            operations: shared.operations.load(Ordering::Relaxed),
            errors: shared.errors.load(Ordering::Relaxed),
            first_error: shared.first(),
            longest_pause,
            is_cut_off: shared.is_cut_off.load(Ordering::Relaxed),
            written,
        }
    }

    /// The same, and it must have seen no error and no end of its connection.
    ///
    /// # Panics
    ///
    /// If it has.
    #[track_caller]
    pub fn stops_without_an_error(self) -> Ended {
        let ended = self.stop();
        assert_eq!((ended.errors, &ended.first_error), (0, &None));
        assert!(!ended.is_cut_off, "the connection has ended");
        ended
    }
}

impl Shared {
    fn first(&self) -> Option<String> {
        self.first_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn report(&self, error: String) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
    }
}

/// One thread of I/O, over its own part of the blocks.
struct Worker {
    nbd: Nbd,
    number: u64,
    written: Written,
    shared: Arc<Shared>,
}

/// The connection has ended.
struct CutOff;

impl Worker {
    /// Works until it shall stop; tells what is written in its blocks.
    fn run(mut self, mode: Mode) -> Written {
        let ours = |block: &u64| *block / STRIDE % WORKERS == self.number;
        self.written.0.retain(|block, _| ours(block));
        if self.work(mode).is_err() {
            self.shared.is_cut_off.store(true, Ordering::Relaxed);
        }
        self.written
    }

    fn work(&mut self, mode: Mode) -> Result<(), CutOff> {
        for turn in 0..BLOCKS_EACH {
            self.read(self.block(turn))?;
        }
        let mut last = Instant::now();
        for turn in 0.. {
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            if mode == Mode::WritesAndReads {
                self.write(self.block(turn * 7))?;
                self.took_since(&mut last);
                if turn % WRITES_A_FLUSH == 0 {
                    self.flush()?;
                    self.took_since(&mut last);
                }
            }
            self.read(self.block(turn * 5 + 3))?;
            self.took_since(&mut last);
        }
        Ok(())
    }

    /// One of its blocks; all of them, where the turns go on by a number that is odd.
    fn block(&self, turn: u64) -> u64 {
        (turn % BLOCKS_EACH * WORKERS + self.number) * STRIDE
    }

    fn write(&mut self, block: u64) -> Result<(), CutOff> {
        let history = self.written.0.entry(block).or_default();
        history.sent += 1;
        let generation = history.sent;
        let outcome = self.nbd.write(block * BLOCK as u64, &filled(block, generation));
        if self.is_done(outcome, "writing", block)? {
            self.written.0.entry(block).or_default().done = generation;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CutOff> {
        let outcome = self.nbd.flush();
        if self.is_done(outcome, "flushing after", 0)? {
            self.written.0.values_mut().for_each(|history| history.flushed = history.done);
        }
        Ok(())
    }

    fn read(&mut self, block: u64) -> Result<(), CutOff> {
        let mut buffer = vec![0xff; BLOCK];
        let outcome = self.nbd.read(block * BLOCK as u64, &mut buffer);
        if !self.is_done(outcome, "reading", block)? {
            return Ok(());
        }
        let done = self.written.0.get(&block).copied().unwrap_or_default().done;
        let found = generation_of(block, &buffer);
        if found != Some(done) {
            let error = format!("block {block} has generation {found:?}, and not {done}");
            self.shared.report(error);
        }
        Ok(())
    }

    /// Whether an operation was done; counts it, or its error.
    fn is_done(&self, outcome: io::Result<()>, what: &str, block: u64) -> Result<bool, CutOff> {
        match outcome {
            Ok(()) => {
                self.shared.operations.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(error) if is_the_end(&error) => Err(CutOff),
            Err(error) => {
                self.shared.report(format!("{what} block {block}: {error}"));
                Ok(false)
            }
        }
    }

    fn took_since(&self, last: &mut Instant) {
        let now = Instant::now();
        let took = u64::try_from((now - *last).as_nanos()).unwrap_or(u64::MAX);
        self.shared.longest_pause_nsec.fetch_max(took, Ordering::Relaxed);
        *last = now;
    }
}

fn is_the_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// A block that tells, in every 16 bytes, which one it is, how often it was written, and where in it
/// these bytes stand.
pub(crate) fn filled(block: u64, generation: Generation) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    for at in 0..BLOCK as u64 / 16 {
        bytes.extend((block << 16 | at).to_le_bytes());
        bytes.extend(generation.to_le_bytes());
    }
    bytes
}

/// How often a block was written: none, if it is not that block or not a whole one.
fn generation_of(block: u64, bytes: &[u8]) -> Option<Generation> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let generation = Generation::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
    (bytes == filled(block, generation)).then_some(generation)
}
