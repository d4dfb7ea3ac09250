"""What moves bytes and descriptors, in two ways to wait: `Blocking`, and `Waiting` on asyncio."""

from __future__ import annotations

import abc
import array
import asyncio
import socket
import time
from typing import Any, Callable, Coroutine, List, NamedTuple, Optional, Sequence, Type, TypeVar

from ._handed import Handed
from ._inbox import MAX_DESCRIPTORS

READ = 64 << 10
"""How much one read takes at most: a few hundred entries of a List."""

R = TypeVar("R")
Self = TypeVar("Self", bound="Transport")


class Received(NamedTuple):
    """What one read gave: no byte at the connection's end."""

    data: bytes
    fds: List[Handed]
    is_truncated: bool
    """Whether descriptors came for which this process had no room: they are gone."""


class Transport(abc.ABC):
    """One connection's bytes and descriptors. Each method waits in the way of its kind; the blocking kind
    never lets the flow wait.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    @classmethod
    @abc.abstractmethod
    async def connect(cls: Type[Self], path: str) -> Self:
        """Connects to the daemon's socket."""

    @abc.abstractmethod
    async def send(self, data: memoryview, fds: Sequence[int]) -> int:
        """Waits until something can be sent, and sends once. Tells how many bytes the kernel accepted."""

    @abc.abstractmethod
    async def receive(self) -> Received:
        """Waits until something has come, and reads once. Where it is cancelled, nothing has been read."""

    @staticmethod
    @abc.abstractmethod
    async def pause(seconds: float) -> None:
        """Lets some time pass."""

    def wake(self) -> None:
        """Has a task that waits for it look what has come."""

    def close(self) -> None:
        """Closes it."""
        self.socket.close()


class Blocking(Transport):
    """Whose methods return when they are done."""

    @classmethod
    async def connect(cls: Type[Self], path: str) -> Self:
        while True:
            connected = _socket(path, blocking=True)
            try:
                # A connect that a signal interrupted has not happened, and Python takes it for one that
                # has.
                connected.getpeername()
                return cls(connected)
            except OSError:
                connected.close()
            except BaseException:
                connected.close()
                raise

    async def send(self, data: memoryview, fds: Sequence[int]) -> int:
        return _send(self.socket, data, fds)

    async def receive(self) -> Received:
        return _receive(self.socket)

    @staticmethod
    async def pause(seconds: float) -> None:
        time.sleep(seconds)


class Waiting(Transport):
    """Whose methods let the other tasks of the event loop run: whichever loop that is by then."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self._wake: Optional[Callable[[], None]] = None
        """Wakes the task that waits."""

    @classmethod
    async def connect(cls: Type[Self], path: str) -> Self:
        # unix(7): it connects at once or not at all; with a full queue at the other side: EAGAIN.
        return cls(_socket(path, blocking=False))

    async def send(self, data: memoryview, fds: Sequence[int]) -> int:
        while True:
            try:
                return _send(self.socket, data, fds)
            except BlockingIOError:
                await self._wait(for_room=True)

    async def receive(self) -> Received:
        while True:
            # Before each read, so that a daemon that has much to tell holds up no other task.
            await self._wait(for_room=False)
            try:
                return _receive(self.socket)
            except BlockingIOError:
                pass  # What has woken it was nothing.

    @staticmethod
    async def pause(seconds: float) -> None:
        await asyncio.sleep(seconds)

    def wake(self) -> None:
        if self._wake is not None:
            self._wake()

    async def _wait(self, *, for_room: bool) -> None:
        loop = asyncio.get_running_loop()
        number = self.socket.fileno()
        ready = loop.create_future()
        add, remove = loop.add_reader, loop.remove_reader
        if for_room:
            add, remove = loop.add_writer, loop.remove_writer

        def wake() -> None:
            # Now, since the number may be another's soon.
            self._wake = None
            remove(number)
            _wake(ready)

        add(number, _wake, ready)
        self._wake = wake
        try:
            await ready
        finally:
            if self._wake is not None:
                self._wake = None
                remove(number)


def now(flow: Coroutine[Any, Any, R]) -> R:
    """Runs a flow over a transport that never lets it wait."""
    try:
        flow.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    flow.close()
    raise AssertionError("nothing of the blocking transport ever waits in an event loop")


def _socket(path: str, *, blocking: bool) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Also for who has called `socket.setdefaulttimeout`.
        connected.setblocking(blocking)
        connected.connect(path)
        return connected
    except BaseException:
        connected.close()
        raise


def _send(connected: socket.socket, data: memoryview, fds: Sequence[int]) -> int:
    rights = array.array("i", fds)
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
    return connected.sendmsg([data], beside, socket.MSG_NOSIGNAL)


def _receive(connected: socket.socket) -> Received:
    # With room for the most that the kernel passes in one message, a lack of it is the process's. Python
    # itself would let them be inherited: MSG_CMSG_CLOEXEC has to be asked for.
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
    data, beside, flags, _ = connected.recvmsg(READ, room, socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for level, kind, rights in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(rights[: len(rights) - len(rights) % numbers.itemsize])
    fds = [Handed(number) for number in numbers]
    return Received(data, fds, bool(flags & socket.MSG_CTRUNC))


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


def has_anything(connected: socket.socket) -> bool:
    """Whether something stands there to be read, or the end does."""
    try:
        connected.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def send_at_once(connected: socket.socket, data: bytes) -> bool:
    """Sends without waiting, and tells whether all of it has left."""
    try:
        return connected.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
    except OSError:
        return False
