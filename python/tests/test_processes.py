"""Threads, forks, and processes that die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from typing import Callable

from kit import TestCase, identity, names, wait_until

import fdstash
from fdstash import Gift


class Processes(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.it = self.daemon()
        self.stash = self.client(self.it)
        self.disk = self.file()
        self.stash.give([Gift("a", self.disk)])

    def child(self, act: Callable[[], object]) -> int:
        """Forks a process that does this, and tells its number."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                act()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return pid

    def ends_well(self, pid: int) -> None:
        self.assertEqual(os.waitpid(pid, 0)[1], 0)

    def test_two_threads_do_not_get_into_each_others_calls(self) -> None:
        waits = threading.Event()
        refused = []

        def wait() -> None:
            waits.set()
            self.stash.take(["none"], wait=10)[0].close()

        waiting = threading.Thread(target=wait)
        waiting.start()
        waits.wait()
        with self.it.client() as other:
            wait_until(lambda: other.statistics().transactions == 1)
            try:
                self.stash.list()
            except RuntimeError as error:
                refused.append(str(error))
            other.give([Gift("none", self.disk)])
        waiting.join()

        self.assertEqual(len(refused), 1)
        self.assertIn("in another thread", refused[0])
        self.assertEqual(names(self.stash.list()), ["a"])

    def test_a_forked_child_has_a_connection_of_its_own(self) -> None:
        def act() -> None:
            assert "a" in names(self.stash.list())
            self.stash.give([Gift(str(os.getpid()), self.disk, ephemeral=True)])
            self.stash.take(["b"], wait=10)[0].close()

        children = [self.child(act) for _ in range(3)]
        wait_until(lambda: len(self.stash.list()) == 4)
        for _ in children:
            self.stash.give([Gift("b", self.disk)], exclusive=True)
            wait_until(lambda: "b" not in names(self.stash.list()))
        for child in children:
            self.ends_well(child)

        # A process's connection ends with it.
        wait_until(lambda: names(self.stash.list()) == ["a"])

    def test_a_forked_child_leaves_its_parents_transaction_alone(self) -> None:
        def act() -> None:
            try:
                transaction.close(["a"])
            except fdstash.RolledBack:
                pass
            try:
                transaction.__exit__(None, None, None)
            except fdstash.RolledBack:
                assert names(self.stash.list()) == ["a"]
                self.stash.disconnect()
                return
            raise AssertionError("it was committed")

        with self.stash.transaction() as transaction:
            transaction.give([Gift("b", self.disk)])
            self.ends_well(self.child(act))
            transaction.close(["a"])

        self.assertEqual(names(self.stash.list()), ["b"])

    def test_a_childs_life_does_not_prolong_its_parents_transaction(self) -> None:
        # Which has a child that lives on, and dies itself.
        ready, done = os.pipe()

        def live_on() -> None:
            os.close(done)
            os.read(ready, 1)

        def act() -> None:
            self.stash.transaction().__enter__().take(["a"])
            self.child(live_on)
            os.kill(os.getpid(), signal.SIGKILL)

        child = self.child(act)
        self.assertEqual(os.waitpid(child, 0)[1], signal.SIGKILL)

        try:
            with self.it.client() as other:
                other.take(["a"], wait=5)[0].close()
        finally:
            os.close(done)
            os.close(ready)

    def test_an_executed_program_inherits_nothing(self) -> None:
        with self.stash.copy(["a"])[0] as copy:
            program = f"import os; print(os.path.exists('/proc/self/fd/{copy.fileno()}'))"
            said = subprocess.run(
                [sys.executable, "-c", program], close_fds=False, stdout=subprocess.PIPE, check=True
            )

        self.assertEqual(said.stdout, b"False\n")

    def test_what_a_process_takes_that_dies_before_its_commit_is_still_there(self) -> None:
        program = """
import os, signal, sys
import fdstash, fdstash._core

async def die(connection, ticket):
    [arrived] = stash._core._arrived[0]
    print(os.fstat(arrived.fileno()).st_ino, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

stash = fdstash.Client.connect_to(sys.argv[1])
fdstash._core.commit = die
stash.take(["a"])
"""
        died = subprocess.run(
            [sys.executable, "-c", program, self.it.socket], stdout=subprocess.PIPE
        )

        self.assertEqual(died.returncode, -signal.SIGKILL)
        self.assertEqual(int(died.stdout), identity(self.disk)[1])
        [taken] = self.stash.take(["a"], wait=10)
        with taken:
            self.assertEqual(identity(taken), identity(self.disk))

    def test_a_connect_that_a_signal_interrupts_is_tried_again(self) -> None:
        path = os.path.join(self.folder, "full")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
            listener.bind(path)
            listener.listen(0)
            first.connect(path)
            accepted = []
            before = signal.signal(signal.SIGALRM, lambda *_: accepted.append(listener.accept()[0]))
            self.addCleanup(signal.signal, signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, 0.05)

            with fdstash.Client.connect_to(path) as stash:
                second = listener.accept()[0]
                assert stash._core._connection is not None
                peer = stash._core._connection._transport.socket.getpeername()

            for connection in [*accepted, second]:
                connection.close()
        self.assertEqual((len(accepted), peer), (1, path))

    def test_an_interrupted_call_leaves_nothing_half_done(self) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0.05)

        with self.assertRaises(KeyboardInterrupt):
            self.stash.take(["a", "none"], wait=60)

        self.stash.take(["a"])[0].close()
        self.assertEqual(self.stash.list(), [])
