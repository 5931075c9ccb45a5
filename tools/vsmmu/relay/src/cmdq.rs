// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue as the guest sees it: its registers (IHI 0070, 6.3).

use crate::host::{Cerror, IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE};

const CR0: u64 = 0x20;
const CR0ACK: u64 = 0x24;
const GERROR: u64 = 0x60;
const GERRORN: u64 = 0x64;
const CMDQ_BASE: u64 = 0x90;
const CMDQ_BASE_HIGH: u64 = CMDQ_BASE + 4;
const CMDQ_PROD: u64 = 0x98;
const CMDQ_CONS: u64 = 0x9c;

const CR0_CMDQEN: u64 = 1 << 3;
const GERROR_CMDQ_ERR: u64 = 1 << 0;
const BASE_LOG2SIZE: u64 = 0x1f;
const BASE_ADDRESS: u64 = 0x00ff_ffff_ffff_ffe0;
const BASE_WRITABLE: u64 = 1 << 62 | BASE_ADDRESS | BASE_LOG2SIZE;
/// The most that the architecture allows: IDR1.CMDQS is not above 19.
const CMDQS_MAX: u32 = 19;
/// An index and, above it, the bit that changes with each wrap.
const POINTER: u32 = (1 << (CMDQS_MAX + 1)) - 1;
const CONS_ERR_SHIFT: u32 = 24;
const CONS_WRITABLE: u32 = 0x7f << CONS_ERR_SHIFT | POINTER;

/// What a [`Cmdq`] is like, from the beginning to the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// The kernel answers exactly, by [`IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE`]. If it does not,
    /// batches are short, and of one that fails each command is sent again by itself: an answer to one
    /// command is true.
    pub exact: bool,
    /// Log2 of the entries that the queue may have: IDR1.CMDQS as the guest sees it, 19 at most.
    pub cmdqs: u8,
    /// Sends commands straight from guest memory where it can, see [the crate](crate).
    pub direct: bool,
    /// The most commands that go out with one ioctl, to bound how long it takes. Without `direct` it is
    /// never more than 63, nor on a kernel that does not answer exactly.
    pub max_batch: u32,
}

impl Config {
    /// For an SMMU with these `flags` in its hw_info (`struct iommu_hw_info_arm_smmuv3`), with a queue of
    /// up to 256 entries.
    pub fn new(flags: u32) -> Self {
        Config {
            exact: flags & IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE != 0,
            cmdqs: 8,
            direct: true,
            max_batch: 4096,
        }
    }
}

/// All that a queue remembers, for migration: what the guest can see, and one bit that it cannot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct State {
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
    /// GERRORN.CMDQ_ERR. An error is active while this is not the same.
    pub gerrorn: bool,
    /// An ATC_INV has timed out since the last CMD_SYNC, and the next one will tell the guest.
    pub atc_inv_failed: bool,
}

/// The command queue of a virtual SMMUv3. See [the crate](crate) for how it is used.
#[derive(Clone, Debug)]
pub struct Cmdq {
    pub(crate) config: Config,
    pub(crate) state: State,
}

impl Cmdq {
    /// A queue as it is after reset.
    ///
    /// # Panics
    ///
    /// If [`Config::cmdqs`] is more than the architecture allows.
    pub fn new(config: Config) -> Self {
        assert!(u32::from(config.cmdqs) <= CMDQS_MAX);
        Cmdq {
            config,
            state: State::default(),
        }
    }

    /// Reset of the SMMU.
    pub fn reset(&mut self) {
        self.state = State::default();
    }

    /// What has to be saved.
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes over what has been saved, on another host perhaps: all of [`Config`] may be different, but for
    /// [`Config::cmdqs`], which the guest knows. Bits that the registers do not have are dropped, so that
    /// the state need not come from a friend. There may be commands left to [process](Cmdq::process).
    pub fn restore(&mut self, state: State) {
        self.state = State {
            base: state.base & BASE_WRITABLE,
            prod: state.prod & POINTER,
            cons: state.cons & CONS_WRITABLE,
            ..state
        };
    }

    /// What the guest reads in `len` bytes at `offset` from the base of the SMMU's registers. Of registers
    /// that have bits of others, these are 0. `None` if there is no register of the queue.
    pub fn read(&self, offset: u64, len: usize) -> Option<u64> {
        let bit = |set, bit| if set { bit } else { 0 };
        let state = &self.state;
        Some(match (offset, len) {
            (CR0 | CR0ACK, 4) => bit(state.enabled, CR0_CMDQEN),
            (GERROR, 4) => bit(state.gerror, GERROR_CMDQ_ERR),
            (GERRORN, 4) => bit(state.gerrorn, GERROR_CMDQ_ERR),
            (CMDQ_BASE, 8) => state.base,
            (CMDQ_BASE, 4) => state.base & 0xffff_ffff,
            (CMDQ_BASE_HIGH, 4) => state.base >> 32,
            (CMDQ_PROD, 4) => state.prod.into(),
            (CMDQ_CONS, 4) => state.cons.into(),
            _ => return None,
        })
    }

    /// The guest writes `len` bytes at `offset` from the base of the SMMU's registers. Bits of others are
    /// ignored. Says whether there is a register of the queue; [`Cmdq::process`] is to be called then.
    pub fn write(&mut self, offset: u64, len: usize, value: u64) -> bool {
        let state = &mut self.state;
        match (offset, len) {
            (CR0, 4) => state.enabled = value & CR0_CMDQEN != 0,
            (CR0ACK | GERROR, 4) => {}
            (GERRORN, 4) => state.gerrorn = value & GERROR_CMDQ_ERR != 0,
            (CMDQ_PROD, 4) => state.prod = value as u32 & POINTER,
            // These can only be written while the queue is off.
            (CMDQ_BASE, 4 | 8) | (CMDQ_BASE_HIGH | CMDQ_CONS, 4) if state.enabled => {}
            (CMDQ_BASE, 8) => state.base = value & BASE_WRITABLE,
            (CMDQ_BASE, 4) => {
                let low = value & 0xffff_ffff;
                state.base = (state.base & !0xffff_ffff | low) & BASE_WRITABLE;
            }
            (CMDQ_BASE_HIGH, 4) => {
                let high = value << 32;
                state.base = (state.base & 0xffff_ffff | high) & BASE_WRITABLE;
            }
            (CMDQ_CONS, 4) => state.cons = value as u32 & CONS_WRITABLE,
            _ => return false,
        }
        true
    }

    /// How many entries the queue has. What is above IDR1.CMDQS reads back, and counts as that.
    #[inline]
    pub(crate) fn entries(&self) -> u32 {
        let log2size = (self.state.base & BASE_LOG2SIZE) as u32;
        1 << log2size.min(self.config.cmdqs.into())
    }

    /// How many commands there are from CONS up to PROD. A guest that puts PROD where it must not be, more
    /// than a full queue ahead, has them consumed until both meet.
    #[inline]
    pub(crate) fn left(&self) -> u32 {
        self.state.prod.wrapping_sub(self.state.cons) & (2 * self.entries() - 1)
    }

    /// How many of them follow each other in memory.
    #[inline]
    pub(crate) fn contiguous(&self) -> u32 {
        let index = self.state.cons & (self.entries() - 1);
        self.left().min(self.entries() - index)
    }

    /// The address of the entry that is so many behind CONS, with no end of the ring in between.
    #[inline]
    pub(crate) fn address(&self, behind: u32) -> u64 {
        let size = u64::from(self.entries()) * 16;
        // A queue is aligned to its size, and to 32 bytes if it has but one entry.
        let base = self.state.base & BASE_ADDRESS & !(size - 1);
        let index = (self.state.cons & (self.entries() - 1)) + behind;
        base + u64::from(index) * 16
    }

    /// Consumes so many commands.
    #[inline]
    pub(crate) fn advance(&mut self, count: u32) {
        let cons = self.state.cons.wrapping_add(count) & (2 * self.entries() - 1);
        self.state.cons = self.state.cons & !POINTER | cons;
    }

    /// Whether an error is active, which it is until the guest has written GERRORN.
    #[inline]
    pub(crate) fn halted(&self) -> bool {
        self.state.gerror != self.state.gerrorn
    }

    /// Makes an error active, for the command at CONS.
    pub(crate) fn fail(&mut self, cerror: Cerror) {
        self.state.cons = self.state.cons & POINTER | (cerror as u32) << CONS_ERR_SHIFT;
        self.state.gerror = !self.state.gerrorn;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(log2size: u64) -> Cmdq {
        let mut queue = Cmdq::new(Config::new(0));
        assert!(queue.write(CMDQ_BASE, 8, 0x12_3456_7fe0 | log2size));
        queue
    }

    #[test]
    fn base_in_one_piece_and_in_two() {
        let mut queue = queue(5);
        assert_eq!(queue.read(CMDQ_BASE, 8), Some(0x12_3456_7fe5));
        assert_eq!(queue.read(CMDQ_BASE, 4), Some(0x3456_7fe5));
        assert_eq!(queue.read(CMDQ_BASE_HIGH, 4), Some(0x12));
        queue.write(CMDQ_BASE_HIGH, 4, 0xffff_ffff);
        assert_eq!(queue.read(CMDQ_BASE, 8), Some(0x40ff_ffff_3456_7fe5));
        queue.write(CMDQ_BASE, 4, 0);
        assert_eq!(queue.read(CMDQ_BASE, 8), Some(0x40ff_ffff_0000_0000));
        queue.write(CMDQ_BASE, 8, u64::MAX);
        assert_eq!(queue.read(CMDQ_BASE, 8), Some(0x40ff_ffff_ffff_ffff));
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
            assert_eq!(queue.address(0), base);
            assert_eq!(queue.read(CMDQ_BASE, 4).unwrap() & 31, log2size);
        }
    }

    #[test]
    fn as_large_as_can_be() {
        let mut queue = Cmdq::new(Config {
            cmdqs: 19,
            ..Config::new(0)
        });
        queue.write(CMDQ_BASE, 8, 0x12_3456_7fe0 | 19);
        assert_eq!(queue.entries(), 1 << 19);
        assert_eq!(queue.address(0), 0x12_3400_0000);
        queue.write(CMDQ_CONS, 4, 0xf_ffff);
        queue.write(CMDQ_PROD, 4, 0x7_ffff);
        assert_eq!((queue.left(), queue.contiguous()), (1 << 19, 1));
        assert_eq!(queue.address(0), 0x12_347f_fff0);
        queue.advance(1);
        assert_eq!(queue.read(CMDQ_CONS, 4), Some(0));
        assert_eq!((queue.left(), queue.contiguous()), (0x7_ffff, 0x7_ffff));
        assert_eq!(queue.address(0x7_ffff), 0x12_347f_fff0);
    }

    #[test]
    fn written_only_while_it_is_off() {
        let mut queue = queue(4);
        assert!(queue.write(CMDQ_CONS, 4, 0xffff_ffff));
        assert_eq!(queue.read(CMDQ_CONS, 4), Some(0x7f0f_ffff));
        queue.write(CMDQ_CONS, 4, 3);
        assert!(queue.write(CR0, 4, 0xffff_ffff));
        assert_eq!(queue.read(CR0, 4), Some(8));
        assert_eq!(queue.read(CR0ACK, 4), Some(8));
        for (offset, len) in [
            (CMDQ_BASE, 4),
            (CMDQ_BASE, 8),
            (CMDQ_BASE_HIGH, 4),
            (CMDQ_CONS, 4),
        ] {
            assert!(queue.write(offset, len, 0));
        }
        assert_eq!(queue.read(CMDQ_BASE, 8), Some(0x12_3456_7fe4));
        assert_eq!(queue.read(CMDQ_CONS, 4), Some(3));
        assert!(queue.write(CMDQ_PROD, 4, 0xffff_ffff));
        assert_eq!(queue.read(CMDQ_PROD, 4), Some(0x000f_ffff));
        assert!(queue.write(CR0, 4, !8));
        assert_eq!(queue.read(CR0ACK, 4), Some(0));
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
            assert_eq!(queue.read(offset, len), None);
            assert!(!queue.write(offset, len, u64::MAX));
        }
        let before = queue.state();
        for offset in [CR0ACK, GERROR] {
            assert!(queue.write(offset, 4, u64::MAX));
        }
        assert_eq!(queue.state(), before);
    }

    #[test]
    fn pointers() {
        let mut queue = queue(2);
        for (cons, prod, left, contiguous) in [
            (0, 0, 0, 0),
            (0, 4, 4, 4),
            (3, 4, 1, 1),
            (3, 6, 3, 1),
            (6, 1, 3, 2),
            (4, 0, 4, 4),
            // More than a full queue.
            (0, 7, 7, 4),
            (1, 0, 7, 3),
            // Bits above the one for the wrap are none of a queue of this size.
            (0xffff0, 0x81, 1, 1),
        ] {
            queue.write(CMDQ_CONS, 4, cons);
            queue.write(CMDQ_PROD, 4, prod);
            assert_eq!((queue.left(), queue.contiguous()), (left, contiguous));
        }
        queue.write(CMDQ_CONS, 4, 0x0300_0007);
        queue.advance(3);
        assert_eq!(queue.read(CMDQ_CONS, 4), Some(0x0300_0002));
    }

    #[test]
    fn restoring() {
        let mut queue = queue(4);
        queue.write(CR0, 4, 8);
        queue.write(CMDQ_PROD, 4, 9);
        let state = queue.state();
        let mut other = Cmdq::new(Config::new(2));
        other.restore(state);
        assert_eq!(other.state(), state);
        other.restore(State {
            base: u64::MAX,
            prod: u32::MAX,
            cons: u32::MAX,
            ..State::default()
        });
        assert_eq!(other.read(CMDQ_PROD, 4), Some(0x000f_ffff));
        assert_eq!(other.read(CMDQ_CONS, 4), Some(0x7f0f_ffff));
        other.reset();
        assert_eq!(other.state(), State::default());
    }

    #[test]
    #[should_panic]
    fn too_large() {
        let config = Config {
            cmdqs: 20,
            ..Config::new(0)
        };
        Cmdq::new(config);
    }
}
