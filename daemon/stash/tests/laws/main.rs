//! The laws of the stash, each a property of every history.
//!
//! A history is what several peers, the kernel and the clock do to one stash. [`play`] plays it
//! with tokens that notice their end, and writes down all that there is to see; a law reads that.
//! Beside the stash runs a [`model`], which says what should come of every step. Now and then another
//! stash goes on, from what was written down; but for its figures nobody notices, which is the law of
//! an upgrade, and all others are its proof. What a crash leaves, is in [`cuts`].

/// Makes of each law a test over histories of its own, and a function that holds it against one that was
/// played; `LAWS` are those of a file.
macro_rules! laws {
    ($(
        #[test]
        fn $law:ident($history:ident in histories() $(,)?) {
            let $trace:ident = play(&$same:ident);
            $($holds:tt)*
        }
    )*) => {
        mod law {
            use super::*;

            $(pub(super) fn $law($trace: &Trace) -> Result<(), TestCaseError> {
                $($holds)*
                Ok(())
            })*
        }

        pub(crate) const LAWS: &[fn(&Trace) -> Result<(), TestCaseError>] = &[$(law::$law),*];

        proptest! {
            #![proptest_config(config())]

            $(#[test]
            fn $law($history in histories()) {
                law::$law(&play(&$history))?;
            })*
        }
    };
}

mod cuts;
mod history;
mod journal;
mod model;
mod numbers;
mod reference;
mod repeats;
mod rights;
mod token;
mod trace;
mod weights;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use fdstash_proto::{Call, Change, Entry, Flags, Kind, Name, Refusal, Statistics};
use fdstash_stash::{ConnectionId, Deed, Opening, Quota, Rights, Rules, Usage};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{FileFailurePersistence, RngAlgorithm, TestRunner},
};

use history::{History, histories, of_seeds};
use trace::{Entries, Input, Moment, Performed, Picture, Said, Told, Trace, Waits, gifts};
use world::{BOOTED_AT_USEC, play};

laws! {
    #[test]
    fn every_step_does_what_the_model_says(history in histories()) {
        let trace = play(&history);

        for (at, _, moment) in trace.steps() {
            let Moment { predicted, after, expected, view, expected_view, .. } = moment;
            let story = || trace.until(at);
            prop_assert_eq!(&moment.answers(), &predicted.answers, "{}", story());
            prop_assert_eq!(opened_for(moment), predicted.openings.clone(), "{}", story());
            prop_assert_eq!(closed(moment), predicted.closed.clone(), "{}", story());
            prop_assert_eq!(moment.told(), predicted.told(), "{}", story());
            let tickets = predicted.records.iter().map(|record| record.ticket.clone());
            prop_assert_eq!(moment.done(), tickets.collect::<Vec<_>>(), "{}", story());
            prop_assert_eq!(after, expected, "{}", story());
            prop_assert_eq!(view, expected_view, "{}", story());
        }
    }

    #[test]
    fn every_descriptor_is_held_handed_out_or_closed_exactly_once(history in histories()) {
        let trace = play(&history);

        let (mut came, mut ended) = (BTreeSet::new(), BTreeSet::new());
        for (at, _, moment) in trace.steps() {
            came.extend(moment.input.brings());
            for fd in moment.closed().chain(opened_and_handed_over(moment)) {
                prop_assert!(ended.insert(fd), "{} ends twice: {}", fd, trace.until(at));
            }
            let held: BTreeSet<_> = came.difference(&ended).copied().collect();
            prop_assert_eq!(&moment.after.held, &held, "{}", trace.until(at));
            prop_assert!(moment.faults.is_empty(), "{:?}{}", moment.faults, trace.until(at));
        }
        prop_assert_eq!(came, ended);
    }

    #[test]
    fn a_refused_call_changes_nothing_and_its_gifts_are_closed(history in histories()) {
        let trace = play(&history);

        let mut calls = BTreeMap::new();
        for (at, before, moment) in trace.steps() {
            calls.extend(moment.call());
            let Some(by) = moment.caller().filter(|_| moment.is_refused()) else { continue };
            let gifts: BTreeSet<_> = gifts(calls[&by]).collect();
            prop_assert!(gifts.is_subset(&closed(moment)), "{}", trace.until(at));
            prop_assert!(moment.records().all(|(put, _)| put.is_empty()), "{}", trace.until(at));
            if moment.call().is_some() {
                // Its transaction, if it has one, is idle from now on.
                let next_due = before.next_due;
                let after = Picture { next_due, ..but_refused(&moment.after, 1) };
                prop_assert_eq!(&after, before, "{}", trace.until(at));
            }
        }
    }

    #[test]
    fn what_is_staged_nobody_else_sees_and_rolled_back_all_is_as_before(history in histories()) {
        let trace = play(&history);

        let mut transactions = Transactions::default();
        for (at, before, moment) in trace.steps() {
            let caller = moment.caller().filter(|caller| transactions.is_open(*caller));
            transactions.note(moment);
            let commits = matches!(moment.call(), Some((_, Call::Commit { .. })));
            if caller.is_none() || commits {
                continue;
            }
            let gone: BTreeSet<_> = moment.told().iter().map(|told| told.fd).collect();
            let mut kept = before.kept();
            // What was to end anyway may end where the hold of it does.
            kept.retain(|_, fd| !gone.contains(fd));
            prop_assert_eq!(moment.after.kept(), kept, "{}", trace.until(at));
            if matches!(moment.call(), Some((_, Call::Rollback))) {
                // How they were given it may not be told of all.
                let [all, view] = [&moment.after.entries, &moment.view].map(as_told_to_all);
                prop_assert!(view.iter().all(|it| all.contains(it)), "{}", trace.until(at));
            }
        }
    }

    #[test]
    fn after_a_tick_exactly_what_was_due_and_not_held_is_gone(history in histories()) {
        let trace = play(&history);

        for (at, before, moment) in trace.steps() {
            let now_usec = moment.after.now_usec;
            let due = |entry: &Entry| {
                entry.expires_at_usec.is_some_and(|usec| usec <= BOOTED_AT_USEC + now_usec)
            };
            if !matches!(moment.input, Input::Tick) {
                continue;
            }
            let after = moment.after.kept();
            for (entry, fd) in &before.entries {
                let is_there = after.get(&entry.name) == Some(fd);
                let mut now = moment.after.entries.iter().map(|(entry, _)| entry);
                let still = now.find(|now| now.name == entry.name).and_then(|now| now.held_by);
                let holds = match entry.held_by {
                    None => is_there != due(entry),
                    Some(_) if still == entry.held_by => is_there,
                    // It was held by a transaction that was idle for too long.
                    Some(_) => !(is_there && due(entry)),
                };
                prop_assert!(holds, "{} {}", entry.name, trace.until(at));
            }
            prop_assert!(after.len() <= before.entries.len(), "{}", trace.until(at));
            let next_due = moment.after.next_due;
            prop_assert!(next_due.is_none_or(|usec| usec > now_usec), "{}", trace.until(at));
            let was_held = |fd| before.entries.iter().any(|it| it.1 == fd && it.0.held_by.is_some());
            let is_due = |told: &Told| told.change == Change::Expired || was_held(told.fd);
            prop_assert!(moment.told().iter().all(is_due), "{}", trace.until(at));
        }
    }

    #[test]
    fn limits_hold_after_every_step(history in histories()) {
        let trace = play(&history);

        let mut calls = BTreeMap::new();
        for (at, _, moment) in trace.steps() {
            calls.extend(moment.call());
            let Picture { held, statistics, unanswered, .. } = &moment.after;
            // What comes with a call that is not finished, is not in the stash yet.
            let opening = unanswered.iter().filter(|(_, waits)| **waits == Waits::Opening);
            let coming: BTreeSet<_> = opening.flat_map(|(id, _)| gifts(calls[id])).collect();
            let held = held.difference(&coming).count();
            let connections = usize::try_from(statistics.connections).expect("64 bits");
            let entries = usize::try_from(statistics.entries).expect("64 bits");
            prop_assert!(entries <= trace.limits.entries, "{}", trace.until(at));
            prop_assert!(connections <= trace.limits.connections, "{}", trace.until(at));
            prop_assert!(held + connections <= trace.limits.places, "{}", trace.until(at));
        }
    }

    #[test]
    fn what_users_have_is_within_their_quotas_or_was_before(history in histories()) {
        let trace = play(&history);

        let mut rules = Rules::default();
        let whose = |uid| trace.people.values().find(|who| who.peer.uid == uid);
        for (at, before, moment) in trace.steps() {
            if let Input::Rules(others) = &moment.input {
                rules = others.clone();
            }
            for (uid, usage) in &moment.after.usage {
                let Some(who) = whose(*uid) else { continue };
                let quota = reference::quota(&trace.limits, &rules, who);
                let before = before.usage.get(uid).copied().unwrap_or_default();
                // Groups are a connection's, and rules may say other things of each.
                let is_everybodys = rules.quota.iter().all(|rule| rule.whom.is_none());
                for (before, usage, most) in bounds(&before, usage, &quota) {
                    let holds = usage <= most.max(before);
                    prop_assert!(holds || !is_everybodys, "{} {}", uid, trace.until(at));
                }
            }
        }
    }

    #[test]
    fn what_users_have_is_given_back_to_the_last(history in histories()) {
        let trace = play(&history);

        let last = trace.moments.last().map_or(&trace.first, |moment| &moment.after);
        for usage in last.usage.values() {
            let Usage { connections, watches, .. } = *usage;
            let left = Usage { connections, watches, ..Usage::default() };
            prop_assert_eq!(*usage, left);
        }
        let connections: u64 = last.usage.values().map(|usage| usage.connections).sum();
        prop_assert_eq!(connections, last.statistics.connections);
    }

    #[test]
    fn there_is_room_for_all_that_is_written_without_asking(history in histories()) {
        let trace = play(&history);

        for (at, _, moment) in trace.steps() {
            prop_assert!(moment.written <= moment.room, "{}", trace.until(at));
        }
    }

    #[test]
    fn the_statistics_add_up(history in histories()) {
        let trace = play(&history);

        for (at, before, moment) in trace.steps() {
            let now = &moment.after.statistics;
            let grew = growing(&before.statistics).into_iter().zip(growing(now));
            prop_assert_eq!(now.entries, moment.after.entries.len() as u64, "{}", trace.until(at));
            prop_assert_eq!(
                now.entries, now.given - now.taken - now.closed - now.expired, "{}", trace.until(at)
            );
            let counts_anew = matches!(moment.input, Input::Upgrade);
            let mut grew = grew.into_iter();
            prop_assert!(counts_anew || grew.all(|(then, now)| then <= now), "{}", trace.until(at));
        }
    }

    #[test]
    fn the_audit_accounts_for_all_that_is_written_down_and_handed_out(history in histories()) {
        let trace = play(&history);

        for (at, _, moment) in trace.steps() {
            let (mut came, mut went, mut reopened) = (BTreeSet::new(), BTreeSet::new(), 0);
            for (by, deed, id, _) in moment.audited() {
                match deed {
                    Deed::Changed(Change::Given | Change::Replaced) => drop(came.insert(id)),
                    Deed::Changed(Change::Reopened) => {
                        reopened += 1;
                        came.insert(id);
                    }
                    Deed::Changed(Change::Taken) => {
                        let has_left = matches!(
                            &moment.input,
                            Input::Sent(to) | Input::Call(to, Call::Commit { .. }) if by == Some(*to)
                        );
                        prop_assert!(has_left, "{}", trace.until(at));
                        went.insert(id);
                    }
                    Deed::Changed(Change::Closed | Change::Expired | Change::HungUp) => {
                        went.insert(id);
                    }
                    Deed::Copied | Deed::Lent => {}
                }
            }
            let put: BTreeSet<_> =
                moment.records().flat_map(|(put, _)| put).map(|put| put.id).collect();
            let gone: BTreeSet<_> = moment.records().flat_map(|(_, gone)| gone).copied().collect();
            prop_assert!(matches!(moment.input, Input::Point) || came == put, "{}", trace.until(at));
            prop_assert!(went.is_subset(&gone), "{}", trace.until(at));
            prop_assert_eq!(went.len() + reopened, gone.len(), "{}", trace.until(at));
            for (to, name) in moment.performed.iter().flat_map(Performed::handed_for_now) {
                let mut audited = moment.audited();
                prop_assert!(
                    audited.any(|(by, _, _, what)| by == Some(to) && what == name),
                    "{}", trace.until(at)
                );
            }
        }
    }

    #[test]
    fn a_call_has_one_answer_and_one_record(history in histories()) {
        let trace = play(&history);

        let mut in_progress = BTreeSet::new();
        for (at, _, moment) in trace.steps() {
            if let Some((by, _)) = moment.call() {
                prop_assert!(in_progress.insert(by), "{}", trace.until(at));
            }
            if let Input::Disconnect(by) = moment.input {
                in_progress.remove(&by);
            }
            for (_, to, _) in moment.answers() {
                prop_assert!(in_progress.remove(&to), "{:?} did not ask: {}", to, trace.until(at));
            }
            let records: Vec<_> = moment.records().collect();
            let done = moment.done();
            let says = |((put, gone), done): (&(&[_], &[_]), &Option<_>)| {
                put.len() + gone.len() + done.iter().len() > 0
            };
            prop_assert!(records.iter().zip(&done).all(says), "{}", trace.until(at));
            prop_assert!(done.iter().skip(1).all(Option::is_none), "{}", trace.until(at));
            // Behind its own record there may be one of what was to end when its hold does.
            prop_assert!(records.len() <= 2, "{}", trace.until(at));
            prop_assert!(records.iter().skip(1).all(|(put, _)| put.is_empty()));
        }
    }

    #[test]
    fn who_watches_knows_what_list_shows(history in histories()) {
        let trace = play(&history);

        let mut revision = 0;
        let [mut root, mut somebody] = trace.watchers.map(|id| (id, BTreeMap::new()));
        for (at, _, moment) in trace.steps() {
            for told in moment.told() {
                prop_assert!(told.entry.revision > revision, "{}", trace.until(at));
                for (id, known) in [&mut root, &mut somebody] {
                    if told.to.contains(id) {
                        learn(known, told.change, told.entry.clone(), told.fd);
                    }
                }
            }
            if let Input::Rules(_) = moment.input {
                // Of what it may know from here on, it is told from here on; it lists anew.
                somebody.1 = as_watched(&moment.after.known);
            }
            let told = moment.told();
            revision = told.iter().map(|told| told.entry.revision).max().unwrap_or(revision);
            prop_assert_eq!(&root.1, &as_watched(&moment.after.entries), "{}", trace.until(at));
            prop_assert_eq!(&somebody.1, &as_watched(&moment.after.known), "{}", trace.until(at));
        }
    }

    #[test]
    fn no_call_waits_for_ever(history in histories()) {
        let trace = play(&history);

        for (at, _, moment) in trace.steps() {
            let now_usec = moment.after.now_usec;
            let ticked = matches!(moment.input, Input::Tick);
            let ends = |waits: &Waits| match waits {
                Waits::Answer => false,
                Waits::Names(until_usec) => !ticked || *until_usec > now_usec,
                Waits::Opening | Waits::Leaving | Waits::Changes => true,
            };
            prop_assert!(moment.after.unanswered.values().all(ends), "{}", trace.until(at));
        }
    }

    #[test]
    fn nobody_gets_more_access_than_the_giver_allowed(history in histories()) {
        let trace = play(&history);

        let mut seen: BTreeMap<u64, Entry> = BTreeMap::new();
        for (at, _, moment) in trace.steps() {
            let openings = moment.openings().flat_map(|(_, openings)| openings);
            let wanted = match moment.call() {
                Some((_, Call::Reopen { reopenings })) => reopenings.as_slice(),
                _ => &[],
            };
            for (opening, wanted) in openings.zip(wanted) {
                let entry = &seen[&opening.fd];
                let kept = wanted.access.unwrap_or(entry.access);
                let handed = wanted.hand_out.unwrap_or(kept);
                let both: Vec<_> = opening.wanted().collect();
                prop_assert_eq!(both, [kept, handed], "{}", trace.until(at));
                prop_assert!(kept.covers(handed), "{}", trace.until(at));
                let widens = !entry.access.covers(opening.access);
                let by_peer = opening.rights != Rights::Daemon;
                prop_assert!(entry.may_reopen.covers(opening.access), "{}", trace.until(at));
                prop_assert!(!(widens && entry.kind == Kind::Fifo), "{}", trace.until(at));
                prop_assert_eq!(by_peer, gives_more(entry, opening), "{}", trace.until(at));
            }
            let entries = moment.view.iter().chain(&moment.after.entries);
            seen.extend(entries.map(|(entry, fd)| (*fd, entry.clone())));
        }
    }
}

/// Plays the history that some bytes are the seeds of, and holds the model against it, which is the first
/// law, and the law that the first byte names: for a fuzzer, which changes a step when it changes a byte,
/// and finds the more the more histories it plays.
pub(crate) fn hold(bytes: &[u8]) {
    let Some((which, seeds)) = bytes.split_first() else { return };
    let history = of_seeds(seeds);
    let trace = play(&history);
    let laws = [LAWS, cuts::LAWS, repeats::LAWS, rights::LAWS].concat();
    for law in [laws[0], laws[usize::from(*which) % laws.len()]] {
        law(&trace).unwrap_or_else(|error| panic!("{error}\n{history:#?}"));
    }
}

#[test]
fn the_laws_hold_for_histories_that_bytes_are_the_seeds_of() {
    for seed in 0..50 {
        let seeds: Vec<u8> =
            (0..200u8).map(|at| at.wrapping_mul(seed | 1).wrapping_add(seed)).collect();

        hold(&seeds);
    }
}

/// No law, but what makes them worth their while.
#[test]
#[expect(clippy::disallowed_types, reason = "here it is the machine that is measured")]
fn histories_are_played_by_the_thousand() {
    let mut runner = TestRunner::deterministic();
    let history = || histories().new_tree(&mut runner).map(|tree| tree.current());
    let histories: Vec<History> =
        std::iter::repeat_with(history).take(800).collect::<Result<_, _>>().unwrap();

    let begin = std::time::Instant::now();
    let traces: Vec<_> = histories.iter().map(play).collect();
    let moments: usize = traces.iter().map(|trace| trace.moments.len()).sum();

    let took = begin.elapsed().as_secs_f64();
    let (histories, steps) = (histories.len() as f64 / took, moments as f64 / took);
    eprintln!("{histories:.0} histories a second, {steps:.0} steps a second, model and all");
    assert!(moments > 200);
    let all = traces.iter().flat_map(|trace| &trace.moments);
    let openings = all.flat_map(|moment| moment.openings().flat_map(|(_, openings)| openings));
    let by_path = openings.filter(|opening| opening.place.is_some()).count();
    eprintln!("{by_path} files were to be opened by path");
    assert!(by_path > 5);
    let all = || traces.iter().flat_map(|trace| &trace.moments);
    let said: Vec<_> = all().flat_map(Moment::answers).map(|(.., said)| said).collect();
    for limit in LIMITS {
        let met = said.iter().filter(|said| exceeds(said, limit)).count();
        eprintln!("{met} calls met {limit}");
        assert!(met > 0, "{limit}");
    }
    let failed = all().filter(|moment| moment.says_rolled_back()).count();
    eprintln!("{failed} calls came after their transaction had been idle for too long");
    assert!(failed > 5);
}

/// The limits that calls can meet.
const LIMITS: [&str; 10] = [
    "entries",
    "descriptors",
    "opens",
    "entriesPerUser",
    "labelBytesPerUser",
    "waitsPerUser",
    "watchesPerUser",
    "transactionsPerUser",
    "namesPerTransaction",
    "opensPerUser",
];

fn exceeds(said: &Said, limit: &str) -> bool {
    match said {
        Said::Plain(Err(Refusal::LimitExceeded { limit: met, .. })) => met == limit,
        Said::Plain(_) | Said::ToConfirm(_) | Said::Listing => false,
    }
}

pub(crate) fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: 2 * default.cases,
        // All laws have their histories from one strategy, so each tries the seeds of all.
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "proptest-regressions/laws.txt",
        ))),
        // Half of the time went into good randomness, which nobody needs here.
        rng_algorithm: RngAlgorithm::XorShift,
        ..default
    }
}

/// Whose transactions are open.
#[derive(Default)]
pub(crate) struct Transactions(BTreeSet<ConnectionId>);

impl Transactions {
    pub(crate) fn is_open(&self, id: ConnectionId) -> bool {
        self.0.contains(&id)
    }

    pub(crate) fn note(&mut self, moment: &Moment) {
        if let (Input::Call(by, Call::Begin), false) = (&moment.input, moment.is_refused()) {
            self.0.insert(*by);
        }
        match moment.input {
            // Refused outside a transaction, or for a ticket that is another's. Where the transaction was
            // rolled back before, it is over all the same.
            Input::Call(_, Call::Commit { .. } | Call::Rollback)
                if moment.is_refused() && !moment.says_rolled_back() => {}
            Input::Call(by, Call::Commit { .. } | Call::Rollback) | Input::Disconnect(by) => {
                self.0.remove(&by);
            }
            Input::Connect
            | Input::Call(..)
            | Input::Opened(..)
            | Input::Sent(_)
            | Input::Unsent(_)
            | Input::HangUp
            | Input::Point
            | Input::Tick
            | Input::Rules(_)
            | Input::Upgrade
            | Input::Nothing => {}
        }
    }
}

fn opened_for(moment: &Moment) -> Vec<(ConnectionId, Vec<Name>)> {
    let names = |openings: &[Opening<u64>]| openings.iter().map(|it| it.name.clone()).collect();
    moment.openings().map(|(by, openings)| (by, names(openings))).collect()
}

fn closed(moment: &Moment) -> BTreeSet<u64> {
    moment.closed().collect()
}

/// What was opened only to be handed out, and was: who waits for it is not whom it was opened for.
fn opened_and_handed_over(moment: &Moment) -> Vec<u64> {
    let Input::Opened(by, Ok(files)) = &moment.input else { return Vec::new() };
    let to_caller = moment.performed.iter().filter(|effect| effect.is_for(*by));
    let handed: BTreeSet<_> = to_caller.flat_map(Performed::handed).collect();
    let opened = files.iter().flatten().map(|file| file.fd);
    opened.filter(|fd| handed.contains(fd)).collect()
}

/// What somebody had and has of each thing, and how much that may be.
fn bounds(before: &Usage, usage: &Usage, quota: &Quota) -> [(u64, u64, u64); 9] {
    [
        (before.entries, usage.entries, quota.entries),
        (before.staged, usage.staged, quota.entries),
        (before.label_bytes, usage.label_bytes, quota.label_bytes),
        (before.staged_label_bytes, usage.staged_label_bytes, quota.label_bytes),
        (before.connections, usage.connections, quota.connections),
        (before.waits, usage.waits, quota.waits),
        (before.watches, usage.watches, quota.watches),
        (before.transactions, usage.transactions, quota.transactions),
        (before.opens, usage.opens, quota.opens),
    ]
}

/// The picture with so many refusals less.
fn but_refused(picture: &Picture, refused: u64) -> Picture {
    let mut picture = picture.clone();
    picture.statistics.refused -= refused;
    picture
}

fn growing(of: &Statistics) -> [u64; 7] {
    [of.given, of.taken, of.copied, of.closed, of.reopened, of.expired, of.refused]
}

/// What a watcher makes of what it is told.
fn learn(known: &mut BTreeMap<Name, (Entry, u64)>, change: Change, entry: Entry, fd: u64) {
    match change {
        Change::Given | Change::Replaced | Change::Reopened => {
            known.insert(entry.name.clone(), (entry, fd));
        }
        Change::Taken | Change::Closed | Change::Expired | Change::HungUp => {
            known.remove(&entry.name);
        }
    }
}

/// The entries as Watch tells of them: neither who holds them, nor all of how they were given.
fn as_watched(entries: &Entries) -> BTreeMap<Name, (Entry, u64)> {
    let told = as_told_to_all(entries).into_iter();
    told.map(|(entry, fd)| (entry.name.clone(), (Entry { held_by: None, ..entry }, fd))).collect()
}

/// The entries, but for what only their givers' users and root are told.
fn as_told_to_all(entries: &Entries) -> Entries {
    let told = |entry: &Entry| Entry {
        share: None,
        ephemeral: None,
        close_on_hangup: None,
        ..entry.clone()
    };
    entries.iter().map(|(entry, fd)| (told(entry), *fd)).collect()
}

/// Whether a Reopen gives anything that the kept descriptor does not give.
fn gives_more(entry: &Entry, opening: &Opening<u64>) -> bool {
    let (old, new) = (entry.flags, opening.flags);
    let widens = !entry.access.covers(opening.access);
    let overwrites = old.contains(Flags::APPEND) && !new.contains(Flags::APPEND);
    let unseen = new.contains(Flags::NOATIME) && !old.contains(Flags::NOATIME);
    widens || overwrites || unseen || opening.place.is_some()
}
