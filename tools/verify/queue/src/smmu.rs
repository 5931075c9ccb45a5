// SPDX-License-Identifier: GPL-2.0

//! An SMMU for model checkers (Arm IHI 0070, 4.1, 4.7.3 and 7.1). It does one thing after another, in
//! a thread of its own, and leaves everything that is open to the scheduler.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed as Unordered},
};

use kernel::{
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        thread, Condvar, Mutex,
    },
    time::{Delta, Instant, Monotonic},
};

use crate::{
    cmd::{Cmd, SyncSignal},
    facts::{Facts, Fate, Tag, CMD_SYNC},
    hw::{Cerror, Entry, Hw},
};

/// How a `CMD_SYNC` completes. In any case, CONS moves past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Msi {
    /// By CONS.
    None,
    /// By an MSI that is written before CONS.
    Before,
    /// By one that is written behind CONS.
    After,
    /// By one that is written at any time behind CONS, by a thread of its own.
    Late,
}

/// What kind of SMMU it is.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The number of entries.
    pub len: usize,
    pub msi: Msi,
    /// Fetches all that there is at once.
    pub prefetches: bool,
    /// How much time a look at the queue takes.
    pub tick: Delta,
    /// Those who use the queue have interrupts disabled, so that they must not take long.
    pub irqs_off: bool,
    /// Of so many `CMD_SYNC`s that ask for an MSI, one is illegal to it. None is if this is 0.
    pub bad_sync: u32,
}

/// A look that takes so long that a few of them are too many.
pub const SLOW: Delta = Delta::from_millis(400);
/// One that takes so little time that nobody gives up.
pub const FAST: Delta = Delta::from_micros(200);

/// Wakes a thread. What is ordered by it is ordered in hardware, too: a write of a register before
/// what the SMMU does thereupon, and an error before its interrupt.
pub(crate) struct Bell {
    /// How often it has rung, and whether it is for the last time.
    state: Mutex<(u32, bool)>,
    condvar: Condvar,
}

impl Bell {
    fn new() -> Self {
        Self {
            state: Mutex::new((0, false)),
            condvar: Condvar::new(),
        }
    }

    pub(crate) fn ring(&self) {
        self.state.lock().unwrap().0 += 1;
        self.condvar.notify_one();
    }

    pub(crate) fn close(&self) {
        self.state.lock().unwrap().1 = true;
        self.condvar.notify_one();
    }

    /// Waits until it has rung once more. Returns false if it does not any more.
    pub(crate) fn wait(&self, seen: &mut u32) -> bool {
        let mut state = self.state.lock().unwrap();
        while state.0 == *seen && !state.1 {
            state = self.condvar.wait(state).unwrap();
        }
        let has_rung = state.0 != *seen;
        *seen = state.0;
        has_rung
    }
}

/// For how long a completion MSI may be under way.
const MSI_LIMIT: Delta = Delta::from_secs(3);

pub(crate) struct Smmu {
    kind: Kind,
    entries: Vec<Entry>,
    prod: Atomic<u32>,
    cons: Atomic<u32>,
    gerror: Atomic<u32>,
    gerrorn: Atomic<u32>,
    pub(crate) doorbell: Bell,
    pub(crate) interrupt: Bell,
    pub(crate) message: Bell,
    /// The slots of `CMD_SYNC`s whose MSIs are under way, and since when.
    late: Mutex<VecDeque<(usize, i64)>>,
    pub(crate) facts: Facts,
    clock: AtomicI64,
    /// Wakes the work that blocks ATS.
    pub(crate) work: Bell,
    /// Whether that was asked for since the last time that this was cleared.
    pub(crate) has_work: AtomicBool,
    /// Whether ATS was blocked.
    pub(crate) is_blocked: AtomicBool,
}

/// What only the SMMU itself knows.
#[derive(Default)]
struct Core {
    /// How many entries were consumed.
    position: u64,
    last_prod: u32,
    fetched: VecDeque<Cmd>,
    /// The command that the SMMU has got to. Another one in its slot does not change what was found
    /// there first.
    reached: bool,
    aborts: u32,
    unanswered: bool,
    gerror: u32,
    /// How many `CMD_SYNC`s have asked for an MSI.
    syncs: u32,
}

impl Smmu {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            entries: (0..kind.len).map(|_| Entry::new()).collect(),
            prod: Atomic::new(0),
            cons: Atomic::new(0),
            gerror: Atomic::new(0),
            gerrorn: Atomic::new(0),
            doorbell: Bell::new(),
            interrupt: Bell::new(),
            message: Bell::new(),
            late: Mutex::new(VecDeque::new()),
            facts: Facts::new(kind.tick == SLOW),
            clock: AtomicI64::new(0),
            work: Bell::new(),
            has_work: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
        }
    }

    /// The bits of a position that are in a register.
    fn mask(&self) -> u32 {
        2 * self.kind.len as u32 - 1
    }

    /// What the SMMU's thread does, until the bell is closed and the queue is empty.
    pub(crate) fn run(&self) {
        let mut core = Core::default();
        let mut seen = 0;

        while self.doorbell.wait(&mut seen) {
            while self.step(&mut core) {}
        }
        assert_eq!(
            core.gerror,
            self.gerrorn.load(Acquire),
            "an error was not acknowledged"
        );
    }

    /// What the thread does that delivers late MSIs.
    pub(crate) fn deliver(&self) {
        let mut seen = 0;

        while self.message.wait(&mut seen) {
            self.deliver_before(i64::MAX);
        }
    }

    /// Writes the MSIs that are under way since before this time. None overtakes another.
    fn deliver_before(&self, time: i64) {
        let mut late = self.late.lock().unwrap();

        while let Some((index, _)) = late.front().filter(|(_, since)| *since < time) {
            self.write_msi(*index);
            late.pop_front();
        }
    }

    fn write_msi(&self, index: usize) {
        let entry: *const Entry = &self.entries[index];
        // SAFETY: `Entry` is a transparent wrapper of this.
        let [word0, _] = unsafe { &*entry.cast::<[Atomic<u64>; 2]>() };
        let _ = word0.fetch_and(!0 << 32, Release);
    }

    fn write_cons(&self, core: &Core, err: u32) {
        self.cons
            .store(core.position as u32 & self.mask() | err << 24, Release);
    }

    /// Stops at an error.
    fn stop(&self, core: &mut Core, cerror: Cerror) -> bool {
        core.fetched.clear();
        core.gerror ^= 1;
        self.write_cons(core, cerror as u32);
        self.gerror.store(core.gerror, Release);
        self.interrupt.ring();
        true
    }

    /// Consumes a command, or stops at it. Returns false if there is none.
    fn step(&self, core: &mut Core) -> bool {
        if self.gerrorn.load(Acquire) != core.gerror {
            return false;
        }
        let prod = self.prod.load(Acquire);
        let ahead = |of: u32| prod.wrapping_sub(of) & self.mask();
        let len = self.kind.len as u32;
        assert!(
            prod <= self.mask() && ahead(core.last_prod) <= len,
            "PROD has moved back"
        );
        core.last_prod = prod;
        let count = ahead(core.position as u32);
        assert!(count <= len, "PROD is too far ahead");
        if count == 0 {
            return false;
        }

        let fetched = if self.kind.prefetches {
            count as usize
        } else {
            1
        };
        while core.fetched.len() < fetched {
            let index = (core.position as usize + core.fetched.len()) % self.kind.len;
            core.fetched.push_back(self.entries[index].read());
        }
        let cmd = core.fetched[0];
        let [word0, word1] = cmd.words();

        if word0 & 0xff == CMD_SYNC {
            let is_first = !std::mem::replace(&mut core.reached, true);
            if is_first {
                self.facts.reach(None);
            }
            return self.execute_sync(core, is_first, word0, word1);
        }
        let (tag, fate) = Tag::of(cmd).unwrap_or_else(|| {
            panic!("an entry was fetched that is not whole: {word0:#x} {word1:#x}")
        });
        if !std::mem::replace(&mut core.reached, true) {
            self.facts.reach(Some(tag));
            core.aborts = if let Fate::Abort(count) = fate {
                count
            } else {
                0
            };
        }
        if core.aborts > 0 {
            core.aborts -= 1;
            return self.stop(core, Cerror::Abt);
        }
        if fate == Fate::Illegal {
            return self.stop(core, Cerror::Ill);
        }
        core.unanswered |= !self.facts.execute(tag, fate);
        self.go_on(core);
        self.write_cons(core, 0);
        true
    }

    fn execute_sync(&self, core: &mut Core, is_first: bool, word0: u64, word1: u64) -> bool {
        if core.aborts > 0 {
            // What was aborted here before was replaced by this.
            core.aborts = 0;
        }
        let index = core.position as usize % self.kind.len;
        let has_msi = (word0 >> 12) & 3 == 1;
        if is_first && has_msi && self.kind.bad_sync != 0 {
            core.syncs += 1;
            if core.syncs.is_multiple_of(self.kind.bad_sync) {
                return self.stop(core, Cerror::Ill);
            }
        }
        if std::mem::take(&mut core.unanswered) {
            return self.stop(core, Cerror::AtcInvSync);
        }
        assert!(
            !has_msi || word1 == address(index),
            "the MSI is for another slot"
        );

        self.facts.sync();
        if has_msi && self.kind.msi == Msi::Before {
            self.write_msi(index);
        }
        self.go_on(core);
        if has_msi && self.kind.msi == Msi::Late {
            let now = self.clock.load(Unordered);
            self.late.lock().unwrap().push_back((index, now));
        }
        self.write_cons(core, 0);
        match self.kind.msi {
            Msi::After if has_msi => self.write_msi(index),
            Msi::Late if has_msi => self.message.ring(),
            _ => (),
        }
        true
    }

    fn go_on(&self, core: &mut Core) {
        core.fetched.pop_front();
        core.position += 1;
        core.reached = false;
    }
}

/// The address of a slot.
fn address(index: usize) -> u64 {
    0x8000_0000 + 16 * index as u64
}

impl Hw for Smmu {
    const WORD_BITS: u64 = 4;
    const MIN_LEN: usize = 4;

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    // The driver's own is not ordered by itself, but behind an acquire of what others have written,
    // and nothing in C11 carries that on to a reader of this: see the litmus tests.
    fn write_prod(&self, prod: u32) {
        self.prod.store(prod, Release);
        self.doorbell.ring();
    }

    fn read_cons(&self) -> u32 {
        self.cons.load(Acquire)
    }

    fn error_is_active(&self) -> bool {
        self.gerror.load(Acquire) != self.gerrorn.load(Acquire)
    }

    fn acknowledge(&self) {
        let gerror = self.gerror.load(Relaxed);
        assert_ne!(
            gerror,
            self.gerrorn.load(Relaxed),
            "there is nothing to acknowledge"
        );
        self.gerrorn.store(gerror, Release);
        self.doorbell.ring();
    }

    fn make_sync(&self, index: usize) -> Cmd {
        Cmd::sync(match self.kind.msi {
            Msi::None => SyncSignal::None,
            _ => SyncSignal::Msi(address(index)),
        })
    }

    fn sync_has_msi(&self) -> bool {
        self.kind.msi != Msi::None
    }

    fn pause(&self, _: u32, _: Delta, _: bool) {
        let tick = self.kind.tick.as_nanos();
        let now = self.clock.fetch_add(tick, Unordered) + tick;

        if self.kind.msi == Msi::Late && now > MSI_LIMIT.as_nanos() {
            self.deliver_before(now - MSI_LIMIT.as_nanos());
        }
        thread::yield_now();
    }

    fn interrupts_are_disabled(&self) -> bool {
        self.kind.irqs_off
    }

    fn block_ats(&self) {
        self.has_work.store(true, Unordered);
        self.work.ring();
    }

    fn now(&self) -> Instant<Monotonic> {
        Instant::from_nanos(self.clock.load(Unordered))
    }
}
