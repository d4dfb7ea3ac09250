//! fdstash beside the kernel's own cost of passing descriptors, the smallest server there can be, and
//! s6-fdholder-daemon, where that is installed.
//!
//! `make peers` builds and runs it. Every scenario runs for a slice of some milliseconds in each of several
//! rounds, in a new order each round, client and server on one CPU; what is told are ratios of quiet values:
//! of the first quartile of the rounds' medians, since noise only ever adds. So they compare what ran within
//! a second or so, and stand on a shared machine too. When `spread` (how far apart the rounds' medians are)
//! is above 40 % for `raw.give`, it was too loud: run it again.
//!
//! Who is measured is a process that says `ready SERVER CLIENT`, its processes, and then does for each line
//! `OP MS` of its input that operation for so long, and says `COUNT SUM_NS P50_NS P99_NS`, or
//! `unsupported`: the contender (`examples/contender.rs`, or what `--contender` says), this program with
//! `--raw` or `--floor` (`raw.rs`), and a client of libs6 (`s6.c`).

mod peer;
mod raw;
mod rounds;
mod s6;
mod stash;
mod table;
mod told;

use std::{
    env,
    io::{self, BufRead, BufReader},
    ops::Range,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use rustix::process::{Resource, getrlimit};

use crate::{
    peer::Peer,
    rounds::Bench,
    s6::S6,
    stash::{Holding, Stash},
    table::Table,
};

/// How many connections say nothing.
const IDLE: usize = 200;

/// How many clients are at it at once.
const CROWD: usize = 8;

/// What the contender can do, and what that is compared with.
const CONTENDED: [(&str, &str); 14] = [
    ("give", "raw.give"),
    ("take", "raw.take"),
    ("cycle", "raw.cycle"),
    ("safe_take", "raw.take"),
    ("safe_cycle", "raw.cycle"),
    ("conn_give", "floor.conn_give"),
    ("idle200_cycle", "raw.cycle"),
    ("h19900_cycle", "raw.cycle"),
    ("pipe16_give", "raw.pipe16_give"),
    ("pipe16_take", "raw.pipe16_take"),
    ("give253", "raw.give253"),
    ("take253", "raw.take253"),
    ("safe_take253", "raw.take253"),
    ("c8_cycle", "floor.c8_cycle"),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<()> {
    match *words {
        ["--raw"] => raw::raw_client(),
        ["--raw-server"] => raw::raw_server(),
        ["--floor", name, server, idle] => {
            raw::floor_client(name, server, idle.parse().map_err(io::Error::other)?)
        }
        ["--floor-server", name] => raw::floor_server(name),
        _ => Options::of(words)?.run(),
    }
}

/// How to measure.
struct Options {
    rounds: usize,
    slice: Duration,
    /// How many entries are many.
    held: usize,
    contender: String,
    /// Where the table goes, beside the output.
    table: Option<PathBuf>,
}

impl Options {
    fn of(words: &[&str]) -> io::Result<Self> {
        let contender = kit::program("examples/contender").display().to_string();
        let slice = Duration::from_millis(10);
        let mut options = Self { rounds: 15, slice, held: 19_900, contender, table: None };
        for pair in words.chunks(2) {
            let number = || pair.last().unwrap_or(&"").parse().map_err(io::Error::other);
            match *pair {
                ["--rounds", _] => options.rounds = number()?,
                ["--slice", _] => options.slice = Duration::from_millis(number()? as u64),
                ["--held", _] => options.held = number()?,
                ["--contender", command] => options.contender = command.to_owned(),
                ["--table", path] => options.table = Some(path.into()),
                _ => {
                    return Err(io::Error::other(
                        "usage: peers [--rounds N] [--slice MILLISECONDS] [--held N] \
                         [--contender COMMAND] [--table FILE]",
                    ));
                }
            }
        }
        // Some are left for connections.
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX).saturating_sub(100);
        options.held = options.held.min(usize::try_from(most).unwrap_or(usize::MAX)).max(1);
        Ok(options)
    }

    fn run(&self) -> io::Result<()> {
        kit::raise_open_files();
        let folder = tempfile::tempdir()?;
        let mut bench = Bench::default();
        add_raw(&mut bench)?;
        let _floors = add_floor(&mut bench)?;
        let mut contender = Command::new("sh");
        let peer = bench.peer(Peer::start(contender.arg("-c").arg(&self.contender))?);
        add_contender(&mut bench, &peer);
        let stash = Stash::start();
        stash.add(&mut bench, self.held)?;
        let s6 = S6::installed(folder.path())?;
        let daemons = s6.as_ref().map(|s6| s6.add(&mut bench, self.held)).transpose()?;
        bench.run(self.rounds, self.slice)?;
        let holding = Holding::measure(self.held)?;
        let table = Table {
            scenarios: &bench.scenarios,
            s6: s6.as_ref().map(|s6| s6.version.as_str()),
            s6_bytes: daemons.as_ref().and_then(|daemons| daemons.bytes),
            asked: self.held,
            holding,
        };
        print!("{}\n{}", table.details(), table.markdown()?);
        if s6.is_none() {
            println!("\ns6 is left out: its column takes the packages {}", s6::PACKAGES);
        }
        self.table.as_deref().map_or(Ok(()), |path| table.write(path))
    }
}

fn myself(words: &[&str]) -> io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.args(words);
    Ok(command)
}

fn add_raw(bench: &mut Bench) -> io::Result<()> {
    let peer = bench.peer(Peer::start(&mut myself(&["--raw"])?)?);
    for (key, base, operation) in [
        ("raw.give", "", "give"),
        ("raw.take", "", "take"),
        ("raw.cycle", "", "cycle"),
        ("raw.pipe16_give", "raw.give", "pipe16_give"),
        ("raw.pipe16_take", "raw.take", "pipe16_take"),
        ("raw.give253", "raw.give", "give253"),
        ("raw.take253", "raw.take", "take253"),
        ("raw.reopen", "raw.take", "reopen"),
    ] {
        bench.ask(key, base, &peer, operation);
    }
    Ok(())
}

/// A server, killed when it is dropped, or whoever has started it ends.
struct Floor {
    child: Child,
    name: String,
}

impl Floor {
    fn start(what_for: &str) -> io::Result<Self> {
        // An abstract address is everybody's on the machine.
        let name = format!("fdstash-floor-{what_for}-{}", std::process::id());
        let mut command = myself(&["--floor-server", &name])?;
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        BufReader::new(out).read_line(&mut String::new())?;
        Ok(Self { child, name })
    }

    fn client(&self, idle: usize) -> io::Result<Peer> {
        let [server, idle] = [self.child.id().to_string(), idle.to_string()];
        Peer::start(&mut myself(&["--floor", &self.name, &server, &idle])?)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server for each that would cost the others something, to live as long as they are measured.
fn add_floor(bench: &mut Bench) -> io::Result<[Floor; 3]> {
    let [plain, silent, crowded] =
        [Floor::start("plain")?, Floor::start("silent")?, Floor::start("crowded")?];
    let peer = bench.peer(plain.client(0)?);
    bench.ask("floor.give", "raw.give", &peer, "give");
    bench.ask("floor.take", "raw.take", &peer, "take");
    bench.ask("floor.cycle", "raw.cycle", &peer, "cycle");
    bench.ask("floor.conn_give", "raw.give", &peer, "conn_give");
    let peer = bench.peer(silent.client(IDLE)?);
    bench.ask("floor.idle200_cycle", "raw.cycle", &peer, "cycle");
    let peers = bench.crowd(|_| crowded.client(0))?;
    bench.ask("floor.c8_cycle", "raw.cycle", &peers, "cycle").anywhere().longer(4);
    Ok([plain, silent, crowded])
}

fn add_contender(bench: &mut Bench, peer: &Range<usize>) {
    for (operation, base) in CONTENDED {
        let scenario = bench.ask(&format!("fdstash.{operation}"), base, peer, operation);
        if operation == "c8_cycle" {
            scenario.anywhere().longer(4);
        }
    }
}
