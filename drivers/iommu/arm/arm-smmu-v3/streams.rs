// SPDX-License-Identifier: GPL-2.0

//! Devices that do not answer `CMD_ATC_INV`, by stream.
//!
//! Each `CMD_ATC_INV` that is not answered stops the command queue for everybody until the SMMU
//! gives up waiting for the device. How long that takes is up to the SMMU and the PCIe root port:
//! up to a minute. So a guest is not allowed to try again at once: after a time-out that was
//! confirmed by a second one, its `CMD_ATC_INV`s for that stream are refused for a second, after
//! the next one for two seconds, and so on up to [`MAX_BACKOFF`]. The guest sees the same as
//! without this: a device that does not answer.
//!
//! A submitter waits for one second at most, which may be less than the SMMU waits for the device.
//! The `CERROR_ATC_INV_SYNC` that comes afterwards is kept here, and told at the guest's next
//! `CMD_ATC_INV` for that stream. Until the SMMU has decided, such a command would only add to what
//! stops the queue, so that it is not issued either.
//!
//! `CMD_ATC_INV`s of the host are always issued. One that is not answered means that the device may
//! still use translations of memory that is no longer its own. So the driver blocks its ATS then.

use kernel::{
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

/// For how long `CMD_ATC_INV`s of guests are refused after the first confirmed time-out.
const MIN_BACKOFF: Delta = Delta::from_secs(1);

/// The longest such time. It doubles with each further time-out until then.
const MAX_BACKOFF: Delta = Delta::from_secs(64);

/// The most streams that are kept. With more than that, the one is forgotten whose back-off ends
/// first, if possible one that there is nothing to tell of.
const MAX_STREAMS: usize = 32;

/// What is to become of a `CMD_ATC_INV` of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may be issued.
    Issue,
    /// It is not issued, and fails with `CERROR_ATC_INV_SYNC`.
    Refuse,
    /// It is not issued: the SMMU has not got past the `CMD_SYNC` at this position, behind an
    /// earlier one.
    Pending(u64),
}

/// A stream that has had a time-out.
#[derive(Clone, Copy)]
struct Stream {
    sid: u32,
    /// Confirmed time-outs since the last answer.
    timeouts: u32,
    /// `CMD_ATC_INV`s of guests are refused until then.
    refused_until: Instant<Monotonic>,
    /// The last `CMD_SYNC` behind a `CMD_ATC_INV` whose submitter does not wait any more.
    pending: Option<Pending>,
    /// The `CMD_SYNC` of a guest has failed, which the guest has not been told yet.
    is_untold: bool,
    /// The host's commands for this stream, or others of the same batch, were not answered. Which,
    /// is yet to be found out.
    is_suspect: bool,
    /// The host's commands for this stream were not answered, and ATS is yet to be blocked.
    is_to_block: bool,
    /// They were not answered, which has led to that, and the device has not answered since.
    has_failed_host: bool,
}

/// A `CMD_SYNC` that is not waited for any more.
#[derive(Clone, Copy)]
pub(crate) struct Pending {
    /// Its position.
    pub(crate) position: u64,
    /// It is one of a guest.
    pub(crate) is_guest: bool,
    /// All `CMD_ATC_INV`s before it are for one stream.
    pub(crate) is_only_stream: bool,
}

/// What is to be done about a stream whose device has not answered the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// To send it a `CMD_ATC_INV` of its own, and see.
    Probe(u32),
    /// To block its ATS.
    Block(u32),
}

/// The streams of an SMMU that have had a time-out.
#[pin_data]
pub(crate) struct Streams {
    /// How many there are, so that there is one place to look at when all is well.
    count: Atomic<u32>,
    /// See [`Self::host_failures()`].
    host_failures: Atomic<u32>,
    #[pin]
    streams: RawSpinLockIrq<[Option<Stream>; MAX_STREAMS]>,
}

impl Streams {
    /// Makes an empty list.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            count: Atomic::new(0),
            host_failures: Atomic::new(0),
            streams <- new_raw_spinlock_irq!([None; MAX_STREAMS], "arm_smmu_cmdq_streams"),
        })
    }

    /// Whether there are any.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.count.load(Relaxed) != 0
    }

    /// Calls `f` for the entry of a stream, with an empty one if there is none. Afterwards the
    /// entry is kept if `f` returns a stream.
    #[cold]
    fn update<R>(
        &self,
        sid: u32,
        now: Instant<Monotonic>,
        f: impl FnOnce(Stream) -> (Option<Stream>, R),
    ) -> R {
        let mut streams = self.streams.lock();
        let found = streams
            .iter()
            .position(|stream| stream.is_some_and(|stream| stream.sid == sid));
        let index = found
            .or_else(|| streams.iter().position(Option::is_none))
            .unwrap_or_else(|| Self::soonest(&streams));
        let stream = found.and_then(|index| streams[index]).unwrap_or(Stream {
            sid,
            timeouts: 0,
            refused_until: now,
            pending: None,
            is_untold: false,
            is_suspect: false,
            is_to_block: false,
            has_failed_host: false,
        });

        let (stream, result) = f(stream);
        if stream.is_some() || found.is_some() {
            streams[index] = stream;
        }
        // CAST: A small number.
        let count = streams.iter().flatten().count() as u32;
        self.count.store(count, Relaxed);
        result
    }

    /// The index of the stream whose back-off ends first, if possible one that there is nothing to
    /// tell of.
    fn soonest(streams: &[Option<Stream>; MAX_STREAMS]) -> usize {
        let mut soonest = 0;
        for (index, stream) in streams.iter().enumerate() {
            if let (Some(stream), Some(other)) = (stream, streams[soonest]) {
                let is_sooner = (stream.refused_until - other.refused_until).is_negative();
                if (stream.has_news(), !is_sooner) < (other.has_news(), true) {
                    soonest = index;
                }
            }
        }
        soonest
    }

    /// Decides on a `CMD_ATC_INV` of a guest for a stream.
    ///
    /// `is_consumed` says whether the SMMU has got past the `CMD_SYNC` at a position.
    pub(crate) fn judge(
        &self,
        sid: u32,
        now: Instant<Monotonic>,
        is_consumed: impl FnOnce(u64) -> bool,
    ) -> Verdict {
        self.update(sid, now, |mut stream| {
            if stream.is_untold {
                return (Some(stream), Verdict::Refuse);
            }
            if let Some(Pending { position, .. }) = stream.pending {
                if !is_consumed(position) {
                    return (Some(stream), Verdict::Pending(position));
                }
                // Answered late, but answered.
                stream.pending = None;
            }
            if (now - stream.refused_until).is_negative() {
                return (Some(stream), Verdict::Refuse);
            }
            // One that has had confirmed time-outs is kept: the next one counts as another.
            let is_kept = stream.timeouts != 0 || stream.has_news();
            (is_kept.then_some(stream), Verdict::Issue)
        })
    }

    /// Says that the guest was told of a time-out.
    #[cold]
    pub(crate) fn told(&self, sid: u32) {
        for stream in self.streams.lock().iter_mut().flatten() {
            if stream.sid == sid {
                stream.is_untold = false;
            }
        }
    }

    /// Says that a time-out of a stream was confirmed, by the host or by a guest. Returns for how
    /// long it is refused now.
    #[cold]
    pub(crate) fn timed_out(&self, sid: u32, now: Instant<Monotonic>, is_guest: bool) -> Delta {
        self.update(sid, now, |mut stream| {
            stream.is_to_block |= !is_guest;
            stream.has_failed_host |= !is_guest;
            let backoff = stream.back_off(now);
            (Some(stream), backoff)
        })
    }

    /// Whether the device of a stream is known not to answer, and has its ATS blocked for that.
    /// What a guest has found out leads to no such thing.
    #[cold]
    pub(crate) fn is_blocked(&self, sid: u32, now: Instant<Monotonic>) -> bool {
        self.streams.lock().iter().flatten().any(|stream| {
            stream.sid == sid
                && stream.has_failed_host
                && (now - stream.refused_until).is_negative()
        })
    }

    /// Says that a stream is one of several of which some have not answered the host.
    #[cold]
    pub(crate) fn suspect(&self, sid: u32, now: Instant<Monotonic>) {
        self.update(sid, now, |stream| {
            let stream = Stream {
                is_suspect: true,
                ..stream
            };
            (Some(stream), ())
        });
    }

    /// Says that the `CMD_ATC_INV`s of the host for a stream, or others of the same batch, have
    /// failed or may have, and that their submitter waits no more.
    #[cold]
    pub(crate) fn host_failed(&self, sid: u32, now: Instant<Monotonic>) {
        self.update(sid, now, |stream| {
            let stream = Stream {
                is_suspect: true,
                ..stream
            };
            (Some(stream), ())
        });
        self.host_failures.add(1, Relaxed);
    }

    /// Returns what is to be done next, each task once.
    #[cold]
    pub(crate) fn next_task(&self) -> Option<Task> {
        let mut streams = self.streams.lock();
        let stream = streams
            .iter_mut()
            .flatten()
            .find(|stream| stream.is_to_block || stream.is_suspect)?;

        if core::mem::take(&mut stream.is_to_block) {
            return Some(Task::Block(stream.sid));
        }
        stream.is_suspect = false;
        Some(Task::Probe(stream.sid))
    }

    /// The number of times that `CMD_ATC_INV`s of the host have failed that nobody waited for.
    #[inline]
    pub(crate) fn host_failures(&self) -> u32 {
        self.host_failures.load(Relaxed)
    }

    /// Says that the device of a stream has answered in time.
    #[cold]
    pub(crate) fn answered(&self, sid: u32, now: Instant<Monotonic>) {
        self.update(sid, now, |stream| {
            let stream = Stream {
                timeouts: 0,
                refused_until: now,
                has_failed_host: false,
                ..stream
            };
            (stream.has_news().then_some(stream), ())
        });
    }

    /// Forgets a stream: it was attached or reset, and what was before means nothing.
    #[cold]
    pub(crate) fn forget(&self, sid: u32, now: Instant<Monotonic>) {
        self.update(sid, now, |_| (None, ()));
    }

    /// Says that a `CMD_SYNC` is not waited for any more, behind a `CMD_ATC_INV` for this stream.
    /// Returns whether there is a [`Task`] now.
    #[cold]
    pub(crate) fn abandon(&self, sid: u32, now: Instant<Monotonic>, pending: Pending) -> bool {
        self.update(sid, now, |mut stream| {
            // Of an earlier one of the host, nobody learns what becomes of it.
            let is_lost = stream
                .pending
                .is_some_and(|earlier| !earlier.is_guest && earlier.position != pending.position);
            stream.is_suspect |= is_lost;
            self.host_failures.add(u32::from(is_lost), Relaxed);
            stream.pending = Some(pending);
            (Some(stream), is_lost)
        })
    }

    /// Says that the `CMD_SYNC` fails for whose position `is_at` holds. Its submitter is told at
    /// the next opportunity. Returns whether there is a [`Task`] now.
    #[cold]
    pub(crate) fn abandoned_sync_failed(
        &self,
        now: Instant<Monotonic>,
        is_at: impl Fn(u64) -> bool,
    ) -> bool {
        let mut has_task = false;

        for stream in self.streams.lock().iter_mut().flatten() {
            let Some(pending) = stream.pending.filter(|pending| is_at(pending.position)) else {
                continue;
            };
            stream.pending = None;
            if pending.is_guest {
                stream.is_untold = true;
            } else {
                self.host_failures.add(1, Relaxed);
                stream.is_suspect = true;
                has_task = true;
            }
            if pending.is_only_stream {
                stream.back_off(now);
            }
        }
        has_task
    }
}

impl Stream {
    /// Whether there is more to the entry than its back-off.
    fn has_news(&self) -> bool {
        self.pending.is_some() || self.is_untold || self.is_suspect || self.is_to_block
    }

    /// Counts a time-out. Returns for how long the stream is refused from now on.
    fn back_off(&mut self, now: Instant<Monotonic>) -> Delta {
        let seconds = MIN_BACKOFF.as_nanos() << self.timeouts.min(16);
        let backoff = Delta::from_nanos(seconds.min(MAX_BACKOFF.as_nanos()));

        self.timeouts = self.timeouts.saturating_add(1);
        self.refused_until = now + backoff;
        backoff
    }
}
