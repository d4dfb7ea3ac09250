//! A contender in a measurement of servers that hold descriptors: a daemon, and a client of it that does
//! one operation for as long as it is told to.
//!
//! It says `ready DAEMON CLIENT`, the processes of both; then, for each line `OP MS` of its input, it
//! does OP for so many milliseconds and says `COUNT SUM_NS P50_NS P99_NS`, or `unsupported`. The client
//! is the blocking one of the library, as anybody would use it, and what it gives is /dev/null. Only the
//! operation itself is timed, and not what makes ready for it or clears up after it. A take is the one in
//! one round trip; those that end only when all has arrived are called safe here.
//!
//! | OP | is |
//! | --- | --- |
//! | `give`, `take`, `get` | one descriptor given, taken, copied |
//! | `cycle` | give and take |
//! | `safe_take`, `safe_cycle` | the same, with the take that is final when all has arrived |
//! | `conn_give` | a connection for each give |
//! | `idle200_cycle` | cycles beside 200 connections that say nothing |
//! | `h19900_cycle` | cycles while 19,900 others are held, or as many as there is room for |
//! | `c8_cycle` | cycles of eight processes at once; `SUM_NS` is the time that has gone by |
//! | `pipe16_give`, `pipe16_take` | sixteen calls sent before the first answer is read; all of them are timed |
//! | `give253`, `take253`, `safe_take253` | 253 descriptors in one call |

use std::{
    env,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use fdstash::{Error, Gift, Handed, Name, Outcome, Pipeline, blocking::Client};
use kit::{Daemon, raise_open_files};

/// How many more entries the stash is to have.
const HELD: usize = 19_900;

/// As many as one message brings.
const MANY: usize = 253;

/// How many calls are sent together.
const TOGETHER: usize = 16;

/// How many connections stay silent.
const IDLE: usize = 200;

/// How many processes are at it at once.
const PROCESSES: usize = 8;

fn main() -> io::Result<()> {
    raise_open_files();
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    if let [word, socket, number] = &arguments[..] {
        if word == "--one-of-eight" {
            let number = number.to_string_lossy();
            return one_of_eight(Path::new(socket), &number);
        }
    }
    let daemon = Daemon::builder().quiet().spawn();
    let mut bench = Bench::new(&daemon);
    // Its socket is there before its server is, which answers.
    bench.client.statistics().map_err(io::Error::other)?;
    let mut out = io::stdout().lock();
    writeln!(out, "ready {} {}", server(&daemon)?, std::process::id())?;
    out.flush()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let said = match order(&line).map(|(operation, time)| bench.measure(operation, time)) {
            Some(Some(told)) => told.to_line(),
            Some(None) | None => "unsupported".to_owned(),
        };
        writeln!(out, "{said}")?;
        out.flush()?;
    }
    Ok(())
}

/// The process that serves, the one that the daemon's first has made.
fn server(daemon: &Daemon) -> io::Result<String> {
    let keeper = daemon.pid().as_raw_pid();
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
    let server = children.split_whitespace().next();
    Ok(server.ok_or_else(|| io::Error::other("the daemon has no server"))?.to_owned())
}

/// What a line asks for.
fn order(line: &str) -> Option<(&str, Duration)> {
    let (operation, milliseconds) = line.split_once(' ')?;
    Some((operation, Duration::from_millis(milliseconds.trim().parse().ok()?)))
}

/// What operations took.
struct Told {
    count: usize,
    sum: Duration,
    p50: Duration,
    p99: Duration,
}

impl Told {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at =
            |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
        Self { count: times.len(), sum: times.iter().sum(), p50: at(50), p99: at(99) }
    }

    fn to_line(&self) -> String {
        let Self { count, sum, p50, p99 } = self;
        format!("{count} {} {} {}", sum.as_nanos(), p50.as_nanos(), p99.as_nanos())
    }
}

/// One of the client's two ways to take.
type Take = fn(&mut Client, &[Name]) -> Result<Vec<Handed<OwnedFd>>, Error>;

/// The client, and what it needs for its operations.
struct Bench {
    socket: PathBuf,
    client: Client,
    null: File,
    /// Started when they are first needed.
    processes: Vec<Process>,
}

impl Bench {
    fn new(daemon: &Daemon) -> Self {
        let null = File::open("/dev/null").expect("there is a /dev/null");
        Self {
            socket: daemon.socket().into(),
            client: daemon.client(),
            null,
            processes: Vec::new(),
        }
    }

    fn measure(&mut self, operation: &str, time: Duration) -> Option<Told> {
        let one = vec![name("bench")];
        let many = names("many", MANY);
        match operation {
            "give" => Some(self.gives(&one, time)),
            "take" => Some(self.takes(&one, Client::take_at_once, time)),
            "safe_take" => Some(self.takes(&one, Client::take, time)),
            "give253" => Some(self.gives(&many, time)),
            "take253" => Some(self.takes(&many, Client::take_at_once, time)),
            "safe_take253" => Some(self.takes(&many, Client::take, time)),
            "pipe16_give" => Some(self.gives_together(time)),
            "pipe16_take" => Some(self.takes_together(time)),
            "get" => Some(self.copies(&one, time)),
            "cycle" => Some(self.cycles(Client::take_at_once, time)),
            "safe_cycle" => Some(self.cycles(Client::take, time)),
            "conn_give" => Some(self.connections(&one, time)),
            "idle200_cycle" => {
                let connect = |_| Client::connect_to(&self.socket).expect("it is there");
                let _idle: Vec<_> = (0..IDLE).map(connect).collect();
                Some(self.cycles(Client::take_at_once, time))
            }
            "h19900_cycle" => Some(self.cycles_beside_others(time)),
            "c8_cycle" => Some(self.cycles_of_eight(time)),
            _ => None,
        }
    }

    fn give(&mut self, names: &[Name]) {
        let gifts: Vec<_> = names.iter().map(|name| Gift::new(name.clone(), &self.null)).collect();
        self.client.give(&gifts).expect("there is room");
    }

    fn gives(&mut self, names: &[Name], time: Duration) -> Told {
        let gifts: Vec<_> = names.iter().map(|name| Gift::new(name.clone(), &self.null)).collect();
        let client = &mut self.client;
        Told::of(until(time, || {
            let began = Instant::now();
            client.give(&gifts).expect("there is room");
            let took = began.elapsed();
            client.close(names).expect("they are there");
            took
        }))
    }

    fn takes(&mut self, names: &[Name], take: Take, time: Duration) -> Told {
        Told::of(until(time, || {
            self.give(names);
            let began = Instant::now();
            let taken = take(&mut self.client, names).expect("they are there");
            let took = began.elapsed();
            drop(taken);
            took
        }))
    }

    fn copies(&mut self, names: &[Name], time: Duration) -> Told {
        self.give(names);
        let times = until(time, || {
            let began = Instant::now();
            let copies = self.client.copy(names).expect("it is there");
            let took = began.elapsed();
            drop(copies);
            took
        });
        self.client.close(names).expect("it is there");
        Told::of(times)
    }

    fn gives_together(&mut self, time: Duration) -> Told {
        let names = names("piped", TOGETHER);
        let gifts: Vec<_> =
            names.iter().map(|name| [Gift::new(name.clone(), &self.null)]).collect();
        let client = &mut self.client;
        Told::of(until(time, || {
            let began = Instant::now();
            let mut pipeline = Pipeline::new();
            for gift in &gifts {
                pipeline.give(gift);
            }
            let given = all_of(client.run(pipeline));
            let took = began.elapsed();
            drop(given);
            client.close(&names).expect("they are there");
            took
        }))
    }

    fn takes_together(&mut self, time: Duration) -> Told {
        let names = names("piped", TOGETHER);
        Told::of(until(time, || {
            self.give(&names);
            let began = Instant::now();
            let mut pipeline = Pipeline::new();
            for name in &names {
                pipeline.take_at_once(std::slice::from_ref(name));
            }
            let taken = all_of(self.client.run(pipeline));
            let took = began.elapsed();
            drop(taken);
            took
        }))
    }

    fn cycles(&mut self, take: Take, time: Duration) -> Told {
        let gift = [Gift::new(name("bench"), &self.null)];
        let client = &mut self.client;
        Told::of(until(time, || cycle(client, &gift, take)))
    }

    fn connections(&mut self, names: &[Name], time: Duration) -> Told {
        let gifts: Vec<_> = names.iter().map(|name| Gift::new(name.clone(), &self.null)).collect();
        Told::of(until(time, || {
            let began = Instant::now();
            let mut client = Client::connect_to(&self.socket).expect("it is there");
            client.give(&gifts).expect("there is room");
            drop(client);
            let took = began.elapsed();
            self.client.close(names).expect("it is there");
            took
        }))
    }

    fn cycles_beside_others(&mut self, time: Duration) -> Told {
        let room = self.client.statistics().expect("it answers").max_entries;
        let room = usize::try_from(room).unwrap_or(HELD).saturating_sub(1);
        let others = names("other", HELD.min(room));
        others.chunks(MANY).for_each(|chunk| self.give(chunk));
        let told = self.cycles(Client::take_at_once, time);
        for chunk in others.chunks(MANY) {
            self.client.close(chunk).expect("they are there");
        }
        told
    }

    fn cycles_of_eight(&mut self, time: Duration) -> Told {
        while self.processes.len() < PROCESSES {
            let process = Process::start(&self.socket, self.processes.len());
            self.processes.push(process.expect("a process can be started"));
        }
        let began = Instant::now();
        for process in &mut self.processes {
            process.ask(time).expect("it listens");
        }
        let told: Vec<_> =
            self.processes.iter_mut().map(|process| process.told().expect("it answers")).collect();
        let sum = began.elapsed();
        let count = told.iter().map(|told| told.count).sum();
        let median = |of: fn(&Told) -> Duration| {
            let mut all: Vec<_> = told.iter().map(of).collect();
            all.sort_unstable();
            all[PROCESSES / 2]
        };
        Told { count, sum, p50: median(|told| told.p50), p99: median(|told| told.p99) }
    }
}

/// What each of as many as fit into the time took, at least one.
fn until(time: Duration, mut operation: impl FnMut() -> Duration) -> Vec<Duration> {
    let deadline = Instant::now() + time;
    let mut times = Vec::new();
    loop {
        times.push(operation());
        if Instant::now() >= deadline {
            return times;
        }
    }
}

fn all_of(outcomes: Vec<Result<Outcome, Error>>) -> Vec<Outcome> {
    outcomes.into_iter().map(|outcome| outcome.expect("each is done")).collect()
}

fn cycle(client: &mut Client, gift: &[Gift<&File>; 1], take: Take) -> Duration {
    let began = Instant::now();
    client.give(gift).expect("there is room");
    let taken = take(client, std::slice::from_ref(&gift[0].name)).expect("it is there");
    let took = began.elapsed();
    drop(taken);
    took
}

/// Another process, at the same daemon.
struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Process {
    fn start(socket: &Path, number: usize) -> io::Result<Self> {
        let program = env::current_exe()?;
        let mut child = Command::new(program)
            .arg("--one-of-eight")
            .arg(socket)
            .arg(number.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let piped = || io::Error::other("it has no pipes");
        Ok(Self { child, to: to.ok_or_else(piped)?, from: BufReader::new(from.ok_or_else(piped)?) })
    }

    fn ask(&mut self, time: Duration) -> io::Result<()> {
        writeln!(self.to, "cycle {}", time.as_millis())
    }

    fn told(&mut self) -> io::Result<Told> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|it| it.parse().ok()).collect();
        let [count, sum, p50, p99] = numbers[..] else {
            return Err(io::Error::other(format!("it says {line:?}")));
        };
        let [sum, p50, p99] = [sum, p50, p99].map(Duration::from_nanos);
        Ok(Told { count: usize::try_from(count).unwrap_or(usize::MAX), sum, p50, p99 })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One of the eight: does cycles under a name of its own.
fn one_of_eight(socket: &Path, number: &str) -> io::Result<()> {
    let mut client = Client::connect_to(socket).map_err(io::Error::other)?;
    let null = File::open("/dev/null")?;
    let gift = [Gift::new(name(&format!("bench-{number}")), &null)];
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let Some((_, time)) = order(&line) else { break };
        let told = Told::of(until(time, || cycle(&mut client, &gift, Client::take_at_once)));
        writeln!(out, "{}", told.to_line())?;
        out.flush()?;
    }
    Ok(())
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a good name")
}

fn names(prefix: &str, count: usize) -> Vec<Name> {
    (0..count).map(|number| name(&format!("{prefix}-{number}"))).collect()
}
