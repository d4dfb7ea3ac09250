//! The steps between which the daemon can die.
//!
//! Built with the feature `crash-steps`, and with `FDSTASH_CRASH=SEED,MOST` in its environment, each
//! server dies after some number of them up to `MOST`, another one each time, and says at which. With
//! `FDSTASH_CRASH=SEED,MOST,WORD|WORD` only those steps count that have one of these words in their
//! names. In every other build a step is nothing.

/// Whether this build has steps.
pub(crate) const CAN_DIE: bool = cfg!(feature = "crash-steps");

/// Comes to a step.
#[cfg(not(feature = "crash-steps"))]
pub(crate) fn step(_: &str) {}

#[cfg(feature = "crash-steps")]
pub(crate) use dying::{born, step};

#[cfg(feature = "crash-steps")]
mod dying {
    use std::{
        env,
        io::{Write, stderr},
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
    };

    use rustix::process::{Signal, getpid, kill_process};

    /// How many more there are for this server; none, where it lives on.
    static LEFT: AtomicU64 = AtomicU64::new(0);

    /// One of these words is in the name of every step that counts; none, where all do.
    static WORDS: OnceLock<Vec<String>> = OnceLock::new();

    /// Decides how long this server has. What tells its life from others is its process's number: a
    /// keeper that has made way counts from the beginning.
    pub(crate) fn born() {
        let life = u64::from(getpid().as_raw_pid().unsigned_abs());
        let Ok(plan) = env::var("FDSTASH_CRASH") else { return };
        let mut parts = plan.split(',');
        let mut number = || parts.next().and_then(|number| number.parse::<u64>().ok());
        let (Some(seed), Some(most)) = (number(), number()) else { return };
        let words = parts.next().into_iter().flat_map(|words| words.split('|'));
        let _ = WORDS.set(words.map(str::to_owned).collect());
        LEFT.store(1 + mixed(seed ^ life.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % most, Relaxed);
    }

    /// Comes to a step, and dies there if it is the last.
    pub(crate) fn step(name: &str) {
        let words = WORDS.get().map_or(&[][..], Vec::as_slice);
        if !words.is_empty() && !words.iter().any(|word| name.contains(word)) {
            return;
        }
        let one_less = |left: u64| left.checked_sub(1);
        if LEFT.fetch_update(Relaxed, Relaxed, one_less) == Ok(1) {
            let _ = stderr().write_all(format!("dying {name}\n").as_bytes());
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    /// SplitMix64's last step: numbers that are near each other become such as are not.
    fn mixed(number: u64) -> u64 {
        let once = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let twice = (once ^ (once >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        twice ^ (twice >> 31)
    }
}
