// SPDX-License-Identifier: GPL-2.0

//! KUnit tests for the command queue in trouble, on an SMMU made of software: nothing of the host
//! is lost, each submitter learns its own errors and no others, and completion MSIs may be late.

use kernel::{
    prelude::*,
    time::Delta, //
};

use super::{
    cmdq::Failure,
    error_log::Handled,
    hw::{
        Action::*,
        Cerror,
        Hw, //
    },
    ring::Ring,
    soft_smmu::{
        Fate::*,
        SoftSmmu,
        FOR_EVER,
        SID_UNANSWERED, //
    },
    tests_harness::{
        each,
        ensure,
        fails,
        stuck,
        tell,
        Bench,
        Wait,
        ABT,
        ATC,
        ILL,
        LEN,
        TIMEOUT, //
    }, //
};

/// Whether the SMMU has an MSI for a `CMD_SYNC`. The tests of those make no sense without.
fn has_msi(bench: &Bench) -> bool {
    bench.smmu().sync_has_msi()
}

/// Commands of the host.
#[kunit_tests(arm_smmu_v3_cmdq_host)]
mod host {
    use super::*;

    /// A command that cannot be fetched is fetched again, however often that takes, and is never
    /// replaced: first, in the middle, last, with and without a `CMD_SYNC`.
    #[test]
    fn abt_by_count() -> Result {
        assert!(each(|bench| {
            for count in [1, 2, 3, 4, 10, 100] {
                bench.smmu().hurry(i64::from(count == 100));
                for index in 0..3 {
                    for sync in [true, false] {
                        let mut fates = [Fine; 3];
                        fates[index] = Abort(count);
                        ensure!(bench.0.issue_host(&fates, sync).is_ok());
                        let tag = bench.0.tag(index);
                        if !sync {
                            // Executed before the next CMD_SYNC.
                            ensure!(bench.0.issue_host(&[], true).is_ok());
                        }
                        ensure!(bench.smmu().is_complete(tag));

                        let log = bench.smmu().take_log();
                        // CAST: `usize` has 64 bits here.
                        ensure!(log.len() == count as usize);
                        ensure!(log
                            .iter()
                            .all(|error| error.cerror == Some(ABT) && error.action == Retry));
                    }
                }
            }
            ensure!(bench.smmu().timeouts() == 0);
            bench.smmu().hurry(0);
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// A full batch, which the driver issues without a `CMD_SYNC`.
    #[test]
    fn abt_in_full_batch() -> Result {
        assert!(each(|bench| {
            for index in [0, 31, 63] {
                let mut fates = [Fine; 64];
                fates[index] = Abort(10);
                ensure!(bench.0.issue_host(&fates, false).is_ok());
                let tag = bench.0.tag(index);
                ensure!(bench.0.issue_host(&[], true).is_ok());
                ensure!(bench.smmu().is_complete(tag));
                ensure!(bench
                    .smmu()
                    .take_log()
                    .iter()
                    .all(|error| error.action == Retry));
            }
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// The same by time. A wait may end before the SMMU recovers, but the command is executed then.
    #[test]
    fn abt_by_time() -> Result {
        assert!(each(|bench| {
            bench.smmu().hurry(1);
            for msecs in [1, 300, 900, 1500, 3000] {
                for sync in [true, false] {
                    bench.smmu().heal_after(Delta::from_millis(msecs));
                    let outcome = bench.0.issue_host(&[Fine, Abort(FOR_EVER), Fine], sync);
                    let tag = bench.0.tag(1);

                    let is_late = sync && msecs > 1000;
                    ensure!(outcome == if is_late { TIMEOUT } else { Ok(()) });
                    ensure!(!is_late || !bench.smmu().is_complete(tag));
                    for _ in 0..4 {
                        if bench.0.issue_host(&[], true).is_ok() {
                            break;
                        }
                    }
                    ensure!(bench.smmu().is_complete(tag));
                    ensure!(bench
                        .smmu()
                        .take_log()
                        .iter()
                        .all(|error| error.action == Retry));
                }
            }
            bench.smmu().hurry(0);
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// On the `CMD_SYNC`. That of a guest's batch is replaced, by another one.
    #[test]
    fn abt_on_sync() -> Result {
        assert!(each(|bench| {
            for count in [1, 2, 3, 10, 100] {
                bench.smmu().hurry(i64::from(count == 100));
                bench.smmu().abort_sync(count);
                ensure!(bench.0.issue_host(&[Fine], true).is_ok());
                ensure!(bench.smmu().is_complete(bench.0.tag(0)));
                let log = bench.smmu().take_log();
                // CAST: `usize` has 64 bits here.
                ensure!(log.len() == count as usize);
                ensure!(log.iter().all(|error| error.action == Retry));

                bench.smmu().abort_sync(count);
                ensure!(bench.0.issue(&[Fine], Wait::Complete).is_ok());
                ensure!(bench.smmu().is_complete(bench.0.tag(0)));
                let _ = bench.smmu().take_log();
            }
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// A guest that has left does not have its commands replaced either, nor those of the host that
    /// get its slots.
    #[test]
    fn abt_behind_guest() -> Result {
        assert!(each(|bench| {
            for _ in 0..LEN {
                ensure!(bench.0.issue(&[Fine], Wait::Complete).is_ok());
            }
            for _ in 0..LEN {
                ensure!(bench.0.issue_host(&[Abort(3)], true).is_ok());
                ensure!(bench.smmu().is_complete(bench.0.tag(0)));
            }
            ensure!(bench
                .smmu()
                .take_log()
                .iter()
                .all(|error| error.action == Retry));
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// With nobody waiting, the interrupt handler is told to come again, and acknowledges with
    /// growing pauses.
    #[test]
    fn abt_without_waiters() -> Result {
        assert!(each(|bench| {
            ensure!(bench.0.issue_host(&[Abort(FOR_EVER)], false).is_ok());
            let tag = bench.0.tag(0);
            bench.smmu().settle();
            let (mut acknowledged, mut later) = (0, 0);

            // 200 milliseconds.
            for _ in 0..20_000 {
                match bench.0.queue.handle_error(false) {
                    Handled::Acknowledged(_) => acknowledged += 1,
                    Handled::Later => later += 1,
                    Handled::NoError | Handled::ByWaiter => return false,
                }
                bench.smmu().settle();
                bench.smmu().pass(Delta::from_micros(10));
            }
            // As many as it takes to get to the longest pause, and one for each of those.
            ensure!((200..300).contains(&acknowledged));
            ensure!(later > 10_000);

            bench.smmu().heal();
            bench.smmu().pass(Delta::from_millis(10));
            ensure!(matches!(
                bench.0.queue.handle_error(false),
                Handled::Acknowledged(_)
            ));
            bench.smmu().settle();
            ensure!(bench.0.issue_host(&[], true).is_ok());
            ensure!(bench.smmu().is_complete(tag));
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// The replay goes on behind a device that does not answer, and the first one is told.
    #[test]
    fn atc_goes_on() -> Result {
        assert!(each(|bench| {
            let fates = [
                Answered,
                Unanswered,
                AnsweredAgain,
                Unanswered,
                AnsweredAgain,
            ];
            ensure!(bench.0.issue_host(&fates, true) == fails(1, ATC));
            for index in [0, 2, 4] {
                ensure!(bench.smmu().is_complete(bench.0.tag(index)));
            }
            // The second command of the same device is not worth another time-out.
            let log = bench.smmu().take_log();
            ensure!(log.iter().filter(|error| error.cerror == Some(ATC)).count() == 2);
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// The same behind an illegal command, and the error of the first command is told.
    #[test]
    fn atc_goes_on_behind_ill() -> Result {
        assert!(each(|bench| {
            let fates = [Answered, Illegal, AnsweredAgain];
            ensure!(bench.0.issue_host(&fates, true) == fails(1, ILL));
            for index in [0, 2] {
                ensure!(bench.smmu().is_complete(bench.0.tag(index)));
            }
            let fates = [Unanswered, Illegal, AnsweredAgain];
            ensure!(bench.0.issue_host(&fates, true) == fails(0, ATC));
            ensure!(bench.smmu().is_complete(bench.0.tag(2)));
            let fates = [AnsweredAgain, Illegal, Unanswered];
            ensure!(bench.0.issue_host(&fates, true) == fails(1, ILL));
            ensure!(bench.smmu().is_complete(bench.0.tag(0)));
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// With interrupts disabled there is no time for a replay of each command, nor for a slow
    /// queue.
    #[test]
    fn no_interrupts() -> Result {
        assert!(each(|bench| {
            bench.smmu().disable_interrupts(true);
            let fates = [Answered, AnsweredAgain, AnsweredAgain];
            ensure!(bench.0.issue_host(&fates, true).is_ok());
            ensure!(bench.0.is_true(3, Ok(())));
            ensure!(bench.smmu().replays() == 0);
            ensure!(bench.smmu().take_log().len() == 1);

            // Which device it was is known if there is only one.
            ensure!(bench.0.issue_host(&[Unanswered, Unanswered], true) == fails(0, ATC));
            ensure!(bench.0.queue.next_to_block() == Some(SID_UNANSWERED));
            ensure!(bench.0.queue.next_to_block().is_none());
            ensure!(bench.smmu().take_log().len() == 2);
            // Once is enough for a device that is known not to answer.
            ensure!(bench.0.issue_host(&[AnsweredAgain, Unanswered], true) == fails(1, ATC));
            ensure!(bench.smmu().is_complete(bench.0.tag(0)));
            ensure!(bench.0.queue.next_to_block().is_none());
            ensure!(bench.smmu().take_log().len() == 1);

            ensure!(bench.0.issue_host(&[Unanswered], true) == fails(0, ATC));
            ensure!(bench.smmu().take_log().len() == 1);

            // Otherwise it is found out later.
            bench.0.queue.forget_stream(SID_UNANSWERED);
            ensure!(bench.0.issue_host(&[Answered, Unanswered], true) == fails(0, ATC));
            ensure!(bench.smmu().take_log().len() == 2);
            ensure!(bench.0.queue.next_to_block() == Some(SID_UNANSWERED));
            ensure!(bench.0.queue.next_to_block().is_none());
            ensure!(bench.smmu().take_log().len() == 1);

            // What a guest has found out does not spare the host that.
            bench.0.queue.forget_stream(SID_UNANSWERED);
            ensure!(bench.0.issue(&[Unanswered], Wait::Complete) == fails(0, ATC));
            ensure!(bench.0.queue.next_to_block().is_none());
            ensure!(bench.0.issue_host(&[Unanswered], true) == fails(0, ATC));
            ensure!(bench.0.queue.next_to_block() == Some(SID_UNANSWERED));
            ensure!(bench.0.queue.next_to_block().is_none());
            ensure!(bench.smmu().take_log().len() == 4);

            ensure!(bench.0.issue_host(&[Slow; 16], true) == TIMEOUT);
            bench.smmu().disable_interrupts(false);
            ensure!(bench.0.issue_host(&[], true).is_ok());
            bench.is_clean()
        })?);
        Ok(())
    }

    /// The SMMU waits longer for a device than the host for the SMMU: the device is found out when
    /// the error comes.
    #[test]
    fn late_error() -> Result {
        assert!(each(|bench| {
            // 5 milliseconds each.
            bench.smmu().delay_atc_inv_sync(0, 300);
            ensure!(bench.0.issue_host(&[Unanswered], true) == TIMEOUT);
            ensure!(bench.0.queue.next_to_block().is_none());
            ensure!(bench.0.issue_host(&[], true).is_ok());
            ensure!(bench.0.queue.next_to_block() == Some(SID_UNANSWERED));
            ensure!(bench.0.queue.next_to_block().is_none());
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// The same while the host waits again: the failure is not taken for success.
    #[test]
    fn error_in_second_wait() -> Result {
        assert!(each(|bench| {
            ensure!(bench.0.issue_host(&[Slow; 8], false).is_ok());
            bench.smmu().delay_atc_inv_sync(0, 100);
            ensure!(bench.0.issue_host(&[Unanswered], true) == fails(0, ATC));
            ensure!(bench.smmu().timeouts() == 1);

            bench.0.queue.forget_stream(SID_UNANSWERED);
            ensure!(bench.0.issue_host(&[Slow; 12], false).is_ok());
            ensure!(bench.0.issue_host(&[Answered], true).is_ok());
            ensure!(bench.smmu().timeouts() == 2);
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// An illegal command is told even if it takes a second wait, whether the error comes in the
    /// first one or in the second, and its slot may have another command by then.
    #[test]
    fn ill_in_second_wait() -> Result {
        assert!(each(|bench| {
            let mut fates = [Slow; 17];
            for index in [0, 16] {
                fates[index] = Illegal;
                let timeouts = bench.smmu().timeouts();
                ensure!(bench.0.issue_host(&fates, true) == fails(index, ILL));
                ensure!(bench.smmu().timeouts() > timeouts);
                ensure!(bench.smmu().is_complete(bench.0.tag(1)));
                fates[index] = Slow;

                // Nobody else is, nor the same one again.
                ensure!(bench.0.issue_host(&fates, true).is_ok());
                ensure!(bench.0.is_true(17, Ok(())));
            }
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// The queue stands still while the commands are replayed one by one: the rest is in the queue
    /// by then, and which device it was is found out later.
    #[test]
    fn timeout_in_replay() -> Result {
        assert!(each(|bench| {
            // This takes its time: only where the queue wraps.
            if !(124..128).contains(&bench.slots()) {
                return true;
            }
            // 5 milliseconds each.
            bench.smmu().delay_atc_inv_sync(1, 300);
            let fates = [Unanswered, Answered];
            ensure!(bench.0.issue_host(&fates, true) == TIMEOUT);
            ensure!(bench.smmu().timeouts() == 1);
            let answered = bench.0.tag(1);
            ensure!(bench.0.issue_host(&[], true).is_ok());
            ensure!(bench.smmu().is_complete(answered));
            ensure!(bench.0.queue.next_to_block() == Some(SID_UNANSWERED));
            ensure!(bench.0.queue.next_to_block().is_none());
            let _ = bench.smmu().take_log();
            // The CMD_SYNC behind the rest is counted as a command.
            ensure!(bench.sync(&[Fine; LEN - 1], Ok(()), &[]));
            ensure!(bench.smmu().is_idle() && bench.smmu().violations() == 0);
            true
        })?);
        Ok(())
    }

    /// The SMMU is reset with an error that is active: the queue begins anew.
    #[test]
    fn reset() -> Result {
        assert!(each(|bench| {
            ensure!(bench.0.issue_host(&[Fine, Illegal, Fine], false).is_ok());
            bench.smmu().settle();
            ensure!(bench.smmu().error_is_active());
            let cons = bench.0.queue.reset();
            ensure!(!bench.smmu().error_is_active());
            ensure!(bench.0.queue.ring.has_room(LEN as u64));
            bench.smmu().reset(cons);

            ensure!(bench.0.issue_host(&[Fine; 4], true).is_ok());
            ensure!(bench.0.is_true(4, Ok(())));
            let _ = bench.smmu().take_log();
            ensure!(bench.0.issue_host(&[Fine; LEN - 1], true).is_ok());
            ensure!(bench.0.is_true(LEN - 1, Ok(())));
            ensure!(bench.smmu().is_idle() && bench.smmu().violations() == 0);
            true
        })?);
        Ok(())
    }
}

/// Who is told what.
#[kunit_tests(arm_smmu_v3_cmdq_errors)]
mod errors {
    use super::*;

    /// A queue has as many slots as the driver's batches need, and a power of two.
    #[test]
    fn lengths() {
        for len in [0, LEN / 2, LEN - 1, LEN + LEN / 2] {
            assert!(Ring::new::<SoftSmmu>(len).is_err());
        }
        assert!(Ring::new::<SoftSmmu>(LEN).is_ok());
    }

    /// What stands for which error in `SMMU_CMDQ_CONS`. A code that is reserved is an illegal
    /// command.
    #[test]
    fn codes() {
        for (code, cerror) in [
            (0, None),
            (1, Some(ILL)),
            (2, Some(ABT)),
            (3, Some(ATC)),
            (4, Some(ILL)),
            (0x7f, Some(ILL)),
        ] {
            for others in [0, 0x80ff_ffff] {
                assert_eq!(Cerror::from_cons(code << 24 | others), cerror);
            }
        }
    }

    /// What the interrupt handler is told: whether there was an error since it was called last,
    /// even if a CPU that waits has handled it.
    #[test]
    fn interrupts() -> Result {
        assert!(each(|bench| {
            let queue = bench.0.queue.clone();

            ensure!(matches!(queue.handle_error(false), Handled::NoError));
            ensure!(bench.0.issue_host(&[Illegal], false).is_ok());
            bench.smmu().settle();
            ensure!(matches!(
                queue.handle_error(false),
                Handled::Acknowledged(_)
            ));
            ensure!(matches!(queue.handle_error(false), Handled::NoError));

            ensure!(bench.0.issue(&[Illegal], Wait::Complete) == fails(0, ILL));
            ensure!(matches!(queue.handle_error(false), Handled::ByWaiter));
            ensure!(matches!(queue.handle_error(false), Handled::NoError));
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// Those behind a slot that cannot be got past are told that it takes too long, and no code.
    #[test]
    fn others_are_not_told() -> Result {
        assert!(each(|bench| {
            bench.smmu().hurry(50);
            ensure!(bench.0.issue_host(&[Abort(FOR_EVER)], false).is_ok());
            ensure!(bench.0.issue(&[Fine, Illegal], Wait::Complete) == TIMEOUT);
            bench.smmu().heal();
            ensure!(bench.0.issue(&[], Wait::Complete).is_ok());
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// An error on record is told even if the wait fails afterwards, and the count is exact.
    #[test]
    fn error_before_timeout() -> Result {
        assert!(each(|bench| {
            bench.smmu().hurry(50);
            ensure!(
                bench
                    .0
                    .issue(&[Fine, Illegal, Fine, Abort(FOR_EVER)], Wait::Complete)
                    == fails(1, ILL)
            );
            ensure!(bench.smmu().is_complete(bench.0.tag(0)));
            bench.smmu().heal();

            // The SMMU does not get past the slot: nothing is known to be complete.
            ensure!(
                bench
                    .0
                    .issue(&[Fine, Abort(FOR_EVER), Illegal], Wait::Complete)
                    == stuck(ABT)
            );
            bench.smmu().heal();
            ensure!(bench.0.issue(&[], Wait::Complete).is_ok());
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// What there is no time to replay is not known to be complete, and fails.
    #[test]
    fn no_time_to_replay() -> Result {
        assert!(each(|bench| {
            bench.smmu().slow_asks(600);
            let outcome = bench
                .0
                .issue(&[AnsweredAgain, AnsweredAgain], Wait::Complete);
            bench.smmu().slow_asks(0);
            ensure!(outcome == fails(1, ATC));
            ensure!(bench.0.is_true(1, Ok(())));
            ensure!(bench.smmu().replays() == 1);
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// A fatal signal ends a call between two replays.
    #[test]
    fn cancelled() -> Result {
        assert!(each(|bench| {
            let fates = [Answered, Fine, AnsweredAgain, Unanswered];
            bench.smmu().kill_caller(2);
            let outcome = bench.0.issue(&fates, Wait::Complete);
            ensure!(outcome == Err(Failure::Interrupted { complete: 2 }));
            bench.smmu().kill_caller(i64::MAX);
            ensure!(bench.0.is_true(2, Ok(())));
            ensure!(bench.smmu().replays() == 1);
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// It ends a guest's wait for room at once.
    #[test]
    fn killed_without_room() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(&[], Ok(()), &[]));
            bench.smmu().stall(FOR_EVER);
            for _ in 0..2 {
                ensure!(bench.issue(&[Fine; LEN / 2], Wait::No, Ok(()), &[]));
            }
            // Well before the time limit.
            bench.smmu().kill_caller(10);
            let outcome = bench.0.issue(&[Fine], Wait::Complete);
            ensure!(outcome == Err(Failure::Interrupted { complete: 0 }));
            ensure!(bench.smmu().timeouts() == 0);

            // The host goes on to wait, and those behind it are not affected.
            bench.smmu().stall(300);
            ensure!(bench.0.issue_host(&[Fine], true).is_ok());
            ensure!(bench.smmu().timeouts() == 1);
            bench.smmu().kill_caller(i64::MAX);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// The ring is full and `SMMU_CMDQ_CONS` lags behind the completion MSI by which that could be:
    /// nothing of it is taken for consumed.
    #[test]
    fn cons_behind_msi() -> Result {
        assert!(each(|bench| {
            if !has_msi(bench) {
                return true;
            }
            bench.smmu().let_cons_lag();
            for _ in 0..3 {
                ensure!(bench.0.issue(&[Fine; LEN - 1], Wait::Complete).is_ok());
                bench.smmu().stall(FOR_EVER);
                ensure!(bench.0.issue(&[Fine; LEN], Wait::No).is_ok());
                let queue = &bench.0.queue;
                let end = bench.slots();
                // CAST: `usize` has 64 bits here.
                let start = end - LEN as u64;
                ensure!(queue.ring.look_at_cons(bench.smmu(), end).is_err());
                ensure!(queue.ring.count_consumed(bench.smmu(), start, LEN as u64) == 0);
                ensure!(!queue.ring.is_consumed(bench.smmu(), start));
                bench.smmu().stall(0);
                ensure!(bench.0.queue.issue_host(&[], true).is_ok());
                ensure!(bench.0.is_true(LEN, Ok(())));
            }
            ensure!(bench.smmu().violations() == 0);
            true
        })?);
        Ok(())
    }

    /// A completion MSI that comes after its waiter has left overwrites nobody's command.
    #[test]
    fn late_msi() -> Result {
        assert!(each(|bench| {
            if !has_msi(bench) {
                return true;
            }
            for _ in 0..4 {
                bench.smmu().hurry(50);
                bench.smmu().hold_msis(FOR_EVER);
                ensure!(bench.0.issue(&[Fine], Wait::Complete) == TIMEOUT);

                // All other slots, and then that of the CMD_SYNC, which the SMMU has consumed.
                bench.smmu().hurry(5);
                bench.smmu().hold_msis(40);
                ensure!(bench.0.issue(&[Fine; LEN - 2], Wait::No).is_ok());
                bench.smmu().settle();
                bench.smmu().stall(FOR_EVER);
                ensure!(bench.0.issue(&[Fine; 4], Wait::No).is_ok());
                bench.smmu().hold_msis(0);
                bench.smmu().settle();
                bench.smmu().stall(0);
                ensure!(bench.0.queue.issue_host(&[], true).is_ok());
                ensure!(bench.0.is_true(4, Ok(())));
                ensure!(bench.smmu().violations() == 0);
            }
            bench.smmu().hurry(0);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// One that never comes does not stop the queue for good.
    #[test]
    fn lost_msi() -> Result {
        assert!(each(|bench| {
            if !has_msi(bench) {
                return true;
            }
            bench.smmu().hurry(50);
            bench.smmu().hold_msis(FOR_EVER);
            ensure!(bench.0.issue(&[Fine], Wait::Complete) == TIMEOUT);
            for _ in 0..4 {
                ensure!(bench.0.issue_host(&[Fine; LEN / 2], false).is_ok());
            }
            true
        })?);
        Ok(())
    }
}
