// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it takes a VMM to relay what a Linux guest has really queued, from one CPU or from several.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use iommufd_ioctls::IommuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vsmmu_nested::Command;
use vsmmu_relay::{self as relay, Action, Batch, Cmdq, Config, Handled, Outcome, iommufd, reg};

use crate::invalidate;
use crate::sample::Sampler;
use crate::trace;

/// Makes the ioctls.
struct Machine {
    iommufd: Arc<IommuFd>,
    viommu_id: u32,
}

impl Machine {
    fn invalidate(&self, batch: &Batch) -> Outcome {
        iommufd::invalidate(&self.iommufd, self.viommu_id, batch)
    }
}

/// A guest that has written all of its commands into the ring, and has yet to move PROD, from one CMD_SYNC
/// to the next. Each of its CPUs does so when the CMD_SYNC before, its own, is complete.
struct Guest {
    memory: GuestMemoryMmap,
    base: u64,
    queue: Cmdq,
    stops: Vec<u64>,
    cpus: usize,
}

impl Guest {
    fn new(commands: &[Command], cpus: usize, config: Config) -> Result<Self, Box<dyn Error>> {
        let entries = (commands.len() + 1).next_power_of_two();
        let at = GuestAddress(0x4000_0000);
        let memory = GuestMemoryMmap::from_ranges(&[(at, entries * 16)])?;
        for (i, command) in commands.iter().enumerate() {
            memory.write_obj(*command, GuestAddress(at.0 + i as u64 * 16))?;
        }
        let ends = (1..=commands.len()).filter(|i| trace::is_sync(commands[i - 1]));
        let stops = ends.map(|i| i as u64).collect();
        let log2size = entries.trailing_zeros() as u8;
        let mut config = config;
        config.cmdqs = log2size;
        Ok(Guest {
            memory,
            base: at.0 | u64::from(log2size),
            queue: Cmdq::new(config),
            stops,
            cpus,
        })
    }

    /// One CPU queues commands and tells the VMM. While the host works on them, all others that are free
    /// queue theirs. Gives the number of ioctls.
    fn play(&mut self, invalidate: impl Fn(&Batch) -> Outcome) -> Result<usize, Box<dyn Error>> {
        self.queue.reset();
        self.queue.write(reg::CMDQ_BASE, 8, self.base);
        self.queue.write(reg::CR0, 4, reg::CR0_CMDQEN.into());
        let (mut queued, mut complete, mut ioctls) = (0, 0, 0);
        loop {
            match self
                .queue
                .next(&self.memory, relay::Command::is_forwardable)
            {
                Some(Action::Invalidate(batch)) => {
                    let all = self.stops.len().min(complete + self.cpus);
                    if all > queued {
                        queued = all;
                        self.queue.write(reg::CMDQ_PROD, 4, self.stops[queued - 1]);
                    }
                    ioctls += 1;
                    let outcome = invalidate(&batch);
                    self.queue.complete(batch, outcome);
                }
                // What these take is the VMM's affair.
                Some(Action::Execute(own)) => self.queue.complete_own(own, Handled::Done),
                Some(Action::Sync(_)) => complete += 1,
                Some(Action::Gather) => {}
                Some(Action::Gerror) => {
                    let state = self.queue.state();
                    return Err(format!("the queue has stopped: {state:x?}").into());
                }
                Some(Action::Problem(e)) => return Err(e.into()),
                None if complete == self.stops.len() => return Ok(ioctls),
                None => {
                    queued += 1;
                    self.queue.write(reg::CMDQ_PROD, 4, self.stops[queued - 1]);
                }
            }
        }
    }
}

/// Measures the trace, as it is and as it would be without ranges.
pub fn run(sampler: &Sampler, sysfs: &Path) -> Result<(), Box<dyn Error>> {
    let smmu = invalidate::smmu(sysfs)?;
    let machine = Machine {
        iommufd: smmu.iommufd().clone(),
        viommu_id: smmu.viommu_id(),
    };
    let config = Config::new(smmu.hw_info().flags);
    let mut single = config;
    single.max_batch = 1;
    for (guest, commands) in traces() {
        for (how, cpus, config) in [
            ("1 CPU", 1, config),
            ("2 CPUs", 2, config),
            ("4 CPUs", 4, config),
            ("8 CPUs", 8, config),
            ("an ioctl a command", 1, single),
        ] {
            let id = format!("relay: {guest}, {how}");
            let mut guest = Guest::new(&commands, cpus, config)?;
            let mut play = || guest.play(|batch| machine.invalidate(batch));
            let ioctls = play()?;
            sampler.case_of_calls(&id, commands.len(), ioctls, || play().map(|_| ()))?;
        }
    }
    Ok(())
}

fn traces() -> [(&'static str, Vec<Command>); 2] {
    [
        ("Linux", trace::recorded().collect()),
        (
            "Linux without ranges",
            trace::recorded().flat_map(trace::without_range).collect(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 1698 CMD_SYNCs, 1681 have something before them that is forwarded. While an ioctl is in flight for
    /// one CPU, the others queue, and those go together with the next one. So with two CPUs each ioctl is
    /// for one of them, with four it is for one and for three in turn, with eight for one and for seven.
    #[test]
    fn fewer_ioctls_with_more_cpus() {
        for (_, commands) in traces() {
            let ioctls = [1, 2, 4, 8].map(|cpus| {
                let mut guest = Guest::new(&commands, cpus, Config::new(2)).unwrap();
                let all_done = |batch: &Batch| Outcome {
                    errno: 0,
                    done: batch.count(),
                    code: 0,
                };
                guest.play(all_done).unwrap()
            });
            assert_eq!(ioctls, [1681, 1681, 848, 426]);
        }
    }
}
