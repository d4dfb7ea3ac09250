//! How the daemon begins and ends: its place, its socket, what it is given at the start.

use std::{
    fs::{self, File, Permissions},
    io::Read,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt, chown},
        net::UnixListener,
        process::CommandExt,
    },
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use fdstash::blocking::Client;
use kit::{
    Daemon, Group, SOON, User, gift, install_program, install_script, is_root, names, null, only,
    pattern, program, skipped, wait_until,
};
use rustix::{
    fs::{XattrFlags, getxattr, setxattr},
    path::DecInt,
    process::{Pid, Signal, kill_process},
};
use serde_json::json;

/// What a daemon says that does not start.
fn start_at(socket: &Path) -> Output {
    let mut daemon = Command::new(program("fdstashd"));
    daemon.arg("--socket").arg(socket).output().expect("the daemon can be started")
}

#[track_caller]
fn assert_fails(output: &Output, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(why), "{said}");
}

#[test]
fn a_second_daemon_at_the_same_place_refuses_and_the_first_serves_on() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    client.give(&[gift("a", null())]).unwrap();

    let second = start_at(daemon.socket());

    assert_fails(&second, "another fdstashd serves");
    only(client.take(&names(["a"])).unwrap());
    daemon.client().list(&pattern("*")).unwrap();
}

#[test]
fn somebody_elses_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stash");
    let listener = UnixListener::bind(&path).unwrap();

    assert_fails(&start_at(&path), "somebody serves");

    listener.accept().unwrap();
}

#[test]
fn the_socket_of_a_daemon_that_was_killed_is_replaced() {
    let mut daemon = Daemon::spawn();
    daemon.kill();
    assert!(daemon.socket().exists());
    let mut next = Command::new(program("fdstashd"));
    let next = Group::spawn(next.arg("--socket").arg(daemon.socket()));

    wait_until(SOON, || Client::connect_to(daemon.socket()).is_ok());

    daemon.client().give(&[gift("a", null())]).unwrap();
    drop(next);
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stash");
    fs::write(&path, "precious").unwrap();

    assert_fails(&start_at(&path), "is there already and no socket");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_fails(&start_at(&link), "is there already and no socket");
    assert_fails(&start_at(Path::new("/nonexistent/folder/stash")), "/nonexistent/folder");
}

#[test]
fn the_folder_of_the_socket_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fdstash/stash");
    let mut daemon = Command::new(program("fdstashd"));
    let daemon = Group::spawn(daemon.arg("--socket").arg(&path));

    wait_until(SOON, || Client::connect_to(&path).is_ok());

    let mode = path.parent().unwrap().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    drop(daemon);
}

#[test]
fn everybody_may_connect() {
    let daemon = Daemon::spawn();

    let socket = fs::symlink_metadata(daemon.socket()).unwrap();

    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o666);
}

#[test]
fn its_socket_says_that_it_is_of_a_varlink_service_where_the_kernel_lets_it() {
    let daemon = Daemon::spawn();
    let other = daemon.path("other");
    let _listener = UnixListener::bind(&other).unwrap();
    if let Err(error) = setxattr(&other, "user.varlink", b"entrypoint", XattrFlags::empty()) {
        return skipped(&format!("sockets have no attributes here: {error}"));
    }

    let mut role = [0; 32];
    let length = getxattr(daemon.socket(), "user.varlink", &mut role).unwrap();

    assert_eq!(&role[..length], b"entrypoint");
}

#[test]
fn systemd_sees_that_a_reload_would_not_end_it() {
    let daemon = Daemon::spawn();

    // As systemd 262 looks, before it lets a service start that it reloads by SIGHUP.
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().as_raw_pid())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    let caught = u64::from_str_radix(caught.trim(), 16).unwrap();

    assert_eq!(caught & 1, 1, "it catches {caught:x}");
}

#[test]
fn asked_to_end_it_ends_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::spawn();
        let mut client = daemon.client();
        client.give(&[gift("a", null())]).unwrap();
        let mut watcher = daemon.raw();
        watcher.say(&kit::messages(&[json!({"method": "org.fdstash.Stash.Watch", "more": true})]));
        watcher.reply();
        let began = Instant::now();

        daemon.signal(signal);
        let status = daemon.terminate();

        assert_eq!(status.code(), Some(0), "{}", daemon.log());
        assert!(!daemon.socket().exists());
        assert!(!daemon.socket().with_extension("lock").exists(), "nothing stays behind");
        assert!(watcher.is_hung_up_on());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(daemon.log().contains("ending on SIG"));
    }
}

#[test]
fn the_limit_on_open_files_is_raised_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stash");
    let mut shell = Command::new("/bin/sh");
    let soft = "ulimit -S -n 64; exec \"$0\" --socket \"$1\"";
    let daemon = Group::spawn(shell.arg("-c").arg(soft).arg(program("fdstashd")).arg(&path));
    wait_until(SOON, || Client::connect_to(&path).is_ok());

    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();

    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut words = line.split_whitespace().skip(3);
    assert_eq!(words.next(), words.next(), "{line}");
    let room = Client::connect_to(&path).unwrap().statistics().unwrap().max_entries;
    assert!(room > 64);
}

#[test]
fn a_socket_that_the_shell_passes_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stash");
    let listener = UnixListener::bind(&path).unwrap();
    let passing = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" --log debug";
    let passes = |fd: std::os::fd::OwnedFd| {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", passing]).arg(program("fdstashd")).stdin(fd).stderr(Stdio::piped());
        shell
    };

    // What is passed is no socket at all.
    assert_fails(&passes(null().into()).output().unwrap(), "is no listening Unix stream socket");
    let mut daemon = Group::spawn(&mut passes(listener.into()));

    let mut client = Client::connect_to(&path).unwrap();
    client.give(&[gift("a", null())]).unwrap();
    only(client.take(&names(["a"])).unwrap());
    kill_process(daemon.pid(), Signal::TERM).unwrap();
    assert!(daemon.wait().success());
    assert!(path.exists(), "whoever made the socket removes it");
}

#[test]
fn a_socket_that_was_passed_to_another_process_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stash");
    let passed = folder.path().join("passed");
    let listener = UnixListener::bind(passed).unwrap();
    let mut shell = Command::new("/bin/sh");
    let passing = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=1 exec \"$0\" --socket \"$1\"";
    shell.arg("-c").arg(passing).arg(program("fdstashd")).arg(&path);
    let daemon = Group::spawn(shell.stdin(std::os::fd::OwnedFd::from(listener)));

    wait_until(SOON, || Client::connect_to(&path).is_ok());

    drop(daemon);
}

#[test]
fn systemds_own_tool_passes_it_a_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stash");
    let mut activate = Command::new("systemd-socket-activate");
    activate.arg("--listen").arg(&path).arg(program("fdstashd"));
    let activate = Group::spawn(activate.stderr(Stdio::null()));
    wait_until(SOON, || path.exists());

    // The first connection starts it.
    wait_until(SOON, || Client::connect_to(&path).is_ok_and(|mut it| it.statistics().is_ok()));

    let mut client = Client::connect_to(&path).unwrap();
    client.give(&[gift("a", null())]).unwrap();
    drop(activate);
}

#[test]
fn it_says_how_it_is_called_and_which_one_it_is() {
    let run = |arg: &str| Command::new(program("fdstashd")).arg(arg).output().unwrap();

    let help = run("--help");
    let version = run("--version");
    let wrong = run("--unknown");

    assert!(help.status.success() && version.status.success());
    let said = String::from_utf8_lossy(&help.stdout);
    for word in ["--socket", "--max-entries", "--max-connections", "--log", "Examples:", "SIGHUP"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("fdstashd 0."));
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn a_users_own_daemon_has_its_place_in_the_users_runtime_folder() {
    if !is_root() {
        return skipped("to be another user takes root");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let runtime = folder.path().join("runtime");
    fs::create_dir(&runtime).unwrap();
    chown(&runtime, Some(61001), Some(61001)).unwrap();
    // By its descriptor: another user may not be able to reach its path.
    let binary = File::open(program("fdstashd")).unwrap();
    let by_user = || {
        let mut daemon =
            Command::new(format!("/proc/self/fd/{}", DecInt::from_fd(&binary).as_str()));
        daemon.uid(61001).gid(61001).env_remove("XDG_RUNTIME_DIR").stderr(Stdio::piped());
        daemon
    };

    let nowhere = by_user().output().unwrap();
    let daemon = Group::spawn(by_user().env("XDG_RUNTIME_DIR", &runtime));
    let place = runtime.join("fdstash/org.fdstash.Stash");
    wait_until(SOON, || Client::connect_to(&place).is_ok());

    assert_fails(&nowhere, "XDG_RUNTIME_DIR is not set");
    let mut of_user = User::new(61001).run(|| Client::connect_to(&place)).unwrap();
    of_user.give(&[gift("a", null())]).unwrap();
    drop(daemon);
}

#[test]
fn a_daemon_whose_log_nobody_reads_any_more_lives_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stash");
    let mut daemon = Command::new(program("fdstashd"));
    daemon.arg("--socket").arg(&path).args(["--log", "debug"]).stderr(Stdio::piped());
    let mut daemon = Group::spawn(&mut daemon);
    let mut stderr = daemon.first().stderr.take().unwrap();
    wait_until(SOON, || Client::connect_to(&path).is_ok());
    let _ = stderr.read(&mut [0; 64]).unwrap();

    drop(stderr);

    for _ in 0..3 {
        let mut client = Client::connect_to(&path).unwrap();
        client.give(&[gift("a", null())]).unwrap();
        let _ = client.take(&names(["none"]));
        only(client.take(&names(["a"])).unwrap());
    }
    assert!(daemon.first().try_wait().unwrap().is_none());
}

/// A daemon of its own path, started by a line of shell that execs `"$0" --socket "$1"`.
fn started_by(line: &str, folder: &Path) -> Group {
    let copy = folder.join("fdstashd");
    install_program(&program("fdstashd"), &copy);
    let log = File::create(folder.join("log")).expect("a log can be made");
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", line]).arg(copy).arg(folder.join("stash")).stderr(log);
    let daemon = Group::spawn(&mut shell);
    wait_until(SOON, || said(folder).contains("server ready"));
    daemon
}

fn said(folder: &Path) -> String {
    fs::read_to_string(folder.join("log")).unwrap_or_default()
}

/// The process that has said last that it serves.
fn server(folder: &Path) -> Pid {
    let said = said(folder);
    let number = said.rsplit("server ready pid=").next().and_then(|rest| rest.split(' ').next());
    number.and_then(|number| Pid::from_raw(number.parse().ok()?)).expect("a server is ready")
}

const START: &str = "exec \"$0\" --log debug --socket \"$1\"";

#[test]
fn a_parent_that_ignores_its_childrens_end_hides_no_servers_death() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = started_by(&START.replace("exec", "exec env --ignore-signal=CHLD"), folder.path());
    let began = Instant::now();

    kill_process(server(folder.path()), Signal::KILL).unwrap();
    wait_until(SOON, || said(folder.path()).matches("server ready").count() == 2);

    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(daemon);
}

#[test]
fn a_limit_on_the_size_of_files_is_a_refusal_and_ends_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = started_by(&format!("ulimit -f 256; {START}"), folder.path());
    let mut client = Client::connect_to(folder.path().join("stash")).unwrap();

    let name = |number| format!("{number:0>250}");
    let refused = (0..2000).find_map(|number| client.give(&[gift(&name(number), null())]).err());

    assert!(refused.unwrap().to_string().contains("no memory to write it down"));
    assert!(!said(folder.path()).contains("was killed"), "{}", said(folder.path()));
    assert!(!client.list(&pattern("*")).unwrap().is_empty());
    drop(daemon);
}

#[test]
fn after_an_upgrade_that_ended_the_keeper_there_is_another() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = started_by(START, folder.path());
    let mut client = Client::connect_to(folder.path().join("stash")).unwrap();
    client.give(&[gift("a", null())]).unwrap();
    let bad = "#!/bin/sh\n[ -n \"$FDSTASH_REHEARSAL\" ] && exit 93; exit 1\n";
    install_script(bad, &folder.path().join("fdstashd"));

    kill_process(daemon.pid(), Signal::HUP).unwrap();
    wait_until(SOON, || said(folder.path()).contains("made another"));
    kill_process(server(folder.path()), Signal::KILL).unwrap();
    wait_until(SOON, || said(folder.path()).matches("server ready").count() == 2);

    only(client.take(&names(["a"])).unwrap());
}
