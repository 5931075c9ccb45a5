// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command queue of a virtual SMMUv3, for a VMM that has stage 1 done by the SMMU of the host.
//!
//! A guest writes commands into a ring in its memory. [`Cmdq`] takes them from there. It has invalidations
//! sent to the host's kernel, many with one `ioctl(IOMMU_HWPT_INVALIDATE)`, has the VMM execute the others,
//! completes CMD_SYNCs, and shows the guest the errors that the SMMU has, or would have, in the registers
//! where the architecture has them (Arm IHI 0070, 4.1, 4.7.3, 6.3 and 7.1). It goes on when the guest has
//! acknowledged them, as an SMMU does.
//!
//! It is a state machine, and does no I/O. [`Cmdq::next`] says what is to be done, an [`Action`], and
//! [`Cmdq::complete`] takes the answer. While the host works, the VMM need not hold the queue: the guest's
//! CPUs read and write registers, and queue more. That goes out with the next ioctl, with all the CMD_SYNCs
//! in between, which become complete in their order when the ioctl returns.
//!
//! # What a VMM does
//!
//! * It makes a [`Cmdq`] for each virtual SMMU, with a [`Config`], and puts a lock around it, or gives it to
//!   a task of its own.
//! * It hands accesses of the guest to these registers over to [`Cmdq::read`] and [`Cmdq::write`]. Some
//!   have bits of others as well. The offsets are in [`reg`].
//!
//!   | register | the queue's |
//!   |---|---|
//!   | CR0, CR0ACK | bit 3, CMDQEN |
//!   | GERROR, GERRORN | bit 0, CMDQ_ERR |
//!   | CMDQ_BASE, CMDQ_PROD, CMDQ_CONS | all |
//!
//! * After each write it calls [`Cmdq::next`] until there is nothing to do. What takes long is done without
//!   the lock: [`Action::Invalidate`], where the kernel waits up to five seconds for an SMMU and longer for a
//!   device that does not answer, [`Action::Execute`], and the short wait of [`Action::Gather`]. Any thread can do it: while one of them has
//!   something in hand, [`Cmdq::next`] has nothing for the others. The other actions are short, and are done
//!   before the lock is given up, so that what the guest sees in its memory agrees with the registers.
//! * It saves the queue with [`Cmdq::state`], also while an ioctl is in flight, restores it with
//!   [`Cmdq::restore`], and resets it with [`Cmdq::reset`]. A VM that is paused sees nothing for as long as
//!   [`Cmdq::next`] is not called: [`Cmdq::complete`] by itself changes neither registers nor memory.
//! * To shut down, it need not wait for an ioctl: after [`Cmdq::reset`] a late answer is ignored.
//!
//! The directory `examples` has a VMM with threads, `blocking.rs`, and one with tasks, `asynchronous.rs`.
//!
//! # Example
//!
//! ```
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//! use vsmmu_relay::{Action, Cmdq, Command, Config, Outcome, Signal, op, reg};
//!
//! let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)])?;
//! let mut queue = Cmdq::new(Config::new(0x2));
//!
//! // The guest: two commands, each with a CMD_SYNC behind, in a queue of 16.
//! for (i, opcode) in [op::TLBI_NH_ALL, op::SYNC, op::TLBI_NH_ALL, op::SYNC].iter().enumerate() {
//!     memory.write_obj([u64::from(*opcode).to_le(), 0], GuestAddress(0x4000 + i as u64 * 16))?;
//! }
//! queue.write(reg::CMDQ_BASE, 8, 0x4000 | 4);
//! queue.write(reg::CR0, 4, reg::CR0_CMDQEN.into());
//! queue.write(reg::CMDQ_PROD, 4, 4);
//!
//! // The VMM: both commands go out with one ioctl.
//! let Some(Action::Invalidate(batch)) = queue.next(&memory, Command::is_forwardable) else {
//!     panic!("there is something to send");
//! };
//! assert_eq!((batch.count(), batch.sync_count()), (2, 2));
//! // In a VMM: vsmmu_relay::iommufd::invalidate(&iommufd, viommu_id, &batch)
//! let outcome = Outcome { errno: libc::EIO, done: 1, code: 1 };
//! queue.complete(batch, outcome);
//!
//! // The first CMD_SYNC is complete, and the second command is illegal: it is where CONS.RD is, CONS.ERR
//! // is CERROR_ILL, and GERROR tells.
//! let next = queue.next(&memory, Command::is_forwardable);
//! assert!(matches!(next, Some(Action::Sync(Signal::None))));
//! let next = queue.next(&memory, Command::is_forwardable);
//! assert!(matches!(next, Some(Action::Gerror)));
//! assert_eq!(queue.read(reg::CMDQ_CONS, 4), Some(1 << 24 | 2));
//! assert_eq!(queue.read(reg::GERROR, 4), Some(1));
//! assert!(queue.next(&memory, Command::is_forwardable).is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! * `vm-memory` (default): [`Memory`] for what is guest memory to the crate `vm-memory`.
//! * `iommufd` (default): the ioctl, by way of the crate `iommufd-ioctls`.
//! * `serde`: [`State`] can be serialised.
//! * `log`: messages for the crate `log`: batches (trace), answers and the guest's errors (debug), problems
//!   of the host (warn). A guest can cause any number of the first two.
//!
//! Without `vm-memory` and `iommufd` the crate needs an allocator, but not the standard library.

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

extern crate alloc;

/// Logs something, if the VMM wants that.
macro_rules! log {
    ($level:ident, $($arg:tt)*) => {{
        #[cfg(feature = "log")]
        ::log::$level!($($arg)*);
    }};
}

mod batch;
mod cmdq;
mod command;
mod crowd;
mod host;
#[cfg(feature = "iommufd")]
pub mod iommufd;
mod memory;
mod regs;

pub use batch::Batch;
pub use cmdq::{Action, Cmdq, Config, Counters, Handled, OwnCommand};
pub use command::{Command, Signal, op};
pub use host::{HostError, IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE, Outcome};
pub use memory::{Memory, Unreadable};
pub use regs::{RestoreError, State, reg};
