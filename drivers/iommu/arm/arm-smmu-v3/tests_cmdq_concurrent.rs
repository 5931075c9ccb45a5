// SPDX-License-Identifier: GPL-2.0

//! KUnit tests for the command queue with several users, on an SMMU made of software.

use core::ops::Range;

use kernel::{
    bindings,
    cpu::nr_cpu_ids,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc,
        Completion, //
    },
    task::cond_resched,
    workqueue::Queue, //
};

use super::{
    cmdq::Cmdq,
    hw::Hw,
    soft_smmu::{
        Fate::*,
        Manner,
        Random,
        SoftSmmu, //
    },
    tests_harness::{
        ensure,
        outcome,
        queue,
        random_batch,
        tell,
        Bench,
        Producer,
        Wait,
        LEN, //
    }, //
};

/// What several users of one queue have in common.
#[pin_data]
struct Crowd {
    queue: Arc<Cmdq<SoftSmmu>>,
    /// How many are not done yet: the users, and the SMMU's own thread.
    left: Atomic<u32>,
    users_left: Atomic<u32>,
    /// How many outcomes were not as they are to be.
    wrong: Atomic<u32>,
    #[pin]
    done: Completion,
}

/// What they do.
#[derive(Clone, Copy, Debug)]
struct Plan {
    manner: Manner,
    users: u32,
    batches: u32,
    /// One batch in so many has faults, or none if 0.
    faulty: u32,
    /// The SMMU has a thread of its own, which also services errors like an interrupt handler.
    thread: bool,
}

impl Crowd {
    fn leave(&self) {
        // The last one sees what the others have done.
        if self.left.fetch_sub(1, Full) == 1 {
            self.done.complete_all();
        }
    }

    /// What each user does.
    fn use_queue(&self, plan: Plan, user: u32) {
        let mut producer = Producer::new(self.queue.clone(), user);
        let mut random = Random::new(plan.manner.seed << 8 | u64::from(user));
        let mut fates = [Fine; 64];

        for batch in 0..plan.batches / plan.users {
            let (len, wait) = random_batch(&mut random, plan.faulty, &mut fates);
            let fates = &fates[..len];
            let expected = outcome(fates, wait);
            let outcome = producer.issue(fates, wait);

            if outcome != expected || (wait == Wait::Complete && !producer.is_true(len, outcome)) {
                // A few are enough to see.
                if self.wrong.fetch_add(1, Relaxed) < 4 {
                    tell!(
                        "user {} batch {}: {:?} instead of {:?} for {:?}, {:?}\n",
                        user,
                        batch,
                        outcome,
                        expected,
                        fates,
                        wait,
                    );
                }
            }
            if batch % 16 == 0 {
                cond_resched();
            }
        }
        let _ = self.users_left.fetch_sub(1, Release);
    }

    /// What the SMMU's own thread does.
    fn be_smmu(&self, seed: u64) {
        let mut random = Random::new(!seed >> 1);

        while self.users_left.load(Acquire) != 0 {
            let _ = self.queue.hw.run();
            if self.queue.hw.error_is_active() && random.one_in(4) {
                let _ = self.queue.handle_error(false);
            }
            cond_resched();
        }
    }
}

/// The kernel's threads that run on any CPU.
fn unbound() -> &'static Queue {
    // SAFETY: This queue is made early at boot and never goes away.
    unsafe { Queue::from_raw(bindings::system_dfl_wq) }
}

/// Has several users issue batches at the same time. Checks what each of them is told, and that the
/// queue is empty and without errors in the end.
fn contend(plan: Plan) -> Result<bool> {
    let queue = queue(plan.manner)?;
    // On one CPU the thread would only take turns with those who run the SMMU anyhow.
    let thread = plan.thread && nr_cpu_ids() > 1;
    let shared = queue.clone();
    let crowd = Arc::pin_init(
        pin_init!(Crowd {
            queue: shared,
            left: Atomic::new(plan.users + u32::from(thread)),
            users_left: Atomic::new(plan.users),
            wrong: Atomic::new(0),
            done <- Completion::new(),
        }),
        GFP_KERNEL,
    )?;

    for user in 0..plan.users {
        let crowd = crowd.clone();
        unbound().try_spawn(GFP_KERNEL, move || {
            crowd.use_queue(plan, user);
            crowd.leave();
        })?;
    }
    if thread {
        let crowd = crowd.clone();
        unbound().try_spawn(GFP_KERNEL, move || {
            crowd.be_smmu(plan.manner.seed);
            crowd.leave();
        })?;
    }
    crowd.done.wait_for_completion();

    let mut bench = Bench(Producer::new(queue, plan.users));
    // What the last ones did not wait for may have errors, of which nobody is told here either.
    let is_ok = bench.0.issue(&[], Wait::Complete).is_ok()
        && crowd.wrong.load(Relaxed) == 0
        && bench.smmu().timeouts() == 0
        && bench.smmu().violations() == 0
        && finish(&mut bench);
    if !is_ok {
        tell!(
            "{} wrong, violations {:#x}, {} timeouts, with {:?}\n",
            crowd.wrong.load(Relaxed),
            bench.smmu().violations(),
            bench.smmu().timeouts(),
            plan,
        );
    }
    Ok(is_ok)
}

/// As [`Bench::can_be_used()`] where a `CMD_SYNC` may fail.
fn finish(bench: &mut Bench) -> bool {
    ensure!(bench.0.issue(&[Fine; LEN - 1], Wait::Complete).is_ok());
    ensure!(bench.0.is_true(LEN - 1, Ok(())));
    ensure!(!bench.0.queue.log.has_records());
    ensure!(bench.smmu().is_idle());
    ensure!(!bench.smmu().error_is_active());

    let (cmds, syncs, _) = bench.0.queue.counts();
    ensure!(bench.smmu().counts() == (cmds, syncs));
    true
}

/// The queue in use by several at the same time, at random.
#[kunit_tests(arm_smmu_v3_cmdq_concurrent)]
mod concurrent {
    use super::*;

    const MANNER: Manner = Manner {
        seed: 0,
        overwrites: false,
        pace: 32,
        bad_syncs: 0,
        stall: 20,
        tick: 1,
    };

    const PLAN: Plan = Plan {
        manner: MANNER,
        users: 4,
        batches: 100_000,
        faulty: 0,
        thread: false,
    };

    /// Carries out a plan with each seed, on SMMUs of both kinds.
    fn contend_with(seeds: Range<u64>, plan: Plan) -> Result<bool> {
        for seed in seeds {
            for overwrites in [false, true] {
                let manner = Manner {
                    seed,
                    overwrites,
                    ..plan.manner
                };
                if !contend(Plan { manner, ..plan })? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Without any faults.
    #[test]
    fn plain() -> Result {
        assert!(contend_with(0..5, PLAN)?);
        Ok(())
    }

    /// With faults of all kinds.
    #[test]
    fn faults() -> Result {
        let plan = Plan {
            manner: Manner {
                bad_syncs: 64,
                ..MANNER
            },
            users: 6,
            batches: 12_000,
            faulty: 4,
            ..PLAN
        };
        assert!(contend_with(10..14, plan)?);
        Ok(())
    }

    /// On an SMMU that has a CPU for itself, as far as possible.
    #[test]
    fn with_thread() -> Result {
        let plan = Plan {
            manner: Manner {
                bad_syncs: 64,
                pace: 8,
                ..MANNER
            },
            users: 3,
            batches: 12_000,
            faulty: 8,
            thread: true,
        };
        assert!(contend_with(20..24, plan)?);
        Ok(())
    }

    /// On an SMMU that is slow, so that the queue is full most of the time.
    #[test]
    fn no_room() -> Result {
        let plan = Plan {
            manner: Manner {
                bad_syncs: 256,
                pace: 2,
                ..MANNER
            },
            users: 8,
            batches: 4_000,
            faulty: 16,
            ..PLAN
        };
        assert!(contend_with(30..34, plan)?);
        Ok(())
    }
}
