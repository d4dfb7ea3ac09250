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

    /// Whether a name can match at all, found by [`Pattern::prefix`] alone.
    #[must_use]
    pub fn may_match(&self, name: &Name) -> bool {
        let (prefix, name) = (self.prefix(), name.as_str());
        name.starts_with(prefix) && (prefix.len() < self.0.len() || prefix.len() == name.len())
    }

    /// Whether a name matches. Takes some microseconds at most, whatever the pattern.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        let (pattern, text) = (self.0.as_bytes(), name.as_str().as_bytes());
        matches_soon(pattern, text).unwrap_or_else(|| matches_at_all(pattern, text))
    }
}

/// How many steps to look for a match in the simple way: enough for what people write.
const STEPS: usize = 2 * Name::MAX_LEN;

/// Whether a text matches, if that shows soon. Only the last `*` seen is ever tried again.
fn matches_soon(pattern: &[u8], text: &[u8]) -> Option<bool> {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    for _ in 0..STEPS {
        if t == text.len() {
            return Some(pattern[p..].iter().all(|&byte| byte == b'*'));
        }
        match pattern.get(p) {
            Some(b'*') if p + 1 == pattern.len() => return Some(true),
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            Some(_) | None => {
                let Some((after, begin)) = star else { return Some(false) };
                star = Some((after, begin + 1));
                p = after;
                t = begin + 1;
            }
        }
    }
    None
}

/// Whether a text matches, found by trying all ways at once: bit `n` says that what was read so far can
/// be what the first `n` characters of the pattern stand for that are no `*`.
fn matches_at_all(pattern: &[u8], text: &[u8]) -> bool {
    const WORDS: usize = Name::MAX_LEN / 64 + 1;
    let (mut any, mut stays) = ([0_u64; WORDS], [0_u64; WORDS]);
    let mut only = [[0_u64; WORDS]; 128];
    let mut length = 0;
    for &byte in pattern {
        if length > text.len() {
            return false;
        }
        let (word, bit) = (length / 64, 1 << (length % 64));
        match byte {
            b'*' => stays[word] |= bit,
            b'?' => any[word] |= bit,
            // In no name.
            byte if !byte.is_ascii() => return false,
            byte => only[usize::from(byte)][word] |= bit,
        }
        length += usize::from(byte != b'*');
    }
    if length > text.len() {
        return false;
    }
    let mut reached = [0_u64; WORDS];
    reached[0] = 1;
    for &byte in text {
        let goes_on = &only[usize::from(byte & 127)];
        let mut carry = 0;
        for word in 0..=length / 64 {
            let on = reached[word] & (goes_on[word] | any[word]);
            reached[word] = (on << 1) | carry | (reached[word] & stays[word]);
            carry = on >> 63;
        }
    }
    reached[length / 64] & (1 << (length % 64)) != 0
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
            let at_all = matches_at_all(pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(matches, at_all);
        }

        #[test]
        fn what_matches_begins_with_the_prefix(pattern in "[ab*?]{0,8}", text in "[ab]{1,8}") {
            let pattern = Pattern::new(&pattern).unwrap();
            let name = Name::new(&text).unwrap();

            prop_assert!(!pattern.matches(&name) || text.starts_with(pattern.prefix()));
            prop_assert!(!pattern.matches(&name) || pattern.may_match(&name));
            prop_assert!(!pattern.may_match(&name) || text.starts_with(pattern.prefix()));
            let is_plain = !pattern.as_str().contains(['*', '?']);
            prop_assert!(!is_plain || pattern.may_match(&name) == (pattern.as_str() == text));
        }
    }

    #[test]
    fn both_ways_to_look_for_a_match_find_the_same_in_long_names() {
        let name = |text: &str| Name::new(text).unwrap();
        let long = "a".repeat(Name::MAX_LEN);
        let table = [
            ("*".to_owned() + &"?a".repeat(60), true),
            ("*".to_owned() + &"?a".repeat(60) + "b", false),
            ("?".repeat(255), true),
            ("?".repeat(256), false),
            ("?".repeat(254), false),
            ("?".repeat(255) + "*", true),
            ("*".to_owned() + &"a".repeat(255), true),
            ("*a".repeat(255), true),
            ("*a".repeat(255) + "*", true),
            ("*".repeat(Pattern::MAX_LEN), true),
            (format!("{0}*{0}", "a".repeat(127)), true),
            (format!("{0}*{0}", "a".repeat(128)), false),
            (format!("{0}?{0}", "a".repeat(127)), true),
            (format!("*{}é*", "a".repeat(100)), false),
        ];

        for (text, expected) in table {
            let pattern = Pattern::new(&text).unwrap();
            assert_eq!(pattern.matches(&name(&long)), expected, "{text}");
            assert_eq!(matches_at_all(text.as_bytes(), long.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn an_evil_pattern_takes_no_longer_than_both_lengths_multiplied() {
        let pattern = Pattern::new(&"*a".repeat(Name::MAX_LEN)).unwrap();

        assert!(!pattern.matches(&Name::new(&"b".repeat(Name::MAX_LEN)).unwrap()));
        assert_eq!(Pattern::new(&"a".repeat(Pattern::MAX_LEN + 1)), Err(BadPattern));
    }
}
