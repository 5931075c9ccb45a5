// SPDX-License-Identifier: GPL-2.0

//! The command queue: how commands get to an SMMU, and how their submitter learns what became of
//! them.
//!
//! All CPUs share the queue and none of them takes a lock to use it. A submitter
//!
//! 1. reserves slots by moving [`Head`] forward. The first one to do so since the last hand-over
//!    becomes the *owner*: it tells the SMMU of all the slots that are reserved until it does so,
//!    its own and others'.
//! 2. writes its commands, and a `CMD_SYNC` if it wants to know when they are complete.
//! 3. marks its slots as valid.
//! 4. if it is the owner: waits for the owner before it, ends the reserving in its range, waits
//!    until all of the range is valid, writes `SMMU_CMDQ_PROD` and hands over to the next owner.
//! 5. waits until the SMMU has completed the `CMD_SYNC`, or without one has consumed the commands
//!    if it wants to know that, and looks whether the SMMU found fault with one of its slots.
//!
//! So batches are never mixed with each other: the slots of one follow each other, and its
//! `CMD_SYNC` is the first one after its commands.
//!
//! What happens when the SMMU stops at an error is in [`super::cerror`].
//!
//! Slots are counted from the beginning of time in 64 bits, which do not wrap: a *position*. The
//! low bits of a position are the index of its slot, and the one above them is the wrap bit that
//! the SMMU's registers have. The other bits are what keeps apart positions that only differ in
//! how often the queue has wrapped, however long a CPU sleeps between two looks.

use kernel::{
    prelude::*,
    processor::cpu_relax,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        barrier::{
            dma_mb,
            Write, //
        },
        lock::raw_spinlock::{
            new_raw_spinlock_irq,
            RawSpinLockIrq, //
        }, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    }, //
};

use super::{
    cerror::{
        Cerror,
        Errors,
        Records,
        Report, //
    },
    cmd::Cmd, //
};

/// An entry of the queue in memory: two little-endian words.
///
/// A submitter writes an entry before it marks the slot as valid. After that the SMMU reads it, and
/// on request writes zeroes over the beginning of a `CMD_SYNC` when that is complete.
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

    /// Whether the SMMU has written its completion message over the `CMD_SYNC` that was here.
    ///
    /// That message is 32 bits of zeroes. What is read afterwards is read after it.
    #[inline]
    pub(crate) fn is_overwritten(&self) -> bool {
        // CAST: The first four bytes, where the opcode is, are the lower half of the word.
        u64::from_le(self.0[0].load(Acquire)) as u32 == 0
    }
}

/// What the queue needs of an SMMU: its registers, the entries in memory, and time.
///
/// Every queue of an SMMU has its own: the one of the SMMU itself and those of its extensions.
pub(crate) trait Port {
    /// The entries. Their number is a power of two and does not change.
    fn entries(&self) -> &[Entry];

    /// Writes `SMMU_CMDQ_PROD`. Gives no ordering.
    fn write_prod(&self, prod: u32);

    /// Reads `SMMU_CMDQ_CONS`. All later accesses to memory are ordered after it.
    fn read_cons(&self) -> u32;

    /// Whether a command queue error is active: `CMDQ_ERR` differs in `SMMU_GERROR` and
    /// `SMMU_GERRORN`.
    fn error_is_active(&self) -> bool;

    /// Acknowledges the active command queue error, by which the queue goes on. All earlier
    /// accesses to memory are ordered before it.
    ///
    /// The caller holds the lock of the queue that is for servicing errors.
    fn acknowledge(&self);

    /// The `CMD_SYNC` for the slot with this index.
    fn sync(&self, index: usize) -> Cmd;

    /// Whether a `CMD_SYNC` by [`Self::sync()`] is overwritten when it is complete.
    fn sync_is_overwritten(&self) -> bool;

    /// Passes a moment, `spins` in a row. Returns true if it is time to look around for the
    /// reason of the waiting. `for_sync` tells that it is for a `CMD_SYNC`, whose completion the
    /// SMMU may signal.
    fn pause(&self, spins: u32, for_sync: bool) -> bool;

    /// Passes a longer time, after which an SMMU that does not work may do so again.
    fn rest(&self) {}

    /// What the time is.
    fn now(&self) -> Instant<Monotonic> {
        Instant::now()
    }

    /// Is told of every batch that was put into the queue.
    fn trace_batch(&self, _start: u64, _cmds: usize, _sync: bool) {}

    /// Is told of every error after it was serviced.
    fn trace_error(&self, _report: &Report) {}

    /// Is told of every command that is replayed.
    fn trace_replay(&self, _cmd: Cmd, _failed: Option<Cerror>) {}

    /// Is told of every wait that was given up, with `SMMU_CMDQ_CONS`.
    fn trace_timeout(&self, _position: u64, _cons: u32) {}
}

/// How long the submitter of a batch waits for the SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    /// Until the SMMU has consumed the commands. By then it has found fault with them, or it never
    /// will. When they are complete is another matter.
    Consumed,
    /// Until the `CMD_SYNC` behind the commands is complete, and with it the commands, and all that
    /// was consumed before them.
    Complete,
}

/// Why commands are not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The SMMU found fault with one command. Those before it are complete.
    Cmd {
        /// Which one.
        index: usize,
        /// What it found.
        cerror: Cerror,
    },
    /// The queue does not go on, whatever is done about the error at its head.
    Stuck {
        /// As many commands are known to be complete, and all before them. [`None`] if nothing is.
        complete: Option<usize>,
        /// What the SMMU finds at the head of the queue.
        cerror: Cerror,
    },
    /// The SMMU consumed nothing for as long as [`TIME_LIMIT`], without an error, or did not get as
    /// far as to these commands within [`TOTAL_LIMIT`].
    Timeout {
        /// As many commands are known to be complete, and all before them. [`None`] if nothing is.
        complete: Option<usize>,
    },
}

/// How long the queue may stand still before its users give up, as `ARM_SMMU_POLL_TIMEOUT_US` in C.
pub(crate) const TIME_LIMIT: Delta = Delta::from_secs(1);

/// How long to wait for a queue that goes on, but slowly.
///
/// Who waits for the SMMU has interrupts disabled, which is not to last until the kernel takes
/// the CPU for dead.
pub(crate) const TOTAL_LIMIT: Delta = Delta::from_secs(5);

/// Cache line that is written to by all submitters.
///
/// 64 bytes is the size of one on all machines with an SMMUv3 so far, and nothing but speed depends
/// on it.
#[repr(align(64))]
struct Head {
    /// The position of the next slot that is not reserved, and [`OWNED`].
    reserved: Atomic<u64>,
    /// The position of the first slot that may not be used again: the SMMU has consumed all before
    /// it and their submitters have looked at them.
    ///
    /// Written by the holder of [`EXCLUSIVE`], or else by the last one of [`HOLDERS`].
    freed: Atomic<u64>,
    /// Those who wait for the SMMU ([`HOLDERS`]), [`EXCLUSIVE`], and how many `CMD_SYNC`s there
    /// have been, in units of [`SYNC`].
    waiters: Atomic<u64>,
    /// How many batches had no `CMD_SYNC`.
    unsynced: Atomic<u64>,
}

/// Set in [`Head::reserved`] if somebody owns the slots at the head and is yet to tell the SMMU.
const OWNED: u64 = 1 << 63;

/// The part of [`Head::waiters`] that counts those who wait at present: as many as there are CPUs
/// at most, as interrupts are disabled meanwhile.
const HOLDERS: u64 = (1 << 15) - 1;

/// Set in [`Head::waiters`] by somebody who frees slots without having waited.
const EXCLUSIVE: u64 = 1 << 15;

/// The unit in which [`Head::waiters`] counts `CMD_SYNC`s.
const SYNC: u64 = 1 << 16;

/// A command queue of an SMMU.
#[pin_data]
pub(crate) struct Cmdq<P> {
    /// The way to the SMMU.
    #[pin]
    pub(crate) port: P,
    /// The number of entries is `1 << shift`.
    pub(crate) shift: u32,
    head: Head,
    /// The position where the range of the next owner begins. On a line of its own since owners
    /// spin on it.
    owner: CacheLine<Atomic<u64>>,
    /// A bit for every slot, which is toggled when a submitter has written the slot. So it is set
    /// for a valid slot the first time round, clear the second time, and so on: nobody has to
    /// reset it.
    valid: KVVec<Atomic<u64>>,
    /// What the SMMU found fault with.
    pub(crate) records: Records,
    /// Held by the CPU that services an error.
    #[pin]
    pub(crate) service: RawSpinLockIrq<()>,
    /// Counters of what happens seldom.
    pub(crate) stats: Stats,
}

/// Something on a cache line of its own, see [`Head`].
#[repr(align(64))]
struct CacheLine<T>(T);

/// What has happened since the SMMU was probed.
pub(crate) struct Stats {
    /// Errors by their code in `SMMU_CMDQ_CONS`: none, ILL, ABT, `ATC_INV_SYNC`, others.
    pub(crate) errors: [Atomic<u64>; 5],
    /// Errors that a CPU serviced that was waiting for the queue, and not the interrupt handler.
    pub(crate) inline: Atomic<u64>,
    /// Commands that were sent again on their own.
    pub(crate) replays: Atomic<u64>,
    /// Waits that were given up.
    pub(crate) timeouts: Atomic<u64>,
}

/// Makes `len` values.
pub(crate) fn zeroes<T>(len: usize, zero: impl Fn() -> T) -> Result<KVVec<T>> {
    let mut values = KVVec::with_capacity(len, GFP_KERNEL)?;
    for _ in 0..len {
        values.push(zero(), GFP_KERNEL)?;
    }
    Ok(values)
}

/// The number of bits in a word of the map of valid slots.
const WORD: u64 = u64::BITS as u64;

impl<P: Port> Cmdq<P> {
    /// Makes a queue of `len` entries, as many as `port` has. It must be empty: `SMMU_CMDQ_PROD`
    /// and `SMMU_CMDQ_CONS` are to be 0 by the time of the first command.
    ///
    /// Fails with [`EINVAL`] if there are fewer than 128 entries, the least that have room for the
    /// driver's batches, and with [`ENOMEM`].
    pub(crate) fn new(port: impl PinInit<P, Error>, len: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            port <- port,
            shift: Self::shift_of(len)?,
            head: Head {
                reserved: Atomic::new(0),
                freed: Atomic::new(0),
                waiters: Atomic::new(0),
                unsynced: Atomic::new(0),
            },
            owner: CacheLine(Atomic::new(0)),
            valid: zeroes(len / u64::BITS as usize, || Atomic::new(0))?,
            records: Records::new(len)?,
            service <- new_raw_spinlock_irq!((), "arm_smmu_cmdq_service"),
            stats: Stats {
                errors: [const { Atomic::new(0) }; 5],
                inline: Atomic::new(0),
                replays: Atomic::new(0),
                timeouts: Atomic::new(0),
            },
        }? Error)
    }

    fn shift_of(len: usize) -> Result<u32> {
        if len < 128 || !len.is_power_of_two() {
            return Err(EINVAL);
        }
        Ok(len.ilog2())
    }

    /// Puts `cmds` into the queue, with a `CMD_SYNC` behind them if they are to be complete.
    ///
    /// With [`Wait::No`] or [`Wait::Complete`], this is what `__arm_smmu_cmdq_issue_cmdlist()` is
    /// in C, and gives the same ordering:
    /// * What was written to memory before the call, the SMMU sees when it gets to the commands.
    /// * What is written after it, with [`Wait::Complete`], is written after the commands are
    ///   complete.
    /// * Of two batches, all commands of one come before all of the other.
    ///
    /// [`Wait::Consumed`] is for somebody with many commands, who completes all of them in the end,
    /// but is to learn of each command that the SMMU finds fault with, and to have no more of the
    /// queue's slots at a time than one batch takes. The `CMD_SYNC` that replaces a command at
    /// fault completes all before it.
    ///
    /// A `CMD_ATC_INV` goes with [`Wait::Complete`] only: that it has timed out shows at the next
    /// `CMD_SYNC`, which is to be the one of its own batch.
    ///
    /// There must be room for `cmds` and a `CMD_SYNC` in the smallest queue, so 127 commands at
    /// most.
    ///
    /// Of several commands that the SMMU finds fault with, the first one is reported, and all
    /// before it are complete by then. With [`Wait::No`], nobody learns of such commands, and the
    /// only failures are of the wait for room. After such a failure, none of the commands was
    /// issued.
    ///
    /// To be called in any context but an NMI. Disables interrupts.
    #[inline]
    pub(crate) fn issue(&self, cmds: &[Cmd], wait: Wait) -> Result<(), Failure> {
        debug_assert!(wait == Wait::Complete || !cmds.iter().any(Cmd::is_atc_inv));
        self.issue_all(cmds, wait, false)
    }

    /// Does the same as [`Self::issue()`] for somebody who goes on after a failure as if the
    /// commands were complete.
    ///
    /// That may be good enough when they become complete later than expected, but not if they are
    /// never issued: so this waits for room as long as it takes. And a command that could not be
    /// fetched, with which as such nothing is wrong, is issued once more, with those behind it.
    /// That cannot be known of a command nobody waits for, so that `CMD_ATC_INV`s are always waited
    /// for.
    #[inline]
    pub(crate) fn issue_insistently(
        &self,
        cmds: &[Cmd],
        mut wait: Wait, //
    ) -> Result<(), Failure> {
        // A time-out of ATC_INV shows at the next CMD_SYNC, whoever sent that. So it has to be the
        // sender of the ATC_INV. Its batches hold nothing else when they are sent without.
        if wait == Wait::No && cmds.first().is_some_and(|cmd| cmd.is_atc_inv()) {
            wait = Wait::Complete;
        }

        match self.issue_all(cmds, wait, true) {
            Err(Failure::Cmd {
                index,
                cerror: Cerror::Abt,
            }) => self.issue_once_more(cmds, index),
            outcome => outcome,
        }
    }

    /// Issues the commands from `index` on.
    #[cold]
    fn issue_once_more(&self, cmds: &[Cmd], index: usize) -> Result<(), Failure> {
        self.issue_all(&cmds[index..], Wait::Complete, true)
            .map_err(|failure| match failure {
                Failure::Cmd { index: i, cerror } => Failure::Cmd {
                    index: index + i,
                    cerror,
                },
                // Those before are complete.
                Failure::Stuck { complete, cerror } => Failure::Stuck {
                    complete: Some(index + complete.unwrap_or(0)),
                    cerror,
                },
                Failure::Timeout { complete } => Failure::Timeout {
                    complete: Some(index + complete.unwrap_or(0)),
                },
            })
    }

    #[inline]
    fn issue_all(&self, cmds: &[Cmd], wait: Wait, insist: bool) -> Result<(), Failure> {
        match self.submit(cmds, wait, insist)? {
            None => Ok(()),
            Some(errors) => self.resolve(cmds, errors, insist),
        }
    }

    /// Finds out which command is at fault.
    #[cold]
    fn resolve(&self, cmds: &[Cmd], errors: Errors, insist: bool) -> Result<(), Failure> {
        let before = errors.first.map_or(cmds.len(), |(index, _)| index);

        // Any of the invalidations may have timed out, or none if somebody else's was still under
        // way. They do no harm when done again: each on its own now, to be told apart.
        if errors.atc_inv_sync {
            for (index, cmd) in cmds.iter().enumerate().take(before) {
                if !cmd.is_atc_inv() {
                    continue;
                }
                self.stats.replays.add(1, Relaxed);
                let again = self.submit(core::slice::from_ref(cmd), Wait::Complete, insist);
                // Those before it are complete, be it at the first go or by now.
                let again = again.map_err(|failure| match failure {
                    Failure::Stuck { cerror, .. } => Failure::Stuck {
                        complete: Some(index),
                        cerror,
                    },
                    Failure::Timeout { .. } => Failure::Timeout {
                        complete: Some(index),
                    },
                    failure => failure,
                })?;
                let cerror = again.and_then(|errors| match errors.first {
                    Some((_, cerror)) => Some(cerror),
                    None => errors.atc_inv_sync.then_some(Cerror::AtcInvSync),
                });
                self.port.trace_replay(*cmd, cerror);
                if let Some(cerror) = cerror {
                    return Err(Failure::Cmd { index, cerror });
                }
            }
        }

        match errors.first {
            None => Ok(()),
            Some((index, cerror)) => Err(Failure::Cmd { index, cerror }),
        }
    }

    /// Puts `cmds` into the queue, once. Returns what the SMMU found fault with if it did so.
    #[inline]
    fn submit(&self, cmds: &[Cmd], wait: Wait, insist: bool) -> Result<Option<Errors>, Failure> {
        let sync = wait == Wait::Complete;
        // CAST: `usize` has 64 bits here.
        let len = cmds.len() as u64;
        let count = len + u64::from(sync);
        // Owners take their turns by the position where their range begins, so that one of them
        // must not be empty.
        if count == 0 {
            return Ok(None);
        }

        // From here on others may wait for this CPU.
        let mut irq = kernel::interrupt::local_interrupt_disable();
        let (start, is_owner) = loop {
            match self.reserve(count) {
                Some(reserved) => break reserved,
                None => {
                    drop(irq);
                    match self.wait_for_room(count) {
                        Ok(()) => (),
                        Err(_) if insist => self.port.rest(),
                        Err(failure) => return Err(failure),
                    }
                    irq = kernel::interrupt::local_interrupt_disable();
                }
            }
        };
        let end = start + count;
        let sync_at = start + len;

        if self.records.any() {
            // Left by those who did not wait, or not long enough, when the slots were theirs.
            let _ = self.take_errors(start..end, 0);
        }

        self.write(start, cmds);
        if sync {
            let index = self.index(sync_at);
            self.port.entries()[index].write(self.port.sync(index));
        } else {
            self.head.unsynced.add(1, Relaxed);
        }
        if wait != Wait::No {
            // While somebody waits, no slot is freed: so the queue cannot wrap and show something
            // newer in the place of the CMD_SYNC, and the slots stay ours until we have looked.
            // This has to be so before others can see the slots.
            self.lock_shared(if sync { SYNC } else { 0 });
        }

        // The entries, and all that they refer to, are to be in memory before they are valid, and
        // before PROD is written. Pairs with the SMMU reading PROD.
        dma_mb(Write);
        self.mark_valid(start, end);

        if is_owner {
            self.publish(start, end);
        }
        self.port.trace_batch(start, cmds.len(), sync);

        if wait == Wait::No {
            drop(irq);
            return Ok(None);
        }

        let waited = if sync {
            self.wait_for(true, || self.look_at_sync(sync_at))
        } else {
            self.wait_for(false, || self.look_at_cons(end))
        };
        // Whoever services an error records it before the acknowledgment, without which the SMMU
        // does not get as far as to complete the CMD_SYNC, nor past the slot. What shows that it
        // has is read with an acquire, so that the record shows too.
        let errors = if self.records.any() {
            self.take_errors(start..end, cmds.len())
        } else {
            None
        };
        self.unlock_shared(waited.ok());
        drop(irq);

        if let Err(Failure::Timeout { .. }) = waited {
            self.timed_out(end - 1);
        }
        waited.map(|_| errors)
    }

    /// The index of the slot at a position.
    #[inline]
    pub(crate) fn index(&self, position: u64) -> usize {
        // CAST: `usize` has 64 bits here.
        (position & ((1 << self.shift) - 1)) as usize
    }

    /// What `SMMU_CMDQ_PROD` and `SMMU_CMDQ_CONS` hold for a position: index and wrap bit.
    #[inline]
    fn register(&self, position: u64) -> u32 {
        // CAST: A queue has up to 2^19 entries.
        (position & ((2 << self.shift) - 1)) as u32
    }

    /// The position that a register stands for, which is at `base` or up to two rounds after it.
    #[inline]
    fn position(&self, register: u32, base: u64) -> u64 {
        let modulus = 2 << self.shift;
        base + (u64::from(register).wrapping_sub(base) & (modulus - 1))
    }

    /// Reserves `count` slots, if there is room for them. Returns the position of the first, and
    /// whether the caller has become the owner.
    #[inline]
    fn reserve(&self, count: u64) -> Option<(u64, bool)> {
        // Whatever was done with these slots is over: pairs with the release in `free()`. To read
        // this first makes sure that it is not ahead of what is reserved. It may be behind, and
        // then there only seems to be less room.
        let freed = self.head.freed.load(Acquire);
        let mut reserved = self.head.reserved.load(Relaxed);

        loop {
            let start = reserved & !OWNED;
            let end = start.wrapping_add(count);
            if end.wrapping_sub(freed) > 1 << self.shift {
                return None;
            }
            // Positions do not wrap, so an equal value means that nothing has been reserved since.
            match self.head.reserved.cmpxchg(reserved, end | OWNED, Relaxed) {
                Ok(_) => return Some((start, reserved & OWNED == 0)),
                Err(now) => reserved = now,
            }
        }
    }

    /// Writes `cmds` into the slots from `start` on.
    #[inline]
    fn write(&self, start: u64, cmds: &[Cmd]) {
        let entries = self.port.entries();
        let (wrapped, straight) = entries.split_at(self.index(start));
        let (first, rest) = cmds.split_at(cmds.len().min(straight.len()));

        for (entry, cmd) in straight.iter().zip(first) {
            entry.write(*cmd);
        }
        for (entry, cmd) in wrapped.iter().zip(rest) {
            entry.write(*cmd);
        }
    }

    /// Calls `f` for every word of the map that has bits for the slots from `start` to `end`, with
    /// these bits and the value that they have when the slots are valid.
    #[inline]
    fn for_each_word(&self, start: u64, end: u64, f: impl Fn(&Atomic<u64>, u64, u64)) {
        let mut position = start;

        while position < end {
            let bit = position % WORD;
            let count = (WORD - bit).min(end - position);
            let mask = (u64::MAX >> (WORD - count)) << bit;
            let is_even_round = (position >> self.shift) & 1 == 0;

            f(
                &self.valid[self.index(position) / WORD as usize],
                mask,
                if is_even_round { mask } else { 0 },
            );
            position += count;
        }
    }

    /// Marks the slots from `start` to `end` as valid. Gives no ordering.
    #[inline]
    fn mark_valid(&self, start: u64, end: u64) {
        self.for_each_word(start, end, |word, mask, valid| {
            // All of these bits are the opposite of `valid` before, so that this toggles them and
            // carries nothing into others.
            if valid != 0 {
                word.add(mask, Relaxed);
            } else {
                word.add(mask.wrapping_neg(), Relaxed);
            }
        });
    }

    /// Tells the SMMU of what has been reserved from `start` on, which the caller owns. The slots
    /// up to `own_end` are its own, and valid.
    #[inline]
    fn publish(&self, start: u64, own_end: u64) {
        // PROD may not move backwards: wait for the owner before to have written it. Pairs with
        // the release below.
        while self.owner.0.load(Acquire) != start {
            cpu_relax();
        }

        // From here on, the next one to reserve slots is an owner itself.
        let end = self.head.reserved.fetch_sub(OWNED, Relaxed) & !OWNED;

        // Others may still be writing. The acquire orders their bits before PROD, and each of them
        // has put its entries before its bits with dma_mb(Write), as we have put ours before PROD.
        self.for_each_word(own_end, end, |word, mask, valid| {
            while word.load(Acquire) & mask != valid {
                cpu_relax();
            }
        });

        self.port.write_prod(self.register(end));
        // After PROD is written, not before.
        self.owner.0.store(end, Release);
    }

    /// Keeps slots from being freed, except by a holder. `count` is added to [`Head::waiters`] as
    /// well.
    #[inline]
    fn lock_shared(&self, count: u64) {
        // If somebody frees slots right now, it is by a CONS that was read before our slots are
        // visible, and so it does not go past them. The acquire keeps it so: our slots become
        // visible after the other one is through.
        if self.head.waiters.fetch_add(count + 1, Acquire) & EXCLUSIVE != 0 {
            while self.head.waiters.load(Acquire) & EXCLUSIVE != 0 {
                cpu_relax();
            }
        }
    }

    /// Reverts [`Self::lock_shared()`]. The last one frees all slots before the position
    /// `consumed`.
    #[inline]
    fn unlock_shared(&self, consumed: Option<u64>) {
        if let Some(position) = consumed {
            // If we are the only one at this moment, then whoever joins us has got slots after what
            // we saw consumed. If we are not, then another one will be the last. With CONS read by
            // an acquire, all those show here whose slots are before it.
            if self.head.waiters.load(Relaxed) & HOLDERS == 1 {
                self.free(position);
            }
        }
        // After all that we have done with the slots.
        let _ = self.head.waiters.fetch_sub(1, Release);
    }

    /// Frees all slots before a position, unless that makes no sense, as the position of an SMMU
    /// often does which has lost its power.
    #[inline]
    fn free(&self, position: u64) {
        if position <= self.head.reserved.load(Relaxed) & !OWNED {
            // What was done with these slots comes before. Pairs with the acquire in `reserve()`.
            self.head.freed.store(position, Release);
        }
    }

    /// Looks whether the `CMD_SYNC` at a position is complete. If it is, returns the position up to
    /// which the SMMU is known to have consumed everything.
    #[inline]
    fn look_at_sync(&self, position: u64) -> Option<u64> {
        let next = position + 1;

        if self.port.sync_is_overwritten() {
            let index = self.index(position);

            if self.port.entries()[index].is_overwritten() {
                return Some(next);
            }
            // What replaces one that is erroneous is not overwritten. For any other, CONS may tell
            // of the completion before the slot does, which then is not ours to give away yet.
            if !self.records.any() || !self.records.is_replaced(index) {
                return None;
            }
        }

        self.look_at_cons(next)
    }

    /// Looks whether the SMMU has consumed all before the position `next`. If it has, returns the
    /// position up to which it is known to have consumed everything.
    #[inline]
    fn look_at_cons(&self, next: u64) -> Option<u64> {
        // As nothing is freed while we wait, CONS is less than a round ahead of `next` and at most
        // a round behind it, which here seems to be one ahead or more.
        let at = self.position(self.port.read_cons(), next);
        (at - next < 1 << self.shift).then_some(at)
    }

    /// Waits until `look` finds what it looks for, as [`Self::wait_on()`] does, but for that it has
    /// often happened by now.
    ///
    /// What is read or written afterwards is so after what was found.
    #[inline]
    fn wait_for<T>(&self, for_sync: bool, look: impl Fn() -> Option<T>) -> Result<T, Failure> {
        match look() {
            Some(found) => Ok(found),
            None => self.wait_on(for_sync, look),
        }
    }

    /// Waits until there is room for `count` slots, or seems to be.
    #[cold]
    fn wait_for_room(&self, count: u64) -> Result<(), Failure> {
        let look = || {
            let freed = self.try_free();
            let reserved = self.head.reserved.load(Relaxed) & !OWNED;
            (reserved.wrapping_add(count).wrapping_sub(freed) <= 1 << self.shift).then_some(())
        };
        let waited = self.wait_for(false, look);

        if let Err(Failure::Timeout { .. }) = waited {
            self.timed_out(self.head.reserved.load(Relaxed) & !OWNED);
        }
        waited
    }

    /// Frees what the SMMU has consumed, unless somebody waits for the SMMU and so will do it.
    /// Returns the position up to which slots are free.
    fn try_free(&self) -> u64 {
        // Others may spin until we are through.
        let _irq = kernel::interrupt::local_interrupt_disable();
        let waiters = self.head.waiters.load(Relaxed);

        if waiters & (EXCLUSIVE | HOLDERS) == 0
            && self
                .head
                .waiters
                .cmpxchg(waiters, waiters | EXCLUSIVE, Acquire)
                .is_ok()
        {
            // Nobody else writes it now. CONS is at most a round ahead of it.
            let freed = self.head.freed.load(Relaxed);
            self.free(self.position(self.port.read_cons(), freed));
            let _ = self.head.waiters.fetch_sub(EXCLUSIVE, Release);
        }
        self.head.freed.load(Acquire)
    }

    /// Waits until `look` finds what it looks for, or until there is no point in waiting any
    /// longer.
    ///
    /// If the queue stands still because of an error, services the error: its interrupt may be
    /// routed to this CPU, which does not take it while interrupts are disabled. `for_sync` is for
    /// [`Port::pause()`].
    #[inline(never)]
    fn wait_on<T>(&self, for_sync: bool, look: impl Fn() -> Option<T>) -> Result<T, Failure> {
        // Of what CONS holds, the error means nothing unless one is active.
        let read_cons = || self.register(u64::from(self.port.read_cons()));

        let begin = self.port.now();
        // Since when the queue stands still, and what it looked like then.
        let mut since = begin;
        let mut cons = read_cons();
        let mut serviced = self.records.serviced();
        let mut given_up = self.records.given_up();
        let mut spins = 0;

        loop {
            spins += 1;
            if !self.port.pause(spins, for_sync) {
                if let Some(found) = look() {
                    return Ok(found);
                }
                continue;
            }

            // Before the look, in case that this CPU is taken away from us after it.
            let now = self.port.now();
            if let Some(found) = look() {
                return Ok(found);
            }

            let cons_now = read_cons();
            if cons_now != cons {
                given_up = self.records.given_up();
            } else if self.records.given_up() != given_up {
                // Only those fail who were waiting when it was given up. Later ones try once more.
                return Err(Failure::Stuck {
                    complete: None,
                    cerror: self.records.given_up_cerror(),
                });
            } else if self.records.serviced() == serviced
                && !self.service_error(true)
                && self.records.serviced() == serviced
            {
                if now - since > TIME_LIMIT || now - begin > TOTAL_LIMIT {
                    return Err(Failure::Timeout { complete: None });
                }
                continue;
            }

            // Something happens: CONS has moved, or there was an error, with which it may not have.
            if now - begin > TOTAL_LIMIT {
                return Err(Failure::Timeout { complete: None });
            }
            since = now;
            cons = cons_now;
            serviced = self.records.serviced();
            spins = 0;
        }
    }

    /// Counts and reports that the SMMU did not get to a position in time.
    #[cold]
    fn timed_out(&self, position: u64) {
        self.stats.timeouts.add(1, Relaxed);
        self.port.trace_timeout(position, self.port.read_cons());
    }

    /// How many commands other than `CMD_SYNC`, `CMD_SYNC`s and batches there have been.
    ///
    /// The numbers are not of one instant if the queue is in use.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let syncs = self.head.waiters.load(Relaxed) / SYNC;
        let batches = syncs + self.head.unsynced.load(Relaxed);
        let slots = self.head.reserved.load(Relaxed) & !OWNED;

        (slots.saturating_sub(syncs), syncs, batches)
    }
}
