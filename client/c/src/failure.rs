//! [`Failure`]: why a function did not do what it was asked, as an errno and in words.

use std::{cell::RefCell, error::Error as _, ffi::CString, io};

use fdstash::{BadName, Error, Name, Refusal};
use libc::{c_char, c_int};

/// Why a function did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{argument} is NULL")]
    Null { argument: &'static str },

    #[error("{name:?} cannot be a name: {why}")]
    BadName { name: String, why: BadName },

    #[error("{fd} is no open descriptor")]
    BadDescriptor { fd: c_int },

    #[error("cannot open with the flags {flags:#o}: {why}")]
    Flags { flags: c_int, why: &'static str },

    #[error("descriptor {fd} is none that fdstash_open has opened")]
    NotOpened { fd: c_int },

    #[error("entry \"{name}\" keeps another file by now")]
    AnotherFile { name: Name },

    #[error("this process has no connection to a stash")]
    NotInitialised,

    #[error("could not {doing}")]
    System { doing: String, source: io::Error },

    #[error(transparent)]
    Stash(#[from] Error),

    #[error("a fault of libfdstash itself, which standard error tells of")]
    Fault,
}

impl Failure {
    /// Says that what the kernel was asked for failed.
    pub(crate) fn system(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { doing: doing.into(), source: source.into() }
    }

    /// The errno for it, as the table in the head of `fdstash.h` says. Positive.
    pub(crate) fn errno(&self) -> c_int {
        match self {
            Self::Null { .. } | Self::BadName { .. } | Self::Flags { .. } => libc::EINVAL,
            Self::NotOpened { .. } => libc::ENOENT,
            Self::AnotherFile { .. } => libc::ESTALE,
            Self::BadDescriptor { .. } => libc::EBADF,
            Self::NotInitialised => libc::ENOTCONN,
            Self::System { source, .. } => of_kernel(source),
            Self::Stash(error) => of_stash(error),
            Self::Fault => libc::ENOTRECOVERABLE,
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::BadName { .. } => {
                Some("a name is 1 to 255 printable ASCII characters without ':'".into())
            }
            Self::NotInitialised => Some("call fdstash_init first".into()),
            Self::Stash(error) => error.advice(),
            Self::Fault => Some("the next call connects anew".into()),
            Self::NotOpened { .. } | Self::AnotherFile { .. } => {
                Some("open its path with fdstash_open".into())
            }
            Self::Null { .. }
            | Self::BadDescriptor { .. }
            | Self::Flags { .. }
            | Self::System { .. } => None,
        }
    }

    /// What happened to what, why, and what to do about it.
    fn words(&self) -> String {
        let mut words = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            words.push_str(&format!(": {error}"));
            cause = error.source();
        }
        if let Some(advice) = self.advice() {
            words.push_str(&format!("; {advice}"));
        }
        words
    }
}

fn of_stash(error: &Error) -> c_int {
    match error {
        Error::Refused(refusal) => of_refusal(refusal),
        // Whatever stands against it: ENOENT here would be taken for a name that is not there.
        Error::NoDaemon { .. } => libc::ECONNREFUSED,
        Error::ConnectionLost { .. } => libc::ECONNRESET,
        Error::RolledBack => libc::ECANCELED,
        Error::NoRoom => libc::EMFILE,
        Error::CallTooLong { .. } => libc::EMSGSIZE,
        Error::Io(error) | Error::File { source: error, .. } => of_kernel(error),
        Error::Stranger { .. } => libc::EACCES,
        Error::Ambiguous { .. } => libc::ENOTUNIQ,
        Error::NoName { .. } => libc::ENAMETOOLONG,
        Error::ReadOnly { .. } => libc::EROFS,
        Error::AnotherFile { .. } | Error::Replaced { .. } => libc::ESTALE,
        // What a later version of the library knows beside these is of no use to C either.
        Error::UnknownRefusal { .. } | Error::Protocol(_) | _ => libc::EPROTO,
    }
}

fn of_refusal(refusal: &Refusal) -> c_int {
    match refusal {
        Refusal::NotFound { .. } => libc::ENOENT,
        Refusal::AlreadyExists { .. } => libc::EEXIST,
        Refusal::Busy { .. } => libc::EBUSY,
        Refusal::InvalidName { .. } => libc::EINVAL,
        Refusal::AccessDenied { .. } | Refusal::PermissionDenied => libc::EACCES,
        Refusal::ReopenFailed { errno, .. } if *errno > 0 => *errno,
        // The errno that open(2) has for a machine whose table of files is full.
        Refusal::LimitExceeded { .. } => libc::ENFILE,
        Refusal::ReopenFailed { .. } | Refusal::NotDurable { .. } => libc::EIO,
        Refusal::TransactionState { .. }
        | Refusal::FileDescriptorMissing { .. }
        | Refusal::InterfaceNotFound { .. }
        | Refusal::MethodNotFound { .. }
        | Refusal::MethodNotImplemented { .. }
        | Refusal::InvalidParameter { .. }
        | Refusal::ExpectedMore => libc::EPROTO,
    }
}

fn of_kernel(error: &io::Error) -> c_int {
    error.raw_os_error().filter(|errno| *errno > 0).unwrap_or(libc::EIO)
}

thread_local! {
    static LAST: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Keeps the words for a failure for [`last_words`].
pub(crate) fn remember(failure: &Failure) {
    let words = failure.words().replace('\0', "\\0");
    // A thread that is about to end, and has no place for words any more, does not ask for them.
    let _ = LAST.try_with(|last| last.replace(CString::new(words).ok()));
}

/// The words for the last failure in this thread, empty before the first. They stay where they are
/// until this thread's next failure.
pub(crate) fn last_words() -> *const c_char {
    let words = LAST.try_with(|last| last.borrow().as_ref().map(|words| words.as_ptr()));
    words.ok().flatten().unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn every_failure_has_its_errno_and_words_that_say_what_to_do() {
        let io = |errno: Errno| io::Error::from(errno);
        let absent = Error::NoDaemon { socket: "/s".into(), source: io(Errno::NOENT) };
        let none = Refusal::NotFound { name: "a".into() };
        let locked = Refusal::ReopenFailed {
            name: "a".into(),
            errno: libc::ETXTBSY,
            errno_name: "ETXTBSY".into(),
            message: "text file busy".into(),
        };
        let full = Refusal::LimitExceeded { limit: "entries".into(), value: 7 };
        let table: [(Failure, c_int, &str); 9] = [
            (Failure::Null { argument: "name" }, libc::EINVAL, "name is NULL"),
            (Failure::BadDescriptor { fd: -1 }, libc::EBADF, "-1 is no open descriptor"),
            (Failure::NotInitialised, libc::ENOTCONN, "call fdstash_init first"),
            (Error::from(none).into(), libc::ENOENT, "there is no entry \"a\"; list the entries"),
            (Error::from(locked).into(), libc::ETXTBSY, "(ETXTBSY); the stash is as it was"),
            (Error::from(full).into(), libc::ENFILE, "entries is 7; close what is no longer"),
            (absent.into(), libc::ECONNREFUSED, "at /s: No such file or directory (os error 2); "),
            (Error::NoRoom.into(), libc::EMFILE, "ulimit -n"),
            (
                Failure::system("open \"/x\"", Errno::NOENT),
                libc::ENOENT,
                "could not open \"/x\": No such file or directory",
            ),
        ];

        for (failure, errno, words) in table {
            assert_eq!(failure.errno(), errno, "{failure:?}");
            assert!(failure.words().contains(words), "{}", failure.words());
        }
    }

    #[test]
    fn each_thread_has_its_own_last_words() {
        remember(&Failure::NotInitialised);

        let has_some = || LAST.with(|last| last.borrow().is_some());
        let elsewhere = std::thread::spawn(has_some).join();

        assert!(elsewhere.is_ok_and(|has_some| !has_some));
        assert!(has_some());
    }
}
