//! `fdstash listen`: sockets that the stash listens with.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixDatagram, UnixListener, UnixStream},
    },
    process::Output,
};

use kit::{Daemon, listed, name, null, only, skipped};

fn listen(daemon: &Daemon, args: &[&str]) -> Output {
    daemon
        .command()
        .arg("listen")
        .args(args)
        .current_dir(daemon.path(""))
        .output()
        .expect("it can be started")
}

/// What it writes.
#[track_caller]
fn listens(daemon: &Daemon, args: &[&str]) -> String {
    let output = listen(daemon, args);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complained.is_empty(), "{args:?}: {complained}");
    String::from_utf8(output.stdout).expect("it writes text").trim().to_owned()
}

/// What it complains.
#[track_caller]
fn refuses(daemon: &Daemon, args: &[&str], code: i32) -> String {
    let output = listen(daemon, args);
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {complained}");
    complained
}

#[test]
fn who_connects_while_no_program_runs_waits() {
    let daemon = Daemon::spawn();

    let address = listens(&daemon, &["web", "tcp:127.0.0.1:0"]);
    let mut waiting = TcpStream::connect(address.strip_prefix("tcp:").unwrap()).unwrap();
    let listener: TcpListener =
        std::os::fd::OwnedFd::from(only(daemon.client().copy(&[name("web")]).unwrap())).into();
    listener.accept().unwrap().0.write_all(b"at last").unwrap();

    let mut said = String::new();
    waiting.read_to_string(&mut said).unwrap();
    assert_eq!(said, "at last");
}

#[test]
fn a_port_is_of_both_families_unless_one_is_said() {
    let daemon = Daemon::spawn();
    if TcpListener::bind("[::1]:0").is_err() {
        return skipped("this machine has no IPv6");
    }
    let port = |written: String| written.rsplit(':').next().unwrap().parse::<u16>().unwrap();

    let both = port(listens(&daemon, &["both", "tcp:0"]));
    let six = port(listens(&daemon, &["six", "tcp6:0"]));
    let four = port(listens(&daemon, &["four", "tcp4:0"]));

    let reached = |host: &str, port| TcpStream::connect((host, port)).is_ok();
    assert!(reached("127.0.0.1", both) && reached("::1", both));
    assert!(!reached("127.0.0.1", six) && reached("::1", six));
    assert!(reached("127.0.0.1", four) && !reached("::1", four));
}

#[test]
fn datagrams_wait_too() {
    let daemon = Daemon::spawn();

    let address = listens(&daemon, &["dns", "udp:127.0.0.1:0"]);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.send_to(b"question", address.strip_prefix("udp:").unwrap()).unwrap();
    listens(&daemon, &["log", "unix-dgram:log.sock"]);
    UnixDatagram::unbound().unwrap().send_to(b"line", daemon.path("log.sock")).unwrap();

    for (entry, sent) in [("dns", "question"), ("log", "line")] {
        let kept = only(daemon.client().copy(&[name(entry)]).unwrap());
        let mut said = vec![0; 100];
        let length = rustix::io::read(kept, &mut said).unwrap();
        assert_eq!(&said[..length], sent.as_bytes());
    }
}

#[test]
fn a_name_that_is_taken_is_refused_before_anything_is_bound() {
    let daemon = Daemon::spawn();
    daemon.client().give(&[kit::gift("web", null())]).unwrap();

    let refused = refuses(&daemon, &["web", "unix:web.sock"], 1);
    let other = refuses(&daemon, &["web", "unix:web.sock", "--if-missing"], 1);

    assert!(refused.contains("there is an entry \"web\" already"), "{refused}");
    assert!(other.contains("entry \"web\" is not a socket"), "{other}");
    assert!(!daemon.path("web.sock").exists());
}

#[test]
fn a_script_can_run_twice() {
    let daemon = Daemon::spawn();
    let unix = ["app", "unix:app.sock", "--if-missing"];
    let tcp = listens(&daemon, &["web", "tcp:127.0.0.1:0"]);

    listens(&daemon, &unix);
    listens(&daemon, &unix);
    listens(&daemon, &["web", &tcp, "--if-missing"]);
    listens(&daemon, &["web", "127.0.0.1:0", "--if-missing"]);
    let elsewhere = refuses(&daemon, &["web", "tcp:127.0.0.2:0", "--if-missing"], 1);
    let of_another_kind = refuses(&daemon, &["app", "unix-dgram:app.sock", "--if-missing"], 1);

    assert!(elsewhere.contains(&format!("listens at {tcp}, and not at tcp:127")), "{elsewhere}");
    assert!(of_another_kind.contains("fdstash close app"), "{of_another_kind}");
    UnixStream::connect(daemon.path("app.sock")).unwrap();
}

#[test]
fn where_somebody_listens_nothing_is_kept() {
    let daemon = Daemon::spawn();
    let there = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let taken = TcpListener::bind(there).unwrap();
    let _alive = UnixListener::bind(daemon.path("alive.sock")).unwrap();
    fs::write(daemon.path("file"), "content").unwrap();

    let refused = refuses(&daemon, &["web", &format!("tcp:{there}")], 1);
    refuses(&daemon, &["app", "unix:alive.sock"], 1);
    refuses(&daemon, &["app", "unix:file"], 1);
    drop(taken);

    assert!(refused.contains(&format!("could not listen at tcp:{there}")), "{refused}");
    assert!(UnixStream::connect(daemon.path("alive.sock")).is_ok());
    assert_eq!(fs::read_to_string(daemon.path("file")).unwrap(), "content");
    assert_eq!(listed(&mut daemon.client()), [""; 0]);
}

#[test]
fn the_file_of_a_socket_that_nobody_has_is_made_anew_with_its_mode() {
    let daemon = Daemon::spawn();
    drop(UnixListener::bind(daemon.path("app.sock")).unwrap());

    listens(&daemon, &["app", "unix:app.sock", "--mode", "660"]);

    let mode = fs::metadata(daemon.path("app.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    UnixStream::connect(daemon.path("app.sock")).unwrap();
}

#[test]
fn what_makes_no_sense_is_told_without_a_daemon() {
    let daemon = Daemon::spawn();

    let host = refuses(&daemon, &["web", "tcp:localhost:80"], 2);
    let mode = refuses(&daemon, &["web", "tcp:127.0.0.1:0", "--mode", "660"], 2);

    assert!(host.contains("an address in numbers"), "{host}");
    assert!(mode.contains("--mode is for the file of a Unix socket"), "{mode}");
}
