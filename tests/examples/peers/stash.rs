//! What the contender does not do: the commands as whole processes, a Reopen, a long List, many watchers,
//! how much memory it takes to hold, and how long it takes to come back.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use fdstash::{Gift, Reopening, blocking::Client};
use kit::{Daemon, gift, messages, name, names, null, pattern};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{rounds::Bench, told::until};

/// How many entries a long List has, at most.
pub(crate) const LISTED: usize = 10_000;

/// How many are told of a change, at most.
pub(crate) const WATCHERS: usize = 1000;

/// How many are given at once.
const MOST: usize = 253;

/// How often the server is killed, and upgraded.
const TIMES: usize = 5;

/// Daemons that log what daemons log, each for what would cost the others something.
pub(crate) struct Stash {
    few: Daemon,
    listed: Daemon,
    watched: Daemon,
}

impl Stash {
    pub(crate) fn start() -> Self {
        let [few, listed, watched] = [(); 3].map(|()| Daemon::builder().quiet().spawn());
        Self { few, listed, watched }
    }

    /// Adds what is measured of them. They have to live as long.
    pub(crate) fn add(&self, bench: &mut Bench, held: usize) -> io::Result<()> {
        self.add_commands(bench)?;
        self.add_reopen(bench)?;
        let mut client = self.listed.client();
        let listed = room(&mut client, held.min(LISTED))?;
        give_nulls(&mut client, listed)?;
        let list = move |time| {
            until(time, || {
                let began = Instant::now();
                let listed = client.list(&pattern("*")).map_err(io::Error::other)?;
                let took = began.elapsed();
                drop(listed);
                Ok(took)
            })
        };
        bench.own("fdstash.list", "", server(&self.listed)?, list).longer(4);
        self.add_watch(bench, held.min(WATCHERS))
    }

    fn add_commands(&self, bench: &mut Bench) -> io::Result<()> {
        let mut nothing = Command::new("true");
        bench.own("true", "", None, move |time| until(time, || run(&mut nothing))).longer(4);
        let server = server(&self.few)?;
        let (mut client, bench_name) = (self.few.client(), names(["bench"]));
        let mut give = self.few.command();
        give.args(["give", "bench"]);
        let work = move |time| {
            until(time, || {
                let took = run(&mut give)?;
                client.close(&bench_name).map_err(io::Error::other)?;
                Ok(took)
            })
        };
        bench.own("fdstash.command_give", "true", server, work).longer(4);
        let (mut client, null) = (self.few.client(), null());
        let mut take = self.few.command();
        take.args(["take", "bench", "--", "true"]);
        let work = move |time| {
            until(time, || {
                client.give(&[gift("bench", &null)]).map_err(io::Error::other)?;
                run(&mut take)
            })
        };
        bench.own("fdstash.command_take", "true", server, work).longer(4);
        Ok(())
    }

    fn add_reopen(&self, bench: &mut Bench) -> io::Result<()> {
        let mut client = self.few.client();
        let given = gift("reopened", kit::file(self.few.path("file"), "a file"));
        client.give(&[given]).map_err(io::Error::other)?;
        let reopening = [Reopening::new(name("reopened"))];
        let work = move |time| {
            until(time, || {
                let began = Instant::now();
                let handed = client.reopen(&reopening).map_err(io::Error::other)?;
                let took = began.elapsed();
                drop(handed);
                Ok(took)
            })
        };
        bench.own("fdstash.reopen", "raw.reopen", server(&self.few)?, work);
        Ok(())
    }

    fn add_watch(&self, bench: &mut Bench, count: usize) -> io::Result<()> {
        let watch = messages(&[json!({
            "method": "org.fdstash.Stash.Watch", "more": true, "parameters": {"pattern": "*"},
        })]);
        let mut watchers = Vec::with_capacity(count);
        for _ in 0..count {
            let mut watcher = UnixStream::connect(self.watched.socket())?;
            watcher.write_all(&watch)?;
            // That the watch stands.
            hear(&mut watcher)?;
            watchers.push(watcher);
        }
        let (mut client, null) = (self.watched.client(), null());
        let work = move |time| {
            until(time, || {
                let began = Instant::now();
                client.give(&[gift("watched", &null)]).map_err(io::Error::other)?;
                watchers.iter_mut().try_for_each(hear)?;
                Ok(began.elapsed())
            })
        };
        bench.own("fdstash.watch", "", server(&self.watched)?, work).longer(4);
        Ok(())
    }
}

/// Reads one message.
fn hear(watcher: &mut UnixStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match watcher.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read if buffer[read - 1] == 0 => return Ok(()),
            _ => {}
        }
    }
}

/// How long it takes to run a program to its end, with a file to read.
pub(crate) fn run(command: &mut Command) -> io::Result<Duration> {
    command.stdin(File::open(env::current_exe()?)?);
    let began = Instant::now();
    let status = command.status()?;
    let took = began.elapsed();
    if status.success() {
        Ok(took)
    } else {
        Err(io::Error::other(format!("{command:?}: {status}")))
    }
}

fn server(daemon: &Daemon) -> io::Result<Pid> {
    daemon.serving().ok_or_else(|| io::Error::other("the daemon has no server"))
}

/// So many, or as many as an empty stash has room for.
fn room(client: &mut Client, wanted: usize) -> io::Result<usize> {
    let most = client.statistics().map_err(io::Error::other)?.max_entries;
    Ok(wanted.min(usize::try_from(most).unwrap_or(wanted)))
}

fn give_nulls(client: &mut Client, count: usize) -> io::Result<()> {
    let null = null();
    for first in (0..count).step_by(MOST) {
        let gifts: Vec<_> =
            (first..count.min(first + MOST)).map(|at| gift(&entry(at), &null)).collect();
        client.give(&gifts).map_err(io::Error::other)?;
    }
    Ok(())
}

/// What the program in s6.c calls them too.
fn entry(at: usize) -> String {
    format!("vm-{at:05}/disk0")
}

/// What it takes to hold many.
pub(crate) struct Holding {
    pub(crate) held: usize,
    /// Bytes beyond those of the empty daemon, for each entry.
    pub(crate) bytes: Option<f64>,
    /// From SIGKILL to the next answer.
    pub(crate) restored: Duration,
    /// From SIGHUP to the next answer.
    pub(crate) upgraded: Duration,
}

impl Holding {
    /// Has a daemon hold so many files, each under a path of its own.
    pub(crate) fn measure(held: usize) -> io::Result<Self> {
        let daemon = Daemon::builder().quiet().spawn();
        let mut client = daemon.client();
        let held = room(&mut client, held)?;
        let processes = [daemon.pid(), server(&daemon)?];
        let empty = memory(&processes);
        let folder = daemon.path("images");
        fs::create_dir(&folder)?;
        for first in (0..held).step_by(MOST) {
            let gifts = (first..held.min(first + MOST)).map(|at| file_gift(&folder, at));
            let gifts: Vec<_> = gifts.collect::<Result<_, _>>()?;
            client.give(&gifts).map_err(io::Error::other)?;
        }
        let bytes = empty.and_then(|empty| Ok(beyond(empty, memory(&processes)?, held)));
        let restored = median(|| {
            let server = server(&daemon);
            daemon.back_after(|| {
                let killed = server.and_then(|server| Ok(kill_process(server, Signal::KILL)?));
                killed.expect("the server can be killed");
            })
        });
        let upgraded = median(|| daemon.back_after(|| daemon.signal(Signal::HUP)));
        let back = client.list(&pattern("*")).map_err(io::Error::other)?.len();
        assert_eq!(back, held, "all is back");
        Ok(Self { held, bytes: told_or_none(bytes), restored, upgraded })
    }
}

fn file_gift(folder: &Path, at: usize) -> io::Result<Gift<File>> {
    let path = folder.join(format!("vm-{at:05}-disk0.qcow2"));
    Ok(gift(&entry(at), File::create(path)?))
}

/// For each of so many, in bytes.
pub(crate) fn beyond(empty: u64, full: u64, held: usize) -> f64 {
    full.saturating_sub(empty) as f64 / held as f64
}

/// Nothing, and why, where it takes root to look into the daemon's processes.
pub(crate) fn told_or_none(bytes: io::Result<f64>) -> Option<f64> {
    bytes.inspect_err(|error| kit::skipped(&format!("memory is told to root: {error}"))).ok()
}

/// How much memory processes take, in bytes: of pages that several have their share; and what stands in
/// memory files once, whoever has mapped it.
pub(crate) fn memory(processes: &[Pid]) -> io::Result<u64> {
    let mut files = BTreeMap::new();
    let mut pages = 0;
    for process in processes {
        let folder = format!("/proc/{}", process.as_raw_pid());
        let rollup = fs::read_to_string(format!("{folder}/smaps_rollup"))?;
        let own = |line: &&str| line.starts_with("Pss_Anon:") || line.starts_with("Pss_File:");
        let shares = rollup.lines().filter(own).filter_map(|line| line.split_once(':'));
        let kilobytes =
            shares.filter_map(|(_, share)| share.split_whitespace().next()?.parse::<u64>().ok());
        pages += kilobytes.sum::<u64>() << 10;
        for fd in fs::read_dir(format!("{folder}/fd"))? {
            let path = fd?.path();
            // What is closed meanwhile is none of them.
            let Ok(target) = fs::read_link(&path) else { continue };
            if target.as_os_str().as_encoded_bytes().starts_with(b"/memfd:") {
                let file = fs::metadata(&path)?;
                files.insert((file.dev(), file.ino()), file.blocks() * 512);
            }
        }
    }
    Ok(pages + files.values().sum::<u64>())
}

fn median(mut measure: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = (0..TIMES).map(|_| measure()).collect();
    times.sort_unstable();
    times[TIMES / 2]
}
