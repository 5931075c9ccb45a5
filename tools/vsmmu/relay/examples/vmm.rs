// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a VMM embeds a queue: a virtual SMMUv3 as a device on the VMM's bus, with registers of its own, a
//! GERROR that has other bits as well, and a thread that does what takes long.
//!
//! So that it runs anywhere, the guest is a few lines at the end, and the kernel is made up: it finds the
//! third command that it sees illegal. [`Kernel::Iommufd`] is the real one.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iommufd_ioctls::IommuFd;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vsmmu_relay::{
    Batch, Cmdq, Command, Config, Handled, Outcome, Progress, Signal, Vmm, iommufd, op,
};

const GERROR: u64 = 0x60;
const GERRORN: u64 = 0x64;
/// Another error than the command queue's, which the VMM has for itself.
const MSI_CMDQ_ABT_ERR: u32 = 1 << 4;

/// Where invalidations go.
enum Kernel {
    #[allow(dead_code)]
    Iommufd {
        fd: Arc<IommuFd>,
        viommu_id: u32,
    },
    Pretend {
        seen: u32,
    },
}

/// The VMM's part of the device: what is not the command queue's.
struct Rest {
    kernel: Kernel,
    memory: Arc<GuestMemoryMmap<()>>,
    gerror: u32,
    gerrorn: u32,
}

impl Rest {
    fn interrupt(&self, why: &str) {
        // An irqfd, if IRQ_CTRL.GERROR_IRQEN is set.
        println!("vmm: GERROR interrupt, {why}");
    }
}

impl Vmm for Rest {
    fn invalidate(&mut self, batch: Batch<'_>) -> Outcome {
        println!("vmm: an ioctl for {} commands", batch.count());
        match &mut self.kernel {
            Kernel::Iommufd { fd, viommu_id } => iommufd::invalidate(fd, *viommu_id, batch),
            Kernel::Pretend { seen } => {
                let before = *seen;
                *seen += batch.count();
                if (before..*seen).contains(&2) {
                    let (errno, done, code) = (libc::EIO, 2 - before, 1);
                    return Outcome { errno, done, code };
                }
                Outcome {
                    errno: 0,
                    done: batch.count(),
                    code: 0,
                }
            }
        }
    }

    fn command(&mut self, command: Command) -> Handled {
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

    fn sync(&mut self, signal: Signal) {
        let Signal::Irq { address, data } = signal else {
            return;
        };
        if address == 0 {
            // The wired interrupt is all that the guest asks for.
            return;
        }
        // A VMM whose guest has an ITS looks first whether it is that which is written to.
        let written = self.memory.write_obj(data.to_le(), GuestAddress(address));
        if written.is_err() && (self.gerror ^ self.gerrorn) & MSI_CMDQ_ABT_ERR == 0 {
            self.gerror ^= MSI_CMDQ_ABT_ERR;
            self.interrupt("an MSI could not be written");
        }
    }

    fn gerror(&mut self) {
        self.interrupt("the command queue has an error");
    }
}

/// The device. One lock is around all of it; a guest's CPU that reads a register waits for it.
struct Smmu {
    queue: Cmdq,
    rest: Rest,
    /// To the thread that consumes commands. There is room for one: a guest that writes registers while
    /// the host has a problem must not fill the VMM's memory.
    kick: SyncSender<()>,
}

impl Smmu {
    fn mmio_read(&self, offset: u64, len: usize) -> u64 {
        let ours = self.queue.read(offset, len).unwrap_or(0);
        let others = match offset {
            GERROR => self.rest.gerror,
            GERRORN => self.rest.gerrorn,
            // ... IDR0 and all the others.
            _ => 0,
        };
        ours | u64::from(others)
    }

    fn mmio_write(&mut self, offset: u64, len: usize, value: u64) {
        if offset == GERRORN {
            self.rest.gerrorn = value as u32 & MSI_CMDQ_ABT_ERR;
        }
        if self.queue.write(offset, len, value) {
            let _ = self.kick.try_send(());
        }
    }
}

/// Consumes commands when the guest has written a register. The lock is let go between two calls.
fn consume(smmu: &Mutex<Smmu>, kicks: &Receiver<()>) {
    while kicks.recv().is_ok() {
        loop {
            let mut guard = smmu.lock().unwrap();
            let Smmu { queue, rest, .. } = &mut *guard;
            let memory = rest.memory.memory().clone();
            match queue.process(&*memory, rest) {
                Ok(Progress::Done) => break,
                Ok(Progress::More) => {}
                Err(e) => {
                    drop(guard);
                    eprintln!("vmm: {e}; it is tried again in a second");
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(
        GuestAddress(0x4000_0000),
        0x10_0000,
    )])?);
    // The flags are those of the hw_info of the SMMU; 2 stands for a kernel that answers exactly.
    let config = Config::new(2);
    let (kick, kicks) = mpsc::sync_channel(1);
    let smmu = Arc::new(Mutex::new(Smmu {
        queue: Cmdq::new(config),
        rest: Rest {
            kernel: Kernel::Pretend { seen: 0 },
            memory: memory.clone(),
            gerror: 0,
            gerrorn: 0,
        },
        kick,
    }));
    let vmm = smmu.clone();
    std::thread::spawn(move || consume(&vmm, &kicks));

    // From here on it is the guest that speaks, by what traps.
    let write = |offset, len, value| smmu.lock().unwrap().mmio_write(offset, len, value);
    let read = |offset| smmu.lock().unwrap().mmio_read(offset, 4);
    let entry = |i: u64| GuestAddress(0x4000_1000 + i * 16);
    let sync = u64::from(op::SYNC);
    for (i, opcode) in [0x03_u64, 0x30, 0x30, 0x30, 0x30, sync]
        .into_iter()
        .enumerate()
    {
        memory.write_obj([opcode.to_le(), 0], entry(i as u64))?;
    }
    write(0x90, 8, 0x4000_1000 | 8);
    write(0x20, 4, 1 << 3);
    write(0x98, 4, 6);
    while read(0x9c) & 0xfffff != 6 {
        if read(GERROR) != read(GERRORN) {
            let cons = read(0x9c);
            println!("guest: error {} at {}", cons >> 24, cons & 0xfffff);
            // As Linux does it.
            memory.write_obj([sync.to_le(), 0], entry(cons & 0xff))?;
            write(GERRORN, 4, read(GERROR));
        }
        std::thread::yield_now();
    }
    println!("guest: all is complete");
    Ok(())
}
