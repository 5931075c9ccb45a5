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
    sanitise::Illegal, //
};

/// Invalidation commands of an SMMUv3: `struct iommu_viommu_arm_smmuv3_invalidate`.
pub(crate) struct GuestCmds;

impl Request for GuestCmds {
    const DATA_TYPE: u32 =
        bindings::iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
    type Entry = Cmd;
}

impl CacheInvalidate for Vsmmu {
    type Request = GuestCmds;

    /// Issues one batch of commands and waits until the SMMU has completed it.
    ///
    /// Fails with
    /// * [`EIO`] and a code if there is something wrong with the first command that is not
    ///   complete: `CERROR_ILL` if it is illegal, here or to the SMMU, `CERROR_ABT` if the SMMU
    ///   could not fetch it, `CERROR_ATC_INV_SYNC` if a device did not answer it in time,
    /// * [`EIO`] and `CERROR_ABT` also if the SMMU cannot fetch somebody's command that is before
    ///   these in the queue. None of the batch counts as complete then,
    /// * [`ETIMEDOUT`] if the SMMU does not get to the batch for another reason, and then as well
    ///   none of it counts as complete,
    /// * what [`UserArray::read()`] fails with.
    fn cache_invalidate(&self, array: &mut UserArray<'_, GuestCmds>) -> Result {
        let mut block = [const { MaybeUninit::uninit() }; BATCH_MAX];
        let block = array.read(&mut block)?;

        let smmu = self.smmu();
        #[cfg_attr(not(CONFIG_ARM_SMMU_V3_FAULT_INJECTION), expect(unused_mut))]
        let (mut batch, rest) = smmu
            .features()
            .sanitise_block(block, self.vmid(), |vsid| self.vsid_to_sid(vsid));

        #[cfg(CONFIG_ARM_SMMU_V3_FAULT_INJECTION)]
        if let Some(attr) = smmu.cmdq().port.fail_guest_cmd() {
            batch.spoil(|| attr.should_fail(1));
        }

        // The commands before an illegal one take effect first, as they do on a real SMMU.
        if !batch.cmds().is_empty() {
            match smmu.cmdq().issue(batch.cmds(), Wait::Complete) {
                Ok(()) => array.complete(batch.cmds().len()),
                Err(Failure::Cmd { index, cerror }) => {
                    array.complete(index);
                    return Err(fail(array, cerror));
                }
                Err(Failure::Stuck { complete, cerror }) => {
                    array.complete(complete);
                    return Err(match cerror {
                        Cerror::Abt => fail(array, Cerror::Abt),
                        // The head of the queue is a CMD_SYNC, which is no command of a guest.
                        Cerror::Ill | Cerror::AtcInvSync => ETIMEDOUT,
                    });
                }
                Err(Failure::Timeout { complete }) => {
                    array.complete(complete);
                    return Err(ETIMEDOUT);
                }
            }
        }

        rest.map_err(|Illegal| fail(array, Cerror::Ill))
    }
}

/// Tells user space what is wrong with the first command that is not complete.
fn fail(array: &mut UserArray<'_, GuestCmds>, cerror: Cerror) -> Error {
    array.set_driver_error_code(match cerror {
        Cerror::Ill => bindings::iommu_viommu_arm_smmuv3_cerror_IOMMU_VIOMMU_ARM_SMMUV3_CERROR_ILL,
        Cerror::Abt => bindings::iommu_viommu_arm_smmuv3_cerror_IOMMU_VIOMMU_ARM_SMMUV3_CERROR_ABT,
        Cerror::AtcInvSync => {
            bindings::iommu_viommu_arm_smmuv3_cerror_IOMMU_VIOMMU_ARM_SMMUV3_CERROR_ATC_INV_SYNC
        }
    });
    EIO
}
