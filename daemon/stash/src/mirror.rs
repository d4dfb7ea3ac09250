//! [`Plan`]: which entries are kept a second time, in which message of which *bundle*, and what is to
//! be done next so that it is those that are held, and no others.
//!
//! A bundle is a queue of messages, each with the descriptors of some entries. It grows at its tail
//! and shrinks at its head alone. So one entry leaves it as garbage leaves a log: what lies before it
//! is sent anew, at the tail of this bundle or of another, and then the head is dropped. What it is
//! made of, and who else holds it, the plan does not know.
//!
//! Bundles have generations. What is new goes to the first, where most of what comes soon goes
//! again; what has outlived some cleanings of its bundle goes on to the next, and at last to where
//! it is cleaned rarely, in bundles that are fuller. Whoever has many at once skips that.
//!
//! What always holds, wherever the steps are cut:
//!
//! - An entry that is in a bundle, and not gone, is in one: it is appended before it is dropped.
//! - When no step is left, the bundles have nothing that is gone.
//! - A bundle's entries and messages are bounded, and so is what the closing of one entry costs.
//!
//! It stays one file, though a long one: the rules hold together, and hardly apart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::EntryId;

/// The most entries in a message: as many descriptors as the kernel passes at once, but one, which
/// the message needs for what it says of them.
pub const MESSAGE_ENTRIES: usize = 252;

/// The most entries that are to be found in a bundle: four full messages.
pub const BUNDLE_ENTRIES: usize = 4 * MESSAGE_ENTRIES;

/// The most messages of a bundle, but for one that is on its way from the head to the tail.
pub const BUNDLE_MESSAGES: usize = 16;

/// How often a bundle of each generation but the last is cleaned until what has outlived that goes
/// on to the next.
const CLEANINGS: [u32; 4] = [4, 16, 64, 256];

/// The last generation.
const LAST: usize = CLEANINGS.len();

/// What new entries must leave of the room for descriptors in flight, so that there is always some
/// to send anew what stands before one that is gone: two messages.
const RESERVE: usize = 2 * (MESSAGE_ENTRIES + 1);

/// Names a bundle, as long as that is there: the number of one that was removed is used again, so that
/// numbers stay as few as bundles are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleId(pub u64);

/// How much there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// How many bundles.
    pub bundles: usize,
    /// How many descriptors in all bundles, those of the messages' own included.
    pub in_flight: usize,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make an empty bundle, and have it held.
    AddBundle(BundleId),
    /// Send these, in one message, to the tail of a bundle.
    Append {
        /// The bundle.
        to: BundleId,
        /// At least one, and at most [`MESSAGE_ENTRIES`].
        entries: Vec<EntryId>,
    },
    /// Take the oldest messages off the head of a bundle.
    Drop {
        /// The bundle.
        from: BundleId,
        /// How many messages.
        messages: usize,
    },
    /// Have a bundle, which is empty, held no longer.
    RemoveBundle(BundleId),
}

/// What is where, and what is to be done.
///
/// Who carries it out asks for the next [`step`](Self::step), does it, and says that it is
/// [`done`](Self::done); nothing counts as done before. A step that fails is simply not done: it, or
/// a better one, is there to be asked for again.
#[derive(Debug)]
pub struct Plan {
    room: Room,
    bundles: BTreeMap<BundleId, Bundle>,
    /// Where each entry lies: the last place is where it was sent last, the others are to go.
    places: BTreeMap<EntryId, Vec<Place>>,
    waiting: BTreeSet<EntryId>,
    /// For which generation a bundle was asked for last.
    adding: usize,
    /// How many descriptors lie in all messages.
    in_flight: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    bundle: BundleId,
    /// The message's number among all that the bundle ever had.
    message: u64,
}

#[derive(Debug)]
struct Bundle {
    generation: usize,
    messages: VecDeque<Message>,
    /// The number of its oldest message.
    first: u64,
    /// How many entries were sent here last, and are not gone.
    here: usize,
    /// How often it has been cleaned in place since what it has came here.
    cleanings: u32,
    sweep: Option<Sweep>,
}

#[derive(Debug)]
struct Message {
    entries: Vec<EntryId>,
    /// How many of them were sent here last, and are not gone.
    here: usize,
    /// Whether one of them is gone.
    dirty: bool,
}

/// The sending anew of what a bundle has at its head.
#[derive(Debug, Clone, Copy)]
struct Sweep {
    /// The last message that it concerns.
    until: u64,
    whither: Whither,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whither {
    /// To this bundle's tail.
    Back,
    /// To a bundle of a later generation.
    On,
    /// To this one.
    Into(BundleId),
}

/// Where something can be sent.
enum Target {
    There(BundleId),
    /// A bundle of this generation is to be made for it.
    New(usize),
}

impl Plan {
    /// The plan for nothing yet.
    pub fn new(room: Room) -> Self {
        Self {
            room,
            bundles: BTreeMap::new(),
            places: BTreeMap::new(),
            waiting: BTreeSet::new(),
            adding: 0,
            in_flight: 0,
        }
    }

    /// Takes note that there may be so many bundles from here on.
    pub fn set_room_for_bundles(&mut self, bundles: usize) {
        self.room.bundles = bundles;
    }

    /// Takes note that an entry is held.
    pub fn put(&mut self, id: EntryId) {
        if !self.places.contains_key(&id) {
            self.waiting.insert(id);
        }
    }

    /// Takes note that an entry is held no longer. That of an unknown one changes nothing.
    pub fn gone(&mut self, id: EntryId) {
        self.waiting.remove(&id);
        let Some(places) = self.places.remove(&id) else { return };
        for place in &places {
            if let Some(message) = self.message(*place) {
                message.dirty = true;
            }
        }
        self.leave(places.last().copied());
    }

    /// How many entries are held and not in any bundle yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many entries are in a bundle.
    pub fn mirrored(&self) -> usize {
        self.places.len()
    }

    /// How many bundles there are.
    pub fn bundles(&self) -> usize {
        self.bundles.len()
    }

    /// What is to be done next; nothing, if all is as it shall be, or there is no room.
    pub fn step(&mut self) -> Option<Step> {
        // What can be dropped is dropped first: that makes room, and cannot fail.
        if let Some(step) = self.drop_head() {
            return Some(step);
        }
        self.begin_sweeps();
        self.sweep().or_else(|| self.append_waiting()).or_else(|| self.remove_empty())
    }

    /// Takes note that a [`step`](Self::step) is done.
    pub fn done(&mut self, step: &Step) {
        match step {
            Step::AddBundle(id) => {
                self.bundles.insert(*id, Bundle::new(self.adding));
            }
            Step::Append { to, entries } => self.appended(*to, entries),
            Step::Drop { from, messages } => {
                for _ in 0..*messages {
                    self.dropped(*from);
                }
            }
            Step::RemoveBundle(id) => {
                self.bundles.remove(id);
            }
        }
    }

    fn appended(&mut self, to: BundleId, entries: &[EntryId]) {
        let Some(bundle) = self.bundles.get(&to) else { return };
        let place = Place { bundle: to, message: bundle.end() };
        let mut message = Message { entries: entries.to_vec(), here: 0, dirty: false };
        for id in entries {
            let before = match self.places.get_mut(id) {
                Some(places) => {
                    let before = places.last().copied();
                    places.push(place);
                    before
                }
                None if self.waiting.remove(id) => {
                    self.places.insert(*id, vec![place]);
                    None
                }
                // Gone since the step was asked for.
                None => {
                    message.dirty = true;
                    continue;
                }
            };
            message.here += 1;
            self.leave(before);
        }
        self.in_flight += message.weight();
        if let Some(bundle) = self.bundles.get_mut(&to) {
            bundle.here += message.here;
            bundle.messages.push_back(message);
        }
    }

    fn dropped(&mut self, from: BundleId) {
        let Some(bundle) = self.bundles.get_mut(&from) else { return };
        let place = Place { bundle: from, message: bundle.first };
        let Some(message) = bundle.messages.pop_front() else { return };
        bundle.first += 1;
        bundle.here -= message.here;
        if bundle.messages.is_empty() {
            bundle.cleanings = 0;
        }
        self.in_flight -= message.weight();
        for id in message.entries {
            if let Some(places) = self.places.get_mut(&id) {
                places.retain(|there| *there != place);
            }
        }
    }

    /// Takes note that an entry is at a place no longer, or not only there.
    fn leave(&mut self, place: Option<Place>) {
        let Some(place) = place else { return };
        if let Some(message) = self.message(place) {
            message.here -= 1;
        }
        if let Some(bundle) = self.bundles.get_mut(&place.bundle) {
            bundle.here -= 1;
        }
    }

    fn message(&mut self, place: Place) -> Option<&mut Message> {
        let bundle = self.bundles.get_mut(&place.bundle)?;
        let index = usize::try_from(place.message.checked_sub(bundle.first)?).ok()?;
        bundle.messages.get_mut(index)
    }

    /// Drops what stands at a head and has nothing that is not elsewhere too.
    fn drop_head(&self) -> Option<Step> {
        self.bundles.iter().find_map(|(id, bundle)| {
            let idle = bundle.messages.iter().take_while(|message| message.here == 0);
            let messages = idle.count();
            (messages > 0).then_some(Step::Drop { from: *id, messages })
        })
    }

    /// Ends the sweeps that are through, and begins those that are needed.
    fn begin_sweeps(&mut self) {
        for bundle in self.bundles.values_mut() {
            bundle.sweep = bundle.sweep.filter(|sweep| bundle.first <= sweep.until);
        }
        let ids: Vec<BundleId> = self.bundles.keys().copied().collect();
        for id in ids {
            let Some(whither) = self.sweep_needed(id) else { continue };
            if let Some(bundle) = self.bundles.get_mut(&id) {
                bundle.begin_sweep(whither);
            }
        }
        if let Some((smallest, other)) = self.to_be_joined() {
            if let Some(bundle) = self.bundles.get_mut(&smallest) {
                bundle.begin_sweep(Whither::Into(other));
            }
        }
    }

    /// Whether a bundle must be swept, for what it has itself.
    fn sweep_needed(&self, id: BundleId) -> Option<Whither> {
        let bundle = self.bundles.get(&id)?;
        if bundle.sweep.is_some() {
            return None;
        }
        let dirty = bundle.last_dirty().is_some();
        let many = bundle.messages.len() >= BUNDLE_MESSAGES;
        let patience = CLEANINGS.get(bundle.generation);
        let old = dirty && patience.is_some_and(|most| bundle.cleanings >= *most);
        let full = bundle.generation < LAST && bundle.here > BUNDLE_ENTRIES - MESSAGE_ENTRIES;
        let on = bundle.generation < LAST && (many || old || full);
        if on && self.target_from(id, bundle, MESSAGE_ENTRIES.min(bundle.here)).is_some() {
            return Some(Whither::On);
        }
        (dirty || many).then_some(Whither::Back)
    }

    /// The two smallest bundles of the last generation, the smaller first, if they fit into one: so
    /// all but one are half full at least.
    fn to_be_joined(&self) -> Option<(BundleId, BundleId)> {
        let last = |bundle: &Bundle| bundle.generation == LAST && bundle.here > 0;
        let mut sizes: Vec<(usize, BundleId)> = self
            .bundles
            .iter()
            .filter(|(_, bundle)| last(bundle))
            .map(|(id, bundle)| (bundle.here, *id))
            .collect();
        sizes.sort_unstable();
        let [(size, id), (_, other), ..] = sizes.as_slice() else { return None };
        let is_still = |id| self.bundles.get(id).is_some_and(|bundle| bundle.sweep.is_none());
        let fits = self.bundles.get(other)?.has_room_for(*size);
        (fits && is_still(id) && is_still(other)).then_some((*id, *other))
    }

    /// Sends anew what a sweep concerns.
    fn sweep(&mut self) -> Option<Step> {
        let swept = |(id, bundle): (&BundleId, &Bundle)| Some((*id, bundle.sweep?));
        let (id, sweep) = self.bundles.iter().find_map(swept)?;
        let entries = self.survivors(id, sweep.until);
        let target = match sweep.whither {
            Whither::On => self.target_from(id, self.bundles.get(&id)?, entries.len()),
            Whither::Into(other) => {
                let other = self.bundles.get_key_value(&other);
                let fitting = other.filter(|(_, other)| other.has_room_for(entries.len()));
                fitting.map(|(other, _)| Target::There(*other))
            }
            Whither::Back => None,
        };
        Some(match target {
            // Also where there is no room elsewhere any more.
            None => Step::Append { to: id, entries },
            Some(target) => self.append_to(target, entries),
        })
    }

    /// The oldest of those that a bundle has, up to one of its messages, as many as one message takes.
    fn survivors(&self, id: BundleId, until: u64) -> Vec<EntryId> {
        let Some(bundle) = self.bundles.get(&id) else { return Vec::new() };
        let numbered = (bundle.first..=until).zip(&bundle.messages);
        let all = numbered.flat_map(|(message, there)| {
            let place = Place { bundle: id, message };
            there.entries.iter().filter(move |entry| {
                self.places.get(entry).is_some_and(|places| places.last() == Some(&place))
            })
        });
        all.take(MESSAGE_ENTRIES).copied().collect()
    }

    fn append_waiting(&mut self) -> Option<Step> {
        let room = self.room.in_flight.saturating_sub(self.in_flight + RESERVE + 1);
        let count = self.waiting.len().min(MESSAGE_ENTRIES).min(room);
        if count == 0 {
            return None;
        }
        let generation = if count == MESSAGE_ENTRIES { LAST } else { 0 };
        let target = self
            .target(generation, count, None)
            // Where no bundle can be added, it goes wherever there is room.
            .or_else(|| self.target(0, count, None))?;
        let entries = self.waiting.iter().take(count).copied().collect();
        Some(self.append_to(target, entries))
    }

    fn append_to(&mut self, target: Target, entries: Vec<EntryId>) -> Step {
        match target {
            Target::There(to) => Step::Append { to, entries },
            Target::New(generation) => {
                self.adding = generation;
                Step::AddBundle(self.free_bundle())
            }
        }
    }

    fn target_from(&self, id: BundleId, bundle: &Bundle, count: usize) -> Option<Target> {
        self.target((bundle.generation + 1).min(LAST), count, Some(id))
    }

    /// The first that names none.
    fn free_bundle(&self) -> BundleId {
        let taken = self.bundles.keys().zip(0..).take_while(|(id, number)| id.0 == *number);
        BundleId(taken.count() as u64)
    }

    /// A bundle of this generation or a later one with room for so many.
    fn target(&self, from: usize, count: usize, but: Option<BundleId>) -> Option<Target> {
        for generation in from..=LAST {
            let fitting = self.bundles.iter().filter(|(id, bundle)| {
                bundle.generation == generation && Some(**id) != but && bundle.has_room_for(count)
            });
            // The youngest that has something: the older ones are left in peace, and empty ones
            // are the last to be filled.
            let best = fitting.max_by_key(|(id, bundle)| (bundle.here > 0, **id));
            if let Some((id, _)) = best {
                return Some(Target::There(*id));
            }
            let is_there = self.bundles.values().any(|bundle| bundle.generation == generation);
            // Of the earlier generations there is one bundle each.
            if (generation == LAST || !is_there) && self.bundles.len() < self.room.bundles {
                return Some(Target::New(generation));
            }
        }
        None
    }

    /// Removes an empty bundle of the last generation. One is left, so that the next entry that
    /// comes and goes does not add and remove it each time.
    fn remove_empty(&self) -> Option<Step> {
        let mut empty = self
            .bundles
            .iter()
            .filter(|(_, bundle)| bundle.generation == LAST && bundle.messages.is_empty());
        empty.next()?;
        empty.next().map(|(id, _)| Step::RemoveBundle(*id))
    }
}

impl Bundle {
    fn new(generation: usize) -> Self {
        Self { generation, messages: VecDeque::new(), first: 0, here: 0, cleanings: 0, sweep: None }
    }

    /// The number that its next message gets.
    fn end(&self) -> u64 {
        self.first + self.messages.len() as u64
    }

    fn last_dirty(&self) -> Option<u64> {
        let numbered = (self.first..).zip(&self.messages);
        numbered.filter(|(_, message)| message.dirty).map(|(number, _)| number).last()
    }

    fn has_room_for(&self, count: usize) -> bool {
        let leaving = self.sweep.is_some_and(|sweep| sweep.whither != Whither::Back);
        !leaving && self.here + count <= BUNDLE_ENTRIES && self.messages.len() < BUNDLE_MESSAGES
    }

    fn begin_sweep(&mut self, whither: Whither) {
        let all = self.end().saturating_sub(1);
        let until = match whither {
            Whither::On | Whither::Into(_) => all,
            // All of it where there are too many messages, so that they become few.
            Whither::Back if self.messages.len() >= BUNDLE_MESSAGES => all,
            Whither::Back => self.last_dirty().unwrap_or(all),
        };
        self.cleanings = match whither {
            Whither::On | Whither::Into(_) => 0,
            Whither::Back => self.cleanings + 1,
        };
        self.sweep = Some(Sweep { until, whither });
    }
}

impl Message {
    /// How many descriptors are in flight for it.
    fn weight(&self) -> usize {
        self.entries.len() + 1
    }
}
