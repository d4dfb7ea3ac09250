//! [`Pattern`]: which names a List or a Watch is about.

use crate::Name;

/// A glob over names: `*` stands for any run of characters, `?` for one, all others for themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Box<str>);

/// A pattern longer than [`Pattern::MAX_LEN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pattern has at most {} bytes", Pattern::MAX_LEN)]
pub struct BadPattern;

impl Pattern {
    /// The most bytes of a pattern: enough for a `?` or a `*` beside every character of a name.
    pub const MAX_LEN: usize = 2 * Name::MAX_LEN + 1;

    /// Takes a text as a pattern.
    ///
    /// # Errors
    ///
    /// [`BadPattern`] if it is too long.
    pub fn new(text: &str) -> Result<Self, BadPattern> {
        if text.len() > Self::MAX_LEN {
            return Err(BadPattern);
        }
        Ok(Self(text.into()))
    }

    /// The pattern that every name matches.
    #[must_use]
    pub fn all() -> Self {
        Self("*".into())
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What every matching name begins with, so that a search can begin there.
    #[must_use]
    pub fn prefix(&self) -> &str {
        let end = self.0.find(['*', '?']).unwrap_or(self.0.len());
        &self.0[..end]
    }

    /// Whether a name matches. Takes at most the product of both lengths, whatever the pattern:
    /// only the last `*` seen is ever tried again.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        let (pattern, text) = (self.0.as_bytes(), name.as_str().as_bytes());
        let (mut p, mut t) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while t < text.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p + 1, t));
                    p += 1;
                }
                Some(&byte) if byte == b'?' || byte == text[t] => {
                    p += 1;
                    t += 1;
                }
                Some(_) | None => {
                    let Some((after, begin)) = star else { return false };
                    star = Some((after, begin + 1));
                    p = after;
                    t = begin + 1;
                }
            }
        }
        pattern[p..].iter().all(|&byte| byte == b'*')
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a pattern means, said as shortly as possible and without a thought for its cost.
    fn reference(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), None) => reference(rest, text),
            (Some((b'*', rest)), Some((_, tail))) => {
                reference(rest, text) || reference(pattern, tail)
            }
            (Some((byte, rest)), Some((first, tail))) => {
                (*byte == b'?' || byte == first) && reference(rest, tail)
            }
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_the_reference_matches(
            pattern in "[ab*?]{0,8}",
            text in "[ab]{1,8}",
        ) {
            let matches = Pattern::new(&pattern).unwrap().matches(&Name::new(&text).unwrap());

            prop_assert_eq!(matches, reference(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn what_matches_begins_with_the_prefix(pattern in "[ab*?]{0,8}", text in "[ab]{1,8}") {
            let pattern = Pattern::new(&pattern).unwrap();
            let name = Name::new(&text).unwrap();

            prop_assert!(!pattern.matches(&name) || text.starts_with(pattern.prefix()));
        }
    }

    #[test]
    fn an_evil_pattern_takes_no_longer_than_both_lengths_multiplied() {
        let pattern = Pattern::new(&"*a".repeat(Name::MAX_LEN)).unwrap();

        assert!(!pattern.matches(&Name::new(&"b".repeat(Name::MAX_LEN)).unwrap()));
        assert_eq!(Pattern::new(&"a".repeat(Pattern::MAX_LEN + 1)), Err(BadPattern));
    }
}
