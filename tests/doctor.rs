//! `fdstash doctor`: that it finds what is wrong with installations that are broken, and nothing wrong with
//! one that is not. The units are those of a real systemd.

use std::{
    fs::{self, File, Permissions},
    net::Shutdown,
    os::unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use fdstash::Gift;
use kit::{
    Daemon, SOON, Systemd, can_be_others, file, gift, install_program, is_root, null, nulls,
    program, wait_until,
};
use rustix::{
    fs::{OFlags, fcntl_setfl},
    path::DecInt,
};
use serde_json::Value;
use tempfile::TempDir;

const ALICE: u32 = 61001;

#[test]
fn nothing_is_wrong_where_nothing_is() {
    let daemon = Daemon::spawn();
    daemon.client().give(&[gift("a", null())]).unwrap();

    let output = daemon.command().arg("doctor").output().unwrap();

    let said = text(&output.stdout);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{said}");
    assert!(said.ends_with("with 1 entry\nnothing is wrong\n"), "{said}");
    assert!(!said.contains('\u{1b}'), "colours are for terminals");
}

#[test]
fn where_there_is_no_daemon_is_said_why() {
    let folder = folder();
    let place = |below: &str| folder.path().join(below);
    drop(UnixListener::bind(place("left")).unwrap());
    fs::write(place("file"), "").unwrap();

    let left = finding(&place("left"));
    let file = finding(&place("file"));
    let missing = finding(&place("missing"));
    let far = finding(&place("no/folder"));

    assert!(what(&left).starts_with("nobody listens at "), "{left}");
    assert_eq!(left["do"], format!("fdstashd --socket {} &", place("left").display()));
    assert!(what(&file).ends_with("/file is no socket"), "{file}");
    assert!(what(&missing).contains("there is no daemon at "), "{missing}");
    assert!(what(&far).ends_with(&format!("no {} either", place("no").display())), "{far}");
}

#[test]
fn who_is_kept_out_is_told_by_what() {
    if !can_be_others() {
        return;
    }
    let daemon = Daemon::spawn();
    let deep = folder();
    fs::set_permissions(deep.path(), Permissions::from_mode(0o700)).unwrap();
    let _listener = UnixListener::bind(deep.path().join("socket")).unwrap();
    fs::set_permissions(daemon.socket(), Permissions::from_mode(0o600)).unwrap();

    let by_mode = only(&as_alice(daemon.socket()));
    let by_folder = only(&as_alice(&deep.path().join("socket")));

    let socket = daemon.socket().display();
    assert!(
        what(&by_mode).starts_with(&format!("{socket} lets uid {ALICE} not connect")),
        "{by_mode}"
    );
    assert!(what(&by_mode).ends_with("mode 0600"), "{by_mode}");
    let deep = deep.path().display();
    assert!(
        what(&by_folder).starts_with(&format!("{deep} lets uid {ALICE} not pass")),
        "{by_folder}"
    );
}

#[test]
fn what_does_not_answer_or_speaks_otherwise_is_found() {
    let folder = folder();
    let place = folder.path().join("socket");
    let listener = UnixListener::bind(&place).unwrap();
    let others = thread::spawn(move || {
        // One that says nothing, and one that ends the connection.
        let silent = listener.accept().unwrap();
        let (ended, _) = listener.accept().unwrap();
        ended.shutdown(Shutdown::Both).unwrap();
        drop(silent);
    });

    let silent = finding(&place);
    let ended = finding(&place);

    assert!(what(&silent).starts_with("nobody has answered at "), "{silent}");
    assert!(what(&ended).contains(" has ended without an answer"), "{ended}");
    others.join().unwrap();
}

#[test]
fn an_odd_variable_is_told() {
    let folder = folder();
    let relative = doctor().env("FDSTASH_SOCKET", "some/where").output().unwrap();
    let nowhere = doctor().env("FDSTASH_SOCKET", folder.path().join("none")).output().unwrap();

    assert!(what(&findings(&relative)[0]).contains("FDSTASH_SOCKET is some/where"), "{relative:?}");
    assert!(what(&findings(&nowhere)[0]).ends_with("and nothing is there"), "{nowhere:?}");
    assert_eq!(findings(&nowhere)[0]["do"], "unset FDSTASH_SOCKET");
}

#[test]
fn few_files_and_a_full_stash_are_told() {
    let daemon = Daemon::builder().open_files(300).arg("--max-entries").arg("10").spawn();
    for (number, fd) in nulls(9).iter().enumerate() {
        daemon.client().give(&[gift(&format!("n{number}"), fd)]).unwrap();
    }

    let whats = whats(&finds(&daemon, 1));

    assert!(has(&whats, "no more than 300 files open"), "{whats:?}");
    assert!(has(&whats, "nearly full: 9 entries of at most 10"), "{whats:?}");
}

#[test]
fn a_program_that_was_replaced_is_told_until_the_daemon_runs_it() {
    if !is_root() {
        return kit::skipped("to see the program of one that is not dumpable takes root");
    }
    let daemon = Daemon::builder().own_program().spawn();
    let before = whats(&finds(&daemon, 0));

    fs::remove_file(daemon.program()).unwrap();
    install_program(&program("fdstashd"), &daemon.program());
    let replaced = whats(&finds(&daemon, 1));
    daemon.upgrade();
    let after = whats(&finds(&daemon, 0));

    assert!(before.is_empty(), "{before:?}");
    assert!(has(&replaced, "was replaced, and the daemon is still the old one"), "{replaced:?}");
    assert!(has(&after, "has come back 1 times"), "{after:?}");
}

#[test]
fn what_is_to_be_typed_has_nothing_carried_out_that_stands_in_a_name() {
    let daemon = Daemon::spawn();
    let gone = file(daemon.path("gone"), "");
    daemon.client().give(&[gift("a; touch ran", &gone)]).unwrap();
    fs::remove_file(daemon.path("gone")).unwrap();

    let found = finds(&daemon, 0);

    let advice: Vec<_> = found.iter().map(|finding| finding["do"].as_str().unwrap()).collect();
    assert!(advice.iter().any(|it| it.starts_with("fdstash show 'a; touch ran';")), "{advice:?}");
}

#[test]
fn entries_that_are_not_what_they_were_are_told() {
    let daemon = Daemon::spawn();
    let kept = ["drifted", "gone", "replaced"].map(|text| (text, file(daemon.path(text), "")));
    let mut client = daemon.client();
    for (text, fd) in &kept {
        client.give(&[gift(text, fd)]).unwrap();
    }
    client.give(&[Gift { expire_usec: Some(60_000_000), ..gift("short", null()) }]).unwrap();
    fcntl_setfl(&kept[0].1, OFlags::APPEND).unwrap();
    fs::remove_file(daemon.path("gone")).unwrap();
    drop(file(daemon.path("new"), ""));
    fs::rename(daemon.path("new"), daemon.path("replaced")).unwrap();

    let found = whats(&finds(&daemon, 1));

    assert!(has(&found, "somebody has changed the flags of \"drifted\""), "{found:?}");
    assert!(has(&found, "nothing stands any more where \"gone\" was opened"), "{found:?}");
    assert!(has(&found, "another file stands where \"replaced\" was opened"), "{found:?}");
    assert!(has(&found, "within the hour \"short\" expires"), "{found:?}");
}

#[test]
fn what_is_wrong_with_the_units_is_found_in_a_real_systemd() {
    let Some(systemd) = Systemd::boot() else { return };
    let unstarted = of_box(&systemd);
    // As it is before systemd-sysusers has run.
    systemd.works("systemctl enable --now fdstashd.socket");
    systemd.works("systemctl start --no-block fdstashd.service");
    wait_until(SOON, || systemd.property("fdstashd.service", "SubState") == "auto-restart");
    let without_user = of_box(&systemd);
    systemd.works("systemd-sysusers && systemctl restart fdstashd.service");
    let well = of_box(&systemd);
    systemd.works("systemctl disable fdstashd.socket");
    let disabled = of_box(&systemd);
    systemd.works("systemctl enable fdstashd.socket");

    set(&systemd, "FileDescriptorStoreMax=0\\nLimitNOFILE=2048");
    let forgetful = of_box(&systemd);
    set(&systemd, "ExecStart=\\nExecStart=/bin/false");
    wait_until(SOON, || systemd.property("fdstashd.service", "SubState") == "auto-restart");
    let failing = of_box(&systemd);
    systemd.works("rm -r /run/systemd/system/fdstashd.service.d");
    let changed = of_box(&systemd);
    systemd.works("systemctl daemon-reload && systemctl stop fdstashd.service fdstashd.socket");
    systemd.works("mkdir -p /etc/fdstash && echo nonsense >/etc/fdstash/policy.toml");
    let stopped = of_box(&systemd);
    systemd.works("systemctl disable fdstashd.socket && systemctl mask --runtime fdstashd.socket");
    let masked = of_box(&systemd);

    assert!(has(&unstarted, "there is no daemon at /run/fdstash"), "{unstarted:?}");
    assert!(has(&unstarted, "fdstashd.socket is inactive"), "{unstarted:?}");
    assert!(has(&unstarted, "fdstashd.socket is not enabled"), "{unstarted:?}");
    assert!(has(&without_user, "does not start: exit-code, status 217"), "{without_user:?}");
    assert!(well.is_empty(), "{well:?}");
    assert_eq!(disabled, ["fdstashd.socket is not enabled"]);
    assert!(has(&forgetful, "FileDescriptorStoreMax=0"), "{forgetful:?}");
    assert!(has(&forgetful, "no more than 2048 files open"), "{forgetful:?}");
    assert!(has(&failing, "nobody has answered at "), "{failing:?}");
    assert!(has(&failing, "fdstashd.service does not start: exit-code"), "{failing:?}");
    assert!(has(&changed, "has changed on disk since systemd read it"), "{changed:?}");
    assert!(has(&stopped, "fdstashd.socket is inactive"), "{stopped:?}");
    assert!(has(&stopped, "the policy does not load"), "{stopped:?}");
    assert!(has(&masked, "fdstashd.socket is masked"), "{masked:?}");
}

/// Settings of the service beside its own, in force from its next start on, which is now.
fn set(systemd: &Systemd, lines: &str) {
    let folder = "/run/systemd/system/fdstashd.service.d";
    systemd.works(&format!(
        "mkdir -p {folder} && printf '[Service]\\n{lines}\\n' >{folder}/test.conf && \
         systemctl daemon-reload && systemctl stop fdstashd.service && \
         {{ systemctl start --no-block fdstashd.service; }}"
    ));
}

/// What it says of the box.
fn of_box(systemd: &Systemd) -> Vec<String> {
    whats(&findings(&systemd.run("fdstash doctor --json")))
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder can be made");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("it is ours");
    folder
}

fn doctor() -> Command {
    let mut command = Command::new(program("fdstash"));
    command.args(["doctor", "--json"]).env_remove("FDSTASH_SOCKET").stdin(Stdio::null());
    command
}

/// What it finds with a daemon, and that it ends with this code.
#[track_caller]
fn finds(daemon: &Daemon, code: i32) -> Vec<Value> {
    let output = doctor().env("FDSTASH_SOCKET", daemon.socket()).output().expect("it can be run");
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    findings(&output)
}

/// The one thing that is wrong with a socket where no daemon is.
#[track_caller]
fn finding(socket: &Path) -> Value {
    only(&doctor().arg("--socket").arg(socket).output().expect("it can be run"))
}

#[track_caller]
fn only(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let [finding]: [Value; 1] =
        findings(output).try_into().unwrap_or_else(|all| panic!("not one: {all:?}"));
    assert_eq!(finding["severity"], "wrong");
    finding
}

#[track_caller]
fn findings(output: &Output) -> Vec<Value> {
    assert_eq!(text(&output.stderr), "");
    let lines = text(&output.stdout);
    let findings: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for finding in &findings {
        for field in ["what", "why", "do"] {
            assert_ne!(finding[field].as_str().expect("words"), "", "{finding}");
        }
    }
    findings
}

fn as_alice(socket: &Path) -> Output {
    // By its descriptor: another user may not be able to reach its path.
    let binary = File::open(program("fdstash")).expect("the command is built");
    let mut command = Command::new(format!("/proc/self/fd/{}", DecInt::from_fd(&binary).as_str()));
    command.args(["doctor", "--json", "--socket"]).arg(socket).env_remove("FDSTASH_SOCKET");
    command.uid(ALICE).gid(ALICE).output().expect("it can be run")
}

fn whats(findings: &[Value]) -> Vec<String> {
    findings.iter().map(|finding| what(finding).to_owned()).collect()
}

fn what(finding: &Value) -> &str {
    finding["what"].as_str().expect("words")
}

fn has(whats: &[String], words: &str) -> bool {
    whats.iter().any(|what| what.contains(words))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it writes text")
}
