// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VM: an open iommufd with devices, and what is known of its objects.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use iommufd_bindings::iommufd as uapi;
use vfio_bindings::bindings::vfio;
use vsmmu_nested::{HwInfo, pci};

use crate::sys::{self, Arg, Memory, Place};

/// Of a device: bind, attach, detach, region info.
const DEVICE_GET_REGION_INFO: u64 = 8;
const DEVICE_BIND_IOMMUFD: u64 = 18;
pub const DEVICE_ATTACH_IOMMUFD_PT: u64 = 19;
pub const DEVICE_DETACH_IOMMUFD_PT: u64 = 20;

/// An object of iommufd.
#[derive(Debug)]
pub enum Object {
    /// One of [`Vm::devices`].
    Device,
    Ioas,
    /// `plain` if it can be attached to each device.
    Paging {
        ioas: u32,
        nest: bool,
        plain: bool,
        fault: Option<u32>,
    },
    /// `translates` if its STE has a stage 1; `plain` as above.
    Nested {
        viommu: u32,
        translates: bool,
        plain: bool,
        fault: Option<u32>,
    },
    Viommu {
        hwpt: u32,
    },
    Vdevice {
        viommu: u32,
        device: u32,
        vsid: u64,
    },
    /// With the file, as long as it is open.
    Fault {
        file: Option<File>,
    },
    Veventq {
        viommu: u32,
        kind: u32,
        file: Option<File>,
    },
}

impl Object {
    /// Whether it refers to the object `id`.
    fn uses(&self, id: u32) -> bool {
        match *self {
            Object::Paging { ioas, fault, .. } => ioas == id || fault == Some(id),
            Object::Nested { viommu, fault, .. } => viommu == id || fault == Some(id),
            Object::Viommu { hwpt } => hwpt == id,
            Object::Vdevice { viommu, .. } | Object::Veventq { viommu, .. } => viommu == id,
            Object::Device | Object::Ioas | Object::Fault { .. } => false,
        }
    }

    /// Whether it is in use by itself.
    fn is_held(&self) -> bool {
        match self {
            // By vfio, and by its open file.
            Object::Device => true,
            Object::Fault { file } | Object::Veventq { file, .. } => file.is_some(),
            _ => false,
        }
    }
}

/// A device of a VM.
pub struct Device {
    pub file: File,
    pub id: u32,
    /// What it is attached to, by the ID that was passed.
    pub attached: Option<u32>,
    /// It may not have answered an ATC_INV since it was attached.
    pub suspect: bool,
    /// Where its registers are, if it is an edu.
    edu: Option<u64>,
}

/// A VM.
pub struct Vm {
    pub file: File,
    pub devices: Vec<Device>,
    pub objects: BTreeMap<u32, Object>,
    pub hw: HwInfo,
}

fn failed(what: &'static str, errno: i32) -> io::Error {
    let error = io::Error::from_raw_os_error(errno);
    io::Error::new(error.kind(), format!("cannot {what}: {error}"))
}

impl Device {
    fn open(sysfs: &Path, iommufd: &File, edu: bool, memory: &mut Memory) -> io::Result<Self> {
        let entry = fs::read_dir(sysfs.join("vfio-dev"))?.next();
        let name = entry
            .ok_or_else(|| io::Error::other("the device has no cdev"))??
            .file_name();
        let cdev = Path::new("/dev/vfio/devices").join(name);
        let file = OpenOptions::new().read(true).write(true).open(cdev)?;
        let mut arg = Arg::new(vfio::vfio_device_bind_iommufd {
            argsz: size_of::<vfio::vfio_device_bind_iommufd>() as u32,
            iommufd: iommufd.as_raw_fd(),
            ..Default::default()
        });
        let number = sys::vfio(DEVICE_BIND_IOMMUFD);
        match memory.ioctl(file.as_raw_fd(), number, &mut arg, Place::Memory) {
            0 => {}
            errno => return Err(failed("bind a device to iommufd", errno)),
        }
        let region = |index, memory: &mut Memory| {
            let mut arg = Arg::new(vfio::vfio_region_info {
                argsz: size_of::<vfio::vfio_region_info>() as u32,
                index,
                ..Default::default()
            });
            let number = sys::vfio(DEVICE_GET_REGION_INFO);
            match memory.ioctl(file.as_raw_fd(), number, &mut arg, Place::Memory) {
                0 => Ok(arg.get::<vfio::vfio_region_info>().offset),
                errno => Err(failed("find a region of a device", errno)),
            }
        };
        let registers = if edu {
            let config = region(vfio::VFIO_PCI_CONFIG_REGION_INDEX, memory)?;
            // Memory space, and DMA.
            file.write_all_at(&6_u16.to_le_bytes(), config + 4)?;
            Some(region(vfio::VFIO_PCI_BAR0_REGION_INDEX, memory)?)
        } else {
            None
        };
        let id = arg.get::<vfio::vfio_device_bind_iommufd>().out_devid;
        Ok(Device {
            file,
            id,
            attached: None,
            suspect: false,
            edu: registers,
        })
    }

    /// Has it read from `iova`, if it can, and waits until it has.
    pub fn dma(&self, iova: u64) -> io::Result<()> {
        let Some(registers) = self.edu else {
            return Ok(());
        };
        // Source, destination in its own memory, length, start.
        for (register, value) in [(0x80, iova), (0x88, 0x4_0000), (0x90, 8), (0x98, 1)] {
            self.file
                .write_all_at(&u64::to_le_bytes(value), registers + register)?;
        }
        std::thread::sleep(Duration::from_millis(110));
        Ok(())
    }
}

impl Vm {
    /// Opens iommufd, and binds the devices at these PCI addresses.
    pub fn new(devices: &[(String, (u16, u16))], memory: &mut Memory) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/iommu")?;
        let mut vm = Vm {
            file,
            devices: Vec::new(),
            objects: BTreeMap::new(),
            hw: HwInfo::default(),
        };
        for (bdf, ids) in devices {
            let sysfs = pci::bind_to_vfio(bdf, *ids).map_err(io::Error::other)?;
            let edu = *ids == vsmmu_nested::edu::PCI_ID;
            let device = Device::open(&sysfs, &vm.file, edu, memory)?;
            vm.objects.insert(device.id, Object::Device);
            vm.devices.push(device);
        }
        let mut data = Box::new(uapi::iommu_hw_info_arm_smmuv3::default());
        let mut arg = Arg::new(uapi::iommu_hw_info {
            size: size_of::<uapi::iommu_hw_info>() as u32,
            dev_id: vm.devices[0].id,
            data_len: size_of_val(&*data) as u32,
            data_uptr: &raw mut *data as u64,
            ..Default::default()
        });
        let number = sys::iommufd(uapi::IOMMUFD_CMD_GET_HW_INFO);
        match memory.ioctl(vm.fd(), number, &mut arg, Place::Memory) {
            0 => {
                vm.hw = HwInfo {
                    flags: data.flags,
                    idr: data.idr,
                }
            }
            errno => return Err(failed("get the hw_info", errno)),
        }
        Ok(vm)
    }

    /// The open iommufd.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether the object is in use, so that it cannot be destroyed.
    pub fn is_busy(&self, id: u32) -> bool {
        self.objects.get(&id).is_some_and(Object::is_held)
            || self.objects.values().any(|object| object.uses(id))
            || self
                .devices
                .iter()
                .any(|device| device.attached == Some(id))
    }

    /// The vDEVICE of a vIOMMU that has this ID: the device.
    pub fn device_of(&self, in_viommu: u32, stream: u32) -> Option<&Device> {
        let id = self.objects.values().find_map(|object| match *object {
            Object::Vdevice {
                viommu,
                device,
                vsid,
            } => (viommu == in_viommu && vsid == u64::from(stream)).then_some(device),
            _ => None,
        })?;
        self.devices.iter().find(|device| device.id == id)
    }

    /// Whether the device has a vDEVICE, in a certain vIOMMU or in any.
    pub fn has_vdevice(&self, of: u32, inside: Option<u32>) -> bool {
        self.objects.values().any(|object| match *object {
            Object::Vdevice { viommu, device, .. } => {
                device == of && inside.is_none_or(|inside| inside == viommu)
            }
            _ => false,
        })
    }

    /// The stream IDs of the vDEVICEs of a vIOMMU.
    pub fn vsids(&self, of: u32) -> Vec<u32> {
        let ids = self.objects.values().filter_map(|object| match *object {
            Object::Vdevice { viommu, vsid, .. } if viommu == of => u32::try_from(vsid).ok(),
            _ => None,
        });
        ids.collect()
    }

    /// Reads what there is in the queues, and closes them.
    pub fn close_queues(&mut self) {
        for object in self.objects.values_mut() {
            if let Object::Fault { file } | Object::Veventq { file, .. } = object
                && let Some(mut file) = file.take()
            {
                let mut buffer = [0; 4096];
                // There need not be anything.
                let _ = file.read(&mut buffer);
            }
        }
    }

    /// The objects that can be destroyed now, but for the devices.
    pub fn unused(&self) -> Vec<u32> {
        let ids = self.objects.keys().copied();
        ids.filter(|id| !self.is_busy(*id)).collect()
    }
}

/// Takes over a file that the kernel has opened for us, and has it not wait.
pub fn own(fd: RawFd) -> io::Result<File> {
    // SAFETY: it has been opened just now, for whoever asked.
    let file = unsafe { File::from_raw_fd(fd) };
    // Opened anew, it would be another one; fcntl changes it as it is.
    // SAFETY: the descriptor is open.
    if unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// The kernel's messages from now on.
pub struct Messages(File);

impl Messages {
    /// Begins.
    pub fn new() -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        // SAFETY: the descriptor is open.
        if unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_END) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Messages(file))
    }

    /// Those that no kernel should say.
    pub fn bad(&mut self) -> Vec<String> {
        const BAD: [&str; 14] = [
            "WARNING:",
            "BUG:",
            "Oops",
            "Internal error",
            "KASAN",
            "KCSAN",
            "UBSAN",
            "refcount_t",
            "possible circular locking",
            "inconsistent lock",
            "suspicious RCU",
            "blocked for more than",
            "detected stall",
            "Time out waiting for iommufd",
        ];
        let mut bad = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    if BAD.iter().any(|word| text.contains(word)) {
                        bad.push(text.trim().into());
                    }
                }
                // Some were overwritten before they were read.
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => return bad,
            }
        }
    }
}
