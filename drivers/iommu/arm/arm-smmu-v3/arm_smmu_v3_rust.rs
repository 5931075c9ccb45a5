// SPDX-License-Identifier: GPL-2.0

//! The Rust parts of the driver for Arm SMMUv3: invalidation commands of guests.
//!
//! A VMM passes on what it finds in the command queue of a guest's virtual SMMU. [`vsmmu`] takes
//! the commands, block by block, has [`sanitise`] check them and put the IDs of the physical SMMU
//! in place of the guest's, and hands them to the command queue of the physical SMMU. The layouts
//! of commands are in [`cmd`], and what is still in C is reached through [`ffi`].

use kernel::{
    bindings,
    iommu::iommufd,
    prelude::*, //
};

mod cmd;
mod ffi;
mod sanitise;
mod vsmmu;

#[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
mod tests;

use ffi::Vsmmu;

/// The operation `cache_invalidate` of a vSMMU.
///
/// Replaces the function of that name in `arm-smmu-v3-iommufd.c`. The vIOMMUs of Tegra241 use it
/// too.
///
/// # Safety
///
/// To be called by the iommufd core only: `viommu` must be part of a valid `struct arm_vsmmu`, and
/// `array` valid and not used by anyone else.
#[export]
pub unsafe extern "C" fn arm_vsmmu_cache_invalidate(
    viommu: *mut bindings::iommufd_viommu,
    array: *mut bindings::iommu_user_data_array,
) -> c_int {
    // SAFETY: By the safety requirements.
    let vsmmu = unsafe { Vsmmu::from_viommu(viommu) };
    // SAFETY: By the safety requirements.
    let array = unsafe { &mut *array };

    iommufd::dispatch(vsmmu, array)
}
