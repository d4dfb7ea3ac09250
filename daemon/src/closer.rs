//! [`Closer`]: closes descriptors on the blocking pool, one after the other, and more at a time
//! while some of them take long.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::runtime::Handle;

use crate::steps::step;

/// How many closes may hang at a time before the others wait for them.
const MOST_WORKERS: usize = 64;

/// How long a close may take before another worker is put beside it.
const PATIENCE: Duration = Duration::from_millis(20);

/// Closes what it is given, and never lets its giver wait. A clone is the same closer.
#[derive(Debug, Clone)]
pub(crate) struct Closer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pool: Handle,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<OwnedFd>,
    workers: usize,
    /// How many have been taken out of the queue, ever.
    taken: u64,
    watched: bool,
}

impl Closer {
    /// A closer on the blocking pool of a runtime.
    pub(crate) fn new(pool: Handle) -> Self {
        Self(Arc::new(Shared { pool, state: Mutex::default() }))
    }

    /// Owns the descriptor from here on, and closes it soon.
    pub(crate) fn close(&self, fd: OwnedFd) {
        let mut state = self.0.lock();
        state.queue.push_back(fd);
        if state.workers == 0 {
            self.add_worker(&mut state);
        } else if !state.watched {
            state.watched = true;
            self.0.pool.spawn(self.clone().watch());
        }
    }

    fn add_worker(&self, state: &mut State) {
        state.workers += 1;
        let shared = Arc::clone(&self.0);
        self.0.pool.spawn_blocking(move || shared.work());
    }

    /// Puts another worker beside those that hang, for as long as something waits.
    async fn watch(self) {
        loop {
            let before = self.0.lock().taken;
            tokio::time::sleep(PATIENCE).await;
            let mut state = self.0.lock();
            if state.queue.is_empty() {
                state.watched = false;
                return;
            }
            if state.taken == before && state.workers < MOST_WORKERS {
                self.add_worker(&mut state);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics while it has the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let fd = {
                let mut state = self.lock();
                let Some(fd) = state.queue.pop_front() else {
                    state.workers -= 1;
                    return;
                };
                state.taken += 1;
                fd
            };
            step("before a close");
            drop(fd);
            step("after a close");
        }
    }
}
