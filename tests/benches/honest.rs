//! How long an honest client's calls take while somebody else attacks the daemon.
//!
//! `cargo bench --package fdstash-tests --bench honest`, as root, or with names of attacks behind `--`.
//! An honest user gives, copies and closes on one connection, call by call, once without a pause and once
//! with one; beside it two processes of another user attack, each in the same way. They take the
//! processors too, and what that costs is the scheduler's matter: so the calls are measured at first
//! without anybody else, and then beside two processes that are busy and never touch the daemon. Told are
//! the median and the 99th percentile of the calls, and what the latter is to those two. Of several rounds
//! it is the median.
//!
//! The last two columns are the 99th percentile, and what it is to that of nobody else, of what is left of the
//! calls without the time for which the client and the server were ready to run and had no processor, as the
//! kernel counts it: about what the daemon itself lets an honest client wait for. Where that time is longer than
//! the call, a wait had begun before it, or both have waited at once; then what the daemon has run meanwhile, with
//! all its threads, is the most that it can have been.
//!
//! With the word `first` the honest client and the daemon come first wherever they want a processor (a
//! nice value of -15).

use std::{
    env,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::AsFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use fdstash::{Error, blocking::Client};
use fdstash_proto::{MAX_DESCRIPTORS, MAX_MESSAGE, socket};
use kit::{
    Daemon, Fuse, Group, Opens, Raw, User, call, gift, gifts, names, null, nulls, raise_open_files,
};
use nix::time::ClockId;
use rustix::{
    fs::OFlags,
    process::{Pid, Signal, set_parent_process_death_signal, setpriority_process},
};
use serde_json::{Value, json};

/// How often each is measured.
const ROUNDS: usize = 3;

/// How long each time.
const TIME: Duration = Duration::from_millis(1500);

/// Between two calls of who does not ask all the time.
const PAUSE: Duration = Duration::from_millis(1);

/// The nice value of who comes first.
const FIRST: i32 = -15;

/// How many processes attack.
const PROCESSES: usize = 2;

/// The most names of one transaction, or call.
const MOST_AT_ONCE: usize = 512;

const HONEST: u32 = 61_001;
const HOSTILE: u32 = 61_002;

/// What somebody does to the daemon at this socket, without end.
type Act = fn(&Path);

const ATTACKS: [(&str, Act); 18] = [
    ("silent connections", silent),
    ("connections that come and go", come_and_go),
    ("half messages", halves),
    ("253 gifts each", many_gifts),
    ("calls on 500 connections", calls),
    ("watchers who read slowly", watchers),
    ("takes that wait for its names", waiters),
    ("lists of 4000 entries", lists),
    ("lists by a dear pattern", dear_lists),
    ("opens that hang", opens),
    ("closes that hang", closes),
    ("labels of 250 KiB", labels),
    ("60000 names in a call", many_names),
    ("512 closes in a call", many_closes),
    ("transactions of 512 gifts", transactions),
    ("gifts before dear watchers", dear_watchers),
    ("1000 gifts that expire at once", expiries),
    ("1000 gifts that go with theirs", ephemerals),
];

fn main() {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [word, name, socket] = &args[..] {
        if word == "--attack" {
            return attack(name, Path::new(socket));
        }
    }
    if !kit::is_root() {
        return kit::skipped("it takes root to be more than one user");
    }
    raise_open_files();
    let (first, args): (Vec<_>, Vec<_>) = args.into_iter().partition(|arg| arg == "first");
    if !first.is_empty() {
        // The daemon has it from its parent.
        setpriority_process(None, FIRST).expect("root can have any priority");
    }
    let told = |name: &&str| args.is_empty() || args.iter().any(|arg| name.contains(&**arg));
    println!("{:>31}  {:^57}  {:^57}", "", "call after call", "a pause between calls");
    let head = format!("{:>8} {:>8} {:>8} {:>8}", "median", "99 %", "to idle", "to busy");
    let head = format!("{head}  {:>10} {:>8}", "99 % own", "to idle");
    println!("{:>31}  {head}  {head}", "");
    let idle = measure(None).expect("nobody stands against it");
    print("nobody else", &idle, &[]);
    let busy = measure(Some("busy")).expect("nobody stands against it");
    print("two busy processes", &busy, &[&idle]);
    for name in ATTACKS.map(|(name, _)| name).iter().filter(|name| told(name)) {
        match measure(Some(name)) {
            Ok(figures) => print(name, &figures, &[&idle, &busy]),
            Err(error) => println!("{name:>31}  {error}"),
        }
    }
}

/// Of calls without and with a pause.
type Figures = [Figure; 2];

#[derive(Clone, Copy)]
struct Figure {
    median: Duration,
    late: Duration,
    /// The 99th percentile of what is left without the waits for a processor.
    own: Duration,
}

fn print(name: &str, figures: &Figures, beside: &[&Figures]) {
    let ratio = |of: Duration, to: Option<Duration>| {
        let ratio = to.map(|to| of.as_secs_f64() / to.as_secs_f64());
        ratio.map_or_else(String::new, |ratio| format!("{ratio:.1} x"))
    };
    print!("{name:>31}");
    for (at, Figure { median, late, own }) in figures.iter().enumerate() {
        let to = |column: usize| beside.get(column).map(|figures| figures[at]);
        print!("  {:>5} us {:>5} us", median.as_micros(), late.as_micros());
        print!(" {:>8}", ratio(*late, to(0).map(|to| to.late)));
        print!(" {:>8}", ratio(*late, to(1).map(|to| to.late)));
        print!("  {:>7} us {:>8}", own.as_micros(), ratio(*own, to(0).map(|to| to.own)));
    }
    println!();
}

/// The calls of an honest client beside an attack, or alone.
fn measure(attack: Option<&str>) -> Result<Figures, Error> {
    let mut rounds: [Vec<Figure>; 2] = Default::default();
    for _ in 0..ROUNDS {
        let daemon = Daemon::builder().quiet().spawn();
        let fuse = Fuse::mount();
        let open = || fuse.as_ref().map_or_else(null, |fuse| fuse.open(0, OFlags::RDONLY));
        let files: Vec<File> = (0..PROCESSES).map(|_| open()).collect();
        if let Some(fuse) = &fuse {
            fuse.set(0, Opens::Hang);
        }
        let start = |name| files.iter().map(|file| start(name, daemon.socket(), file)).collect();
        let _attackers: Vec<Group> = attack.map_or_else(Vec::new, start);
        let mut client = daemon.client_as(&User::new(HONEST));
        let counts = Counts::of(daemon.serving().expect("it serves"));
        times(&mut client, &counts, Duration::ZERO, TIME / 4)?;
        rounds[0].push(figure(&times(&mut client, &counts, Duration::ZERO, TIME)?));
        rounds[1].push(figure(&times(&mut client, &counts, PAUSE, TIME)?));
    }
    Ok(rounds.map(|rounds| Figure {
        median: part(rounds.iter().map(|figure| figure.median), 50),
        late: part(rounds.iter().map(|figure| figure.late), 50),
        own: part(rounds.iter().map(|figure| figure.own), 50),
    }))
}

fn figure(times: &[Call]) -> Figure {
    let whole = times.iter().map(|call| call.time);
    let own = times.iter().map(Call::own);
    Figure { median: part(whole.clone(), 50), late: part(whole, 99), own: part(own, 99) }
}

/// What a call has taken.
struct Call {
    time: Duration,
    /// For how long the client and the server waited for a processor.
    waited: Duration,
    /// How long the daemon's threads ran.
    ran: Duration,
}

impl Call {
    fn own(&self) -> Duration {
        self.time.checked_sub(self.waited).unwrap_or(self.time.min(self.ran))
    }
}

/// The one of which so many percent are not above it.
fn part(times: impl Iterator<Item = Duration>, percent: usize) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times[times.len() * percent / 100]
}

/// What the kernel counts of a client, which is the calling thread, and of the server.
struct Counts {
    waits: [File; 2],
    run: ClockId,
}

impl Counts {
    fn of(server: Pid) -> Self {
        let pid = server.as_raw_pid();
        let open = |path| File::open(path).expect("the kernel counts the waits for a processor");
        let server = format!("/proc/{pid}/task/{pid}/schedstat");
        let waits = [open("/proc/thread-self/schedstat"), open(&server)];
        let run = ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(pid));
        Self { waits, run: run.expect("a process has a clock") }
    }

    /// How long both have waited for a processor, and the server's threads have run.
    fn now(&self) -> (Duration, Duration) {
        let run = self.run.now().expect("the server is there");
        (self.waits.iter().map(waited).sum(), run.into())
    }
}

/// The second number in a thread's `schedstat`, in nanoseconds.
fn waited(file: &File) -> Duration {
    let mut text = [0; 64];
    let len = file.read_at(&mut text, 0).expect("the thread is there");
    let text = std::str::from_utf8(&text[..len]).expect("numbers");
    let wait = text.split_whitespace().nth(1).and_then(|wait| wait.parse().ok());
    Duration::from_nanos(wait.expect("the second of three numbers"))
}

/// What each call takes of a client that gives, copies and closes.
fn times(
    client: &mut Client,
    counts: &Counts,
    pause: Duration,
    within: Duration,
) -> Result<Vec<Call>, Error> {
    let null = null();
    let mut shared = gift("honest", null.as_fd());
    // So that whoever attacks may know of it.
    shared.share.uids.push(HOSTILE);
    let shared = [shared];
    let name = names(["honest"]);
    let mut times = Vec::new();
    let until = Instant::now() + within;
    while Instant::now() < until {
        for step in 0..3 {
            let (waited, ran) = counts.now();
            let began = Instant::now();
            match step {
                0 => drop(client.give(&shared)?),
                1 => drop(client.copy(&name)?),
                _ => client.close(&name)?,
            }
            let time = began.elapsed();
            let now = counts.now();
            times.push(Call { time, waited: now.0 - waited, ran: now.1 - ran });
            if !pause.is_zero() {
                thread::sleep(pause);
            }
        }
    }
    Ok(times)
}

/// Starts a process that attacks, and returns when it does.
fn start(name: &str, socket: &Path, stdin: &File) -> Group {
    let program = env::current_exe().expect("a program knows where it is");
    let mut command = Command::new(program);
    command.args(["--attack", name]).arg(socket).stdout(Stdio::piped());
    let stdin = stdin.try_clone().expect("a descriptor can be had twice");
    let mut attacker = Group::spawn(command.stdin(stdin));
    let said = attacker.first().stdout.take().expect("it was asked for");
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line).expect("it says when it is ready");
    assert_eq!(line, "ready\n", "{name}");
    attacker
}

/// What a process does that attacks.
fn attack(name: &str, socket: &Path) {
    let dies = set_parent_process_death_signal(Some(Signal::KILL));
    dies.expect("a process can be told to end with its parent");
    raise_open_files();
    setpriority_process(None, 0).expect("a process can have less priority");
    let act = ATTACKS.iter().find(|(known, _)| *known == name).map(|(_, act)| *act);
    User::new(HOSTILE).run(|| act.unwrap_or(busy)(socket));
}

/// Says that the attack begins, which then goes on.
fn begin(mut again: impl FnMut()) {
    println!("ready");
    loop {
        again();
    }
}

fn connected(socket: &Path, count: usize) -> Vec<UnixStream> {
    let connect = |_| UnixStream::connect(socket).ok();
    (0..count).filter_map(connect).collect()
}

/// Names of this process's own.
fn own_names(count: usize) -> Vec<String> {
    let process = std::process::id();
    (0..count).map(|at| format!("hostile/{process}/{at}")).collect()
}

fn busy(_: &Path) {
    begin(std::hint::spin_loop);
}

fn silent(socket: &Path) {
    let _silent = connected(socket, 1000 / PROCESSES);
    begin(thread::park);
}

fn come_and_go(socket: &Path) {
    begin(|| drop(UnixStream::connect(socket)));
}

fn halves(socket: &Path) {
    let nulls = nulls(200);
    let half = &call("Give", &gifts(&["a"]))[..20];
    begin(|| {
        for stream in connected(socket, 16) {
            let _ = socket::send(&stream, half, &nulls);
        }
    });
}

/// Makes the same call again and again on as many connections at a time, with these descriptors.
fn again(socket: &Path, connections: usize, message: &[u8], fds: &[File]) {
    let mut raws: Vec<Raw> = (0..connections).map(|_| Raw::connect(socket)).collect();
    begin(|| {
        let sent: Vec<bool> = raws.iter().map(|raw| raw.try_send(message, fds)).collect();
        for (raw, sent) in raws.iter_mut().zip(sent) {
            if !sent || !matches!(raw.try_reply(), Ok(Some(_))) {
                *raw = Raw::connect(socket);
            }
            drop(raw.fds());
        }
    });
}

fn many_gifts(socket: &Path) {
    let nulls = nulls(MAX_DESCRIPTORS);
    again(socket, 4, &call("Give", &gifts_of(&own_names(MAX_DESCRIPTORS))), &nulls);
}

fn gifts_of(names: &[String]) -> Value {
    gifts(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Calls on many connections, more of them than are answered, and reads what comes.
fn calls(socket: &Path) {
    let streams = connected(socket, 500 / PROCESSES);
    streams.iter().for_each(|it| it.set_nonblocking(true).expect("a socket can be non-blocking"));
    let one = call("Take", &json!({"names": ["nothing"]}));
    let many = one.repeat(100);
    let mut sent = vec![0; streams.len()];
    let mut buffer = vec![0; 1 << 16];
    begin(|| {
        for (mut stream, sent) in streams.iter().zip(&mut sent) {
            if let Ok(count) = stream.write(&many[*sent..]) {
                *sent = (*sent + count) % many.len();
            }
            while stream.read(&mut buffer).is_ok_and(|count| count == buffer.len()) {}
        }
    });
}

fn watch(socket: &Path, count: usize, pattern: &str) -> Vec<UnixStream> {
    let watch = json!({
        "method": "org.fdstash.Stash.Watch", "more": true, "parameters": {"pattern": pattern},
    });
    let streams = connected(socket, count);
    for mut stream in &streams {
        let _ = stream.write_all(&kit::messages(std::slice::from_ref(&watch)));
    }
    streams
}

fn watchers(socket: &Path) {
    let streams = watch(socket, 500 / PROCESSES, "*");
    streams.iter().for_each(|it| it.set_nonblocking(true).expect("a socket can be non-blocking"));
    begin(|| {
        thread::sleep(Duration::from_millis(10));
        for mut stream in &streams {
            let _ = stream.read(&mut [0; 1000]);
        }
    });
}

fn waiters(socket: &Path) {
    // Of names that never come, besides, so that none is served.
    let take = json!({"names": ["honest", "never"], "timeoutUSec": 600_000_000});
    let streams = connected(socket, 1000 / PROCESSES);
    for mut stream in &streams {
        let _ = stream.write_all(&call("Take", &take));
    }
    begin(thread::park);
}

/// Gives so many entries whose names are as long as names may be.
fn give_many(socket: &Path, count: usize, long: bool, more: &Value) -> Vec<String> {
    let mut names = own_names(count);
    if long {
        names.iter_mut().for_each(|name| *name = format!("{name:a>255}"));
    }
    let mut raw = Raw::connect(socket);
    for names in names.chunks(200) {
        let mut gifts = gifts_of(names);
        for gift in gifts["entries"].as_array_mut().into_iter().flatten() {
            gift.as_object_mut()
                .into_iter()
                .for_each(|gift| gift.extend(more.as_object().cloned().unwrap_or_default()));
        }
        let nulls = nulls(names.len());
        raw.try_send(&call("Give", &gifts), &nulls);
        let _ = raw.try_reply();
    }
    names
}

fn lists(socket: &Path) {
    give_many(socket, 4000 / PROCESSES, false, &json!({}));
    again(socket, 8, &call("List", &json!({})), &[]);
}

/// A pattern that takes as long as one can.
fn dear() -> String {
    format!("*{}b", "?a".repeat(60))
}

fn dear_lists(socket: &Path) {
    give_many(socket, 4000 / PROCESSES, true, &json!({}));
    again(socket, 8, &call("List", &json!({"pattern": dear()})), &[]);
}

fn opens(socket: &Path) {
    let file = [File::from(std::io::stdin().as_fd().try_clone_to_owned().expect("a descriptor"))];
    let raws: Vec<Raw> = (0..400).map(|_| Raw::connect(socket)).collect();
    for (at, raw) in raws.iter().enumerate() {
        let name = format!("hangs/{}/{at}", std::process::id());
        raw.try_send(&call("Give", &gifts(&[&name])), &file);
        raw.try_send(&call("Reopen", &json!({"entries": [{"name": name}]})), &[] as &[File]);
    }
    begin(thread::park);
}

/// Has the daemon close sockets whose last close waits for a minute.
fn closes(socket: &Path) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut unread = Vec::new();
    let mut raw = Raw::connect(socket);
    begin(|| {
        let mut slow = std::net::TcpStream::connect(address).expect("a connection");
        unread.push(listener.accept().expect("a connection"));
        let minute = Some(Duration::from_secs(60));
        rustix::net::sockopt::set_socket_linger(&slow, minute).expect("a socket can linger");
        slow.set_nonblocking(true).expect("a socket can be non-blocking");
        while slow.write(&[0; 65536]).is_ok() {}
        let name = format!("slow/{}", std::process::id());
        raw.try_send(&call("Give", &gifts(&[&name])), &[slow]);
        let _ = raw.try_reply();
        if unread.len() > 2000 {
            thread::park();
        }
    });
}

fn labels(socket: &Path) {
    let label = "x".repeat(250 << 10);
    let name = &own_names(1)[0];
    let gift = json!({"name": name, "fileDescriptor": 0, "labels": {"note": label}});
    again(socket, 4, &call("Give", &json!({"entries": [gift]})), &[null()]);
}

fn many_names(socket: &Path) {
    let names: Vec<String> = (0..60_000).map(|at| format!("n{at}")).collect();
    let message = call("Close", &json!({"names": names}));
    assert!(message.len() < MAX_MESSAGE);
    again(socket, 4, &message, &[]);
}

fn many_closes(socket: &Path) {
    begin(|| {
        let names = give_many(socket, MOST_AT_ONCE, false, &json!({}));
        let mut raw = Raw::connect(socket);
        raw.try_send(&call("Close", &json!({"names": names})), &[] as &[File]);
        let _ = raw.try_reply();
    });
}

fn transactions(socket: &Path) {
    let nulls = nulls(200);
    let names = own_names(MOST_AT_ONCE);
    let mut raw = Raw::connect(socket);
    let nothing: &[File] = &[];
    begin(|| {
        raw.try_send(&call("Begin", &json!({})), nothing);
        let _ = raw.try_reply();
        for names in names.chunks(200) {
            raw.try_send(&call("Give", &gifts_of(names)), &nulls[..names.len()]);
            let _ = raw.try_reply();
        }
        raw.try_send(&call("Commit", &json!({})), nothing);
        let _ = raw.try_reply();
    });
}

fn dear_watchers(socket: &Path) {
    let _watchers = watch(socket, 64 / PROCESSES, &dear());
    let nulls = nulls(200);
    let names: Vec<String> = own_names(200).iter().map(|name| format!("{name:a>255}")).collect();
    again(socket, 1, &call("Give", &gifts_of(&names)), &nulls);
}

fn expiries(socket: &Path) {
    begin(|| {
        give_many(socket, 1000, false, &json!({"expireUSec": 50_000}));
    });
}

/// Gives, and hangs up.
fn ephemerals(socket: &Path) {
    begin(|| {
        give_many(socket, 1000, false, &json!({"ephemeral": true}));
    });
}
