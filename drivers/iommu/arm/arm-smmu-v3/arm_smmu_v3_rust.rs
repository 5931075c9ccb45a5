// SPDX-License-Identifier: GPL-2.0

//! The Rust parts of the driver for Arm SMMUv3: the command queue, and the invalidation commands of
//! guests.
//!
//! All users of an SMMU share its command queue, which is [`cmdq`], with [`cerror`] for when the
//! SMMU stops it at an error. It has a [`port`] to the hardware. C calls it by the functions below.
//!
//! A VMM passes on what it finds in the command queue of a guest's virtual SMMU. [`vsmmu`] takes
//! the commands, block by block, has [`sanitise`] check them and put the IDs of the physical SMMU
//! in place of the guest's, and hands them to the command queue. The layouts of commands are in
//! [`cmd`], and what is still in C is reached through [`ffi`].

use core::slice;

use kernel::{
    bindings,
    device::Device,
    devres,
    error::from_result,
    prelude::*,
    sync::{
        rcu,
        Arc, //
    }, //
};

mod cerror;
#[cfg_attr(not(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD), allow(dead_code))]
mod cmd;
#[cfg_attr(not(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD), allow(dead_code))]
mod cmdq;
mod debugfs;
mod ffi;
mod port;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
mod sanitise;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
mod vsmmu;

#[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
mod soft_smmu;
#[cfg(all(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST, CONFIG_ARM_SMMU_V3_RUST_IOMMUFD))]
mod tests;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
mod tests_cmdq;

use cmd::Cmd;
use cmdq::{
    Cmdq,
    Failure,
    Wait, //
};
use ffi::{
    cmdq_from_interrupt,
    cmdq_from_raw,
    Published, //
};
use port::SmmuPort;

/// Makes a command queue, for `arm_smmu_cmdq_init()`.
///
/// # Safety
///
/// To be called when the SMMU is probed, with an `smmu` and a `cmdq` that are valid until it is
/// unbound from its driver, after the queue's memory has been allocated and its registers are set,
/// and before its first use.
#[export]
pub unsafe extern "C" fn arm_smmu_rust_cmdq_init(
    smmu: *mut bindings::arm_smmu_device,
    cmdq: *mut bindings::arm_smmu_cmdq,
) -> c_int {
    from_result(|| {
        // SAFETY: By the safety requirements. What is allocated during the probe is freed after
        // what is registered below, so that it outlives the queue.
        let port = unsafe { SmmuPort::new(smmu, cmdq) };
        // SAFETY: By the safety requirements.
        let len = 1 << unsafe { (*cmdq).q.llq.max_n_shift };
        let queue = Arc::pin_init(Cmdq::new(port, len), GFP_KERNEL)?;
        // SAFETY: By the safety requirements, the device is being probed.
        let dev: &Device = unsafe { Device::from_raw((*smmu).dev) };
        // SAFETY: As above.
        let dev = unsafe { dev.as_bound() };

        // SAFETY: By the safety requirements.
        devres::register(dev, unsafe { Published::new(&queue, cmdq) }, GFP_KERNEL)?;
        // An SMMU may have others than its own.
        // SAFETY: Only makes a pointer.
        if cmdq == unsafe { &raw mut (*smmu).cmdq } {
            devres::register(dev, debugfs::scope(queue, dev.name()), GFP_KERNEL)?;
        }
        Ok(0)
    })
}

/// Issues commands, for `__arm_smmu_cmdq_issue_cmdlist()`.
///
/// To be called in the same contexts as [`Cmdq::issue()`].
///
/// Returns 0, `-EIO` if the SMMU finds fault with a command or does not go on because of an error,
/// or `-ETIMEDOUT` if it consumes nothing for a second, or does not get that far in five.
///
/// # Safety
///
/// `cmdq` must be a queue of an SMMU that is bound to its driver, and there be `n` commands in
/// `cmds`.
#[export]
pub unsafe extern "C" fn arm_smmu_rust_cmdq_issue(
    cmdq: *mut bindings::arm_smmu_cmdq,
    cmds: *mut bindings::arm_smmu_cmd,
    n: c_int,
    sync: bool,
) -> c_int {
    let cmds = if n > 0 {
        // SAFETY: By the safety requirements, and the C struct has the layout of `Cmd`.
        // CAST: Checked.
        unsafe { slice::from_raw_parts(cmds.cast::<Cmd>(), n as usize) }
    } else {
        &[]
    };
    // SAFETY: By the safety requirements.
    let queue = unsafe { cmdq_from_raw(cmdq) };

    let wait = if sync { Wait::Complete } else { Wait::No };

    // Most callers ignore what this returns.
    match queue.issue_insistently(cmds, wait) {
        Ok(()) => 0,
        Err(Failure::Cmd { .. } | Failure::Stuck { .. }) => EIO.to_errno(),
        Err(Failure::Timeout { .. }) => ETIMEDOUT.to_errno(),
    }
}

/// Services the errors of a command queue, for an interrupt handler.
///
/// Acknowledges them too, unlike `__arm_smmu_cmdq_skip_err()` in C, and so has nothing to do if
/// another CPU has serviced them.
///
/// # Safety
///
/// `cmdq` must be a queue of an SMMU, for which [`arm_smmu_rust_cmdq_init()`] has succeeded. It may
/// be too late: the interrupt of Tegra241's queues outlives them.
#[export]
pub unsafe extern "C" fn arm_smmu_rust_cmdq_service(cmdq: *mut bindings::arm_smmu_cmdq) {
    let rcu = rcu::read_lock();

    // SAFETY: By the safety requirements.
    if let Some(queue) = unsafe { cmdq_from_interrupt(cmdq, &rcu) } {
        let _ = queue.service_error(false);
    }
}

/// Acknowledges the other errors that share a register with those of a command queue.
///
/// `errors` are bits of `SMMU_GERROR`. Those of them are acknowledged that are active.
///
/// # Safety
///
/// As for [`arm_smmu_rust_cmdq_service()`].
#[export]
pub unsafe extern "C" fn arm_smmu_rust_gerror_ack(cmdq: *mut bindings::arm_smmu_cmdq, errors: u32) {
    let rcu = rcu::read_lock();
    // SAFETY: By the safety requirements.
    let Some(queue) = (unsafe { cmdq_from_interrupt(cmdq, &rcu) }) else {
        return;
    };

    // Somebody else may be about to acknowledge an error of the command queue.
    let _guard = queue.service.lock();
    queue
        .port
        .acknowledge_errors(errors & !bindings::GERROR_CMDQ_ERR);
}

/// The operation `cache_invalidate` of a vSMMU.
///
/// For `arm_vsmmu_cache_invalidate()`, which the vIOMMUs of Tegra241 use too.
///
/// # Safety
///
/// To be called by the iommufd core only: `viommu` must be part of a valid `struct arm_vsmmu`, and
/// `array` valid and not used by anyone else.
#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
#[export]
pub unsafe extern "C" fn arm_vsmmu_rust_cache_invalidate(
    viommu: *mut bindings::iommufd_viommu,
    array: *mut bindings::iommu_user_data_array,
) -> c_int {
    // SAFETY: By the safety requirements.
    let vsmmu = unsafe { ffi::Vsmmu::from_viommu(viommu) };
    // SAFETY: By the safety requirements.
    let array = unsafe { &mut *array };

    kernel::iommu::iommufd::dispatch(vsmmu, array)
}
