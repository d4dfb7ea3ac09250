//! What something costs grows with the logarithm of what is held, expires, is connected and waits, at most; and
//! not by seconds, which other load on the machine changes, but by what is done: the instructions of the
//! stash, which valgrind counts, and the system calls of the daemon, for each of which there may be a few
//! instructions more.

use std::{fs, path::Path, process::Command};

use fdstash::Gift;
use kit::{Daemon, Raw, Steps, call, gifts, is_root, name, null, program, raise_open_files};
use serde_json::{Value, json};

/// How many instructions each call takes where there are so many of everything.
fn instructions(many: usize) -> Vec<(String, u64)> {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let out = folder.path().join("out");
    let mut valgrind = Command::new("valgrind");
    valgrind.args([
        "--tool=callgrind",
        "--collect-atstart=no",
        "--toggle-collect=steps::measured*",
    ]);
    valgrind.arg("--dump-after=*measured*").arg(format!("--callgrind-out-file={}", out.display()));
    let said = valgrind.arg(program("examples/steps")).arg(many.to_string()).output();
    let said = said.expect("valgrind can be run: `make test` installs it");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let names = String::from_utf8(said.stdout).expect("names are text");
    let count = |at: usize| {
        let dump = fs::read_to_string(out.with_extension(at.to_string())).expect("a dump for each");
        let line = dump.lines().find_map(|line| line.strip_prefix("totals: "));
        line.and_then(|count| count.parse().ok()).expect("the dump has a sum")
    };
    names.lines().enumerate().map(|(at, name)| (name.to_owned(), count(at + 1))).collect()
}

#[test]
fn no_step_of_the_stash_grows_faster_than_the_logarithm() {
    let [few, more, most] = [1, 100, 10_000].map(instructions);

    assert!(few.len() > 20 && few.len() == more.len() && few.len() == most.len());
    for ((few, more), most) in few.iter().zip(&more).zip(&most) {
        let ((name, few), (_, more), (_, most)) = (few, more, most);
        println!("{name}: {few}, {more}, {most} instructions");
        assert!(*few > 1000, "{name} was not counted");
        // From 1 to 100 a logarithm grows by as much as from 100 to 10,000; a root grows by ten times that.
        let (first, second) = (more.saturating_sub(*few), most.saturating_sub(*more));
        assert!(second < 3 * first + 1000, "{name}: {few}, {more}, {most} instructions");
    }
}

/// How many there are of each that nothing in the daemon may grow with.
const MANY: usize = 2000;

/// How many system calls more are chance: whoever has just closed or opened something may have to be woken.
const CHANCE: usize = 4;

/// How often each call is counted. Now and then the loop has something else to do, so the least counts.
const TIMES: usize = 5;

/// The calls of which each is counted, in this order, after which everything is as it was; and whether a
/// descriptor goes with them.
fn calls() -> Vec<(&'static str, Value, bool)> {
    let one = json!({"names": ["b"]});
    let mut expires = gifts(&["b"]);
    expires["entries"][0]["expireUSec"] = json!(3_600_000_000_u64);
    vec![
        ("Give", gifts(&["b"]), true),
        ("Take", json!({"names": ["b"], "copy": true}), false),
        ("List", json!({"pattern": "b"}), false),
        ("Take", one.clone(), false),
        ("Take", one.clone(), false),
        ("Begin", json!({}), false),
        ("Give", gifts(&["b"]), true),
        ("Commit", json!({}), false),
        ("Close", one.clone(), false),
        ("Give", expires, true),
        ("Close", one, false),
        ("GetStatistics", json!({}), false),
    ]
}

#[test]
fn the_daemon_makes_the_same_system_calls_however_much_there_is() {
    if !is_root() {
        return kit::skipped("it takes root to trace the daemon");
    }
    raise_open_files();
    let daemon = Daemon::spawn();
    let Some(few) = system_calls(&daemon) else { return };

    let _connected = crowd(daemon.socket());
    let many = system_calls(&daemon).unwrap();

    let same = calls().into_iter().zip(few.iter().zip(&many));
    for ((method, parameters, _), (few, many)) in same {
        println!("{method} {parameters}: {few} and {many} system calls");
        assert!(*few >= 3, "{method} {parameters} was not counted: {few}");
        assert!(
            *many <= few + CHANCE,
            "{method} {parameters}: {few} system calls, and then {many}"
        );
    }
}

/// Has many be connected, some of whom wait and others watch, and many entries be held, which expire some day.
fn crowd(socket: &Path) -> Vec<Raw> {
    let mut client = fdstash::blocking::Client::connect_to(socket).expect("it is there");
    let null = null();
    let gift = |at: usize| {
        let kept = Gift::new(name(&format!("{}/{at}", side(at))), &null);
        Gift { expire_usec: Some(3_600_000_000 + at as u64), ..kept }
    };
    for start in (0..MANY).step_by(200) {
        client.give(&(start..start + 200).map(gift).collect::<Vec<_>>()).expect("there is room");
    }
    let connect = |at: usize| {
        let raw = Raw::connect(socket);
        if at % 2 == 0 {
            let names = [format!("{}/waits/{at}", side(at / 2))];
            raw.say(&call("Take", &json!({"names": names, "timeoutUSec": 3_600_000_000_u64})));
        }
        raw
    };
    let mut crowd: Vec<_> = (0..MANY).map(connect).collect();
    // Whoever is served last, is there.
    crowd[MANY - 1].call("GetStatistics", &json!({}));
    crowd
}

/// On both sides of what is called for.
fn side(at: usize) -> &'static str {
    if at % 2 == 0 { "a" } else { "c" }
}

/// How many system calls the daemon's loop makes for each call.
fn system_calls(daemon: &Daemon) -> Option<Vec<usize>> {
    let mut raw = daemon.raw();
    raw.call("GetStatistics", &json!({}));
    let steps = Steps::of(daemon.server().0)?;
    // It asks where all that was given points, some in a go, when nobody waits for that.
    steps.await_rest();
    let mut least = vec![usize::MAX; calls().len()];
    for _ in 0..TIMES {
        for (least, (method, parameters, gives)) in least.iter_mut().zip(calls()) {
            let fds = if gives { vec![null()] } else { vec![] };
            let count = steps.system_calls(|| raw.send(&call(method, &parameters), &fds));
            drop((raw.reply(), raw.fds()));
            *least = count.min(*least);
        }
    }
    Some(least)
}
