"""What makes it harmless to send a call again: `Tickets`; and how often it is: `Repetitions`."""

from __future__ import annotations

import os
import time
from typing import Optional, Tuple, Type

from ._errors import (
    AlreadyExists,
    Busy,
    ConnectionLost,
    Error,
    LimitExceeded,
    NoDaemon,
    NoRoom,
    SocketFailed,
)
from ._transport import Transport

PAUSES_MSEC = (0, 0, 1, 2, 4, 8, 15, 25, 40, 60, 90, 130, 200, 300, 450, 700)
"""The pauses before a call is sent again whose connection was lost, two seconds in all. A call that ends
the daemon each time must not do so for ever; but one that has done nothing wrong, while something else
ends the daemon again and again, has to come through."""

PATIENCE = 2.0
"""For how many seconds a name is tried for that somebody else holds: who opens the same file holds it for
moments, but there may be many of them."""

LONGEST_PAUSE = 0.008
"""The longest pause between two tries. Longer ones would give way to whoever tries more often."""


class Repetitions:
    """One call, sent as often as it takes."""

    def __init__(self, kind: Type[Transport]) -> None:
        self._kind = kind
        self._pauses = iter(PAUSES_MSEC)
        self._held: Optional[Tuple[float, float]] = None
        self.is_in_doubt = False
        """Whether the call may have been carried out, and nobody here knows."""

    async def after(self, error: Error) -> None:
        """Waits until the call is to be sent again, which failed so; raises what it fails with in the end."""
        if not isinstance(error, ConnectionLost):
            if self.is_in_doubt and _is_of_connecting(error):
                raise ConnectionLost(True) from error
            raise error
        self.is_in_doubt |= error.may_be_done
        pause = next(self._pauses, None)
        if pause is None:
            raise ConnectionLost(self.is_in_doubt) from None
        if pause:
            await self._kind.pause(pause / 1000)

    async def after_undone(self, error: Error) -> None:
        """Waits until a transaction is to be done anew, which failed so; raises what it fails with in the
        end: at once, unless all of it was undone with its connection, or somebody else holds one of its
        names.
        """
        if isinstance(error, (Busy, AlreadyExists)):
            await self._after_held(error)
        elif isinstance(error, ConnectionLost) and error.may_be_done:
            raise error
        else:
            await self.after(error)

    async def _after_held(self, error: Error) -> None:
        now = time.monotonic()
        since, pause = self._held or (now, 0.001)
        if now - since > PATIENCE:
            raise error
        self._held = (since, min(LONGEST_PAUSE, pause * 2))
        await self._kind.pause(pause)


def _is_of_connecting(error: Error) -> bool:
    """Whether an error may be of the connection for a call, and so say nothing of the call's fate."""
    if isinstance(error, LimitExceeded):
        # So the daemon turns away for whom it has no room.
        return error.limit in ("connections", "descriptors")
    return isinstance(error, (NoDaemon, NoRoom, SocketFailed))


class Tickets:
    """The tickets of one client, no two the same, and none the same as any other client's."""

    def __init__(self) -> None:
        self._random = os.urandom(16).hex()
        self._count = 0

    def next(self) -> str:
        self._count += 1
        # A process that was forked with a client in it counts on from the same number.
        return f"{self._random}.{os.getpid()}.{self._count}"
