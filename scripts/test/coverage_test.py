#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of coverage.py."""

import unittest

from coverage import names, read, reasons, unexplained

SOURCE = """\
fn one() {
    a();
}
fn two() {
    b();
    c();
}
""".splitlines()


class Coverage(unittest.TestCase):
    def test_sums(self) -> None:
        self.assertEqual(read(["x.rs 1 0\nx.rs 2 0\n", "x.rs 1 3\n"]), {"x.rs": {1: 3, 2: 0}})

    def test_names(self) -> None:
        self.assertEqual(names(SOURCE, 5), ("fn two", "b();"))

    def test_reasons(self) -> None:
        page = "| file | what | why |\n| `x.rs` | `fn two` | nobody calls it |\n| `x.rs` | `a();` | so |\n"
        why = reasons(page)
        self.assertEqual(why, {("x.rs", "fn two"): "nobody calls it", ("x.rs", "a();"): "so"})
        used: set[tuple[str, str]] = set()
        self.assertEqual(unexplained("x.rs", SOURCE, {1: 0, 2: 0, 5: 0, 6: 1}, why, used), [1])
        self.assertEqual(used, why.keys())

    def test_no_reason_for_another_file(self) -> None:
        why = {("y.rs", "fn two"): "so"}
        self.assertEqual(unexplained("x.rs", SOURCE, {5: 0, 6: 2}, why, set()), [5])


if __name__ == "__main__":
    unittest.main()
