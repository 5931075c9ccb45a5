// SPDX-License-Identifier: GPL-2.0

//! What loom runs: under all orders of a few accesses to memory, and with all values that a load may
//! return by the memory model of C11.
//!
//! There are too many of those for the scenarios of [`crate::scenarios`], so that these are as small
//! as they can be.

use std::sync::{
    atomic::{AtomicI64, Ordering::Relaxed as Unordered},
    Arc, Mutex, MutexGuard,
};

use kernel::{
    init::{Init, PinInit},
    sync::{
        atomic::{Acquire, Atomic, Release},
        barrier::{dma_mb, Write},
        thread,
    },
    time::{Delta, Instant, Monotonic},
};

use crate::{
    cmd::{Cmd, SyncSignal},
    cmdq::{Cmdq, Failure},
    error_log::Handled,
    hw::{Cerror, Entry, Hw},
};

const TLBI_NH_VA: u64 = 0x12;
const RESERVED: u64 = 0x7e;
const CMD_SYNC: u64 = 0x46;

/// What is issued together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// So many commands, put into the ring as the queue does it, and not waited for.
    Publish(usize),
    /// The same, waited for as a holder of the ring.
    Hold(usize),
    /// A command of a guest, by the queue itself.
    Guest,
    /// One that is illegal.
    Illegal,
    /// A command of the host that is not waited for.
    Host,
    /// The same, illegal.
    HostIllegal,
}

use Batch::*;

impl Batch {
    fn commands(self) -> usize {
        match self {
            Publish(count) | Hold(count) => count,
            _ => 1,
        }
    }

    fn has_sync(self) -> bool {
        matches!(self, Guest | Illegal)
    }

    fn is_illegal(self) -> bool {
        matches!(self, Illegal | HostIllegal)
    }
}

/// What is done at the same time, and how long loom takes.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: &'static str,
    /// The number of slots.
    len: usize,
    /// Whether a `CMD_SYNC` completes by an MSI, which is written before CONS.
    msi: bool,
    /// Whether an interrupt handler looks for errors as well as those who wait.
    interrupt: bool,
    producers: &'static [&'static [Batch]],
    /// How often threads are preempted, at most, in the quick tier.
    pub quick: usize,
    /// The same in the long one.
    pub long: usize,
}

const PLAN: Plan = Plan {
    name: "",
    len: 4,
    msi: false,
    interrupt: false,
    producers: &[],
    quick: 2,
    long: 3,
};

/// All of them.
pub fn plans() -> Vec<Plan> {
    vec![
        Plan {
            name: "ring, two producers",
            producers: &[&[Publish(1)], &[Publish(1)]],
            quick: 5,
            long: 8,
            ..PLAN
        },
        Plan {
            name: "ring, three producers",
            producers: &[&[Publish(1)], &[Publish(1)], &[Publish(1)]],
            quick: 2,
            long: 3,
            ..PLAN
        },
        Plan {
            name: "ring, hand-over",
            producers: &[&[Publish(1), Publish(1)], &[Publish(1)]],
            quick: 3,
            long: 5,
            ..PLAN
        },
        Plan {
            name: "ring, wrap of two slots",
            len: 2,
            producers: &[&[Publish(1), Publish(1)], &[Publish(1)]],
            quick: 3,
            long: 5,
            ..PLAN
        },
        Plan {
            name: "ring, two holders",
            producers: &[&[Hold(1)], &[Hold(1)]],
            quick: 3,
            long: 5,
            ..PLAN
        },
        Plan {
            name: "ring, a holder and somebody without room",
            len: 2,
            producers: &[&[Hold(1)], &[Publish(2)]],
            quick: 3,
            long: 5,
            ..PLAN
        },
        Plan {
            name: "queue, two guests",
            producers: &[&[Guest], &[Guest]],
            quick: 2,
            long: 4,
            ..PLAN
        },
        Plan {
            name: "queue, two guests, MSI",
            msi: true,
            producers: &[&[Guest], &[Guest]],
            quick: 3,
            long: 4,
            ..PLAN
        },
        Plan {
            name: "queue, two guests and the host",
            producers: &[&[Guest], &[Guest], &[Host]],
            quick: 0,
            long: 1,
            ..PLAN
        },
        Plan {
            name: "queue, a guest and the host",
            producers: &[&[Guest], &[Host]],
            quick: 3,
            long: 4,
            ..PLAN
        },
        Plan {
            name: "queue, wrap of two slots",
            len: 2,
            producers: &[&[Guest], &[Guest]],
            quick: 3,
            long: 4,
            ..PLAN
        },
        Plan {
            name: "queue, error with interrupt and waiter",
            interrupt: true,
            producers: &[&[Illegal]],
            quick: 4,
            long: 6,
            ..PLAN
        },
        Plan {
            name: "queue, error with interrupt and waiter, MSI",
            msi: true,
            interrupt: true,
            producers: &[&[Illegal]],
            quick: 4,
            long: 6,
            ..PLAN
        },
        Plan {
            name: "queue, error of one of two",
            producers: &[&[Illegal], &[Guest]],
            quick: 2,
            long: 3,
            ..PLAN
        },
        Plan {
            name: "queue, the next owner of a slot with a record",
            len: 2,
            interrupt: true,
            producers: &[&[HostIllegal, Guest]],
            quick: 4,
            long: 6,
            ..PLAN
        },
    ]
}

/// A command that was executed, or was illegal: its producer, batch and index.
type Done = (usize, usize, usize);

/// An SMMU that does what it has to at once, on the CPU that tells it to: in the write of PROD, and in
/// that of an acknowledgement. So it sees of others' entries what that CPU sees.
pub(crate) struct Smmu {
    len: usize,
    msi: bool,
    entries: Vec<Entry>,
    prod: Atomic<u32>,
    cons: Atomic<u32>,
    gerror: Atomic<u32>,
    gerrorn: Atomic<u32>,
    clock: AtomicI64,
    core: Mutex<Core>,
}

/// What only the SMMU itself knows. No part of what is checked, so that loom knows nothing of it. It is
/// never locked while loom may switch to another thread.
#[derive(Default)]
struct Core {
    position: u32,
    is_running: bool,
    is_stopped: bool,
    gerror: u32,
    /// What was fetched, in this order.
    done: Vec<Done>,
}

impl Smmu {
    fn mask(&self) -> u32 {
        2 * self.len as u32 - 1
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Consumes all that there is, up to an error. Another CPU may write PROD meanwhile, of which this
    /// one then takes care.
    fn run(&self, mut prod: u32) {
        let mut position = {
            let mut core = self.core();
            if core.is_running || core.is_stopped {
                return;
            }
            core.is_running = true;
            core.position
        };

        loop {
            if prod.wrapping_sub(position) & self.mask() == 0 {
                // The latest one, whoever has written it.
                prod = self.prod.fetch_add(0, Acquire);
                if prod.wrapping_sub(position) & self.mask() == 0 {
                    let mut core = self.core();
                    core.position = position;
                    core.is_running = false;
                    return;
                }
            }
            if !self.step(position) {
                return;
            }
            position += 1;
            // Of all writes of CONS, each continues the release of those before.
            self.cons.xchg(position & self.mask(), Release);
        }
    }

    /// Consumes a command. Returns false if it is one at which the SMMU stops.
    fn step(&self, position: u32) -> bool {
        let index = position as usize % self.len;
        let [word0, word1] = self.entries[index].read().words();

        match word0 & 0xff {
            CMD_SYNC => (),
            TLBI_NH_VA | RESERVED => {
                assert_eq!(word0 >> 32, word1, "an entry was fetched that is not whole");
                let field = |n: u32| (word1 >> (8 * n)) as usize & 0xff;
                let tag = (field(2).wrapping_sub(1), field(1), field(0));
                let mut core = self.core();
                assert!(!core.done.contains(&tag), "{tag:?} was fetched twice");
                core.done.push(tag);
            }
            _ => panic!("an entry was fetched that is not whole: {word0:#x} {word1:#x}"),
        }
        if word0 & 0xff == RESERVED {
            let cons = position & self.mask() | (Cerror::Ill as u32) << 24;
            self.cons.xchg(cons, Release);
            let gerror = {
                let mut core = self.core();
                core.position = position;
                core.is_running = false;
                core.is_stopped = true;
                core.gerror ^= 1;
                core.gerror
            };
            self.gerror.store(gerror, Release);
            return false;
        }
        if word0 & 0xff == CMD_SYNC && (word0 >> 12) & 3 == 1 {
            assert_eq!(word1, address(index), "the MSI is for another slot");
            let entry: *const Entry = &self.entries[index];
            // SAFETY: `Entry` is a transparent wrapper of this.
            let [word0, _] = unsafe { &*entry.cast::<[Atomic<u64>; 2]>() };
            let _ = word0.fetch_and(!0 << 32, Release);
        }
        true
    }
}

fn address(index: usize) -> u64 {
    0x8000_0000 + 16 * index as u64
}

impl Hw for Smmu {
    const WORD_BITS: u64 = 2;
    const MIN_LEN: usize = 2;

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn write_prod(&self, prod: u32) {
        let before = self.prod.xchg(prod, Release);
        let position = self.core().position;
        let ahead = |of: u32| prod.wrapping_sub(of) & self.mask();
        assert!(
            ahead(before) <= self.len as u32 && ahead(position) <= self.len as u32,
            "PROD was {before}, and is {prod}"
        );
        self.run(prod);
    }

    fn read_cons(&self) -> u32 {
        self.cons.load(Acquire)
    }

    fn error_is_active(&self) -> bool {
        self.gerror.load(Acquire) != self.gerrorn.load(Acquire)
    }

    fn acknowledge(&self) {
        let gerror = self.gerror.load(Acquire);
        self.gerrorn.store(gerror, Release);
        // Only this CPU goes on, as others may not see yet what it has written.
        let prod = self.prod.fetch_add(0, Acquire);
        let stopped = {
            let mut core = self.core();
            std::mem::replace(&mut core.is_stopped, false)
        };
        assert!(stopped, "there is nothing to acknowledge");
        self.run(prod);
    }

    fn make_sync(&self, index: usize) -> Cmd {
        Cmd::sync(if self.msi {
            SyncSignal::Msi(address(index))
        } else {
            SyncSignal::None
        })
    }

    fn sync_has_msi(&self) -> bool {
        self.msi
    }

    fn pause(&self, _: u32, _: Delta, _: bool) {
        self.clock.fetch_add(200_000, Unordered);
        thread::yield_now();
    }

    fn now(&self) -> Instant<Monotonic> {
        Instant::from_nanos(self.clock.load(Unordered))
    }
}

type Queue = Arc<Cmdq<Smmu>>;

/// Does what the plan says, and looks at each outcome.
pub fn run(plan: &Plan) {
    let Plan { len, msi, .. } = *plan;
    let hw = Init(move || {
        Ok(Smmu {
            len,
            msi,
            entries: (0..len).map(|_| Entry::new()).collect(),
            prod: Atomic::new(0),
            cons: Atomic::new(0),
            gerror: Atomic::new(0),
            gerrorn: Atomic::new(0),
            clock: AtomicI64::new(0),
            core: Mutex::default(),
        })
    });
    let queue = Cmdq::new(hw, len)
        .build()
        .expect("the number of slots is legal");
    let queue: Queue = Arc::new(queue);
    let batches = || plan.producers.iter().copied().flatten();
    let mut threads = Vec::new();
    if plan.interrupt {
        threads.push(spawn(&queue, interrupt));
    }
    let (first, others) = plan.producers.split_first().expect("there is a producer");
    for (number, batches) in others.iter().copied().enumerate() {
        threads.push(spawn(&queue, move |queue| {
            produce(queue, number + 1, batches)
        }));
    }
    produce(&queue, 0, first);
    for thread in threads {
        thread.join().expect("the thread does not panic");
    }

    // All commands were fetched, and those of a batch one behind another.
    let done = &queue.hw.core().done;
    assert_eq!(done.len(), batches().map(|batch| batch.commands()).sum());
    for pair in done.windows(2) {
        let [(producer, batch, index), next] = pair else {
            continue;
        };
        let len = plan.producers[*producer][*batch].commands();
        assert!(
            index + 1 == len && next.2 == 0 || *next == (*producer, *batch, index + 1),
            "batches are mixed: {done:?}"
        );
    }
}

fn spawn(queue: &Queue, f: impl FnOnce(&Queue) + Send + 'static) -> thread::JoinHandle<()> {
    let queue = queue.clone();
    thread::spawn(move || f(&queue))
}

/// Takes the interrupt of the only error that there is.
fn interrupt(queue: &Queue) {
    while queue.hw.gerror.load(Acquire) == 0 {
        thread::yield_now();
    }
    while let Handled::Later = queue.handle_error(false) {
        thread::yield_now();
    }
}

fn command(tag: Done, opcode: u64) -> Cmd {
    // So that it is not that of an entry that was never written.
    let tag = (tag.0 as u64 + 1) << 16 | (tag.1 as u64) << 8 | tag.2 as u64;
    Cmd::new([opcode | tag << 32, tag])
}

fn produce(queue: &Queue, producer: usize, batches: &[Batch]) {
    for (number, batch) in batches.iter().enumerate() {
        let opcode = if batch.is_illegal() {
            RESERVED
        } else {
            TLBI_NH_VA
        };
        let cmds: Vec<Cmd> = (0..batch.commands())
            .map(|index| command((producer, number, index), opcode))
            .collect();

        let outcome = match batch {
            Publish(_) | Hold(_) => {
                put(queue, &cmds, matches!(batch, Hold(_)));
                Ok(())
            }
            Host | HostIllegal => queue.issue_host(&cmds, false),
            Guest | Illegal => queue.issue_guest(&cmds, false),
        };
        let expected = match batch {
            Illegal => Err(Failure::Cmd {
                index: 0,
                cerror: Cerror::Ill,
            }),
            _ => Ok(()),
        };
        assert_eq!(outcome, expected, "producer {producer}, batch {number}");
        if batch.has_sync() || matches!(batch, Hold(_)) {
            let core = queue.hw.core();
            for index in 0..cmds.len() {
                assert!(
                    core.done.contains(&(producer, number, index)),
                    "a command is not complete"
                );
            }
        }
    }
}

/// What [`Cmdq`] does with its ring, without a `CMD_SYNC`.
fn put(queue: &Queue, cmds: &[Cmd], hold: bool) {
    let (ring, hw) = (&queue.ring, &queue.hw);
    let slots = loop {
        if let Some(slots) = ring.reserve(cmds.len() as u64) {
            break slots;
        }
        ring.try_free(hw, 0, |_| false);
        thread::yield_now();
    };
    ring.write(hw, slots.start, cmds);
    if hold {
        ring.hold();
    }
    dma_mb(Write);
    ring.publish(hw, slots);
    if hold {
        let consumed = loop {
            match ring.look_at_cons(hw, slots.end) {
                Ok(consumed) => break consumed,
                Err(_) => thread::yield_now(),
            }
        };
        for (cmd, position) in cmds.iter().zip(slots.start..) {
            let entry = hw.entries()[ring.index(position)].read();
            assert_eq!(
                entry.words(),
                cmd.words(),
                "the slot of a holder was used again"
            );
        }
        ring.release(hw, Some(consumed), |_| false);
    }
}
