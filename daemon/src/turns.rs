//! [`Turn`]: when a connection is served. Users take turns, so that whoever asks a thousand times at
//! once, or on a thousand connections, waits for itself and lets others wait for one turn.
//!
//! A user has one turn at a time, which goes round its connections until its time is over. Between two
//! turns of a user somebody lets others have theirs, be it this user or another: the event loop looks for
//! whom else there is something to do, and all who are ready are served. Nobody has a turn while it waits
//! for a socket or for a file.

use std::{
    cell::Cell,
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
    /// How often somebody has let others have their turns.
    let_others: Rc<Cell<u64>>,
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
        let time = Time { end: Instant::now() + TURN, let_others: self.let_others.get() };
        let user = Rc::new(User { time: Mutex::new(time), let_others: self.let_others.clone() });
        self.by_uid.insert(uid, Rc::downgrade(&user));
        user
    }
}

/// What a user's connections share.
pub(crate) struct User {
    /// Whoever has it locked is served; those who wait for that get it in the order in which they came.
    time: Mutex<Time>,
    let_others: Rc<Cell<u64>>,
}

/// Of a user's turn, or of its last one.
struct Time {
    /// When it ends or has ended.
    end: Instant,
    /// How often anybody had let others have theirs when somebody was served in it for the last time.
    let_others: u64,
}

impl User {
    /// Waits for a turn, or for what is left of one that another connection has begun.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let time = self.time.lock().await;
        let mut turn = Turn { time, let_others: &self.let_others };
        let now = Instant::now();
        if now < turn.time.end {
            return turn;
        }
        let have_had_theirs = turn.time.let_others < self.let_others.get();
        if have_had_theirs || turn.time.end + TURN <= now {
            turn.time.end = now + TURN;
        } else {
            turn.let_others().await;
        }
        turn
    }
}

/// A user's turn.
pub(crate) struct Turn<'a> {
    time: MutexGuard<'a, Time>,
    let_others: &'a Cell<u64>,
}

impl Turn<'_> {
    /// Whether it has gone on for long enough.
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.time.end
    }

    /// Lets others have theirs, and then goes on.
    pub(crate) async fn let_others(&mut self) {
        self.let_others.set(self.let_others.get() + 1);
        // Tokio wakes who yields after it has looked at the sockets, behind those who wait there.
        yield_now().await;
        self.time.end = Instant::now() + TURN;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // What takes longer than a turn is no reason to begin the next one at once.
        self.time.end = Instant::now().max(self.time.end);
        self.time.let_others = self.let_others.get();
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, io::Write, os::unix::net};

    use tokio::{
        net::UnixStream,
        runtime::{Builder, LocalOptions},
        sync::Notify,
        task::spawn_local,
    };

    use super::*;

    #[test]
    fn who_comes_again_does_not_wait_behind_others_who_have_had_a_turn_since() {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_all().build_local(LocalOptions::default()).unwrap();
        let served = Rc::new(RefCell::new(Vec::new()));
        let (mut client, socket) = net::UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut users = Users::default();

        runtime.block_on(async {
            let (socket, is_over) = (UnixStream::from_std(socket).unwrap(), Rc::new(Notify::new()));
            let (quick, of_quick, tell) = (users.get(1), Rc::clone(&served), Rc::clone(&is_over));
            let comes_again = spawn_local(async move {
                let turn = quick.turn().await;
                while !turn.is_over() {}
                drop(turn);
                tell.notify_one();
                socket.readable().await.unwrap();
                drop(quick.turn().await);
                of_quick.borrow_mut().push("quick");
            });
            is_over.notified().await;
            let (dear, of_dear) = (users.get(2), Rc::clone(&served));
            let lets = spawn_local(async move {
                let mut turn = dear.turn().await;
                client.write_all(b"a call").unwrap();
                turn.let_others().await;
                of_dear.borrow_mut().push("dear");
            });
            comes_again.await.unwrap();
            lets.await.unwrap();
        });

        assert_eq!(*served.borrow(), ["quick", "dear"]);
    }
}
