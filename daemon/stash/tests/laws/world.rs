//! The world around a stash: it carries out effects, in memory, and writes down what happens. A
//! model beside the stash is told the same.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use fdstash_proto::{Call, Keeper, Name, Pattern, Reply};
use fdstash_stash::{
    ConnectionId, Deed, Details, Effect, Effects, EntryId, Facts, Inspected, Kept, Limits, Listed,
    Now, Number, OpenFailure, Opening, Pointed, Rules, Stash, Verb, Verdict, Who,
};

use super::{
    history::{History, Step, people},
    journal::Journal,
    model::Model,
    numbers::{
        facts_of, number_of, numbers_of, only_wish, shown, target_of, waits_of, with_descriptors,
        written,
    },
    token::{Ledger, Token},
    trace::{Entries, Input, Moment, Performed, Picture, Predicted, Told, Trace, Waits},
};

/// The inode of what stands at every path.
const ELSEWHERE: u64 = 1 << 32;

/// What stands on the other clock when the boot clock begins.
pub(crate) const BOOTED_AT_USEC: u64 = 1_000_000;

/// Plays a history from its beginning. Then all calls come to their end, everybody leaves, and root
/// closes what is left.
pub(crate) fn play(history: &History) -> Trace {
    let mut world = World::new(history);
    let first = world.picture();
    let mut moments: Vec<_> = history.steps.iter().flat_map(|step| world.step(step)).collect();
    moments.extend(world.end());
    let World { watchers, people, .. } = world;
    Trace { limits: history.limits, watchers, first, moments, people }
}

struct World {
    limits: Limits,
    rules: Rules,
    stash: Stash<Token>,
    model: Model,
    ledger: Rc<Ledger>,
    now_usec: u64,
    /// Root, and somebody else: they watch, and do nothing else.
    watchers: [ConnectionId; 2],
    /// Those who call, and what their calls wait for.
    callers: BTreeMap<ConnectionId, Option<Waits>>,
    people: BTreeMap<ConnectionId, Who>,
    openings: Vec<(ConnectionId, Vec<Opening<Token>>)>,
    polled: BTreeMap<EntryId, u64>,
    /// What root was told of the call that is made just now.
    explained: Option<(Name, Verb, Verdict)>,
    /// All that is written down.
    journal: Journal,
}

impl World {
    /// Root and somebody else watch; six others may call.
    fn new(history: &History) -> Self {
        let mut world = Self {
            limits: history.limits,
            rules: Rules::default(),
            stash: Stash::new(history.limits, Keeper::Nobody),
            model: Model::new(history.limits),
            ledger: Rc::default(),
            now_usec: 0,
            watchers: [ConnectionId(0); 2],
            callers: BTreeMap::new(),
            people: BTreeMap::new(),
            openings: Vec::new(),
            polled: BTreeMap::new(),
            explained: None,
            journal: Journal::default(),
        };
        world.stash.set_audited(true);
        world.journal.rewrite(&world.stash);
        world.pass(1000);
        let [first, second, third, one, another, root] = people();
        world.watchers = [&root, &third].map(|who| world.connect(who).expect("room for watchers"));
        for watcher in world.watchers {
            world.call(watcher, Call::Watch { pattern: Pattern::all() });
            world.callers.remove(&watcher);
        }
        for who in [first, second, third, one, another, root] {
            world.connect(&who).expect("room for those who call");
        }
        world
    }

    fn step(&mut self, step: &Step) -> Vec<Moment> {
        let mut moments = Vec::new();
        if let Step::Upgrade = step {
            // Who cannot go on is hung up on, and that may serve another who then cannot either.
            let cannot = |world: &Self| {
                world.callers.keys().copied().find(|id| !world.stash.can_be_carried(*id))
            };
            while let Some(id) = cannot(self) {
                moments.push(self.act(Planned::Disconnect(id)));
            }
        }
        let planned = self.plan(step).unwrap_or(Planned::Pass(0));
        moments.push(self.act(planned));
        moments
    }

    /// What a step means here and now, if anything.
    fn plan(&self, step: &Step) -> Option<Planned> {
        let nth = |which: usize, of: usize| which.checked_rem(of);
        let caller = |which: usize, fits: fn(Option<Waits>) -> bool| {
            let fitting = self.callers.iter().filter(|(_, waits)| fits(**waits));
            let fitting: Vec<_> = fitting.map(|(id, _)| *id).collect();
            nth(which, fitting.len()).map(|at| fitting[at])
        };
        Some(match *step {
            Step::Connect(which) => Planned::Connect(people()[nth(which, people().len())?].clone()),
            Step::Disconnect(which) => Planned::Disconnect(caller(which, |_| true)?),
            Step::Call(which, ref call) => {
                Planned::Call(caller(which, |waits| waits.is_none())?, call.clone())
            }
            Step::Opened(which, failing) => {
                Planned::Opened(nth(which, self.openings.len())?, failing)
            }
            Step::Leave(which, left) => {
                let by = caller(which, |waits| waits == Some(Waits::Leaving))?;
                if left { Planned::Sent(by) } else { Planned::Unsent(by) }
            }
            Step::HangUp(which) => {
                let at = nth(which, self.polled.len())?;
                Planned::HangUp(*self.polled.keys().nth(at)?)
            }
            Step::Point(which) => {
                let unknown = |kept: &&Kept<Token>| kept.details.facts.target.is_none();
                let unknown: Vec<_> = self.stash.kept().filter(unknown).collect();
                let kept = unknown[nth(which, unknown.len())?];
                let Details { id, ref name, .. } = *kept.details;
                let target = target_of(kept.details.facts.inode);
                Planned::Point(Pointed { id, name: name.clone(), target })
            }
            Step::Tick(usec) => Planned::Tick(usec),
            Step::Pass(usec) => Planned::Pass(usec),
            Step::Rewrite => Planned::Rewrite,
            Step::Rules(ref rules) => Planned::Rules(rules.clone()),
            Step::Upgrade => Planned::Upgrade,
        })
    }

    fn act(&mut self, planned: Planned) -> Moment {
        let (input, effects, predicted) = match planned {
            Planned::Connect(who) => {
                let _ = self.connect(&who);
                (Input::Connect, Vec::new(), Predicted::default())
            }
            Planned::Disconnect(by) => {
                self.callers.remove(&by);
                let effects = self.stash.disconnect(by, self.now());
                (Input::Disconnect(by), effects, self.model.disconnect(by))
            }
            Planned::Call(by, call) => self.call(by, call),
            Planned::Opened(at, failing) => {
                let (by, openings) = self.openings.swap_remove(at);
                self.goes_on(by, Some(Waits::Answer));
                match failing {
                    Some(failing) => self.fail_to_open(by, openings, failing),
                    None => self.open(by, openings),
                }
            }
            Planned::Sent(by) => {
                self.goes_on(by, None);
                (Input::Sent(by), self.stash.sent(by, self.now()), self.model.sent(by))
            }
            Planned::Unsent(by) => {
                self.goes_on(by, None);
                (Input::Unsent(by), self.stash.unsent(by, self.now()), self.model.unsent(by))
            }
            Planned::HangUp(id) => {
                let fd = self.polled[&id];
                let effects = self.stash.hung_up(id, self.now());
                (Input::HangUp, effects, self.model.hung_up(fd))
            }
            Planned::Point(pointed) => {
                let predicted = self.model.pointed(&pointed);
                (Input::Point, self.point(pointed), predicted)
            }
            Planned::Tick(usec) => {
                self.pass(usec);
                (Input::Tick, self.stash.tick(self.now()), self.model.tick())
            }
            Planned::Pass(usec) => {
                self.pass(usec);
                (Input::Nothing, Vec::new(), Predicted::default())
            }
            Planned::Rewrite => {
                self.rewrite();
                (Input::Nothing, Vec::new(), Predicted::default())
            }
            Planned::Rules(rules) => {
                self.rules = rules.clone();
                let predicted = self.model.set_rules(rules.clone());
                (Input::Rules(rules.clone()), self.stash.set_rules(rules, self.now()), predicted)
            }
            Planned::Upgrade => {
                let predicted = self.model.upgrade();
                let effects = self.upgrade();
                self.rewrite();
                (Input::Upgrade, effects, predicted)
            }
        };
        self.moment(input, effects, predicted)
    }

    /// Says where a descriptor points, and then of the same entry that it points elsewhere; and of one that
    /// there never was.
    fn point(&mut self, pointed: Pointed) -> Effects<Token> {
        let elsewhere = Pointed { target: "/elsewhere".into(), ..pointed.clone() };
        let never = Pointed { id: EntryId(u64::MAX), ..pointed.clone() };
        let all = vec![never, pointed, elsewhere];
        self.journal.make_room_for_targets(&self.stash, &all);
        self.stash.pointed(all).map(Effect::Record).into_iter().collect()
    }

    fn moment(&mut self, input: Input, effects: Effects<Token>, predicted: Predicted) -> Moment {
        self.model.rest();
        let performed = effects.into_iter().map(|effect| self.perform(effect)).collect();
        let mut moment = Moment {
            input,
            performed,
            predicted,
            after: self.picture(),
            expected: self.expected_picture(),
            view: Vec::new(),
            expected_view: Vec::new(),
            explained: self.explained.take(),
            faults: self.ledger.faults(),
            written: self.journal.written,
            room: self.journal.room,
        };
        if let Some(by) = moment.actor() {
            moment.view = self.entries_of(by);
            moment.expected_view = self.model.entries_of(by);
        }
        moment
    }

    fn connect(&mut self, who: &Who) -> Option<ConnectionId> {
        let outcome = self.stash.connect(who.clone());
        let expected = self.model.connect(who, outcome.as_ref().ok());
        assert_eq!(
            outcome.as_ref().err(),
            expected.as_ref(),
            "whether there is room for a connection"
        );
        self.callers.extend(outcome.as_ref().ok().map(|id| (*id, None)));
        self.people.extend(outcome.as_ref().ok().map(|id| (*id, who.clone())));
        outcome.ok()
    }

    fn call(&mut self, by: ConnectionId, call: Call<()>) -> (Input, Effects<Token>, Predicted) {
        self.goes_on(by, Some(waits_of(&call, self.now_usec)));
        let numbers = with_descriptors(call, |()| {
            let number = self.ledger.number();
            Inspected { fd: number, facts: facts_of(number) }
        });
        let tokens = with_descriptors(numbers.clone(), |gift| self.token(gift));
        self.journal.make_room(&self.stash, &tokens);
        self.explained = self.explain(by, &numbers);
        let predicted = self.model.call(by, numbers.clone());
        (Input::Call(by, numbers), self.stash.call(by, tokens, self.now()), predicted)
    }

    /// Asks, as root, what is said to a call with one name that nobody holds, and under which something
    /// is kept, or is to be.
    fn explain(
        &mut self,
        by: ConnectionId,
        call: &Call<Inspected<u64>>,
    ) -> Option<(Name, Verb, Verdict)> {
        let (name, verb) = only_wish(call).filter(|(name, _)| !self.model.is_held(name))?;
        let Who { peer, groups } = &self.people[&by];
        let is_there = self.stash.kept().any(|kept| kept.details.name == name);
        if !is_there && verb != Verb::Give {
            return None;
        }
        let gids = [&[peer.gid], &**groups].concat();
        let ask = Call::ExplainPolicy { uid: peer.uid, gids, verb, name: name.clone() };
        let [root, _] = self.watchers;
        let effects: Vec<_> = self.stash.call(root, ask, self.now()).into_iter().collect();
        let [Effect::Answer { outcome: Ok(Reply::Explained(explanation)), .. }] = &effects[..]
        else {
            panic!("root is told: {} effects", effects.len())
        };
        Some((name, verb, explanation.verdict))
    }

    /// Opens files as they are to be opened.
    fn open(
        &mut self,
        by: ConnectionId,
        openings: Vec<Opening<Token>>,
    ) -> (Input, Effects<Token>, Predicted) {
        let open_one = |opening: Opening<Token>| {
            let wanted = opening.wanted();
            let Opening { facts, flags, place, .. } = opening;
            let inode = if place.is_some() { ELSEWHERE } else { facts.inode };
            let facts = Facts { flags, inode, target: Some("/elsewhere".into()), ..facts };
            let file = |access| Inspected {
                fd: self.ledger.number(),
                facts: Facts { access, ..facts.clone() },
            };
            wanted.map(file).collect::<Vec<_>>()
        };
        let numbers: Vec<_> = openings.into_iter().map(open_one).collect();
        let tokens_of = |copies: &Vec<Inspected<u64>>| {
            copies.iter().cloned().map(|file| self.token(file)).collect()
        };
        let tokens = numbers.iter().map(tokens_of).collect();
        let predicted = self.model.opened(by, numbers.clone());
        for number in &predicted.handed_over {
            self.ledger.hand_over(*number);
        }
        let effects = self.stash.opened(by, Ok(tokens), self.now());
        (Input::Opened(by, Ok(numbers)), effects, predicted)
    }

    fn fail_to_open(
        &mut self,
        by: ConnectionId,
        openings: Vec<Opening<Token>>,
        failing: usize,
    ) -> (Input, Effects<Token>, Predicted) {
        let failure = OpenFailure {
            at: failing % openings.len(),
            errno: 5,
            errno_name: "EIO".into(),
            message: "input/output error".into(),
        };
        let predicted = self.model.not_opened(by, &openings[failure.at].name, &failure);
        drop(openings);
        let effects = self.stash.opened(by, Err(failure.clone()), self.now());
        (Input::Opened(by, Err(failure)), effects, predicted)
    }

    fn perform(&mut self, effect: Effect<Token>) -> Performed {
        match effect {
            Effect::Record(record) => Performed::Record {
                put: record.put.iter().map(written).collect(),
                line: self.journal.append(&record),
                gone: record.gone,
                done: record.done,
            },
            Effect::Answer { to, outcome, confirm } => {
                self.goes_on(to, confirm.then_some(Waits::Leaving));
                if outcome.is_err() {
                    // A Watch, too, ends so.
                    self.callers.entry(to).and_modify(|waits| *waits = None);
                }
                Performed::Answer { to, outcome: outcome.map(numbers_of), confirm }
            }
            Effect::List { to, pattern: _ } => {
                self.goes_on(to, None);
                Performed::List { to }
            }
            Effect::Open { by, openings } => {
                self.goes_on(by, Some(Waits::Opening));
                let numbers = openings.iter().map(number_of).collect();
                self.openings.push((by, openings));
                Performed::Open { by, openings: numbers }
            }
            Effect::Poll(id, fd) => {
                self.polled.insert(id, fd.number);
                Performed::Poll
            }
            Effect::Unpoll(id, fd) => {
                let polled = self.polled.remove(&id);
                assert_eq!(polled, Some(fd.number), "only what is polled can be polled no longer");
                Performed::Unpoll
            }
            Effect::Forget(..) => Performed::Forget,
            Effect::Close(fds) => {
                let numbers: Vec<_> = fds.iter().map(|fd| fd.number).collect();
                numbers.iter().for_each(|number| self.ledger.close(*number));
                drop(fds);
                Performed::Close(numbers)
            }
            Effect::Tell { to, change, entry, fd } => {
                let to = to.into_iter().filter(|id| self.stash.watches(*id, &entry.name)).collect();
                let (entry, fd) = (shown(*entry), fd.number);
                Performed::Tell(Box::new(Told { to, change, entry, fd }))
            }
            Effect::Audit { by, done } => {
                let one = |(deed, details): &(Deed, Arc<Details>)| {
                    (*deed, details.id, details.name.clone())
                };
                Performed::Audit { by, done: done.iter().map(one).collect() }
            }
        }
    }

    /// Takes note of what a caller waits for from now on; a watcher does for ever.
    fn goes_on(&mut self, by: ConnectionId, waits: Option<Waits>) {
        if let Some(before) = self.callers.get_mut(&by).filter(|is| **is != Some(Waits::Changes)) {
            *before = waits;
        }
    }

    /// Another stash goes on from what is written down, with the connections that there are.
    fn upgrade(&mut self) -> Effects<Token> {
        let fds: BTreeMap<_, _> =
            self.stash.kept().map(|kept| (kept.fd.number, Arc::clone(&kept.fd))).collect();
        let going_on = self.stash.carry();
        let mut replay = self.journal.handed_over(&self.stash);
        let carried = replay.take_carried();
        let doing = carried.into_iter().map(|carried| (carried.id, carried.doing));
        let doing: Vec<_> = doing.collect();
        assert_eq!(doing, going_on, "all go on, in their order");
        let claim = |kept: &Kept<Number>| fds.get(&u64::from(*kept.fd)).cloned();
        let (stash, mut effects) = Stash::restore(self.limits, Keeper::Nobody, replay, claim);
        self.stash = stash;
        self.stash.set_audited(true);
        effects.extend(self.stash.set_rules(self.rules.clone(), self.now()));
        self.polled.clear();
        for (id, doing) in doing {
            self.stash.resume(id, self.people[&id].clone(), doing, self.now());
        }
        effects.extend(self.stash.go_without(self.now()));
        effects
    }

    fn rewrite(&mut self) {
        self.journal.rewrite(&self.stash);
        self.model.rewrite();
    }

    /// Everything comes to its end.
    fn end(&mut self) -> Vec<Moment> {
        let mut moments = Vec::new();
        let finish = |world: &mut Self, moments: &mut Vec<_>| {
            while !world.openings.is_empty() {
                moments.push(world.act(Planned::Opened(0, None)));
            }
        };
        finish(self, &mut moments);
        moments.push(self.act(Planned::Tick(1_000_000)));
        for by in self.callers.keys().copied().collect::<Vec<_>>() {
            moments.push(self.act(Planned::Disconnect(by)));
            // Somebody who waited may be served now.
            finish(self, &mut moments);
        }
        moments.push(self.act(Planned::Tick(1_000_000)));
        // Root could be bound by them.
        moments.push(self.act(Planned::Rules(Rules::default())));
        let [.., root] = people();
        moments.push(self.act(Planned::Connect(root)));
        let names =
            self.entries_of(self.watchers[0]).into_iter().map(|(entry, _)| entry.name).collect();
        let by = self.callers.keys().copied().next();
        moments
            .extend(by.map(|by| self.act(Planned::Call(by, Call::Close { names, ticket: None }))));
        moments
    }

    fn now(&self) -> Now {
        Now { boot_usec: self.now_usec, wall_usec: BOOTED_AT_USEC + self.now_usec }
    }

    fn pass(&mut self, usec: u64) {
        self.now_usec += usec;
        self.model.pass(self.now_usec);
    }

    fn picture(&self) -> Picture {
        let [root, somebody] = self.watchers;
        let borrowed = |number: u64| {
            let mut files = self.openings.iter().flat_map(|(_, openings)| openings);
            files.any(|opening| opening.fd.number == number)
        };
        let census = self.stash.census(2);
        let by_kind = census.kinds.iter().map(|(_, count)| count).sum::<u64>();
        assert_eq!(by_kind, self.stash.statistics().entries, "entries have one kind each");
        Picture {
            entries: self.entries_of(root),
            known: self.entries_of(somebody),
            statistics: self.stash.statistics(),
            next_due: self.stash.next_due(),
            held: self.ledger.alive(borrowed),
            polled: self.polled.values().copied().collect(),
            unanswered: self.unanswered(),
            usage: self.stash.usage().collect(),
            now_usec: self.now_usec,
        }
    }

    fn expected_picture(&self) -> Picture {
        let [root, somebody] = self.watchers;
        Picture {
            entries: self.model.entries_of(root),
            known: self.model.entries_of(somebody),
            statistics: self.model.statistics(),
            next_due: self.model.next_due(),
            held: self.model.held(),
            polled: self.model.polled(),
            unanswered: self.unanswered(),
            usage: self.model.usage(),
            now_usec: self.now_usec,
        }
    }

    fn unanswered(&self) -> BTreeMap<ConnectionId, Waits> {
        self.callers.iter().filter_map(|(id, waits)| Some((*id, (*waits)?))).collect()
    }

    fn entries_of(&self, by: ConnectionId) -> Entries {
        let (listed, _) = self.stash.list(by, &Pattern::all(), None, usize::MAX);
        let shown = |listed: Listed<Token>| {
            let number = listed.fd.number;
            (shown(listed.entry), number)
        };
        listed.into_iter().map(shown).collect()
    }

    fn token(&self, inspected: Inspected<u64>) -> Inspected<Token> {
        Inspected { fd: self.ledger.token(inspected.fd), facts: inspected.facts }
    }
}

/// A step whose numbers have been looked up.
enum Planned {
    Connect(Who),
    Disconnect(ConnectionId),
    Call(ConnectionId, Call<()>),
    Opened(usize, Option<usize>),
    Sent(ConnectionId),
    Unsent(ConnectionId),
    HangUp(EntryId),
    Point(Pointed),
    Tick(u64),
    Pass(u64),
    Rewrite,
    Rules(Rules),
    Upgrade,
}
