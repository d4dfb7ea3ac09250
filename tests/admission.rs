//! Who a connection is of, and what comes in with it before and after it is admitted; and what goes out
//! where the kernel passes on no more for now.

use std::{
    fs,
    io::Write,
    net::{TcpListener, TcpStream},
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
    time::Duration,
};

use fdstash::{Gift, Share, blocking::Client};
use fdstash_proto::socket;
use kit::{
    Daemon, Raw, SOON, User, call, can_be_others, file, gift, identity, name, names, not_found,
    null, nulls, only, python, refusal, skipped, wait_until,
};
use rustix::{
    net::sockopt::set_socket_linger,
    process::{Pid, Signal, kill_process},
    thread::{Gid, Uid, set_thread_groups, set_thread_res_uid},
};
use serde_json::json;

const ALICE: u32 = 61001;
const BOB: u32 = 61002;
const STASH: u32 = 61050;
const TEAM: u32 = 61100;

/// The groups that the thread is in now, as whoever looks at it sees them.
fn groups_now() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").expect("there is a /proc");
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.expect("a thread has groups").trim().to_owned()
}

/// Connects as Bob in some groups, by a thread that is in others afterwards, and still is while the
/// connection is used. (It keeps root's power to become so, as a set-user-ID program would have it.)
fn connected(daemon: &Daemon, then: &[u32], now: &[u32], act: impl FnOnce(&mut Client) + Send) {
    let gids = |groups: &[u32]| groups.iter().map(|gid| Gid::from_raw(*gid)).collect::<Vec<_>>();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (root, bob) = (Uid::from_raw(0), Uid::from_raw(BOB));
            set_thread_groups(&gids(then)).expect("root can be in any group");
            set_thread_res_uid(None, bob, None).expect("root can be anybody");
            let mut client = daemon.client();
            set_thread_res_uid(None, root, None).expect("and root again");
            set_thread_groups(&gids(now)).expect("root can be in any group");
            let now: Vec<_> = now.iter().map(u32::to_string).collect();
            assert_eq!(groups_now(), now.join(" "));
            act(&mut client);
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn who_a_peer_is_was_settled_when_it_connected() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let kept = file(daemon.path("kept"), "");
    let share = Share { uids: vec![], gids: vec![TEAM] };
    let mut of_alice = daemon.client_as(&User::new(ALICE));
    of_alice.give(&[Gift { share, ..gift("a", &kept) }]).unwrap();

    // What the process is by now, root and of the group, is nothing to a connection that was Bob's.
    connected(&daemon, &[], &[TEAM], |client| {
        assert_eq!(refusal(client.copy(&names(["a"]))), not_found("a"));
    });
    // And the other way round: the group is not lost with the process's.
    connected(&daemon, &[TEAM], &[], |client| {
        assert_eq!(identity(only(client.copy(&names(["a"])).unwrap())), identity(&kept));
        daemon.kill_server();
        assert_eq!(identity(only(client.copy(&names(["a"])).unwrap())), identity(&kept));
    });
}

#[test]
fn a_connection_that_is_passed_on_stays_who_made_it() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    daemon.client_as(&User::new(ALICE)).give(&[gift("a", null())]).unwrap();
    let of_bob = User::new(BOB).run(|| daemon.raw());

    // Another process, which is root's, speaks over it, and Bob's is gone.
    const TAKE: &str = r#"
import json, socket
with socket.socket(fileno=0) as stash:
    call = {"method": "org.fdstash.Stash.Take", "parameters": {"names": ["a"]}}
    stash.sendall(json.dumps(call).encode() + b"\0")
    print(stash.recv(65536).decode().rstrip("\0"))
"#;
    let stream = of_bob.stream().as_fd().try_clone_to_owned().unwrap();
    let output = python().args(["-c", TAKE]).stdin(stream).output().unwrap();

    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("org.fdstash.Stash.NotFound"), "{said}");
}

/// Stops a daemon's server for as long as it lives, as one would be that has much else to do.
struct Stopped(Pid);

impl Stopped {
    fn server_of(daemon: &Daemon) -> Self {
        let (server, _) = daemon.server();
        kill_process(server, Signal::STOP).expect("the server can be stopped");
        Self(server)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

#[test]
fn where_the_listener_passes_no_rights_who_connects_and_sends_at_once_fails() {
    // So the daemon's cannot be told not to: that is how all clients speak, and none waits to be admitted.
    const TRY: &str = r#"
import array, errno, socket, sys, tempfile
SO_PASSRIGHTS = 83
def send(client):
    passed = array.array("i", [0])
    try:
        client.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        return "sent"
    except OSError as error:
        return errno.errorcode[error.errno]
with tempfile.TemporaryDirectory() as folder:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError:
        sys.exit("this kernel has no SO_PASSRIGHTS")
    listener.bind(folder + "/stash")
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(folder + "/stash")
    said = [send(client)]
    admitted, _ = listener.accept()
    said.append(send(client))
    admitted.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 1)
    said.append(send(client))
    print(*said)
"#;

    let output = python().args(["-c", TRY]).stdin(null()).output().unwrap();

    if !output.status.success() {
        return skipped(&String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(String::from_utf8_lossy(&output.stdout), "EPERM EPERM sent\n");
}

#[test]
fn before_a_connection_is_admitted_none_of_its_descriptors_gets_in() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    client.give(&[gift("kept", null())]).unwrap();
    let before = daemon.held_at_rest();
    let nulls = nulls(253);

    let stopped = Stopped::server_of(&daemon);
    let open = daemon.open_descriptors();
    let mut early: Vec<_> = (0..20).map(|_| daemon.raw()).collect();
    for raw in &mut early {
        raw.send(&call("Give", &kit::gifts(&["early"])), &nulls[..1]);
        // And messages full of them, which nobody names.
        raw.send(b"{", &nulls);
    }
    assert_eq!(daemon.open_descriptors(), open, "what waits is in nobody's table");
    let goes: Vec<_> = early.drain(..19).collect();
    drop(goes);
    drop(stopped);

    // Who stays is served.
    let mut last = early.pop().unwrap();
    assert_eq!(last.reply()["error"], json!(null));
    drop(last);
    client.close(&names(["early"])).unwrap();
    drop(client);
    daemon.settles_at(before);
}

#[test]
fn who_is_turned_away_with_descriptors_unread_holds_nobody_up() {
    let daemon = Daemon::builder().arg("--max-connections").arg("20").spawn();
    wait_until(SOON, || daemon.statistics().connections == 1);
    let mut client = daemon.client();
    client.give(&[gift("kept", null())]).unwrap();
    let before = daemon.held_at_rest();
    let mut admitted: Vec<_> = (0..19).map(|_| daemon.raw()).collect();
    // One of them is late, for the one that has asked for figures may not have gone yet.
    let answers = |raw: &mut Raw| raw.call("List", &json!({}))["error"].is_null();
    assert!(admitted[..18].iter_mut().all(answers));
    let nulls = nulls(253);
    let (slow, reader) = lingering();

    let stopped = Stopped::server_of(&daemon);
    // The first of them may be admitted yet.
    let mut turned_away: Vec<_> = (0..21).map(|_| daemon.raw()).collect();
    let open = daemon.open_descriptors();
    for raw in &mut turned_away {
        raw.send(&call("Give", &kit::gifts(&["x"])), &[&slow]);
        raw.send(b"{", &nulls);
    }
    // What is unread is the last of it.
    drop(slow);
    drop(stopped);

    for raw in &mut turned_away[1..] {
        let reply = raw.reply();
        assert_eq!(reply["error"], "org.fdstash.Stash.LimitExceeded");
        assert_eq!(reply["parameters"]["limit"], "connections");
    }
    // At most those of the first, and the connections that are yet to be closed.
    assert!(daemon.open_descriptors() < open + 400, "none of theirs got in");
    // It would be a minute.
    only(client.copy(&names(["kept"])).unwrap());
    drop(reader);
    drop((turned_away, admitted));
    let _ = client.close(&names(["x"]));
    drop(client);
    daemon.settles_at(before);
}

/// One end of a connection that takes its time to close, and the other.
fn lingering() -> (TcpStream, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let slow = TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
    set_socket_linger(&slow, Some(Duration::from_secs(60))).expect("a socket can linger");
    slow.set_nonblocking(true).expect("a socket need not block");
    while (&slow).write(&[0; 65536]).is_ok() {}
    // The close waits for what was written to be read, but only on a socket that blocks.
    slow.set_nonblocking(false).expect("a socket can block");
    (slow, listener)
}

/// A daemon of an unprivileged user, who has more descriptors on their way than the daemon may.
struct Congested {
    daemon: Daemon,
    on_their_way: UnixStream,
}

impl Congested {
    fn new(patience: &str) -> (Self, Raw) {
        let user = User::new(STASH);
        let daemon = Daemon::builder()
            .user(user.clone())
            .own_program()
            .open_files(256)
            .arg("--patience")
            .arg(patience)
            .spawn();
        let kept = [null(), null()];
        let mut raw = daemon.raw();
        assert_eq!(raw.give(&["a", "b"], &kept)["error"], json!(null));
        let on_their_way = user.run(|| {
            let (one, other) = UnixStream::pair().expect("sockets can be made");
            let nulls = nulls(200);
            for _ in 0..2 {
                let sent = socket::send(&one, b"x", &nulls).expect("they can be sent");
                assert_eq!(sent, 1);
            }
            other
        });
        (Self { daemon, on_their_way }, raw)
    }
}

#[test]
fn what_the_kernel_does_not_pass_on_for_now_is_sent_later() {
    if !can_be_others() {
        return;
    }
    let (congested, mut raw) = Congested::new("30");
    let Congested { daemon, on_their_way } = congested;

    raw.say(&call("Take", &json!({ "names": ["a"] })));
    raw.say(&call("List", &json!({})));
    // Others are served, as long as nothing is to be handed out.
    let mut other = daemon.raw();
    assert_eq!(other.call("List", &json!({}))["error"], json!(null));
    other.say(&call("Take", &json!({ "names": ["b"], "copy": true })));
    let busy = daemon.busy();
    thread::sleep(Duration::from_millis(300));
    assert!(daemon.busy() - busy < Duration::from_millis(200), "it does not wait by trying");
    assert!(raw.is_quiet() && other.is_quiet(), "nothing of it has left");
    assert_eq!(daemon.statistics().entries, 2, "and what has not left is kept");

    // They arrive.
    drop(on_their_way);
    for client in [&mut raw, &mut other] {
        assert_eq!(client.reply()["error"], json!(null));
        assert_eq!(client.fds().len(), 1);
    }
    assert_eq!(raw.reply()["parameters"]["entries"].as_array().map(Vec::len), Some(1));
    assert_eq!(daemon.statistics().entries, 1);
}

#[test]
fn what_is_never_passed_on_stays_kept() {
    if !can_be_others() {
        return;
    }
    let (congested, mut raw) = Congested::new("1");
    let Congested { daemon, on_their_way } = congested;

    raw.say(&call("Take", &json!({ "names": ["a"] })));

    assert!(raw.is_hung_up_on());
    wait_until(SOON, || daemon.log().contains("on their way elsewhere"));
    drop(on_their_way);
    let mut client = daemon.client();
    assert_eq!(client.take(&[name("a"), name("b")]).unwrap().len(), 2);
}
