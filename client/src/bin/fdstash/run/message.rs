//! [`Message`]: what a service says to its manager, sorted into what is for us and what is for the
//! manager above. No I/O.

use fdstash::Name;

/// What systemd calls a descriptor that its service has not named, or not well.
const UNNAMED: &str = "stored";

/// What is for us, and done here.
const OURS: [&str; 8] = [
    "FDSTORE=",
    "FDSTOREREMOVE=",
    "FDNAME=",
    "FDPOLL=",
    "BARRIER=",
    // We are the process that the manager above knows, and stay it.
    "MAINPID=",
    "MAINPIDFD=",
    "MAINPIDFDID=",
];

/// A message of the service, as sd_notify(3) has them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) wish: Wish,
    /// The process that is the service from here on.
    pub(super) main: Option<i32>,
    /// What is for the manager above, if anything is.
    pub(super) rest: Vec<u8>,
}

/// What the store is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    /// Keep the descriptors that came with the message.
    Keep {
        called: Name,
        close_on_hangup: bool,
    },
    /// Close all that are called so.
    Remove {
        called: Name,
    },
    /// Close the descriptor that came with the message, when all before it is done.
    Barrier,
    /// It cannot be done, and why.
    Bad(&'static str),
}

impl Message {
    pub(super) fn parse(text: &[u8]) -> Self {
        let lines = || text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let has = |wanted: &str| lines().any(|line| line == wanted.as_bytes());
        let value = |key: &str| {
            let value = lines().find_map(|line| line.strip_prefix(key.as_bytes()));
            value.and_then(|value| std::str::from_utf8(value).ok())
        };
        if has("BARRIER=1") {
            let wish = if lines().count() == 1 {
                Wish::Barrier
            } else {
                Wish::Bad("BARRIER=1 is not alone in its message")
            };
            return Self { wish, main: None, rest: Vec::new() };
        }
        let called = value("FDNAME=").and_then(|name| Name::new(name).ok());
        let wish = if has("FDSTOREREMOVE=1") {
            called.map_or(Wish::Bad("FDSTOREREMOVE=1 has no good FDNAME="), |called| Wish::Remove {
                called,
            })
        } else if has("FDSTORE=1") {
            let called = called.or_else(|| Name::new(UNNAMED).ok());
            called.map_or(Wish::Nothing, |called| Wish::Keep {
                called,
                close_on_hangup: !has("FDPOLL=0"),
            })
        } else {
            Wish::Nothing
        };
        let rest: Vec<&[u8]> = lines().filter(|line| !is_ours(line)).collect();
        let main = value("MAINPID=").and_then(|pid| pid.parse().ok());
        Self { wish, main, rest: rest.join(&b'\n') }
    }
}

fn is_ours(line: &[u8]) -> bool {
    OURS.iter().any(|key| line.starts_with(key.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(called: &str, close_on_hangup: bool) -> Wish {
        Wish::Keep { called: Name::new(called).unwrap(), close_on_hangup }
    }

    #[test]
    fn a_message_is_sorted_into_what_is_for_whom() {
        let table = [
            ("READY=1\nSTATUS=Serving.", Wish::Nothing, "READY=1\nSTATUS=Serving."),
            ("FDSTORE=1\nFDNAME=a", keep("a", true), ""),
            ("FDSTORE=1\nFDNAME=a\nFDPOLL=0\nREADY=1", keep("a", false), "READY=1"),
            ("FDSTORE=1", keep("stored", true), ""),
            ("FDSTORE=1\nFDNAME=a:b", keep("stored", true), ""),
            ("FDSTORE=0\nFDNAME=a", Wish::Nothing, ""),
            ("FDSTOREREMOVE=1\nFDNAME=a\n", Wish::Remove { called: Name::new("a").unwrap() }, ""),
            ("FDSTOREREMOVE=1", Wish::Bad("FDSTOREREMOVE=1 has no good FDNAME="), ""),
            ("BARRIER=1", Wish::Barrier, ""),
            ("BARRIER=1\nREADY=1", Wish::Bad("BARRIER=1 is not alone in its message"), ""),
            ("\n\nWATCHDOG=1\n", Wish::Nothing, "WATCHDOG=1"),
            ("", Wish::Nothing, ""),
        ];

        for (text, wish, rest) in table {
            let expected = Message { wish, main: None, rest: rest.into() };
            assert_eq!(Message::parse(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_new_main_process_is_for_us_alone() {
        let message = Message::parse(b"MAINPID=42\nMAINPIDFDID=7\nREADY=1");

        assert_eq!(message.main, Some(42));
        assert_eq!(message.rest, b"READY=1");
        assert_eq!(Message::parse(b"STATUS=\xff\xfe").rest, b"STATUS=\xff\xfe");
    }
}
