#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of runner.py, with groups and scripts of their own."""

import contextlib
import io
import re
import tempfile
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

from results import Case
from runner import Counts, Ended, Group, Run, counts, run_groups, summary, totals, write


class Repo(unittest.TestCase):
    """A repository that has only the scripts that a test puts into it."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.repo = Path(temporary.name)
        (self.repo / "build/logs").mkdir(parents=True)
        self.messages = io.StringIO()
        self.enterContext(contextlib.redirect_stderr(self.messages))

    def put(self, name: str, text: str) -> None:
        """A shell script."""
        file = self.repo / "scripts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/bash\ncd '{self.repo}'\n{text}\n")
        file.chmod(0o755)

    def run_all(self, *functions: Callable[[Run], None], at_a_time: int = 2) -> list[Run]:
        """Runs functions as groups called a, b, and so on."""
        groups = [Group(name, "", function) for name, function in zip("abcdefgh", functions)]
        return run_groups(groups, self.repo, at_a_time)

    def counts(self, function: Callable[[Run], None]) -> Counts:
        """What a function as a group comes to."""
        return Counts(*totals(self.run_all(function)))


class Results(Repo):
    def test_counts(self) -> None:
        self.assertEqual(counts("1 passed, 2 failed\nmore\n3 passed, 4 failed\r\n"), Counts(3, 4))
        self.assertIsNone(counts("it has 3 passed, 4 failed\n"))

    def test_nothing_looked_at_is_a_failure(self) -> None:
        self.assertEqual(self.counts(lambda run: None), Counts(0, 1))
        self.assertEqual(self.counts(lambda run: run.result("none", Counts(0, 0))), Counts(0, 1))
        self.assertEqual(self.counts(lambda run: run.result("not known", None)), Counts(0, 1))

    def test_a_group_that_breaks_off_has_failed(self) -> None:
        def broken(run: Run) -> None:
            run.result("before", Counts(2, 0))
            raise KeyError("nothing of that name")
        self.assertEqual(self.counts(broken), Counts(2, 1))
        self.assertIn("nothing of that name", self.messages.getvalue())

    def test_table(self) -> None:
        def with_status(text: str, status: int) -> Counts:
            return self.counts(lambda run: run.table("a table", Ended(status, text)))
        self.assertEqual(with_status("ok    a\nok    b\n2 passed, 0 failed\n", 0), Counts(2, 0))
        self.assertEqual(with_status("ok    a\nFAIL  b\n1 passed, 1 failed\n", 1), Counts(1, 1))
        self.assertIn("FAIL  b", self.messages.getvalue())
        # It has printed its counts, and failed then.
        self.assertEqual(with_status("2 passed, 0 failed\n", 1), Counts(2, 1))
        self.assertEqual(with_status("killed\n", 137), Counts(0, 1))

    def test_each_test_is_written(self) -> None:
        def both(run: Run) -> None:
            run.table("a table", Ended(1, "ok    a\nFAIL  b\n1 passed, 1 failed\n"))
            run.result("more", Counts(1, 0), [Case("c", "ok"), Case("d", "skip")])
        write(self.run_all(both), self.repo)
        root = ElementTree.parse(self.repo / "results.xml").getroot()
        self.assertEqual([(suite.get("tests"), suite.get("failures")) for suite in root], [("2", "1"), ("2", "0")])
        self.assertEqual([case.get("name") for case in root.iter("testcase")], ["a", "b", "c", "d"])
        self.assertIn("not ok 1 a: a table\n", (self.repo / "results.ktap").read_text())


class Scripts(Repo):
    def test_output_and_settings(self) -> None:
        self.put("test/some.sh", 'echo "$VARIANT $*"; echo "not this" >&2; exit 3')
        log = self.repo / "build/logs/some.log"

        def look(run: Run) -> None:
            ended = run.script("test/some.sh", "x", "y z", log=log, env={"VARIANT": "c"})
            self.assertEqual(ended, Ended(3, "c x y z\n"))
            self.assertEqual([step.what for step in run.steps], ["some.sh x y z c"])
            run.result("looked", Counts(1, 0))
        self.assertEqual(self.counts(look), Counts(1, 0))
        self.assertEqual(log.read_text(), "c x y z\n")

    def test_cpu_time(self) -> None:
        self.put("test/some.sh", 'bash -c "while ((i++ < 100000)); do :; done"; sleep 0.3')
        steps = []

        def look(run: Run) -> None:
            run.script("test/some.sh")
            steps.extend(run.steps)
        self.run_all(look)
        self.assertGreater(steps[0].cpu, 0.02)
        self.assertGreater(steps[0].seconds, steps[0].cpu + 0.1)

    def test_shared_builds_are_made_once(self) -> None:
        self.put("host/image.sh", "echo $1 >>made; sleep 0.2; [[ $1 == good ]]")

        def group(run: Run) -> None:
            run.need("good", "it does not build", "host/image.sh", "good")
            run.result("good", Counts(1, 0))
            run.need("bad", "it does not build", "host/image.sh", "bad")
            run.result("not reached", Counts(1, 0))
        runs = self.run_all(group, group)
        self.assertEqual(sorted((self.repo / "made").read_text().split()), ["bad", "good"])
        self.assertEqual([[result.what for result in run.results] for run in runs], [["good", "it does not build"]] * 2)
        self.assertEqual(totals(runs), (2, 2))


class Order(Repo):
    def most(self, at_a_time: int) -> int:
        """How many of four groups have run at the same time, at most."""
        lock, now, most = threading.Lock(), 0, 0
        together = threading.Barrier(at_a_time, timeout=60)

        def group(run: Run) -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            together.wait()
            with lock:
                now -= 1
            together.wait()
            run.result("ran", Counts(1, 0))
        self.assertEqual(totals(self.run_all(group, group, group, group, at_a_time=at_a_time)), (4, 0))
        return most

    def test_at_a_time(self) -> None:
        self.assertEqual(self.most(1), 1)
        self.assertEqual(self.most(2), 2)

    def test_no_silence(self) -> None:
        self.put("test/long.sh", "until [[ -e told ]]; do sleep 0.05; done")

        def group(run: Run) -> None:
            run.script("test/long.sh")
            run.result("ran", Counts(1, 0))

        def told(text: str) -> None:
            if re.fullmatch(r"still running after \d+ s: long.sh", text):
                (self.repo / "told").touch()
        with mock.patch("runner.SILENT", 0.1), mock.patch("runner.note", told):
            self.assertEqual(self.counts(group), Counts(1, 0))

    def test_summary(self) -> None:
        self.put("test/some.sh", "true")

        def first(run: Run) -> None:
            run.script("test/some.sh", "fast")
            run.result("one", Counts(1, 0))
            run.result("two", Counts(2, 1))

        def second(run: Run) -> None:
            run.tables.append("a table of its own")
            run.result("three", Counts(3, 0))
        runs = self.run_all(first, second)
        runs[0].seconds = 7.0
        text = summary(runs)
        self.assertRegex(text, r"a +2 passed +1 failed   two\n")
        self.assertIn("\na table of its own\n", text)
        self.assertRegex(text, r"group +passed +failed +seconds +of CPU\na +3 +1 +7 +0\nb +3 +0 +0 +0\n")
        self.assertRegex(text, r"a +0 +0   some.sh fast$")
        self.assertIn("2 of 2 groups have ended", self.messages.getvalue())


if __name__ == "__main__":
    unittest.main()
