#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""faults.py quick|long: plants the faults of faults.toml in the sanitiser, one after another, and
has each looked for by the enumeration and by the proof. Prints a line for each of these:
`what TAB bound TAB faults noticed TAB seconds TAB result`, and for each fault what noticed it to
the standard error. The quick tier takes some of the faults.

The environment is as for cargo: DRIVER_SOURCE, KERNEL_SOURCE, CARGO_TARGET_DIR.
"""

import os
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from prove import prove_library

DRIVER = Path(os.environ["DRIVER_SOURCE"])
TARGET = Path(os.environ["CARGO_TARGET_DIR"])
FILES = ["cmd.rs", "sanitise.rs"]
# The quick tier takes one fault in so many.
STEP = 6


def plant(fault, folder):
    """Makes the driver's files with the fault in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        text = (DRIVER / name).read_text()
        if name == fault["file"]:
            if text.count(fault["old"]) != 1:
                sys.exit(f"error: fault \"{fault['what']}\": what it replaces is {text.count(fault['old'])} "
                         f"times in {name}; bring the list up to date")
            text = text.replace(fault["old"], fault["new"])
        (folder / name).write_text(text)


def build(folder):
    """Builds the checks with the files in this folder."""
    run = subprocess.run(["cargo", "build", "--quiet", "--release", "--locked", "--package", "verify-sanitiser"],
                         env={**os.environ, "DRIVER_SOURCE": str(folder)}, cwd=Path(__file__).parent,
                         capture_output=True, text=True)
    return run.stderr if run.returncode else None


def enumerate_it():
    """The kind of question that shows the fault, or None."""
    run = subprocess.run([TARGET / "release/verify-sanitiser", "quick"], capture_output=True, text=True)
    failed = [line.split("\t")[0] for line in run.stdout.splitlines() if line.endswith("FAILED")]
    # A panic is noticed, too.
    return failed[0] if failed else f"status {run.returncode}" if run.returncode else None


def main():
    if sys.argv[1:] not in (["quick"], ["long"]):
        sys.exit(__doc__)
    every = tomllib.loads((Path(__file__).parent / "faults.toml").read_text())["fault"]
    # What no longer fits the files is to be noticed at once.
    for fault in every:
        plant(fault, TARGET / "fault")
    faults = every if sys.argv[1] == "long" else every[::STEP]
    start = time.monotonic()
    seen, proofs = [], []
    # Not forked, as the solver has threads.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for number, fault in enumerate(faults):
            plant(fault, TARGET / "fault")
            if error := build(TARGET / "fault"):
                sys.exit(f"error: fault \"{fault['what']}\" does not compile:\n{error}")
            library = TARGET / f"fault-{number}.so"
            shutil.copy(TARGET / "release/libverify_sanitiser.so", library)
            proofs.append(pool.submit(prove_library, library, "verify_rust"))
            seen.append(enumerate_it())
        proved = [proof.result()[2] for proof in proofs]
    seconds = time.monotonic() - start

    for fault, row, wrong in zip(faults, seen, proved):
        print(f"{fault['what']}\n    enumeration: {row or 'NOT NOTICED'}\n    proof: "
              f"{wrong or ('NOT NOTICED' if fault.get('one', True) else 'it is right for one command')}",
              file=sys.stderr)
    alone = [wrong for fault, wrong in zip(faults, proved) if fault.get("one", True)]
    failed = False
    for what, found in ("enumeration", seen), ("proof", alone):
        good = len(found) > 0 and None not in found
        failed = failed or not good
        print(f"sanitiser: planted faults, {what}", f"{len(found)} of {len(every)} faults",
              f"{len(found) - found.count(None)} noticed", f"{seconds:.1f}", "ok" if good else "FAILED", sep="\t")
    sys.exit(failed)


if __name__ == "__main__":
    main()
