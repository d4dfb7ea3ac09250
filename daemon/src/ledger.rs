//! [`Ledger`]: how many numbers of the process's table are taken, and by whose doing.
//!
//! Every descriptor beyond the daemon's own is counted from when it is here until its close has
//! *finished*, and so are those for which room is kept. What the stash holds is bounded by the stash
//! (`Limits::places`). All else is *in flight*: what has come and is not yet used by a call, what is
//! being opened, what waits to be read by a client, what waits to be closed. That counts to a user, who
//! may have so much of it; and the table has more numbers than places, so that whatever is kept, there
//! is room to receive the next call with.

use std::{
    collections::BTreeMap,
    fmt,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use fdstash_proto::MAX_DESCRIPTORS;
use tokio::{runtime::Handle, sync::Notify};

use crate::closer::{Closer, Closing};

/// The user from whom nobody else takes the last room.
pub(crate) const ROOT: u32 = 0;

/// The least that a user may have in flight: with it, one connection comes to the end of any call.
const LEAST: usize = 2 * MAX_DESCRIPTORS;

/// How many numbers there are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// For all but the daemon's own descriptors.
    pub(crate) size: usize,
    /// Of these, those that the stash leaves to what is in flight.
    pub(crate) slack: usize,
    /// The user whose daemon it is, who is root here.
    pub(crate) owner: u32,
}

impl Table {
    /// Of the slack, what only root may use.
    fn share(self, uid: u32) -> usize {
        if uid == ROOT { 0 } else { (self.slack / 2).min(2 * MAX_DESCRIPTORS) }
    }
}

/// What room is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// For what one read may bring.
    Receive,
    /// The same, in the middle of a message: its end makes room.
    ReceiveRest,
    /// For opening so many files.
    Open(usize),
}

/// Counts what is in the process's table. A clone is the same ledger.
#[derive(Clone)]
pub(crate) struct Ledger(Arc<Shared>);

struct Shared {
    table: Table,
    closer: Closer,
    /// Numbers that are taken, or kept for somebody.
    taken: AtomicUsize,
    /// Of these, those in flight.
    in_flight: AtomicUsize,
    accounts: Mutex<Accounts>,
    /// Whether somebody waits for room.
    is_awaited: AtomicBool,
    freed: Notify,
}

#[derive(Default)]
struct Accounts {
    by_uid: BTreeMap<u32, Weak<User>>,
    /// At how many to look which of them nobody has any more.
    most: usize,
}

/// A user, to whom descriptors are counted. A clone is the same one.
#[derive(Clone)]
pub(crate) struct Account(Arc<User>);

struct User {
    uid: u32,
    /// How many descriptors it has in flight, and may have.
    in_flight: AtomicUsize,
    most: AtomicUsize,
    /// How many bytes it has half sent or not read, and may have.
    bytes: AtomicUsize,
    most_bytes: AtomicUsize,
    ledger: Arc<Shared>,
}

impl Ledger {
    /// An empty one, which closes by threads that a runtime watches.
    pub(crate) fn new(table: Table, runtime: Handle) -> Self {
        Self(Arc::new(Shared {
            table,
            closer: Closer::new(runtime),
            taken: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            accounts: Mutex::default(),
            is_awaited: AtomicBool::new(false),
            freed: Notify::new(),
        }))
    }

    /// A user's account.
    pub(crate) fn account(&self, uid: u32) -> Account {
        let uid = if uid == self.0.table.owner { ROOT } else { uid };
        let mut accounts = self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = accounts.by_uid.get(&uid).and_then(Weak::upgrade) {
            return Account(known);
        }
        if accounts.by_uid.len() >= accounts.most {
            accounts.by_uid.retain(|_, user| user.strong_count() > 0);
            accounts.most = 2 * accounts.by_uid.len() + 64;
        }
        let user = Arc::new(User {
            uid,
            in_flight: AtomicUsize::new(0),
            most: AtomicUsize::new(usize::MAX),
            bytes: AtomicUsize::new(0),
            most_bytes: AtomicUsize::new(usize::MAX),
            ledger: Arc::clone(&self.0),
        });
        accounts.by_uid.insert(uid, Arc::downgrade(&user));
        Account(user)
    }

    /// Waits until there is more room than there was, after somebody has asked to be told.
    pub(crate) async fn freed(&self) {
        self.0.freed.notified().await;
    }

    /// Says whether somebody waits for room.
    pub(crate) fn set_awaited(&self, is_awaited: bool) {
        self.0.is_awaited.store(is_awaited, SeqCst);
    }

    /// How many numbers are taken, or kept for somebody; and of these, those in flight.
    pub(crate) fn taken(&self) -> (usize, usize) {
        (self.0.taken.load(SeqCst), self.0.in_flight.load(SeqCst))
    }

    /// Who closes.
    pub(crate) fn closer(&self) -> &Closer {
        &self.0.closer
    }
}

impl Shared {
    fn tell_freed(&self) {
        if self.is_awaited.load(SeqCst) {
            self.freed.notify_one();
        }
    }
}

impl Account {
    /// Whose it is.
    pub(crate) fn uid(&self) -> u32 {
        self.0.uid
    }

    /// Bounds what it may have in flight before further calls of it wait. What has begun is let come to
    /// its end, for which it may have up to three times as much.
    pub(crate) fn set_most(&self, most: usize) {
        self.0.most.store(most.max(LEAST), SeqCst);
        self.0.ledger.tell_freed();
    }

    /// Bounds how many bytes it may have half sent or not read.
    pub(crate) fn set_most_bytes(&self, most: usize) {
        self.0.most_bytes.store(most, SeqCst);
    }

    /// How many bytes it may have half sent or not read.
    pub(crate) fn most_bytes(&self) -> usize {
        self.0.most_bytes.load(SeqCst)
    }

    /// Whether it has more of them.
    pub(crate) fn is_heavy(&self) -> bool {
        self.0.bytes.load(SeqCst) > self.most_bytes()
    }

    /// Counts no bytes yet.
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes { user: Arc::clone(&self.0), count: 0 }
    }

    /// How much it may have in flight.
    pub(crate) fn most(&self) -> usize {
        self.0.most.load(SeqCst)
    }

    /// Whether it has as much in flight as it may.
    pub(crate) fn is_full(&self) -> bool {
        self.0.in_flight.load(SeqCst) >= self.most()
    }

    /// Whether more of its closes wait than it may have in flight.
    pub(crate) fn is_full_of_closes(&self) -> bool {
        self.is_full() && self.0.ledger.closer.waiting(self.0.uid) >= self.most()
    }

    /// Counts one descriptor that is there, in flight for now.
    pub(crate) fn charge(&self) -> Charge {
        self.0.ledger.taken.fetch_add(1, SeqCst);
        self.0.fly(1);
        Charge { user: Arc::clone(&self.0), flies: AtomicBool::new(true) }
    }

    /// Counts nothing yet of what takes no further numbers, but is in flight too.
    pub(crate) fn load(&self) -> Load {
        Load { user: Arc::clone(&self.0), count: 0 }
    }

    /// Keeps room, where there is some.
    pub(crate) fn room(&self, need: Need) -> Option<Room> {
        if !self.fits(need) {
            return None;
        }
        let count = need.count();
        self.0.ledger.taken.fetch_add(count, SeqCst);
        self.0.fly(count);
        Some(Room { user: Arc::clone(&self.0), count })
    }

    /// Whether there can be room some time, whatever is kept.
    pub(crate) fn will_fit(&self, need: Need) -> bool {
        let table = self.0.ledger.table;
        need.count() <= (table.slack - table.share(self.0.uid)).min(self.most())
    }

    /// Nobody takes more of what is free than it leaves to others: so there is always some for the
    /// next to come, however many are greedy.
    fn fits(&self, need: Need) -> bool {
        let (table, own) = (self.0.ledger.table, self.0.in_flight.load(SeqCst));
        let share = table.share(self.0.uid);
        let free = table.size.saturating_sub(self.0.ledger.taken.load(SeqCst));
        // Where more is kept than should be, waiting does not help.
        let slack = table.slack.saturating_sub(self.0.ledger.in_flight.load(SeqCst));
        let free = free.max(slack).saturating_sub(share);
        let count = match need {
            // A small table never has room for the largest message.
            Need::Receive | Need::ReceiveRest => need.count().min(table.slack - share),
            Need::Open(count) => count,
        };
        // What waits for the rest of its message, or for its files, must not wait for what comes after.
        let times = match need {
            Need::Receive => 1,
            Need::ReceiveRest => 2,
            Need::Open(_) => 3,
        };
        let most = self.most().min(free).saturating_mul(times);
        count <= free && own + count <= most
    }
}

impl Need {
    fn count(self) -> usize {
        match self {
            Self::Receive | Self::ReceiveRest => MAX_DESCRIPTORS,
            Self::Open(count) => count,
        }
    }
}

impl User {
    fn fly(&self, count: usize) {
        self.in_flight.fetch_add(count, SeqCst);
        self.ledger.in_flight.fetch_add(count, SeqCst);
    }

    fn land(&self, count: usize) {
        self.in_flight.fetch_sub(count, SeqCst);
        self.ledger.in_flight.fetch_sub(count, SeqCst);
    }
}

/// One number of the table, counted to a user until it is dropped.
pub(crate) struct Charge {
    user: Arc<User>,
    flies: AtomicBool,
}

impl Charge {
    /// Counts it no longer as in flight: it is the stash's from here on, or a connection.
    pub(crate) fn hold(&self) {
        if self.flies.swap(false, SeqCst) {
            self.user.land(1);
            self.user.ledger.tell_freed();
        }
    }

    /// Closes the descriptor that it is of, soon; it counts until that has been done.
    pub(crate) fn close(self, fd: OwnedFd) {
        if !self.flies.swap(true, SeqCst) {
            self.user.fly(1);
        }
        let (uid, shared) = (self.user.uid, Arc::clone(&self.user.ledger));
        shared.closer.close(uid, Closing { fd, charge: self });
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.flies.load(SeqCst) {
            self.user.land(1);
        }
        self.user.ledger.taken.fetch_sub(1, SeqCst);
        self.user.ledger.tell_freed();
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Charge").field("uid", &self.user.uid).finish_non_exhaustive()
    }
}

/// Room for some descriptors, kept for a user until it is dropped: after they have come, and count
/// themselves.
pub(crate) struct Room {
    user: Arc<User>,
    count: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.user.land(self.count);
        self.user.ledger.taken.fetch_sub(self.count, SeqCst);
        self.user.ledger.tell_freed();
    }
}

/// Descriptors that a user has in flight beside those that are counted one by one: what waits for it to
/// read takes no number of its own while it is kept as well, but may not be kept for long.
pub(crate) struct Load {
    user: Arc<User>,
    count: usize,
}

impl Load {
    /// How many they are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Counts so many more.
    pub(crate) fn add(&mut self, count: usize) {
        self.user.fly(count);
        self.count += count;
    }

    /// Counts so many fewer.
    pub(crate) fn remove(&mut self, count: usize) {
        let count = count.min(self.count);
        self.count -= count;
        self.user.land(count);
        if count > 0 {
            self.user.ledger.tell_freed();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.remove(self.count);
    }
}

/// Bytes that a user has half sent or not read on one connection.
pub(crate) struct Bytes {
    user: Arc<User>,
    count: usize,
}

impl Bytes {
    /// Says how many they are now.
    pub(crate) fn set(&mut self, count: usize) {
        self.user.bytes.fetch_add(count, SeqCst);
        self.user.bytes.fetch_sub(self.count, SeqCst);
        self.count = count;
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.set(0);
    }
}
