#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""groups.py [GROUP...] | list: runs the tests, or the given groups of them, two at a time if there
are as many CPUs; or only lists the groups. SUITE=PATTERN narrows kunit. Ends with tables and
"N passed, N failed"; fails if any did. Leaves each test in build/test, as JUnit's XML and as KTAP.
Runs in the build root.

With DEBUG=NAME a kernel that has the checks of scripts/config/debug/NAME.config in addition takes the
place of the Rust one, in those groups that can do without the C one; and there is the group control.

What a group does is in the scripts that it calls; what is here is in which order, on which kernel,
and what their outcome says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from results import Case, names, on_c, parse, read
from runner import Counts, Group, Run, Stop, counts, locked, note, run_groups, say, summary, totals, write

KERNELS = ("rust", "c")


def kernels() -> tuple[str, ...]:
    """The kernels that are compared: the Rust one, or that of DEBUG, comes first."""
    debug = os.environ.get("DEBUG")
    return (f"debug-{debug}",) if debug else KERNELS


def images(run: Run, *variants: str) -> None:
    """The kernels that a group needs, and the programs on them."""
    for variant in variants:
        run.need(f"image-{variant}", f"the {variant} kernel does not build", "host/image.sh", variant)
    run.need("initrd", "the user-space programs do not build", "host/initrd.sh")


def rows(run: Run, name: str, program: str, variant: str, cpus: int, before: str = "",
         files: Path | None = None) -> None:
    """Boots a kernel for a program that prints a table, each row of which is a check."""
    what = f"{program}, {variant} kernel, {cpus} CPU{'s' if cpus != 1 else ''}"
    say(f"{name}: {what}")
    env = {"NAME": name, "VARIANT": variant, "SMP": str(cpus), "RUN": f"{before}/vsmmu/{program}"}
    ended = run.script("host/boot.sh", env=env | ({"FILES": str(files)} if files else {}))
    log = run.logs / f"{name}.log"
    found = counts(ended.text)
    if not found or ended.status and not found.failed:
        note(f"{program} did not run to its end, or the kernel reported an error: {log}")
        found = Counts(found.passed if found else 0, 1)
    if found.failed:
        wrong = [line for line in ended.text.splitlines() if re.search(r"\bfail", line, re.IGNORECASE)]
        print("\n".join(wrong[:20]), file=sys.stderr)
    run.result(what, found, parse(ended.text.splitlines()))


def fails_on_c(run: Run, name: str, found: Iterable[Case]) -> None:
    """The tests on the C kernel that must fail there are those of a list, and no others. If nothing
    failed there, they would not look."""
    expected = run.repo / "scripts/test" / f"fails-on-c.{name}"
    cases = on_c(names(expected.read_text()), list(found))
    wrong = [case.name for case in cases if case.status == "fail"]
    for case in wrong:
        print(f"FAIL  {case}", file=sys.stderr)
    run.result(f"on the C kernel those of {expected.relative_to(run.repo)} fail, and no others",
               Counts(len(cases) - len(wrong), len(wrong)), cases)


def userspace(run: Run) -> None:
    """What needs no kernel under test."""
    programs, target = run.repo / "tools/vsmmu", f"CARGO_TARGET_DIR={run.build / 'cargo'}"
    cargo = ("env", "-C", str(programs), target, "cargo")
    what, log = "unit tests of the user-space programs", run.logs / "cargo-test.log"
    ended = run.logged("cargo-test", f"userspace: {what}", *cargo, "test", "--workspace", "--locked", "--no-fail-fast")
    run.result(what, cargo_counts(log.read_text(), ended), read(log))
    for example in ("blocking", "asynchronous"):
        what = f"the relay's example, {example}"
        ended = run.logged(f"relay-{example}", f"userspace: {what}", *cargo, "run", "--locked", "-p", "vsmmu-relay",
                           "--example", example)
        run.result(what, Counts(int(ended), int(not ended)))


def cargo_counts(text: str, ended: bool) -> Counts:
    """The sum of what the programs say; one that dies does not tell of its tests."""
    found = re.findall(r"^test result: .* (\d+) passed; (\d+) failed;", text, re.MULTILINE)
    failed = sum(int(number) for _, number in found)
    return Counts(sum(int(number) for number, _ in found), failed or int(not ended))


def kunit_suites(found: object) -> Iterator[tuple[str, list[Case]]]:
    """The suites in what kunit.py has made of the kernel's log."""
    if isinstance(found, list):
        for part in found:
            yield from kunit_suites(part)
    elif isinstance(found, dict):
        status = {"PASS": "ok", "SKIP": "skip"}
        cases = [Case(f"{found['name']}.{case['name']}", status.get(case["status"], "fail"))
                 for case in found.get("test_cases", ())]
        if cases:
            yield found["name"], cases
        yield from kunit_suites(found.get("sub_groups", []))


def kunit(run: Run) -> None:
    """Every suite of the kernel's tests that is built in is run; those of the new files have to be
    among them."""
    pattern, log = os.environ.get("SUITE", ""), run.logs / "kunit.kernel.log"
    variant, *_ = kernels()
    images(run, variant)
    say("kunit: the unit tests in the kernel")
    append = "kunit.enable=1 kunit.autorun=1" + (f" kunit.filter_glob={pattern}" if pattern else "")
    if run.script("host/boot.sh", env={
            "NAME": "kunit", "VARIANT": variant, "RUN": "true", "APPEND": append,
            # Against a kernel that hangs: it takes a minute, but others may use the machine, too.
            "TIMEOUT": os.environ.get("TIMEOUT") or "900"}).status:
        run.result(f"the kernel did not boot through its unit tests, or reported an error: {log}", None)
        return
    # It fails if a test has.
    parser = ["env", "-C", str(run.build / "linux"), "python3", "tools/testing/kunit/kunit.py", "parse", "--json"]
    text = run.logs / "kunit.kernel.txt"
    text.write_text(log.read_text(errors="replace").replace("\r", ""))
    parsed = run.command(parser, what="kunit.py parse", log=run.logs / "kunit.log", stdin=text).text
    document = re.search(r"^\{.*^\}", parsed, re.MULTILINE | re.DOTALL)
    suites = dict(kunit_suites(json.loads(document[0]) if document else []))
    missing = [] if pattern else sorted(new_suites(run.repo) - suites.keys())
    cases = tuple(case for suite in suites.values() for case in suite)
    failed = sum(case.status == "fail" for case in cases)
    if failed or missing:
        print("\n".join(re.findall(r".*(?:FAILED|ERROR).*", parsed)), file=sys.stderr)
    run.result("unit tests in the kernel" + (f", but these suites did not run: {' '.join(missing)}" if missing else ""),
               Counts(sum(case.status == "ok" for case in cases), failed + bool(missing)), cases)


def new_suites(repo: Path) -> set[str]:
    """The suites of the new files."""
    files = [file for top in ("rust", "drivers") for file in (repo / top).rglob("*.rs")]
    suite = re.compile(r"^#\[kunit_tests\((\w+)\)\]", re.MULTILINE)
    return {name for file in files for name in suite.findall(file.read_text())}


def demo(run: Run) -> None:
    """The table of make run."""
    variant, *_ = kernels()
    images(run, variant)
    for cpus in (1, 4):
        rows(run, f"demo-smp{cpus}", "vsmmu-demo", variant, cpus)


def control(run: Run) -> None:
    """A kernel of DEBUG finds what it looks for: memory that is freed twice, which counts as a report in
    the log as well. Its Rust code has the assertions of core in it. Threads handle its interrupts."""
    variant, *_ = kernels()
    images(run, variant)
    say(f"control: mistakes that the {variant} kernel has to report")
    job = """echo "$(ps | grep -c '[i]rq/.*smmu') threads"
echo SLAB_FREE_DOUBLE >/sys/kernel/debug/provoke-crash/DIRECT"""
    ended = run.script("host/boot.sh", env={"NAME": "control", "VARIANT": variant, "RUN": job})
    log = (run.logs / "control.kernel.log").read_text(errors="replace")
    code = (run.build / variant / "drivers/iommu/arm/arm-smmu-v3/arm_smmu_v3_rust.o").read_bytes()
    cases = [Case(name, "ok" if good else "fail") for name, good in (
        ("double free is noticed", "BUG lkdtm-heap-double_free" in log),
        ("report is noticed", ended.status == 3),
        ("threads handle interrupts", bool(re.search(r"^[1-9]\d* threads$", ended.text, re.MULTILINE))),
        ("driver has assertions", b"unsafe precondition" in code),
    )]
    failed = [case.name for case in cases if case.status == "fail"]
    for name in failed:
        print(f"FAIL  {name}", file=sys.stderr)
    run.result(f"what the {variant} kernel looks for it finds", Counts(len(cases) - len(failed), len(failed)), cases)


def demo_on_c(run: Run) -> None:
    """The same rows on the C code, much of which is not as the contract says."""
    images(run, "c")
    say("c: the demo on the C kernel, where rows must fail")
    ended = run.script("host/boot.sh", env={"NAME": "demo-c", "VARIANT": "c", "SMP": "1",
                                            "ALLOW": "__alloc_frozen_pages", "RUN": "/vsmmu/vsmmu-demo --json"})
    # 1 is that rows have failed.
    good = ended.status == 1
    run.result("the demo runs to its end there, and the kernel reports no error", Counts(int(good), int(not good)))
    fails_on_c(run, "demo", parse(ended.text.splitlines()))


def kselftest(run: Run) -> None:
    """The kernel's own self-tests of iommufd, on both kernels. Upstream's pass on both; much of what is
    new fails on the C kernel."""
    images(run, *kernels())
    found: dict[str, dict[str, tuple[int, int, int]]] = {}
    for variant in kernels():
        file = run.logs / f"kselftest-{variant}.counts"
        file.unlink(missing_ok=True)
        run.script("test/kselftest.sh", env={"VARIANT": variant})
        if not file.exists():
            run.result(f"the self-tests did not run on the {variant} kernel", None)
            continue
        for line in file.read_text().splitlines():
            program, *numbers = line.split()
            passed, failed, skipped = map(int, numbers)
            found.setdefault(program, {})[variant] = (passed, failed, skipped)
            if variant == "c" and not program.endswith("kernel-log"):
                continue
            # The machine has all that the new ones need.
            if program.startswith("tree/iommufd_arm_smmuv3_") and not os.environ.get("SMP"):
                failed += skipped
            cpus = re.match(r"smp\d+(?=/)", program)
            log = run.logs / (f"kselftest-{variant}-{cpus[0]}.log" if cpus else f"kselftest-{variant}.log")
            run.result(f"{program}, {variant} kernel ({skipped} skipped)", Counts(passed, failed),
                       [case for case in read(log) if case.name.startswith(f"{program}:")])
    if "c" in kernels():
        fails_on_c(run, "kselftest", read(run.logs / "kselftest-c.log"))
    run.tables.append(matrix(found))


def matrix(found: dict[str, dict[str, tuple[int, int, int]]]) -> str:
    """Self-tests by kernel."""
    lines = [f"{'pass / fail / skip':<34} " + " ".join(f"{variant:>18}" for variant in kernels())]
    for program, by in found.items():
        cells = (" / ".join(map(str, by[variant])) if variant in by else "" for variant in kernels())
        lines.append(f"{program:<34} " + " ".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def on_failing_smmu(run: Run, what: str, variant: str, configurations: Sequence[str], *wanted: str,
                    program: str = "faults") -> None:
    """Boots a kernel where the SMMU fails on demand, once for each configuration, for a program that
    tries all rows or the wanted ones."""
    file = run.logs / f"{program}-{variant}.counts"
    file.unlink(missing_ok=True)
    env = {"VARIANT": variant} | ({"PROGRAM": f"vsmmu-{program}"} if program != "faults" else {})
    run.script("test/faults.sh", *configurations, *wanted, env=env)
    lines = file.read_text().splitlines() if file.exists() else []
    told = {name: rest.split(" ", 2) for name, _, rest in (line.partition(" ") for line in lines)}
    nothing = ["0", "1", "there is no emulator that fails on demand, or it does not run"]
    for name in configurations:
        passed, failed, *why = told.get(name, nothing)
        log = run.logs / f"{program}-{variant}-{name}.log"
        run.result(f"{what}, {variant} kernel, {name}" + (f" ({why[0]})" if why else ""),
                   Counts(int(passed), int(failed)), read(log) if name in told else ())


def faults(run: Run) -> None:
    """With one CPU and with four, with a large and a small queue, polling registers and memory. make
    faults has the combinations."""
    images(run, *kernels())
    on_failing_smmu(run, "an SMMU that fails on demand", kernels()[0], ("smp1", "small4", "msi4"))
    if kernels() != KERNELS:
        return
    # The C kernel tells nobody of an error. Without the rows that time a call twenty times, of which the
    # worst has more.
    illegal = [f"ill-{name}" for name in ("0", "1", "2", "5", "6", "op", "each", "forever")]
    run.script("test/faults.sh", "smp4", *illegal, "two-ill", "sync-ill", "atc-forever-5", "none", env={"VARIANT": "c"})
    fails_on_c(run, "faults", read(run.logs / "faults-c-smp4.log"))
    # The host's own invalidations are lost on neither.
    for variant in KERNELS:
        on_failing_smmu(run, "unmappings that the SMMU cannot fetch", variant, ("pages4",), "unmap-")
    run.table("another kernel takes over by kexec from a queue that is stopped", run.script("test/faults.sh", "kexec"))
    run.table("the worst that one can do to the others, against the C kernel", run.script("test/faults.sh", "worst"))


def bench(run: Run) -> None:
    """Instructions are exact, so that a change which costs some shows."""
    what = "instructions of invalidations, as in scripts/test/bench.expected.json"
    say(f"bench: {what}")
    run.table(what, run.script("test/bench.sh", "--check", log=run.logs / "bench-check.log"))


def relay(run: Run) -> None:
    """A VMM that embeds the relay, with a guest that reacts to errors as Linux does: on both kernels, and
    where the SMMU fails on demand."""
    images(run, *KERNELS)
    for variant in KERNELS:
        rows(run, f"relay-{variant}", "vsmmu-guest", variant, 2)
    on_failing_smmu(run, "vsmmu-guest, an SMMU that fails on demand", "rust", ("smp4",), program="guest")


def vmm(run: Run) -> None:
    """A real VMM: Debian's QEMU, hosted by the kernel under test, whose guest drives an NVMe through its own
    vSMMU. With invalidations lost on the way its checks have to notice, or they do not look. On the C
    kernel, which loses errors, none are raised."""
    images(run, *KERNELS)
    for variant, phases in (("rust", ()), ("c", ("clean", "lost-va", "lost-asid", "lost-cd"))):
        run.table(f"QEMU with a vSMMU on the {variant} kernel: {' '.join(phases) or 'all phases'}",
                  run.script("test/vmm.sh", *phases, log=run.logs / f"vmm-{variant}.table", env={"VARIANT": variant}))


def same(run: Run) -> None:
    """The same Linux on the bare machine and in a VM, where it sees the same errors."""
    images(run, *KERNELS)
    log = run.logs / "vmm-same.table"
    run.table(f"Linux on the bare machine and in a VM by vsmmu-vmm: {log}",
              run.script("test/vmm-same.sh", "c", log=log))


def verify(run: Run) -> None:
    """What is checked exhaustively or proved in user space; each row of its table is a check."""
    log = run.logs / "verify.log"
    run.table(f"exhaustive checks and proofs, the quick tier of make verify: {log}",
              run.script("test/verify.sh", log=log))


def modular(run: Run) -> None:
    """The demo, with iommufd and the drivers as modules."""
    images(run, "modular")
    root = run.build / "modular/root"
    shutil.rmtree(root, ignore_errors=True)
    if not run.logged("modules", "installing the modules", str(run.repo / "scripts/host/image.sh"), "modular", "-s",
                      f"INSTALL_MOD_PATH={root}", "modules_install"):
        raise Stop("the modules cannot be installed")
    for link in root.glob("lib/modules/*/build"):
        link.unlink()
    rows(run, "modular", "vsmmu-demo", "modular", 2, "modprobe -a arm_smmu_v3 iommufd vfio_pci && ", root)


def c_objects(run: Run) -> None:
    """That the patches change nothing for who has the options off."""
    what = "objects of C as without the patches, with the options off"
    say(f"c_objects: {what}")
    run.table(what, run.script("test/c-objects.sh", log=run.logs / "c-objects.log"))


def series(run: Run) -> None:
    """The mails of make series. What is built at three points of the series is the queue's hooks in C, the
    queue, and at the end the queue without what is for guests."""
    what = "the series applies, gives the same tree, and builds at three points"
    say(f"series: {what}")
    run.table(what, run.script("test/series-check.sh", log=run.logs / "series.log"))


def docs(run: Run) -> None:
    """The new pages of the kernel's documentation."""
    good = run.script("host/docs.sh", log=run.logs / "docs-group.log").status == 0
    run.result("the new pages of the kernel's documentation, by its Sphinx, without warnings",
               Counts(int(good), int(not good)))


def x86_64(run: Run) -> None:
    """Another architecture."""
    run.need("image-x86_64", "the ioctl handler does not compile for x86_64", "host/image.sh", "x86_64")
    run.result("the ioctl handler compiles for x86_64 without warnings", Counts(1, 0))


# The long ones first, so that none is left over in the end.
GROUPS = (
    Group("kselftest", "self-tests of iommufd, upstream's and new ones, on both kernels", kselftest),
    Group("faults", "rows on an SMMU that fails on demand", faults),
    Group("vmm", "QEMU with a vSMMU and a Linux guest, on both kernels", vmm),
    Group("same", "Linux on the bare machine and in a VM, side by side", same),
    Group("verify", "exhaustive checks and proofs in user space", verify),
    Group("demo", "the demo's table, with one and four CPUs", demo),
    Group("modular", "the demo on a kernel of modules", modular),
    Group("kunit", "unit tests in the kernel", kunit),
    Group("relay", "a VMM that embeds the relay, on both kernels", relay),
    Group("c", "the demo on the C kernel, where rows must fail", demo_on_c),
    Group("bench", "instructions of invalidations", bench),
    Group("series", "the mails: they apply, give the same tree, build at three points", series),
    Group("x86_64", "compile test of the ioctl handler", x86_64),
    Group("c_objects", "objects with the options off", c_objects),
    Group("userspace", "unit tests of the user-space programs", userspace),
    Group("docs", "the kernel's documentation", docs),
)
DEBUG_GROUPS = (*(group for group in GROUPS if group.name in ("kselftest", "faults", "demo", "kunit")),
                Group("control", "what the kernel of DEBUG looks for it finds", control))


def main(wanted: Sequence[str], groups: Sequence[Group], repo: Path) -> int:
    """The command line, with which groups there are, and where the repository is."""
    if wanted == ["list"]:
        for group in groups:
            print(f"{group.name:<10} {group.what}")
        return 0
    known = {group.name: group for group in groups}
    for name in wanted:
        if name not in known:
            sys.exit(f"error: there is no group {name}; use: {' '.join(known)}")
    # Each once, as it has its logs for itself.
    chosen = [known[name] for name in dict.fromkeys(wanted)] or list(groups)
    start, build = time.monotonic(), repo / "build"
    out = build / "test"
    with locked(build / ".test.lock"):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        (build / "logs").mkdir(exist_ok=True)
        runs = run_groups(chosen, repo, min(2, os.cpu_count() or 1))
        write(runs, out)
    print(summary(runs))
    seconds = int(time.monotonic() - start)
    print(f"\nin {seconds // 60} min {seconds % 60} s; logs are in {build}/logs, each test in {out}/results.xml")
    passed, failed = totals(runs)
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    if kernels() != KERNELS:
        # Slower, and by how much depends on the machine.
        os.environ["TIMEOUT"] = os.environ.get("TIMEOUT") or "3600"
    sys.exit(main(sys.argv[1:], GROUPS if kernels() == KERNELS else DEBUG_GROUPS, Path(__file__).resolve().parents[2]))
