// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it takes a VMM to relay what the CPUs of a Linux guest have really queued.
//!
//! The guest's time is that of this machine. Each CPU queues commands when as many nanoseconds have passed as
//! it had executed instructions in the recording, from when its last CMD_SYNC was complete. It takes the VMM
//! what it takes here: the ioctls are made, and the clock says how long they and the relay have taken.
//! What the guest's exits and the VMM's threads cost is left out: commands are there as soon as they are
//! queued, and CPUs go on as soon as their CMD_SYNC is complete.

use std::collections::VecDeque;
use std::error::Error;
use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use iommufd_ioctls::IommuFd;
use serde_json::json;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vsmmu_relay::{self as relay, Action, Batch, Cmdq, Config, Handled, Outcome, iommufd, reg};

use crate::invalidate;
use crate::sample::Sampler;
use crate::trace::{self, Issue};

const RING: u64 = 0x4000_0000;
const LOG2SIZE: u8 = 8;

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

/// How a VMM goes about it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It waits for more when the relay says so, for half of what the last ioctl took.
    Waits,
    /// It sends what is there.
    AtOnce,
    /// It makes an ioctl for each command.
    Single,
}

const WAYS: [(Way, &str); 3] = [
    (Way::Waits, "waits for more"),
    (Way::AtOnce, "sends at once"),
    (Way::Single, "an ioctl a command"),
];

/// A CPU of the guest's.
#[derive(Default)]
struct Cpu {
    issues: VecDeque<Issue>,
    /// When it queues the next of them. `None`: it waits for a CMD_SYNC, or has none left.
    at: Option<u64>,
}

impl Cpu {
    fn goes_on(&mut self, now: u64) {
        self.at = self.issues.front().map(|issue| now + issue.after);
    }
}

/// What has come of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Played {
    ioctls: u64,
    /// CMD_SYNCs of the guest's.
    syncs: u64,
    /// How long the VMM was at work, and from the first command to the last CMD_SYNC.
    busy: u64,
    end: u64,
}

/// A guest whose commands go through the relay.
struct Guest<C: Fn() -> u64> {
    memory: GuestMemoryMmap,
    queue: Cmdq,
    way: Way,
    cpus: Vec<Cpu>,
    prod: u32,
    /// Which CPUs wait for a CMD_SYNC, in the order of the queue.
    waiting: VecDeque<usize>,
    now: u64,
    /// In nanoseconds, and what it costs to look at it.
    clock: C,
    overhead: u64,
    played: Played,
}

impl<C: Fn() -> u64> Guest<C> {
    fn new(issues: Vec<Issue>, config: Config, way: Way, clock: C) -> Result<Self, Box<dyn Error>> {
        let mut config = config;
        config.cmdqs = LOG2SIZE;
        if way == Way::Single {
            config.max_batch = 1;
        }
        let mut cpus = Vec::new();
        for issue in issues {
            cpus.resize_with(cpus.len().max(issue.cpu + 1), Cpu::default);
            cpus[issue.cpu].issues.push_back(issue);
        }
        for cpu in &mut cpus {
            cpu.goes_on(0);
        }
        let mut queue = Cmdq::new(config);
        queue.write(reg::CMDQ_BASE, 8, RING | u64::from(LOG2SIZE));
        queue.write(reg::CR0, 4, reg::CR0_CMDQEN.into());
        let overhead = (0..10).map(|_| {
            let start = clock();
            clock() - start
        });
        Ok(Guest {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(RING), 16 << LOG2SIZE)])?,
            queue,
            way,
            cpus,
            prod: 0,
            waiting: VecDeque::new(),
            now: 0,
            overhead: overhead.min().unwrap_or(0),
            clock,
            played: Played::default(),
        })
    }

    /// Does something of the VMM's, which takes time. Gives that as well.
    fn work<T>(&mut self, what: impl FnOnce(&mut Self) -> T) -> (T, u64) {
        let start = (self.clock)();
        let result = what(self);
        let time = ((self.clock)() - start).saturating_sub(self.overhead);
        self.now += time;
        self.played.busy += time;
        (result, time)
    }

    /// When the next CPU queues something.
    fn next_arrival(&self) -> Option<(u64, usize)> {
        let arrivals = self.cpus.iter().enumerate();
        arrivals.filter_map(|(i, cpu)| Some((cpu.at?, i))).min()
    }

    /// Queues all that is queued up to now.
    fn arrive(&mut self) -> Result<(), Box<dyn Error>> {
        while let Some((at, i)) = self.next_arrival().filter(|(at, _)| *at <= self.now) {
            let cpu = &mut self.cpus[i];
            let issue = cpu.issues.pop_front().ok_or("a CPU has nothing to queue")?;
            for command in &issue.commands {
                let place = u64::from(self.prod) % (1 << LOG2SIZE);
                self.memory
                    .write_obj(*command, GuestAddress(RING + place * 16))?;
                self.prod = (self.prod + 1) % (2 << LOG2SIZE);
            }
            if issue
                .commands
                .last()
                .is_some_and(|last| trace::is_sync(*last))
            {
                cpu.at = None;
                self.waiting.push_back(i);
            } else {
                cpu.goes_on(at);
            }
            self.queue.write(reg::CMDQ_PROD, 4, self.prod.into());
        }
        Ok(())
    }

    fn play(mut self, invalidate: impl Fn(&Batch) -> Outcome) -> Result<Played, Box<dyn Error>> {
        let mut ioctl = 0;
        loop {
            self.arrive()?;
            let forwards = relay::Command::is_forwardable;
            let (action, _) = self.work(|guest| guest.queue.next(&guest.memory, forwards));
            match action {
                Some(Action::Invalidate(batch)) => {
                    self.played.ioctls += 1;
                    let (outcome, time) = self.work(|_| invalidate(&batch));
                    ioctl = time;
                    self.arrive()?;
                    self.work(|guest| guest.queue.complete(batch, outcome));
                }
                // What these take is the VMM's affair.
                Some(Action::Execute(own)) => self.queue.complete_own(own, Handled::Done),
                Some(Action::Sync(_)) => {
                    self.played.syncs += 1;
                    let cpu = self.waiting.pop_front().ok_or("nobody waits for it")?;
                    self.cpus[cpu].goes_on(self.now);
                }
                Some(Action::Gather) if self.way == Way::Waits => {
                    let end = self.now + ioctl / 2;
                    while self.queue.is_gathering() {
                        let next = self.next_arrival().map_or(u64::MAX, |(at, _)| at);
                        self.now = next.min(end).max(self.now);
                        self.arrive()?;
                        if self.now >= end {
                            break;
                        }
                    }
                }
                Some(Action::Gather) => {}
                Some(Action::Gerror) => {
                    let state = self.queue.state();
                    return Err(format!("the queue has stopped: {state:x?}").into());
                }
                Some(Action::Problem(e)) => return Err(e.into()),
                None => match self.next_arrival() {
                    Some((at, _)) => self.now = self.now.max(at),
                    None if self.waiting.is_empty() => {
                        self.played.end = self.now;
                        return Ok(mem::take(&mut self.played));
                    }
                    None => return Err("a CMD_SYNC does not become complete".into()),
                },
            }
        }
    }
}

/// Measures the trace.
pub fn run(sampler: &Sampler, sysfs: &Path) -> Result<(), Box<dyn Error>> {
    let smmu = invalidate::smmu(sysfs)?;
    let machine = Machine {
        iommufd: smmu.iommufd().clone(),
        viommu_id: smmu.viommu_id(),
    };
    let config = Config::new(smmu.hw_info().flags);
    let start = Instant::now();
    let clock = || start.elapsed().as_nanos() as u64;
    for (way, name) in WAYS {
        let play = || {
            Guest::new(trace::recorded(), config, way, clock)?
                .play(|batch| machine.invalidate(batch))
        };
        // With its caches full.
        play()?;
        let before = sampler.counts()?;
        let played = play()?;
        let counts = sampler.counts()?.zip(before);
        println!(
            "{}",
            json!({
                "id": format!("relay: {name}"),
                "n": played.syncs,
                "ioctls": played.ioctls,
                "median": played.busy,
                "end": played.end,
                "syncs": counts.map(|(after, before)| after.since(before).syncs),
            })
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// With an ioctl that takes `fixed` nanoseconds and 30 for each command.
    fn play(way: Way, fixed: u64) -> Played {
        let time = Cell::new(0);
        let guest = Guest::new(trace::recorded(), Config::new(2), way, || time.get()).unwrap();
        let played = guest.play(|batch| {
            time.set(time.get() + fixed + 30 * u64::from(batch.count()));
            Outcome {
                errno: 0,
                done: batch.count(),
                code: 0,
            }
        });
        played.unwrap()
    }

    /// The SMMU takes no time for a CMD_SYNC, or 28 us, as one does that many CPUs share. Where it is the
    /// SMMU that the guest waits for, the relay gets by with less than half an ioctl for each CMD_SYNC, and
    /// the guest is sooner ready.
    #[test]
    fn ioctls() {
        for (fixed, ioctls) in [(1700, [1941, 1963, 2000]), (29_700, [894, 1225, 2000])] {
            let played = WAYS.map(|(way, _)| play(way, fixed));
            assert_eq!(played.map(|played| played.ioctls), ioctls, "{played:?}");
            assert!(played.iter().all(|played| played.syncs == 2000));
            assert!(played.is_sorted_by_key(|played| played.end), "{played:?}");
            let [waits, ..] = played;
            assert!(fixed < 28_000 || 2 * waits.ioctls <= waits.syncs);
        }
    }
}
