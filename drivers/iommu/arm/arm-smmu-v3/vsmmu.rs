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
    cmd::Cmd,
    ffi::{
        Vsmmu,
        BATCH_MAX, //
    }, //
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
    /// * [`EIO`] and `CERROR_ILL` if the first command that is not complete is illegal,
    /// * [`ETIMEDOUT`] if the SMMU does not consume the batch in time. None of it counts as
    ///   complete then,
    /// * what [`UserArray::read()`] fails with.
    fn cache_invalidate(&self, array: &mut UserArray<'_, GuestCmds>) -> Result {
        let mut block = [const { MaybeUninit::uninit() }; BATCH_MAX];
        let block = array.read(&mut block)?;

        let smmu = self.smmu();
        let (batch, rest) = smmu
            .features()
            .sanitise_block(block, self.vmid(), |vsid| self.vsid_to_sid(vsid));

        // The commands before an illegal one take effect first, as they do on a real SMMU.
        if !batch.cmds().is_empty() {
            smmu.issue(&batch)?;
            array.complete(batch.cmds().len());
        }

        if rest.is_err() {
            array.set_driver_error_code(
                bindings::iommu_viommu_arm_smmuv3_cerror_IOMMU_VIOMMU_ARM_SMMUV3_CERROR_ILL,
            );
            return Err(EIO);
        }
        Ok(())
    }
}
