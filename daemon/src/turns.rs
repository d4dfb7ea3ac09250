//! [`Turn`]: when a connection is served. Users take turns, so that whoever asks a thousand times at
//! once, or on a thousand connections, waits for itself and lets others wait for one turn.
//!
//! A user has one turn at a time, which goes round its connections. Between two turns of a user the event
//! loop looks for whom else there is something to do, and everybody else who is ready has had a turn.
//! Nobody has one while it waits for a socket or for a file.

use std::{
    collections::BTreeMap,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit},
    task::yield_now,
};

/// How long a turn goes on: what has been begun by then is the last. Some calls, and many times what it
/// takes to hand the turn over.
const TURN: Duration = Duration::from_micros(100);

/// How many calls of a user may be at opening files at a time, each on a thread of the pool, which has
/// 512: an open may hang for as long as a file server does.
const OPENERS: usize = 32;

/// The users who are connected, by number.
#[derive(Default)]
pub(crate) struct Users(BTreeMap<u32, Weak<User>>);

impl Users {
    /// A user, whichever connection asks.
    pub(crate) fn get(&mut self, uid: u32) -> Rc<User> {
        if let Some(user) = self.0.get(&uid).and_then(Weak::upgrade) {
            return user;
        }
        self.0.retain(|_, user| user.strong_count() > 0);
        let user = Rc::new(User { turn: Mutex::new(()), openers: Semaphore::new(OPENERS) });
        self.0.insert(uid, Rc::downgrade(&user));
        user
    }
}

/// What a user's connections share.
pub(crate) struct User {
    /// Who has the turn. Those who wait get it in the order in which they came.
    turn: Mutex<()>,
    openers: Semaphore,
}

impl User {
    /// Waits for a turn.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let guard = self.turn.lock().await;
        Turn { ends: Instant::now() + TURN, guard }
    }

    /// Waits until one more call may open files. None only if nothing more is to be opened by anybody.
    pub(crate) async fn opener(&self) -> Option<SemaphorePermit<'_>> {
        self.openers.acquire().await.ok()
    }
}

/// A user's turn. It ends by [`Turn::end`], or else the next one could follow at once.
pub(crate) struct Turn<'a> {
    ends: Instant,
    guard: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// Whether it has gone on for long enough.
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.ends
    }

    /// Lets others have theirs, and then goes on.
    pub(crate) async fn let_others(&mut self) {
        yield_now().await;
        self.ends = Instant::now() + TURN;
    }

    /// Lets others have theirs, and then whoever of this user is next.
    pub(crate) async fn end(self) {
        // Tokio wakes who yields after it has looked at the sockets, behind those who wait there.
        yield_now().await;
        drop(self.guard);
    }
}
