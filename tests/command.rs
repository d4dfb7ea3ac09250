//! The command `fdstash`, used as in a shell.

use std::{
    fs::{self, File, Permissions},
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    process::{Child, Command, Output, Stdio},
};

use kit::{
    Daemon, SOON, file, gift, install_script, is_root, names, only, pattern, program, skipped,
    wait_until,
};
use rustix::{
    path::DecInt,
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;

/// Runs a line of shell, in which `fdstash` is the command and `$dir` the daemon's folder.
fn shell(daemon: &Daemon, line: &str) -> Output {
    let folder = program("fdstash").parent().expect("a program is in a folder").to_owned();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    Command::new("/bin/sh")
        .args(["-c", line])
        .env("PATH", path)
        .env("FDSTASH_SOCKET", daemon.socket())
        .env("dir", daemon.path(""))
        .stdin(Stdio::null())
        .output()
        .expect("a shell can be started")
}

/// What a line writes that works.
#[track_caller]
fn works(daemon: &Daemon, line: &str) -> String {
    let output = shell(daemon, line);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{line}: {complained}");
    assert_eq!(complained, "", "{line}");
    String::from_utf8(output.stdout).expect("it writes text")
}

/// What a line complains that fails.
#[track_caller]
fn fails(daemon: &Daemon, line: &str, code: i32) -> String {
    let output = shell(daemon, line);
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{line}: {complained}");
    assert!(!complained.contains("panicked"), "{line}: {complained}");
    complained
}

fn kept(daemon: &Daemon) -> Vec<String> {
    let entries = daemon.client().list(&pattern("*")).expect("a list");
    entries.iter().map(|entry| entry.name.to_string()).collect()
}

#[test]
fn a_file_is_given_and_taken() {
    let daemon = Daemon::spawn();
    file(daemon.path("a"), "content\n");

    works(&daemon, "fdstash give a \"$dir/a\"");
    works(&daemon, "fdstash give b < \"$dir/a\"");
    works(&daemon, "exec 5<\"$dir/a\"; fdstash give c --fd 5");
    assert_eq!(kept(&daemon), ["a", "b", "c"]);

    assert_eq!(works(&daemon, "fdstash take a -- cat"), "content\n");
    assert_eq!(
        works(&daemon, "fdstash take b c --fd 7 -- sh -c 'cat <&7; cat <&8'"),
        "content\ncontent\n"
    );
    assert_eq!(kept(&daemon), [""; 0]);
}

#[test]
fn a_copy_stays_and_a_fresh_one_begins_at_the_beginning() {
    let daemon = Daemon::spawn();
    file(daemon.path("a"), "content");
    works(&daemon, "fdstash give a \"$dir/a\"");

    assert_eq!(works(&daemon, "fdstash take a --copy -- cat"), "content");
    assert_eq!(works(&daemon, "fdstash take a --copy -- cat"), "", "it shares the offset");
    assert_eq!(works(&daemon, "fdstash take a --fresh -- cat"), "content");
    assert_eq!(kept(&daemon), ["a"]);
}

#[test]
fn the_command_gets_what_it_was_promised_and_no_other_descriptor() {
    let daemon = Daemon::spawn();
    file(daemon.path("a"), "a");
    works(&daemon, "fdstash give a \"$dir/a\"; fdstash give b \"$dir/a\"");

    let before = works(&daemon, "ls /proc/self/fd").lines().count();
    let seen = works(&daemon, "fdstash take a b -- ls /proc/self/fd").lines().count();

    // The one is its standard input, the other comes to those that there are.
    assert_eq!(seen, before + 1);
}

#[test]
fn what_is_taken_by_a_command_that_cannot_run_stays() {
    let daemon = Daemon::spawn();
    file(daemon.path("a"), "");
    works(&daemon, "fdstash give a \"$dir/a\"");

    let missing = fails(&daemon, "fdstash take a -- no-such-command", 127);
    fails(&daemon, "fdstash take a -- \"$dir/a\"", 126);
    fails(&daemon, "fdstash reopen a --sync on -- no-such-command", 127);

    assert!(missing.contains("no-such-command"), "{missing}");
    let entry = &daemon.client().list(&pattern("*")).unwrap()[0];
    assert_eq!(entry.flags.words().count(), 0);
}

#[test]
fn the_exit_code_is_the_commands_own() {
    let daemon = Daemon::spawn();
    file(daemon.path("a"), "");
    let give = "fdstash give a \"$dir/a\"; fdstash take a -- sh -c";

    fails(&daemon, &format!("{give} 'exit 42'"), 42);
    fails(&daemon, &format!("{give} 'kill -TERM $$'"), 128 + 15);
    assert_eq!(kept(&daemon), [""; 0], "it had them");
}

#[test]
fn an_exit_code_tells_who_is_to_blame() {
    let daemon = Daemon::spawn();

    let refused = fails(&daemon, "fdstash take none -- cat", 1);
    fails(&daemon, "fdstash close none", 1);
    fails(&daemon, "fdstash give a /no/such/file", 1);
    let bad_name = fails(&daemon, "fdstash give a:b < /dev/null", 2);
    fails(&daemon, "fdstash", 2);
    fails(&daemon, "fdstash steal a", 2);
    fails(&daemon, "fdstash take a", 2);
    let nobody = fails(&daemon, "fdstash --socket \"$dir/none\" list", 3);

    assert!(refused.contains("there is no entry \"none\""), "{refused}");
    assert!(bad_name.contains("a name has no ':'"), "{bad_name}");
    assert!(nobody.contains("no daemon can be reached"), "{nobody}");
}

#[test]
fn what_is_listed_as_json_can_be_read() {
    let daemon = Daemon::spawn();
    file(daemon.path("a"), "");
    let options = "--label 'vm=7 \"x\"' --expire 1h --may-reopen read --share-uid 7 --exclusive";
    works(
        &daemon,
        &format!("fdstash give a \"$dir/a\" {options}; fdstash give b --fd 0 < /dev/null"),
    );

    let listed = works(&daemon, "fdstash list --json");
    let figures = works(&daemon, "fdstash status --json");

    let entries: Vec<Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0]["labels"]["vm"], "7 \"x\"");
    assert_eq!(entries[0]["mayReopen"], "read");
    let life =
        entries[0]["expiresAtUSec"].as_u64().unwrap() - entries[0]["givenAtUSec"].as_u64().unwrap();
    assert_eq!(life, 3_600_000_000);
    assert_eq!(entries[1]["kind"], "character");
    let figures: Value = serde_json::from_str(&figures).unwrap();
    assert_eq!(figures["entries"], 2);
    fails(&daemon, "fdstash give a --exclusive --fd 0 < /dev/null", 1);
}

#[test]
fn what_is_listed_for_people_has_the_names_and_what_they_are() {
    let daemon = Daemon::spawn();
    file(daemon.path("a"), "");
    works(&daemon, "fdstash give a \"$dir/a\"; fdstash give other --fd 0 < /dev/null");

    let listed = works(&daemon, "fdstash list 'a*'");
    let long = works(&daemon, "fdstash list --long");
    let status = works(&daemon, "fdstash status");

    assert!(listed.contains("regular") && !listed.contains("other"), "{listed}");
    assert!(long.contains("REVISION") && long.contains("other"), "{long}");
    assert!(status.contains("fdstashd") && status.contains("2 of at most"), "{status}");
}

#[test]
fn a_kept_file_is_reopened() {
    let daemon = Daemon::spawn();
    file(daemon.path("a"), "content");
    works(&daemon, "fdstash give a \"$dir/a\"");

    works(&daemon, "fdstash reopen a --sync on --append on");
    let entry = daemon.client().list(&pattern("a")).unwrap().remove(0);
    assert_eq!(entry.flags.words().collect::<Vec<_>>(), ["sync", "append"]);
    assert_eq!(works(&daemon, "fdstash reopen a --sync off --access read -- cat"), "content");
    let refused = fails(&daemon, "fdstash reopen a --path /etc/hostname", 1);

    assert!(refused.contains("reopen by path"), "{refused}");
    works(&daemon, "fdstash close a");
    assert_eq!(kept(&daemon), [""; 0]);
}

#[test]
fn a_take_waits_if_it_is_told_to() {
    let daemon = Daemon::spawn();
    file(daemon.path("a"), "content");
    let waiting = daemon
        .command()
        .args(["take", "a", "--wait", "10", "--", "cat"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until(SOON, || daemon.statistics().transactions == 1);

    works(&daemon, "fdstash give a \"$dir/a\"");

    assert_eq!(waiting.wait_with_output().unwrap().stdout, b"content");
    fails(&daemon, "fdstash take a --wait 0.05 -- cat", 1);
}

#[test]
fn a_watch_writes_a_line_for_every_change() {
    let daemon = Daemon::spawn();
    let watch = ["watch", "w*", "--json"];
    let mut watch = daemon.command().args(watch).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap()).unwrap();
    assert_eq!(next(), serde_json::json!({}));

    works(
        &daemon,
        "fdstash give other --fd 0 < /dev/null; fdstash give w --fd 0 < /dev/null; fdstash close w",
    );
    let (given, closed) = (next(), next());
    watch.kill().unwrap();
    watch.wait().unwrap();

    assert_eq!((&given["change"], &given["entry"]["name"]), (&"given".into(), &"w".into()));
    assert_eq!(closed["change"], "closed");
}

#[test]
fn a_pattern_closes_all_that_match_and_says_which() {
    let daemon = Daemon::spawn();
    let null = File::open("/dev/null").unwrap();
    let gifts = ["a 1", "a 2", "b", "c"].map(|name| gift(name, &null));
    daemon.client().give(&gifts).unwrap();

    let nothing = fails(&daemon, "fdstash close b 'z*'", 1);
    fails(&daemon, "fdstash close 'a*' none", 1);
    assert_eq!(kept(&daemon), ["a 1", "a 2", "b", "c"]);
    let closed = works(&daemon, "fdstash close 'a*' b 'a ?'");

    assert!(nothing.contains("no entry matches \"z*\""), "{nothing}");
    assert_eq!(closed, "'a 1': closed\n'a 2': closed\nb: closed\n");
    assert_eq!(kept(&daemon), ["c"]);
    assert_eq!(works(&daemon, "fdstash close c"), "", "a name needs no telling");
}

#[test]
fn what_is_listed_is_that_of_several_patterns_and_each_once() {
    let daemon = Daemon::spawn();
    file(daemon.path("a"), &"x".repeat(1536));
    for name in ["vm/7/disk0", "vm/7/disk1", "vm", "log/a b"] {
        works(&daemon, &format!("fdstash give '{name}' \"$dir/a\""));
    }
    let names = |line: &str| {
        let listed = works(&daemon, line);
        let first =
            |line: &str| line.split("  regular").next().map(|name| name.trim_end().to_owned());
        listed.lines().skip(1).filter_map(first).collect::<Vec<_>>()
    };

    assert_eq!(
        names("fdstash list 'vm*' 'log*' '*disk0'"),
        ["'log/a b'", "vm", "vm/7/disk0", "vm/7/disk1"]
    );
    assert_eq!(
        names("fdstash list --tree"),
        ["'log/a b'", "vm", "└─ 7/", "   ├─ disk0", "   └─ disk1"]
    );
    assert!(works(&daemon, "fdstash list vm").contains("  1.5 KiB  "));
    fs::remove_file(daemon.path("a")).unwrap();
    assert!(!works(&daemon, "fdstash list vm").contains("KiB"), "its path leads to it no more");
}

#[test]
fn a_watch_waits_for_a_daemon_that_is_gone() {
    let daemon = Daemon::spawn();
    let socket = daemon.path("other");
    let other = || {
        let mut other = Command::new(program("fdstashd"));
        let other = other.arg("--socket").arg(&socket).stderr(Stdio::null()).spawn().unwrap();
        wait_until(SOON, || UnixStream::connect(&socket).is_ok());
        Ended(other)
    };
    let first = other();
    let mut watch = Command::new(program("fdstash"));
    watch.args(["watch", "--socket"]).arg(&socket).stdout(Stdio::piped());
    let mut watch = Ended(watch.spawn().unwrap());
    let mut lines = BufReader::new(watch.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut next = || lines.next().unwrap();
    assert!(next().starts_with("TIME "));

    drop(first);
    assert!(next().ends_with("  -- the daemon is gone: waiting for it"));
    let _second = other();
    assert!(next().ends_with("  -- the watch stands again: what changed meanwhile was not told"));
    let give = format!("fdstash --socket {} give again --fd 0 </dev/null", socket.display());
    works(&daemon, &give);

    let given = next();
    assert!(given.contains("  given     again "), "{given}");
    // The time, to the second.
    let time: Vec<&str> = given.split(' ').next().unwrap().split(':').collect();
    assert_eq!(time.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 2, 2], "{given}");
}

/// A process that is asked to end, and waited for.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

#[test]
fn whoever_has_seen_enough_may_stop_reading() {
    let daemon = Daemon::spawn();
    let kept = File::open("/dev/null").unwrap();
    let many: Vec<_> = (0..2000).map(|number| gift(&format!("n{number:04}"), &kept)).collect();
    daemon.client().give(&many).unwrap();

    for verb in ["list", "list --json", "list --long"] {
        let line = format!("{{ fdstash {verb}; echo \"code $?\" >&2; }} | head -n 1 >/dev/null");
        let output = shell(&daemon, &line);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "code 0\n", "{verb}");
    }
}

#[test]
fn another_user_sees_nothing_of_it() {
    if !is_root() {
        return skipped("to be another user takes root");
    }
    let daemon = Daemon::spawn();
    works(&daemon, "fdstash give a --fd 0 < /dev/null");
    // By its descriptor: another user may not be able to reach its path.
    let binary = File::open(program("fdstash")).unwrap();
    let as_other = |args: &[&str]| {
        let mut command =
            Command::new(format!("/proc/self/fd/{}", DecInt::from_fd(&binary).as_str()));
        command.args(args).env("FDSTASH_SOCKET", daemon.socket()).uid(61001).gid(61001);
        command.output().unwrap()
    };

    let listed = as_other(&["list", "--json"]);
    let taken = as_other(&["take", "a", "--", "cat"]);

    assert!(listed.status.success() && listed.stdout.is_empty());
    assert_eq!(taken.status.code(), Some(1));
    only(daemon.client().take(&names(["a"])).unwrap());
}

#[test]
fn a_script_that_is_no_program_is_told_as_a_shell_would() {
    let daemon = Daemon::spawn();
    works(&daemon, "fdstash give a --fd 0 < /dev/null");
    let script = daemon.path("script");
    install_script("#!/bin/sh\nreadlink /proc/$$/fd/0\n", &script);
    fs::set_permissions(&script, Permissions::from_mode(0o644)).unwrap();

    fails(&daemon, "fdstash take a -- \"$dir/script\"", 126);
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();

    assert_eq!(works(&daemon, "fdstash take a -- \"$dir/script\""), "/dev/null\n");
}
