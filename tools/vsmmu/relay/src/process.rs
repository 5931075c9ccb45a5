// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Consuming commands, and what becomes of errors.
//!
//! A CMD_SYNC is never sent: the ioctl returns when the commands are complete, so those before CONS always
//! are.
//!
//! An ATC_INV that times out stops nothing, as on an SMMU. It is remembered, the commands behind it are
//! sent, and the CMD_SYNC that comes next has the error, once for all of them. When the guest has
//! acknowledged that, the CMD_SYNC is fetched again and is complete: those ATC_INVs are given up. An
//! illegal command in between changes nothing of it. Its error comes first, at the command itself, and
//! whatever CMD_SYNC is next has the other, even the one that the guest puts in place of the command.

use crate::cmdq::Cmdq;
use crate::command::{Bytes, COMMAND_LEN, Command, Signal, op};
use crate::host::{Answer, Batch, Cerror, HostError, Outcome};
use crate::memory::{Memory, Unreadable};

/// How many commands are looked at together, and sent together if not straight from guest memory: what Linux
/// has before a CMD_SYNC at most, as a guest, and in version 7.3 as a host.
const WINDOW: usize = 63;
/// How often something is tried again at once that fails for a reason that may be gone by then.
const ATTEMPTS: u32 = 3;

/// The VMM, as its [`Cmdq`] needs it.
pub trait Vmm {
    /// Has the kernel execute the commands, and gives its answer as it is:
    /// [`iommufd::invalidate()`](crate::iommufd::invalidate).
    ///
    /// There is one vIOMMU for all devices of the queue. Before the first of them is plugged in there may be
    /// none: then nothing is cached, and the answer is that all are done.
    fn invalidate(&mut self, batch: Batch<'_>) -> Outcome;

    /// Whether the command is one for the kernel. If not, [`Vmm::command`] gets it. Never called for a
    /// CMD_SYNC. The kernel finds commands for a stream without a vDEVICE illegal, so that a VMM which makes
    /// vDEVICEs late has to keep those for itself.
    ///
    /// To be asked means nothing yet: the command may not be sent after all, or be asked for again.
    fn forwards(&mut self, command: Command) -> bool {
        command.is_forwardable()
    }

    /// Executes a command that is not forwarded, such as CFGI_STE. All before it are complete.
    fn command(&mut self, command: Command) -> Handled;

    /// A CMD_SYNC is complete, and tells so.
    ///
    /// If an MSI cannot be written, that is the VMM's GERROR.MSI_CMDQ_ABT_ERR, and the CMD_SYNC is
    /// complete nevertheless.
    fn sync(&mut self, signal: Signal);

    /// GERROR.CMDQ_ERR has become active: the interrupt is raised, if IRQ_CTRL.GERROR_IRQEN is set. The
    /// queue stands still from here on, and the call of [`Cmdq::process`] ends.
    fn gerror(&mut self);
}

/// What has become of a command that the VMM executes by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handled {
    /// It is complete.
    Done,
    /// It is illegal: a CERROR_ILL for the guest. Unknown opcodes are.
    Illegal,
    /// It could not be done for a reason of the host's. It is tried again when [`Cmdq::process`] is called
    /// again.
    Later(HostError),
}

/// How a call of [`Cmdq::process`] has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// There is nothing to do before the guest writes a register: the queue is empty, off, or stands at an
    /// error.
    Done,
    /// There is more to do. The call has ended because it had taken a full ring's worth of commands, or
    /// because the host had waited for a device that does not answer.
    More,
}

/// Commands as they were in guest memory, from CONS on.
struct Window {
    bytes: [Bytes; WINDOW],
    start: usize,
    end: usize,
}

impl Window {
    const EMPTY: Self = Window {
        bytes: [[0; COMMAND_LEN]; WINDOW],
        start: 0,
        end: 0,
    };

    #[inline]
    fn commands(&self) -> &[Bytes] {
        &self.bytes[self.start..self.end]
    }

    /// Fetches up to `count` commands, fewer if not all can be read, but one at least.
    fn fetch<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        address: u64,
        count: u32,
    ) -> Result<(), Unreadable> {
        let count = WINDOW.min(count as usize);
        (self.start, self.end) = (0, 0);
        if memory
            .fetch(address, self.bytes[..count].as_flattened_mut())
            .is_ok()
        {
            self.end = count;
            return Ok(());
        }
        for (i, bytes) in self.bytes[..count].iter_mut().enumerate() {
            let at = address + (i * COMMAND_LEN) as u64;
            if memory.fetch(at, bytes).is_err() {
                break;
            }
            self.end = i + 1;
        }
        if self.end == 0 {
            return Err(Unreadable);
        }
        Ok(())
    }

    /// How many commands at the front can be forwarded, up to `limit`.
    fn run<V: Vmm + ?Sized>(&self, vmm: &mut V, limit: u32) -> u32 {
        let commands = self.commands().iter().take(limit as usize);
        let run = commands.map(Command::from_bytes).take_while(|command| {
            !command.is_secure() && command.opcode() != op::SYNC && vmm.forwards(*command)
        });
        run.count() as u32
    }

    fn clear(&mut self) {
        self.start = self.end;
    }
}

/// What a call of [`Cmdq::process`] has to remember.
struct Call<'a, M: ?Sized, V: ?Sized> {
    memory: &'a M,
    vmm: &'a mut V,
    window: Window,
    /// How many more commands it may consume.
    budget: u32,
    /// How many commands may go together.
    limit: u32,
    /// How many of the next commands go by themselves.
    single: u32,
    /// From guest memory.
    direct: bool,
    /// What has failed so often, in vain.
    attempts: u32,
}

impl Cmdq {
    /// Consumes what is in the queue, until it is empty or has an error: to be called after each write of
    /// the guest to one of its registers, after [`Cmdq::restore`], and when [`Progress::More`] or an error
    /// was the last word.
    ///
    /// # Errors
    ///
    /// When the host has a problem that does not go away by itself at once. Nothing is lost and nothing is
    /// skipped: the next call goes on where this one has ended.
    pub fn process<M, V>(&mut self, memory: &M, vmm: &mut V) -> Result<Progress, HostError>
    where
        M: Memory + ?Sized,
        V: Vmm + ?Sized,
    {
        let mut call = Call {
            memory,
            vmm,
            window: Window::EMPTY,
            budget: self.entries(),
            limit: if self.config.exact {
                self.config.max_batch.max(1)
            } else {
                self.config.max_batch.clamp(1, WINDOW as u32)
            },
            single: 0,
            direct: self.config.direct,
            attempts: 0,
        };
        loop {
            if !self.state.enabled || self.halted() || self.left() == 0 {
                return Ok(Progress::Done);
            }
            if call.budget == 0 {
                return Ok(Progress::More);
            }
            self.step(&mut call)?;
        }
    }

    /// Consumes one command or several, or makes an error active.
    fn step<M, V>(&mut self, call: &mut Call<'_, M, V>) -> Result<(), HostError>
    where
        M: Memory + ?Sized,
        V: Vmm + ?Sized,
    {
        let limit = if call.single > 0 { 1 } else { call.limit };
        let contiguous = self.contiguous().min(call.budget);
        let most = limit.min(contiguous);
        let mut run = call.window.run(call.vmm, most);
        // That is all the window has left: a new one may have more.
        if run < most && run as usize == call.window.commands().len() {
            let fetched = call.window.fetch(call.memory, self.address(0), contiguous);
            if fetched.is_err() {
                return self.raise(call, Cerror::Abt);
            }
            run = call.window.run(call.vmm, most);
        }
        if run > 0 {
            return self.forward(call, run, most);
        }

        let command = Command::from_bytes(&call.window.commands()[0]);
        if command.is_secure() {
            return self.raise(call, Cerror::Ill);
        }
        if command.opcode() == op::SYNC {
            let Some(signal) = command.signal() else {
                return self.raise(call, Cerror::Ill);
            };
            if self.state.atc_inv_failed {
                self.state.atc_inv_failed = false;
                return self.raise(call, Cerror::AtcInvSync);
            }
            call.vmm.sync(signal);
        } else {
            match call.vmm.command(command) {
                Handled::Done => {}
                Handled::Illegal => return self.raise(call, Cerror::Ill),
                Handled::Later(e) => return Err(e),
            }
        }
        self.consume(call, 1);
        call.window.start += 1;
        Ok(())
    }

    /// Sends the first `run` commands of the window, or more of the `most` that follow each other.
    fn forward<M, V>(
        &mut self,
        call: &mut Call<'_, M, V>,
        run: u32,
        most: u32,
    ) -> Result<(), HostError>
    where
        M: Memory + ?Sized,
        V: Vmm + ?Sized,
    {
        let (mut count, mut in_window) = (run, run);
        let bytes = |count| count as usize * COMMAND_LEN;
        // There may be more of them than the window has, and then a copy will not do.
        let long = call.direct
            && count < most
            && count as usize == call.window.commands().len()
            && call
                .memory
                .with_host_address(self.address(0), bytes(most), |_| ())
                .is_some();
        if long {
            while count < most && in_window as usize == call.window.commands().len() {
                let (address, more) = (self.address(count), most - count);
                if let Err(Unreadable) = call.window.fetch(call.memory, address, more) {
                    // It is an error when CONS has got there.
                    in_window = 0;
                    break;
                }
                in_window = call.window.run(call.vmm, more);
                count += in_window;
            }
        }
        let mut outcome = None;
        if call.direct {
            let vmm = &mut *call.vmm;
            outcome = call
                .memory
                .with_host_address(self.address(0), bytes(count), |address| {
                    vmm.invalidate(Batch::in_guest_memory(address, count))
                });
        }
        let outcome = match outcome {
            Some(outcome) => outcome,
            None if long => {
                // Guest memory is not what it said it was.
                call.direct = false;
                call.window.clear();
                return Ok(());
            }
            None => {
                let commands = &call.window.commands()[..count as usize];
                call.vmm.invalidate(Batch::copied(commands))
            }
        };

        let answer = outcome.judge(count, self.config.exact);
        if answer != Answer::Done {
            // What is fetched again may be something else.
            call.window.clear();
        }
        match answer {
            Answer::Done => {
                self.consume(call, count);
                call.window.start += in_window as usize;
            }
            Answer::Failed(done, Cerror::AtcInvSync) => {
                self.consume(call, done + 1);
                self.state.atc_inv_failed = true;
                // The kernel has waited for the device, more than once.
                call.budget = 0;
            }
            Answer::Failed(done, cerror) => {
                self.consume(call, done);
                return self.raise(call, cerror);
            }
            Answer::Problem(done, e) => {
                self.consume(call, done);
                return call.cope(count, done, e);
            }
            Answer::Unknown => call.single = count,
        }
        Ok(())
    }

    fn consume<M: ?Sized, V: ?Sized>(&mut self, call: &mut Call<'_, M, V>, count: u32) {
        self.advance(count);
        call.budget -= count;
        call.single = call.single.saturating_sub(count);
        if count > 0 {
            call.attempts = 0;
        }
    }

    /// Makes an error active for the command at CONS.
    fn raise<M, V>(&mut self, call: &mut Call<'_, M, V>, cerror: Cerror) -> Result<(), HostError>
    where
        M: ?Sized,
        V: Vmm + ?Sized,
    {
        self.fail(cerror);
        call.vmm.gerror();
        Ok(())
    }
}

impl<M: ?Sized, V: ?Sized> Call<'_, M, V> {
    /// Arranges for another attempt at what is left of `asked` commands, if that can help.
    fn cope(&mut self, asked: u32, done: u32, e: HostError) -> Result<(), HostError> {
        match e.errno {
            // Where the VMM can read, the kernel perhaps cannot.
            libc::EFAULT if self.direct => self.direct = false,
            libc::ENOMEM if asked - done > 1 => self.limit = (asked - done) / 2,
            libc::EINTR | libc::EAGAIN | libc::ENOMEM if self.attempts < ATTEMPTS => {
                self.attempts += 1;
            }
            _ => return Err(e),
        }
        Ok(())
    }
}
