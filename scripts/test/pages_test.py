#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of pages.py: what it finds wrong with the map in README."""

import unittest

from pages import mapped, off_the_map

README = """# Title

`elsewhere/` is no part of the map.

## Where things are

`drivers/new/`, from the top:

| | |
| --- | --- |
| `new.rs` | all of it |

| | |
| --- | --- |
| `docs/`, `Kconfig` | texts |
| `tools/` | `one/`, a program; `two/`, another |

## Something else

| `other/` | |
"""


class Map(unittest.TestCase):
    """The map names every directory, and no others."""

    def test_names(self):
        self.assertEqual(mapped(README), {"drivers/new/", "docs/", "tools/", "tools/one/", "tools/two/"})

    def test_whole(self):
        files = {"README.md", "drivers/new/new.rs", "docs/a/b/c.md", "tools/README.md", "tools/one/src/main.rs",
                 "tools/two/main.rs", "tools/.cargo/config.toml"}
        self.assertEqual(off_the_map(files, mapped(README)), [])

    def test_missing(self):
        files = {"drivers/new/new.rs", "docs/a.md", "tools/one/a", "tools/two/a"}
        for name in ("tools/three/src/main.rs", "drivers/old.c", "drivers/newer/a.rs", ".ci/run"):
            directory = name.rpartition("/")[0]
            self.assertEqual(off_the_map(files | {name}, mapped(README)), [f"{directory}/ is not in the map"])

    def test_gone(self):
        files = {"drivers/new/new.rs", "docs/a.md", "tools/one/a", "tools/README.md"}
        self.assertEqual(off_the_map(files, mapped(README)), ["there is no tools/two/"])


if __name__ == "__main__":
    unittest.main()
