"""`Handed`: one descriptor, and who closes it."""

from __future__ import annotations

import os
import warnings
from types import TracebackType
from typing import Iterable, Optional, Type


class Handed:
    """One descriptor that was handed out. It owns it: closes it at the end of a `with`, by `close`, or at
    last when nobody refers to it any more (with a ResourceWarning, as files do); `detach` hands it on.

    It is close-on-exec from the first instant. It has a `fileno`, so `os.fstat(handed.fileno())`,
    `select`, and what takes either a number or a file take it as it is.
    """

    __slots__ = ("_fd", "name")

    name: str
    """Under which name it is, or was, kept."""

    def __init__(self, fd: int, name: str = "") -> None:
        self._fd = fd
        self.name = name

    def fileno(self) -> int:
        """The number of the descriptor, which stays this object's.

        Raises ValueError if it is closed or detached.
        """
        if self._fd < 0:
            raise ValueError(f"the descriptor of {self.name!r} is closed or detached")
        return self._fd

    def detach(self) -> int:
        """Hands the descriptor on: the caller has to close its number, and this object has none any more.

        Raises ValueError if it is closed or detached already.
        """
        fd = self.fileno()
        self._fd = -1
        return fd

    def close(self) -> None:
        """Closes the descriptor, unless it is closed or detached already."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @property
    def closed(self) -> bool:
        """Whether it is closed or detached."""
        return self._fd < 0

    def __enter__(self) -> Handed:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Not there if `__init__` was not reached.
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        fd = "closed" if self.closed else f"fd={self._fd}"
        return f"<fdstash.Handed {self.name!r} {fd}>"


def close_all(handed: Iterable[Handed]) -> None:
    """Closes all of them; whatever the kernel says of one, the others too."""
    for one in handed:
        try:
            one.close()
        except OSError:
            pass  # It is closed all the same: what a close reports is of what was written before.
