#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of what tree.py makes of files that somebody has edited in build/linux."""

import contextlib
import io
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import tree


class Edits(unittest.TestCase):
    def setUp(self):
        # Each file is called for what it is: ours, patched by us, or the kernel's own.
        self.enterContext(contextlib.redirect_stderr(io.StringIO()))
        top = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.repo, self.pristine, self.tree = top / "repo", top / "pristine", top / "tree"
        for folder in (self.repo, self.pristine, self.tree):
            folder.mkdir()
        for name in ("patched", "kernel"):
            (self.pristine / name).write_text("kernel\n")
        (self.repo / "ours").write_text("ours\n")
        for name, text in (("ours", "ours\n"), ("patched", "patched\n"), ("kernel", "kernel\n")):
            (self.tree / name).write_text(text)
        self.enterContext(mock.patch("tree.overlay", lambda: {"ours": self.repo / "ours"}))
        self.enterContext(mock.patch("tree.REPO", self.repo))
        self.state_file = top / "tree.json"
        self.state_file.write_text("")
        for file in self.tree.iterdir():
            os.utime(file, (1000, 1000))
        os.utime(self.state_file, (2000, 2000))
        self.state = {"digests": {name: tree.digest(self.tree / name) for name in ("ours", "patched")}}

    def bring_back(self, discard=False):
        return tree.bring_back(self.pristine, self.tree, self.state, self.state_file, discard)

    def test_nothing(self):
        self.assertEqual(self.bring_back(), [])

    def test_ours_is_brought_back(self):
        (self.tree / "ours").write_text("edited\n")
        self.assertEqual(self.bring_back(), [])
        self.assertEqual((self.repo / "ours").read_text(), "edited\n")

    def test_ours_with_a_change_of_its_own_is_refused(self):
        (self.tree / "ours").write_text("edited\n")
        (self.repo / "ours").write_text("changed\n")
        self.assertEqual(self.bring_back(), ["ours"])
        self.assertEqual((self.repo / "ours").read_text(), "changed\n")
        self.assertEqual((self.tree / "ours").read_text(), "edited\n")

    def test_a_change_here_is_no_edit(self):
        (self.repo / "ours").write_text("changed\n")
        self.assertEqual(self.bring_back(), [])
        self.assertEqual((self.repo / "ours").read_text(), "changed\n")

    def test_files_of_the_kernel_are_refused(self):
        for name in ("patched", "kernel", "new"):
            (self.tree / name).write_text("edited\n")
        self.assertEqual(self.bring_back(), ["kernel", "new", "patched"])
        self.assertEqual((self.tree / "kernel").read_text(), "edited\n")
        self.assertEqual((self.pristine / "kernel").read_text(), "kernel\n")

    def test_what_was_refused_is_remembered(self):
        (self.tree / "kernel").write_text("edited\n")
        self.state["edited"] = self.bring_back()
        os.utime(self.tree / "kernel", (1000, 1000))
        self.assertEqual(self.bring_back(), ["kernel"])

    def test_discard(self):
        for name in ("kernel", "new"):
            (self.tree / name).write_text("edited\n")
        self.assertEqual(self.bring_back(discard=True), [])
        self.assertEqual((self.tree / "kernel").read_text(), "kernel\n")
        self.assertFalse((self.tree / "new").exists())

    def test_what_an_editor_leaves_behind(self):
        (self.tree / "kernel.orig").write_text("edited\n")
        self.assertEqual(self.bring_back(), [])

    def test_what_checkpatch_leaves_behind(self):
        (self.tree / ".checkpatch-camelcase.date.202611250000").write_text("names\n")
        self.assertEqual(self.bring_back(), [])


class PristineFiles(unittest.TestCase):
    def test_of_a_tree_that_is_not_git(self):
        with tempfile.TemporaryDirectory() as name:
            top = Path(name)
            (top / "folder").mkdir()
            (top / "folder/a file").write_text("")
            (top / "link").symlink_to("nowhere")
            self.assertEqual(sorted(tree.pristine_files(top)), ["folder/a file", "link"])


if __name__ == "__main__":
    unittest.main()
