//! What people write and read: accesses, switches, spans of time, and text that a terminal may show.

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

use clap::ValueEnum;
use fdstash::{Access, Flags, Labels};

/// What a descriptor may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccessWord {
    Read,
    Write,
    ReadWrite,
}

impl From<AccessWord> for Access {
    fn from(word: AccessWord) -> Self {
        match word {
            AccessWord::Read => Self::Read,
            AccessWord::Write => Self::Write,
            AccessWord::ReadWrite => Self::ReadWrite,
        }
    }
}

/// A flag that is to be set or cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

impl From<Switch> for bool {
    fn from(switch: Switch) -> Self {
        match switch {
            Switch::On => true,
            Switch::Off => false,
        }
    }
}

/// A span of time: a number of seconds, or numbers with units, as `1h 30min`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// The mode of a file, in octal digits.
pub(crate) fn mode(text: &str) -> Result<u32, &'static str> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or("a mode is octal digits, at most 777")
}

/// How long ago a time was, or how long it is until then, in its largest unit.
pub(crate) fn distance(usec: u64, now: SystemTime) -> String {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = Duration::from_micros(usec).abs_diff(now).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}min", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        86_400.. => format!("{}d", seconds / 86_400),
    }
}

/// Flags as the interface names them.
pub(crate) fn flags(flags: Flags) -> String {
    flags.words().collect::<Vec<_>>().join(",")
}

/// Labels as they are given.
pub(crate) fn labels(labels: &Labels) -> String {
    let pairs = labels.iter().map(|(key, value)| format!("{}={}", plain(key), plain(value)));
    pairs.collect::<Vec<_>>().join(",")
}

/// Text of others, without what would steer a terminal or turn the line around.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        let turns = matches!(character, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || turns {
            // Writing to a String does not fail.
            let _ = write!(plain, "{}", character.escape_default());
        } else {
            plain.push(character);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_seconds_or_has_units() {
        let table = [
            ("5", Some(Duration::from_secs(5))),
            ("0.25", Some(Duration::from_millis(250))),
            ("1h 30min", Some(Duration::from_secs(5400))),
            ("90s", Some(Duration::from_secs(90))),
            ("-1", None),
            ("NaN", None),
            ("inf", None),
            ("soon", None),
            ("", None),
        ];

        for (text, expected) in table {
            assert_eq!(span(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_distance_is_told_in_its_largest_unit_to_both_sides() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |seconds: u64| distance(seconds * 1_000_000, now);

        let told = [1_000_000, 999_941, 999_940, 996_401, 996_400, 913_601, 913_600, 1_000_090];

        let expected = ["0s", "59s", "1min", "59min", "1h", "23h", "1d", "1min"];
        assert_eq!(told.map(at), expected);
    }

    #[test]
    fn text_of_others_does_not_steer_the_terminal() {
        assert_eq!(plain("/tmp/käse"), "/tmp/käse");
        assert_eq!(plain("\u{1b}[2J\n"), "\\u{1b}[2J\\n");
        assert_eq!(plain("a\u{202e}b\u{9b}"), "a\\u{202e}b\\u{9b}");
    }
}
