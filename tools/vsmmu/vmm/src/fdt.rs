// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device tree, by which the guest knows what there is.

use vm_fdt::{Error, FdtWriter};

use crate::layout::{
    GIC_DIST, GIC_ITS, GIC_REDIST, HOST_MSI, PCI_ECAM, PCI_MEMORY, RAM_BASE, Range, SMMU,
    SMMU_EVENTQ_SPI, SMMU_GERROR_SPI, UART_SPIS, UARTS, pci_slot, stream_id,
};
use crate::smmu::STREAM_BITS;

const GIC: u32 = 1;
const ITS: u32 = 2;
const SMMU_HANDLE: u32 = 3;
const DOORBELL: u32 = 4;
/// Of the first PCI device.
const DEVICE: u32 = 16;

const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE: u32 = 1;
const LEVEL: u32 = 4;

/// What is different from one guest to the other.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Kernel parameters.
    pub cmdline: &'a str,
    /// How many CPUs there are.
    pub cpus: u64,
    /// The size of its memory in bytes.
    pub memory: u64,
    /// Where its initrd is.
    pub initrd: Option<Range>,
    /// How many PCI devices there are.
    pub devices: usize,
    /// Whether they may use ATS.
    pub ats: bool,
}

/// The tree of a guest.
///
/// # Errors
///
/// When the command line has a zero byte.
pub fn build(guest: &Guest<'_>) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;

    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", guest.cmdline)?;
    fdt.property_string("stdout-path", &uart_path(0))?;
    if let Some(initrd) = guest.initrd {
        fdt.property_u64("linux,initrd-start", initrd.base)?;
        fdt.property_u64("linux,initrd-end", initrd.base + initrd.size)?;
    }
    fdt.end_node(node)?;

    let node = fdt.begin_node("aliases")?;
    for i in 0..UARTS.len() {
        fdt.property_string(&format!("serial{i}"), &uart_path(i))?;
    }
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("memory@{RAM_BASE:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM_BASE, guest.memory])?;
    fdt.end_node(node)?;

    cpus(&mut fdt, guest.cpus)?;
    for i in 0..UARTS.len() {
        uart(&mut fdt, i)?;
    }
    if guest.devices > 0 {
        smmu(&mut fdt)?;
        pci(&mut fdt, guest)?;
        doorbell(&mut fdt, guest.devices as u32)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

/// The CPUs, and what each of them has.
fn cpus(fdt: &mut FdtWriter, count: u64) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for i in 0..count as u32 {
        let node = fdt.begin_node(&format!("cpu@{i:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,arm-v8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u32("reg", i)?;
        fdt.end_node(node)?;
    }
    fdt.end_node(cpus)?;

    let node = fdt.begin_node("psci")?;
    fdt.property_string("compatible", "arm,psci-0.2")?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)?;

    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    fdt.property_null("always-on")?;
    let interrupts: Vec<_> = [13, 14, 11, 10]
        .iter()
        .flat_map(|ppi| [PPI, *ppi, LEVEL])
        .collect();
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", GIC_DIST.base))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_array_u64(
        "reg",
        &[
            GIC_DIST.base,
            GIC_DIST.size,
            GIC_REDIST.base,
            GIC_REDIST.size * count,
        ],
    )?;
    fdt.property_phandle(GIC)?;
    let its = fdt.begin_node(&format!("msi-controller@{:x}", GIC_ITS.base))?;
    fdt.property_string("compatible", "arm,gic-v3-its")?;
    fdt.property_null("msi-controller")?;
    fdt.property_u32("#msi-cells", 1)?;
    fdt.property_array_u64("reg", &[GIC_ITS.base, GIC_ITS.size])?;
    fdt.property_phandle(ITS)?;
    fdt.end_node(its)?;
    fdt.end_node(node)
}

fn uart_path(i: usize) -> String {
    format!("/serial@{:x}", UARTS[i].base)
}

fn uart(fdt: &mut FdtWriter, i: usize) -> Result<(), Error> {
    let node = fdt.begin_node(&uart_path(i)[1..])?;
    fdt.property_string("compatible", "arm,sbsa-uart")?;
    fdt.property_array_u64("reg", &[UARTS[i].base, UARTS[i].size])?;
    fdt.property_array_u32("interrupts", &[SPI, UART_SPIS[i], LEVEL])?;
    fdt.property_u32("current-speed", 115_200)?;
    fdt.end_node(node)
}

fn smmu(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("iommu@{:x}", SMMU.base))?;
    fdt.property_string("compatible", "arm,smmu-v3")?;
    fdt.property_array_u64("reg", &[SMMU.base, SMMU.size])?;
    fdt.property_array_u32(
        "interrupts",
        &[SPI, SMMU_EVENTQ_SPI, EDGE, SPI, SMMU_GERROR_SPI, EDGE],
    )?;
    let names = ["eventq", "gerror"].map(String::from);
    fdt.property_string_list("interrupt-names", names.into())?;
    fdt.property_u32("#iommu-cells", 1)?;
    fdt.property_null("dma-coherent")?;
    fdt.property_phandle(SMMU_HANDLE)?;
    fdt.end_node(node)
}

fn pci(fdt: &mut FdtWriter, guest: &Guest<'_>) -> Result<(), Error> {
    const MEMORY: u32 = 0x0200_0000;
    let node = fdt.begin_node(&format!("pcie@{:x}", PCI_ECAM.base))?;
    fdt.property_string("compatible", "pci-host-ecam-generic")?;
    fdt.property_string("device_type", "pci")?;
    fdt.property_array_u64("reg", &[PCI_ECAM.base, PCI_ECAM.size])?;
    fdt.property_u32("#address-cells", 3)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_array_u32("bus-range", &[0, 0])?;
    let window = PCI_MEMORY.base as u32;
    fdt.property_array_u32(
        "ranges",
        &[MEMORY, 0, window, 0, window, 0, PCI_MEMORY.size as u32],
    )?;
    fdt.property_null("dma-coherent")?;
    if guest.ats {
        fdt.property_null("ats-supported")?;
    }
    // Requester IDs, stream IDs and the ITS's device IDs are the same.
    let count = 1 << STREAM_BITS;
    fdt.property_array_u32("iommu-map", &[0, SMMU_HANDLE, 0, count])?;
    fdt.property_array_u32("msi-map", &[0, ITS, 0, count])?;
    for i in 0..guest.devices {
        let slot = pci_slot(i);
        let device = fdt.begin_node(&format!("device@{slot:x}"))?;
        fdt.property_array_u32("reg", &[stream_id(i) << 8, 0, 0, 0, 0])?;
        fdt.property_u32("memory-region", DOORBELL)?;
        fdt.property_phandle(DEVICE + i as u32)?;
        fdt.end_node(device)?;
    }
    fdt.end_node(node)
}

/// The guest has to map the host's doorbell in its stage 1, where it is: the devices write to it.
fn doorbell(fdt: &mut FdtWriter, devices: u32) -> Result<(), Error> {
    let parent = fdt.begin_node("reserved-memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let node = fdt.begin_node(&format!("doorbell@{:x}", HOST_MSI.base))?;
    fdt.property_array_u64("reg", &[HOST_MSI.base, HOST_MSI.size])?;
    fdt.property_null("no-map")?;
    let (base, size) = (HOST_MSI.base as u32, HOST_MSI.size as u32);
    let regions: Vec<_> = (0..devices)
        .flat_map(|i| [DEVICE + i, 0, 0, base, 0, size])
        .collect();
    fdt.property_array_u32("iommu-addresses", &regions)?;
    fdt.property_phandle(DOORBELL)?;
    fdt.end_node(node)?;
    fdt.end_node(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build_with(devices: usize, ats: bool) -> Vec<u8> {
        build(&Guest {
            cmdline: "console=ttyAMA0",
            cpus: 2,
            memory: 0x1000_0000,
            initrd: None,
            devices,
            ats,
        })
        .unwrap()
    }

    fn has(tree: &[u8], text: &str) -> bool {
        tree.windows(text.len()).any(|part| part == text.as_bytes())
    }

    #[test]
    fn nodes() {
        let tree = build_with(2, true);
        assert_eq!(tree[..4], [0xd0, 0x0d, 0xfe, 0xed]);
        for text in [
            "console=ttyAMA0",
            "memory@40000000\0",
            "cpu@1\0",
            "serial@9000000\0",
            "iommu@9050000\0",
            "pcie@3f000000\0",
            "device@2\0",
            "doorbell@8000000\0",
            "ats-supported\0",
        ] {
            assert!(has(&tree, text), "{text}");
        }
        assert!(!has(&tree, "cpu@2"));
        assert!(!has(&build_with(2, false), "ats-supported"));
    }

    #[test]
    fn without_devices() {
        let tree = build_with(0, false);
        assert!(!has(&tree, "pcie@") && !has(&tree, "iommu@"));
    }
}
