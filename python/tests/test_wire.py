"""What a daemon says, byte by byte: in pieces, too long, or not at all as it should."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import unittest
from typing import Callable, Iterator, List

from kit import SOON, TestCase, reply

import fdstash
import fdstash.aio
from fdstash._inbox import MAX_ANSWER, Inbox

Answers = Callable[[socket.socket, bytes], None]

ENTRY = {
    "name": "a",
    "kind": "regular",
    "access": "read",
    "flags": ["sync"],
    "drifted": [],
    "mayReopen": "read",
    "device": 1,
    "inode": 2,
    "giver": {"uid": 1, "gid": 2, "pid": 3},
    "givenAtUSec": 4,
    "revision": 5,
}


class Answering(TestCase):
    @contextlib.contextmanager
    def daemon_that(self, answers: Answers) -> Iterator[str]:
        """Where somebody listens who answers each message so."""
        path = os.path.join(self.folder, "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        listener.settimeout(SOON)
        ends = threading.Event()

        def serve() -> None:
            while not ends.is_set():
                with contextlib.suppress(OSError), listener.accept()[0] as client:
                    client.settimeout(SOON)
                    rest = b""
                    while more := client.recv(1 << 20):
                        *messages, rest = (rest + more).split(b"\0")
                        for message in messages:
                            answers(client, message)

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield path
        finally:
            ends.set()
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(path)
            server.join()
            listener.close()
            os.remove(path)

    @contextlib.contextmanager
    def client_of(self, answers: Answers) -> Iterator[fdstash.Client]:
        with self.daemon_that(answers) as path, fdstash.Client.connect_to(path) as stash:
            yield stash

    def test_a_message_in_single_bytes_is_one(self) -> None:
        handed = reply({"entries": [{"name": "a", "fileDescriptor": 0}]})

        def answers(client: socket.socket, message: bytes) -> None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            with open("/dev/null") as null:
                socket.send_fds(client, [handed[:1]], [null.fileno()])
            for at in range(1, len(handed)):
                client.sendall(handed[at : at + 1])

        async def wait(path: str) -> List[fdstash.Handed]:
            async with await fdstash.aio.Client.connect_to(path) as stash:
                return await stash.copy(["a"])

        with self.daemon_that(answers) as path:
            with fdstash.Client.connect_to(path) as stash:
                handed_out = stash.copy(["a"])
            handed_out += asyncio.run(wait(path))

        for one in handed_out:
            self.assertEqual(os.fstat(one.fileno()).st_rdev, os.stat("/dev/null").st_rdev)
            one.close()

    def test_a_list_in_parts_of_sixteen_megabytes_is_one(self) -> None:
        part = [{**ENTRY, "name": "x", "labels": {"long": "x" * 15_000_000}}]

        def answers(client: socket.socket, message: bytes) -> None:
            client.sendall(reply({"entries": part}, continues=True))
            client.sendall(reply({"entries": [ENTRY]}))

        with self.client_of(answers) as stash:
            first, last = stash.list()

        self.assertEqual(len(first.labels["long"]), 15_000_000)
        self.assertEqual((last.name, last.flags, last.labels), ("a", {fdstash.Flag.SYNC}, {}))
        self.assertIsNone(last.target)

    def test_what_breaks_the_protocol_is_told_and_closes_the_connection(self) -> None:
        two = {"entries": [{"name": "a", "fileDescriptor": 0}, {"name": "b", "fileDescriptor": 0}]}
        other = {"entries": [{"name": "b", "fileDescriptor": 0}]}
        one = {"entries": [{"name": "a", "fileDescriptor": 0}]}
        far = {"entries": [{"name": "a", "fileDescriptor": 7}]}
        negative = {"entries": [{"name": "a", "fileDescriptor": -1}]}
        for message, descriptors in [
            (b"no JSON\0", 0),
            (b"[]\0", 0),
            (b"[" * 100_000 + b"\0", 0),
            (b'{"parameters": []}\0', 1),
            (reply({}), 1),
            (reply({"entries": [{"name": "a"}]}), 1),
            (reply({"entries": [{"name": 7, "fileDescriptor": 0}]}), 1),
            (reply(two), 2),
            (reply(other), 1),
            (reply(one), 0),
            (reply(far), 1),
            (reply(negative), 1),
            (reply(one, continues=True), 1),
            (reply(one)[:-1] + b" " * MAX_ANSWER, 1),
        ]:

            def answers(
                client: socket.socket, _: bytes, message: bytes = message, count: int = descriptors
            ) -> None:
                null = os.open("/dev/null", os.O_RDONLY)
                sent = socket.send_fds(client, [message], [null] * count) if count else 0
                os.close(null)
                client.sendall(message[sent:])

            with self.subTest(message[:60]), self.client_of(answers) as stash:
                with self.assertRaises(fdstash.ProtocolBroken) as caught:
                    stash.copy(["a"])
                self.assertIn("the daemon broke the protocol", str(caught.exception))

    def test_surplus_descriptors_are_nobodys(self) -> None:
        one = reply({"entries": [{"name": "a", "fileDescriptor": 0}]})
        connections = set()

        def answers(client: socket.socket, message: bytes) -> None:
            connections.add(client)
            with open("/dev/null") as null:
                socket.send_fds(client, [one], [null.fileno()] * 2)

        with self.client_of(answers) as stash:
            for _ in range(2):
                stash.copy(["a"])[0].close()

        # What is left over would be taken for the next answer's.
        self.assertEqual(len(connections), 2)

    def test_an_error_of_a_later_version_is_told_as_it_is(self) -> None:
        def answers(client: socket.socket, message: bytes) -> None:
            client.sendall(b'{"error": "org.fdstash.Stash.Tired", "parameters": {"hours": 3}}\0')

        with self.client_of(answers) as stash:
            with self.assertRaises(fdstash.UnknownRefusal) as caught:
                stash.list()

        self.assertEqual(caught.exception.error, "org.fdstash.Stash.Tired")
        self.assertEqual(caught.exception.parameters, {"hours": 3})

    def test_a_call_that_ends_the_daemon_each_time_is_not_repeated_for_ever(self) -> None:
        calls: List[bytes] = []

        def answers(client: socket.socket, message: bytes) -> None:
            calls.append(message)
            client.shutdown(socket.SHUT_RDWR)

        with self.client_of(answers) as stash, open("/dev/null") as null:
            with self.assertRaises(fdstash.ConnectionLost) as caught:
                stash.give([fdstash.Gift("a", null)])

        self.assertTrue(caught.exception.may_be_done)
        self.assertEqual(len(calls), 17)
        # By one ticket, so that a daemon that has done it does it no more.
        self.assertEqual(len(set(calls)), 1)
        self.assertIn(b'"ticket":"', calls[0])


class Boxes(unittest.TestCase):
    def test_messages_are_the_same_however_they_are_cut(self) -> None:
        text = b'{"a": 1}\0{"b": "\\u0000"}\0{"c": ""}\0'
        for size in range(1, len(text) + 1):
            inbox, found = Inbox(), []
            for at in range(0, len(text), size):
                inbox.feed(text[at : at + size], [])
                while (message := inbox.next()) is not None:
                    found.append(message)
            self.assertEqual(found, [{"a": 1}, {"b": "\0"}, {"c": ""}])
            self.assertTrue(inbox.is_empty())

    def test_a_message_has_sixteen_megabytes_at_most(self) -> None:
        for length, fits in [(MAX_ANSWER, True), (MAX_ANSWER + 1, False)]:
            text = b'{"a":"' + b"x" * (length - 9) + b'"}\0'
            inbox = Inbox()
            inbox.feed(text, [])
            self.assertEqual(len(text), length)
            if fits:
                self.assertIsNotNone(inbox.next())
            else:
                self.assertRaises(fdstash.ProtocolBroken, inbox.next)


if __name__ == "__main__":
    unittest.main()
