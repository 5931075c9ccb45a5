// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command queue of a virtual SMMUv3, for a VMM that has stage 1 done by the SMMU of the host.
//!
//! A guest writes commands into a ring in its memory. [`Cmdq`] takes them from there. It sends
//! invalidations to the host's kernel, many with one `ioctl(IOMMU_HWPT_INVALIDATE)`, has the VMM do
//! the others, completes CMD_SYNCs, and shows the guest the errors that the SMMU has, or would have,
//! in the registers where the architecture has them (Arm IHI 0070, 4.1, 4.7.3, 6.3 and 7.1). It goes on
//! when the guest has acknowledged them, as an SMMU does.
//!
//! It is a state machine and does no I/O of its own. What it needs comes by two traits: guest memory is
//! a [`Memory`] (that of the `vm-memory` crate is one), and the VMM is a [`Vmm`].
//!
//! # What a VMM does
//!
//! * It makes a [`Cmdq`] for each virtual SMMU, with a [`Config`].
//! * It hands accesses of the guest to these registers over to [`Cmdq::read`] and [`Cmdq::write`]. Some
//!   have bits of others as well:
//!
//!   | offset | register | the queue's |
//!   |---|---|---|
//!   | 0x20, 0x24 | CR0, CR0ACK | bit 3, CMDQEN |
//!   | 0x60, 0x64 | GERROR, GERRORN | bit 0, CMDQ_ERR |
//!   | 0x90 | CMDQ_BASE | all |
//!   | 0x98 | CMDQ_PROD | all |
//!   | 0x9c | CMDQ_CONS | all |
//!
//! * After each write it calls [`Cmdq::process`], until nothing is left to do. That can take long: the
//!   kernel waits up to five seconds for an SMMU, and longer for a device that does not answer. So it may
//!   be a thread of its own that does it. The guest's other CPUs wait for the lock around the queue
//!   meanwhile, if they read its registers.
//! * If that fails, the problem is the host's. The guest is shown nothing, its queue stands still, and
//!   the VMM calls [`Cmdq::process`] again when it thinks fit.
//! * It saves and restores the queue with [`Cmdq::state`] and [`Cmdq::restore`], and resets it with
//!   [`Cmdq::reset`]. Between two calls there is no other state. After [`Cmdq::restore`] it calls
//!   [`Cmdq::process`]: commands may be left that no further write of the guest's tells of.
//!
//! # Example
//!
//! ```
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//! use vsmmu_relay::{Batch, Cmdq, Command, Config, Handled, Outcome, Progress, Signal, Vmm};
//!
//! struct Machine;
//!
//! impl Vmm for Machine {
//!     fn invalidate(&mut self, batch: Batch<'_>) -> Outcome {
//!         // A VMM: vsmmu_relay::iommufd::invalidate(&self.iommufd, self.viommu_id, batch)
//!         assert_eq!(batch.count(), 2);
//!         Outcome { errno: libc::EIO, done: 1, code: 1 }
//!     }
//!     fn command(&mut self, _: Command) -> Handled {
//!         Handled::Illegal
//!     }
//!     fn sync(&mut self, _: Signal) {}
//!     fn gerror(&mut self) {
//!         // Raises the interrupt, if IRQ_CTRL.GERROR_IRQEN is set.
//!     }
//! }
//!
//! let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)])?;
//! let mut queue = Cmdq::new(Config::new(0x2));
//!
//! // The guest: two commands and a CMD_SYNC, in a queue of 16.
//! for (i, opcode) in [0x30_u64, 0x30, 0x46].into_iter().enumerate() {
//!     memory.write_obj([opcode.to_le(), 0], GuestAddress(0x4000 + i as u64 * 16))?;
//! }
//! queue.write(0x90, 8, 0x4000 | 4);
//! queue.write(0x20, 4, 1 << 3);
//! queue.write(0x98, 4, 3);
//!
//! assert_eq!(queue.process(&memory, &mut Machine), Ok(Progress::Done));
//! // The second command is illegal: it is where CONS.RD is, CONS.ERR is CERROR_ILL, and GERROR tells.
//! assert_eq!(queue.read(0x9c, 4), Some(1 << 24 | 1));
//! assert_eq!(queue.read(0x60, 4), Some(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Straight from guest memory
//!
//! Where a stretch of the ring is RAM of this process in one piece, the kernel gets its address. The
//! guest can change the commands after the queue has looked at their opcodes and before the kernel takes
//! its copy. What it can win by that is nothing: the kernel checks its copy, refuses what it does not
//! forward, and puts the guest's own IDs in. But a VMM that decides by [`Vmm::forwards`] what a guest may
//! do, beyond what the kernel allows it, has to set [`Config::direct`] to `false`: then the kernel gets
//! the very bytes that the VMM has seen.
//!
//! # Features
//!
//! `vm-memory` and `iommufd`, both on by default, and `serde`. Without them the crate needs neither the
//! standard library nor an allocator.

#![no_std]
#![forbid(unsafe_code)]

mod cmdq;
mod command;
mod host;
#[cfg(feature = "iommufd")]
pub mod iommufd;
mod memory;
mod process;

pub use cmdq::{Cmdq, Config, State};
pub use command::{Command, Signal, op};
pub use host::{Batch, HostError, IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE, Outcome};
pub use memory::{Memory, Unreadable};
pub use process::{Handled, Progress, Vmm};
