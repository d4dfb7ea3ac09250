"""`Connection`: one connection to the daemon, on which one request is asked at a time."""

from __future__ import annotations

import errno
import os
import weakref
from typing import Any, Iterator, List, Optional, Tuple, Type

from . import _job
from ._errors import ConnectionLost, Error, NoDaemon, NoRoom, ProtocolBroken, SocketFailed, refusal
from ._handed import Handed, close_all
from ._inbox import Inbox, not_due
from ._job import Job, Request
from ._replies import Reader, done
from ._terms import Notice, Standing
from ._transport import Transport, has_anything, send_at_once

PAUSES = (0.001, 0.004, 0.015, 0.04, 0.09, 0.2, 0.35, 0.5, 0.8)
"""The pauses, in seconds, before a socket at which nobody listens is tried again, two seconds in all: a
daemon that restarts is back in less."""

LOST = (errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN)
"""What the kernel says where the connection is lost."""

_open: "weakref.WeakSet[Connection]" = weakref.WeakSet()


def _close_in_child() -> None:
    """A child of a fork has its parent's connections too, and would keep them open when the parent has
    ended, whose transactions would then go on. Its event loop knows nothing of this: that is the parent's.
    """
    for connection in list(_open):
        connection.close()


os.register_at_fork(after_in_child=_close_in_child)


class Connection:
    """One connection. Its end undoes what is not final."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._inbox = Inbox()
        self.in_step = True
        """Whether every request has had its answer whole, so that the next can be asked."""
        self._is_truncated = False
        self._owed = False
        _open.add(self)

    @classmethod
    async def open(cls, kind: Type[Transport], path: str, *, restarts: bool) -> Connection:
        """Connects, and waits for a daemon whose queue is full; and, if it `restarts`, for one that is
        about to come back.
        """
        pauses = iter(PAUSES)
        while True:
            try:
                return cls(await kind.connect(path))
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise NoRoom() from None
                is_away = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
                waits = isinstance(error, BlockingIOError) or (is_away and restarts)
                pause = next(pauses, None) if waits else None
                if pause is None:
                    raise NoDaemon(path, error) from None
            await kind.pause(pause)

    def close(self) -> None:
        """Closes it, and every descriptor that has come and is nobody's yet."""
        self.in_step = False
        _open.discard(self)
        self._transport.close()
        self._inbox.close_unnamed()

    def hang_up(self) -> None:
        """Closes it, also where another task waits for what comes: that finds it closed."""
        self._transport.wake()
        self.close()

    async def settle(self) -> bool:
        """Whether it still stands, and the next request can be asked."""
        if not self.in_step:
            return False
        try:
            if self._owed:
                self._owed = False
                await self._answer(done, ConnectionLost(False))
        except Error:
            return False
        # An end would read as nothing, and what comes unasked is nobody's answer.
        return self._inbox.is_empty() and not has_anything(self._transport.socket)

    async def ask_all(
        self, job: Job[Any], ticket: Optional[str] = None, *, begins: bool = False
    ) -> List[Any]:
        """Asks all requests of a job, one after another, up to the first that fails; with a ticket if it is
        final at once. If it `begins` a transaction, the Begin leaves together with the first of them, which
        saves a round trip.
        """
        replies: List[Any] = []
        try:
            requests = iter(job.requests)
            first = next(requests, None) if begins else None
            if first is not None:
                await self._ask_both(first, job, replies)
            for request in requests:
                await self._ask(request, request.message(ticket, job.deadline), replies)
        except BaseException:
            close_all(handed_in(replies))
            raise
        return replies

    async def tell(self, request: Request, ticket: Optional[str] = None) -> None:
        """Makes a call whose reply says nothing but that it was done."""
        await self._ask(request, request.message(ticket), [])

    async def watch(self, request: Request) -> None:
        """Begins a watch on this connection, which is good for nothing else from then on."""
        lost = await self._send(request.message(), ())
        notice, continues = await self._answer(request.due, lost)
        if not (isinstance(notice, Standing) and continues):
            raise self._broken()

    async def next_notice(self) -> Tuple[Notice, bool]:
        """The next notice of the watch, and whether more follow. Where it is cancelled, none is lost."""
        notice, continues = await self._answer(_job.watch("*").due, ConnectionLost(True))
        return notice, continues

    def abandon(self) -> None:
        """Asks for a Rollback without waiting for its answer. If that cannot be done, the connection is
        closed, which comes to the same.
        """
        self._owed = self.in_step and send_at_once(
            self._transport.socket, _job.rollback().message()
        )
        if not self._owed:
            self.close()

    async def _ask_both(self, request: Request, job: Job[Any], replies: List[Any]) -> None:
        message = request.message(None, job.deadline)
        begin = _job.begin().requests[0]
        lost = await self._send(begin.message() + message, request.fds)
        try:
            await self._answer(begin.due, lost)
        finally:
            # The answer to the request is yet to come. Where the Begin is refused, which it is in a
            # transaction alone, the connection's end undoes that with what the request did in it.
            self.in_step = False
        await self._hear(request, lost, replies)

    async def _ask(self, request: Request, message: bytes, replies: List[Any]) -> None:
        """Where it is cancelled half-way, the connection is out of step and its owner closes it, which
        undoes what is not final.
        """
        await self._hear(request, await self._send(message, request.fds), replies)

    async def _hear(self, request: Request, lost: Error, replies: List[Any]) -> None:
        continues = True
        while continues:
            reply, continues = await self._answer(request.due, lost)
            replies.append(reply)
            if request.asked:
                in_order = request.check(reply)
                if in_order is None:
                    raise self._broken()
                replies[-1] = in_order
            if continues and not request.more:
                raise self._broken()

    async def _send(self, message: bytes, fds: Any) -> ConnectionLost:
        """Tells what it means if no answer comes: what has left without its end is not carried out."""
        self.in_step = False
        rest = memoryview(message)
        while rest:
            try:
                sent = await self._transport.send(rest, fds)
            except OSError as error:
                # The daemon may have said why before it hung up, so that is still read.
                if error.errno in LOST:
                    return ConnectionLost(False)
                raise SocketFailed(error) from None
            rest, fds = rest[sent:], ()
        return ConnectionLost(True)

    async def _answer(self, due: Reader, lost: Error) -> Tuple[Any, bool]:
        """Reads until an answer is whole. Where it is cancelled, what has come waits in the inbox."""
        while True:
            if (answer := self._read(due)) is not None:
                return answer
            try:
                data, fds, is_truncated = await self._transport.receive()
            except OSError as error:
                if error.errno in LOST:
                    raise lost from None
                raise SocketFailed(error) from None
            self._is_truncated |= is_truncated
            self._inbox.feed(data, fds)
            if not data:
                raise lost

    def _read(self, due: Reader) -> Optional[Tuple[Any, bool]]:
        """The next answer, if it is whole."""
        message = self._inbox.next()
        if message is None:
            return None
        if self._is_truncated and due is not done:
            # The bytes are all there, only their descriptors are not; or those of the answer behind this
            # one, where this has none.
            self._is_truncated = False
            self._inbox.close_unnamed()
            self.in_step = self._inbox.is_empty()
            raise NoRoom()
        continues = message.get("continues") is True
        parameters = message.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise not_due()
        error = message.get("error")
        reply = due(parameters, self._inbox) if error is None else None
        self.in_step = self._inbox.is_empty() and not continues
        if error is not None:
            raise refusal(str(error), parameters)
        return reply, continues

    def _broken(self) -> ProtocolBroken:
        self.in_step = False
        return not_due()


def handed_in(replies: List[Any]) -> Iterator[Handed]:
    """All that was handed out."""
    for reply in replies:
        if isinstance(reply, list):
            yield from (one for one in reply if isinstance(one, Handed))
