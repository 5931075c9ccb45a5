// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue and the model side by side. The model takes as many commands as the queue has consumed, one by
//! one, after each of its actions: then both must show the guest the same.

use std::collections::HashSet;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vsmmu_relay::{Action, Batch, Cmdq, Command, Config, Outcome, OwnCommand, State};

use crate::host::{Host, Trouble};
use crate::smmu::{CMDQS, Fate, Fates, Kind, Model, Step, encode};

/// Two neighbours, with a border inside of rings that begin at 0x4000 or 0x4800, and then a hole that
/// begins in the middle of an entry, and ends inside of a ring that begins at 0x6400.
const REGIONS: [(u64, usize); 3] = [(0x1000, 0x3a00), (0x4a00, 0x1908), (0x6480, 0x1b80)];
const BASES: [u64; 7] = [0x1000, 0x2000, 0x4000, 0x4800, 0x6000, 0x6400, 0x9000];

/// Something that a guest does, or its VMM.
#[derive(Clone, Debug)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
pub enum Act {
    /// Queues commands, each with its fates, as far as there is room, and moves PROD.
    Push(Vec<(Kind, Vec<Fate>)>),
    /// Moves PROD to any place.
    Prod(u32),
    /// Moves PROD back to CONS.
    GiveUp,
    /// Acknowledges.
    Ack,
    /// Acknowledges what may not be there, or not.
    Gerrorn(u32),
    /// Puts a CMD_SYNC in place of the command at CONS, and acknowledges: Linux at a CERROR_ILL.
    Skip,
    Enable(bool),
    /// Ends the queue and makes another one.
    Setup {
        /// Which of [`BASES`].
        base: u8,
        log2size: u8,
        start: u32,
    },
    /// Writes registers that may be read-only now.
    Meddle {
        base: u64,
        cons: u32,
    },
    Reset,
    /// Goes on somewhere else, with batches of another size.
    Migrate {
        max_batch: u32,
    },
    /// Goes on in the same place, from what has been saved just now.
    Restore,
    /// Goes on from a state that is made up, if the queue takes it.
    Forge(Forged),
    /// An answer comes that nobody waits for any more.
    LateAnswer,
}

/// What a saved state might be. `flags` are its booleans, and `version` and `cmdqs` the bits that are wrong.
#[derive(Clone, Debug)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
pub struct Forged {
    pub version: u32,
    pub cmdqs: u8,
    pub base: u64,
    pub prod: u32,
    pub cons: u32,
    pub flags: u8,
}

/// How far the VMM gets after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
pub enum Pace {
    /// It does nothing.
    Nothing,
    /// One step.
    Step,
    /// Up to the next ioctl, which does not return yet.
    Ioctl,
    /// Until there is nothing left to do.
    Finish,
}

/// A host, and what a guest does.
#[derive(Clone, Debug)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
pub struct Case {
    pub exact: bool,
    pub max_batch: u32,
    pub troubles: Vec<Option<Trouble>>,
    pub acts: Vec<(Act, Pace)>,
}

impl Case {
    /// Panics if the guest sees anything that an SMMU would not have shown it.
    pub fn run(self) {
        let mut bench = Bench::new(self.exact, self.max_batch, self.troubles);
        for (act, pace) in self.acts {
            bench.act(act, pace);
        }
        bench.act(Act::Ack, Pace::Finish);
    }
}

/// What the VMM has in hand.
enum Pending {
    Batch(Batch),
    Own(OwnCommand),
}

/// Both, side by side.
struct Bench {
    mem: GuestMemoryMmap<()>,
    queue: Cmdq,
    config: Config,
    host: Host,
    model: Model,
    pending: Option<Pending>,
    late: Vec<Batch>,
    /// How many entries have been fetched that are not consumed.
    fetched: u32,
    /// The guest has moved PROD meanwhile to where it must not, so that some of them may be left.
    scrambled: bool,
    tag: u64,
}

impl Bench {
    fn new(exact: bool, max_batch: u32, troubles: Vec<Option<Trouble>>) -> Self {
        let regions = REGIONS.map(|(at, len)| (GuestAddress(at), len));
        let mut config = Config::new(0);
        config.exact = exact;
        config.cmdqs = CMDQS;
        config.max_batch = max_batch;
        let mut bench = Bench {
            mem: GuestMemoryMmap::from_ranges(&regions).unwrap(),
            queue: Cmdq::new(config),
            config,
            host: Host {
                exact,
                fates: Fates::new(),
                troubles: troubles.into(),
                problems: HashSet::new(),
                executed: HashSet::new(),
            },
            model: Model::default(),
            pending: None,
            late: Vec::new(),
            fetched: 0,
            scrambled: false,
            tag: 1,
        };
        bench.setup(0x1000, 8, 0);
        bench
    }

    fn setup(&mut self, base: u64, log2size: u64, start: u32) {
        self.write(0x20, 0);
        self.write(0x90, base | log2size);
        self.prod(start);
        self.write(0x9c, start.into());
        self.write(0x20, 8);
    }

    /// Writes a register of both.
    fn write(&mut self, offset: u64, value: u64) {
        let len = if offset == 0x90 { 8 } else { 4 };
        self.model.write(offset, value, self.queue.is_busy());
        assert!(self.queue.write(offset, len, value));
    }

    /// Moves PROD to any place.
    fn prod(&mut self, prod: u32) {
        self.write(0x98, prod.into());
        self.scrambled |= self.queue.is_busy();
    }

    /// Does that, and lets the VMM go on.
    fn act(&mut self, act: Act, pace: Pace) {
        self.guest(act);
        self.compare();
        match pace {
            Pace::Nothing => {}
            Pace::Step => {
                self.answer();
                self.next();
            }
            Pace::Ioctl => {
                self.answer();
                while self.next() && self.pending.is_none() {}
            }
            Pace::Finish => self.finish(),
        }
    }

    fn guest(&mut self, act: Act) {
        match act {
            Act::Push(commands) => self.push(commands),
            Act::Prod(prod) => self.prod(prod),
            Act::GiveUp => self.prod(self.model.cons_register()),
            Act::Ack => self.write(0x64, self.model.gerror.into()),
            Act::Gerrorn(value) => self.write(0x64, value.into()),
            Act::Skip => {
                if self.model.halted() && !self.queue.is_busy() {
                    let at = self.model.place(self.model.cons_register());
                    let _ = self.mem.write_obj([0x46_u64, 0], at);
                    self.write(0x64, self.model.gerror.into());
                }
            }
            Act::Enable(on) => self.write(0x20, u64::from(on) << 3),
            Act::Setup {
                base,
                log2size,
                start,
            } => {
                let base = BASES[usize::from(base) % BASES.len()];
                self.setup(base, (log2size % 10).into(), start);
            }
            Act::Meddle { base, cons } => {
                if self.model.on {
                    self.write(0x90, base);
                    self.write(0x9c, cons.into());
                }
                self.queue.write(0x24, 4, u64::MAX);
                self.queue.write(0x60, 4, u64::MAX);
            }
            Act::Reset => {
                self.queue.reset();
                self.forget();
                self.model = Model {
                    fates: std::mem::take(&mut self.model.fates),
                    ..Model::default()
                };
                self.setup(0x1000, 5, 0);
            }
            Act::Migrate { max_batch } => {
                self.config.max_batch = max_batch;
                let mut queue = Cmdq::new(self.config);
                queue.restore(&self.queue.state()).unwrap();
                self.queue = queue;
                self.forget();
                // Those were of the other queue.
                self.late.clear();
            }
            Act::Restore => {
                self.queue.restore(&self.queue.state()).unwrap();
                self.forget();
            }
            Act::Forge(forged) => self.forge(&forged),
            Act::LateAnswer => {
                if let Some(batch) = self.late.pop() {
                    let before = (self.queue.state(), self.queue.is_busy());
                    let (errno, done, code) = (0, batch.count(), 0);
                    self.queue.complete(batch, Outcome { errno, done, code });
                    assert_eq!((self.queue.state(), self.queue.is_busy()), before);
                }
            }
        }
    }

    /// It is refused if no queue can have saved it, and then nothing has changed.
    fn forge(&mut self, forged: &Forged) {
        let flag = |bit: u32| forged.flags >> bit & 1 == 1;
        let mut state = State::default();
        state.version = State::VERSION ^ forged.version;
        state.cmdqs = CMDQS ^ forged.cmdqs;
        state.base = forged.base;
        state.prod = forged.prod;
        state.cons = forged.cons;
        state.enabled = flag(0);
        state.gerror = flag(1);
        state.gerrorn = flag(2);
        state.atc_inv_failed = flag(3);
        let possible = forged.version == 0
            && forged.cmdqs == 0
            && forged.base & 0xbf00_0000_0000_0000 == 0
            && forged.prod >> 20 == 0
            && forged.cons & 0x80f0_0000 == 0;
        let before = (self.queue.state(), self.queue.is_busy());
        assert_eq!(self.queue.restore(&state).is_ok(), possible);
        if !possible {
            assert_eq!((self.queue.state(), self.queue.is_busy()), before);
            return;
        }
        assert_eq!(self.queue.state(), state);
        self.forget();
        self.model = Model {
            fates: std::mem::take(&mut self.model.fates),
            ..Model::restored(&state)
        };
    }

    fn push(&mut self, commands: Vec<(Kind, Vec<Fate>)>) {
        if self.scrambled {
            // It would overwrite commands that have been fetched.
            return;
        }
        let mut prod = self.model.prod;
        let room = self.model.entries().saturating_sub(self.model.left());
        for (kind, mut fates) in commands.into_iter().take(room as usize) {
            if !matches!(kind, Kind::Own) {
                fates.retain(|fate| *fate != Fate::Later);
            }
            if !self.config.exact {
                // Which that kernel takes for a success.
                fates.retain(|fate| !matches!(fate, Fate::Abt | Fate::Timeout));
            }
            let words = encode(&kind, self.tag);
            // There may be no memory. Guests can do that.
            let _ = self.mem.write_obj(words, self.model.place(prod));
            self.model.fates.insert(self.tag, fates.clone().into());
            self.host.fates.insert(self.tag, fates.into());
            self.tag += 1;
            prod = prod.wrapping_add(1);
        }
        self.write(0x98, prod.into());
    }

    /// What has been fetched will be fetched again.
    fn forget(&mut self) {
        if let Some(Pending::Batch(batch)) = self.pending.take() {
            self.late.push(batch);
        }
        assert!(!self.queue.is_busy());
        self.fetched = 0;
        self.scrambled = false;
        self.model.fates = self.host.fates.clone();
    }

    /// Lets an ioctl return, if there is one.
    fn answer(&mut self) {
        let state = self.queue.state();
        match self.pending.take() {
            Some(Pending::Batch(batch)) => {
                let outcome = self.host.invalidate(&batch);
                self.queue.complete(batch, outcome);
            }
            Some(Pending::Own(own)) => {
                let handled = self.host.execute(own.command());
                self.queue.complete_own(own, handled);
            }
            None => {}
        }
        // The guest sees nothing of it before the next action.
        assert_eq!(self.queue.state(), state);
    }

    fn finish(&mut self) {
        for _ in 0..100_000 {
            self.answer();
            if !self.next() {
                assert!(self.pending.is_none() && !self.queue.is_busy());
                assert_eq!(self.model.step(&self.mem, false), Step::Idle);
                return;
            }
        }
        panic!("it does not come to an end");
    }

    /// Has the queue do one step, and the model what follows from it. Says whether there was one.
    fn next(&mut self) -> bool {
        let before = self.queue.state().cons;
        let action = self.queue.next(&self.mem, |command| {
            assert_ne!(command.opcode(), 0x46);
            command.is_forwardable()
        });
        let cons = self.queue.state().cons;
        let mut sync = None;
        for _ in 0..cons.wrapping_sub(before) % (2 * self.model.entries()) {
            assert_eq!(sync, None, "a CMD_SYNC was passed over");
            match self.model_step() {
                Step::Executed(tag) | Step::Own(tag) => {
                    assert!(self.host.executed.contains(&tag), "{tag} is not complete");
                }
                Step::TimedOut => {}
                Step::Sync(signal) => sync = Some(signal),
                step => panic!("CONS has passed what should be {step:?}"),
            }
        }
        let done = match action {
            Some(Action::Sync(signal)) => {
                assert_eq!(sync.take(), Some(signal));
                !self.queue.is_busy()
            }
            Some(Action::Gerror) => {
                assert_eq!(self.model_step(), Step::Error);
                true
            }
            Some(Action::Problem(e)) => {
                assert!(self.host.problems.contains(&e.errno), "{e}");
                true
            }
            Some(Action::Gather) => {
                assert!(!self.queue.is_busy() && self.queue.is_gathering());
                true
            }
            None => {
                assert_eq!(self.queue.is_busy(), self.pending.is_some());
                !self.queue.is_busy()
            }
            Some(Action::Invalidate(_) | Action::Execute(_)) => true,
        };
        assert_eq!(sync, None, "a CMD_SYNC was passed over");
        if done {
            if self.scrambled {
                // What was left counts as not fetched.
                self.model.fates = self.host.fates.clone();
            }
            self.fetched = 0;
            self.scrambled = false;
        }
        let is_some = action.is_some();
        match action {
            Some(Action::Invalidate(batch)) => {
                self.look_at(&batch);
                self.fetched = batch.count() + batch.sync_count();
                self.pending = Some(Pending::Batch(batch));
            }
            Some(Action::Execute(own)) => {
                self.fetched = 1;
                self.pending = Some(Pending::Own(own));
            }
            _ => {}
        }
        self.compare();
        is_some
    }

    fn model_step(&mut self) -> Step {
        let fetched = self.fetched > 0;
        self.fetched = self.fetched.saturating_sub(1);
        self.model.step(&self.mem, fetched)
    }

    /// A batch has what is in the ring, from CONS on, before PROD, and as much of it as there may be.
    fn look_at(&self, batch: &Batch) {
        let most = if self.config.exact {
            self.config.max_batch.max(1)
        } else {
            self.config.max_batch.clamp(1, 63)
        };
        assert!((1..=most).contains(&batch.count()));
        let mut commands = batch.commands();
        let mut syncs = 0;
        let mut at = self.model.cons_register();
        let mut left = self.model.left();
        let command = |at| {
            let words = self.mem.read_obj::<[u64; 2]>(self.model.place(at)).ok()?;
            Some(Command { words })
        };
        while commands.len() > 0 || syncs < batch.sync_count() {
            assert!(left > 0, "more than the guest has queued");
            let queued = command(at).unwrap();
            if queued.opcode() == 0x46 {
                syncs += 1;
            } else {
                assert!(matches!(queued.opcode(), 0x12 | 0x40));
                assert_eq!(commands.next(), Some(queued));
            }
            at = at.wrapping_add(1);
            left -= 1;
        }
        if self.model.unanswered {
            assert_eq!(syncs, 0, "behind the CMD_SYNC that has an error");
        }
        // Batches are short only after a problem.
        if left == 0 || !self.config.exact || !self.host.problems.is_empty() {
            return;
        }
        let Some(next) = command(at) else { return };
        let [word0, _] = next.words;
        let takes = match word0 & 0xff {
            _ if word0 >> 10 & 1 == 1 => false,
            0x46 => !self.model.unanswered && syncs < most && word0 >> 12 & 3 != 3,
            0x12 | 0x40 => batch.count() < most,
            _ => false,
        };
        assert!(!takes, "{next:?} could go with it");
    }

    /// What the guest can read.
    fn compare(&self) {
        let model = &self.model;
        let read = |offset| self.queue.read(offset, 4).unwrap() as u32;
        let acknowledged = model.on || self.queue.is_busy();
        assert_eq!(read(0x20), u32::from(model.on) << 3);
        assert_eq!(read(0x24), u32::from(acknowledged) << 3);
        assert_eq!(read(0x60), model.gerror, "GERROR");
        assert_eq!(read(0x64), model.gerrorn, "GERRORN");
        assert_eq!(self.queue.read(0x90, 8), Some(model.base));
        assert_eq!(read(0x98), model.prod, "PROD");
        let mask = 2 * model.entries() - 1;
        assert_eq!(read(0x9c) & mask, model.cons_register(), "CONS.RD");
        if model.halted() {
            assert_eq!(read(0x9c) >> 24, model.err, "CONS.ERR");
        }
    }
}
