// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The event queue, which the guest consumes (IHI 0070, 3.5 and 7.2).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Log2 of the most entries: IDR1.EVENTQS.
pub const EVENTQS: u32 = 7;

const RECORD_SIZE: u64 = 32;
const OVERFLOW: u32 = 1 << 31;

/// An event, as the host has it: 32 bytes, little-endian.
pub type Record = [u8; RECORD_SIZE as usize];

/// Its registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventQueue {
    /// EVENTQ_BASE
    pub base: u64,
    /// EVENTQ_PROD
    pub prod: u32,
    /// EVENTQ_CONS
    pub cons: u32,
}

impl EventQueue {
    /// Puts an event into the queue. If there is no room it is lost, which the guest can see.
    pub fn push(&mut self, memory: &GuestMemoryMmap, record: &Record) {
        const ADDRESS: u64 = 0x000f_ffff_ffff_ffe0;
        let log2size = (self.base as u32 & 0x1f).min(EVENTQS);
        let entries = 1 << log2size;
        let mask = 2 * entries - 1;
        if (self.prod ^ self.cons) & mask == entries {
            if (self.prod ^ self.cons) & OVERFLOW == 0 {
                self.prod ^= OVERFLOW;
            }
            return;
        }
        let base = self.base & ADDRESS & !((RECORD_SIZE << log2size) - 1);
        let at = base + u64::from(self.prod & (entries - 1)) * RECORD_SIZE;
        // Without memory there is nothing that the guest could look at.
        let _ = memory.write_obj(*record, GuestAddress(at));
        self.prod = self.prod & OVERFLOW | (self.prod + 1) & mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_it_is_full() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1_0000), 0x1000)]).unwrap();
        let mut queue = EventQueue {
            base: 0x1_0000 | 1,
            ..EventQueue::default()
        };
        let record = |byte| [byte; 32];
        let at = |address| memory.read_obj::<Record>(GuestAddress(address)).unwrap();
        queue.push(&memory, &record(1));
        queue.push(&memory, &record(2));
        assert_eq!(queue.prod, 2);
        assert_eq!((at(0x1_0000), at(0x1_0020)), (record(1), record(2)));
        for _ in 0..2 {
            queue.push(&memory, &record(3));
            assert_eq!(queue.prod, OVERFLOW | 2);
        }
        assert_eq!(at(0x1_0000), record(1));
        // The guest has consumed one, and acknowledged that some are lost.
        queue.cons = OVERFLOW | 1;
        queue.push(&memory, &record(4));
        assert_eq!(queue.prod, OVERFLOW | 3);
        assert_eq!(at(0x1_0000), record(4));
        queue.cons = OVERFLOW | 3;
        queue.push(&memory, &record(5));
        assert_eq!(queue.prod, OVERFLOW);
    }
}
