// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest sees of each answer of the kernel's, row by row, and that each call ends.

use std::cell::Cell;

use libc::{EAGAIN, EBADF, EFAULT, EINTR, EINVAL, EIO, ENOMEM, ETIMEDOUT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vsmmu_relay::{
    Batch, Cmdq, Command, Config, Handled, HostError, Memory, Outcome, Progress, Signal,
    Unreadable, Vmm,
};

const CR0: u64 = 0x20;
const GERROR: u64 = 0x60;
const GERRORN: u64 = 0x64;
const BASE: u64 = 0x90;
const PROD: u64 = 0x98;
const CONS: u64 = 0x9c;

const RING: u64 = 0x4000;
const LOG2SIZE: u64 = 7;

const TLBI: u64 = 0x30;
const ATC_INV: u64 = 0x40;
const CFGI_STE: u64 = 0x03;
const SYNC: u64 = 0x46;
const SEV: u64 = SYNC | 2 << 12;

const EXACT: u32 = 1 << 1;

/// Answers in turn, and then that all is well.
#[derive(Default)]
struct Script {
    answers: Vec<Outcome>,
    /// How many commands each ioctl had, and whether the first was the ring's own memory.
    calls: Vec<(u32, bool)>,
    ring: u64,
    syncs: Vec<Signal>,
    own: Vec<u8>,
    interrupts: u32,
}

impl Vmm for Script {
    fn invalidate(&mut self, batch: Batch<'_>) -> Outcome {
        let in_ring = batch.address().wrapping_sub(self.ring) < 16 << LOG2SIZE;
        self.calls.push((batch.count(), in_ring));
        if self.answers.is_empty() {
            return answer(0, batch.count(), 0);
        }
        self.answers.remove(0)
    }

    fn command(&mut self, command: Command) -> Handled {
        self.own.push(command.opcode());
        match u64::from(command.opcode()) {
            CFGI_STE => Handled::Done,
            _ => Handled::Illegal,
        }
    }

    fn sync(&mut self, signal: Signal) {
        self.syncs.push(signal);
    }

    fn gerror(&mut self) {
        self.interrupts += 1;
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
        queue.write(BASE, 8, RING | LOG2SIZE);
        queue.write(CR0, 4, 8);
        let ring = memory.get_slice(GuestAddress(RING), 16).unwrap();
        let vmm = Script {
            ring: ring.ptr_guard().as_ptr() as u64,
            ..Script::default()
        };
        Guest { memory, queue, vmm }
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

    fn queue(&mut self, commands: &[u64]) -> Result<Progress, HostError> {
        let prod = self.read(PROD);
        for (i, word0) in commands.iter().enumerate() {
            self.put((prod + i as u64) % (1 << LOG2SIZE), *word0);
        }
        self.write(PROD, (prod + commands.len() as u64) % (2 << LOG2SIZE))
    }

    fn write(&mut self, offset: u64, value: u64) -> Result<Progress, HostError> {
        self.queue.write(offset, 4, value);
        self.process()
    }

    fn process(&mut self) -> Result<Progress, HostError> {
        self.queue.process(&self.memory, &mut self.vmm)
    }

    fn read(&self, offset: u64) -> u64 {
        self.queue.read(offset, 4).unwrap()
    }

    fn acknowledge(&mut self) -> Result<Progress, HostError> {
        self.write(GERRORN, self.read(GERROR))
    }

    /// No error is active, and CONS.RD is there.
    fn is_fine_at(&self, rd: u64) {
        assert_eq!(self.read(GERROR), self.read(GERRORN));
        assert_eq!(self.read(CONS) & 0xfffff, rd);
    }

    /// The error is active, at this command.
    fn has(&self, code: u64, rd: u64) {
        assert_ne!(self.read(GERROR), self.read(GERRORN));
        assert_eq!(self.read(CONS), code << 24 | rd);
    }
}

const DONE: Result<Progress, HostError> = Ok(Progress::Done);
const MORE: Result<Progress, HostError> = Ok(Progress::More);

/// The commands of most rows: entry 4 is the CMD_SYNC.
const FOUR: [u64; 5] = [TLBI, ATC_INV, ATC_INV, TLBI, SEV];

#[test]
fn all_done() {
    let mut guest = Guest::exact(&[]);
    assert_eq!(guest.queue(&FOUR), DONE);
    guest.is_fine_at(5);
    assert_eq!(guest.vmm.calls, [(4, true)]);
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
        assert_eq!(guest.write(GERRORN, guest.read(GERRORN)), DONE);
        assert_eq!(guest.process(), DONE);
        guest.has(code.into(), 2);
        assert_eq!(guest.vmm.calls.len(), 1);
        // Then it is fetched again.
        assert_eq!(guest.acknowledge(), DONE);
        guest.is_fine_at(6);
        assert_eq!(guest.vmm.calls, [(4, true), (2, true), (1, true)]);
        assert_eq!(guest.vmm.interrupts, 1);
    }
}

#[test]
fn atc_inv_sync_is_at_the_cmd_sync() {
    let mut guest = Guest::exact(&[answer(EIO, 1, 3)]);
    assert_eq!(guest.queue(&FOUR), MORE);
    guest.is_fine_at(2);
    assert_eq!(guest.process(), DONE);
    guest.has(3, 4);
    // The rest has been sent nevertheless.
    assert_eq!(guest.vmm.calls, [(4, true), (2, true)]);
    assert_eq!(guest.vmm.syncs, []);
    assert_eq!(guest.acknowledge(), DONE);
    guest.is_fine_at(5);
    assert_eq!(guest.vmm.syncs, [Signal::Sev]);
    assert_eq!(guest.vmm.calls.len(), 2);
}

#[test]
fn several_time_outs_are_one_error() {
    let timeout = answer(EIO, 0, 3);
    let mut guest = Guest::exact(&[timeout, timeout, answer(0, 1, 0), timeout]);
    guest.queue.write(BASE, 8, 0);
    let commands = [ATC_INV, ATC_INV, TLBI, CFGI_STE, ATC_INV, SYNC, SYNC];
    let mut progress = guest.queue(&commands);
    while progress == MORE {
        progress = guest.process();
    }
    assert_eq!(progress, DONE);
    guest.has(3, 5);
    assert_eq!(guest.vmm.own, [CFGI_STE as u8]);
    assert_eq!(guest.acknowledge(), DONE);
    guest.is_fine_at(7);
    assert_eq!(guest.vmm.interrupts, 1);
}

#[test]
fn a_time_out_outlives_an_illegal_command() {
    let mut guest = Guest::exact(&[answer(EIO, 0, 3)]);
    assert_eq!(guest.queue(&[ATC_INV, 0xff, TLBI, SYNC]), MORE);
    assert_eq!(guest.process(), DONE);
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
    assert_eq!(guest.write(CR0, 0), DONE);
    let mut queue = Cmdq::new(Config::new(EXACT));
    queue.restore(guest.queue.state());
    guest.queue = queue;
    assert_eq!(guest.write(CR0, 8), DONE);
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
    queue.restore(guest.queue.state());
    guest.queue = queue;
    assert_eq!(guest.process(), DONE);
    guest.is_fine_at(5);
    assert_eq!(guest.vmm.calls, [(4, true), (3, true)]);
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
        // From guest memory, and from a copy.
        (EFAULT, 0, 2),
        // Without a code, or with one that nobody knows.
        (EIO, 0, 1),
        (EIO, 4, 1),
    ] {
        let mut guest = Guest::exact(&[answer(errno, 0, code); 6]);
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
    assert_eq!(guest.vmm.calls, [(4, true), (2, true)]);
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
fn what_the_kernel_cannot_read_is_copied() {
    let mut guest = Guest::exact(&[answer(EFAULT, 1, 0)]);
    assert_eq!(guest.queue(&FOUR), DONE);
    guest.is_fine_at(5);
    assert_eq!(guest.vmm.calls, [(4, true), (3, false)]);
}

#[test]
fn less_memory_less_commands() {
    let mut guest = Guest::exact(&[answer(ENOMEM, 0, 0), answer(ENOMEM, 1, 0)]);
    let mut commands = vec![TLBI; 20];
    commands.push(SYNC);
    assert_eq!(guest.queue(&commands), DONE);
    guest.is_fine_at(21);
    let counts: Vec<_> = guest.vmm.calls.iter().map(|(count, _)| *count).collect();
    assert_eq!(counts, [20, 10, 4, 4, 4, 4, 3]);
}

/// Linux 7.3 says of the third of four that two are done, when none is.
#[test]
fn counts_are_not_believed_without_the_flag() {
    let refused = answer(EIO, 2, 0);
    let one = answer(0, 1, 0);
    let mut guest = Guest::fallback(&[refused, one, one, answer(EIO, 0, 0)]);
    assert_eq!(guest.queue(&FOUR), DONE);
    guest.has(1, 2);
    let singles = [(4, true), (1, true), (1, true), (1, true)];
    assert_eq!(guest.vmm.calls, singles);
    // What is put in its place goes, with the rest, in one again.
    guest.put(2, SEV);
    assert_eq!(guest.acknowledge(), DONE);
    guest.is_fine_at(5);
    assert_eq!(guest.vmm.calls[4..], [(1, true)]);
    // So do those behind commands that have gone by themselves, in the same call.
    let mut guest = Guest::fallback(&[answer(EIO, 1, 0)]);
    assert_eq!(guest.queue(&[TLBI, TLBI, SYNC, TLBI, TLBI, TLBI]), DONE);
    guest.is_fine_at(6);
    let calls = [(2, true), (1, true), (1, true), (3, true)];
    assert_eq!(guest.vmm.calls, calls);
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
    assert_eq!(guest.vmm.calls, [(63, true), (37, true)]);
    let mut guest = Guest::fallback(&[answer(ENOMEM, 4, 0)]);
    assert_eq!(guest.queue(&FOUR), DONE);
    assert_eq!(guest.vmm.calls[1..], [(1, true); 4]);
}

#[test]
fn batches() {
    let with = |direct, max_batch| Config {
        direct,
        max_batch,
        ..Config::new(EXACT)
    };
    for (config, calls) in [
        (with(true, 4096), vec![(100, true)]),
        (with(true, 70), vec![(70, true), (30, true)]),
        (with(false, 4096), vec![(63, false), (37, false)]),
        (with(false, 60), vec![(60, false), (40, false)]),
        (with(true, 0), vec![(1, true); 100]),
    ] {
        let mut guest = Guest::new(config);
        let mut commands = vec![TLBI; 100];
        commands.push(SYNC);
        assert_eq!(guest.queue(&commands), DONE);
        assert_eq!(guest.vmm.calls, calls);
        // Those that follow are at both ends of the ring.
        guest.vmm.calls.clear();
        assert_eq!(guest.queue(&[TLBI; 50]), DONE);
        let first: u32 = guest.vmm.calls.iter().map(|call| call.0).sum();
        assert_eq!(first, 50);
        if config.direct && config.max_batch > 1 {
            assert_eq!(guest.vmm.calls, [(27, true), (23, true)]);
        }
    }
}

#[test]
fn the_vmms_own_commands_come_in_their_turn() {
    let mut guest = Guest::exact(&[]);
    assert_eq!(guest.queue(&[TLBI, CFGI_STE, TLBI, TLBI, 0x7f]), DONE);
    guest.has(1, 4);
    assert_eq!(guest.vmm.calls, [(1, true), (2, true)]);
    assert_eq!(guest.vmm.own, [CFGI_STE as u8, 0x7f]);
}

/// A VMM need not forward all that the kernel takes.
#[test]
fn the_vmm_decides_what_is_forwarded() {
    struct NoAts(Script);

    impl Vmm for NoAts {
        fn invalidate(&mut self, batch: Batch<'_>) -> Outcome {
            self.0.invalidate(batch)
        }
        fn forwards(&mut self, command: Command) -> bool {
            u64::from(command.opcode()) == TLBI
        }
        fn command(&mut self, command: Command) -> Handled {
            self.0.command(command)
        }
        fn sync(&mut self, signal: Signal) {
            self.0.sync(signal);
        }
        fn gerror(&mut self) {
            self.0.gerror();
        }
    }

    let mut guest = Guest::exact(&[]);
    let mut vmm = NoAts(std::mem::take(&mut guest.vmm));
    for (i, word0) in FOUR.into_iter().enumerate() {
        guest.put(i as u64, word0);
    }
    guest.queue.write(PROD, 4, 5);
    // By reference to the trait, as some VMMs have it.
    let vmm_dyn: &mut dyn Vmm = &mut vmm;
    assert_eq!(guest.queue.process(&guest.memory, vmm_dyn), DONE);
    guest.has(1, 1);
    assert_eq!(vmm.0.own, [ATC_INV as u8]);
    assert_eq!(vmm.0.calls.len(), 1);
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
    assert_eq!(guest.write(PROD, 1), DONE);
    let irq = Signal::Irq {
        address: 0x1234_5678,
        data: 0xabcd,
    };
    assert_eq!(guest.vmm.syncs, [irq]);
}

#[test]
fn memory_that_is_not_there() {
    let mut guest = Guest::exact(&[]);
    guest.write(CR0, 0).unwrap();
    guest.queue.write(BASE, 8, 0x7800 | (LOG2SIZE + 1));
    guest.write(CR0, 8).unwrap();
    // Aligned to its size, 4 KiB, it begins at 0x7000.
    for i in 0..256 {
        let at = GuestAddress(0x7000 + i * 16);
        guest.memory.write_obj([TLBI, 0], at).unwrap();
    }
    assert_eq!(guest.write(PROD, 256), DONE);
    guest.is_fine_at(256);

    guest.write(CR0, 0).unwrap();
    guest.queue.write(BASE, 8, 0x8000 | LOG2SIZE);
    guest.write(CONS, 3).unwrap();
    guest.write(PROD, 4).unwrap();
    assert_eq!(guest.write(CR0, 8), DONE);
    guest.has(2, 3);
    // It stays so for as long as the guest tries.
    assert_eq!(guest.acknowledge(), DONE);
    guest.has(2, 3);
    assert_eq!(guest.vmm.interrupts, 2);
}

/// Memory of another kind, which has an address in this process for more than can be read, or changes its
/// mind about that.
struct Fickle<'a> {
    memory: &'a GuestMemoryMmap<()>,
    /// What begins here cannot be read.
    end: u64,
    /// It has an address so many times.
    addresses: Cell<u32>,
}

impl Memory for Fickle<'_> {
    fn fetch(&self, address: u64, buf: &mut [u8]) -> Result<(), Unreadable> {
        if address + buf.len() as u64 > self.end {
            return Err(Unreadable);
        }
        self.memory.fetch(address, buf)
    }

    fn with_host_address<T>(
        &self,
        address: u64,
        len: usize,
        f: impl FnOnce(u64) -> T,
    ) -> Option<T> {
        let left = self.addresses.get().checked_sub(1)?;
        self.addresses.set(left);
        self.memory.with_host_address(address, len, f)
    }
}

#[test]
fn memory_that_has_an_address_and_cannot_be_read() {
    for readable in [80, 63, 40] {
        let mut guest = Guest::exact(&[]);
        for i in 0..100 {
            guest.put(i, TLBI);
        }
        guest.queue.write(PROD, 4, 100);
        let memory = Fickle {
            memory: &guest.memory,
            end: RING + 16 * readable,
            addresses: Cell::new(u32::MAX),
        };
        assert_eq!(guest.queue.process(&memory, &mut guest.vmm), DONE);
        guest.has(2, readable);
        assert_eq!(guest.vmm.calls, [(readable as u32, true)]);
    }
}

#[test]
fn memory_that_has_no_address_any_more() {
    let mut guest = Guest::exact(&[]);
    for i in 0..100 {
        guest.put(i, TLBI);
    }
    guest.queue.write(PROD, 4, 100);
    let memory = Fickle {
        memory: &guest.memory,
        end: u64::MAX,
        addresses: Cell::new(1),
    };
    assert_eq!(guest.queue.process(&memory, &mut guest.vmm), DONE);
    guest.is_fine_at(100);
    assert_eq!(guest.vmm.calls, [(63, false), (37, false)]);
}

/// GERRORN that says an error were acknowledged which there is not: an error that is active.
#[test]
fn gerrorn_ahead_of_gerror() {
    let mut guest = Guest::exact(&[]);
    assert_eq!(guest.write(GERRORN, 1), DONE);
    assert_eq!(guest.queue(&[SYNC]), DONE);
    assert_eq!(guest.read(CONS), 0);
    assert_eq!(guest.vmm.interrupts, 0);
    assert_eq!(guest.write(GERRORN, 0), DONE);
    guest.is_fine_at(1);
    // Bits of others are none of the queue's business.
    assert_eq!(guest.write(GERRORN, !1), DONE);
    assert_eq!(guest.read(GERRORN), 0);
}

#[test]
fn the_code_is_there_until_the_acknowledgment() {
    let mut guest = Guest::exact(&[]);
    guest.queue(&[0xff, SYNC]).unwrap();
    // PROD moves, even back to where CONS is, and the queue goes off and on.
    for (offset, value) in [(PROD, 5), (PROD, 0), (CR0, 0), (CR0, 8), (PROD, 2)] {
        assert_eq!(guest.write(offset, value), DONE);
        guest.has(1, 0);
    }
    guest.put(0, SYNC);
    assert_eq!(guest.acknowledge(), DONE);
    guest.is_fine_at(2);
}

/// One ring's worth a call, wherever PROD is.
#[test]
fn each_call_ends() {
    let mut guest = Guest::exact(&[]);
    for i in 0..1 << LOG2SIZE {
        guest.put(i, SYNC);
    }
    assert_eq!(guest.write(PROD, (2 << LOG2SIZE) - 1), MORE);
    assert_eq!(guest.read(CONS), 1 << LOG2SIZE);
    // It may have moved on meanwhile.
    assert_eq!(guest.write(PROD, (1 << LOG2SIZE) - 1), MORE);
    assert_eq!(guest.read(CONS), 0);
    assert_eq!(guest.process(), DONE);
    assert_eq!(guest.read(CONS), (1 << LOG2SIZE) - 1);
}
