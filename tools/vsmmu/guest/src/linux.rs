// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that does to its command queue what Linux does, and the VMM below it.

use std::sync::Arc;

use iommufd_ioctls::IommuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vsmmu_nested::Command;
use vsmmu_relay::reg::{self, CMDQ_BASE, CMDQ_CONS, CMDQ_PROD, CR0, GERROR, GERRORN};
use vsmmu_relay::{self as relay, Action, Cmdq, Config, Handled, Signal, iommufd, op};

/// More rounds than anything takes that ends.
const ROUNDS: u32 = 20_000;
/// A VMM whose host has a problem for so many times gives up.
const PROBLEMS: usize = 5;

/// Log2 of the entries in a page.
pub const LOG2SIZE: u32 = 8;

/// CMD_SYNC that sends an event, as Linux has it without MSIs.
pub fn cmd_sync() -> Command {
    Command::from_words(u64::from(op::SYNC) | 2 << 12, 0)
}

/// What a VMM is made of.
#[derive(Clone)]
pub struct Parts {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// A page of it for the ring.
    pub ring: GuestAddress,
    /// The open `/dev/iommu`.
    pub iommufd: Arc<IommuFd>,
    /// The vIOMMU.
    pub viommu_id: u32,
}

/// An error, as the guest has found it in its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// CMDQ_CONS.ERR
    pub code: u32,
    /// CMDQ_CONS.RD
    pub rd: u32,
}

/// The guest.
pub struct Guest {
    queue: Cmdq,
    parts: Parts,
    config: Config,
    log2size: u32,
    ioctls: u32,
    own: u32,
    /// The errors that it has seen.
    pub seen: Vec<Seen>,
    /// The errnos that the relay has reported to the VMM.
    pub problems: Vec<i32>,
    /// Something has gone wrong that no guest should ever see.
    pub fault: Option<String>,
}

impl Guest {
    /// One with an empty queue, which is on.
    pub fn new(parts: Parts, config: Config, log2size: u32) -> Self {
        let mut guest = Guest {
            queue: Cmdq::new(config),
            log2size,
            config,
            ioctls: 0,
            own: 0,
            parts,
            seen: Vec::new(),
            problems: Vec::new(),
            fault: None,
        };
        guest.start(guest.parts.ring);
        guest
    }

    /// Makes an empty queue at `base`, and puts it on.
    pub fn start(&mut self, base: GuestAddress) {
        self.write(CR0, 0);
        let base = base.0 | u64::from(self.log2size);
        assert!(self.queue.write(CMDQ_BASE, 8, base));
        self.write(CMDQ_PROD, 0);
        self.write(CMDQ_CONS, 0);
        self.write(CR0, reg::CR0_CMDQEN);
    }

    fn read(&self, offset: u64) -> u32 {
        self.queue.read(offset, 4).expect("a register") as u32
    }

    fn write(&mut self, offset: u64, value: u32) {
        assert!(self.queue.write(offset, 4, value.into()));
    }

    /// How often the VMM has made the ioctl.
    pub fn ioctls(&self) -> u32 {
        self.ioctls
    }

    /// How many commands the VMM has executed by itself.
    pub fn own(&self) -> u32 {
        self.own
    }

    /// Whether an error is active.
    pub fn has_error(&self) -> bool {
        self.read(GERROR) != self.read(GERRORN)
    }

    fn put(&self, pointer: u32, command: Command) {
        let index = u64::from(pointer & ((1 << self.log2size) - 1));
        let at = GuestAddress(self.parts.ring.0 + index * 16);
        let memory = &self.parts.memory;
        memory.write_obj(command, at).expect("the ring is there");
    }

    /// Queues the commands with a CMD_SYNC behind them, and waits until they are complete.
    pub fn submit(&mut self, commands: &[Command]) {
        let mut commands = commands.iter().copied().chain([cmd_sync()]).peekable();
        while commands.peek().is_some() && self.fault.is_none() {
            let pushed = self.push(&mut commands);
            self.run();
            let cons = self.read(CMDQ_CONS) & 0xfffff;
            if cons != pushed && self.problems.len() < PROBLEMS {
                self.fault = Some(format!("CONS is at {cons}, PROD at {pushed}"));
            }
        }
    }

    /// Queues as many as there is room for, without waiting. Gives the new PROD.
    pub fn push(&mut self, commands: &mut impl Iterator<Item = Command>) -> u32 {
        let mask = (2 << self.log2size) - 1;
        let mut prod = self.read(CMDQ_PROD);
        let used = prod.wrapping_sub(self.read(CMDQ_CONS)) & mask;
        let room = (1 << self.log2size) - used;
        for command in commands.take(room as usize) {
            self.put(prod, command);
            prod = (prod + 1) & mask;
        }
        self.write(CMDQ_PROD, prod);
        prod
    }

    /// Lets the VMM consume what is queued, and serves its interrupts, until there is nothing left to do.
    pub fn run(&mut self) {
        for _ in 0..ROUNDS {
            if !self.consume() {
                return;
            }
            self.interrupt();
        }
        self.fault = Some("it does not come to an end".into());
    }

    /// Lets the VMM consume what is queued. Says whether there is an interrupt.
    pub fn consume(&mut self) -> bool {
        let mut interrupt = false;
        while let Some(action) = self
            .queue
            .next(&self.parts.memory, relay::Command::is_forwardable)
        {
            match action {
                Action::Invalidate(batch) => {
                    self.ioctls += 1;
                    let parts = &self.parts;
                    let outcome = iommufd::invalidate(&parts.iommufd, parts.viommu_id, &batch);
                    self.queue.complete(batch, outcome);
                }
                Action::Execute(own) => {
                    let handled = self.execute(own.command());
                    self.queue.complete_own(own, handled);
                }
                Action::Sync(signal) => self.signal(signal),
                Action::Gerror => interrupt = true,
                // There is one CPU, and nothing comes meanwhile.
                Action::Gather => {}
                Action::Problem(e) => {
                    self.problems.push(e.errno);
                    if self.problems.len() >= PROBLEMS {
                        return false;
                    }
                }
            }
        }
        interrupt
    }

    fn execute(&mut self, command: relay::Command) -> Handled {
        match command.opcode() {
            op::CFGI_STE => {
                self.own += 1;
                Handled::Done
            }
            _ => Handled::Illegal,
        }
    }

    fn signal(&self, signal: Signal) {
        if let Signal::Irq { address, data } = signal
            && address != 0
        {
            // If there is no memory, the guest does not get it.
            let at = GuestAddress(address);
            let _ = self.parts.memory.write_obj(data.to_le(), at);
        }
    }

    /// What Linux does then: a command that is illegal becomes a CMD_SYNC, and in any case the error is
    /// acknowledged.
    pub fn interrupt(&mut self) {
        let cons = self.read(CMDQ_CONS);
        let seen = Seen {
            code: cons >> 24,
            rd: cons & 0xfffff,
        };
        self.seen.push(seen);
        if seen.code == 1 {
            self.put(seen.rd, cmd_sync());
        }
        self.acknowledge();
    }

    /// Acknowledges, and nothing else.
    pub fn acknowledge(&mut self) {
        self.write(GERRORN, self.read(GERROR));
    }

    /// Takes everything back that is not consumed.
    pub fn take_back(&mut self) {
        self.write(CMDQ_PROD, self.read(CMDQ_CONS) & 0xfffff);
    }

    /// Switches the queue off and on.
    pub fn toggle(&mut self) {
        self.write(CR0, 0);
        self.write(CR0, reg::CR0_CMDQEN);
    }

    /// Goes on in another VMM, which gets its state as text, and sends fewer commands at a time.
    pub fn migrate(&mut self) {
        let text = serde_json::to_string(&self.queue.state()).expect("plain data");
        let state = serde_json::from_str(&text).expect("the same");
        let mut config = self.config;
        config.max_batch = 16;
        self.queue = Cmdq::new(config);
        self.queue.restore(&state).expect("as it was saved");
    }
}
