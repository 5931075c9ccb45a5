#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""prove.py LIBRARY FUNCTION...: proves that the machine code of each function gives the answer
that the specification in commands.tsv demands, for all questions: all commands, SMMUs, VMIDs and
results of the look-up.

angr executes the machine code on symbolic bits, which leaves one formula for each path through it.
An SMT solver (Z3) then looks for a question on that path whose answer is not the expected one, and
for one that no path takes. Prints a line for each function:
`what TAB bound TAB paths TAB seconds TAB result`.
"""

import logging
import sys
import time
from pathlib import Path

# It says that it would be faster with another library, and much about what it does.
for name in "angr", "cle":
    logging.getLogger(name).setLevel("CRITICAL")

import angr  # noqa: E402
from angr import claripy  # noqa: E402

ILLEGAL, ISSUE = 0, 1
OPCODE = 0xFF
TLBI_NH_ALL, TLBI_NSNH_ALL, ATC_INV = 0x10, 0x30, 0x40
LARGEST_SIZE = 52

NAMES = {"verify_rust": "Rust", "verify_reference": "C"}

# The sanitiser has no loops but the one over the commands: many more than there are.
MOST_STEPS = 1000

# The layout of Question and Answer in lib.rs: name, bits.
QUESTION = [("word0", 64), ("word1", 64), ("asid_bits", 32), ("ssid_bits", 32), ("sid", 32),
            ("vmid", 16), ("range_inv", 8), ("ds", 8), ("ats", 8), ("found", 8)]
ANSWER = [("word0", 64), ("word1", 64), ("vsid", 32), ("lookups", 32), ("verdict", 8),
          ("has_atc_inv", 8)]
BOOLS = ["range_inv", "ds", "ats", "found"]


def table():
    """The lines of the table: (opcode, word, high, low, field, when)."""
    for line in (Path(__file__).parent / "commands.tsv").read_text().splitlines():
        if not line.startswith("#"):
            _, opcode, word, high, low, field, when = line.split("\t")
            yield int(opcode, 16), int(word), int(high), int(low), field, when


def replace(word, high, low, value):
    """A word with another value in those bits."""
    mask = ((1 << (high - low + 1)) - 1) << low
    return (word & (2**64 - 1 - mask)) | (value.zero_extend(64 - value.length) << low)


class Spec:
    """The expected answer to a question, as formulas."""

    def __init__(self, question):
        self.q = question
        self.lines = list(table())
        self.conditions = {
            "always": claripy.true(),
            "asid16": question["asid_bits"] == 16,
            "ril": question["range_inv"] != 0,
            "ril+ds": claripy.And(question["range_inv"] != 0, question["ds"] != 0),
            "substreams": question["ssid_bits"] != 0,
        }

    def has(self, name):
        """Whether the command has a field of that name, on whichever SMMU."""
        opcode = self.q["word0"] & OPCODE
        return claripy.Or(*{line[0]: opcode == line[0] for line in self.lines if line[4] == name}.values())

    def reserved_bit(self):
        """Whether a bit is set that no line allows. The opcode itself is for legal()."""
        found = []
        for word in (0, 1):
            for bit in range(8 if word == 0 else 0, 64):
                allowed = [claripy.And((self.q["word0"] & OPCODE) == opcode, self.conditions[when])
                           for opcode, at, high, low, _, when in self.lines
                           if at == word and low <= bit <= high]
                is_set = self.q[f"word{word}"][bit] == 1
                found.append(claripy.And(is_set, claripy.Not(claripy.Or(claripy.false(), *allowed))))
        return claripy.Or(*found)

    def reserved_range(self):
        word0, word1 = self.q["word0"], self.q["word1"]
        tg, ttl = word1[11:10], word1[9:8]
        no_range = claripy.And(word0[16:12] == 0, word0[25:20] == 0)
        return claripy.Or(
            claripy.And(tg == 0, claripy.Not(claripy.And(no_range, ttl == 0))),
            claripy.And(tg != 0, no_range, ttl == 0),
            claripy.And(tg == 2, ttl == 1, self.q["ds"] == 0))

    def legal(self):
        opcode = self.q["word0"] & OPCODE
        known = claripy.Or(*{line[0]: opcode == line[0] for line in self.lines}.values())
        return claripy.And(
            known,
            claripy.Not(self.reserved_bit()),
            claripy.Not(claripy.And(self.has("TG"), self.reserved_range())),
            claripy.Not(claripy.And(self.has("Size"), claripy.Or(
                self.q["ats"] == 0, claripy.UGT(self.q["word1"][5:0], LARGEST_SIZE)))))

    def answer(self):
        q, legal, has_sid = self.q, self.legal(), self.has("StreamID")
        opcode = q["word0"] & OPCODE
        looked_up = claripy.And(legal, has_sid)
        issue = claripy.And(legal, claripy.Or(claripy.Not(has_sid), q["found"] != 0))
        is_all = opcode == TLBI_NSNH_ALL
        new0 = claripy.If(
            has_sid, replace(q["word0"], 63, 32, q["sid"]), claripy.If(
                is_all, replace(claripy.BVV(TLBI_NH_ALL, 64), 47, 32, q["vmid"]),
                claripy.If(self.has("VMID"), replace(q["word0"], 47, 32, q["vmid"]), q["word0"])))
        return {
            "word0": claripy.If(issue, new0, q["word0"]),
            "word1": q["word1"],
            "vsid": claripy.If(looked_up, q["word0"][63:32], claripy.BVV(0, 32)),
            "lookups": claripy.If(looked_up, claripy.BVV(1, 32), claripy.BVV(0, 32)),
            "verdict": claripy.If(issue, claripy.BVV(ISSUE, 8), claripy.BVV(ILLEGAL, 8)),
            "has_atc_inv": claripy.If(claripy.And(issue, opcode == ATC_INV),
                                      claripy.BVV(1, 8), claripy.BVV(0, 8)),
        }


def fields_at(layout):
    """(name, offset in bytes, bits) of a C struct without holes."""
    offset = 0
    for name, bits in layout:
        yield name, offset, bits
        offset += bits // 8


def prove(project, function):
    """Returns the number of paths, and what is wrong or None."""
    symbol = project.loader.find_symbol(function)
    if symbol is None:
        return 0, "there is no such function"
    question = {name: claripy.BVS(name, bits) for name, bits in QUESTION}
    expected = Spec(question).answer()
    valid = [claripy.Or(question["asid_bits"] == 8, question["asid_bits"] == 16),
             claripy.ULE(question["ssid_bits"], 20)]
    valid += [claripy.ULE(question[name], 1) for name in BOOLS]

    question_at, answer_at = 0x10000000, 0x10001000
    state = project.factory.call_state(
        symbol.rebased_addr, question_at, answer_at, prototype="void f(char *q, char *a)",
        add_options={angr.options.SYMBOL_FILL_UNCONSTRAINED_MEMORY,
                     angr.options.SYMBOL_FILL_UNCONSTRAINED_REGISTERS})
    for name, offset, _ in fields_at(QUESTION):
        state.memory.store(question_at + offset, question[name], endness=project.arch.memory_endness)
    state.solver.add(*valid)

    manager = project.factory.simulation_manager(state, save_unconstrained=True)
    manager.run(n=MOST_STEPS)
    if manager.active or manager.errored or manager.unconstrained or not manager.deadended:
        return 0, f"not executed to its end: {manager}, {manager.errored[:1]}"
    for end in manager.deadended:
        # A panic, or whatever else is not a return.
        if end.history.jumpkind != "Ijk_Ret":
            return 0, f"a path does not return: {end}"
        wrong = claripy.Or(*[
            end.memory.load(answer_at + offset, bits // 8, endness=project.arch.memory_endness)
            != expected[name] for name, offset, bits in fields_at(ANSWER)])
        if end.solver.satisfiable(extra_constraints=[wrong]):
            model = {name: hex(end.solver.eval(bits, extra_constraints=[wrong]))
                     for name, bits in question.items()}
            return len(manager.deadended), f"not so for {model}"
    solver = claripy.Solver()
    solver.add(valid)
    solver.add([claripy.Not(claripy.And(*end.solver.constraints)) for end in manager.deadended])
    if solver.satisfiable():
        return len(manager.deadended), "there are questions that no path takes"
    return len(manager.deadended), None


def prove_library(library, function):
    """Like prove(), for a function of a shared library."""
    project = angr.Project(library, auto_load_libs=False)
    return project.arch.name, *prove(project, function)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    failed = False
    for function in sys.argv[2:]:
        start = time.monotonic()
        arch, paths, wrong = prove_library(sys.argv[1], function)
        failed = failed or wrong is not None
        print(f"proof: {NAMES.get(function, function)} = specification", f"all commands, SMMUs, look-ups; {arch} code",
              f"{paths} paths", f"{time.monotonic() - start:.1f}", "FAILED" if wrong else "ok",
              sep="\t", flush=True)
        if wrong:
            print(f"{function}: {wrong}", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
