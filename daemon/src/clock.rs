//! The time, and the alarm for what is due.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use fdstash_stash::Now;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::polled::polled;

/// What both clocks say.
pub(crate) fn now() -> Now {
    Now { boot_usec: read(ClockId::Boottime), wall_usec: read(ClockId::Realtime) }
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1_000_000).saturating_add(nanoseconds / 1000)
}

/// Wakes at a time of the boot clock, which goes on while the machine sleeps; the runtime's timers
/// do not.
pub(crate) struct Alarm {
    timer: AsyncFd<OwnedFd>,
}

impl Alarm {
    pub(crate) fn new() -> Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags).context("making a timer")?;
        Ok(Self { timer: polled(timer, Interest::READABLE).context("waiting for a timer")? })
    }

    /// Sets the time at which to wake; none: not at all. A time gone by wakes at once.
    pub(crate) fn set(&self, boot_usec: Option<u64>) {
        // Zero disarms a timer, so that "at the machine's start" is one nanosecond after it.
        let at = boot_usec.map_or(Timespec { tv_sec: 0, tv_nsec: 0 }, |usec| Timespec {
            tv_sec: i64::try_from(usec / 1_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(usec % 1_000_000 * 1000).unwrap_or_default().max(1),
        });
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let new = Itimerspec { it_interval: once, it_value: at };
        if let Err(error) = timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::ABSTIME, &new)
        {
            tracing::error!(%error, "setting the timer failed, what expires may expire late");
        }
    }

    /// Waits until it wakes.
    pub(crate) async fn ring(&self) {
        loop {
            let Ok(mut ready) = self.timer.readable().await else { return };
            let read = ready.try_io(|timer| {
                let mut count = [0; 8];
                rustix::io::read(timer, &mut count).map_err(Into::into)
            });
            if read.is_ok() {
                return;
            }
        }
    }
}
