// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The iommufd objects of a nested SMMU.

use std::iter;
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

use crate::invalidate::{Failure, IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE, InvalidateArg};
use crate::{Command, GuestRam};

/// Why there is no nested SMMU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is named first could not be done with iommufd.
    #[error("cannot {0}")]
    Iommufd(&'static str, #[source] IommufdError),
    /// What is named first could not be done with the vfio device.
    #[error("cannot {0}")]
    Vfio(&'static str, #[source] VfioError),
    /// The device is behind another kind of IOMMU.
    #[error("the device is not behind an SMMUv3 (hw_info type {0})")]
    NotSmmuv3(u32),
    /// [`Vdevice::create`] was called while there is one.
    #[error("there is a vDEVICE already")]
    VdeviceExists,
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
    /// Whether the kernel, when an invalidation fails, says exactly how many entries are complete, and
    /// why the next one is not.
    pub fn answers_exactly(&self) -> bool {
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
    device: Arc<VfioDevice>,
    vfio: Arc<VfioIommufd>,
    dev_id: u32,
    hw_info: HwInfo,
    s2_hwpt_id: Option<u32>,
    viommu_id: Option<u32>,
    vdevice: Option<Vdevice>,
    s1_hwpt_id: Option<u32>,
    added: Vec<Added>,
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
        let iommufd = IommuFd::new().map_err(|e| {
            Error::Iommufd(
                "use iommufd (is this root, and CONFIG_IOMMUFD in the kernel?)",
                e,
            )
        })?;
        let iommufd = Arc::new(iommufd);
        let vfio = VfioIommufd::new(iommufd.clone(), None, None)
            .map_err(|e| Error::Vfio("make an IOAS", e))?;
        let vfio = Arc::new(vfio);
        let device = VfioDevice::new(sysfs, vfio.clone(), false).map_err(|e| {
            let what = "bind the vfio device to iommufd (has another program opened it?)";
            Error::Vfio(what, e)
        })?;
        let dev_id = device
            .iommufd_dev_id()
            .expect("a cdev that is bound has an id");
        let hw_info = hw_info(vfio.iommufd(), dev_id)?;

        // SAFETY: from here on the device may write to the memory. Nothing in Rust relies on its content
        // staying the same: `ram` never makes a reference to it, only volatile and atomic accesses. The
        // kernel pins the pages, so what the device writes goes to them and no others even after `ram`
        // has unmapped them, and that ends what we owe: nobody can look at them any more.
        unsafe { vfio.vfio_dma_map(ram.base().raw_value(), ram.size(), ram.host_address()) }
            .map_err(|e| {
                let what = "map the guest memory in the IOAS (does ulimit -l allow to lock it?)";
                Error::Vfio(what, e)
            })?;

        // From here on a drop takes back what has been made.
        let mut this = NestedSmmu {
            device: Arc::new(device),
            vfio,
            dev_id,
            hw_info,
            s2_hwpt_id: None,
            viommu_id: None,
            vdevice: None,
            s1_hwpt_id: None,
            added: Vec::new(),
            ram,
        };
        let s2_hwpt_id = this.alloc_hwpt(
            "make a stage 2 that is a nesting parent",
            iommu_hwpt_alloc {
                flags: iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT,
                dev_id,
                pt_id: this.ioas_id(),
                data_type: iommu_hwpt_data_type_IOMMU_HWPT_DATA_NONE,
                ..Default::default()
            },
        )?;
        this.s2_hwpt_id = Some(s2_hwpt_id);
        let mut viommu = iommu_viommu_alloc {
            size: size_of::<iommu_viommu_alloc>() as u32,
            type_: iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
            dev_id,
            hwpt_id: s2_hwpt_id,
            ..Default::default()
        };
        this.iommufd()
            .alloc_iommu_viommu(&mut viommu)
            .map_err(|e| Error::Iommufd("make a vIOMMU (the SMMU needs CANWBS or S2FWB)", e))?;
        this.viommu_id = Some(viommu.out_viommu_id);
        this.vdevice
            .insert(Vdevice {
                iommufd,
                viommu_id: viommu.out_viommu_id,
                dev_id,
                vsid,
                id: None,
            })
            .create()?;
        Ok(this)
    }

    /// What the kernel says of the SMMU.
    pub fn hw_info(&self) -> HwInfo {
        self.hw_info
    }

    /// The vfio device, for its registers.
    pub fn device(&self) -> &Arc<VfioDevice> {
        &self.device
    }

    /// All vfio devices: the first, and those that were added, in their order.
    pub fn devices(&self) -> impl Iterator<Item = &Arc<VfioDevice>> {
        iter::once(&self.device).chain(self.added.iter().map(|added| &added.device))
    }

    /// The guest memory, all of it mapped by stage 2.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The open `/dev/iommu`.
    pub fn iommufd(&self) -> &Arc<IommuFd> {
        self.vfio.iommufd()
    }

    /// The object id of the vIOMMU.
    pub fn viommu_id(&self) -> u32 {
        self.viommu_id.expect("new() has made it")
    }

    /// The object id of the IOAS.
    pub fn ioas_id(&self) -> u32 {
        self.vfio.ioas().id()
    }

    /// The object id of stage 2.
    pub fn s2_hwpt_id(&self) -> u32 {
        self.s2_hwpt_id.expect("new() has made it")
    }

    /// The object id of the nested HWPT, once there is one.
    pub fn s1_hwpt_id(&self) -> Option<u32> {
        self.s1_hwpt_id
    }

    /// The vDEVICE. There is one after [`NestedSmmu::new`].
    pub fn vdevice(&mut self) -> &mut Vdevice {
        self.vdevice.as_mut().expect("new() has made it")
    }

    /// Attaches the device to a stage 1 that the stream table entry `ste` describes (its first two
    /// words in the CPU's endianness, see [`crate::stage1::ste`]), in place of what it had.
    ///
    /// # Errors
    ///
    /// When the kernel does not like the entry, or cannot attach.
    pub fn attach(&mut self, ste: [u64; 2]) -> Result<(), Error> {
        self.attach_nth(0, ste)
    }

    /// As [`NestedSmmu::attach`], for one of [`NestedSmmu::devices`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// If there is no such device.
    pub fn attach_nth(&mut self, n: usize, ste: [u64; 2]) -> Result<(), Error> {
        let (device, dev_id) = self.nth(n);
        let device = device.clone();
        let id = self.alloc_nested(dev_id, ste)?;
        if let Err(e) = device.attach_hwpt(id) {
            // The reason to be here is worth more than that of a failure to clean up.
            let _ = self.iommufd().destroy_iommu_object(id);
            return Err(Error::Vfio("attach the device to the nested HWPT", e));
        }
        let unused = self.nth_hwpt_id(n).replace(id);
        self.destroy_hwpt(unused)
    }

    fn nth(&self, n: usize) -> (&Arc<VfioDevice>, u32) {
        match n.checked_sub(1) {
            None => (&self.device, self.dev_id),
            Some(n) => (&self.added[n].device, self.added[n].vdevice.dev_id),
        }
    }

    fn nth_hwpt_id(&mut self, n: usize) -> &mut Option<u32> {
        match n.checked_sub(1) {
            None => &mut self.s1_hwpt_id,
            Some(n) => &mut self.added[n].s1_hwpt_id,
        }
    }

    /// Has another device behind the same nested SMMU, as stream `vsid` to the guest, for as long as this
    /// exists. It is to be attached by [`NestedSmmu::attach_added`].
    ///
    /// # Errors
    ///
    /// When the kernel refuses one of the steps; the error says which.
    pub fn add(&mut self, sysfs: &Path, vsid: u32) -> Result<(), Error> {
        let device = VfioDevice::new(sysfs, self.vfio.clone(), false).map_err(|e| {
            let what = "bind another vfio device to iommufd (has another program opened it?)";
            Error::Vfio(what, e)
        })?;
        let dev_id = device
            .iommufd_dev_id()
            .expect("a cdev that is bound has an id");
        let mut vdevice = Vdevice {
            iommufd: self.iommufd().clone(),
            viommu_id: self.viommu_id(),
            dev_id,
            vsid,
            id: None,
        };
        vdevice.create()?;
        self.added.push(Added {
            device: Arc::new(device),
            vdevice,
            s1_hwpt_id: None,
        });
        Ok(())
    }

    /// As [`NestedSmmu::attach`], for the devices that were added.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn attach_added(&mut self, ste: [u64; 2]) -> Result<(), Error> {
        (1..=self.added.len()).try_for_each(|n| self.attach_nth(n, ste))
    }

    /// Attaches the device to stage 2 alone, in place of what it had: it goes by the addresses of the
    /// guest's memory.
    ///
    /// # Errors
    ///
    /// When the kernel cannot attach.
    pub fn attach_stage2(&mut self) -> Result<(), Error> {
        self.attach_nth_stage2(0)
    }

    /// As [`NestedSmmu::attach_stage2`], for one of [`NestedSmmu::devices`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// If there is no such device.
    pub fn attach_nth_stage2(&mut self, n: usize) -> Result<(), Error> {
        let (device, _) = self.nth(n);
        device
            .attach_hwpt(self.s2_hwpt_id())
            .map_err(|e| Error::Vfio("attach the device to stage 2", e))?;
        let unused = self.nth_hwpt_id(n).take();
        self.destroy_hwpt(unused)
    }

    fn destroy_hwpt(&self, id: Option<u32>) -> Result<(), Error> {
        let Some(id) = id else {
            return Ok(());
        };
        self.iommufd()
            .destroy_iommu_object(id)
            .map_err(|e| Error::Iommufd("destroy the former nested HWPT", e))
    }

    /// Has the SMMU execute `commands`, at most [`ENTRY_NUM_MAX`](crate::invalidate::ENTRY_NUM_MAX) of
    /// them. Without any, only asks whether the kernel takes such commands.
    ///
    /// # Errors
    ///
    /// When not all of them are complete. The failure says how many are, if the kernel does.
    ///
    /// # Panics
    ///
    /// If there are more than `u32::MAX` commands.
    pub fn invalidate(&self, commands: &[Command]) -> Result<(), Failure> {
        let mut arg = InvalidateArg::new(self.viommu_id(), commands);
        let asked = arg.entry_num;
        arg.call(self.iommufd())
            .believe(asked, self.hw_info.answers_exactly())
    }

    fn alloc_nested(&self, dev_id: u32, ste: [u64; 2]) -> Result<u32, Error> {
        let data = iommu_hwpt_arm_smmuv3 {
            ste: ste.map(u64::to_le),
        };
        self.alloc_hwpt(
            "make a nested HWPT",
            iommu_hwpt_alloc {
                dev_id,
                pt_id: self.viommu_id(),
                data_type: iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3,
                data_len: size_of_val(&data) as u32,
                data_uptr: &raw const data as u64,
                ..Default::default()
            },
        )
    }

    fn alloc_hwpt(&self, what: &'static str, alloc: iommu_hwpt_alloc) -> Result<u32, Error> {
        let mut alloc = iommu_hwpt_alloc {
            size: size_of::<iommu_hwpt_alloc>() as u32,
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
        for Added {
            device,
            vdevice,
            s1_hwpt_id,
        } in &mut self.added
        {
            let _ = device.detach_hwpt();
            let _ = vdevice.destroy();
            if let Some(id) = *s1_hwpt_id {
                let _ = self.vfio.iommufd().destroy_iommu_object(id);
            }
        }
        let _ = self.device.detach_hwpt();
        let vdevice_id = self.vdevice.as_ref().and_then(|vdevice| vdevice.id);
        let ids = [self.s1_hwpt_id, vdevice_id, self.viommu_id, self.s2_hwpt_id];
        for id in ids.into_iter().flatten() {
            let _ = self.iommufd().destroy_iommu_object(id);
        }
    }
}

/// Another device behind a [`NestedSmmu`].
struct Added {
    device: Arc<VfioDevice>,
    vdevice: Vdevice,
    s1_hwpt_id: Option<u32>,
}

/// The vDEVICE of a [`NestedSmmu`]: what makes the vSID mean the device.
///
/// Another thread may have it while this one goes on with invalidations.
pub struct Vdevice {
    iommufd: Arc<IommuFd>,
    viommu_id: u32,
    dev_id: u32,
    vsid: u32,
    id: Option<u32>,
}

impl Vdevice {
    /// Makes it again after [`Vdevice::destroy`].
    ///
    /// # Errors
    ///
    /// When there is one, or the kernel refuses.
    pub fn create(&mut self) -> Result<(), Error> {
        if self.id.is_some() {
            return Err(Error::VdeviceExists);
        }
        let mut vdevice = iommu_vdevice_alloc {
            size: size_of::<iommu_vdevice_alloc>() as u32,
            viommu_id: self.viommu_id,
            dev_id: self.dev_id,
            virt_id: self.vsid.into(),
            ..Default::default()
        };
        self.iommufd
            .alloc_iommu_vdevice(&mut vdevice)
            .map_err(|e| Error::Iommufd("make a vDEVICE", e))?;
        self.id = Some(vdevice.out_vdevice_id);
        Ok(())
    }

    /// Destroys it, if there is one: from then on the vSID means nothing.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. There still is one then.
    pub fn destroy(&mut self) -> Result<(), Error> {
        if let Some(id) = self.id {
            self.iommufd
                .destroy_iommu_object(id)
                .map_err(|e| Error::Iommufd("destroy the vDEVICE", e))?;
            self.id = None;
        }
        Ok(())
    }
}

fn hw_info(iommufd: &IommuFd, dev_id: u32) -> Result<HwInfo, Error> {
    let mut data = IommufdHwInfoData::Smmuv3(iommu_hw_info_arm_smmuv3::default());
    let info = iommufd
        .device_hw_info(dev_id, &mut data)
        .map_err(|e| Error::Iommufd("get the hw_info of the SMMU", e))?;
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
