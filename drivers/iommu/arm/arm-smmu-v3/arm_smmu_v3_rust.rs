// SPDX-License-Identifier: GPL-2.0

//! The Rust parts of the driver for Arm SMMUv3: the command queue, and the invalidation commands of
//! guests.
//!
//! All users of an SMMU share its command queue: [`cmdq`], on top of [`ring`], [`error_log`],
//! [`streams`] and [`hw`], which is a physical SMMU in [`smmu_hw`]. C calls it by the functions
//! below.
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

#[cfg_attr(not(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD), allow(dead_code))]
mod cmd;
#[cfg_attr(not(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD), allow(dead_code))]
mod cmdq;
mod debugfs;
#[cfg_attr(not(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD), allow(dead_code))]
mod error_log;
mod ffi;
mod hw;
mod ring;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
mod sanitise;
mod smmu_hw;
#[cfg_attr(not(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD), allow(dead_code))]
mod streams;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_IOMMUFD)]
mod vsmmu;

#[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
mod soft_random;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
mod soft_smmu;
#[cfg(all(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST, CONFIG_ARM_SMMU_V3_RUST_IOMMUFD))]
mod tests;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
mod tests_cmdq;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
mod tests_cmdq_concurrent;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
mod tests_cmdq_errors;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
mod tests_harness;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
mod tests_soft_smmu;
#[cfg(CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST)]
mod tests_streams;

use cmd::Cmd;
use cmdq::{
    Cmdq,
    Failure, //
};
use error_log::Handled;
use ffi::{
    cmdq_from_interrupt,
    cmdq_from_raw,
    CmdqPointer, //
};
use smmu_hw::SmmuHw;

/// Makes a command queue, for `arm_smmu_cmdq_init()`.
///
/// # Safety
///
/// To be called when the SMMU is probed, with an `smmu` and a `cmdq` that are valid until it is
/// unbound from its driver, after the queue's memory has been allocated and its registers are set,
/// and before its first use.
#[export]
pub unsafe extern "C" fn arm_smmu_rust_cmdq_alloc(
    smmu: *mut bindings::arm_smmu_device,
    cmdq: *mut bindings::arm_smmu_cmdq,
) -> c_int {
    from_result(|| {
        // SAFETY: By the safety requirements. What is allocated during the probe is freed after
        // what is registered below, so that it outlives the queue.
        let hw = unsafe { SmmuHw::new(smmu, cmdq) };
        // SAFETY: By the safety requirements.
        let len = 1 << unsafe { (*cmdq).q.llq.max_n_shift };
        let queue = Arc::pin_init(Cmdq::new(hw, len), GFP_KERNEL)?;
        // SAFETY: By the safety requirements, the device is being probed.
        let dev: &Device = unsafe { Device::from_raw((*smmu).dev) };
        // SAFETY: As above.
        let dev = unsafe { dev.as_bound() };

        // SAFETY: By the safety requirements.
        devres::register(dev, unsafe { CmdqPointer::new(&queue, cmdq) }, GFP_KERNEL)?;
        // An SMMU may have others than its own.
        // SAFETY: Only makes a pointer.
        if cmdq == unsafe { &raw mut (*smmu).cmdq } {
            devres::register(dev, debugfs::scope(queue, dev.name()), GFP_KERNEL)?;
        }
        Ok(0)
    })
}

/// Issues commands of the host; see [`Cmdq::issue_host()`], also for the contexts in which this may
/// be called.
///
/// Returns 0, `-EIO` if the SMMU raised an error for a command, or `-ETIMEDOUT` if it did not
/// complete the commands in time. Most callers ignore that.
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

    match queue.issue_host(cmds, sync) {
        Ok(()) => 0,
        Err(Failure::Cmd { .. } | Failure::Stuck { .. }) => EIO.to_errno(),
        Err(Failure::Timeout { .. } | Failure::Interrupted { .. }) => ETIMEDOUT.to_errno(),
    }
}

/// Handles the active error of a command queue, for an interrupt handler.
///
/// Returns
/// * 0 if there was none since the last call,
/// * 1 if the error was acknowledged, here or before by a CPU that waits for the queue,
/// * 2 if it has to be acknowledged later. There is no interrupt for that, so this has to be called
///   again after some milliseconds.
///
/// # Safety
///
/// `cmdq` must be a queue of an SMMU, for which [`arm_smmu_rust_cmdq_alloc()`] has succeeded. The
/// SMMU may have been unbound from its driver since: the interrupt of Tegra241's queues outlives
/// them.
#[export]
pub unsafe extern "C" fn arm_smmu_rust_cmdq_handle_error(
    cmdq: *mut bindings::arm_smmu_cmdq,
) -> c_int {
    let rcu = rcu::read_lock();

    // SAFETY: By the safety requirements.
    match unsafe { cmdq_from_interrupt(cmdq, &rcu) }.map(|queue| queue.handle_error(false)) {
        None | Some(Handled::NoError) => 0,
        Some(Handled::Acknowledged(_) | Handled::ByWaiter) => 1,
        Some(Handled::Later) => 2,
    }
}

/// Acknowledges errors in `SMMU_GERROR` without handling them.
///
/// `errors` are bits of that register. Those of them are acknowledged that are active. The one of
/// the command queue is included only when that is disabled.
///
/// # Safety
///
/// As for [`arm_smmu_rust_cmdq_handle_error()`].
#[export]
pub unsafe extern "C" fn arm_smmu_rust_gerror_ack(cmdq: *mut bindings::arm_smmu_cmdq, errors: u32) {
    let rcu = rcu::read_lock();
    // SAFETY: By the safety requirements.
    let Some(queue) = (unsafe { cmdq_from_interrupt(cmdq, &rcu) }) else {
        return;
    };

    // Another CPU may be about to acknowledge an error of the command queue.
    queue.log.with_lock(|| queue.hw.acknowledge_errors(errors));
}

/// Prepares a command queue for an SMMU that is being reset: acknowledges an error that is active,
/// such as one that the previous kernel has left.
///
/// Returns what `SMMU_CMDQ_PROD` and `SMMU_CMDQ_CONS` have to be set to. Commands that were not
/// consumed are dropped, so that all caches of the SMMU have to be invalidated afterwards.
///
/// # Safety
///
/// As for [`arm_smmu_rust_cmdq_issue()`]. The SMMU must have its command queue disabled, and
/// nobody may issue commands meanwhile.
#[export]
pub unsafe extern "C" fn arm_smmu_rust_cmdq_reset(cmdq: *mut bindings::arm_smmu_cmdq) -> u32 {
    // SAFETY: By the safety requirements.
    unsafe { cmdq_from_raw(cmdq) }.reset()
}

/// Takes a stream off those whose ATS is to be blocked, and writes its ID to `sid`. Returns false
/// if there is none.
///
/// # Safety
///
/// As for [`arm_smmu_rust_cmdq_issue()`], and `sid` must be valid for a write.
#[export]
pub unsafe extern "C" fn arm_smmu_rust_cmdq_next_to_block(
    cmdq: *mut bindings::arm_smmu_cmdq,
    sid: *mut u32,
) -> bool {
    // SAFETY: By the safety requirements.
    let next = unsafe { cmdq_from_raw(cmdq) }.next_to_block();

    if let Some(next) = next {
        // SAFETY: By the safety requirements.
        unsafe { sid.write(next) };
    }
    next.is_some()
}

/// Forgets that the device of a stream has not answered `CMD_ATC_INV`s, as it was attached or
/// reset.
///
/// # Safety
///
/// As for [`arm_smmu_rust_cmdq_issue()`].
#[export]
pub unsafe extern "C" fn arm_smmu_rust_cmdq_forget_stream(
    cmdq: *mut bindings::arm_smmu_cmdq,
    sid: u32,
) {
    // SAFETY: By the safety requirements.
    unsafe { cmdq_from_raw(cmdq) }.forget_stream(sid);
}

/// The operation `cache_invalidate` of a vSMMU.
///
/// In place of `arm_vsmmu_cache_invalidate()`. The vIOMMUs of Tegra241 use it too.
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
    let array = unsafe { kernel::iommu::iommufd::UserDataArray::from_raw(array) };

    from_result(|| {
        kernel::iommu::iommufd::dispatch(vsmmu, array)?;
        Ok(0)
    })
}
