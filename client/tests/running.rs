//! `fdstash take` and `fdstash reopen` with a command: when the stash lets go, what the command gets,
//! and how it is stood in for.
#![cfg(feature = "command")]
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod peer;

use std::{
    io::{BufRead, BufReader, Write},
    os::fd::OwnedFd,
    process::{Command, Output, Stdio},
};

use fdstash::{Handed, Name, Refusal};
use fdstash_proto::Reply;
use peer::*;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn the_stash_lets_go_when_the_command_has_been_executed() {
    let daemon = Stage::plays(|stage| {
        let mut line = stage.accepts();
        line.answers("Begin", Reply::Done);
        line.answers("Take ticket patiently", handed_with("in it", &names(["ticket"])));
        line.answers("Commit", Reply::Done);
    });

    let output = run(&daemon, &["take", "ticket", "--wait", "5", "--", "cat"]);

    assert_eq!(String::from_utf8(output.stdout).unwrap(), "in it");
    assert_eq!(output.status.code(), Some(0));
    daemon.ends();
}

#[test]
fn a_command_that_cannot_be_executed_leaves_the_stash_as_it_was() {
    for (verb, asked) in [("take", "Take disk"), ("reopen", "Reopen disk")] {
        for (command, code) in [("/nonexistent", 127), ("/", 126)] {
            let daemon = Stage::plays(move |stage| {
                let mut line = stage.accepts();
                line.answers("Begin", Reply::Done);
                line.answers(asked, handed(&names(["disk"])));
                line.answers("Rollback", Reply::Done);
                line.ignores("End");
            });

            let output = run(&daemon, &[verb, "disk", "--", command]);

            assert_eq!(output.status.code(), Some(code), "{verb} {command}");
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(stderr.starts_with(&format!("fdstash: could not run {command}: ")), "{stderr}");
            daemon.ends();
        }
    }
}

#[test]
fn each_descriptor_has_the_seat_of_its_name() {
    let table: [(&[&str], &str); 3] = [
        (&[], "cat; cat <&3; cat <&4"),
        (&["--fd", "3"], "cat <&3; cat <&4; cat <&5"),
        (&["--fd", "5"], "cat <&5; cat <&6; cat <&7"),
    ];
    for (words, script) in table {
        let daemon = Stage::plays(|stage| {
            let reply = ["a", "b", "c"].map(|text| (name(text), text));
            let handed = reply.map(|(name, text)| Handed { name, fd: file_with(text) });
            stage.accepts().answers("CopyFresh a b c", Reply::Handed(handed.into()));
        });
        let words = [&["take", "a", "b", "c", "--fresh"], words, &["--", "sh", "-c", script]];

        let output = run(&daemon, &words.concat());

        assert_eq!(String::from_utf8(output.stdout).unwrap(), "abc", "{words:?}");
        daemon.ends();
    }
}

#[test]
fn the_commands_output_can_be_a_descriptor_too() {
    let file = file_with("");
    let reply = handed_one(&name("out"), &file);
    let daemon = Stage::plays(|stage| stage.accepts().answers("Copy out", reply));

    run(&daemon, &["take", "out", "--copy", "--fd", "1", "--", "echo", "into it"]);

    assert_eq!(content(&file), "into it\n");
    daemon.ends();
}

#[test]
fn nobody_but_the_command_keeps_a_descriptor_open() {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let reply = Reply::Handed(vec![Handed { name: name("pipe"), fd: writer }]);
    let daemon = Stage::plays(|stage| stage.accepts().answers("Copy pipe", reply));
    let script = "trap 'kill $!; exit 9' TERM; exec 0<&-; sleep 100 & wait";
    let mut take =
        fdstash(&daemon, &["take", "pipe", "--copy", "--", "sh", "-c", script]).spawn().unwrap();

    let rest = std::io::read_to_string(std::fs::File::from(reader)).unwrap();
    kill_process(Pid::from_child(&take), Signal::TERM).unwrap();

    assert_eq!(rest, "");
    assert_eq!(take.wait().unwrap().code(), Some(9));
    daemon.ends();
}

#[test]
fn a_failure_to_execute_is_never_written_into_a_descriptor() {
    // Wherever the descriptors shall go, the pipe that tells of the failure is somewhere else.
    for first in 3..16 {
        let files: Vec<OwnedFd> = (0..4).map(|_| file_with("image")).collect();
        let kept: Vec<OwnedFd> = files.iter().map(|file| file.try_clone().unwrap()).collect();
        let four = names(["a", "b", "c", "d"]);
        let daemon = Stage::plays(move |stage| {
            let handed = four.into_iter().zip(kept).map(|(name, fd)| Handed { name, fd });
            let mut line = stage.accepts();
            line.answers("Begin", Reply::Done);
            line.answers("Take a b c d", Reply::Handed(handed.collect()));
            line.answers("Rollback", Reply::Done);
        });
        let first = first.to_string();

        let output =
            run(&daemon, &["take", "a", "b", "c", "d", "--fd", &first, "--", "/nonexistent"]);

        assert_eq!(output.status.code(), Some(127), "--fd {first}");
        for file in &files {
            assert_eq!(content(file), "image", "--fd {first}");
        }
        daemon.ends();
    }
}

#[test]
fn the_exit_code_is_the_commands() {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)] {
        let daemon = Stage::plays(|stage| {
            stage.accepts().answers("Copy disk", handed(&names(["disk"])));
        });

        let output = run(&daemon, &["take", "disk", "--copy", "--", "sh", "-c", script]);

        assert_eq!(output.status.code(), Some(code), "{script}");
        daemon.ends();
    }
}

#[test]
fn signals_are_passed_on() {
    // What is ignored here, as under nohup, is ignored by the command too, which would go on for ever.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    let ignored = u64::from_str_radix(ignored, 16).unwrap();
    for (signal, word) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
    ] {
        let is_ignored = ignored & (1 << (signal.as_raw() - 1)) != 0;
        assert!(!is_ignored, "{word} is ignored here: run this test where it is not");
        let daemon = Stage::plays(|stage| {
            stage.accepts().answers("Copy disk", handed(&names(["disk"])));
        });
        // A shell that waits for a signal in `wait` can miss the one that comes just before.
        let script = format!("trap 'exit 9' {word}; echo ready; while :; do sleep 0.01; done");
        let mut take = fdstash(&daemon, &["take", "disk", "--copy", "--", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(take.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();

        kill_process(Pid::from_child(&take), signal).unwrap();

        assert_eq!(take.wait().unwrap().code(), Some(9), "{word}");
        daemon.ends();
    }
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let daemon = Stage::plays(|stage| {
        stage.accepts().answers("Copy disk", handed(&names(["disk"])));
    });
    let script = format!(
        "trap '' HUP; exec {} --socket {} take disk --copy -- sh -c 'kill -HUP $PPID $$; exit 5'",
        env!("CARGO_BIN_EXE_fdstash"),
        daemon.socket.display()
    );

    let status = Command::new("sh").args(["-c", &script]).status().unwrap();

    assert_eq!(status.code(), Some(5));
    daemon.ends();
}

#[test]
fn a_command_that_runs_already_goes_on_where_the_commit_fails() {
    let daemon = Stage::plays(|stage| {
        let mut line = stage.accepts();
        line.answers("Begin", Reply::Done);
        line.answers("Take disk", handed_with("in it", &names(["disk"])));
        line.refuses("Commit", Refusal::NotDurable { reason: "the journal is full".into() });
        line.answers("Rollback", Reply::Done);
    });

    let output = run(&daemon, &["take", "disk", "--", "cat"]);

    assert_eq!(String::from_utf8(output.stdout).unwrap(), "in it");
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "fdstash: the command has the descriptors, but: nothing was stored, since it could not be \
         made durable: the journal is full\n\
         fdstash: the stash may still keep them as they were before\n"
    );
    daemon.ends();
}

#[test]
fn a_reopen_hands_on_what_it_opened() {
    let daemon = Stage::plays(|stage| {
        let mut line = stage.accepts();
        line.answers("Begin", Reply::Done);
        line.answers("Reopen a b", handed_with("new", &names(["a", "b"])));
        line.answers("Commit", Reply::Done);
    });
    let words = ["reopen", "a", "b", "--direct", "on", "--", "sh", "-c", "cat; cat <&3"];

    let output = run(&daemon, &words);

    assert_eq!(String::from_utf8(output.stdout).unwrap(), "newnew");
    daemon.ends();
}

fn run(daemon: &Played, words: &[&str]) -> Output {
    fdstash(daemon, words).output().unwrap()
}

fn fdstash(daemon: &Played, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fdstash"));
    command.args(words).stdin(Stdio::null()).env("FDSTASH_SOCKET", &daemon.socket);
    command
}

fn file_with(text: &str) -> OwnedFd {
    use std::io::Seek;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file.into()
}

fn handed_with(text: &str, names: &[Name]) -> Reply<OwnedFd> {
    let handed = names.iter().map(|name| Handed { name: name.clone(), fd: file_with(text) });
    Reply::Handed(handed.collect())
}
