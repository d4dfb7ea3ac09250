//! [`Reminder`]: tells the log of what goes on and on, but only once a while.

use std::time::{Duration, Instant};

/// How long it says nothing after it has spoken.
const PAUSE: Duration = Duration::from_secs(10);

/// Remembers when it last spoke.
#[derive(Debug, Default)]
pub(crate) struct Reminder(Option<Instant>);

impl Reminder {
    /// Whether it is time to speak, which counts as speaking.
    pub(crate) fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|spoke| spoke.elapsed() >= PAUSE);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}
