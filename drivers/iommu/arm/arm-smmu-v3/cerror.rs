// SPDX-License-Identifier: GPL-2.0

//! Errors of the command queue: IHI 0070, 4.1.2, 4.7.3 and 7.1.
//!
//! At an error the SMMU stops its command queue for everybody, with `SMMU_CMDQ_CONS` at the slot in
//! question, until the error is acknowledged. Then it fetches that slot again. So whoever notices
//! first, the interrupt handler or somebody who waits for the queue, *services* the error:
//! sees to it that the queue can go on, puts on record what was wrong with the slot, and
//! acknowledges. When the submitter of the slot has seen the SMMU get past it, it finds the record.
//! Nobody else does.
//!
//! | error          | is at          | what is done        | what the submitter is told      |
//! |----------------|----------------|---------------------|---------------------------------|
//! | `ILL`          | the command    | replaced            | `ILL` at that command           |
//! | `ABT`          | the command    | fetched again       | nothing                         |
//! | `ABT` again    | the command    | replaced            | `ABT` at that command           |
//! | `ATC_INV_SYNC` | the `CMD_SYNC` | fetched again       | to try its `CMD_ATC_INV`s again |
//!
//! A command is replaced by a `CMD_SYNC`, since that is legal everywhere. For one that was a
//! `CMD_SYNC` itself, the new one does as well, and nobody is told.
//!
//! A slot that is at fault time and again is given up: the error stays active, those who wait fail,
//! and there is no storm of interrupts. The next submitter makes another attempt. `ATC_INV_SYNC`
//! may come for each `CMD_ATC_INV` of a batch, and only after that counts as time and again.

use core::ops::Range;

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

use super::{
    cmd::{
        Cmd,
        SyncSignal, //
    },
    cmdq::{
        zeroes,
        Cmdq,
        Port, //
    }, //
};

/// What the SMMU finds fault with: `SMMU_CMDQ_CONS.ERR` (IHI 0070, 6.3.28).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Cerror {
    /// The command is illegal.
    Ill = 1,
    /// The command could not be fetched from memory.
    Abt = 2,
    /// Of the `CMD_ATC_INV`s since the last `CMD_SYNC`, some have not been answered in time.
    AtcInvSync = 3,
}

impl Cerror {
    /// Takes the code out of `SMMU_CMDQ_CONS`.
    ///
    /// A code that is not known counts as an illegal command, by which the queue can go on. There
    /// is none if the SMMU says so, against the architecture: no error is active then.
    fn from_cons(cons: u32) -> Option<Self> {
        match (cons >> 24) & 0x7f {
            0 => None,
            2 => Some(Self::Abt),
            3 => Some(Self::AtcInvSync),
            _ => Some(Self::Ill),
        }
    }
}

/// What has happened at a slot since it was reserved: zero if nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Record(i16);

impl Record {
    /// Was replaced, as it is illegal.
    const ILL: i16 = 1 << 0;
    /// Was replaced, as it cannot be fetched.
    const ABT: i16 = 1 << 1;
    /// Could not be fetched once.
    const ABT_ONCE: i16 = 1 << 2;
    /// Noticed that a `CMD_ATC_INV` timed out.
    const ATC_INV_SYNC: i16 = 1 << 3;
    /// The unit in which errors are counted other than `ATC_INV_SYNC`.
    const ATTEMPT: i16 = 1 << 4;
    /// The unit in which those are counted.
    const ATC_ATTEMPT: i16 = 1 << 7;

    /// The most errors that one slot may have, apart from `ATC_INV_SYNC`, before it is given up.
    ///
    /// A slot that fails in each way that can be remedied has as many: cannot be fetched, nor once
    /// again, and is illegal then.
    const MAX_ATTEMPTS: i16 = 3;

    /// The most `ATC_INV_SYNC` that one slot may have: one for each command of the largest batch.
    const MAX_ATC_ATTEMPTS: i16 = 127;

    fn has(self, bits: i16) -> bool {
        self.0 & bits != 0
    }

    fn with(self, bits: i16) -> Self {
        Self(self.0 | bits)
    }

    /// The record after one more error, or [`None`] if that is one too many.
    fn with_attempt(self, cerror: Option<Cerror>) -> Option<Self> {
        let (unit, count, max) = if cerror == Some(Cerror::AtcInvSync) {
            (
                Self::ATC_ATTEMPT,
                self.0 / Self::ATC_ATTEMPT,
                Self::MAX_ATC_ATTEMPTS,
            )
        } else {
            let count = self.0 % Self::ATC_ATTEMPT / Self::ATTEMPT;
            (Self::ATTEMPT, count, Self::MAX_ATTEMPTS)
        };
        (count < max).then_some(Self(self.0 + unit))
    }

    /// The record with no errors counted, so that there can be attempts again.
    fn without_attempts(self) -> Self {
        Self(self.0 % Self::ATTEMPT)
    }
}

/// The records of all slots.
///
/// They are written with the lock held that is for servicing errors.
pub(crate) struct Records {
    slots: KVVec<Atomic<i16>>,
    /// How many records are not zero, so that there is one place to look at when all is well.
    any: Atomic<u32>,
    /// How many errors have been serviced.
    serviced: Atomic<u64>,
    /// The active error is given up, until a submitter makes another attempt.
    is_given_up: Atomic<bool>,
    /// How often an error was given up, in units of [`Self::GIVEN_UP`], and the code of the last
    /// one.
    given_up: Atomic<u64>,
}

impl Records {
    const GIVEN_UP: u64 = 1 << 8;

    /// Makes records for `len` slots.
    pub(crate) fn new(len: usize) -> Result<Self> {
        Ok(Self {
            slots: zeroes(len, || Atomic::new(0))?,
            any: Atomic::new(0),
            serviced: Atomic::new(0),
            is_given_up: Atomic::new(false),
            given_up: Atomic::new(0),
        })
    }

    /// Whether any slot has a record.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.any.load(Relaxed) != 0
    }

    fn get(&self, index: usize) -> Record {
        Record(self.slots[index].load(Relaxed))
    }

    fn set(&self, index: usize, record: Record) {
        let was = self.get(index);
        self.slots[index].store(record.0, Relaxed);
        match (was.0 != 0, record.0 != 0) {
            (false, true) => self.any.add(1, Relaxed),
            (true, false) => self.any.add(1u32.wrapping_neg(), Relaxed),
            _ => (),
        }
    }

    /// Whether the command in this slot was replaced, and so is not the one that was submitted.
    pub(crate) fn is_replaced(&self, index: usize) -> bool {
        self.get(index).has(Record::ILL | Record::ABT)
    }

    /// A number that changes with each error that is serviced.
    pub(crate) fn serviced(&self) -> u64 {
        self.serviced.load(Relaxed)
    }

    /// How often an error was given up.
    pub(crate) fn given_up(&self) -> u64 {
        self.given_up.load(Relaxed) / Self::GIVEN_UP
    }

    /// The error that was given up last.
    pub(crate) fn given_up_cerror(&self) -> Cerror {
        match self.given_up.load(Relaxed) % Self::GIVEN_UP {
            2 => Cerror::Abt,
            3 => Cerror::AtcInvSync,
            _ => Cerror::Ill,
        }
    }

    /// Puts on record that an error is given up, by which all who wait for the queue fail.
    fn give_up(&self, cerror: Option<Cerror>) {
        // One word, so that whoever sees the number sees this code or that of a later one.
        let code = cerror.map_or(0, |cerror| cerror as u64);
        let count = self.given_up() + 1;
        self.given_up.store(count * Self::GIVEN_UP + code, Relaxed);
    }
}

/// What the SMMU found fault with in a batch.
pub(crate) struct Errors {
    /// The first command that was replaced, and why.
    pub(crate) first: Option<(usize, Cerror)>,
    /// Some `CMD_ATC_INV` has timed out, which may or may not be in this batch.
    pub(crate) atc_inv_sync: bool,
}

/// What is done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Action {
    /// The slot is fetched once more.
    Retry,
    /// So it is, with a `CMD_SYNC` in it.
    Replace,
    /// Nothing: the queue stands still until somebody makes another attempt.
    GiveUp,
}

/// What there is to tell about an error.
pub(crate) struct Report {
    /// `SMMU_CMDQ_CONS`.
    pub(crate) cons: u32,
    /// The index of the slot.
    pub(crate) index: usize,
    /// The code.
    pub(crate) cerror: Option<Cerror>,
    /// The command that was in the slot.
    pub(crate) cmd: Cmd,
    /// What was done.
    pub(crate) action: Action,
    /// Serviced by somebody who waited for the queue, and not by the interrupt handler.
    pub(crate) inline: bool,
}

impl<P: Port> Cmdq<P> {
    /// Services the error that is active. Returns false if there is none, be it that somebody else
    /// was faster.
    ///
    /// Replaces `__arm_smmu_cmdq_skip_err()`, but writes `SMMU_GERRORN` itself. `inline` tells that
    /// this is not the interrupt handler. May be called in any context but an NMI.
    #[cold]
    pub(crate) fn service_error(&self, inline: bool) -> bool {
        // Most who ask need no lock to learn that there is none.
        if !self.port.error_is_active() {
            return false;
        }
        let guard = self.service.lock();

        // Somebody else may have seen to it meanwhile. An interrupt that comes late is no reason to
        // try again what was given up.
        if !self.port.error_is_active() || (!inline && self.records.is_given_up.load(Relaxed)) {
            return false;
        }

        let cons = self.port.read_cons();
        let index = self.index(u64::from(cons));
        let entry = &self.port.entries()[index];
        let cmd = entry.read();
        let cerror = Cerror::from_cons(cons);
        let was = self.records.get(index);

        let (record, action) = match (was.with_attempt(cerror), cerror) {
            (None, _) => (was.without_attempts(), Action::GiveUp),
            (Some(record), None) => (record, Action::Retry),
            (Some(record), Some(Cerror::Ill)) => (record.with(Record::ILL), Action::Replace),
            (Some(record), Some(Cerror::Abt)) if was.has(Record::ABT_ONCE) => {
                (record.with(Record::ABT), Action::Replace)
            }
            (Some(record), Some(Cerror::Abt)) => (record.with(Record::ABT_ONCE), Action::Retry),
            (Some(record), Some(Cerror::AtcInvSync)) => {
                (record.with(Record::ATC_INV_SYNC), Action::Retry)
            }
        };

        // All of this is ordered before the acknowledgment. As long as that is missing the SMMU
        // does not read the slot, and nothing after it becomes complete.
        self.records.set(index, record);
        self.records
            .is_given_up
            .store(action == Action::GiveUp, Relaxed);
        match action {
            Action::Retry => self.port.acknowledge(),
            Action::Replace => {
                // Other submitters do not touch a slot that is not theirs, and its own has
                // written it before.
                entry.write(if self.port.sync_is_overwritten() {
                    // No message for a slot whose submitter does not wait for one.
                    Cmd::sync(SyncSignal::None)
                } else {
                    self.port.sync(index)
                });
                self.port.acknowledge();
            }
            Action::GiveUp => self.records.give_up(cerror),
        }
        self.records.serviced.add(1, Relaxed);
        drop(guard);

        let code = ((cons >> 24) & 0x7f) as usize;
        self.stats.errors[code.min(self.stats.errors.len() - 1)].add(1, Relaxed);
        if inline {
            self.stats.inline.add(1, Relaxed);
        }
        self.port.trace_error(&Report {
            cons,
            index,
            cerror,
            cmd,
            action,
            inline,
        });
        true
    }

    /// Takes the records off the slots at `positions`, which are the caller's. Returns what they
    /// say about the commands in the first `len` of them, and about time-outs.
    #[cold]
    pub(crate) fn take_errors(&self, positions: Range<u64>, len: usize) -> Option<Errors> {
        let mut errors = None;
        let mut guard = None;

        for (i, position) in positions.enumerate() {
            let index = self.index(position);
            if self.records.get(index) == Record(0) {
                continue;
            }
            // Should the queue be stuck at this very slot, somebody may be about to service it.
            guard.get_or_insert_with(|| self.service.lock());
            let record = self.records.get(index);
            self.records.set(index, Record(0));

            let errors = errors.get_or_insert(Errors {
                first: None,
                atc_inv_sync: false,
            });
            errors.atc_inv_sync |= record.has(Record::ATC_INV_SYNC);
            if errors.first.is_none() && i < len {
                if record.has(Record::ILL) {
                    errors.first = Some((i, Cerror::Ill));
                } else if record.has(Record::ABT) {
                    errors.first = Some((i, Cerror::Abt));
                }
            }
        }
        errors
    }
}
