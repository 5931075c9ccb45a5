// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue: what is to be done next, and what the answers mean for the guest.
//!
//! A CMD_SYNC is never sent. The ioctl returns when the commands are complete, so a CMD_SYNC is complete
//! when all commands before it have been answered. A batch goes on behind CMD_SYNCs: what the guest queues
//! while the host works goes out with the next ioctl, however many CMD_SYNCs are in between. To execute a
//! command before the guest has seen the CMD_SYNC ahead of it complete does no harm: the guest has queued
//! it, and an invalidation depends on nothing else.
//!
//! An ATC_INV that times out stops nothing, as on an SMMU. It is remembered, the commands behind it are
//! sent up to the next CMD_SYNC, and that one has the error, once for all of them. When the guest has
//! acknowledged it, the CMD_SYNC is fetched again and is complete: those ATC_INVs are given up. An illegal
//! command in between does not change this. Its error comes first, at the command itself, and the next
//! CMD_SYNC has the other, even if it is the one that the guest puts in place of the command.

use core::mem;

use crate::batch::Batch;
use crate::command::{Bytes, COMMAND_LEN, Command, Signal, op};
use crate::crowd::Crowd;
use crate::host::{
    Answer, Cerror, HostError, IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE, Outcome,
};
use crate::memory::Memory;
use crate::regs::{CMDQS_MAX, RestoreError, State, reg};

/// How many entries are read from guest memory together.
const WINDOW: usize = 64;
/// The most commands in a batch for a kernel that does not answer exactly. Linux 7.3 puts so many into the
/// queue together.
const INEXACT_MAX: u32 = 63;
/// How often something is tried again at once that fails for a reason that may be gone by then.
const ATTEMPTS: u32 = 3;

/// The properties of a [`Cmdq`], which do not change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The kernel answers exactly: it sets [`IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE`]. If it does
    /// not, batches are short, and each command of a batch that fails is sent again by itself: the answer to
    /// a single command can be relied on.
    pub exact: bool,
    /// Log2 of the most entries that the queue can have: IDR1.CMDQS as the guest sees it, 19 at most.
    /// Higher values count as 19.
    pub cmdqs: u8,
    /// The most commands that go out with one ioctl, which bounds how long it takes, and as many CMD_SYNCs
    /// at most. It counts as 63 if it is above that and the kernel does not answer exactly, and 0 counts
    /// as 1.
    pub max_batch: u32,
}

impl Config {
    /// For an SMMU with these `flags` in its hw_info (`struct iommu_hw_info_arm_smmuv3`), with a queue of
    /// up to 256 entries.
    pub fn new(flags: u32) -> Self {
        Config {
            exact: flags & IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE != 0,
            cmdqs: 8,
            max_batch: 4096,
        }
    }

    #[inline]
    fn most(&self) -> u32 {
        let limit = if self.exact { u32::MAX } else { INEXACT_MAX };
        self.max_batch.clamp(1, limit)
    }
}

/// What a [`Cmdq`] has done since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Batches that were handed out, with those that were sent again.
    pub batches: u64,
    /// Commands in these batches.
    pub commands: u64,
    /// Commands that were handed out for the VMM to execute.
    pub own_commands: u64,
    /// CMD_SYNCs of the guest's that have become complete.
    pub syncs: u64,
    /// CERROR_ILL, as shown to the guest.
    pub ill: u64,
    /// CERROR_ABT, as shown to the guest.
    pub abt: u64,
    /// CERROR_ATC_INV_SYNC, as shown to the guest.
    pub atc_inv_sync: u64,
    /// Problems of the host's that were reported with [`Action::Problem`].
    pub problems: u64,
    /// How often it said [`Action::Gather`].
    pub gathers: u64,
}

/// What the VMM is to do, see [`Cmdq::next`]. It has to know all of them: a new one would be a breaking change.
#[derive(Debug)]
#[must_use]
pub enum Action {
    /// Has the kernel execute the commands, with [`iommufd::invalidate()`](crate::iommufd::invalidate) for
    /// example, and gives the answer to [`Cmdq::complete`]. The queue need not be locked meanwhile.
    ///
    /// There is one vIOMMU for all devices of the queue. Before the first of them is plugged in there may
    /// be none: then nothing is cached, and the answer is that all commands are complete.
    Invalidate(Batch),
    /// Executes a command that is not forwarded, such as CFGI_STE, and gives the result to
    /// [`Cmdq::complete_own`]. All commands before it are complete. The queue need not be locked meanwhile.
    Execute(OwnCommand),
    /// Signals that a CMD_SYNC is complete, before the queue is unlocked.
    ///
    /// If an MSI cannot be written, that is the VMM's GERROR.MSI_CMDQ_ABT_ERR, and the CMD_SYNC is
    /// complete nevertheless.
    Sync(Signal),
    /// Raises the interrupt for GERROR if IRQ_CTRL.GERROR_IRQEN is set, before the queue is unlocked:
    /// GERROR.CMDQ_ERR has become active. The queue stands still until the guest acknowledges the error.
    Gerror,
    /// Waits for more before the next ioctl, or not, and calls [`Cmdq::next`], which has all that is there
    /// sent then.
    ///
    /// Commands are there that could be sent. But the guest's other CPUs have come back quickly so far, so
    /// that with a short wait one ioctl can do for all of them. A VMM waits for up to half of the time that
    /// the last ioctl took, and while [`Cmdq::is_gathering`] says that they are not all there. The queue must
    /// not be locked meanwhile. For a VMM that cannot wait there is nothing to be done.
    Gather,
    /// Tells whoever runs the host that it has a problem which does not go away at once, and calls
    /// [`Cmdq::next`] later. Nothing is lost and nothing is skipped: it goes on where it stands.
    Problem(HostError),
}

/// A command that the VMM executes by itself.
#[derive(Debug)]
#[must_use = "the queue stands still until it gets this back with Cmdq::complete_own()"]
pub struct OwnCommand {
    ticket: u64,
    command: Command,
}

impl OwnCommand {
    /// What the guest has queued.
    pub fn command(&self) -> Command {
        self.command
    }
}

/// The result of a command that the VMM executes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Handled {
    /// It is complete.
    Done,
    /// It is illegal: a CERROR_ILL for the guest. Unknown opcodes are.
    Illegal,
    /// It could not be done for a reason of the host's: an [`Action::Problem`], and then it is handed out
    /// again.
    Later(HostError),
}

/// The command queue of a virtual SMMUv3. See [the crate](crate) for how it is used.
#[derive(Debug)]
pub struct Cmdq {
    config: Config,
    state: State,
    work: Work,
    /// The number of what was handed out last.
    ticket: u64,
    /// A batch whose memory can be used again.
    spare: Batch,
    /// How many commands may go together.
    limit: u32,
    /// How many of the next commands go by themselves.
    single: u32,
    /// How often the command at CONS has been tried again.
    attempts: u32,
    crowd: Crowd,
    counters: Counters,
}

/// What has been fetched and is not consumed.
#[derive(Debug)]
enum Work {
    None,
    /// The VMM has it, with the current ticket.
    Out,
    /// It has been answered, and the guest has yet to see that.
    Answered(Answered),
}

/// What an answer means for the guest, in the order in which it is to see that.
#[derive(Debug)]
struct Answered {
    batch: Batch,
    /// How many CMD_SYNCs of the batch are complete, and how many of them have been signalled.
    syncs: u32,
    signalled: u32,
    /// How many entries of the ring are consumed, with those CMD_SYNCs, and how many of them CONS has left
    /// behind.
    entries: u32,
    passed: u32,
    then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    GoOn,
    /// The command at CONS has this error.
    Raise(Cerror),
    /// The last of the entries is an ATC_INV that has timed out.
    TimedOut,
    Problem(HostError),
}

impl Cmdq {
    /// A queue as it is after reset.
    pub fn new(config: Config) -> Self {
        let config = Config {
            cmdqs: config.cmdqs.min(CMDQS_MAX),
            ..config
        };
        Cmdq {
            config,
            state: State {
                cmdqs: config.cmdqs,
                ..State::default()
            },
            work: Work::None,
            ticket: 0,
            spare: Batch::default(),
            limit: config.most(),
            single: 0,
            attempts: 0,
            crowd: Crowd::new(),
            counters: Counters::default(),
        }
    }

    /// The properties of the queue.
    pub fn config(&self) -> Config {
        self.config
    }

    /// What the queue has done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether commands have been fetched that are not consumed: an answer is awaited, or
    /// [`Cmdq::next`] has to be called.
    pub fn is_busy(&self) -> bool {
        !matches!(self.work, Work::None)
    }

    /// Reset of the SMMU. The answer to what is in flight will be ignored.
    pub fn reset(&mut self) {
        let cmdqs = self.config.cmdqs;
        self.start_with(State {
            cmdqs,
            ..State::default()
        });
    }

    /// What has to be saved. This can be called at any time: what is in flight is not consumed yet, and
    /// will be sent again by the queue that this is restored to, which does no harm.
    ///
    /// If this queue is not to go on, [reset](Cmdq::reset) it: then a late answer cannot have any effect on
    /// guest memory that has been saved already.
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes over what has been saved, on another host perhaps: all of [`Config`] may be different, but for
    /// [`Config::cmdqs`], which the guest knows. The answer to what is in flight will be ignored. There may
    /// be commands to consume, so that [`Cmdq::next`] is to be called.
    ///
    /// # Errors
    ///
    /// If the state is not one that a queue can have. Then nothing has changed.
    pub fn restore(&mut self, state: &State) -> Result<(), RestoreError> {
        state.check(self.config.cmdqs)?;
        self.start_with(*state);
        Ok(())
    }

    fn start_with(&mut self, state: State) {
        self.state = state;
        self.work = Work::None;
        self.limit = self.config.most();
        self.single = 0;
        self.attempts = 0;
        self.crowd = Crowd::new();
    }

    /// What the guest reads in `len` bytes at `offset` from the base of the SMMU's registers, see
    /// [`reg`](crate::reg). Of registers that have bits of others, these are 0. `None` if there is no
    /// register of the queue.
    pub fn read(&self, offset: u64, len: usize) -> Option<u64> {
        self.state.read(offset, len, self.is_busy())
    }

    /// The guest writes `len` bytes at `offset` from the base of the SMMU's registers. Bits of others are
    /// ignored. Says whether there is a register of the queue; [`Cmdq::next`] is to be called then.
    pub fn write(&mut self, offset: u64, len: usize, value: u64) -> bool {
        if offset == reg::CMDQ_PROD {
            self.crowd.come();
        }
        self.state.write(offset, len, value, self.is_busy())
    }

    /// Whether those that [`Action::Gather`] is for are not all there.
    pub fn is_gathering(&self) -> bool {
        self.crowd.is_gathering() && self.may_fetch()
    }

    /// Whether there is something to fetch.
    fn may_fetch(&self) -> bool {
        self.state.enabled && !self.state.halted() && self.state.left() > 0
    }

    /// What is to be done next: to be called, until there is nothing, after each write of the guest to one
    /// of the registers, after each answer, after [`Cmdq::restore`], and some time after an
    /// [`Action::Problem`]. `None`: there is nothing to do before one of these.
    ///
    /// `forwards` says whether a command is one for the kernel: [`Command::is_forwardable`], or fewer. It is
    /// never asked about a CMD_SYNC. The kernel finds commands for a stream without a vDEVICE illegal, so
    /// that a VMM which makes vDEVICEs late keeps those for itself. What is sent is what `forwards` has
    /// seen, whatever the guest does to its memory meanwhile. It may be asked about a command again.
    ///
    /// Each call does a bounded amount of work, in the order of [`Config::max_batch`].
    #[must_use]
    pub fn next<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        forwards: impl FnMut(Command) -> bool,
    ) -> Option<Action> {
        match self.work {
            Work::Out => return None,
            Work::Answered(_) => {
                let action = self.settle();
                if action.is_some() {
                    return action;
                }
            }
            Work::None => {}
        }
        if !self.may_fetch() {
            return None;
        }
        if self.crowd.ask() {
            self.counters.gathers += 1;
            return Some(Action::Gather);
        }
        self.fetch(memory, forwards)
    }

    /// Takes the kernel's answer to a batch. The guest sees what follows from it by way of
    /// [`Cmdq::next`], which is to be called then. An answer that comes after [`Cmdq::reset`] or
    /// [`Cmdq::restore`] is ignored.
    pub fn complete(&mut self, batch: Batch, outcome: Outcome) {
        if !self.is_out(batch.ticket) {
            return;
        }
        let count = batch.count();
        let answer = outcome.judge(count, self.config.exact);
        log!(debug, "{count} commands: {outcome:?}, {answer:?}");
        let attempts = mem::take(&mut self.attempts);
        match answer {
            Answer::Done => self.crowd.release(),
            _ => self.crowd.forget(),
        }
        let (done, then) = match answer {
            Answer::Done => {
                self.limit = self.config.most();
                (count, Then::GoOn)
            }
            Answer::Failed(done, Cerror::AtcInvSync) => (done, Then::TimedOut),
            Answer::Failed(done, cerror) => (done, Then::Raise(cerror)),
            Answer::Problem(done, e) => (done, self.cope(attempts, count, done, e)),
            Answer::Unknown => {
                self.single = count;
                self.work = Work::None;
                self.spare = batch;
                return;
            }
        };
        // The ATC_INV that has timed out is consumed as well.
        let consumed = done + u32::from(then == Then::TimedOut);
        self.single = self.single.saturating_sub(consumed);
        let syncs = batch.syncs_within(done);
        self.work = Work::Answered(Answered {
            batch,
            syncs,
            signalled: 0,
            entries: consumed + syncs,
            passed: 0,
            then,
        });
    }

    /// Takes the result of a command that the VMM executes by itself, as [`Cmdq::complete`] does.
    pub fn complete_own(&mut self, own: OwnCommand, handled: Handled) {
        if !self.is_out(own.ticket) {
            return;
        }
        log!(debug, "the VMM's {:?}: {handled:?}", own.command);
        self.crowd.forget();
        let then = match handled {
            Handled::Done => Then::GoOn,
            Handled::Illegal => Then::Raise(Cerror::Ill),
            Handled::Later(e) => Then::Problem(e),
        };
        self.work = Work::Answered(Answered {
            batch: mem::take(&mut self.spare),
            syncs: 0,
            signalled: 0,
            entries: u32::from(handled == Handled::Done),
            passed: 0,
            then,
        });
    }

    /// Whether it is the answer with this ticket that is waited for.
    fn is_out(&self, ticket: u64) -> bool {
        matches!(self.work, Work::Out) && ticket == self.ticket
    }

    /// Decides whether what is left of `asked` commands is tried again at once, after so many `attempts`.
    fn cope(&mut self, attempts: u32, asked: u32, done: u32, e: HostError) -> Then {
        let attempts = if done > 0 { 0 } else { attempts };
        match e.errno {
            libc::ENOMEM if asked - done > 1 => self.limit = (asked - done) / 2,
            libc::EINTR | libc::EAGAIN | libc::ENOMEM if attempts < ATTEMPTS => {
                self.attempts = attempts + 1;
            }
            _ => return Then::Problem(e),
        }
        Then::GoOn
    }

    /// Shows the guest the next thing that follows from the answer. `None`: it has seen all.
    fn settle(&mut self) -> Option<Action> {
        let Work::Answered(answered) = &mut self.work else {
            return None;
        };
        if answered.signalled < answered.syncs {
            let sync = answered.batch.sync(answered.signalled);
            answered.signalled += 1;
            let entries = sync.behind + answered.signalled;
            let more = entries - mem::replace(&mut answered.passed, entries);
            if self.state.advance(more) {
                return Some(self.sync(sync.signal));
            }
            // The guest has taken it back. So it has what follows.
            self.recycle();
            return None;
        }
        let more = answered.entries - answered.passed;
        let then = answered.then;
        self.recycle();
        let still_queued = self.state.advance(more);
        match then {
            Then::TimedOut if still_queued => self.state.atc_inv_failed = true,
            Then::Raise(cerror) if still_queued && self.state.left() > 0 => {
                return Some(self.raise(cerror));
            }
            Then::Problem(e) => {
                self.counters.problems += 1;
                log!(warn, "{e}");
                return Some(Action::Problem(e));
            }
            _ => {}
        }
        None
    }

    fn recycle(&mut self) {
        if let Work::Answered(answered) = mem::replace(&mut self.work, Work::None) {
            self.spare = answered.batch;
        }
    }

    /// Fetches what is at CONS: as many commands as can be sent together, or one thing of another kind.
    fn fetch<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        mut forwards: impl FnMut(Command) -> bool,
    ) -> Option<Action> {
        let most = self.config.most();
        let limit = if self.single > 0 { 1 } else { self.limit };
        let mut batch = mem::take(&mut self.spare);
        batch.clear();
        let mut window = Window::new();
        for i in 0..self.state.left() {
            let Some(bytes) = window.fetch(memory, &self.state, i) else {
                if i == 0 {
                    self.spare = batch;
                    return Some(self.raise(Cerror::Abt));
                }
                break;
            };
            let command = Command::from_bytes(&bytes);
            match Kind::of(command) {
                Kind::Other if batch.count() < limit && forwards(command) => batch.push(bytes),
                // Behind an ATC_INV that has timed out, the batch ends where the error is raised.
                Kind::Sync(signal)
                    if i > 0 && !self.state.atc_inv_failed && batch.sync_count() < most =>
                {
                    batch.push_sync(signal);
                }
                _ if i > 0 => break,
                kind => {
                    self.spare = batch;
                    return Some(self.alone(kind, command));
                }
            }
        }
        self.ticket += 1;
        batch.ticket = self.ticket;
        self.work = Work::Out;
        self.crowd.send();
        self.counters.batches += 1;
        self.counters.commands += u64::from(batch.count());
        log!(
            trace,
            "an ioctl for {} commands and {} CMD_SYNCs",
            batch.count(),
            batch.sync_count()
        );
        Some(Action::Invalidate(batch))
    }

    /// What to do with a command at CONS that cannot be sent. All before it are complete.
    fn alone(&mut self, kind: Kind, command: Command) -> Action {
        match kind {
            Kind::Illegal => self.raise(Cerror::Ill),
            Kind::Sync(_) if mem::take(&mut self.state.atc_inv_failed) => {
                self.raise(Cerror::AtcInvSync)
            }
            Kind::Sync(signal) => {
                self.state.advance(1);
                self.sync(signal)
            }
            Kind::Other => {
                self.ticket += 1;
                self.work = Work::Out;
                self.counters.own_commands += 1;
                let ticket = self.ticket;
                Action::Execute(OwnCommand { ticket, command })
            }
        }
    }

    fn sync(&mut self, signal: Signal) -> Action {
        self.counters.syncs += 1;
        Action::Sync(signal)
    }

    fn raise(&mut self, cerror: Cerror) -> Action {
        self.single = 0;
        let counter = match cerror {
            Cerror::Ill => &mut self.counters.ill,
            Cerror::Abt => &mut self.counters.abt,
            Cerror::AtcInvSync => &mut self.counters.atc_inv_sync,
        };
        *counter += 1;
        self.state.raise(cerror);
        log!(
            debug,
            "the guest is shown {cerror:?}, CONS {:#x}",
            self.state.cons
        );
        Action::Gerror
    }
}

/// How the queue treats a command.
enum Kind {
    /// It is illegal, whatever the VMM says.
    Illegal,
    Sync(Signal),
    Other,
}

impl Kind {
    #[inline]
    fn of(command: Command) -> Self {
        if command.is_secure() {
            return Kind::Illegal;
        }
        if command.opcode() != op::SYNC {
            return Kind::Other;
        }
        command.signal().map_or(Kind::Illegal, Kind::Sync)
    }
}

/// Entries of the ring as they were when they were read, some at a time.
struct Window {
    bytes: [Bytes; WINDOW],
    /// How many entries behind CONS the first is, and how many there are.
    start: u32,
    len: u32,
}

impl Window {
    fn new() -> Self {
        Window {
            bytes: [[0; COMMAND_LEN]; WINDOW],
            start: 0,
            len: 0,
        }
    }

    /// The entry that is so many behind CONS, and before PROD. `None` if it cannot be read.
    #[inline]
    fn fetch<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        state: &State,
        behind: u32,
    ) -> Option<Bytes> {
        if behind >= self.start + self.len {
            self.refill(memory, state, behind);
        }
        self.bytes[..self.len as usize]
            .get((behind - self.start) as usize)
            .copied()
    }

    /// Reads the entries from there on, the first one alone if not all can be read, or none.
    fn refill<M: Memory + ?Sized>(&mut self, memory: &M, state: &State, behind: u32) {
        let (address, contiguous) = state.entry(behind);
        let count = contiguous.min(state.left() - behind).min(WINDOW as u32);
        self.start = behind;
        self.len = 0;
        for len in [count, 1] {
            let bytes = self.bytes[..len as usize].as_flattened_mut();
            if memory.fetch(address, bytes).is_ok() {
                self.len = len;
                break;
            }
        }
    }
}
