//! Floods of descriptors, of opens and of closes, from one user or from many, while somebody honest goes
//! on: who floods waits, and nobody else does.

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use fdstash::{Error, Refusal};
use fdstash_proto::MAX_DESCRIPTORS;
use kit::{
    Cgroup, Daemon, Fuse, Opens, Raw, SOON, User, call, can_be_others, file, gift, gifts, name,
    names, null, nulls, pattern, skipped, wait_until,
};
use rustix::{
    fs::OFlags,
    net::sockopt::{set_socket_linger, set_socket_recv_buffer_size, set_socket_send_buffer_size},
};
use serde_json::{Value, json};

const HONEST: u32 = 4100;
const HOSTILE: u32 = 4200;

fn many(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

fn borrowed(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

fn raw_as(daemon: &Daemon, uid: u32) -> Raw {
    User::new(uid).run(|| daemon.raw())
}

/// Gives and takes back so many times, on one connection, and is never refused and never cut off.
fn goes_on(daemon: &Daemon, uid: u32, rounds: usize) {
    let kept = file(daemon.path(&format!("of-{uid}")), "");
    let mut raw = raw_as(daemon, uid);
    for round in 0..rounds {
        let given = raw.give(&["honest"], &[&kept]);
        assert!(given["error"].is_null(), "round {round}: {given}");
        let taken = raw.call("Take", &json!({"names": ["honest"]}));
        assert!(taken["error"].is_null(), "round {round}: {taken}");
        let [fd]: [OwnedFd; 1] = raw.fds().try_into().expect("one comes back");
        assert_eq!(kit::identity(fd), kit::identity(&kept));
    }
}

/// Does something again and again, on several threads, while `honest` does what it does.
fn meanwhile(floods: &[&(dyn Fn() + Sync)], honest: impl FnOnce()) {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // However `honest` ends.
        let _over = Over(&is_over);
        for flood in floods {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Relaxed) {
                    flood();
                }
            });
        }
        honest();
    });
}

/// A socket whose last close waits for a minute, or until the other end, which is the second, is closed.
fn slow_to_close() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a loopback");
    set_socket_recv_buffer_size(&listener, 4096).expect("a buffer can be small");
    let mut slow = TcpStream::connect(listener.local_addr().expect("it has an address"))
        .expect("it can be connected to");
    set_socket_send_buffer_size(&slow, 4096).expect("a buffer can be small");
    let (unread, _) = listener.accept().expect("it can be accepted");
    set_socket_linger(&slow, Some(Duration::from_secs(60))).expect("it can linger");
    slow.set_nonblocking(true).expect("it can be non-blocking");
    while slow.write(&[0; 4096]).is_ok() {}
    (slow, unread)
}

/// Waits until nobody has the other end of a pipe any more.
fn wait_until_closed(pipe: OwnedFd) {
    let waiting =
        thread::spawn(move || File::from(pipe).read(&mut [0; 1]).is_ok_and(|count| count == 0));
    wait_until(SOON, || waiting.is_finished());
    assert!(waiting.join().expect("reading ends"));
}

fn hung_up_on(daemon: &Daemon, uid: u32) -> Vec<String> {
    let log = daemon.log();
    let of = format!("uid={uid} ");
    let lines = log.lines().filter(|line| line.contains("hanging up") && line.contains(&of));
    lines.map(str::to_owned).collect()
}

#[test]
fn floods_of_descriptors_cost_an_honest_user_nothing() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::builder().open_files(4096).spawn();
    let (held, memory) = (daemon.held_at_rest(), daemon.memory());
    let (fds, texts) = (nulls(MAX_DESCRIPTORS), many("n", MAX_DESCRIPTORS));
    let give = call("Give", &gifts(&borrowed(&texts)));
    let wrong = call("Give", &json!({"entries": [{"name": "a", "fileDescriptor": 0}], "a": 1}));
    // Whole calls, whose answers are read; and as many as go of such as are refused, of which nobody
    // reads it.
    let gives_and_closes = || {
        let mut raw = raw_as(&daemon, HOSTILE);
        raw.stream().set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        // It waits for others of its user, and may give up.
        for _ in 0..4 {
            if !raw.try_send(&give, &fds) || raw.try_reply().is_err() {
                return;
            }
            raw.try_send(&call("Close", &json!({"names": texts})), &[] as &[OwnedFd]);
            let _ = raw.try_reply();
        }
    };
    let is_refused = || {
        let raw = raw_as(&daemon, HOSTILE);
        raw.stream().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        while raw.try_send(&wrong, &fds) {}
    };
    meanwhile(&[&gives_and_closes, &is_refused], || goes_on(&daemon, HONEST, 100));

    assert_eq!(hung_up_on(&daemon, HONEST), [""; 0]);
    // What they have left unread is still done.
    wait_until(6 * SOON, || daemon.statistics().connections == 1);
    let _ = daemon.client().close(&texts.iter().map(|text| name(text)).collect::<Vec<_>>());
    daemon.settles_at(held);
    let grown = daemon.memory().saturating_sub(memory);
    assert!(grown < 64 << 20, "{} KiB more", grown >> 10);
}

#[test]
fn half_messages_with_descriptors_hold_no_more_than_their_users_share() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::builder().open_files(16384).arg("--patience=2").spawn();
    let held = daemon.held_at_rest();
    let fds = nulls(MAX_DESCRIPTORS);
    let half = &call("Give", &gifts(&["a"]))[..20];

    let hoarders: Vec<Raw> = (0..40).map(|_| raw_as(&daemon, HOSTILE)).collect();
    hoarders.iter().for_each(|raw| _ = raw.try_send(half, &fds));
    wait_until(SOON, || daemon.open_descriptors() > held + 1800);
    goes_on(&daemon, HONEST, 100);

    // 40 messages would bring 10,120.
    let open = daemon.open_descriptors() - held - hoarders.len();
    assert!(open < 2048 + 100, "{open} for one user");
    // The others of the same user come to their turn when these are ended.
    wait_until(SOON, || hung_up_on(&daemon, HOSTILE).len() > 12);
    drop(hoarders);
    daemon.settles_at(held);
}

#[test]
fn a_user_who_fills_what_it_may_goes_on_when_there_is_room_again() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let fds = nulls(MAX_DESCRIPTORS);
    let half = &call("Give", &gifts(&["a"]))[..20];
    let hoarders: Vec<Raw> = (0..9).map(|_| raw_as(&daemon, HOSTILE)).collect();
    hoarders.iter().for_each(|raw| raw.send(half, &fds));
    wait_until(SOON, || daemon.open_descriptors() > held + 8 * MAX_DESCRIPTORS);
    let busy = daemon.busy();

    // Whoever else of this user comes now, waits.
    let mut late = raw_as(&daemon, HOSTILE);
    late.send(&call("Give", &gifts(&["late"])), &nulls(1));
    goes_on(&daemon, HONEST, 50);
    assert!(late.is_quiet());
    assert!(daemon.busy() - busy < Duration::from_secs(2), "nobody spins");
    drop(hoarders);
    let given = late.reply();

    assert!(given["error"].is_null(), "{given}");
    daemon.client().close(&names(["late"])).unwrap();
    drop(late);
    daemon.settles_at(held);
}

#[test]
fn calls_that_wait_for_their_files_do_not_wait_for_those_that_come_after() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let kept = file(daemon.path("kept"), "");
    let fds: Vec<_> = (0..MAX_DESCRIPTORS).map(|_| kept.as_fd()).collect();
    let fresh_gifts = |prefix: &str| {
        let gift = |(fd, name)| json!({"name": name, "fileDescriptor": fd, "fresh": true});
        let entries: Vec<_> = many(prefix, fds.len()).into_iter().enumerate().map(gift).collect();
        call("Give", &json!({"entries": entries}))
    };
    // All that the user may have in flight is in calls that are yet to open files.
    let mut givers: Vec<_> = (0..8)
        .map(|number| (raw_as(&daemon, HOSTILE), fresh_gifts(&format!("of-{number}-"))))
        .collect();
    givers.iter().for_each(|(raw, give)| raw.send(&give[..20], &fds));
    wait_until(SOON, || daemon.open_descriptors() > held + 8 * MAX_DESCRIPTORS);
    let mut late = raw_as(&daemon, HOSTILE);
    late.send(&call("Give", &gifts(&["late"])), &nulls(1));
    // By then it waits for room.
    goes_on(&daemon, HONEST, 20);
    assert!(late.is_quiet(), "there is no room for it yet");

    givers.iter().for_each(|(raw, give)| raw.say(&give[20..]));

    for (raw, _) in &mut givers {
        let given = raw.reply();
        assert!(given["error"].is_null(), "{given}");
    }
    let given = late.reply();
    assert!(given["error"].is_null(), "{given}");
}

#[test]
fn a_call_whose_client_goes_before_its_files_are_opened_counts_no_longer() {
    if !can_be_others() {
        return;
    }
    let Some(mut fuse) = Fuse::mount() else { return skipped("FUSE cannot be mounted here") };
    let arguments = ["--user-descriptors=506", "--user-opens=6"];
    let daemon = arguments.into_iter().fold(Daemon::builder(), kit::Builder::arg).spawn();
    let held = daemon.held_at_rest();
    let (shared, kept) = (fuse.open(0, OFlags::empty()), file(daemon.path("kept"), ""));
    let texts = many("n", MAX_DESCRIPTORS);
    let fds: Vec<_> = texts.iter().map(|_| shared.as_fd()).collect();
    let mut raw = raw_as(&daemon, HOSTILE);
    assert!(raw.give(&borrowed(&texts), &fds)["error"].is_null());
    assert!(raw.give(&["one"], &[&kept])["error"].is_null());
    fuse.set(0, Opens::Hang);
    let copies = call("Take", &json!({"names": texts, "copy": true, "fresh": true}));
    // With these there is no room for what a sixth would open.
    let hanging: Vec<_> = (1..=5)
        .map(|number| {
            let raw = raw_as(&daemon, HOSTILE);
            raw.say(&copies);
            wait_until(SOON, || fuse.hanging() == number);
            raw
        })
        .collect();
    let gone = raw_as(&daemon, HOSTILE);
    gone.say(&copies);
    goes_on(&daemon, HONEST, 20);
    let connections = daemon.statistics().connections;
    assert_eq!(fuse.hanging(), 5);

    drop(gone);
    wait_until(SOON, || daemon.statistics().connections < connections);

    let one = json!({"names": ["one"], "copy": true, "fresh": true});
    let taken = raw.call("Take", &one);
    assert!(taken["error"].is_null(), "{taken}");
    fuse.kill();
    drop((hanging, raw));
    daemon.client().close(&texts.iter().map(|text| name(text)).collect::<Vec<_>>()).unwrap();
    daemon.client().close(&names(["one"])).unwrap();
    daemon.settles_at(held);
}

#[test]
fn what_its_sender_has_left_behind_is_still_done_when_there_is_room() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let half = &call("Give", &gifts(&["a"]))[..20];
    let hoarders: Vec<Raw> = (0..9).map(|_| raw_as(&daemon, HOSTILE)).collect();
    let fds = nulls(MAX_DESCRIPTORS);
    hoarders.iter().for_each(|raw| raw.send(half, &fds));
    wait_until(SOON, || daemon.open_descriptors() > held + 8 * MAX_DESCRIPTORS);

    let gone = raw_as(&daemon, HOSTILE);
    let mut parameters = gifts(&["left"]);
    let message = json!({
        "method": "org.fdstash.Stash.Give", "parameters": parameters.take(), "oneway": true,
    });
    gone.send(&kit::messages(&[message]), &nulls(1));
    drop(gone);
    let began = Instant::now();
    // Longer than it takes to look whether somebody has gone.
    wait_until(SOON, || began.elapsed() > Duration::from_millis(1500));
    drop(hoarders);

    wait_until(SOON, || daemon.client().list(&pattern("left")).is_ok_and(|all| all.len() == 1));
}

#[test]
fn takers_that_do_not_read_hold_no_more_than_their_users_share() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::builder().open_files(16384).spawn();
    let held = daemon.held_at_rest();
    let path = daemon.path("kept");
    let kept = file(&path, "");
    let texts = many("n", MAX_DESCRIPTORS);
    let mut giver = raw_as(&daemon, HOSTILE);
    let fds: Vec<_> = texts.iter().map(|_| kept.as_fd()).collect();
    assert!(giver.give(&borrowed(&texts), &fds)["error"].is_null());

    // Every answer has new descriptors, and more of them than a socket holds unread.
    let copies = call("Take", &json!({"names": texts, "copy": true, "fresh": true}));
    let takers: Vec<Raw> = (0..40).map(|_| raw_as(&daemon, HOSTILE)).collect();
    for raw in &takers {
        raw.stream().set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        raw.try_send(&copies.repeat(20), &[] as &[OwnedFd]);
    }
    goes_on(&daemon, HONEST, 200);

    let open = daemon.open_descriptors() - held - takers.len() - MAX_DESCRIPTORS;
    assert!(open < 3 * 2048 + 100, "{open} for one user");
    assert_eq!(hung_up_on(&daemon, HONEST), [""; 0]);
    drop((takers, giver));
    daemon.client().close(&texts.iter().map(|text| name(text)).collect::<Vec<_>>()).unwrap();
    daemon.settles_at(held);
}

#[test]
fn opens_that_hang_by_the_hundred_leave_root_and_others_theirs() {
    const USERS: u32 = 10;
    const EACH: u32 = 60;
    if !can_be_others() {
        return;
    }
    let Some(mut fuse) = Fuse::mount() else { return skipped("FUSE cannot be mounted here") };
    kit::raise_open_files();
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let shared = fuse.open(0, OFlags::empty());
    let mut raws = Vec::new();
    for uid in HOSTILE..HOSTILE + USERS {
        for number in 0..EACH {
            let mut raw = raw_as(&daemon, uid);
            let given = raw.give(&[&format!("of-{uid}-{number}")], &[&shared]);
            assert!(given["error"].is_null(), "{given}");
            raws.push(raw);
        }
    }
    let kept = file(daemon.path("kept"), "");
    daemon.client().give(&[gift("of-root", &kept)]).unwrap();
    raw_as(&daemon, HONEST).give(&["of-honest"], &[&kept]);
    fuse.set(0, Opens::Hang);

    let of_one = |uid: u32| raws.iter().skip(((uid - HOSTILE) * EACH) as usize).take(EACH as usize);
    for (number, raw) in of_one(HOSTILE).enumerate() {
        let one = json!({"entries": [{"name": format!("of-{HOSTILE}-{number}")}]});
        raw.say(&call("Reopen", &one));
    }
    wait_until(SOON, || fuse.hanging() >= 32);
    let reopened =
        raw_as(&daemon, HONEST).call("Reopen", &json!({"entries": [{"name": "of-honest"}]}));
    assert!(reopened["error"].is_null(), "another user's goes on: {reopened}");
    for uid in HOSTILE + 1..HOSTILE + USERS {
        for (number, raw) in of_one(uid).enumerate() {
            let one = json!({"entries": [{"name": format!("of-{uid}-{number}")}]});
            raw.say(&call("Reopen", &one));
        }
    }
    wait_until(SOON, || fuse.hanging() >= 320);
    daemon.client().reopen(&[fdstash::Reopening::new(name("of-root"))]).unwrap();

    goes_on(&daemon, HONEST, 20);
    drop(raws);
    wait_until(SOON, || daemon.statistics().connections == 1);
    fuse.kill();
    let all = daemon.client().list(&pattern("*")).unwrap();
    let all: Vec<_> = all.into_iter().map(|entry| entry.name).collect();
    all.chunks(200).for_each(|some| daemon.client().close(some).unwrap());
    daemon.settles_at(held);
}

#[test]
fn closes_that_hang_hold_up_nobody_elses() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let held = daemon.held_at_rest();
    let texts = many("slow", 100);
    let (slow, unread): (Vec<_>, Vec<_>) = texts.iter().map(|_| slow_to_close()).unzip();
    let mut raw = raw_as(&daemon, HOSTILE);
    assert!(raw.give(&borrowed(&texts), &slow)["error"].is_null());
    drop(slow);

    let closed = raw.call("Close", &json!({"names": texts}));
    assert!(closed["error"].is_null(), "{closed}");
    for uid in [HONEST, 0] {
        let pipes: Vec<_> =
            (0..10).map(|_| rustix::pipe::pipe().expect("a pipe can be made")).collect();
        let (ends, pipes): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        let texts = many("pipe", 10);
        let mut raw = raw_as(&daemon, uid);
        assert!(raw.give(&borrowed(&texts), &pipes)["error"].is_null());
        drop(pipes);
        raw.call("Close", &json!({"names": texts}));
        ends.into_iter().for_each(wait_until_closed);
    }
    // 16 of them hang, and have no numbers any more.
    wait_until(SOON, || daemon.held() == held + texts.len() - 16);
    goes_on(&daemon, HONEST, 50);

    drop((unread, raw));
    daemon.settles_at(held);
}

#[test]
fn who_has_too_many_closes_waiting_gets_no_further_connection() {
    if !can_be_others() {
        return;
    }
    kit::raise_open_files();
    let daemon = Daemon::builder().arg("--user-descriptors=600").spawn();
    let held = daemon.held_at_rest();
    let texts = many("slow", 700);
    let (slow, unread): (Vec<_>, Vec<_>) = texts.iter().map(|_| slow_to_close()).unzip();
    let mut raw = raw_as(&daemon, HOSTILE);
    for (texts, slow) in texts.chunks(200).zip(slow.chunks(200)) {
        assert!(raw.give(&borrowed(texts), slow)["error"].is_null());
    }
    drop(slow);

    for texts in texts.chunks(500) {
        let closed = raw.call("Close", &json!({"names": texts}));
        assert!(closed["error"].is_null(), "{closed}");
    }
    let refused = raw_as(&daemon, HOSTILE).reply();
    assert_eq!(refused["parameters"], json!({"limit": "descriptorsPerUser", "value": 600}));
    // What brings no descriptor is answered, on the connection that there is.
    assert!(raw.call("GetStatistics", &json!({}))["error"].is_null());
    goes_on(&daemon, HONEST, 50);

    drop(unread);
    wait_until(SOON, || daemon.held() == held);
    goes_on(&daemon, HOSTILE, 1);
    drop(raw);
    daemon.settles_at(held);
}

#[test]
fn at_the_limit_of_memory_nothing_is_lost_that_is_kept() {
    let Some(group) = Cgroup::new("memory") else { return skipped("there are no cgroups here") };
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let kept = file(daemon.path("kept"), "");
    daemon.client().give(&[gift("kept", &kept)]).unwrap();
    let held = daemon.held_at_rest();
    group.add(daemon.pid());
    group.add(daemon.server().0);
    group.bound_memory(24 << 20);

    // Each is allowed to be so long, and none ends.
    let half = vec![b' '; fdstash_proto::MAX_MESSAGE - 1];
    let hoarders: Vec<Raw> = (0..100).map(|_| raw_as(&daemon, HOSTILE)).collect();
    hoarders.iter().any(|raw| !raw.try_send(&half, &[] as &[OwnedFd]));
    wait_until(SOON, || daemon.servers() > 1);
    drop(hoarders);

    // Its memory has gone with the server, which came back to what it had.
    goes_on(&daemon, HONEST, 50);
    let copies = daemon.client().copy(&names(["kept"])).unwrap();
    assert_eq!(kit::identity(kit::only(copies)), kit::identity(&kept));
    daemon.settles_at(held);
    assert!(daemon.memory() < 24 << 20);
}

#[test]
fn at_the_limit_an_honest_client_under_load_is_never_cut_off() {
    let daemon = Daemon::builder().open_files(96).arg("--max-entries=1000").spawn();
    let mut client = daemon.client();
    let mut honest = daemon.raw();
    honest.give(&["honest"], &[null()]);
    let mut kept = 0;
    let refused = loop {
        match client.give(&[gift(&format!("n{kept}"), null())]) {
            Ok(_) => kept += 1,
            Err(refused) => break refused,
        }
    };
    let full = |refused: &Error| matches!(refused, Error::Refused(Refusal::LimitExceeded { .. }));
    assert!(full(&refused), "{refused:?}");
    let spin = || {
        let until = Instant::now() + Duration::from_millis(10);
        while Instant::now() < until {}
    };

    meanwhile(&[&spin, &spin, &spin, &spin], || {
        for round in 0..300 {
            let taken = honest.call("Take", &json!({"names": ["honest"]}));
            assert!(taken["error"].is_null(), "round {round}: {taken}");
            honest.fds();
            let given = honest.give(&["honest"], &[null()]);
            assert!(given["error"].is_null(), "round {round}: {given}");
        }
        // And who is one too many is told so, at once.
        let more = honest.give(&["more"], &[null()]);
        assert_eq!(more["error"], "org.fdstash.Stash.LimitExceeded", "{more}");
    });

    assert!(!daemon.log().contains("hanging up"));
    drop((client, honest));
}

#[test]
fn a_full_process_table_is_told_of_and_survived() {
    let Some(group) = Cgroup::new("pids") else { return skipped("there are no cgroups here") };
    let Some(mut fuse) = Fuse::mount() else { return skipped("FUSE cannot be mounted here") };
    let daemon = Daemon::spawn();
    let texts = many("n", 4);
    let fds: Vec<_> = (0..4).map(|number| fuse.open(number, OFlags::empty())).collect();
    let mut client = daemon.client();
    let kept = file(daemon.path("kept"), "");
    client.give(&[gift("kept", &kept)]).unwrap();
    assert!(daemon.raw().give(&borrowed(&texts), &fds)["error"].is_null());
    group.add(daemon.pid());
    group.add(daemon.server().0);
    // What it has by now, it has; nothing more can be made.
    group.set("pids.max", "1");

    client.reopen(&[fdstash::Reopening::new(name("kept"))]).unwrap();
    client.copy(&names(["kept"])).unwrap();
    (0..4).for_each(|number| fuse.set(number, Opens::Hang));
    let mut raws: Vec<Raw> = texts.iter().map(|_| daemon.raw()).collect();
    for (raw, text) in raws.iter().zip(&texts) {
        raw.say(&call("Reopen", &json!({"entries": [{"name": text}]})));
    }
    wait_until(SOON, || fuse.hanging() >= 1);
    // Others are told that there is no thread for them, and everything else goes on.
    let refused: Vec<Value> = raws[1..].iter_mut().map(Raw::reply).collect();
    let is_told = |reply: &&Value| {
        let parameters = &reply["parameters"];
        parameters["errnoName"] == "EAGAIN" && parameters["message"].as_str().is_some()
    };
    assert_eq!(refused.iter().filter(is_told).count(), 3, "{refused:?}");
    goes_on(&daemon, 0, 100);
    wait_until(SOON, || daemon.log().contains("no further thread can be made"));
    let told = daemon.log().matches("no further thread can be made").count();
    assert!(told <= 3, "{told} times");

    group.set("pids.max", "max");
    client.reopen(&[fdstash::Reopening::new(name("kept"))]).unwrap();
    fuse.kill();
    assert_eq!(daemon.servers(), 1);
}
