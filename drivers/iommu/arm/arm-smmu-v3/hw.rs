// SPDX-License-Identifier: GPL-2.0

//! The hardware's view of a command queue: the entries in memory, the registers and the error codes
//! of Arm IHI 0070, 3.5, 4.1 and 6.3.
//!
//! [`super::smmu_hw`] has a physical SMMU, and the KUnit tests have one of software.

use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    }, //
};

use super::cmd::Cmd;

/// An entry of the queue in memory: two little-endian words.
///
/// A submitter writes an entry before it marks the slot as valid. After that the SMMU reads it, and
/// may write its completion MSI over the first word of a `CMD_SYNC`.
#[repr(transparent)]
pub(crate) struct Entry([Atomic<u64>; 2]);

impl Entry {
    /// An entry of zeroes.
    #[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
    pub(crate) fn new() -> Self {
        Self([Atomic::new(0), Atomic::new(0)])
    }

    /// Writes a command. Gives no ordering.
    #[inline]
    pub(crate) fn write(&self, cmd: Cmd) {
        let [word0, word1] = cmd.le_words();
        self.0[0].store(word0, Relaxed);
        self.0[1].store(word1, Relaxed);
    }

    /// Reads a command. Gives no ordering.
    #[inline]
    pub(crate) fn read(&self) -> Cmd {
        Cmd::from_le_words([self.0[0].load(Relaxed), self.0[1].load(Relaxed)])
    }

    /// Whether the completion MSI of the `CMD_SYNC` in this entry has arrived.
    ///
    /// The MSI is a write of 32 bits of zeroes over the opcode. Later reads are ordered after it.
    #[inline]
    pub(crate) fn has_completion_msi(&self) -> bool {
        // CAST: The first four bytes, where the opcode is, are the lower half of the word.
        u64::from_le(self.0[0].load(Acquire)) as u32 == 0
    }
}

/// An error of the command queue: `SMMU_CMDQ_CONS.ERR` (IHI 0070, 4.1.2 and 6.3.28).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Cerror {
    /// `CERROR_ILL`: the command is illegal.
    Ill = 1,
    /// `CERROR_ABT`: the command could not be fetched from memory.
    Abt = 2,
    /// `CERROR_ATC_INV_SYNC`: of the `CMD_ATC_INV`s since the last `CMD_SYNC`, at least one has not
    /// been answered in time.
    AtcInvSync = 3,
}

impl Cerror {
    /// Takes the code out of `SMMU_CMDQ_CONS`.
    ///
    /// Returns [`None`] for `CERROR_NONE`, with which no error should be active. A reserved code
    /// counts as an illegal command: replacing the command lets the queue go on.
    pub(crate) fn from_cons(cons: u32) -> Option<Self> {
        match (cons >> 24) & 0x7f {
            0 => None,
            2 => Some(Self::Abt),
            3 => Some(Self::AtcInvSync),
            _ => Some(Self::Ill),
        }
    }
}

/// How a command queue error was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Action {
    /// The SMMU fetches the slot again.
    Retry = 0,
    /// The command was replaced by a `CMD_SYNC`.
    Replace = 1,
}

/// A command queue error that was handled.
pub(crate) struct Report {
    /// `SMMU_CMDQ_CONS`.
    pub(crate) cons: u32,
    /// The index of the slot.
    pub(crate) index: usize,
    /// The code.
    pub(crate) cerror: Option<Cerror>,
    /// The command in the slot. [`None`] if the SMMU could not fetch it: then the memory may be
    /// poisoned, and the CPU does not read it either.
    pub(crate) cmd: Option<Cmd>,
    /// How it was handled.
    pub(crate) action: Action,
    /// Handled by a CPU that waits for the queue, not by the interrupt handler.
    pub(crate) inline: bool,
    /// The slot is a guest's, which can cause errors at will.
    pub(crate) is_guest: bool,
    /// For how long the queue has been stopped at this slot.
    pub(crate) stopped_for: Delta,
}

/// What the queue needs of an SMMU: its registers, the entries in memory, and time.
///
/// An SMMU has one command queue of its own, and extensions may add others. Each has its own
/// registers.
pub(crate) trait Hw {
    /// The number of slots that one word of the map of valid slots covers. A power of two, and no
    /// more than 64. A model checker wants less.
    const WORD_BITS: u64 = 64;

    /// The least number of slots. The driver's largest batch has 64 commands, so that two of those
    /// fit with some room.
    const MIN_LEN: usize = 128;

    /// The entries. Their number is a power of two and does not change.
    fn entries(&self) -> &[Entry];

    /// Writes `SMMU_CMDQ_PROD`. Gives no ordering.
    fn write_prod(&self, prod: u32);

    /// Reads `SMMU_CMDQ_CONS`. All later accesses to memory are ordered after it.
    fn read_cons(&self) -> u32;

    /// Whether a command queue error is active: `CMDQ_ERR` differs in `SMMU_GERROR` and
    /// `SMMU_GERRORN`.
    fn error_is_active(&self) -> bool;

    /// Acknowledges the active command queue error, so that the SMMU fetches the slot at
    /// `SMMU_CMDQ_CONS` again. All earlier writes to memory are ordered before it.
    ///
    /// The caller holds the lock of the error log.
    fn acknowledge(&self);

    /// The `CMD_SYNC` for the slot with this index.
    fn make_sync(&self, index: usize) -> Cmd;

    /// Whether a `CMD_SYNC` of [`Self::make_sync()`] completes with an MSI to its own entry.
    fn sync_has_msi(&self) -> bool;

    /// Lets some time pass between two looks at the queue.
    ///
    /// `looks` counts the looks, and `waited` is the time since the first one, in case that it is
    /// known. A look may come late by a fraction of `waited`. `for_sync` says that the caller waits
    /// for a `CMD_SYNC`, whose completion may wake it.
    fn pause(&self, looks: u32, waited: Delta, for_sync: bool);

    /// Whether interrupts are disabled on this CPU. Then it must not be kept for long.
    fn interrupts_are_disabled(&self) -> bool {
        false
    }

    /// Whether the calling thread has a fatal signal. Asked in process context, and only for the
    /// commands of a guest: the host waits in any case.
    fn caller_is_killed(&self) -> bool {
        false
    }

    /// The current time.
    fn now(&self) -> Instant<Monotonic> {
        Instant::now()
    }

    /// Traces a batch that was put into the queue.
    fn trace_batch(&self, _start: u64, _cmds: usize, _sync: bool) {}

    /// Traces an error that was handled.
    fn trace_error(&self, _report: &Report) {}

    /// Traces a `CMD_ATC_INV` that was issued again on its own, and what came of it.
    fn trace_replay(&self, _cmd: Cmd, _failed: Option<Cerror>) {}

    /// Traces a wait that timed out, with `SMMU_CMDQ_CONS`.
    fn trace_timeout(&self, _position: u64, _cons: u32, _is_guest: bool) {}

    /// Asks for the ATS of streams to be blocked which [`super::cmdq::Cmdq::next_to_block()`]
    /// returns. May be called in any context but an NMI.
    fn block_ats(&self) {}

    /// Traces that the device of a stream has not answered to the host or a guest, and that
    /// `CMD_ATC_INV`s of guests for it are refused for some time.
    fn trace_backoff(&self, _sid: u32, _time: Delta, _is_guest: bool) {}
}

/// Something on a cache line of its own.
///
/// All machines with an SMMUv3 so far have lines of 64 bytes. Only speed depends on it.
#[repr(align(64))]
pub(crate) struct CacheLine<T>(pub(crate) T);

/// Makes a vector of `len` values.
pub(crate) fn try_vec<T>(len: usize, value: impl Fn() -> T) -> Result<KVVec<T>> {
    let mut values = KVVec::with_capacity(len, GFP_KERNEL)?;
    for _ in 0..len {
        values.push(value(), GFP_KERNEL)?;
    }
    Ok(values)
}
