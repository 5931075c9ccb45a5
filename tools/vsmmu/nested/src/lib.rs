// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A nested Arm SMMUv3 for one vfio device.
//!
//! What a VMM does for a passed-through device when the guest has its own virtual SMMUv3, without
//! the VMM. It is made to try the kernel out with: one device, one vIOMMU, memory of its own that is
//! mapped once, no faults, no event queue. A VMM would take [`cmd`] and [`invalidate`] as they are,
//! and find in [`smmu`] what to do in which order.
//!
//! [`NestedSmmu`] makes the iommufd objects (IOAS, stage 2, vIOMMU, vDEVICE), [`stage1`]
//! puts a context descriptor and stage-1 page tables into guest memory, [`cmd`] encodes the
//! invalidation commands that a guest would queue, and [`NestedSmmu::invalidate`] hands them to the
//! kernel and gives back all three parts of the answer.
//!
//! `iommufd-ioctls` has an `IommufdVIommu` that makes some of the same objects. It is not used here,
//! because its `invalidate()` sends one command at a time and says no more of a failure than that there
//! was one, and because it keeps the ids of its objects to itself.
//!
//! Words on addresses: an *IOVA* is what the device puts on the bus, the input of stage 1. A *GPA*
//! (guest physical address, [`vm_memory::GuestAddress`]) is the output of stage 1 and the input of
//! stage 2.

pub mod cmd;
pub mod edu;
pub mod invalidate;
pub mod pci;
pub mod ram;
pub mod smmu;
pub mod stage1;

pub use cmd::Command;
pub use invalidate::{ErrorCode, Failure, InvalidateArg, Outcome};
pub use ram::GuestRam;
pub use smmu::{Error, HwInfo, NestedSmmu, Vdevice};

/// An error and what caused it. Some libraries repeat the cause in their own text, and some do not.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
