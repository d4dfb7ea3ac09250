"""`Watching`: what is behind a watch, in both ways to wait."""

from __future__ import annotations

from typing import Optional

from . import _job
from ._connection import Connection
from ._core import Core, undone
from ._errors import ConnectionLost, Error
from ._repetition import Repetitions
from ._terms import Notice, Standing
from ._turn import Turn


class Watching:
    """What is behind a watch: a connection of its own, and another when that is lost."""

    def __init__(self, core: Core, pattern: str) -> None:
        self._kind = core.kind
        self._socket = core.socket
        self._request = _job.watch(pattern)
        self._turn = Turn("watch")
        self._connection: Optional[Connection] = None
        self._has_ended = True

    async def begin(self) -> None:
        """Returns when the watch stands."""
        with self._turn:
            await self._stand()
            self._has_ended = False

    async def next(self) -> Optional[Notice]:
        """The next notice; Standing when the watch had to begin anew. After an error or the watch's end,
        none. Where it is cancelled, no notice is lost.
        """
        with self._turn:
            if self._has_ended:
                return None
            try:
                notice = await self._wait()
            except Error:
                if self._has_ended:
                    # By another task, in the middle of this.
                    return None
                self.end()
                raise
            return notice

    def end(self) -> None:
        self._has_ended = True
        if self._connection is not None:
            self._connection.hang_up()
            self._connection = None

    async def _wait(self) -> Notice:
        if self._connection is not None:
            try:
                notice, continues = await self._connection.next_notice()
                if not continues:
                    self.end()
                return notice
            except ConnectionLost:
                self._connection.close()
                self._connection = None
        await self._stand()
        return Standing()

    async def _stand(self) -> None:
        """Connects and has the watch begin, again if a daemon that was about to end had taken it."""
        repetitions = Repetitions(self._kind)
        while True:
            connection = await Connection.open(self._kind, self._socket, restarts=True)
            try:
                await connection.watch(self._request)
                self._connection = connection
                return
            except Error as error:
                connection.close()
                failure = undone(error)
            except BaseException:
                connection.close()
                raise
            await repetitions.after(failure)
