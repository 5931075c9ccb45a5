// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What both examples need to run anywhere: a guest, its memory, and a kernel that is made up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use iommufd_ioctls::IommuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vsmmu_relay::{Batch, Command, Handled, Outcome, Signal, iommufd, op, reg};

pub type Memory = GuestMemoryMmap<()>;

const RAM: GuestAddress = GuestAddress(0x4000_0000);
const RING: u64 = RAM.0 + 0x1000;
/// As a CMD_SYNC has it to get an MSI: CS, the data 1, and an address in memory.
const MSI: u64 = RAM.0 + 0x2000;
const SYNC: [u64; 2] = [op::SYNC as u64 | 1 << 12 | 1 << 32, MSI];

pub fn memory() -> Memory {
    Memory::from_ranges(&[(RAM, 0x10_0000)]).expect("memory")
}

/// Where invalidations go.
pub enum Kernel {
    /// The real one.
    #[allow(dead_code)]
    Iommufd { fd: Arc<IommuFd>, viommu_id: u32 },
    /// One that finds the third command that it sees illegal, and takes half a second for the last of all.
    Pretend { seen: AtomicU32 },
}

impl Kernel {
    pub fn invalidate(&self, batch: &Batch) -> Outcome {
        let count = batch.count();
        println!(
            "vmm: an ioctl for {count} commands, with {} CMD_SYNCs",
            batch.sync_count()
        );
        match self {
            Kernel::Iommufd { fd, viommu_id } => iommufd::invalidate(fd, *viommu_id, batch),
            Kernel::Pretend { seen } => {
                let before = seen.fetch_add(count, Ordering::Relaxed);
                if batch.commands().any(|command| command == last()) {
                    std::thread::sleep(Duration::from_millis(500));
                }
                let (errno, done, code) = match 2_u32.checked_sub(before) {
                    Some(done) if done < count => (libc::EIO, done, 1),
                    _ => (0, count, 0),
                };
                Outcome { errno, done, code }
            }
        }
    }
}

/// What the VMM does by itself.
pub fn execute(command: Command) -> Handled {
    match command.opcode() {
        op::CFGI_STE => {
            // Reads the STE, and attaches the device to a nested HWPT that is made of it.
            println!("vmm: CFGI_STE of stream {:#x}", command.stream_id());
            Handled::Done
        }
        op::CFGI_STE_RANGE | op::PREFETCH_CONFIG | op::PREFETCH_ADDR => Handled::Done,
        _ => Handled::Illegal,
    }
}

/// Writes the MSI of a CMD_SYNC. `false` is a GERROR.MSI_CMDQ_ABT_ERR of the VMM's.
pub fn signal(memory: &Memory, signal: Signal) -> bool {
    match signal {
        // A VMM whose guest has an ITS looks first whether it is that which is written to.
        Signal::Irq { address, data } if address != 0 => memory
            .write_obj(data.to_le(), GuestAddress(address))
            .is_ok(),
        // Nothing, an event, or the wired interrupt.
        _ => true,
    }
}

fn last() -> Command {
    let words = [op::TLBI_NH_ASID.into(), 0];
    Command { words }
}

/// A guest that does what Linux does. It returns when its last command has been queued, and does not wait
/// for that.
pub fn guest(memory: &Memory, read: impl Fn(u64) -> u64, write: impl Fn(u64, usize, u64)) {
    let queue = |prod: u64, command: [u64; 2]| {
        let at = GuestAddress(RING + prod % 256 * 16);
        memory.write_obj(command.map(u64::to_le), at).expect("ring");
        write(reg::CMDQ_PROD, 4, prod + 1);
    };
    write(reg::CMDQ_BASE, 8, RING | 8);
    write(reg::CR0, 4, reg::CR0_CMDQEN.into());
    queue(0, [op::CFGI_STE.into(), 1]);
    let mut prod = 1;
    for _ in 0..4 {
        queue(prod, [op::TLBI_NH_ALL.into(), 0]);
        queue(prod + 1, SYNC);
        prod += 2;
    }
    while read(reg::CMDQ_CONS) & 0xfffff != prod {
        let gerror = read(reg::GERROR);
        if (gerror ^ read(reg::GERRORN)) & u64::from(reg::GERROR_CMDQ_ERR) != 0 {
            let cons = read(reg::CMDQ_CONS);
            println!("guest: error {} at {}", cons >> 24, cons & 0xfffff);
            let at = GuestAddress(RING + (cons & 0xff) * 16);
            memory.write_obj(SYNC.map(u64::to_le), at).expect("ring");
            write(reg::GERRORN, 4, gerror);
        }
        std::thread::yield_now();
    }
    let msi: u32 = memory.read_obj(GuestAddress(MSI)).expect("memory");
    println!("guest: all is complete, with MSIs: {}", msi != 0);
    queue(prod, last().words);
}
