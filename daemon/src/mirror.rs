//! [`Mirror`]: keeps what is held a second time, in the store of the service manager, behind the
//! event loop and in batches. It is one file: the inbox, the thread behind it, and what they share.
//!
//! What it holds when, the plan decides (`fdstash_stash::mirror`); this carries out its steps on a
//! thread of its own, and never counts one as done that has failed. [`bundle`] has what a bundle is
//! made of, [`drainer`] waits where taking from one must wait.
//!
//! What always holds:
//!
//! - The event loop waits for nothing here but a lock that is held for moments.
//! - What came and went within a batch never goes anywhere, and what waits is bounded by what is
//!   held: a `gone` takes back its `put`.
//! - It keeps no entry open: it has weak references, and strong ones only while it sends.
//! - The store never has the last hold of a bundle with something in it, as long as we run: so it is
//!   never the service manager that waits for a file server.
//! - The bundles' own ends never leave this module but to the store.

pub(crate) mod bundle;
mod drainer;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use fdstash_stash::{
    Details, EntryId,
    mirror::{BundleId, Plan, Room, Step},
};

use crate::{
    inspect::{identity, look},
    mirror::{bundle::Bundle, drainer::Drainer},
    reminder::Reminder,
};

/// How long changes are gathered. What comes and goes within it costs nothing.
const PACE: Duration = Duration::from_millis(50);

/// The longest pause before what has failed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long the store may take to say that it has read all, where nobody else has set a limit.
const BARRIER: Duration = Duration::from_secs(5);

/// How long a flush waits for what is being closed, until the next try.
const REST: Duration = Duration::from_millis(100);

/// Who keeps bundles while we are gone.
pub(crate) trait Store {
    /// Keeps a duplicate of a descriptor under a name that nothing else has.
    fn store(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()>;
    /// Keeps what has that name no longer.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Waits until all that was said has been read.
    fn barrier(&mut self, limit: Duration) -> io::Result<()>;
    /// Takes note that it has nothing of earlier lives any more.
    fn retired(&mut self);
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Bundles that the store has.
    pub(crate) bundles: usize,
    /// How often the store was told to keep something, ever.
    pub(crate) told: u64,
    /// Entries that are in a bundle.
    pub(crate) entries: usize,
    /// Changes that are not in the bundles yet.
    pub(crate) waiting: usize,
    /// For how long the oldest of them has not been.
    pub(crate) behind_usec: u64,
}

/// What was told is not all mirrored yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the service manager's store is behind by {waiting} changes")]
pub(crate) struct Behind {
    /// How many changes it lacks.
    pub(crate) waiting: usize,
}

/// The bundles of earlier lives: the names that the store may have them under, and their receiving
/// ends, as far as they are here.
#[derive(Debug, Default)]
pub(crate) struct Old {
    pub(crate) names: Vec<String>,
    pub(crate) ends: Vec<OwnedFd>,
    /// How many bundles there may be without them.
    pub(crate) room: usize,
}

/// Tells the mirror's thread. It ends when this is dropped, and leaves in the store what is there.
#[derive(Debug)]
pub(crate) struct Mirror<F>(Arc<Shared<F>>);

#[derive(Debug)]
struct Shared<F> {
    inbox: Mutex<Inbox<F>>,
    bell: Condvar,
    standing: Mutex<(Standing, Option<Instant>)>,
    /// The device and inode number of every end of a bundle.
    ends: Mutex<BTreeSet<(u64, u64)>>,
}

/// What has been told and not yet been taken in.
#[derive(Debug)]
struct Inbox<F> {
    put: BTreeMap<EntryId, Held<F>>,
    gone: Vec<EntryId>,
    old: Option<Old>,
    flushes: Vec<Flush>,
    /// When the first of these came.
    since: Option<Instant>,
    /// Whether the thread waits for the bell.
    idle: bool,
    /// Whether nothing is to be sent or stored.
    paused: bool,
    /// Whether the thread is at work.
    busy: bool,
    ended: bool,
}

#[derive(Debug)]
struct Held<F> {
    fd: Weak<F>,
    details: Arc<Details>,
}

#[derive(Debug)]
struct Flush {
    until: Instant,
    done: SyncSender<()>,
}

impl<F: AsFd + Send + Sync + 'static> Mirror<F> {
    /// Begins with nothing, on a thread of its own. `life` is greater than that of any bundle that
    /// the store has; `encode` makes the record of an entry.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub(crate) fn start(
        store: impl Store + Send + 'static,
        encode: fn(&Details) -> Vec<u8>,
        life: u64,
        room: Room,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            inbox: Mutex::new(Inbox::empty()),
            bell: Condvar::new(),
            standing: Mutex::default(),
            ends: Mutex::default(),
        });
        let mut worker = Worker {
            shared: Arc::clone(&shared),
            store,
            encode,
            life,
            plan: Plan::new(room),
            bundles: BTreeMap::new(),
            held: BTreeMap::new(),
            old: None,
            flushes: Vec::new(),
            drainer: Drainer::default(),
            told: 0,
            since: None,
            failures: 0,
            spent: Duration::ZERO,
            reminder: Reminder::default(),
        };
        thread::Builder::new().name("mirror".into()).spawn(move || worker.run())?;
        Ok(Self(shared))
    }

    /// An entry is held. To be told once of each: a [`Mirror::gone`] takes back what was not taken in yet.
    pub(crate) fn put(&self, id: EntryId, fd: Weak<F>, details: Arc<Details>) {
        self.tell(|inbox| {
            inbox.put.insert(id, Held { fd, details });
        });
    }

    /// An entry is held no longer.
    pub(crate) fn gone(&self, id: EntryId) {
        self.tell(|inbox| {
            if inbox.put.remove(&id).is_none() {
                inbox.gone.push(id);
            }
        });
    }

    /// Removes bundles of an earlier life, as soon as all that was told before is mirrored and the
    /// store has said so. Owns their ends. To be told once.
    pub(crate) fn retire(&self, old: Old) {
        let ends = old.ends.iter().filter_map(|end| look(end.as_fd()).ok());
        self.0.ends().extend(ends.map(|end| identity(&end)));
        self.tell(|inbox| inbox.old = Some(old));
    }

    /// Whether a file of this device and inode number is an end of a bundle.
    pub(crate) fn has(&self, identity: (u64, u64)) -> bool {
        self.0.ends().contains(&identity)
    }

    /// Has the thread come to rest, and not begin anything: what it would store while another server
    /// counts what is stored, nobody would ever remove.
    pub(crate) fn pause(&self) {
        self.0.lock().paused = true;
    }

    /// Whether it has, since.
    pub(crate) fn is_at_rest(&self) -> bool {
        let inbox = self.0.lock();
        inbox.paused && !inbox.busy
    }

    /// Has it go on.
    pub(crate) fn resume(&self) {
        self.0.lock().paused = false;
        self.0.bell.notify_one();
    }

    /// Waits until all that was told is mirrored, what is gone has left the bundles, and the store
    /// has said that it has read it.
    ///
    /// # Errors
    ///
    /// If it took longer than that.
    pub(crate) fn flush(&self, limit: Duration) -> Result<(), Behind> {
        let (done, waits) = sync_channel(1);
        let until = Instant::now() + limit;
        self.0.lock().flushes.push(Flush { until, done });
        self.0.bell.notify_one();
        waits.recv_timeout(limit).map_err(|_| Behind { waiting: self.standing().waiting })
    }

    /// How far it is.
    pub(crate) fn standing(&self) -> Standing {
        let (mut standing, mut since) = *self.0.standing();
        let inbox = self.0.lock();
        standing.waiting += inbox.put.len() + inbox.gone.len();
        since = since.or(inbox.since);
        standing.behind_usec =
            since.map_or(0, |since| u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
        standing
    }

    fn tell(&self, what: impl FnOnce(&mut Inbox<F>)) {
        let mut inbox = self.0.lock();
        what(&mut inbox);
        inbox.since.get_or_insert_with(Instant::now);
        // Once a batch at most: while it gathers, it waits for the time and not for the bell.
        if mem::take(&mut inbox.idle) {
            self.0.bell.notify_one();
        }
    }
}

impl<F> Drop for Mirror<F> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.bell.notify_one();
    }
}

impl<F> Inbox<F> {
    fn empty() -> Self {
        Self {
            put: BTreeMap::new(),
            gone: Vec::new(),
            old: None,
            flushes: Vec::new(),
            since: None,
            idle: false,
            paused: false,
            busy: false,
            ended: false,
        }
    }
}

impl<F> Shared<F> {
    fn lock(&self) -> MutexGuard<'_, Inbox<F>> {
        // Nothing panics while it has the lock.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ends(&self) -> MutexGuard<'_, BTreeSet<(u64, u64)>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> MutexGuard<'_, (Standing, Option<Instant>)> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do, and for as long as it is to be gathered: until `again`, if
    /// something is to be tried again then, and never less than `pause`. Nothing, if that is all.
    fn wait(&self, again: Option<Duration>, pause: Duration) -> Option<Inbox<F>> {
        let began = Instant::now();
        let mut inbox = self.lock();
        inbox.busy = false;
        loop {
            if inbox.ended {
                return None;
            }
            if inbox.paused {
                inbox = self.bell.wait(inbox).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let now = Instant::now();
            let gathered = inbox.since.map(|since| (since + PACE).max(began + pause));
            let due = match (gathered, again.map(|again| began + again)) {
                (Some(gathered), Some(again)) => Some(gathered.min(again)),
                (gathered, again) => gathered.or(again),
            };
            if due.is_some_and(|due| due <= now) || !inbox.flushes.is_empty() {
                let next = Inbox { busy: true, ..Inbox::empty() };
                return Some(mem::replace(&mut inbox, next));
            }
            inbox.idle = inbox.since.is_none();
            inbox = match due {
                Some(due) => match self.bell.wait_timeout(inbox, due - now) {
                    Ok((inbox, _)) => inbox,
                    Err(poisoned) => poisoned.into_inner().0,
                },
                None => self.bell.wait(inbox).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// What the thread has.
struct Worker<F, S> {
    shared: Arc<Shared<F>>,
    store: S,
    encode: fn(&Details) -> Vec<u8>,
    life: u64,
    plan: Plan,
    bundles: BTreeMap<BundleId, Bundle>,
    /// What the plan knows of.
    held: BTreeMap<EntryId, Held<F>>,
    old: Option<Old>,
    flushes: Vec<Flush>,
    drainer: Drainer,
    told: u64,
    /// When the oldest change came that is not mirrored.
    since: Option<Instant>,
    /// How many passes have failed, one after the other.
    failures: u32,
    /// How long the last pass took.
    spent: Duration,
    reminder: Reminder,
}

impl<F: AsFd, S: Store> Worker<F, S> {
    fn run(&mut self) {
        // A pause as long as the last pass took keeps this to half a processor, whatever comes.
        while let Some(batch) = self.shared.wait(self.again(), self.spent) {
            let began = Instant::now();
            self.take_in(batch);
            let outcome = self.pass();
            self.conclude(outcome);
            self.spent = began.elapsed().min(LONGEST_PAUSE);
        }
    }

    /// After which time there is something to try again, if there is.
    fn again(&self) -> Option<Duration> {
        if self.failures > 0 {
            let pause = PACE.saturating_mul(2_u32.saturating_pow(self.failures - 1));
            return Some(pause.min(LONGEST_PAUSE));
        }
        (!self.flushes.is_empty()).then_some(PACE)
    }

    fn take_in(&mut self, batch: Inbox<F>) {
        let Inbox { put, gone, old, flushes, since, .. } = batch;
        for (id, held) in put {
            self.plan.put(id);
            self.held.insert(id, held);
        }
        for id in gone {
            self.plan.gone(id);
            self.held.remove(&id);
        }
        self.old = self.old.take().or(old);
        self.flushes.extend(flushes);
        self.since = self.since.or(since);
        self.publish();
    }

    /// Carries out what the plan asks for, until that is all, or one step fails.
    fn pass(&mut self) -> io::Result<()> {
        while let Some(step) = self.plan.step() {
            if self.shared.lock().paused {
                return Err(io::Error::from(io::ErrorKind::Interrupted));
            }
            if self.carry_out(&step)? {
                self.plan.done(&step);
            }
        }
        if self.plan.waiting() > 0 {
            return Err(io::Error::other("there is no room for more"));
        }
        self.since = None;
        self.remove_old()
    }

    /// Carries out a step; tells whether it is done, and not outdated.
    fn carry_out(&mut self, step: &Step) -> io::Result<bool> {
        match step {
            Step::AddBundle(id) => {
                let bundle = Bundle::new()?;
                // Once, for all that will ever be in it.
                self.store.store(&bundle::name(self.life, *id), bundle.receiver().as_fd())?;
                self.told += 1;
                self.shared.ends().extend(bundle.identities());
                self.bundles.insert(*id, bundle);
                Ok(true)
            }
            Step::Append { to, entries } => self.append(*to, entries),
            Step::Drop { from, messages } => {
                if let Some(bundle) = self.bundles.get(from) {
                    self.drainer.take(bundle.receiver(), *messages);
                }
                Ok(true)
            }
            Step::RemoveBundle(id) => {
                self.store.remove(&bundle::name(self.life, *id))?;
                // What is yet to be taken off it holds it until then.
                if let Some(bundle) = self.bundles.remove(id) {
                    let mut ends = self.shared.ends();
                    for end in bundle.identities() {
                        ends.remove(&end);
                    }
                }
                Ok(true)
            }
        }
    }

    fn append(&mut self, to: BundleId, entries: &[EntryId]) -> io::Result<bool> {
        let mut fds = Vec::with_capacity(entries.len());
        let mut records = Vec::with_capacity(entries.len());
        let mut closed = Vec::new();
        for id in entries {
            let held = self.held.get(id);
            match held.and_then(|held| Some((held.fd.upgrade()?, &held.details))) {
                Some((fd, details)) => {
                    fds.push(fd);
                    records.push((self.encode)(details));
                }
                None => closed.push(*id),
            }
        }
        if !closed.is_empty() {
            // Their `gone` is on its way, and finds nothing left to do.
            for id in closed {
                self.plan.gone(id);
                self.held.remove(&id);
            }
            return Ok(false);
        }
        let Some(bundle) = self.bundles.get(&to) else { return Ok(false) };
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| fd.as_fd()).collect();
        bundle.append(&records, &borrowed)?;
        Ok(true)
    }

    /// Removes the bundles of earlier lives, now that all of theirs is in ours.
    fn remove_old(&mut self) -> io::Result<()> {
        let Some(old) = &self.old else { return Ok(()) };
        self.store.barrier(BARRIER)?;
        old.names.iter().try_for_each(|name| self.store.remove(name))?;
        self.store.barrier(BARRIER)?;
        self.store.retired();
        self.plan.set_room_for_bundles(old.room);
        for end in self.old.take().into_iter().flat_map(|old| old.ends) {
            self.drainer.take_all(&Arc::new(end));
        }
        Ok(())
    }

    /// Takes note of how a pass went, and answers who waits for it.
    fn conclude(&mut self, outcome: io::Result<()>) {
        let outcome = outcome.and_then(|()| self.answer_flushes());
        self.publish();
        match outcome {
            Ok(()) => self.failures = 0,
            // It goes on when it is resumed, if ever.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.failures = 1,
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                if self.reminder.is_due() {
                    let waiting = self.plan.waiting();
                    tracing::warn!(%error, waiting, "cannot mirror everything now, trying again");
                }
            }
        }
        let now = Instant::now();
        self.flushes.retain(|flush| flush.until > now);
    }

    fn answer_flushes(&mut self) -> io::Result<()> {
        let Some(until) = self.flushes.iter().map(|flush| flush.until).max() else {
            return Ok(());
        };
        if !self.drainer.rest(until.min(Instant::now() + REST)) {
            return Ok(());
        }
        self.store.barrier(until.saturating_duration_since(Instant::now()))?;
        self.publish();
        for flush in self.flushes.drain(..) {
            // Who no longer waits has been told that it is behind.
            let _ = flush.done.try_send(());
        }
        Ok(())
    }

    fn publish(&self) {
        let standing = Standing {
            bundles: self.bundles.len(),
            told: self.told,
            entries: self.plan.mirrored(),
            waiting: self.plan.waiting(),
            behind_usec: 0,
        };
        *self.shared.standing() = (standing, self.since);
    }
}
