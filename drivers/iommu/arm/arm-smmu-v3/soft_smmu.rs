// SPDX-License-Identifier: GPL-2.0

//! An SMMU made of software: the command queue interface of IHI 0070, 4.1, 4.7.3, 4.8 and 7.1, for
//! KUnit tests.
//!
//! How many commands it consumes at a time, and when, is random, from a seed. It runs on the CPUs
//! that access it or wait for it, which may be several at once, and in a thread that calls
//! [`SoftSmmu::run()`] in a loop. It does all that the architecture allows: it fetches entries
//! ahead, and `SMMU_CMDQ_CONS` may be behind the completion MSI or ahead of it. Entries that are
//! consumed are overwritten, so that nobody relies on them.
//!
//! What becomes of a command is part of the command, see [`Fate`]. So a test knows what to expect
//! before the command is issued. Afterwards the SMMU says what was executed, see
//! [`SoftSmmu::is_complete()`].

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
            smp_mb,
            Full, //
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
        Cerror,
        Entry,
        Hw,
        Report, //
    }, //
};

pub(crate) use super::soft_random::Random;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// `CMD_TLBI_NH_VA`, which is executed.
    Fine,
    /// An opcode that is reserved.
    Illegal,
    /// Cannot be fetched the first so many times, one of [`ABORTS`], whatever is in the slot by
    /// then. With [`FOR_EVER`], not before [`SoftSmmu::heal()`].
    Abort(u32),
    /// `CMD_ATC_INV` that the device answers.
    Answered,
    /// `CMD_ATC_INV` that the device answers when it is sent for the second time.
    AnsweredAgain,
    /// `CMD_ATC_INV` that the device never answers.
    Unanswered,
    /// `CMD_CFGI_CD` that the SMMU stands still before, for [`Manner::stall`] pauses, and executes.
    Slow,
}

/// A number of times that does not end.
pub(crate) const FOR_EVER: u32 = u32::MAX;

/// What tells a command from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// Who sent it, less than [`PRODUCERS`].
    pub(crate) producer: u32,
    /// The number of the batch among those of its sender, from 1 on.
    pub(crate) batch: u32,
    /// Where it is in the batch, less than [`BATCH`].
    pub(crate) index: u32,
}

/// How many senders there can be.
pub(crate) const PRODUCERS: u32 = 16;

/// How many commands one batch can have.
pub(crate) const BATCH: u32 = 128;

const TLBI_NH_VA: u64 = 0x12;
const CFGI_CD: u64 = 0x05;
const ATC_INV: u64 = 0x40;
const CMD_SYNC: u64 = 0x46;
const RESERVED: u64 = 0x7e;

/// The opcode of an entry that nobody has written since the SMMU consumed it.
const USED: u64 = 0xee;

/// The stream of the commands that are [`Fate::Answered`].
pub(crate) const SID_ANSWERED: u32 = 1;

/// The stream of those that are [`Fate::AnsweredAgain`].
pub(crate) const SID_ANSWERED_AGAIN: u32 = 2;

/// The stream of those that are [`Fate::Unanswered`].
pub(crate) const SID_UNANSWERED: u32 = 3;

const SID_SLOW: u32 = 4;

/// How often a command may fail to be fetched. The four uppermost bits of the address are an index
/// into this.
const ABORTS: [u32; 8] = [0, 1, 2, 3, 4, 10, 100, FOR_EVER];

/// The bus address of the queue.
const BASE: u64 = 0x8000_0000;

/// `CMDQ_ERR` in `SMMU_GERROR` and `SMMU_GERRORN`.
const CMDQ_ERR: u32 = 1;

impl Tag {
    /// Makes a command with this tag.
    pub(crate) fn command(self, fate: Fate) -> Cmd {
        let (opcode, sid, aborts) = match fate {
            Fate::Fine => (TLBI_NH_VA, 0, 0),
            Fate::Illegal => (RESERVED, 0, 0),
            Fate::Abort(count) => (TLBI_NH_VA, 0, count),
            Fate::Answered => (ATC_INV, SID_ANSWERED, 0),
            Fate::AnsweredAgain => (ATC_INV, SID_ANSWERED_AGAIN, 0),
            Fate::Unanswered => (ATC_INV, SID_UNANSWERED, 0),
            Fate::Slow => (CFGI_CD, SID_SLOW, 0),
        };
        // CAST: A small number.
        let aborts = ABORTS
            .iter()
            .position(|count| *count == aborts)
            .unwrap_or(0) as u64;
        let address = aborts << 60
            | u64::from(self.producer) << 52
            | u64::from(self.batch) << 20
            | u64::from(self.index) << 12;

        Cmd::new([opcode | u64::from(sid) << 32, address])
    }

    /// Reverts [`Self::command()`] for the second word.
    fn of_word1(word1: u64) -> Self {
        // CAST: The other bits are masked or do not matter.
        Self {
            producer: (word1 >> 52) as u32 % PRODUCERS,
            batch: (word1 >> 20) as u32,
            index: (word1 >> 12) as u32 % BATCH,
        }
    }

    fn ledger_index(self) -> usize {
        // CAST: `usize` has 64 bits here.
        (self.producer * BATCH + self.index) as usize
    }
}

/// Whether this is a `CMD_ATC_INV` for all addresses, which is from no batch of the tests.
fn is_for_all(word0: u64, word1: u64) -> bool {
    word0 & 0xff == ATC_INV && word1 == 52
}

/// How an SMMU behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// For the random numbers.
    pub(crate) seed: u64,
    /// Completes a `CMD_SYNC` by writing zeroes over it.
    pub(crate) overwrites: bool,
    /// The most commands that are consumed at once.
    pub(crate) pace: u32,
    /// Of so many `CMD_SYNC`s, one fails at first. 0 if none does.
    pub(crate) bad_syncs: u32,
    /// For how many pauses it stands still before a command that is [`Fate::Slow`].
    pub(crate) stall: u32,
    /// How long such a pause takes, in milliseconds.
    pub(crate) tick: i64,
}

/// What the driver or the queue has done that it must not do.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum Violation {
    /// `SMMU_CMDQ_PROD` was moved over an entry that had not been written.
    Unwritten = 1 << 0,
    /// `SMMU_CMDQ_PROD` was moved backwards, or too far.
    Prod = 1 << 1,
    /// Commands were not in the order of their batch, or batches of one sender not in theirs, or
    /// there was something in between.
    Order = 1 << 2,
    /// There was nothing to acknowledge.
    Acknowledge = 1 << 3,
    /// The completion message was for another slot.
    Message = 1 << 4,
    /// An entry was read that could not be fetched: its memory may be poisoned.
    Poisoned = 1 << 5,
}

/// How many entries are fetched ahead at most.
const FETCHED: usize = 8;

/// How many completion messages can be on their way.
const LATE: usize = 4;

/// What only the SMMU itself knows.
struct State {
    random: Random,
    /// How many entries were ever consumed: `SMMU_CMDQ_CONS` with more bits.
    cons: u64,
    /// The entries from `cons` up to `fetched_end`, each at its position modulo [`FETCHED`].
    fetched: [Cmd; FETCHED],
    fetched_end: u64,
    /// The code that is to stand in `SMMU_CMDQ_CONS`. Stays there after the error.
    err: u32,
    /// Whether the fate of the entry at `cons` was looked up. It then does not change if the entry
    /// does.
    seen: bool,
    /// How often the entry at `cons` is still to fail by an abort, or as illegal.
    aborts: u32,
    ills: u32,
    /// How many `CMD_SYNC`s are still to be illegal.
    illegal_syncs: u32,
    /// How often the next `CMD_SYNC` is to fail by an abort.
    sync_aborts: u32,
    /// A `CMD_ATC_INV` since the last `CMD_SYNC` was not answered.
    unanswered: bool,
    /// For how many pauses the queue is to stand still.
    stall: u32,
    /// For how many pauses no completion MSI is written.
    held_msis: u32,
    /// How much time a pause takes, in milliseconds, while there is an error or an MSI is held.
    hurry: i64,
    /// The time at which all is healed.
    heal_at: Option<Instant<Monotonic>>,
    /// After a `CMD_SYNC` with an MSI, `SMMU_CMDQ_CONS` shows it only when there is something new.
    cons_lags: bool,
    /// Whether the last command was such a `CMD_SYNC`.
    is_behind_msi: bool,
    /// All devices answer.
    all_answer: bool,
    /// They do so from the one after so many `CMD_ATC_INV`s on.
    answer_from: u32,
    /// For how many pauses the queue stands still before the next `ATC_INV_SYNC`.
    atc_stall: u32,
    /// Behind so many other ones.
    atc_stall_behind: u32,
    /// The positions of `CMD_SYNC`s that are complete and whose message is on its way.
    late: [Option<u64>; LATE],
    /// The command before that at `cons`, unless it was a `CMD_SYNC`.
    previous: Option<Tag>,
    /// The command at `cons` is a `CMD_ATC_INV` for all addresses.
    is_for_all: bool,
    /// Every sender's latest batch.
    batches: [u32; PRODUCERS as usize],
    /// How many commands other than `CMD_SYNC` were consumed.
    cmds: u64,
}

impl State {
    /// Ends all failures that last for ever.
    fn heal(&mut self) {
        self.illegal_syncs = 0;
        self.sync_aborts = 0;
        self.aborts = 0;
        self.ills = 0;
    }
}

/// An error that was serviced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Serviced {
    /// `SMMU_CMDQ_CONS`.
    pub(crate) cons: u32,
    /// What it was taken for.
    pub(crate) cerror: Option<Cerror>,
    /// What was done.
    pub(crate) action: Action,
}

/// How many serviced errors are kept.
const LOG: usize = 16;

/// The errors that were serviced since the log was last taken.
pub(crate) struct Log {
    serviced: [Option<Serviced>; LOG],
    len: usize,
}

impl Log {
    const EMPTY: Self = Self {
        serviced: [None; LOG],
        len: 0,
    };

    /// The errors in their order. Those that there was no room for are missing.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Serviced> + '_ {
        self.serviced.iter().copied().flatten()
    }

    /// How many there were.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// An SMMU with a command queue.
#[pin_data]
pub(crate) struct SoftSmmu {
    entries: KVVec<Entry>,
    manner: Manner,
    prod: Atomic<u32>,
    cons: Atomic<u32>,
    gerror: Atomic<u32>,
    gerrorn: Atomic<u32>,
    #[pin]
    state: RawSpinLockIrq<State>,
    /// How many `CMD_SYNC`s have completed.
    syncs: Atomic<u64>,
    /// By sender and index in the batch, the last command that was executed: its batch in the upper
    /// half, whether it was [`UNANSWERED`], and the lower bits of `syncs` by then.
    ledger: KVVec<Atomic<u64>>,
    /// As bits of [`Violation`].
    violations: Atomic<u32>,
    /// How much time has passed in pauses that the queue stood still for, in nanoseconds.
    stood_still: Atomic<i64>,
    start: Instant<Monotonic>,
    #[pin]
    log: RawSpinLockIrq<Log>,
    replays: Atomic<u64>,
    timeouts: Atomic<u64>,
    no_interrupts: Atomic<bool>,
    kill_at: Atomic<i64>,
    ask_ms: Atomic<i64>,
}

/// In a word of the ledger: the command is a `CMD_ATC_INV` that was not answered.
const UNANSWERED: u64 = 1 << 31;

/// The time that a pause takes while there is an error, in the first [`NOTICED`].
const PAUSE: Delta = Delta::from_micros(20);

/// By then a CPU that waits should have noticed it. From there on pauses take no time of their own,
/// as another CPU may be about to handle the error.
const NOTICED: Delta = Delta::from_millis(1);

/// How much slower the clock of the SMMU is than that of the machine, whose CPUs may be emulated
/// and share those of another, so that nothing times out for that reason alone.
const SLOWER: i64 = 16;

impl SoftSmmu {
    /// Makes an SMMU with a queue of `len` entries, which is a power of two.
    pub(crate) fn new(len: usize, manner: Manner) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            entries: try_vec(len, || {
                let entry = Entry::new();
                entry.write(Cmd::new([USED, 0]));
                entry
            })?,
            manner,
            prod: Atomic::new(0),
            cons: Atomic::new(0),
            gerror: Atomic::new(0),
            gerrorn: Atomic::new(0),
            state <- new_raw_spinlock_irq!(State {
                random: Random::new(manner.seed),
                cons: 0,
                fetched: [Cmd::illegal(); FETCHED],
                fetched_end: 0,
                err: 0,
                seen: false,
                aborts: 0,
                ills: 0,
                illegal_syncs: 0,
                sync_aborts: 0,
                unanswered: false,
                stall: 0,
                held_msis: 0,
                hurry: 0,
                heal_at: None,
                cons_lags: false,
                is_behind_msi: false,
                all_answer: false,
                answer_from: 0,
                atc_stall: 0,
                atc_stall_behind: 0,
                late: [None; LATE],
                previous: None,
                is_for_all: false,
                batches: [0; PRODUCERS as usize],
                cmds: 0,
            }),
            syncs: Atomic::new(0),
            ledger: try_vec((PRODUCERS * BATCH) as usize, || Atomic::new(0))?,
            violations: Atomic::new(0),
            stood_still: Atomic::new(0),
            start: Instant::now(),
            log <- new_raw_spinlock_irq!(Log::EMPTY),
            replays: Atomic::new(0),
            timeouts: Atomic::new(0),
            no_interrupts: Atomic::new(false),
            kill_at: Atomic::new(i64::MAX),
            ask_ms: Atomic::new(0),
        }? Error)
    }

    /// Consumes some commands, if there are any and nobody else is at it. Returns whether it has.
    pub(crate) fn run(&self) -> bool {
        let Some(mut state) = self.state.try_lock() else {
            cpu_relax();
            return false;
        };
        let state = &mut *state;

        if state
            .heal_at
            .is_some_and(|at| !(self.now() - at).is_negative())
        {
            state.heal();
        }
        if state.random.one_in(2) {
            self.overwrite_late(state);
        }

        let before = state.cons;
        let count = state.random.below(self.manner.pace + 1);
        for _ in 0..count {
            if !self.consume(state) {
                break;
            }
        }
        if state.cons == before {
            return false;
        }
        // An error has written it already.
        if !self.error_is_active() {
            self.write_cons(state);
        }
        true
    }

    /// Runs until the queue is empty or stands still.
    pub(crate) fn settle(&self) {
        // Often enough for any queue, and for all messages to be written.
        for _ in 0..100_000 {
            let _ = self.run();
            let (is_late, is_stalled) = {
                let state = self.state.lock();
                let is_late = state.late.iter().any(Option::is_some);
                (state.held_msis == 0 && is_late, state.stall != 0)
            };
            if !is_late && (self.is_idle() || self.error_is_active() || is_stalled) {
                break;
            }
        }
    }

    /// Resets the SMMU, with `SMMU_CMDQ_PROD` and `SMMU_CMDQ_CONS` set to this.
    pub(crate) fn reset(&self, register: u32) {
        let mut state = self.state.lock();
        // The position of the register from here on.
        let skipped = register.wrapping_sub(state.cons as u32) & self.mask();

        state.cons += u64::from(skipped);
        state.fetched_end = state.cons;
        state.seen = false;
        state.heal();
        state.previous = None;
        self.prod.store(register, Relaxed);
        self.write_cons(&state);
    }

    /// Whether all that there is has been consumed.
    pub(crate) fn is_idle(&self) -> bool {
        // CAST: The bits of the register.
        self.state.lock().cons as u32 & self.mask() == self.prod.load(Relaxed)
    }

    /// Stands still for so many pauses, or [`FOR_EVER`]; goes on with 0.
    pub(crate) fn stall(&self, pauses: u32) {
        self.state.lock().stall = pauses;
    }

    /// Takes the next so many `CMD_SYNC`s for illegal, or all of them with [`FOR_EVER`].
    pub(crate) fn refuse_syncs(&self, count: u32) {
        self.state.lock().illegal_syncs = count;
    }

    /// Fails so often to fetch the next `CMD_SYNC`.
    pub(crate) fn abort_sync(&self, count: u32) {
        self.state.lock().sync_aborts = count;
    }

    /// Ends all failures that last for ever, also of the commands that are in the queue now.
    pub(crate) fn heal(&self) {
        self.state.lock().heal();
    }

    /// As [`Self::heal()`], after some time.
    pub(crate) fn heal_after(&self, time: Delta) {
        self.state.lock().heal_at = Some(self.now() + time);
    }

    /// Lets a pause take so many milliseconds while there is an error or an MSI is held.
    pub(crate) fn hurry(&self, msecs: i64) {
        self.state.lock().hurry = msecs;
    }

    /// Writes no completion MSIs for so many pauses, or [`FOR_EVER`]; writes them with 0.
    pub(crate) fn hold_msis(&self, pauses: u32) {
        self.state.lock().held_msis = pauses;
    }

    /// Lets `SMMU_CMDQ_CONS` lag behind a completion MSI until there is something new.
    pub(crate) fn let_cons_lag(&self) {
        self.state.lock().cons_lags = true;
    }

    /// Lets all devices answer, or not.
    pub(crate) fn let_all_answer(&self, answer: bool) {
        self.state.lock().all_answer = answer;
    }

    /// Lets all devices answer from the `CMD_ATC_INV` with this number on, counted from 1.
    pub(crate) fn answer_from(&self, number: u32) {
        self.state.lock().answer_from = number;
    }

    /// Lets the queue stand still for so many pauses before the `ATC_INV_SYNC` behind so many
    /// others.
    pub(crate) fn delay_atc_inv_sync(&self, others: u32, pauses: u32) {
        let mut state = self.state.lock();
        state.atc_stall = pauses;
        state.atc_stall_behind = others;
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, time: Delta) {
        self.stood_still.add(time.as_nanos(), Relaxed);
    }

    /// Whether this command is complete: it has been executed, with an answer if it needs one, and
    /// there has been a `CMD_SYNC` since.
    pub(crate) fn is_complete(&self, tag: Tag) -> bool {
        let word = self.ledger[tag.ledger_index()].load(Relaxed);
        let syncs = self.syncs.load(Relaxed) & (UNANSWERED - 1);

        word >> 32 == u64::from(tag.batch)
            && word & UNANSWERED == 0
            && syncs > word & (UNANSWERED - 1)
    }

    /// Whether the command was executed, whatever came of it.
    fn was_executed(&self, tag: Tag) -> bool {
        self.ledger[tag.ledger_index()].load(Relaxed) >> 32 == u64::from(tag.batch)
    }

    /// What was done that must not be done, as bits of [`Violation`].
    pub(crate) fn violations(&self) -> u32 {
        self.violations.load(Relaxed)
    }

    /// How many commands other than `CMD_SYNC` and how many `CMD_SYNC`s have been consumed. One
    /// that was replaced counts as what it was.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.cmds, state.cons - state.cmds)
    }

    /// How many commands were replayed.
    pub(crate) fn replays(&self) -> u64 {
        self.replays.load(Relaxed)
    }

    /// Says that interrupts are disabled.
    pub(crate) fn disable_interrupts(&self, disable: bool) {
        self.no_interrupts.store(disable, Relaxed);
    }

    /// Lets so many milliseconds pass whenever the queue asks whether the caller is being killed.
    pub(crate) fn slow_asks(&self, ms: i64) {
        self.ask_ms.store(ms, Relaxed);
    }

    /// Has the caller killed when the queue asks for that for the n-th time.
    pub(crate) fn kill_caller(&self, n: i64) {
        self.kill_at.store(n, Relaxed);
    }

    /// How many waits were given up.
    pub(crate) fn timeouts(&self) -> u64 {
        self.timeouts.load(Relaxed)
    }

    /// `SMMU_CMDQ_CONS`, `SMMU_GERROR` and `SMMU_GERRORN`.
    pub(crate) fn registers(&self) -> (u32, u32, u32) {
        (
            self.cons.load(Acquire),
            self.gerror.load(Relaxed),
            self.gerrorn.load(Relaxed),
        )
    }

    /// Takes the log.
    pub(crate) fn take_log(&self) -> Log {
        core::mem::replace(&mut *self.log.lock(), Log::EMPTY)
    }

    fn violate(&self, violation: Violation) {
        // CAST: That is what they are made of. Nobody clears bits, so that one that gets lost here
        // leaves another.
        let bits = self.violations.load(Relaxed) | violation as u32;
        self.violations.store(bits, Relaxed);
    }

    /// The bits of a position that are in a register.
    fn mask(&self) -> u32 {
        // CAST: A queue has up to 2^20 entries.
        2 * self.entries.len() as u32 - 1
    }

    fn entry(&self, position: u64) -> &Entry {
        // CAST: `usize` has 64 bits here.
        &self.entries[position as usize % self.entries.len()]
    }

    fn write_cons(&self, state: &State) {
        let lag = u64::from(state.cons_lags && state.is_behind_msi);
        // CAST: The bits of the register.
        let position = state.cons.wrapping_sub(lag) as u32 & self.mask();
        self.cons.store(position | state.err << 24, Release);
    }

    /// Stops at an error. Nothing more is consumed until it is acknowledged, and then all is
    /// fetched again.
    fn stop(&self, state: &mut State, cerror: Cerror) -> bool {
        state.fetched_end = state.cons;
        // CAST: That is what they stand for.
        state.err = cerror as u32;
        self.write_cons(state);
        self.gerror
            .store(self.gerror.load(Relaxed) ^ CMDQ_ERR, Release);
        false
    }

    /// Consumes a command. Returns false if there is none or it stops.
    fn consume(&self, state: &mut State) -> bool {
        if self.error_is_active() || state.stall != 0 {
            return false;
        }

        // CAST: The bits of the register.
        let ahead = self.prod.load(Acquire).wrapping_sub(state.cons as u32) & self.mask();
        if ahead == 0 {
            return false;
        }
        // CAST: `usize` has 64 bits here.
        if ahead as usize > self.entries.len() {
            self.violate(Violation::Prod);
            return false;
        }

        if state.fetched_end == state.cons {
            // CAST: A small number.
            let count = ahead.min(1 + state.random.below(FETCHED as u32));
            for position in state.cons..state.cons + u64::from(count) {
                // CAST: `usize` has 64 bits here.
                state.fetched[position as usize % FETCHED] = self.entry(position).read();
            }
            state.fetched_end += u64::from(count);
        }
        // CAST: `usize` has 64 bits here.
        let [word0, word1] = state.fetched[state.cons as usize % FETCHED].words();
        let opcode = word0 & 0xff;

        if !state.seen {
            state.seen = true;
            self.look_up(state, word0, word1);
            if state.stall != 0 {
                return false;
            }
        }
        if state.aborts != 0 {
            if state.aborts != FOR_EVER {
                state.aborts -= 1;
            }
            return self.stop(state, Cerror::Abt);
        }
        if state.ills != 0 {
            state.ills -= 1;
            return self.stop(state, Cerror::Ill);
        }

        match opcode {
            CMD_SYNC => return self.execute_sync(state, word0, word1),
            TLBI_NH_VA | CFGI_CD => self.execute(word1, true),
            ATC_INV => {
                // CAST: 32 bits.
                let is_answered = match (word0 >> 32) as u32 {
                    SID_ANSWERED => true,
                    SID_ANSWERED_AGAIN => self.was_executed(Tag::of_word1(word1)),
                    _ => false,
                };
                if state.answer_from != 0 {
                    state.answer_from -= 1;
                    state.all_answer = state.answer_from == 0;
                }
                let is_answered = is_answered || state.all_answer;
                state.unanswered |= !is_answered;
                if !is_for_all(word0, word1) {
                    self.execute(word1, is_answered);
                }
            }
            0 | USED => self.violate(Violation::Unwritten),
            _ => return self.stop(state, Cerror::Ill),
        }
        self.go_on(state, false);
        true
    }

    /// Finds out what becomes of the entry at `cons`.
    fn look_up(&self, state: &mut State, word0: u64, word1: u64) {
        match word0 & 0xff {
            CMD_SYNC => {
                state.previous = None;
                state.aborts = core::mem::take(&mut state.sync_aborts);
                if state.random.one_in(self.manner.bad_syncs) {
                    match state.random.below(4) {
                        0 => state.ills = 1,
                        1 => (state.aborts, state.ills) = (1, 1),
                        aborts => state.aborts = aborts - 1,
                    }
                }
            }
            TLBI_NH_VA | CFGI_CD | ATC_INV | RESERVED => {
                // CAST: Four bits.
                state.aborts = ABORTS[(word1 >> 60) as usize % ABORTS.len()];
                if state
                    .heal_at
                    .is_some_and(|at| !(self.now() - at).is_negative())
                {
                    state.aborts = 0;
                }
                if word0 >> 32 == u64::from(SID_SLOW) {
                    state.stall = self.manner.stall;
                }
                if is_for_all(word0, word1) {
                    state.previous = None;
                    state.is_for_all = true;
                } else {
                    self.check_order(state, Tag::of_word1(word1));
                }
            }
            _ => (),
        }
    }

    /// Checks that a command is where it belongs, unless it is replayed.
    fn check_order(&self, state: &mut State, tag: Tag) {
        let latest = &mut state.batches[tag.producer as usize];
        let is_next = match tag.index {
            0 => tag.batch > *latest,
            index => {
                let before = Tag {
                    index: index - 1,
                    ..tag
                };
                state.previous == Some(before)
            }
        };
        let is_replayed = tag.batch == *latest && self.was_executed(tag);

        if !is_next && !is_replayed {
            self.violate(Violation::Order);
        }
        *latest = tag.batch;
        state.previous = Some(tag);
    }

    /// Notes in the ledger that a command was executed.
    fn execute(&self, word1: u64, is_answered: bool) {
        let tag = Tag::of_word1(word1);
        let syncs = self.syncs.load(Relaxed) & (UNANSWERED - 1);
        let unanswered = if is_answered { 0 } else { UNANSWERED };
        let word = u64::from(tag.batch) << 32 | unanswered | syncs;

        self.ledger[tag.ledger_index()].store(word, Relaxed);
    }

    /// Executes `CMD_SYNC`.
    fn execute_sync(&self, state: &mut State, word0: u64, word1: u64) -> bool {
        if state.illegal_syncs != 0 {
            if state.illegal_syncs != FOR_EVER {
                state.illegal_syncs -= 1;
            }
            return self.stop(state, Cerror::Ill);
        }
        if state.unanswered && state.atc_stall_behind == 0 && state.atc_stall != 0 {
            state.stall = core::mem::take(&mut state.atc_stall);
            return false;
        }
        // Once for all that were not answered.
        if core::mem::take(&mut state.unanswered) {
            state.atc_stall_behind = state.atc_stall_behind.saturating_sub(1);
            return self.stop(state, Cerror::AtcInvSync);
        }
        self.syncs.store(self.syncs.load(Relaxed) + 1, Relaxed);

        let is_message = (word0 >> 12) & 3 == 1;
        if is_message {
            // CAST: `usize` has 64 bits here.
            if word1 != self.message_address(state.cons as usize % self.entries.len()) {
                self.violate(Violation::Message);
            }
            let place = if state.held_msis != 0 {
                state.late.iter().position(Option::is_none).unwrap_or(LATE)
            } else {
                state.random.below(2 * LATE as u32) as usize
            };
            match state.late.get_mut(place) {
                Some(late @ None) => *late = Some(state.cons),
                _ => {
                    self.overwrite_late(state);
                    self.overwrite(state.cons);
                }
            }
        }
        self.go_on(state, is_message);
        state.is_behind_msi = is_message;
        true
    }

    /// Moves on to the next entry. Overwrites this one, unless it is a `CMD_SYNC` with an MSI.
    fn go_on(&self, state: &mut State, has_msi: bool) {
        if !has_msi {
            self.entry(state.cons).write(Cmd::new([USED, 0]));
        }
        state.cmds += u64::from(state.previous.is_some() || state.is_for_all);
        state.is_for_all = false;
        state.cons += 1;
        state.seen = false;
        state.is_behind_msi = false;
    }

    /// Writes the completion message of the `CMD_SYNC` at a position: 32 bits of zeroes.
    fn overwrite(&self, position: u64) {
        let entry = self.entry(position);
        let [word0, word1] = entry.read().words();

        // What has been executed is to be seen by whoever sees the message.
        smp_mb(Full);
        entry.write(Cmd::new([word0 >> 32 << 32, word1]));
    }

    /// Writes the messages that are late. None is later than that of a later `CMD_SYNC`.
    fn overwrite_late(&self, state: &mut State) {
        if state.held_msis != 0 {
            return;
        }
        for late in &mut state.late {
            if let Some(position) = late.take() {
                self.overwrite(position);
            }
        }
    }

    fn message_address(&self, index: usize) -> u64 {
        // CAST: `usize` has 64 bits here.
        BASE + (index * size_of::<Entry>()) as u64
    }
}

impl Hw for SoftSmmu {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn write_prod(&self, prod: u32) {
        let mask = self.mask();
        let moved = prod.wrapping_sub(self.prod.load(Relaxed)) & mask;

        // CAST: A queue has up to 2^20 entries.
        if prod & !mask != 0 || moved > self.entries.len() as u32 {
            self.violate(Violation::Prod);
        }
        self.prod.store(prod, Release);
        let _ = self.run();
    }

    fn read_cons(&self) -> u32 {
        let _ = self.run();
        self.cons.load(Acquire)
    }

    fn error_is_active(&self) -> bool {
        (self.gerror.load(Acquire) ^ self.gerrorn.load(Acquire)) & CMDQ_ERR != 0
    }

    fn acknowledge(&self) {
        if !self.error_is_active() {
            self.violate(Violation::Acknowledge);
        }
        smp_mb(Full);
        self.gerrorn
            .store(self.gerrorn.load(Relaxed) ^ CMDQ_ERR, Release);
    }

    fn make_sync(&self, index: usize) -> Cmd {
        Cmd::sync(if self.manner.overwrites {
            SyncSignal::Msi(self.message_address(index))
        } else {
            SyncSignal::None
        })
    }

    fn sync_has_msi(&self) -> bool {
        self.manner.overwrites
    }

    fn pause(&self, _looks: u32, waited: Delta, _for_sync: bool) {
        if let Some(mut state) = self.state.try_lock() {
            let tick = Delta::from_millis(self.manner.tick);
            let is_held = state.held_msis != 0;

            if is_held && state.held_msis != FOR_EVER {
                state.held_msis -= 1;
            }
            if state.stall != 0 {
                if state.stall != FOR_EVER {
                    state.stall -= 1;
                }
                self.pass(tick);
            } else if is_held || self.error_is_active() {
                if state.hurry != 0 {
                    self.pass(Delta::from_millis(state.hurry));
                } else if waited < NOTICED {
                    self.pass(PAUSE);
                }
            }
        }
        let _ = self.run();
    }

    fn interrupts_are_disabled(&self) -> bool {
        self.no_interrupts.load(Relaxed)
    }

    fn caller_is_killed(&self) -> bool {
        self.pass(Delta::from_millis(self.ask_ms.load(Relaxed)));
        self.kill_at.fetch_sub(1, Relaxed) <= 1
    }

    fn now(&self) -> Instant<Monotonic> {
        let elapsed = self.start.elapsed().as_nanos() / SLOWER;

        self.start + Delta::from_nanos(elapsed + self.stood_still.load(Relaxed))
    }

    fn trace_error(&self, report: &Report) {
        if report.cerror == Some(Cerror::Abt) && report.cmd.is_some() {
            self.violate(Violation::Poisoned);
        }
        let mut log = self.log.lock();
        let len = log.len;

        if let Some(serviced) = log.serviced.get_mut(len) {
            *serviced = Some(Serviced {
                cons: report.cons,
                cerror: report.cerror,
                action: report.action,
            });
        }
        log.len += 1;
    }

    fn trace_replay(&self, _cmd: Cmd, _failed: Option<Cerror>) {
        self.replays.add(1, Relaxed);
    }

    fn trace_timeout(&self, _position: u64, _cons: u32, _is_guest: bool) {
        self.timeouts.add(1, Relaxed);
    }
}
