#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""pages.py [--update]: checks that the tables in the pages are those of what they are made
of: the ioctl's outcomes of docs/contract.toml, the figures of scripts/test/bench.expected.json and bench.figures.json,
what loom has run, and what finds the mutations of the queue. Checks that the tests exist
which docs/contract.toml names, and those that pages name in the same way, that the files
which the pages name are there, and that the map in README has every directory.
With --update, it writes the tables first.
"""

import argparse
import json
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
README = REPO / "README.md"
GUIDE = REPO / "Documentation/userspace-api/iommufd-arm-smmuv3.rst"
PAGE = REPO / "docs/contract.md"
FIGURES = REPO / "docs/performance.md"
PROOFS = REPO / "docs/verification.md"
QUEUE = REPO / "tools/verify/queue"
DRIVER = REPO / "drivers/iommu/arm/arm-smmu-v3"

TEST = re.compile(r"\b(demo|faults|kselftest|kunit):([A-Za-z0-9_./=-]+[A-Za-z0-9_])")


def rst(rows):
    """The table in the guide."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 56 14 18 12", ""]
    for cells in [("What happens", "errno", "entry_num", "code"),
                  *((row["what"], row["errno"], row["entry_num"], row["code"]) for row in rows)]:
        for first, cell in zip(("   * - ", "     - ", "     - ", "     - "), cells):
            lines += textwrap.wrap(cell, 78, initial_indent=first, subsequent_indent="       ")
    return "\n".join(lines)


def markdown(rows, what, *more):
    """A table with the given description, and more columns: a header and a function each."""
    head = ["what happens", "errno", "`entry_num`", "code"] + [name for name, _ in more]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        errno = re.sub(r"(E[A-Z0-9]+)", r"`\1`", row["errno"])
        lines.append([row[what], errno, row["entry_num"], row["code"]] + [cell(row) for _, cell in more])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(rows):
    """docs/contract.md."""
    def tests(row):
        return ", ".join(f"`{test}`" for test in row["shown_by"]) or "**no test**"
    return f"""# The contract, and the tests that hold it

Made of `docs/contract.toml` by `scripts/test/pages.py --update`; `make lint ONLY=docs` looks whether
it is up to date, and whether each of these tests is there.

k is an index into the array of commands, n its length. *entry_num = k* says that the commands 0 to k - 1
are complete, that is, a CMD_SYNC behind them has completed. The code is `out_driver_error_code`. What a VMM
has to make of each answer is in `Documentation/userspace-api/iommufd-arm-smmuv3.rst`.

Where the tests are:

| | run with | source |
| --- | --- | --- |
| `demo:` | `make run`, `make test ONLY=demo` | `tools/vsmmu/demo/src/` |
| `faults:` | `make faults ONLY=` and the row | `tools/vsmmu/faults/src/` |
| `kselftest:` | `make kselftest`, `make test ONLY=kselftest` | `tools/testing/selftests/iommu/` |
| `kunit:` | `make kunit` | `drivers/iommu/arm/arm-smmu-v3/tests*.rs` |

{markdown(rows, "what", ("shown by", tests))}
"""


def figures(rows):
    """The table of instructions."""
    lines = ["| instructions | commands | C | Rust | Rust/C | CMD_SYNCs |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        lines.append(f"| {row['id']} | {row['n']} | {row['c']} | {row['rust']} | {row['ratio']:.2f} | {row['syncs']} |")
    return "\n".join(lines)


def configurations(rows):
    """The table of both configurations: a case a line, with each one's figures."""
    def case(row):
        where = f", {row['smmu']} SMMU, {row['completion']}" if "smmu" in row else ""
        return ("ns" if row["group"] == "waiting" else "instructions", f"{row['id']}{where}", row["n"])
    found = {}
    for row in rows:
        found.setdefault(case(row), {})[row["config"]] = row
    lines = ["| | commands | unit | C | Rust | Rust/C | Debian: C | Rust | Rust/C |",
             "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for (unit, name, n), by in found.items():
        cells = []
        for config in ("first", "debian"):
            row = by.get(config)
            cells += [str(row["c"]), str(row["rust"]), f"{row['rust'] / row['c']:.2f}"] if row else ["-"] * 3
        lines.append(f"| {name} | {n} | {unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mutations():
    """The table of mistakes in the queue, and of what finds them."""
    listed = tomllib.loads((QUEUE / "mutations.toml").read_text())["mutation"]
    lines = (line.split("\t") for line in (QUEUE / "found.tsv").read_text().splitlines() if not line.startswith("#"))
    found = dict(lines)
    table = ["| Mutation | In | Found by |", "| --- | --- | --- |"]
    for row in listed:
        by = found.pop(row["what"], "**nothing**")
        control = " (control)" if row.get("control") else ""
        table.append(f"| {row['what']}{control} | `{row['file']}` | {by} |")
    if found:
        sys.exit(f"error: found.tsv has what mutations.toml has not: {', '.join(found)}")
    return "\n".join(table)


def plans():
    """The table of what loom was run on: of what `queue-loom` printed in the quick tier, and in the long one."""
    runs = {}
    for line in (QUEUE / "loom.tsv").read_text().splitlines():
        if not line.startswith("#"):
            what, bound, count, seconds, _ = line.split("\t")
            runs.setdefault(what.removeprefix("loom: "), []).append((bound.split()[0], count.split()[0], seconds))
    table = ["| Plan | Preemptions | Executions | Seconds |", "| --- | ---: | ---: | ---: |"]
    for what, run in runs.items():
        table.append(f"| {what} | " + " | ".join(" / ".join(cells) for cells in zip(*run)) + " |")
    return "\n".join(table)


def between(text, begin, end, table, name):
    """The text with the table in place of what is between two markers."""
    parts = re.split(f"(?<={re.escape(begin)}\n)(.*?)(?={re.escape(end)})", text, maxsplit=1, flags=re.DOTALL)
    if len(parts) != 3:
        sys.exit(f"error: {name} has no lines {begin} and {end}")
    return f"{parts[0]}\n{table}\n\n{parts[2]}"


def pattern_of(literal):
    """What a string literal of a test's source stands for, with its format arguments."""
    return re.sub(r"\\\{[^}]*\\\}", "([A-Za-z0-9_.=-]+?)", re.escape(literal))


class Tests:
    """Looks up tests in the sources, which is where they get their names."""

    def __init__(self):
        self.rows, self.words = {}, {}
        for kind in ("demo", "faults"):
            text = "".join(file.read_text() for file in (REPO / "tools/vsmmu" / kind / "src").rglob("*.rs"))
            literals = set(re.findall(r'"([a-z][A-Za-z0-9_./={}:#,-]*)"', text))
            self.rows[kind] = [re.compile(pattern_of(literal)) for literal in literals]
            # What the arguments can be: numbers and strings of the same program.
            library = "".join(file.read_text() for file in (REPO / "tools/vsmmu/nested/src").glob("*.rs"))
            self.words[kind] = set(re.findall(r'(?<=")[A-Za-z0-9_.=-]+(?=")|[0-9][0-9_]*', text + library))
            self.words[kind] |= {word.replace("_", "") for word in self.words[kind]}
        source = "".join(file.read_text() for file in (REPO / "tools/testing/selftests/iommu").glob("*.c"))
        self.kselftest = {".".join(test) for test in
                          re.findall(r"^TEST_F(?:_TIMEOUT)?\((\w+), (\w+)", source, re.MULTILINE)}
        self.kunit = set()
        for file in [*DRIVER.glob("tests*.rs"), *(REPO / "rust/kernel").rglob("*.rs")]:
            suite = None
            for line in file.read_text().splitlines():
                if found := re.match(r"#\[kunit_tests\((\w+)\)\]", line):
                    suite = found[1]
                elif suite and (found := re.match(r"    fn (\w+)\(\)", line)):
                    self.kunit.add(f"{suite}.{found[1]}")

    def has(self, kind, name):
        if kind in self.rows:
            found = (row.fullmatch(name) for row in self.rows[kind])
            return any(match and self.words[kind].issuperset(match.groups()) for match in found)
        return name in getattr(self, kind)


def mapped(readme):
    """The directories that the map in README names, each with a / at its end. In a row, those
    behind the first cell are within that one's."""
    found = set()
    for line in readme.partition("\n## Where things are\n")[2].partition("\n## ")[0].splitlines():
        first, *rest = (re.findall(r"`([A-Za-z0-9_./-]+/)`", cell) for cell in line.strip("|").split("|"))
        found.update(first, *([first[0] + name for name in names] for names in rest if first))
    return found


def off_the_map(files, named):
    """What is wrong with a map that names these directories: those with files that it does not
    have, and those that are not there. One of which no part is named stands for all in it; one
    of which some parts are named does not, but for parts with a dot, which are settings."""
    there = {name.rpartition("/")[0] + "/" for name in files if "/" in name}
    whole = {name for name in named if not any(other != name and other.startswith(name) for other in named)}
    missing = {name for name in there - named if not any(name.startswith(outer) for outer in whole)
               and not any(name.startswith(f"{outer}.") for outer in named)}
    gone = {name for name in named if not any(directory.startswith(name) for directory in there)}
    return [f"{name} is not in the map" for name in sorted(missing)] + [f"there is no {name}" for name in sorted(gone)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    rows = tomllib.loads((REPO / "docs/contract.toml").read_text())["row"]
    short = [row for row in rows if "short" in row]
    wanted = {
        README: between(README.read_text(), "<!-- contract begin -->", "<!-- contract end -->",
                        markdown(short, "short"), "README.md"),
        GUIDE: between(GUIDE.read_text(), ".. contract begin", ".. contract end", rst(rows), GUIDE.name),
        PAGE: page(rows),
        PROOFS: between(between(PROOFS.read_text(), "<!-- loom begin -->", "<!-- loom end -->", plans(), PROOFS.name),
                        "<!-- mutations begin -->", "<!-- mutations end -->", mutations(), PROOFS.name),
        FIGURES: between(between(FIGURES.read_text(), "<!-- configurations begin -->", "<!-- configurations end -->",
                                 configurations(json.loads((REPO / "scripts/test/bench.figures.json").read_text())), FIGURES.name),
                         "<!-- figures begin -->", "<!-- figures end -->",
                         figures(json.loads((REPO / "scripts/test/bench.expected.json").read_text())), FIGURES.name),
    }
    wrong = []
    for file, text in wanted.items():
        if args.update:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            wrong.append(f"{file.relative_to(REPO)} has another table than what it is made of: scripts/test/pages.py --update")

    ids = [row["id"] for row in rows]
    wrong += [f"docs/contract.toml: {name} is there twice" for name in sorted(set(ids)) if ids.count(name) > 1]
    tests = Tests()
    named = {"docs/contract.toml": [(kind, name) for row in rows for test in row["shown_by"]
                                    for kind, _, name in [test.partition(":")]]}
    files = set(subprocess.run(["git", "-c", f"safe.directory={REPO}", "-C", REPO, "ls-files", "-co", "--exclude-standard"], check=True,
                               capture_output=True, text=True).stdout.splitlines())
    for file in [*sorted(REPO.glob("*.md")), *sorted((REPO / "docs").glob("*.md"))]:
        text, where = file.read_text(), str(file.relative_to(REPO))
        if file != PAGE:
            named[where] = TEST.findall(text)
        # What looks like a file of the repository has to be one, or a folder of it.
        tops = {name.split("/")[0] for name in files if "/" in name}
        for path in re.findall(r"`([A-Za-z0-9_.]+/[A-Za-z0-9_./*{},+-]*)`", text):
            glob = re.escape(path).replace(r"\*", "[^/]*")
            if path.split("/")[0] in tops and not any(re.match(f"{glob.rstrip('/')}(/|$)", name) for name in files):
                wrong.append(f"{where}: there is no {path}")
    wrong += [f"README.md: {line}" for line in off_the_map(files, mapped(README.read_text()))]
    # The map in README has each file of the driver, and no other.
    driver = str(DRIVER.relative_to(REPO))
    ours = {name.rpartition("/")[2] for name in files if name.rpartition("/")[0] == driver}
    listed = set(re.findall(r"`([a-z0-9_*-]+\.(?:rs|c))`", README.read_text()))
    globs = [re.compile(re.escape(name).replace(r"\*", "[^/]*")) for name in listed]
    wrong += [f"README.md: {driver}/{name} is not in the map" for name in sorted(ours)
              if not any(glob.fullmatch(name) for glob in globs)]
    wrong += [f"README.md: there is no {driver}/{glob.pattern}" for glob in globs
              if not any(glob.fullmatch(name) for name in ours)]
    for where, names in named.items():
        wrong += [f"{where}: there is no test {kind}:{name}" for kind, name in names if not tests.has(kind, name)]

    for line in wrong:
        print(line, file=sys.stderr)
    untested = [row["id"] for row in rows if not row["shown_by"]]
    print(f"{len(rows)} outcomes, {sum(map(len, named.values()))} tests named"
          + (f"; no test shows {', '.join(untested)}" if untested else ""))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
