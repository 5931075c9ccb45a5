#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""debian_options.py FRAGMENT DEBIAN [BUILD]: checks that the fragment has the values that
Debian's configuration has. With a directory in which a kernel with that fragment was built,
it also looks which options the objects on the way of a guest's command were made with, by
what the compiler has read, and checks that those have Debian's values too, but for what the
fragment names as different in lines "#! PATTERN...".
"""

import argparse
import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path

# On the way from the system call to the physical queue, and back: the ioctl, the driver,
# the allocator, copying from user memory, locks, waiting, and what they are entered by.
OBJECTS = [
    "drivers/iommu/iommufd/*", "drivers/iommu/arm/arm-smmu-v3/*", "drivers/iommu/*", "rust/*", "fs/ioctl",
    "mm/slub", "mm/slab_common", "mm/usercopy", "lib/usercopy", "kernel/locking/*", "kernel/entry/*",
    "kernel/softirq", "kernel/time/timekeeping", "kernel/sched/core", "arch/arm64/kernel/entry*",
    "arch/arm64/kernel/syscall", "arch/arm64/lib/*",
]


def options(lines: list[str]) -> dict[str, str]:
    """The options of a configuration, by name, "n" for those that are not set."""
    found = {}
    for line in lines:
        if match := re.match(r"CONFIG_(\w+)=(.*)", line):
            found[match[1]] = match[2].strip()
        elif match := re.match(r"# CONFIG_(\w+) is not set", line):
            found[match[1]] = "n"
    return found


def read_by_compiler(build: Path) -> set[str]:
    """The options that those objects depend on."""
    found: set[str] = set()
    for pattern in OBJECTS:
        folder, _, name = pattern.rpartition("/")
        for file in (build / folder).glob(f".{name}.o.cmd"):
            found.update(re.findall(r"include/config/(\w+)\)", file.read_text()))
    return found


def compare(fragment: list[str], debian: dict[str, str], different: list[str]) -> list[str]:
    """What the fragment has otherwise than Debian, without being named there."""
    return [f"{name} is {value} in the fragment, and {debian.get(name, 'n')} in Debian's kernel"
            for name, value in options(fragment).items() if value != debian.get(name, "n")
            and not any(fnmatchcase(name, pattern) for pattern in different)]


def uncovered(used: set[str], ours: dict[str, str], debian: dict[str, str], different: list[str]) -> list[str]:
    """The options that the objects depend on and that differ without being named, and patterns
    that name nothing."""
    differ = {name for name in used if ours.get(name, "n") != debian.get(name, "n")}
    wrong = [f"{name} is {ours.get(name, 'n')} here, and {debian.get(name, 'n')} in Debian's kernel"
             for name in sorted(differ) if not any(fnmatchcase(name, pattern) for pattern in different)]
    return wrong + [f"nothing differs that is called {pattern}" for pattern in different
                    if not any(fnmatchcase(name, pattern) for name in differ)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fragment", type=Path)
    parser.add_argument("debian", type=Path)
    parser.add_argument("build", type=Path, nargs="?")
    args = parser.parse_args()
    fragment = args.fragment.read_text().splitlines()
    debian = options(args.debian.read_text().splitlines())
    different = [pattern for line in fragment if line.startswith("#! ") for pattern in line[3:].split()]
    wrong = compare(fragment, debian, different)
    told = f"{len(options(fragment))} options are as in Debian's kernel"
    if args.build:
        used = read_by_compiler(args.build)
        if not used:
            sys.exit(f"error: there are no objects in {args.build}")
        named = {name for name in options(fragment) if name not in used}
        wrong += uncovered(used | named, options((args.build / ".config").read_text().splitlines()), debian, different)
        told += f"; of {len(used)} that the code depends on, only those differ that {args.fragment.name} names"
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(told)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
