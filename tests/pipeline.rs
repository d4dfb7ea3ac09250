//! Calls that are sent before the first is answered, with the real daemon, and with one that is killed
//! while it does them.
#![allow(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use std::{collections::BTreeSet, fs::File, thread};

use fdstash::{Error, Gift, Name, Outcome, Pattern, Pipeline, Refusal, blocking::Client};
use kit::Daemon;

/// More than are on their way at once.
const CALLS: usize = 600;

#[test]
fn each_call_of_a_pipeline_is_done_and_has_its_outcome() {
    let daemon = Daemon::spawn();
    let mut client = daemon.client();
    let image = tempfile::tempfile().unwrap();
    let (all, gifts) = gifts(&image);
    let mut pipeline = Pipeline::new();
    for (gift, name) in gifts.iter().zip(&all) {
        pipeline.give(gift).copy(std::slice::from_ref(name));
    }
    pipeline.give_new(&gifts[0]).close(&all[..1]).take_at_once(&all[..2]).take_at_once(&all[1..9]);

    let mut outcomes = client.run(pipeline);

    let last = outcomes.split_off(2 * CALLS);
    for both in outcomes.chunks(2) {
        assert!(matches!(&both[0], Ok(Outcome::Given { replaced }) if replaced.is_empty()));
        let Ok(Outcome::Handed(handed)) = &both[1] else { panic!("{both:?}") };
        assert_eq!(kit::identity(&handed[0].fd), kit::identity(&image));
    }
    let [
        Err(Error::Refused(Refusal::AlreadyExists { .. })),
        Ok(Outcome::Closed),
        Err(Error::Refused(Refusal::NotFound { .. })),
        Ok(Outcome::Handed(handed)),
    ] = &last[..]
    else {
        panic!("{last:?}");
    };
    assert!(handed.iter().map(|handed| &handed.name).eq(&all[1..9]));
    assert_eq!(kept(&mut client).len(), CALLS - 9);
}

#[test]
fn what_is_piped_to_a_daemon_that_is_killed_is_done_once() {
    let daemon = Daemon::spawn();
    let image = tempfile::tempfile().unwrap();
    let (all, gifts) = gifts(&image);
    let mut client = daemon.client();
    for _ in 0..8 {
        let (given, taken) = thread::scope(|scope| {
            let killing = scope.spawn(|| (0..3).for_each(|_| daemon.kill_server()));
            let mut rounds = Vec::new();
            while rounds.is_empty() || !killing.is_finished() {
                rounds.push(give_and_take(&mut client, &all, &gifts));
            }
            rounds.into_iter().fold((0, 0), |sums, round| (sums.0 + round.0, sums.1 + round.1))
        });
        assert!(given > 0 && taken > 0);
    }
}

/// Gives all under names that are free, and takes all at once; tells how many are known to be given, and
/// to be taken. Nothing is left.
fn give_and_take(client: &mut Client, all: &[Name], gifts: &[[Gift<&File>; 1]]) -> (usize, usize) {
    let mut pipeline = Pipeline::new();
    for gift in gifts {
        pipeline.give_new(gift);
    }
    let mut certain = BTreeSet::new();
    for (outcome, name) in client.run(pipeline).into_iter().zip(all) {
        match outcome {
            Ok(Outcome::Given { .. }) => assert!(certain.insert(name.clone())),
            // AlreadyExists would be of one that had been done before.
            Err(Error::ConnectionLost { may_be_done: true }) => {}
            outcome => panic!("{name}: {outcome:?}"),
        }
    }
    let given = kept(client);
    assert!(given.is_superset(&certain), "{:?}", certain.difference(&given));

    let mut pipeline = Pipeline::new();
    for name in &given {
        pipeline.take_at_once(std::slice::from_ref(name));
    }
    let mut taken = BTreeSet::new();
    for (outcome, name) in client.run(pipeline).into_iter().zip(&given) {
        match outcome {
            Ok(Outcome::Handed(handed)) => {
                assert_eq!(handed.len(), 1);
                taken.insert(name.clone());
            }
            outcome => panic!("{name}: {outcome:?}"),
        }
    }
    // One that was handed out as the daemon died may still be kept: one too many and never one too few.
    let left: Vec<_> = kept(client).into_iter().collect();
    assert!(left.iter().all(|name| taken.contains(name)));
    left.chunks(100).for_each(|names| client.close(names).unwrap());
    (certain.len(), taken.len())
}

fn gifts(image: &File) -> (Vec<Name>, Vec<[Gift<&File>; 1]>) {
    let all: Vec<Name> =
        (0..CALLS).map(|number| format!("piped-{number:03}").parse().unwrap()).collect();
    let gifts = all.iter().map(|name| [Gift::new(name.clone(), image)]).collect();
    (all, gifts)
}

fn kept(client: &mut Client) -> BTreeSet<Name> {
    client.list(&Pattern::all()).unwrap().into_iter().map(|entry| entry.name).collect()
}
