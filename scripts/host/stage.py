# SPDX-License-Identifier: GPL-2.0
"""The kernel's files after each patch of the series: what the patches make of existing
files, and as much of the new ones as belongs to the patches so far.

Of Kconfig these are the options that are there by then. Of a Rust file it is the file
without what it has for later options, and without modules whose files come later.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PATCHES = REPO / "patches"
OVERLAY = ["rust", "drivers", "include", "Documentation", "tools/testing/selftests"]
IGNORED = re.compile(r"(~|\.orig|\.rej|\.sw[a-z]|\.o|\.cmd)$|^\.#|^#|^__pycache__$|^target$|^\.checkpatch-camelcase\.")
# In the kernel, the file of that name is another one.
KCONFIG = "drivers/iommu/Kconfig.rust"


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


def apply(patch, pristine, staging, touched):
    """Applies a patch to copies of the files that it touches."""
    names = patched_files(patch)
    if not names:
        return  # It only adds files.
    for name in names - touched:
        touched.add(name)
        if (pristine / name).is_file():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(pristine / name, staging / name)
            (staging / name).chmod(0o755 if os.access(pristine / name, os.X_OK) else 0o644)
    with patch.open() as stdin:
        run = subprocess.run(
            ["patch", "-p1", "--fuzz=0", "--force", "--no-backup-if-mismatch", "--reject-file=-"],
            cwd=staging, stdin=stdin, capture_output=True, text=True)
    if run.returncode:
        print(run.stdout + run.stderr, file=sys.stderr)
        die(f"{patch.relative_to(REPO)} does not apply cleanly to {pristine}; "
            "refresh the patch, or use the kernel that scripts/pins/kernel.source names")
    # A hunk that patch leaves out without failing would be lost silently.
    for name in re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(), re.M):
        if not (staging / name).exists():
            die(f"{patch.relative_to(REPO)} did not make {name}; refresh the patch")


def options(text):
    """A Kconfig file in pieces: what is before the first option, and [(name, text)]."""
    head, *rest = re.split(r"^(?=config )", text, flags=re.M)
    return head, [(re.match(r"config (\w+)", option)[1], option) for option in rest]


def known(predicate, later):
    """A predicate of #[cfg(...)] as a string, or True or False if that is all that is left
    of it without the options of later patches."""
    predicate = predicate.strip()
    if match := re.fullmatch(r"(all|any|not)\((.*)\)", predicate, re.S):
        parts = [known(part, later) for part in split(match[2])]
        if match[1] == "not":
            return not parts[0] if isinstance(parts[0], bool) else f"not({parts[0]})"
        decided = match[1] == "any"
        if decided in parts:
            return decided
        left = [part for part in parts if isinstance(part, str)]
        if not left:
            return not decided
        return left[0] if len(left) == 1 else f"{match[1]}({', '.join(left)})"
    return False if predicate.removeprefix("CONFIG_") in later else predicate


def split(text):
    """The arguments of a macro or an attribute."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part for part in parts if part.strip()]


def depth(line):
    """How many more brackets a line of Rust opens than it closes."""
    code = re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])\'|//.*', "", line)
    return sum(code.count(char) for char in "([{") - sum(code.count(char) for char in ")]}")


def without(text, later, later_modules):
    """A Rust file without what it has for some options, and without some modules."""
    lines, kept = text.splitlines(keepends=True), []
    at = 0
    while at < len(lines):
        line, drop = lines[at], False
        if match := re.match(r"( *)#\[cfg\((.*)\)\]\n", line):
            left = known(match[2], later)
            drop = left is False
            line = "" if left is True else f"{match[1]}#[cfg({left})]\n"
        elif match := re.match(r"( *)#\[cfg_attr\((.*)\)\]\n", line):
            predicate, *attributes = split(match[2])
            left = known(predicate, later)
            text = ", ".join(attribute.strip() for attribute in attributes)
            if isinstance(left, bool):
                line = f"{match[1]}#[{text}]\n" if left else ""
            else:
                line = f"{match[1]}#[cfg_attr({left}, {text})]\n"
        elif match := re.match(r"(?:pub(?:\(crate\))? )?mod (\w+);\n", line):
            drop = match[1] in later_modules
        if not drop:
            kept.append(line)
            at += 1
            continue
        # With what is written about the item above and between its attributes.
        while kept and re.match(r" *(///|//|#\[)", kept[-1]):
            kept.pop()
        while re.match(r" *(///|//|#\[)", lines[at]):
            at += 1
        level = 0
        while True:
            level += depth(lines[at])
            at += 1
            if level == 0 and re.search(r"[;},]\s*(//.*)?$", lines[at - 1]):
                break
    return "".join(kept)


def rustfmt(text):
    return subprocess.run(["rustfmt", "--edition", "2021"], input=text, check=True,
                          capture_output=True, text=True).stdout


def part(path, new, added, present, every):
    """As much of a new file as there is after the patches that have added some files and options."""
    text = new[path].read_bytes()
    if path == KCONFIG:
        head, pieces = options(text.decode())
        text = (head + "".join(piece for name, piece in pieces if name in present))
        return (text.rstrip("\n") + "\n").encode()
    if path.endswith(".rs"):
        modules = {Path(name).stem for name in new.keys() - added if Path(name).parent == Path(path).parent}
        left = without(text.decode(), every - present, modules)
        if left != text.decode():
            return rustfmt(left).encode()
    return text


def stage(pristine, staging, until=None, after=lambda patch: None):
    """Makes the files that the series touches, up to and including the patch of the name until.
    Calls after() with each patch after it was applied. Returns the names of all files."""
    new = overlay()
    for path in new:
        if os.path.lexists(pristine / path):
            die(f"{path} exists in the kernel already; change it with a patch in patches/ and take the file out")
    every = {name for name, _ in options(new[KCONFIG].read_text())[1]}
    touched, added, present = set(), set(), set()
    if until == "none":
        return set()
    for patch, adds in series():
        apply(patch, pristine, staging, touched)
        for text in adds:
            if text.startswith("Kconfig ") and text.split()[1] in every:
                added.add(KCONFIG)
                present.add(text.split()[1])
            elif text in new:
                added.add(text)
            else:
                die(f"patches/series has {text}, which does not exist; add it or take it out there")
        for path in added:
            content, target = part(path, new, added, present, every), staging / path
            if not target.exists() or target.read_bytes() != content:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                shutil.copymode(new[path], target)
        after(patch)
        if patch.name == until:
            break
    else:
        if until:
            die(f"there is no patch {until} in patches/series")
        missing = sorted(set(new) - added) + sorted(every - present)
        if missing:
            die(f"{missing[0]} belongs to no patch; name it below its patch in patches/series")
        for path in added:
            if (staging / path).read_bytes() != new[path].read_bytes():
                die(f"{path}: something in it belongs to no patch of patches/series")
    return touched | added
