//! [`Pool`]: threads for what may wait in the kernel, users in turn.
//!
//! Tokio's own threads would panic where the machine has none left to give, and know no users. Here a
//! thread that cannot be made is tried again, and meanwhile those do the work that there are; the
//! first one, once it is there, stays.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use crate::{ledger::ROOT, reminder::Reminder};

/// How long nothing may go on before another thread is put beside those that hang.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long a thread waits for something to do before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// How long a thread that has done all there was lets more come before it looks again, where jobs need not
/// be done at once: to wake one for each costs whoever has the job more than the job itself.
const REST: Duration = Duration::from_millis(1);

/// With so many jobs of one user its rest is over.
const MANY: usize = 64;

/// What one job needs of the stack, with much to spare; of which only what is used takes memory.
const STACK: usize = 512 << 10;

/// Something that may wait.
pub(crate) trait Job: Send + 'static {
    /// Does it.
    fn work(self);
    /// Does without it, where no thread was to be had for it for too long.
    fn give_up(self);
}

/// How many threads there may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// What they are called.
    pub(crate) name: &'static str,
    /// In all.
    pub(crate) most: usize,
    /// At work for one user; for root, all.
    pub(crate) most_of_one: usize,
    /// How many of all are at work for nobody but root.
    pub(crate) share: usize,
    /// Whether each job gets a thread at once, and not only when those before it take long; and no thread
    /// rests.
    pub(crate) is_hurried: bool,
    /// How long a job waits for a thread that cannot be made before it is given up.
    pub(crate) gives_up: Duration,
}

/// Does jobs on threads, and never lets who has one wait. A clone is the same pool.
pub(crate) struct Pool<J>(Arc<Shared<J>>);

impl<J> Clone for Pool<J> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<J> {
    bounds: Bounds,
    runtime: Handle,
    state: Mutex<State<J>>,
    called: Condvar,
    rest: Condvar,
}

struct State<J> {
    /// What waits, and is done, for whom.
    lines: BTreeMap<u32, Line<J>>,
    /// Users of whom another job can be done, in the order of their turns.
    turns: VecDeque<u32>,
    /// How many jobs are being done for others than root.
    of_others: usize,
    /// How many jobs have been begun, ever.
    begun: u64,
    threads: usize,
    /// Threads that wait, and have not been called.
    idle: usize,
    /// Threads that have been called, and have not come yet.
    called: usize,
    /// Whether a thread rests, and will look by itself.
    has_rest: bool,
    /// When all threads were needed last: who calls one does not choose which, so that none is ever without
    /// anything to do for long, however many there are.
    all_needed: Instant,
    is_watched: bool,
    reminder: Reminder,
}

struct Line<J> {
    waiting: VecDeque<(Instant, J)>,
    at_work: usize,
    has_turn: bool,
}

impl<J> Default for Line<J> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), at_work: 0, has_turn: false }
    }
}

impl<J: Job> Pool<J> {
    /// A pool without threads, which a runtime watches.
    pub(crate) fn new(bounds: Bounds, runtime: Handle) -> Self {
        let state = State {
            lines: BTreeMap::new(),
            turns: VecDeque::new(),
            of_others: 0,
            begun: 0,
            threads: 0,
            idle: 0,
            called: 0,
            has_rest: false,
            all_needed: Instant::now(),
            is_watched: false,
            reminder: Reminder::default(),
        };
        let (called, rest) = (Condvar::new(), Condvar::new());
        Self(Arc::new(Shared { bounds, runtime, state: Mutex::new(state), called, rest }))
    }

    /// Makes its first thread, if there is none.
    pub(crate) fn start(&self) {
        let mut state = self.0.lock();
        if state.threads == 0 {
            self.add_thread(&mut state);
        }
    }

    /// Does a job for a user, when it is that user's turn.
    pub(crate) fn push(&self, uid: u32, job: J) {
        let mut state = self.0.lock();
        let line = state.lines.entry(uid).or_default();
        line.waiting.push_back((Instant::now(), job));
        let are_many = line.waiting.len() % MANY == 0;
        state.take_turn(uid, &self.0.bounds);
        if state.has_rest {
            if are_many {
                self.0.rest.notify_one();
            }
        } else if !self.call_idle(&mut state) && (state.threads == 0 || self.0.bounds.is_hurried) {
            self.add_thread(&mut state);
        }
        self.see_to_watch(&mut state);
    }

    /// Forgets those of a user's jobs that wait and are no longer wanted. Whether there were some.
    pub(crate) fn forget(&self, uid: u32, is_unwanted: impl Fn(&J) -> bool) -> bool {
        let mut unwanted = Vec::new();
        let mut state = self.0.lock();
        let Some(line) = state.lines.get_mut(&uid) else { return false };
        for (since, job) in mem::take(&mut line.waiting) {
            if is_unwanted(&job) {
                unwanted.push(job);
            } else {
                line.waiting.push_back((since, job));
            }
        }
        state.tidy(uid);
        // What it holds may come back to this pool when it is dropped.
        drop(state);
        !unwanted.is_empty()
    }

    /// How many jobs of a user wait.
    pub(crate) fn waiting(&self, uid: u32) -> usize {
        self.0.lock().lines.get(&uid).map_or(0, |line| line.waiting.len())
    }

    /// Calls a thread that has nothing to do, and does not look by itself. Whether there was one.
    fn call_idle(&self, state: &mut State<J>) -> bool {
        if state.idle == 0 {
            return false;
        }
        state.idle -= 1;
        state.called += 1;
        if state.idle == 0 {
            state.all_needed = Instant::now();
        }
        self.0.called.notify_one();
        true
    }

    fn add_thread(&self, state: &mut State<J>) -> bool {
        if state.threads >= self.0.bounds.most || !(state.threads == 0 || self.has_turn(state)) {
            return true;
        }
        let pool = self.clone();
        let builder = thread::Builder::new().name(self.0.bounds.name.into()).stack_size(STACK);
        match builder.spawn(move || pool.work()) {
            Ok(_) => {
                state.threads += 1;
                true
            }
            Err(error) => {
                if state.reminder.is_due() {
                    let (threads, of) = (state.threads, self.0.bounds.name);
                    tracing::warn!(%error, threads, of, "no further thread can be made, trying on");
                }
                false
            }
        }
    }

    fn work(&self) {
        while let Some((uid, job)) = self.next() {
            job.work();
            self.0.lock().done(uid, &self.0.bounds);
        }
    }

    /// The next job. Without one, the thread has ended.
    fn next(&self) -> Option<(u32, J)> {
        let mut state = self.0.lock();
        let mut is_rested = self.0.bounds.is_hurried;
        loop {
            if let Some(next) = state.begin(&self.0.bounds) {
                self.see_to_watch(&mut state);
                return Some(next);
            }
            if state.has_surplus() {
                state.threads -= 1;
                return None;
            }
            if !is_rested && !state.has_rest {
                state.has_rest = true;
                let rested = self.0.rest.wait_timeout(state, REST);
                (state, _) = rested.unwrap_or_else(PoisonError::into_inner);
                state.has_rest = false;
                is_rested = true;
                continue;
            }
            state.idle += 1;
            let waited = self.0.called.wait_timeout(state, IDLE);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if state.called > 0 {
                // Whoever called has counted it among the idle no longer.
                state.called -= 1;
                is_rested = self.0.bounds.is_hurried;
                continue;
            }
            state.idle -= 1;
            if timeout.timed_out() && state.threads > 1 {
                state.threads -= 1;
                return None;
            }
        }
    }

    fn has_turn(&self, state: &State<J>) -> bool {
        state.next_turn(&self.0.bounds).is_some()
    }

    fn see_to_watch(&self, state: &mut State<J>) {
        if !state.is_watched && self.has_turn(state) {
            state.is_watched = true;
            self.0.runtime.spawn(self.clone().watch());
        }
    }

    /// Puts another thread beside those that hang, one that has nothing to do or a new one, for as long as
    /// something waits that it could do.
    async fn watch(self) {
        loop {
            let before = self.0.lock().begun;
            tokio::time::sleep(PATIENCE).await;
            let given_up = {
                let mut state = self.0.lock();
                if !self.has_turn(&state) {
                    state.is_watched = false;
                    return;
                }
                let hangs = state.begun == before || self.0.bounds.is_hurried && state.is_late();
                // Whoever rested as this came has called nobody, and may be what hangs.
                if !hangs || self.call_idle(&mut state) || self.add_thread(&mut state) {
                    continue;
                }
                state.overdue(self.0.bounds.gives_up)
            };
            given_up.into_iter().for_each(Job::give_up);
        }
    }
}

impl<J> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // Nothing in here panics while it has the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> State<J> {
    /// Puts a user in the order of turns, if another job of it can be done and it is not there yet.
    fn take_turn(&mut self, uid: u32, bounds: &Bounds) {
        let Some(line) = self.lines.get_mut(&uid) else { return };
        let most = if uid == ROOT { bounds.most } else { bounds.most_of_one };
        if !line.has_turn && !line.waiting.is_empty() && line.at_work < most {
            line.has_turn = true;
            self.turns.push_back(uid);
        }
    }

    fn next_turn(&self, bounds: &Bounds) -> Option<usize> {
        let is_full = self.of_others >= bounds.most - bounds.share;
        self.turns.iter().position(|uid| *uid == ROOT || !is_full)
    }

    /// Whether a thread that has nothing to do is one too many: another has nothing to do either, and was not
    /// needed for long.
    fn has_surplus(&self) -> bool {
        self.idle > 0 && self.all_needed.elapsed() >= IDLE
    }

    /// Whether something waits for which no thread came when it was called.
    fn is_late(&self) -> bool {
        let first = |uid| self.lines.get(uid)?.waiting.front();
        self.turns.iter().filter_map(first).any(|(since, _)| since.elapsed() >= PATIENCE)
    }

    /// Takes out the job that is to be done next.
    fn begin(&mut self, bounds: &Bounds) -> Option<(u32, J)> {
        let uid = self.turns.remove(self.next_turn(bounds)?)?;
        let line = self.lines.get_mut(&uid)?;
        line.has_turn = false;
        let (_, job) = line.waiting.pop_front()?;
        line.at_work += 1;
        self.of_others += usize::from(uid != ROOT);
        self.begun += 1;
        self.take_turn(uid, bounds);
        Some((uid, job))
    }

    fn done(&mut self, uid: u32, bounds: &Bounds) {
        self.of_others -= usize::from(uid != ROOT);
        if let Some(line) = self.lines.get_mut(&uid) {
            line.at_work -= 1;
        }
        self.take_turn(uid, bounds);
        self.tidy(uid);
    }

    /// Forgets a user for whom nothing waits, or nothing is done.
    fn tidy(&mut self, uid: u32) {
        let Some(line) = self.lines.get_mut(&uid) else { return };
        if !line.waiting.is_empty() {
            return;
        }
        if mem::take(&mut line.has_turn) {
            self.turns.retain(|other| *other != uid);
        }
        if line.at_work == 0 {
            self.lines.remove(&uid);
        }
    }

    /// Takes out the jobs that have waited too long.
    fn overdue(&mut self, limit: Duration) -> Vec<J> {
        let mut overdue = Vec::new();
        for uid in self.turns.clone() {
            let Some(line) = self.lines.get_mut(&uid) else { continue };
            while line.waiting.front().is_some_and(|(since, _)| since.elapsed() >= limit) {
                overdue.extend(line.waiting.pop_front().map(|(_, job)| job));
            }
            self.tidy(uid);
        }
        overdue
    }
}
