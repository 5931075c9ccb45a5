// SPDX-License-Identifier: GPL-2.0

//! KUnit tests for the command queue and its errors, on an SMMU made of software.
//!
//! What to expect is written down here in the specification's terms: which slot an error is at, and
//! what it is (IHI 0070, 4.1.2, 4.7.3 and 7.1).

use kernel::{
    bindings,
    cpu::nr_cpu_ids,
    kunit,
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
    cerror::{
        Action,
        Cerror, //
    },
    cmd::Cmd,
    cmdq::{
        Cmdq,
        Failure,
        Port,
        Wait, //
    },
    soft_smmu::{
        Fate,
        Manner,
        Random,
        Serviced,
        SoftSmmu,
        Tag,
        BATCH,
        FOR_EVER, //
    }, //
};

use Action::*;
use Fate::*;

const ILL: Cerror = Cerror::Ill;
const ABT: Cerror = Cerror::Abt;
const ATC: Cerror = Cerror::AtcInvSync;

type Outcome = Result<(), Failure>;

/// Errors as they are expected: where, counted from the first slot of the batch, what, and what is
/// done about it.
type Expected<'a> = &'a [(u64, Cerror, Action)];

/// Writes to the log of the tests.
macro_rules! tell {
    ($($arg:tt)*) => {
        kunit::err(fmt!($($arg)*))
    };
}

/// Evaluates to false in the enclosing function, and tells so, if a condition does not hold.
macro_rules! ensure {
    ($condition:expr $(,)?) => {
        if !$condition {
            tell!("line {}: not so: {}\n", line!(), stringify!($condition));
            return false;
        }
    };
}

/// That the command at `index` failed.
fn fails(index: usize, cerror: Cerror) -> Outcome {
    Err(Failure::Cmd { index, cerror })
}

/// That the queue did not go on because of an error.
fn stuck(cerror: Cerror) -> Outcome {
    Err(Failure::Stuck {
        complete: None,
        cerror,
    })
}

/// That it did not go on without one.
const TIMEOUT: Outcome = Err(Failure::Timeout { complete: None });

/// What is to come of a batch with these commands. Nobody is told about others' faults.
fn outcome(fates: &[Fate], wait: Wait) -> Outcome {
    if wait == Wait::No {
        return Ok(());
    }

    // One abort heals, the second does not.
    let replaced = fates.iter().position(|fate| match fate {
        Illegal => true,
        Abort(count) => *count > 1,
        _ => false,
    });
    let before = &fates[..replaced.unwrap_or(fates.len())];

    if let Some(index) = before.iter().position(|fate| *fate == Unanswered) {
        return fails(index, ATC);
    }
    match replaced {
        None => Ok(()),
        Some(index) if fates[index] == Illegal => fails(index, ILL),
        Some(index) => fails(index, ABT),
    }
}

/// Whether somebody who has waited so long knows which commands are complete.
fn is_known(wait: Wait, outcome: Outcome) -> bool {
    match wait {
        Wait::No => false,
        // If the SMMU has found fault with one of them, then those before it are.
        Wait::Consumed => matches!(outcome, Err(Failure::Cmd { .. })),
        Wait::Complete => true,
    }
}

/// Somebody who uses the queue.
struct Producer {
    queue: Arc<Cmdq<SoftSmmu>>,
    /// The tag of the first command of the latest batch.
    tag: Tag,
}

impl Producer {
    fn new(queue: Arc<Cmdq<SoftSmmu>>, producer: u32) -> Self {
        Self {
            queue,
            tag: Tag {
                producer,
                batch: 0,
                index: 0,
            },
        }
    }

    fn tag(&self, index: usize) -> Tag {
        // CAST: The length of a batch.
        Tag {
            index: index as u32,
            ..self.tag
        }
    }

    /// The commands of a new batch, and others behind them.
    fn commands(&mut self, fates: &[Fate]) -> [Cmd; BATCH as usize] {
        let mut cmds = [Cmd::illegal(); BATCH as usize];

        self.tag.batch += 1;
        for (index, (cmd, fate)) in cmds.iter_mut().zip(fates).enumerate() {
            *cmd = self.tag(index).command(*fate);
        }
        cmds
    }

    /// Sends a batch.
    fn issue(&mut self, fates: &[Fate], wait: Wait) -> Outcome {
        let cmds = self.commands(fates);
        self.queue.issue(&cmds[..fates.len()], wait)
    }

    /// Sends a batch that has to be issued.
    fn issue_insistently(&mut self, fates: &[Fate], wait: Wait) -> Outcome {
        let cmds = self.commands(fates);
        self.queue.issue_insistently(&cmds[..fates.len()], wait)
    }

    /// Whether the commands of the last batch are complete which are by this outcome, and that is
    /// not complete which failed.
    fn is_true(&self, len: usize, outcome: Outcome) -> bool {
        let smmu = &self.queue.port;
        let (complete, failed) = match outcome {
            Ok(()) => (len, None),
            Err(Failure::Cmd { index, .. }) => (index, Some(index)),
            Err(Failure::Stuck { complete, .. } | Failure::Timeout { complete }) => {
                (complete.unwrap_or(0), None)
            }
        };

        (0..complete).all(|index| smmu.is_complete(self.tag(index)))
            && !failed.is_some_and(|index| smmu.is_complete(self.tag(index)))
    }
}

/// The least number of entries that there can be.
const LEN: usize = 128;

fn queue(manner: Manner) -> Result<Arc<Cmdq<SoftSmmu>>> {
    Arc::pin_init(Cmdq::new(SoftSmmu::new(LEN, manner), LEN), GFP_KERNEL)
}

/// A queue with one user, and what it is to look like.
struct Bench(Producer);

impl Bench {
    fn smmu(&self) -> &SoftSmmu {
        &self.0.queue.port
    }

    /// How many slots have ever been used.
    fn slots(&self) -> u64 {
        let (cmds, syncs, _) = self.0.queue.counts();
        cmds + syncs
    }

    /// Sends a batch and compares what comes of it with what is expected: the outcome, the errors
    /// that were serviced meanwhile, and what is complete by then.
    fn issue(
        &mut self,
        fates: &[Fate],
        wait: Wait,
        expected: Outcome,
        errors: Expected<'_>,
    ) -> bool {
        let start = self.slots();
        let outcome = self.0.issue(fates, wait);

        if outcome != expected {
            tell!("{:?}: {:?} instead of {:?}\n", fates, outcome, expected);
            return false;
        }
        ensure!(self.serviced(start, errors));
        ensure!(!is_known(wait, outcome) || self.0.is_true(fates.len(), outcome));
        true
    }

    /// As [`Self::issue()`] with a `CMD_SYNC`.
    fn sync(&mut self, fates: &[Fate], expected: Outcome, errors: Expected<'_>) -> bool {
        self.issue(fates, Wait::Complete, expected, errors)
    }

    /// Whether exactly these errors were serviced since it was last asked for.
    fn serviced(&self, start: u64, errors: Expected<'_>) -> bool {
        let log = self.smmu().take_log();
        let expected = errors.iter().map(|&(at, cerror, action)| Serviced {
            // CAST: A queue of 128 entries has an index and a wrap bit that are 8 bits together.
            // Positions before the batch are written as negative ones.
            cons: start.wrapping_add(at) as u32 & 0xff | (cerror as u32) << 24,
            cerror: Some(cerror),
            action,
        });

        if log.len() != errors.len() || !log.iter().eq(expected) {
            for error in log.iter() {
                tell!("slot {:#x}: {:?}\n", start & 0xff, error);
            }
            return false;
        }
        true
    }

    /// Whether nothing is left behind: the queue is empty, all of it can be used, nobody has a
    /// record, and nothing went on that must not.
    fn is_clean(&mut self) -> bool {
        ensure!(!self.0.queue.records.any());
        self.can_be_used()
    }

    /// As [`Self::is_clean()`] where records may have been left to those who get the slots next.
    fn can_be_used(&mut self) -> bool {
        ensure!(self.sync(&[], Ok(()), &[]));
        ensure!(self.sync(&[Fine; LEN - 1], Ok(()), &[]));
        ensure!(!self.0.queue.records.any());
        ensure!(self.smmu().is_idle());
        ensure!(!self.smmu().error_is_active());
        ensure!(self.smmu().violations() == 0);

        let (cmds, syncs, _) = self.0.queue.counts();
        ensure!(self.smmu().counts() == (cmds, syncs));
        true
    }
}

/// Runs a test on SMMUs of both kinds, each with several seeds, and with the first batch at several
/// places of the queue.
fn each(test: impl Fn(&mut Bench) -> bool) -> Result<bool> {
    for overwrites in [false, true] {
        for seed in 0..4 {
            for start in [0, 64, 122, 124, 126, 127, 128, 252, 255] {
                let manner = Manner {
                    seed,
                    overwrites,
                    // CAST: A small number.
                    pace: [32, 4, 1, 8][seed as usize],
                    bad_syncs: 0,
                    stall: 50,
                    tick: 10,
                };
                let mut bench = Bench(Producer::new(queue(manner)?, 0));

                for i in 0..start {
                    // A CMD_SYNC on its own is as good as a command.
                    let is_ok = if i % 3 == 0 {
                        bench.sync(&[], Ok(()), &[])
                    } else {
                        bench.issue(&[Fine], Wait::No, Ok(()), &[])
                    };
                    if !is_ok {
                        return Ok(false);
                    }
                }
                if !test(&mut bench) {
                    tell!("with {:?}, from slot {:#x}\n", manner, start);
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// The model against the specification, without the driver's queue.
#[kunit_tests(arm_smmu_v3_soft_smmu)]
mod model {
    use super::*;

    /// An SMMU whose queue has these entries.
    fn smmu(overwrites: bool, cmds: &[Cmd]) -> Result<Pin<KBox<SoftSmmu>>> {
        let manner = Manner {
            seed: 1,
            overwrites,
            pace: 3,
            bad_syncs: 0,
            stall: 0,
            tick: 0,
        };
        let smmu = KBox::pin_init(SoftSmmu::new(LEN, manner), GFP_KERNEL)?;

        for (entry, cmd) in smmu.entries().iter().zip(cmds) {
            entry.write(*cmd);
        }
        // CAST: A few.
        smmu.write_prod(cmds.len() as u32);
        smmu.settle();
        Ok(smmu)
    }

    fn cmd(index: u32, fate: Fate) -> Cmd {
        tag(index).command(fate)
    }

    fn tag(index: u32) -> Tag {
        Tag {
            producer: 1,
            batch: 1,
            index,
        }
    }

    /// `SMMU_CMDQ_CONS` with this code and index.
    fn cons(err: u32, index: u32) -> u32 {
        err << 24 | index
    }

    /// Without an error, all is consumed. Nothing is complete without `CMD_SYNC`.
    #[test]
    fn consumption() -> Result {
        for overwrites in [false, true] {
            let smmu = smmu(overwrites, &[cmd(0, Fine), cmd(1, Answered)])?;
            assert_eq!(smmu.registers(), (2, 0, 0));
            assert!(!smmu.is_complete(tag(0)) && !smmu.is_complete(tag(1)));

            smmu.entries()[2].write(smmu.sync(2));
            smmu.write_prod(3);
            smmu.settle();
            assert_eq!(smmu.registers(), (3, 0, 0));
            assert!(smmu.is_complete(tag(0)) && smmu.is_complete(tag(1)));
            assert_eq!(smmu.entries()[2].is_overwritten(), overwrites);
            assert_eq!(smmu.violations(), 0);
        }
        Ok(())
    }

    /// `CERROR_ILL`: the queue stops at the command, and goes on with what is there when the error
    /// is acknowledged.
    #[test]
    fn ill() -> Result {
        for overwrites in [false, true] {
            let smmu = smmu(overwrites, &[cmd(0, Fine), cmd(1, Illegal), cmd(2, Fine)])?;
            assert_eq!(smmu.registers(), (cons(1, 1), 1, 0));

            // It is fetched again, and so is illegal again.
            smmu.acknowledge();
            smmu.settle();
            assert_eq!(smmu.registers(), (cons(1, 1), 0, 1));

            // Nothing happens until the error is acknowledged.
            smmu.entries()[1].write(cmd(1, Fine));
            smmu.settle();
            assert_eq!(smmu.registers(), (cons(1, 1), 0, 1));
            smmu.acknowledge();
            smmu.settle();
            assert_eq!(smmu.registers().0 & 0xff_ffff, 3);
            assert!(!smmu.error_is_active());
            assert_eq!(smmu.violations(), 0);
        }
        Ok(())
    }

    /// `CERROR_ABT`: as above, as often as it is to fail.
    #[test]
    fn abt() -> Result {
        let smmu = smmu(false, &[cmd(0, Abort(2)), cmd(1, Fine)])?;
        assert_eq!(smmu.registers(), (cons(2, 0), 1, 0));
        smmu.acknowledge();
        smmu.settle();
        assert_eq!(smmu.registers(), (cons(2, 0), 0, 1));
        smmu.acknowledge();
        smmu.settle();
        assert_eq!(smmu.registers().0 & 0xff_ffff, 2);
        assert!(!smmu.error_is_active());
        Ok(())
    }

    /// `CERROR_ATC_INV_SYNC`: the queue stops at the `CMD_SYNC`, once for all that were not
    /// answered. The others are complete when it succeeds.
    #[test]
    fn atc_inv_sync() -> Result {
        for overwrites in [false, true] {
            let smmu = smmu(
                overwrites,
                &[
                    cmd(0, Fine),
                    cmd(1, Unanswered),
                    cmd(2, Answered),
                    cmd(3, Unanswered),
                ],
            )?;
            assert_eq!(smmu.registers(), (4, 0, 0));

            smmu.entries()[4].write(smmu.sync(4));
            smmu.write_prod(5);
            smmu.settle();
            assert_eq!(smmu.registers(), (cons(3, 4), 1, 0));
            assert!(!smmu.entries()[4].is_overwritten());
            assert!(!smmu.is_complete(tag(0)));

            smmu.acknowledge();
            smmu.settle();
            assert_eq!(smmu.registers().0 & 0xff_ffff, 5);
            assert!(!smmu.error_is_active());
            assert!(smmu.is_complete(tag(0)) && smmu.is_complete(tag(2)));
            assert!(!smmu.is_complete(tag(1)) && !smmu.is_complete(tag(3)));
        }
        Ok(())
    }

    /// What must not be done is noticed.
    #[test]
    fn violations() -> Result {
        let unwritten = smmu(false, &[cmd(0, Fine)])?;
        unwritten.write_prod(2);
        unwritten.settle();
        assert_eq!(unwritten.violations(), 1 << 0);

        let prod = smmu(false, &[cmd(0, Fine), cmd(1, Fine)])?;
        prod.write_prod(1);
        assert_eq!(prod.violations() & 1 << 1, 1 << 1);

        let order = smmu(false, &[cmd(0, Fine), cmd(2, Fine)])?;
        assert_eq!(order.violations(), 1 << 2);

        let unasked = smmu(false, &[cmd(0, Fine)])?;
        unasked.acknowledge();
        assert_eq!(unasked.violations(), 1 << 3);

        let message = smmu(true, &[cmd(0, Fine)])?;
        message.entries()[1].write(message.sync(2));
        message.write_prod(2);
        message.settle();
        assert_eq!(message.violations(), 1 << 4);
        Ok(())
    }
}

/// What comes of a batch if nobody else uses the queue.
#[kunit_tests(arm_smmu_v3_cmdq)]
mod single {
    use super::*;

    /// Batches of any length, with and without a `CMD_SYNC`.
    #[test]
    fn no_error() -> Result {
        assert!(each(|bench| {
            for len in [0, 1, 2, 63, 64, 65, 126, 127] {
                ensure!(bench.sync(&[Fine; LEN][..len], Ok(()), &[]));
                ensure!(bench.issue(&[Fine; LEN][..len], Wait::No, Ok(()), &[]));
            }
            ensure!(bench.smmu().replays() == 0 && bench.smmu().timeouts() == 0);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// An illegal command: those before it are complete.
    #[test]
    fn ill() -> Result {
        assert!(each(|bench| {
            for index in 0..5 {
                let mut fates = [Fine; 5];
                fates[index] = Illegal;
                // CAST: `usize` has 64 bits here.
                ensure!(bench.sync(&fates, fails(index, ILL), &[(index as u64, ILL, Replace)]));
            }
            bench.is_clean()
        })?);
        Ok(())
    }

    /// Of several illegal commands, the first one.
    #[test]
    fn several_ill() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(
                &[Fine, Illegal, Fine, Illegal, Illegal],
                fails(1, ILL),
                &[(1, ILL, Replace), (3, ILL, Replace), (4, ILL, Replace)],
            ));
            ensure!(bench.sync(
                &[Abort(2), Illegal],
                fails(0, ABT),
                &[(0, ABT, Retry), (0, ABT, Replace), (1, ILL, Replace)],
            ));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// A command that cannot be fetched once is fetched again, and nobody is told.
    #[test]
    fn abt_once() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(&[Fine, Abort(1), Fine], Ok(()), &[(1, ABT, Retry)]));
            ensure!(bench.sync(&[Abort(1)], Ok(()), &[(0, ABT, Retry)]));
            ensure!(bench.sync(
                &[Abort(1), Abort(1)],
                Ok(()),
                &[(0, ABT, Retry), (1, ABT, Retry)]
            ));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// A command that cannot be fetched twice is given up, and what replaces it may fail as well.
    #[test]
    fn abt_again() -> Result {
        assert!(each(|bench| {
            let replaced = (1, ABT, Replace);

            ensure!(bench.sync(
                &[Fine, Abort(2), Fine],
                fails(1, ABT),
                &[(1, ABT, Retry), replaced]
            ));
            ensure!(bench.sync(
                &[Fine, Abort(3), Fine],
                fails(1, ABT),
                &[(1, ABT, Retry), replaced, replaced],
            ));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// Who insists has what could not be fetched issued once more, with what is behind it.
    #[test]
    fn abt_again_but_urgent() -> Result {
        assert!(each(|bench| {
            ensure!(
                bench
                    .0
                    .issue_insistently(&[Fine, Abort(2), Fine], Wait::Complete)
                    == fails(1, ABT)
            );
            let log = bench.smmu().take_log();
            ensure!(log.iter().filter(|error| error.action == Replace).count() == 2);

            // What was sent twice looks out of its order to this SMMU.
            ensure!(!bench.0.queue.records.any());
            bench.sync(&[Fine; LEN - 1], Ok(()), &[])
        })?);
        Ok(())
    }

    /// A slot that can never be fetched: the queue is stuck, each submitter makes an attempt, and
    /// all is well when the slot is.
    #[test]
    fn abt_for_ever() -> Result {
        assert!(each(|bench| {
            let start = bench.slots();
            ensure!(bench.sync(
                &[Fine, Abort(FOR_EVER), Fine],
                stuck(ABT),
                &[
                    (1, ABT, Retry),
                    (1, ABT, Replace),
                    (1, ABT, Replace),
                    (1, ABT, GiveUp),
                ],
            ));
            // CAST: The bits of the register.
            let cons = (start + 1) as u32 & 0xff | 2 << 24;
            ensure!(bench.smmu().registers().0 == cons && bench.smmu().error_is_active());

            for _ in 0..3 {
                ensure!(bench.0.issue(&[Fine], Wait::Complete) == stuck(ABT));
                ensure!(bench.smmu().registers().0 == cons && bench.smmu().error_is_active());
                let last = bench.smmu().take_log().iter().last();
                ensure!(last.is_some_and(|last| last.action == GiveUp));
            }
            // Without a CMD_SYNC it does not matter.
            ensure!(bench.issue(&[Fine], Wait::No, Ok(()), &[]));

            bench.smmu().heal();
            ensure!(bench.0.issue(&[Fine, Fine], Wait::Complete).is_ok());
            ensure!(bench.0.is_true(2, Ok(())));
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// A time-out that does not repeat when the commands are sent again is nobody's business.
    #[test]
    fn atc_once() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(&[AnsweredAgain], Ok(()), &[(1, ATC, Retry)]));
            ensure!(bench.smmu().replays() == 1);
            ensure!(bench.sync(
                &[Fine, AnsweredAgain, Answered, Fine, AnsweredAgain],
                Ok(()),
                &[(5, ATC, Retry)]
            ));
            ensure!(bench.smmu().replays() == 4);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// One that repeats is, and no more are waited for than the first.
    #[test]
    fn atc_always() -> Result {
        assert!(each(|bench| {
            // The CMD_SYNC of the replayed command is the second slot after that of the batch.
            ensure!(bench.sync(
                &[Unanswered],
                fails(0, ATC),
                &[(1, ATC, Retry), (3, ATC, Retry)]
            ));
            ensure!(bench.smmu().replays() == 1);
            ensure!(bench.sync(
                &[Answered, Fine, AnsweredAgain, Unanswered, Unanswered],
                fails(3, ATC),
                &[(5, ATC, Retry), (11, ATC, Retry)]
            ));
            ensure!(bench.smmu().replays() == 4);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// A time-out of a command that somebody else left without a `CMD_SYNC`.
    #[test]
    fn atc_of_others() -> Result {
        assert!(each(|bench| {
            ensure!(bench.issue(&[Fine, Unanswered], Wait::No, Ok(()), &[]));
            ensure!(bench.sync(&[Fine], Ok(()), &[(1, ATC, Retry)]));
            ensure!(bench.issue(&[Fine, Unanswered], Wait::No, Ok(()), &[]));
            ensure!(bench.sync(&[Answered, Answered], Ok(()), &[(2, ATC, Retry)]));
            ensure!(bench.smmu().replays() == 2);
            ensure!(bench.issue(&[Fine, Unanswered], Wait::No, Ok(()), &[]));
            ensure!(bench.sync(&[], Ok(()), &[(0, ATC, Retry)]));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// The host's invalidations of the ATC never go without a `CMD_SYNC`.
    #[test]
    fn atc_is_waited_for() -> Result {
        assert!(each(|bench| {
            let fates = [Answered, Answered];
            ensure!(bench.0.issue_insistently(&fates, Wait::No).is_ok());
            ensure!(bench.0.is_true(2, Ok(())));

            let start = bench.slots();
            let fates = [Answered, Unanswered];
            ensure!(bench.0.issue_insistently(&fates, Wait::No) == fails(1, ATC));
            ensure!(bench.serviced(start, &[(2, ATC, Retry), (6, ATC, Retry)]));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// Both errors in one batch, the illegal command first: nothing after it counts.
    #[test]
    fn ill_then_atc() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(
                &[Illegal, Unanswered],
                fails(0, ILL),
                &[(0, ILL, Replace), (2, ATC, Retry)]
            ));
            ensure!(bench.sync(
                &[Answered, Illegal, Unanswered],
                fails(1, ILL),
                &[(1, ILL, Replace), (3, ATC, Retry)]
            ));
            ensure!(bench.smmu().replays() == 1);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// The other way round: what replaces the illegal command is the `CMD_SYNC` that notices the
    /// time-out.
    #[test]
    fn atc_then_ill() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(
                &[Unanswered, Illegal],
                fails(0, ATC),
                &[(1, ILL, Replace), (1, ATC, Retry), (4, ATC, Retry)]
            ));
            ensure!(bench.sync(
                &[AnsweredAgain, Illegal],
                fails(1, ILL),
                &[(1, ILL, Replace), (1, ATC, Retry)]
            ));
            ensure!(bench.sync(
                &[Unanswered, Illegal, Unanswered],
                fails(0, ATC),
                &[
                    (1, ILL, Replace),
                    (1, ATC, Retry),
                    (3, ATC, Retry),
                    (5, ATC, Retry)
                ]
            ));
            ensure!(bench.sync(
                &[AnsweredAgain, Abort(3)],
                fails(1, ABT),
                &[
                    (1, ABT, Retry),
                    (1, ABT, Replace),
                    (1, ABT, Replace),
                    (1, ATC, Retry)
                ]
            ));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// There is nothing wrong with the commands if the `CMD_SYNC` is at fault, as long as one is
    /// executed in the end.
    #[test]
    fn bad_sync() -> Result {
        assert!(each(|bench| {
            bench.smmu().refuse_syncs(1);
            ensure!(bench.sync(&[Fine, Fine], Ok(()), &[(2, ILL, Replace)]));

            bench.smmu().refuse_syncs(3);
            let replaced = (2, ILL, Replace);
            ensure!(bench.sync(&[Fine, Fine], Ok(()), &[replaced, replaced, replaced]));

            bench.smmu().abort_sync(1);
            ensure!(bench.sync(&[Fine], Ok(()), &[(1, ABT, Retry)]));

            bench.smmu().abort_sync(2);
            ensure!(bench.sync(&[Fine], Ok(()), &[(1, ABT, Retry), (1, ABT, Replace)]));

            bench.smmu().abort_sync(1);
            bench.smmu().refuse_syncs(1);
            ensure!(bench.sync(&[Fine], Ok(()), &[(1, ABT, Retry), (1, ILL, Replace)]));

            bench.smmu().refuse_syncs(1);
            ensure!(bench.sync(&[], Ok(()), &[(0, ILL, Replace)]));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// The same with commands that are at fault as well. The first `CMD_SYNC` that is executed is
    /// the one that notices a time-out.
    #[test]
    fn bad_sync_and_commands() -> Result {
        assert!(each(|bench| {
            bench.smmu().refuse_syncs(1);
            ensure!(bench.sync(
                &[AnsweredAgain],
                Ok(()),
                &[(1, ILL, Replace), (1, ATC, Retry)]
            ));

            bench.smmu().abort_sync(2);
            bench.smmu().refuse_syncs(1);
            ensure!(bench.sync(
                &[Unanswered],
                fails(0, ATC),
                &[
                    (1, ABT, Retry),
                    (1, ABT, Replace),
                    (1, ILL, Replace),
                    (1, ATC, Retry),
                    (3, ATC, Retry)
                ]
            ));

            bench.smmu().refuse_syncs(2);
            ensure!(bench.sync(
                &[Illegal, Fine],
                fails(0, ILL),
                &[(0, ILL, Replace), (0, ILL, Replace), (0, ILL, Replace)]
            ));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// An SMMU to which no `CMD_SYNC` is legal.
    #[test]
    fn bad_sync_for_ever() -> Result {
        assert!(each(|bench| {
            let replaced = (1, ILL, Replace);

            bench.smmu().refuse_syncs(FOR_EVER);
            ensure!(bench.sync(
                &[Fine],
                stuck(ILL),
                &[replaced, replaced, replaced, (1, ILL, GiveUp)],
            ));
            ensure!(bench.0.issue(&[], Wait::Complete) == stuck(ILL));
            let _ = bench.smmu().take_log();

            bench.smmu().heal();
            ensure!(bench.0.issue(&[Fine, Fine], Wait::Complete).is_ok());
            ensure!(bench.0.is_true(2, Ok(())));
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// Errors in slots that nobody waits for are not told to those who have the slots later.
    #[test]
    fn unwaited_errors() -> Result {
        assert!(each(|bench| {
            ensure!(bench.issue(&[Illegal, Fine, Abort(2)], Wait::No, Ok(()), &[]));
            ensure!(bench.issue(
                &[Fine, Unanswered, Illegal, Abort(1)],
                Wait::No,
                Ok(()),
                &[]
            ));
            ensure!(bench.sync(
                &[Fine],
                Ok(()),
                &[
                    (0, ILL, Replace),
                    (2, ABT, Retry),
                    (2, ABT, Replace),
                    (5, ILL, Replace),
                    (5, ATC, Retry),
                    (6, ABT, Retry)
                ]
                .map(|(at, cerror, action): (u64, _, _)| (
                    at.wrapping_sub(7),
                    cerror,
                    action
                )),
            ));

            for _ in 0..2 * LEN / 4 {
                ensure!(bench.sync(&[Fine, Answered, Fine], Ok(()), &[]));
            }
            ensure!(bench.smmu().replays() == 0);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// Who waits for no more than consumption gets no `CMD_SYNC`, leaves nothing in front of
    /// others, and nothing complete before the next `CMD_SYNC`.
    #[test]
    fn consumed() -> Result {
        assert!(each(|bench| {
            let start = bench.0.queue.counts();
            ensure!(bench.issue(&[Fine; 3], Wait::Consumed, Ok(()), &[]));
            let first = bench.0.tag(2);
            ensure!(bench.smmu().is_idle() && !bench.smmu().is_complete(first));
            ensure!(bench.issue(&[Fine, Slow], Wait::Consumed, Ok(()), &[]));
            let second = bench.0.tag(1);
            ensure!(bench.smmu().is_idle() && !bench.smmu().is_complete(second));
            let end = bench.0.queue.counts();
            ensure!((end.0, end.1, end.2) == (start.0 + 5, start.1, start.2 + 2));

            ensure!(bench.sync(&[], Ok(()), &[]));
            ensure!(bench.smmu().is_complete(first) && bench.smmu().is_complete(second));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// They learn of errors as others do, and then all before the command is complete, also what
    /// was only consumed so far.
    #[test]
    fn consumed_errors() -> Result {
        assert!(each(|bench| {
            for (fate, cerror, errors) in [
                (Illegal, ILL, &[(1, ILL, Replace)][..]),
                (Abort(2), ABT, &[(1, ABT, Retry), (1, ABT, Replace)][..]),
            ] {
                ensure!(bench.issue(&[Fine; 2], Wait::Consumed, Ok(()), &[]));
                let before = bench.0.tag(1);
                let fates = [Fine, fate, Fine];
                ensure!(bench.issue(&fates, Wait::Consumed, fails(1, cerror), errors));
                ensure!(bench.smmu().is_complete(before));
            }
            ensure!(bench.issue(
                &[Fine, Abort(1)],
                Wait::Consumed,
                Ok(()),
                &[(1, ABT, Retry)]
            ));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// They do not wait for ever.
    #[test]
    fn consumed_too_slowly() -> Result {
        assert!(each(|bench| {
            bench.smmu().stall(FOR_EVER);
            ensure!(bench.issue(&[Fine, Illegal], Wait::Consumed, TIMEOUT, &[]));
            bench.smmu().stall(0);
            ensure!(bench.0.issue(&[Fine], Wait::Complete).is_ok());
            ensure!(bench.smmu().take_log().len() == 1);

            ensure!(bench.0.issue(&[Fine, Abort(FOR_EVER)], Wait::Consumed) == stuck(ABT));
            bench.smmu().heal();
            ensure!(bench.0.issue(&[Fine], Wait::Complete).is_ok());
            let _ = bench.smmu().take_log();
            ensure!(bench.smmu().timeouts() == 1);
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// Each slot of the queue in turn has an error, round after round.
    #[test]
    fn wrap() -> Result {
        assert!(each(|bench| {
            for round in 0..3 * LEN {
                let index = round % 3;
                let mut fates = [Fine, Fine, Answered, Fine];
                fates[index] = Illegal;
                // CAST: `usize` has 64 bits here.
                ensure!(bench.sync(&fates, fails(index, ILL), &[(index as u64, ILL, Replace)]));
            }
            bench.is_clean()
        })?);
        Ok(())
    }

    /// Nobody waits for ever for room in a queue that stands still.
    #[test]
    fn full() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(&[], Ok(()), &[]));
            bench.smmu().stall(FOR_EVER);
            for _ in 0..2 {
                ensure!(bench.issue(&[Fine; LEN / 2], Wait::No, Ok(()), &[]));
            }
            for wait in [Wait::No, Wait::Consumed, Wait::Complete] {
                ensure!(bench.issue(&[Fine], wait, TIMEOUT, &[]));
            }
            ensure!(bench.issue(&[Answered], Wait::No, TIMEOUT, &[]));
            ensure!(bench.smmu().timeouts() == 4);

            bench.smmu().stall(0);
            ensure!(bench.sync(&[Fine], Ok(()), &[]));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// Who insists is not sent away, but waits until the SMMU goes on.
    #[test]
    fn full_but_urgent() -> Result {
        assert!(each(|bench| {
            for wait in [Wait::No, Wait::Complete] {
                ensure!(bench.sync(&[], Ok(()), &[]));
                bench.smmu().stall(FOR_EVER);
                for _ in 0..2 {
                    ensure!(bench.issue(&[Fine; LEN / 2], Wait::No, Ok(()), &[]));
                }
                ensure!(bench.0.issue_insistently(&[Fine], wait).is_ok());
                let tag = bench.0.tag(0);
                ensure!(bench.sync(&[], Ok(()), &[]));
                ensure!(bench.smmu().is_complete(tag));
            }
            // Each of them has waited in vain once, after which the SMMU goes on.
            ensure!(bench.smmu().timeouts() == 2);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// Nobody waits for ever either if what the queue stands still at is an error.
    #[test]
    fn full_and_stuck() -> Result {
        assert!(each(|bench| {
            ensure!(bench.issue(&[Abort(FOR_EVER)], Wait::No, Ok(()), &[]));
            ensure!(bench.issue(&[Fine; LEN - 1], Wait::No, Ok(()), &[]));
            for wait in [Wait::No, Wait::Consumed, Wait::Complete] {
                ensure!(bench.0.issue(&[Fine], wait) == stuck(ABT));
                let last = bench.smmu().take_log().iter().last();
                ensure!(last.is_some_and(|last| last.action == GiveUp));
            }

            bench.smmu().heal();
            ensure!(bench.0.issue(&[Fine], Wait::Complete).is_ok());
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// An SMMU that is slow, but not too slow: half of the time limit before each of two commands.
    #[test]
    fn slow() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(&[Slow, Fine, Slow], Ok(()), &[]));
            // The same while there is no room.
            ensure!(bench.issue(&[Slow; 4], Wait::No, Ok(()), &[]));
            ensure!(bench.issue(&[Fine; LEN - 4], Wait::No, Ok(()), &[]));
            ensure!(bench.sync(&[Fine; LEN - 1], Ok(()), &[]));
            ensure!(bench.smmu().timeouts() == 0);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// One that is too slow.
    #[test]
    fn too_slow() -> Result {
        assert!(each(|bench| {
            for stall in [500, FOR_EVER] {
                ensure!(bench.sync(&[], Ok(()), &[]));
                bench.smmu().stall(stall);
                ensure!(bench.sync(&[Fine, Illegal], TIMEOUT, &[]));
                ensure!(!bench.0.is_true(1, Ok(())));
                ensure!(bench.sync(&[], TIMEOUT, &[]));

                // What was not waited for is still there, and so are its errors.
                bench.smmu().stall(0);
                ensure!(bench.0.issue(&[Fine], Wait::Complete).is_ok());
                ensure!(bench.smmu().take_log().len() == 1);
            }
            ensure!(bench.smmu().timeouts() == 4);
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// One that is never too slow, but for so many commands that they take too long together.
    #[test]
    fn too_slow_in_total() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(&[Slow; 16], TIMEOUT, &[]));
            ensure!(bench.sync(&[Fine], Ok(()), &[]));
            ensure!(bench.smmu().timeouts() == 1);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// Empty batches, which take no slot, among others.
    #[test]
    fn empty() -> Result {
        assert!(each(|bench| {
            for _ in 0..3 {
                let start = bench.slots();
                ensure!(bench.issue(&[], Wait::No, Ok(()), &[]));
                ensure!(bench.slots() == start);
                ensure!(bench.sync(&[], Ok(()), &[]));
                ensure!(bench.slots() == start + 1);
            }
            bench.is_clean()
        })?);
        Ok(())
    }

    /// All that can happen to a batch, at random.
    #[test]
    fn random() -> Result {
        assert!(each(|bench| {
            let mut random = Random::new(bench.slots());

            for _ in 0..200 {
                let mut fates = [Fine; 64];
                let (len, wait) = random_batch(&mut random, 2, &mut fates);
                let expected = outcome(&fates[..len], wait);
                let outcome = bench.0.issue(&fates[..len], wait);

                ensure!(outcome == expected);
                ensure!(!is_known(wait, outcome) || bench.0.is_true(len, outcome));
            }
            let _ = bench.0.issue(&[], Wait::Complete);
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }
}

/// Makes up a batch. One in so many has faults. Returns its length and how long to wait.
fn random_batch(random: &mut Random, faulty: u32, fates: &mut [Fate; 64]) -> (usize, Wait) {
    // CAST: A small number.
    let len = match random.below(8) {
        0 => random.below(65),
        1 | 2 => random.below(17),
        _ => random.below(5),
    } as usize;
    let is_faulty = random.one_in(faulty);
    // A guest's commands of all kinds, or the host's for the ATC, or the host's others, or a
    // guest's without any for the ATC.
    let (wait, atc_invs) = match random.below(8) {
        0 | 1 => (Wait::Complete, 2),
        2 | 3 => (Wait::Complete, 1),
        4 => (Wait::Complete, 0),
        5 => (Wait::No, 0),
        _ => (Wait::Consumed, 0),
    };

    for fate in &mut fates[..len] {
        let is_atc_inv = random.one_in(atc_invs);
        *fate = match (is_faulty && random.one_in(8), is_atc_inv) {
            (false, false) => Fine,
            (false, true) => Answered,
            (true, false) => match random.below(16) {
                0 => Slow,
                1..=7 => Illegal,
                n => Abort(1 + n % 3),
            },
            (true, true) => match random.below(8) {
                0 => Illegal,
                1 => Abort(1 + random.below(3)),
                2..=4 => AnsweredAgain,
                _ => Unanswered,
            },
        };
    }
    (len, wait)
}

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

            if outcome != expected || (is_known(wait, outcome) && !producer.is_true(len, outcome)) {
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
            let _ = self.queue.port.run();
            if self.queue.port.error_is_active() && random.one_in(4) {
                let _ = self.queue.service_error(false);
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

/// Has several users work on a queue at the same time, and looks whether each of them is told the
/// truth and the queue is as new in the end.
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

/// As [`Bench::can_be_used()`] where a `CMD_SYNC` may be at fault.
fn finish(bench: &mut Bench) -> bool {
    ensure!(bench.0.issue(&[Fine; LEN - 1], Wait::Complete).is_ok());
    ensure!(bench.0.is_true(LEN - 1, Ok(())));
    ensure!(!bench.0.queue.records.any());
    ensure!(bench.smmu().is_idle());
    ensure!(!bench.smmu().error_is_active());

    let (cmds, syncs, _) = bench.0.queue.counts();
    ensure!(bench.smmu().counts() == (cmds, syncs));
    true
}

/// The queue in use by several at the same time, at random.
#[kunit_tests(arm_smmu_v3_cmdq_concurrent)]
mod concurrent {
    use core::ops::Range;

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
