//! `fdstash run`: programs that nobody here wrote are started with sockets of the stash, and store
//! descriptors in it (nginx, systemd's proxy, python3-systemd).

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use kit::{
    Daemon, Group, SOON, Systemd, User, can_be_others, gift, listed, null, program, python, shared,
    skipped, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};

/// What the services in these tests begin with: python3-systemd, and two words for what they say often.
const PRELUDE: &str = "
import os, signal, socket, sys, time
from systemd import daemon
def store(name, *fds, more=''):
    assert daemon.notify(f'FDSTORE=1\\nFDNAME={name}{more}', fds=list(fds))
def barrier():
    ours, theirs = os.pipe()
    assert daemon.notify('BARRIER=1', fds=[theirs])
    os.close(theirs)
    assert os.read(ours, 1) == b''
def passed():
    return [(name, number) for number, name in sorted(daemon.listen_fds_with_names().items())]
";

/// `fdstash run`, with what stands before and what behind the `--`.
fn run(daemon: &Daemon, options: &[&str], words: &[&str]) -> Command {
    let mut command = daemon.command();
    command.arg("run").args(options).arg("--").args(words);
    command
}

/// The same, of a Python program.
fn service(daemon: &Daemon, options: &[&str], script: &str) -> Command {
    let python = python().get_program().to_str().expect("a plain path").to_owned();
    run(daemon, options, &[&python, "-c", &format!("{PRELUDE}{script}")])
}

/// What a program writes that ends well and complains of nothing.
#[track_caller]
fn works(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it can be started");
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complained.is_empty(), "{}: {complained}", output.status);
    String::from_utf8(output.stdout).expect("it writes text")
}

#[track_caller]
fn complaint(output: &Output, code: i32) -> String {
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{complained}");
    complained
}

/// A listening socket in the stash.
fn listen(daemon: &Daemon, entry: &str) -> SocketAddr {
    let mut listen = daemon.command();
    let written = works(listen.args(["listen", entry, "tcp:127.0.0.1:0"]));
    written.trim().strip_prefix("tcp:").expect("it writes an address").parse().expect("it is one")
}

/// The next line that a program writes.
fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).expect("it writes text");
    line.trim_end().to_owned()
}

// What is passed.

#[test]
fn a_program_finds_what_matches_in_the_order_of_what_was_asked_for() {
    let daemon = Daemon::spawn();
    for entry in ["b2", "b1", "a", "other"] {
        daemon.client().give(&[gift(entry, null())]).unwrap();
    }
    let script = "echo $LISTEN_FDS $LISTEN_FDNAMES $((LISTEN_PID - $$)); readlink /proc/$$/fd/5";

    let options = ["--take", "b*", "--take", "a:with space", "--take", "b1"];
    let said = works(&mut run(&daemon, &options, &["sh", "-c", script]));

    assert_eq!(said, "3 b1:b2:with space 0\n/dev/null\n");
    assert_eq!(listed(&mut daemon.client()), ["a", "b1", "b2", "other"], "they are copies");
}

#[test]
fn what_a_manager_has_passed_comes_first() {
    let daemon = Daemon::spawn();
    daemon.client().give(&[gift("a", File::open("/dev/zero").unwrap())]).unwrap();
    let inner = "echo $LISTEN_FDS $LISTEN_FDNAMES $((LISTEN_PID - $$)) $((WATCHDOG_PID - $$)) ${LISTEN_PIDFDID-none}; \
                 readlink /proc/$$/fd/3 /proc/$$/fd/4";
    for store in [&[][..], &["--store", "s"]] {
        let mut shell = Command::new("/bin/sh");
        let line = "exec 3</dev/null; export LISTEN_PID=$$ WATCHDOG_PID=$$; exec \"$@\"";
        shell.args(["-c", line, "sh"]).arg(program("fdstash"));
        shell.args(["run", "--take", "a"]).args(store).args(["--", "sh", "-c", inner]);
        shell.env("FDSTASH_SOCKET", daemon.socket()).env("LISTEN_FDS", "1");
        shell.env("LISTEN_FDNAMES", "http").env("LISTEN_PIDFDID", "7");

        assert_eq!(works(&mut shell), "2 http:a 0 0 none\n/dev/null\n/dev/zero\n");
    }
}

#[test]
fn what_was_meant_for_another_process_is_not_passed() {
    let daemon = Daemon::spawn();
    let script = "echo ${LISTEN_FDS-none} ${LISTEN_PID-none} ${LISTEN_FDNAMES-none}";
    for store in [&[][..], &["--store", "s"]] {
        let mut command = run(&daemon, store, &["sh", "-c", script]);
        command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1").env("LISTEN_FDNAMES", "a");

        assert_eq!(works(&mut command), "none none none\n");
    }
}

#[test]
fn what_is_not_there_is_an_error_unless_it_may_be() {
    let daemon = Daemon::spawn();
    let words = ["sh", "-c", "echo ${LISTEN_FDS-none}"];

    let refused = run(&daemon, &["--take", "web*"], &words).output().unwrap();
    let started = works(&mut run(&daemon, &["--take", "web*", "--allow-none"], &words));

    assert!(complaint(&refused, 1).contains("nothing in the stash matches \"web*\""));
    assert_eq!(started, "none\n");
}

#[test]
fn an_end_is_told_as_a_shell_would_with_a_store_and_without() {
    let daemon = Daemon::spawn();
    for store in [&[][..], &["--store", "s"]] {
        let code = |words: &[&str]| run(&daemon, store, words).output().unwrap().status;

        assert_eq!(code(&["sh", "-c", "exit 42"]).code(), Some(42));
        assert_eq!(code(&["no-such-command"]).code(), Some(127));
        assert_eq!(code(&["/dev/null"]).code(), Some(126));
    }
    let killed = run(&daemon, &["--store", "s"], &["sh", "-c", "kill -9 $$"]).output().unwrap();
    let nobody = daemon.command().args(["--socket", "/no/where", "run", "--", "true"]).output();

    assert_eq!(killed.status.code(), Some(128 + 9));
    assert!(complaint(&nobody.unwrap(), 3).contains("no daemon can be reached"));
}

#[test]
fn what_a_stranger_gave_is_passed_to_nobody_who_does_not_trust_them() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let stranger = daemon.client_as(&User::new(61_001)).give(&[
        shared(gift("web-a", null()), &[0], &[]),
        shared(gift("s/stored", null()), &[0], &[]),
    ]);
    stranger.unwrap();
    daemon.client().give(&[gift("web-b", null())]).unwrap();
    let words = ["sh", "-c", "echo $LISTEN_FDNAMES"];

    let some = run(&daemon, &["--take", "web-*", "--store", "s"], &words).output().unwrap();
    let one = run(&daemon, &["--take", "web-a"], &words).output().unwrap();
    let all = ["--take", "web-*", "--store", "s", "--trust", "61001"];

    assert!(complaint(&some, 0).contains("left out: entry \"web-a\" was given by uid 61001"));
    assert_eq!(some.stdout, b"web-b\n");
    assert!(complaint(&one, 1).contains("--trust 61001"));
    assert_eq!(works(&mut run(&daemon, &all, &words)), "web-a:web-b:stored\n");
}

// Programs that nobody here wrote.

/// One request to a web server of the test.
fn get(address: SocketAddr) -> io::Result<String> {
    let mut connection = TcpStream::connect(address)?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

fn is_answered(outcome: &io::Result<String>) -> bool {
    outcome.as_ref().is_ok_and(|answer| answer.ends_with("\r\n\r\nhello\n"))
}

/// nginx, with the socket that stands under `web`, of which it is told by number.
fn nginx(daemon: &Daemon, config: &Path) -> Group {
    let words =
        ["env", "NGINX=3;", "nginx", "-e", "stderr", "-c", config.to_str().expect("a plain path")];
    let mut nginx = run(daemon, &["--take", "web"], &words);
    nginx.stderr(
        File::options()
            .append(true)
            .create(true)
            .open(daemon.path("nginx.log"))
            .expect("a log can be made"),
    );
    Group::spawn(&mut nginx)
}

fn nginx_config(daemon: &Daemon, address: SocketAddr) -> std::path::PathBuf {
    let folder = daemon.path("");
    let folder = folder.to_str().expect("a plain path").trim_end_matches('/');
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
        .collect();
    let config = format!(
        "daemon off; pid {folder}/nginx.pid; error_log stderr; worker_processes 2;\n\
         events {{}}\n\
         http {{ access_log off; {paths}\n\
         server {{ listen {address}; location / {{ return 200 \"hello\\n\"; }} }} }}\n"
    );
    let path = daemon.path("nginx.conf");
    fs::write(&path, config).expect("a file can be written");
    path
}

#[test]
fn nobody_is_refused_while_nginx_is_killed_and_started_again_under_load() {
    const KILLS: usize = 5;
    const WORKERS: usize = 2;
    let daemon = Daemon::spawn();
    let address = listen(&daemon, "web");
    let config = nginx_config(&daemon, address);
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut server = nginx(&daemon, &config);

    thread::scope(|scope| {
        let load = || {
            let mut failed = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match get(address) {
                    outcome if is_answered(&outcome) => {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    outcome => failed.push(outcome),
                }
            }
            failed
        };
        let clients = [(); 4].map(|()| scope.spawn(load));
        for _ in 0..KILLS {
            let before = answered.load(Ordering::Relaxed);
            wait_until(SOON, || answered.load(Ordering::Relaxed) > before + 50);
            server.kill();
            // Nobody is there to take these: they wait in the socket that the stash has.
            let waiting = [(); 8].map(|()| scope.spawn(|| get(address)));
            wait_until(SOON, || waiting_in(address) >= 8);
            server = nginx(&daemon, &config);
            for connection in waiting {
                let outcome = connection.join().unwrap();
                assert!(is_answered(&outcome), "{outcome:?}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        let failed: Vec<_> =
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        // One that had been accepted by a worker that was killed, at most, for each client and kill.
        assert!(failed.len() <= 4 * WORKERS * KILLS, "{failed:?}");
        for outcome in failed {
            let kind = outcome.as_ref().map_err(io::Error::kind);
            let is_cut = matches!(
                kind,
                Ok(_) | Err(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
            );
            assert!(is_cut, "{outcome:?}");
        }
    });
    server.kill();
    let log = fs::read_to_string(daemon.path("nginx.log")).unwrap();
    assert!(log.contains("using inherited sockets from \"3;\""), "{log}");
}

/// How many connections wait to be accepted there.
fn waiting_in(address: SocketAddr) -> usize {
    let SocketAddr::V4(address) = address else { return 0 };
    let octets = address.ip().octets();
    let local = format!("{:08X}:{:04X}", u32::from_le_bytes(octets), address.port());
    let table = fs::read_to_string("/proc/net/tcp").expect("there is a table");
    let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    let mut of_it = rows.filter(|row| row.get(1) == Some(&local.as_str()));
    // The row of a listening socket, 0A, has their number as its receive queue.
    let listening = of_it.find(|row| row.get(3) == Some(&"0A"));
    let queue = listening.and_then(|row| row.get(4)?.split(':').nth(1));
    queue.and_then(|queue| usize::from_str_radix(queue, 16).ok()).unwrap_or_default()
}

#[test]
fn a_new_nginx_takes_over_from_an_old_one_that_ends_when_it_is_done() {
    let daemon = Daemon::spawn();
    let address = listen(&daemon, "web");
    let config = nginx_config(&daemon, address);
    let mut old = nginx(&daemon, &config);
    wait_until(SOON, || is_answered(&get(address)));
    // A request that the old one has accepted, and of which only half has come.
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"GET / HTTP/1.0\r\n").unwrap();
    wait_until(SOON, || waiting_in(address) == 0);

    let mut new = nginx(&daemon, &config);
    kill_process(old.pid(), Signal::QUIT).unwrap();
    for _ in 0..100 {
        let outcome = get(address);
        assert!(is_answered(&outcome), "{outcome:?}");
    }
    slow.write_all(b"\r\n").unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();

    assert!(answer.ends_with("hello\n"), "{answer}");
    assert!(old.wait().success());
    new.kill();
}

#[test]
fn systemds_proxy_is_activated_with_a_store_and_without() {
    const PROXY: &str = "/lib/systemd/systemd-socket-proxyd";
    if !Path::new(PROXY).exists() {
        return skipped("there is no systemd");
    }
    let daemon = Daemon::spawn();
    let address = listen(&daemon, "web");
    let behind = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = behind.local_addr().unwrap().to_string();
    for store in [&["--take", "web"][..], &["--take", "web", "--store", "proxy"]] {
        // It looks whether LISTEN_PID is its own.
        let mut proxy = Group::spawn(&mut run(&daemon, store, &[PROXY, &backend]));
        let mut front = TcpStream::connect(address).unwrap();
        front.write_all(b"hello").unwrap();
        front.shutdown(Shutdown::Write).unwrap();
        let mut said = String::new();
        behind.accept().unwrap().0.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hello");
        proxy.kill();
    }
}

// The store.

#[test]
fn what_a_service_stores_comes_back_under_what_it_called_it() {
    let daemon = Daemon::spawn();
    let stores = "
for name, text in [('state', b'first'), ('with space', b'other'), ('state', b'second')]:
    memory = os.memfd_create(name); os.write(memory, text); store(name, memory)
store('a:b', os.memfd_create('c'))
assert os.environ['FDSTORE'] == '512'
";
    let reads = "
for name, number in passed():
    print(name, os.pread(number, 100, 0).decode())
";

    works(&mut service(&daemon, &["--store", "s"], stores));
    let said = works(&mut service(&daemon, &["--store", "s/"], reads));
    let again = works(&mut service(&daemon, &["--store", "s"], reads));

    assert_eq!(said, "state first\nstate second\nstored \nwith space other\n");
    assert_eq!(said, again, "they stay until they are removed");
    assert_eq!(listed(&mut daemon.client()), ["s/state", "s/state#2", "s/stored", "s/with space"]);
}

#[test]
fn what_is_stored_twice_is_stored_once_and_what_is_removed_is_gone() {
    let daemon = Daemon::spawn();
    let script = "
a, b = socket.socketpair()
memory = os.memfd_create('m')
store('pair', a.fileno(), a.fileno()); store('pair', b.fileno()); store('again', a.fileno())
store('memory', memory); store('memory', memory)
events = os.eventfd(0), os.eventfd(0)
store('event', *events); store('event', events[1])
barrier()
print('stored', flush=True); sys.stdin.readline()
daemon.notify('FDSTOREREMOVE=1\\nFDNAME=pair'); daemon.notify('FDSTOREREMOVE=1\\nFDNAME=event')
";
    let mut service = service(&daemon, &["--store", "s"], script);
    let mut service = service.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(line(&mut BufReader::new(service.stdout.take().unwrap())), "stored");

    let stored = listed(&mut daemon.client());
    service.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(service.wait().unwrap().success());

    assert_eq!(stored, ["s/.run", "s/event", "s/event#2", "s/memory", "s/pair", "s/pair#2"]);
    assert_eq!(listed(&mut daemon.client()), ["s/memory"]);
}

#[test]
fn what_hangs_up_is_dropped_unless_the_service_says_otherwise() {
    let daemon = Daemon::spawn();
    let script = "
for name, more in [('dropped', ''), ('kept', '\\nFDPOLL=0')]:
    r, w = os.pipe()
    store(name, r, more=more); barrier(); os.close(r); os.close(w)
";

    works(&mut service(&daemon, &["--store", "s"], script));

    wait_until(SOON, || listed(&mut daemon.client()) == ["s/kept"]);
}

#[test]
fn a_store_takes_all_where_a_process_may_have_few_files_open() {
    let daemon = Daemon::spawn();
    let script = "
import resource
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 200
for message in range(8):
    new = [os.memfd_create('') for _ in range(100)]
    store('n', *new)
    for fd in new: os.close(fd)
barrier()
";
    let service = service(&daemon, &["--store", "s", "--store-max", "1000"], script);
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -Sn 200; exec \"$@\"", "sh"]);
    shell.arg(service.get_program()).args(service.get_args());
    shell.env("FDSTASH_SOCKET", daemon.socket());

    works(&mut shell);

    assert_eq!(listed(&mut daemon.client()).len(), 800);
}

#[test]
fn a_store_below_another_is_not_the_others() {
    let daemon = Daemon::spawn();
    let inner =
        "store('a', os.memfd_create('')); barrier(); print(flush=True); sys.stdin.readline()";
    let mut below = service(&daemon, &["--store", "s/below"], inner);
    let mut below = below.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    line(&mut BufReader::new(below.stdout.take().unwrap()));
    let outer = "print(passed()); daemon.notify('FDSTOREREMOVE=1\\nFDNAME=a')";

    let said = works(&mut service(&daemon, &["--store", "s"], outer));

    assert_eq!(said, "[]\n");
    assert!(listed(&mut daemon.client()).contains(&"s/below/a".to_owned()));
    drop(below.stdin.take());
    assert!(below.wait().unwrap().success());
}

#[test]
fn what_is_in_a_transaction_is_in_nobodys_way_and_is_removed_behind_it() {
    let daemon = Daemon::spawn();
    let script = "
event = os.eventfd(0)
store('a', event); barrier(); print('stored', flush=True); sys.stdin.readline()
store('b', os.eventfd(0)); store('c', event); barrier(); print('stored', flush=True)
daemon.notify('FDSTOREREMOVE=1\\nFDNAME=a'); barrier(); print('removed', flush=True)
";
    let mut service = service(&daemon, &["--store", "s"], script);
    let mut service = service.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(service.stdout.take().unwrap());
    assert_eq!(line(&mut stdout), "stored");
    let mut client = daemon.client();
    let mut transaction = client.transaction().unwrap();
    transaction.copy(&kit::names(["s/a"])).unwrap();

    service.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(line(&mut stdout), "stored");
    let stored = listed(&mut daemon.client());
    transaction.rollback();

    assert_eq!(line(&mut stdout), "removed");
    assert!(service.wait().unwrap().success());
    assert_eq!(stored, ["s/.run", "s/a", "s/b", "s/c"]);
    assert_eq!(listed(&mut daemon.client()), ["s/b", "s/c"]);
}

#[test]
fn a_store_takes_so_many_and_says_when_it_is_full() {
    let daemon = Daemon::spawn();
    let script = "
for number in range(3):
    store('n', os.memfd_create(str(number)))
barrier()
";

    let output = service(&daemon, &["--store", "s", "--store-max", "2"], script).output().unwrap();

    assert!(complaint(&output, 0).contains("\"n\" could not be stored: the store \"s\" is full"));
    assert_eq!(listed(&mut daemon.client()), ["s/n", "s/n#2"]);
}

#[test]
fn of_two_runs_with_one_prefix_the_second_is_refused() {
    let daemon = Daemon::spawn();
    let mut first = run(&daemon, &["--store", "s"], &["sh", "-c", "echo; exec sleep 60"]);
    let mut first = Group::spawn(first.stdout(Stdio::piped()));
    line(&mut BufReader::new(first.first().stdout.take().unwrap()));
    // Its mark is an entry as any other, which outlives the daemon's server.
    daemon.kill_server();

    let second = run(&daemon, &["--store", "s"], &["true"]).output().unwrap();
    let number = first.pid().as_raw_pid();
    first.kill();
    works(&mut run(&daemon, &["--store", "s"], &["true"]));

    let told = complaint(&second, 1);
    assert!(
        told.contains(&format!("the store \"s\" is in use by process {number} of uid")),
        "{told}"
    );
}

/// A service that answers each line with its number and the line, and has its connections stored.
const ECHO: &str = "
import select
passed = passed()
listener = socket.socket(fileno=passed[0][1])
connections = {number: socket.socket(fileno=number) for _, number in passed[1:]}
daemon.notify('READY=1\\nSTATUS=Serving.')
print(os.getpid(), flush=True)
while True:
    ready, _, _ = select.select([listener, *connections], [], [])
    for one in ready:
        if one is listener:
            connection, _ = listener.accept()
            store('connection', connection.fileno()); barrier()
            connections[connection.fileno()] = connection
        else:
            said = connections[one].recv(100)
            if said:
                connections[one].sendall(str(os.getpid()).encode() + b' ' + said)
            else:
                # For the stash's copy, too: so it hangs up, and is dropped.
                connections[one].shutdown(socket.SHUT_RDWR)
                connections.pop(one).close()
";

struct Echo {
    group: Group,
    /// The service's own number.
    pid: i32,
}

fn echo(daemon: &Daemon) -> Echo {
    let mut echo = service(daemon, &["--take", "web", "--store", "echo"], ECHO);
    let mut group = Group::spawn(echo.stdout(Stdio::piped()));
    let said =
        line(&mut BufReader::new(group.first().stdout.take().expect("its output is a pipe")));
    Echo { group, pid: said.parse().expect("it writes a number") }
}

/// What the service answers, after its number.
fn answer(connection: &TcpStream, pid: i32, said: &str) {
    let mut connection = connection;
    connection.write_all(format!("{said}\n").as_bytes()).expect("the service is there");
    let answered = line(&mut BufReader::new(connection));
    assert_eq!(answered, format!("{pid} {said}"));
}

#[test]
fn connections_outlive_the_service_its_parent_and_the_daemons_server() {
    let daemon = Daemon::spawn();
    let address = listen(&daemon, "web");
    let mut service = echo(&daemon);
    let connections = [(); 3].map(|()| TcpStream::connect(address).unwrap());
    for round in 0..3 {
        for connection in &connections {
            answer(connection, service.pid, &format!("in round {round}"));
        }
        match round {
            // The service alone: its parent ends as it does.
            0 => {
                kill_process(Pid::from_raw(service.pid).unwrap(), Signal::KILL).unwrap();
                assert_eq!(service.group.wait().code(), Some(128 + 9));
            }
            // Its parent alone, which the service does not outlive for long.
            1 => {
                service.group.kill_first();
                wait_until(SOON, || service.group.alive() == 0);
            }
            _ => service.group.kill(),
        }
        daemon.kill_server();
        service = echo(&daemon);
    }
    drop(connections);

    wait_until(SOON, || listed(&mut daemon.client()) == ["echo/.run", "web"]);
    service.group.kill();
}

#[test]
fn a_barrier_waits_for_a_daemon_that_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("stash");
    let start = || {
        let mut daemon = Command::new(program("fdstashd"));
        daemon.arg("--socket").arg(&socket).stderr(Stdio::null());
        let daemon = Group::spawn(&mut daemon);
        wait_until(SOON, || fdstash::blocking::Client::connect_to(&socket).is_ok());
        daemon
    };
    let script = "
print('begun', flush=True); sys.stdin.readline()
store('a', os.memfd_create('a'))
daemon.notify('STATUS=passed on all the same')
print('sent', flush=True)
barrier(); print('there', flush=True)
";
    let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    let mut first = start();
    let mut service = Command::new(program("fdstash"));
    service.arg("--socket").arg(&socket).args(["run", "--store", "s", "--"]);
    service.arg(python().get_program()).args(["-c", &format!("{PRELUDE}{script}")]);
    service.env("NOTIFY_SOCKET", folder.path().join("notify"));
    service.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut service = Group::spawn(&mut service);
    let mut stdin = service.first().stdin.take().unwrap();
    let mut stdout = BufReader::new(service.first().stdout.take().unwrap());
    let mut stderr = BufReader::new(service.first().stderr.take().unwrap());
    assert_eq!(line(&mut stdout), "begun");

    first.kill();
    stdin.write_all(b"\n").unwrap();
    assert_eq!(line(&mut stdout), "sent");
    let complained = line(&mut stderr);
    let mut told = [0; 100];
    let mut tell = || {
        let length = manager.recv(&mut told).unwrap();
        String::from_utf8_lossy(&told[..length]).into_owned()
    };
    let passed_on = tell();
    let _second = start();
    // What the manager above is passed is closed when it has been received: so it has heard all, too.
    let barrier = tell();
    let last = line(&mut stdout);

    assert!(complained.contains("waiting for the daemon"), "{complained}");
    assert_eq!([passed_on, barrier], ["STATUS=passed on all the same", "BARRIER=1"]);
    assert_eq!(last, "there");
    let mut client = fdstash::blocking::Client::connect_to(&socket).unwrap();
    assert!(listed(&mut client).contains(&"s/a".to_owned()));
}

// Who may be heard, and what goes where.

#[test]
fn a_stranger_is_not_heard_and_who_has_given_up_rights_is() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let script = "
if os.fork() == 0:
    os.setgid(61002); os.setuid(61002)
    store('of a worker', os.memfd_create('w')); barrier()
    os._exit(0)
os.wait()
print(os.environ['NOTIFY_SOCKET'], flush=True); sys.stdin.readline()
";
    let mut service = service(&daemon, &["--store", "s"], script);
    let mut service = service
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(service.stdout.take().unwrap());
    let place = line(&mut stdout);

    User::new(61_003).run(|| {
        let stranger = UnixDatagram::unbound().unwrap();
        stranger.connect(&place).unwrap();
        stranger.send(b"FDSTOREREMOVE=1\nFDNAME=of a worker").unwrap();
    });
    service.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = service.wait_with_output().unwrap();

    assert!(complaint(&output, 0).contains("a message of a stranger is not heard"));
    assert_eq!(listed(&mut daemon.client()), ["s/of a worker"]);
}

#[test]
fn signals_reach_the_service_and_its_heirs() {
    let daemon = Daemon::spawn();
    // As a program does that starts its own new version: the old one ends, and fdstash does not.
    let script = "
if os.fork():
    time.sleep(60)
else:
    old = os.getppid()
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))
    daemon.notify(f'MAINPID={os.getpid()}'); barrier()
    os.kill(old, signal.SIGKILL)
    while os.getppid() == old: time.sleep(0.01)
    print('heir', flush=True)
    time.sleep(60)
";
    let mut service = service(&daemon, &["--store", "s"], script);
    let mut service = Group::spawn(service.stdout(Stdio::piped()));
    let heir = line(&mut BufReader::new(service.first().stdout.take().unwrap()));

    kill_process(service.pid(), Signal::USR1).unwrap();

    assert_eq!((heir.as_str(), service.wait().code()), ("heir", Some(3)));
}

/// Under a real systemd, as the whole of a unit.
#[test]
fn a_unit_of_systemds_is_ready_and_has_its_store_without_systemds() {
    let Some(systemd) = Systemd::boot() else { return };
    let script = format!("{PRELUDE}{ECHO}");
    fs::write(systemd.path("/run/service.py"), script).unwrap();
    let unit = "[Service]\n\
        Type=notify\n\
        ExecStart=/usr/local/bin/fdstash run --take web --store echo -- \
            /usr/bin/python3 /run/service.py\n\
        WatchdogSec=60\n\
        Restart=always\n\
        RestartSec=0\n";
    fs::write(systemd.path("/run/systemd/system/echo.service"), unit).unwrap();
    systemd.works("systemd-sysusers && systemd-tmpfiles --create fdstash.conf");
    systemd.works("systemctl start fdstashd.socket fdstashd.service");
    let address = "unix:/run/echo.sock";
    systemd.works(&format!("/usr/local/bin/fdstash listen web {address}"));
    systemd.works("systemctl start echo.service");
    assert_eq!(systemd.property("echo.service", "StatusText"), "Serving.");
    let connection = std::os::unix::net::UnixStream::connect(systemd.path("/run/echo.sock"));
    let mut connection = BufReader::new(connection.unwrap());
    let mut said = |text: &str| {
        connection.get_mut().write_all(format!("{text}\n").as_bytes()).unwrap();
        line(&mut connection)
    };
    let first = said("one");

    systemd.works("systemctl kill --signal=KILL echo.service");
    wait_until(SOON, || systemd.property("echo.service", "NRestarts") == "1");
    let second = said("two");

    assert!(first.ends_with(" one") && second.ends_with(" two"), "{first} {second}");
    assert_ne!(first.split(' ').next(), second.split(' ').next());
    assert_eq!(systemd.property("echo.service", "NFileDescriptorStore"), "0");
}
