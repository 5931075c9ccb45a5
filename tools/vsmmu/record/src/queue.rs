// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue as CPUs write it. One CPU may move PROD for several: who has queued a command is whoever has
//! written it into the ring.

use std::collections::HashMap;
use std::mem;

const ENTRY: u64 = 16;
const CMD_SYNC: u8 = 0x46;

/// A place in the ring.
#[derive(Clone, Copy, Default)]
struct Entry {
    command: [u8; ENTRY as usize],
    /// Who has written it, having executed so many instructions.
    cpu: u32,
    now: u64,
}

/// A ring.
#[derive(Default)]
pub struct Queue {
    base: u64,
    ring: Vec<Entry>,
    prod: usize,
    /// When each CPU has queued the last command, in instructions that it had executed.
    last: HashMap<u32, u64>,
}

impl Queue {
    /// What CMDQ_BASE says.
    pub fn new(base: u64) -> Self {
        Queue {
            base: base & 0x000f_ffff_ffff_ffe0,
            ring: vec![Entry::default(); 1 << (base & 0x1f)],
            ..Queue::default()
        }
    }

    /// Whether the address is in the ring.
    pub fn contains(&self, at: u64) -> bool {
        at.checked_sub(self.base)
            .is_some_and(|offset| offset < self.ring.len() as u64 * ENTRY)
    }

    /// A CPU that has executed `now` instructions stores something into the ring.
    pub fn store(&mut self, cpu: u32, now: u64, at: u64, bytes: &[u8]) {
        let offset = at - self.base;
        let entry = &mut self.ring[(offset / ENTRY) as usize];
        let start = (offset % ENTRY) as usize;
        entry.command[start..start + bytes.len()].copy_from_slice(bytes);
        (entry.cpu, entry.now) = (cpu, now);
    }

    /// The next commands of each CPU have none before them.
    pub fn forget_times(&mut self) {
        self.last.clear();
    }

    /// PROD is moved: gives the records of what is new. The first of a CPU has 0 instructions.
    pub fn prod(&mut self, prod: u32) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let mut open: Vec<Entry> = Vec::new();
        let size = self.ring.len();
        let Some(mask) = size.checked_sub(1) else {
            return records;
        };
        let prod = prod as usize & mask;
        while self.prod != prod {
            let entry = self.ring[self.prod];
            self.prod = (self.prod + 1) & mask;
            if open.last().is_some_and(|last| last.cpu != entry.cpu) {
                records.extend(self.record(&mem::take(&mut open)));
            }
            open.push(entry);
            if entry.command[0] == CMD_SYNC {
                records.extend(self.record(&mem::take(&mut open)));
            }
        }
        records.extend(self.record(&open));
        records
    }

    fn record(&mut self, entries: &[Entry]) -> Option<Vec<u8>> {
        let last = entries.last()?;
        let before = self.last.insert(last.cpu, last.now).unwrap_or(last.now);
        let mut record = Vec::new();
        record.extend(last.cpu.to_le_bytes());
        record.extend((entries.len() as u32).to_le_bytes());
        record.extend((last.now - before).to_le_bytes());
        record.extend(entries.iter().flat_map(|entry| entry.command));
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(queue: &mut Queue, cpu: u32, now: u64, place: u64, opcode: u8) {
        let at = 0x4000 + place * ENTRY;
        queue.store(cpu, now, at, &u64::from(opcode).to_le_bytes());
        queue.store(cpu, now, at + 8, &[opcode; 8]);
    }

    fn head(record: &[u8]) -> (u32, u32, u64) {
        let word = |i: usize| u32::from_le_bytes(record[i..i + 4].try_into().unwrap());
        let now = u64::from_le_bytes(record[8..16].try_into().unwrap());
        (word(0), word(4), now)
    }

    #[test]
    fn one_moves_prod_for_two() {
        let mut ring = Queue::new(0x4000 | 3);
        assert!(ring.contains(0x4000) && ring.contains(0x407f));
        assert!(!ring.contains(0x3fff) && !ring.contains(0x4080));
        queue(&mut ring, 0, 100, 0, 0x12);
        queue(&mut ring, 0, 101, 1, CMD_SYNC);
        let records = ring.prod(2);
        assert_eq!(records.len(), 1);
        assert_eq!(head(&records[0]), (0, 2, 0));
        assert_eq!(records[0][16], 0x12);
        assert_eq!(records[0][32 + 8..], [CMD_SYNC; 8]);

        queue(&mut ring, 1, 7, 2, 0x12);
        queue(&mut ring, 1, 7, 3, 0x12);
        queue(&mut ring, 0, 151, 4, CMD_SYNC);
        queue(&mut ring, 1, 9, 5, CMD_SYNC);
        let heads: Vec<_> = ring.prod(6).iter().map(|record| head(record)).collect();
        assert_eq!(heads, [(1, 2, 0), (0, 1, 50), (1, 1, 2)]);

        // Around the end of the ring, with the bit for the wrap.
        queue(&mut ring, 0, 160, 6, 0x12);
        queue(&mut ring, 0, 161, 7, 0x12);
        queue(&mut ring, 0, 162, 0, CMD_SYNC);
        ring.forget_times();
        let records = ring.prod(9);
        assert_eq!(head(&records[0]), (0, 3, 0));
        assert!(ring.prod(9).is_empty());
    }
}
