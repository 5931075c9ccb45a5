#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""patch_refresh.py PATCH PRISTINE TREE: takes what was edited by hand in TREE into a patch of the series.

TREE is build/linux. What is edited there is merged into what the files are after PATCH, which may come
before others that change the same lines; the patch is made anew from that, with as little context as it
applies with, and the whole series has to give the edited files. If it does not, nothing is changed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from stage import PATCHES, die, overlay, patched_files, series, stage
from tree import edited


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes() if source.is_file() else b"")


def merged(now, before, after, name):
    """The file now, with the difference between the other two."""
    run = subprocess.run(["git", "merge-file", "-p", now, before, after], capture_output=True)
    if run.returncode:
        die(f"{name}: the edit does not fit there; choose the patch that has the lines around it")
    return run.stdout


def diff(old, new, name, context):
    run = subprocess.run(["git", "diff", "--no-index", "--no-color", f"-U{context}", old, new],
                         capture_output=True, text=True)
    hunks = run.stdout.find("\n@@ ")
    return f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}{run.stdout[hunks:]}" if hunks >= 0 else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patch")
    parser.add_argument("pristine", type=Path)
    parser.add_argument("tree", type=Path)
    args = parser.parse_args()
    names = [patch.name for patch, _ in series()]
    if args.patch not in names:
        die(f"there is no patch {args.patch} in patches/series")
    args.tree = args.tree.absolute()
    patch, at = PATCHES / args.patch, names.index(args.patch)
    state_file = Path(f"{args.tree}.json")
    state = json.loads(state_file.read_text())
    changed = sorted(edited(args.pristine, args.tree, state, state_file) - set(overlay()))
    original = patch.read_text()
    head = re.split(r"^diff --git ", original, maxsplit=1, flags=re.M)[0]

    with tempfile.TemporaryDirectory() as name:
        before, here, full, check = (Path(name) / part for part in ("before", "here", "full", "check"))
        for staging, until in ((before, names[at - 1] if at else "none"), (here, args.patch), (full, None)):
            staging.mkdir()
            stage(args.pristine, staging, until)
        # As the pristine tree has it where no patch has touched it yet.
        files = sorted(patched_files(patch) | set(changed))
        for staging in (before, here, full):
            for file in files:
                if not (staging / file).exists():
                    copy(args.pristine / file, staging / file)
        for file in changed:
            (here / file).write_bytes(merged(here / file, full / file, args.tree / file, file))
        for context in range(1, 4):
            patch.write_text(head + "".join(diff(before / file, here / file, file, context) for file in files))
            check.mkdir()
            try:
                stage(args.pristine, check)
                good = all((check / file).is_file() and (check / file).read_bytes() == (args.tree / file).read_bytes()
                           for file in changed)
                # What was not edited comes out as before.
                good = good and all((check / file).read_bytes() == (full / file).read_bytes()
                                    for file in files if file not in changed)
            except SystemExit:
                good = False
            subprocess.run(["rm", "-rf", check], check=True)
            if good:
                break
        else:
            patch.write_text(original)
            die(f"the series does not apply with the edits in {args.patch}; choose the last patch that changes the file")
    print(f"==> patches/{args.patch}: {', '.join(changed) or 'made anew, nothing was edited'}", file=sys.stderr)


if __name__ == "__main__":
    main()
