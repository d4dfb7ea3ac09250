//! The guest: threads that write blocks, read them back and check them, without pause.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use fdstash::imago::Shared;

use crate::{Outcome, images};

pub(crate) const BLOCK: usize = 4096;
/// How many blocks it uses, all over the disk.
pub(crate) const BLOCKS: u64 = 256;
pub(crate) const THREADS: u64 = 4;
/// After how many writes it flushes, and can rely on them.
const FLUSH: usize = 8;

/// Where a block lies.
pub(crate) fn offset(block: u64) -> u64 {
    block * (images::BYTES / BLOCKS)
}

/// A block's content, which tells which one it is and how often it was written.
#[derive(PartialEq, Eq)]
pub(crate) struct Content(Vec<u8>);

impl Content {
    pub(crate) fn of(block: u64, generation: u64) -> Self {
        let words = (0..BLOCK as u64 / 8).map(|at| (block << 48) ^ (generation << 9) ^ at);
        Self(words.flat_map(u64::to_le_bytes).collect())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// How often it was written, if it is this block, and whole.
    fn generation(&self, block: u64) -> Option<u64> {
        let first: [u8; 8] = self.0.first_chunk().copied()?;
        let generation = (u64::from_le_bytes(first) ^ (block << 48)) >> 9;
        (*self == Self::of(block, generation)).then_some(generation)
    }
}

/// What the guest can rely on, whoever dies: the generation of each block when it was flushed last.
pub(crate) struct Record(File);

impl Record {
    pub(crate) fn open(path: &Path) -> Outcome<Self> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(BLOCKS * 8)?;
        Ok(Self(file))
    }

    pub(crate) fn generation(&self, block: u64) -> io::Result<u64> {
        let mut word = [0; 8];
        self.0.read_exact_at(&mut word, block * 8)?;
        Ok(u64::from_le_bytes(word))
    }

    fn note(&self, block: u64, generation: u64) -> io::Result<()> {
        self.0.write_all_at(&generation.to_le_bytes(), block * 8)
    }
}

/// The guest, at work.
pub(crate) struct Guest {
    shared: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
}

struct Work {
    disk: Shared,
    record: Record,
    stop: AtomicBool,
    operations: AtomicU64,
    errors: AtomicU64,
    longest_usec: AtomicU64,
    first_error: Mutex<Option<String>>,
}

impl Guest {
    /// Checks every block, and sets to work.
    pub(crate) fn start(disk: Shared, record: Record) -> Outcome<Self> {
        let shared = Arc::new(Work {
            disk,
            record,
            stop: AtomicBool::new(false),
            operations: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            longest_usec: AtomicU64::new(0),
            first_error: Mutex::new(None),
        });
        let found = wait(shared.find())?;
        let threads = (0..THREADS).map(|number| {
            let (work, found) = (Arc::clone(&shared), found.clone());
            thread::spawn(move || wait(work.work(number, found)))
        });
        let threads = threads.collect();
        Ok(Self { shared, threads })
    }

    pub(crate) fn operations(&self) -> u64 {
        self.shared.operations.load(Ordering::Relaxed)
    }

    pub(crate) fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }

    /// The longest that one operation has taken.
    pub(crate) fn longest_usec(&self) -> u64 {
        self.shared.longest_usec.load(Ordering::Relaxed)
    }

    pub(crate) fn first_error(&self) -> Option<String> {
        self.shared.first_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When it returns, all that was written is flushed.
    pub(crate) fn stop(&mut self) -> Outcome<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| "a guest thread panicked")?;
        }
        Ok(())
    }
}

impl Work {
    /// How often each block was written: no less often than the guest can rely on.
    async fn find(&self) -> Outcome<Vec<u64>> {
        let mut found = Vec::new();
        for block in 0..BLOCKS {
            let relied_on = self.record.generation(block)?;
            match self.read(block).await?.generation(block) {
                Some(generation) if generation >= relied_on => {
                    // It may have been written once more before the last VMM was killed.
                    self.record.note(block, generation)?;
                    found.push(generation);
                }
                Some(generation) => {
                    return Err(format!(
                        "block {block} was written {relied_on} times and is as after {generation}"
                    )
                    .into());
                }
                None => return Err(format!("block {block} is not what was written").into()),
            }
        }
        Ok(found)
    }

    /// A thread's work on its share of the blocks.
    async fn work(&self, number: u64, mut generations: Vec<u64>) {
        let mut unflushed = Vec::new();
        let mut turn = 0;
        while !self.stop.load(Ordering::Relaxed) {
            turn += 1;
            let block = number + THREADS * (turn * 7 % (BLOCKS / THREADS));
            let generation = &mut generations[usize::try_from(block).unwrap_or_default()];
            match self.write_and_read(block, *generation + 1).await {
                Ok(()) => {
                    *generation += 1;
                    unflushed.push((block, *generation));
                }
                Err(error) => self.report(&format!("block {block}: {error}")),
            }
            if unflushed.len() == FLUSH {
                self.flush(&mut unflushed).await;
            }
        }
        self.flush(&mut unflushed).await;
    }

    async fn write_and_read(&self, block: u64, generation: u64) -> Outcome<()> {
        let content = Content::of(block, generation);
        let began = Instant::now();
        self.disk.read().await.write(content.bytes(), offset(block)).await?;
        self.count(began);
        let began = Instant::now();
        let is_there = self.read(block).await? == content;
        self.count(began);
        if is_there { Ok(()) } else { Err("it is not what was written".into()) }
    }

    async fn read(&self, block: u64) -> io::Result<Content> {
        let mut bytes = vec![0; BLOCK];
        self.disk.read().await.read(&mut bytes[..], offset(block)).await?;
        Ok(Content(bytes))
    }

    /// Only what is flushed outlives the VMM.
    async fn flush(&self, unflushed: &mut Vec<(u64, u64)>) {
        let outcome = self.disk.read().await.flush().await.and_then(|()| {
            unflushed
                .drain(..)
                .try_for_each(|(block, generation)| self.record.note(block, generation))
        });
        if let Err(error) = outcome {
            self.report(&format!("flushing: {error}"));
        }
    }

    fn count(&self, began: Instant) {
        let usec = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.longest_usec.fetch_max(usec, Ordering::Relaxed);
        self.operations.fetch_add(1, Ordering::Relaxed);
    }

    fn report(&self, error: &str) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| error.to_owned());
    }
}

/// The crate imago is asynchronous, and the guest's threads wait.
fn wait<F: Future>(flow: F) -> F::Output {
    match tokio::runtime::Builder::new_current_thread().build() {
        Ok(runtime) => runtime.block_on(flow),
        Err(error) => panic!("a runtime without a reactor can be made: {error}"),
    }
}
