//! [`Ticket`]: by which a call that is sent again is known.

use std::{fmt, sync::Arc};

/// What a client calls one call of its own, so that it can send it again: 1 to 64 printable ASCII
/// characters without a space.
///
/// Made by [`Ticket::new`] and checked nowhere else; a clone shares the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(Arc<str>);

/// A text is no [`Ticket`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a ticket is 1 to {} printable ASCII characters without a space", Ticket::MAX_LEN)]
pub struct BadTicket;

impl Ticket {
    /// The most characters of a ticket: room for 128 random bits in any spelling, and a count.
    pub const MAX_LEN: usize = 64;

    /// Checks a text and makes it a ticket.
    ///
    /// # Errors
    ///
    /// [`BadTicket`] if it is none.
    pub fn new(text: &str) -> Result<Self, BadTicket> {
        let fits = (1..=Self::MAX_LEN).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text.into()))
        } else {
            Err(BadTicket)
        }
    }

    /// The ticket as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_what_the_interface_says() {
        let longest = "x".repeat(64);
        for good in ["a", "!", "~", "7f3a.12", "a:b", longest.as_str()] {
            assert_eq!(Ticket::new(good).unwrap().as_str(), good);
        }

        let too_long = "x".repeat(65);
        for bad in ["", too_long.as_str(), "a b", " ", "a\n", "a\0", "\u{7f}", "käse"] {
            assert_eq!(Ticket::new(bad), Err(BadTicket), "{bad:?}");
        }
    }
}
