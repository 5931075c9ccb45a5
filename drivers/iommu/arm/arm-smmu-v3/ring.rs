// SPDX-License-Identifier: GPL-2.0

//! The ring: how several CPUs put batches of commands into one queue without taking a lock.
//!
//! A submitter
//!
//! 1. reserves slots by moving [`Head::reserved`] forward. The first one to do so since the last
//!    hand-over becomes the *owner*.
//! 2. writes its commands and marks its slots as valid.
//! 3. if it is the owner: waits for the previous owner, ends the reserving in its range, waits
//!    until the whole range is valid, writes `SMMU_CMDQ_PROD` and hands over to the next owner.
//!
//! So the slots of one batch follow each other, and `SMMU_CMDQ_PROD` only moves over slots that are
//! written.
//!
//! Slots are freed by what `SMMU_CMDQ_CONS` or a completion MSI shows. Whoever waits for its batch
//! *holds* the ring, and while there is a holder nothing is freed. So the slots of a holder stay
//! its own until it has looked at them.
//!
//! The ring knows nothing of errors; see [`super::error_log`].
//!
//! A *position* counts slots since the ring was made, in 64 bits that do not wrap. Its low bits are
//! the index of the slot, and the next bit is the wrap bit of the SMMU's registers. The other bits
//! tell apart positions that differ only in how often the queue has wrapped.

use kernel::{
    prelude::*,
    processor::cpu_relax,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    }, //
};

use super::{
    cmd::Cmd,
    hw::{
        try_vec,
        CacheLine,
        Hw, //
    }, //
};

/// What all submitters write to, on one cache line.
struct Head {
    /// The position of the next slot to reserve, and [`OWNED`].
    reserved: Atomic<u64>,
    /// The position of the first slot that may not be reused: the SMMU has consumed all slots
    /// before it, and their submitters have looked at them.
    ///
    /// Written by the one who has [`EXCLUSIVE`] set, or else by the last one of [`HOLDERS`].
    freed: Atomic<u64>,
    /// The number of holders ([`HOLDERS`]), [`EXCLUSIVE`], and the number of `CMD_SYNC`s so far in
    /// units of [`SYNC`].
    holders: Atomic<u64>,
    /// The number of batches without a `CMD_SYNC` so far.
    unsynced: Atomic<u64>,
}

/// Set in [`Head::reserved`] if the slots at the head have an owner that has not yet published
/// them.
const OWNED: u64 = 1 << 63;

/// The part of [`Head::holders`] that counts the holders: at most one for each CPU, since
/// interrupts are disabled while holding.
const HOLDERS: u64 = (1 << 15) - 1;

/// Set in [`Head::holders`] by a CPU that frees slots without being a holder.
const EXCLUSIVE: u64 = 1 << 15;

/// The unit in which [`Head::holders`] counts `CMD_SYNC`s.
const SYNC: u64 = 1 << 16;

/// Slots that follow each other, reserved for one batch.
#[derive(Clone, Copy)]
pub(crate) struct Slots {
    /// The position of the first one.
    pub(crate) start: u64,
    /// The position behind the last one.
    pub(crate) end: u64,
    /// Whether the submitter has to publish them, and those reserved behind them until it does.
    is_owner: bool,
}

/// The slots of a command queue.
pub(crate) struct Ring {
    /// The number of slots is `1 << shift`.
    shift: u32,
    /// The number of slots less one.
    mask: u64,
    head: CacheLine<Head>,
    /// The position at which the range of the next owner begins. Owners spin on it.
    owner: CacheLine<Atomic<u64>>,
    /// A bit for each slot, which its submitter toggles when the slot is written. So a set bit
    /// means valid in the first round, a clear one in the second, and so on, and nobody has to
    /// reset bits.
    valid: KVVec<Atomic<u64>>,
    /// A bit for each slot with a `CMD_SYNC` whose submitter has stopped waiting for its completion
    /// MSI. Such a slot is not reused before the MSI has arrived, which would otherwise overwrite
    /// the next command.
    abandoned: KVVec<Atomic<u64>>,
    /// The number of bits set in `abandoned`.
    abandoned_count: Atomic<u32>,
}

impl Ring {
    /// Makes the ring of a queue with `len` slots, of which none is in use.
    ///
    /// `SMMU_CMDQ_PROD` and `SMMU_CMDQ_CONS` must be 0 by the time of the first command. Fails with
    /// [`EINVAL`] if `len` is not a power of two or less than [`Hw::MIN_LEN`], and with [`ENOMEM`].
    pub(crate) fn new<H: Hw>(len: usize) -> Result<Self> {
        if len < H::MIN_LEN || !len.is_power_of_two() {
            return Err(EINVAL);
        }
        // CAST: A small number.
        let words = len / H::WORD_BITS as usize;

        Ok(Self {
            shift: len.ilog2(),
            // CAST: `usize` has 64 bits here.
            mask: len as u64 - 1,
            head: CacheLine(Head {
                reserved: Atomic::new(0),
                freed: Atomic::new(0),
                holders: Atomic::new(0),
                unsynced: Atomic::new(0),
            }),
            owner: CacheLine(Atomic::new(0)),
            valid: try_vec(words, || Atomic::new(0))?,
            abandoned: try_vec(words, || Atomic::new(0))?,
            abandoned_count: Atomic::new(0),
        })
    }

    /// The number of slots.
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        self.mask + 1
    }

    /// The index of the slot at a position.
    #[inline]
    pub(crate) fn index(&self, position: u64) -> usize {
        // CAST: `usize` has 64 bits here.
        (position & self.mask) as usize
    }

    /// The index and the wrap bit of a position, as `SMMU_CMDQ_PROD` and `SMMU_CMDQ_CONS` have
    /// them.
    #[inline]
    pub(crate) fn register(&self, position: u64) -> u32 {
        // CAST: A queue has up to 2^19 slots.
        (position & (2 * self.mask + 1)) as u32
    }

    /// The position that a register stands for, which is at `base` or less than two rounds after
    /// it.
    #[inline]
    fn position(&self, register: u32, base: u64) -> u64 {
        base + (u64::from(register).wrapping_sub(base) & (2 * self.mask + 1))
    }

    /// The position of the next slot to reserve.
    #[inline]
    pub(crate) fn reserved(&self) -> u64 {
        self.head.0.reserved.load(Relaxed) & !OWNED
    }

    /// As [`Self::reserved()`], and what is read afterwards is read after it.
    #[inline]
    fn reserved_acquire(&self) -> u64 {
        self.head.0.reserved.load(Acquire) & !OWNED
    }

    /// The numbers of slots reserved, of `CMD_SYNC`s and of batches so far.
    ///
    /// They are not of one instant if the queue is in use.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let syncs = self.head.0.holders.load(Relaxed) / SYNC;
        let batches = syncs + self.head.0.unsynced.load(Relaxed);

        (self.reserved(), syncs, batches)
    }

    /// Reserves `count` slots, at least one, if there is room for them.
    ///
    /// Interrupts must be disabled from here until [`Self::publish()`] has returned: other CPUs may
    /// spin for this one.
    #[inline]
    pub(crate) fn reserve(&self, count: u64) -> Option<Slots> {
        // Pairs with the release in `free()`: the previous use of the slots has ended. Reading it
        // first makes sure that it is not ahead of `reserved`. It may be behind, and then there
        // only seems to be less room.
        let freed = self.head.0.freed.load(Acquire);
        let mut reserved = self.head.0.reserved.load(Relaxed);

        loop {
            let start = reserved & !OWNED;
            let end = start.wrapping_add(count);
            if end.wrapping_sub(freed) > self.len() {
                return None;
            }
            // Positions do not wrap, so an equal value means that nothing was reserved since.
            match self.head.0.reserved.cmpxchg(reserved, end | OWNED, Relaxed) {
                Ok(_) => {
                    return Some(Slots {
                        start,
                        end,
                        is_owner: reserved & OWNED == 0,
                    })
                }
                Err(now) => reserved = now,
            }
        }
    }

    /// Whether there is room for `count` slots by what was freed so far.
    #[inline]
    pub(crate) fn has_room(&self, count: u64) -> bool {
        let freed = self.head.0.freed.load(Acquire);

        self.reserved().wrapping_add(count).wrapping_sub(freed) <= self.len()
    }

    /// Writes `cmds` into the slots from `start` on.
    #[inline]
    pub(crate) fn write<H: Hw>(&self, hw: &H, start: u64, cmds: &[Cmd]) {
        let (wrapped, straight) = hw.entries().split_at(self.index(start));
        let (first, rest) = cmds.split_at(cmds.len().min(straight.len()));

        for (entry, cmd) in straight.iter().zip(first) {
            entry.write(*cmd);
        }
        for (entry, cmd) in wrapped.iter().zip(rest) {
            entry.write(*cmd);
        }
    }

    /// Counts a batch without a `CMD_SYNC`.
    #[inline]
    pub(crate) fn count_unsynced(&self) {
        self.head.0.unsynced.add(1, Relaxed);
    }

    /// Makes the slots visible to the SMMU, or leaves that to their owner.
    ///
    /// The caller has written the slots, with a `dma_wmb()` behind the last write. In C, the second
    /// half of `__arm_smmu_cmdq_issue_cmdlist()`.
    #[inline]
    pub(crate) fn publish<H: Hw>(&self, hw: &H, slots: Slots) {
        self.mark_valid::<H>(slots.start, slots.end);
        if slots.is_owner {
            self.publish_as_owner(hw, slots);
        }
    }

    /// Calls `f` for each word of the map of valid slots that covers a slot from `start` to `end`,
    /// with the bits of these slots and the value that they have when the slots are valid.
    #[inline]
    fn for_each_word<H: Hw>(&self, start: u64, end: u64, f: impl Fn(&Atomic<u64>, u64, u64)) {
        let mut position = start;

        while position < end {
            let bit = position % H::WORD_BITS;
            let count = (H::WORD_BITS - bit).min(end - position);
            let mask = (u64::MAX >> (u64::from(u64::BITS) - count)) << bit;
            let is_even_round = (position >> self.shift) & 1 == 0;

            f(
                &self.valid[self.word::<H>(position)],
                mask,
                if is_even_round { mask } else { 0 },
            );
            position += count;
        }
    }

    /// The index of the word that has the bit of the slot at a position.
    #[inline]
    fn word<H: Hw>(&self, position: u64) -> usize {
        self.index(position) / H::WORD_BITS as usize
    }

    /// Marks the slots from `start` to `end` as valid. Gives no ordering.
    #[inline]
    fn mark_valid<H: Hw>(&self, start: u64, end: u64) {
        self.for_each_word::<H>(start, end, |word, mask, valid| {
            // All of these bits are the opposite of `valid` before, so that this toggles them and
            // carries nothing into others.
            if valid != 0 {
                word.add(mask, Relaxed);
            } else {
                word.add(mask.wrapping_neg(), Relaxed);
            }
        });
    }

    /// Tells the SMMU of all slots that are reserved from those of the owner on.
    #[inline(always)]
    fn publish_as_owner<H: Hw>(&self, hw: &H, slots: Slots) {
        // PROD must not move backwards, so wait until the previous owner has written it. Pairs with
        // the release below.
        while self.owner.0.load(Acquire) != slots.start {
            cpu_relax();
        }

        // From here on, the next one to reserve slots is an owner itself.
        let end = self.head.0.reserved.fetch_sub(OWNED, Relaxed) & !OWNED;

        // Others may still be writing. Each of them has a dma_wmb() between its entries and its
        // bits, and the acquire orders the bits before the write of PROD. That the SMMU then sees
        // the entries as well follows from arm64 being other-multi-copy atomic; the LKMM does not
        // promise it without a release of PROD. C relies on the same. See the litmus tests
        // CMDQ-valid-bit*.
        self.for_each_word::<H>(slots.end, end, |word, mask, valid| {
            while word.load(Acquire) & mask != valid {
                cpu_relax();
            }
        });

        hw.write_prod(self.register(end));
        // The next owner writes PROD only after this one has.
        self.owner.0.store(end, Release);
    }

    /// Becomes a holder, with a `CMD_SYNC`: nothing is freed until [`Self::release()`].
    ///
    /// To be called with interrupts disabled, before [`Self::publish()`].
    #[inline]
    pub(crate) fn hold(&self) {
        // A CPU that frees slots now does so by a CONS that was read before our slots are visible,
        // so it does not free them. The acquire keeps it so: our slots become visible after that
        // CPU has finished.
        if self.head.0.holders.fetch_add(SYNC + 1, Acquire) & EXCLUSIVE != 0 {
            while self.head.0.holders.load(Acquire) & EXCLUSIVE != 0 {
                cpu_relax();
            }
        }
    }

    /// Reverts [`Self::hold()`]. The last holder frees the slots that it knows to be consumed:
    /// those before the position `consumed`.
    ///
    /// For `has_no_msi` see [`Self::try_free()`].
    #[inline]
    pub(crate) fn release<H: Hw>(
        &self,
        hw: &H,
        consumed: Option<u64>,
        has_no_msi: impl Fn(usize) -> bool,
    ) {
        if let Some(consumed) = consumed {
            // If we are the only holder at this moment, whoever becomes one next has slots behind
            // those that we saw consumed. If we are not, another one will be the last. The acquire
            // shows what earlier holders have abandoned.
            if self.head.0.holders.load(Acquire) & HOLDERS == 1 {
                self.free(hw, consumed, 0, has_no_msi);
            }
        }
        // After all that we have done with the slots.
        let _ = self.head.0.holders.fetch_sub(1, Release);
    }

    /// Says that the caller, a holder, stops waiting for the completion MSI of its `CMD_SYNC` at a
    /// position.
    #[cold]
    pub(crate) fn abandon<H: Hw>(&self, position: u64) {
        // The bit is clear, since the slot was free before.
        self.abandoned[self.word::<H>(position)].add(1 << (position % H::WORD_BITS), Relaxed);
        self.abandoned_count.add(1, Relaxed);
    }

    /// Frees all slots before the position `consumed`. Slots are kept whose completion MSI is still
    /// to come, and all behind them; for the parameters see [`Self::try_free()`].
    ///
    /// The caller is the last holder or has [`EXCLUSIVE`] set.
    #[inline]
    fn free<H: Hw>(
        &self,
        hw: &H,
        consumed: u64,
        lost_before: u64,
        has_no_msi: impl Fn(usize) -> bool,
    ) {
        // An SMMU that has lost its power shows a position that makes no sense.
        if consumed > self.reserved() {
            return;
        }
        let mut end = consumed;
        if self.abandoned_count.load(Relaxed) != 0 {
            end = self.clear_abandoned(hw, consumed, lost_before, has_no_msi);
        }
        // The use of these slots has ended. Pairs with the acquire in `reserve()`.
        self.head.0.freed.store(end, Release);
    }

    /// Clears the bits of abandoned slots whose MSI has arrived. Returns the position of the first
    /// one whose MSI has not, or that up to which all is consumed.
    #[cold]
    fn clear_abandoned<H: Hw>(
        &self,
        hw: &H,
        consumed: u64,
        lost_before: u64,
        has_no_msi: impl Fn(usize) -> bool,
    ) -> u64 {
        for position in self.head.0.freed.load(Relaxed)..consumed {
            let word = &self.abandoned[self.word::<H>(position)];
            let bit = 1u64 << (position % H::WORD_BITS);
            if word.load(Relaxed) & bit == 0 {
                continue;
            }
            // The MSI of a later CMD_SYNC says nothing of this one: they go to different addresses.
            let index = self.index(position);
            if position >= lost_before
                && !hw.entries()[index].has_completion_msi()
                && !has_no_msi(index)
            {
                return position;
            }
            word.add(bit.wrapping_neg(), Relaxed);
            self.abandoned_count.add(1u32.wrapping_neg(), Relaxed);
        }
        consumed
    }

    /// Frees the slots that the SMMU has consumed by `SMMU_CMDQ_CONS`, unless there is a holder,
    /// which will do it.
    ///
    /// `has_no_msi` says of the slot with an index that its `CMD_SYNC` was replaced by one without
    /// an MSI. Abandoned slots before the position `lost_before` are freed even if their MSI has
    /// not arrived.
    pub(crate) fn try_free<H: Hw>(
        &self,
        hw: &H,
        lost_before: u64,
        has_no_msi: impl Fn(usize) -> bool,
    ) {
        // Others may spin until we are through.
        let _irq = kernel::interrupt::local_interrupt_disable();
        let holders = self.head.0.holders.load(Relaxed);

        if holders & (EXCLUSIVE | HOLDERS) != 0
            || self
                .head
                .0
                .holders
                .cmpxchg(holders, holders | EXCLUSIVE, Acquire)
                .is_err()
        {
            return;
        }

        // Nobody else writes it now, and CONS is at most a round ahead of it. CONS can be behind it
        // for a moment after an MSI, and then appears to be far ahead, which `free()` refuses.
        let freed = self.head.0.freed.load(Relaxed);
        self.free(
            hw,
            self.position(hw.read_cons(), freed),
            lost_before,
            has_no_msi,
        );
        let _ = self.head.0.holders.fetch_sub(EXCLUSIVE, Release);
    }

    /// Looks by `SMMU_CMDQ_CONS` whether the SMMU has consumed all slots before the position
    /// `next`, and returns how far it has got. Fails with the register's value if it has not.
    ///
    /// The caller is a holder, and the slot before `next` is its own.
    #[inline]
    pub(crate) fn look_at_cons<H: Hw>(&self, hw: &H, next: u64) -> Result<u64, u32> {
        // Nothing is freed while we hold, so CONS is less than a round ahead of `next`. If it is
        // behind `next`, it appears to be ahead by more than a round, or, where a completion MSI
        // was faster than CONS and the ring is full, to be ahead of all that is reserved.
        let cons = hw.read_cons();
        let position = self.position(cons, next);

        if position - next < self.len() && position <= self.reserved() {
            Ok(position)
        } else {
            Err(cons)
        }
    }

    /// The number of slots from `start` on that the SMMU has consumed, up to `count`. The caller is
    /// a holder, and the slots are its own.
    #[cold]
    pub(crate) fn count_consumed<H: Hw>(&self, hw: &H, start: u64, count: u64) -> u64 {
        let position = self.position(hw.read_cons(), start);

        // If CONS is behind `start`, it appears to be ahead of what is reserved.
        if position <= self.reserved() {
            (position - start).min(count)
        } else {
            0
        }
    }

    /// A position that the SMMU has got to. The caller need not be a holder.
    #[cold]
    pub(crate) fn consumed<H: Hw>(&self, hw: &H) -> u64 {
        // In this order, so that no more than a round is reserved beyond `freed`, and a CONS that
        // is behind it for a moment does not appear to be within what is reserved.
        let reserved = self.reserved_acquire();
        let freed = self.head.0.freed.load(Acquire);
        let cons = self.position(hw.read_cons(), freed);

        if cons <= reserved {
            cons
        } else {
            freed
        }
    }

    /// Whether the SMMU has consumed the slot at a position, of which the caller need not be a
    /// holder. May be wrong by saying that it has not.
    #[cold]
    pub(crate) fn is_consumed<H: Hw>(&self, hw: &H, position: u64) -> bool {
        position < self.head.0.freed.load(Acquire) || position < self.consumed(hw)
    }

    /// Empties the ring for an SMMU that is being reset. Returns what `SMMU_CMDQ_PROD` and
    /// `SMMU_CMDQ_CONS` have to be set to.
    ///
    /// Nobody may use the queue meanwhile. Commands that were not consumed are dropped, and it is
    /// up to the caller to invalidate everything.
    pub(crate) fn reset<H: Hw>(&self, hw: &H) -> u32 {
        let reserved = self.reserved();

        self.free(hw, reserved, reserved, |_| true);
        self.register(reserved)
    }
}
