// SPDX-License-Identifier: GPL-2.0

//! The error log: what the SMMU has found wrong with which slot of a command queue (Arm IHI 0070,
//! 4.1.2, 4.7.3 and 7.1).
//!
//! At an error the SMMU stops its command queue for everybody, with `SMMU_CMDQ_CONS` at the slot in
//! question. When the error is acknowledged, it fetches that slot again. So whoever notices first,
//! the interrupt handler or a CPU that waits for the queue, *handles* the error: sees to it that
//! the queue can go on, records the error for the slot, and acknowledges. When the submitter of the
//! slot has seen the SMMU get past it, it finds the record. Nobody else does.
//!
//! | error          | `SMMU_CMDQ_CONS` is at | what is done      | what the submitter is told   |
//! |----------------|------------------------|-------------------|------------------------------|
//! | `ILL`          | the command            | replaced          | `ILL` at that command        |
//! | `ABT`          | the command            | fetched again     | nothing                      |
//! | `ABT` again    | a slot of a guest      | replaced          | `ABT` at that command        |
//! | `ABT` again    | another slot           | fetched again     | nothing                      |
//! | `ATC_INV_SYNC` | the `CMD_SYNC`         | fetched again     | to replay its `CMD_ATC_INV`s |
//!
//! A command is replaced by a `CMD_SYNC`, which is legal on every SMMU. A command of the host is
//! never replaced for `ABT`: nobody would issue it again, and an invalidation that is lost leaves a
//! device with access to memory that is no longer its own. A guest is told, and issues the command
//! again.
//!
//! The first error at a slot is handled at once. From the second one on there is a pause before the
//! error is acknowledged, which grows up to [`MAX_PAUSE`], so that a slot that stays unreadable
//! causes no storm of interrupts. This goes on for as long as the error does. Those who wait for
//! the queue meanwhile give up after their own time limit.

use core::ops::Range;

use kernel::{
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
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
    cmd::{
        Cmd,
        SyncSignal, //
    },
    hw::{
        try_vec,
        Action,
        CacheLine,
        Cerror,
        Hw,
        Report, //
    }, //
};

/// The pause before the second error at a slot is acknowledged. Later it is an eighth of the time
/// for which the queue has been stopped there, so that the queue goes on at most that much later
/// than it could.
const MIN_PAUSE: Delta = Delta::from_micros(1);

/// The longest pause.
pub(crate) const MAX_PAUSE: Delta = Delta::from_millis(1);

/// The record of a slot: what has happened there since it was reserved.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Record(i8);

impl Record {
    const NONE: Self = Self(0);
    /// The command was replaced, as it is illegal.
    const ILL: i8 = 1 << 0;
    /// The command was replaced, as it could not be fetched twice.
    const ABT: i8 = 1 << 1;
    /// The command was fetched again for another reason.
    const RETRIED: i8 = 1 << 2;
    /// The `CMD_SYNC` here found that a `CMD_ATC_INV` was not answered.
    const ATC_INV_SYNC: i8 = 1 << 3;

    fn has(self, bits: i8) -> bool {
        self.0 & bits != 0
    }

    fn with(self, bits: i8) -> Self {
        Self(self.0 | bits)
    }
}

/// What the SMMU has found wrong with a batch.
#[derive(Clone, Copy, Default)]
pub(crate) struct Errors {
    /// The first command that was replaced, and why.
    pub(crate) first: Option<(usize, Cerror)>,
    /// A `CMD_ATC_INV` was not answered in time. It need not be one of this batch.
    pub(crate) atc_inv_sync: bool,
}

impl Errors {
    /// Whether there are any.
    pub(crate) fn any(&self) -> bool {
        self.first.is_some() || self.atc_inv_sync
    }
}

/// What [`ErrorLog::handle()`] has done.
pub(crate) enum Handled {
    /// Nothing: there is no active error.
    NoError,
    /// Nothing for the interrupt handler: a CPU that waits for the queue has handled an error since
    /// the last interrupt.
    ByWaiter,
    /// The error was acknowledged.
    Acknowledged(Report),
    /// Nothing yet: the error is to be acknowledged later. Its interrupt does not come again, so
    /// somebody has to call once more.
    Later,
}

/// A slot at which the queue was stopped.
struct Stop {
    index: usize,
    /// When it was stopped there for the first time.
    since: Instant<Monotonic>,
    /// The next error there is not acknowledged before this time.
    not_before: Instant<Monotonic>,
}

/// The most batches in [`State::overdue`].
const MAX_OVERDUE: usize = 32;

/// A batch of the host that was not complete in time, and whose submitter waits again.
#[derive(Clone, Copy)]
struct Overdue {
    /// Its position.
    start: u64,
    /// The number of its commands.
    len: usize,
    /// The first of them that was replaced, and why.
    first: Option<(usize, Cerror)>,
}

/// What [`ErrorLog::state`] protects.
struct State {
    /// The slot at which the queue was stopped last.
    stop: Option<Stop>,
    /// Others may have got the slots of these batches when their submitters look for errors, so the
    /// records of the slots do not do. With too many, the oldest one is forgotten.
    overdue: [Option<Overdue>; MAX_OVERDUE],
    /// The index of the next one, or of the oldest.
    next: usize,
}

/// Slots that this CPU waits for on behalf of a guest; see [`ErrorLog::mark_guest()`].
pub(crate) struct GuestMark<'a>(&'a Atomic<u64>);

impl Drop for GuestMark<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.store(0, Relaxed);
    }
}

/// The records of all slots, and how errors are handled.
#[pin_data]
pub(crate) struct ErrorLog {
    /// Written with `state` locked.
    records: KVVec<Atomic<i8>>,
    /// How many records are not empty, so that there is one place to look at when all is well.
    count: Atomic<u32>,
    /// For each CPU, the slots that it waits for on behalf of a guest: the index of the first one
    /// in the upper half, and their number in the lower half.
    guests: KVVec<CacheLine<Atomic<u64>>>,
    /// An error was handled inline since the last interrupt, whose interrupt may still come.
    interrupt_may_come: Atomic<bool>,
    /// Locked while an error is handled.
    #[pin]
    state: RawSpinLockIrq<State>,
}

impl ErrorLog {
    /// Makes an empty log for a queue with `len` slots. Fails with [`ENOMEM`].
    pub(crate) fn new(len: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            records: try_vec(len, || Atomic::new(0))?,
            count: Atomic::new(0),
            // CAST: `usize` has 64 bits here.
            guests: try_vec(nr_cpu_ids() as usize, || CacheLine(Atomic::new(0)))?,
            interrupt_may_come: Atomic::new(false),
            state <- new_raw_spinlock_irq!(
                State {
                    stop: None,
                    overdue: [None; MAX_OVERDUE],
                    next: 0,
                },
                "arm_smmu_cmdq_error_log"
            ),
        }? Error)
    }

    /// Whether any slot has a record.
    #[inline]
    pub(crate) fn has_records(&self) -> bool {
        self.count.load(Relaxed) != 0
    }

    fn get(&self, index: usize) -> Record {
        Record(self.records[index].load(Relaxed))
    }

    /// Changes a record. The caller has `state` locked.
    fn set(&self, index: usize, record: Record) {
        let was = self.get(index);

        self.records[index].store(record.0, Relaxed);
        match (was == Record::NONE, record == Record::NONE) {
            (true, false) => self.count.add(1, Relaxed),
            (false, true) => self.count.add(1u32.wrapping_neg(), Relaxed),
            _ => (),
        }
    }

    /// Whether the command in this slot was replaced, so that it is a `CMD_SYNC` without an MSI.
    pub(crate) fn is_replaced(&self, index: usize) -> bool {
        self.get(index).has(Record::ILL | Record::ABT)
    }

    /// Says that `slots` are for commands of a guest, until the result is dropped. They are
    /// indices, which may be beyond the end of the ring by one round.
    ///
    /// To be called before the slots are published, and to be dropped before they are given up.
    /// Interrupts must be disabled all the time.
    #[inline]
    pub(crate) fn mark_guest(&self, slots: Range<usize>) -> GuestMark<'_> {
        // CAST: `usize` has 64 bits here.
        let CacheLine(mark) = &self.guests[CpuId::current().as_u32() as usize];

        // CAST: As above, and a queue has up to 2^19 slots.
        mark.store(
            (slots.start << 32 | (slots.end - slots.start)) as u64,
            Relaxed,
        );
        GuestMark(mark)
    }

    /// Whether this slot is a guest's, which is told of errors.
    fn is_guest(&self, index: usize) -> bool {
        self.guests.iter().any(|CacheLine(slots)| {
            // CAST: `usize` has 64 bits here.
            let slots = slots.load(Relaxed) as usize;
            let (start, count) = (slots >> 32, slots & 0xffff_ffff);

            index.wrapping_sub(start) & (self.records.len() - 1) < count
        })
    }

    /// Handles the active error. Replaces `__arm_smmu_cmdq_skip_err()`, but also writes
    /// `SMMU_GERRORN`.
    ///
    /// `inline` says that the caller waits for the queue and is not the interrupt handler. `is_at`
    /// says whether the slot with an index, at which the queue is stopped, is that of a position.
    /// `on_atc_inv_sync` is called for an `ATC_INV_SYNC`, with the index of its `CMD_SYNC`, before
    /// the SMMU can get past that.
    ///
    /// May be called in any context but an NMI.
    #[cold]
    pub(crate) fn handle<H: Hw>(
        &self,
        hw: &H,
        inline: bool,
        is_at: impl Fn(usize, u64) -> bool,
        on_atc_inv_sync: impl FnOnce(usize),
    ) -> Handled {
        let no_error = || {
            // An interrupt for an error that is gone by now is not a spurious one.
            if !inline && self.interrupt_may_come.xchg(false, Relaxed) {
                Handled::ByWaiter
            } else {
                Handled::NoError
            }
        };

        // Most callers need no lock to learn that there is none.
        if !hw.error_is_active() {
            return no_error();
        }
        let mut state = self.state.lock();
        // Another CPU may have handled it meanwhile.
        if !hw.error_is_active() {
            return no_error();
        }

        let cons = hw.read_cons();
        // CAST: `usize` has 64 bits here.
        let index = cons as usize & (self.records.len() - 1);
        let cerror = Cerror::from_cons(cons);
        let was = self.get(index);
        let now = hw.now();

        // A record of the slot shows that this is not the first error of the command there.
        let since = match &state.stop {
            Some(stop) if stop.index == index && was != Record::NONE => {
                if (now - stop.not_before).is_negative() {
                    return Handled::Later;
                }
                stop.since
            }
            _ => now,
        };
        let stopped_for = now - since;
        let pause = (stopped_for.as_nanos() / 8).clamp(MIN_PAUSE.as_nanos(), MAX_PAUSE.as_nanos());
        state.stop = Some(Stop {
            index,
            since,
            not_before: now + Delta::from_nanos(pause),
        });

        let is_guest = self.is_guest(index);
        let (bits, action) = match cerror {
            Some(Cerror::Ill) => (Record::ILL, Action::Replace),
            Some(Cerror::Abt) if was.has(Record::RETRIED) && is_guest => {
                (Record::ABT, Action::Replace)
            }
            Some(Cerror::Abt) | None => (Record::RETRIED, Action::Retry),
            Some(Cerror::AtcInvSync) => (Record::ATC_INV_SYNC, Action::Retry),
        };
        let entry = &hw.entries()[index];
        let cmd = (cerror != Some(Cerror::Abt)).then(|| entry.read());

        // All of this is ordered before the acknowledgment. Until then the SMMU does not read the
        // slot, and nothing behind it becomes complete.
        self.set(index, was.with(bits));
        if let (Action::Replace, Some(cerror)) = (action, cerror) {
            for batch in state.overdue.iter_mut().flatten() {
                // CAST: `usize` has 64 bits here.
                let offset = index.wrapping_sub(batch.start as usize) & (self.records.len() - 1);
                let is_later = batch.first.is_some_and(|(first, _)| first <= offset);

                // CAST: As above.
                if offset < batch.len && !is_later && is_at(index, batch.start + offset as u64) {
                    batch.first = Some((offset, cerror));
                }
            }
            // Nobody else writes to the slot: its submitter is done, and the next one waits until
            // the SMMU has consumed it.
            entry.write(if hw.sync_has_msi() {
                // No MSI to a slot whose submitter does not wait for one.
                Cmd::sync(SyncSignal::None)
            } else {
                hw.make_sync(index)
            });
        }
        if cerror == Some(Cerror::AtcInvSync) {
            on_atc_inv_sync(index);
        }
        self.interrupt_may_come.store(inline, Relaxed);
        hw.acknowledge();

        Handled::Acknowledged(Report {
            cons,
            index,
            cerror,
            cmd,
            action,
            inline,
            is_guest,
            stopped_for,
        })
    }

    /// Acknowledges an error without handling it, for an SMMU that is being reset.
    pub(crate) fn reset<H: Hw>(&self, hw: &H) {
        let mut state = self.state.lock();

        if hw.error_is_active() {
            hw.acknowledge();
        }
        for index in 0..self.records.len() {
            self.set(index, Record::NONE);
        }
        state.stop = None;
    }

    /// Calls `f` with the lock held that [`Hw::acknowledge()`] asks for.
    pub(crate) fn with_lock<R>(&self, f: impl FnOnce() -> R) -> R {
        let _state = self.state.lock();

        f()
    }

    /// Removes the records of `slots`, indices as for [`Self::mark_guest()`], which are the
    /// caller's. Returns what they say of the commands in the first `len` slots, and of time-outs.
    #[cold]
    pub(crate) fn take(&self, slots: Range<usize>, len: usize) -> Errors {
        let mut errors = Errors::default();
        let mut guard = None;

        for (i, slot) in slots.enumerate() {
            let index = slot & (self.records.len() - 1);
            if self.get(index) == Record::NONE {
                continue;
            }
            // If the queue is stopped at this slot, another CPU may be about to handle the error.
            guard.get_or_insert_with(|| self.state.lock());
            self.take_slot(index, i, len, &mut errors);
        }
        errors
    }

    /// As [`Self::take()`] for a batch of the host at the position `start`, which is not complete.
    /// [`Self::first_of_overdue()`] tells later what it has.
    #[cold]
    pub(crate) fn take_overdue(&self, slots: Range<usize>, len: usize, start: u64) -> Errors {
        let mut errors = Errors::default();
        // All the time, so that an error is either in a record by now, or for the batch.
        let mut state = self.state.lock();

        for (i, slot) in slots.enumerate() {
            self.take_slot(slot & (self.records.len() - 1), i, len, &mut errors);
        }
        let next = state.next;
        state.overdue[next] = Some(Overdue {
            start,
            len,
            first: errors.first,
        });
        state.next = (next + 1) % MAX_OVERDUE;
        errors
    }

    /// The first command that was replaced of the batch at the position `start`, if it is known.
    #[cold]
    pub(crate) fn first_of_overdue(&self, start: u64) -> Option<(usize, Cerror)> {
        let state = self.state.lock();
        let batch = state
            .overdue
            .iter()
            .flatten()
            .find(|batch| batch.start == start)?;

        batch.first
    }

    /// Removes the record of the slot with this index, the `i`th of a batch with `len` commands,
    /// and adds it to `errors`. The caller has `state` locked.
    fn take_slot(&self, index: usize, i: usize, len: usize, errors: &mut Errors) {
        let record = self.get(index);
        self.set(index, Record::NONE);

        errors.atc_inv_sync |= record.has(Record::ATC_INV_SYNC);
        if errors.first.is_none() && i < len {
            if record.has(Record::ILL) {
                errors.first = Some((i, Cerror::Ill));
            } else if record.has(Record::ABT) {
                errors.first = Some((i, Cerror::Abt));
            }
        }
    }
}
