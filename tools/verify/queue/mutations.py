#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""mutations.py quick|long [--update] [TEXT...]: makes the mistakes of mutations.toml in the command
queue, one after another, and has each looked for until something finds it: Shuttle in a few schedules,
a KUnit test, Shuttle in more of them. What is a matter of ordering has a litmus test without it. Prints a line for `make verify`:
`what TAB bound TAB mutations TAB seconds TAB result`, and what found each to the standard error.

The quick tier takes some of them, TEXT those whose description has it. What was found before for the
same sources is not looked for again. --update writes found.tsv, of which docs/verification.md has a
table.

The environment is as for cargo: DRIVER_SOURCE, KERNEL_SOURCE, CARGO_TARGET_DIR.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import subprocess
import sys
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[2]
FOUND = HERE / "found.tsv"
LITMUS = (REPO / "Documentation/litmus-tests/arm-smmu-v3", HERE.parent / "litmus")
# Most mistakes show in a second, and the KUnit tests take half a minute.
FEW, MANY = 6_000, 60_000
# Tests that take long.
SLOW = ("concurrent", "random", "late_error", "error_in_second_wait")
# Each is built once more and runs for a second.
FAST_BUILD = ("--config", "profile.model.incremental=true", "--config", "profile.model.package.verify-queue.opt-level=1")
# Processor time, in seconds, after which a test is taken not to end.
LIMIT = 120


def mutate(mutation, texts):
    """The texts of the files with the mistake in them."""
    texts = dict(texts)
    for old, new, *other in mutation["edit"]:
        [name] = other or [mutation["file"]]
        if texts[name].count(old) != 1:
            raise LookupError(f"mutation \"{mutation['what']}\": what it replaces is {texts[name].count(old)} times in "
                              f"{name}; bring the list up to date:\n{old}")
        texts[name] = texts[name].replace(old, new)
    return texts


def by_litmus(mutation, folders=LITMUS):
    """The litmus test without the barrier, if it is there and shows what must not be, and the one with
    the barrier does not. They are run by `make verify ONLY=litmus`."""
    for folder in folders:
        file = folder / f"{mutation['litmus']}.litmus"
        if not file.exists():
            continue
        base = max((other for other in folder.glob("*.litmus")
                    if other != file and file.stem.startswith(other.stem)), key=lambda other: len(other.stem), default=None)
        if base and "Result: Sometimes" in file.read_text() and "Result: Never" in base.read_text():
            return f"litmus test {file.stem}"
    return None


def failed_test(output):
    """The first test that failed, or one that did not end, by the output of the tests."""
    for pattern in r"^test (\S+) \.\.\. FAILED$", r"^test (\S+) has been running":
        if found := re.search(pattern, output, re.MULTILINE):
            return found[1].rpartition("::")[2]
    return None


def failed_scenario(output):
    """The scenario that a model checker was at when it found something."""
    found = re.findall(r"^queue: (.*?)(?:, seed \d+: Scenario.*)?$", output, re.MULTILINE)
    return found[-1] if found else None


class Runner:
    def __init__(self):
        self.driver = Path(os.environ["DRIVER_SOURCE"])
        # Of its own, so that other checks are not built again and again.
        self.target = Path(os.environ["CARGO_TARGET_DIR"]) / "mutations"
        self.sources = self.target / "source"
        self.state = self.target / "state.json"
        self.texts = {file.name: file.read_text() for file in sorted(self.driver.glob("*.rs"))}
        tools = [file for folder in ("queue", "kernel") for file in sorted((HERE.parent / folder).rglob("*.rs"))]
        text = "".join(self.texts.values()) + "".join(file.read_text() for file in tools) + (HERE.parent / "Cargo.lock").read_text()
        self.key = hashlib.sha256(text.encode()).hexdigest()

    def plant(self, mutation):
        """Writes the driver's files with the mistake in them. What is the same keeps its time stamp."""
        self.sources.mkdir(parents=True, exist_ok=True)
        for name, text in mutate(mutation, self.texts).items():
            file = self.sources / name
            if not file.exists() or file.read_text() != text:
                file.write_text(text)

    def cargo(self, *args):
        run = subprocess.run(["cargo", *args, *FAST_BUILD, "--locked", "--package", "verify-queue", "--message-format", "json-render-diagnostics"],
                             env={**os.environ, "DRIVER_SOURCE": str(self.sources), "CARGO_TARGET_DIR": str(self.target),
                                  "RUSTFLAGS": "-Awarnings"},
                             cwd=HERE.parent, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"error: this does not compile:\n{run.stderr}")
        made = [json.loads(line).get("executable") for line in run.stdout.splitlines()]
        return [path for path in made if path][-1]

    def run(self, *args):
        """Runs a program. Returns its status and what it has printed, on both channels."""
        def limit():
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        run = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", preexec_fn=limit)
        return run.returncode, run.stdout

    def by_kunit(self, skip):
        tests = self.cargo("test", "--no-run", "--release", "--lib")
        status, output = self.run(tests, *(arg for name in skip for arg in ("--skip", name)))
        return f"KUnit: {failed_test(output) or status}" if status else None

    def by_shuttle(self, count, text):
        binary = self.cargo("build", "--profile", "model", "--features", "shuttle", "--bin", "queue-shuttle")
        for kind, name in ("pct", "PCT"), ("random", "random schedules"):
            status, output = self.run(binary, kind, str(count), "1", text)
            if status:
                return f"Shuttle, {name}: {failed_scenario(output) or status}"
        return None

    def find(self, mutation):
        if "litmus" in mutation:
            return by_litmus(mutation)
        self.plant(mutation)
        text = mutation.get("scenarios")
        if text:
            return self.by_shuttle(MANY, text)
        return (self.by_shuttle(FEW, "") or self.by_kunit(SLOW) or self.by_shuttle(MANY, "")
                or self.by_kunit(SLOW[:1]))

    def look_for(self, mutations):
        """What found each, or None. Goes on where it was interrupted."""
        known = json.loads(self.state.read_text()) if self.state.exists() else {}
        found = {}
        for number, mutation in enumerate(mutations, 1):
            key = hashlib.sha256((self.key + json.dumps(mutation)).encode()).hexdigest()
            if not known.get(key):
                known[key] = self.find(mutation)
                self.state.write_text(json.dumps(known))
            found[mutation["what"]] = known[key]
            print(f"{number} of {len(mutations)}: {mutation['what']}: {known[key] or 'NOT FOUND'}", file=sys.stderr, flush=True)
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", choices=["quick", "long"])
    parser.add_argument("--update", action="store_true")
    parser.add_argument("text", nargs="*")
    args = parser.parse_args()

    start = time.monotonic()
    every = tomllib.loads((HERE / "mutations.toml").read_text())["mutation"]
    runner = Runner()
    # What no longer fits the files is to be noticed at once.
    try:
        for mutation in every:
            mutate(mutation, runner.texts)
    except LookupError as error:
        sys.exit(f"error: {error}")
    chosen = [mutation for mutation in every
              if (any(text in mutation["what"] for text in args.text) if args.text
                  else args.tier == "long" or mutation.get("quick", False))]
    found = runner.look_for(chosen)
    if args.update:
        lines = [f"{what}\t{by}\n" for what, by in found.items() if by]
        FOUND.write_text("# What found each mistake of mutations.toml: mutations.py long --update\n" + "".join(lines))
    caught = len(found) - list(found.values()).count(None)
    good = 0 < caught == len(found)
    print("command queue: mutations", f"{len(found)} of {len(every)} mutations", f"{caught} found",
          f"{time.monotonic() - start:.1f}", "ok" if good else "FAILED", sep="\t")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
