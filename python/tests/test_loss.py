"""A daemon that is killed or upgraded is no error, and nothing is done twice."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any, Callable, Iterator, List, Optional, Tuple

from kit import Daemon, Relay, TestCase, identity, names

import fdstash
from fdstash import Change, Gift, Reopening


class Restarts(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.it = self.daemon()
        self.stash = self.client(self.it)
        self.disk = self.file()

    def test_every_call_outlives_the_death_of_the_server(self) -> None:
        def reopen() -> List[fdstash.Handed]:
            return self.stash.reopen([Reopening("a", sync=True)])

        calls: List[Callable[[], object]] = [
            lambda: self.stash.give([Gift("a", self.disk), Gift("b", self.disk)]),
            lambda: self.stash.list(),
            lambda: self.stash.statistics(),
            lambda: self.stash.copy(["a"])[0].close(),
            lambda: self.stash.copy(["a"], fresh=True)[0].close(),
            lambda: reopen()[0].close(),
            lambda: self.stash.take(["a"])[0].close(),
            lambda: self.stash.close(["b"]),
        ]

        for call in calls:
            self.it.kill_server()
            call()

        self.assertEqual(self.stash.list(), [])

    def storm(self, end: Callable[[], None], times: int) -> None:
        """Gives and takes, while the daemon's server ends so many times. What was done twice, or not at
        all, would be refused at the next step.
        """
        is_over = threading.Event()
        failure: List[BaseException] = []
        rounds = 0

        def work() -> None:
            nonlocal rounds
            try:
                with self.it.client() as stash:
                    while not is_over.is_set():
                        rounds += 1
                        stash.give([Gift("a", self.disk), Gift("b", self.disk)], exclusive=True)
                        for one in stash.reopen([Reopening("a"), Reopening("b")]):
                            one.close()
                        [taken] = stash.take(["a"])
                        with taken:
                            assert identity(taken) == identity(self.disk)
                        stash.close(["b"])
            except BaseException as error:
                failure.append(error)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for _ in range(times):
                before = rounds
                end()
                while worker.is_alive() and rounds < before + 3:
                    is_over.wait(0.002)
        finally:
            is_over.set()
            worker.join()
        if failure:
            raise failure[0]
        self.assertEqual(self.stash.list(), [])

    def test_nothing_is_lost_or_done_twice_while_servers_are_killed(self) -> None:
        self.storm(self.it.kill_server, 10)

    def test_nothing_is_lost_or_done_twice_over_upgrades(self) -> None:
        self.storm(self.it.upgrade, 4)

    def test_a_transaction_ends_with_its_connection_and_transact_does_it_anew(self) -> None:
        self.stash.give([Gift("a", self.disk)])
        with self.assertRaises(fdstash.ConnectionLost) as caught:
            with self.stash.transaction() as transaction:
                transaction.close(["a"])
                self.it.kill_server()
                transaction.give([Gift("b", self.disk)])
        with self.assertRaises(fdstash.RolledBack):
            with self.stash.transaction() as transaction:
                transaction.close(["a"])
                self.it.kill_server()
                with self.assertRaises(fdstash.ConnectionLost):
                    transaction.give([Gift("b", self.disk)])
        rounds = 0

        def act(transaction: fdstash.Transaction) -> List[fdstash.Handed]:
            nonlocal rounds
            rounds += 1
            taken = transaction.take(["a"])
            if rounds == 1:
                self.it.kill_server()
            transaction.give([Gift("b", self.disk)], exclusive=True)
            return taken

        before = names(self.stash.list())
        [taken] = self.stash.transact(act)

        with taken:
            self.assertEqual(identity(taken), identity(self.disk))
        self.assertFalse(caught.exception.may_be_done)
        self.assertEqual((before, rounds), (["a"], 2))
        self.assertEqual(names(self.stash.list()), ["b"])

    def test_a_watch_stands_anew_after_a_death_and_notices_no_upgrade(self) -> None:
        with self.stash.watch() as watch:
            self.stash.give([Gift("a", self.disk)])
            told = [next(watch)]
            self.it.upgrade()
            self.stash.give([Gift("b", self.disk)])
            told.append(next(watch))
            self.it.kill_server()
            told.append(next(watch))
            self.stash.close(["a"])
            told.append(next(watch))

        changes = [it.change if isinstance(it, fdstash.Changed) else it for it in told]
        self.assertEqual(changes, [Change.GIVEN, Change.GIVEN, fdstash.Standing(), Change.CLOSED])

    def test_a_daemon_that_is_gone_is_told(self) -> None:
        self.stash.give([Gift("a", self.disk)])
        watch = self.stash.watch()
        watch.__enter__()
        self.it.kill()

        for _ in range(2):
            with self.assertRaises(fdstash.NoDaemon):
                self.stash.take(["a"])
        with self.assertRaises(fdstash.NoDaemon):
            next(watch)

        self.assertEqual(list(watch), [])


class LostReplies(TestCase):
    """A relay cuts the connection at one call, before the daemon has it or after it has done it."""

    def setUp(self) -> None:
        super().setUp()
        self.disk = self.file()

    @contextlib.contextmanager
    def lost(
        self, method: str, *, done: bool, ends: bool = False
    ) -> Iterator[Tuple[fdstash.Client, fdstash.Client]]:
        """A client behind a relay, and one of the same daemon's that is not, which has entry "a"."""
        it = Daemon()
        path = os.path.join(self.folder, "relay")
        relay = Relay(it.socket, path, method, done=done, ends=ends)
        try:
            with it.client() as direct:
                direct.give([Gift("a", self.disk)])
                with self.subTest(method, done=done), fdstash.Client.connect_to(path) as stash:
                    yield stash, direct
            self.assertEqual(relay.cuts, 1)
        finally:
            relay.close()
            os.remove(path)
            it.end()

    def test_a_give_is_done_once(self) -> None:
        for done in (False, True):
            with self.lost("Give", done=done) as (stash, direct):
                stash.give([Gift("b", self.disk)], exclusive=True)

                self.assertEqual(direct.statistics().given, 2)

    def test_a_close_is_done_once(self) -> None:
        for done in (False, True):
            with self.lost("Close", done=done) as (stash, direct):
                stash.close(["a"])

                self.assertEqual(direct.statistics().closed, 1)

    def test_a_take_is_done_once_wherever_it_is_cut(self) -> None:
        for method, done in [("Begin", False), ("Begin", True), ("Commit", False), ("Commit", True)]:
            with self.lost(method, done=done) as (stash, direct):
                [taken] = stash.take(["a"])

                with taken:
                    self.assertEqual(identity(taken), identity(self.disk))
                self.assertEqual((stash.unconfirmed(), direct.list()), ([], []))
                self.assertEqual(direct.statistics().taken, 1)

    def test_a_callers_own_commit_is_told_of(self) -> None:
        for done in (False, True):
            with self.lost("Commit", done=done) as (stash, direct):
                raised: Optional[fdstash.ConnectionLost] = None
                try:
                    with stash.transaction() as transaction:
                        transaction.close(["a"])
                except fdstash.ConnectionLost as error:
                    raised = error

                # What was not committed only the caller can do anew.
                self.assertEqual(raised is None, done)
                self.assertEqual(direct.list() == [], done)
                self.assertFalse(raised and raised.may_be_done)

    def test_transact_does_anew_what_was_not_committed_and_only_that(self) -> None:
        for done in (False, True):
            rounds: List[fdstash.Handed] = []

            def act(transaction: fdstash.Transaction, rounds: Any = rounds) -> fdstash.Handed:
                rounds += transaction.take(["a"])
                handed: fdstash.Handed = rounds[-1]
                return handed

            with self.lost("Commit", done=done) as (stash, direct):
                with stash.transact(act) as taken:
                    self.assertEqual(identity(taken), identity(self.disk))

                self.assertEqual(len(rounds), 1 if done else 2)
                self.assertEqual(direct.statistics().taken, 1)

    def test_what_nobody_can_confirm_is_not_lost(self) -> None:
        acts: List[Callable[[fdstash.Client], object]] = [
            lambda stash: stash.take(["a"]),
            lambda stash: stash.transact(lambda transaction: transaction.take(["a"])),
        ]
        for act in acts:
            with self.lost("Commit", done=True, ends=True) as (stash, direct):
                with self.assertRaises(fdstash.ConnectionLost) as caught:
                    act(stash)

                self.assertTrue(caught.exception.may_be_done)
                self.assertIn("list the entries", caught.exception.advice)
                [kept] = stash.unconfirmed()
                with kept:
                    self.assertEqual((kept.name, identity(kept)), ("a", identity(self.disk)))
                self.assertEqual(direct.list(), [])

    def test_a_list_that_is_cut_is_asked_for_again(self) -> None:
        with self.lost("List", done=True) as (stash, _):
            self.assertEqual(names(stash.list()), ["a"])


class Daemons(TestCase):
    def test_a_client_goes_over_to_a_daemon_that_was_started_anew(self) -> None:
        it: Daemon = self.daemon()
        link = os.path.join(self.folder, "socket")
        os.symlink(it.socket, link)
        with fdstash.Client.connect_to(link) as stash:
            it.kill()
            another = self.daemon()
            os.remove(link)
            os.symlink(another.socket, link)

            self.assertEqual(stash.list(), [])
