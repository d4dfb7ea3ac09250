"""The client for asyncio: `fdstash.Client`, whose calls let other tasks run while they wait.

    stash = await fdstash.aio.Client.connect()

It uses no threads. A call may be cancelled at any time. Its connection is then closed, and what is not final
undone; the next call connects anew. A give or a close that was already sent may have been carried out. What
had arrived for a take or a reopen while the daemon was making it final is not lost: `Client.unconfirmed` has
it.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import AsyncIterator, Awaitable, Callable, Iterable, List, Optional, Type, TypeVar, Union

from . import _job
from ._address import default_socket
from ._core import Core, Staged
from ._errors import Error
from ._handed import Handed, close_all
from ._repetition import Repetitions
from ._terms import Entry, Explanation, Gift, Info, Notice, Reopening, Statistics, Verb
from ._transport import Waiting
from ._watching import Watching

__all__ = ["Client", "Transaction", "Watch"]

R = TypeVar("R")


class Client:
    """A connection to the daemon, renewed when it is lost.

    It is of one task at a time: a call while another is under way, or beside an open transaction, raises
    RuntimeError and does nothing. Tasks that are to work at once have a client each.

    At the end of an `async with`, or by `disconnect`, the connection is closed; what it gave as ephemeral
    ends.
    """

    def __init__(self, core: Core) -> None:
        """Not to be called: `connect` and `connect_to` make one."""
        self._core = core

    @classmethod
    async def connect(cls) -> Client:
        """Connects to the daemon at `default_socket`. Raises NoDaemon if nobody can be reached there."""
        return await cls.connect_to(default_socket())

    @classmethod
    async def connect_to(cls, socket: Union[str, os.PathLike[str]]) -> Client:
        """Connects to the daemon at a socket. Raises NoDaemon if nobody can be reached there."""
        core = Core(Waiting, socket)
        await core.connect()
        return cls(core)

    def disconnect(self) -> None:
        """Closes the connection, and every descriptor that `unconfirmed` would hand out. A later call
        connects anew.
        """
        self._core.disconnect()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.disconnect()

    def __repr__(self) -> str:
        return f"<fdstash.aio.Client {self.socket!r}>"

    @property
    def socket(self) -> str:
        """The socket that it is connected to."""
        return self._core.socket

    async def give(self, gifts: Iterable[Gift], *, exclusive: bool = False) -> List[str]:
        """As `fdstash.Client.give`."""
        return await self._core.run(_job.give(gifts, exclusive))

    async def take(self, names: Iterable[str], *, wait: float = 0) -> List[Handed]:
        """As `fdstash.Client.take`. Cancelled, the stash keeps them all, but for those that `unconfirmed`
        has.
        """
        return await self._core.run(_job.take(names, wait))

    def unconfirmed(self) -> List[Handed]:
        """As `fdstash.Client.unconfirmed`."""
        return self._core.take_unconfirmed()

    async def copy(
        self, names: Iterable[str], *, fresh: bool = False, wait: float = 0
    ) -> List[Handed]:
        """As `fdstash.Client.copy`."""
        return await self._core.run(_job.copy(names, fresh, wait))

    async def close(self, names: Iterable[str]) -> None:
        """As `fdstash.Client.close`. (The client itself has `disconnect`.)"""
        await self._core.run(_job.close(names))

    async def reopen(self, reopenings: Iterable[Reopening]) -> List[Handed]:
        """As `fdstash.Client.reopen`."""
        return await self._core.run(_job.reopen(reopenings))

    async def list(self, pattern: str = "*") -> List[Entry]:
        """As `fdstash.Client.list`."""
        return await self._core.run(_job.list_entries(pattern))

    async def statistics(self) -> Statistics:
        """As `fdstash.Client.statistics`."""
        return await self._core.run(_job.statistics())

    async def explain_policy(
        self, uid: int, gids: Iterable[int], verb: Verb, name: str
    ) -> Explanation:
        """As `fdstash.Client.explain_policy`."""
        return await self._core.run(_job.explain_policy(uid, gids, verb, name))

    async def info(self) -> Info:
        """As `fdstash.Client.info`."""
        return await self._core.run(_job.info())

    def transaction(self) -> Transaction:
        """Makes a transaction, which the `async with` that it is for begins: what is done in it becomes
        final together at the end of the `async with`, or, where that ends by an exception, not at all.
        """
        return Transaction(self._core)

    async def transact(self, act: Callable[[Transaction], Awaitable[R]]) -> R:
        """As `fdstash.Client.transact`."""
        repetitions = Repetitions(Waiting)
        while True:
            transaction = Transaction(self._core)
            try:
                async with transaction:
                    done = await act(transaction)
                return done
            except Error as error:
                transaction._end_of_round()
                failure = error
            except BaseException:
                transaction._end_of_round()
                raise
            await repetitions.after_undone(failure)

    def watch(self, pattern: str = "*") -> Watch:
        """Makes a watch of the entries whose names match, on a connection of its own, which the `async
        with` that it is for begins: every change from then on is told.
        """
        return Watch(self._core, pattern)


class Transaction:
    """As `fdstash.Transaction`, with `async with`. Where that ends by a cancellation, it is rolled back
    without waiting for the daemon.
    """

    def __init__(self, core: Core) -> None:
        """Not to be called: `Client.transaction` makes one."""
        self._core = core
        self._staged = Staged(core)
        self._handed: List[Handed] = []

    async def __aenter__(self) -> Transaction:
        await self._staged.begin()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if not self._staged.is_open:
            return
        if kind is None:
            await self.commit()
        elif issubclass(kind, Exception):
            await self.rollback()
        else:
            self._staged.abandon()

    async def give(self, gifts: Iterable[Gift], *, exclusive: bool = False) -> List[str]:
        """As `fdstash.Transaction.give`."""
        return await self._staged.run(_job.give(gifts, exclusive))

    async def take(self, names: Iterable[str], *, wait: float = 0) -> List[Handed]:
        """As `fdstash.Transaction.take`."""
        return self._keep(await self._staged.run(_job.take(names, wait)))

    async def copy(
        self, names: Iterable[str], *, fresh: bool = False, wait: float = 0
    ) -> List[Handed]:
        """As `fdstash.Transaction.copy`."""
        return self._keep(await self._staged.run(_job.copy(names, fresh, wait)))

    async def close(self, names: Iterable[str]) -> None:
        """As `fdstash.Transaction.close`."""
        await self._staged.run(_job.close(names))

    async def reopen(self, reopenings: Iterable[Reopening]) -> List[Handed]:
        """As `fdstash.Transaction.reopen`."""
        return self._keep(await self._staged.run(_job.reopen(reopenings)))

    async def commit(self) -> None:
        """As `fdstash.Transaction.commit`. Cancelled, it may have been done, and nobody here knows."""
        await self._staged.commit()

    async def rollback(self) -> None:
        """As `fdstash.Transaction.rollback`."""
        await self._staged.rollback()

    def _keep(self, handed: List[Handed]) -> List[Handed]:
        self._handed += handed
        return handed

    def _end_of_round(self) -> None:
        """What `transact` does about what was handed out, where it was not committed."""
        if self._staged.is_in_doubt:
            self._core.keep_unconfirmed(self._handed)
        else:
            close_all(self._handed)


class Watch(AsyncIterator[Notice]):
    """As `fdstash.Watch`, with `async with` and `async for`. Where the wait for a notice is cancelled, none
    is lost.
    """

    def __init__(self, core: Core, pattern: str) -> None:
        """Not to be called: `Client.watch` makes one."""
        self._watching = Watching(core, pattern)

    async def __aenter__(self) -> Watch:
        await self._watching.begin()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._watching.end()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Notice:
        notice = await self._watching.next()
        if notice is None:
            raise StopAsyncIteration
        return notice
