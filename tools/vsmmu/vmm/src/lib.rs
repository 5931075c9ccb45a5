// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small VMM: it boots an arm64 Linux under KVM, with PCI devices of the host's behind a virtual SMMUv3,
//! and shows the guest the errors that the host's SMMU has, or would have, with its commands.
//!
//! It is a reference for those who have a VMM, and is made to be read: what a virtual SMMU takes is in
//! [`smmu`], on top of `vsmmu-relay` for the command queue and of `vsmmu-nested` for the objects of iommufd.
//! The rest is the least that Linux boots with: two serial ports ([`uart`]), a PCI bus ([`pci`]) whose devices
//! have MSI-X ([`msix`]), CPUs and a GICv3 of the kernel's (`machine`), a device tree ([`fdt`]). Each access to
//! a register goes through the VMM: nothing is mapped into the guest but its memory.

pub mod bus;
pub mod fdt;
pub mod layout;
#[cfg(target_arch = "aarch64")]
pub mod machine;
pub mod msix;
pub mod pci;
pub mod smmu;
pub mod uart;
