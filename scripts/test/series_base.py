#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""series_base.py PRISTINE OTHER: tells what the series meets in another kernel than the one
it is made for: which patches apply there, and which names that its code uses the kernel has
here and not there, with the file that has them. Fails if that is not what docs/base.md has;
with --update it writes that table.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "host"))
from stage import PATCHES, REPO, overlay, patched_files, series  # noqa: E402

PAGE = REPO / "docs/base.md"
BEGIN, END = "<!-- base begin -->", "<!-- base end -->"
# Where code of the kernel finds what it uses.
FOLDERS = ["arch/arm64/include", "drivers/iommu", "include", "rust"]
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{4,}")
# Those of the standard library, which other files happen to use.
LIBRARY = {"from_le"}
DEFINED = re.compile(r"\b(?:struct|enum|trait|type|mod|fn|const|static|let|let mut)\s+([A-Za-z_]\w*)")


def without_comments(text, name):
    if name.endswith((".c", ".h")):
        return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def used():
    """The names in the code of the series, tests and documentation left out."""
    found, defined = set(), set(LIBRARY)
    for name, file in overlay().items():
        top, base = name.split("/")[0], name.rpartition("/")[2]
        if top in ("drivers", "rust", "include") and file.suffix in (".rs", ".c", ".h") and not base.startswith("tests"):
            text = without_comments(file.read_text(), name)
            found.update(NAME.findall(text))
            defined.update(DEFINED.findall(text))
    for patch, _ in series():
        for hunk in re.split(r"^(?=--- )", patch.read_text(), flags=re.M)[1:]:
            if re.match(r"--- \S+\n\+\+\+ b/(drivers|rust|include)/", hunk):
                lines = [line[1:] for line in hunk.splitlines()[2:] if line[:1] in "+- "]
                found.update(NAME.findall(without_comments("\n".join(lines), "patch.c")))
    # One underscore is a parameter that is not used.
    return {name for name in found - defined if not re.match("_[a-z]", name)}


def names(tree):
    """Each name in a tree, with the first file that has it, headers and Rust before C."""
    found = {}
    files = [file for folder in FOLDERS for file in (tree / folder).rglob("*") if file.suffix in (".h", ".rs", ".c")]
    for file in sorted(files, key=lambda file: (file.suffix == ".c", "/helpers/" in str(file), str(file))):
        for name in NAME.findall(without_comments(file.read_text(errors="replace"), file.name)):
            found.setdefault(name, str(file.relative_to(tree)))
    return found


def tries(other):
    """For each patch, whether it applies behind those before it, and if not why."""
    with tempfile.TemporaryDirectory() as folder:
        staging = Path(folder)
        for patch, _ in series():
            wanted = patched_files(patch)
            for name in wanted:
                if not (staging / name).exists() and (other / name).is_file():
                    (staging / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(other / name, staging / name)
            if not wanted:
                continue
            with patch.open() as stdin:
                run = subprocess.run(["patch", "-p1", "--force", "--no-backup-if-mismatch", "--reject-file=-"],
                                     cwd=staging, stdin=stdin, capture_output=True, text=True, check=False)
            missing = [name for name in sorted(wanted) if not (staging / name).exists()]
            rejected, file = [], ""
            for line in run.stdout.splitlines():
                file = line.removeprefix("patching file ") if line.startswith("patching file ") else file
                if re.match(r"Hunk #\d+ FAILED", line):
                    rejected.append(file)
            yield patch.name, missing, sorted(set(rejected))


def version(tree):
    values = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$", (tree / "Makefile").read_text(), re.M))
    return f"{values['VERSION']}.{values['PATCHLEVEL']}.{values['SUBLEVEL']}"


def table(pristine, other):
    here, there = names(pristine), names(other)
    patches = list(tries(other))
    failed = [(name, missing, rejected) for name, missing, rejected in patches if missing or rejected]
    lines = [f"{len(patches) - len(failed)} of {len(patches)} patches apply to Linux {version(other)}. These do not:", "",
             "| patch | why |", "| --- | --- |"]
    for name, missing, rejected in failed:
        why = [f"there is no {file}" for file in missing] + [f"{file} is different" for file in rejected]
        lines.append(f"| `{name}` | {', '.join(why)} |")
    lines += ["", f"What the code uses of Linux {version(pristine)} and Linux {version(other)} does not have:", "",
              f"| name | in Linux {version(pristine)} |", "| --- | --- |"]
    lines += [f"| `{name}` | {here[name]} |" for name in sorted(used() & here.keys() - there.keys())]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pristine", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    if not PATCHES.is_dir():
        sys.exit("error: there are no patches")
    made = table(args.pristine, args.other)
    print(made)
    before = PAGE.read_text()
    head, _, rest = before.partition(BEGIN + "\n")
    tail = rest.partition(END)[2]
    after = f"{head}{BEGIN}\n\n{made}\n\n{END}{tail}"
    if args.update:
        PAGE.write_text(after)
    elif before != after:
        sys.exit("error: docs/base.md has something else: make series-base UPDATE=1")


if __name__ == "__main__":
    main()
