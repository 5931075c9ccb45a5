#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of how mutations.py makes mistakes, and of what it takes for a finding."""

import tempfile
import tomllib
import unittest
from pathlib import Path

import mutations


class Mutate(unittest.TestCase):
    MUTATION = {"what": "w", "file": "f", "edit": [["a == b", "a != b"], ["c", "d"]]}

    def test_all_edits_are_made(self):
        self.assertEqual(mutations.mutate(self.MUTATION, {"f": "if a == b { c }", "g": "c"}), {"f": "if a != b { d }", "g": "c"})

    def test_an_edit_can_be_in_another_file(self):
        mutation = {**self.MUTATION, "edit": [["a", "b"], ["c", "d", "g"]]}
        self.assertEqual(mutations.mutate(mutation, {"f": "a", "g": "c"}), {"f": "b", "g": "d"})

    def test_what_is_not_there_is_stale(self):
        with self.assertRaisesRegex(LookupError, "is 0 times in f"):
            mutations.mutate(self.MUTATION, {"f": "if a == b { }"})

    def test_what_is_there_twice_is_stale(self):
        with self.assertRaisesRegex(LookupError, "is 2 times in f"):
            mutations.mutate(self.MUTATION, {"f": "a == b, a == b, c"})


class Findings(unittest.TestCase):
    def test_failed(self):
        output = "running 3 tests\ntest a::fine ... ok\ntest a::b::bad ... FAILED\n"
        self.assertEqual(mutations.failed_test(output), "bad")

    def test_endless(self):
        output = "test a::fine ... ok\ntest a::slow has been running for over 60 seconds\n"
        self.assertEqual(mutations.failed_test(output), "slow")

    def test_none(self):
        self.assertIsNone(mutations.failed_test("test a::fine ... ok\n"))

    def test_scenario_of_shuttle(self):
        output = "thread panicked at x\nqueue: ILL, full, Late, seed 7: Scenario { name: .. }\n"
        self.assertEqual(mutations.failed_scenario(output), "ILL, full, Late")


class Litmus(unittest.TestCase):
    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def look(self, name, **results):
        for test, result in results.items():
            (self.folder / f"{test}.litmus".replace("_", "-")).write_text(f" * Result: {result}\n")
        return mutations.by_litmus({"litmus": name}, [self.folder])

    def test_found(self):
        self.assertEqual(self.look("free-no-acquire", free="Never", free_no_acquire="Sometimes"), "litmus test free-no-acquire")

    def test_not_there(self):
        self.assertIsNone(self.look("free-no-acquire", free="Never"))

    def test_that_which_must_not_happen_does_not(self):
        self.assertIsNone(self.look("free-no-acquire", free="Never", free_no_acquire="Never"))

    def test_that_it_happens_with_the_ordering_as_well(self):
        self.assertIsNone(self.look("free-no-acquire", free="Sometimes", free_no_acquire="Sometimes"))

    def test_that_there_is_none_with_the_ordering(self):
        self.assertIsNone(self.look("free-no-acquire", free_no_acquire="Sometimes"))


class List(unittest.TestCase):
    def test_each_is_there_once(self):
        listed = tomllib.loads((mutations.HERE / "mutations.toml").read_text())["mutation"]
        names = [mutation["what"] for mutation in listed]
        self.assertEqual(len(names), len(set(names)))
        self.assertTrue(any(mutation.get("quick") for mutation in listed))


if __name__ == "__main__":
    unittest.main()
