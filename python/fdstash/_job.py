"""`Job`: what one method of a client asks of the daemon, as requests that can be sent again."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from typing import Any, Dict, Generic, Iterable, Iterator, List, Optional, Sequence, TypeVar, Union

from . import _replies
from ._address import INTERFACE
from ._errors import CallTooLong, InvalidName
from ._handed import Handed
from ._inbox import MAX_DESCRIPTORS, MAX_MESSAGE
from ._terms import Access, Entry, Explanation, Gift, HasFileno, Info, Reopening, Statistics, Verb

NAMES_A_CALL = 1000
"""How many names one Close has: twice their longest, with every byte escaped, fits a message."""

LONGEST_WAIT = 100 * 365 * 86_400.0
"""No wait is longer, in seconds, so that a time can be counted with."""

R = TypeVar("R")


@dataclass
class Request:
    """One call of a method, without what is new each time that it is sent."""

    method: str
    due: _replies.Reader
    parameters: bytes = b"{}"
    """As JSON, so that what cannot be said in it fails before anything is sent."""
    fds: Sequence[int] = ()
    more: bool = False
    asked: Sequence[str] = ()
    """Whose descriptors the answer must have, each once."""
    has_ticket: bool = False
    """Whether the call bears a ticket where it is final at once."""

    def message(self, ticket: Optional[str] = None, deadline: Optional[float] = None) -> bytes:
        """The message, with this ticket, and with what is left of the time to wait.

        Raises CallTooLong if it does not fit.
        """
        more = [self.parameters[1:-1]] if self.parameters != b"{}" else []
        if ticket is not None and self.has_ticket:
            more.append(b'"ticket":"%s"' % ticket.encode())
        if deadline is not None:
            left = max(0, int((deadline - time.monotonic()) * 1e6))
            more.append(b'"timeoutUSec":%d' % left)
        text = b'{"method":"%s","parameters":{%s}%s}\0' % (
            self.method.encode(),
            b",".join(more),
            b',"more":true' if self.more else b"",
        )
        if len(text) > MAX_MESSAGE:
            raise CallTooLong(MAX_MESSAGE)
        return text

    def check(self, handed: List[Handed]) -> Optional[List[Handed]]:
        """What was handed out, in the order in which it was asked for; nothing if it is not just that."""
        by_name = {one.name: one for one in handed}
        if len(handed) != len(self.asked) or by_name.keys() != set(self.asked):
            return None
        return [by_name[name] for name in self.asked]


@dataclass
class Job(Generic[R]):
    """Requests that belong together. Descriptors are only borrowed."""

    requests: List[Request]
    is_list: bool = False
    """Whether the results of the replies make one list."""
    is_handed: bool = False
    """Whether it hands out, so that it is final only with the Commit of a transaction around it."""
    changes: bool = False
    """Whether it changes what is kept, and so would have done something if it was carried out."""
    deadline: Optional[float] = None
    """Until when a Take waits, of the monotonic clock."""
    lent: Sequence[Gift] = ()
    """What is given: it may be that nothing else refers to it, and keeps its descriptors open."""

    @property
    def is_together(self) -> bool:
        """Whether it is final with the Commit of a transaction, and not with its one reply."""
        return len(self.requests) > 1 or (self.is_handed and self.changes)

    def result(self, replies: List[Any]) -> R:
        """What the method returns."""
        result: Any = replies[-1] if replies else None
        if self.is_list:
            result = [one for reply in replies for one in reply]
        return result  # type: ignore[no-any-return]


def give(gifts: Iterable[Gift], exclusive: bool) -> Job[List[str]]:
    gifts = list(gifts)
    numbers = [_number(gift.fd) for gift in gifts]
    wires = [_gift(gift) for gift in gifts]
    _check([gift.name for gift in gifts], MAX_DESCRIPTORS)
    requests = []
    for at in _steps(gifts, MAX_DESCRIPTORS):
        part = [{**wire, "fileDescriptor": index} for index, wire in enumerate(wires[at])]
        parameters = {"entries": part, **_on(exclusive=exclusive)}
        requests.append(
            _stash("Give", _replies.replaced, parameters, fds=numbers[at], has_ticket=True)
        )
    return Job(requests, is_list=True, changes=True, lent=gifts)


def take(names: Iterable[str], wait: float) -> Job[List[Handed]]:
    """Leaves the stash at Commit only, when all has arrived."""
    return Job(_takes(names), True, is_handed=True, changes=True, deadline=_deadline(wait))


def copy(names: Iterable[str], fresh: bool, wait: float) -> Job[List[Handed]]:
    requests = _takes(names, copy=True, **_on(fresh=fresh))
    return Job(requests, True, is_handed=True, deadline=_deadline(wait))


def close(names: Iterable[str]) -> Job[None]:
    names = _listed(names)
    _check(names, NAMES_A_CALL)
    requests = [
        _stash("Close", _replies.done, {"names": names[at]}, has_ticket=True)
        for at in _steps(names, NAMES_A_CALL)
    ]
    return Job(requests, changes=True)


def reopen(reopenings: Iterable[Reopening]) -> Job[List[Handed]]:
    """Is undone where what it hands out does not arrive."""
    reopenings = list(reopenings)
    names = [reopening.name for reopening in reopenings]
    wires = [_reopening(reopening) for reopening in reopenings]
    _check(names, MAX_DESCRIPTORS)
    requests = [
        _stash("Reopen", _replies.handed, {"entries": wires[at]}, asked=names[at])
        for at in _steps(names, MAX_DESCRIPTORS)
    ]
    return Job(requests, True, is_handed=True, changes=True)


def begin() -> Job[None]:
    """Begins a transaction, which the connection's end undoes."""
    return Job([_stash("Begin", _replies.done)])


def commit() -> Request:
    return _stash("Commit", _replies.done, has_ticket=True)


def rollback() -> Request:
    return _stash("Rollback", _replies.done)


def list_entries(pattern: str) -> Job[List[Entry]]:
    request = _stash("List", _replies.entries, _pattern(pattern), more=True)
    return Job([request], is_list=True)


def watch(pattern: str) -> Request:
    return _stash("Watch", _replies.notice, _pattern(pattern), more=True)


def statistics() -> Job[Statistics]:
    return Job([_stash("GetStatistics", _replies.statistics)])


def explain_policy(uid: int, gids: Iterable[int], verb: Verb, name: str) -> Job[Explanation]:
    parameters = {"uid": uid, "gids": list(gids), "verb": Verb(verb).value, "name": _name(name)}
    return Job([_stash("ExplainPolicy", _replies.explanation, parameters)])


def info() -> Job[Info]:
    return Job([Request("org.varlink.service.GetInfo", _replies.info)])


def _stash(
    method: str, due: _replies.Reader, parameters: Optional[Dict[str, Any]] = None, **more: Any
) -> Request:
    # A lone surrogate, as Python has for bytes of a path that are no UTF-8, cannot be said in JSON: this
    # raises UnicodeEncodeError. Escaped, the daemon would take it for no message, and hang up.
    text = json.dumps(parameters or {}, ensure_ascii=False, separators=(",", ":"))
    return Request(f"{INTERFACE}.{method}", due, text.encode(), **more)


def _takes(names: Iterable[str], **how: bool) -> List[Request]:
    names = _listed(names)
    _check(names, MAX_DESCRIPTORS)
    return [
        _stash("Take", _replies.handed, {"names": names[at], **how}, asked=names[at])
        for at in _steps(names, MAX_DESCRIPTORS)
    ]


def _number(fd: Union[int, HasFileno]) -> int:
    """The number of an open descriptor; raises OSError if it is none."""
    number = fd if isinstance(fd, int) else fd.fileno()
    fcntl.fcntl(number, fcntl.F_GETFD)
    return number


def _gift(gift: Gift) -> Dict[str, Any]:
    wire: Dict[str, Any] = {"name": gift.name, "expireUSec": gift.expire_usec}
    wire["mayReopen"] = _access(gift.may_reopen)
    flags = _on(fresh=gift.fresh, ephemeral=gift.ephemeral, closeOnHangup=gift.close_on_hangup)
    if gift.share is not None:
        wire["share"] = {"uids": list(gift.share.uids), "gids": list(gift.share.gids)}
    wire["labels"] = dict(gift.labels) or None
    return {**_some(wire), **flags}


def _reopening(it: Reopening) -> Dict[str, Any]:
    flags = ("direct", "sync", "dsync", "append", "nonblock", "noatime")
    wire: Dict[str, Any] = {name: getattr(it, name) for name in flags}
    wire.update(name=it.name, access=_access(it.access), handOut=_access(it.hand_out))
    wire["path"] = None if it.path is None else os.fspath(it.path)
    return _some(wire)


def _pattern(pattern: str) -> Dict[str, Any]:
    return {} if pattern == "*" else {"pattern": pattern}


def _access(access: Optional[Access]) -> Optional[str]:
    return None if access is None else Access(access).value


def _some(wire: Dict[str, Any]) -> Dict[str, Any]:
    return {name: value for name, value in wire.items() if value is not None}


def _on(**flags: bool) -> Dict[str, bool]:
    return {name: True for name, value in flags.items() if value}


def _deadline(wait: float) -> Optional[float]:
    return time.monotonic() + min(wait, LONGEST_WAIT) if wait > 0 else None


def _steps(whole: Sequence[object], most: int) -> Iterator[slice]:
    """The parts that go into one message each."""
    return (slice(at, at + most) for at in range(0, len(whole), most))


def _listed(names: Iterable[str]) -> List[str]:
    if isinstance(names, (str, bytes)):
        raise TypeError(f"names are asked for as a list: [{names!r}]")
    return list(names)


def _name(name: str) -> str:
    if not name:
        raise InvalidName(name, "a name has at least one character")
    if len(name) > 255:
        raise InvalidName(name, "a name has at most 255 characters")
    if not all(" " <= character <= "~" for character in name):
        raise InvalidName(name, "a name is printable ASCII without control characters")
    if ":" in name:
        raise InvalidName(name, "a name has no ':'")
    return name


def _check(names: List[str], most: int) -> None:
    """A name that stands twice in one call the daemon refuses; one in two of the calls which a job is split
    into, it could not see.
    """
    seen = set()
    for name in names:
        _name(name)
        if name in seen and len(names) > most:
            raise InvalidName(name, "it is named twice in one call")
        seen.add(name)
