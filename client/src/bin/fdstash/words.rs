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

/// A number of bytes, in the largest unit of 1024 that leaves at least one of it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let power = (count.ilog2() / 10).min(6);
    let unit = UNITS.get(power as usize - 1).copied().unwrap_or_default();
    // In tenths, cut and not rounded, so that nothing looks larger than it is.
    let tenths = u128::from(count) * 10 / (1_u128 << (10 * power));
    match tenths {
        0..100 if tenths % 10 != 0 => format!("{}.{} {unit}", tenths / 10, tenths % 10),
        _ => format!("{} {unit}", tenths / 10),
    }
}

/// A name as a shell takes it for one word: as it is, or in quotes.
pub(crate) fn quoted(name: &str) -> String {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./=+,%@".contains(&byte);
    if !name.is_empty() && name.bytes().all(is_safe) {
        return name.to_owned();
    }
    format!("'{}'", name.replace('\'', "'\\''"))
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
    fn bytes_are_told_in_their_largest_unit_and_never_as_more() {
        let told = [0, 1023, 1024, 1536, 10 * 1024 + 1023, (1 << 30) - 1, 5 << 30, u64::MAX];

        let expected =
            ["0 B", "1023 B", "1 KiB", "1.5 KiB", "10 KiB", "1023 MiB", "5 GiB", "15 EiB"];
        assert_eq!(told.map(bytes), expected);
    }

    #[test]
    fn a_name_is_one_word_to_a_shell() {
        for (name, expected) in [
            ("vm7-disk0", "vm7-disk0"),
            ("/var/log/a_b.log", "/var/log/a_b.log"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("a*", "'a*'"),
            ("~", "'~'"),
        ] {
            assert_eq!(quoted(name), expected);
        }
    }

    #[test]
    fn text_of_others_does_not_steer_the_terminal() {
        assert_eq!(plain("/tmp/käse"), "/tmp/käse");
        assert_eq!(plain("\u{1b}[2J\n"), "\\u{1b}[2J\\n");
        assert_eq!(plain("a\u{202e}b\u{9b}"), "a\\u{202e}b\\u{9b}");
    }
}
