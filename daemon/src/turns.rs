//! [`Turn`]: when a connection is served. Users take turns, so that whoever asks a thousand times at
//! once, or on a thousand connections, waits for itself and lets others wait for one turn.
//!
//! A user has one turn at a time, which goes round its connections until its time is over. Between two
//! turns of a user the event loop looks for whom else there is something to do, and everybody else who is
//! ready has had a turn. Nobody has one while it waits for a socket or for a file.

use std::{
    collections::BTreeMap,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, MutexGuard},
    task::yield_now,
};

/// How long a turn goes on: what has been begun by then is its last. Enough for some calls, and many times
/// what it takes to let others have theirs.
const TURN: Duration = Duration::from_micros(100);

/// The users who are connected, by number.
#[derive(Default)]
pub(crate) struct Users {
    by_uid: BTreeMap<u32, Weak<User>>,
    /// At how many to look which of them have gone.
    most: usize,
}

impl Users {
    /// A user, whichever connection asks.
    pub(crate) fn get(&mut self, uid: u32) -> Rc<User> {
        if let Some(user) = self.by_uid.get(&uid).and_then(Weak::upgrade) {
            return user;
        }
        if self.by_uid.len() >= self.most {
            self.by_uid.retain(|_, user| user.strong_count() > 0);
            self.most = 2 * self.by_uid.len() + 64;
        }
        let turn = Mutex::new(Instant::now() + TURN);
        let user = Rc::new(User { turn });
        self.by_uid.insert(uid, Rc::downgrade(&user));
        user
    }
}

/// What a user's connections share.
pub(crate) struct User {
    /// When the turn ends or has ended. Whoever has it locked is served; those who wait for that get it in
    /// the order in which they came.
    turn: Mutex<Instant>,
}

impl User {
    /// Waits for a turn, or for what is left of one that another connection has begun.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let mut turn = Turn(self.turn.lock().await);
        let now = Instant::now();
        if now < *turn.0 {
            return turn;
        }
        if now < *turn.0 + TURN {
            turn.let_others().await;
        } else {
            // They have had time enough.
            *turn.0 = now + TURN;
        }
        turn
    }
}

/// A user's turn.
pub(crate) struct Turn<'a>(MutexGuard<'a, Instant>);

impl Turn<'_> {
    /// Whether it has gone on for long enough.
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= *self.0
    }

    /// Lets others have theirs, and then goes on.
    pub(crate) async fn let_others(&mut self) {
        // Tokio wakes who yields after it has looked at the sockets, behind those who wait there.
        yield_now().await;
        *self.0 = Instant::now() + TURN;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // What takes longer than a turn is no reason to begin the next one at once.
        *self.0 = Instant::now().max(*self.0);
    }
}
