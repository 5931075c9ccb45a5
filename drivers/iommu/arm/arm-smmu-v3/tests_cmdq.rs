// SPDX-License-Identifier: GPL-2.0

//! KUnit tests for the command queue with one user, on an SMMU made of software.

use kernel::prelude::*;

use super::{
    hw::Action::*,
    soft_smmu::{
        Fate::*,
        Random,
        FOR_EVER, //
    },
    tests_harness::{
        each,
        ensure,
        fails,
        outcome,
        random_batch,
        stuck,
        tell,
        Wait,
        ABT,
        ATC,
        ILL,
        LEN,
        TIMEOUT, //
    }, //
};

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

    /// A guest's command that can never be fetched, nor what replaces it: its submitter is told,
    /// and others that the queue does not move. All is well when the slot is.
    #[test]
    fn abt_for_ever() -> Result {
        assert!(each(|bench| {
            let start = bench.slots();
            bench.smmu().hurry(50);
            ensure!(
                bench
                    .0
                    .issue(&[Fine, Abort(FOR_EVER), Fine], Wait::Complete)
                    == stuck(ABT)
            );
            let log = bench.smmu().take_log();
            ensure!(log
                .iter()
                .map(|error| error.action)
                .take(3)
                .eq([Retry, Replace, Replace]));
            // CAST: The bits of the register.
            let cons = (start + 1) as u32 & 0xff | 2 << 24;
            ensure!(log.iter().all(|error| error.cons == cons));

            for _ in 0..3 {
                ensure!(bench.0.issue(&[Fine], Wait::Complete) == TIMEOUT);
                ensure!(bench.smmu().registers().0 == cons);
            }
            // Without a CMD_SYNC it does not matter.
            ensure!(bench.0.issue(&[Fine], Wait::No).is_ok());

            bench.smmu().heal();
            ensure!(bench.0.issue(&[Fine, Fine], Wait::Complete).is_ok());
            ensure!(bench.0.is_true(2, Ok(())));
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// A time-out that does not repeat when the commands are issued again is told to nobody.
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

    /// One that repeats is told, and behind the first such command none is issued again.
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
            ensure!(bench.0.issue_host(&fates, false).is_ok());
            ensure!(bench.0.is_true(2, Ok(())));

            let start = bench.slots();
            let fates = [Answered, Unanswered];
            ensure!(bench.0.issue_host(&fates, false) == fails(1, ATC));
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

    /// An SMMU to which no `CMD_SYNC` is legal: submitters are told of a time-out, and no error.
    #[test]
    fn bad_sync_for_ever() -> Result {
        assert!(each(|bench| {
            bench.smmu().hurry(50);
            bench.smmu().refuse_syncs(FOR_EVER);
            ensure!(bench.0.issue(&[Fine], Wait::Complete) == TIMEOUT);
            ensure!(bench.0.issue(&[], Wait::Complete) == TIMEOUT);
            let log = bench.smmu().take_log();
            ensure!(log.len() > 3 && log.iter().all(|error| error.action == Replace));

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
                    (2, ABT, Retry),
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

    /// A guest does not wait for ever for room in a queue that stands still.
    #[test]
    fn full() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(&[], Ok(()), &[]));
            bench.smmu().stall(FOR_EVER);
            for _ in 0..2 {
                ensure!(bench.issue(&[Fine; LEN / 2], Wait::No, Ok(()), &[]));
            }
            ensure!(bench.issue(&[Fine], Wait::Complete, TIMEOUT, &[]));
            ensure!(bench.issue(&[Answered], Wait::Complete, TIMEOUT, &[]));
            ensure!(bench.smmu().timeouts() == 2);

            bench.smmu().stall(0);
            ensure!(bench.sync(&[Fine], Ok(()), &[]));
            bench.is_clean()
        })?);
        Ok(())
    }

    /// The host does, until the SMMU goes on.
    #[test]
    fn full_but_urgent() -> Result {
        assert!(each(|bench| {
            for sync in [false, true] {
                ensure!(bench.sync(&[], Ok(()), &[]));
                // More than the time limit.
                bench.smmu().stall(300);
                for _ in 0..2 {
                    ensure!(bench.issue(&[Fine; LEN / 2], Wait::No, Ok(()), &[]));
                }
                ensure!(bench.0.issue_host(&[Fine], sync).is_ok());
                let tag = bench.0.tag(0);
                ensure!(bench.sync(&[], Ok(()), &[]));
                ensure!(bench.smmu().is_complete(tag));
            }
            // Each of them has timed out once, after which the SMMU goes on.
            ensure!(bench.smmu().timeouts() == 2);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// Nor for ever if what the queue stands still at is an error.
    #[test]
    fn full_and_stuck() -> Result {
        assert!(each(|bench| {
            bench.smmu().hurry(50);
            ensure!(bench.issue(&[Abort(FOR_EVER)], Wait::No, Ok(()), &[]));
            ensure!(bench.issue(&[Fine; LEN - 1], Wait::No, Ok(()), &[]));
            let tag = bench.0.tag(LEN - 2);
            for _ in 0..2 {
                ensure!(bench.0.issue(&[Fine], Wait::Complete) == TIMEOUT);
                let last = bench.smmu().take_log().iter().last();
                ensure!(last.is_some_and(|last| last.action == Retry));
            }

            bench.smmu().heal();
            ensure!(bench.0.issue(&[Fine], Wait::Complete).is_ok());
            ensure!(bench.smmu().is_complete(tag));
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }

    /// An SMMU that is slow, but not too slow: less than the time limit for each batch.
    #[test]
    fn slow() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(&[Slow, Fine, Slow, Slow], Ok(()), &[]));
            // The limit for the wait for room is longer, as long as the queue moves.
            ensure!(bench.issue(&[Slow; 16], Wait::No, Ok(()), &[]));
            ensure!(bench.issue(&[Fine; LEN - 16], Wait::No, Ok(()), &[]));
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

    /// One that moves, but takes too long for so many commands. The host waits again, as long as it
    /// moves.
    #[test]
    fn too_slow_in_total() -> Result {
        assert!(each(|bench| {
            ensure!(bench.sync(&[Slow; 16], TIMEOUT, &[]));
            ensure!(bench.0.issue_host(&[Fine], true).is_ok());
            ensure!(bench.0.issue_host(&[Slow; 16], true).is_ok());
            ensure!(bench.0.is_true(16, Ok(())));
            ensure!(bench.sync(&[Fine], Ok(()), &[]));
            ensure!(bench.smmu().timeouts() == 2);
            bench.is_clean()
        })?);
        Ok(())
    }

    /// Empty batches: without a `CMD_SYNC` they take no slot.
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
                ensure!(wait == Wait::No || bench.0.is_true(len, outcome));
            }
            let _ = bench.0.issue(&[], Wait::Complete);
            let _ = bench.smmu().take_log();
            bench.can_be_used()
        })?);
        Ok(())
    }
}
