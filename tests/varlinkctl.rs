//! systemd's varlinkctl, which passes descriptors both ways from version 258 on: all that a person can do
//! with it.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    process::{Command, Output, Stdio},
};

use fdstash::Flags;
use kit::{Daemon, below, file, listed, null, pattern, skipped, varlinkctl};
use serde_json::{Value, json};

const STASH: &str = "org.fdstash.Stash";

/// Runs a line of shell in which `varlinkctl` is the program, and `$stash` the daemon's socket.
fn shell(daemon: &Daemon, line: &str) -> Option<Output> {
    let Some(program) = varlinkctl() else {
        skipped("there is no varlinkctl 258 or later (tests/varlinkctl gets one)");
        return None;
    };
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("varlinkctl() {{ \"$program\" \"$@\"; }}; {line}")]);
    command.env("program", program).env("stash", daemon.socket()).env("dir", daemon.path(""));
    Some(command.stdin(Stdio::null()).output().expect("a shell can be started"))
}

/// What a line writes that works; nothing where there is no varlinkctl.
#[track_caller]
fn works(daemon: &Daemon, line: &str) -> Option<String> {
    let Output { status, stdout, stderr } = shell(daemon, line)?;
    assert!(status.success(), "{line}: {}", String::from_utf8_lossy(&stderr));
    Some(String::from_utf8(stdout).expect("it writes text"))
}

#[test]
fn it_shows_what_the_daemon_is_and_its_interface_as_it_is_written() {
    let daemon = Daemon::spawn();

    let Some(info) = works(&daemon, "varlinkctl info $stash") else { return };
    let interface = works(&daemon, &format!("varlinkctl introspect $stash {STASH}")).unwrap();
    let file = below("proto/org.fdstash.Stash.varlink");
    let valid = works(&daemon, &format!("varlinkctl validate-idl {}", file.display())).unwrap();
    let figures = works(&daemon, &format!("varlinkctl call -j $stash {STASH}.GetStatistics"));

    assert!(info.contains("fdstashd") && info.contains(STASH), "{info}");
    assert_eq!(definitions(&interface), definitions(&fs::read_to_string(file).unwrap()));
    assert!(definitions(&interface).len() > 30);
    assert!(!valid.is_empty());
    let figures: Value = serde_json::from_str(&figures.unwrap()).unwrap();
    assert_eq!(figures["entries"], 0);
}

/// What an interface says, a definition each, without regard to their order and how lines are broken.
fn definitions(interface: &str) -> BTreeSet<String> {
    let mut definitions = Vec::<String>::new();
    for line in interface.lines().filter(|line| !line.trim_start().starts_with('#')) {
        if line.starts_with(|character: char| character.is_alphabetic()) {
            definitions.push(String::new());
        }
        let Some(last) = definitions.last_mut() else { continue };
        last.extend(line.chars().filter(|character| !character.is_whitespace()));
    }
    definitions.into_iter().collect()
}

#[test]
fn it_gives_and_takes_descriptors() {
    let daemon = Daemon::spawn();
    file(daemon.path("image"), "content\n");
    let give = r#"{"entries":[{"name":"disk","fileDescriptor":0,"labels":{"by":"hand"}}]}"#;
    let give =
        format!("varlinkctl call --push-fd=5 $stash {STASH}.Give '{give}' 5<>\"$dir/image\"");
    let taking = |parameters: &str, command: &str| {
        format!("varlinkctl -q --exec call $stash {STASH}.Take '{parameters}' -- {command}")
    };

    if works(&daemon, &give).is_none() {
        return;
    }
    let entry = daemon.client().list(&pattern("*")).unwrap().remove(0);
    assert_eq!(entry.labels["by"], "hand");
    // What is handed out is there from 3 on, as at a start by a socket.
    let copied = works(&daemon, &taking(r#"{"names":["disk"],"copy":true}"#, "sh -c 'cat <&3'"));
    assert_eq!(copied.unwrap(), "content\n");
    assert_eq!(listed(&mut daemon.client()), ["disk"]);
    let taken = taking(r#"{"names":["disk"]}"#, "sh -c 'readlink /proc/self/fd/3'");
    let target = works(&daemon, &taken).unwrap();

    assert_eq!(target.trim(), daemon.path("image").to_str().unwrap());
    assert_eq!(listed(&mut daemon.client()), [""; 0]);
}

#[test]
fn it_reopens() {
    let daemon = Daemon::spawn();
    let image = file(daemon.path("image"), "content\n");
    daemon.client().give(&[kit::gift("disk", image)]).unwrap();
    let reopen = r#"{"entries":[{"name":"disk","sync":true}]}"#;
    let line =
        format!("varlinkctl -q --exec call $stash {STASH}.Reopen '{reopen}' -- sh -c 'cat <&3'");

    let Some(content) = works(&daemon, &line) else { return };

    assert_eq!(content, "content\n");
    let entry = daemon.client().list(&pattern("*")).unwrap().remove(0);
    assert_eq!(entry.flags, Flags::SYNC);
}

#[test]
fn it_is_told_every_part_and_every_change() {
    let daemon = Daemon::spawn();
    let Some(program) = varlinkctl() else {
        return skipped("there is no varlinkctl 258 or later (tests/varlinkctl gets one)");
    };
    let mut watch = Command::new(program);
    watch.args(["call", "--more", "--json=short"]).arg(daemon.socket());
    watch.args([&format!("{STASH}.Watch"), r#"{"pattern":"w*"}"#]).stdout(Stdio::piped());
    let mut watch = watch.spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut next = || part(&lines.next().unwrap());
    assert_eq!(next(), json!({}));

    let many: Vec<_> = (0..2000).map(|at| kit::gift(&format!("n{at:04}"), null())).collect();
    daemon.client().give(&many).unwrap();
    daemon.client().give(&[kit::gift("w", null())]).unwrap();
    let all = works(&daemon, &format!("varlinkctl call --more $stash {STASH}.List '{{}}'"));

    assert_eq!(next()["change"], "given");
    watch.kill().unwrap();
    watch.wait().unwrap();
    let parts = all.unwrap();
    let counts: Vec<_> =
        parts.lines().map(|line| part(line)["entries"].as_array().map_or(0, Vec::len)).collect();
    assert!(counts.len() > 1, "in one part");
    assert_eq!(counts.iter().sum::<usize>(), 2001);
}

/// One of several replies: each is written behind a separator, as RFC 7464 has it.
fn part(line: &str) -> Value {
    let text = line.trim_start_matches('\u{1e}');
    serde_json::from_str(text).unwrap_or_else(|why| panic!("{line:?}: {why}"))
}

#[test]
fn a_refusal_names_the_error_and_the_thing() {
    let daemon = Daemon::spawn();
    let close = r#"{"names":["none"]}"#;
    let line = format!("varlinkctl call $stash {STASH}.Close '{close}' 2>&1");

    let Some(Output { status, stdout, .. }) = shell(&daemon, &line) else { return };

    let told = String::from_utf8(stdout).unwrap();
    assert!(!status.success());
    assert!(told.contains("org.fdstash.Stash.NotFound") && told.contains("\"none\""), "{told}");
    let graceful = "--graceful=org.fdstash.Stash.NotFound";
    works(&daemon, &format!("varlinkctl call {graceful} $stash {STASH}.Close '{close}'"));
}

#[test]
fn it_finds_the_daemon_where_the_unit_puts_it_in_the_registry() {
    let daemon = Daemon::spawn();
    let unit = fs::read_to_string(below("systemd/user/fdstashd.socket")).unwrap();
    let link = unit.lines().find_map(|line| line.strip_prefix("Symlinks=%t/")).unwrap();
    let link = daemon.path(link);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(daemon.socket(), &link).unwrap();

    let line = "XDG_RUNTIME_DIR=$dir varlinkctl --user -j list-registry";
    let Some(registry) = works(&daemon, line) else { return };

    let registry: Value = serde_json::from_str(&registry).unwrap();
    assert_eq!(registry[0]["interface"], STASH);
    let entrypoint = format!("unix:{}", daemon.socket().display());
    assert_eq!(registry[0]["entrypoint"], json!(entrypoint));
}
