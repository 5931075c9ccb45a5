// SPDX-License-Identifier: GPL-2.0

//! `ioctl(IOMMU_HWPT_INVALIDATE)`: hands the invalidation requests of user space to the driver of a
//! nested domain or of a vIOMMU.
//!
//! The requests go from user memory straight to the driver. What happens here is what is the same
//! for all drivers: the arguments are checked, the object is looked up, and the driver is called
//! for as long as requests are left. A driver may handle all of them in one call or some of them in
//! each, and the caller may be killed between two calls.

use kernel::{
    bindings,
    page::PAGE_SIZE,
    pr_warn_once,
    prelude::*,
    uaccess::UserPtr, //
};

mod ffi;

use ffi::{
    Object,
    Ucmd, //
};

/// Prefix of messages, as `pr_fmt()` makes it for C files that do not define their own.
const __LOG_PREFIX: &[u8] = b"iommufd\0";

/// What user space passes in `struct iommu_hwpt_invalidate`.
///
/// The word of the error code is not read: a program that uses its struct again has the code of an
/// earlier call in it.
struct Args {
    hwpt_id: u32,
    data_uptr: u64,
    data_type: u32,
    entry_len: u32,
    entry_num: u32,
}

/// What user space gets back in `struct iommu_hwpt_invalidate`.
#[derive(Default)]
struct Output {
    /// How many requests are complete, from the first one on.
    entry_num: u32,

    /// The hardware's error that stopped the next request, 0 if there is none.
    driver_error_code: u32,
}

/// Serves `ioctl(IOMMU_HWPT_INVALIDATE)`.
///
/// Returns 0 or a negative errno. Replaces the function of that name in `hw_pagetable.c`.
///
/// # Safety
///
/// To be called by the ioctl dispatcher of iommufd only: `ucmd` must be valid and not be used by
/// anyone else during the call, and its `cmd` must point to a `struct iommu_hwpt_invalidate`.
#[export]
pub unsafe extern "C" fn iommufd_hwpt_invalidate(ucmd: *mut bindings::iommufd_ucmd) -> c_int {
    // SAFETY: By the safety requirements.
    let mut ucmd = unsafe { Ucmd::from_raw(ucmd) };

    let mut output = Output::default();
    let result = invalidate(&ucmd, &ucmd.args(), &mut output);

    // Errors need the output more than success does.
    match ucmd.respond(&output).and(result) {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}

impl Args {
    /// Refuses what no driver should have to look at.
    fn check(&self) -> Result {
        // Whether the type is supported can be asked without an array.
        if self.entry_num == 0 {
            return Ok(());
        }

        // The limits are on the time that the ioctl takes. Behind each entry up to `entry_len`
        // bytes are searched for one that is not zero.
        if self.data_uptr == 0
            || self.entry_len == 0
            || self.entry_len as usize > PAGE_SIZE
            || self.entry_num > bindings::IOMMU_HWPT_INVALIDATE_ENTRY_NUM_MAX
        {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// The part of the array behind the first `done` requests, as drivers take it.
    fn array(&self, done: u32) -> bindings::iommu_user_data_array {
        let entry_len = self.entry_len as usize;

        // Like `u64_to_user_ptr()`, this loses the upper half on a 32-bit kernel.
        let uptr = UserPtr::from_addr(self.data_uptr as usize)
            .wrapping_byte_add(entry_len.wrapping_mul(done as usize));

        bindings::iommu_user_data_array {
            type_: self.data_type,
            uptr: uptr.as_mut_ptr(),
            entry_len,
            entry_num: self.entry_num - done,
            driver_error_code: 0,
        }
    }
}

/// Carries out the requests, and keeps `output` true at any time.
fn invalidate(ucmd: &Ucmd<'_>, args: &Args, output: &mut Output) -> Result {
    args.check()?;

    let object = Object::get(ucmd, args.hwpt_id)?;

    loop {
        let mut array = args.array(output.entry_num);
        let asked = array.entry_num;

        let result = object.cache_invalidate(&mut array);
        let handled = array.entry_num;

        if let Err(e) = result {
            // The error is about one of the requests, so they cannot all be complete. It is the
            // length of the array, still untouched, that a driver leaves which runs out of memory.
            if handled < asked {
                output.entry_num += handled;
            }
            output.driver_error_code = array.driver_error_code;
            return Err(e);
        }

        if handled >= asked {
            output.entry_num = args.entry_num;
            return Ok(());
        }
        output.entry_num += handled;

        // Such a driver is broken, and would keep us here for ever.
        if handled == 0 {
            pr_warn_once!("an IOMMU driver neither handles invalidation requests nor fails\n");
            return Err(EIO);
        }

        if kernel::current!().fatal_signal_pending() {
            return Err(EINTR);
        }
    }
}
