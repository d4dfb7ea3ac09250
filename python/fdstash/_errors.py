"""`Error`, and all that it can be: why a call did not do what it was asked.

One file, since it is one table: each error of the interface, and each of the client's own, once.
"""

from __future__ import annotations

import errno as errnos
import os
import shlex
import sys
from typing import Any, ClassVar, Dict, Optional, Tuple

from ._terms import Peer

_UNITS = [
    f"{place}/systemd/system/fdstashd.socket" for place in ("/etc", "/usr/local/lib", "/usr/lib", "/lib")
]
"""Where the system's unit is, if it is installed."""


class Error(Exception):
    """Why a call did not do what it was asked.

    Unless a class below says otherwise, the stash is as it was before the call. `str(error)` says what
    happened to what; `advice` says what to do about it, and stands in tracebacks from Python 3.11 on.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        if self.advice and sys.version_info >= (3, 11):
            self.add_note(self.advice)

    def __reduce__(self) -> Tuple[Any, ...]:
        # All that there is to one are its arguments, the note too.
        return type(self), self.args

    @property
    def advice(self) -> Optional[str]:
        """What to do about it, where that is known, as a clause without a capital or a full stop."""
        return None


class Refused(Error):
    """The daemon refused: there is a class for each error of the interface."""

    ADVICE: ClassVar[Optional[str]] = None

    @property
    def advice(self) -> Optional[str]:
        return self.ADVICE


class NotFound(Refused):
    """No such entry, or none that this user may know of."""

    ADVICE = "list the entries to see which there are; what may not be used is not shown either"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name)

    def __str__(self) -> str:
        return f'there is no entry "{self.name}"'


class AlreadyExists(Refused):
    """An exclusive Give of a name that is taken."""

    ADVICE = "close it first, or give without being exclusive to put this in its place"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name)

    def __str__(self) -> str:
        return f'there is an entry "{self.name}" already'


class Busy(Refused):
    """Another connection's transaction, or unfinished call, holds it."""

    ADVICE = "wait for it, with a time-out, or let the other side finish"

    def __init__(self, name: str, held_by: Peer) -> None:
        self.name = name
        self.held_by = held_by
        super().__init__(name, held_by)

    def __str__(self) -> str:
        return f'entry "{self.name}" is held by a transaction of {self.held_by}'


class TransactionState(Refused):
    """Commit or Rollback outside a transaction; or it was idle for too long and was rolled back."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason


class InvalidName(Refused):
    """A text that cannot be a name, or a name twice in one call."""

    ADVICE = "a name is 1 to 255 printable ASCII characters without ':', once in a call"

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(name, reason)

    def __str__(self) -> str:
        return f"{self.name!r} cannot be used as a name here: {self.reason}"


class AccessDenied(Refused):
    """This user may not do this to the entry."""

    def __init__(self, name: str, verb: str) -> None:
        self.name = name
        self.verb = verb
        super().__init__(name, verb)

    def __str__(self) -> str:
        return f'not allowed to {self.verb} entry "{self.name}"'

    @property
    def advice(self) -> str:
        if self.verb == "give":
            who = "the name is another user's, or the policy reserves it: choose another"
        elif self.verb == "reopen":
            who = (
                "its giver says how far it may be reopened at most, and with whom it is shared; or a "
                "rule of the policy allows it"
            )
        elif self.verb == "reopen by path":
            who = "only a rule of the policy that names a directory above the path allows it"
        else:
            who = "its giver says with whom it is shared, or a rule of the policy allows it"
        words = [str(os.geteuid()), self.verb.replace(" ", "-"), shlex.quote(self.name)]
        return f"{who}; root sees which: fdstash policy explain --user {' '.join(words)}"


class ReopenFailed(Refused):
    """The kernel would not open the file so."""

    ADVICE = "the stash is as it was"

    def __init__(self, name: str, errno: int, errno_name: str, message: str) -> None:
        self.name = name
        self.errno = errno
        self.errno_name = errno_name
        self.message = message
        super().__init__(name, errno, errno_name, message)

    def __str__(self) -> str:
        return f'entry "{self.name}" could not be opened anew: {self.message} ({self.errno_name})'


class LimitExceeded(Refused):
    """More than the daemon has room for, or than a message carries."""

    ADVICE = "close what is no longer needed, or have the daemon's limit raised"

    def __init__(self, limit: str, value: int) -> None:
        self.limit = limit
        self.value = value
        super().__init__(limit, value)

    def __str__(self) -> str:
        return f"limit exceeded: {self.limit} is {self.value}"


class FileDescriptorMissing(Refused):
    """The message named more descriptors than came with it."""

    def __init__(self, expected: int, received: int) -> None:
        self.expected = expected
        self.received = received
        super().__init__(expected, received)

    def __str__(self) -> str:
        return f"the message named {self.expected} descriptors, but {self.received} came with it"


class NotDurable(Refused):
    """The journal could not be written; nothing was stored."""

    ADVICE = "the daemon's log says more"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return f"nothing was stored, since it could not be made durable: {self.reason}"


class PermissionDenied(Refused):
    """This user may not use the service so."""

    def __str__(self) -> str:
        return "permission denied"


class Misunderstood(Refused):
    """The daemon does not know what it was asked: it is another version than this program is for."""

    ADVICE = "compare the versions of the daemon and of this program"


class InterfaceNotFound(Misunderstood):
    """The service has no such interface."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        super().__init__(interface)

    def __str__(self) -> str:
        return f'there is no interface "{self.interface}"'


class MethodNotFound(Misunderstood):
    """The interface has no such method."""

    def __init__(self, method: str) -> None:
        self.method = method
        super().__init__(method)

    def __str__(self) -> str:
        return f'there is no method "{self.method}"'


class MethodNotImplemented(Misunderstood):
    """The method is there, but not in the way it was called."""

    def __init__(self, method: str) -> None:
        self.method = method
        super().__init__(method)

    def __str__(self) -> str:
        return f'method "{self.method}" cannot be called so'


class InvalidParameter(Misunderstood):
    """A parameter is not what it must be; or a descriptor that is the daemon's own."""

    def __init__(self, parameter: str) -> None:
        self.parameter = parameter
        super().__init__(parameter)

    def __str__(self) -> str:
        return f'invalid parameter "{self.parameter}"'


class ExpectedMore(Misunderstood):
    """The method must be called with `more`."""

    def __str__(self) -> str:
        return "the method must be called with more"


class UnknownRefusal(Misunderstood):
    """The daemon refused with an error that this version does not know."""

    def __init__(self, error: str, parameters: Dict[str, Any]) -> None:
        self.error = error
        self.parameters = parameters
        super().__init__(error, parameters)

    def __str__(self) -> str:
        return (
            "the daemon refused with an error that this version does not know: "
            f"{self.error} {self.parameters}"
        )


class NoDaemon(Error):
    """Nobody can be reached at the socket."""

    def __init__(self, socket: str, source: OSError) -> None:
        self.socket = socket
        self.source = source
        super().__init__(socket, source)

    def __str__(self) -> str:
        return f"no daemon can be reached at {self.socket}: {self.source.strerror or self.source}"

    @property
    def advice(self) -> str:
        if isinstance(self.source, PermissionError):
            return "the socket's mode and the directories above it decide who may connect"
        if self.socket.startswith("/run/fdstash/") and any(map(os.path.exists, _UNITS)):
            return "start one with `systemctl start fdstashd.socket`"
        return f"start one with `fdstashd --socket {self.socket}`"


class ConnectionLost(Error):
    """The connection was lost: with a transaction that was open on it, or again and again for some
    seconds, or the daemon did not come back.
    """

    def __init__(self, may_be_done: bool) -> None:
        self.may_be_done = may_be_done
        """Whether the call may have been carried out all the same: no daemon was there to tell."""
        super().__init__(may_be_done)

    def __str__(self) -> str:
        told = (
            ", and the call may have been carried out"
            if self.may_be_done
            else " before the call was carried out"
        )
        return f"the connection to the daemon was lost{told}"

    @property
    def advice(self) -> str:
        if self.may_be_done:
            return "list the entries to see whether it was carried out"
        return "nothing has changed: do it again"


class RolledBack(Error):
    """The transaction is over: an earlier call in it lost the connection, broke off or failed half-way, and
    all of it was rolled back; or it is a parent process's.
    """

    def __str__(self) -> str:
        return "the transaction was rolled back when an earlier call in it failed"

    @property
    def advice(self) -> str:
        return "begin a new transaction"


class NoRoom(Error):
    """This process has no room for another descriptor. Those that were to be handed out are still in the
    stash.
    """

    def __str__(self) -> str:
        return "this process has no room for more descriptors"

    @property
    def advice(self) -> str:
        return (
            "close some descriptors or raise the limit (ulimit -n) and ask again: what was to be handed "
            "out is still in the stash"
        )


class CallTooLong(Error):
    """The call does not fit into a message. It was not sent."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(limit)

    def __str__(self) -> str:
        return f"the call takes more than the {self.limit} bytes of a message"

    @property
    def advice(self) -> str:
        return "make several calls of it"


class ProtocolBroken(Error):
    """The other side does not speak as a daemon of this interface does. Its connection is closed, and what
    it did about the call is not known.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)

    def __str__(self) -> str:
        return f"the daemon broke the protocol: it sent {self.what}"

    @property
    def advice(self) -> str:
        return "compare the versions of the daemon and of this program"


class SocketFailed(Error):
    """The kernel would not send or receive. The connection is closed; what had not been sent whole was not
    carried out.
    """

    def __init__(self, source: OSError) -> None:
        self.source = source
        super().__init__(source)

    def __str__(self) -> str:
        return f"could not talk to the daemon: {self.source.strerror or self.source}"

    @property
    def advice(self) -> Optional[str]:
        # unix(7): descriptors that are sent and not yet received count against the sender's limit.
        if self.source.errno == errnos.ETOOMANYREFS:
            return (
                "this user has too many descriptors on their way: give fewer than 253 at once, or raise "
                "the limit (ulimit -n)"
            )
        return None


_KNOWN: Dict[str, Tuple[type, Tuple[Tuple[str, type], ...]]] = {
    "org.fdstash.Stash.NotFound": (NotFound, (("name", str),)),
    "org.fdstash.Stash.AlreadyExists": (AlreadyExists, (("name", str),)),
    "org.fdstash.Stash.Busy": (Busy, (("name", str), ("heldBy", Peer))),
    "org.fdstash.Stash.TransactionState": (TransactionState, (("reason", str),)),
    "org.fdstash.Stash.InvalidName": (InvalidName, (("name", str), ("reason", str))),
    "org.fdstash.Stash.AccessDenied": (AccessDenied, (("name", str), ("verb", str))),
    "org.fdstash.Stash.ReopenFailed": (
        ReopenFailed,
        (("name", str), ("errno", int), ("errnoName", str), ("message", str)),
    ),
    "org.fdstash.Stash.LimitExceeded": (LimitExceeded, (("limit", str), ("value", int))),
    "org.fdstash.Stash.FileDescriptorMissing": (
        FileDescriptorMissing,
        (("expected", int), ("received", int)),
    ),
    "org.fdstash.Stash.NotDurable": (NotDurable, (("reason", str),)),
    "org.varlink.service.InterfaceNotFound": (InterfaceNotFound, (("interface", str),)),
    "org.varlink.service.MethodNotFound": (MethodNotFound, (("method", str),)),
    "org.varlink.service.MethodNotImplemented": (MethodNotImplemented, (("method", str),)),
    "org.varlink.service.InvalidParameter": (InvalidParameter, (("parameter", str),)),
    "org.varlink.service.PermissionDenied": (PermissionDenied, ()),
    "org.varlink.service.ExpectedMore": (ExpectedMore, ()),
}
"""The errors of the interface, with their parameters' names and types."""


def refusal(error: str, parameters: Dict[str, Any]) -> Refused:
    """What a daemon's error reply says."""
    kind, fields = _KNOWN.get(error, (None, ()))
    if kind is None:
        return UnknownRefusal(error, parameters)
    values = []
    for name, of in fields:
        value = parameters.get(name)
        if of is Peer and isinstance(value, dict):
            value = Peer(value.get("uid", -1), value.get("gid", -1), value.get("pid", 0))
        if not isinstance(value, of):
            return UnknownRefusal(error, parameters)
        values.append(value)
    made = kind(*values)
    assert isinstance(made, Refused)
    return made
