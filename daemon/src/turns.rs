//! [`Turn`]: when a connection is served. Users take turns, so that whoever asks a thousand times at
//! once, or on a thousand connections, waits for itself and lets others wait for one turn.
//!
//! A user has one turn at a time, which goes round its connections until its time is over. Between two
//! turns of a user the event loop looks for whom else there is something to do, and everybody else who is
//! ready has had a turn. Nobody has one while it waits for a socket or for a file.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::pin,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Wake, Waker},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, MutexGuard},
    task::yield_now,
};

/// How long a turn goes on: what has been begun by then is its last. Enough for some calls, and many times
/// what it takes to let others have theirs.
const TURN: Duration = Duration::from_micros(100);

/// How often the event loop has looked at the sockets and woken whose are ready.
#[derive(Clone, Default)]
pub(crate) struct Looks(Arc<AtomicU64>);

impl Looks {
    /// Counts one.
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Has the loop look, and goes on behind those who are ready.
    async fn next(&self) {
        let mut yielded = pin!(yield_now());
        poll_fn(|context| {
            let looked = Looked { looks: self.clone(), waker: context.waker().clone() };
            yielded.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(looked))))
        })
        .await;
    }
}

/// Counts a look, and wakes who waits for it: Tokio wakes who yields when it has looked, behind those whose
/// sockets are ready and before any of them is served.
struct Looked {
    looks: Looks,
    waker: Waker,
}

impl Wake for Looked {
    fn wake(self: Arc<Self>) {
        self.looks.add();
        self.waker.wake_by_ref();
    }
}

/// The users who are connected, by number.
pub(crate) struct Users {
    by_uid: BTreeMap<u32, Weak<User>>,
    looks: Looks,
    /// At how many to look which of them have gone.
    most: usize,
}

impl Users {
    /// Nobody yet. Of the loop's looks, it counts those after which it slept; those that somebody asks
    /// for are counted here.
    pub(crate) fn new(looks: Looks) -> Self {
        Self { by_uid: BTreeMap::new(), looks, most: 0 }
    }

    /// A user, whichever connection asks.
    pub(crate) fn get(&mut self, uid: u32) -> Rc<User> {
        if let Some(user) = self.by_uid.get(&uid).and_then(Weak::upgrade) {
            return user;
        }
        if self.by_uid.len() >= self.most {
            self.by_uid.retain(|_, user| user.strong_count() > 0);
            self.most = 2 * self.by_uid.len() + 64;
        }
        let time = Time { end: Instant::now() + TURN, looks: self.looks.count() };
        let user = Rc::new(User { time: Mutex::new(time), looks: self.looks.clone() });
        self.by_uid.insert(uid, Rc::downgrade(&user));
        user
    }
}

/// What a user's connections share.
pub(crate) struct User {
    /// Whoever has it locked is served; those who wait for that get it in the order in which they came.
    time: Mutex<Time>,
    looks: Looks,
}

/// Of a user's turn, or of its last one.
struct Time {
    /// When it ends or has ended.
    end: Instant,
    /// How often the loop had looked when somebody was served in it for the last time.
    looks: u64,
}

impl User {
    /// Waits for a turn, or for what is left of one that another connection has begun.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let time = self.time.lock().await;
        let mut turn = Turn { time, looks: &self.looks };
        if turn.is_over() {
            if turn.time.looks == self.looks.count() {
                self.looks.next().await;
            }
            turn.time.end = Instant::now() + TURN;
        }
        turn
    }
}

/// A user's turn.
pub(crate) struct Turn<'a> {
    time: MutexGuard<'a, Time>,
    looks: &'a Looks,
}

impl Turn<'_> {
    /// Whether it has gone on for long enough.
    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.time.end
    }

    /// Lets others have theirs, and then goes on.
    pub(crate) async fn let_others(&mut self) {
        self.looks.next().await;
        self.time.end = Instant::now() + TURN;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // What takes longer than a turn is no reason to begin the next one at once.
        self.time.end = Instant::now().max(self.time.end);
        self.time.looks = self.looks.count();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        io::Write,
        os::unix::net,
    };

    use tokio::{
        net::UnixStream,
        runtime::{Builder, LocalOptions, LocalRuntime},
        sync::Notify,
        task::spawn_local,
    };

    use super::*;

    fn runtime() -> LocalRuntime {
        let mut builder = Builder::new_current_thread();
        builder.enable_all().build_local(LocalOptions::default()).unwrap()
    }

    fn pair() -> (net::UnixStream, net::UnixStream) {
        let (client, socket) = net::UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        (client, socket)
    }

    /// Goes on until the turn is over, and ends it.
    fn spend(turn: Turn<'_>) {
        while !turn.is_over() {}
        drop(turn);
    }

    #[test]
    fn who_comes_again_does_not_wait_behind_others_who_have_had_a_turn_since() {
        let served = Rc::new(RefCell::new(Vec::new()));
        let (mut client, socket) = pair();
        let mut users = Users::new(Looks::default());

        runtime().block_on(async {
            let (socket, is_over) = (UnixStream::from_std(socket).unwrap(), Rc::new(Notify::new()));
            let (quick, of_quick, tell) = (users.get(1), Rc::clone(&served), Rc::clone(&is_over));
            let comes_again = spawn_local(async move {
                spend(quick.turn().await);
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

    #[test]
    fn however_many_connections_of_others_are_always_ready_who_comes_waits_for_a_turn_of_each_user()
    {
        let turns = Rc::new(Cell::new(0));
        let (mut client, socket) = pair();
        let mut users = Users::new(Looks::default());

        runtime().block_on(async {
            for uid in [1, 1, 1, 2, 2, 2] {
                let (user, turns) = (users.get(uid), Rc::clone(&turns));
                spawn_local(async move {
                    loop {
                        spend(user.turn().await);
                        turns.set(turns.get() + 1);
                    }
                });
            }
            let (socket, comes) = (UnixStream::from_std(socket).unwrap(), users.get(3));
            while turns.get() < 10 {
                yield_now().await;
            }
            let before = turns.get();
            client.write_all(b"a call").unwrap();
            socket.readable().await.unwrap();
            drop(comes.turn().await);

            assert!(
                turns.get() - before <= 4,
                "behind {} turns of two users",
                turns.get() - before
            );
        });
    }
}
