//! What makes it harmless to send a call again: [`Tickets`]; and how often it is: [`Repetitions`].

use std::{
    array,
    fmt::Write,
    hash::{BuildHasher, RandomState},
    process,
    time::{Duration, Instant},
};

use fdstash_proto::{Refusal, Ticket};

use crate::{Error, transport::Transport};

/// The pauses before a call is sent again whose connection was lost, two seconds in all. A call that
/// ends the daemon each time must not do so for ever; but one that has done nothing wrong, while
/// something else ends the daemon again and again, has to come through.
const PAUSES_MSEC: [u64; 16] = [0, 0, 1, 2, 4, 8, 15, 25, 40, 60, 90, 130, 200, 300, 450, 700];

/// How long a name is tried for that somebody else holds: who opens the same file holds it for
/// moments, but there may be many of them.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest pause between two tries. Longer ones would give way to whoever tries more often.
const LONGEST_PAUSE: Duration = Duration::from_millis(8);

/// One call, sent as often as it takes.
pub(crate) struct Repetitions {
    /// Since when a name is tried for, and the next pause.
    held: Option<(Instant, Duration)>,
    pauses: array::IntoIter<u64, { PAUSES_MSEC.len() }>,
    is_in_doubt: bool,
}

impl Repetitions {
    pub(crate) fn new() -> Self {
        Self { held: None, pauses: PAUSES_MSEC.into_iter(), is_in_doubt: false }
    }

    /// Whether the call may have been carried out, and nobody here knows.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.is_in_doubt
    }

    /// Takes note that the daemon has said that it was not carried out.
    pub(crate) fn end_doubt(&mut self) {
        self.is_in_doubt = false;
    }

    /// Waits until the call is to be sent again, which failed so.
    ///
    /// # Errors
    ///
    /// What it fails with in the end.
    pub(crate) async fn after<T: Transport>(&mut self, error: Error) -> Result<(), Error> {
        let Error::ConnectionLost { may_be_done } = error else {
            let leaves_doubt = self.is_in_doubt && is_of_connecting(&error);
            return Err(if leaves_doubt { self.lost() } else { error });
        };
        self.is_in_doubt |= may_be_done;
        let pause = self.pauses.next().ok_or_else(|| self.lost())?;
        if pause > 0 {
            T::pause(Duration::from_millis(pause)).await;
        }
        Ok(())
    }

    /// Waits until a transaction is to be done anew, which failed so.
    ///
    /// # Errors
    ///
    /// What it fails with in the end: at once, unless all of it was undone with its connection, or
    /// somebody else holds one of its names.
    pub(crate) async fn after_undone<T: Transport>(&mut self, error: Error) -> Result<(), Error> {
        if is_held(&error) {
            return self.after_held::<T>(error).await;
        }
        if matches!(error, Error::ConnectionLost { may_be_done: true }) {
            return Err(error);
        }
        self.after::<T>(error).await
    }

    async fn after_held<T: Transport>(&mut self, error: Error) -> Result<(), Error> {
        let (since, pause) = self.held.unwrap_or((Instant::now(), Duration::from_millis(1)));
        if since.elapsed() > PATIENCE {
            return Err(error);
        }
        self.held = Some((since, LONGEST_PAUSE.min(pause * 2)));
        T::pause(pause).await;
        Ok(())
    }

    fn lost(&self) -> Error {
        Error::ConnectionLost { may_be_done: self.is_in_doubt }
    }
}

/// Whether somebody else has put a name to use since it was looked for, or does just now.
fn is_held(error: &Error) -> bool {
    matches!(error, Error::Refused(Refusal::Busy { .. } | Refusal::AlreadyExists { .. }))
}

/// Whether an error may be of the connection for a call, and so say nothing of the call's fate.
fn is_of_connecting(error: &Error) -> bool {
    match error {
        Error::NoDaemon { .. } | Error::NoRoom | Error::Io(_) => true,
        // So the daemon turns away for whom it has no room.
        Error::Refused(Refusal::LimitExceeded { limit, .. }) => {
            limit == "connections" || limit == "descriptors"
        }
        Error::Refused(_)
        | Error::UnknownRefusal { .. }
        | Error::ConnectionLost { .. }
        | Error::RolledBack
        | Error::CallTooLong { .. }
        | Error::File { .. }
        | Error::Stranger { .. }
        | Error::Ambiguous { .. }
        | Error::NoName { .. }
        | Error::ReadOnly { .. }
        | Error::AnotherFile { .. }
        | Error::Replaced { .. }
        | Error::Protocol(_) => false,
    }
}

/// The tickets of one client, no two the same, and none the same as any other client's.
pub(crate) struct Tickets {
    random: [u64; 2],
    pid: u32,
    /// What all have in common that this process makes.
    common: String,
    count: u64,
}

impl Tickets {
    pub(crate) fn new() -> Self {
        // The kernel's randomness, by way of std: nobody need be kept from guessing, since a ticket
        // is its user's alone.
        let state = RandomState::new();
        let random = [0, 1].map(|half: u8| state.hash_one(half));
        let pid = process::id();
        Self { random, pid, common: common(random, pid), count: 0 }
    }

    pub(crate) fn next(&mut self) -> Ticket {
        self.series()()
    }

    /// Makes one at each call.
    pub(crate) fn series(&mut self) -> impl FnMut() -> Ticket {
        // A process that was forked with a client in it counts on from the same number, and nothing
        // but this system call tells it from the other.
        let pid = process::id();
        if pid != self.pid {
            (self.pid, self.common) = (pid, common(self.random, pid));
        }
        || {
            self.count += 1;
            ticket(&self.common, self.count)
        }
    }
}

fn common([high, low]: [u64; 2], pid: u32) -> String {
    format!("{high:016x}{low:016x}.{pid}.")
}

fn ticket(common: &str, count: u64) -> Ticket {
    let mut text = String::with_capacity(Ticket::MAX_LEN);
    text.push_str(common);
    // Writing to a string cannot fail.
    let _ = write!(text, "{count}");
    match Ticket::new(&text) {
        Ok(ticket) => ticket,
        Err(error) => unreachable!("{error}, and the longest of these has 64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_ticket_is_one() {
        let longest = ticket(&common([u64::MAX; 2], u32::MAX), u64::MAX);

        assert_eq!(longest.as_str().len(), Ticket::MAX_LEN);
    }

    #[test]
    fn a_process_that_was_forked_makes_others_than_the_one_it_was_forked_from() {
        let mut tickets = Tickets::new();
        let of_the_other = common(tickets.random, 1);
        (tickets.pid, tickets.common) = (1, of_the_other.clone());

        let ticket = tickets.next();

        assert!(!ticket.as_str().starts_with(&of_the_other));
        assert!(ticket.as_str().starts_with(&common(tickets.random, process::id())));
    }

    #[test]
    fn no_ticket_is_made_twice() {
        let (mut one, mut other) = (Tickets::new(), Tickets::new());

        let tickets = [one.next(), one.next(), other.next(), other.next()];

        let different: std::collections::BTreeSet<_> = tickets.iter().collect();
        assert_eq!(different.len(), 4);
        assert_ne!(one.random[0], one.random[1]);
    }
}
