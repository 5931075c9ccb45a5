// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ioctl(IOMMU_HWPT_INVALIDATE)` with all that it answers.
//!
//! `iommufd-ioctls` has the call, but not its outputs on failure, nor the driver's error code, nor a
//! way to pass a structure of another size or an array of other than 16-byte entries.

use iommufd_bindings::iommufd::{
    iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 as DATA_ARM_SMMUV3,
    iommu_viommu_arm_smmuv3_invalidate,
};
use iommufd_ioctls::{IOMMUFD_HWPT_INVALIDATE, IommuFd};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use crate::Command;

/// Flag in [`crate::HwInfo::flags`]: the kernel reports an [`ErrorCode`].
pub const IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE: u32 = 1 << 1;

/// The most entries that one call takes.
pub const ENTRY_NUM_MAX: u32 = 1 << 19;

/// What an SMMU would have shown in `CMDQ_CONS.ERR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// No command error.
    None = 0,
    /// CERROR_ILL: the command is illegal.
    Ill = 1,
    /// CERROR_ABT: an external abort while fetching the command.
    Abt = 2,
    /// CERROR_ATC_INV_SYNC: an ATC invalidation timed out.
    AtcInvSync = 3,
}

/// The argument of the ioctl, in host endianness, with room for a kernel newer than this code.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct InvalidateArg {
    /// How many bytes of this the kernel is to look at.
    pub size: u32,
    /// The id of a vIOMMU or nested HWPT.
    pub hwpt_id: u32,
    /// The address of the array. The kernel only reads it, and checks that it can.
    pub data_uptr: u64,
    /// The kind of entry in the array.
    pub data_type: u32,
    /// The distance from one entry to the next, in bytes.
    pub entry_len: u32,
    /// In: how many entries. Out: how many of them are complete.
    pub entry_num: u32,
    /// In: 0. Out: an [`ErrorCode`]. (`__reserved` to a kernel that does not report one.)
    pub out_driver_error_code: u32,
    /// Beyond what kernels know today: must be 0 as far as `size` covers it.
    pub tail: [u32; 8],
}

impl InvalidateArg {
    /// The size of the structure in the uAPI, in bytes.
    pub const UAPI_SIZE: u32 = 32;
    /// The length of one SMMUv3 command in the array, in bytes.
    pub const ENTRY_LEN: u32 = size_of::<iommu_viommu_arm_smmuv3_invalidate>() as u32;

    /// A call for `commands` on the vIOMMU or HWPT `hwpt_id`.
    ///
    /// Only the address goes into the argument, so `commands` has to outlive the call. If it does
    /// not, the call reads what else is there, which is safe, but not what anybody wants.
    ///
    /// # Panics
    ///
    /// If there are more than `u32::MAX` commands.
    pub fn new(hwpt_id: u32, commands: &[Command]) -> Self {
        InvalidateArg {
            size: Self::UAPI_SIZE,
            hwpt_id,
            data_uptr: commands.as_ptr() as u64,
            data_type: DATA_ARM_SMMUV3,
            entry_len: Self::ENTRY_LEN,
            entry_num: commands.len().try_into().expect("too many commands"),
            out_driver_error_code: 0,
            tail: [0; 8],
        }
    }

    /// Makes the call. The kernel's answer is in the outcome, and `self` as the kernel left it.
    ///
    /// # Panics
    ///
    /// If `size` says that the structure is larger than it is: the kernel would read beyond it.
    pub fn call(&mut self, iommufd: &IommuFd) -> Outcome {
        assert!(self.size as usize <= size_of::<Self>());
        // SAFETY: the descriptor is open. The kernel reads `size` bytes and writes at most the 32
        // of the structure that it knows; both lie in `self`, which is borrowed mutably. The array
        // behind `data_uptr` is only read, through accessors that check the address.
        let ret = unsafe { ioctl_with_mut_ref(iommufd, IOMMUFD_HWPT_INVALIDATE(), self) };
        let errno = if ret < 0 {
            errno::Error::last().errno()
        } else {
            0
        };
        self.outcome(errno)
    }

    /// The outcome that the output words and `errno` make.
    pub fn outcome(&self, errno: i32) -> Outcome {
        Outcome {
            errno,
            entry_num: self.entry_num,
            code: self.out_driver_error_code,
        }
    }
}

/// The whole answer of the kernel. All three parts are needed: see the contract of the ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// 0, or the positive errno.
    pub errno: i32,
    /// The entries before this one are complete.
    pub entry_num: u32,
    /// Why entry `entry_num` failed: an [`ErrorCode`], as the bare number that the kernel wrote.
    pub code: u32,
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use iommufd_bindings::iommufd::iommu_hwpt_invalidate;

    use super::*;

    /// The kernel sees the structure of the uAPI, with one word renamed.
    #[test]
    fn same_layout_as_the_bindings() {
        assert_eq!(
            size_of::<iommu_hwpt_invalidate>(),
            InvalidateArg::UAPI_SIZE as usize
        );
        assert_eq!(
            offset_of!(InvalidateArg, tail),
            InvalidateArg::UAPI_SIZE as usize
        );
        macro_rules! same {
            ($($ours:ident $theirs:ident),*) => {$(
                assert_eq!(
                    offset_of!(InvalidateArg, $ours),
                    offset_of!(iommu_hwpt_invalidate, $theirs)
                );
            )*};
        }
        same!(size size, hwpt_id hwpt_id, data_uptr data_uptr, data_type data_type,
              entry_len entry_len, entry_num entry_num, out_driver_error_code __reserved);
        assert_eq!(InvalidateArg::ENTRY_LEN as usize, size_of::<Command>());
    }
}
