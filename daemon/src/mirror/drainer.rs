//! [`Drainer`]: takes messages off bundles on threads of its own, since what that closes for good
//! may wait for a file server that is dead.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::mirror::bundle;

/// How many takings may hang at a time before the others wait for them.
const MOST_WORKERS: usize = 16;

/// How long one may take before another thread is put beside it.
const PATIENCE: Duration = Duration::from_millis(20);

/// Takes messages off bundles, and never lets who asks for it wait. A clone is the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drainer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    rest: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    workers: usize,
    /// How many messages have been begun with, ever.
    taken: u64,
    watched: bool,
}

#[derive(Debug)]
struct Job {
    receiver: Arc<OwnedFd>,
    messages: usize,
}

impl Drainer {
    /// Takes so many messages off a bundle, soon. They are its oldest, whoever takes them: so it is
    /// the same in which order these are done.
    pub(crate) fn take(&self, receiver: &Arc<OwnedFd>, messages: usize) {
        let mut state = self.0.lock();
        state.queue.push_back(Job { receiver: Arc::clone(receiver), messages });
        if state.workers == 0 {
            self.add_worker(&mut state);
        } else if !state.watched {
            let drainer = self.clone();
            state.watched = spawn("mirror-watch", move || drainer.watch()).is_ok();
        }
    }

    /// Takes all messages off a bundle to which nothing is sent any more, soon.
    pub(crate) fn take_all(&self, receiver: &Arc<OwnedFd>) {
        self.take(receiver, usize::MAX);
    }

    /// Waits until all that was asked for has been done, or until then, and tells whether it has
    /// been begun with: what still hangs then is closing what has left its bundle long since.
    pub(crate) fn rest(&self, until: Instant) -> bool {
        let mut state = self.0.lock();
        loop {
            if state.workers == 0 && state.queue.is_empty() {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return state.queue.is_empty();
            }
            state = match self.0.rest.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn add_worker(&self, state: &mut State) {
        let shared = Arc::clone(&self.0);
        // Without one, the next that is asked for tries again.
        if spawn("mirror-drain", move || shared.work()).is_ok() {
            state.workers += 1;
        }
    }

    /// Puts another thread beside those that hang, for as long as something waits.
    fn watch(&self) {
        loop {
            let before = self.0.lock().taken;
            thread::sleep(PATIENCE);
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
        while let Some(receiver) = self.next() {
            match bundle::take_oldest(&receiver) {
                Ok(true) => {}
                Ok(false) => self.forget(&receiver),
                Err(error) => {
                    tracing::warn!(%error, "cannot take a message off a bundle");
                    self.forget(&receiver);
                }
            }
        }
        self.rest.notify_all();
    }

    /// Asks no more for messages of a bundle that has none.
    fn forget(&self, receiver: &Arc<OwnedFd>) {
        self.lock().queue.retain(|job| !Arc::ptr_eq(&job.receiver, receiver));
    }

    /// The bundle that a message is to be taken from next; without one, the thread has ended.
    fn next(&self) -> Option<Arc<OwnedFd>> {
        let mut state = self.lock();
        while let Some(mut job) = state.queue.pop_front() {
            let Some(rest) = job.messages.checked_sub(1) else { continue };
            state.taken += 1;
            job.messages = rest;
            let receiver = Arc::clone(&job.receiver);
            state.queue.push_front(job);
            return Some(receiver);
        }
        state.workers -= 1;
        None
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}
