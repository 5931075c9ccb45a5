// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidations of the host: of what user space has mapped for its device.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use iommufd_ioctls::IommuFd;
use vfio_ioctls::{VfioDevice, VfioIommufd};
use vm_memory::GuestAddress;
use vsmmu_nested::GuestRam;
use vsmmu_nested::ram::PAGE_SIZE;

use crate::sample::Sampler;

const IOVA: u64 = 0x4000_0000;

/// Measures a call to map a page and one to unmap it.
pub fn run(sampler: &Sampler, sysfs: &Path) -> Result<(), Box<dyn Error>> {
    let len = PAGE_SIZE as usize;
    let page = GuestRam::new(GuestAddress(IOVA), len)?;
    let vfio = Arc::new(VfioIommufd::new(Arc::new(IommuFd::new()?), None, None)?);
    let device = VfioDevice::new(sysfs, vfio.clone(), true)?;
    sampler.case("host: IOAS map + unmap", 1, || {
        // SAFETY: the device has been told to write nowhere, and no reference is ever made to the page.
        unsafe { vfio.vfio_dma_map(IOVA, len, page.host_address()) }?;
        Ok(vfio.vfio_dma_unmap(IOVA, len)?)
    })?;
    drop(device);
    Ok(())
}
