// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers (IHI 0070, chapter 6), of which the relay has those of the command queue.

use vsmmu_nested::HwInfo;
use vsmmu_relay::{Cmdq, Config, reg};

use super::eventq::{EVENTQS, EventQueue};
use super::ste::StreamTable;

const IDR5: u64 = 0x14;
const AIDR: u64 = 0x1c;
const CR1: u64 = 0x28;
const CR2: u64 = 0x2c;
const GBPA: u64 = 0x44;
const IRQ_CTRL: u64 = 0x50;
const IRQ_CTRLACK: u64 = 0x54;
const STRTAB_BASE: u64 = 0x80;
const STRTAB_BASE_CFG: u64 = 0x88;
const EVENTQ_BASE: u64 = 0xa0;
/// In page 1.
const EVENTQ_PROD: u64 = 0x1_00a8;
const EVENTQ_CONS: u64 = 0x1_00ac;

const CR0_SMMUEN: u32 = 1 << 0;
const CR0_EVENTQEN: u32 = 1 << 2;
/// All that there is but CMDQEN, which the relay has.
const CR0_WRITABLE: u32 = CR0_SMMUEN | CR0_EVENTQEN | 1 << 4;
const GBPA_ABORT: u32 = 1 << 20;
const GBPA_UPDATE: u32 = 1 << 31;
const IRQ_GERROR: u32 = 1 << 0;
const IRQ_EVENTQ: u32 = 1 << 2;

/// Bits of a stream ID: one bus, and all of its functions.
pub const STREAM_BITS: u32 = 8;
/// SMMUv3.2, which has range invalidation.
const AIDR_3_2: u32 = 2;

/// What a write has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The command queue may have something to do.
    pub queue: bool,
    /// Other stream table entries count.
    pub streams: bool,
}

/// What decides over all devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// The SMMU is off: all goes through.
    Bypass,
    /// The SMMU is off: nothing goes through.
    Abort,
    /// Each has its entry.
    Table(StreamTable),
}

/// The registers.
pub struct Registers {
    /// The command queue.
    pub cmdq: Cmdq,
    /// The event queue.
    pub eventq: EventQueue,
    idr: [u32; 6],
    cr0: u32,
    gbpa: u32,
    irq_ctrl: u32,
    table: StreamTable,
    /// CR1 and CR2, which nothing depends on here.
    plain: [u32; 2],
}

/// What the guest is told of its SMMU: stage 1 as the host's SMMU has it, and nothing else.
fn offered(host: &HwInfo, cmdqs: u8) -> [u32; 6] {
    const S1P: u32 = 1 << 1;
    const TTF: u32 = 3 << 2;
    const COHACC: u32 = 1 << 4;
    const ATS: u32 = 1 << 10;
    const ASID16: u32 = 1 << 12;
    const TTENDIAN: u32 = 3 << 21;
    const NO_STALLS: u32 = 1 << 24;
    const TERM_MODEL: u32 = 1 << 26;
    const RIL: u32 = 1 << 10;
    /// OAS, the granules, VAX.
    const SIZES: u32 = 7 | 7 << 4 | 3 << 10;
    let of_host = TTF | ATS | ASID16 | TTENDIAN | TERM_MODEL;
    [
        S1P | COHACC | NO_STALLS | host.idr[0] & of_host,
        u32::from(cmdqs) << 21 | EVENTQS << 16 | STREAM_BITS,
        0,
        host.idr[3] & RIL,
        0,
        host.idr[5] & SIZES,
    ]
}

impl Registers {
    /// As they are after reset.
    pub fn new(host: &HwInfo) -> Self {
        let config = Config::new(host.flags);
        Registers {
            idr: offered(host, config.cmdqs),
            cmdq: Cmdq::new(config),
            eventq: EventQueue::default(),
            cr0: 0,
            gbpa: 0,
            irq_ctrl: 0,
            table: StreamTable::default(),
            plain: [0; 2],
        }
    }

    /// Where devices are told what to do.
    pub fn global(&self) -> Global {
        match (self.cr0 & CR0_SMMUEN != 0, self.gbpa & GBPA_ABORT != 0) {
            (true, _) => Global::Table(self.table),
            (false, true) => Global::Abort,
            (false, false) => Global::Bypass,
        }
    }

    /// Whether GERROR has an interrupt.
    pub fn gerror_interrupt(&self) -> bool {
        self.irq_ctrl & IRQ_GERROR != 0
    }

    /// Whether the event queue is on.
    pub fn has_events(&self) -> bool {
        self.cr0 & CR0_EVENTQEN != 0
    }

    /// Whether the event queue has an interrupt.
    pub fn event_interrupt(&self) -> bool {
        self.irq_ctrl & IRQ_EVENTQ != 0
    }

    /// The guest reads `len` bytes.
    pub fn read(&self, offset: u64, len: usize) -> u64 {
        let own = match (offset, len) {
            (0..=IDR5, 4) => self.idr[offset as usize / 4].into(),
            (AIDR, 4) => AIDR_3_2.into(),
            (reg::CR0 | reg::CR0ACK, 4) => self.cr0.into(),
            (CR1, 4) => self.plain[0].into(),
            (CR2, 4) => self.plain[1].into(),
            (GBPA, 4) => self.gbpa.into(),
            (IRQ_CTRL | IRQ_CTRLACK, 4) => self.irq_ctrl.into(),
            (STRTAB_BASE, 8) => self.table.base,
            (STRTAB_BASE_CFG, 4) => self.table.config.into(),
            (EVENTQ_BASE, 8) => self.eventq.base,
            (EVENTQ_PROD, 4) => self.eventq.prod.into(),
            (EVENTQ_CONS, 4) => self.eventq.cons.into(),
            _ => 0,
        };
        own | self.cmdq.read(offset, len).unwrap_or(0)
    }

    /// The guest writes `len` bytes.
    pub fn write(&mut self, offset: u64, len: usize, value: u64) -> Effect {
        let before = self.global();
        let word = value as u32;
        match (offset, len) {
            (reg::CR0, 4) => self.cr0 = word & CR0_WRITABLE,
            (CR1, 4) => self.plain[0] = word,
            (CR2, 4) => self.plain[1] = word,
            // It counts with UPDATE only, which reads as 0 when that is done.
            (GBPA, 4) if word & GBPA_UPDATE != 0 => self.gbpa = word & !GBPA_UPDATE,
            (IRQ_CTRL, 4) => self.irq_ctrl = word & (IRQ_GERROR | IRQ_EVENTQ),
            (STRTAB_BASE, 8) => self.table.base = value,
            (STRTAB_BASE_CFG, 4) => self.table.config = word,
            (EVENTQ_BASE, 8) => self.eventq.base = value,
            (EVENTQ_PROD, 4) => self.eventq.prod = word,
            (EVENTQ_CONS, 4) => self.eventq.cons = word,
            _ => {}
        }
        Effect {
            queue: self.cmdq.write(offset, len, value),
            streams: self.global() != before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> Registers {
        Registers::new(&HwInfo {
            flags: 2,
            idr: [u32::MAX; 6],
        })
    }

    #[test]
    fn no_more_than_stage_1() {
        let registers = registers();
        let idr0 = registers.read(0, 4);
        // Not S2P, BTM, HTTU, HYP, MSI, SEV, PRI, CD2L, nor tables with two levels.
        assert_eq!(idr0, 0x0560_141e);
        assert_eq!(registers.read(4, 4), 8 << 21 | 7 << 16 | 8);
        assert_eq!(registers.read(0xc, 4), 1 << 10);
        assert_eq!(registers.read(0x14, 4), 0xc77);
        assert_eq!(registers.read(AIDR, 4), 2);
    }

    #[test]
    fn what_devices_go_by() {
        let mut registers = registers();
        assert_eq!(registers.global(), Global::Bypass);
        // Without UPDATE nothing happens.
        let effect = registers.write(GBPA, 4, GBPA_ABORT.into());
        assert!(!effect.streams && registers.global() == Global::Bypass);
        let effect = registers.write(GBPA, 4, (GBPA_ABORT | GBPA_UPDATE).into());
        assert!(effect.streams && registers.global() == Global::Abort);
        assert_eq!(registers.read(GBPA, 4), u64::from(GBPA_ABORT));

        assert!(!registers.write(STRTAB_BASE, 8, 0x1234_0000).streams);
        assert!(!registers.write(STRTAB_BASE_CFG, 4, 8).streams);
        let effect = registers.write(reg::CR0, 4, 0xffff_ffff);
        assert!(effect.queue && effect.streams);
        let table = StreamTable {
            base: 0x1234_0000,
            config: 8,
        };
        assert_eq!(registers.global(), Global::Table(table));
        // With CMDQEN, by the relay.
        assert_eq!(registers.read(reg::CR0ACK, 4), 0x1d);
        let effect = registers.write(reg::CR0, 4, 0x1d);
        assert!(effect.queue && !effect.streams);
    }

    #[test]
    fn interrupts() {
        let mut registers = registers();
        assert!(!registers.gerror_interrupt() && !registers.event_interrupt());
        registers.write(IRQ_CTRL, 4, 7);
        assert_eq!(registers.read(IRQ_CTRLACK, 4), 5);
        assert!(registers.gerror_interrupt() && registers.event_interrupt());
    }
}
