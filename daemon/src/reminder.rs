//! [`Reminder`]: tells the log of what goes on and on, but only once a while.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

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

/// How many users are told of within [`PAUSE`] at most: whoever has many numbers is no more than that.
const MOST_USERS: usize = 32;

/// A [`Reminder`] for each user, so that the noise of one does not hide what is said of another.
#[derive(Debug, Default)]
pub(crate) struct Reminders(BTreeMap<u32, Reminder>);

impl Reminders {
    /// Whether it is time to speak of a user, which counts as speaking.
    pub(crate) fn is_due(&mut self, uid: u32) -> bool {
        if self.0.len() >= MOST_USERS {
            self.0.retain(|_, reminder| reminder.0.is_some_and(|spoke| spoke.elapsed() < PAUSE));
        }
        (self.0.len() < MOST_USERS || self.0.contains_key(&uid))
            && self.0.entry(uid).or_default().is_due()
    }
}
