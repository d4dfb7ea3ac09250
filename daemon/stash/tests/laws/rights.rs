//! Nobody gets what the rules do not give: neither a descriptor, nor more access to it, by whatever way.

use std::collections::BTreeMap;

use fdstash_proto::{Call, Name, Reply, Share, Taking};
use fdstash_stash::{ConnectionId, Inspected, Opening, Rights, Rules, Verb, Verdict, explain};
use proptest::prelude::*;

use super::{
    config,
    history::{histories, people, rules},
    reference,
    trace::{Input, Moment, Performed, Trace},
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
    fn what_is_explained_is_what_is_judged(rules in rules(), which in 0usize..4, verb in 0usize..7) {
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
                    (gift.fd.fd, Known { name, giver, share })
                }));
            }
            Input::Opened(by, Ok(files)) => {
                for (opening, files) in self.openings.remove(by).into_iter().flatten().zip(files) {
                    let Some(known) = self.known.get(&opening.fd).cloned() else { continue };
                    self.known.extend(files.iter().map(|file| (file.fd, known.clone())));
                }
            }
            Input::Opened(..)
            | Input::Connect
            | Input::Disconnect(_)
            | Input::Sent(_)
            | Input::Unsent(_)
            | Input::HangUp
            | Input::Tick
            | Input::Upgrade
            | Input::Nothing => {}
        }
    }

    /// What goes out, to whom, and what that needs; but for what was opened to go out, which needed it
    /// when it was to be opened.
    fn handed(&self, moment: &Moment) -> Vec<(ConnectionId, Verb, u64)> {
        let opened = if let Input::Opened(by, _) = moment.input { Some(by) } else { None };
        let mut handed = Vec::new();
        for effect in &moment.performed {
            let Performed::Answer { to, outcome: Ok(Reply::Handed(all)), .. } = effect else {
                continue;
            };
            if opened != Some(*to) {
                let verb = verb_of(&self.calls[to]);
                handed.extend(all.iter().map(|one| (*to, verb, one.fd)));
            }
        }
        handed
    }

    fn may(&self, who: ConnectionId, verb: Verb, fd: u64) -> bool {
        let Known { name, giver, share } = &self.known[&fd];
        let who = &self.trace.people[&who];
        reference::rights(&self.rules, who, name, *giver, share).contains(&verb)
    }

    fn may_open(&self, by: ConnectionId, opening: &Opening<u64>) -> bool {
        let call = &self.calls[&by];
        if let Call::Give { .. } = call {
            // Its own gift.
            return true;
        }
        let Some(place) = &opening.place else { return self.may(by, verb_of(call), *opening.fd) };
        let who = &self.trace.people[&by];
        let path = format!("{}/{}", place.below, place.path);
        self.may(by, Verb::ReopenByPath, *opening.fd)
            && reference::may_open_at(&self.rules, who, &opening.name, &path)
            && opening.rights == Rights::Peer(who.clone())
    }

    fn remember(&mut self, moment: &Moment) {
        self.openings.extend(moment.openings().map(|(by, openings)| (by, openings.to_vec())));
    }
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
