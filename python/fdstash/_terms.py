"""The terms of the interface, as `org.fdstash.Stash` has them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from typing import FrozenSet, Mapping, Optional, Protocol, Sequence, Union


class HasFileno(Protocol):
    """What has a descriptor: a file, a socket, a `Handed`."""

    def fileno(self) -> int:
        """Its number."""


class _Word(str, Enum):
    """A word of the interface. It is a `str`, equal to the plain one."""

    def __str__(self) -> str:
        return str(self.value)


class Access(_Word):
    """What a descriptor may be used for: the access mode that it was opened with."""

    READ = "read"
    WRITE = "write"
    READ_WRITE = "read_write"
    PATH = "path"


class Kind(_Word):
    """What kind of file a descriptor refers to."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    BLOCK = "block"
    CHARACTER = "character"
    FIFO = "fifo"
    SOCKET = "socket"
    ANONYMOUS = "anonymous"


class Flag(_Word):
    """A status flag of an open file description that a Reopen can set."""

    DIRECT = "direct"
    SYNC = "sync"
    DSYNC = "dsync"
    APPEND = "append"
    NONBLOCK = "nonblock"
    NOATIME = "noatime"


class Change(_Word):
    """Why an entry changed."""

    GIVEN = "given"
    REPLACED = "replaced"
    TAKEN = "taken"
    CLOSED = "closed"
    REOPENED = "reopened"
    EXPIRED = "expired"
    HUNG_UP = "hung_up"


class Verb(_Word):
    """What somebody wants of an entry."""

    GIVE = "give"
    TAKE = "take"
    COPY = "copy"
    CLOSE = "close"
    REOPEN = "reopen"
    REOPEN_BY_PATH = "reopen_by_path"
    LIST = "list"


class Verdict(_Word):
    """What is said to who wants something: that it may, that it may not, or that there is no such entry."""

    ALLOWED = "allowed"
    DENIED = "denied"
    HIDDEN = "hidden"


class Reason(_Word):
    """What a verdict comes from."""

    ROOT = "root"
    GIVER = "giver"
    SHARE = "share"
    ALLOW = "allow"
    RESERVE = "reserve"
    FREE = "free"
    NOTHING = "nothing"


class Keeper(_Word):
    """What keeps the descriptors across a crash of the daemon."""

    PROCESS = "process"
    PROCESS_AND_SYSTEMD = "process+systemd"
    NOBODY = "none"


@dataclass(frozen=True)
class Peer:
    """Whom the kernel vouches for at the other end of a connection."""

    uid: int
    gid: int
    pid: int
    """The process that connected; 0 where it is in no pid namespace that the daemon sees."""

    def __str__(self) -> str:
        return f"uid {self.uid} (pid {self.pid})"


@dataclass(frozen=True)
class Share:
    """Who else may take, copy, reopen or close an entry, beside its giver and what the policy grants."""

    uids: Sequence[int] = ()
    gids: Sequence[int] = ()


@dataclass(frozen=True)
class Gift:
    """One descriptor to keep. It is only borrowed, and stays the caller's too."""

    name: str
    """1 to 255 printable ASCII characters, no ':'."""
    fd: Union[int, HasFileno]
    fresh: bool = False
    """Keep an open file description of the stash's own, not the one that was sent: what the sender does
    later to its offset, its flags and its locks then leaves the kept one alone. Regular files and block
    devices only."""
    may_reopen: Optional[Access] = None
    """The most access a Reopen may give it. Left out: the access it has now, so never more."""
    expire_usec: Optional[int] = None
    """Close it after so many microseconds."""
    ephemeral: bool = False
    """Close it when the connection that gave it closes."""
    close_on_hangup: bool = False
    """Close it when it polls as hung up or failed (a dead socket, a pipe with no other end)."""
    share: Optional[Share] = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Free notes for the people and programs that list it."""


@dataclass(frozen=True)
class Reopening:
    """One entry to open anew. What is left out stays as it is."""

    name: str
    access: Optional[Access] = None
    hand_out: Optional[Access] = None
    """Hand out a descriptor with no more than this access, where what is kept has more. What is kept has
    `access`, so that a later Reopen can hand out more again without anybody's rights on the file."""
    direct: Optional[bool] = None
    sync: Optional[bool] = None
    dsync: Optional[bool] = None
    append: Optional[bool] = None
    nonblock: Optional[bool] = None
    noatime: Optional[bool] = None
    path: Optional[Union[str, os.PathLike[str]]] = None
    """Open what stands at this path now, not the very file that the entry holds. The policy says who
    may."""


@dataclass(frozen=True)
class Entry:
    """One entry, as `list` and `watch` show it."""

    name: str
    kind: Kind
    access: Access
    flags: FrozenSet[Flag]
    """The status flags that it was given or reopened with."""
    drifted: FrozenSet[Flag]
    """Flags that somebody else who holds the same open file description has changed since."""
    may_reopen: Access
    target: Optional[str]
    """What the descriptor pointed at when it was given: a path, or `socket:[...]` and the like."""
    device: int
    inode: int
    giver: Peer
    given_at_usec: int
    expires_at_usec: Optional[int]
    revision: int
    """Grows with every change of the stash; entries that changed together have the same."""
    held_by: Optional[Peer]
    """Whose open transaction holds it."""
    labels: Mapping[str, str]
    share: Optional[Share] = None
    """This and the two below `list` tells to the giver's user and to root, and to nobody else."""
    ephemeral: Optional[bool] = None
    close_on_hangup: Optional[bool] = None


@dataclass(frozen=True)
class Standing:
    """The connection was lost and the watch stands anew: changes may have gone untold, so list anew."""


@dataclass(frozen=True)
class Changed:
    """An entry changed."""

    change: Change
    entry: Entry
    """What it is now, or was before it went."""


@dataclass(frozen=True)
class Lost:
    """The watcher was too slow for so many changes, and lists anew."""

    count: int


Notice = Union[Standing, Changed, Lost]
"""What a watcher is told."""


@dataclass(frozen=True)
class Mirror:
    """What the service manager's descriptor store has of the entries."""

    bundles: int
    """Bundles of entries that it has been given to store."""
    puts: int
    """How often it was given one."""
    entries: int
    """Entries that are in the bundles."""
    waiting: int
    """Changes that are not in the bundles yet."""
    behind_usec: int
    """For how many microseconds the oldest of them has not been."""


@dataclass(frozen=True)
class Statistics:
    """The figures of the daemon. The counts are of entries, and add up: `entries` is `given` less `taken`,
    `closed` and `expired`. After a crash or an upgrade they begin anew, and what has come back counts as
    given.
    """

    entries: int
    max_entries: int
    connections: int
    transactions: int
    keeper: Keeper
    restores: int
    """How often the daemon has come back to what it kept."""
    given: int
    taken: int
    copied: int
    closed: int
    reopened: int
    expired: int
    refused: int
    mirror: Optional[Mirror]


@dataclass(frozen=True)
class Explanation:
    """What the policy says to somebody, and why."""

    verdict: Verdict
    reason: Reason
    file: Optional[str]
    """In which file the rule stands that decides, if one does."""
    line: Optional[int]
    """In which line of it, counted from 1."""


@dataclass(frozen=True)
class Info:
    """Who made the service, and what it speaks."""

    vendor: str
    product: str
    version: str
    url: str
    interfaces: Sequence[str]
