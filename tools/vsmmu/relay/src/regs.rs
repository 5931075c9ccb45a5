// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers of the queue (IHI 0070, 6.3), and what has to be saved of them.

use core::fmt;

use crate::host::Cerror;

/// Offsets from the base of the SMMU's registers, and the bits that belong to the command queue.
pub mod reg {
    /// SMMU_CR0
    pub const CR0: u64 = 0x20;
    /// SMMU_CR0ACK
    pub const CR0ACK: u64 = 0x24;
    /// SMMU_GERROR
    pub const GERROR: u64 = 0x60;
    /// SMMU_GERRORN
    pub const GERRORN: u64 = 0x64;
    /// SMMU_CMDQ_BASE, 64 bits wide
    pub const CMDQ_BASE: u64 = 0x90;
    /// SMMU_CMDQ_PROD
    pub const CMDQ_PROD: u64 = 0x98;
    /// SMMU_CMDQ_CONS
    pub const CMDQ_CONS: u64 = 0x9c;

    /// CR0.CMDQEN and CR0ACK.CMDQEN
    pub const CR0_CMDQEN: u32 = 1 << 3;
    /// GERROR.CMDQ_ERR and GERRORN.CMDQ_ERR
    pub const GERROR_CMDQ_ERR: u32 = 1 << 0;
}

const CMDQ_BASE_HIGH: u64 = reg::CMDQ_BASE + 4;

const BASE_LOG2SIZE: u64 = 0x1f;
const BASE_ADDRESS: u64 = 0x00ff_ffff_ffff_ffe0;
const BASE_WRITABLE: u64 = 1 << 62 | BASE_ADDRESS | BASE_LOG2SIZE;
/// The architecture's limit for IDR1.CMDQS.
pub(crate) const CMDQS_MAX: u8 = 19;
/// An index and, above it, the bit that changes with each wrap.
const POINTER: u32 = (1 << (CMDQS_MAX + 1)) - 1;
const CONS_ERR_SHIFT: u32 = 24;
const CONS_WRITABLE: u32 = 0x7f << CONS_ERR_SHIFT | POINTER;

/// All that has to be saved of a queue: what the guest can see, and one bit that it cannot.
///
/// A VMM that does not use serde starts with [`State::default`] and sets each field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct State {
    /// The version of this format: [`State::VERSION`].
    pub version: u32,
    /// [`Config::cmdqs`](crate::Config::cmdqs), which must be the same where this is restored.
    pub cmdqs: u8,
    /// CMDQ_BASE
    pub base: u64,
    /// CMDQ_PROD
    pub prod: u32,
    /// CMDQ_CONS
    pub cons: u32,
    /// CR0.CMDQEN
    pub enabled: bool,
    /// GERROR.CMDQ_ERR
    pub gerror: bool,
    /// GERRORN.CMDQ_ERR. An error is active while this differs from GERROR.CMDQ_ERR.
    pub gerrorn: bool,
    /// An ATC_INV has timed out since the last CMD_SYNC. The next CMD_SYNC raises CERROR_ATC_INV_SYNC.
    pub atc_inv_failed: bool,
}

impl State {
    /// The version that this crate writes, and the only one that it accepts.
    pub const VERSION: u32 = 1;

    /// Whether [`Cmdq::restore`](crate::Cmdq::restore) accepts it for a queue with this `cmdqs`.
    pub(crate) fn check(&self, cmdqs: u8) -> Result<(), RestoreError> {
        if self.version != Self::VERSION {
            return Err(RestoreError::Version(self.version));
        }
        if self.cmdqs != cmdqs {
            return Err(RestoreError::Cmdqs(self.cmdqs));
        }
        for (offset, value, writable) in [
            (reg::CMDQ_BASE, self.base, BASE_WRITABLE),
            (reg::CMDQ_PROD, self.prod.into(), POINTER.into()),
            (reg::CMDQ_CONS, self.cons.into(), CONS_WRITABLE.into()),
        ] {
            if value & !writable != 0 {
                return Err(RestoreError::Register { offset, value });
            }
        }
        Ok(())
    }

    /// See [`Cmdq::read`](crate::Cmdq::read). `busy`: commands have been fetched and are not consumed yet.
    pub(crate) fn read(&self, offset: u64, len: usize, busy: bool) -> Option<u64> {
        let bit = |set, bit: u32| if set { bit.into() } else { 0 };
        Some(match (offset, len) {
            (reg::CR0, 4) => bit(self.enabled, reg::CR0_CMDQEN),
            // The SMMU acknowledges a disable when the commands that it has fetched are consumed.
            (reg::CR0ACK, 4) => bit(self.enabled || busy, reg::CR0_CMDQEN),
            (reg::GERROR, 4) => bit(self.gerror, reg::GERROR_CMDQ_ERR),
            (reg::GERRORN, 4) => bit(self.gerrorn, reg::GERROR_CMDQ_ERR),
            (reg::CMDQ_BASE, 8) => self.base,
            (reg::CMDQ_BASE, 4) => self.base & 0xffff_ffff,
            (CMDQ_BASE_HIGH, 4) => self.base >> 32,
            (reg::CMDQ_PROD, 4) => self.prod.into(),
            (reg::CMDQ_CONS, 4) => self.cons.into(),
            _ => return None,
        })
    }

    /// See [`Cmdq::write`](crate::Cmdq::write).
    pub(crate) fn write(&mut self, offset: u64, len: usize, value: u64, busy: bool) -> bool {
        // CMDQ_BASE and CMDQ_CONS can be written only while CR0.CMDQEN and CR0ACK.CMDQEN are 0.
        let fixed = self.enabled || busy;
        match (offset, len) {
            (reg::CR0, 4) => self.enabled = value as u32 & reg::CR0_CMDQEN != 0,
            (reg::CR0ACK | reg::GERROR, 4) => {}
            (reg::GERRORN, 4) => self.gerrorn = value as u32 & reg::GERROR_CMDQ_ERR != 0,
            (reg::CMDQ_PROD, 4) => self.prod = value as u32 & POINTER,
            (reg::CMDQ_BASE, 4 | 8) | (CMDQ_BASE_HIGH | reg::CMDQ_CONS, 4) if fixed => {}
            (reg::CMDQ_BASE, 8) => self.base = value & BASE_WRITABLE,
            (reg::CMDQ_BASE, 4) => {
                let low = value & 0xffff_ffff;
                self.base = (self.base & !0xffff_ffff | low) & BASE_WRITABLE;
            }
            (CMDQ_BASE_HIGH, 4) => {
                let high = value << 32;
                self.base = (self.base & 0xffff_ffff | high) & BASE_WRITABLE;
            }
            (reg::CMDQ_CONS, 4) => self.cons = value as u32 & CONS_WRITABLE,
            _ => return false,
        }
        true
    }

    /// How many entries the queue has. LOG2SIZE above IDR1.CMDQS reads back, and counts as IDR1.CMDQS.
    #[inline]
    pub(crate) fn entries(&self) -> u32 {
        let log2size = (self.base & BASE_LOG2SIZE) as u32;
        1 << log2size.min(self.cmdqs.into())
    }

    /// How many entries there are from CONS to PROD. If the guest writes a PROD that is more than a full
    /// queue ahead, this is more than the queue has, and some are consumed twice.
    #[inline]
    pub(crate) fn left(&self) -> u32 {
        self.prod.wrapping_sub(self.cons) & (2 * self.entries() - 1)
    }

    /// The address of the entry that is so many behind CONS, and how many follow up to the end of the
    /// ring, with that one.
    #[inline]
    pub(crate) fn entry(&self, behind: u32) -> (u64, u32) {
        let entries = self.entries();
        let size = u64::from(entries) * 16;
        // A queue is aligned to its size, and to 32 bytes if it has but one entry.
        let base = self.base & BASE_ADDRESS & !(size - 1);
        let index = self.cons.wrapping_add(behind) & (entries - 1);
        (base + u64::from(index) * 16, entries - index)
    }

    /// Moves CONS behind `count` entries, but not beyond PROD. Says whether it has got that far: if not, the
    /// guest has taken commands back after they were fetched.
    #[inline]
    pub(crate) fn advance(&mut self, count: u32) -> bool {
        let left = self.left();
        let cons = self.cons.wrapping_add(count.min(left)) & (2 * self.entries() - 1);
        self.cons = self.cons & !POINTER | cons;
        count <= left
    }

    /// Whether an error is active, which it is until the guest has written GERRORN.
    #[inline]
    pub(crate) fn halted(&self) -> bool {
        self.gerror != self.gerrorn
    }

    /// Makes an error active, for the command at CONS.
    pub(crate) fn raise(&mut self, cerror: Cerror) {
        self.cons = self.cons & POINTER | (cerror as u32) << CONS_ERR_SHIFT;
        self.gerror = !self.gerrorn;
    }
}

impl Default for State {
    /// A queue as it is after reset, with one entry at most.
    fn default() -> Self {
        State {
            version: Self::VERSION,
            cmdqs: 0,
            base: 0,
            prod: 0,
            cons: 0,
            enabled: false,
            gerror: false,
            gerrorn: false,
            atc_inv_failed: false,
        }
    }
}

/// Why a [`State`] cannot be restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RestoreError {
    /// It has this version, which this crate does not know.
    Version(u32),
    /// It is of a queue with this [`Config::cmdqs`](crate::Config::cmdqs), and this queue has another.
    Cmdqs(u8),
    /// The register at `offset` has bits that it cannot have.
    Register {
        /// See [`reg`].
        offset: u64,
        /// What was to be restored.
        value: u64,
    },
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoreError::Version(version) => write!(
                f,
                "the saved command queue has version {version} instead of {}",
                State::VERSION
            ),
            RestoreError::Cmdqs(cmdqs) => {
                write!(
                    f,
                    "the saved command queue is of an SMMU with CMDQS {cmdqs}"
                )
            }
            RestoreError::Register { offset, value } => write!(
                f,
                "the saved command queue has {value:#x} in the register {offset:#x}, which cannot be"
            ),
        }
    }
}

impl core::error::Error for RestoreError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(log2size: u64) -> State {
        let mut queue = State {
            cmdqs: 8,
            ..State::default()
        };
        assert!(queue.write(reg::CMDQ_BASE, 8, 0x12_3456_7fe0 | log2size, false));
        queue
    }

    fn read(queue: &State, offset: u64, len: usize) -> u64 {
        queue.read(offset, len, false).unwrap()
    }

    #[test]
    fn base_in_one_piece_and_in_two() {
        let mut queue = queue(5);
        assert_eq!(read(&queue, reg::CMDQ_BASE, 8), 0x12_3456_7fe5);
        assert_eq!(read(&queue, reg::CMDQ_BASE, 4), 0x3456_7fe5);
        assert_eq!(read(&queue, CMDQ_BASE_HIGH, 4), 0x12);
        queue.write(CMDQ_BASE_HIGH, 4, 0xffff_ffff, false);
        assert_eq!(read(&queue, reg::CMDQ_BASE, 8), 0x40ff_ffff_3456_7fe5);
        queue.write(reg::CMDQ_BASE, 4, 0, false);
        assert_eq!(read(&queue, reg::CMDQ_BASE, 8), 0x40ff_ffff_0000_0000);
        queue.write(reg::CMDQ_BASE, 8, u64::MAX, false);
        assert_eq!(read(&queue, reg::CMDQ_BASE, 8), 0x40ff_ffff_ffff_ffff);
    }

    #[test]
    fn size_and_alignment() {
        for (log2size, entries, base) in [
            (0, 1, 0x12_3456_7fe0),
            (1, 2, 0x12_3456_7fe0),
            (2, 4, 0x12_3456_7fc0),
            (8, 256, 0x12_3456_7000),
            (9, 256, 0x12_3456_7000),
            (31, 256, 0x12_3456_7000),
        ] {
            let queue = queue(log2size);
            assert_eq!(queue.entries(), entries);
            assert_eq!(queue.entry(0), (base, entries));
            assert_eq!(read(&queue, reg::CMDQ_BASE, 4) & 31, log2size);
        }
    }

    #[test]
    fn as_large_as_can_be() {
        let mut queue = queue(19);
        queue.cmdqs = 19;
        assert_eq!(queue.entries(), 1 << 19);
        assert_eq!(queue.entry(0), (0x12_3400_0000, 1 << 19));
        queue.write(reg::CMDQ_CONS, 4, 0xf_ffff, false);
        queue.write(reg::CMDQ_PROD, 4, 0x7_ffff, false);
        assert_eq!(queue.left(), 1 << 19);
        assert_eq!(queue.entry(0), (0x12_347f_fff0, 1));
        assert_eq!(queue.entry(1), (0x12_3400_0000, 1 << 19));
        assert!(queue.advance(1));
        assert_eq!(read(&queue, reg::CMDQ_CONS, 4), 0);
        assert_eq!(queue.left(), 0x7_ffff);
        assert_eq!(queue.entry(0x7_ffff), (0x12_347f_fff0, 1));
    }

    #[test]
    fn written_only_while_it_is_off() {
        let mut queue = queue(4);
        assert!(queue.write(reg::CMDQ_CONS, 4, 0xffff_ffff, false));
        assert_eq!(read(&queue, reg::CMDQ_CONS, 4), 0x7f0f_ffff);
        queue.write(reg::CMDQ_CONS, 4, 3, false);
        // Off but for commands that are still being executed, on, and both.
        for (cr0, busy) in [(0, true), (0xffff_ffff, false), (8, true)] {
            assert!(queue.write(reg::CR0, 4, cr0, busy));
            assert_eq!(queue.read(reg::CR0, 4, busy), Some(cr0 & 8));
            assert_eq!(queue.read(reg::CR0ACK, 4, busy), Some(8));
            for (offset, len) in [
                (reg::CMDQ_BASE, 4),
                (reg::CMDQ_BASE, 8),
                (CMDQ_BASE_HIGH, 4),
                (reg::CMDQ_CONS, 4),
            ] {
                assert!(queue.write(offset, len, 0, busy));
            }
            assert_eq!(read(&queue, reg::CMDQ_BASE, 8), 0x12_3456_7fe4);
            assert_eq!(read(&queue, reg::CMDQ_CONS, 4), 3);
        }
        assert!(queue.write(reg::CMDQ_PROD, 4, 0xffff_ffff, true));
        assert_eq!(read(&queue, reg::CMDQ_PROD, 4), 0x000f_ffff);
        assert!(queue.write(reg::CR0, 4, !8, false));
        assert_eq!(read(&queue, reg::CR0ACK, 4), 0);
    }

    #[test]
    fn not_the_queues() {
        let mut queue = queue(4);
        for (offset, len) in [
            (0, 4),
            (0x28, 4),
            (0x98, 8),
            (0x9c, 8),
            (0x60, 8),
            (0x90, 2),
        ] {
            assert_eq!(queue.read(offset, len, false), None);
            assert!(!queue.write(offset, len, u64::MAX, false));
        }
        let before = queue;
        for offset in [reg::CR0ACK, reg::GERROR] {
            assert!(queue.write(offset, 4, u64::MAX, false));
        }
        assert_eq!(queue, before);
    }

    #[test]
    fn pointers() {
        let mut queue = queue(2);
        for (cons, prod, left, contiguous) in [
            (0, 0, 0, 4),
            (0, 4, 4, 4),
            (3, 4, 1, 1),
            (3, 6, 3, 1),
            (6, 1, 3, 2),
            (4, 0, 4, 4),
            // More than a full queue.
            (0, 7, 7, 4),
            (1, 0, 7, 3),
            // Bits above the one for the wrap are none of a queue of this size.
            (0xffff0, 0x81, 1, 4),
        ] {
            queue.write(reg::CMDQ_CONS, 4, cons, false);
            queue.write(reg::CMDQ_PROD, 4, prod, false);
            assert_eq!((queue.left(), queue.entry(0).1), (left, contiguous));
        }
        queue.write(reg::CMDQ_CONS, 4, 0x0300_0007, false);
        queue.write(reg::CMDQ_PROD, 4, 3, false);
        assert!(queue.advance(3));
        assert_eq!(read(&queue, reg::CMDQ_CONS, 4), 0x0300_0002);
        // Not beyond PROD.
        assert!(!queue.advance(3));
        assert_eq!(read(&queue, reg::CMDQ_CONS, 4), 0x0300_0003);
    }

    #[test]
    fn nonsense_is_not_restored() {
        let good = queue(4);
        assert_eq!(good.check(8), Ok(()));
        assert_eq!(good.check(9), Err(RestoreError::Cmdqs(8)));
        for version in [0, 2] {
            let state = State { version, ..good };
            assert_eq!(state.check(8), Err(RestoreError::Version(version)));
        }
        let register = |offset, value| Err(RestoreError::Register { offset, value });
        for bit in 0..64 {
            let base = 1 << bit;
            let writable = bit < 56 || bit == 62;
            let state = State { base, ..good };
            assert_eq!(state.check(8).is_ok(), writable, "{bit}");
        }
        for bit in 0..32 {
            let value = 1 << bit;
            let state = State {
                prod: value,
                ..good
            };
            let expected = register(reg::CMDQ_PROD, value.into());
            assert_eq!(state.check(8), if bit < 20 { Ok(()) } else { expected });
            let state = State {
                cons: value,
                ..good
            };
            let expected = register(reg::CMDQ_CONS, value.into());
            let writable = bit < 20 || (24..31).contains(&bit);
            assert_eq!(state.check(8), if writable { Ok(()) } else { expected });
        }
    }
}
