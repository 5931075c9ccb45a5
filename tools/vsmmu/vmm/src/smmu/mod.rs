// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual SMMUv3, whose stage 1 is done by the SMMU of the host.
//!
//! A thread serves the command queue, so that the guest's CPUs see its registers change while the host works.
//! Invalidations go to the host. A CFGI_STE has the host take over what the guest has in its stream table.

mod eventq;
mod host;
mod regs;
mod ste;

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryMmap;
use vsmmu_nested::HwInfo;
use vsmmu_relay::{Action, Batch, Command, Handled, Outcome, op, reg};

pub use eventq::Record;
pub use host::{Error, Nested};
pub use regs::STREAM_BITS;
pub use ste::{INVALID, Ste};

use crate::bus::{Device, Line, put, value};
use regs::{Global, Registers};

/// What the host does for it.
pub trait Host: Send + Sync {
    /// Has the commands executed.
    fn invalidate(&self, batch: &Batch) -> Outcome;
    /// Has a device do what the entry says: without one it goes by the guest's addresses.
    ///
    /// # Errors
    ///
    /// When the host cannot or will not. The text says why.
    fn set(&self, device: usize, ste: Option<Ste>) -> Result<(), String>;
}

/// The virtual SMMU.
pub struct Smmu<H: Host> {
    registers: Mutex<Registers>,
    /// The command queue may have something to do.
    kick: Condvar,
    /// Held by whoever changes what devices do, who looks at registers and table only then.
    changing: Mutex<()>,
    host: H,
    memory: GuestMemoryMmap,
    /// The stream IDs of the devices.
    streams: Vec<u32>,
    gerror: Line,
    event: Line,
    /// Whether errors are told.
    verbose: bool,
}

/// Its two interrupts, and whether it tells of errors that the guest gets.
pub struct Outputs {
    /// For GERROR.
    pub gerror: Line,
    /// For the event queue.
    pub event: Line,
    /// On stderr, with the registers at that moment.
    pub verbose: bool,
}

impl<H: Host + 'static> Smmu<H> {
    /// One for devices with these stream IDs. A thread serves its queue.
    ///
    /// # Errors
    ///
    /// When the host refuses what the devices do before the guest has any say.
    pub fn new(
        host: H,
        info: &HwInfo,
        memory: GuestMemoryMmap,
        streams: Vec<u32>,
        outputs: Outputs,
    ) -> Result<Arc<Self>, String> {
        let smmu = Arc::new(Smmu {
            registers: Mutex::new(Registers::new(info)),
            kick: Condvar::new(),
            changing: Mutex::new(()),
            host,
            memory,
            streams,
            gerror: outputs.gerror,
            event: outputs.event,
            verbose: outputs.verbose,
        });
        for device in 0..smmu.streams.len() {
            smmu.host.set(device, None)?;
        }
        let worker = smmu.clone();
        thread::spawn(move || worker.work());
        Ok(smmu)
    }
}

impl<H: Host> Smmu<H> {
    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap()
    }

    /// Consumes commands.
    fn work(&self) {
        let mut ioctl = Duration::ZERO;
        let mut registers = self.lock();
        loop {
            let action = registers
                .cmdq
                .next(&self.memory, |command| self.forwards(command));
            match action {
                Some(Action::Invalidate(batch)) => {
                    drop(registers);
                    let start = Instant::now();
                    let outcome = self.host.invalidate(&batch);
                    ioctl = start.elapsed();
                    registers = self.lock();
                    registers.cmdq.complete(batch, outcome);
                }
                Some(Action::Execute(own)) => {
                    drop(registers);
                    let handled = self.execute(own.command());
                    registers = self.lock();
                    registers.cmdq.complete_own(own, handled);
                }
                // It has no MSIs, and an event would reach nobody: guests poll.
                Some(Action::Sync(_)) => {}
                Some(Action::Gather) => {
                    let more = |registers: &mut Registers| registers.cmdq.is_gathering();
                    let all = self.kick.wait_timeout_while(registers, ioctl / 2, more);
                    (registers, _) = all.unwrap();
                }
                Some(Action::Gerror) => {
                    self.tell(&registers, "the command queue has an error");
                    if registers.gerror_interrupt() {
                        pulse(&self.gerror);
                    }
                }
                Some(Action::Problem(e)) => {
                    eprintln!("vsmmu-vmm: {e}; it is tried again in a second");
                    let second = Duration::from_secs(1);
                    (registers, _) = self.kick.wait_timeout(registers, second).unwrap();
                }
                None => registers = self.kick.wait(registers).unwrap(),
            }
        }
    }

    /// Whether a command is one for the host: it knows of no other streams.
    fn forwards(&self, command: Command) -> bool {
        let stream = command.stream_id();
        match command.opcode() {
            op::CFGI_CD | op::CFGI_CD_ALL | op::ATC_INV => self.streams.contains(&stream),
            _ => command.is_forwardable(),
        }
    }

    /// Executes a command that is not for the host.
    fn execute(&self, command: Command) -> Handled {
        match command.opcode() {
            op::CFGI_STE => self.update(|stream| stream == command.stream_id()),
            op::CFGI_STE_RANGE => self.update(|_| true),
            // There is nothing to prefetch into, and nothing is cached of streams without a device.
            op::PREFETCH_CONFIG | op::PREFETCH_ADDR => {}
            op::CFGI_CD | op::CFGI_CD_ALL | op::ATC_INV => {}
            _ => return Handled::Illegal,
        }
        Handled::Done
    }

    /// Has devices do what registers and stream table say: those whose stream is `concerned`.
    fn update(&self, concerned: impl Fn(u32) -> bool) {
        let _changing = self.changing.lock().unwrap();
        let global = self.lock().global();
        for (device, stream) in self.streams.iter().enumerate() {
            if !concerned(*stream) {
                continue;
            }
            let ste = match global {
                Global::Bypass => None,
                Global::Abort => Some(INVALID),
                Global::Table(table) => Some(table.lookup(&self.memory, *stream, STREAM_BITS)),
            };
            let Err(why) = self.host.set(device, ste) else {
                continue;
            };
            eprintln!("vsmmu-vmm: stream {stream:#x}: {why}; it is cut off");
            if let Err(why) = self.host.set(device, Some(INVALID)) {
                eprintln!("vsmmu-vmm: stream {stream:#x}: not even that: {why}");
            }
        }
    }

    /// Puts an event of the host's into the guest's queue.
    pub fn event(&self, record: &Record) {
        let mut registers = self.lock();
        if !registers.has_events() {
            return;
        }
        registers.eventq.push(&self.memory, record);
        if registers.event_interrupt() {
            pulse(&self.event);
        }
    }

    fn tell(&self, registers: &Registers, what: &str) {
        if self.verbose {
            let read = |offset| registers.read(offset, 4);
            eprintln!(
                "vsmmu-vmm: {what}: CMDQ_CONS {:#010x} GERROR {:#x} GERRORN {:#x}",
                read(reg::CMDQ_CONS),
                read(reg::GERROR),
                read(reg::GERRORN)
            );
        }
    }
}

/// The interrupts of an SMMU have edges.
fn pulse(line: &Line) {
    line(true);
    line(false);
}

impl<H: Host> Device for Smmu<H> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let len = data.len();
        put(data, self.lock().read(offset, len));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        let effect = registers.write(offset, data.len(), value(data));
        if offset == reg::GERRORN {
            self.tell(&registers, "the guest acknowledges");
        }
        drop(registers);
        if effect.streams {
            // Before the guest can see that its write has been taken.
            self.update(|_| true);
        }
        if effect.queue {
            self.kick.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
