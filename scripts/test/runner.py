# SPDX-License-Identifier: GPL-2.0
"""Runs groups of tests: two at a time if there are as many CPUs, what several of them need once,
and prints what came of them. groups.py has the groups.

A group is a function that is given a Run. It has scripts do the work, and calls result() for what
they found; what ends without a result, or by an exception, has failed.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from results import Case, Result, junit, ktap, parse

COUNTS = re.compile(r"^(\d+) passed, (\d+) failed$", re.MULTILINE)
SLOWEST = 10
# Seconds after which one is told what is still running.
SILENT = 60.0


@dataclass(frozen=True)
class Counts:
    """How many tests have passed and failed."""

    passed: int
    failed: int


@dataclass(frozen=True)
class Ended:
    """How a script ended, and what it has printed."""

    status: int
    text: str


@dataclass(frozen=True)
class Step:
    """A script that was run, how long it took, and on the CPUs."""

    group: str
    what: str
    seconds: float
    cpu: float


@dataclass(frozen=True)
class Group:
    """A group of tests, and what it is, for the list of them."""

    name: str
    what: str
    run: Callable[[Run], None]


class Stop(Exception):
    """A group cannot go on, for the given reason."""


def say(text: str) -> None:
    """Tells what is done now, as say of lib.sh."""
    print(f"==> {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Tells more of it, as note of lib.sh."""
    print(f"    {text}", file=sys.stderr, flush=True)


def counts(text: str) -> Counts | None:
    """What the last line "N passed, N failed" says, with which all scripts end."""
    found = COUNTS.findall(text.replace("\r", ""))
    return Counts(int(found[-1][0]), int(found[-1][1])) if found else None


class Once:
    """What several groups need, made by the first of them while the others wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, Future[bool]] = {}

    def make(self, name: str, command: Callable[[], bool]) -> bool:
        """Whether it is there, after the command if nobody has run that before."""
        with self._lock:
            first = name not in self._made
            made = self._made.setdefault(name, Future())
        if first:
            try:
                made.set_result(command())
            except BaseException as error:
                made.set_exception(error)
                raise
        return made.result()


class Run:
    """A group while it runs."""

    def __init__(self, name: str, repo: Path, once: Once) -> None:
        self.name = name
        self.repo = repo
        self.build = repo / "build"
        self.logs = self.build / "logs"
        self.results: list[Result] = []
        self.steps: list[Step] = []
        self.tables: list[str] = []
        self.seconds = 0.0
        self.now: tuple[str, float] | None = None
        self._once = once
        self._last = time.monotonic()

    def result(self, what: str, found: Counts | None, cases: Iterable[Case] = ()) -> None:
        """One line of the table in the end, with each of the tests if they are known. To have looked
        at nothing is a failure."""
        if not found or found == Counts(0, 0):
            found = Counts(0, 1)
        now = time.monotonic()
        self.results.append(Result(self.name, found.passed, found.failed, what, tuple(cases), now - self._last))
        self._last = now
        note(f"{self.name}: {found.passed} passed, {found.failed} failed: {what}")

    def table(self, what: str, ended: Ended) -> None:
        """The result of a script that prints what it has looked at, and then its counts."""
        found = counts(ended.text)
        if found and ended.status and not found.failed:
            found = Counts(found.passed, 1)
        if not found or found.failed:
            wrong = [line for line in ended.text.splitlines() if not re.match(r"ok  | *$", line)]
            print("\n".join(wrong), file=sys.stderr, flush=True)
        self.result(what, found, parse(ended.text.splitlines()))

    def script(self, name: str, *args: str, log: Path | None = None, env: Mapping[str, str] | None = None) -> Ended:
        """Runs one of scripts/. What it prints goes into the log; its messages are shown."""
        settings = " ".join((env or {}).get(key, "") for key in ("VARIANT", "NAME", "PROGRAM")).split()
        return self.command([str(self.repo / "scripts" / name), *args], log=log, env=env,
                            what=" ".join([name.rpartition("/")[2], *args[:4], *settings]))

    def command(self, command: Sequence[str], *, what: str, log: Path | None = None,
                env: Mapping[str, str] | None = None, stdin: Path = Path(os.devnull)) -> Ended:
        """Runs a command and records how long it took."""
        start = time.monotonic()
        self.now = what, start
        with stdin.open() as file, subprocess.Popen(command, env={**os.environ, **(env or {})}, stdin=file, text=True,
                                                    stdout=subprocess.PIPE, errors="replace") as process:
            assert process.stdout
            text = process.stdout.read()
            # Of this process and those that it has waited for.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        self.now = None
        self.steps.append(Step(self.name, what, time.monotonic() - start, usage.ru_utime + usage.ru_stime))
        if log:
            log.write_text(text)
        return Ended(process.returncode, text)

    def logged(self, name: str, what: str, *command: str) -> bool:
        """Runs a command with its output in a log, as logged of lib.sh, which this is."""
        shell = '. "$0"; logged "$@"'
        return self.command(["bash", "-c", shell, str(self.repo / "scripts/lib.sh"), name, what, *command],
                            what=what).status == 0

    def need(self, name: str, missing: str, *script: str) -> None:
        """What a script makes that others need, too. The group stops if that cannot be made."""
        if not self._once.make(name, lambda: self.script(*script).status == 0):
            raise Stop(missing)


def run_group(group: Group, run: Run) -> None:
    """Runs a group, with its failures as results."""
    start = time.monotonic()
    try:
        group.run(run)
        if not run.results:
            run.result("the group did not look at anything", None)
    except Stop as stop:
        run.result(str(stop), None)
    except Exception:  # pylint: disable=broad-exception-caught
        traceback.print_exc()
        run.result("the group did not run to its end, see above", None)
    run.seconds = time.monotonic() - start


def run_groups(groups: Sequence[Group], repo: Path, at_a_time: int) -> list[Run]:
    """Runs groups, so many at a time, in this order; returns them in this order, too."""
    once = Once()
    runs = [Run(group.name, repo, once) for group in groups]
    lock = threading.Lock()
    ended = 0

    def run(at: int) -> None:
        nonlocal ended
        run_group(groups[at], runs[at])
        with lock:
            ended += 1
            if len(groups) > 1:
                note(f"{groups[at].name} took {runs[at].seconds:.0f} s; {ended} of {len(groups)} groups have ended")

    with ThreadPoolExecutor(at_a_time) as pool:
        pending = {pool.submit(run, at) for at in range(len(groups))}
        try:
            while pending:
                done, pending = wait(pending, timeout=SILENT, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                for what, start in [now for now in (run.now for run in runs) if now and not done]:
                    note(f"still running after {time.monotonic() - start:.0f} s: {what}")
        except KeyboardInterrupt:
            # Not after what still runs: that ends with the build root.
            os._exit(130)
    return runs


def summary(runs: Sequence[Run]) -> str:
    """What is printed in the end, but for the counts: each result, tables of groups, each group with
    its time, and the slowest steps."""
    lines = [""]
    for run in runs:
        for result in run.results:
            lines.append(f"{run.name:<10} {result.passed:4} passed {result.failed:4} failed   {result.what}")
    lines.append("")
    for run in runs:
        lines += [line for table in run.tables for line in (table, "")]
    lines.append(f"{'group':<10} {'passed':>6} {'failed':>6} {'seconds':>7} {'of CPU':>7}")
    for run in sorted(runs, key=lambda run: -run.seconds):
        passed, failed = totals([run])
        cpu = sum(step.cpu for step in run.steps)
        lines.append(f"{run.name:<10} {passed:6} {failed:6} {run.seconds:7.0f} {cpu:7.0f}")
    steps = sorted((step for run in runs for step in run.steps), key=lambda step: -step.seconds)[:SLOWEST]
    lines += ["", f"{'the slowest steps':<24} {'seconds':>7} {'of CPU':>7}"]
    lines += [f"{step.group:<24} {step.seconds:7.0f} {step.cpu:7.0f}   {step.what}" for step in steps]
    return "\n".join(lines)


def totals(runs: Sequence[Run]) -> tuple[int, int]:
    """How many tests have passed and failed."""
    results = [result for run in runs for result in run.results]
    return sum(result.passed for result in results), sum(result.failed for result in results)


@contextmanager
def locked(path: Path) -> Iterator[TextIO]:
    """Holds a lock, as lock of lib.sh."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"waiting for another make that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def write(runs: Sequence[Run], out: Path) -> None:
    """Writes each test, as JUnit's XML and as KTAP."""
    found = [result for run in runs for result in run.results]
    junit(found).write(out / "results.xml", encoding="unicode", xml_declaration=True)
    (out / "results.ktap").write_text(ktap(found))
