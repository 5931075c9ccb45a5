// SPDX-License-Identifier: GPL-2.0

//! What is done to the queue, by whom, and what must come of it.

use std::sync::{atomic::Ordering, Arc};

use kernel::{
    init::{Init, PinInit},
    sync::thread,
    time::Delta,
};

use crate::{
    cmd::Cmd,
    cmdq::{Cmdq, Failure},
    error_log::Handled,
    facts::{Tag, UNANSWERED},
    hw::{Cerror, Hw},
    smmu::Smmu,
};
pub use crate::{
    facts::Fate::{self, *},
    smmu::{Kind, Msi, FAST, SLOW},
};

/// Commands that are issued together.
#[derive(Clone, Debug)]
pub enum Batch {
    /// Of the host, which does not wait for them.
    Host(Vec<Fate>),
    /// Of the host, which waits.
    HostSync(Vec<Fate>),
    /// Of a guest.
    Guest(Vec<Fate>),
}

use Batch::*;

impl Batch {
    fn fates(&self) -> &[Fate] {
        match self {
            Host(fates) | HostSync(fates) | Guest(fates) => fates,
        }
    }

    /// Whether there is a `CMD_SYNC` behind it.
    fn has_sync(&self) -> bool {
        !matches!(self, Host(_)) || self.fates().first().is_some_and(is_atc_inv)
    }

    /// What the producer is told, if the SMMU gets that far in time.
    fn expected(&self) -> Result<(), Failure> {
        if !self.has_sync() {
            return Ok(());
        }
        let is_guest = matches!(self, Guest(_));
        let failed = self.fates().iter().enumerate().find_map(|(index, fate)| {
            let cerror = match fate {
                Illegal => Cerror::Ill,
                Abort(count) if *count > 1 && is_guest => Cerror::Abt,
                Unanswered => Cerror::AtcInvSync,
                _ => return None,
            };
            Some(Failure::Cmd { index, cerror })
        });
        failed.map_or(Ok(()), Err)
    }
}

fn is_host_atc(batch: &Batch) -> bool {
    !matches!(batch, Guest(_)) && batch.fates().iter().any(is_atc_inv)
}

fn is_atc_inv(fate: &Fate) -> bool {
    matches!(fate, Answered | AnsweredAgain | Unanswered)
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: String,
    pub kind: Kind,
    /// The batches of each.
    pub producers: Vec<Vec<Batch>>,
    /// Whether there is a thread that takes interrupts. Else errors are handled by who waits.
    pub has_interrupt: bool,
}

type Queue = Arc<Cmdq<Smmu>>;

/// Makes a queue, has it used, and looks at each outcome.
pub fn run(scenario: &Scenario) {
    let may_time_out = scenario.kind.tick == SLOW;
    let kind = scenario.kind;
    let hw = Init(move || Ok(Smmu::new(kind)));
    let queue = Cmdq::new(hw, kind.len)
        .build()
        .expect("the number of slots is legal");
    let queue: Queue = Arc::new(queue);

    let mut others = vec![spawn(&queue, |queue| queue.hw.run())];
    if scenario.has_interrupt {
        others.push(spawn(&queue, interrupts));
    }
    if kind.msi == Msi::Late {
        others.push(spawn(&queue, |queue| queue.hw.deliver()));
    }
    let may_block = scenario.producers.iter().flatten().any(is_host_atc);
    let worker = may_block.then(|| spawn(&queue, works));
    let mut producers = scenario.producers.iter().cloned().enumerate();
    let (_, first) = producers.next().expect("there is a producer");
    let threads: Vec<_> = producers
        .map(|(number, batches)| {
            spawn(&queue, move |queue| {
                produce(queue, number, &batches, may_time_out)
            })
        })
        .collect();
    produce(&queue, 0, &first, may_time_out);
    for thread in threads {
        thread.join().expect("the producer does not panic");
    }

    // All slots can be used, and nobody has left an error to somebody else.
    let last = scenario.producers.len();
    let count = if may_time_out { kind.len - 1 } else { 0 };
    produce(&queue, last, &[HostSync(vec![Fine; count])], may_time_out);
    if let Some(worker) = worker {
        queue.hw.work.close();
        worker.join().expect("the work does not panic");
    }
    loop {
        match queue.issue_host(&[], true) {
            // What the last of them has found out leads to work again.
            Ok(()) if !queue.hw.has_work.swap(false, Ordering::Relaxed) => break,
            Ok(()) => block_ats(&queue),
            outcome => assert!(
                may_time_out && is_too_late(outcome),
                "{outcome:?} in the end"
            ),
        }
    }
    for bell in [&queue.hw.doorbell, &queue.hw.interrupt, &queue.hw.message] {
        bell.close();
    }
    for thread in others {
        thread.join().expect("the SMMU does not panic");
    }

    // A device that did not answer the host is cut off, whether anybody waited for it or not.
    let is_unanswered =
        |batch: &Batch| !matches!(batch, Guest(_)) && batch.fates().contains(&Unanswered);
    assert!(
        !scenario.producers.iter().flatten().any(is_unanswered)
            || queue.hw.is_blocked.load(Ordering::Relaxed),
        "no device is blocked"
    );
    // Nothing of the host is lost.
    for (producer, batches) in scenario.producers.iter().enumerate() {
        for (batch, tags) in batches
            .iter()
            .enumerate()
            .map(|(number, batch)| (batch, tags(producer, number, batch)))
        {
            for (tag, fate) in tags.zip(batch.fates()) {
                let is_host = !matches!(batch, Guest(_));
                assert!(
                    !is_host || *fate == Illegal || queue.hw.facts.was_executed(tag),
                    "{tag:?} of the host was not executed"
                );
            }
        }
    }
}

fn spawn(queue: &Queue, f: impl FnOnce(&Queue) + Send + 'static) -> thread::JoinHandle<()> {
    let queue = queue.clone();
    thread::spawn(move || f(&queue))
}

/// Does what the kernel does in a work.
fn works(queue: &Queue) {
    let mut seen = 0;

    while queue.hw.work.wait(&mut seen) {
        block_ats(queue);
    }
}

/// Blocks the ATS of each device that has not answered the host.
fn block_ats(queue: &Queue) {
    while let Some(sid) = queue.next_to_block() {
        assert_eq!(sid, UNANSWERED, "a device that answers is blocked");
        queue.hw.is_blocked.store(true, Ordering::Relaxed);
    }
}

/// Handles interrupts.
fn interrupts(queue: &Queue) {
    let mut seen = 0;

    while queue.hw.interrupt.wait(&mut seen) {
        while let Handled::Later = queue.handle_error(false) {
            queue.hw.pause(0, Delta::ZERO, false);
        }
    }
}

/// The tags of a batch.
fn tags(producer: usize, number: usize, batch: &Batch) -> impl Iterator<Item = Tag> {
    let len = batch.fates().len();
    let sync = batch.has_sync();
    let may_end = matches!(batch, Guest(_)) && batch.fates().iter().any(is_atc_inv);

    (0..len).map(move |index| Tag {
        producer,
        batch: number + 1,
        index,
        len,
        sync,
        may_end,
    })
}

fn is_too_late(outcome: Result<(), Failure>) -> bool {
    matches!(
        outcome,
        Err(Failure::Timeout { .. } | Failure::Stuck { .. })
    )
}

/// Issues batches, and looks whether what is said of them is true.
fn produce(queue: &Queue, producer: usize, batches: &[Batch], may_time_out: bool) {
    for (number, batch) in batches.iter().enumerate() {
        let fates = batch.fates();
        let cmds: Vec<Cmd> = tags(producer, number, batch)
            .zip(fates)
            .map(|(tag, fate)| tag.command(*fate))
            .collect();
        let outcome = match batch {
            Host(_) => queue.issue_host(&cmds, false),
            HostSync(_) => queue.issue_host(&cmds, true),
            Guest(_) => queue.issue_guest(&cmds, fates.iter().any(is_atc_inv)),
        };

        // If it takes too long to tell them apart, the first one that is in doubt is told. What came
        // too late to be told is told when the device is addressed again.
        let is_doubtful = |failure| match failure {
            Failure::Cmd { index, cerror } => {
                cerror == Cerror::AtcInvSync && is_atc_inv(&fates[index])
            }
            _ => false,
        };
        let is_host = !matches!(batch, Guest(_));
        let may_doubt = may_time_out || queue.hw.interrupts_are_disabled();
        let is_right = outcome == batch.expected()
            || may_time_out && is_too_late(outcome)
            || may_doubt && outcome.is_err_and(is_doubtful);
        assert!(
            is_right,
            "producer {producer} is told {outcome:?} of batch {number}, {batch:?}"
        );

        if !batch.has_sync() {
            continue;
        }
        let (complete, failed) = match outcome {
            Ok(()) => (fates.len(), None),
            Err(Failure::Cmd { index, .. }) => (index, Some(index)),
            Err(
                Failure::Stuck { complete, .. }
                | Failure::Timeout { complete, .. }
                | Failure::Interrupted { complete },
            ) => (complete, None),
        };
        // The host does not issue again what is behind a command that failed.
        for (index, tag) in tags(producer, number, batch).enumerate() {
            let is_fine = matches!(fates[index], Fine | Abort(_) | Answered | AnsweredAgain);
            let must_be = index < complete || is_host && failed.is_some() && is_fine;
            let is = queue.hw.facts.is_complete(tag);
            assert!(is || !must_be, "{tag:?} is not complete after {outcome:?}");
            assert!(
                !is || failed != Some(index) || may_doubt,
                "{tag:?} is complete"
            );
        }
    }
}

const NONE: Kind = Kind {
    len: 4,
    msi: Msi::None,
    prefetches: false,
    tick: FAST,
    irqs_off: false,
    bad_sync: 0,
};

/// Small ones, each on all kinds of SMMUs.
pub fn small() -> Vec<Scenario> {
    let guest = |fate: Fate| Guest(vec![fate]);
    let plans = [
        ("two", false, vec![vec![guest(Fine)], vec![guest(Fine)]]),
        (
            "three",
            false,
            vec![vec![guest(Fine)], vec![guest(Fine)], vec![Host(vec![Fine])]],
        ),
        (
            "hand-over",
            false,
            vec![
                vec![Host(vec![Fine, Fine])],
                vec![Host(vec![Fine]), HostSync(vec![])],
            ],
        ),
        (
            "wrap",
            false,
            vec![
                vec![guest(Fine), guest(Fine)],
                vec![HostSync(vec![Fine; 2])],
            ],
        ),
        (
            "room",
            false,
            vec![vec![HostSync(vec![Fine; 3])], vec![HostSync(vec![Fine; 2])]],
        ),
        (
            "ILL, polled",
            false,
            vec![vec![guest(Illegal)], vec![guest(Fine)]],
        ),
        ("ILL", true, vec![vec![guest(Illegal)], vec![guest(Fine)]]),
        (
            "ILL of two",
            true,
            vec![vec![guest(Illegal)], vec![HostSync(vec![Fine, Illegal])]],
        ),
        (
            "ILL, nobody waits",
            true,
            vec![
                vec![Host(vec![Illegal, Fine])],
                vec![guest(Fine), guest(Fine)],
            ],
        ),
        (
            "ILL, full",
            true,
            vec![
                vec![guest(Fine), guest(Illegal)],
                vec![guest(Fine), guest(Illegal)],
            ],
        ),
        (
            "ILL, full to the brim",
            true,
            vec![
                vec![guest(Fine), guest(Fine), HostSync(vec![Fine; 3])],
                vec![guest(Illegal), guest(Illegal), guest(Illegal)],
            ],
        ),
        (
            "ABT",
            true,
            vec![vec![guest(Abort(2))], vec![Host(vec![Abort(2)])]],
        ),
        (
            "ABT once",
            false,
            vec![vec![guest(Abort(1))], vec![guest(Fine)]],
        ),
        (
            "ATC",
            true,
            vec![vec![guest(AnsweredAgain)], vec![guest(Fine)]],
        ),
        (
            "ATC of two",
            true,
            vec![vec![guest(Unanswered)], vec![HostSync(vec![AnsweredAgain])]],
        ),
        (
            "ATC again",
            false,
            vec![
                vec![guest(Unanswered), guest(Unanswered)],
                vec![guest(Answered)],
            ],
        ),
    ];
    let slow_plans = [
        (
            "given up",
            true,
            vec![vec![guest(Fine); 3], vec![guest(Fine); 3]],
        ),
        (
            "ATC, given up",
            true,
            vec![vec![guest(Unanswered); 2], vec![guest(Fine); 2]],
        ),
    ];
    let bad_plans = [
        (
            "bad CMD_SYNC",
            true,
            vec![vec![guest(Fine); 2], vec![guest(Illegal); 2]],
        ),
        (
            "bad CMD_SYNC behind ATC",
            false,
            vec![vec![guest(AnsweredAgain)], vec![HostSync(vec![Fine])]],
        ),
    ];
    let msis = [Msi::None, Msi::Before, Msi::After, Msi::Late];
    let slow = Kind { tick: SLOW, ..NONE };
    let bad = Kind {
        bad_sync: 2,
        ..NONE
    };
    let plans = plans.iter().map(|plan| (plan, NONE));
    let slow_plans = slow_plans.iter().map(|plan| (plan, slow));
    let bad_plans = bad_plans.iter().map(|plan| (plan, bad));

    plans
        .chain(slow_plans)
        .chain(bad_plans)
        .flat_map(|((name, has_interrupt, producers), kind)| {
            msis.iter().map(move |msi| Scenario {
                name: format!("{name}, {msi:?}"),
                kind: Kind { msi: *msi, ..kind },
                producers: producers.clone(),
                has_interrupt: *has_interrupt,
            })
        })
        .collect()
}

/// Random numbers: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

/// Larger ones, made up.
pub fn random(seed: u64) -> Scenario {
    let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let msis = [Msi::None, Msi::Before, Msi::After, Msi::Late];
    let kind = Kind {
        len: [4, 8][random.below(2) as usize],
        msi: msis[seed as usize % 4],
        prefetches: random.below(2) == 0,
        tick: [FAST, SLOW][random.below(2) as usize],
        irqs_off: random.below(4) == 0,
        bad_sync: if seed.is_multiple_of(3) { 2 } else { 0 },
    };
    let faulty = random.below(3);
    let producers = 2 + random.below(2);
    let producers = (0..producers).map(|_| {
        let batches = 1 + random.below(4);
        (0..batches)
            .map(|_| random_batch(&mut random, kind.len, faulty))
            .collect()
    });
    Scenario {
        name: format!("random {seed}"),
        producers: producers.collect(),
        kind,
        has_interrupt: true,
    }
}

fn random_batch(random: &mut Random, slots: usize, faulty: u64) -> Batch {
    let sender = random.below(4);
    let is_atc = random.below(4) == 0;
    let most = if sender < 2 { slots / 2 - 1 } else { slots - 1 };
    let least = usize::from(sender == 3);
    let count = least + random.below((most - least + 1) as u64) as usize;
    let fates = (0..count).map(|_| {
        // A guest may mix them.
        let is_atc = is_atc && (sender >= 2 || random.below(2) == 0);
        if random.below(4) >= faulty {
            return if is_atc { Answered } else { Fine };
        }
        match (random.below(4), is_atc) {
            (0 | 1, false) => Illegal,
            (0, true) if sender < 2 => Illegal,
            (2, false) => Abort(1),
            (_, false) => Abort(2 + random.below(2) as u32),
            (1, true) => AnsweredAgain,
            (_, true) => Unanswered,
        }
    });
    let fates: Vec<Fate> = fates.collect();
    match sender {
        0 | 1 => Guest(fates),
        2 => HostSync(fates),
        _ => Host(fates),
    }
}
