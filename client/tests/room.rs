//! A process without room for descriptors: what does not arrive whole is not taken. These tests fill
//! the process's table, so they are a program of their own and take turns.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod peer;

use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
};

use fdstash::{Error, Outcome, Pipeline, Refusal, Reopening};
use fdstash_proto::{Reply, reply};
use peer::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

static TURN: Mutex<()> = Mutex::new(());

/// A table of few descriptors, for one test at a time.
fn small_table() -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum }).unwrap();
    turn
}

/// Takes all room but that for `left` descriptors, until it is dropped.
fn fill_up_to(left: usize) -> Vec<File> {
    let first = File::open("/dev/null").unwrap();
    let mut all: Vec<_> = std::iter::from_fn(|| first.try_clone().ok()).collect();
    all.push(first);
    all.truncate(all.len() - left);
    all
}

/// Hands out four descriptors where there is room for two, in a copy, a take, a reopen, in the
/// client's own transaction, and in a take at once. The statistics before are for the test to know that the script has
/// opened all that it needs.
fn script(stage: Stage) {
    let four = names(["a", "b", "c", "d"]);
    let mut replies: Vec<Reply<OwnedFd>> = (0..5).map(|_| handed(&four)).collect();
    let mut hand_out = |line: &mut Line, words| line.answers(words, replies.pop().unwrap());
    let mut line = stage.accepts();
    line.answers("GetStatistics", Reply::Statistics(figures(1)));

    hand_out(&mut line, "Copy a b c d");
    line.answers("Begin", Reply::Done);
    hand_out(&mut line, "Take a b c d");
    line.answers("Rollback", Reply::Done);
    line.answers("Begin", Reply::Done);
    hand_out(&mut line, "Reopen a b c d");
    line.answers("Rollback", Reply::Done);
    line.answers("Begin", Reply::Done);
    hand_out(&mut line, "Take a b c d");
    line.answers("Rollback", Reply::Done);
    hand_out(&mut line, "Take a b c d");
    line.answers("GetStatistics", Reply::Statistics(figures(2)));
}

macro_rules! story {
    ($daemon:ident, $client:ident, $wait:ident) => {
        let four = names(["a", "b", "c", "d"]);
        let reopenings: Vec<_> = four.iter().cloned().map(Reopening::new).collect();
        $wait!($client.statistics()).unwrap();
        let full = fill_up_to(2);

        let copied = $wait!($client.copy(&four)).unwrap_err();
        let taken = $wait!($client.take(&four)).unwrap_err();
        let reopened = $wait!($client.reopen(&reopenings)).unwrap_err();
        let mut transaction = $wait!($client.transaction()).unwrap();
        let staged = $wait!(transaction.take(&four)).unwrap_err();
        let commit = $wait!(transaction.commit()).unwrap_err();

        let at_once = $wait!($client.take_at_once(&four)).unwrap_err();

        drop(full);
        for error in [copied, taken, reopened, staged, at_once] {
            assert!(matches!(error, Error::NoRoom), "{error:?}");
        }
        assert!(matches!(commit, Error::RolledBack), "{commit:?}");
        assert!($client.unconfirmed().is_empty());
        assert_eq!($wait!($client.statistics()).unwrap().given, 2);
        $daemon.ends();
    };
}

#[test]
fn what_finds_no_room_stays_in_the_stash_and_the_connection_is_used_on() {
    use fdstash::blocking::Client;
    macro_rules! wait {
        ($call:expr) => {
            $call
        };
    }
    let _turn = small_table();
    let daemon = Stage::plays(script);
    let mut client = Client::connect_to(&daemon.socket).unwrap();

    story!(daemon, client, wait);
}

#[cfg(feature = "tokio")]
#[test]
fn what_finds_no_room_stays_in_the_stash_and_the_connection_is_used_on_with_tokio() {
    use fdstash::Client;
    macro_rules! wait {
        ($call:expr) => {
            $call.await
        };
    }
    let _turn = small_table();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let daemon = Stage::plays(script);
        let mut client = Client::connect_to(&daemon.socket).await.unwrap();

        story!(daemon, client, wait);
    });
}

/// One read brings the refusal and what finds no room behind it.
#[test]
fn what_finds_no_room_in_a_pipeline_is_not_the_call_before_it() {
    use fdstash::blocking::Client;
    let _turn = small_table();
    let four = names(["a", "b", "c", "d"]);
    let daemon = Stage::plays(|stage| {
        let four = names(["a", "b", "c", "d"]);
        let refusal = reply::write::<OwnedFd>(Err(not_found("x")), false).bytes;
        let answer = reply::write(Ok(handed(&four)), false);
        let mut line = stage.accepts();
        line.answers("GetStatistics", Reply::Statistics(figures(1)));
        line.ignores("Take x");
        line.ignores("Take a b c d");
        line.ignores("Close y");
        line.mumbles(&[refusal, answer.bytes].concat(), &answer.fds);
        line.says(Reply::Done);
        line.answers("GetStatistics", Reply::Statistics(figures(2)));
    });
    let mut client = Client::connect_to(&daemon.socket).unwrap();
    client.statistics().unwrap();
    let full = fill_up_to(2);
    let mut pipeline = Pipeline::new();
    pipeline.take_at_once(&names(["x"])).take_at_once(&four).close(&names(["y"]));

    let outcomes = client.run(pipeline);

    drop(full);
    let [Err(Error::Refused(Refusal::NotFound { .. })), Err(Error::NoRoom), Ok(Outcome::Closed)] =
        &outcomes[..]
    else {
        panic!("{outcomes:?}");
    };
    assert_eq!(client.statistics().unwrap().given, 2);
    daemon.ends();
}

#[test]
fn where_there_is_no_room_for_a_connection_that_is_told() {
    use fdstash::blocking::Client;
    let _turn = small_table();
    let (told, was_told) = mpsc::channel();
    let daemon = Stage::plays(move |stage| {
        was_told.recv().unwrap();
        stage.is_left_alone();
    });
    let full = fill_up_to(0);

    let outcome = Client::connect_to(&daemon.socket).map(drop);

    drop(full);
    told.send(()).unwrap();
    assert!(matches!(outcome, Err(Error::NoRoom)), "{outcome:?}");
    daemon.ends();
}
