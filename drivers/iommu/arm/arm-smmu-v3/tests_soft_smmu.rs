// SPDX-License-Identifier: GPL-2.0

//! KUnit tests for the SMMU made of software: it is as the specification says.

use kernel::prelude::*;

use super::{
    cmd::Cmd,
    hw::Hw,
    soft_smmu::{
        Fate::{
            self,
            *, //
        },
        Manner,
        SoftSmmu,
        Tag, //
    },
    tests_harness::LEN, //
};

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

            smmu.entries()[2].write(smmu.make_sync(2));
            smmu.write_prod(3);
            smmu.settle();
            assert_eq!(smmu.registers(), (3, 0, 0));
            assert!(smmu.is_complete(tag(0)) && smmu.is_complete(tag(1)));
            assert_eq!(smmu.entries()[2].has_completion_msi(), overwrites);
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

            smmu.entries()[4].write(smmu.make_sync(4));
            smmu.write_prod(5);
            smmu.settle();
            assert_eq!(smmu.registers(), (cons(3, 4), 1, 0));
            assert!(!smmu.entries()[4].has_completion_msi());
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
        message.entries()[1].write(message.make_sync(2));
        message.write_prod(2);
        message.settle();
        assert_eq!(message.violations(), 1 << 4);
        Ok(())
    }
}
