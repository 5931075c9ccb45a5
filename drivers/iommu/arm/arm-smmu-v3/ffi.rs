// SPDX-License-Identifier: GPL-2.0

//! The driver's C structs as its Rust code sees them.
//!
//! What is read here was set before the vSMMU came into being and does not change while it lives,
//! so that no lock is needed unless it is said otherwise.

use core::ptr;

use kernel::{
    bindings,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        rcu,
        Arc, //
    }, //
};

#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
use kernel::{
    container_of,
    iommu::iommufd::Viommu,
    types::Opaque, //
};

use super::{
    cmd::Cmd,
    cmdq::{
        Cmdq,
        MAX_HOST_CMDS, //
    },
    smmu_hw::SmmuHw, //
};

#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
use super::sanitise::{
    Features,
    Stream, //
};

// The driver's own batches fit.
const _: () = assert!(MAX_HOST_CMDS == bindings::CMDQ_BATCH_ENTRIES as usize);

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
#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
#[repr(transparent)]
pub(crate) struct Smmu(Opaque<bindings::arm_smmu_device>);

#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
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

    /// The command queue that all users of the SMMU share.
    #[inline]
    pub(crate) fn cmdq(&self) -> &Cmdq<SmmuHw> {
        // SAFETY: By the type invariant the SMMU has been probed, which makes its command queue.
        unsafe { cmdq_from_raw(&raw const (*self.0.get()).cmdq) }
    }
}

/// Picks what the sanitiser needs out of the fields of `struct arm_smmu_device`.
#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
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
#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
#[repr(transparent)]
pub(crate) struct Vsmmu(Opaque<bindings::arm_vsmmu>);

// SAFETY: The fields that are read here never change, and the vIOMMU and the command queue are made
// for use by several threads.
#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
unsafe impl Sync for Vsmmu {}

#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
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
    fn viommu(&self) -> &Viommu<Master> {
        // SAFETY: By the type invariant, the vIOMMU is valid for as long as `self` is. The driver
        // stores a `struct arm_smmu_master` for each device that it probes, and frees it when the
        // device is released, which can no longer be linked then.
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

    /// The stream of the device that the guest knows by `vsid`, or [`None`] if no vDEVICE has it.
    ///
    /// The vDEVICE may be gone, and ATS enabled or disabled, once the answer is used. It is
    /// needless but not wrong to invalidate what a device caches that is no longer the guest's. A
    /// device has an empty cache when ATS is enabled, so that there is nothing to invalidate if it
    /// was disabled a moment before.
    ///
    /// Takes a spinlock. Replaces `arm_vsmmu_vsid_to_sid()`.
    #[inline]
    pub(crate) fn find_stream(&self, vsid: u32) -> Option<Stream> {
        self.viommu().with_vdevice(vsid as usize, |master| {
            let master = master.0.get();

            // SAFETY: The core makes a vDEVICE visible only after the operation `vdevice_init` has
            // accepted it, and those of this driver refuse a device that does not have exactly one
            // stream. Neither streams nor the number of substream bits change afterwards.
            let (sid, ssid_bits) = unsafe { ((*(*master).streams).id, (*master).ssid_bits) };
            // SAFETY: The device is valid.
            let has_ats = unsafe { bindings::arm_smmu_rust_ats_is_enabled(master) };

            Stream {
                sid,
                has_ats,
                has_substreams: ssid_bits != 0,
            }
        })
    }
}

/// A device behind an SMMU, the private data that this driver stores for it: `struct
/// arm_smmu_master`.
///
/// # Invariants
///
/// The struct is valid.
#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
#[repr(transparent)]
struct Master(Opaque<bindings::arm_smmu_master>);

/// A command queue that a C struct points to, for as long as this value exists.
pub(crate) struct CmdqPointer {
    queue: *mut bindings::arm_smmu_cmdq,
    _owner: Arc<Cmdq<SmmuHw>>,
}

// SAFETY: The C struct belongs to no thread, and the queue may be sent to another.
unsafe impl Send for CmdqPointer {}

impl CmdqPointer {
    /// Makes the C struct point to the queue.
    ///
    /// # Safety
    ///
    /// `cmdq` must be valid for as long as the value exists, and not in use yet.
    pub(crate) unsafe fn new(
        queue: &Arc<Cmdq<SmmuHw>>,
        cmdq: *mut bindings::arm_smmu_cmdq,
    ) -> Self {
        // SAFETY: By the safety requirements.
        unsafe { cmdq_pointer(cmdq) }.store(Arc::as_ptr(queue).cast_mut().cast(), Release);
        Self {
            queue: cmdq,
            _owner: queue.clone(),
        }
    }
}

impl Drop for CmdqPointer {
    fn drop(&mut self) {
        // SAFETY: By the safety requirements of `new()`. These use the queue until then.
        unsafe { bindings::arm_smmu_rust_cmdq_disable_works(self.queue) };
        // SAFETY: As above.
        unsafe { cmdq_pointer(self.queue) }.store(ptr::null_mut(), Relaxed);
        // Interrupt handlers may still be at it.
        rcu::synchronize_rcu();
    }
}

/// The pointer in a C struct.
///
/// # Safety
///
/// `cmdq` must be valid for `'a`.
#[inline]
unsafe fn cmdq_pointer<'a>(cmdq: *const bindings::arm_smmu_cmdq) -> &'a Atomic<*mut c_void> {
    // SAFETY: By the safety requirements. Nobody accesses the pointer in another way.
    unsafe { Atomic::from_ptr((&raw const (*cmdq).rust).cast_mut()) }
}

/// Finds the command queue that a C struct stands for.
///
/// # Safety
///
/// `cmdq` must be valid for `'a`, and [`super::arm_smmu_rust_cmdq_alloc()`] must have succeeded for
/// it. The SMMU must be bound to its driver.
#[inline]
pub(crate) unsafe fn cmdq_from_raw<'a>(cmdq: *const bindings::arm_smmu_cmdq) -> &'a Cmdq<SmmuHw> {
    // SAFETY: By the safety requirements the pointer is to a queue, and the queue lives as long as
    // the SMMU is bound to its driver.
    unsafe { &*cmdq_pointer(cmdq).load(Relaxed).cast() }
}

/// Finds the command queue that a C struct stands for, unless it is gone.
///
/// # Safety
///
/// `cmdq` must be valid, and [`super::arm_smmu_rust_cmdq_alloc()`] must have succeeded for it.
pub(crate) unsafe fn cmdq_from_interrupt<'a>(
    cmdq: *const bindings::arm_smmu_cmdq,
    _rcu: &'a rcu::Guard,
) -> Option<&'a Cmdq<SmmuHw>> {
    // SAFETY: By the safety requirements. A queue that is found is not freed before the end of the
    // RCU read-side critical section.
    unsafe {
        cmdq_pointer(cmdq)
            .load(Acquire)
            .cast::<Cmdq<SmmuHw>>()
            .as_ref()
    }
}
