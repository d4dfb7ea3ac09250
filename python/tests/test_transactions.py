"""Several calls as one: committed at the end of the `with`, or not at all."""

from __future__ import annotations

from typing import List

from kit import TestCase, identity, names

import fdstash
from fdstash import Gift, Reopening


class Transactions(TestCase):
    def setUp(self) -> None:
        super().setUp()
        it = self.daemon()
        self.stash, self.other = self.client(it), self.client(it)
        self.disk = self.file()
        self.stash.give([Gift("a", self.disk), Gift("b", self.disk)])

    def test_all_of_it_is_seen_at_its_end_and_nothing_before(self) -> None:
        with self.stash.transaction() as transaction:
            transaction.close(["a"])
            transaction.give([Gift("c", self.disk)])
            [taken] = transaction.take(["b"])
            before = names(self.other.list())
            with self.assertRaises(fdstash.Busy):
                self.other.copy(["b"])

        with taken:
            self.assertEqual(identity(taken), identity(self.disk))
        self.assertEqual(before, ["a", "b"])
        self.assertEqual(names(self.other.list()), ["c"])

    def test_an_exception_rolls_it_back_and_goes_on(self) -> None:
        with self.assertRaises(ZeroDivisionError):
            with self.stash.transaction() as transaction:
                transaction.close(["a"])
                raise ZeroDivisionError

        # By now it is free for others.
        self.other.copy(["a"])[0].close()
        self.assertEqual(names(self.stash.list()), ["a", "b"])

    def test_a_refused_call_has_done_nothing_and_the_others_are_committed(self) -> None:
        with self.stash.transaction() as transaction:
            transaction.close(["a"])
            with self.assertRaises(fdstash.NotFound):
                transaction.take(["b", "none"])
            with self.assertRaises(fdstash.CallTooLong):
                transaction.give([Gift("c", self.disk, labels={"long": "x" * (1 << 20)})])

        self.assertEqual(names(self.stash.list()), ["b"])

    def test_a_call_of_several_messages_that_fails_half_way_rolls_back_all(self) -> None:
        gifts = [Gift(f"c{at}", self.disk) for at in range(300)]
        with self.assertRaises(fdstash.RolledBack):
            with self.stash.transaction() as transaction:
                transaction.close(["a"])
                with self.assertRaises(fdstash.AlreadyExists):
                    transaction.give(gifts[:-1] + [Gift("b", self.disk)], exclusive=True)

        self.assertEqual(names(self.other.list()), ["a", "b"])
        self.other.copy(["a"])[0].close()

    def test_it_can_end_before_the_end_of_its_with(self) -> None:
        with self.stash.transaction() as transaction:
            transaction.close(["a"])
            transaction.rollback()
            self.assertEqual(names(self.stash.list()), ["a", "b"])
            with self.assertRaises(RuntimeError):
                transaction.close(["a"])
        with self.stash.transaction() as transaction:
            transaction.close(["a"])
            transaction.commit()
            self.assertEqual(names(self.stash.list()), ["b"])
            with self.assertRaises(RuntimeError):
                transaction.commit()

    def test_while_it_is_open_its_client_does_nothing_else(self) -> None:
        with self.stash.transaction() as transaction:
            transaction.close(["a"])
            for act in (
                lambda: self.stash.close(["b"]),
                lambda: self.stash.transaction().__enter__(),
                self.stash.disconnect,
            ):
                with self.assertRaisesRegex(RuntimeError, "this client is in use"):
                    act()

        self.assertEqual(names(self.stash.list()), ["b"])

    def test_transact_tries_again_for_a_name_that_somebody_holds(self) -> None:
        rounds: List[List[fdstash.Handed]] = []
        holder = self.other.transaction()
        holder.__enter__()
        holder.close(["b"])

        def act(transaction: fdstash.Transaction) -> List[fdstash.Handed]:
            rounds.append(transaction.copy(["a"]))
            if len(rounds) == 3:
                holder.rollback()
            return rounds[-1] + transaction.take(["b"])

        handed = self.stash.transact(act)

        self.assertEqual(len(rounds), 3)
        self.assertEqual([it.closed for [it] in rounds], [True, True, False])
        self.assertEqual([it.name for it in handed], ["a", "b"])
        for one in handed:
            one.close()
        self.assertEqual(names(self.stash.list()), ["a"])

    def test_what_a_failed_transact_has_handed_out_is_closed(self) -> None:
        handed: List[fdstash.Handed] = []

        def act(transaction: fdstash.Transaction) -> None:
            handed.extend(transaction.take(["a"]) + transaction.reopen([Reopening("b")]))
            raise KeyError("for a reason of its own")

        with self.assertRaises(KeyError):
            self.stash.transact(act)

        self.assertEqual([it.closed for it in handed], [True, True])
        self.assertEqual(self.stash.unconfirmed(), [])
        self.assertEqual(names(self.stash.list()), ["a", "b"])
