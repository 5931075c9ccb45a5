#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""tree.py [--follow] PRISTINE TREE | --list: puts the patch series and the overlay of this
repository on a kernel tree.

TREE is a copy of PRISTINE, which is only read. Its files may be hard links to the
pristine ones, so a file that changes is always a new one. Only files whose content
differs are written, so that a build redoes no more than it must, and files that are
not touched any longer go back to what they were.

With --follow, the files that are not touched are brought up to date too (PRISTINE is
somebody's own tree then; the one in the cache does not change).
With --list, it only prints the names of the files of the overlay.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PATCHES = REPO / "patches"
OVERLAY = ["rust", "drivers", "include", "Documentation", "tools/testing/selftests"]
# In the kernel, the file of that name is another one.
KCONFIG = "drivers/iommu/Kconfig.rust"
IGNORED = re.compile(r"(~|\.orig|\.rej|\.sw[a-z]|\.o|\.cmd)$|^\.#|^#|^__pycache__$|^target$")


def die(message):
    sys.exit(f"error: {message}")


def series():
    """The patches, in the order of patches/series, each with what it adds: [(patch, [text])]."""
    found = []
    for line in (PATCHES / "series").read_text().splitlines():
        if line.startswith("#+ "):
            found[-1][1].append(line[3:].strip())
        elif name := line.split("#")[0].strip():
            patch = PATCHES / name
            if not patch.exists():
                die(f"{patch} is in patches/series but does not exist; add it or take it out there")
            found.append((patch, []))
    return found


def patched_files(patch):
    """The files that a patch names in its --- and +++ lines."""
    names = re.findall(r"^(?:---|\+\+\+) [ab]/(\S+)", patch.read_text(), re.M)
    return {name for name in names if ".." not in Path(name).parts}


def overlay():
    """{path in the kernel: file in this repository}"""
    found = {KCONFIG: REPO / "Kconfig"}
    for top in OVERLAY:
        for folder, folders, files in os.walk(REPO / top):
            folders[:] = [name for name in folders if not IGNORED.search(name)]
            for name in files:
                if not IGNORED.search(name):
                    file = Path(folder) / name
                    found[str(file.relative_to(REPO))] = file
    return found


def stage(pristine, staging):
    """Applies the series to copies of the files that it touches; returns their names."""
    touched = set()
    for patch, _ in series():
        if not patched_files(patch):
            continue  # Only adds files.
        for name in patched_files(patch) - touched:
            touched.add(name)
            if (pristine / name).is_file():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(pristine / name, staging / name)
        with patch.open() as stdin:
            run = subprocess.run(
                ["patch", "-p1", "--fuzz=0", "--force", "--no-backup-if-mismatch", "--reject-file=-"],
                cwd=staging, stdin=stdin, capture_output=True, text=True)
        if run.returncode:
            print(run.stdout + run.stderr, file=sys.stderr)
            die(f"{patch.relative_to(REPO)} does not apply cleanly to {pristine}; "
                "refresh the patch, or use the kernel that scripts/kernel.source names")
        # A hunk that patch leaves out without failing would be lost silently.
        for name in re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(), re.M):
            if not (staging / name).exists():
                die(f"{patch.relative_to(REPO)} did not make {name}; refresh the patch")
    return touched


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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("pristine", type=Path, nargs="?")
    parser.add_argument("tree", type=Path, nargs="?")
    args = parser.parse_args()
    if args.list:
        print("\n".join(sorted(overlay())))
        return
    pristine, tree = args.pristine.resolve(), args.tree.absolute()

    state_file = Path(f"{tree}.json")
    state = json.loads(state_file.read_text()) if state_file.exists() else {}

    with tempfile.TemporaryDirectory() as name:
        staging = Path(name)
        patched = stage(pristine, staging)
        added = overlay()
        for path in added:
            if path in patched or os.path.lexists(pristine / path):
                die(f"{path} exists in the kernel already; change it with a patch in patches/ and take the file out")

        # Written before anything else changes, so that an interrupted run is finished by the next.
        touched = patched | set(added)
        before = set(state.get("touched", []))
        state["touched"] = sorted(touched | before)
        tree.parent.mkdir(parents=True, exist_ok=True)
        state_file.write_text(json.dumps(state))
        if args.follow:
            state["files"] = copy(pristine, tree, touched, state.get("files", []))

        changed = 0
        for path in sorted(touched | before):
            source = added.get(path) or (staging if path in patched else pristine) / path
            if source.is_file():
                changed += put(source, tree / path)
            elif os.path.lexists(tree / path):
                (tree / path).unlink()
                changed += 1
        state["touched"] = sorted(touched)
        state_file.write_text(json.dumps(state))
    print(f"==> kernel tree: {len(series())} patches, {len(added)} new files, {changed} files changed", file=sys.stderr)


if __name__ == "__main__":
    main()
