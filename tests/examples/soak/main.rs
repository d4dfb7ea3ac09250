//! Whether anything in the daemon grows with use: as many calls as a day has, as fast as they go, and then a
//! look at what is left of them.
//!
//! `make soak`, or `soak CALLS`. Clients of several users (of one, without root) make calls of all kinds, of
//! which many are refused, under names that never come again, on connections that come and go; beside them
//! others watch, wait, expire and hang up. Twenty times, or twice, they all leave, and when the daemon is at rest it must
//! have what it had after the first minute, or the first half if they are few: as many descriptors, no
//! more memory, and a journal that is bounded by what is held. Every reply must be the one that is due.

mod figures;
mod script;
mod worker;

use std::{
    env,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use fdstash::Gift;
use kit::{Daemon, is_root, name, null, raise_open_files, wait_until};

use crate::{figures::Figures, worker::Worker};

/// How many are made if nothing is said: what a thousand a second come to in a day.
const CALLS: u64 = 86_400_000;

/// How often the daemon is looked at, and below how many calls no oftener than twice: until all is at rest,
/// it takes its time.
const LOOKS: u64 = 20;
const FEW: u64 = 1_000_000;

/// How many clients call at a time, each as a user of its own where there is root.
const WORKERS: u64 = 4;

/// How many entries are held all the time.
const HELD: usize = 1000;

/// After how long everything has been used once that is kept for further use.
const WARM: Duration = Duration::from_secs(60);

/// How often the journal's size is looked at meanwhile.
const PERIOD: Duration = Duration::from_millis(200);

/// How long it may take until all is at rest.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    raise_open_files();
    let calls = env::args().nth(1).map_or(Ok(CALLS), |count| count.parse());
    let Ok(calls) = calls else {
        eprintln!("soak: how many calls? a number");
        return ExitCode::FAILURE;
    };
    match soak(calls) {
        Ok(told) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is left of so many calls, or what is wrong with that.
fn soak(calls: u64) -> Result<String, String> {
    let daemon = Daemon::builder().quiet().spawn();
    let _keeper = fill(&daemon);
    let began = Instant::now();
    let looks = if calls < FEW { 2 } else { LOOKS };
    let at_start = figures::threads(daemon.pid()).map_err(|error| error.to_string())?;
    let (mut done, mut peak) = (0, Peak::default());
    let mut workers: Vec<Worker> = (0..WORKERS).map(|at| Worker::new(at, is_root())).collect();
    let mut warm: Option<Figures> = None;
    loop {
        done += run(&daemon, &mut workers, calls / looks / WORKERS, &mut peak)?;
        let figures = at_rest(&daemon, at_start, peak.threads)?;
        let rate = done as f64 / began.elapsed().as_secs_f64();
        println!(
            "{done:>11} calls, {rate:>6.0} a second: {figures}, journal at most {} bytes",
            peak.journal
        );
        let is_warm = began.elapsed() >= WARM || done >= calls / 4;
        match &warm {
            None if is_warm => warm = Some(figures),
            None => {}
            Some(before) => before.check(&figures)?,
        }
        figures::check_journal(peak.journal, HELD, WORKERS)?;
        if done >= calls {
            let warm = warm.ok_or("it never got warm")?;
            return Ok(format!("nothing has grown since {warm}"));
        }
    }
}

/// Gives what is held all the time.
fn fill(daemon: &Daemon) -> fdstash::blocking::Client {
    let null = null();
    let mut client = daemon.client();
    for start in (0..HELD).step_by(200) {
        let names = (start..HELD.min(start + 200)).map(|at| name(&format!("held/{at}")));
        let gifts: Vec<_> = names.map(|name| Gift::new(name, &null)).collect();
        client.give(&gifts).expect("there is room");
    }
    client
}

/// The most that there was at a time.
#[derive(Default)]
struct Peak {
    /// Bytes of the journal.
    journal: u64,
    threads: u64,
}

/// Has each make so many calls at once with the others; how many were made.
fn run(
    daemon: &Daemon,
    workers: &mut [Worker],
    calls: u64,
    peak: &mut Peak,
) -> Result<u64, String> {
    let before = total(workers);
    let outcomes: Vec<Result<(), String>> = thread::scope(|scope| {
        let run = |worker| scope.spawn(move || Worker::run(worker, daemon.socket(), calls));
        let threads: Vec<_> = workers.iter_mut().map(run).collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            peak.journal = peak.journal.max(figures::journal(daemon.pid()));
            peak.threads = peak.threads.max(figures::threads(daemon.pid()).unwrap_or_default());
            thread::sleep(PERIOD);
        }
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err("it panicked".into())))
            .collect()
    });
    outcomes.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(total(workers) - before)
}

fn total(workers: &[Worker]) -> u64 {
    workers.iter().map(|worker| worker.calls).sum()
}

/// What the daemon has when everybody has gone but who keeps what is held, and its threads but for those that
/// it had at the start, and one of each kind.
fn at_rest(daemon: &Daemon, at_start: u64, most_threads: u64) -> Result<Figures, String> {
    wait_until(PATIENCE, || {
        let told = daemon.statistics();
        // The one that asks, and the one that has given what is held.
        let all_gone = told.entries as usize == HELD && told.connections <= 2;
        all_gone && figures::threads(daemon.pid()).is_ok_and(|threads| threads <= at_start + 2)
    });
    Figures::of(daemon.pid(), daemon.held_at_rest(), most_threads)
        .map_err(|error| format!("looking at the daemon: {error}"))
}
