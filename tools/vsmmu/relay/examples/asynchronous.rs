// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM with tasks: one task has the queue, without a lock, and serves what traps. The ioctls are made
//! elsewhere. In the end it is shut down while an ioctl is in flight, and what has been saved goes on in a
//! second task.

mod common;

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use common::{Kernel, Memory};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;
use vsmmu_relay::{Action, Batch, Cmdq, Command, Config, Outcome, State, reg};

/// An access of the guest's that traps.
enum Access {
    Read(u64, usize, oneshot::Sender<u64>),
    Write(u64, usize, u64),
}

struct Smmu {
    queue: Cmdq,
    memory: Memory,
    kernel: Arc<Kernel>,
    /// The ioctl that is in flight.
    flight: Option<JoinHandle<(Batch, Outcome)>>,
    /// The host has a problem: it is tried again in a while.
    problem: bool,
}

impl Smmu {
    fn new(memory: Memory) -> Self {
        Smmu {
            // The flags are those of the hw_info of the SMMU; 2 stands for a kernel that answers exactly.
            queue: Cmdq::new(Config::new(2)),
            memory,
            kernel: Arc::new(Kernel::Pretend {
                seen: AtomicU32::new(0),
            }),
            flight: None,
            problem: false,
        }
    }

    /// Does what there is to do without waiting.
    fn work(&mut self) {
        while let Some(action) = self.queue.next(&self.memory, Command::is_forwardable) {
            match action {
                Action::Invalidate(batch) => {
                    let kernel = self.kernel.clone();
                    self.flight = Some(spawn_blocking(move || {
                        let outcome = kernel.invalidate(&batch);
                        (batch, outcome)
                    }));
                }
                // As quick as that, or as an ioctl is made.
                Action::Execute(own) => {
                    let handled = common::execute(own.command());
                    self.queue.complete_own(own, handled);
                }
                Action::Sync(signal) => {
                    if !common::signal(&self.memory, signal) {
                        // GERROR.MSI_CMDQ_ABT_ERR, as blocking.rs has it.
                        println!("vmm: an MSI could not be written");
                    }
                }
                Action::Gerror => println!("vmm: GERROR interrupt"),
                // A VMM that waits for more is in blocking.rs.
                Action::Gather => {}
                Action::Problem(e) => {
                    eprintln!("vmm: {e}; it is tried again in a second");
                    self.problem = true;
                    return;
                }
            }
        }
    }

    fn access(&mut self, access: Access) {
        match access {
            Access::Read(offset, len, reply) => {
                // Nobody may be there any more to hear it.
                let _ = reply.send(self.queue.read(offset, len).unwrap_or(0));
            }
            Access::Write(offset, len, value) => {
                self.queue.write(offset, len, value);
            }
        }
    }

    /// Serves the guest until it is gone. What is in flight then is not waited for.
    async fn run(mut self, mut accesses: mpsc::Receiver<Access>) -> State {
        loop {
            if !self.problem {
                self.work();
            }
            tokio::select! {
                (batch, outcome) = answer(&mut self.flight) => {
                    self.flight = None;
                    self.queue.complete(batch, outcome);
                }
                access = accesses.recv() => match access {
                    Some(access) => self.access(access),
                    None => return self.queue.state(),
                },
                () = sleep(Duration::from_secs(1)), if self.problem => self.problem = false,
            }
        }
    }
}

/// Waits for the ioctl that is in flight, if there is one.
async fn answer(flight: &mut Option<JoinHandle<(Batch, Outcome)>>) -> (Batch, Outcome) {
    match flight {
        Some(flight) => flight.await.expect("the ioctl does not panic"),
        None => pending().await,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_time()
        .build()?;
    let memory = common::memory();
    let (traps, accesses) = mpsc::channel(1);
    let smmu = runtime.spawn(Smmu::new(memory.clone()).run(accesses));

    // A CPU of the guest waits for what it reads, and is a thread.
    let read = |traps: &mpsc::Sender<Access>, offset| {
        let (reply, value) = oneshot::channel();
        let _ = traps.blocking_send(Access::Read(offset, 4, reply));
        value.blocking_recv().expect("the SMMU is there")
    };
    common::guest(
        &memory,
        |offset| read(&traps, offset),
        |offset, len, value| {
            let _ = traps.blocking_send(Access::Write(offset, len, value));
        },
    );
    drop(traps);
    let state = runtime.block_on(smmu)?;
    println!("vmm: shut down, {:#x} of {:#x}", state.cons, state.prod);

    let mut other = Smmu::new(memory);
    other.queue.restore(&state)?;
    let (traps, accesses) = mpsc::channel(1);
    let smmu = runtime.spawn(other.run(accesses));
    while read(&traps, reg::CMDQ_CONS) & 0xfffff != u64::from(state.prod) {
        std::thread::yield_now();
    }
    println!("other vmm: all is complete");
    drop(traps);
    runtime.block_on(smmu)?;
    // The ioctl of the first may still be in flight.
    runtime.shutdown_background();
    Ok(())
}
