// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The MSI-X capability and table of a device (PCI Express Base, 7.7.2), as the guest sees them.
//!
//! The real ones are the host's: its MSIs go through stage 2 to the doorbell of the host. The guest's
//! entries say only what becomes of them then.

use crate::bus::{put, value};
use crate::layout::Range;

/// The most vectors that a guest is offered: enough for a queue on each of a few CPUs.
pub const VECTORS_MAX: u32 = 8;

const CONTROL: u64 = 2;
const CONTROL_SIZE: u16 = 0x7ff;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK: u16 = 1 << 14;
const TABLE: u64 = 4;
const ENTRY_SIZE: u64 = 16;
/// Of the words of an entry, that with the mask bit.
const MASK_WORD: usize = 3;

/// What the guest wants to get when a vector is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it is written to: an IOVA, if the guest's SMMU translates for the device.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// What a write has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// MSI-X is on or off now.
    Enable(bool),
    /// A vector has this message.
    Vector(u32, Message),
}

/// The capability and the table.
#[derive(Clone, Debug)]
pub struct Msix {
    /// Where the capability is in configuration space.
    at: u64,
    /// The BAR with the table, and where it is in there.
    bar: u32,
    table: Range,
    control: u16,
    entries: Vec<[u32; 4]>,
}

impl Msix {
    /// The capability at `at`, of which `read` gives the words.
    pub fn new(at: u64, read: impl Fn(u64) -> u32) -> Self {
        let size = read(at) >> 16 & u32::from(CONTROL_SIZE);
        let count = (size + 1).min(VECTORS_MAX);
        let table = read(at + TABLE);
        let all = u64::from(size + 1) * ENTRY_SIZE;
        let mut masked = [0; 4];
        masked[MASK_WORD] = 1;
        Msix {
            at,
            bar: table & 7,
            table: Range {
                base: u64::from(table & !7),
                size: all,
            },
            control: count as u16 - 1,
            entries: vec![masked; count as usize],
        }
    }

    /// How many vectors there are.
    pub fn count(&self) -> u32 {
        self.entries.len() as u32
    }

    /// What is read from configuration space, of the bytes that are different from the device's own.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let control = self.control.to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            if let Some(of_control) = at.checked_sub(self.at + CONTROL)
                && let Some(ours) = control.get(of_control as usize)
            {
                *byte = *ours;
            }
        }
    }

    /// The guest writes to configuration space.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) -> Option<Change> {
        let before = self.control;
        let mut control = before.to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            if let Some(of_control) = at.checked_sub(self.at + CONTROL)
                && let Some(ours) = control.get_mut(of_control as usize)
            {
                *ours = *byte;
            }
        }
        let writable = CONTROL_ENABLE | CONTROL_MASK;
        self.control = before & !writable | u16::from_le_bytes(control) & writable;
        let enabled = self.control & CONTROL_ENABLE;
        (before & CONTROL_ENABLE != enabled).then_some(Change::Enable(enabled != 0))
    }

    /// How far into the table an access is, if it is to the table.
    pub fn table_offset(&self, bar: u32, offset: u64) -> Option<u64> {
        self.table.offset(offset).filter(|_| bar == self.bar)
    }

    /// Reads of the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let word = |offset: u64| {
            let entry = self.entries.get((offset / ENTRY_SIZE) as usize)?;
            Some(entry[(offset % ENTRY_SIZE / 4) as usize])
        };
        for (offset, bytes) in (offset..).step_by(4).zip(data.chunks_mut(4)) {
            put(bytes, word(offset).unwrap_or(0).into());
        }
    }

    /// The guest writes to the table. A vector that is not masked is routed anew; one that is masked later
    /// stays as it is, so that the guest may get one that it does not want, but never misses one.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Option<Change> {
        let index = (offset / ENTRY_SIZE) as usize;
        let entry = self.entries.get_mut(index)?;
        let words = entry[(offset % ENTRY_SIZE / 4) as usize..].iter_mut();
        for (word, bytes) in words.zip(data.chunks(4)) {
            *word = value(bytes) as u32;
        }
        let message = Message {
            address: u64::from(entry[1]) << 32 | u64::from(entry[0]),
            data: entry[2],
        };
        (entry[MASK_WORD] & 1 == 0).then_some(Change::Vector(index as u32, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msix(size: u32) -> Msix {
        Msix::new(0x40, |at| match at {
            0x40 => (size - 1) << 16 | 0x11,
            0x44 => 0x2000 | 4,
            _ => panic!("{at:#x}"),
        })
    }

    #[test]
    fn the_capability() {
        let mut msix = msix(65);
        assert_eq!(msix.count(), VECTORS_MAX);
        let mut data = [0xaa; 4];
        msix.read_config(0x40, &mut data);
        assert_eq!(data, [0xaa, 0xaa, 7, 0]);
        // The size cannot be written.
        assert_eq!(
            msix.write_config(0x42, &[0xff, 0xff]),
            Some(Change::Enable(true))
        );
        assert_eq!(msix.write_config(0x42, &[0x00, 0x80]), None);
        assert_eq!(msix.write_config(0x3c, &[0; 4]), None);
        let mut byte = [0];
        msix.read_config(0x43, &mut byte);
        assert_eq!(byte, [0x80]);
        let change = msix.write_config(0x40, &[0, 0, 0, 0]);
        assert_eq!(change, Some(Change::Enable(false)));
    }

    #[test]
    fn the_table() {
        let mut msix = msix(3);
        assert_eq!(msix.table_offset(4, 0x2010), Some(0x10));
        assert_eq!(msix.table_offset(0, 0x2010), None);
        assert_eq!(msix.table_offset(4, 0x2030), None);
        let word = |msix: &Msix, offset| {
            let mut data = [0; 4];
            msix.read_table(offset, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(word(&msix, 0x1c), 1);
        assert_eq!(
            msix.write_table(0x10, &0x12_0000_8040_u64.to_le_bytes()),
            None
        );
        assert_eq!(msix.write_table(0x18, &[5, 0, 0, 0]), None);
        let message = Message {
            address: 0x12_0000_8040,
            data: 5,
        };
        let change = msix.write_table(0x1c, &[0; 4]);
        assert_eq!(change, Some(Change::Vector(1, message)));
        assert_eq!((word(&msix, 0x10), word(&msix, 0x14)), (0x8040, 0x12));
        // Behind the last.
        assert_eq!(msix.write_table(0x30, &[0; 4]), None);
    }
}
