//! The laws of the mirror's plan, each a property of every history; and what it costs.
//!
//! Beside the plan stand the [`Queues`]: what carrying out its steps makes of the bundles, each a
//! queue that grows at its tail and shrinks at its head.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fdstash_stash::{
    EntryId,
    mirror::{BUNDLE_ENTRIES, BUNDLE_MESSAGES, BundleId, MESSAGE_ENTRIES, Plan, Room, Step},
};
use proptest::{collection, prelude::*, test_runner::FileFailurePersistence};

const PLENTY: Room = Room { bundles: usize::MAX, in_flight: usize::MAX };

/// How many steps one pass may take in any of these tests.
const MANY_STEPS: usize = 1_000;

#[derive(Debug, Clone)]
enum Event {
    /// So many are put.
    Put(usize),
    /// Some are gone: each of them the one at a place among those held, told in parts of 65,536.
    Gone(Vec<u16>),
    /// As many as that of the held are gone, told in parts of 256.
    Most(u8),
    /// The steps are carried out, at most so many; then comes a failure, or a crash.
    Cut(usize),
    /// All steps are carried out.
    Pass,
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_was_mirrored_and_is_held_is_there_wherever_the_steps_are_cut(
        history in histories(),
    ) {
        let mut world = World::new(PLENTY);

        for event in &history {
            world.play(event, |world| {
                let lost = world.mirrored.difference(&world.queues.entries()).count();
                assert_eq!(lost, 0, "mirrored and lost");
            });
        }
    }

    #[test]
    fn after_a_whole_pass_the_bundles_have_what_is_held_and_nothing_else(
        history in histories(),
    ) {
        let mut world = World::new(PLENTY);

        for event in &history {
            world.play(event, |_| {});
            world.play(&Event::Pass, |_| {});

            prop_assert_eq!(&world.queues.entries(), &world.held);
            prop_assert_eq!(world.plan.waiting(), 0);
            prop_assert_eq!(world.plan.mirrored(), world.held.len());
        }
    }

    #[test]
    fn bundles_and_messages_are_bounded_and_few(history in histories()) {
        let mut world = World::new(PLENTY);

        for event in &history {
            world.play(event, |world| world.queues.assert_bounded());
            world.play(&Event::Pass, |world| world.queues.assert_bounded());

            let most = 2 * world.held.len() / BUNDLE_ENTRIES + 6;
            prop_assert!(world.queues.bundles.len() <= most, "{} bundles", world.plan.bundles());
            prop_assert_eq!(world.queues.bundles.len(), world.plan.bundles());
        }
    }

    #[test]
    fn with_little_room_some_wait_and_what_is_gone_still_goes(
        history in histories(),
        bundles in 1usize..4,
        in_flight in 800usize..3_000,
    ) {
        let mut world = World::new(Room { bundles, in_flight });

        for event in &history {
            world.play(event, |world| {
                let lost = world.mirrored.difference(&world.queues.entries()).count();
                assert_eq!(lost, 0, "mirrored and lost");
                assert!(world.queues.bundles.len() <= bundles);
                assert!(world.queues.in_flight() <= in_flight, "too many in flight");
            });
            world.play(&Event::Pass, |_| {});

            let there = world.queues.entries();
            prop_assert!(there.is_subset(&world.held), "kept what is gone");
            prop_assert_eq!(there.len() + world.plan.waiting(), world.held.len());
        }
    }

    #[test]
    fn what_an_entry_costs_is_bounded_however_others_come_and_go(
        lifetimes in collection::vec(1usize..60, 1..40),
    ) {
        let mut world = World::new(PLENTY);
        world.play(&Event::Put(100), |_| {});

        for pass in 0..700 {
            let coming = world.put(lifetimes.len().min(10));
            for (id, lifetime) in coming.into_iter().zip(lifetimes.iter().cycle().skip(pass)) {
                world.ends.entry(pass + lifetime).or_default().push(id);
            }
            for id in world.ends.remove(&pass).unwrap_or_default() {
                world.gone(id);
            }
            world.play(&Event::Pass, |_| {});
        }

        // In the early generations an entry is sent some 4 + 16 + 64 + 256 times, and then goes on. In the
        // last one, only what has lived as long itself makes it be sent again.
        let most = (0..100).map(|id| world.queues.sent[&EntryId(id)]).max();
        prop_assert!(most <= Some(400), "sent {most:?} times");
    }
}

#[test]
fn what_comes_one_by_one_and_stays_is_sent_a_few_times() {
    let mut world = World::new(PLENTY);

    for _ in 0..5_000 {
        world.play(&Event::Put(1), |world| world.queues.assert_bounded());
        world.play(&Event::Pass, |_| {});
    }

    let sent: usize = world.queues.sent.values().sum();
    assert!(sent <= 5_000 * 5, "sent {sent}");
    assert!(world.plan.bundles() <= 5_000 / (BUNDLE_ENTRIES / 2) + 4);
}

#[test]
fn what_comes_at_once_is_sent_once() {
    let mut world = World::new(PLENTY);

    world.play(&Event::Put(20_000), |_| {});
    world.play(&Event::Pass, |_| {});

    assert_eq!(world.queues.sent.values().sum::<usize>(), 20_000);
    assert_eq!(world.plan.bundles(), 20_000_usize.div_ceil(BUNDLE_ENTRIES) + 1);
}

#[test]
fn closing_one_of_many_sends_no_more_than_a_bundle() {
    let mut world = World::new(PLENTY);
    world.play(&Event::Put(20_000), |_| {});
    world.play(&Event::Pass, |_| {});

    for id in (0..20_000).step_by(97) {
        let before: usize = world.queues.sent.values().sum();
        world.gone(EntryId(id));
        world.play(&Event::Pass, |_| {});

        let sent = world.queues.sent.values().sum::<usize>() - before;
        assert!(sent <= BUNDLE_ENTRIES, "sent {sent}");
    }
}

#[test]
fn what_is_gone_before_a_pass_never_goes_there() {
    let mut world = World::new(PLENTY);
    world.play(&Event::Put(10), |_| {});
    world.play(&Event::Most(255), |_| {});

    assert_eq!(world.plan.step(), None);
}

#[test]
fn an_entry_that_comes_and_goes_at_the_edge_of_a_bundle_adds_and_removes_none() {
    let mut world = World::new(PLENTY);
    world.play(&Event::Put(BUNDLE_ENTRIES), |_| {});
    world.play(&Event::Pass, |_| {});
    let mut told = Vec::new();

    for _ in 0..200 {
        let ids = world.put(MESSAGE_ENTRIES);
        world.play(&Event::Pass, |_| {});
        ids.into_iter().for_each(|id| world.gone(id));
        world.play(&Event::Pass, |_| {});
        told.push(world.queues.told);
    }

    assert!(told.last() <= Some(&4), "{told:?}");
}

/// What comes of a history.
struct World {
    plan: Plan,
    queues: Queues,
    held: BTreeSet<EntryId>,
    /// Held, and at some time in a bundle.
    mirrored: BTreeSet<EntryId>,
    /// When which are gone.
    ends: BTreeMap<usize, Vec<EntryId>>,
    next: u64,
}

/// What is in the bundles, message by message.
#[derive(Default)]
struct Queues {
    bundles: BTreeMap<BundleId, VecDeque<Vec<EntryId>>>,
    /// How often each entry was sent.
    sent: BTreeMap<EntryId, usize>,
    /// How many bundles have been added and removed.
    told: usize,
}

impl World {
    fn new(room: Room) -> Self {
        Self {
            plan: Plan::new(room),
            queues: Queues::default(),
            held: BTreeSet::new(),
            mirrored: BTreeSet::new(),
            ends: BTreeMap::new(),
            next: 0,
        }
    }

    fn put(&mut self, count: usize) -> Vec<EntryId> {
        let ids: Vec<EntryId> = (self.next..).take(count).map(EntryId).collect();
        self.next += count as u64;
        for id in &ids {
            self.plan.put(*id);
            self.held.insert(*id);
        }
        ids
    }

    fn gone(&mut self, id: EntryId) {
        self.plan.gone(id);
        self.held.remove(&id);
        self.mirrored.remove(&id);
    }

    /// Plays an event, and looks at the world after every step.
    fn play(&mut self, event: &Event, mut look: impl FnMut(&Self)) {
        match event {
            Event::Put(count) => drop(self.put(*count)),
            Event::Gone(places) => {
                for place in places {
                    let index = usize::from(*place) * self.held.len() / 65_536;
                    let id = self.held.iter().nth(index).copied();
                    id.into_iter().for_each(|id| self.gone(id));
                }
            }
            Event::Most(part) => {
                let parted = self.held.iter().enumerate();
                let ids: Vec<_> = parted.filter(|(at, _)| at % 256 <= usize::from(*part)).collect();
                let ids: Vec<EntryId> = ids.into_iter().map(|(_, id)| *id).collect();
                ids.into_iter().for_each(|id| self.gone(id));
            }
            Event::Cut(most) => self.steps(*most, &mut look),
            Event::Pass => {
                self.steps(MANY_STEPS, &mut look);
                assert!(self.plan.step().is_none(), "it never ends");
            }
        }
    }

    fn steps(&mut self, most: usize, look: &mut impl FnMut(&Self)) {
        for _ in 0..most {
            let Some(step) = self.plan.step() else { return };
            self.queues.carry_out(&step);
            self.plan.done(&step);
            if let Step::Append { entries, .. } = &step {
                self.mirrored.extend(entries.iter().filter(|id| self.held.contains(id)));
            }
            look(self);
        }
    }
}

impl Queues {
    fn carry_out(&mut self, step: &Step) {
        match step {
            Step::AddBundle(id) => {
                assert!(self.bundles.insert(*id, VecDeque::new()).is_none());
                self.told += 1;
            }
            Step::Append { to, entries } => {
                assert!((1..=MESSAGE_ENTRIES).contains(&entries.len()));
                self.bundles.get_mut(to).expect("a bundle").push_back(entries.clone());
                for id in entries {
                    *self.sent.entry(*id).or_default() += 1;
                }
            }
            Step::Drop { from, messages } => {
                let bundle = self.bundles.get_mut(from).expect("a bundle");
                assert_eq!(bundle.drain(..*messages).count(), *messages);
            }
            Step::RemoveBundle(id) => {
                assert!(self.bundles.remove(id).expect("a bundle").is_empty());
                self.told += 1;
            }
        }
    }

    fn entries(&self) -> BTreeSet<EntryId> {
        self.bundles.values().flatten().flatten().copied().collect()
    }

    fn in_flight(&self) -> usize {
        self.bundles.values().flatten().map(|message| message.len() + 1).sum()
    }

    fn assert_bounded(&self) {
        for bundle in self.bundles.values() {
            assert!(bundle.len() <= BUNDLE_MESSAGES + 1, "{} messages", bundle.len());
        }
    }
}

fn histories() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (1usize..30).prop_map(Event::Put),
        1 => (1usize..3_000).prop_map(Event::Put),
        4 => collection::vec(any::<u16>(), 1..12).prop_map(Event::Gone),
        1 => any::<u8>().prop_map(Event::Most),
        3 => (0usize..12).prop_map(Event::Cut),
        3 => Just(Event::Pass),
    ];
    collection::vec(event, 1..60)
}

fn config() -> ProptestConfig {
    let seeds = FileFailurePersistence::Direct("proptest-regressions/mirror.txt");
    ProptestConfig {
        cases: 30,
        max_shrink_iters: 100,
        failure_persistence: Some(Box::new(seeds)),
        ..<_>::default()
    }
}
