// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ioctl, with all that it answers.

use iommufd_bindings::iommufd::{
    iommu_hwpt_invalidate,
    iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 as DATA_ARM_SMMUV3,
};
use iommufd_ioctls::{IommuFd, IommufdError};

use crate::command::COMMAND_LEN;
use crate::{Batch, Outcome};

/// Has the vIOMMU execute the commands: what is to be done for an
/// [`Action::Invalidate`](crate::Action::Invalidate).
///
/// The error code is in a word that older headers call reserved, so bindings of any age will do.
pub fn invalidate(iommufd: &IommuFd, viommu_id: u32, batch: &Batch) -> Outcome {
    let mut arg = iommu_hwpt_invalidate {
        size: size_of::<iommu_hwpt_invalidate>() as u32,
        hwpt_id: viommu_id,
        data_uptr: batch.address(),
        data_type: DATA_ARM_SMMUV3,
        entry_len: COMMAND_LEN as u32,
        entry_num: batch.count(),
        __reserved: 0,
    };
    let errno = match iommufd.invalidate_hwpt(&mut arg) {
        Ok(()) => 0,
        Err(IommufdError::IommuHwptInvalidate(e)) => e.errno(),
        // It has no other.
        Err(_) => libc::EINVAL,
    };
    Outcome {
        errno,
        done: arg.entry_num,
        code: arg.__reserved,
    }
}
