//! No client costs another its service: one user does to the daemon what it can, and another asks it
//! something. When that is answered, almost nothing of what the first has asked for before may be done;
//! in the end all of it is, and the daemon is as it was. How long it takes, `benches/honest.rs` measures.

use std::{
    io::Read,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use kit::{
    Daemon, Fuse, Opens, Raw, SOON, User, call, file, gift, gifts, is_root, name, names, null,
    nulls, only, raise_open_files, skipped, wait_until,
};
use rustix::{
    fs::OFlags,
    process::{Signal, kill_process},
};
use serde_json::json;

/// As many as a message can carry.
const MANY: usize = 253;

/// How much of the machine's memory the daemon may have more than before, for what its allocator keeps.
const MEMORY: u64 = 64 << 20;

fn hostile() -> User {
    User::new(61_002)
}

fn honest() -> User {
    User::new(61_001)
}

/// What is sent on each of some connections. Its calls but the last one are done before that is refused.
struct Attack {
    connections: usize,
    calls: Vec<u8>,
    fds: usize,
    /// How many calls of each are refused, and how many of all may be when the honest one is answered.
    refused: usize,
    most: u64,
}

/// Has the daemon find all of an attack, and behind it a call of another user.
fn withstands(daemon: &Daemon, attack: &Attack) {
    let held = daemon.held_at_rest();
    let (memory, before) = (daemon.memory(), daemon.statistics().refused);
    let nulls = nulls(attack.fds);
    let hostile: Vec<Raw> =
        hostile().run(|| (0..attack.connections).map(|_| daemon.raw()).collect());
    let mut honest = honest().run(|| daemon.raw());
    let all = attack.connections as u64 + 2;
    wait_until(SOON, || daemon.statistics().connections == all);
    let server = daemon.server().0;

    kill_process(server, Signal::STOP).expect("it can be stopped");
    hostile.iter().for_each(|raw| raw.send(&attack.calls, &nulls));
    honest.say(&call("GetStatistics", &json!({})));
    kill_process(server, Signal::CONT).expect("it can go on");
    let refused = honest.reply()["parameters"]["refused"].as_u64().expect("a number") - before;

    assert!(refused <= attack.most, "{refused} calls were done before the one of somebody else");
    let in_the_end = before + (attack.connections * attack.refused) as u64;
    wait_until(6 * SOON, || {
        hostile.iter().for_each(drain);
        daemon.statistics().refused == in_the_end
    });
    drop((hostile, honest));
    daemon.settles_at(held);
    let memory_now = daemon.memory();
    assert!(memory_now < memory + MEMORY, "{memory_now} bytes, and {memory} before");
}

/// Reads what has come, without waiting.
fn drain(raw: &Raw) {
    let mut stream: &UnixStream = raw.stream();
    stream.set_nonblocking(true).expect("a socket can be made non-blocking");
    while stream.read(&mut [0; 1 << 16]).is_ok_and(|count| count > 0) {}
}

/// A call that is refused, and so counted.
fn refused() -> Vec<u8> {
    call("Take", &json!({"names": ["nothing"]}))
}

/// Gives entries of the hostile user's.
fn give_many(daemon: &Daemon, count: usize) {
    let names: Vec<String> = (0..count).map(|at| format!("hostile/{at}")).collect();
    let mut raw = hostile().run(|| daemon.raw());
    for names in names.chunks(MANY) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let nulls = nulls(names.len());
        assert!(raw.give(&names, &nulls)["error"].is_null());
    }
}

#[test]
fn whoever_calls_without_end_on_500_connections_lets_others_wait_for_a_turn() {
    if !is_root() {
        return skipped("it takes root to be more than one user");
    }
    raise_open_files();
    let daemon = Daemon::spawn();
    let (connections, each) = (500, 200);
    let calls = refused().repeat(each);

    withstands(&daemon, &Attack { connections, calls, fds: 0, refused: each, most: 1000 });
}

#[test]
fn whoever_gives_as_much_as_it_can_lets_others_wait_for_a_turn() {
    if !is_root() {
        return skipped("it takes root to be more than one user");
    }
    raise_open_files();
    let daemon = Daemon::spawn();
    give_many(&daemon, MANY);
    let names: Vec<String> = (0..MANY).map(|at| format!("hostile/{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let calls = [call("Give", &gifts(&names)), refused()].concat();

    withstands(&daemon, &Attack { connections: 20, calls, fds: MANY, refused: 1, most: 3 });
}

#[test]
fn whoever_lists_all_the_time_lets_others_wait_for_a_turn() {
    if !is_root() {
        return skipped("it takes root to be more than one user");
    }
    raise_open_files();
    let daemon = Daemon::spawn();
    give_many(&daemon, 300);
    let calls = [call("List", &json!({})), refused()].concat();

    withstands(&daemon, &Attack { connections: 50, calls, fds: 0, refused: 1, most: 5 });
}

#[test]
fn whoever_looks_for_what_is_not_there_lets_others_wait_for_a_turn() {
    if !is_root() {
        return skipped("it takes root to be more than one user");
    }
    raise_open_files();
    let daemon = Daemon::spawn();
    give_many(&daemon, 2000);
    // Whatever matches is at the end of a walk over all names.
    let list = call("List", &json!({"pattern": format!("*{}b", "?a".repeat(60))}));

    let calls = [list.repeat(10), refused()].concat();
    withstands(&daemon, &Attack { connections: 50, calls, fds: 0, refused: 1, most: 5 });
}

#[test]
fn a_list_in_one_message_is_whole_while_others_are_served() {
    if !is_root() {
        return skipped("it takes root to be more than one user");
    }
    raise_open_files();
    let daemon = Daemon::builder().arg("--user-entries=10000").spawn();
    give_many(&daemon, 5000);
    let mut lists = hostile().run(|| daemon.raw());
    let mut honest = honest().run(|| daemon.client());

    lists.say(&call("List", &json!({})));
    // Its answer is being written meanwhile.
    for _ in 0..100 {
        honest.give(&[gift("honest", null())]).unwrap();
        honest.close(&names(["honest"])).unwrap();
    }
    let listed = lists.reply();

    let entries = listed["parameters"]["entries"].as_array().unwrap();
    let mut expected: Vec<String> = (0..5000).map(|at| format!("hostile/{at}")).collect();
    expected.sort_unstable();
    let told: Vec<&str> = entries.iter().filter_map(|entry| entry["name"].as_str()).collect();
    assert_eq!(told, expected);
    assert!(listed["continues"].is_null());
}

#[test]
fn long_messages_are_understood_in_the_order_in_which_they_came() {
    let daemon = Daemon::spawn();
    let mut raw = daemon.raw();
    let null = null();
    let label = |size: usize| json!({"note": "x".repeat(size)});
    let give = |name: &str, size| {
        let gift = json!({"name": name, "fileDescriptor": 0, "labels": label(size)});
        call("Give", &json!({"entries": [gift]}))
    };

    for (name, size) in [("a", 100_000), ("b", 10), ("c", 900_000), ("d", 20_000)] {
        raw.send(&give(name, size), &[&null]);
    }
    raw.say(&call("Take", &json!({"names": ["c", "a"]})));

    for _ in 0..4 {
        assert_eq!(raw.reply(), json!({"parameters": {"replaced": []}}));
    }
    assert_eq!(raw.reply()["parameters"]["entries"].as_array().map(Vec::len), Some(2));
    assert_eq!(daemon.statistics().entries, 2);
}

#[test]
fn connections_that_come_and_go_do_not_pile_up() {
    if !is_root() {
        return skipped("it takes root to be more than one user");
    }
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let mut client = honest().run(|| daemon.client());
    let mut most = 0;

    std::thread::scope(|scope| {
        let coming = scope.spawn(|| {
            hostile().run(|| (0..10_000).for_each(|_| drop(UnixStream::connect(daemon.socket()))));
        });
        while !coming.is_finished() {
            most = most.max(client.statistics().unwrap().connections);
        }
    });

    assert!(most < 1000, "{most} connections at a time");
    drop(client);
    daemon.settles_at(held);
}

#[test]
fn opens_that_hang_leave_threads_for_the_opens_of_others() {
    if !is_root() {
        return skipped("it takes root to be more than one user");
    }
    raise_open_files();
    let daemon = Daemon::spawn();
    let Some(mut fuse) = Fuse::mount() else {
        return skipped("there is no FUSE here");
    };
    let hanging = fuse.open(0, OFlags::RDONLY);
    fuse.set(0, Opens::Hang);
    let held = daemon.held_at_rest();
    let mut client = honest().run(|| daemon.client());
    client.give(&[gift("honest", file(daemon.path("honest"), "kept"))]).unwrap();

    // More than the pool has threads.
    let opening: Vec<Raw> = hostile().run(|| (0..600).map(|_| daemon.raw()).collect());
    for (at, raw) in opening.iter().enumerate() {
        let name = format!("hangs/{at}");
        raw.send(&call("Give", &gifts(&[&name])), &[&hanging]);
        raw.say(&call("Reopen", &json!({"entries": [{"name": name}]})));
    }
    wait_until(SOON, || daemon.statistics().given == 601 && fuse.hanging() > 0);
    let mut content = String::new();
    for _ in 0..20 {
        let fresh = only(client.copy_fresh(&names(["honest"])).unwrap());
        content.clear();
        { &fresh }.read_to_string(&mut content).unwrap();
    }

    assert_eq!(content, "kept");
    drop(opening);
    drop(hanging);
    fuse.kill();
    client.close(&[name("honest")]).unwrap();
    drop(client);
    let mut root = daemon.client();
    wait_until(SOON, || root.statistics().unwrap().connections == 1);
    let left: Vec<_> = (0..600).map(|at| name(&format!("hangs/{at}"))).collect();
    root.close(&left).unwrap();
    drop(root);
    daemon.settles_at(held);
}

#[test]
fn whoever_breaks_the_protocol_all_the_time_is_told_of_once_a_while() {
    if !is_root() {
        return skipped("it takes root to be more than one user");
    }
    let daemon = Daemon::spawn();
    let break_it = |user: &User| {
        let mut raw = user.run(|| daemon.raw());
        raw.try_send(b"garbage\0", &[] as &[OwnedFd]);
        assert!(raw.is_hung_up_on());
    };

    (0..50).for_each(|_| break_it(&hostile()));
    break_it(&honest());

    let log = daemon.log();
    let told = |user: &User| {
        let uid = format!("uid={} ", user.uid);
        let warned = log.lines().filter(|line| line.contains(" WARN ") && line.contains(&uid));
        warned.count()
    };
    assert_eq!((told(&hostile()), told(&honest())), (1, 1));
}
