//! How long each operation takes beside the more of what others hold, have expire, are connected with and wait
//! for: drawn in docs/growth.svg, as a ratio to how long it takes where there is one of it.
//!
//! `cargo bench --package fdstash-tests --bench growth`. For each amount there is a daemon of its own, and the
//! operations of all of them are timed in turns, so that what else the machine does hits all. Told is the
//! quietest median of several rounds. That nothing grows faster than the logarithm, `tests/steps.rs` holds.

mod chart;

use std::{
    fs::{self, File},
    io::Read,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use fdstash::{Gift, Reopening, blocking::Client};
use kit::{Daemon, Raw, call, name, null, pattern, raise_open_files};
use serde_json::json;

use crate::chart::{Line, Panel};

/// How often all of it is measured, and how often an operation each time.
const ROUNDS: usize = 9;
const TIMES: usize = 60;

/// So much room is left where as much is held as there is room for.
const SPARE: usize = 8;

/// When what expires does; never, for what is measured here.
const HOUR_USEC: u64 = 3_600_000_000;

/// What there is more and more of, the most of it, and how so much of it comes to be.
type Crowd = (&'static str, usize, fn(&Path, usize) -> Vec<Raw>);

const CROWDS: [Crowd; 4] = [
    ("entries held", 19_900, hold),
    ("entries that expire", 19_900, expire),
    ("connections", 10_000, connect),
    ("calls that wait", 5_000, wait),
];

/// An operation, by its name: once what makes ready for it, then it, then what clears up.
type Operation = (&'static str, fn(&mut Bench), fn(&mut Bench), fn(&mut Bench));

const OPERATIONS: [Operation; 8] = [
    ("give", nothing, Bench::give, Bench::close),
    ("take", Bench::give, Bench::take, nothing),
    ("copy", Bench::give, Bench::copy, Bench::close),
    ("close", Bench::give, Bench::close, nothing),
    ("reopen", Bench::give, Bench::reopen, Bench::close),
    ("list of one", Bench::give, Bench::list, Bench::close),
    ("transaction", nothing, Bench::transaction, Bench::close),
    ("watch", nothing, Bench::watched, Bench::close),
];

fn main() {
    raise_open_files();
    let panels: Vec<Panel> = CROWDS.iter().map(measure).collect();
    let svg = chart::draw(&panels);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/growth.svg");
    fs::write(&path, svg).expect("the documents can be written");
    println!("drawn in docs/growth.svg");
}

/// How long each operation takes with more and more of something.
fn measure((what, most, make): &Crowd) -> Panel {
    let room = Daemon::builder().quiet().spawn().statistics().max_entries;
    let most = &(*most).min(usize::try_from(room).unwrap_or(usize::MAX).saturating_sub(SPARE));
    let amounts: Vec<usize> = (0..)
        .map(|power| 10usize.pow(power))
        .take_while(|many| many < most)
        .chain([*most])
        .collect();
    let mut worlds: Vec<_> = amounts
        .iter()
        .map(|many| {
            let daemon = Daemon::builder().quiet().spawn();
            let crowd = make(daemon.socket(), *many);
            (Bench::new(&daemon), crowd, daemon)
        })
        .collect();
    let mut quietest = vec![vec![Duration::MAX; amounts.len()]; OPERATIONS.len()];
    for _ in 0..ROUNDS {
        for (quietest, operation) in quietest.iter_mut().zip(&OPERATIONS) {
            for (quietest, (bench, ..)) in quietest.iter_mut().zip(&mut worlds) {
                *quietest = bench.median(operation).min(*quietest);
            }
        }
    }
    println!("{what:>20} {}", amounts.iter().map(|it| format!("{it:>9}")).collect::<String>());
    let mut lines = Vec::new();
    for ((name, ..), times) in OPERATIONS.iter().zip(quietest) {
        let ratio = |time: &Duration| time.as_secs_f64() / times[0].as_secs_f64();
        let ratios: Vec<f64> = times.iter().map(ratio).collect();
        let told: String = ratios.iter().map(|ratio| format!("{ratio:>9.2}")).collect();
        println!("{name:>20} {told}   of {:.1} us", times[0].as_secs_f64() * 1e6);
        lines.push(Line { name, points: amounts.iter().copied().zip(ratios).collect() });
    }
    Panel { what, lines }
}

/// A client, and what it needs for its operations.
struct Bench {
    client: Client,
    null: File,
    watcher: UnixStream,
}

impl Bench {
    fn new(daemon: &Daemon) -> Self {
        let mut watcher = Raw::connect(daemon.socket());
        watcher.say(&kit::messages(&[json!({
            "method": "org.fdstash.Stash.Watch", "more": true, "parameters": {"pattern": "watched"},
        })]));
        watcher.reply();
        let watcher = watcher.stream().try_clone().expect("a socket can be had twice");
        Self { client: daemon.client(), null: null(), watcher }
    }

    fn median(&mut self, (_, before, operation, after): &Operation) -> Duration {
        let mut times = Vec::with_capacity(TIMES);
        for _ in 0..TIMES {
            before(self);
            let began = Instant::now();
            operation(self);
            times.push(began.elapsed());
            after(self);
        }
        times.sort_unstable();
        times[TIMES / 2]
    }

    fn give(&mut self) {
        self.client.give(&[kit::gift("b", &self.null)]).expect("there is room");
    }

    fn take(&mut self) {
        self.client.take(&[name("b")]).expect("it is there");
    }

    fn copy(&mut self) {
        self.client.copy(&[name("b")]).expect("it is there");
    }

    fn close(&mut self) {
        self.client.close(&[name("b")]).expect("it is there");
    }

    fn reopen(&mut self) {
        self.client.reopen(&[Reopening::new(name("b"))]).expect("it is there");
    }

    fn list(&mut self) {
        self.client.list(&pattern("b")).expect("a list");
    }

    fn transaction(&mut self) {
        let mut transaction = self.client.transaction().expect("there is none");
        transaction.give(&[kit::gift("b", &self.null)]).expect("there is room");
        transaction.commit().expect("it can be settled");
    }

    /// A change, until a watcher has been told.
    fn watched(&mut self) {
        self.client.give(&[kit::gift("watched", &self.null)]).expect("there is room");
        let _ = self.watcher.read(&mut [0; 4096]).expect("it is told");
        self.client.give(&[kit::gift("b", &self.null)]).expect("there is room");
    }
}

fn nothing(_: &mut Bench) {}

/// On both sides of what is asked for.
fn side(at: usize) -> &'static str {
    if at % 2 == 0 { "a" } else { "c" }
}

fn hold(socket: &Path, many: usize) -> Vec<Raw> {
    fill(socket, many, None)
}

fn expire(socket: &Path, many: usize) -> Vec<Raw> {
    fill(socket, many, Some(HOUR_USEC))
}

fn fill(socket: &Path, many: usize, expire_usec: Option<u64>) -> Vec<Raw> {
    let mut client = Client::connect_to(socket).expect("it is there");
    let null = null();
    let gifts: Vec<_> = (0..many)
        .map(|at| {
            let gift = Gift::new(name(&format!("{}/{at}", side(at))), &null);
            Gift { expire_usec: expire_usec.map(|usec| usec + at as u64), ..gift }
        })
        .collect();
    for gifts in gifts.chunks(250) {
        client.give(gifts).expect("there is room");
    }
    Vec::new()
}

fn connect(socket: &Path, many: usize) -> Vec<Raw> {
    (0..many).map(|_| Raw::connect(socket)).collect()
}

fn wait(socket: &Path, many: usize) -> Vec<Raw> {
    let connected = connect(socket, many);
    for (at, raw) in connected.iter().enumerate() {
        let names = [format!("{}/{at}", side(at))];
        raw.say(&call("Take", &json!({"names": names, "timeoutUSec": HOUR_USEC})));
    }
    connected
}
