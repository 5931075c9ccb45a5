#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""What tests say, read from their logs.

results.py cases LOG...        the tests of a log, one a line: its name, ok, fail or skip
results.py on-c LIST LOG...    holds a log of the C kernel against the names of the tests that must
                               fail there: each of them has to fail, and no other may. Ends with
                               "N passed, N failed"

A log is what one of the test programs has printed: KTAP, after lines "--- PROGRAM" if there are
several; a table whose last column says ok or FAILED; JSON, one object a line; what cargo test prints;
or lines "ok    WHAT" and "FAIL  WHAT".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

KTAP = re.compile(r"(not ok|ok) \d+ (?:- )?(.*?)(?: # (SKIP|XFAIL)\b.*)?$")
TABLE = re.compile(r" *\d+ \| (.*\S) *\| (ok|FAILED)$")
PHASE = re.compile(r"([a-z][a-z-]*) +\| (?!what was )(.*\S) +\| .* \| (ok|FAILED)$")
# Without choices for the width of the first column, of which there are too many in a long line.
COLUMNS = re.compile(r"(\S+(?: \S+)*) {2}.* {2}(ok|FAILED)$")
CARGO = re.compile(r"test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)(?:, .*)?$")
LINE = re.compile(r"(ok|FAIL) {2,4}(\S.*?)(?: \(\d+ s\))?$")
STATUS = {"ok": "ok", "not ok": "fail", "FAILED": "fail", "FAIL": "fail", "ignored": "skip"}


@dataclass(frozen=True)
class Case:
    """A test and how it ended: ok, fail or skip."""

    name: str
    status: str


@dataclass(frozen=True)
class Result:
    """What a group has looked at: how many tests, and those that are known one by one."""

    group: str
    passed: int
    failed: int
    what: str
    cases: tuple[Case, ...]
    seconds: float = 0.0


def parse(lines: Iterable[str]) -> Iterator[Case]:
    """The tests of a log."""
    program, ended = "", True
    for line in lines:
        line = line.rstrip("\r\n")
        if match := re.fullmatch(r"--- (\S+/\S+)", line):
            if not ended:
                yield Case(f"{program}to its end", "fail")
            program, ended = f"{match[1]}:", False
        elif line.startswith("# Totals:"):
            ended = True
        elif match := KTAP.fullmatch(line):
            yield Case(program + match[2], "skip" if match[3] == "SKIP" else STATUS[match[1]])
        elif match := TABLE.fullmatch(line):
            # What was done, and not what came of it.
            yield Case(match[1].split(" | ")[0].strip(), STATUS[match[2]])
        elif match := PHASE.fullmatch(line):
            yield Case(f"{match[1]}: {match[2]}", STATUS[match[3]])
        elif match := COLUMNS.fullmatch(line):
            yield Case(match[1], STATUS[match[2]])
        elif line.startswith('{"'):
            row = json.loads(line)
            if "id" in row:
                yield Case(row["id"], "skip" if "ok" not in row else "ok" if row["ok"] else "fail")
        elif match := CARGO.fullmatch(line):
            yield Case(match[1], STATUS[match[2]])
        elif match := LINE.fullmatch(line):
            yield Case(match[2], STATUS[match[1]])
    if not ended:
        yield Case(f"{program}to its end", "fail")


def read(log: Path) -> list[Case]:
    """The tests of a log that may not be there."""
    if not log.is_file():
        return []
    return list(parse(log.read_text(errors="replace").splitlines()))


def names(text: str) -> set[str]:
    """The names in a list, which has comments."""
    return {line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")}


def on_c(expected: set[str], cases: list[Case]) -> list[Case]:
    """How tests on the C kernel meet what is expected of them: a test that must fail and does is ok."""
    outcome: dict[str, Case] = {}
    for case in cases:
        if case.status == "skip" and case.name not in expected:
            continue
        if (case.status == "fail") == (case.name in expected):
            what = f"{case.name}: fails, as it must" if case.status == "fail" else case.name
            outcome[case.name] = Case(what, "ok")
        elif case.status == "fail":
            outcome[case.name] = Case(f"{case.name}: fails, and is not known to", "fail")
        else:
            outcome[case.name] = Case(f"{case.name}: must fail, and does not", "fail")
    for name in sorted(expected - outcome.keys()):
        outcome[name] = Case(f"{name}: must fail, and was not run", "fail")
    return list(outcome.values())


def complete(result: Result) -> list[Case]:
    """Its tests; or one of them that stands for what the logs do not tell."""
    cases = list(result.cases)
    failed = sum(case.status == "fail" for case in cases)
    if not cases or (result.failed > 0) != (failed > 0):
        cases.append(Case(result.what, "fail" if result.failed else "ok"))
    return cases


def junit(found: list[Result]) -> ElementTree.ElementTree:
    """As JUnit's XML, a suite for each result."""
    root = ElementTree.Element("testsuites")
    for result in found:
        cases = complete(result)
        suite = ElementTree.SubElement(
            root, "testsuite", name=f"{result.group}: {result.what}", tests=str(len(cases)),
            failures=str(sum(case.status == "fail" for case in cases)),
            skipped=str(sum(case.status == "skip" for case in cases)), time=f"{result.seconds:.1f}")
        for case in cases:
            element = ElementTree.SubElement(suite, "testcase", classname=result.group, name=case.name)
            if case.status != "ok":
                ElementTree.SubElement(element, "failure" if case.status == "fail" else "skipped")
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def ktap(found: list[Result]) -> str:
    """As KTAP, with the tests of a result as its subtests."""
    lines = ["KTAP version 1", f"1..{len(found)}"]
    for i, result in enumerate(found, 1):
        cases = complete(result)
        lines += ["  KTAP version 1", f"  # Subtest: {result.group}", f"  1..{len(cases)}"]
        for j, case in enumerate(cases, 1):
            ok = "not ok" if case.status == "fail" else "ok"
            skip = " # SKIP" if case.status == "skip" else ""
            lines.append(f"  {ok} {j} {case.name.replace('#', '')}{skip}")
        lines.append(f"{'not ok' if result.failed else 'ok'} {i} {result.group}: {result.what.replace('#', '')}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("cases")
    command.add_argument("logs", type=Path, nargs="+")
    command = commands.add_parser("on-c")
    command.add_argument("list", type=Path)
    command.add_argument("logs", type=Path, nargs="+")
    args = parser.parse_args()

    cases = [case for log in args.logs for case in read(log)]
    if args.command == "cases":
        for case in cases:
            print(f"{case.name}\t{case.status}")
        return 0
    cases = on_c(names(args.list.read_text()), cases)
    for case in cases:
        print(f"{'FAIL' if case.status == 'fail' else 'ok  '}  {case.name}")
    failed = sum(case.status == "fail" for case in cases)
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
