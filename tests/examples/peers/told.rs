//! What operations took, and the lines in which a peer tells it.

use std::{
    io::{self, BufRead, Write},
    time::{Duration, Instant},
};

/// What operations of one kind took, one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    pub(crate) count: u64,
    /// All of them together.
    pub(crate) sum: Duration,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl Told {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| times.get(times.len() * percent / 100).copied();
        Self {
            count: times.len() as u64,
            sum: times.iter().sum(),
            p50: at(50).unwrap_or_default(),
            p99: at(99).unwrap_or_default(),
        }
    }

    /// What peers did side by side while so much time went by.
    pub(crate) fn together(told: &[Self], sum: Duration) -> Self {
        let median = |of: fn(&Self) -> Duration| {
            let mut all: Vec<_> = told.iter().map(of).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        let count = told.iter().map(|told| told.count).sum();
        Self { count, sum, p50: median(|told| told.p50), p99: median(|told| told.p99) }
    }

    /// What a line says, or nothing where it says `unsupported`.
    pub(crate) fn from_line(line: &str) -> io::Result<Option<Self>> {
        if line.trim() == "unsupported" {
            return Ok(None);
        }
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|it| it.parse().ok()).collect();
        let [count, sum, p50, p99] = numbers[..] else {
            return Err(io::Error::other(format!("a peer says {line:?}")));
        };
        let [sum, p50, p99] = [sum, p50, p99].map(Duration::from_nanos);
        Ok(Some(Self { count, sum, p50, p99 }))
    }

    fn to_line(self) -> String {
        let Self { count, sum, p50, p99 } = self;
        format!("{count} {} {} {}", sum.as_nanos(), p50.as_nanos(), p99.as_nanos())
    }
}

/// Does an operation, which says how long it took, again and again for so long, and once at least.
pub(crate) fn until(
    time: Duration,
    mut operation: impl FnMut() -> io::Result<Duration>,
) -> io::Result<Told> {
    let deadline = Instant::now() + time;
    let mut times = Vec::with_capacity(1 << 12);
    loop {
        times.push(operation()?);
        if Instant::now() >= deadline {
            return Ok(Told::of(times));
        }
    }
}

/// Is a peer: says which processes it is, and does what it is told to until its input ends.
pub(crate) fn answer(
    server: &str,
    mut operations: impl FnMut(&str) -> Option<io::Result<Duration>>,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "ready {server} {}", std::process::id())?;
    out.flush()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let wrong = || io::Error::other(format!("a peer was told {line:?}"));
        let (operation, time) = line.split_once(' ').ok_or_else(wrong)?;
        let time = Duration::from_millis(time.parse().map_err(|_| wrong())?);
        let said = match operations(operation) {
            Some(first) => {
                first?;
                let again = || operations(operation).unwrap_or_else(|| Err(wrong()));
                until(time, again)?.to_line()
            }
            None => "unsupported".to_owned(),
        };
        writeln!(out, "{said}")?;
        out.flush()?;
    }
    Ok(())
}
