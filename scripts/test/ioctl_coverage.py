#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tables of what vsmmu-ioctl-fuzz has reached in the kernel, by function and by file.

ioctl_coverage.py VMLINUX LOG [PAGE]
        VMLINUX is a kernel with kcov and debug information, LOG has a line "pc ADDRESS" for each instruction that was
        reached. What kcov can tell of at all is found in the code. With PAGE, the table by file and the functions that
        were not reached are written between the marks there
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

CALL = re.compile(r"^\s*([0-9a-f]+):.*\bbl\s.*<__sanitizer_cov_trace_pc>")
# After the call, which kcov tells of, comes the next instruction.
LENGTH = 4
DIRECTORIES = ("drivers/iommu/iommufd/", "drivers/iommu/arm/arm-smmu-v3/")
BEGIN, END = "<!-- ioctl coverage begin -->\n", "<!-- ioctl coverage end -->\n"

Function = tuple[str, str]
# For each function: how many places there are, and how many were reached.
Counts = dict[Function, list[int]]


def places(disassembly: Iterable[str]) -> list[int]:
    """The addresses that kcov can tell of."""
    return [int(match[1], 16) + LENGTH for line in disassembly if (match := CALL.match(line))]


def reached(log: Iterable[str]) -> set[int]:
    """The addresses that it has told of."""
    return {int(line[3:], 16) for line in log if line.startswith("pc ")}


def plain(name: str) -> str:
    """A function without its hash, its parameters and what the compiler has made of it."""
    name = re.sub(r"::h[0-9a-f]{16}$", "", name)
    name = re.sub(r"\.(?:isra|constprop|part|llvm|cold)[.\d]*$", "", name)
    return re.sub(r"<.*>", "<>", name)


def functions(vmlinux: str, addresses: list[int]) -> list[Function | None]:
    """The innermost function that each address is in, and its file, if that is one of those looked at."""
    asked = "".join(f"{address - LENGTH:#x}\n" for address in addresses)
    command = ["llvm-symbolizer", f"--obj={vmlinux}", "--inlines", "--output-style=JSON", "--functions=linkage", "--demangle"]
    answers = subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout.splitlines()
    found: list[Function | None] = []
    for answer in answers:
        frames = json.loads(answer)["Symbol"]
        # What is inlined from elsewhere belongs to who calls it.
        found.append(next(
            ((directory + frame["FileName"].rsplit("/", 1)[1], plain(frame["FunctionName"]))
             for frame in frames for directory in DIRECTORIES if directory in frame["FileName"]), None))
    return found


def count(of: list[Function | None], addresses: list[int], hit: set[int]) -> Counts:
    """By function."""
    counts: Counts = defaultdict(lambda: [0, 0])
    for function, address in zip(of, addresses, strict=True):
        if function:
            counts[function][0] += 1
            counts[function][1] += address in hit
    return counts


def by_file(counts: Counts) -> list[tuple[str, int, int, list[str]]]:
    """File, places, those reached, functions of which none was."""
    files: dict[str, tuple[list[int], list[str]]] = defaultdict(lambda: ([0, 0], []))
    for (file, name), (all_, hit) in sorted(counts.items()):
        sums, unreached = files[file]
        sums[0] += all_
        sums[1] += hit
        if not hit:
            unreached.append(name)
    return [(file, sums[0], sums[1], unreached) for file, (sums, unreached) in files.items()]


def page(files: list[tuple[str, int, int, list[str]]]) -> str:
    """The same for a page."""
    lines = ["| file | places | reached | functions of which KCOV told nothing |", "| --- | --- | --- | --- |"]
    for file, all_, hit, unreached in files:
        names = ", ".join(f"`{name}`" for name in unreached) or "none"
        lines.append(f"| `{file.removeprefix('drivers/iommu/')}` | {all_} | {hit} ({100 * hit // all_} %) | {names} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Prints the tables."""
    vmlinux, log = sys.argv[1:3]
    command = ["llvm-objdump", "-d", "--no-show-raw-insn", "-j", ".text", vmlinux]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as disassembly:
        assert disassembly.stdout is not None
        addresses = places(disassembly.stdout)
    hit = reached(Path(log).read_text(errors="replace").splitlines())
    counts = count(functions(vmlinux, addresses), addresses, hit)
    for (file, name), (all_, found) in sorted(counts.items()):
        print(f"{found:5} of {all_:4}  {file.rsplit('/', 1)[1]:28} {name}")
    files = by_file(counts)
    for file, all_, found, _ in files:
        print(f"{found:5} of {all_:4}  {100 * found // all_:3} %  {file}")
    all_, found = sum(row[1] for row in files), sum(row[2] for row in files)
    print(f"{found} of {all_} places in {sum(1 for row in counts.values() if row[1])} of {len(counts)} functions")
    if len(sys.argv) > 3:
        target = Path(sys.argv[3])
        text = target.read_text()
        before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
        target.write_text(f"{text[:before]}\n{page(files)}\n{text[after:]}")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
