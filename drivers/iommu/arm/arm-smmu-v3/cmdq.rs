// SPDX-License-Identifier: GPL-2.0

//! The command queue of an SMMU: how commands are issued and waited for, and how their submitter
//! learns what became of them.
//!
//! | layer                | knows                                                              |
//! |----------------------|--------------------------------------------------------------------|
//! | this file            | submitting, waiting, replay of `CMD_ATC_INV`s, who is told what    |
//! | [`super::error_log`] | which slot the SMMU stopped at and why, handling of errors         |
//! | [`super::streams`]   | devices that do not answer `CMD_ATC_INV`                           |
//! | [`super::ring`]      | reserving, publishing and freeing of slots                         |
//! | [`super::hw`]        | registers, entries and error codes                                 |
//!
//! There are two kinds of submitters. The *host* ([`Cmdq::issue_host()`]) goes on after a failure
//! as if its commands were complete, so none of its commands may be lost. A *guest*
//! ([`Cmdq::issue_guest()`]) is told of a failure and sends its commands again, so it can be made
//! to wait less, and must not be able to make others wait for long.

use core::{
    array,
    ops::Range,
    slice, //
};

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        barrier::{
            dma_mb,
            Write, //
        }, //
    },
    time::Delta, //
};

use super::{
    cmd::{
        Cmd,
        SyncSignal, //
    },
    error_log::{
        ErrorLog,
        Errors,
        Handled,
        MAX_PAUSE, //
    },
    hw::{
        Cerror,
        Hw, //
    },
    ring::{
        Ring,
        Slots, //
    },
    streams::{
        Pending,
        Streams,
        Task,
        Verdict, //
    }, //
};

/// Who submits a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    /// The host, whose commands are issued whatever it takes.
    Host,
    /// A guest, which sends commands again that failed.
    Guest,
}

/// Why commands are not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The SMMU raised an error for the command at `index`. The commands before it are complete.
    Cmd {
        /// The index of the command in the batch.
        index: usize,
        /// The error.
        cerror: Cerror,
    },
    /// The SMMU raised an error for one of the commands, and did not get past that slot in time.
    Stuck {
        /// The number of commands that are known to be complete.
        complete: usize,
        /// The error.
        cerror: Cerror,
    },
    /// The SMMU did not complete the commands in time, and there is no error of theirs.
    Timeout {
        /// As above.
        complete: usize,
        /// The position of the batch, if it is the host's and waiting again makes sense: the queue
        /// is slow, but moves.
        overdue: Option<u64>,
    },
    /// There is a fatal signal for the thread.
    Interrupted {
        /// As above.
        complete: usize,
    },
}

impl Failure {
    /// The same for a batch that has `count` more commands at its beginning, which are complete.
    fn behind(self, count: usize) -> Self {
        match self {
            Self::Cmd { index, cerror } => Self::Cmd {
                index: count + index,
                cerror,
            },
            Self::Stuck { complete, cerror } => Self::Stuck {
                complete: count + complete,
                cerror,
            },
            Self::Timeout { complete, overdue } => Self::Timeout {
                complete: count + complete,
                overdue,
            },
            Self::Interrupted { complete } => Self::Interrupted {
                complete: count + complete,
            },
        }
    }
}

/// How long to wait for a batch, and for a queue that does not move: `ARM_SMMU_POLL_TIMEOUT_US`.
///
/// Interrupts are disabled while waiting for a batch, so this stays well below the threshold of the
/// hard-lockup detector, which is 10 seconds by default.
pub(crate) const TIME_LIMIT: Delta = Delta::from_secs(1);

/// How long to wait for a queue that is slow, but moves, with interrupts enabled in between.
const SLOW_LIMIT: Delta = Delta::from_secs(5);

/// For how long `CMD_ATC_INV`s are replayed one by one.
const REPLAY_LIMIT: Delta = TIME_LIMIT;

/// The most slots of a guest's batch.
///
/// One `CMD_SYNC` for many commands makes for a short wait in total, but the `CMD_SYNC` of another
/// submitter has to wait for all of them. The driver's own long invalidations have no limit.
const MAX_GUEST_SLOTS: usize = 256;

/// The most commands of the host in a batch: `CMDQ_BATCH_ENTRIES`.
pub(crate) const MAX_HOST_CMDS: usize = 64;

/// How often a waiter looks for errors. Before the first time, it reads no register but one that
/// shows the completion.
const ERROR_INTERVAL: Delta = Delta::from_micros(100);

/// The number of looks at memory, for a completion MSI, before a waiter reads the time. Most waits
/// are over by then.
const FIRST_LOOKS: u32 = 4;

/// How soon a waiter that has seen an error looks again.
const RETRY_INTERVAL: Delta = Delta::from_micros(10);

/// The error of the command that comes first.
fn earlier(first: Option<(usize, Cerror)>, other: (usize, Cerror)) -> Option<(usize, Cerror)> {
    Some(first.filter(|first| first.0 < other.0).unwrap_or(other))
}

/// A wait that has timed out.
struct TimedOut {
    /// Whether the queue has moved meanwhile.
    is_moving: bool,
}

/// Counters of rare events since the SMMU was probed.
pub(crate) struct Stats {
    /// Errors by their code in `SMMU_CMDQ_CONS`: none, ILL, ABT, `ATC_INV_SYNC`, others.
    pub(crate) errors: [Atomic<u64>; 5],
    /// Errors that were handled by a CPU that waits for the queue, not by the interrupt handler.
    pub(crate) inline: Atomic<u64>,
    /// `CMD_ATC_INV`s that were issued again on their own.
    pub(crate) replays: Atomic<u64>,
    /// `CMD_ATC_INV`s of guests that were refused, as their device has not answered before.
    pub(crate) refused: Atomic<u64>,
    /// Waits that timed out.
    pub(crate) timeouts: Atomic<u64>,
}

/// A command queue.
#[pin_data]
pub(crate) struct Cmdq<H> {
    /// The SMMU.
    #[pin]
    pub(crate) hw: H,
    pub(crate) ring: Ring,
    #[pin]
    pub(crate) log: ErrorLog,
    #[pin]
    streams: Streams,
    /// The most commands that [`Self::issue_guest()`] takes: with the `CMD_SYNC`, half of the queue
    /// or [`MAX_GUEST_SLOTS`].
    pub(crate) max_guest_cmds: usize,
    /// A `CMD_SYNC` was not complete when a waiter read `SMMU_CMDQ_CONS` at once. From then on
    /// waiters read the time first, which they need anyway, as a read of the register that comes
    /// too early has to be repeated. Not used where completion is by MSI.
    is_slow: Atomic<bool>,
    pub(crate) stats: Stats,
}

impl<H: Hw> Cmdq<H> {
    /// Makes a queue of `len` slots, as many as `hw` has entries. For the requirements and errors
    /// see [`Ring::new()`].
    pub(crate) fn new(hw: impl PinInit<H, Error>, len: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            hw <- hw,
            ring: Ring::new::<H>(len)?,
            log <- ErrorLog::new(len),
            streams <- Streams::new(),
            max_guest_cmds: (len / 2).min(MAX_GUEST_SLOTS) - 1,
            is_slow: Atomic::new(false),
            stats: Stats {
                errors: array::from_fn(|_| Atomic::new(0)),
                inline: Atomic::new(0),
                replays: Atomic::new(0),
                refused: Atomic::new(0),
                timeouts: Atomic::new(0),
            },
        }? Error)
    }

    /// Issues commands of the host, with a `CMD_SYNC` behind them if `sync`, for which it waits.
    ///
    /// Replaces `__arm_smmu_cmdq_issue_cmdlist()`, and gives the same ordering:
    /// * What was written to memory before the call, the SMMU sees when it gets to the commands.
    /// * With `sync`, what is written after the call is written after the commands are complete.
    /// * Of two batches, all commands of one come before all of the other.
    ///
    /// There may be up to 64 commands. `CMD_ATC_INV`s are not mixed with others, and are waited for
    /// even without `sync`: a time-out shows at the next `CMD_SYNC`, which has to be their own.
    ///
    /// The commands are always issued: this waits for room as long as it takes. If it fails with
    /// * [`Failure::Cmd`], the SMMU raised an error for that command: `CERROR_ATC_INV_SYNC` of the
    ///   first device that may not have answered twice, or `CERROR_ILL`. Others may have failed
    ///   too.
    /// * [`Failure::Stuck`] or [`Failure::Timeout`], they are still in the queue, and are executed
    ///   when that goes on.
    ///
    /// May be called in any context but an NMI. Disables interrupts for little more than one
    /// second at a time.
    #[inline]
    pub(crate) fn issue_host(&self, cmds: &[Cmd], sync: bool) -> Result<(), Failure> {
        let sync = sync || cmds.first().is_some_and(|cmd| cmd.is_atc_inv());
        let failures = self.streams.host_failures();

        match self.submit(cmds, sync, Sender::Host) {
            Ok(None) => Ok(()),
            Ok(Some(errors)) => self.resolve_host(cmds, errors),
            Err(failure) => self.wait_again(cmds, failure, failures),
        }
    }

    /// Issues commands of a guest, [`Self::max_guest_cmds`] at most, with a `CMD_SYNC` behind
    /// them, for which it waits. `has_atc_inv` says that there is a `CMD_ATC_INV` among them.
    ///
    /// Fails with [`Failure`] for the first command that is not complete. `CMD_ATC_INV`s for a
    /// device that did not answer before may fail without being issued; see [`super::streams`].
    /// Fails with [`Failure::Interrupted`] if the caller is being killed and would have to wait for
    /// room, for the outcome of an earlier `CMD_ATC_INV` or for one that has to be replayed.
    ///
    /// Must be called with interrupts enabled. Disables them for little more than one second at
    /// a time.
    #[inline]
    pub(crate) fn issue_guest(&self, cmds: &[Cmd], has_atc_inv: bool) -> Result<(), Failure> {
        if has_atc_inv && self.streams.any() {
            return self.issue_known_streams(cmds);
        }
        match self.submit(cmds, true, Sender::Guest)? {
            None => Ok(()),
            Some(errors) => self.resolve_guest(cmds, errors),
        }
    }

    /// Issues a guest's commands among which there may be `CMD_ATC_INV`s for devices that did not
    /// answer before, up to the first such command.
    #[cold]
    fn issue_known_streams(&self, cmds: &[Cmd]) -> Result<(), Failure> {
        let verdict = cmds.iter().enumerate().find_map(|(index, cmd)| {
            let sid = cmd.atc_inv_sid()?;
            match self.judge(sid) {
                Verdict::Issue => None,
                verdict => Some((index, sid, verdict)),
            }
        });
        if matches!(verdict, Some((_, _, Verdict::Pending(_)))) && self.hw.caller_is_killed() {
            return Err(Failure::Interrupted { complete: 0 });
        }
        let issued = &cmds[..verdict.map_or(cmds.len(), |(index, _, _)| index)];

        // What is before it takes effect first.
        if !issued.is_empty() {
            if let Some(errors) = self.submit_cold(issued, true, Sender::Guest)? {
                self.resolve_guest(issued, errors)?;
            } else {
                for sid in issued.iter().filter_map(Cmd::atc_inv_sid) {
                    self.streams.answered(sid, self.hw.now());
                }
            }
        }

        match verdict {
            None => Ok(()),
            Some((index, _, Verdict::Pending(_))) => Err(Failure::Timeout {
                complete: index,
                overdue: None,
            }),
            Some((index, sid, _)) => {
                self.stats.refused.add(1, Relaxed);
                self.streams.told(sid);
                Err(Failure::Cmd {
                    index,
                    cerror: Cerror::AtcInvSync,
                })
            }
        }
    }

    /// Decides on a `CMD_ATC_INV` of a guest. Waits for an earlier one whose outcome is not known.
    #[cold]
    fn judge(&self, sid: u32) -> Verdict {
        let judge = || {
            self.streams.judge(sid, self.hw.now(), |position| {
                self.ring.is_consumed(&self.hw, position)
            })
        };

        match judge() {
            Verdict::Pending(position) => {
                let look = || {
                    let is_over = self.ring.is_consumed(&self.hw, position);
                    match is_over || self.hw.caller_is_killed() {
                        true => Ok(()),
                        false => Err(None),
                    }
                };
                // A failure of this shows in the second verdict.
                let _ = self.wait_on(false, TIME_LIMIT, look);
                judge()
            }
            verdict => verdict,
        }
    }

    /// Finds out which of a guest's commands failed. There is an error in the batch, and the SMMU
    /// has got past it.
    #[cold]
    fn resolve_guest(&self, cmds: &[Cmd], errors: Errors) -> Result<(), Failure> {
        let before = errors.first.map_or(cmds.len(), |(index, _)| index);

        // Any of the CMD_ATC_INVs may have timed out, or none if somebody else's was still under
        // way. They do no harm when done again: each on its own now, to tell them apart.
        if errors.atc_inv_sync {
            let begin = self.hw.now();

            for (index, cmd) in cmds[..before].iter().enumerate() {
                let Some(sid) = cmd.atc_inv_sid() else {
                    continue;
                };
                if self.hw.caller_is_killed() {
                    return Err(Failure::Interrupted { complete: index });
                }
                let failed = if self.hw.now() - begin > REPLAY_LIMIT {
                    // It is not known to be complete. All that is known to have failed was before.
                    Some(Cerror::AtcInvSync)
                } else {
                    self.replay(cmd, sid, Sender::Guest)
                        .map_err(|failure| failure.behind(index))?
                };
                if let Some(cerror) = failed {
                    return Err(Failure::Cmd { index, cerror });
                }
            }
        }

        errors.first.map_or(Ok(()), |(index, cerror)| {
            Err(Failure::Cmd { index, cerror })
        })
    }

    /// Finds out which of the host's commands failed, and sees to it that all others are complete.
    #[cold]
    fn resolve_host(&self, cmds: &[Cmd], errors: Errors) -> Result<(), Failure> {
        let mut first = errors.first;

        // As above, but the host does not issue again what is behind a command that failed.
        if errors.atc_inv_sync {
            let begin = self.hw.now();
            let mut last_failed = None;

            for (index, cmd) in cmds.iter().enumerate() {
                let Some(sid) = cmd.atc_inv_sid() else {
                    continue;
                };
                if errors.first.is_some_and(|(replaced, _)| replaced == index) {
                    continue;
                }
                // A device that does not answer one does not answer the next, for which all would
                // have to wait again.
                if last_failed == Some(sid) {
                    continue;
                }
                let complete = first.map_or(index, |(first, _)| first.min(index));
                if self.hw.now() - begin > REPLAY_LIMIT || self.hw.interrupts_are_disabled() {
                    let rest = self
                        .issue_together(&cmds[index..])
                        .map_err(|failure| failure.behind(complete))?;
                    if let Some((i, cerror)) = rest {
                        first = earlier(first, (index + i, cerror));
                    }
                    break;
                }
                match self.replay(cmd, sid, Sender::Host) {
                    Ok(None) => (),
                    Ok(Some(cerror)) => {
                        last_failed = Some(sid);
                        first = earlier(first, (index, cerror));
                    }
                    Err(failure) => {
                        // The queue does not move. The rest is executed when it does, with a
                        // CMD_SYNC of its own, so that a time-out is nobody else's.
                        let rest = &cmds[index + 1..];
                        let mut last = [Cmd::sync(SyncSignal::None); MAX_HOST_CMDS + 1];
                        last[..rest.len()].copy_from_slice(rest);
                        let _ = self.submit_cold(&last[..=rest.len()], false, Sender::Host);
                        // Nobody waits for that. Some have failed once, and it is not known which.
                        self.host_failed(rest);
                        return Err(failure.behind(complete));
                    }
                }
            }
        }

        first.map_or(Ok(()), |(index, cerror)| {
            Err(Failure::Cmd { index, cerror })
        })
    }

    /// Issues `CMD_ATC_INV`s of the host again, which are too many to be told apart in the time
    /// that there is. Returns the first one that may not be complete.
    ///
    /// Those for devices that are known not to answer are left out: once is enough. Which of the
    /// others it was, if it was one of several, is found out by [`Self::next_to_block()`].
    #[cold]
    fn issue_together(&self, cmds: &[Cmd]) -> Result<Option<(usize, Cerror)>, Failure> {
        let mut again = [Cmd::sync(SyncSignal::None); MAX_HOST_CMDS];
        let mut len = 0;
        let mut first = None;

        for (index, cmd) in cmds.iter().enumerate() {
            let Some(sid) = cmd.atc_inv_sid() else {
                continue;
            };
            if self.streams.is_blocked(sid, self.hw.now()) {
                first = earlier(first, (index, Cerror::AtcInvSync));
            } else {
                again[len] = *cmd;
                len += 1;
            }
        }
        let again = &again[..len];
        if again.is_empty() {
            return Ok(first);
        }

        let errors = self.submit_cold(again, true, Sender::Host)?;
        if errors.is_some_and(|errors| errors.atc_inv_sync) {
            let sids = || again.iter().filter_map(Cmd::atc_inv_sid);
            let is_first = |cmd: &Cmd| cmd.atc_inv_sid() == again[0].atc_inv_sid();

            if let Some(sid) = sids().next().filter(|_| again.iter().all(is_first)) {
                self.confirm_timeout(sid, Sender::Host);
            } else {
                for sid in sids() {
                    self.streams.suspect(sid, self.hw.now());
                }
                self.hw.block_ats();
            }
            if let Some(index) = cmds.iter().position(is_first) {
                first = earlier(first, (index, Cerror::AtcInvSync));
            }
        }
        Ok(first)
    }

    /// Issues a `CMD_ATC_INV` again on its own. Returns the error if it fails again.
    #[cold]
    fn replay(&self, cmd: &Cmd, sid: u32, sender: Sender) -> Result<Option<Cerror>, Failure> {
        self.stats.replays.add(1, Relaxed);

        let errors = self.submit_cold(slice::from_ref(cmd), true, sender)?;
        let failed = errors.and_then(|errors| match errors.first {
            Some((_, cerror)) => Some(cerror),
            None => errors.atc_inv_sync.then_some(Cerror::AtcInvSync),
        });

        match failed {
            Some(Cerror::AtcInvSync) => self.confirm_timeout(sid, sender),
            None if self.streams.any() => self.streams.answered(sid, self.hw.now()),
            _ => (),
        }
        self.hw.trace_replay(*cmd, failed);
        Ok(failed)
    }

    /// Has it found out later which devices did not answer the host.
    #[cold]
    fn host_failed(&self, cmds: &[Cmd]) {
        for sid in cmds.iter().filter_map(Cmd::atc_inv_sid) {
            self.streams.host_failed(sid, self.hw.now());
        }
        self.hw.block_ats();
    }

    /// Does what follows from a device that has not answered twice.
    #[cold]
    fn confirm_timeout(&self, sid: u32, sender: Sender) {
        let is_guest = sender == Sender::Guest;
        let backoff = self.streams.timed_out(sid, self.hw.now(), is_guest);

        self.hw.trace_backoff(sid, backoff, is_guest);
        if !is_guest {
            self.hw.block_ats();
        }
    }

    /// Waits again for commands of the host that were not complete in time, as long as the queue
    /// moves.
    #[cold]
    fn wait_again(&self, cmds: &[Cmd], failure: Failure, failures: u32) -> Result<(), Failure> {
        let begin = self.hw.now();
        let Failure::Timeout {
            overdue: Some(start),
            ..
        } = failure
        else {
            return Err(failure);
        };
        let mut outcome = Err(failure);

        while let Err(Failure::Timeout {
            overdue: Some(_), ..
        }) = outcome
        {
            if self.hw.interrupts_are_disabled() || self.hw.now() - begin > SLOW_LIMIT {
                break;
            }
            // The commands are in the queue, and another CMD_SYNC completes them as well, unless
            // their own has failed, or somebody else's: then find out.
            outcome = self
                .submit_cold(&[], true, Sender::Host)
                .and_then(|errors| {
                    let mut errors = errors.unwrap_or_default();
                    errors.first = self.log.first_of_overdue(start);
                    errors.atc_inv_sync |= self.streams.host_failures() != failures;
                    self.resolve_host(cmds, errors)
                });
        }
        outcome
    }

    /// Puts `cmds` into the queue, once, with a `CMD_SYNC` behind them if `sync`, for which it
    /// waits. Returns the errors that the SMMU raised for them.
    ///
    /// Inlined where speed matters, so that what depends on the last two arguments is decided when
    /// compiling; see [`Self::submit_cold()`].
    #[inline(always)]
    fn submit(&self, cmds: &[Cmd], sync: bool, sender: Sender) -> Result<Option<Errors>, Failure> {
        let count = cmds.len() + usize::from(sync);
        // An owner takes its turn by the position of its first slot, so it needs one.
        if count == 0 {
            return Ok(None);
        }

        // From here on others may spin for this CPU.
        let mut irq = kernel::interrupt::local_interrupt_disable();
        let slots = loop {
            // CAST: `usize` has 64 bits here.
            match self.ring.reserve(count as u64) {
                Some(slots) => break slots,
                None => {
                    drop(irq);
                    let waited = self.wait_for_room(count as u64, sender);
                    if let (Sender::Guest, Err(failure)) = (sender, waited) {
                        return Err(failure);
                    }
                    irq = kernel::interrupt::local_interrupt_disable();
                }
            }
        };
        let sync_at = slots.end - 1;
        let indices = self.indices(slots.start, count);

        if self.log.has_records() {
            // Left by those who did not wait, or not long enough, when the slots were theirs.
            let _ = self.log.take(indices.clone(), 0);
        }

        self.ring.write(&self.hw, slots.start, cmds);
        if sync {
            let index = self.ring.index(sync_at);
            self.hw.entries()[index].write(self.hw.make_sync(index));
        } else {
            self.ring.count_unsynced();
        }
        let mark = (sender == Sender::Guest).then(|| self.log.mark_guest(indices.clone()));
        if sync {
            // Others must not free the slots before we have looked at them, nor must the queue wrap
            // and show something newer in the place of the CMD_SYNC.
            self.ring.hold();
        }

        // As in C: the entries, and what they refer to, must be in memory before the SMMU can see
        // them. Pairs with the read of PROD by the SMMU.
        dma_mb(Write);
        self.ring.publish(&self.hw, slots);
        self.hw.trace_batch(slots.start, cmds.len(), sync);

        if !sync {
            drop(irq);
            return Ok(None);
        }

        let waited = self.wait_for_sync(sync_at);
        // An error is recorded before it is acknowledged, and only then does the SMMU get past the
        // slot. That was read with an acquire, so the record is visible.
        let result = match waited {
            Ok(_) if !self.log.has_records() => Ok(None),
            Ok(_) => Ok(Some(self.log.take(indices.clone(), cmds.len())).filter(Errors::any)),
            Err(TimedOut { is_moving }) => Err(self.give_up(cmds, slots, sender, is_moving)),
        };
        drop(mark);
        self.ring
            .release(&self.hw, waited.ok(), |index| self.log.is_replaced(index));
        drop(irq);

        if result.is_err() {
            self.timed_out(sync_at, sender);
        }
        result
    }

    /// As [`Self::submit()`], where speed does not matter.
    #[cold]
    #[inline(never)]
    fn submit_cold(
        &self,
        cmds: &[Cmd],
        sync: bool,
        sender: Sender,
    ) -> Result<Option<Errors>, Failure> {
        self.submit(cmds, sync, sender)
    }

    /// Says what is known of a batch that is not waited for any longer. The caller is still a
    /// holder of the ring.
    #[cold]
    fn give_up(&self, cmds: &[Cmd], slots: Slots, sender: Sender, is_moving: bool) -> Failure {
        let now = self.hw.now();
        let sync_at = slots.end - 1;

        // Before the log is looked at. Whoever records an error looks here afterwards, so that one
        // of us finds it.
        let mut sids = cmds.iter().filter_map(Cmd::atc_inv_sid);
        let is_only_stream = sids
            .next()
            .is_some_and(|first| sids.all(|sid| sid == first));
        for sid in cmds.iter().filter_map(Cmd::atc_inv_sid) {
            let pending = Pending {
                position: sync_at,
                is_guest: sender == Sender::Guest,
                is_only_stream,
            };
            if self.streams.abandon(sid, now, pending) {
                self.hw.block_ats();
            }
        }
        if self.hw.sync_has_msi() && !self.log.is_replaced(self.ring.index(sync_at)) {
            self.ring.abandon::<H>(sync_at);
        }

        let count = cmds.len() + 1;
        // Before the log is looked at, so that it has all errors up to there.
        let consumed = self
            .ring
            .count_consumed(&self.hw, slots.start, count as u64);
        let indices = self.indices(slots.start, count);
        let overdue = (sender == Sender::Host && is_moving).then_some(slots.start);
        let errors = match overdue {
            Some(start) => self.log.take_overdue(indices, cmds.len(), start),
            None => self.log.take(indices, cmds.len()),
        };
        let mut first = errors.first;
        if errors.atc_inv_sync {
            if self
                .streams
                .abandoned_sync_failed(now, |position| position == sync_at)
            {
                self.hw.block_ats();
            }
            // A guest may have found the CMD_SYNC consumed meanwhile, and taken that for an answer.
            if sender == Sender::Host {
                self.host_failed(cmds);
            }
            // None of the CMD_ATC_INVs is known to be complete. The guest is told now.
            let before = first.map_or(cmds.len(), |(index, _)| index);
            if let Some(index) = cmds[..before].iter().position(Cmd::is_atc_inv) {
                first = Some((index, Cerror::AtcInvSync));
                if sender == Sender::Guest {
                    for sid in cmds.iter().filter_map(Cmd::atc_inv_sid) {
                        self.streams.told(sid);
                    }
                }
            }
        }

        // The host is to wait for the rest of its commands, whatever is wrong with one of them.
        if sender == Sender::Host {
            return Failure::Timeout {
                complete: 0,
                overdue,
            };
        }
        // The CMD_SYNC that has replaced a command completes those before it.
        match (first, errors.first) {
            // CAST: `usize` has 64 bits here.
            (Some((index, cerror)), Some((replaced, _))) if consumed as usize > replaced => {
                Failure::Cmd { index, cerror }
            }
            (Some((_, cerror)), _) => Failure::Stuck {
                complete: 0,
                cerror,
            },
            (None, _) => Failure::Timeout {
                complete: 0,
                overdue: None,
            },
        }
    }

    /// The indices of `count` slots from a position on, for the error log.
    #[inline]
    fn indices(&self, start: u64, count: usize) -> Range<usize> {
        let index = self.ring.index(start);

        index..index + count
    }

    /// Looks whether the `CMD_SYNC` at a position, which is the caller's, is complete, and returns
    /// how far the SMMU has got. Fails with `SMMU_CMDQ_CONS`, if it has read that.
    #[inline]
    fn look_at_sync(&self, position: u64) -> Result<u64, Option<u32>> {
        let next = position + 1;

        if self.hw.sync_has_msi() {
            let index = self.ring.index(position);

            if self.hw.entries()[index].has_completion_msi() {
                return Ok(next);
            }
            // A CMD_SYNC that has replaced an illegal one has no MSI. For any other, CONS may show
            // the completion before the MSI arrives, and the slot is not free until it does.
            if !self.log.has_records() || !self.log.is_replaced(index) {
                return Err(None);
            }
        }

        self.ring.look_at_cons(&self.hw, next).map_err(Some)
    }

    /// Waits for the `CMD_SYNC` at a position, which is the caller's. Returns how far the SMMU has
    /// got.
    #[inline]
    fn wait_for_sync(&self, position: u64) -> Result<u64, TimedOut> {
        let look = || self.look_at_sync(position);

        if !self.is_slow.load(Relaxed) {
            match look() {
                Ok(consumed) => return Ok(consumed),
                Err(_) if self.hw.sync_has_msi() => (),
                Err(_) => self.is_slow.store(true, Relaxed),
            }
        }
        self.wait_on(true, TIME_LIMIT, look)
    }

    /// Waits until `look` succeeds, for `limit` at most, and for [`TIME_LIMIT`] at most while the
    /// queue does not move. If `look` has read `SMMU_CMDQ_CONS`, it fails with the value.
    ///
    /// Handles errors meanwhile: their interrupt may be routed to this CPU, which does not take it
    /// while interrupts are disabled. For `for_sync` see [`Hw::pause()`].
    #[inline(never)]
    fn wait_on<T>(
        &self,
        for_sync: bool,
        limit: Delta,
        look: impl Fn() -> Result<T, Option<u32>>,
    ) -> Result<T, TimedOut> {
        let mut looks = 0u32;
        while self.hw.sync_has_msi() && looks < FIRST_LOOKS {
            self.hw.pause(looks, Delta::ZERO, for_sync);
            if let Ok(found) = look() {
                return Ok(found);
            }
            looks += 1;
        }

        let begin = self.hw.now();
        let mut now = begin;
        // Since when the queue stands still, and where.
        let mut since = begin;
        let mut stopped_at = None;
        let mut next_check = begin + ERROR_INTERVAL;
        let mut is_moving = false;

        loop {
            self.hw.pause(looks, now - since, for_sync);
            // Before the look, in case that this CPU is preempted by a hypervisor after it. For the
            // first look the time is known.
            if looks != 0 {
                now = self.hw.now();
            }
            looks = looks.saturating_add(1);
            let seen = match look() {
                Ok(found) => return Ok(found),
                Err(seen) => seen,
            };
            if (now - next_check).is_negative() {
                continue;
            }

            // The longer it takes, the less often: looking costs the SMMU time as well. An error
            // that has to be acknowledged is more urgent.
            let waited = now - since;
            let cons = seen.unwrap_or_else(|| self.hw.read_cons());
            // The SMMU sets the code before the error becomes active (IHI 0070, 4.1.2), so without
            // a code there is none. With one, which may be that of an earlier error, SMMU_GERROR
            // tells.
            let handled = if Cerror::from_cons(cons).is_some() {
                self.handle_error(true)
            } else {
                Handled::NoError
            };
            let (min, max) = match handled {
                Handled::NoError | Handled::ByWaiter => (ERROR_INTERVAL, waited),
                Handled::Acknowledged(_) | Handled::Later => (RETRY_INTERVAL, MAX_PAUSE),
            };
            let left = (TIME_LIMIT - waited).min(limit - (now - begin));
            let interval = Delta::from_nanos(waited.as_nanos() / 8);
            next_check = now + interval.min(max).max(min).min(left);

            let at = self.ring.register(u64::from(cons));
            if stopped_at != Some(at) {
                is_moving |= stopped_at.is_some();
                stopped_at = Some(at);
                since = now;
                looks = 0;
            } else if waited > TIME_LIMIT {
                return Err(TimedOut { is_moving });
            }
            if now - begin > limit {
                return Err(TimedOut { is_moving });
            }
        }
    }

    /// Waits until there seems to be room for `count` slots. Of a guest, until it is being killed.
    #[cold]
    fn wait_for_room(&self, count: u64, sender: Sender) -> Result<(), Failure> {
        let look = |lost_before| {
            self.ring
                .try_free(&self.hw, lost_before, |index| self.log.is_replaced(index));
            if self.ring.has_room(count) {
                return Ok(Ok(()));
            }
            if sender == Sender::Guest && self.hw.caller_is_killed() {
                return Ok(Err(Failure::Interrupted { complete: 0 }));
            }
            Err(None)
        };
        let consumed = self.ring.consumed(&self.hw);

        self.wait_on(false, SLOW_LIMIT, || look(0))
            .unwrap_or_else(|_| {
                // The completion MSI of what was consumed before this wait does not come any more.
                look(consumed).unwrap_or_else(|_| {
                    self.timed_out(self.ring.reserved(), sender);
                    Err(Failure::Timeout {
                        complete: 0,
                        overdue: None,
                    })
                })
            })
    }

    /// Counts and traces a wait for a position that timed out.
    #[cold]
    fn timed_out(&self, position: u64, sender: Sender) {
        self.stats.timeouts.add(1, Relaxed);
        self.hw
            .trace_timeout(position, self.hw.read_cons(), sender == Sender::Guest);
    }

    /// Handles the active error; see [`ErrorLog::handle()`].
    pub(crate) fn handle_error(&self, inline: bool) -> Handled {
        // Not the slot's use a round before.
        let is_at = |index, position| {
            self.ring.index(position) == index && !self.ring.is_consumed(&self.hw, position)
        };
        let handled = self.log.handle(&self.hw, inline, is_at, |index| {
            let is_at = |position| is_at(index, position);
            if self.streams.abandoned_sync_failed(self.hw.now(), is_at) {
                self.hw.block_ats();
            }
        });

        if let Handled::Acknowledged(report) = &handled {
            // CAST: Seven bits.
            let code = ((report.cons >> 24) & 0x7f) as usize;
            self.stats.errors[code.min(self.stats.errors.len() - 1)].add(1, Relaxed);
            if inline {
                self.stats.inline.add(1, Relaxed);
            }
            self.hw.trace_error(report);
        }
        handled
    }

    /// Whether there is a device that has not answered.
    #[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
    pub(crate) fn has_unanswering_streams(&self) -> bool {
        self.streams.any()
    }

    /// Returns a stream whose ATS is to be blocked, as the host's `CMD_ATC_INV`s for it have timed
    /// out: each once for a time-out.
    ///
    /// If it is not known which of several devices did not answer, sends each of them another
    /// `CMD_ATC_INV`. To be called with interrupts enabled.
    pub(crate) fn next_to_block(&self) -> Option<u32> {
        loop {
            match self.streams.next_task()? {
                Task::Block(sid) => return Some(sid),
                Task::Probe(sid) => {
                    let _ = self.replay(&Cmd::atc_inv_all(sid), sid, Sender::Host);
                }
            }
        }
    }

    /// Forgets that the device of a stream has not answered. It was attached or reset.
    pub(crate) fn forget_stream(&self, sid: u32) {
        if self.streams.any() {
            self.streams.forget(sid, self.hw.now());
        }
    }

    /// Prepares for an SMMU that is being reset, with its command queue disabled. Returns what
    /// `SMMU_CMDQ_PROD` and `SMMU_CMDQ_CONS` have to be set to; see [`Ring::reset()`].
    pub(crate) fn reset(&self) -> u32 {
        self.log.reset(&self.hw);
        self.ring.reset(&self.hw)
    }

    /// The numbers of commands other than `CMD_SYNC`, of `CMD_SYNC`s and of batches so far.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let (slots, syncs, batches) = self.ring.counts();

        (slots.saturating_sub(syncs), syncs, batches)
    }
}
