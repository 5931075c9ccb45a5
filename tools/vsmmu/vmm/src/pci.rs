// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A PCI bus with functions of the host's.
//!
//! vfio presents a configuration space that a guest can have as it is, with BARs of the guest's. What is
//! changed here: MSI-X is emulated, see [`crate::msix`], and there is no other kind of interrupt, and no
//! option ROM.

use std::sync::{Arc, Mutex, MutexGuard};

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX as CONFIG;
use vfio_ioctls::VfioDevice;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Device, value};
use crate::layout::{PCI_MEMORY, Range, pci_slot};
use crate::msix::{Change, Message, Msix};

const COMMAND: u64 = 0x04;
const COMMAND_MEMORY: u64 = 1 << 1;
const BARS: u64 = 0x10;
const BAR_COUNT: usize = 6;
const ROM: u64 = 0x30;
const CAPABILITIES: u64 = 0x34;
const INTERRUPT_PIN: u64 = 0x3d;
const CAPABILITY_MSI: u64 = 0x05;
const CAPABILITY_MSIX: u64 = 0x11;
/// A list of capabilities cannot have more.
const CAPABILITIES_MAX: usize = 48;

/// A device as vfio has it.
pub trait Physical: Send + Sync {
    /// Reads from a region. What cannot be read stays as it is.
    fn read(&self, region: u32, offset: u64, data: &mut [u8]);
    /// Writes.
    fn write(&self, region: u32, offset: u64, data: &[u8]);
    /// The size of a region, 0 if there is none.
    fn size(&self, region: u32) -> u64;
    /// Has its vectors signal these, one each, or none at all.
    ///
    /// # Errors
    ///
    /// When the host cannot. The text says why.
    fn signal(&self, vectors: &[EventFd]) -> Result<(), String>;
}

impl Physical for VfioDevice {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        self.region_read(region, data, offset);
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) {
        self.region_write(region, data, offset);
    }

    fn size(&self, region: u32) -> u64 {
        self.get_region_size(region)
    }

    fn signal(&self, vectors: &[EventFd]) -> Result<(), String> {
        let result = match vectors {
            [] => self.disable_msix(),
            _ => self.enable_msix(vectors.iter().collect()),
        };
        result.map_err(|e| e.to_string())
    }
}

/// Has the guest get a message when this is signalled.
pub type Route = Box<dyn Fn(u32, &EventFd, Message) -> Result<(), String> + Send + Sync>;

/// A device, and what its interrupts become.
pub struct Assigned {
    /// The device.
    pub device: Arc<dyn Physical>,
    /// Called with the vector.
    pub route: Route,
}

/// A function of the bus.
struct Function {
    device: Arc<dyn Physical>,
    route: Route,
    /// Bytes of configuration space that read as 0.
    hidden: Vec<Range>,
    /// They are there as long as the function is, as whoever waits for them does not keep them.
    vectors: Vec<EventFd>,
    state: Mutex<State>,
}

/// What the guest has set.
#[derive(Default)]
struct State {
    /// Where the BARs are that it can use.
    bars: [Option<Range>; BAR_COUNT],
    msix: Option<Msix>,
}

impl Function {
    fn new(Assigned { device, route }: Assigned) -> std::io::Result<Self> {
        let nothing = |base, size| Range { base, size };
        let mut function = Function {
            device,
            route,
            hidden: vec![nothing(ROM, 4), nothing(INTERRUPT_PIN, 1)],
            vectors: Vec::new(),
            state: Mutex::default(),
        };
        let mut msix = None;
        for (at, id) in function.capabilities() {
            match id {
                // An ID of 0 is none, so that the list can stay as it is.
                CAPABILITY_MSI => function.hidden.push(nothing(at, 1)),
                CAPABILITY_MSIX => msix = Some(Msix::new(at, |at| function.config(at, 4) as u32)),
                _ => {}
            }
        }
        for _ in 0..msix.as_ref().map_or(0, Msix::count) {
            function.vectors.push(EventFd::new(0)?);
        }
        function.lock().msix = msix;
        function.find_bars();
        Ok(function)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn config(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 4];
        self.device.read(CONFIG, offset, &mut data[..len]);
        value(&data)
    }

    /// Where the capabilities are, and their IDs.
    fn capabilities(&self) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut at = self.config(CAPABILITIES, 1) & 0xfc;
        while at != 0 && found.len() < CAPABILITIES_MAX {
            found.push((at, self.config(at, 1)));
            at = self.config(at + 1, 1) & 0xfc;
        }
        found
    }

    fn find_bars(&self) {
        let mut bars = [None; BAR_COUNT];
        let enabled = self.config(COMMAND, 2) & COMMAND_MEMORY != 0;
        let mut i = 0;
        while enabled && i < BAR_COUNT {
            let low = self.config(BARS + i as u64 * 4, 4);
            let is_wide = low & 7 == 4;
            let size = self.device.size(i as u32);
            if low & 1 == 0 && size != 0 {
                let high = match is_wide {
                    true => self.config(BARS + i as u64 * 4 + 4, 4),
                    false => 0,
                };
                let base = high << 32 | low & !0xf;
                bars[i] = Some(Range { base, size });
            }
            i += 1 + usize::from(is_wide);
        }
        self.lock().bars = bars;
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read(CONFIG, offset, data);
        if let Some(msix) = &self.lock().msix {
            msix.read_config(offset, data);
        }
        for (at, byte) in (offset..).zip(data) {
            if self.hidden.iter().any(|range| range.offset(at).is_some()) {
                *byte = 0;
            }
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.device.write(CONFIG, offset, data);
        if offset < ROM {
            self.find_bars();
        }
        let mut state = self.lock();
        let change = state
            .msix
            .as_mut()
            .and_then(|msix| msix.write_config(offset, data));
        self.carry_out(change);
    }

    /// The BAR that has the address, and how far in it is.
    fn find(&self, address: u64) -> Option<(u32, u64)> {
        let state = self.lock();
        state.bars.iter().enumerate().find_map(|(i, range)| {
            let offset = (*range)?.offset(address)?;
            Some((i as u32, offset))
        })
    }

    fn read_bar(&self, bar: u32, offset: u64, data: &mut [u8]) {
        if let Some(msix) = &self.lock().msix
            && let Some(offset) = msix.table_offset(bar, offset)
        {
            return msix.read_table(offset, data);
        }
        self.device.read(bar, offset, data);
    }

    fn write_bar(&self, bar: u32, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        if let Some(msix) = &mut state.msix
            && let Some(offset) = msix.table_offset(bar, offset)
        {
            let change = msix.write_table(offset, data);
            return self.carry_out(change);
        }
        drop(state);
        self.device.write(bar, offset, data);
    }

    fn carry_out(&self, change: Option<Change>) {
        let result = match change {
            None => return,
            Some(Change::Enable(true)) => self.device.signal(&self.vectors),
            Some(Change::Enable(false)) => self.device.signal(&[]),
            Some(Change::Vector(vector, message)) => {
                (self.route)(vector, &self.vectors[vector as usize], message)
            }
        };
        if let Err(why) = result {
            eprintln!("vsmmu-vmm: the interrupts of a device cannot be set up: {why}");
        }
    }
}

/// The bus. It has its functions in the slots that [`pci_slot`] gives, and nothing else.
pub struct Pci {
    functions: Vec<Function>,
}

impl Pci {
    /// One with these devices.
    ///
    /// # Errors
    ///
    /// When there are no more file descriptors.
    pub fn new(devices: impl Iterator<Item = Assigned>) -> std::io::Result<Arc<Self>> {
        let functions = devices.map(Function::new).collect::<Result<_, _>>()?;
        Ok(Arc::new(Pci { functions }))
    }

    /// Its configuration space.
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn Device> {
        Arc::new(Ecam(self.clone()))
    }

    /// Where the BARs are.
    pub fn memory(self: &Arc<Self>) -> Arc<dyn Device> {
        Arc::new(Memory(self.clone()))
    }
}

struct Ecam(Arc<Pci>);

impl Ecam {
    fn find(&self, offset: u64) -> Option<(&Function, u64)> {
        let is_there = |i: &usize| u64::from(pci_slot(*i)) << 15 == offset & !0xfff;
        let index = (0..self.0.functions.len()).find(is_there)?;
        Some((&self.0.functions[index], offset & 0xfff))
    }
}

impl Device for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((function, offset)) = self.find(offset) {
            function.read_config(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.find(offset) {
            function.write_config(offset, data);
        }
    }
}

struct Memory(Arc<Pci>);

impl Memory {
    fn find(&self, offset: u64) -> Option<(&Function, u32, u64)> {
        self.0.functions.iter().find_map(|function| {
            let (bar, offset) = function.find(PCI_MEMORY.base + offset)?;
            Some((function, bar, offset))
        })
    }
}

impl Device for Memory {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some((function, bar, offset)) = self.find(offset) {
            function.read_bar(bar, offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, bar, offset)) = self.find(offset) {
            function.write_bar(bar, offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Bus;
    use crate::layout::PCI_ECAM;

    /// A device with 16 KiB behind a BAR of 64 bits, as vfio would present it: the BAR reads back with the
    /// bits that it has.
    struct Fake {
        config: Mutex<Vec<u8>>,
        bar: Mutex<Vec<u8>>,
        /// How many vectors it had, whenever that changed.
        signals: Mutex<Vec<usize>>,
        routes: Mutex<Vec<(u32, Message)>>,
    }

    const BAR_SIZE: usize = 0x4000;

    impl Fake {
        fn new() -> Arc<Self> {
            let mut config = vec![0; 0x1000];
            config[..4].copy_from_slice(&[0x36, 0x1b, 0x10, 0x00]);
            config[0x10] = 4;
            config[0x30] = 1;
            config[0x34] = 0x40;
            config[0x3d] = 1;
            // MSI-X with two vectors, PCI Express, MSI.
            config[0x40..0x48].copy_from_slice(&[0x11, 0x60, 1, 0, 0x00, 0x20, 0, 0]);
            config[0x60..0x62].copy_from_slice(&[0x10, 0x80]);
            config[0x80..0x82].copy_from_slice(&[0x05, 0x00]);
            Arc::new(Fake {
                config: Mutex::new(config),
                bar: Mutex::new(vec![0; BAR_SIZE]),
                signals: Mutex::default(),
                routes: Mutex::default(),
            })
        }

        fn region(&self, region: u32) -> &Mutex<Vec<u8>> {
            if region == CONFIG {
                &self.config
            } else {
                &self.bar
            }
        }
    }

    impl Physical for Fake {
        fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
            let at = offset as usize;
            data.copy_from_slice(&self.region(region).lock().unwrap()[at..at + data.len()]);
        }

        fn write(&self, region: u32, offset: u64, data: &[u8]) {
            let at = offset as usize;
            let mut bytes = self.region(region).lock().unwrap();
            bytes[at..at + data.len()].copy_from_slice(data);
            if region == CONFIG {
                bytes[0x10] = 4;
                bytes[0x11] &= 0xc0;
            }
        }

        fn size(&self, region: u32) -> u64 {
            if region == 0 { BAR_SIZE as u64 } else { 0 }
        }

        fn signal(&self, vectors: &[EventFd]) -> Result<(), String> {
            self.signals.lock().unwrap().push(vectors.len());
            Ok(())
        }
    }

    fn bus(devices: Vec<Arc<Fake>>) -> Bus {
        let assigned = devices.into_iter().map(|device| Assigned {
            device: device.clone(),
            route: Box::new(move |vector, _, message| {
                device.routes.lock().unwrap().push((vector, message));
                Ok(())
            }),
        });
        let pci = Pci::new(assigned).unwrap();
        let mut bus = Bus::default();
        bus.add(PCI_ECAM, pci.ecam());
        bus.add(PCI_MEMORY, pci.memory());
        bus
    }

    fn read(bus: &Bus, address: u64) -> u32 {
        let mut data = [0; 4];
        bus.read(address, &mut data);
        u32::from_le_bytes(data)
    }

    fn slot(i: usize) -> u64 {
        PCI_ECAM.base + (u64::from(pci_slot(i)) << 15)
    }

    #[test]
    fn configuration_space() {
        let bus = bus(vec![Fake::new(), Fake::new()]);
        assert_eq!(read(&bus, slot(0)), 0x0010_1b36);
        assert_eq!(read(&bus, slot(1)), 0x0010_1b36);
        for nothing in [PCI_ECAM.base, slot(2), slot(0) + 0x1000] {
            assert_eq!(read(&bus, nothing), 0xffff_ffff);
        }
        // No ROM, no wired interrupt, no MSIs; the list of capabilities still has all.
        assert_eq!(read(&bus, slot(0) + ROM), 0);
        assert_eq!(read(&bus, slot(0) + 0x3c), 0);
        assert_eq!(read(&bus, slot(0) + 0x40), 0x0001_6011);
        assert_eq!(read(&bus, slot(0) + 0x60), 0x8010);
        assert_eq!(read(&bus, slot(0) + 0x80), 0);
    }

    #[test]
    fn bars() {
        let devices = vec![Fake::new(), Fake::new()];
        let bus = bus(devices.clone());
        let base = PCI_MEMORY.base + 0x8000;
        let write = |address, word: u32| bus.write(address, &word.to_le_bytes());
        // The size.
        write(slot(1) + BARS, 0xffff_ffff);
        assert_eq!(read(&bus, slot(1) + BARS), 0xffff_c004);
        // It is not there until memory accesses are enabled.
        write(slot(1) + BARS, base as u32);
        write(slot(1) + BARS + 4, 0);
        assert_eq!(read(&bus, base), 0xffff_ffff);
        bus.write(slot(1) + COMMAND, &[COMMAND_MEMORY as u8]);
        assert_eq!(read(&bus, base), 0);
        write(base + 0x3ffc, 0x1234_5678);
        assert_eq!(
            devices[1].bar.lock().unwrap()[0x3ffc..],
            [0x78, 0x56, 0x34, 0x12]
        );
        assert_eq!(devices[0].bar.lock().unwrap()[0x3ffc], 0);
        assert_eq!(read(&bus, base + 0x4000), 0xffff_ffff);
        // Elsewhere, above 4 GB: out of the window.
        write(slot(1) + BARS + 4, 1);
        assert_eq!(read(&bus, base), 0xffff_ffff);
    }

    #[test]
    fn interrupts() {
        let device = Fake::new();
        let bus = bus(vec![device.clone()]);
        let write = |address, word: u32| bus.write(address, &word.to_le_bytes());
        write(slot(0) + BARS, PCI_MEMORY.base as u32);
        bus.write(slot(0) + COMMAND, &[COMMAND_MEMORY as u8]);
        bus.write(slot(0) + 0x42, &[0, 0x80]);
        let table = PCI_MEMORY.base + 0x2000;
        for (i, word) in [0x808_0040, 0, 7, 0].into_iter().enumerate() {
            write(table + 16 + i as u64 * 4, word);
        }
        bus.write(slot(0) + 0x42, &[0, 0]);
        let message = Message {
            address: 0x808_0040,
            data: 7,
        };
        assert_eq!(*device.routes.lock().unwrap(), [(1, message)]);
        assert_eq!(*device.signals.lock().unwrap(), [2, 0]);
        // The table is not the device's.
        assert_eq!(read(&bus, table + 16), 0x808_0040);
        assert_eq!(device.bar.lock().unwrap()[0x2010], 0);
    }
}
