"""What each call does, and what it says where it is refused."""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import socket
import threading
import unittest
import warnings
from typing import Callable, Dict, List, Optional, Tuple
from unittest import mock

from kit import TestCase, identity, names, open_descriptors, wait_until

import fdstash
from fdstash import Access, Change, Error, Flag, Gift, Kind, Reopening, Share


class Owner:
    """A descriptor that is closed as soon as nothing refers to it."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY)

    def fileno(self) -> int:
        return self._fd

    def __del__(self) -> None:
        os.close(self._fd)


class Calls(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.it = self.daemon()
        self.stash = self.client(self.it)
        self.disk = self.file()

    def test_what_was_given_is_taken_as_the_very_same_file(self) -> None:
        replaced = self.stash.give([Gift("vm7-disk0", self.disk)])

        [taken] = self.stash.take(["vm7-disk0"])

        with taken:
            self.assertEqual((replaced, taken.name), ([], "vm7-disk0"))
            self.assertEqual(identity(taken), identity(self.disk))
            self.assertTrue(fcntl.fcntl(taken.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
        self.assertTrue(taken.closed)
        self.assertEqual(self.stash.list(), [])

    def test_who_gives_again_is_told_what_made_room(self) -> None:
        self.stash.give([Gift("a", self.disk)])

        replaced = self.stash.give([Gift("b", self.disk), Gift("a", self.disk.fileno())])

        self.assertEqual(replaced, ["a"])

    def test_what_nothing_else_refers_to_is_open_until_it_is_given(self) -> None:
        path = os.path.join(self.folder, "disk")

        self.stash.give(Gift(name, Owner(path)) for name in ["a", "b"])

        for copy in self.stash.copy(["a", "b"]):
            with copy:
                self.assertEqual(identity(copy), identity(self.disk))

    def test_copies_share_their_offset_and_fresh_ones_do_not(self) -> None:
        self.stash.give([Gift("a", self.disk)])
        self.disk.seek(5)

        with self.stash.copy(["a"])[0] as copy, self.stash.copy(["a"], fresh=True)[0] as fresh:
            offsets = [os.lseek(it.fileno(), 0, os.SEEK_CUR) for it in (copy, fresh)]

        self.assertEqual(offsets, [5, 0])
        self.assertEqual(names(self.stash.list()), ["a"])

    def test_an_entry_is_listed_with_all_that_is_known_of_it(self) -> None:
        gift = Gift(
            "vm7-disk0",
            self.disk,
            fresh=True,
            may_reopen=Access.READ,
            expire_usec=3_600_000_000,
            ephemeral=True,
            close_on_hangup=False,
            share=Share(uids=[7], gids=[8]),
            labels={"vm": "7", "größe": "10 \N{INFINITY}"},
        )

        self.stash.give([gift])
        [entry] = self.stash.list("vm?-*")

        self.assertEqual((entry.kind, entry.access), (Kind.REGULAR, Access.READ_WRITE))
        self.assertEqual((entry.device, entry.inode), identity(self.disk))
        self.assertEqual(entry.target, os.path.realpath(self.disk.name))
        self.assertEqual((entry.giver.uid, entry.giver.pid), (os.getuid(), os.getpid()))
        self.assertEqual(entry.may_reopen, Access.READ)
        self.assertEqual(entry.labels, gift.labels)
        self.assertEqual(entry.share, gift.share)
        self.assertEqual((entry.ephemeral, entry.close_on_hangup), (True, False))
        assert entry.expires_at_usec is not None
        self.assertAlmostEqual(entry.expires_at_usec - entry.given_at_usec, 3.6e9, delta=1e6)
        self.assertEqual((entry.flags, entry.drifted, entry.held_by), (frozenset(), set(), None))

    def test_what_somebody_else_changes_drifts(self) -> None:
        self.stash.give([Gift("a", self.disk)])

        fcntl.fcntl(self.disk, fcntl.F_SETFL, os.O_APPEND)

        self.assertEqual(self.stash.list()[0].drifted, {Flag.APPEND})
        self.assertIn("append", self.stash.list()[0].drifted)

    def test_a_reopen_hands_out_what_was_asked_for(self) -> None:
        self.stash.give([Gift("a", self.disk)])

        [less] = self.stash.reopen([Reopening("a", hand_out=Access.READ, sync=True)])
        [same] = self.stash.reopen([Reopening("a", sync=False)])

        with less, same:
            flags = [fcntl.fcntl(it.fileno(), fcntl.F_GETFL) for it in (less, same)]
            self.assertEqual([it & os.O_ACCMODE for it in flags], [os.O_RDONLY, os.O_RDWR])
            self.assertEqual([it & os.O_SYNC for it in flags], [os.O_SYNC, 0])
            self.assertEqual(identity(less), identity(self.disk))

    def test_an_ephemeral_gift_ends_with_its_client(self) -> None:
        with self.it.client() as passing:
            passing.give([Gift("a", self.disk, ephemeral=True)])
            self.assertEqual(names(self.stash.list()), ["a"])

        wait_until(lambda: self.stash.list() == [])

    def test_a_take_waits_for_what_is_not_there_yet(self) -> None:
        with self.it.client() as other:

            def give() -> None:
                wait_until(lambda: other.statistics().transactions == 1)
                other.give([Gift("a", self.disk)])

            given = threading.Thread(target=give)
            given.start()
            [taken] = self.stash.take(["a"], wait=10)
            given.join()

        taken.close()
        with self.assertRaises(fdstash.NotFound):
            self.stash.copy(["a"], wait=0.01)

    def test_a_few_and_as_many_as_a_message_carries_and_more(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        ends = [os.pipe() for _ in range(500)]
        for fd in (fd for pair in ends for fd in pair):
            self.addCleanup(os.close, fd)
        for count in (0, 1, 253, 254, 500):
            gifts = [Gift(f"p{at:03}", ends[at][0]) for at in range(count)]
            asked = [gift.name for gift in reversed(gifts)]

            self.assertEqual(self.stash.give(gifts), [])
            again = self.stash.give(gifts)
            copies = self.stash.copy(asked)
            taken = self.stash.take(asked)

            self.assertEqual(again, [gift.name for gift in gifts])
            for handed in (copies, taken):
                self.assertEqual([it.name for it in handed], asked)
                self.assertEqual(
                    [identity(it) for it in handed],
                    [identity(ends[at][0]) for at in reversed(range(count))],
                )
                for one in handed:
                    one.close()
            self.assertEqual(self.stash.list(), [])
        self.stash.give(gifts)
        reopened = self.stash.copy(asked[:2]) + self.stash.reopen([Reopening(it) for it in asked])
        for one in reopened:
            one.close()
        self.assertEqual(len(reopened), 502)
        self.stash.close(asked)
        self.assertEqual(self.stash.list(), [])

    def test_a_long_list_comes_whole(self) -> None:
        labels = {"note": "x" * 1000}
        for part in range(8):
            self.stash.give(
                [Gift(f"{part}-{at:03}", self.disk, labels=labels) for at in range(250)]
            )

        listed = names(self.stash.list())

        self.assertEqual(len(listed), 2000)
        self.assertEqual(listed, sorted(listed))

    def test_figures_add_up_and_the_daemon_says_what_it_is(self) -> None:
        self.stash.give([Gift("a", self.disk), Gift("b", self.disk)])
        self.stash.close(["b"])

        figures, info = self.stash.statistics(), self.stash.info()

        self.assertEqual((figures.entries, figures.given, figures.closed), (1, 2, 1))
        self.assertEqual((figures.keeper, figures.mirror), (fdstash.Keeper.PROCESS, None))
        self.assertEqual(info.product, "fdstashd")
        self.assertIn("org.fdstash.Stash", info.interfaces)

    def test_root_is_told_what_the_policy_says(self) -> None:
        self.stash.give([Gift("a", self.disk)])
        if os.geteuid() != 0:
            with self.assertRaises(fdstash.PermissionDenied):
                self.stash.explain_policy(12345, [], fdstash.Verb.COPY, "a")
            return

        stranger = self.stash.explain_policy(12345, [], fdstash.Verb.COPY, "a")
        root = self.stash.explain_policy(0, [], fdstash.Verb.COPY, "a")

        self.assertEqual(stranger.verdict, fdstash.Verdict.HIDDEN)
        self.assertEqual(root.reason, fdstash.Reason.ROOT)

    def test_a_watch_tells_each_change(self) -> None:
        with self.stash.watch("disk*") as watch:
            self.stash.give([Gift("disk0", self.disk), Gift("log", self.disk)])
            self.stash.give([Gift("disk0", self.disk)])
            self.stash.close(["log", "disk0"])

            told = [next(watch) for _ in range(3)]

        changes = [it.change for it in told if isinstance(it, fdstash.Changed)]
        self.assertEqual(changes, [Change.GIVEN, Change.REPLACED, Change.CLOSED])
        self.assertEqual(list(watch), [])


class Refusals(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.it = self.daemon("--max-entries", "3")
        self.stash = self.client(self.it)
        self.disk = self.file()
        with open(self.disk.name, "rb") as read_only:
            self.stash.give([Gift("a", read_only)])

    def refused(self, act: Callable[[], object]) -> Error:
        before = self.stash.list()
        with self.assertRaises(Error) as caught:
            act()
        self.assertEqual(self.stash.list(), before)
        error: Error = caught.exception
        again = pickle.loads(pickle.dumps(error))
        self.assertEqual((type(again), str(again)), (type(error), str(error)))
        self.assertEqual(str(vars(again)), str(vars(error)))
        return error

    def test_a_refusal_says_what_happened_to_what_and_what_to_do(self) -> None:
        pair = socket.socketpair()
        self.addCleanup(pair[0].close)
        self.addCleanup(pair[1].close)
        self.stash.give([Gift("s", pair[0])])
        stash, disk = self.stash, self.disk
        wider = Reopening("a", access=Access.READ_WRITE, append=True)
        table = [
            (lambda: stash.take(["none"]), 'there is no entry "none"', "list the entries"),
            (
                lambda: stash.give([Gift("b", disk), Gift("a", disk)], exclusive=True),
                'there is an entry "a" already',
                "close it first",
            ),
            (lambda: stash.close(["a:b"]), "a name has no ':'", "1 to 255"),
            (lambda: stash.close(["a", "a"]), "cannot be used as a name here", "once in a call"),
            (
                lambda: stash.copy(["x"] * 254),
                "'x' cannot be used as a name here: it is named twice in one call",
                "once in a call",
            ),
            (lambda: stash.reopen([wider]), 'not allowed to reopen entry "a"', "who gave it"),
            (
                lambda: stash.reopen([Reopening("a"), Reopening("s")]),
                'entry "s" could not be opened anew: ',
                "the stash is as it was",
            ),
            (
                lambda: stash.give([Gift("b", disk), Gift("c", disk)]),
                "limit exceeded: entries is ",
                "the daemon's limit",
            ),
            (lambda: stash.list("x" * 600), 'invalid parameter "pattern"', "compare the versions"),
        ]

        for act, message, advice in table:
            with self.subTest(message):
                error = self.refused(act)

                self.assertIsInstance(error, fdstash.Refused)
                self.assertIn(message, str(error))
                self.assertIn(advice, error.advice or "")

    def test_a_refusal_bears_its_parameters(self) -> None:
        with self.it.client() as other, other.transaction() as transaction:
            transaction.close(["a"])
            busy = self.refused(lambda: self.stash.take(["a"]))
            transaction.rollback()
        full = self.refused(lambda: self.stash.give([Gift(str(at), self.disk) for at in range(3)]))

        assert isinstance(busy, fdstash.Busy) and isinstance(full, fdstash.LimitExceeded)
        self.assertEqual((busy.name, busy.held_by.pid), ("a", os.getpid()))
        self.assertEqual(full.limit, "entries")

    def test_nobody_listens(self) -> None:
        path = os.path.join(self.folder, "none")

        error = self.refused(lambda: fdstash.Client.connect_to(path))

        self.assertIsInstance(error, fdstash.NoDaemon)
        self.assertEqual(str(error), f"no daemon can be reached at {path}: No such file or directory")
        self.assertIn(f"fdstashd --socket {path}", error.advice or "")
        self.assertEqual(getattr(error, "__notes__", [error.advice]), [error.advice])

    def test_what_is_no_descriptor_and_no_text_is_not_sent(self) -> None:
        self.stash.give([Gift("e", self.disk, ephemeral=True)])
        before = self.stash.statistics()
        closed = os.dup(self.disk.fileno())
        os.close(closed)

        for gift, error in [
            (Gift("b", closed), OSError),
            (Gift("b", self.disk, labels={"path": os.fsdecode(b"\xff")}), UnicodeEncodeError),
            (Gift("b", self.disk, labels={"long": "x" * (1 << 20)}), fdstash.CallTooLong),
        ]:
            with self.assertRaises(error):
                self.stash.give([gift])
        with self.assertRaises(TypeError):
            self.stash.take("a")

        # The connection is the same: what is ephemeral is still there.
        self.assertEqual(names(self.stash.list()), ["a", "e"])
        self.assertEqual(self.stash.statistics(), before)

    def test_a_process_without_room_loses_nothing(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.stash.give([Gift("b", self.disk)])
        # As many as are open, and one more than the highest of them.
        highest = max(int(line.split()[0]) for line in open_descriptors())
        fill = [os.dup(0) for _ in range(highest + 2 - len(open_descriptors()))]
        acts: List[Callable[[], object]] = [
            lambda: self.stash.take(["a", "b"]),
            lambda: self.stash.copy(["a", "b"]),
            lambda: self.stash.reopen([Reopening("a"), Reopening("b")]),
        ]
        for act in acts:
            highest = max(int(line.split()[0]) for line in open_descriptors())
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
            try:
                with self.assertRaises(fdstash.NoRoom) as caught:
                    act()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            self.assertIn("ulimit -n", caught.exception.advice)
        for fd in fill:
            os.close(fd)

        taken = self.stash.take(["a", "b"])

        for one in taken:
            self.assertEqual(identity(one), identity(self.disk))
            one.close()


class Ownership(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.stash = self.client(self.daemon())
        self.stash.give([Gift("a", self.file())])

    def test_a_descriptor_has_one_owner(self) -> None:
        [one], [other] = self.stash.copy(["a"]), self.stash.copy(["a"])

        number = other.detach()
        one.close()
        one.close()
        other.close()

        os.close(number)
        for it in (one, other):
            self.assertTrue(it.closed)
            with self.assertRaises(ValueError):
                it.fileno()
            with self.assertRaises(ValueError):
                it.detach()

    def test_one_that_is_forgotten_is_closed_with_a_warning(self) -> None:
        before = open_descriptors()

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.stash.copy(["a"])

        self.assertEqual([it.category for it in caught], [ResourceWarning])
        self.assertIn("fdstash.Handed 'a'", str(caught[0].message))
        self.assertEqual(open_descriptors(), before)

    def test_a_default_time_out_for_sockets_is_not_the_clients(self) -> None:
        socket.setdefaulttimeout(0.001)
        self.addCleanup(socket.setdefaulttimeout, None)
        with fdstash.Client.connect_to(self.stash.socket) as stash:
            with self.assertRaises(fdstash.NotFound):
                stash.take(["none"], wait=0.1)


class Address(unittest.TestCase):
    def test_the_nearest_socket_is_used(self) -> None:
        system, own = "/run/fdstash/org.fdstash.Stash", "/run/user/7/fdstash/org.fdstash.Stash"
        # FDSTASH_SOCKET, XDG_RUNTIME_DIR, user, whether there is one of the user's own
        table: List[Tuple[Optional[str], Optional[str], int, bool, str]] = [
            ("/tmp/s", "/run/user/7", 7, True, "/tmp/s"),
            ("/tmp/s", None, 0, False, "/tmp/s"),
            ("", None, 0, False, system),
            (None, "/run/user/7", 0, True, system),
            (None, "/run/user/7", 7, True, own),
            (None, "/run/user/7", 7, False, system),
            (None, "", 7, True, system),
            (None, None, 7, True, system),
        ]

        for socket_, runtime, uid, has_own, expected in table:
            found = {"FDSTASH_SOCKET": socket_, "XDG_RUNTIME_DIR": runtime}
            variables: Dict[str, str] = {key: it for key, it in found.items() if it is not None}
            with mock.patch.dict(os.environ, variables, clear=True), mock.patch.object(
                os, "geteuid", return_value=uid
            ), mock.patch.object(os.path, "exists", side_effect=lambda it, has=has_own: has):
                self.assertEqual(fdstash.default_socket(), expected)


if __name__ == "__main__":
    unittest.main()
