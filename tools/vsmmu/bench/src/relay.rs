// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it takes a VMM to relay what a Linux guest has really queued, up to a CMD_SYNC each time.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use iommufd_ioctls::IommuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vsmmu_nested::Command;
use vsmmu_relay::{
    self as relay, Batch, Cmdq, Config, Handled, Outcome, Progress, Signal, Vmm, iommufd,
};

use crate::invalidate;
use crate::sample::Sampler;
use crate::trace;

const CR0: u64 = 0x20;
const CMDQ_BASE: u64 = 0x90;
const CMDQ_PROD: u64 = 0x98;
const CMDQ_CONS: u64 = 0x9c;

struct Machine {
    iommufd: Arc<IommuFd>,
    viommu_id: u32,
}

impl Vmm for Machine {
    fn invalidate(&mut self, batch: Batch<'_>) -> Outcome {
        iommufd::invalidate(&self.iommufd, self.viommu_id, batch)
    }

    /// What these take is the VMM's affair.
    fn command(&mut self, _: relay::Command) -> Handled {
        Handled::Done
    }

    fn sync(&mut self, _: Signal) {}

    fn gerror(&mut self) {}
}

/// A guest that has written all of its commands into the ring, and has yet to move PROD, from one CMD_SYNC
/// to the next.
struct Guest {
    memory: GuestMemoryMmap,
    base: u64,
    queue: Cmdq,
    stops: Vec<u64>,
}

impl Guest {
    fn new(commands: &[Command], config: Config) -> Result<Self, Box<dyn Error>> {
        let entries = (commands.len() + 1).next_power_of_two();
        let at = GuestAddress(0x4000_0000);
        let memory = GuestMemoryMmap::from_ranges(&[(at, entries * 16)])?;
        for (i, command) in commands.iter().enumerate() {
            memory.write_obj(*command, GuestAddress(at.0 + i as u64 * 16))?;
        }
        let ends = (1..=commands.len()).filter(|i| trace::is_sync(commands[i - 1]));
        let stops = ends.map(|i| i as u64).collect();
        let log2size = entries.trailing_zeros() as u8;
        let cmdqs = log2size;
        Ok(Guest {
            memory,
            base: at.0 | u64::from(log2size),
            queue: Cmdq::new(Config { cmdqs, ..config }),
            stops,
        })
    }

    fn play(&mut self, machine: &mut Machine) -> Result<(), Box<dyn Error>> {
        self.queue.reset();
        self.queue.write(CMDQ_BASE, 8, self.base);
        self.queue.write(CR0, 4, 1 << 3);
        for stop in &self.stops {
            self.queue.write(CMDQ_PROD, 4, *stop);
            while self.queue.process(&self.memory, machine)? == Progress::More {}
            if self.queue.read(CMDQ_CONS, 4) != Some(*stop) {
                let state = self.queue.state();
                return Err(format!("the queue has stopped: {state:x?}").into());
            }
        }
        Ok(())
    }
}

/// Measures the trace, as it is and as it would be without ranges.
pub fn run(sampler: &Sampler, sysfs: &Path) -> Result<(), Box<dyn Error>> {
    let smmu = invalidate::smmu(sysfs)?;
    let mut machine = Machine {
        iommufd: smmu.iommufd().clone(),
        viommu_id: smmu.viommu_id(),
    };
    let config = Config::new(smmu.hw_info().flags);
    let copied = Config {
        direct: false,
        ..config
    };
    let single = Config {
        max_batch: 1,
        ..config
    };
    let recorded: Vec<_> = trace::recorded().collect();
    let without_ranges = trace::recorded().flat_map(trace::without_range).collect();
    for (guest, commands) in [
        ("Linux", &recorded),
        ("Linux without ranges", &without_ranges),
    ] {
        for (how, config) in [
            ("an ioctl a batch", config),
            ("an ioctl a batch, copied", copied),
            ("an ioctl a command", single),
        ] {
            let id = format!("relay: {guest}, {how}");
            let mut guest = Guest::new(commands, config)?;
            sampler.case(&id, commands.len(), || guest.play(&mut machine))?;
        }
    }
    Ok(())
}
