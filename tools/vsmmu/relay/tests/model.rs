// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue against a model of the architecture: whatever a guest does, and whatever the host's kernel
//! answers, the guest sees what an SMMU would have shown it, and what it sees as complete is complete.
//!
//! The model takes one command at a time, and knows nothing of batches, kernels and counts. The kernels
//! are made up as well: one that keeps its contract, and one that answers as the C code of Linux 7.3.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use libc::{EAGAIN, EFAULT, EINTR, EINVAL, EIO, ENOMEM, ETIMEDOUT};
use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vsmmu_relay::{
    Batch, Cmdq, Command, Config, Handled, HostError, Outcome, Progress, Signal, Vmm,
};

type Mem = GuestMemoryMmap<()>;

/// Two neighbours, with a border inside of rings that begin at 0x4000 or 0x4800, and then a hole that
/// begins in the middle of an entry, and ends inside of a ring that begins at 0x6400.
const REGIONS: [(u64, usize); 3] = [(0x1000, 0x3a00), (0x4a00, 0x1908), (0x6480, 0x1b80)];
const BASES: [u64; 7] = [0x1000, 0x2000, 0x4000, 0x4800, 0x6000, 0x6400, 0x9000];
/// IDR1.CMDQS: there are guests that ask for more.
const CMDQS: u8 = 8;

/// What happens to a command when it is fetched for the nth time. At the end of the list all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Ok,
    Ill,
    Abt,
    /// Of an ATC_INV. With other commands all is well.
    Timeout,
    /// Of a command that the VMM executes: tried again, and the guest is none the wiser.
    Later,
}

type Fates = HashMap<u64, VecDeque<Fate>>;

fn next_fate(fates: &mut Fates, tag: u64) -> Fate {
    let fate = fates.get_mut(&tag).and_then(VecDeque::pop_front);
    fate.unwrap_or(Fate::Ok)
}

fn peek_fate(fates: &Fates, tag: u64) -> Fate {
    let fate = fates.get(&tag).and_then(VecDeque::front);
    fate.copied().unwrap_or(Fate::Ok)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Executed(u64),
    Own(u64),
    Sync(Signal),
    Gerror,
}

/// Commands carry a number, by which their fates are known.
#[derive(Clone, Debug)]
enum Kind {
    Tlbi,
    Atc,
    Own,
    Unknown,
    Secure,
    Sync(u64),
}

fn encode(kind: &Kind, tag: u64) -> [u64; 2] {
    match kind {
        Kind::Tlbi => [0x12, tag << 12],
        Kind::Atc => [0x40 | 7 << 32, tag << 12],
        Kind::Own => [0x03, tag << 12],
        Kind::Unknown => [0x7f, tag << 12],
        Kind::Secure => [0x12 | 1 << 10, tag << 12],
        Kind::Sync(cs) => [0x46 | cs << 12 | tag << 32, tag << 12],
    }
}

/// An SMMU. An index and its wrap bit are apart here.
#[derive(Default)]
struct Model {
    base: u64,
    prod: u32,
    cons: (u32, bool),
    err: u32,
    on: bool,
    gerror: u32,
    gerrorn: u32,
    unanswered: bool,
    fates: Fates,
    log: Vec<Event>,
}

impl Model {
    fn log2size(&self) -> u32 {
        (self.base & 31).min(CMDQS.into()) as u32
    }

    fn prod(&self) -> (u32, bool) {
        let size = 1 << self.log2size();
        (self.prod % size, self.prod / size % 2 == 1)
    }

    fn cons_register(&self) -> u32 {
        self.cons.0 + (u32::from(self.cons.1) << self.log2size())
    }

    fn set_cons(&mut self, value: u32) {
        let size = 1 << self.log2size();
        self.cons = (value % size, value / size % 2 == 1);
    }

    fn error(&mut self, code: u32) {
        self.err = code;
        self.gerror ^= 1;
        self.log.push(Event::Gerror);
    }

    fn run(&mut self, mem: &Mem) {
        while self.on && self.gerror == self.gerrorn && self.prod() != self.cons {
            let size = 16_u64 << self.log2size();
            let ring = self.base % (1 << 56) / size.max(32) * size.max(32);
            let at = GuestAddress(ring + 16 * u64::from(self.cons.0));
            let Ok([word0, word1]) = mem.read_obj::<[u64; 2]>(at) else {
                return self.error(2);
            };
            let tag = word1 >> 12;
            if word0 >> 10 & 1 == 1 {
                return self.error(1);
            }
            match word0 & 0xff {
                0x12 | 0x40 => {
                    let atc = word0 & 0xff == 0x40;
                    match next_fate(&mut self.fates, tag) {
                        Fate::Ill => return self.error(1),
                        Fate::Abt => return self.error(2),
                        Fate::Timeout if atc => self.unanswered = true,
                        _ => self.log.push(Event::Executed(tag)),
                    }
                }
                0x03 => {
                    // The guest knows nothing of delays.
                    let mut fate = Fate::Later;
                    while fate == Fate::Later {
                        fate = next_fate(&mut self.fates, tag);
                    }
                    if fate == Fate::Ill {
                        return self.error(1);
                    }
                    self.log.push(Event::Own(tag));
                }
                0x46 => {
                    let signal = match word0 >> 12 & 3 {
                        0 => Signal::None,
                        1 => Signal::Irq {
                            address: word1 & !3,
                            data: (word0 >> 32) as u32,
                        },
                        2 => Signal::Sev,
                        _ => return self.error(1),
                    };
                    if std::mem::take(&mut self.unanswered) {
                        return self.error(3);
                    }
                    self.log.push(Event::Sync(signal));
                }
                _ => return self.error(1),
            }
            self.cons.0 += 1;
            if self.cons.0 == 1 << self.log2size() {
                self.cons = (0, !self.cons.1);
            }
        }
    }
}

/// A problem of the host's in one ioctl.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    errno: i32,
    /// So many of a hundred are complete before.
    percent: u32,
}

/// A kernel, and the rest of the VMM.
struct Host {
    exact: bool,
    fates: Fates,
    troubles: VecDeque<Option<Trouble>>,
    /// What it has answered that the guest must not see.
    problems: HashSet<i32>,
    log: Rc<RefCell<Vec<Event>>>,
    batches: Vec<u32>,
}

fn commands(batch: &Batch<'_>) -> Vec<[u64; 2]> {
    let words = batch.address() as *const [u8; 16];
    (0..batch.count() as usize)
        .map(|i| {
            // SAFETY: a batch refers to readable memory of so many commands, which nobody changes in this
            // test. They may not be aligned, which arrays of bytes need not be.
            let bytes = unsafe { words.add(i).read() };
            let both = u128::from_le_bytes(bytes);
            [both as u64, (both >> 64) as u64]
        })
        .collect()
}

impl Host {
    fn answer(&mut self, errno: i32, done: usize, code: u32) -> Outcome {
        if errno != 0 && code == 0 {
            self.problems.insert(errno);
        }
        Outcome {
            errno,
            done: done as u32,
            code,
        }
    }

    fn execute(&mut self, tag: u64) {
        self.log.borrow_mut().push(Event::Executed(tag));
    }

    /// As the contract says.
    fn exact(&mut self, commands: &[[u64; 2]], trouble: Option<Trouble>) -> Outcome {
        let n = commands.len();
        let stop = trouble.map_or(n, |trouble| n * trouble.percent as usize / 100);
        for (k, [word0, word1]) in commands[..stop].iter().enumerate() {
            let tag = word1 >> 12;
            match next_fate(&mut self.fates, tag) {
                Fate::Ill => return self.answer(EIO, k, 1),
                Fate::Abt => return self.answer(EIO, k, 2),
                Fate::Timeout if word0 & 0xff == 0x40 => return self.answer(EIO, k, 3),
                _ => self.execute(tag),
            }
        }
        match trouble {
            // It leaves the argument as it was.
            Some(Trouble { errno: EINVAL, .. }) if stop == 0 => self.answer(EINVAL, n, 0),
            Some(trouble) if stop < n => self.answer(trouble.errno, stop, 0),
            _ => self.answer(0, n, 0),
        }
    }

    /// As the C code of Linux 7.3: nothing has been issued of a batch with a command that it does not
    /// take, and the count says otherwise.
    fn like_7_3(&mut self, commands: &[[u64; 2]], trouble: Option<Trouble>) -> Outcome {
        let n = commands.len();
        if let Some(trouble) = trouble {
            return self.answer(trouble.errno, n * trouble.percent as usize / 100, 0);
        }
        let refused = commands
            .iter()
            .position(|[_, word1]| peek_fate(&self.fates, word1 >> 12) == Fate::Ill);
        if let Some(k) = refused {
            if n == 1 {
                next_fate(&mut self.fates, commands[0][1] >> 12);
            }
            return Outcome {
                errno: EIO,
                done: k as u32,
                code: 0,
            };
        }
        for [_, word1] in commands {
            next_fate(&mut self.fates, word1 >> 12);
            self.execute(word1 >> 12);
        }
        self.answer(0, n, 0)
    }
}

impl Vmm for Host {
    fn invalidate(&mut self, batch: Batch<'_>) -> Outcome {
        let commands = commands(&batch);
        assert!(!commands.is_empty());
        for [word0, _] in &commands {
            assert!(matches!(word0 & 0xff, 0x12 | 0x40), "{word0:#x} was sent");
        }
        self.batches.push(batch.count());
        let trouble = self.troubles.pop_front().flatten();
        if self.exact {
            self.exact(&commands, trouble)
        } else {
            self.like_7_3(&commands, trouble)
        }
    }

    fn command(&mut self, command: Command) -> Handled {
        let tag = command.words[1] >> 12;
        if command.opcode() != 0x03 {
            return Handled::Illegal;
        }
        match next_fate(&mut self.fates, tag) {
            Fate::Ill => Handled::Illegal,
            Fate::Later => {
                self.problems.insert(EAGAIN);
                Handled::Later(HostError { errno: EAGAIN })
            }
            _ => {
                self.log.borrow_mut().push(Event::Own(tag));
                Handled::Done
            }
        }
    }

    fn sync(&mut self, signal: Signal) {
        self.log.borrow_mut().push(Event::Sync(signal));
    }

    fn gerror(&mut self) {
        self.log.borrow_mut().push(Event::Gerror);
    }
}

/// Something that a guest does, or its VMM.
#[derive(Clone, Debug)]
enum Act {
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
        base: u64,
        log2size: u64,
        start: u32,
    },
    /// Writes registers that may be read-only now.
    Meddle {
        base: u64,
        cons: u32,
    },
    Reset,
    /// Goes on somewhere else.
    Migrate {
        direct: bool,
    },
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        4 => Just(Fate::Ok),
        1 => Just(Fate::Ill),
        1 => Just(Fate::Abt),
        2 => Just(Fate::Timeout),
        1 => Just(Fate::Later),
    ];
    prop_oneof![3 => Just(Vec::new()), 1 => vec(fate, 1..4)]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        12 => Just(Kind::Tlbi),
        6 => Just(Kind::Atc),
        1 => Just(Kind::Own),
        4 => (0_u64..3).prop_map(Kind::Sync),
        1 => prop_oneof![Just(Kind::Unknown), Just(Kind::Secure), Just(Kind::Sync(3))],
    ]
}

/// More than is looked at together.
fn long() -> impl Strategy<Value = Vec<(Kind, Vec<Fate>)>> {
    let rarely = prop_oneof![30 => Just(Vec::new()), 1 => fates()];
    vec(
        (prop_oneof![Just(Kind::Tlbi), Just(Kind::Atc)], rarely),
        60..256,
    )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => vec((kind(), fates()), 1..40).prop_map(Act::Push),
        2 => long().prop_map(Act::Push),
        1 => any::<u32>().prop_map(Act::Prod),
        1 => Just(Act::GiveUp),
        6 => Just(Act::Ack),
        1 => any::<u32>().prop_map(Act::Gerrorn),
        4 => Just(Act::Skip),
        1 => any::<bool>().prop_map(Act::Enable),
        2 => (prop::sample::select(&BASES[..]), 0_u64..10, any::<u32>())
            .prop_map(|(base, log2size, start)| Act::Setup { base, log2size, start }),
        1 => (any::<u64>(), any::<u32>()).prop_map(|(base, cons)| Act::Meddle { base, cons }),
        1 => Just(Act::Reset),
        1 => any::<bool>().prop_map(|direct| Act::Migrate { direct }),
    ]
}

fn troubles() -> impl Strategy<Value = Vec<Option<Trouble>>> {
    let errno = prop::sample::select(&[EINTR, EAGAIN, ENOMEM, EFAULT, ETIMEDOUT, EINVAL][..]);
    let trouble = (errno, 0_u32..=100).prop_map(|(errno, percent)| Trouble { errno, percent });
    vec(proptest::option::weighted(0.3, trouble), 0..40)
}

/// Both, side by side.
struct Bench {
    mem: Mem,
    queue: Cmdq,
    config: Config,
    host: Host,
    model: Model,
    log: Rc<RefCell<Vec<Event>>>,
    compared: usize,
    seen: usize,
    executed: [HashSet<u64>; 2],
    tag: u64,
}

impl Bench {
    fn new(config: Config, troubles: Vec<Option<Trouble>>) -> Self {
        let regions = REGIONS.map(|(at, len)| (GuestAddress(at), len));
        let log = Rc::new(RefCell::new(Vec::new()));
        let mut bench = Bench {
            mem: Mem::from_ranges(&regions).unwrap(),
            queue: Cmdq::new(config),
            config,
            host: Host {
                exact: config.exact,
                fates: Fates::new(),
                troubles: troubles.into(),
                problems: HashSet::new(),
                log: log.clone(),
                batches: Vec::new(),
            },
            model: Model::default(),
            log,
            compared: 0,
            seen: 0,
            executed: [HashSet::new(), HashSet::new()],
            tag: 1,
        };
        bench.setup(0x1000, 8, 0);
        bench
    }

    fn setup(&mut self, base: u64, log2size: u64, start: u32) {
        self.write(0x20, 0);
        self.queue.write(0x90, 8, base | log2size);
        self.model.base = base | log2size;
        self.write(0x98, start);
        self.write(0x9c, start);
        self.write(0x20, 8);
    }

    /// Writes a register of both.
    fn write(&mut self, offset: u64, value: u32) {
        assert!(self.queue.write(offset, 4, value.into()));
        let model = &mut self.model;
        match offset {
            0x20 => model.on = value & 8 != 0,
            0x64 => model.gerrorn = value & 1,
            0x98 => model.prod = value & 0xf_ffff,
            0x9c if !model.on => {
                model.set_cons(value);
                model.err = value >> 24 & 0x7f;
            }
            _ => {}
        }
    }

    fn place(&self, pointer: u32) -> GuestAddress {
        let size = 16_u64 << self.model.log2size();
        let ring = self.model.base % (1 << 56) / size.max(32) * size.max(32);
        GuestAddress(ring + u64::from(pointer) * 16 % size)
    }

    fn act(&mut self, act: Act) {
        let log2size = self.model.log2size();
        match act {
            Act::Push(commands) => {
                let mut prod = self.model.prod;
                let used = prod.wrapping_sub(self.model.cons_register()) % (2 << log2size);
                let room = (1_u32 << log2size).saturating_sub(used);
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
                    let _ = self.mem.write_obj(words, self.place(prod));
                    self.model.fates.insert(self.tag, fates.clone().into());
                    self.host.fates.insert(self.tag, fates.into());
                    self.tag += 1;
                    prod = prod.wrapping_add(1);
                }
                self.write(0x98, prod);
            }
            Act::Prod(prod) => self.write(0x98, prod),
            Act::GiveUp => self.write(0x98, self.model.cons_register()),
            Act::Ack => self.write(0x64, self.model.gerror),
            Act::Gerrorn(value) => self.write(0x64, value),
            Act::Skip => {
                if self.model.gerror != self.model.gerrorn {
                    let at = self.place(self.model.cons_register());
                    let _ = self.mem.write_obj([0x46_u64, 0], at);
                    self.write(0x64, self.model.gerror);
                }
            }
            Act::Enable(on) => self.write(0x20, u32::from(on) << 3),
            Act::Setup {
                base,
                log2size,
                start,
            } => self.setup(base, log2size, start),
            Act::Meddle { base, cons } => {
                if self.model.on {
                    self.queue.write(0x90, 8, base);
                    self.write(0x9c, cons);
                }
                self.queue.write(0x24, 4, u64::MAX);
                self.queue.write(0x60, 4, u64::MAX);
            }
            Act::Reset => {
                self.queue.reset();
                self.model = Model {
                    fates: std::mem::take(&mut self.model.fates),
                    log: std::mem::take(&mut self.model.log),
                    ..Model::default()
                };
                self.setup(0x1000, 5, 0);
            }
            Act::Migrate { direct } => {
                self.config.direct = direct;
                let mut queue = Cmdq::new(self.config);
                queue.restore(self.queue.state());
                self.queue = queue;
            }
        }
        self.model.run(&self.mem);
        self.process();
        self.compare();
    }

    fn process(&mut self) {
        let mut calls = 0;
        loop {
            calls += 1;
            assert!(calls < 10_000, "it does not come to an end");
            let entries = 1 << self.model.log2size();
            let before = self.queue.state().cons;
            let result = self.queue.process(&self.mem, &mut self.host);
            let consumed = self.queue.state().cons.wrapping_sub(before) % (2 * entries);
            assert!(consumed <= entries, "{consumed} in one call");
            match result {
                Ok(Progress::Done) => break,
                Ok(Progress::More) => {}
                Err(e) => assert!(self.host.problems.contains(&e.errno), "{e}"),
            }
        }
    }

    fn compare(&mut self) {
        let model = &self.model;
        let read = |offset| self.queue.read(offset, 4).unwrap() as u32;
        assert_eq!(read(0x20), u32::from(model.on) << 3);
        assert_eq!(read(0x24), u32::from(model.on) << 3);
        assert_eq!(read(0x60), model.gerror, "GERROR");
        assert_eq!(read(0x64), model.gerrorn, "GERRORN");
        assert_eq!(read(0x98), model.prod, "PROD");
        let mask = (2 << model.log2size()) - 1;
        assert_eq!(read(0x9c) & mask, model.cons_register(), "CONS.RD");
        if model.gerror != model.gerrorn {
            assert_eq!(read(0x9c) >> 24, model.err, "CONS.ERR");
        }
        let log = self.log.borrow();
        if self.config.exact {
            assert_eq!(log[self.seen..], model.log[self.compared..]);
            self.seen = log.len();
        } else {
            // Replayed commands are executed more than once. But none is missing from what has gone
            // before at any moment that the guest can see.
            let executed = |event: &Event| matches!(event, Event::Executed(_));
            for expected in &model.log[self.compared..] {
                if let Event::Executed(tag) = expected {
                    self.executed[0].insert(*tag);
                    continue;
                }
                while executed(&log[self.seen]) {
                    if let Event::Executed(tag) = log[self.seen] {
                        self.executed[1].insert(tag);
                    }
                    self.seen += 1;
                }
                assert_eq!(log[self.seen], *expected);
                assert!(self.executed[0].is_subset(&self.executed[1]));
                self.seen += 1;
            }
            for event in &log[self.seen..] {
                let Event::Executed(tag) = event else {
                    panic!("{event:?} should not be");
                };
                self.executed[1].insert(*tag);
            }
            self.seen = log.len();
            assert!(self.executed[0].is_subset(&self.executed[1]));
        }
        self.compared = model.log.len();
        let max = if self.config.direct && self.config.exact {
            self.config.max_batch
        } else {
            self.config.max_batch.min(63)
        };
        if let Some(batch) = self.host.batches.drain(..).max() {
            // The configuration may have changed in a migration, but not that.
            assert!(batch <= self.config.max_batch.max(max));
        }
    }
}

fn config() -> impl Strategy<Value = Config> {
    (
        any::<bool>(),
        any::<bool>(),
        prop_oneof![1_u32..80, Just(4096)],
    )
        .prop_map(|(exact, direct, max_batch)| Config {
            exact,
            cmdqs: CMDQS,
            direct,
            max_batch,
        })
}

proptest! {
    // PROPTEST_CASES=n has it try more than 256.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_an_smmu(config in config(), troubles in troubles(), acts in vec(act(), 1..60)) {
        let mut bench = Bench::new(config, troubles);
        for act in acts {
            bench.act(act);
        }
    }
}
