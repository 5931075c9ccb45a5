// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Has an NVMe read from where its SMMU maps nothing, for an event.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, FileOffset, MmapRegion};

/// What can be wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its driver would not like it.
    #[error("{0} has a driver, which must be unbound first")]
    HasDriver(String),
    /// A file of sysfs.
    #[error("{0}")]
    Sysfs(String, #[source] io::Error),
    /// Its registers.
    #[error("cannot map its registers")]
    Map(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It does not do what it is told.
    #[error("the controller does not become {0}")]
    Stuck(&'static str),
}

/// Where nothing is mapped, as drivers get addresses from the top.
const IOVA: u64 = 0x1000_0000;
/// Registers of an NVMe controller, and the doorbell of its first queue.
const CC: usize = 0x14;
const CSTS: usize = 0x1c;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const DOORBELL: usize = 0x1000;
const SIZE: usize = 0x2000;
/// Entries of 64 and 16 bytes, enabled.
const CC_ENABLE: u32 = 6 << 16 | 4 << 20 | 1;
const CSTS_READY: u32 = 1;

const COMMAND: u64 = 4;
const COMMAND_MASTER: u8 = 1 << 2;

/// It is far less than that.
const DEADLINE: Duration = Duration::from_secs(10);

/// Has the controller at `bdf`, which has no driver, fetch a command from where nothing is mapped.
pub fn run(bdf: &str) -> Result<(), Error> {
    let device = Path::new("/sys/bus/pci/devices").join(bdf);
    if device.join("driver").exists() {
        return Err(Error::HasDriver(bdf.into()));
    }
    let sysfs = |name: &str, e| Error::Sysfs(device.join(name).display().to_string(), e);
    let open = |name| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(device.join(name));
        file.map_err(|e| sysfs(name, e))
    };
    fs::write(device.join("enable"), "1").map_err(|e| sysfs("enable", e))?;
    let config = open("config")?;
    let mut command = [0];
    config
        .read_exact_at(&mut command, COMMAND)
        .map_err(|e| sysfs("config", e))?;
    let master = |on| {
        let byte = if on {
            command[0] | COMMAND_MASTER
        } else {
            command[0]
        };
        config
            .write_all_at(&[byte], COMMAND)
            .map_err(|e| sysfs("config", e))
    };
    master(true)?;
    let bar = FileOffset::new(open("resource0")?, 0);
    let registers = MmapRegion::<()>::from_file(bar, SIZE).map_err(|e| Error::Map(e.into()))?;
    let result = fetch(&registers);
    master(false)?;
    fs::write(device.join("enable"), "0").map_err(|e| sysfs("enable", e))?;
    result
}

fn fetch(registers: &MmapRegion) -> Result<(), Error> {
    use vm_memory::VolatileMemory;
    let registers = registers.as_volatile_slice();
    let map = |e: vm_memory::VolatileMemoryError| Error::Map(e.into());
    let write = |at, word: u32| registers.store(word, at, Ordering::Relaxed).map_err(map);
    let until = |ready: u32, what| {
        let start = Instant::now();
        while registers
            .load::<u32>(CSTS, Ordering::Relaxed)
            .map_err(map)?
            & CSTS_READY
            != ready
        {
            if start.elapsed() > DEADLINE {
                return Err(Error::Stuck(what));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    write(CC, 0)?;
    until(0, "idle")?;
    // Two queues of 32 entries.
    write(AQA, 31 << 16 | 31)?;
    for (at, iova) in [(ASQ, IOVA), (ACQ, IOVA + 0x1000)] {
        write(at, iova as u32)?;
        write(at + 4, (iova >> 32) as u32)?;
    }
    write(CC, CC_ENABLE)?;
    until(CSTS_READY, "ready")?;
    write(DOORBELL, 1)?;
    // The read is made by then.
    thread::sleep(Duration::from_millis(100));
    write(CC, 0)?;
    until(0, "idle")
}
