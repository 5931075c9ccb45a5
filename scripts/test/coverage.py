#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A table of the lines that tests reach, by file.

coverage.py REPO PART...       reads PART.lines, whose lines are FILE LINE COUNT. If the parts are
                               all that look at the driver, each of its lines that is not reached
                               needs a reason in docs/coverage.md, and each reason such a line; it
                               ends with "N passed, N failed" then
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

# What looks at the driver's files.
DRIVER_PARTS = {"queue", "schedules", "sanitiser"}
DRIVER = "drivers/"

FUNCTION = re.compile(r"\bfn (\w+)")
# | `file.rs` | `fn name` or the text of a line | why |
REASON = re.compile(r"\| `([\w.]+\.rs)` \| `(.+)` \| (\S.*) \|$")

Counts = dict[str, dict[int, int]]


def read(texts: Iterable[str]) -> Counts:
    """How often the lines of each file were run; a file may be in several texts."""
    counts: Counts = defaultdict(lambda: defaultdict(int))
    for text in texts:
        for line in text.splitlines():
            file, number, count = line.rsplit(" ", 2)
            counts[file][int(number)] += int(count)
    return counts


def reasons(page: str) -> dict[tuple[str, str], str]:
    """Why what is not reached is not: by file, and function or text of the line."""
    return {(match[1], match[2]): match[3] for line in page.splitlines() if (match := REASON.match(line))}


def names(source: list[str], number: int) -> tuple[str, str]:
    """What a reason may call a line: the function that it is in, and its text."""
    for line in reversed(source[:number]):
        if match := FUNCTION.search(line):
            return f"fn {match[1]}", source[number - 1].strip()
    return "", source[number - 1].strip()


def unexplained(file: str, source: list[str], lines: dict[int, int],
                why: dict[tuple[str, str], str], used: set[tuple[str, str]]) -> list[int]:
    """The lines of a file that are not reached, without a reason. Adds those used."""
    wrong = []
    for number, count in sorted(lines.items()):
        # A bracket at the end has no code of its own.
        if count or not source[number - 1].strip(" });,"):
            continue
        keys = [(file, name) for name in names(source, number) if (file, name) in why]
        used.update(keys)
        if not keys:
            wrong.append(number)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", type=Path)
    parser.add_argument("parts", type=Path, nargs="+")
    args = parser.parse_args()

    counts = read(part.with_suffix(".lines").read_text() for part in args.parts)
    why = reasons((args.repo / "docs/coverage.md").read_text())
    is_whole = {part.name for part in args.parts} >= DRIVER_PARTS
    used: set[tuple[str, str]] = set()
    passed = failed = 0

    print(f"{'file':<50} {'lines':>6} {'reached':>8} {'':>7}  without a reason")
    for path, lines in sorted(counts.items()):
        file = str(Path(path).relative_to(args.repo))
        reached = sum(count > 0 for count in lines.values())
        text = ""
        if is_whole and file.startswith(DRIVER):
            wrong = unexplained(Path(file).name, Path(path).read_text().splitlines(), lines, why, used)
            text = ", ".join(map(str, wrong)) or "none"
            passed, failed = passed + (not wrong), failed + bool(wrong)
        print(f"{file:<50} {len(lines):>6} {reached:>8} {100 * reached / len(lines):>6.1f}%  {text}")
    if is_whole:
        for unused in sorted(why.keys() - used):
            print(f"docs/coverage.md: {unused[0]}, {unused[1]}: is reached, or is not there")
            failed += 1
        print(f"\n{passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
