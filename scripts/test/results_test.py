#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of results.py."""

import unittest

from results import Case, Result, complete, junit, ktap, names, on_c, parse


class Parse(unittest.TestCase):
    def test_ktap(self) -> None:
        log = """\
--- tree/iommufd
TAP version 13
1..3
ok 1 a.b
not ok 2 a.variant.c
ok 3 a.d # SKIP there is no device
# FAILED: 2 / 3 tests passed.
# Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0
--- status 1
--- tree/other
ok 1 a.b
--- status 139
"""
        self.assertEqual(list(parse(log.splitlines())), [
            Case("tree/iommufd:a.b", "ok"), Case("tree/iommufd:a.variant.c", "fail"),
            Case("tree/iommufd:a.d", "skip"), Case("tree/other:a.b", "ok"),
            Case("tree/other:to its end", "fail")])

    def test_table(self) -> None:
        log = """\
row | what was done       | errno | as it should | ok
----------------------------------------------
  1 | TLBI of both pages  | 0 2 - | 0 2 -        | ok\r
  2 | a bad one           | 0 2 - | EIO 1 ILL    | FAILED
    |   wrong: errno | ok
2 passed, 1 failed
"""
        self.assertEqual(list(parse(log.splitlines())), [
            Case("TLBI of both pages", "ok"), Case("a bad one", "fail")])

    def test_phases(self) -> None:
        log = """\
rust      | what was looked at     | what was seen       | ok
-----------------------------------------------------------
clean     | nothing bad in the log | 0 messages          | ok
lost-va   | reads | and writes     | 1 of 3 x 2 MB wrong | FAILED

CMD_SYNC                         425
"""
        self.assertEqual(list(parse(log.splitlines())), [
            Case("clean: nothing bad in the log", "ok"), Case("lost-va: reads | and writes", "fail")])

    def test_columns(self) -> None:
        log = """\
what                 bound       seconds  result
every command        vsid 0 to 3      12  ok
the queue, by loom   2 threads         9  FAILED
"""
        self.assertEqual(list(parse(log.splitlines())), [
            Case("every command", "ok"), Case("the queue, by loom", "fail")])

    def test_a_long_line_takes_no_time(self) -> None:
        # It is read by each of the expressions, and none may try all ways of splitting it.
        for line in ["a" + " " * 20000 + "b", "a |" * 2000, "ok   " + "a  " * 2000 + ".", "1 | " + "a  " * 2000 + "|"]:
            self.assertLessEqual(len(list(parse([line]))), 1)

    def test_json(self) -> None:
        log = ['{"kernel":"7.3"}', '{"id":"a","ok":true}', '{"id":"b","ok":false}',
               '{"id":"c","applies":false}', '{"passed":1,"failed":1}']
        self.assertEqual(list(parse(log)), [Case("a", "ok"), Case("b", "fail"), Case("c", "skip")])

    def test_cargo(self) -> None:
        log = ["running 3 tests", "test a::b ... ok", "test a::c ... FAILED", "test d ... ignored, takes long",
               "test result: FAILED. 1 passed; 1 failed; 1 ignored"]
        self.assertEqual(list(parse(log)), [Case("a::b", "ok"), Case("a::c", "fail"), Case("d", "skip")])

    def test_lines(self) -> None:
        log = ["ok    shell scripts: shellcheck (3 s)", "FAIL  texts: codespell (12 s)", "      more", "ok"]
        self.assertEqual(list(parse(log)), [Case("shell scripts: shellcheck", "ok"), Case("texts: codespell", "fail")])


class OnC(unittest.TestCase):
    def failures(self, cases: list[Case]) -> list[str]:
        return [case.name for case in on_c({"a", "b"}, cases) if case.status == "fail"]

    def test_as_expected(self) -> None:
        self.assertEqual(self.failures([Case("a", "fail"), Case("b", "fail"), Case("c", "ok"), Case("d", "skip")]), [])

    def test_passes_though_it_must_fail(self) -> None:
        self.assertEqual(self.failures([Case("a", "ok"), Case("b", "fail")]), ["a: must fail, and does not"])

    def test_fails_though_it_must_not(self) -> None:
        cases = [Case("a", "fail"), Case("b", "fail"), Case("c", "fail")]
        self.assertEqual(self.failures(cases), ["c: fails, and is not known to"])

    def test_skipped_or_missing(self) -> None:
        self.assertEqual(self.failures([Case("a", "skip")]),
                         ["a: must fail, and does not", "b: must fail, and was not run"])

    def test_list(self) -> None:
        self.assertEqual(names("# comment\n\na\n b \n"), {"a", "b"})


class Write(unittest.TestCase):
    def test_formats(self) -> None:
        found = [Result("x", 1, 1, "what <it> was", (Case("a", "ok"), Case("b", "fail"), Case("c", "skip")), 1.25),
                 Result("x", 1, 0, "no log", ()),
                 Result("x", 1, 0, "some", (Case("a", "ok"),))]
        root = junit(found).getroot()
        assert root is not None
        self.assertEqual([(suite.get("tests"), suite.get("failures"), suite.get("skipped")) for suite in root],
                         [("3", "1", "1"), ("1", "0", "0"), ("1", "0", "0")])
        self.assertEqual(root[0].get("time"), "1.2")
        self.assertIn("not ok 1 x: what <it> was\n", ktap(found))
        self.assertIn("  not ok 2 b\n", ktap(found))

    def test_a_failure_that_no_log_tells_of_shows(self) -> None:
        result = Result("x", 3, 1, "the kernel reported an error", (Case("a", "ok"),))
        self.assertEqual(complete(result)[-1], Case("the kernel reported an error", "fail"))


if __name__ == "__main__":
    unittest.main()
