// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The iommufd objects of a nested SMMU.

use std::path::Path;
use std::sync::Arc;

use iommufd_bindings::iommufd::{
    iommu_hw_info_arm_smmuv3, iommu_hw_info_type_IOMMU_HW_INFO_TYPE_ARM_SMMUV3, iommu_hwpt_alloc,
    iommu_hwpt_arm_smmuv3, iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3,
    iommu_hwpt_data_type_IOMMU_HWPT_DATA_NONE, iommu_vdevice_alloc, iommu_viommu_alloc,
    iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
    iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT,
};
use iommufd_ioctls::{IommuFd, IommufdError, IommufdHwInfoData};
use vfio_ioctls::{VfioDevice, VfioError, VfioIommufd};
use vm_memory::Address;

use crate::invalidate::{IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE, InvalidateArg, Outcome};
use crate::{Command, GuestRam};

/// Why there is no nested SMMU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The iommufd object named first could not be made or used.
    #[error("{0}: {1}")]
    Iommufd(&'static str, #[source] IommufdError),
    /// The vfio device could not be used for what is named first.
    #[error("{0}: {1}")]
    Vfio(&'static str, #[source] VfioError),
    /// The device is behind another kind of IOMMU.
    #[error("the device is not behind an SMMUv3 (hw_info type {0})")]
    NotSmmuv3(u32),
}

/// What the kernel says of the SMMU.
///
/// The uAPI lists the fields of the registers that a VMM should look at. ATS is not one of them: it
/// is here to tell which commands the kernel refuses, as it does that by the hardware.
#[derive(Clone, Copy, Debug, Default)]
pub struct HwInfo {
    /// Flags of the kernel, not of the hardware.
    pub flags: u32,
    /// The registers SMMU_IDR0..=SMMU_IDR5.
    pub idr: [u32; 6],
}

impl HwInfo {
    /// Whether the kernel reports an [`crate::ErrorCode`] for a failed invalidation.
    pub fn reports_error_code(&self) -> bool {
        self.flags & IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE != 0
    }

    /// Range invalidation (IDR3.RIL).
    pub fn ril(&self) -> bool {
        self.idr[3] & 1 << 10 != 0
    }

    /// 16-bit ASIDs, else 8 (IDR0.ASID16).
    pub fn asid16(&self) -> bool {
        self.idr[0] & 1 << 12 != 0
    }

    /// Address translation services (IDR0.ATS).
    pub fn ats(&self) -> bool {
        self.idr[0] & 1 << 10 != 0
    }

    /// 52-bit addresses with small granules (IDR5.DS), which widens SCALE and allows more TTLs.
    pub fn ds(&self) -> bool {
        self.idr[5] & 1 << 7 != 0
    }

    /// Bits of a substream id, 0 when there are none (IDR1.SSIDSIZE).
    pub fn ssid_bits(&self) -> u32 {
        self.idr[1] >> 6 & 0x1f
    }
}

/// A vfio device behind a nested SMMUv3: stage 2 maps the guest memory, stage 1 is what
/// [`NestedSmmu::attach`] is given.
pub struct NestedSmmu {
    device: VfioDevice,
    vfio: Arc<VfioIommufd>,
    dev_id: u32,
    hw_info: HwInfo,
    s2_hwpt_id: u32,
    viommu_id: u32,
    vdevice_id: Option<u32>,
    s1_hwpt_id: Option<u32>,
    vsid: u32,
    // The last field, as fields are dropped in their order: until the two above are gone the device can
    // write to it.
    ram: GuestRam,
}

impl NestedSmmu {
    /// Opens `/dev/iommu`, binds the device at `sysfs` (see [`crate::pci::bind_to_vfio`]) to it, maps
    /// `ram` in stage 2, and tells the SMMU that the guest knows the device as stream `vsid`.
    ///
    /// The device is not attached to anything yet.
    ///
    /// # Errors
    ///
    /// When the kernel refuses one of the steps; the error says which.
    pub fn new(sysfs: &Path, ram: GuestRam, vsid: u32) -> Result<Self, Error> {
        let iommufd = IommuFd::new().map_err(|e| Error::Iommufd("/dev/iommu", e))?;
        let vfio =
            VfioIommufd::new(Arc::new(iommufd), None, None).map_err(|e| Error::Vfio("IOAS", e))?;
        let vfio = Arc::new(vfio);
        let device = VfioDevice::new(sysfs, vfio.clone(), false)
            .map_err(|e| Error::Vfio("bind the vfio device to iommufd", e))?;
        let dev_id = device
            .iommufd_dev_id()
            .expect("a cdev that is bound has an id");
        let hw_info = hw_info(vfio.iommufd(), dev_id)?;

        // SAFETY: the kernel pins the pages, and the device may write to them as long as they are
        // mapped. They are anonymous memory of `ram`, which never makes a reference to it, only
        // volatile and atomic accesses through pointers, and outlives the mapping: the fields `device`
        // and `vfio` end before it.
        unsafe { vfio.vfio_dma_map(ram.base().raw_value(), ram.size(), ram.host_address()) }
            .map_err(|e| Error::Vfio("map the guest memory in the IOAS", e))?;

        // From here on a drop takes back what has been made.
        let mut this = NestedSmmu {
            device,
            vfio,
            dev_id,
            hw_info,
            s2_hwpt_id: 0,
            viommu_id: 0,
            vdevice_id: None,
            s1_hwpt_id: None,
            vsid,
            ram,
        };
        this.s2_hwpt_id = this.alloc_hwpt(
            "stage 2 as nesting parent",
            iommu_hwpt_alloc {
                flags: iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT,
                pt_id: this.ioas_id(),
                data_type: iommu_hwpt_data_type_IOMMU_HWPT_DATA_NONE,
                ..Default::default()
            },
        )?;
        let mut viommu = iommu_viommu_alloc {
            size: size_of::<iommu_viommu_alloc>() as u32,
            type_: iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
            dev_id,
            hwpt_id: this.s2_hwpt_id,
            ..Default::default()
        };
        this.iommufd()
            .alloc_iommu_viommu(&mut viommu)
            .map_err(|e| {
                Error::Iommufd("vIOMMU (the SMMU needs stage 2, and CANWBS or S2FWB)", e)
            })?;
        this.viommu_id = viommu.out_viommu_id;
        this.create_vdevice()?;
        Ok(this)
    }

    /// What the kernel says of the SMMU.
    pub fn hw_info(&self) -> HwInfo {
        self.hw_info
    }

    /// The vfio device, for its registers.
    pub fn device(&self) -> &VfioDevice {
        &self.device
    }

    /// The guest memory, all of it mapped by stage 2.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The open `/dev/iommu`.
    pub fn iommufd(&self) -> &IommuFd {
        self.vfio.iommufd()
    }

    /// The object id of the vIOMMU.
    pub fn viommu_id(&self) -> u32 {
        self.viommu_id
    }

    /// The object id of the IOAS.
    pub fn ioas_id(&self) -> u32 {
        self.vfio.ioas().id()
    }

    /// The object id of stage 2.
    pub fn s2_hwpt_id(&self) -> u32 {
        self.s2_hwpt_id
    }

    /// The object id of the nested HWPT, once there is one.
    pub fn s1_hwpt_id(&self) -> Option<u32> {
        self.s1_hwpt_id
    }

    /// The stream id by which the guest knows the device.
    pub fn vsid(&self) -> u32 {
        self.vsid
    }

    /// Makes the vDEVICE again after [`NestedSmmu::destroy_vdevice`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses, as it does when there is one.
    pub fn create_vdevice(&mut self) -> Result<(), Error> {
        let mut vdevice = iommu_vdevice_alloc {
            size: size_of::<iommu_vdevice_alloc>() as u32,
            viommu_id: self.viommu_id,
            dev_id: self.dev_id,
            virt_id: self.vsid.into(),
            ..Default::default()
        };
        self.iommufd()
            .alloc_iommu_vdevice(&mut vdevice)
            .map_err(|e| Error::Iommufd("vDEVICE", e))?;
        self.vdevice_id = Some(vdevice.out_vdevice_id);
        Ok(())
    }

    /// Destroys the vDEVICE: from then on the vSID means nothing.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn destroy_vdevice(&mut self) -> Result<(), Error> {
        if let Some(id) = self.vdevice_id.take() {
            self.iommufd()
                .destroy_iommu_object(id)
                .map_err(|e| Error::Iommufd("destroy the vDEVICE", e))?;
        }
        Ok(())
    }

    /// Attaches the device to a stage 1 that the stream table entry `ste` describes (its first two
    /// words in the CPU's endianness, see [`crate::stage1::ste`]), in place of what it had.
    ///
    /// # Errors
    ///
    /// When the kernel does not like the entry, or cannot attach.
    pub fn attach(&mut self, ste: [u64; 2]) -> Result<(), Error> {
        let data = iommu_hwpt_arm_smmuv3 {
            ste: ste.map(u64::to_le),
        };
        let id = self.alloc_hwpt(
            "nested HWPT",
            iommu_hwpt_alloc {
                pt_id: self.viommu_id,
                data_type: iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3,
                data_len: size_of_val(&data) as u32,
                data_uptr: &raw const data as u64,
                ..Default::default()
            },
        )?;
        let attached = self.device.attach_hwpt(id);
        let unused = if attached.is_ok() {
            self.s1_hwpt_id.replace(id)
        } else {
            Some(id)
        };
        if let Some(unused) = unused {
            self.iommufd()
                .destroy_iommu_object(unused)
                .map_err(|e| Error::Iommufd("destroy the unused nested HWPT", e))?;
        }
        attached.map_err(|e| Error::Vfio("attach to the nested HWPT", e))
    }

    /// Has the SMMU execute `commands`, and says how far it came. Any answer of the kernel is an
    /// outcome, there is no other kind of error.
    pub fn invalidate(&self, commands: &[Command]) -> Outcome {
        InvalidateArg::new(self.viommu_id, commands).call(self.iommufd())
    }

    fn alloc_hwpt(&self, what: &'static str, alloc: iommu_hwpt_alloc) -> Result<u32, Error> {
        let mut alloc = iommu_hwpt_alloc {
            size: size_of::<iommu_hwpt_alloc>() as u32,
            dev_id: self.dev_id,
            ..alloc
        };
        self.iommufd()
            .alloc_iommu_hwpt(&mut alloc)
            .map_err(|e| Error::Iommufd(what, e))?;
        Ok(alloc.out_hwpt_id)
    }
}

impl Drop for NestedSmmu {
    fn drop(&mut self) {
        // Users before what they use. A failure has no remedy here: the kernel takes everything back
        // when the descriptors are closed.
        let _ = self.device.detach_hwpt();
        let ids = [self.s1_hwpt_id, self.vdevice_id];
        let ids = ids.into_iter().flatten();
        for id in ids.chain([self.viommu_id, self.s2_hwpt_id]) {
            if id != 0 {
                let _ = self.iommufd().destroy_iommu_object(id);
            }
        }
    }
}

fn hw_info(iommufd: &IommuFd, dev_id: u32) -> Result<HwInfo, Error> {
    let mut data = IommufdHwInfoData::Smmuv3(iommu_hw_info_arm_smmuv3::default());
    let info = iommufd
        .device_hw_info(dev_id, &mut data)
        .map_err(|e| Error::Iommufd("hw_info", e))?;
    // SAFETY: both members of the union are the same integer.
    let kind = unsafe { info.__bindgen_anon_1.out_data_type };
    if kind != iommu_hw_info_type_IOMMU_HW_INFO_TYPE_ARM_SMMUV3 {
        return Err(Error::NotSmmuv3(kind));
    }
    let IommufdHwInfoData::Smmuv3(data) = data;
    Ok(HwInfo {
        flags: data.flags,
        idr: data.idr,
    })
}
