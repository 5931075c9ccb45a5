#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""tree.py [--follow] [--until PATCH] [--discard] PRISTINE TREE | --list: puts the patch series
and the overlay of this repository on a kernel tree.

TREE is a copy of PRISTINE, which is only read. Its files may be hard links to the
pristine ones, so a file that changes is always a new one. Only files whose content
differs are written, so that a build redoes no more than it must, and files that are
not touched any longer go back to what they were.

A file that somebody has edited in TREE is not overwritten: a new file of ours is brought back
into this repository; with others, or if both have changed, this ends with an error that says what
to do. With --discard, the edits are dropped.

With --follow, the files that are not touched are brought up to date too (PRISTINE is
somebody's own tree then; the one in the cache does not change).
With --until, it goes no further than to that patch of the series; none: not even that.
With --list, it only prints the names of the files of the overlay.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stage import IGNORED, REPO, die, overlay, series, stage


def pristine_files(pristine):
    """Names of the files that belong to a tree: of a git tree those that it tracks."""
    if (pristine / ".git").exists():
        git = ["git", "-c", f"safe.directory={pristine}", "-C", pristine, "ls-files", "-z"]
        names = subprocess.run(git, check=True, capture_output=True).stdout.split(b"\0")
        names = [os.fsdecode(name) for name in names if name]
        return [name for name in names if os.path.lexists(pristine / name)]
    found = subprocess.run(["find", ".", "(", "-type", "f", "-o", "-type", "l", ")", "-printf", "%P\\0"],
                           cwd=pristine, check=True, capture_output=True).stdout
    return [os.fsdecode(name) for name in found.split(b"\0") if name]


def copy(pristine, tree, touched, before):
    """Makes the untouched files of the tree what they are in the pristine one, where
    before were all files; returns the names of all files now."""
    names = pristine_files(pristine)
    copied = b"\0".join(os.fsencode(name) for name in names if name not in touched) + b"\0"
    tree.mkdir(parents=True, exist_ok=True)
    subprocess.run(["rsync", "-lpt", "--from0", "--files-from=-", f"{pristine}/", f"{tree}/"],
                   input=copied, check=True)
    for name in set(before) - set(names) - touched:
        (tree / name).unlink(missing_ok=True)
    return names


def put(source, target):
    """Makes target a new file with the content of source, unless it has it already."""
    if target.is_file() and not target.is_symlink() and target.read_bytes() == source.read_bytes() \
            and os.access(target, os.X_OK) == os.access(source, os.X_OK):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, temporary)  # not the time: make is to see a new file
    shutil.copymode(source, temporary)
    temporary.replace(target)
    return True


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def edited(pristine, tree, state, state_file):
    """Names of the files that are not as this program has left them."""
    newer = subprocess.run(["find", ".", "-type", "f", "-newer", state_file, "-printf", "%P\\0"],
                           cwd=tree, check=True, capture_output=True).stdout
    names = {os.fsdecode(name) for name in newer.split(b"\0") if name} | set(state["digests"]) | set(state.get("edited", []))
    names = {name for name in names if not any(IGNORED.search(part) for part in Path(name).parts)}
    return {name for name in names if digest(tree / name) != state["digests"].get(name, digest(pristine / name))}


def bring_back(pristine, tree, state, state_file, discard):
    """Brings back what somebody has edited in the tree; returns the names of what it cannot."""
    ours, left = overlay(), []
    for name in sorted(edited(pristine, tree, state, state_file)):
        file, before = tree / name, state["digests"].get(name)
        if discard:
            if name not in ours and (pristine / name).is_file():
                put(pristine / name, file)
            elif name not in ours:
                file.unlink()
            print(f"==> dropped the edit of build/{tree.name}/{name}", file=sys.stderr)
        elif name in ours and digest(ours[name]) == digest(file):
            pass
        elif name in ours and file.is_file() and digest(ours[name]) == before:
            shutil.copyfile(file, ours[name])
            print(f"==> brought back into {ours[name].relative_to(REPO)}: the edit of build/{tree.name}/{name}",
                  file=sys.stderr)
        else:
            left.append(name)
    return left


def refuse(tree, left):
    ours = overlay()
    what = "".join(f"\n       build/{tree.name}/{name}" + (": and its original has another change" if name in ours else "")
                   for name in left)
    die(f"edited by hand, and nothing is overwritten:{what}\n"
        "       make patch-refresh PATCH=name takes the edits of existing files into that patch;\n"
        "       a new file belongs into the repository, at the same path; make tree DISCARD=1 drops the edits")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--until")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--discard", action="store_true")
    parser.add_argument("pristine", type=Path, nargs="?")
    parser.add_argument("tree", type=Path, nargs="?")
    args = parser.parse_args()
    if args.list:
        print("\n".join(sorted(overlay())))
        return
    pristine, tree = args.pristine.resolve(), args.tree.absolute()

    state_file = Path(f"{tree}.json")
    state = json.loads(state_file.read_text()) if state_file.exists() else {}
    start = time.time_ns()
    left = []
    if "digests" in state and tree.exists() and not args.until:
        left = bring_back(pristine, tree, state, state_file, args.discard)

    with tempfile.TemporaryDirectory() as name:
        staging = Path(name)
        touched = stage(pristine, staging, args.until)
        # What is in a patch by now is no edit.
        left = [path for path in left if digest(staging / path) != digest(tree / path)]
        state["edited"] = left
        if left:
            state_file.write_text(json.dumps(state))
            refuse(tree, left)

        # Written before anything else changes, so that an interrupted run is finished by the next.
        before = set(state.get("touched", []))
        state["touched"] = sorted(touched | before)
        tree.parent.mkdir(parents=True, exist_ok=True)
        state_file.write_text(json.dumps(state))
        if args.follow:
            state["files"] = copy(pristine, tree, touched, state.get("files", []))

        changed = 0
        for path in sorted(touched | before):
            source = (staging if path in touched else pristine) / path
            if source.is_file():
                changed += put(source, tree / path)
            elif os.path.lexists(tree / path):
                (tree / path).unlink()
                changed += 1
        state["touched"] = sorted(touched)
        state["digests"] = {path: digest(tree / path) for path in sorted(touched)}
        state_file.write_text(json.dumps(state))
        # What is written from now on is newer.
        os.utime(state_file, ns=(start, start))
    if not args.until:
        print(f"==> kernel tree: {len(series())} patches, {len(overlay())} new files, {changed} files changed",
              file=sys.stderr)


if __name__ == "__main__":
    main()
