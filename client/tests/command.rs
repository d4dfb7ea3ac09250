//! The command: what its words come to on the wire, what it shows, and its exit codes.
#![cfg(feature = "command")]
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod peer;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Output, Stdio},
    time::Duration,
};

use fdstash::{Access, Change, Entry, Flags, Gift, Labels, Refusal, Reopening, Share};
use fdstash_proto::{Call, Reply, Request};
use peer::*;

#[test]
fn the_words_of_give_come_to_a_gift() {
    let plain = || Gift::new(name("disk"), ());
    let table: [(&[&str], Gift<()>); 9] = [
        (&[], plain()),
        (&["--fresh"], Gift { fresh: true, ..plain() }),
        (&["--may-reopen", "read-write"], Gift { may_reopen: Some(Access::ReadWrite), ..plain() }),
        (&["--may-reopen=read"], Gift { may_reopen: Some(Access::Read), ..plain() }),
        (&["--expire", "90"], Gift { expire_usec: Some(90_000_000), ..plain() }),
        (&["--expire", "1h 1min"], Gift { expire_usec: Some(3_660_000_000), ..plain() }),
        (&["--close-on-hangup"], Gift { close_on_hangup: true, ..plain() }),
        (
            &["--share-uid", "7", "--share-uid=8", "--share-gid", "9"],
            Gift { share: Share { uids: vec![7, 8], gids: vec![9] }, ..plain() },
        ),
        (
            &["--label", "vm=7", "--label=note=a=b"],
            Gift {
                labels: Labels::from([("vm".into(), "7".into()), ("note".into(), "a=b".into())]),
                ..plain()
            },
        ),
    ];

    for (words, expected) in table {
        let (output, heard) = asked(&[&["give", "disk", "--fd", "0"], words].concat(), given());

        assert_eq!(output.status.code(), Some(0), "{words:?}");
        let Call::Give { gifts, .. } = heard else { panic!("{heard:?}") };
        let gifts: Vec<_> = gifts.into_iter().map(|gift| gift.map(drop)).collect();
        assert_eq!(gifts, [expected], "{words:?}");
    }
}

#[test]
fn a_standard_input_from_which_nothing_comes_is_not_given_by_mistake() {
    let output = command(&["give", "disk"]).output().unwrap();

    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("name a FILE"), "{output:?}");
}

#[test]
fn a_file_is_opened_as_it_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, "content").unwrap();
    let (file, folder) = (path.to_str().unwrap(), directory.path().to_str().unwrap());
    let table: [(&[&str], &str); 7] = [
        (&[file], "rw"),
        (&[folder], "r"),
        (&[file, "--access", "read"], "r"),
        (&[file, "--access", "write"], "w"),
        (&[file, "--access", "read-write"], "rw"),
        (&[file, "--append", "--access", "write"], "w append"),
        (&["--direct", "--", file], "rw direct"),
    ];

    for (words, expected) in table {
        let (_, heard) = asked(&[&["give", "disk"], words].concat(), given());

        let Call::Give { gifts, .. } = heard else { panic!("{heard:?}") };
        assert_eq!(opened_for(&gifts[0]), expected, "{words:?}");
    }
}

#[test]
fn a_descriptor_is_given_by_its_number() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, "content").unwrap();
    let daemon = Stage::plays(|stage| {
        let mut line = stage.accepts();
        line.answers("GiveNew disk", given());
        assert_eq!(content(&line.given[0].fd), "content");
    });
    let script = format!(
        "exec 9<{}; exec {} --socket {} give disk --fd 9 --exclusive",
        path.display(),
        env!("CARGO_BIN_EXE_fdstash"),
        daemon.socket.display()
    );

    let status = Command::new("sh").args(["-c", &script]).status().unwrap();

    assert_eq!(status.code(), Some(0));
    daemon.ends();
}

#[test]
fn the_words_of_reopen_come_to_a_reopening_of_each_name() {
    let plain = || Reopening::new(name("a"));
    let table: [(&[&str], Reopening); 10] = [
        (&[], plain()),
        (&["--direct", "on"], Reopening { direct: Some(true), ..plain() }),
        (&["--sync=off"], Reopening { sync: Some(false), ..plain() }),
        (&["--dsync", "on"], Reopening { dsync: Some(true), ..plain() }),
        (&["--append", "off"], Reopening { append: Some(false), ..plain() }),
        (&["--nonblock", "on"], Reopening { nonblock: Some(true), ..plain() }),
        (&["--noatime", "on"], Reopening { noatime: Some(true), ..plain() }),
        (&["--access", "read-write"], Reopening { access: Some(Access::ReadWrite), ..plain() }),
        (&["--hand-out", "read"], Reopening { hand_out: Some(Access::Read), ..plain() }),
        (&["--path", "/a/b"], Reopening { path: Some("/a/b".into()), ..plain() }),
    ];

    for (words, expected) in table {
        let daemon = Stage::plays(move |stage| {
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            let Some(Request::Stash(Call::Reopen { reopenings })) = line.request() else {
                panic!("a Reopen should come")
            };
            assert_eq!(reopenings, [expected]);
            line.says(handed(&names(["a"])));
            line.answers("Commit", Reply::Done);
        });

        let output = fdstash(&daemon, &[&["reopen", "a"], words].concat()).output().unwrap();

        assert_eq!(output.status.code(), Some(0), "{words:?}");
        daemon.ends();
    }
}

#[test]
fn what_makes_no_sense_is_said_and_not_asked() {
    let table: [&[&str]; 18] = [
        &[],
        &["hold", "disk"],
        &["give"],
        &["give", "a:b"],
        &["give", "disk", "file", "--fd", "3"],
        &["give", "disk", "--fd", "-1"],
        &["give", "disk", "--append"],
        &["give", "disk", "--access", "path", "file"],
        &["give", "disk", "--expire", "soon"],
        &["give", "disk", "--label", "note"],
        &["take", "disk"],
        &["take", "--", "cat"],
        &["take", "disk", "--wait", "-1", "--", "cat"],
        &["close"],
        &["reopen", "disk", "--direct", "maybe"],
        &["reopen", "a", "b", "--path", "/x"],
        &["list", &"x".repeat(600)],
        &["list", "--long", "--json"],
    ];

    for words in table {
        let output = command(words).output().unwrap();

        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(!output.stderr.is_empty(), "{words:?}");
    }
}

#[test]
fn a_terminal_is_given_only_where_it_is_said() {
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let open = || {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap()
    };

    let refused = command(&["give", "tty"]).stdin(open()).output().unwrap();
    let daemon = Stage::plays(|stage| stage.accepts().answers("Give tty", given()));
    let given = fdstash(&daemon, &["give", "tty", "--fd", "0"]).stdin(open()).output().unwrap();

    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(
        String::from_utf8(refused.stderr).unwrap(),
        "fdstash: standard input is a terminal: name a FILE, or say --fd 0 to give the terminal\n"
    );
    assert_eq!(given.status.code(), Some(0));
    daemon.ends();
}

#[test]
fn where_nobody_listens_the_exit_code_is_3() {
    for words in [["close", "disk"].as_slice(), &["list"], &["status"], &["watch"]] {
        let output = command(words).env("FDSTASH_SOCKET", "/nonexistent/stash").output().unwrap();

        assert_eq!(output.status.code(), Some(3), "{words:?}");
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "fdstash: no daemon can be reached at /nonexistent/stash: No such file or directory \
             (os error 2)\n\
             fdstash: start one with `systemctl start fdstashd.socket`, or with `fdstashd --socket \
             /nonexistent/stash`\n"
        );
    }
}

#[test]
fn a_refusal_is_told_in_plain_words_with_a_way_out() {
    let daemon = Stage::plays(|stage| {
        let refusal = Refusal::AccessDenied { name: "disk".into(), verb: "close".into() };
        stage.accepts().refuses("Close disk", refusal);
    });

    let output = fdstash(&daemon, &["close", "disk"]).output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "fdstash: not allowed to close entry \"disk\"\n\
         fdstash: who gave it decides: whom it is shared with, and what it may be reopened for at most\n"
    );
    daemon.ends();
}

#[test]
fn a_list_is_a_table_for_people_and_lines_of_json_for_programs() {
    let entries = || {
        let drifted = Flags::NONE.with(Flags::APPEND, true);
        let flags = Flags::NONE.with(Flags::DIRECT, true).with(Flags::SYNC, true);
        let target = Some("/a/\u{1b}[2Jb".to_owned());
        vec![entry("a"), Entry { flags, drifted, target, ..entry("longer") }]
    };

    let (table, _) = asked(&["list"], Reply::Listed(entries()));
    let (json, _) = asked(&["list", "--json"], Reply::Listed(entries()));

    let table = String::from_utf8(table.stdout).unwrap();
    let shown: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(shown[0], ["NAME", "KIND", "ACCESS", "FLAGS", "SIZE", "AGE", "TARGET"]);
    assert_eq!(shown[1][..4], ["a", "regular", "read_write", "-"]);
    assert_eq!(shown[2][..4], ["longer", "regular", "read_write", "direct,sync,!append"]);
    assert_eq!(shown[2][6], "/a/\\u{1b}[2Jb");
    let json = String::from_utf8(json.stdout).unwrap();
    assert!(json.lines().eq(entries().iter().map(Entry::to_json)), "{json}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let daemon = Stage::plays(|stage| {
        let many = (0..5000).map(|number| entry(&format!("n{number}"))).collect();
        stage.accepts().answers("List *", Reply::Listed(many));
    });
    let mut list = fdstash(&daemon, &["list", "--json"]);
    let mut list = list.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();

    let mut first = String::new();
    BufReader::new(list.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let output = list.wait_with_output().unwrap();

    assert_eq!(first, format!("{}\n", entry("n0").to_json()));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stderr, b"");
    daemon.ends();
}

#[test]
fn a_watch_says_first_that_it_stands() {
    for (words, first, second) in [
        (["watch", "--json"].as_slice(), "{}", r#"{"change":"given","entry":{"name":"a","#),
        (&["watch"], "TIME      CHANGE    NAME", "given     a "),
    ] {
        let (seen, was_seen) = std::sync::mpsc::channel();
        let daemon = Stage::plays(move |stage| {
            let _client = stage.accepts();
            let mut line = stage.accepts();
            line.ignores("Watch *");
            line.begins_to_say(Reply::Notice(fdstash::Notice::Standing));
            was_seen.recv_timeout(Duration::from_secs(20)).unwrap();
            line.says(changed(Change::Given, "a"));
        });
        let mut watch = fdstash(&daemon, words).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();

        assert!(lines.next().unwrap().unwrap().starts_with(first));
        seen.send(()).unwrap();
        // Before it stands the time, for people.
        assert!(lines.next().unwrap().unwrap().contains(second));
        assert!(lines.next().is_none());
        assert_eq!(watch.wait().unwrap().code(), Some(0));
        daemon.ends();
    }
}

#[test]
fn the_status_is_told() {
    let daemon = Stage::plays(|stage| {
        let mut line = stage.accepts();
        line.answers("GetStatistics", Reply::Statistics(figures(42)));
        line.answers("GetInfo", Reply::Info(info()));
    });

    let people = fdstash(&daemon, &["status"]).output().unwrap();
    let (json, _) = asked(&["status", "--json"], Reply::Statistics(figures(42)));

    let people = String::from_utf8(people.stdout).unwrap();
    assert!(people.contains("fdstashd 1.2.3"), "{people}");
    assert!(people.contains("42 given"), "{people}");
    assert_eq!(String::from_utf8(json.stdout).unwrap(), format!("{}\n", figures(42).to_json()));
    daemon.ends();
}

/// Runs the command against a daemon that answers its one call so, and tells what the call was.
fn asked(
    words: &[&str],
    reply: Reply<std::os::fd::OwnedFd>,
) -> (Output, Call<std::os::fd::OwnedFd>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let daemon = Stage::plays(move |stage| {
        let mut line = stage.accepts();
        let Some(Request::Stash(call)) = line.request() else { panic!("a call should come") };
        sender.send(call).unwrap();
        line.says(reply);
    });
    let output = fdstash(&daemon, words).output().unwrap();
    std::io::stderr().write_all(&output.stderr).unwrap();
    daemon.ends();
    (output, receiver.recv().unwrap())
}

fn fdstash(daemon: &Played, words: &[&str]) -> Command {
    let mut command = command(words);
    command.env("FDSTASH_SOCKET", &daemon.socket);
    command
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fdstash"));
    command.args(words).stdin(Stdio::null()).env_remove("FDSTASH_SOCKET");
    command
}

fn opened_for(gift: &Gift<std::os::fd::OwnedFd>) -> String {
    use rustix::fs::OFlags;
    let flags = rustix::fs::fcntl_getfl(&gift.fd).unwrap();
    let mode = match flags & OFlags::RWMODE {
        OFlags::RDWR => "rw",
        OFlags::WRONLY => "w",
        _ => "r",
    };
    let word = |flag, word| if flags.contains(flag) { word } else { "" };
    format!("{mode}{}{}", word(OFlags::APPEND, " append"), word(OFlags::DIRECT, " direct"))
}
