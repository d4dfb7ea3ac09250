//! [`Error`]: why a call did not do what it was asked.

use std::{io, path::PathBuf};

use fdstash_proto::{BadName, Hangup, Name, Peer, Refusal, reply::Refused};

use crate::advice;

/// Why a call did not do what it was asked.
///
/// Unless a variant says otherwise, the stash is as it was before the call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The daemon refused: one variant of [`Refusal`] for each error of the interface.
    #[error(transparent)]
    Refused(#[from] Refusal),

    /// The daemon refused with an error that this version does not know.
    #[error(
        "the daemon refused with an error that this version does not know: {error} {parameters}"
    )]
    UnknownRefusal {
        /// Its full name.
        error: String,
        /// What came with it, as JSON.
        parameters: String,
    },

    /// Nobody can be reached at the socket.
    #[error("no daemon can be reached at {}", socket.display())]
    NoDaemon {
        /// The socket that was tried.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// The connection was lost: with a transaction that was open on it, or again and again for some
    /// seconds, or the daemon did not come back.
    #[error("the connection to the daemon was lost{}", told(*may_be_done))]
    ConnectionLost {
        /// Whether the call may have been carried out all the same: no daemon was there to tell.
        may_be_done: bool,
    },

    /// The transaction is over: an earlier call in it lost the connection, broke off or failed
    /// half-way, and all of it was rolled back.
    #[error("the transaction was rolled back when an earlier call in it failed")]
    RolledBack,

    /// This process has no room for another descriptor. Those that were to be handed out are still
    /// in the stash, but for those of a take at once.
    #[error("this process has no room for more descriptors")]
    NoRoom,

    /// The call does not fit into a message. It was not sent.
    #[error("the call takes more than the {limit} bytes of a message")]
    CallTooLong {
        /// The most bytes of one.
        limit: usize,
    },

    /// The other side does not speak as a daemon of this interface does. Its connection is closed,
    /// and what it did about the call is not known.
    #[error("the daemon broke the protocol: it sent {0}")]
    Protocol(Hangup),

    /// A file could not be opened by its path, with this process's own rights.
    #[error("opening {}", path.display())]
    File {
        /// Where it stands.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// What is kept under a name was given by somebody else, so it may be anything.
    #[error("entry \"{name}\" was given by uid {}, who is not trusted with it", giver.uid)]
    Stranger {
        /// The entry.
        name: Name,
        /// Who gave it.
        giver: Peer,
    },

    /// Two entries hold what was at one path when it was given.
    #[error("both \"{one}\" and \"{other}\" were {} when they were given", path.display())]
    Ambiguous {
        /// The path that was looked for.
        path: PathBuf,
        /// One of them.
        one: Name,
        /// Another.
        other: Name,
    },

    /// A path from which no name can be made.
    #[error("no entry can be named after {}: {reason}", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
        /// What is wrong with its name.
        reason: BadName,
    },

    /// A driver asked to write a file of an image that is opened only for reading.
    #[error("{} is opened only for reading", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },

    /// At a reopening, a driver asked for a file that was not one of its image's.
    #[error("{} was not one of the files when they were opened first", path.display())]
    AnotherFile {
        /// The file.
        path: PathBuf,
    },

    /// What is kept under a name is another file by now than the one that was opened: that one is in
    /// the stash no more.
    #[error("entry \"{name}\" keeps another file by now than the one that is open")]
    Replaced {
        /// The entry.
        name: Name,
    },

    /// The kernel would not send or receive. The connection is closed; what had not been sent whole
    /// was not carried out.
    #[error("could not talk to the daemon")]
    Io(#[source] io::Error),
}

impl Error {
    /// What to do about it, where that is known, as a clause without a capital or a full stop.
    #[must_use]
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::Refused(refusal) => advice::on_refusal(refusal),
            Self::NoDaemon { socket, source } => {
                Some(advice::on_reaching(socket, source, advice::unit_for(socket)))
            }
            Self::ConnectionLost { may_be_done: true } => {
                Some("list the entries to see whether it was carried out".into())
            }
            Self::ConnectionLost { may_be_done: false } => {
                Some("nothing has changed: do it again".into())
            }
            Self::RolledBack => Some("begin a new transaction".into()),
            Self::NoRoom => Some(
                "close some descriptors or raise the limit (ulimit -n) and ask again: what was to \
                 be handed out is still in the stash, unless it was taken at once"
                    .into(),
            ),
            Self::CallTooLong { .. } => Some("make several calls of it".into()),
            Self::UnknownRefusal { .. } | Self::Protocol(_) => {
                Some("compare the versions of the daemon and of this program".into())
            }
            Self::Io(error) => advice::on_sending(error),
            Self::Stranger { .. } => {
                Some("trust this user with `OpenOptions::trust`, or use another name".into())
            }
            Self::Ambiguous { .. } => Some("say which with `OpenOptions::named`".into()),
            Self::NoName { .. } => Some("choose a name with `OpenOptions::named`".into()),
            Self::ReadOnly { .. } => Some("reopen it with `Access::ReadWrite` first".into()),
            Self::AnotherFile { .. } => Some("open the image anew, as another".into()),
            Self::Replaced { .. } => {
                Some("list the entry to see who gave it, and give the open file again".into())
            }
            Self::File { .. } => None,
        }
    }

    /// What kind of error it is to who knows no more than the kernel's.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Refused(refusal) => kind_of_refusal(refusal),
            Self::NoDaemon { source, .. } | Self::File { source, .. } | Self::Io(source) => {
                source.kind()
            }
            Self::ConnectionLost { .. } | Self::RolledBack => io::ErrorKind::ConnectionReset,
            Self::Stranger { .. } | Self::ReadOnly { .. } | Self::AnotherFile { .. } => {
                io::ErrorKind::PermissionDenied
            }
            Self::Replaced { .. } => io::ErrorKind::StaleNetworkFileHandle,
            Self::CallTooLong { .. } | Self::Ambiguous { .. } | Self::NoName { .. } => {
                io::ErrorKind::InvalidInput
            }
            Self::NoRoom | Self::UnknownRefusal { .. } | Self::Protocol(_) => io::ErrorKind::Other,
        }
    }

    /// The daemon's refusal, if it is one that this version knows.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        if let Self::Refused(refusal) = self { Some(refusal) } else { None }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Known(refusal) => Self::Refused(refusal),
            Refused::Unknown { error, parameters } => Self::UnknownRefusal { error, parameters },
        }
    }
}

fn kind_of_refusal(refusal: &Refusal) -> io::ErrorKind {
    match refusal {
        Refusal::NotFound { .. } => io::ErrorKind::NotFound,
        Refusal::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
        Refusal::Busy { .. } => io::ErrorKind::ResourceBusy,
        Refusal::AccessDenied { .. } | Refusal::PermissionDenied => io::ErrorKind::PermissionDenied,
        Refusal::ReopenFailed { errno, .. } => io::Error::from_raw_os_error(*errno).kind(),
        Refusal::InvalidName { .. } | Refusal::InvalidParameter { .. } => {
            io::ErrorKind::InvalidInput
        }
        Refusal::LimitExceeded { .. }
        | Refusal::NotDurable { .. }
        | Refusal::TransactionState { .. }
        | Refusal::FileDescriptorMissing { .. }
        | Refusal::InterfaceNotFound { .. }
        | Refusal::MethodNotFound { .. }
        | Refusal::MethodNotImplemented { .. }
        | Refusal::ExpectedMore => io::ErrorKind::Other,
    }
}

fn told(may_be_done: bool) -> &'static str {
    if may_be_done {
        ", and the call may have been carried out"
    } else {
        " before the call was carried out"
    }
}

#[cfg(test)]
mod tests {
    use fdstash_proto::Peer;

    use super::*;

    #[test]
    fn every_error_says_what_happened_and_what_can_be_done() {
        let io = |errno: rustix::io::Errno| io::Error::from(errno);
        let gone = Error::NoDaemon { socket: "/s".into(), source: io(rustix::io::Errno::NOENT) };
        let shut = Error::NoDaemon { socket: "/s".into(), source: io(rustix::io::Errno::ACCESS) };
        let held = Peer { uid: 7, gid: 8, pid: 9 };
        let table = [
            (gone, "no daemon can be reached at /s", Some("fdstashd --socket /s")),
            (shut, "no daemon can be reached at /s", Some("the socket's mode")),
            (
                Error::ConnectionLost { may_be_done: true },
                "the connection to the daemon was lost, and the call may have been carried out",
                Some("list the entries"),
            ),
            (
                Error::ConnectionLost { may_be_done: false },
                "the connection to the daemon was lost before the call was carried out",
                Some("do it again"),
            ),
            (Error::NoRoom, "this process has no room for more descriptors", Some("ulimit -n")),
            (
                Error::Protocol(Hangup::NotAReply),
                "the daemon broke the protocol: it sent a message that is not the reply that was due",
                Some("compare the versions"),
            ),
            (
                Error::Io(io(rustix::io::Errno::TOOMANYREFS)),
                "could not talk to the daemon",
                Some("too many descriptors on their way"),
            ),
            (Error::Io(io(rustix::io::Errno::IO)), "could not talk to the daemon", None),
            (
                Refusal::Busy { name: "a".into(), held_by: held }.into(),
                "entry \"a\" is held by a transaction of uid 7 (pid 9)",
                Some("wait for it"),
            ),
            (Refusal::PermissionDenied.into(), "permission denied", Some("for root alone")),
            (
                Refusal::LimitExceeded { limit: "watchesPerUser".into(), value: 64 }.into(),
                "limit exceeded: watchesPerUser is 64",
                Some("fdstashd's --user-watches"),
            ),
        ];

        for (error, message, advice) in table {
            assert_eq!(error.to_string(), message);
            let given = error.advice();
            assert!(
                given.as_deref().unwrap_or_default().contains(advice.unwrap_or_default()),
                "{given:?}"
            );
            assert_eq!(given.is_some(), advice.is_some(), "{message}");
        }
    }
}
