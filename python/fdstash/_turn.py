"""`Turn`: who may use a client, a transaction or a watch just now."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Optional, Type


class Turn:
    """Whose turn it is with a client or a watch: one call's, or one transaction's, and never two at once."""

    def __init__(self, whose: str) -> None:
        self._whose = whose
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            # Who had it is a thread of the parent's, which is not here.
            self._lock = threading.Lock()
            self._process = os.getpid()
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                f"this {self._whose} is in use, by a call in another thread or task or by an open "
                "transaction: wait for that, or make another"
            )

    def __exit__(
        self,
        kind: Optional[Type[BaseException]] = None,
        error: Optional[BaseException] = None,
        traceback: Optional[TracebackType] = None,
    ) -> None:
        if self._process == os.getpid():
            self._lock.release()
