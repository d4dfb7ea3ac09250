//! Calls in a row, the descriptors beside them, and the replies that are due.

use std::{fmt::Write, os::fd::BorrowedFd};

/// The reply that is due to a call: none of the errors, or one.
pub(crate) const DONE: &str = "";

/// Calls that are sent at once, each before the reply to the one before it. Borrows the descriptors.
#[derive(Default)]
pub(crate) struct Script<'a> {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<BorrowedFd<'a>>,
    /// The last word of the error that is due to each call, or [`DONE`].
    pub(crate) due: Vec<&'static str>,
}

impl<'a> Script<'a> {
    /// With one more call, which has its parameters in JSON.
    pub(crate) fn call(&mut self, method: &str, parameters: &str, due: &'static str) -> &mut Self {
        let message =
            format!(r#"{{"method":"org.fdstash.Stash.{method}","parameters":{parameters}}}"#);
        self.bytes.extend(message.as_bytes());
        self.bytes.push(0);
        self.due.push(due);
        self
    }

    /// With one more Give, of the same descriptor under each name, and more to say in JSON of the gifts and of
    /// the call.
    pub(crate) fn give(
        &mut self,
        names: &[String],
        fd: BorrowedFd<'a>,
        (of_gift, of_call): (&str, &str),
        due: &'static str,
    ) -> &mut Self {
        let mut gifts = String::new();
        for (at, name) in names.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let _ = write!(gifts, r#"{comma}{{"name":"{name}","fileDescriptor":{at}{of_gift}}}"#);
        }
        self.fds.extend(names.iter().map(|_| fd));
        self.call("Give", &format!(r#"{{"entries":[{gifts}]{of_call}}}"#), due)
    }

    /// With one more call that names entries.
    pub(crate) fn of(
        &mut self,
        method: &str,
        names: &[String],
        more: &str,
        due: &'static str,
    ) -> &mut Self {
        self.call(method, &format!(r#"{{"names":{names:?}{more}}}"#), due)
    }
}
