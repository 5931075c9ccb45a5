// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM with threads: a virtual SMMUv3 as a device on the VMM's bus, with a GERROR that has other bits as
//! well, and threads that make the ioctls while the guest's CPUs go on. In the end it is shut down while an
//! ioctl is in flight, and what has been saved goes on in a second VMM.

mod common;

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use common::{Kernel, Memory};
use vsmmu_relay::{Action, Cmdq, Command, Config, State, reg};

/// Another error than the command queue's, which the VMM has for itself.
const MSI_CMDQ_ABT_ERR: u64 = 1 << 4;

/// What is behind the lock.
struct Registers {
    queue: Cmdq,
    /// The bits of these that are not the queue's.
    gerror: u64,
    gerrorn: u64,
    stop: bool,
}

struct Smmu {
    registers: Mutex<Registers>,
    /// There may be something to do.
    kick: Condvar,
    memory: Memory,
    kernel: Kernel,
}

impl Smmu {
    fn new(memory: Memory) -> Arc<Self> {
        // The flags are those of the hw_info of the SMMU; 2 stands for a kernel that answers exactly.
        let queue = Cmdq::new(Config::new(2));
        Arc::new(Smmu {
            registers: Mutex::new(Registers {
                queue,
                gerror: 0,
                gerrorn: 0,
                stop: false,
            }),
            kick: Condvar::new(),
            memory,
            kernel: Kernel::Pretend {
                seen: AtomicU32::new(0),
            },
        })
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap()
    }

    fn mmio_read(&self, offset: u64, len: usize) -> u64 {
        let registers = self.lock();
        let others = match offset {
            reg::GERROR => registers.gerror,
            reg::GERRORN => registers.gerrorn,
            // ... IDR0 and all the others.
            _ => 0,
        };
        registers.queue.read(offset, len).unwrap_or(0) | others
    }

    fn mmio_write(&self, offset: u64, len: usize, value: u64) {
        let mut registers = self.lock();
        if offset == reg::GERRORN {
            registers.gerrorn = value & MSI_CMDQ_ABT_ERR;
        }
        if registers.queue.write(offset, len, value) {
            self.kick.notify_one();
        }
    }

    fn interrupt(&self, why: &str) {
        // An irqfd, if IRQ_CTRL.GERROR_IRQEN is set.
        println!("vmm: GERROR interrupt, {why}");
    }

    /// Consumes commands. There can be several threads that do this.
    fn work(&self) {
        let mut ioctl = Duration::ZERO;
        let mut registers = self.lock();
        while !registers.stop {
            match registers.queue.next(&self.memory, Command::is_forwardable) {
                Some(Action::Invalidate(batch)) => {
                    drop(registers);
                    let start = Instant::now();
                    let outcome = self.kernel.invalidate(&batch);
                    ioctl = start.elapsed();
                    registers = self.lock();
                    registers.queue.complete(batch, outcome);
                }
                Some(Action::Execute(own)) => {
                    drop(registers);
                    let handled = common::execute(own.command());
                    registers = self.lock();
                    registers.queue.complete_own(own, handled);
                }
                Some(Action::Sync(signal)) => {
                    let written = common::signal(&self.memory, signal);
                    let active = registers.gerror ^ registers.gerrorn;
                    if !written && active & MSI_CMDQ_ABT_ERR == 0 {
                        registers.gerror ^= MSI_CMDQ_ABT_ERR;
                        self.interrupt("an MSI could not be written");
                    }
                }
                Some(Action::Gather) => {
                    let more = |registers: &mut Registers| registers.queue.is_gathering();
                    (registers, _) = self
                        .kick
                        .wait_timeout_while(registers, ioctl / 2, more)
                        .unwrap();
                }
                Some(Action::Gerror) => self.interrupt("the command queue has an error"),
                Some(Action::Problem(e)) => {
                    eprintln!("vmm: {e}; it is tried again in a second");
                    let second = Duration::from_secs(1);
                    (registers, _) = self.kick.wait_timeout(registers, second).unwrap();
                }
                None => registers = self.kick.wait(registers).unwrap(),
            }
        }
    }

    /// Ends the device, and gives what has to be saved. An ioctl may be in flight: its answer is ignored.
    fn shut_down(&self) -> State {
        let mut registers = self.lock();
        let state = registers.queue.state();
        registers.queue.reset();
        registers.stop = true;
        self.kick.notify_all();
        state
    }
}

fn start(smmu: &Arc<Smmu>) -> Vec<thread::JoinHandle<()>> {
    let work = |_| {
        let smmu = smmu.clone();
        thread::spawn(move || smmu.work())
    };
    (0..2).map(work).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = common::memory();
    let smmu = Smmu::new(memory.clone());
    let threads = start(&smmu);
    common::guest(
        &memory,
        |offset| smmu.mmio_read(offset, 4),
        |offset, len, value| smmu.mmio_write(offset, len, value),
    );

    // A thread takes the guest's last command, and is in the kernel now.
    while !smmu.lock().queue.is_busy() {
        thread::yield_now();
    }
    let state = smmu.shut_down();
    println!("vmm: shut down, {:#x} of {:#x}", state.cons, state.prod);

    let other = Smmu::new(memory);
    other.lock().queue.restore(&state)?;
    let others = start(&other);
    while other.mmio_read(reg::CMDQ_CONS, 4) & 0xfffff != u64::from(state.prod) {
        thread::yield_now();
    }
    println!("other vmm: all is complete");
    other.shut_down();
    for thread in threads.into_iter().chain(others) {
        thread.join().expect("a thread has panicked");
    }
    // The answer to what was in flight has come meanwhile.
    assert_eq!(smmu.lock().queue.counters().ill, 1);
    assert!(!smmu.lock().queue.is_busy());
    Ok(())
}
