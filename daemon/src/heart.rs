//! [`Heart`]: the memory that a server and its keeper share, by which each sees what the other does.

use std::{
    io, ptr,
    sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst},
};

use fdstash_stash::Number;
use rustix::{
    mm::{MapFlags, ProtFlags, mmap_anonymous},
    process::{Pid, getpid},
};

/// How far a server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It comes back to what was kept.
    Starting,
    /// It serves.
    Serving,
    /// It has stopped, so that another may go on from here.
    Drained,
    /// It has ended because it was asked to.
    Ended,
}

/// What the keeper wants of the server. It is told by `SIGUSR1` to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// That it serves.
    Serve,
    /// That it stops where it is, so that another may go on from there.
    Drain,
}

/// Tells from beats that are looked at once a second whether somebody hangs.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    beats: u64,
    /// For how many looks there was no beat.
    silent: u32,
}

impl Pulse {
    /// How many looks without a beat say that it hangs. Counted and not measured, so that a machine
    /// that slept finds everybody alive.
    const SILENCE: u32 = 10;

    /// Looks; tells whether it hangs, once for each time.
    pub(crate) fn hangs(&mut self, beats: u64) -> bool {
        self.silent = if beats == self.beats { self.silent + 1 } else { 0 };
        self.beats = beats;
        if self.silent < Self::SILENCE {
            return false;
        }
        self.silent = 0;
        true
    }
}

/// Shared with every process that is cloned from this one. A copy is the same heart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heart(&'static Shared);

#[derive(Debug, Default)]
struct Shared {
    beats: AtomicU64,
    keeper_beats: AtomicU64,
    state: AtomicU32,
    wish: AtomicU32,
    has_answered: AtomicBool,
    keeper: AtomicI32,
    baton: AtomicU32,
    first_life: AtomicU64,
    next_life: AtomicU64,
    most_bundles: AtomicU64,
}

/// Which bundles there may be in the service manager's store: those of these lives, and in each as
/// many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stored {
    pub(crate) first_life: u64,
    pub(crate) next_life: u64,
    pub(crate) most_bundles: u64,
}

impl Heart {
    /// One that has not beaten yet.
    ///
    /// # Errors
    ///
    /// If there is no memory.
    #[expect(unsafe_code, reason = "a mapping is memory that Rust does not know of")]
    pub(crate) fn new() -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses an address where nothing is; it gives whole pages, so that
        // `Shared` fits and is aligned, and all zeroes, which `Shared` is when it begins. Nobody ever
        // unmaps it, and it has nothing but atomics, which processes may share as threads do.
        let shared = unsafe {
            let at = mmap_anonymous(ptr::null_mut(), size_of::<Shared>(), prot, MapFlags::SHARED)?;
            &*at.cast::<Shared>()
        };
        Ok(Self(shared))
    }

    /// Says that the server is alive.
    pub(crate) fn beat(self) {
        self.0.beats.fetch_add(1, SeqCst);
    }

    /// How often it has said so.
    pub(crate) fn beats(self) -> u64 {
        self.0.beats.load(SeqCst)
    }

    /// Says that the keeper is alive.
    pub(crate) fn keeper_beats(self) {
        self.0.keeper_beats.fetch_add(1, SeqCst);
    }

    /// How often it has said so.
    pub(crate) fn beats_of_keeper(self) -> u64 {
        self.0.keeper_beats.load(SeqCst)
    }

    /// Says that a call was answered.
    pub(crate) fn answered(self) {
        self.0.has_answered.store(true, SeqCst);
    }

    /// Whether this server has answered a call.
    pub(crate) fn has_answered(self) -> bool {
        self.0.has_answered.load(SeqCst)
    }

    /// Makes it that of a server which is about to start, and this process its keeper.
    pub(crate) fn begin(self) {
        self.0.keeper.store(getpid().as_raw_pid(), SeqCst);
        self.set_state(State::Starting);
        self.set_wish(Wish::Serve);
        self.0.has_answered.store(false, SeqCst);
    }

    /// The keeper that has started the server.
    pub(crate) fn keeper(self) -> Option<Pid> {
        Pid::from_raw(self.0.keeper.load(SeqCst))
    }

    /// Says how far the server has come.
    pub(crate) fn set_state(self, state: State) {
        self.0.state.store(state as u32, SeqCst);
    }

    /// How far the server has come.
    pub(crate) fn state(self) -> State {
        let states = [State::Starting, State::Serving, State::Drained, State::Ended];
        let state = self.0.state.load(SeqCst);
        states.into_iter().find(|one| *one as u32 == state).unwrap_or(State::Starting)
    }

    /// Says what the keeper wants.
    pub(crate) fn set_wish(self, wish: Wish) {
        self.0.wish.store(wish as u32, SeqCst);
    }

    /// What the keeper wants.
    pub(crate) fn wish(self) -> Wish {
        let is_drain = self.0.wish.load(SeqCst) == Wish::Drain as u32;
        if is_drain { Wish::Drain } else { Wish::Serve }
    }

    /// Says which descriptor the next server says by that it has taken over.
    pub(crate) fn set_baton(self, number: Number) {
        self.0.baton.store(number, SeqCst);
    }

    /// Which descriptor that is.
    pub(crate) fn baton(self) -> Number {
        self.0.baton.load(SeqCst)
    }

    /// Says which bundles the store may have.
    pub(crate) fn set_stored(self, stored: Stored) {
        self.0.first_life.store(stored.first_life, SeqCst);
        self.0.next_life.store(stored.next_life, SeqCst);
        self.0.most_bundles.store(stored.most_bundles, SeqCst);
    }

    /// Which bundles it may have.
    pub(crate) fn stored(self) -> Stored {
        Stored {
            first_life: self.0.first_life.load(SeqCst),
            next_life: self.0.next_life.load(SeqCst),
            most_bundles: self.0.most_bundles.load(SeqCst),
        }
    }
}
