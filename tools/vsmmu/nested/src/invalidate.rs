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
use vmm_sys_util::ioctl::ioctl_with_mut_ptr;

use crate::Command;

/// Flag in [`crate::HwInfo::flags`]: the kernel reports an [`ErrorCode`], and counts exactly.
pub const IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE: u32 = 1 << 1;

/// The most entries that one call takes. One more, and it fails with EINVAL, with nothing done: it is
/// for the caller to send a longer array in pieces.
pub const ENTRY_NUM_MAX: u32 = 1 << 19;

/// What an SMMU would have shown in `CMDQ_CONS.ERR`.
///
/// A VMM puts it there, with `CMDQ_CONS.RD` at the command that each code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// No command error.
    None = 0,
    /// CERROR_ILL: the command is illegal. RD is at the guest's command that failed.
    Ill = 1,
    /// CERROR_ABT: an external abort while fetching the command. RD is at the guest's command that
    /// failed.
    Abt = 2,
    /// CERROR_ATC_INV_SYNC: an ATC invalidation timed out. RD is at the guest's next CMD_SYNC after the
    /// ATC_INV that failed, as an SMMU notices only there.
    AtcInvSync = 3,
}

impl TryFrom<u32> for ErrorCode {
    type Error = u32;

    /// The code that the kernel wrote. A number that has no meaning yet is the error.
    fn try_from(code: u32) -> Result<Self, u32> {
        [Self::None, Self::Ill, Self::Abt, Self::AtcInvSync]
            .into_iter()
            .find(|known| *known as u32 == code)
            .ok_or(code)
    }
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
    /// In: how many entries. Out: how many of them are complete, see [`Outcome`].
    pub entry_num: u32,
    /// Out: an [`ErrorCode`]. In: anything, but 0 for a kernel that does not report one and calls the word
    /// `__reserved`.
    pub out_driver_error_code: u32,
    /// Beyond what kernels know today: must be 0 as far as `size` covers it.
    pub tail: [u32; 8],
}

impl InvalidateArg {
    /// The size of the structure in the uAPI, in bytes.
    pub const UAPI_SIZE: u32 = 32;
    /// The length of one SMMUv3 command in the array, in bytes.
    const ENTRY_LEN: u32 = size_of::<iommu_viommu_arm_smmuv3_invalidate>() as u32;

    /// A call for `commands` on the vIOMMU or HWPT `hwpt_id`. Without any it is a probe: it succeeds
    /// if the kernel takes SMMUv3 commands there.
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
        // SAFETY: the structure is borrowed mutably, and as large as its `size` says.
        let errno = unsafe { Self::call_at(iommufd, self) };
        Outcome {
            errno,
            entry_num: self.entry_num,
            code: self.out_driver_error_code,
        }
    }

    /// Makes the call with an argument that need not be memory of Rust's: on a page that cannot be
    /// written, or shared with another process. Gives 0, or the positive errno.
    ///
    /// # Safety
    ///
    /// For the time of the call, no reference may exist to what is at `arg`, other than the caller's
    /// own. Where there is memory, the structure's `size` must not be larger than that.
    pub unsafe fn call_at(iommufd: &IommuFd, arg: *mut Self) -> i32 {
        // SAFETY: the descriptor is open. The kernel reads `size` bytes and writes at most the 32 of
        // the structure that it knows, which the caller allows; where it cannot, it says so. The array
        // behind `data_uptr` is only read. All that goes through accessors that check the address.
        let ret = unsafe { ioctl_with_mut_ptr(iommufd, IOMMUFD_HWPT_INVALIDATE(), arg) };
        if ret < 0 {
            errno::Error::last().errno()
        } else {
            0
        }
    }
}

/// The answer of the kernel as it is. [`NestedSmmu::invalidate`](crate::NestedSmmu::invalidate) says
/// what can be believed of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// 0, or the positive errno.
    pub errno: i32,
    /// The entries before this one are complete. That is only so if the kernel
    /// [answers exactly](crate::HwInfo::answers_exactly), and has answered: with some errors it leaves
    /// the argument as it was.
    pub entry_num: u32,
    /// Why entry `entry_num` failed, as the bare number that the kernel wrote, see [`ErrorCode`].
    pub code: u32,
}

impl Outcome {
    /// What can be believed of this, when `asked` entries were sent to a kernel that answers exactly
    /// or not.
    pub(crate) fn believe(self, asked: u32, exact: bool) -> Result<(), Failure> {
        if self.errno == 0 {
            return Ok(());
        }
        // One entry at least has failed. If none has, then this is still our own number.
        let answered = exact && (self.entry_num < asked || asked == 0);
        Err(Failure {
            errno: self.errno,
            complete: answered.then_some(self.entry_num),
            code: if answered {
                ErrorCode::try_from(self.code).ok()
            } else {
                None
            },
        })
    }
}

/// An invalidation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the invalidation failed with errno {errno} (entries complete: {complete:?}, {code:?})")]
pub struct Failure {
    /// The positive errno.
    pub errno: i32,
    /// The entries before this one are complete, this one has failed, and nothing is known of those
    /// after it. `None`: the kernel has not said, so that any of them may be complete or not.
    pub complete: Option<u32>,
    /// What the guest is to see. `None`: the kernel has not said, or something unknown.
    pub code: Option<ErrorCode>,
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use iommufd_bindings::iommufd::iommu_hwpt_invalidate;

    use super::*;

    #[test]
    fn what_to_believe() {
        let outcome = |errno, entry_num, code| Outcome {
            errno,
            entry_num,
            code,
        };
        let failure = |errno, complete, code| {
            Err(Failure {
                errno,
                complete,
                code,
            })
        };
        assert_eq!(outcome(0, 3, 0).believe(3, false), Ok(()));
        assert_eq!(
            outcome(5, 2, 1).believe(3, true),
            failure(5, Some(2), Some(ErrorCode::Ill))
        );
        assert_eq!(outcome(5, 2, 9).believe(3, true), failure(5, Some(2), None));
        assert_eq!(outcome(5, 2, 0).believe(3, false), failure(5, None, None));
        assert_eq!(outcome(22, 3, 0).believe(3, true), failure(22, None, None));
    }

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
