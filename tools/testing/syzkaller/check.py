#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Compares dev_iommu_arm_smmuv3.txt with the uAPI headers.

check.py UAPI...    where UAPI are include/uapi/linux/iommufd.h and vfio.h of the kernel. It needs clang, which looks
                    at what is asserted of the structures and the constants
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

DESCRIPTION = Path(__file__).with_name("dev_iommu_arm_smmuv3.txt")
# What sys/linux/dev_iommu.txt and others of syzkaller define.
ELSEWHERE = {"fd_iommufd": 4, "ioas_handle": 4, "open_flags": 0}
OPENING = re.compile(r"^(\w+) ([{\[])\n(.*?)^[}\]]", re.M | re.S)
FLAGS = re.compile(r"^(\w+) = (.*)$", re.M)
RESOURCE = re.compile(r"^resource (\w+)\[", re.M)
CONSTANT = re.compile(r"\b(?:IOMMU|VFIO)_\w+\b")

Members = list[tuple[str, str]]


def members(body: str) -> Members:
    """Names and types, without what is said of their direction."""
    lines = [line.split("#")[0].strip() for line in body.splitlines()]
    fields = [re.sub(r"\s*\((?:in|out|inout)\)$", "", line).split(None, 1) for line in lines if line]
    return [(name, kind) for name, kind in fields]


class Sizes:
    """Sizes in bits."""

    def __init__(self, text: str) -> None:
        self.structs = {match[1]: (match[2], members(match[3])) for match in OPENING.finditer(text)}
        self.resources = set(RESOURCE.findall(text))

    def of(self, kind: str) -> int:
        """The size of a type."""
        if match := re.search(r"\bint64:(\d+)\]?$", kind):
            return int(match[1])
        if match := re.match(r"array\[(.*), (\d+)\]$", kind):
            return self.of(match[1]) * int(match[2])
        if kind.startswith("ptr64["):
            return 64
        if kind in self.resources or kind in ELSEWHERE:
            return 32
        if kind in self.structs:
            union, inner = self.structs[kind]
            sizes = [self.of(type_) for _, type_ in inner]
            return max(sizes) if union == "[" else sum(sizes)
        if match := re.search(r"\bint(8|16|32|64)\b(?:\[[^\[\]]*\])?\]?$", kind):
            return int(match[1])
        raise ValueError(f"a type that is not understood: {kind}")


def assertions(text: str, headers: str) -> list[str]:
    """C that compiles if the structures and the constants are as the headers say."""
    sizes = Sizes(text)
    known = set(re.findall(r"^struct (\w+) \{", headers, re.M))
    lines = [f"static const unsigned long long use_{name} = {name};" for name in sorted(set(CONSTANT.findall(code(text))))
             # The name of a call has the same prefix.
             if not re.search(rf"\${name}\b", text)]
    compared = 0
    for name, (_, inner) in sizes.structs.items():
        parts = name.split("_")
        prefixes = ["_".join(parts[:n]) for n in range(len(parts), 0, -1)]
        struct = next((prefix for prefix in prefixes if prefix in known), None)
        if struct is None:
            if sizes.of(name) != 128:
                raise ValueError(f"{name} is not a command of 128 bits: {sizes.of(name)}")
            continue
        compared += 1
        lines.append(f"_Static_assert(sizeof(struct {struct}) * 8 == {sizes.of(name)}, \"{name}\");")
        at = 0
        for member, kind in inner:
            if struct != "iommu_hwpt_arm_smmuv3":
                lines.append(f"_Static_assert(__builtin_offsetof(struct {struct}, {member}) * 8 == {at}, \"{name}: {member}\");")
            at += sizes.of(kind)
    if compared < 10:
        raise ValueError("hardly any structure was compared")
    return lines


def code(text: str) -> str:
    """Without comments, and the names of calls, which begin like constants."""
    return re.sub(r"^\w+\$\w+", "", re.sub(r"^#.*$", "", text, flags=re.M), flags=re.M)


def names(text: str) -> list[str]:
    """What is wrong with the names: each is defined once, and used."""
    defined = [match[1] for match in OPENING.finditer(text)] + [match[1] for match in FLAGS.finditer(text)]
    defined += RESOURCE.findall(text)
    wrong = [f"{name} is defined twice" for name in set(defined) if defined.count(name) > 1]
    for name in defined:
        if len(re.findall(rf"\b{name}\b", text)) < 2:
            wrong.append(f"{name} is not used")
    for name in re.findall(r"\bflags\[(\w+)", text):
        if name not in defined and name not in ELSEWHERE:
            wrong.append(f"{name} is not defined")
    return wrong


def compiles(lines: list[str], headers: list[Path]) -> str:
    """What the compiler says of it: nothing if all is right."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "linux").mkdir()
        for header in headers:
            (Path(directory) / "linux" / header.name).write_text(header.read_text())
        program = "".join(f"#include <linux/{header.name}>\n" for header in headers) + "\n".join(lines) + "\n"
        result = subprocess.run(["clang", "-fsyntax-only", "-D__user=", "-Wno-unused-const-variable", "-I", directory, "-xc", "-"],
                                input=program, capture_output=True, text=True, check=False)
    return result.stderr if result.returncode else ""


def main() -> int:
    """Compares, and shows that a mistake would be found."""
    headers = [Path(argument) for argument in sys.argv[1:]]
    text = DESCRIPTION.read_text()
    joined = "".join(header.read_text() for header in headers)
    wrong = names(text)
    lines = assertions(text, joined)
    if said := compiles(lines, headers):
        wrong.append(said)
    mistakes = [
        text.replace("out_vdevice_id\tiommufd_vdevice_id\t(out)\n", "", 1),
        text.replace("IOMMU_VIOMMU_TYPE_ARM_SMMUV3", "IOMMU_VIOMMU_TYPE_ARM_SMMUV4"),
        text.replace("veventq_depth\tint32[0:1024]", "veventq_depth\tint64[0:1024]"),
    ]
    for mistake in mistakes:
        if mistake == text or not compiles(assertions(mistake, joined), headers):
            wrong.append("a mistake is not found")
    for line in wrong:
        print(f"{DESCRIPTION.name}: {line}")
    print(f"{len(lines)} assertions, {len(mistakes)} mistakes found")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
