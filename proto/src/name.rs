//! [`Name`]: under what an entry is kept.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// The name of an entry: 1 to 255 printable ASCII bytes without `:`, so that it can also be a
/// systemd `FDNAME`.
///
/// Made by [`Name::new`] and checked nowhere else; a clone shares the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a text is no [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// It has no byte at all.
    #[error("a name has at least one character")]
    Empty,
    /// It is longer than [`Name::MAX_LEN`].
    #[error("a name has at most {} characters", Name::MAX_LEN)]
    TooLong,
    /// It has a byte that is not printable ASCII.
    #[error("a name is printable ASCII without control characters")]
    Unprintable,
    /// It has the `:` that separates systemd's `FDNAMES`.
    #[error("a name has no ':'")]
    Colon,
}

impl Name {
    /// The most bytes of a name: what systemd allows an `FDNAME`.
    pub const MAX_LEN: usize = 255;

    /// Checks a text and makes it a name.
    ///
    /// # Errors
    ///
    /// A [`BadName`] that says which rule the text breaks.
    pub fn new(text: &str) -> Result<Self, BadName> {
        if text.is_empty() {
            return Err(BadName::Empty);
        }
        if text.len() > Self::MAX_LEN {
            return Err(BadName::TooLong);
        }
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b':') {
            return Ok(Self(text.into()));
        }
        let is_printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        Err(if is_printable { BadName::Colon } else { BadName::Unprintable })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        Self::new(text)
    }
}

impl TryFrom<&str> for Name {
    type Error = BadName;

    fn try_from(text: &str) -> Result<Self, BadName> {
        Self::new(text)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_the_interface_says() {
        let longest = "x".repeat(255);
        for good in ["a", "vm7/disk0", "with space", "~", " ", longest.as_str()] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }

        let too_long = "x".repeat(256);
        for (bad, why) in [
            ("", BadName::Empty),
            (too_long.as_str(), BadName::TooLong),
            ("a:b", BadName::Colon),
            ("a\nb", BadName::Unprintable),
            ("a\0", BadName::Unprintable),
            ("\u{7f}", BadName::Unprintable),
            ("käse", BadName::Unprintable),
        ] {
            assert_eq!(Name::new(bad), Err(why), "{bad:?}");
        }
    }
}
