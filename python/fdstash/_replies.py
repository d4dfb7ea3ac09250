"""What the daemon's replies say: from a message's parameters to the terms of the interface."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Type, TypeVar

from ._handed import Handed
from ._inbox import Inbox, not_due
from ._terms import (
    Access,
    Change,
    Changed,
    Entry,
    Explanation,
    Flag,
    Info,
    Keeper,
    Kind,
    Lost,
    Mirror,
    Notice,
    Peer,
    Reason,
    Share,
    Standing,
    Statistics,
    Verdict,
)

T = TypeVar("T")
Wire = Dict[str, Any]
Reader = Callable[[Wire, Inbox], Any]
"""Reads the parameters of a reply, and takes the descriptors that they name."""


def done(wire: Wire, inbox: Inbox) -> None:
    """To Close, Begin, Commit and Rollback."""


def replaced(wire: Wire, inbox: Inbox) -> List[str]:
    """To Give: the names whose old descriptors made room."""
    return _texts(wire, "replaced")


def handed(wire: Wire, inbox: Inbox) -> List[Handed]:
    """To Take and Reopen. Each index must be there and named once: one descriptor has one owner."""
    parts = _all(wire, "entries", dict)
    names = [_field(part, "name", str) for part in parts]
    fds = inbox.take([_field(part, "fileDescriptor", int) for part in parts])
    for name, fd in zip(names, fds):
        fd.name = name
    return fds


def entries(wire: Wire, inbox: Inbox) -> List[Entry]:
    """To List, in one of its parts."""
    return [_entry(part) for part in _all(wire, "entries", dict)]


def notice(wire: Wire, inbox: Inbox) -> Notice:
    """To Watch, once for every change."""
    change, entry, lost = wire.get("change"), wire.get("entry"), wire.get("lost")
    if change is None and entry is None:
        return Standing() if lost is None else Lost(_field(wire, "lost", int))
    if lost is not None:
        raise not_due()
    return Changed(_word(Change, change), _entry(_field(wire, "entry", dict)))


def statistics(wire: Wire, inbox: Inbox) -> Statistics:
    """To GetStatistics."""
    mirror = _maybe(wire, "mirror", dict)
    counts = (
        "entries connections transactions restores given taken copied closed reopened expired refused"
    )
    return Statistics(
        max_entries=_field(wire, "maxEntries", int),
        keeper=_word(Keeper, wire.get("keeper")),
        mirror=None if mirror is None else _mirror(mirror),
        **{name: _field(wire, name, int) for name in counts.split()},
    )


def explanation(wire: Wire, inbox: Inbox) -> Explanation:
    """To ExplainPolicy."""
    return Explanation(
        verdict=_word(Verdict, wire.get("verdict")),
        reason=_word(Reason, wire.get("reason")),
        file=_maybe(wire, "file", str),
        line=_maybe(wire, "line", int),
    )


def info(wire: Wire, inbox: Inbox) -> Info:
    """To GetInfo."""
    texts = {name: _field(wire, name, str) for name in ("vendor", "product", "version", "url")}
    return Info(**texts, interfaces=tuple(_texts(wire, "interfaces")))


def _entry(wire: Wire) -> Entry:
    held_by, share = _maybe(wire, "heldBy", dict), _maybe(wire, "share", dict)
    return Entry(
        name=_field(wire, "name", str),
        kind=_word(Kind, wire.get("kind")),
        access=_word(Access, wire.get("access")),
        flags=frozenset(_word(Flag, flag) for flag in _texts(wire, "flags")),
        drifted=frozenset(_word(Flag, flag) for flag in _texts(wire, "drifted")),
        may_reopen=_word(Access, wire.get("mayReopen")),
        target=_maybe(wire, "target", str),
        device=_field(wire, "device", int),
        inode=_field(wire, "inode", int),
        giver=_peer(_field(wire, "giver", dict)),
        given_at_usec=_field(wire, "givenAtUSec", int),
        expires_at_usec=_maybe(wire, "expiresAtUSec", int),
        revision=_field(wire, "revision", int),
        held_by=None if held_by is None else _peer(held_by),
        labels=_maybe(wire, "labels", dict) or {},
        share=None if share is None else Share(_all(share, "uids", int), _all(share, "gids", int)),
        ephemeral=_maybe(wire, "ephemeral", bool),
        close_on_hangup=_maybe(wire, "closeOnHangup", bool),
    )


def _peer(wire: Wire) -> Peer:
    return Peer(*(_field(wire, name, int) for name in ("uid", "gid", "pid")))


def _mirror(wire: Wire) -> Mirror:
    counts = {name: _field(wire, name, int) for name in ("bundles", "puts", "entries", "waiting")}
    return Mirror(behind_usec=_field(wire, "behindUSec", int), **counts)


def _field(wire: Wire, name: str, of: Type[T]) -> T:
    value = wire.get(name)
    if not isinstance(value, of):
        raise not_due()
    return value


def _maybe(wire: Wire, name: str, of: Type[T]) -> Optional[T]:
    return None if wire.get(name) is None else _field(wire, name, of)


def _all(wire: Wire, name: str, of: Type[T]) -> List[T]:
    values: List[Any] = _field(wire, name, list)
    if not all(isinstance(value, of) for value in values):
        raise not_due()
    return values


def _texts(wire: Wire, name: str) -> List[str]:
    return _all(wire, name, str)


def _word(of: Callable[[Any], T], word: object) -> T:
    try:
        return of(word)
    except ValueError:
        raise not_due() from None
