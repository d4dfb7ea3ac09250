//! The steps between which the daemon can die.
//!
//! Built with the feature `crash-steps`, and with `FDSTASH_CRASH=SEED,MOST` in its environment, each
//! server dies after some number of them up to `MOST`, another one each time, and says at which. In
//! every other build a step is nothing.

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
        sync::atomic::{AtomicU64, Ordering::Relaxed},
    };

    use rustix::process::{Signal, getpid, kill_process};

    /// How many more there are for this server; none, where it lives on.
    static LEFT: AtomicU64 = AtomicU64::new(0);

    /// Decides how long this server has, its `life`th.
    pub(crate) fn born(life: u64) {
        let Ok(plan) = env::var("FDSTASH_CRASH") else { return };
        let numbers: Vec<u64> = plan.split(',').filter_map(|number| number.parse().ok()).collect();
        let [seed, most] = numbers[..] else { return };
        LEFT.store(1 + mixed(seed ^ life.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % most, Relaxed);
    }

    /// Comes to a step, and dies there if it is the last.
    pub(crate) fn step(name: &str) {
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
