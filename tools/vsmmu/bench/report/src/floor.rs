// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The floor: how many arm64 instructions an invalidation takes at the very least.
//!
//! A command has to be read from user memory, which may sleep, before there is room for it in the
//! queue, as nobody may sleep who keeps others waiting there. So each command is stored twice, once in
//! the kernel's own memory and once in the queue, and there are two loops. What can be done once for
//! many commands counts for nothing: the masks of what is legal are in a table, the physical stream ID
//! is at hand, the block does not reach the end of the ring, and no loop is unrolled.

use crate::rows::Measured;

/// What a command takes.
pub const COMMAND: [(&str, u64); 9] = [
    (
        "read both words from user memory: two LDTR, and move the pointer",
        3,
    ),
    ("take the opcode, find its masks: AND, ADD, LDP", 3),
    ("no bit that must not be set: two BIC, ORR, CBNZ", 4),
    ("a TLBI or another kind: TBZ", 1),
    ("the VMID of the physical SMMU: BFI", 1),
    ("keep it: STP", 1),
    ("the next one, in the loop that reads: SUBS, B.NE", 2),
    ("into the queue: LDP, STP", 2),
    ("the next one, in the loop that writes: SUBS, B.NE", 2),
];

/// What a CMD_SYNC takes, in a queue that all CPUs share without a lock.
pub const SYNC: [(&str, u64); 8] = [
    (
        "interrupts off and on, with the former state: MRS, MSR, MSR",
        3,
    ),
    ("room in the queue: LDR twice, SUB, CMP, B", 5),
    ("reserve it: ADD, CAS, CMP, B.NE", 4),
    ("the CMD_SYNC itself: MOV twice, STP", 3),
    ("everybody before this is done: DMB, LDR, CMP, B.NE", 4),
    (
        "publish: ADD, STR of PROD, a release store for those behind",
        3,
    ),
    ("is it complete: LDR of CONS, SUB, CMP, B", 4),
    (
        "function call and return, with two registers saved: BL, STP, LDP, RET",
        4,
    ),
];

/// The instructions of a command.
pub fn per_command() -> u64 {
    COMMAND.iter().map(|(_, n)| n).sum()
}

/// The instructions of a CMD_SYNC.
pub fn per_sync() -> u64 {
    SYNC.iter().map(|(_, n)| n).sum()
}

/// What a call takes that has nothing to do, as measured: the system call, its argument, the object and
/// the driver.
pub fn per_call(measured: &Measured) -> Option<u64> {
    measured
        .find("ioctl", "ioctl: no commands", 0)?
        .rust
        .instructions()
}

/// What so many `calls` take that have `n` commands in all, each with one CMD_SYNC.
pub fn calls(measured: &Measured, calls: u64, n: u64) -> Option<u64> {
    Some(calls * (per_call(measured)? + per_sync()) + n * per_command())
}
