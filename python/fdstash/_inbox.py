"""`Inbox`: NUL-terminated messages and the descriptors beside them, bounded. It owns no socket."""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Deque, Dict, Iterable, List, Optional

from ._errors import ProtocolBroken
from ._handed import Handed, close_all

MAX_DESCRIPTORS = 253
"""The most descriptors beside one message, which is the kernel's limit (SCM_MAX_FD)."""

MAX_MESSAGE = 1 << 20
"""The most bytes of one message to the daemon, its NUL included."""

MAX_ANSWER = 16 << 20
"""The most bytes of one message of the daemon."""

MAX_WAITING = 3 * MAX_DESCRIPTORS
"""The most descriptors that wait for a message to name them: those of a message that is not whole yet, of
the `sendmsg` that its rest comes with, and of the one behind it, which the same read may reach."""


def not_due() -> ProtocolBroken:
    """What a message is that is no reply, or not the one that was due."""
    return ProtocolBroken("a message that is not the reply that was due")


class Inbox:
    """What has been read and is not yet understood. It owns the descriptors that came.

    They queue in the order of their arrival, and each message takes as many as it names.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._supply: Deque[Handed] = deque()

    def feed(self, data: bytes, fds: Iterable[Handed]) -> None:
        """Takes in what one read gave, when the messages of the last have all been asked for.

        Raises ProtocolBroken if descriptors are left that no message named: to go on would be to guess
        whose they are.
        """
        stranded = not self._buffer and bool(self._supply)
        waiting = len(self._supply)
        self._supply.extend(fds)
        self._buffer += data
        came = len(self._supply) > waiting
        if (came and stranded) or len(self._supply) > MAX_WAITING:
            raise ProtocolBroken("descriptors that no message names")

    def next(self) -> Optional[Dict[str, Any]]:
        """The next whole message, if there is one.

        Raises ProtocolBroken if what stands there is none, or too long to be one.
        """
        end = self._buffer.find(0, self._scanned)
        self._scanned = len(self._buffer) if end < 0 else end
        if self._scanned >= MAX_ANSWER:
            raise ProtocolBroken(f"a message of more than {MAX_ANSWER} bytes")
        if end < 0:
            return None
        text = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._scanned = 0
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise not_due() from None
        if not isinstance(message, dict):
            raise not_due()
        return message

    def take(self, order: List[int]) -> List[Handed]:
        """As many descriptors as `order` has, each in the place where its number stands there.

        Raises ProtocolBroken, and takes none, unless so many are there and each number from 0 on stands
        there once.
        """
        if len(order) > len(self._supply) or sorted(order) != list(range(len(order))):
            raise not_due()
        fds = [self._supply.popleft() for _ in order]
        return [fds[index] for index in order]

    def is_empty(self) -> bool:
        """Whether nothing has come that is not yet understood."""
        return not self._buffer and not self._supply

    def close_unnamed(self) -> None:
        """Closes every descriptor that no message has named."""
        while self._supply:
            close_all([self._supply.popleft()])
