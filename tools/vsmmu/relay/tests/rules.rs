// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest sees of each answer of the kernel's, row by row, and that each call ends.

use libc::{EAGAIN, EBADF, EFAULT, EINTR, EINVAL, EIO, ENOMEM, EPROTO, ETIMEDOUT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vsmmu_relay::{
    Action, Batch, Cmdq, Command, Config, Handled, HostError, Memory, Outcome, OwnCommand, Signal,
    Unreadable, reg,
};

const RING: u64 = 0x4000;
const LOG2SIZE: u64 = 7;

const TLBI: u64 = 0x30;
const ATC_INV: u64 = 0x40;
const CFGI_STE: u64 = 0x03;
const SYNC: u64 = 0x46;
const SEV: u64 = SYNC | 2 << 12;

const EXACT: u32 = 1 << 1;

/// A VMM, whose kernel gives answers in turn, and then that all is well.
#[derive(Default)]
struct Script {
    answers: Vec<Outcome>,
    /// How many commands each ioctl had.
    calls: Vec<u32>,
    syncs: Vec<Signal>,
    own: Vec<u8>,
    interrupts: u32,
}

impl Script {
    fn invalidate(&mut self, batch: &Batch) -> Outcome {
        self.calls.push(batch.count());
        if self.answers.is_empty() {
            return answer(0, batch.count(), 0);
        }
        self.answers.remove(0)
    }

    fn execute(&mut self, own: &OwnCommand) -> Handled {
        let opcode = own.command().opcode();
        self.own.push(opcode);
        match u64::from(opcode) {
            CFGI_STE => Handled::Done,
            _ => Handled::Illegal,
        }
    }
}

fn answer(errno: i32, done: u32, code: u32) -> Outcome {
    Outcome { errno, done, code }
}

struct Guest {
    memory: GuestMemoryMmap<()>,
    queue: Cmdq,
    vmm: Script,
}

impl Guest {
    fn new(config: Config) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
        let mut queue = Cmdq::new(config);
        queue.write(reg::CMDQ_BASE, 8, RING | LOG2SIZE);
        queue.write(reg::CR0, 4, 8);
        Guest {
            memory,
            queue,
            vmm: Script::default(),
        }
    }

    fn exact(answers: &[Outcome]) -> Self {
        let mut guest = Guest::new(Config::new(EXACT));
        guest.vmm.answers = answers.to_vec();
        guest
    }

    fn fallback(answers: &[Outcome]) -> Self {
        let mut guest = Guest::new(Config::new(0));
        guest.vmm.answers = answers.to_vec();
        guest
    }

    fn put(&self, index: u64, word0: u64) {
        let at = GuestAddress(RING + index * 16);
        self.memory.write_obj([word0.to_le(), 0], at).unwrap();
    }

    /// Queues commands, and lets nobody know.
    fn push(&mut self, commands: &[u64]) {
        let prod = self.read(reg::CMDQ_PROD);
        for (i, word0) in commands.iter().enumerate() {
            self.put((prod + i as u64) % (1 << LOG2SIZE), *word0);
        }
        let prod = (prod + commands.len() as u64) % (2 << LOG2SIZE);
        self.queue.write(reg::CMDQ_PROD, 4, prod);
    }

    fn queue(&mut self, commands: &[u64]) -> Result<(), HostError> {
        self.push(commands);
        self.process()
    }

    fn write(&mut self, offset: u64, value: u64) -> Result<(), HostError> {
        self.queue.write(offset, 4, value);
        self.process()
    }

    fn next(&mut self) -> Option<Action> {
        self.queue.next(&self.memory, Command::is_forwardable)
    }

    /// Up to the next ioctl, which has yet to be made.
    fn start(&mut self) -> Batch {
        match self.next() {
            Some(Action::Invalidate(batch)) => batch,
            action => panic!("{action:?}"),
        }
    }

    /// Until there is nothing to do, or the host has a problem.
    fn process(&mut self) -> Result<(), HostError> {
        while let Some(action) = self.next() {
            match action {
                Action::Invalidate(batch) => {
                    let outcome = self.vmm.invalidate(&batch);
                    self.queue.complete(batch, outcome);
                }
                Action::Execute(own) => {
                    let handled = self.vmm.execute(&own);
                    self.queue.complete_own(own, handled);
                }
                Action::Sync(signal) => self.vmm.syncs.push(signal),
                Action::Gerror => self.vmm.interrupts += 1,
                // It does not wait.
                Action::Gather => {}
                Action::Problem(e) => return Err(e),
            }
        }
        assert!(!self.queue.is_busy());
        Ok(())
    }

    fn read(&self, offset: u64) -> u64 {
        self.queue.read(offset, 4).unwrap()
    }

    fn acknowledge(&mut self) -> Result<(), HostError> {
        self.write(reg::GERRORN, self.read(reg::GERROR))
    }

    /// No error is active, and CONS.RD is there.
    fn is_fine_at(&self, rd: u64) {
        assert_eq!(self.read(reg::GERROR), self.read(reg::GERRORN));
        assert_eq!(self.read(reg::CMDQ_CONS) & 0xfffff, rd);
    }

    /// The error is active, at this command.
    fn has(&self, code: u64, rd: u64) {
        assert_ne!(self.read(reg::GERROR), self.read(reg::GERRORN));
        assert_eq!(self.read(reg::CMDQ_CONS), code << 24 | rd);
    }
}

const DONE: Result<(), HostError> = Ok(());

/// The commands of most rows: entry 4 is the CMD_SYNC.
const FOUR: [u64; 5] = [TLBI, ATC_INV, ATC_INV, TLBI, SEV];

#[test]
fn all_done() {
    let mut guest = Guest::exact(&[]);
    assert_eq!(guest.queue(&FOUR), DONE);
    guest.is_fine_at(5);
    assert_eq!(guest.vmm.calls, [4]);
    assert_eq!(guest.vmm.syncs, [Signal::Sev]);
    assert_eq!(guest.vmm.interrupts, 0);
}

#[test]
fn ill_and_abt_are_at_the_entry() {
    for code in [1, 2] {
        let mut guest = Guest::exact(&[answer(EIO, 2, code)]);
        assert_eq!(guest.queue(&FOUR), DONE);
        guest.has(code.into(), 2);
        assert_eq!((guest.vmm.interrupts, guest.vmm.syncs.len()), (1, 0));
        // Nothing moves before the acknowledgment, whatever else is written.
        assert_eq!(guest.queue(&[TLBI]), DONE);
        assert_eq!(guest.write(reg::GERRORN, guest.read(reg::GERRORN)), DONE);
        assert_eq!(guest.process(), DONE);
        guest.has(code.into(), 2);
        assert_eq!(guest.vmm.calls.len(), 1);
        // Then it is fetched again.
        assert_eq!(guest.acknowledge(), DONE);
        guest.is_fine_at(6);
        assert_eq!(guest.vmm.calls, [4, 3]);
        assert_eq!(guest.vmm.interrupts, 1);
    }
}

#[test]
fn atc_inv_sync_is_at_the_cmd_sync() {
    let mut guest = Guest::exact(&[answer(EIO, 1, 3)]);
    guest.push(&FOUR);
    let batch = guest.start();
    let outcome = guest.vmm.invalidate(&batch);
    guest.queue.complete(batch, outcome);
    // The rest is sent nevertheless.
    let rest = guest.start();
    guest.is_fine_at(2);
    assert_eq!((rest.count(), rest.sync_count()), (2, 0));
    let outcome = guest.vmm.invalidate(&rest);
    guest.queue.complete(rest, outcome);
    assert_eq!(guest.process(), DONE);
    guest.has(3, 4);
    assert_eq!(guest.vmm.syncs, []);
    assert_eq!(guest.acknowledge(), DONE);
    guest.is_fine_at(5);
    assert_eq!(guest.vmm.syncs, [Signal::Sev]);
    assert_eq!(guest.vmm.calls, [4, 2]);
}

#[test]
fn several_time_outs_are_one_error() {
    let timeout = answer(EIO, 0, 3);
    let mut guest = Guest::exact(&[timeout, timeout, answer(0, 1, 0), timeout]);
    guest.queue.write(reg::CMDQ_BASE, 8, 0);
    let commands = [ATC_INV, ATC_INV, TLBI, CFGI_STE, ATC_INV, SYNC, SYNC];
    assert_eq!(guest.queue(&commands), DONE);
    guest.has(3, 5);
    assert_eq!(guest.vmm.own, [CFGI_STE as u8]);
    assert_eq!(guest.acknowledge(), DONE);
    guest.is_fine_at(7);
    assert_eq!(guest.vmm.interrupts, 1);
}

#[test]
fn a_time_out_outlives_an_illegal_command() {
    let mut guest = Guest::exact(&[answer(EIO, 0, 3)]);
    assert_eq!(guest.queue(&[ATC_INV, 0xff, TLBI, SYNC]), DONE);
    guest.has(1, 1);
    // As Linux does it. The CMD_SYNC in its place has the other error.
    guest.put(1, SEV);
    assert_eq!(guest.acknowledge(), DONE);
    guest.has(3, 1);
    assert_eq!(guest.acknowledge(), DONE);
    guest.is_fine_at(4);
    assert_eq!(guest.vmm.interrupts, 2);
}

/// It is in the state, and with the queue off it is not lost either.
#[test]
fn a_time_out_is_migrated() {
    let mut guest = Guest::exact(&[answer(EIO, 0, 3)]);
    assert_eq!(guest.queue(&[ATC_INV]), DONE);
    guest.is_fine_at(1);
    assert_eq!(guest.write(reg::CR0, 0), DONE);
    let mut queue = Cmdq::new(Config::new(EXACT));
    queue.restore(&guest.queue.state()).unwrap();
    guest.queue = queue;
    assert_eq!(guest.write(reg::CR0, 8), DONE);
    assert_eq!(guest.queue(&[SYNC]), DONE);
    guest.has(3, 1);
    guest.queue.reset();
    assert_eq!(guest.process(), DONE);
    guest.is_fine_at(0);
}

/// The guest has done all that it has to.
#[test]
fn what_is_left_is_migrated() {
    let mut guest = Guest::exact(&[answer(ETIMEDOUT, 1, 0)]);
    let error = Err(HostError { errno: ETIMEDOUT });
    assert_eq!(guest.queue(&FOUR), error);
    let mut queue = Cmdq::new(Config::new(0));
    queue.restore(&guest.queue.state()).unwrap();
    guest.queue = queue;
    assert_eq!(guest.process(), DONE);
    guest.is_fine_at(5);
    assert_eq!(guest.vmm.calls, [4, 3]);
}

/// Each is reported after some attempts, with the queue at the first command that may not be complete,
/// and the guest sees no error.
#[test]
fn problems_of_the_host() {
    for (errno, code, attempts) in [
        (ETIMEDOUT, 0, 1),
        (EBADF, 0, 1),
        (EINTR, 0, 4),
        (EAGAIN, 0, 4),
        // Of less and less commands.
        (ENOMEM, 0, 5),
        (EFAULT, 0, 1),
        // It says that it has done all of them, and does not count them.
        (0, 0, 1),
        // Without a code, or with one that nobody knows.
        (EIO, 0, 1),
        (EIO, 4, 1),
    ] {
        let mut guest = Guest::exact(&[answer(errno, 0, code); 6]);
        let errno = if errno == 0 { EPROTO } else { errno };
        let error = Err(HostError { errno });
        assert_eq!(guest.queue(&[TLBI, TLBI, SYNC]), error, "{errno}");
        guest.is_fine_at(0);
        assert_eq!(guest.vmm.calls.len(), attempts, "{errno}");
        // It goes on where it was.
        guest.vmm.answers.clear();
        assert_eq!(guest.process(), DONE);
        guest.is_fine_at(3);
        assert_eq!((guest.vmm.interrupts, guest.vmm.syncs.len()), (0, 1));
    }
}

#[test]
fn what_is_complete_before_a_problem_is_not_sent_again() {
    let mut guest = Guest::exact(&[answer(ETIMEDOUT, 2, 0)]);
    let error = Err(HostError { errno: ETIMEDOUT });
    assert_eq!(guest.queue(&FOUR), error);
    guest.is_fine_at(2);
    assert_eq!(guest.process(), DONE);
    guest.is_fine_at(5);
    assert_eq!(guest.vmm.calls, [4, 2]);
}

/// However often: only what fails in vain is given up.
#[test]
fn each_step_forward_counts() {
    let commands = [TLBI; 10];
    let mut guest = Guest::exact(&[answer(EINTR, 1, 0); 9]);
    assert_eq!(guest.queue(&commands), DONE);
    guest.is_fine_at(10);
    assert_eq!(guest.vmm.calls.len(), 10);
}

/// With some errors the kernel leaves the argument as it was: as if all were complete.
#[test]
fn a_count_that_nobody_wrote() {
    for errno in [EINVAL, EFAULT, EIO] {
        let mut guest = Guest::exact(&[answer(errno, 4, 0); 2]);
        assert_eq!(guest.queue(&FOUR), Err(HostError { errno }));
        guest.is_fine_at(0);
    }
}

#[test]
fn less_memory_less_commands() {
    let mut guest = Guest::exact(&[answer(ENOMEM, 0, 0), answer(ENOMEM, 1, 0)]);
    let mut commands = vec![TLBI; 20];
    commands.push(SYNC);
    assert_eq!(guest.queue(&commands), DONE);
    guest.is_fine_at(21);
    // And as before when that has helped.
    assert_eq!(guest.vmm.calls, [20, 10, 4, 15]);
}

/// Linux 7.3 says of the third of four that two are done, when none is.
#[test]
fn counts_are_not_believed_without_the_flag() {
    let refused = answer(EIO, 2, 0);
    let one = answer(0, 1, 0);
    let mut guest = Guest::fallback(&[refused, one, one, answer(EIO, 0, 0)]);
    assert_eq!(guest.queue(&FOUR), DONE);
    guest.has(1, 2);
    let singles = [4, 1, 1, 1];
    assert_eq!(guest.vmm.calls, singles);
    // What is put in its place goes, with the rest, in one again.
    guest.put(2, SEV);
    assert_eq!(guest.acknowledge(), DONE);
    guest.is_fine_at(5);
    assert_eq!(guest.vmm.calls[4..], [1]);
    // Commands behind a CMD_SYNC are in the same batch, and so go by themselves.
    let mut guest = Guest::fallback(&[answer(EIO, 1, 0)]);
    assert_eq!(guest.queue(&[TLBI, TLBI, SYNC, TLBI, TLBI, TLBI]), DONE);
    guest.is_fine_at(6);
    assert_eq!(guest.vmm.calls, [5, 1, 1, 1, 1, 1]);
    // And those that the guest queues then go together.
    assert_eq!(guest.queue(&[TLBI, TLBI, SYNC]), DONE);
    assert_eq!(guest.vmm.calls[6..], [2]);
}

#[test]
fn without_the_flag_problems_are_still_the_hosts() {
    for errno in [ETIMEDOUT, EINVAL] {
        let mut guest = Guest::fallback(&[answer(errno, 4, 0), answer(errno, 1, 0)]);
        assert_eq!(guest.queue(&FOUR), Err(HostError { errno }));
        guest.is_fine_at(0);
        assert_eq!(guest.process(), DONE);
        guest.is_fine_at(5);
    }
    // There a long array needs memory, so it does not get one; and if none is there for a short one, one
    // command may do.
    let mut guest = Guest::fallback(&[]);
    guest.queue(&[TLBI; 100]).unwrap();
    assert_eq!(guest.vmm.calls, [63, 37]);
    let mut guest = Guest::fallback(&[answer(ENOMEM, 4, 0)]);
    assert_eq!(guest.queue(&FOUR), DONE);
    assert_eq!(guest.vmm.calls[1..], [1; 4]);
}

#[test]
fn batches() {
    for (max_batch, calls) in [
        (4096, vec![100]),
        (70, vec![70, 30]),
        (60, vec![60, 40]),
        (0, vec![1; 100]),
    ] {
        let mut guest = Guest::new(exact_with(max_batch));
        let mut commands = vec![TLBI; 100];
        commands.push(SYNC);
        assert_eq!(guest.queue(&commands), DONE);
        assert_eq!(guest.vmm.calls, calls);
        // Those that follow are at both ends of the ring.
        guest.vmm.calls.clear();
        assert_eq!(guest.queue(&[TLBI; 50]), DONE);
        if max_batch > 1 {
            assert_eq!(guest.vmm.calls, [50]);
        }
    }
}

/// As many CMD_SYNCs as commands, but those that belong to the last command go with it.
#[test]
fn a_batch_has_room_for_few_cmd_syncs() {
    let mut guest = Guest::new(exact_with(2));
    let commands = [
        TLBI, SYNC, TLBI, SYNC, SYNC, TLBI, TLBI, SYNC, SYNC, SYNC, TLBI,
    ];
    guest.push(&commands);
    let mut seen = Vec::new();
    while let Some(action) = guest.next() {
        if let Action::Invalidate(batch) = action {
            seen.push((batch.count(), batch.sync_count()));
            let outcome = guest.vmm.invalidate(&batch);
            guest.queue.complete(batch, outcome);
        }
    }
    assert_eq!(seen, [(2, 2), (2, 2), (1, 0)]);
    guest.is_fine_at(11);
    assert_eq!(guest.queue.counters().syncs, 6);
}

fn exact_with(max_batch: u32) -> Config {
    let mut config = Config::new(EXACT);
    config.max_batch = max_batch;
    config
}

#[test]
fn the_vmms_own_commands_come_in_their_turn() {
    let mut guest = Guest::exact(&[]);
    assert_eq!(guest.queue(&[TLBI, CFGI_STE, TLBI, TLBI, 0x7f]), DONE);
    guest.has(1, 4);
    assert_eq!(guest.vmm.calls, [1, 2]);
    assert_eq!(guest.vmm.own, [CFGI_STE as u8, 0x7f]);
}

/// A VMM need not forward all that the kernel takes. And what it has looked at is what is sent.
#[test]
fn the_vmm_decides_what_is_forwarded() {
    let mut guest = Guest::exact(&[]);
    guest.push(&FOUR);
    let memory = guest.memory.clone();
    let no_ats = |command: Command| {
        // Another CPU changes all that there is.
        for i in 0..4 {
            let at = GuestAddress(RING + i * 16);
            memory.write_obj([ATC_INV, 0], at).unwrap();
        }
        u64::from(command.opcode()) == TLBI
    };
    let Some(Action::Invalidate(batch)) = guest.queue.next(&guest.memory, no_ats) else {
        panic!("nothing to send");
    };
    assert!(batch.commands().eq([Command { words: [TLBI, 0] }]));
    guest.queue.complete(batch, answer(0, 1, 0));
    let Some(Action::Execute(own)) = guest.queue.next(&guest.memory, no_ats) else {
        panic!("nothing to execute");
    };
    assert_eq!(own.command().words, [ATC_INV, 0]);
    guest.queue.complete_own(own, Handled::Illegal);
    assert!(matches!(guest.next(), Some(Action::Gerror)));
    guest.has(1, 1);
}

#[test]
fn illegal_without_asking_anybody() {
    for word0 in [
        TLBI | 1 << 10,
        SYNC | 1 << 10,
        CFGI_STE | 1 << 10,
        SYNC | 3 << 12,
    ] {
        let mut guest = Guest::exact(&[]);
        assert_eq!(guest.queue(&[TLBI, word0]), DONE);
        guest.has(1, 1);
        assert_eq!(guest.vmm.calls.len(), 1);
        assert_eq!(guest.vmm.own, []);
    }
}

#[test]
fn msi_of_a_cmd_sync() {
    let mut guest = Guest::exact(&[]);
    let at = GuestAddress(RING);
    let words = [SYNC | 1 << 12 | 0xabcd << 32, 0x1234_5678_u64];
    guest.memory.write_obj(words.map(u64::to_le), at).unwrap();
    assert_eq!(guest.write(reg::CMDQ_PROD, 1), DONE);
    let irq = Signal::Irq {
        address: 0x1234_5678,
        data: 0xabcd,
    };
    assert_eq!(guest.vmm.syncs, [irq]);
}

#[test]
fn memory_that_is_not_there() {
    let mut guest = Guest::exact(&[]);
    guest.write(reg::CR0, 0).unwrap();
    guest
        .queue
        .write(reg::CMDQ_BASE, 8, 0x7800 | (LOG2SIZE + 1));
    guest.write(reg::CR0, 8).unwrap();
    // Aligned to its size, 4 KiB, it begins at 0x7000.
    for i in 0..256 {
        let at = GuestAddress(0x7000 + i * 16);
        guest.memory.write_obj([TLBI, 0], at).unwrap();
    }
    assert_eq!(guest.write(reg::CMDQ_PROD, 256), DONE);
    guest.is_fine_at(256);

    guest.write(reg::CR0, 0).unwrap();
    guest.queue.write(reg::CMDQ_BASE, 8, 0x8000 | LOG2SIZE);
    guest.write(reg::CMDQ_CONS, 3).unwrap();
    guest.write(reg::CMDQ_PROD, 4).unwrap();
    assert_eq!(guest.write(reg::CR0, 8), DONE);
    guest.has(2, 3);
    // It stays so for as long as the guest tries.
    assert_eq!(guest.acknowledge(), DONE);
    guest.has(2, 3);
    assert_eq!(guest.vmm.interrupts, 2);
}

/// Memory that cannot be read from there on.
struct Cut<'a>(&'a GuestMemoryMmap<()>, u64);

impl Memory for Cut<'_> {
    fn fetch(&self, address: u64, buf: &mut [u8]) -> Result<(), Unreadable> {
        if address + buf.len() as u64 > self.1 {
            return Err(Unreadable);
        }
        self.0.fetch(address, buf)
    }
}

#[test]
fn what_can_be_read_is_sent() {
    for readable in [80, 64, 63, 40, 1] {
        let mut guest = Guest::exact(&[]);
        guest.push(&[TLBI; 100]);
        let memory = Cut(&guest.memory, RING + 16 * readable);
        let Some(Action::Invalidate(batch)) = guest.queue.next(&memory, |_| true) else {
            panic!("nothing to send");
        };
        assert_eq!(u64::from(batch.count()), readable);
        guest.queue.complete(batch, answer(0, readable as u32, 0));
        let next = guest.queue.next(&memory, |_| true);
        assert!(matches!(next, Some(Action::Gerror)));
        guest.has(2, readable);
        assert_eq!(guest.queue.counters().abt, 1);
    }
}

/// GERRORN that says an error were acknowledged which there is not: an error that is active.
#[test]
fn gerrorn_ahead_of_gerror() {
    let mut guest = Guest::exact(&[]);
    assert_eq!(guest.write(reg::GERRORN, 1), DONE);
    assert_eq!(guest.queue(&[SYNC]), DONE);
    assert_eq!(guest.read(reg::CMDQ_CONS), 0);
    assert_eq!(guest.vmm.interrupts, 0);
    assert_eq!(guest.write(reg::GERRORN, 0), DONE);
    guest.is_fine_at(1);
    // Bits of others are none of the queue's business.
    assert_eq!(guest.write(reg::GERRORN, !1), DONE);
    assert_eq!(guest.read(reg::GERRORN), 0);
}

#[test]
fn the_code_is_there_until_the_acknowledgment() {
    let mut guest = Guest::exact(&[]);
    guest.queue(&[0xff, SYNC]).unwrap();
    // PROD moves, even back to where CONS is, and the queue goes off and on.
    for (offset, value) in [
        (reg::CMDQ_PROD, 5),
        (reg::CMDQ_PROD, 0),
        (reg::CR0, 0),
        (reg::CR0, 8),
        (reg::CMDQ_PROD, 2),
    ] {
        assert_eq!(guest.write(offset, value), DONE);
        guest.has(1, 0);
    }
    guest.put(0, SYNC);
    assert_eq!(guest.acknowledge(), DONE);
    guest.is_fine_at(2);
}

/// Wherever PROD is, and even if it moves on each time.
#[test]
fn each_step_ends() {
    let mut guest = Guest::exact(&[]);
    for i in 0..1 << LOG2SIZE {
        guest.put(i, if i % 2 == 0 { TLBI } else { SYNC });
    }
    guest.queue.write(reg::CMDQ_PROD, 4, (2 << LOG2SIZE) - 1);
    let batch = guest.start();
    // All that there is counts, twice over.
    assert_eq!((batch.count(), batch.sync_count()), (128, 127));
    guest.queue.complete(batch, answer(0, 128, 0));
    assert_eq!(guest.process(), DONE);
    guest.is_fine_at((2 << LOG2SIZE) - 1);
}

/// A busy guest has queued all of it while the host was at work.
const BUSY: [u64; 8] = [TLBI, SEV, ATC_INV, SYNC, SYNC, ATC_INV, TLBI, SEV];

/// Up to the next action, which must be a CMD_SYNC or an error: what the guest can see then.
fn seen(guest: &mut Guest) -> (Option<Signal>, u64, u64) {
    let signal = match guest.next() {
        Some(Action::Sync(signal)) => Some(signal),
        Some(Action::Gerror) => None,
        action => panic!("{action:?}"),
    };
    let cons = guest.read(reg::CMDQ_CONS);
    (signal, cons & 0xfffff, cons >> 24)
}

#[test]
fn cmd_syncs_of_one_ioctl_become_complete_in_their_order() {
    let mut guest = Guest::exact(&[]);
    guest.push(&BUSY);
    let batch = guest.start();
    assert!(
        batch
            .commands()
            .map(|c| c.words[0])
            .eq([TLBI, ATC_INV, ATC_INV, TLBI])
    );
    assert_eq!(batch.sync_count(), 4);
    guest.queue.complete(batch, answer(0, 4, 0));
    // The guest has seen nothing yet.
    guest.is_fine_at(0);
    assert!(guest.queue.is_busy());
    assert_eq!(seen(&mut guest), (Some(Signal::Sev), 2, 0));
    assert_eq!(seen(&mut guest), (Some(Signal::None), 4, 0));
    assert_eq!(seen(&mut guest), (Some(Signal::None), 5, 0));
    assert_eq!(seen(&mut guest), (Some(Signal::Sev), 8, 0));
    assert!(guest.next().is_none() && !guest.queue.is_busy());
}

/// Which command of [`BUSY`] fails, and which CMD_SYNCs are complete then.
#[test]
fn an_error_is_behind_the_cmd_syncs_that_are_complete() {
    for (done, syncs, rd) in [(0, 0, 0), (1, 1, 2), (2, 3, 5), (3, 3, 6)] {
        for (code, name) in [(1, "ILL"), (2, "ABT")] {
            let mut guest = Guest::exact(&[answer(EIO, done, code)]);
            assert_eq!(guest.queue(&BUSY), DONE);
            guest.has(code.into(), rd);
            assert_eq!(guest.vmm.syncs.len(), syncs, "{name}");
            assert_eq!(guest.vmm.interrupts, 1);
            assert_eq!(guest.acknowledge(), DONE);
            guest.is_fine_at(8);
            assert_eq!(guest.vmm.syncs.len(), 4);
            assert_eq!(guest.vmm.calls, [4, 4 - done]);
        }
        // A problem of the host's is no error of the guest's, but what is complete is complete.
        let mut guest = Guest::exact(&[answer(ETIMEDOUT, done, 0)]);
        let errno = ETIMEDOUT;
        assert_eq!(guest.queue(&BUSY), Err(HostError { errno }));
        guest.is_fine_at(rd);
        assert_eq!(guest.vmm.syncs.len(), syncs);
        assert_eq!(guest.process(), DONE);
        guest.is_fine_at(8);
        assert_eq!(guest.vmm.calls, [4, 4 - done]);
    }
}

/// The CMD_SYNC that has the error is the first one behind the ATC_INV that has timed out.
#[test]
fn atc_inv_sync_is_at_the_right_cmd_sync() {
    for (done, syncs, rd) in [(1, 1, 3), (2, 3, 7)] {
        let mut guest = Guest::exact(&[answer(EIO, done, 3)]);
        assert_eq!(guest.queue(&BUSY), DONE);
        guest.has(3, rd);
        assert_eq!(guest.vmm.syncs.len(), syncs);
        assert_eq!(guest.acknowledge(), DONE);
        guest.is_fine_at(8);
        assert_eq!(guest.vmm.syncs.len(), 4);
        assert_eq!(guest.vmm.interrupts, 1);
        // What is behind that CMD_SYNC is sent when the guest has acknowledged.
        let rest = [vec![], vec![4, 2], vec![4, 1]];
        assert_eq!(guest.vmm.calls, rest[done as usize]);
    }
}

#[test]
fn without_the_flag_cmd_syncs_come_in_their_turn() {
    let mut guest = Guest::fallback(&[answer(EIO, 3, 0), answer(0, 1, 0), answer(EIO, 0, 0)]);
    assert_eq!(guest.queue(&BUSY), DONE);
    guest.has(1, 2);
    assert_eq!(guest.vmm.syncs, [Signal::Sev]);
    assert_eq!(guest.vmm.calls, [4, 1, 1]);
    assert_eq!(guest.acknowledge(), DONE);
    guest.is_fine_at(8);
    assert_eq!(guest.vmm.calls[3..], [3]);
}

/// The guest reads and writes registers while the host is at work.
#[test]
fn the_queue_is_not_held() {
    let mut guest = Guest::exact(&[]);
    guest.push(&[TLBI, SYNC]);
    let first = guest.start();
    // Nobody else gets anything to do.
    assert!(guest.next().is_none());
    assert!(guest.queue.is_busy());
    guest.push(&[TLBI, SYNC, ATC_INV, SYNC]);
    assert!(guest.next().is_none());
    guest.is_fine_at(0);
    assert_eq!(guest.read(reg::CMDQ_PROD), 6);
    guest.queue.complete(first, answer(0, 1, 0));
    assert_eq!(seen(&mut guest), (Some(Signal::None), 2, 0));
    // What has been queued meanwhile goes out together.
    let second = guest.start();
    assert_eq!((second.count(), second.sync_count()), (2, 2));
    assert_ne!(second.address(), 0);
    guest.queue.complete(second, answer(0, 2, 0));
    assert_eq!(guest.process(), DONE);
    guest.is_fine_at(6);
    let counters = guest.queue.counters();
    assert_eq!(
        (counters.batches, counters.commands, counters.syncs),
        (2, 3, 3)
    );
}

/// The SMMU acknowledges a disable when the commands that it has fetched are consumed. CMDQ_BASE and
/// CMDQ_CONS stay as they are for so long.
#[test]
fn disabled_while_the_host_works() {
    for (errno, done, code, rd, error) in [(0, 2, 0, 3, 0), (EIO, 1, 1, 1, 1)] {
        let mut guest = Guest::exact(&[]);
        guest.push(&[TLBI, TLBI, SYNC]);
        let batch = guest.start();
        guest.push(&[TLBI]);
        guest.queue.write(reg::CR0, 4, 0);
        guest.queue.write(reg::CMDQ_CONS, 4, 9);
        guest.queue.write(reg::CMDQ_BASE, 8, 0x1000);
        assert_eq!((guest.read(reg::CR0), guest.read(reg::CR0ACK)), (0, 8));
        guest.queue.complete(batch, answer(errno, done, code));
        assert_eq!(guest.read(reg::CR0ACK), 8);
        assert_eq!(guest.process(), DONE);
        assert_eq!((guest.read(reg::CR0), guest.read(reg::CR0ACK)), (0, 0));
        assert_eq!(guest.read(reg::CMDQ_CONS), error << 24 | rd);
        assert_eq!(u64::from(guest.vmm.interrupts), error);
        // Nothing is fetched any more, and the registers can be written.
        assert_eq!(guest.write(reg::CMDQ_CONS, 9), DONE);
        assert_eq!(guest.read(reg::CMDQ_CONS), 9);
        assert!(guest.vmm.calls.is_empty());
    }
}

/// CONS does not go beyond PROD, wherever the guest puts that meanwhile.
#[test]
fn taken_back_while_the_host_works() {
    // Nothing, the first command, the CMD_SYNC as well, both commands: which CMD_SYNCs does it see?
    for (prod, syncs) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        for (errno, code) in [(0, 0), (EIO, 1), (EIO, 3)] {
            let mut guest = Guest::exact(&[]);
            guest.push(&[ATC_INV, SYNC, ATC_INV, SYNC]);
            let batch = guest.start();
            guest.queue.write(reg::CMDQ_PROD, 4, prod);
            let done = if errno == 0 { 2 } else { 1 };
            guest.queue.complete(batch, answer(errno, done, code));
            assert_eq!(guest.process(), DONE);
            assert_eq!(guest.vmm.syncs.len(), syncs, "PROD {prod}, code {code}");
            if code == 1 && prod == 3 {
                guest.has(1, 2);
            } else {
                guest.is_fine_at(prod);
            }
            // The time-out is remembered only if the ATC_INV is consumed.
            let failed = code == 3 && prod == 3;
            assert_eq!(guest.queue.state().atc_inv_failed, failed);
        }
    }
}

/// It is saved while the host works, and goes on elsewhere. Here the late answer changes nothing any more.
#[test]
fn saved_while_the_host_works() {
    let mut guest = Guest::exact(&[]);
    guest.push(&BUSY);
    let batch = guest.start();
    let state = guest.queue.state();
    guest.queue.reset();
    let reset = guest.queue.state();
    guest.queue.complete(batch, answer(EIO, 1, 1));
    assert!(guest.next().is_none() && !guest.queue.is_busy());
    assert_eq!(guest.queue.state(), reset);

    let mut queue = Cmdq::new(Config::new(0));
    queue.restore(&state).unwrap();
    guest.queue = queue;
    assert_eq!(guest.process(), DONE);
    guest.is_fine_at(8);
    assert_eq!((guest.vmm.calls.len(), guest.vmm.syncs.len()), (1, 4));
}

/// Whenever it is saved between two actions, the guest sees each CMD_SYNC once, and the error as well.
#[test]
fn saved_at_any_moment() {
    for steps in 0..4 {
        let mut guest = Guest::exact(&[]);
        guest.push(&BUSY);
        let batch = guest.start();
        guest.queue.complete(batch, answer(EIO, 2, 3));
        for _ in 0..steps {
            seen_by(&mut guest);
        }
        let state = guest.queue.state();
        assert!(!state.atc_inv_failed);
        guest.queue.restore(&state).unwrap();
        // The ATC_INV fails again.
        let left = [2, 1, 0, 0][steps];
        guest.vmm.answers = vec![answer(EIO, left, 3)];
        assert_eq!(guest.process(), DONE);
        guest.has(3, 7);
        assert_eq!(guest.vmm.syncs.len(), 3);
    }
}

fn seen_by(guest: &mut Guest) {
    match guest.next() {
        Some(Action::Sync(signal)) => guest.vmm.syncs.push(signal),
        action => panic!("{action:?}"),
    }
}

/// An answer that nobody waits for does not count for what is waited for now.
#[test]
fn late_answers() {
    let mut guest = Guest::exact(&[]);
    guest.push(&[TLBI, SYNC]);
    let late = guest.start();
    guest.queue.restore(&guest.queue.state()).unwrap();
    let batch = guest.start();
    guest.queue.complete(late, answer(EIO, 0, 1));
    assert!(guest.queue.is_busy() && guest.next().is_none());
    guest.queue.complete(batch, answer(0, 1, 0));
    assert_eq!(guest.process(), DONE);
    guest.is_fine_at(2);

    guest.push(&[CFGI_STE]);
    let Some(Action::Execute(late)) = guest.next() else {
        panic!("nothing to execute");
    };
    guest.queue.restore(&guest.queue.state()).unwrap();
    guest.queue.complete_own(late, Handled::Done);
    guest.is_fine_at(2);
    assert_eq!(guest.process(), DONE);
    guest.is_fine_at(3);
}

/// What was refused as a batch is sent as one again when the queue starts anew.
#[test]
fn a_restored_queue_sends_batches() {
    let mut guest = Guest::fallback(&[]);
    guest.push(&FOUR);
    let batch = guest.start();
    guest.queue.complete(batch, answer(EIO, 0, 0));
    guest.queue.restore(&guest.queue.state()).unwrap();
    assert_eq!(guest.process(), DONE);
    assert_eq!(guest.vmm.calls, [4]);
}

/// The VMM's own commands are executed without the queue as well.
#[test]
fn an_own_command_that_takes_long() {
    let mut guest = Guest::exact(&[]);
    guest.push(&[CFGI_STE, TLBI, SYNC]);
    let Some(Action::Execute(own)) = guest.next() else {
        panic!("nothing to execute");
    };
    assert!(guest.next().is_none());
    guest.is_fine_at(0);
    let e = HostError { errno: ENOMEM };
    guest.queue.complete_own(own, Handled::Later(e));
    assert_eq!(guest.process(), Err(e));
    guest.is_fine_at(0);
    assert_eq!(guest.process(), DONE);
    guest.is_fine_at(3);
    let counters = guest.queue.counters();
    assert_eq!((counters.own_commands, counters.problems), (2, 1));
}

/// Four CPUs, of which one comes back while the host works for the others: they are waited for, once, and not
/// where they do not come.
#[test]
fn all_cpus_go_together() {
    let mut guest = Guest::exact(&[]);
    let go = |guest: &mut Guest, more: u32| {
        let batch = guest.start();
        (0..more).for_each(|_| guest.push(&[TLBI, SYNC]));
        let syncs = batch.sync_count();
        guest.queue.complete(batch, answer(0, syncs, 0));
        for _ in 0..syncs {
            assert!(seen(guest).0.is_some());
        }
        syncs
    };
    guest.push(&[TLBI, SYNC]);
    assert_eq!(go(&mut guest, 3), 1);
    assert_eq!(go(&mut guest, 1), 3);
    assert!(matches!(guest.next(), Some(Action::Gather)));
    for _ in 0..3 {
        assert!(guest.queue.is_gathering());
        guest.push(&[TLBI, SYNC]);
    }
    assert!(!guest.queue.is_gathering());
    assert_eq!(go(&mut guest, 0), 4);
    assert!(guest.next().is_none() && !guest.queue.is_gathering());
    // One of them does not come, and there is an end to it.
    (0..3).for_each(|_| guest.push(&[TLBI, SYNC]));
    assert!(matches!(guest.next(), Some(Action::Gather)));
    assert!(guest.queue.is_gathering());
    assert_eq!(go(&mut guest, 0), 3);
    guest.push(&[TLBI, SYNC]);
    assert_eq!(go(&mut guest, 0), 1);
    assert_eq!(guest.queue.counters().gathers, 2);
    // A VMM that waits sees a queue that is disabled, reset or halted.
    let ends: [fn(&mut Cmdq); 3] = [
        |queue| assert!(queue.write(reg::CR0, 4, 0)),
        |queue| queue.reset(),
        |queue| assert!(queue.write(reg::GERRORN, 4, 1)),
    ];
    for end in ends {
        let mut guest = Guest::exact(&[]);
        (0..2).for_each(|_| guest.push(&[TLBI, SYNC]));
        assert_eq!(go(&mut guest, 2), 2);
        assert_eq!(go(&mut guest, 2), 2);
        assert!(matches!(guest.next(), Some(Action::Gather)));
        assert!(guest.queue.is_gathering());
        end(&mut guest.queue);
        assert!(!guest.queue.is_gathering());
    }
}
