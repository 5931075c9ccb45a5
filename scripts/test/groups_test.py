#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of groups.py: what the groups make of what scripts say, with scripts that say it."""

import contextlib
import io
import json
import unittest
from unittest import mock

import groups
from groups import GROUPS, cargo_counts, main
from runner import Counts, Group, Run
from runner_test import Repo

TABLE = """\
  1 | what was done | errno | ok
  2 | something else | errno | %s
%d passed, %d failed"""


class Groups(Repo):
    def setUp(self) -> None:
        super().setUp()
        self.put("host/image.sh", "true")
        self.put("host/initrd.sh", "true")

    def boots(self, text: str, status: int = 0) -> None:
        """What a program on the machine prints, and how it ends."""
        self.put("host/boot.sh", f"cat <<'EOF'\n{text}\nEOF\nexit {status}")

    def expect(self, name: str, *tests: str) -> None:
        """The tests that must fail on the C kernel."""
        file = self.repo / "scripts/test" / f"fails-on-c.{name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{test}\n" for test in tests))

    def outcome(self, run: Run) -> list[tuple[str, int, int]]:
        """The results of a group."""
        return [(result.what, result.passed, result.failed) for result in run.results]


class Rows(Groups):
    def test_good(self) -> None:
        self.boots(TABLE % ("ok", 2, 0))
        self.assertEqual(self.counts(groups.demo), Counts(4, 0))

    def test_a_row_fails(self) -> None:
        self.boots(TABLE % ("FAILED", 1, 1), 1)
        self.assertEqual(self.counts(groups.demo), Counts(2, 2))
        self.assertIn("something else", self.messages.getvalue())

    def test_the_kernel_reports_an_error(self) -> None:
        self.boots(TABLE % ("ok", 2, 0), 3)
        self.assertEqual(self.counts(groups.demo), Counts(4, 2))

    def test_the_machine_stops(self) -> None:
        self.boots("  1 | what was done | errno | ok", 1)
        self.assertEqual(self.counts(groups.demo), Counts(0, 2))

    def test_the_kernel_does_not_build(self) -> None:
        self.put("host/image.sh", "exit 1")
        runs = self.run_all(groups.demo)
        self.assertEqual(self.outcome(runs[0]), [("the rust kernel does not build", 0, 1)])


class OnC(Groups):
    ROWS = '{"id":"a","ok":true}\n{"id":"b","ok":false}\n{"passed":1,"failed":1}'

    def test_as_expected(self) -> None:
        self.expect("demo", "b")
        self.boots(self.ROWS, 1)
        self.assertEqual(self.counts(groups.demo_on_c), Counts(3, 0))

    def test_another_fails(self) -> None:
        self.expect("demo", "a", "b")
        self.boots(self.ROWS, 1)
        self.assertEqual(self.counts(groups.demo_on_c), Counts(2, 1))
        self.assertIn("a: must fail, and does not", self.messages.getvalue())

    def test_the_kernel_reports_an_error(self) -> None:
        self.expect("demo", "b")
        self.boots(self.ROWS, 3)
        self.assertEqual(self.counts(groups.demo_on_c), Counts(2, 1))


class Kselftest(Groups):
    COUNTS = {"rust": "tree/iommufd_arm_smmuv3_call 2 0 0\nkernel-log 1 0 0",
              "c": "tree/iommufd_arm_smmuv3_call 1 1 0\nkernel-log 1 0 0"}
    LOG = "--- tree/iommufd_arm_smmuv3_call\nok 1 a.b\nnot ok 2 a.c\n# Totals: pass:1 fail:1"

    def says(self, rust: str) -> None:
        """What is counted on the Rust kernel; it is always the same on the other one."""
        self.expect("kselftest", "tree/iommufd_arm_smmuv3_call:a.c")
        self.put("test/kselftest.sh", f"""cd build/logs
if [[ $VARIANT == c ]]; then
	echo '{self.LOG}' >kselftest-c.log
	echo '{self.COUNTS["c"]}' >kselftest-c.counts
	exit 1
fi
rust='{rust}'
[[ ! $rust ]] || echo "$rust" >kselftest-rust.counts""")

    def test_good(self) -> None:
        self.says(self.COUNTS["rust"])
        runs = self.run_all(groups.kselftest)
        self.assertEqual([counts[1:] for counts in self.outcome(runs[0])], [(2, 0), (1, 0), (1, 0), (2, 0)])
        self.assertRegex(runs[0].tables[0], r"call +2 / 0 / 0 +1 / 1 / 0\n")

    def test_what_is_new_is_not_skipped(self) -> None:
        self.says("tree/iommufd_arm_smmuv3_call 1 0 1\ntree/iommufd 1 0 1\nkernel-log 1 0 0")
        self.assertEqual(self.counts(groups.kselftest), Counts(6, 1))

    def test_counts_of_an_earlier_run_do_not_count(self) -> None:
        self.says("")
        (self.repo / "build/logs/kselftest-rust.counts").write_text(self.COUNTS["rust"])
        runs = self.run_all(groups.kselftest)
        self.assertEqual(self.outcome(runs[0])[0], ("the self-tests did not run on the rust kernel", 0, 1))


class OnFailingSmmu(Groups):
    def test_each_configuration_is_looked_at(self) -> None:
        self.put("test/faults.sh", "echo 'one 3 0' >build/logs/faults-rust.counts\n"
                                   "echo 'two 0 1 did not run to its end' >>build/logs/faults-rust.counts")

        def group(run: Run) -> None:
            groups.on_failing_smmu(run, "x", "rust", ("one", "two", "three"))
        runs = self.run_all(group)
        self.assertEqual(self.outcome(runs[0]), [
            ("x, rust kernel, one", 3, 0), ("x, rust kernel, two (did not run to its end)", 0, 1),
            ("x, rust kernel, three (there is no emulator that fails on demand, or it does not run)", 0, 1)])


class Kunit(Groups):
    FOUND = {"name": "main", "sub_groups": [
        {"name": "suite", "sub_groups": [], "test_cases": [
            {"name": "a", "status": "PASS"}, {"name": "b", "status": "SKIP"}, {"name": "c", "status": "PASS"}]},
        {"name": "outer", "test_cases": [], "sub_groups": [
            {"name": "inner", "test_cases": [{"name": "d", "status": "FAIL"}]}]}]}

    def setUp(self) -> None:
        super().setUp()
        self.boots("")
        (self.repo / "build/logs/kunit.kernel.log").write_text("the kernel's log\n")
        self.parses(self.FOUND)

    def parses(self, found: object) -> None:
        """What kunit.py makes of the log."""
        tool = self.repo / "build/linux/tools/testing/kunit/kunit.py"
        tool.parent.mkdir(parents=True, exist_ok=True)
        text = f"====\nd FAILED\n{json.dumps(found, indent=4)}\n====\n"
        tool.write_text(f"import sys\nassert 'kernel' in sys.stdin.read()\nprint({text!r})\n")

    def test_cases(self) -> None:
        runs = self.run_all(groups.kunit)
        self.assertEqual(self.outcome(runs[0]), [("unit tests in the kernel", 2, 1)])
        self.assertEqual([(case.name, case.status) for case in runs[0].results[0].cases],
                         [("suite.a", "ok"), ("suite.b", "skip"), ("suite.c", "ok"), ("inner.d", "fail")])

    def test_a_new_suite_is_missing(self) -> None:
        (self.repo / "drivers").mkdir()
        (self.repo / "drivers/x.rs").write_text("#[kunit_tests(suite)]\nmod a {}\n#[kunit_tests(lost)]\nmod b {}\n")
        runs = self.run_all(groups.kunit)
        self.assertEqual(self.outcome(runs[0]), [("unit tests in the kernel, but these suites did not run: lost", 2, 2)])

    def test_the_kernel_does_not_boot(self) -> None:
        self.boots("", 3)
        self.assertEqual(self.counts(groups.kunit), Counts(0, 1))

    def test_nothing_is_found(self) -> None:
        self.parses([])
        self.assertEqual(self.counts(groups.kunit), Counts(0, 1))


class Debug(Groups):
    REPORT = "BUG lkdtm-heap-double_free (Not tainted): Object already free"

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(mock.patch.dict("os.environ", {"DEBUG": "some"}))
        self.driver(b"unsafe precondition(s) violated")
        self.log(self.REPORT)
        self.boots("2 threads", 3)

    def driver(self, code: bytes) -> None:
        """What is in the driver."""
        file = self.repo / "build/debug-some/drivers/iommu/arm/arm-smmu-v3/arm_smmu_v3_rust.o"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(code)

    def log(self, text: str) -> None:
        """What the kernel says."""
        (self.repo / "build/logs/control.kernel.log").write_text(text)

    def test_all_is_noticed(self) -> None:
        self.assertEqual(self.counts(groups.control), Counts(4, 0))

    def test_something_is_not(self) -> None:
        self.log("")
        self.assertEqual(self.counts(groups.control), Counts(3, 1))
        self.driver(b"")
        self.assertEqual(self.counts(groups.control), Counts(2, 2))
        self.boots("0 threads", 0)
        self.assertEqual(self.counts(groups.control), Counts(0, 4))
        self.assertIn("FAIL  report is noticed", self.messages.getvalue())

    def test_self_tests(self) -> None:
        self.put("test/kselftest.sh", """[[ $VARIANT == debug-some ]] || exit 1
echo 'tree/iommufd 3 0 1' >build/logs/kselftest-debug-some.counts
touch build/logs/kselftest-debug-some.log""")
        runs = self.run_all(groups.kselftest)
        self.assertEqual(self.outcome(runs[0]), [("tree/iommufd, debug-some kernel (1 skipped)", 3, 0)])
        self.assertRegex(runs[0].tables[0], r"debug-some\ntree/iommufd +3 / 0 / 1$")

    def test_the_kernel_is_that_of_debug(self) -> None:
        self.put("host/boot.sh", "[[ $VARIANT == debug-some ]] && echo '1 passed, 0 failed'")
        self.assertEqual(self.counts(groups.demo), Counts(2, 0))


class Userspace(unittest.TestCase):
    def test_counts(self) -> None:
        text = ("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\n"
                "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\n")
        self.assertEqual(cargo_counts(text, False), Counts(4, 2))
        self.assertEqual(cargo_counts(text.splitlines()[0], True), Counts(3, 0))
        # One has died.
        self.assertEqual(cargo_counts(text.splitlines()[0], False), Counts(3, 1))


class Main(Groups):
    def main(self, *wanted: str) -> tuple[int, str]:
        """Its exit status, and what it prints."""
        def good(run: Run) -> None:
            run.result("good", Counts(2, 0))

        def bad(run: Run) -> None:
            run.result("bad", Counts(1, 1))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = main(list(wanted), [Group("good", "a good one", good), Group("bad", "a bad one", bad)], self.repo)
        return status, printed.getvalue()

    def test_all(self) -> None:
        status, text = self.main()
        self.assertEqual((status, text.splitlines()[-1]), (1, "3 passed, 1 failed"))
        self.assertTrue((self.repo / "build/test/results.xml").exists())

    def test_some_once_each(self) -> None:
        status, text = self.main("good", "good")
        self.assertEqual((status, text.splitlines()[-1]), (0, "2 passed, 0 failed"))

    def test_list(self) -> None:
        self.assertEqual(self.main("list"), (0, "good       a good one\nbad        a bad one\n"))

    def test_unknown(self) -> None:
        with self.assertRaisesRegex(SystemExit, "there is no group other; use: good bad"):
            self.main("good", "other")

    def test_names(self) -> None:
        for all_groups in (GROUPS, groups.DEBUG_GROUPS):
            self.assertEqual(len({group.name for group in all_groups}), len(all_groups))


if __name__ == "__main__":
    unittest.main()
