// SPDX-License-Identifier: GPL-2.0

//! A VM's part of an SMMU, and the invalidation commands that the VM's own command queue holds.

use core::mem::MaybeUninit;

use kernel::{
    bindings,
    iommu::iommufd::{
        CacheInvalidate,
        Request,
        UserArray, //
    },
    prelude::*, //
};

use super::{
    cerror::Cerror,
    cmd::Cmd,
    cmdq::{
        Failure,
        Wait, //
    },
    ffi::{
        Vsmmu,
        BATCH_MAX, //
    },
    sanitise::{
        Batch,
        Illegal, //
    }, //
};

/// Invalidation commands of an SMMUv3: `struct iommu_viommu_arm_smmuv3_invalidate`.
pub(crate) struct GuestCmds;

impl Request for GuestCmds {
    const DATA_TYPE: u32 =
        bindings::iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
    type Entry = Cmd;
}

/// How many batches one `CMD_SYNC` completes, at most.
///
/// On hardware, the wait for a `CMD_SYNC` is expected to take most of the time. So the batches
/// before the last one only wait until the SMMU has consumed them: then it has found fault with
/// them or it never will, and no more of the queue's slots are taken at a time than one batch
/// needs. What is consumed may still be under way in the SMMU, where the `CMD_SYNC` of somebody
/// else waits for it as well: so there is a limit, which the driver's own long invalidations do not
/// have.
///
/// The SMMUs that need a `CMD_SYNC` for each command (`ARM_SMMU_OPT_CMDQ_FORCE_SYNC`) have no
/// vSMMUs.
const RUN: usize = 8;

impl CacheInvalidate for Vsmmu {
    type Request = GuestCmds;

    /// Issues a run of commands, batch by batch, and waits until the SMMU has completed it.
    ///
    /// Fails with
    /// * [`EIO`] and a code if there is something wrong with the first command that is not
    ///   complete: `CERROR_ILL` if it is illegal, here or to the SMMU, `CERROR_ABT` if the SMMU
    ///   could not fetch it, `CERROR_ATC_INV_SYNC` if a device did not answer it in time,
    /// * [`EIO`] and `CERROR_ABT` also if the SMMU cannot fetch somebody's command that is before
    ///   these in the queue. What is behind the last `CMD_SYNC` does not count as complete then,
    /// * [`ETIMEDOUT`] if the SMMU does not get that far for another reason, and then neither does
    ///   that,
    /// * what [`UserArray::read()`] fails with.
    fn cache_invalidate(&self, array: &mut UserArray<'_, GuestCmds>) -> Result {
        let smmu = self.smmu();
        let features = smmu.features();
        let mut block = [const { MaybeUninit::uninit() }; BATCH_MAX];
        // How many are consumed and not known to be complete.
        let mut consumed = 0;

        for i in 1..=RUN {
            #[cfg_attr(not(CONFIG_ARM_SMMU_V3_FAULT_INJECTION), expect(unused_mut))]
            let (mut batch, rest) = match array.read(&mut block) {
                Ok(block) => {
                    let (batch, rest) =
                        features.sanitise_block(block, self.vmid(), |vsid| self.vsid_to_sid(vsid));
                    (batch, rest.map_err(|Illegal| Stop::Illegal))
                }
                Err(e) => (Batch::empty(), Err(Stop::Unread(e))),
            };

            #[cfg(CONFIG_ARM_SMMU_V3_FAULT_INJECTION)]
            if let Some(attr) = smmu.cmdq().port.fail_guest_cmd() {
                batch.spoil(|| attr.should_fail(1));
            }

            // Each batch may have to wait for seconds if the SMMU does not go on.
            let is_last = i == RUN
                || array.is_read()
                || rest.is_err()
                || kernel::current!().fatal_signal_pending();
            // What is to be sent again after a time-out is at hand for this batch only.
            let wait = if is_last || batch.has_atc_inv() {
                Wait::Complete
            } else {
                Wait::Consumed
            };

            // The commands before an illegal one take effect first, as they do on a real SMMU.
            if consumed + batch.cmds().len() != 0 {
                if let Err(failure) = smmu.cmdq().issue(batch.cmds(), wait) {
                    return Err(fail(array, consumed, failure));
                }
                consumed += batch.cmds().len();
                if wait == Wait::Complete {
                    array.complete(core::mem::take(&mut consumed));
                }
            }

            rest.map_err(|stop| match stop {
                Stop::Illegal => cerror(array, Cerror::Ill),
                Stop::Unread(e) => e,
            })?;
            if is_last {
                break;
            }
        }
        Ok(())
    }
}

/// Why a batch ends before the block of requests does that it is made of.
enum Stop {
    /// The next request is illegal.
    Illegal,
    /// The next request cannot be read.
    Unread(Error),
}

/// Tells user space of a failure, of a batch with `consumed` commands before it that were not known
/// to be complete.
#[cold]
fn fail(array: &mut UserArray<'_, GuestCmds>, consumed: usize, failure: Failure) -> Error {
    let known = |complete: Option<usize>| complete.map_or(0, |complete| consumed + complete);

    match failure {
        Failure::Cmd { index, cerror: e } => {
            array.complete(consumed + index);
            cerror(array, e)
        }
        Failure::Stuck {
            complete,
            cerror: e,
        } => {
            array.complete(known(complete));
            match e {
                Cerror::Abt => cerror(array, Cerror::Abt),
                // The head of the queue is a CMD_SYNC, which is no command of a guest.
                Cerror::Ill | Cerror::AtcInvSync => ETIMEDOUT,
            }
        }
        Failure::Timeout { complete } => {
            array.complete(known(complete));
            ETIMEDOUT
        }
    }
}

/// Tells user space what is wrong with the first command that is not complete.
fn cerror(array: &mut UserArray<'_, GuestCmds>, cerror: Cerror) -> Error {
    array.set_driver_error_code(match cerror {
        Cerror::Ill => bindings::iommu_viommu_arm_smmuv3_cerror_IOMMU_VIOMMU_ARM_SMMUV3_CERROR_ILL,
        Cerror::Abt => bindings::iommu_viommu_arm_smmuv3_cerror_IOMMU_VIOMMU_ARM_SMMUV3_CERROR_ABT,
        Cerror::AtcInvSync => {
            bindings::iommu_viommu_arm_smmuv3_cerror_IOMMU_VIOMMU_ARM_SMMUV3_CERROR_ATC_INV_SYNC
        }
    });
    EIO
}
