#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of debian_options.py."""

import tempfile
import unittest
from pathlib import Path

from debian_options import compare, options, read_by_compiler, uncovered

DEBIAN = options(["CONFIG_HZ=250", "# CONFIG_KUNIT is not set", "CONFIG_NET=y"])


class Options(unittest.TestCase):
    def test_compare(self) -> None:
        self.assertEqual(compare(["CONFIG_HZ=250", "# CONFIG_KUNIT is not set"], DEBIAN, []), [])
        self.assertEqual(len(compare(["CONFIG_HZ=100"], DEBIAN, [])), 1)
        self.assertEqual(len(compare(["# CONFIG_NET is not set"], DEBIAN, [])), 1)
        self.assertEqual(compare(["# CONFIG_NET is not set"], DEBIAN, ["NE*"]), [])
        # What Debian's configuration does not name is not set there.
        self.assertEqual(compare(["# CONFIG_NEW is not set"], DEBIAN, []), [])
        self.assertEqual(len(compare(["CONFIG_NEW=y"], DEBIAN, [])), 1)

    def test_uncovered(self) -> None:
        ours = {"HZ": "100", "NET": "y"}
        self.assertEqual(uncovered({"NET"}, ours, DEBIAN, []), [])
        self.assertEqual(len(uncovered({"NET", "HZ"}, ours, DEBIAN, [])), 1)
        self.assertEqual(uncovered({"NET", "HZ"}, ours, DEBIAN, ["H?"]), [])
        # A name for which there is no reason any more.
        self.assertEqual(len(uncovered({"NET"}, ours, DEBIAN, ["HZ"])), 1)

    def test_read_by_compiler(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "mm/.slub.o.cmd"
            file.parent.mkdir()
            file.write_text("    $(wildcard include/config/SLUB_DEBUG) \\\n    $(wildcard include/config/NUMA) \\\n")
            (file.parent / ".other.o.cmd").write_text("    $(wildcard include/config/OTHER) \\\n")
            self.assertEqual(read_by_compiler(Path(folder)), {"SLUB_DEBUG", "NUMA"})


if __name__ == "__main__":
    unittest.main()
