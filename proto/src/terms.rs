//! The terms of the interface that are no call and no reply.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::Name;

/// What a descriptor may be used for: the access mode it was opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Reading (`O_RDONLY`).
    Read,
    /// Writing (`O_WRONLY`).
    Write,
    /// Both (`O_RDWR`).
    ReadWrite,
    /// Neither: it only names the file (`O_PATH`).
    Path,
}

impl Access {
    /// Whether whoever has `self` can do all that `other` can.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        match other {
            Self::Path => true,
            Self::Read => self.reads(),
            Self::Write => self.writes(),
            Self::ReadWrite => self == Self::ReadWrite,
        }
    }

    fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }

    /// The word that the interface has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::ReadWrite => "read_write",
            Self::Path => "path",
        }
    }
}

/// What kind of file a descriptor refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A regular file, a memfd included.
    Regular,
    /// A directory.
    Directory,
    /// A block device.
    Block,
    /// A character device.
    Character,
    /// A pipe, with a name or without.
    Fifo,
    /// A socket.
    Socket,
    /// What has no file type: an eventfd, an epoll, a timerfd and the like.
    Anonymous,
}

impl Kind {
    /// The word that the interface has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Directory => "directory",
            Self::Block => "block",
            Self::Character => "character",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Anonymous => "anonymous",
        }
    }
}

/// Why an entry changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is there now, where nothing was.
    Given,
    /// It stands in the place of another.
    Replaced,
    /// It was handed out and is here no longer.
    Taken,
    /// It was closed.
    Closed,
    /// It was opened anew, with other flags.
    Reopened,
    /// Its time was up.
    Expired,
    /// It polled as hung up or failed.
    HungUp,
}

impl Change {
    /// The word that the interface has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Replaced => "replaced",
            Self::Taken => "taken",
            Self::Closed => "closed",
            Self::Reopened => "reopened",
            Self::Expired => "expired",
            Self::HungUp => "hung_up",
        }
    }
}

/// What keeps the descriptors across a crash of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keeper {
    /// A second process with the same descriptor table.
    #[serde(rename = "process")]
    Process,
    /// That and systemd's descriptor store.
    #[serde(rename = "process+systemd")]
    ProcessAndSystemd,
    /// Nothing: they end with the daemon.
    #[serde(rename = "none")]
    Nobody,
}

impl Keeper {
    /// The word that the interface has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::ProcessAndSystemd => "process+systemd",
            Self::Nobody => "none",
        }
    }
}

/// Whom the kernel vouches for at the other end of a connection (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// The process that connected; 0 where it is in no pid namespace that the daemon sees.
    pub pid: i32,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {} (pid {})", self.uid, self.pid)
    }
}

/// The status flags of an open file description that a Reopen can set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(u8);

impl Flags {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// `O_DIRECT`: past the host's page cache.
    pub const DIRECT: Self = Self(1);
    /// `O_SYNC`.
    pub const SYNC: Self = Self(2);
    /// `O_DSYNC` without the rest of `O_SYNC`.
    pub const DSYNC: Self = Self(4);
    /// `O_APPEND`.
    pub const APPEND: Self = Self(8);
    /// `O_NONBLOCK`.
    pub const NONBLOCK: Self = Self(16);
    /// `O_NOATIME`.
    pub const NOATIME: Self = Self(32);

    const NAMED: [(Self, &'static str); 6] = [
        (Self::DIRECT, "direct"),
        (Self::SYNC, "sync"),
        (Self::DSYNC, "dsync"),
        (Self::APPEND, "append"),
        (Self::NONBLOCK, "nonblock"),
        (Self::NOATIME, "noatime"),
    ];

    /// Whether all of `other` are among these.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These, with `other` on or off.
    #[must_use]
    pub fn with(self, other: Self, on: bool) -> Self {
        if on { Self(self.0 | other.0) } else { Self(self.0 & !other.0) }
    }

    /// Those that stand in one of both, but not in the other.
    #[must_use]
    pub fn differing(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }

    /// The interface's words for them, in its order.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Self::NAMED.into_iter().filter(move |(flag, _)| self.contains(*flag)).map(|(_, word)| word)
    }

    /// These as bits, which stay the same in every version.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Those whose [`bits`](Self::bits) these are; none, if they are nobody's.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        let all = Self::NAMED.into_iter().fold(0, |all, (flag, _)| all | flag.0);
        (bits & !all == 0).then_some(Self(bits))
    }

    fn from_words(words: &[String]) -> Result<Self, String> {
        words.iter().try_fold(Self::NONE, |flags, word| {
            let known = Self::NAMED.into_iter().find(|(_, known)| known == word);
            known
                .map(|(flag, _)| flags.with(flag, true))
                .ok_or_else(|| format!("no such flag: {word:?}"))
        })
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.words()).finish()
    }
}

impl Serialize for Flags {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.words())
    }
}

impl<'de> Deserialize<'de> for Flags {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = Vec::<String>::deserialize(deserializer)?;
        Self::from_words(&words).map_err(serde::de::Error::custom)
    }
}

/// Free notes on an entry, for the people and programs that list it.
pub type Labels = BTreeMap<String, String>;

/// Who else may take, copy, reopen or close an entry, beside its giver and root.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// These users.
    pub uids: Vec<u32>,
    /// Members of these groups.
    pub gids: Vec<u32>,
}

impl Share {
    /// Whether it is with nobody.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }
}

/// One entry as List and Watch show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Under what it is kept.
    pub name: Name,
    /// What kind of file it is.
    pub kind: Kind,
    /// What it may be used for.
    pub access: Access,
    /// The status flags that it was given or reopened with.
    pub flags: Flags,
    /// Flags that somebody else who holds the same open file description has changed since.
    pub drifted: Flags,
    /// The most access that a Reopen gives it.
    pub may_reopen: Access,
    /// What it pointed at when it was given: a path, or `socket:[...]` and the like.
    pub target: Option<String>,
    /// The file's device number, as `stat` has it.
    pub device: u64,
    /// The file's inode number.
    pub inode: u64,
    /// Who gave it.
    pub giver: Peer,
    /// When, in microseconds since 1970.
    pub given_at_usec: u64,
    /// When it will be closed, in microseconds since 1970.
    pub expires_at_usec: Option<u64>,
    /// Grows with every change of the stash; entries that changed together have the same.
    pub revision: u64,
    /// Whose open transaction or unfinished call holds it.
    pub held_by: Option<Peer>,
    /// Free notes.
    pub labels: Labels,
    /// Who else may use it. This and the two below List tells to the giver's user and to root.
    pub share: Option<Share>,
    /// Whether it is closed when the connection that gave it closes.
    pub ephemeral: Option<bool>,
    /// Whether it is closed when it polls as hung up or failed.
    pub close_on_hangup: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_covers_itself_and_less() {
        use Access::{Path, Read, ReadWrite, Write};
        let covered = |access: Access| {
            [Read, Write, ReadWrite, Path]
                .into_iter()
                .filter(|&other| access.covers(other))
                .collect()
        };

        let table: [(Access, Vec<Access>); 4] = [
            (Read, vec![Read, Path]),
            (Write, vec![Write, Path]),
            (ReadWrite, vec![Read, Write, ReadWrite, Path]),
            (Path, vec![Path]),
        ];

        for (access, expected) in table {
            let covered: Vec<Access> = covered(access);
            assert_eq!(covered, expected, "{access:?}");
        }
    }
}
