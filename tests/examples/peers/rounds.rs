//! Measuring side by side: every scenario for a short while in each of many rounds, in a new order each
//! time, so that what is compared has met the same noise.

use std::{
    fs, io,
    ops::Range,
    time::{Duration, Instant},
};

use kit::Random;
use rustix::{
    io::Errno,
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

use crate::{CROWD, peer::Peer, told::Told};

/// Where the processes of a scenario run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// All on one CPU: what is measured is the work of both sides, and no waking of an idle CPU.
    OneCpu,
    /// Wherever the scheduler puts them.
    Anywhere,
}

/// What is done in a slice of time.
enum Work {
    /// These of the peers do this, side by side.
    Peers(Range<usize>, &'static str),
    /// This process does it, to this server if to any.
    Own(Option<Pid>, Own),
}

type Own = Box<dyn FnMut(Duration) -> io::Result<Told>>;

/// One thing that is measured.
pub(crate) struct Scenario {
    /// Who does what: `raw.give`.
    pub(crate) key: String,
    /// What it is compared with.
    pub(crate) base: &'static str,
    /// How many descriptors one operation is about.
    pub(crate) descriptors: u32,
    place: Place,
    /// How many slices it gets in each round.
    slices: u32,
    work: Work,
    /// What it took in each.
    pub(crate) rounds: Vec<Told>,
}

impl Scenario {
    /// With so many times the time.
    pub(crate) fn longer(&mut self, slices: u32) -> &mut Self {
        self.slices = slices;
        self
    }

    /// Wherever the scheduler wants it.
    pub(crate) fn anywhere(&mut self) -> &mut Self {
        self.place = Place::Anywhere;
        self
    }

    fn run(&mut self, peers: &mut [Peer], slice: Duration, cpus: &CpuSet) -> io::Result<()> {
        let place = if self.place == Place::OneCpu { first_of(cpus) } else { *cpus };
        let slice = slice * self.slices;
        sched_setaffinity(None, &place)?;
        match &mut self.work {
            Work::Own(server, work) => {
                server.map_or(Ok(()), |pid| pin(pid, &place))?;
                self.rounds.push(work(slice)?);
            }
            Work::Peers(which, operation) => {
                let peers = &mut peers[which.clone()];
                let mut processes = peers.iter().flat_map(|peer| peer.processes);
                processes.try_for_each(|pid| pin(pid, &place))?;
                let began = Instant::now();
                peers.iter_mut().try_for_each(|peer| peer.ask(operation, slice))?;
                let told: Vec<_> = peers.iter_mut().map(Peer::told).collect::<Result<_, _>>()?;
                let took = began.elapsed();
                let told: Vec<_> = told.into_iter().flatten().collect();
                match told[..] {
                    [] => {}
                    [alone] => self.rounds.push(alone),
                    _ => self.rounds.push(Told::together(&told, took)),
                }
            }
        }
        sched_setaffinity(None, cpus)?;
        Ok(())
    }
}

/// All that is measured in the same rounds.
#[derive(Default)]
pub(crate) struct Bench {
    peers: Vec<Peer>,
    pub(crate) scenarios: Vec<Scenario>,
}

impl Bench {
    /// Has one more peer take part, and tells which one it is.
    pub(crate) fn peer(&mut self, peer: Peer) -> Range<usize> {
        self.peers.push(peer);
        self.peers.len() - 1..self.peers.len()
    }

    /// Has many of the same kind take part side by side, and tells which ones they are.
    pub(crate) fn crowd(
        &mut self,
        start: impl FnMut(usize) -> io::Result<Peer>,
    ) -> io::Result<Range<usize>> {
        let first = self.peers.len();
        self.peers.extend((0..CROWD).map(start).collect::<Result<Vec<_>, _>>()?);
        Ok(first..self.peers.len())
    }

    /// Has peers do an operation.
    pub(crate) fn ask(
        &mut self,
        key: &str,
        base: &'static str,
        peers: &Range<usize>,
        operation: &'static str,
    ) -> &mut Scenario {
        let work = Work::Peers(peers.clone(), operation);
        let descriptors = match operation {
            "give253" | "take253" | "safe_take253" => 253,
            "pipe16_give" | "pipe16_take" => 16,
            _ => 1,
        };
        self.add(key, base, descriptors, work)
    }

    /// Does something with a server.
    pub(crate) fn own(
        &mut self,
        key: &str,
        base: &'static str,
        server: impl Into<Option<Pid>>,
        work: impl FnMut(Duration) -> io::Result<Told> + 'static,
    ) -> &mut Scenario {
        self.add(key, base, 1, Work::Own(server.into(), Box::new(work)))
    }

    fn add(
        &mut self,
        key: &str,
        base: &'static str,
        descriptors: u32,
        work: Work,
    ) -> &mut Scenario {
        let (key, place, rounds) = (key.to_owned(), Place::OneCpu, Vec::new());
        self.scenarios.push(Scenario { key, base, descriptors, place, slices: 1, work, rounds });
        let last = self.scenarios.len() - 1;
        &mut self.scenarios[last]
    }

    /// Measures all of it.
    pub(crate) fn run(&mut self, rounds: usize, slice: Duration) -> io::Result<()> {
        let cpus = sched_getaffinity(None)?;
        let mut random = Random::new(rounds as u64);
        let mut order: Vec<_> = (0..self.scenarios.len()).collect();
        for _ in 0..rounds {
            for at in (1..order.len()).rev() {
                order.swap(at, random.below(at + 1));
            }
            for at in &order {
                let scenario = &mut self.scenarios[*at];
                let ran = scenario.run(&mut self.peers, slice, &cpus);
                ran.map_err(|error| io::Error::other(format!("{}: {error}", scenario.key)))?;
            }
        }
        Ok(())
    }
}

/// The first CPU of a set, alone.
fn first_of(cpus: &CpuSet) -> CpuSet {
    let mut first = CpuSet::new();
    if let Some(cpu) = (0..CpuSet::MAX_CPU).find(|cpu| cpus.is_set(*cpu)) {
        first.set(cpu);
    }
    first
}

/// Has all threads of a process run there.
fn pin(process: Pid, place: &CpuSet) -> io::Result<()> {
    for thread in fs::read_dir(format!("/proc/{}/task", process.as_raw_pid()))? {
        let number = thread?.file_name().to_string_lossy().parse().ok();
        match sched_setaffinity(number.and_then(Pid::from_raw), place) {
            // It has ended.
            Err(Errno::SRCH) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
