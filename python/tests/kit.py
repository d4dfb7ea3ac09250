"""What the tests are made of: daemons, which the program that runs them starts and ends for them, and a
`TestCase` in which no descriptor leaks and nothing fails unseen.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import json
import os
import socket
import sys
import tempfile
import threading
import time
import unittest
from typing import Any, Callable, Dict, List, Set, Tuple

import fdstash

SOON = 30.0


class Daemon:
    """A daemon of the test's own."""

    def __init__(self, *arguments: str) -> None:
        self._number, self.socket = _ask("spawn", *arguments).split(" ", 1)

    def kill_server(self) -> None:
        """Ends its server without a warning, and returns when the next one serves."""
        _ask("kill_server", self._number)

    def upgrade(self) -> None:
        """Has it replaced by what stands at its path."""
        _ask("upgrade", self._number)

    def kill(self) -> None:
        """Ends all of it without a warning."""
        _ask("kill", self._number)

    def end(self) -> None:
        _ask("end", self._number)

    def client(self) -> fdstash.Client:
        return fdstash.Client.connect_to(self.socket)


def _ask(*words: str) -> str:
    print(*words, flush=True)
    return sys.stdin.readline().rstrip("\n")


class TestCase(unittest.TestCase):
    """A test in a folder of its own, after which the process has the descriptors that it had before."""

    def setUp(self) -> None:
        # None waits for ever: one that hangs says where.
        faulthandler.dump_traceback_later(4 * SOON, exit=True)
        self.addCleanup(faulthandler.cancel_dump_traceback_later)
        self._unraisable: List[str] = []
        gc.collect()
        before = open_descriptors()
        self.addCleanup(self._check, before, sys.unraisablehook)
        sys.unraisablehook = lambda it: self._unraisable.append(repr(it.exc_value))
        folder = tempfile.TemporaryDirectory(prefix="fdstash-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def _check(self, before: Set[str], hook: Callable[[Any], None]) -> None:
        gc.collect()
        sys.unraisablehook = hook
        self.assertEqual(self._unraisable, [])
        self.assertEqual(sorted(open_descriptors() - before), [])

    def daemon(self, *arguments: str) -> Daemon:
        daemon = Daemon(*arguments)
        self.addCleanup(daemon.end)
        return daemon

    def client(self, daemon: Daemon) -> fdstash.Client:
        client = daemon.client()
        self.addCleanup(client.disconnect)
        return client

    def file(self, name: str = "disk", content: bytes = b"0123456789") -> Any:
        path = os.path.join(self.folder, name)
        with open(path, "wb") as made:
            made.write(content)
        file = open(path, "r+b", buffering=0)
        self.addCleanup(file.close)
        return file


def open_descriptors() -> Set[str]:
    """What this process has open: numbers and what they refer to."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:
            pass  # That of the folder itself.
    return found


def identity(fd: Any) -> Tuple[int, int]:
    """Which file a descriptor refers to: device and inode."""
    stat = os.fstat(fd if isinstance(fd, int) else fd.fileno())
    return stat.st_dev, stat.st_ino


def names(entries: List[fdstash.Entry]) -> List[str]:
    return [entry.name for entry in entries]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.002)


class Relay:
    """Stands between a client and a daemon, and cuts the connection once, at one call: before the call is
    passed on, or after the daemon has done it.
    """

    def __init__(self, daemon: str, path: str, method: str, *, done: bool, ends: bool) -> None:
        self._daemon, self._method, self._done, self._ends = daemon, method, done, ends
        self.cuts = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._stop()
        for thread in self._threads:
            thread.join(SOON)
        self._listener.close()

    def _stop(self) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            assert error.errno == errno.ENOTCONN

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=[client])
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._daemon)
            # One way at a time, as the client asks: each call is passed on, and then its answers.
            while calls := _receive(client):
                data, fds = calls
                methods = [json.loads(call)["method"] for call in data.split(b"\0")[:-1]]
                cuts = self.cuts == 0 and any(it.endswith(self._method) for it in methods)
                if cuts and not self._done:
                    return self._cut(fds)
                socket.send_fds(server, [data], fds)
                _close(fds)
                answers = 0
                while answers < len(methods):
                    answer = _receive(server)
                    if not answer:
                        return
                    answers += answer[0].count(b"\0")
                    if cuts and answers == len(methods):
                        return self._cut(answer[1])
                    if not cuts:
                        socket.send_fds(client, [answer[0]], answer[1])
                    _close(answer[1])

    def _cut(self, fds: List[int]) -> None:
        _close(fds)
        self.cuts += 1
        if self._ends:
            self._stop()


def _receive(connection: socket.socket) -> Any:
    """One read's worth of whole messages; none at the end."""
    data, fds = b"", []
    while not data.endswith(b"\0"):
        more, came, _, _ = socket.recv_fds(connection, 1 << 20, 253)
        fds += came
        if not more:
            _close(fds)
            return None
        data += more
    return data, fds


def _close(fds: List[int]) -> None:
    for fd in fds:
        os.close(fd)


def reply(parameters: Dict[str, Any], **more: Any) -> bytes:
    """A reply of a daemon, as bytes."""
    return json.dumps({"parameters": parameters, **more}).encode() + b"\0"
