// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it takes a VMM to relay what a Linux guest has really queued, up to a CMD_SYNC each time.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use iommufd_ioctls::IommuFd;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};
use vsmmu_nested::Command;
use vsmmu_nested::cmd::{Range, op};
use vsmmu_relay::{
    self as relay, Batch, Cmdq, Config, Handled, Outcome, Progress, Signal, Vmm, iommufd,
};

use crate::invalidate::{self, VSID};
use crate::sample::Sampler;

/// Its commands in their order, see the description beside it.
const TRACE: &[u8] = include_bytes!("../traces/linux.bin");

const CR0: u64 = 0x20;
const CMDQ_BASE: u64 = 0x90;
const CMDQ_PROD: u64 = 0x98;
const CMDQ_CONS: u64 = 0x9c;
const SYNC: u8 = relay::op::SYNC;

fn opcode(command: Command) -> u8 {
    command.as_slice()[0]
}

/// The trace, with all devices as the one that there is.
fn recorded() -> Vec<Command> {
    let (commands, []) = TRACE.as_chunks::<16>() else {
        panic!("a trace has whole commands only");
    };
    let commands = commands.iter().map(|bytes| {
        let both = u128::from_le_bytes(*bytes);
        let [w0, w1] = [both as u64, (both >> 64) as u64];
        match w0 as u8 {
            op::CFGI_CD | op::CFGI_CD_ALL => {
                Command::from_words(w0 & 0xffff_ffff | u64::from(VSID) << 32, w1)
            }
            _ => Command::from_words(w0, w1),
        }
    });
    commands.collect()
}

/// What the same guest queues on an SMMU without range invalidation: a command for each page.
fn without_ranges(commands: &[Command]) -> Vec<Command> {
    let mut all = Vec::new();
    for command in commands {
        let [w0, w1] = command.words();
        // Granules of 4 KiB are all that there is in the trace.
        let is_range = opcode(*command) == op::TLBI_NH_VA && w1 >> 10 & 3 == 1;
        let pages = match is_range {
            true => ((w0 >> 12 & 0x1f) + 1) << (w0 >> 20 & 0x1f),
            false => 1,
        };
        for page in 0..pages {
            all.push(match is_range {
                true => {
                    let [w0, w1] = command.with_range(Range::default()).words();
                    Command::from_words(w0, w1 + (page << 12))
                }
                false => *command,
            });
        }
    }
    all
}

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
        let ends = (1..=commands.len()).filter(|i| opcode(commands[i - 1]) == SYNC);
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
    let recorded = recorded();
    for (guest, commands) in [
        ("Linux", &recorded),
        ("Linux without ranges", &without_ranges(&recorded)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_is_one() {
        let commands = recorded();
        assert!(commands.len() > 1000);
        let last = commands.last().unwrap();
        assert_eq!(opcode(*last), SYNC);
        // Nothing is longer than a guest would let it be.
        let all = without_ranges(&commands);
        assert!(all.len() > commands.len());
        let longest = all.split(|command| opcode(*command) == SYNC);
        assert!(longest.map(<[_]>::len).max() <= Some(64));
    }

    #[test]
    fn a_range_is_its_pages() {
        let range = Range {
            num: 1,
            scale: 1,
            tg: 1,
            ttl: 3,
        };
        let leaf = |iova| Command::tlbi_nh_va(7, iova, true);
        let commands = [leaf(0x5000).with_range(range), Command::tlbi_nh_asid(7)];
        assert_eq!(
            without_ranges(&commands),
            [
                leaf(0x5000),
                leaf(0x6000),
                leaf(0x7000),
                leaf(0x8000),
                Command::tlbi_nh_asid(7)
            ]
        );
    }
}
