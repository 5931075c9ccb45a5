// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an access of the guest's CPUs goes to.

use std::sync::Arc;

use crate::layout::Range;

/// Something with registers. Accesses come from all CPUs at once.
pub trait Device: Send + Sync {
    /// The guest reads `data.len()` bytes (1, 2, 4, 8) at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]);
}

/// An interrupt line of a device: it sets its level.
pub type Line = Box<dyn Fn(bool) + Send + Sync>;

/// All devices.
#[derive(Default)]
pub struct Bus {
    devices: Vec<(Range, Arc<dyn Device>)>,
}

impl Bus {
    /// Puts a device at these addresses.
    pub fn add(&mut self, range: Range, device: Arc<dyn Device>) {
        self.devices.push((range, device));
    }

    fn find(&self, address: u64) -> Option<(u64, &dyn Device)> {
        self.devices
            .iter()
            .find_map(|(range, device)| Some((range.offset(address)?, &**device)))
    }

    /// The guest reads. Where there is nothing it reads ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address) {
            device.read(offset, data);
        }
    }

    /// The guest writes. Where there is nothing, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            device.write(offset, data);
        }
    }
}

/// The value of up to 8 bytes, little-endian.
pub fn value(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..data.len()].copy_from_slice(data);
    u64::from_le_bytes(bytes)
}

/// Puts a value into up to 8 bytes, little-endian.
pub fn put(data: &mut [u8], value: u64) {
    let len = data.len();
    data.copy_from_slice(&value.to_le_bytes()[..len]);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Word(Mutex<u64>);

    impl Device for Word {
        fn read(&self, offset: u64, data: &mut [u8]) {
            put(data, *self.0.lock().unwrap() + offset);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            *self.0.lock().unwrap() = value(data) + offset;
        }
    }

    #[test]
    fn each_to_its_device() {
        let mut bus = Bus::default();
        for base in [0x1000, 0x2000] {
            let range = Range { base, size: 0x1000 };
            bus.add(range, Arc::new(Word(Mutex::new(base))));
        }
        bus.write(0x1004, &[1, 2]);
        let read = |address| {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            value(&data)
        };
        assert_eq!(read(0x1000), 0x205);
        assert_eq!(read(0x2ffc), 0x2ffc);
        assert_eq!(read(0x3000), 0xffff_ffff);
        assert_eq!(read(0xfff), 0xffff_ffff);
        bus.write(0x3000, &[0]);
    }
}
