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
    cmdq::Failure,
    ffi::Vsmmu,
    hw::Cerror,
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

/// The requests of a call for which no memory has to be allocated.
const SMALL_BLOCK: usize = 64;

impl CacheInvalidate for Vsmmu {
    type Request = GuestCmds;

    /// Issues a batch of commands, and waits until the SMMU has completed them.
    ///
    /// Fails with
    /// * [`EIO`] and the code of the error if the SMMU raised one for the first command that is not
    ///   complete, or would have: `CERROR_ILL` if it is illegal, `CERROR_ABT` if the SMMU could not
    ///   fetch it twice, `CERROR_ATC_INV_SYNC` if its device did not answer,
    /// * [`ETIMEDOUT`] if the SMMU does not complete the commands in time,
    /// * [`EINTR`] if the thread gets a fatal signal,
    /// * the errors of [`UserArray::read()`].
    #[inline(always)]
    fn cache_invalidate(&self, array: &mut UserArray<'_, GuestCmds>) -> Result {
        let smmu = self.smmu();
        let cmdq = smmu.cmdq();
        let max = cmdq.max_guest_cmds;
        let mut small = [const { MaybeUninit::uninit() }; SMALL_BLOCK];
        let mut large = None;

        // The wait for the CMD_SYNC takes most of the time, so it pays to have many commands before
        // one. Without the memory for that it still works.
        if array.remaining() > SMALL_BLOCK && max > SMALL_BLOCK {
            large = KVec::with_capacity(max, GFP_KERNEL | __GFP_NOWARN).ok();
        }
        let block = match &mut large {
            Some(large) => &mut large.spare_capacity_mut()[..max],
            None => &mut small[..SMALL_BLOCK.min(max)],
        };

        #[cfg_attr(not(CONFIG_ARM_SMMU_V3_FAULT_INJECTION), expect(unused_mut))]
        let (mut batch, rest) =
            smmu.features()
                .sanitise_block(array.read(block)?, self.vmid(), |vsid| {
                    self.find_stream(vsid)
                });

        #[cfg(CONFIG_ARM_SMMU_V3_FAULT_INJECTION)]
        if let Some(attr) = cmdq.hw.fail_guest_cmd() {
            batch.make_illegal(|| attr.should_fail(1));
        }

        // The commands before an illegal one take effect first, as they do on a real SMMU.
        if !batch.cmds().is_empty() {
            cmdq.issue_guest(batch.cmds(), batch.has_atc_inv())
                .map_err(|failure| fail(array, &batch, failure))?;
        }
        array.complete(batch.requests(batch.cmds().len()))?;

        rest.map_err(|Illegal| cerror(array, Cerror::Ill))
    }
}

/// Reports the failure of a batch to user space.
#[cold]
fn fail(array: &mut UserArray<'_, GuestCmds>, batch: &Batch<'_>, failure: Failure) -> Error {
    let (complete, error) = match failure {
        Failure::Cmd { index, cerror: e } => (index, cerror(array, e)),
        Failure::Stuck {
            complete,
            cerror: e,
        } => (complete, cerror(array, e)),
        Failure::Timeout { complete, .. } => (complete, ETIMEDOUT),
        Failure::Interrupted { complete } => (complete, EINTR),
    };

    array
        .complete(batch.requests(complete))
        .err()
        .unwrap_or(error)
}

/// Reports the error of the first command that is not complete to user space.
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
