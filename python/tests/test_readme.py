"""Every program in the README is run as it stands there."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from typing import List

from kit import TestCase, names, wait_until

import fdstash
from fdstash import Gift

README = os.path.join(os.path.dirname(__file__), "..", "README.md")


class Readme(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.it = self.daemon()
        self.stash = self.client(self.it)
        self.disk = self.file("disk.img", b"x" * 1024)

    def program(self, marked: str) -> "subprocess.Popen[str]":
        """Starts the one that has this in it."""
        [program] = [it for it in programs() if marked in it]
        started = subprocess.Popen(
            [sys.executable, "-X", "dev", "-u", "-W", "error", "-c", program],
            cwd=self.folder,
            env={**os.environ, "FDSTASH_SOCKET": self.it.socket},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(started.communicate)
        self.addCleanup(started.kill)
        return started

    def says(self, marked: str) -> List[str]:
        said, complained = self.program(marked).communicate()
        self.assertEqual(complained, "")
        return said.splitlines()

    def seen_by(self, program: "subprocess.Popen[str]", name: str) -> str:
        """Gives an entry, again if need be, as who is connected may be yet to watch. What the program says of it."""
        assert program.stdout is not None
        self.stash.give([Gift(name, self.disk)])
        while not select.select([program.stdout], [], [], 2)[0]:
            self.stash.close([name])
            self.stash.give([Gift(name, self.disk)])
        line = program.stdout.readline()
        # It may have begun to watch between the two.
        return program.stdout.readline() if "closed" in line.lower() else line

    def test_there_is_a_test_for_each(self) -> None:
        with open(__file__, encoding="utf-8") as file:
            here = file.read()
        marks = set(re.findall(r"self\.(?:says|program)\(\"(.*)\"\)", here))

        for program in programs():
            self.assertEqual(len([mark for mark in marks if mark in program]), 1, program)

    def test_giving_reopening_and_taking(self) -> None:
        path = os.path.realpath(self.disk.name)

        said = self.says("reopen([Reopening(")

        self.assertEqual(said, ["vm7-disk0 1024", f"vm7-disk0 regular {path} {{'vm': '7'}}", "1024 bytes"])
        self.assertEqual(self.stash.list(), [])

    def test_a_transaction(self) -> None:
        self.assertEqual(self.says("def swap(transaction)"), [])

        self.assertEqual(self.stash.list(), [])

    def test_a_watch(self) -> None:
        watching = self.program("if isinstance(notice")
        wait_until(lambda: self.stash.statistics().connections == 3)

        self.assertEqual(self.seen_by(watching, "vm1"), "given vm1\n")

    def test_asyncio(self) -> None:
        program = self.program("asyncio.run(main())")
        wait_until(lambda: self.stash.statistics().connections == 3)

        self.assertIn("Changed(change=<Change.GIVEN", self.seen_by(program, "vm9"))
        self.assertEqual(names(self.stash.list()), ["vm9"])

    def test_errors(self) -> None:
        [hidden] = self.says("except fdstash.Busy")
        self.stash.give([Gift("vm7-disk0", self.disk)])
        with self.stash.transaction() as transaction:
            transaction.close(["vm7-disk0"])
            [busy] = self.says("except fdstash.Busy")

        self.assertIn('there is no entry "vm7-disk0" - list the entries', hidden)
        self.assertEqual(busy, f"vm7-disk0 is held by {os.getpid()}")

    def test_the_lines_in_the_projects_own_readme(self) -> None:
        with open(os.path.join(os.path.dirname(README), "..", "README.md"), encoding="utf-8") as file:
            [lines] = re.findall(r"```python\n(.*?)```", file.read(), re.DOTALL)
        os.environ["FDSTASH_SOCKET"] = self.it.socket
        self.addCleanup(os.environ.pop, "FDSTASH_SOCKET")
        names_there = {"fdstash": fdstash, "file": self.disk}

        exec(lines, names_there)

        disk = names_there["disk"]
        assert isinstance(disk, fdstash.Handed)
        disk.close()
        self.assertIn("direct", self.stash.list()[0].flags)


def programs() -> List[str]:
    with open(README, encoding="utf-8") as file:
        return re.findall(r"```python\n(.*?)```", file.read(), re.DOTALL)

