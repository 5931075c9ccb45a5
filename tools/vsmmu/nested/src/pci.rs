// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Finding a PCI device in sysfs and giving it to vfio-pci.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const DEVICES: &str = "/sys/bus/pci/devices";
const DRIVER: &str = "vfio-pci";

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such device.
    #[error("no PCI device {0} (is it in the machine, and is sysfs mounted on /sys?)")]
    NoDevice(String),
    /// It is a device of another kind, which is left alone.
    #[error("the PCI device {bdf} is of the kind {found}, not {wanted}")]
    OtherDevice {
        /// The device.
        bdf: String,
        /// Its vendor and device id.
        found: String,
        /// What they should be.
        wanted: String,
    },
    /// A file of sysfs could not be read or written.
    #[error("{path}")]
    Sysfs {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The driver did not take the device.
    #[error(
        "vfio-pci does not take {bdf} (driver now: {driver}): is CONFIG_VFIO_PCI in the kernel or \
         its module loaded, and is the device behind an IOMMU?"
    )]
    NotBound {
        /// The device.
        bdf: String,
        /// The driver that it has instead, or "none".
        driver: String,
    },
    /// The device has the driver, but user space cannot open it.
    #[error("{0} is bound to vfio-pci but has no cdev: the kernel needs CONFIG_VFIO_DEVICE_CDEV")]
    NoCdev(String),
}

fn sysfs<T>(path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Sysfs {
        path: path.into(),
        source,
    })
}

fn driver(device: &Path) -> Option<String> {
    let link = fs::read_link(device.join("driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// The vendor and device id in sysfs.
fn ids(device: &Path) -> Option<(u16, u16)> {
    let id = |name| {
        let text = fs::read_to_string(device.join(name)).ok()?;
        u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    };
    Some((id("vendor")?, id("device")?))
}

/// The address (`0000:00:02.0`) of the first device with these ids, in the order of addresses.
///
/// # Errors
///
/// When sysfs cannot be read, or has no such device.
pub fn find(vendor: u16, device: u16) -> Result<String, Error> {
    let found = find_all(vendor, device)?.into_iter().next();
    found.ok_or_else(|| Error::NoDevice(format!("with id {vendor:04x}:{device:04x}")))
}

/// The addresses of all devices with these ids, in their order.
///
/// # Errors
///
/// When sysfs cannot be read.
pub fn find_all(vendor: u16, device: u16) -> Result<Vec<String>, Error> {
    let dir = Path::new(DEVICES);
    let mut found = Vec::new();
    for entry in sysfs(dir, fs::read_dir(dir))? {
        let path = sysfs(dir, entry)?.path();
        if ids(&path) == Some((vendor, device))
            && let Some(bdf) = path.file_name()
        {
            found.push(bdf.to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// The requester id of the device `bdf`, which is the SMMU's stream id where firmware says no other.
///
/// # Panics
///
/// If it is not an address as sysfs writes it.
pub fn requester_id(bdf: &str) -> u32 {
    let number = |text| u32::from_str_radix(text, 16).ok();
    let parse = || {
        let (bus, device) = bdf.split_once(':')?.1.split_once(':')?;
        let (device, function) = device.split_once('.')?;
        Some(number(bus)? << 8 | number(device)? << 3 | number(function)?)
    };
    parse().unwrap_or_else(|| panic!("{bdf} is not a PCI address"))
}

/// Has vfio-pci drive the device `bdf`, if it does not yet, and gives its directory in sysfs.
///
/// This takes the device away from a driver that is using it, with whatever depends on that (a mounted
/// file system, a network connection), and does not give it back. `wanted`, the vendor and device id,
/// is checked first, so that a wrong address does no harm.
///
/// # Errors
///
/// When there is no such device, it is of another kind, its driver does not let go of it, or vfio-pci
/// does not take it. In the last case the device is free for other drivers again.
pub fn bind_to_vfio(bdf: &str, wanted: (u16, u16)) -> Result<PathBuf, Error> {
    let device = Path::new(DEVICES).join(bdf);
    if !device.is_dir() {
        return Err(Error::NoDevice(bdf.into()));
    }
    let found = ids(&device);
    if found != Some(wanted) {
        let name = |(vendor, device)| format!("{vendor:04x}:{device:04x}");
        return Err(Error::OtherDevice {
            bdf: bdf.into(),
            found: found.map_or("unknown".into(), name),
            wanted: name(wanted),
        });
    }
    if driver(&device).as_deref() != Some(DRIVER)
        && let Err(e) = rebind(&device, bdf)
    {
        // An empty line clears it. That it might not work is less important than why we are here.
        let _ = fs::write(device.join("driver_override"), "\n");
        return Err(e);
    }
    if !device.join("vfio-dev").is_dir() {
        return Err(Error::NoCdev(bdf.into()));
    }
    Ok(device)
}

/// Takes the device `bdf` away from vfio-pci, and gives it to the driver that it would have without.
///
/// # Errors
///
/// When vfio-pci does not let go of it.
pub fn give_back(bdf: &str) -> Result<(), Error> {
    let device = Path::new(DEVICES).join(bdf);
    let write = |path: PathBuf, text: &str| sysfs(&path, fs::write(&path, text));
    write(device.join("driver_override"), "\n")?;
    write(device.join("driver/unbind"), bdf)?;
    write("/sys/bus/pci/drivers_probe".into(), bdf)
}

/// Gives the device to vfio-pci, whoever has it.
fn rebind(device: &Path, bdf: &str) -> Result<(), Error> {
    let write = |path: PathBuf, text: &str| sysfs(&path, fs::write(&path, text));
    write(device.join("driver_override"), DRIVER)?;
    if driver(device).is_some() {
        write(device.join("driver/unbind"), bdf)?;
    }
    write("/sys/bus/pci/drivers_probe".into(), bdf)?;
    match driver(device) {
        Some(name) if name == DRIVER => Ok(()),
        other => Err(Error::NotBound {
            bdf: bdf.into(),
            driver: other.unwrap_or("none".into()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requester_ids() {
        assert_eq!(requester_id("0000:00:02.0"), 0x10);
        assert_eq!(requester_id("0000:a1:1f.7"), 0xa1ff);
    }
}
