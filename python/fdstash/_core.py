"""`Core`: the flow of every call, once for both ways to wait: which connection it takes, when it is sent
again, and how what was not finished is undone.
"""

from __future__ import annotations

import os
from typing import Any, Awaitable, Callable, List, Optional, Type, TypeVar, Union

from . import _job
from ._connection import Connection, handed_in
from ._errors import (
    CallTooLong,
    ConnectionLost,
    Error,
    NoDaemon,
    ProtocolBroken,
    Refused,
    RolledBack,
    TransactionState,
)
from ._handed import Handed, close_all
from ._job import Job
from ._repetition import Repetitions, Tickets
from ._transport import Transport
from ._turn import Turn

R = TypeVar("R")
D = TypeVar("D")


class Core:
    """What is behind a client."""

    def __init__(self, kind: Type[Transport], socket: Union[str, os.PathLike[str]]) -> None:
        self.kind = kind
        self.socket = os.fspath(socket)
        self.turn = Turn("client")
        self.tickets = Tickets()
        self._connection: Optional[Connection] = None
        """None while a call has it, so that a call which is cancelled half-way closes it; then what is not
        final is undone by the daemon, and the next call connects anew."""
        self._was_there = False
        """Whether the daemon was there when it was last looked for: then one that is away restarts."""
        self._arrived: List[Any] = []
        """The replies of what has arrived, while the daemon's answer to its Commit has not."""
        self._unconfirmed: List[Handed] = []
        """What had arrived when that answer never came."""

    async def connect(self) -> None:
        self._connection = await self.take_connection()

    def disconnect(self) -> None:
        """Closes the connection, and what nobody has fetched."""
        with self.turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            close_all(self.take_unconfirmed())

    async def run(self, job: Job[R]) -> R:
        """Does a job, and does it exactly once, however often its connection is lost."""
        with self.turn:
            # What a cancelled call has left there is not this one's.
            self._set_aside()
            ticket = self.tickets.next()
            if not job.requests:
                replies: List[Any] = []
            elif job.is_together:
                replies = await self._run_together(job, ticket)
            else:
                replies = await self._run_at_once(job, ticket)
            return job.result(replies)

    def take_unconfirmed(self) -> List[Handed]:
        """What arrived for a take or a reopen whose end the daemon could not confirm."""
        self._set_aside()
        unconfirmed, self._unconfirmed = self._unconfirmed, []
        return unconfirmed

    def keep_unconfirmed(self, handed: List[Handed]) -> None:
        self._unconfirmed += (one for one in handed if not one.closed)

    async def take_connection(self) -> Connection:
        """The connection if it still stands, or a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                if await connection.settle():
                    return connection
            except BaseException:
                connection.close()
                raise
            connection.close()
        try:
            connection = await Connection.open(self.kind, self.socket, restarts=self._was_there)
        except NoDaemon:
            self._was_there = False
            raise
        self._was_there = True
        return connection

    async def use(self, connection: Connection, act: Callable[[Connection], Awaitable[D]]) -> D:
        """Does something on a connection, and keeps that if it is in step. Whatever is no error of the
        daemon's or the connection's, as a cancellation, closes it.
        """
        try:
            done = await act(connection)
        except Error:
            self.put_back(connection)
            raise
        except BaseException:
            connection.close()
            raise
        self.put_back(connection)
        return done

    def put_back(self, connection: Connection) -> None:
        if connection.in_step:
            self._connection = connection
        else:
            connection.close()

    async def begin(self) -> Connection:
        """Begins a transaction, and hands over the connection on which it is open."""
        try:
            await self._run_at_once(_job.begin(), "")
            connection, self._connection = self._connection, None
        except Error:
            raise
        except BaseException:
            # Whatever came in between, no other call may get into the transaction.
            if self._connection is not None:
                self._connection.close()
            raise
        if connection is None:
            raise ConnectionLost(False)
        return connection

    async def is_committed(self, ticket: str) -> bool:
        """Whether a Commit has happened whose answer was lost."""
        connection = await self.take_connection()
        try:
            await self.use(connection, lambda on: on.tell(_job.commit(), ticket))
        except TransactionState:
            return False
        return True

    async def _run_at_once(self, job: Job[Any], ticket: str) -> List[Any]:
        """One request, which by its ticket is known when it comes again."""
        repetitions = Repetitions(self.kind)
        while True:
            try:
                connection = await self.take_connection()
                return await self.use(connection, lambda on: on.ask_all(job, ticket))
            except Error as error:
                failure = error if job.changes else undone(error)
            await repetitions.after(failure)

    async def _run_together(self, job: Job[Any], ticket: str) -> List[Any]:
        """A transaction of the library's own. Where the answer to its Commit is lost, its ticket tells what
        became of it; and if it never was, all is done anew.
        """
        repetitions = Repetitions(self.kind)
        while True:
            try:
                if not repetitions.is_in_doubt:
                    await self._transact(job, ticket)
                elif not await self.is_committed(ticket):
                    # What has arrived is let go of only when it has arrived once more: a daemon that lost
                    # its memory would say the same.
                    repetitions.is_in_doubt = False
                    continue
                replies, self._arrived = self._arrived, []
                return replies
            except Error as error:
                failure = error
            await repetitions.after(failure)

    async def _transact(self, job: Job[Any], ticket: str) -> None:
        connection = await self.take_connection()
        await self.use(connection, lambda on: self._transact_on(on, job, ticket))

    async def _transact_on(self, connection: Connection, job: Job[Any], ticket: str) -> None:
        """All arrives and is checked before the Commit is sent."""
        try:
            replies = await connection.ask_all(job, begins=True)
        except Error as error:
            await roll_back(connection)
            raise undone(error) from None
        # From here until the answer, nobody here knows whose they are. They stay reachable also where
        # this is cancelled.
        before, self._arrived = self._arrived, replies
        close_all(handed_in(before))
        try:
            await commit(connection, ticket)
        except Error as error:
            if _is_certainly_undone(error):
                close_all(handed_in(self._arrived))
                self._arrived = []
            raise

    def _set_aside(self) -> None:
        self._unconfirmed += handed_in(self._arrived)
        self._arrived = []


class Staged:
    """The caller's own transaction. Its connection is never replaced by another."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._turn = Turn("transaction")
        self._connection: Optional[Connection] = None
        self.is_open = False
        self.is_in_doubt = False
        """Whether it may have been committed, and nobody here knows."""

    async def begin(self) -> None:
        self._core.turn.__enter__()
        try:
            self._connection = await self._core.begin()
        except BaseException:
            self._core.turn.__exit__()
            raise
        self.is_open = True

    async def run(self, job: Job[R]) -> R:
        """Does a job within the transaction. Where only a part of it can be undone, or what it handed out
        did not arrive, all is: a Commit must not make that final.
        """
        with self._turn:
            connection = self._take_connection()
            try:
                replies = await connection.ask_all(job)
            except Error as error:
                self._connection = connection
                if len(job.requests) != 1 or not isinstance(error, (Refused, CallTooLong)):
                    self._abandon()
                raise undone(error) from None
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            return job.result(replies)

    async def commit(self) -> None:
        """Makes all of it final. What was not, cannot be done anew here: its calls are the caller's."""
        with self._turn:
            try:
                connection = self._take_connection()
                ticket = self._core.tickets.next()
                self.is_in_doubt = True
                try:
                    await self._core.use(connection, lambda on: commit(on, ticket))
                except Error as error:
                    failure: Optional[Error] = error
                else:
                    failure = None
                if failure is not None:
                    await self._resolve(failure, ticket)
                self.is_in_doubt = False
            except Error as error:
                self.is_in_doubt = not _is_certainly_undone(error)
                raise
            finally:
                self._end()

    async def _resolve(self, failure: Error, ticket: str) -> None:
        """Learns from the daemon what became of a Commit that failed so; raises unless it was done."""
        repetitions = Repetitions(self._core.kind)
        await repetitions.after(failure)
        while repetitions.is_in_doubt:
            try:
                if await self._core.is_committed(ticket):
                    return
                break
            except Error as error:
                failure = error
            await repetitions.after(failure)
        raise ConnectionLost(False)

    async def rollback(self) -> None:
        """Undoes all of it, and waits until it is, as far as the connection allows."""
        with self._turn:
            try:
                connection, self._connection = self._connection, None
                if connection is not None:
                    await self._core.use(connection, roll_back)
            finally:
                self._end()

    def abandon(self) -> None:
        """Undoes all of it without waiting: what is asked next on this connection comes after it."""
        with self._turn:
            self._abandon()
            self._end()

    def _abandon(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()
            self._core.put_back(connection)

    def _take_connection(self) -> Connection:
        connection, self._connection = self._connection, None
        if not self.is_open:
            raise RuntimeError("the transaction is not open")
        # One that is out of step here was closed by a fork: it is the parent's.
        if connection is None or not connection.in_step:
            raise RolledBack()
        return connection

    def _end(self) -> None:
        if self.is_open:
            self.is_open = False
            self._core.turn.__exit__()


async def commit(connection: Connection, ticket: str) -> None:
    """A refused Commit leaves nothing open."""
    try:
        await connection.tell(_job.commit(), ticket)
    except Error:
        await roll_back(connection)
        raise


async def roll_back(connection: Connection) -> None:
    """Waits until nothing of the transaction is left, as far as the connection allows."""
    if connection.in_step:
        try:
            await connection.tell(_job.rollback())
        except Error:
            pass  # The connection is then closed, or there was nothing to undo.


def undone(error: Error) -> Error:
    """What was not committed is undone with its connection."""
    return ConnectionLost(False) if isinstance(error, ConnectionLost) else error


def _is_certainly_undone(error: Error) -> bool:
    if isinstance(error, ConnectionLost):
        return not error.may_be_done
    return not isinstance(error, ProtocolBroken)
