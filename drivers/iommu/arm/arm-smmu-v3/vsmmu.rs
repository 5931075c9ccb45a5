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
    /// * [`EIO`] and `CERROR_ILL` if the first command that is not complete is illegal,
    /// * [`ETIMEDOUT`] if the SMMU does not consume the batch in time. None of it counts as
    ///   complete then,
    /// * what [`UserArray::read()`] fails with.
    fn cache_invalidate(&self, array: &mut UserArray<'_, GuestCmds>) -> Result {
        let mut block = [const { MaybeUninit::uninit() }; BATCH_MAX];
        let block = array.read(&mut block)?;

        let (batch, rest) = self.sanitise(block);

        // The commands before an illegal one take effect first, as they do on a real SMMU.
        if !batch.is_empty() {
            let count = batch.len();
            self.smmu().issue(batch)?;
            array.complete(count);
        }

        rest.map_err(|Illegal| {
            array.set_driver_error_code(
                bindings::iommu_viommu_arm_smmuv3_cerror_IOMMU_VIOMMU_ARM_SMMUV3_CERROR_ILL,
            );
            EIO
        })
    }
}

/// Commands that are fit for the command queue of the physical SMMU.
///
/// # Invariants
///
/// Each of them is what [`Features::sanitise()`](super::sanitise::Features::sanitise) made of a
/// guest's command.
pub(crate) struct Batch<'a>(&'a mut [Cmd]);

impl<'a> Batch<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// The commands, for the command queue to use up.
    pub(crate) fn into_inner(self) -> &'a mut [Cmd] {
        self.0
    }
}

impl Vsmmu {
    /// Turns the guest's commands in `block` into a batch for the physical SMMU, up to the first
    /// one that is illegal.
    fn sanitise<'a>(&self, block: &'a mut [Cmd]) -> (Batch<'a>, Result<(), Illegal>) {
        let features = self.smmu().features();
        let vmid = self.vmid();

        for i in 0..block.len() {
            match features.sanitise(block[i], vmid, |vsid| self.vsid_to_sid(vsid)) {
                Ok(cmd) => block[i] = cmd,
                // INVARIANT: Those before the `i`th were replaced.
                Err(e) => return (Batch(&mut block[..i]), Err(e)),
            }
        }
        // INVARIANT: All of them were replaced.
        (Batch(block), Ok(()))
    }
}
