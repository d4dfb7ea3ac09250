"""The client for asyncio: as the blocking one, and a call may be cancelled at any time."""

from __future__ import annotations

import asyncio
import threading
import unittest
from typing import Any, Awaitable, Callable, Coroutine, List, Optional
from unittest import mock

from kit import SOON, TestCase, identity, names

import fdstash
import fdstash.aio
from fdstash import Change, Gift, Reopening

Act = Callable[[fdstash.aio.Client], Coroutine[Any, Any, Any]]


class Calls(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.it = self.daemon()
        self.disk = self.file()

    def run_with_client(self, act: Act) -> None:
        async def main() -> None:
            async with await fdstash.aio.Client.connect_to(self.it.socket) as stash:
                await act(stash)

        asyncio.run(main())

    def test_every_call_does_what_the_blocking_one_does(self) -> None:
        async def act(stash: fdstash.aio.Client) -> None:
            self.assertEqual(await stash.give([Gift("a", self.disk), Gift("b", self.disk)]), [])
            handed = await stash.copy(["a"]) + await stash.copy(["b"], fresh=True)
            handed += await stash.reopen([Reopening("b", sync=True)])
            with self.assertRaises(fdstash.NotFound):
                await stash.take(["none"], wait=0.01)
            async with stash.transaction() as transaction:
                await transaction.give([Gift("c", self.disk)], exclusive=True)
                handed += await transaction.take(["a"]) + await transaction.copy(["c"])
                handed += await transaction.reopen([Reopening("b")])
                await transaction.close(["b"])
            handed += await stash.transact(lambda transaction: transaction.take(["c"]))
            for one in handed:
                self.assertEqual(identity(one), identity(self.disk))
                one.close()
            self.assertEqual(await stash.list(), [])
            self.assertEqual((await stash.statistics()).taken, 2)
            self.assertEqual((await stash.info()).product, "fdstashd")
            with self.assertRaises(ZeroDivisionError):
                async with stash.transaction() as transaction:
                    await transaction.give([Gift("a", self.disk)])
                    raise ZeroDivisionError
            self.assertEqual(await stash.list(), [])

        self.run_with_client(act)

    def test_more_than_the_socket_holds_goes_out_in_pieces(self) -> None:
        async def act(stash: fdstash.aio.Client) -> None:
            labels = {"note": "x" * 900_000}
            gifts = [Gift(f"{at}", self.disk, labels=labels) for at in range(3)]
            for gift in gifts:
                await stash.give([gift])
            listed = await stash.list()
            self.assertEqual([len(entry.labels["note"]) for entry in listed], [900_000] * 3)
            self.assertEqual(listed[0].inode, identity(self.disk)[1])

        self.run_with_client(act)

    def test_no_thread_is_used_and_other_tasks_run_meanwhile(self) -> None:
        async def act(stash: fdstash.aio.Client) -> None:
            loop = asyncio.get_running_loop()
            refuse = mock.Mock(side_effect=AssertionError("a thread was asked for"))
            with mock.patch.object(loop, "run_in_executor", refuse):
                waiting = asyncio.create_task(stash.take(["a"], wait=10))
                async with await fdstash.aio.Client.connect_to(self.it.socket) as other:
                    while (await other.statistics()).transactions == 0:
                        await asyncio.sleep(0.002)
                    with self.assertRaisesRegex(RuntimeError, "in another thread or task"):
                        await stash.list()
                    await other.give([Gift("a", self.disk)])
                (await waiting)[0].close()
            self.assertEqual(threading.active_count(), 1)

        self.run_with_client(act)

    def test_a_client_goes_with_its_program_from_loop_to_loop(self) -> None:
        stash = asyncio.run(fdstash.aio.Client.connect_to(self.it.socket))

        asyncio.run(stash.give([Gift("a", self.disk)]))
        listed = asyncio.run(stash.list())

        stash.disconnect()
        self.assertEqual(names(listed), ["a"])

    def test_the_death_of_the_server_is_no_error(self) -> None:
        async def act(stash: fdstash.aio.Client) -> None:
            self.it.kill_server()
            await stash.give([Gift("a", self.disk)], exclusive=True)
            self.it.kill_server()
            (await stash.take(["a"]))[0].close()
            rounds = 0

            async def anew(transaction: fdstash.aio.Transaction) -> None:
                nonlocal rounds
                rounds += 1
                await transaction.give([Gift("b", self.disk)], exclusive=True)
                if rounds == 1:
                    self.it.kill_server()
                await transaction.give([Gift("c", self.disk)], exclusive=True)

            await stash.transact(anew)
            self.assertEqual((rounds, names(await stash.list())), (2, ["b", "c"]))

        self.run_with_client(act)

    def test_a_watch_loses_nothing_to_time_outs_and_stands_anew_after_a_death(self) -> None:
        async def act(stash: fdstash.aio.Client) -> None:
            told: List[fdstash.Notice] = []
            async with stash.watch("a*") as watch:
                for at in range(20):
                    # Some end before their notice comes, some after.
                    await stash.give([Gift(f"a{at}", self.disk)])
                    try:
                        told.append(await asyncio.wait_for(watch.__anext__(), 0.0001 * at))
                    except asyncio.TimeoutError:
                        pass
                while len(told) < 20:
                    told.append(await watch.__anext__())
                self.it.kill_server()
                self.assertEqual(await watch.__anext__(), fdstash.Standing())
                await stash.close(["a0"])
                async for notice in watch:
                    assert isinstance(notice, fdstash.Changed)
                    self.assertEqual(notice.change, Change.CLOSED)
                    break
            given = [it.entry.name for it in told if isinstance(it, fdstash.Changed)]
            self.assertEqual(given, [f"a{at}" for at in range(20)])

        self.run_with_client(act)

    def test_who_waits_in_a_watch_as_that_ends_is_told_no_more(self) -> None:
        async def told(watch: fdstash.aio.Watch) -> List[fdstash.Notice]:
            return [notice async for notice in watch]

        async def act(stash: fdstash.aio.Client) -> None:
            async with stash.watch("a*") as watch:
                waits = asyncio.ensure_future(told(watch))
                await stash.statistics()

            self.assertEqual(await asyncio.wait_for(waits, SOON), [])

        self.run_with_client(act)


class Cancelling:
    """In the place of what wakes a call that waits for the daemon: cancels it when it does so for the
    n-th time, at once or as what it has waited for is there.
    """

    def __init__(self, task: Optional["asyncio.Task[Any]"], at: int) -> None:
        self.task, self.at, self.count = task, at, 0

    def __call__(self, ready: "asyncio.Future[None]") -> None:
        if not ready.done():
            ready.set_result(None)
            self.count += 1
            if self.count == self.at and self.task is not None:
                self.task.cancel()


class Cancellation(TestCase):
    """Each call is cancelled at each of its waits: while it waits, and as what it waits for comes."""

    def setUp(self) -> None:
        super().setUp()
        self.it = self.daemon()
        self.disk = self.file()

    def at_every_wait(self, act: Act, check: Callable[[fdstash.aio.Client], Awaitable[None]]) -> int:
        """Tells at how many waits it was."""

        async def cancelled(stash: fdstash.aio.Client, at: int, early: bool) -> bool:
            task = asyncio.ensure_future(act(stash))
            wake = Cancelling(None if early else task, at)
            waits = fdstash._transport.Waiting._wait
            count = 0

            async def wait(transport: Any, *, for_room: bool) -> None:
                nonlocal count
                count += 1
                if early and count == at:
                    task.cancel()
                await waits(transport, for_room=for_room)

            with mock.patch("fdstash._transport._wake", wake), mock.patch.object(
                fdstash._transport.Waiting, "_wait", wait
            ):
                try:
                    await task
                except asyncio.CancelledError:
                    return True
                return False

        async def main() -> int:
            for at in range(1, 50):
                for early in (True, False):
                    async with await fdstash.aio.Client.connect_to(self.it.socket) as stash:
                        was_cancelled = await cancelled(stash, at, early)
                        await check(stash)
                        if not was_cancelled:
                            return at - 1
            raise AssertionError("it never comes to its end")

        return asyncio.run(main())

    def test_a_give_is_done_or_not(self) -> None:
        async def act(stash: fdstash.aio.Client) -> None:
            await stash.give([Gift("a", self.disk), Gift("b", self.disk)])

        async def check(stash: fdstash.aio.Client) -> None:
            with self.it.client() as other:
                # What was sent may still be on its way.
                while other.statistics().connections > 2:
                    await asyncio.sleep(0.002)
                self.assertIn(names(other.list()), ([], ["a", "b"]))
                other.close(names(other.list()))
            await stash.give([Gift("c", self.disk)], exclusive=True)
            await stash.close(["c"])

        self.assertGreaterEqual(self.at_every_wait(act, check), 1)

    def test_a_take_that_is_cancelled_loses_nothing(self) -> None:
        with self.it.client() as other:

            async def check(stash: fdstash.aio.Client) -> None:
                kept = stash.unconfirmed()
                # It is in the stash, or here.
                while any(entry.held_by for entry in other.list()):
                    await asyncio.sleep(0.002)
                if not other.list():
                    [one] = kept
                    self.assertEqual(identity(one), identity(self.disk))
                    other.give([Gift("a", one)])
                for one in kept:
                    one.close()

            async def take_alone(stash: fdstash.aio.Client) -> None:
                for one in await stash.take(["a"]):
                    other.give([Gift("a", one)])
                    one.close()

            other.give([Gift("a", self.disk)])
            waits = self.at_every_wait(take_alone, check)

            self.assertGreaterEqual(waits, 2)
            [taken] = other.take(["a"])
            with taken:
                self.assertEqual(identity(taken), identity(self.disk))

    def test_a_transaction_is_done_whole_or_not_at_all(self) -> None:
        with self.it.client() as other:
            other.give([Gift("a", self.disk)])

            async def act(stash: fdstash.aio.Client) -> None:
                async with stash.transaction() as transaction:
                    await transaction.close(["a"])
                    await transaction.give([Gift("b", self.disk)])

            async def check(stash: fdstash.aio.Client) -> None:
                # The client is free, and its next call comes after the rollback.
                found = names(await stash.list())
                self.assertIn(found, (["a"], ["b"]))
                if found == ["b"]:
                    await stash.close(["b"])
                    await stash.give([Gift("a", self.disk)])

            self.assertGreaterEqual(self.at_every_wait(act, check), 3)

    def test_a_wait_that_is_cancelled_holds_nothing(self) -> None:
        async def main() -> None:
            async with await fdstash.aio.Client.connect_to(self.it.socket) as stash:
                await stash.give([Gift("a", self.disk)])
                with self.assertRaises(asyncio.TimeoutError):
                    await asyncio.wait_for(stash.take(["a", "none"], wait=60), 0.05)
                (await stash.take(["a"], wait=10))[0].close()
                self.assertEqual(stash.unconfirmed(), [])

        asyncio.run(main())


if __name__ == "__main__":
    unittest.main()
