#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""series.py PRISTINE OUT: writes the series as mails to OUT, with its cover letter.

Made from patches/ and the new files. The author of all mails, and the one who signs
them off, is who runs this: GIT_AUTHOR_NAME and GIT_AUTHOR_EMAIL, which make takes
from the configuration of git.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from stage import PATCHES, REPO, die, overlay, patched_files, series, stage


def git(folder, *args, **options):
    return subprocess.run(["git", "-C", folder, *args], check=True, capture_output=True,
                          text=True, **options).stdout


def message(patch, name, email):
    """The subject and the text of a patch, signed off by who sends it."""
    head, _, text = patch.read_text().partition("\n\n")
    subject = re.search(r"^Subject: (?:\[PATCH\] )?((?:.|\n )*)$", head, re.M)[1].replace("\n ", " ")
    text = re.split(r"^(?:diff --git |---$)", text, maxsplit=1, flags=re.M)[0]
    text = re.sub(r"^Signed-off-by: .*\n", "", text, flags=re.M).strip()
    tag = "" if re.match(r"[A-Z][a-z-]+: ", text.splitlines()[-1]) else "\n"
    return f"{subject}\n\n{text}\n{tag}Signed-off-by: {name} <{email}>\n"


def version(pristine):
    """The kernel that the series is for."""
    values = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$", (pristine / "Makefile").read_text(), re.M))
    return f"{values['VERSION']}.{values['PATCHLEVEL']}.{values['SUBLEVEL']}"


def figures():
    """Instructions of a call, as make bench-check has them."""
    rows = [row for row in json.loads((REPO / "scripts/test/bench.expected.json").read_text())
            if row["id"] == "ioctl: TLBI_NH_VA"]
    lines = [f"  {'commands in a call':<20}{'C':>10}{'Rust':>10}{'Rust/C':>10}"]
    lines += [f"  {row['n']:<20}{row['c']:>10}{row['rust']:>10}{row['rust'] / row['c']:>10.2f}" for row in rows]
    return "\n".join(lines)


def cover(letter, pristine):
    """Fills in the cover letter."""
    subject, _, text = (PATCHES / "cover-letter").read_text().partition("\n\n")
    text = text.strip().replace("@KERNEL@", version(pristine)).replace("@FIGURES@", figures())
    made = letter.read_text().replace("*** SUBJECT HERE ***", subject.strip()).replace("*** BLURB HERE ***", text)
    if "***" in made or re.search("@[A-Z]+@", made):
        die("something in patches/cover-letter was not filled in")
    letter.write_text(made)


def main():
    if len(sys.argv) != 3:
        die("usage: series.py PRISTINE OUT")
    pristine, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).absolute()
    name, email = os.environ.get("GIT_AUTHOR_NAME"), os.environ.get("GIT_AUTHOR_EMAIL")
    if not name or not email:
        die("whose series is it? Run: git config user.name NAME; git config user.email ADDRESS")
    os.environ.update(GIT_COMMITTER_NAME=name, GIT_COMMITTER_EMAIL=email)

    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        git(tree, "init", "-q", "-b", "series")
        for file in {file for patch, _ in series() for file in patched_files(patch)}:
            if (pristine / file).is_file():
                (tree / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(pristine / file, tree / file)
                (tree / file).chmod(0o755 if os.access(pristine / file, os.X_OK) else 0o644)
        git(tree, "add", "-A", "-f")
        git(tree, "commit", "-q", "-m", "base")

        def commit(patch):
            git(tree, "add", "-A", "-f")
            git(tree, "commit", "-q", "-F", "-", input=message(patch, name, email))

        stage(pristine, tree, after=commit)
        shutil.rmtree(out, ignore_errors=True)
        git(tree, "format-patch", "-q", "--cover-letter", "--stat=72", "-o", out, "series~%d" % len(series()))
    cover(out / "0000-cover-letter.patch", pristine)
    print(f"""==> {len(series())} patches and a cover letter for Linux {version(pristine)} in {out}
    by {name} <{email}>, from the configuration of git, who signs them off
    to send them, in a kernel tree: git send-email --to-cmd='scripts/get_maintainer.pl --norolestats' {out}""",
          file=sys.stderr)


if __name__ == "__main__":
    main()
