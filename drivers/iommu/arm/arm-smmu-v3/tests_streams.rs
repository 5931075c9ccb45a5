// SPDX-License-Identifier: GPL-2.0

//! KUnit tests for devices that do not answer `CMD_ATC_INV`, on an SMMU made of software.

use kernel::{
    prelude::*,
    time::{
        Delta,
        Instant, //
    }, //
};

use super::{
    cmdq::Failure,
    soft_smmu::{
        Fate::{
            self,
            *, //
        },
        SID_UNANSWERED, //
    },
    streams::{
        Streams,
        Verdict, //
    },
    tests_harness::{
        each,
        ensure,
        fails,
        tell,
        Bench,
        Outcome,
        Wait,
        ATC,
        TIMEOUT, //
    }, //
};

/// That the SMMU still waits for the answer to an earlier command.
const PENDING: Outcome = Err(Failure::Timeout {
    complete: 0,
    overdue: None,
});

/// Issues a guest's commands. Returns what came of it, and how many `ATC_INV_SYNC` there were.
fn issue(bench: &mut Bench, fates: &[Fate]) -> (Outcome, usize) {
    let outcome = bench.0.issue(fates, Wait::Complete);

    (outcome, bench.smmu().take_log().len())
}

/// What the guest and the others see.
#[kunit_tests(arm_smmu_v3_streams)]
mod streams {
    use super::*;

    /// After a confirmed time-out, the guest's commands for that device are refused without being
    /// issued: for a second, then for two, and so on.
    #[test]
    fn back_off() -> Result {
        assert!(each(|bench| {
            for seconds in [1, 2, 4, 8, 16, 32, 64, 64] {
                // Twice: in the batch, and on its own.
                ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 2));
                for _ in 0..3 {
                    let slots = bench.slots();
                    ensure!(issue(bench, &[Fine, Unanswered, Fine]) == (fails(1, ATC), 0));
                    ensure!(bench.smmu().is_complete(bench.0.tag(0)));
                    // One command and its CMD_SYNC.
                    ensure!(bench.slots() == slots + 2);
                }
                bench.smmu().pass(Delta::from_millis(1000 * seconds - 900));
                ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 0));
                bench.smmu().pass(Delta::from_millis(900));
            }
            ensure!(bench.smmu().timeouts() == 0);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// Neither other devices nor the host are affected.
    #[test]
    fn others() -> Result {
        assert!(each(|bench| {
            ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 2));
            ensure!(issue(bench, &[Answered, Fine]) == (Ok(()), 0));
            ensure!(bench.0.is_true(2, Ok(())));
            ensure!(issue(bench, &[Fine; 3]) == (Ok(()), 0));

            ensure!(bench.0.issue_host(&[Unanswered, Answered], true) == fails(0, ATC));
            ensure!(bench.smmu().is_complete(bench.0.tag(1)));
            ensure!(bench.smmu().take_log().len() == 2);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// An answer in time ends it.
    #[test]
    fn answer() -> Result {
        assert!(each(|bench| {
            for _ in 0..3 {
                bench.smmu().let_all_answer(false);
                ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 2));
                bench.smmu().let_all_answer(true);
                ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 0));
                // The back-off is never longer than the first one.
                bench.smmu().pass(Delta::from_millis(1000));
                ensure!(issue(bench, &[Unanswered]) == (Ok(()), 0));
                ensure!(!bench.0.queue.has_unanswering_streams());
            }

            // So does an answer to the second of two, or to one that had to be replayed.
            for _ in 0..2 {
                bench.smmu().let_all_answer(false);
                ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 2));
                bench.smmu().pass(Delta::from_millis(1000));
                bench.smmu().answer_from(2);
                ensure!(issue(bench, &[Unanswered]) == (Ok(()), 1));
                ensure!(!bench.0.queue.has_unanswering_streams());
            }
            bench.is_clean()
        })?);
        Ok(())
    }

    /// An attach or a reset of the device ends it.
    #[test]
    fn forget() -> Result {
        assert!(each(|bench| {
            ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 2));
            ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 0));
            bench.0.queue.forget_stream(SID_UNANSWERED + 1);
            ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 0));
            bench.0.queue.forget_stream(SID_UNANSWERED);
            ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 2));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// The ATS of a device that has not answered the host is blocked, once for each time-out. Other
    /// devices, and those that have not answered a guest, are left alone.
    #[test]
    fn block_ats() -> Result {
        assert!(each(|bench| {
            ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 2));
            ensure!(bench.0.queue.next_to_block().is_none());
            for _ in 0..2 {
                let fates = [AnsweredAgain, Unanswered, Answered];
                ensure!(bench.0.issue_host(&fates, true) == fails(1, ATC));
                ensure!(bench.0.queue.next_to_block() == Some(SID_UNANSWERED));
                ensure!(bench.0.queue.next_to_block().is_none());
            }
            let _ = bench.smmu().take_log();
            bench.is_clean()
        })?);
        Ok(())
    }

    /// The SMMU waits longer for the device than the submitter for the SMMU: the error is told at
    /// the next call, and meanwhile nothing is added to what stops the queue.
    #[test]
    fn late_error() -> Result {
        assert!(each(|bench| {
            // 5 milliseconds each.
            bench.smmu().delay_atc_inv_sync(0, 500);
            ensure!(issue(bench, &[Unanswered]) == (TIMEOUT, 0));
            let slots = bench.slots();
            ensure!(issue(bench, &[Unanswered]) == (PENDING, 0));
            ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 1));
            ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 0));
            ensure!(bench.slots() == slots);

            // It counts as the first one.
            bench.smmu().pass(Delta::from_millis(1000));
            ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 2));
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// A fatal signal ends the wait for the outcome of an earlier command.
    #[test]
    fn killed() -> Result {
        assert!(each(|bench| {
            bench.smmu().delay_atc_inv_sync(0, 260);
            ensure!(issue(bench, &[Unanswered]) == (TIMEOUT, 0));
            let slots = bench.slots();
            // Well before the time limit.
            bench.smmu().kill_caller(10);
            let interrupted = Err(Failure::Interrupted { complete: 0 });
            ensure!(issue(bench, &[Fine, Unanswered]) == (interrupted, 0));
            ensure!(bench.slots() == slots);

            bench.smmu().kill_caller(i64::MAX);
            ensure!(issue(bench, &[Unanswered]) == (fails(0, ATC), 1));
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// The device answers too late for the submitter, but in time for the SMMU: that is no error.
    #[test]
    fn late_answer() -> Result {
        assert!(each(|bench| {
            bench.smmu().let_all_answer(true);
            bench.smmu().stall(500);
            ensure!(issue(bench, &[Unanswered]) == (TIMEOUT, 0));
            ensure!(issue(bench, &[Unanswered]) == (PENDING, 0));
            ensure!(issue(bench, &[Unanswered]) == (Ok(()), 0));
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// There is room for so many streams. With more, the rest still works.
    #[test]
    fn many() -> Result {
        let streams = KBox::pin_init(Streams::new(), GFP_KERNEL)?;
        let now = Instant::now();

        for sid in 0..100 {
            streams.timed_out(sid, now, true);
            assert_eq!(streams.judge(sid, now, |_| true), Verdict::Refuse);
        }
        for sid in 0..100 {
            streams.forget(sid, now);
        }
        assert!(!streams.any());
        assert_eq!(streams.judge(1, now, |_| true), Verdict::Issue);
        assert!(!streams.any());
        Ok(())
    }

    /// With too many, the one goes whose back-off ends first.
    #[test]
    fn soonest_goes() -> Result {
        let streams = KBox::pin_init(Streams::new(), GFP_KERNEL)?;
        let now = Instant::now();

        for sid in 0..100 {
            streams.timed_out(sid, now + Delta::from_millis(i64::from(100 - sid)), true);
        }
        assert_eq!(streams.judge(0, now, |_| true), Verdict::Refuse);
        assert_eq!(streams.judge(99, now, |_| true), Verdict::Refuse);
        assert_eq!(streams.judge(98, now, |_| true), Verdict::Issue);
        Ok(())
    }
}
