// SPDX-License-Identifier: GPL-2.0

//! The driver's C structs as its Rust code sees them.
//!
//! What is read here was set before the vSMMU came into being and does not change while it lives,
//! so that no lock is needed unless it is said otherwise.

use kernel::{
    bindings,
    container_of,
    error::to_result,
    iommu::iommufd::Viommu,
    prelude::*,
    types::Opaque, //
};

use super::{
    cmd::Cmd,
    sanitise::{
        Batch,
        Features, //
    }, //
};

/// The most commands in a batch.
///
/// With its `CMD_SYNC` it is as large as the driver's own batches, which fit into any queue that
/// the driver accepts.
pub(crate) const BATCH_MAX: usize = bindings::CMDQ_BATCH_ENTRIES as usize - 1;

// Commands are handed over to C as they are.
const _: () = assert!(
    cfg!(target_endian = "little")
        && size_of::<Cmd>() == size_of::<bindings::arm_smmu_cmd>()
        && align_of::<Cmd>() == align_of::<bindings::arm_smmu_cmd>()
);

/// A physical SMMU: `struct arm_smmu_device`.
///
/// # Invariants
///
/// The struct is valid, and the SMMU has been probed.
#[repr(transparent)]
pub(crate) struct Smmu(Opaque<bindings::arm_smmu_device>);

impl Smmu {
    /// What the SMMU implements.
    #[inline]
    pub(crate) fn features(&self) -> Features {
        let smmu = self.0.get();
        // SAFETY: By the type invariant, and none of it changes after the probe.
        let (features, asid_bits, ssid_bits) =
            unsafe { ((*smmu).features, (*smmu).asid_bits, (*smmu).ssid_bits) };

        features_of(features, asid_bits, ssid_bits)
    }

    /// Puts `batch` with a `CMD_SYNC` behind it into the command queue, and waits until the SMMU
    /// has completed them.
    ///
    /// Fails with [`ETIMEDOUT`] if that takes longer than the time limit of the driver, which is a
    /// second. Disables interrupts meanwhile.
    pub(crate) fn issue(&self, batch: &Batch<'_>) -> Result {
        let smmu = self.0.get();
        let cmds = batch.cmds();

        // SAFETY: By the type invariant `smmu` is valid and has a command queue. There are as many
        // commands as is said, which are only read, and with the `CMD_SYNC` they make a batch.
        let ret = unsafe {
            bindings::__arm_smmu_cmdq_issue_cmdlist(
                smmu,
                &raw mut (*smmu).cmdq,
                cmds.as_ptr().cast_mut().cast(),
                // CAST: At most `BATCH_MAX`.
                cmds.len() as c_int,
                true,
            )
        };
        to_result(ret)
    }
}

/// Picks what the sanitiser needs out of the fields of `struct arm_smmu_device`.
#[inline]
pub(crate) fn features_of(features: u32, asid_bits: u32, ssid_bits: u32) -> Features {
    Features {
        range_inv: features & bindings::ARM_SMMU_FEAT_RANGE_INV != 0,
        ds: features & bindings::ARM_SMMU_FEAT_DS != 0,
        ats: features & bindings::ARM_SMMU_FEAT_ATS != 0,
        asid_bits,
        ssid_bits,
    }
}

/// A VM's part of an SMMU: `struct arm_vsmmu`.
///
/// # Invariants
///
/// The struct is valid and has been initialized by `arm_vsmmu_init()`.
#[repr(transparent)]
pub(crate) struct Vsmmu(Opaque<bindings::arm_vsmmu>);

// SAFETY: The fields that are read here never change, and the vIOMMU and the command queue are made
// for use by several threads.
unsafe impl Sync for Vsmmu {}

impl Vsmmu {
    /// Finds the vSMMU that a vIOMMU is part of.
    ///
    /// # Safety
    ///
    /// `viommu` must be the `core` of a `struct arm_vsmmu` that is initialized and valid for `'a`.
    #[inline]
    pub(crate) unsafe fn from_viommu<'a>(viommu: *mut bindings::iommufd_viommu) -> &'a Self {
        // SAFETY: By the safety requirements.
        let vsmmu = unsafe { container_of!(viommu, bindings::arm_vsmmu, core) };

        // INVARIANT: By the safety requirements.
        // SAFETY: `Self` is transparent over the C struct, which is valid.
        unsafe { &*vsmmu.cast() }
    }

    /// The vIOMMU that iommufd knows it by.
    #[inline]
    fn viommu(&self) -> &Viommu {
        // SAFETY: By the type invariant, the vIOMMU is valid for as long as `self` is.
        unsafe { Viommu::from_raw(&raw mut (*self.0.get()).core) }
    }

    /// The physical SMMU that it is a part of.
    #[inline]
    pub(crate) fn smmu(&self) -> &Smmu {
        // INVARIANT: A vSMMU is made of an SMMU that has been probed.
        // SAFETY: By the type invariant, the pointer is set and never changes. The SMMU outlives
        // the vSMMU, as the core asks of drivers: the devices behind it cannot do without it.
        unsafe { &*(*self.0.get()).smmu.cast() }
    }

    /// The VMID of all the guest's translations.
    #[inline]
    pub(crate) fn vmid(&self) -> u16 {
        // SAFETY: By the type invariant, it is set and never changes.
        unsafe { (*self.0.get()).vmid }
    }

    /// The stream ID of the device that the guest knows by `vsid`, or [`None`] if no vDEVICE has
    /// it.
    ///
    /// The vDEVICE may be gone once the answer is used. To invalidate what a device caches that is
    /// no longer the guest's is needless but not wrong.
    ///
    /// Takes a spinlock. Replaces `arm_vsmmu_vsid_to_sid()`.
    #[inline]
    pub(crate) fn vsid_to_sid(&self, vsid: u32) -> Option<u32> {
        self.viommu().with_vdevice(vsid as usize, |master| {
            let master: *mut bindings::arm_smmu_master = master.cast();

            // SAFETY: The core links a device only to a vIOMMU of the device's own IOMMU, so that
            // the private data is a `struct arm_smmu_master`. It shows a vDEVICE only after the
            // operation `vdevice_init` has accepted it, and those of this driver refuse a device
            // that has not got exactly one stream. Streams do not change afterwards.
            unsafe { (*(*master).streams).id }
        })
    }
}
