//! What a daemon has at a time: memory by process, descriptors, and the journal's size.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::process::Pid;

/// By how much the memory of a process may differ, in KiB: allocators keep what they have had. It is what a
/// hundred million calls would take of which each loses a hundredth of a byte.
const NOISE: u64 = 1024;

/// How many KiB each thread leaves behind that was beside more others than ever before.
const THREAD: u64 = 64;

/// What a daemon has.
#[derive(Debug)]
pub(crate) struct Figures {
    /// Anonymous memory of the keeper and the server, in KiB.
    memory: Vec<u64>,
    /// In the table that both share, beside connections.
    descriptors: usize,
    /// Threads of both, now and at most so far.
    threads: u64,
    most_threads: u64,
}

impl Figures {
    /// Those of the daemon with this keeper, which has so many descriptors, and has had so many threads.
    pub(crate) fn of(keeper: Pid, descriptors: usize, most_threads: u64) -> io::Result<Self> {
        let processes = processes(keeper)?;
        let memory = processes.iter().map(|process| memory(process)).collect::<io::Result<_>>()?;
        Ok(Self { memory, descriptors, threads: threads(keeper)?, most_threads })
    }

    /// Whether it has no more later.
    pub(crate) fn check(&self, later: &Self) -> Result<(), String> {
        let noise = NOISE + THREAD * (later.most_threads - self.most_threads);
        let grown = |(before, after): (&u64, &u64)| *after > before + noise;
        let is_more = later.descriptors > self.descriptors
            // Each may be on its way to its rest, for which one of each kind stays.
            || later.threads > self.threads + 2
            || later.memory.len() != self.memory.len()
            || self.memory.iter().zip(&later.memory).any(grown);
        if is_more { Err(format!("it had {self}, and then {later}")) } else { Ok(()) }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        let Self { memory, descriptors, threads, most_threads } = self;
        let memory: Vec<_> = memory.iter().map(|kib| format!("{kib} KiB")).collect();
        write!(
            to,
            "{}, {descriptors} descriptors, {threads} threads (of {most_threads})",
            memory.join(" + ")
        )
    }
}

/// How many bytes the journal of the daemon with this keeper has of the machine's memory; none, for who may
/// not look.
pub(crate) fn journal(keeper: Pid) -> u64 {
    let Ok(open) = fs::read_dir(process(keeper).join("fd")) else { return 0 };
    let is_journal = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("fdstash-journal"))
    };
    let files = open.flatten().map(|entry| entry.path()).filter(is_journal);
    files.filter_map(|path| fs::metadata(path).ok()).map(|file| file.blocks() * 512).sum()
}

/// Whether a journal is bounded by what is held: twice of that and a slack, in both of its files, and the room
/// that is kept for what may follow.
pub(crate) fn check_journal(bytes: u64, held: usize, users: u64) -> Result<(), String> {
    // A small entry, and what is remembered of calls whose connections have ended.
    let kept = held as u64 * 512 + (users + 1) * 256 * 256;
    let most = 4 * kept + (512 << 10);
    if bytes > most {
        return Err(format!("the journal had {bytes} bytes, for what is held {most} are enough"));
    }
    Ok(())
}

/// How many threads both processes of the daemon with this keeper have.
pub(crate) fn threads(keeper: Pid) -> io::Result<u64> {
    let mut threads = 0;
    for process in processes(keeper)? {
        threads += fs::read_dir(process.join("task"))?.count() as u64;
    }
    Ok(threads)
}

/// The keeper and its server.
fn processes(keeper: Pid) -> io::Result<Vec<PathBuf>> {
    let number = keeper.as_raw_pid();
    let children = fs::read_to_string(process(keeper).join(format!("task/{number}/children")))?;
    let server = children.split_whitespace().map(|number| Path::new("/proc").join(number));
    Ok([process(keeper)].into_iter().chain(server).collect())
}

fn process(pid: Pid) -> PathBuf {
    format!("/proc/{}", pid.as_raw_pid()).into()
}

fn memory(process: &Path) -> io::Result<u64> {
    let status = fs::read_to_string(process.join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::other("it has no RssAnon"))
}
