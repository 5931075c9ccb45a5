// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where things are in the guest's physical address space, and which interrupts they have.

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first address.
    pub base: u64,
    /// The size in bytes.
    pub size: u64,
}

impl Range {
    const fn new(base: u64, size: u64) -> Self {
        Range { base, size }
    }

    /// How far into the range the address is, if it is in there.
    pub fn offset(self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.base)?;
        (offset < self.size).then_some(offset)
    }
}

/// The distributor of the GICv3.
pub const GIC_DIST: Range = Range::new(0x0800_0000, 0x1_0000);
/// The ITS, which makes interrupts of MSIs.
pub const GIC_ITS: Range = Range::new(0x0808_0000, 0x2_0000);
/// Of the redistributors, the first. Each CPU has one.
pub const GIC_REDIST: Range = Range::new(0x080a_0000, 0x2_0000);
/// The serial ports.
pub const UARTS: [Range; 2] = [
    Range::new(0x0900_0000, 0x1000),
    Range::new(0x0901_0000, 0x1000),
];
/// The registers of the SMMU, with page 1.
pub const SMMU: Range = Range::new(0x0905_0000, 0x2_0000);
/// Where BARs can be.
pub const PCI_MEMORY: Range = Range::new(0x1000_0000, 0x1000_0000);
/// Configuration space, of one bus.
pub const PCI_ECAM: Range = Range::new(0x3f00_0000, 0x10_0000);
/// Where the host's MSIs go in the guest's physical address space, by what the host maps in stage 2. They
/// come from devices only, so that it matters to nobody else. Linux has had them there for long; it says
/// where in `/sys/kernel/iommu_groups/*/reserved_regions`.
pub const HOST_MSI: Range = Range::new(0x0800_0000, 0x10_0000);
/// The first address of memory.
pub const RAM_BASE: u64 = 0x4000_0000;

/// As many CPUs as have redistributors below the first serial port.
pub const CPUS_MAX: u64 = (UARTS[0].base - GIC_REDIST.base) / GIC_REDIST.size;
/// The most PCI devices.
pub const DEVICES_MAX: usize = 8;

/// Interrupts are counted among the shared ones (SPIs), from 0.
pub const UART_SPIS: [u32; 2] = [1, 2];
/// Of the SMMU, for events.
pub const SMMU_EVENTQ_SPI: u32 = 3;
/// Of the SMMU, for GERROR.
pub const SMMU_GERROR_SPI: u32 = 4;
/// How many interrupts the GIC has, with the 32 that are not shared.
pub const GIC_INTERRUPTS: u32 = 64;

/// The slot of a PCI device on its bus. There is nothing in slot 0.
pub const fn pci_slot(index: usize) -> u32 {
    index as u32 + 1
}

/// The requester ID of a PCI device, which is its stream ID at the SMMU.
pub const fn stream_id(index: usize) -> u32 {
    pci_slot(index) << 3
}
