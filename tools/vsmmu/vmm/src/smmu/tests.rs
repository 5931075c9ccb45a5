// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver of few lines, and a host that does what it is told.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use vm_memory::{Bytes, GuestAddress};
use vsmmu_relay::op;

use super::*;

const STREAM: u32 = 8;
const RING: u64 = 0x1_0000;
const TABLE: u64 = 0x2_0000;
const EVENTS: u64 = 0x3_0000;
const STRTAB_BASE: u64 = 0x80;
const STRTAB_BASE_CFG: u64 = 0x88;
const IRQ_CTRL: u64 = 0x50;
const SMMUEN: u32 = 1;
const CMDQEN: u32 = 1 << 3;
const EVENTQEN: u32 = 1 << 2;
const S1: u64 = 0b1011;
const ILL: u32 = 1;

/// What the host was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Set(usize, Option<Ste>),
    Invalidate(Vec<u8>),
}

struct Fake {
    asked: Sender<Asked>,
    /// An opcode that it finds illegal.
    bad: u8,
    /// An STE that it does not take.
    refused: Ste,
}

impl Host for Fake {
    fn invalidate(&self, batch: &Batch) -> Outcome {
        let opcodes: Vec<_> = batch.commands().map(Command::opcode).collect();
        let bad = opcodes.iter().position(|opcode| *opcode == self.bad);
        let _ = self.asked.send(Asked::Invalidate(opcodes));
        Outcome {
            errno: bad.map_or(0, |_| libc::EIO),
            done: bad.map_or(batch.count(), |at| at as u32),
            code: bad.map_or(0, |_| ILL),
        }
    }

    fn set(&self, device: usize, ste: Option<Ste>) -> Result<(), String> {
        let _ = self.asked.send(Asked::Set(device, ste));
        match ste {
            Some(ste) if ste == self.refused => Err("it is refused".into()),
            _ => Ok(()),
        }
    }
}

struct Guest {
    smmu: Arc<Smmu<Fake>>,
    asked: Receiver<Asked>,
    interrupts: [Arc<AtomicU32>; 2],
    prod: u32,
}

impl Guest {
    fn new(bad: u8, refused: Ste) -> Self {
        let (sender, asked) = channel();
        let host = Fake {
            asked: sender,
            bad,
            refused,
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap();
        let interrupts = [Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0))];
        let line = |count: &Arc<AtomicU32>| -> Line {
            let count = count.clone();
            Box::new(move |level| {
                count.fetch_add(level.into(), Ordering::Relaxed);
            })
        };
        let outputs = Outputs {
            gerror: line(&interrupts[0]),
            event: line(&interrupts[1]),
            verbose: false,
        };
        let info = HwInfo {
            flags: 2,
            idr: [u32::MAX; 6],
        };
        let smmu = Smmu::new(host, &info, memory, vec![STREAM], outputs).unwrap();
        let guest = Guest {
            smmu,
            asked,
            interrupts,
            prod: 0,
        };
        assert_eq!(guest.asked(), Asked::Set(0, None));
        guest.write(reg::CMDQ_BASE, 8, RING | 4);
        guest.write(STRTAB_BASE, 8, TABLE);
        guest.write(STRTAB_BASE_CFG, 4, 8);
        guest.write(IRQ_CTRL, 4, 5);
        guest.write(reg::CR0, 4, CMDQEN.into());
        guest
    }

    fn asked(&self) -> Asked {
        self.asked.recv().unwrap()
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.smmu.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, len: usize, value: u64) {
        self.smmu.write(offset, &value.to_le_bytes()[..len]);
    }

    fn put_ste(&self, ste: Ste) {
        let at = GuestAddress(TABLE + u64::from(STREAM) * 64);
        let words = ste.map(u64::to_le);
        self.smmu.memory.write_obj(words, at).unwrap();
    }

    fn submit(&mut self, commands: &[[u64; 2]]) {
        for command in commands.iter().chain(&[[op::SYNC.into(), 0]]) {
            let at = GuestAddress(RING + u64::from(self.prod & 15) * 16);
            let words = command.map(u64::to_le);
            self.smmu.memory.write_obj(words, at).unwrap();
            self.prod = (self.prod + 1) & 31;
        }
        self.write(reg::CMDQ_PROD, 4, self.prod.into());
        while self.read(reg::CMDQ_CONS) & 0xfffff != self.prod && !self.has_error() {
            thread::yield_now();
        }
    }

    fn has_error(&self) -> bool {
        self.read(reg::GERROR) != self.read(reg::GERRORN)
    }

    fn count(&self, which: usize) -> u32 {
        self.interrupts[which].load(Ordering::Relaxed)
    }
}

fn of_stream(opcode: u8, stream: u32) -> [u64; 2] {
    [u64::from(opcode) | u64::from(stream) << 32, 0]
}

#[test]
fn devices_follow_the_stream_table() {
    let refused = [S1 | 0x6000, 0];
    let mut guest = Guest::new(0, refused);
    let on = u64::from(SMMUEN | CMDQEN);
    guest.put_ste([S1 | 0x4000, 0xd4]);
    // While the SMMU is off the table does not count.
    guest.submit(&[of_stream(op::CFGI_STE_RANGE, 0)]);
    assert_eq!(guest.asked(), Asked::Set(0, None));
    guest.write(reg::CR0, 4, on);
    assert_eq!(guest.asked(), Asked::Set(0, Some([S1 | 0x4000, 0xd4])));
    // A change counts when the guest says so.
    guest.put_ste([S1 | 0x5000, 0xd4]);
    guest.submit(&[of_stream(op::CFGI_STE, STREAM + 1)]);
    guest.submit(&[of_stream(op::CFGI_STE, STREAM)]);
    assert_eq!(guest.asked(), Asked::Set(0, Some([S1 | 0x5000, 0xd4])));
    guest.put_ste(refused);
    guest.submit(&[of_stream(op::CFGI_STE, STREAM)]);
    assert_eq!(guest.asked(), Asked::Set(0, Some(refused)));
    assert_eq!(guest.asked(), Asked::Set(0, Some(INVALID)));
    guest.write(reg::CR0, 4, CMDQEN.into());
    assert_eq!(guest.asked(), Asked::Set(0, None));
    assert!(guest.asked.try_recv().is_err());
}

#[test]
fn commands() {
    let mut guest = Guest::new(0, INVALID);
    guest.submit(&[[op::TLBI_NH_ALL.into(), 0], of_stream(op::CFGI_CD, STREAM)]);
    let both = vec![op::TLBI_NH_ALL, op::CFGI_CD];
    assert_eq!(guest.asked(), Asked::Invalidate(both));
    // The host would find these illegal, as it has no such stream.
    guest.submit(&[
        of_stream(op::CFGI_CD, 0),
        of_stream(op::ATC_INV, 1),
        of_stream(op::PREFETCH_CONFIG, STREAM),
    ]);
    assert!(!guest.has_error());
    assert!(guest.asked.try_recv().is_err());
    assert_eq!(guest.count(0), 0);
}

#[test]
fn an_error_of_the_hosts() {
    let mut guest = Guest::new(op::TLBI_NH_ASID, INVALID);
    guest.submit(&[[op::TLBI_NH_ALL.into(), 0], [op::TLBI_NH_ASID.into(), 0]]);
    assert!(guest.has_error());
    assert_eq!(guest.read(reg::CMDQ_CONS), ILL << 24 | 1);
    let asked = vec![op::TLBI_NH_ALL, op::TLBI_NH_ASID];
    assert_eq!(guest.asked(), Asked::Invalidate(asked));
    // What Linux does: a CMD_SYNC in its place, and the acknowledgment.
    let sync = [u64::from(op::SYNC).to_le(), 0];
    let memory = &guest.smmu.memory;
    memory.write_obj(sync, GuestAddress(RING + 16)).unwrap();
    guest.write(reg::GERRORN, 4, guest.read(reg::GERROR).into());
    guest.submit(&[]);
    assert!(!guest.has_error());
    assert_eq!(guest.read(reg::CMDQ_CONS) & 0xfffff, 4);
    assert_eq!(guest.count(0), 1);
}

#[test]
fn commands_that_no_guest_may_use() {
    for opcode in [op::RESUME, op::PRI_RESP, 0x28, 0xff] {
        let mut guest = Guest::new(0, INVALID);
        guest.submit(&[[opcode.into(), 0]]);
        assert_eq!(guest.read(reg::CMDQ_CONS), ILL << 24, "{opcode:#x}");
        assert_eq!(guest.count(0), 1);
    }
}

#[test]
fn events() {
    const EVENTQ_BASE: u64 = 0xa0;
    const EVENTQ_PROD: u64 = 0x1_00a8;
    let guest = Guest::new(0, INVALID);
    let record = [0x10; 32];
    guest.smmu.event(&record);
    assert_eq!((guest.read(EVENTQ_PROD), guest.count(1)), (0, 0));
    guest.write(EVENTQ_BASE, 8, EVENTS | 3);
    guest.write(reg::CR0, 4, (CMDQEN | EVENTQEN).into());
    guest.smmu.event(&record);
    assert_eq!((guest.read(EVENTQ_PROD), guest.count(1)), (1, 1));
    let memory = &guest.smmu.memory;
    assert_eq!(
        memory.read_obj::<Record>(GuestAddress(EVENTS)).unwrap(),
        record
    );
}
