//! Nobody gets what the rules do not give: neither a descriptor, nor more access to it, by whatever way.

use std::collections::BTreeMap;

use fdstash_proto::{Access, Call, Flags, Kind, Name, Refusal, Reply, Share, Taking};
use fdstash_stash::{
    ConnectionId, Facts, Inspected, Opening, Rights, Rules, Verb, Verdict, explain,
};
use proptest::prelude::*;

use super::{
    config,
    history::{histories, people, rules},
    reference,
    trace::{Input, Moment, Performed, Trace, Waits},
    world::play,
};

laws! {
    #[test]
    fn nobody_gets_a_descriptor_that_the_rules_do_not_give(history in histories()) {
        let trace = play(&history);

        let mut witness = Witness::new(trace);
        for (at, _, moment) in trace.steps() {
            witness.see(moment);
            for (to, verb, fd) in witness.handed(moment) {
                let allowed = witness.may(to, verb, fd);
                prop_assert!(allowed, "{:?} {:?} {}: {}", to, verb, fd, trace.until(at));
            }
            prop_assert!(witness.went_to_whom_it_was_opened_for(moment), "{}", trace.until(at));
            for (by, opening) in moment.openings().flat_map(|(by, all)| all.iter().map(move |one| (by, one))) {
                prop_assert!(witness.may_open(by, opening), "{:?}: {}", opening, trace.until(at));
            }
            witness.remember(moment);
        }
    }

    #[test]
    fn nobody_gives_a_name_that_is_kept_for_others(history in histories()) {
        let trace = play(&history);

        let mut witness = Witness::new(trace);
        for (at, _, moment) in trace.steps() {
            witness.see(moment);
            let Input::Call(by, Call::Give { gifts, .. }) = &moment.input else { continue };
            let who = &trace.people[by];
            let kept = |name: &Name| reference::is_kept_from(&witness.rules, who, name);
            // One that was done before is answered as it was.
            if gifts.iter().any(|gift| kept(&gift.name)) && !moment.predicted.is_repeated {
                prop_assert!(moment.is_refused(), "{}", trace.until(at));
            }
        }
    }

}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_root_is_told_of_a_call_is_what_comes_of_it(history in histories()) {
        let trace = play(&history);

        for (at, _, moment) in trace.steps() {
            let Some((name, verb, verdict)) = &moment.explained else { continue };
            // One that was done before is answered as it was.
            if moment.predicted.is_repeated {
                continue;
            }
            let by = moment.caller();
            let refused = |effect: &Performed| {
                let Performed::Answer { to, outcome: Err(refusal), .. } = effect else {
                    return None;
                };
                (Some(*to) == by).then(|| refusal.clone())
            };
            let answer = moment.performed.iter().find_map(refused);
            // In a transaction that was rolled back, nothing is done.
            if matches!(&answer, Some(Refusal::TransactionState { .. })) {
                continue;
            }
            let is_denied = matches!(&answer, Some(Refusal::AccessDenied { verb: denied, .. })
                if denied == verb.as_str());
            // Whoever wants a name that is not there yet, is told that it is, if it may know.
            let is_taken = matches!(answer, Some(Refusal::AlreadyExists { .. }));
            let may_not_wait = matches!(&answer, Some(Refusal::LimitExceeded { limit, .. })
                if limit == "waitsPerUser");
            let is_hidden = matches!(answer, Some(Refusal::NotFound { .. }));
            let waits = by.is_some_and(|by| matches!(moment.after.unanswered.get(&by), Some(Waits::Names(_))));
            // Of a Reopen more can be denied than the verb: the access, and the place.
            let is_reopen = matches!(verb, Verb::Reopen | Verb::ReopenByPath);
            let holds = match verdict {
                Verdict::Denied if *verb == Verb::Give => is_denied || is_taken,
                Verdict::Hidden if *verb == Verb::Give => is_denied,
                Verdict::Denied => is_denied,
                Verdict::Hidden => is_hidden || waits || may_not_wait,
                Verdict::Allowed => !is_denied || is_reopen,
            };
            prop_assert!(holds, "{} {:?} {:?}: {}", name, verb, verdict, trace.until(at));
        }
    }

    #[test]
    fn what_is_explained_is_what_is_judged(rules in rules(), which in 0usize..6, verb in 0usize..7) {
        let (who, verb) = (&people()[which], Verb::ALL[verb]);
        for name in ["a", "b", "vm/disk1"].map(|text| Name::new(text).unwrap()) {
            let (verdict, _) = explain(&rules, who, verb, &name, None);

            let nobodys = reference::verdict(&rules, who, verb, &name, 77, &Share::default());
            let expected = match verb {
                Verb::Give if reference::is_kept_from(&rules, who, &name) => Verdict::Denied,
                Verb::Give => Verdict::Allowed,
                Verb::Take
                | Verb::Copy
                | Verb::Close
                | Verb::Reopen
                | Verb::ReopenByPath
                | Verb::List => nobodys,
            };
            prop_assert_eq!(verdict, expected);
        }
    }
}

/// What is known of a descriptor by what was said when it came.
#[derive(Clone)]
struct Known {
    name: Name,
    giver: u32,
    share: Share,
    facts: Facts,
    may_reopen: Access,
}

/// Somebody who sees all that goes in and out, and nothing else.
struct Witness<'a> {
    trace: &'a Trace,
    rules: Rules,
    known: BTreeMap<u64, Known>,
    calls: BTreeMap<ConnectionId, Call<Inspected<u64>>>,
    openings: BTreeMap<ConnectionId, Vec<Opening<u64>>>,
}

impl<'a> Witness<'a> {
    fn new(trace: &'a Trace) -> Self {
        Self {
            trace,
            rules: Rules::default(),
            known: BTreeMap::new(),
            calls: BTreeMap::new(),
            openings: BTreeMap::new(),
        }
    }

    /// What comes in.
    fn see(&mut self, moment: &Moment) {
        match &moment.input {
            Input::Rules(rules) => self.rules = rules.clone(),
            Input::Call(by, call) => {
                self.calls.insert(*by, call.clone());
                let Call::Give { gifts, .. } = call else { return };
                let giver = self.trace.people[by].peer.uid;
                self.known.extend(gifts.iter().map(|gift| {
                    let (name, share) = (gift.name.clone(), gift.share.clone());
                    let facts = gift.fd.facts.clone();
                    let may_reopen = gift.may_reopen.unwrap_or(facts.access);
                    (gift.fd.fd, Known { name, giver, share, facts, may_reopen })
                }));
            }
            Input::Opened(by, Ok(files)) => {
                for (opening, files) in self.openings.remove(by).into_iter().flatten().zip(files) {
                    let Some(known) = self.known.get(&opening.fd).cloned() else { continue };
                    self.known.extend(files.iter().map(|file| {
                        (file.fd, Known { facts: file.facts.clone(), ..known.clone() })
                    }));
                }
            }
            Input::Opened(..)
            | Input::Connect
            | Input::Disconnect(_)
            | Input::Sent(_)
            | Input::Unsent(_)
            | Input::HangUp
            | Input::Point
            | Input::Tick
            | Input::Upgrade
            | Input::Nothing => {}
        }
    }

    /// What goes out, to whom, and what that needs; but for what was opened to go out, which needed it
    /// when it was to be opened.
    fn handed(&self, moment: &Moment) -> Vec<(ConnectionId, Verb, u64)> {
        let opened = if let Input::Opened(by, _) = moment.input { Some(by) } else { None };
        let handed = handed(moment).filter(|(to, _)| opened != Some(*to));
        handed.map(|(to, fd)| (to, verb_of(&self.calls[&to]), fd)).collect()
    }

    /// Whether who asked for files to be opened got of them what was opened for it to have, each once,
    /// and nothing else; or nothing at all, where it has gone.
    fn went_to_whom_it_was_opened_for(&self, moment: &Moment) -> bool {
        let Input::Opened(by, Ok(files)) = &moment.input else { return true };
        let got: Vec<_> = handed(moment).filter(|(to, _)| to == by).map(|(_, fd)| fd).collect();
        let expected: Vec<_> = match &self.calls[by] {
            Call::Take { .. } => files.iter().flatten().map(|file| file.fd).collect(),
            // One of each is kept.
            Call::Reopen { .. } => files.iter().filter_map(|file| Some(file.last()?.fd)).collect(),
            Call::Give { .. }
            | Call::Close { .. }
            | Call::Begin
            | Call::Commit { .. }
            | Call::Rollback
            | Call::List { .. }
            | Call::Watch { .. }
            | Call::GetStatistics
            | Call::ExplainPolicy { .. } => Vec::new(),
        };
        got.is_empty() || got == expected
    }

    fn may(&self, who: ConnectionId, verb: Verb, fd: u64) -> bool {
        let Known { name, giver, share, .. } = &self.known[&fd];
        let who = &self.trace.people[&who];
        reference::rights(&self.rules, who, name, *giver, share).contains(&verb)
    }

    /// Whether a file may be opened so: with the daemon's rights only what gives no more than is there.
    fn may_open(&self, by: ConnectionId, opening: &Opening<u64>) -> bool {
        let call = &self.calls[&by];
        let Known { facts, may_reopen, .. } = &self.known[&*opening.fd];
        let is_as_it_is = opening.access == facts.access
            && opening.flags == facts.flags
            && opening.place.is_none()
            && opening.hand_out.is_none();
        let is_only_probed = opening.count == 0 && opening.hand_out.is_none();
        let may = match call {
            // Its own gift.
            Call::Give { .. } if is_only_probed => {
                opening.rights == Rights::Asker && opening.access == *may_reopen
            }
            Call::Give { .. } => is_as_it_is && opening.count == 1,
            Call::Take { .. } => {
                is_as_it_is && opening.count == 1 && self.may(by, Verb::Copy, *opening.fd)
            }
            Call::Reopen { .. } => self.may_reopen(by, opening),
            Call::Close { .. }
            | Call::Begin
            | Call::Commit { .. }
            | Call::Rollback
            | Call::List { .. }
            | Call::Watch { .. }
            | Call::GetStatistics
            | Call::ExplainPolicy { .. } => false,
        };
        may && opening.asker == self.trace.people[&by]
    }

    fn may_reopen(&self, by: ConnectionId, opening: &Opening<u64>) -> bool {
        let Known { facts, may_reopen, .. } = &self.known[&*opening.fd];
        let is_pipes_other_end = facts.kind == Kind::Fifo && !facts.access.covers(opening.access);
        let (then, now) = (facts.flags, opening.flags);
        let is_no_more = opening.place.is_none()
            && facts.access.covers(opening.access)
            && (now.contains(Flags::APPEND) || !then.contains(Flags::APPEND))
            && (then.contains(Flags::NOATIME) || !now.contains(Flags::NOATIME));
        let who = &self.trace.people[&by];
        let may = match &opening.place {
            None => self.may(by, Verb::Reopen, *opening.fd),
            Some(place) => {
                let path = format!("{}/{}", place.below, place.path);
                self.may(by, Verb::ReopenByPath, *opening.fd)
                    && reference::may_open_at(&self.rules, who, &opening.name, &path)
            }
        };
        may && may_reopen.covers(opening.access)
            && opening.hand_out.is_some_and(|handed| opening.access.covers(handed))
            && !is_pipes_other_end
            && (is_no_more || opening.rights == Rights::Asker)
    }

    fn remember(&mut self, moment: &Moment) {
        self.openings.extend(moment.openings().map(|(by, openings)| (by, openings.to_vec())));
    }
}

/// What goes out, and to whom.
fn handed(moment: &Moment) -> impl Iterator<Item = (ConnectionId, u64)> {
    moment.performed.iter().flat_map(|effect| {
        let Performed::Answer { to, outcome: Ok(Reply::Handed(all)), .. } = effect else {
            return Vec::new();
        };
        all.iter().map(|one| (*to, one.fd)).collect()
    })
}

/// What a call that hands out needs, where it names no path.
fn verb_of(call: &Call<Inspected<u64>>) -> Verb {
    match call {
        Call::Take { taking: Taking::Move, .. } => Verb::Take,
        Call::Take { taking: Taking::Copy | Taking::Fresh, .. } => Verb::Copy,
        Call::Reopen { .. } => Verb::Reopen,
        Call::Give { .. }
        | Call::Close { .. }
        | Call::Begin
        | Call::Commit { .. }
        | Call::Rollback
        | Call::List { .. }
        | Call::Watch { .. }
        | Call::GetStatistics
        | Call::ExplainPolicy { .. } => panic!("it hands nothing out: {call:?}"),
    }
}
