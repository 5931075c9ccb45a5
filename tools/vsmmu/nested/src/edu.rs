// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU's `edu` device as a DMA engine: it copies up to 4096 bytes between an IOVA and a buffer of
//! its own, and takes 100 ms of the guest's time for it.

use std::time::{Duration, Instant};

use crate::NestedSmmu;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX as BAR0, VFIO_PCI_CONFIG_REGION_INDEX as CONFIG,
};

/// Vendor and device id.
pub const PCI_ID: (u16, u16) = (0x1234, 0x11e8);

/// Longer than any machine takes for 100 ms of a guest's time: the device is dead by then.
const DEADLINE: Duration = Duration::from_secs(30);

const PCI_COMMAND: u64 = 4;
const PCI_COMMAND_MEMORY: u16 = 1 << 1;
const PCI_COMMAND_MASTER: u16 = 1 << 2;

const REG_ID: u64 = 0x00;
const REG_DMA_SRC: u64 = 0x80;
const REG_DMA_DST: u64 = 0x88;
const REG_DMA_COUNT: u64 = 0x90;
const REG_DMA_CMD: u64 = 0x98;
const CMD_RUN: u64 = 1 << 0;
const CMD_TO_MEMORY: u64 = 1 << 1;
/// The address of the device's buffer in the registers above. (It cannot be read through the BAR.)
const BUFFER: u64 = 0x4_0000;

/// Why there was no DMA.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The identification register does not read as an edu's.
    #[error("BAR 0 does not look like an edu device: its first register is {0:#010x}")]
    NotEdu(u32),
    /// The busy bit did not go away.
    #[error("the DMA did not end within {DEADLINE:?}")]
    Stuck,
}

fn read32(smmu: &NestedSmmu, reg: u64) -> u32 {
    // A read that fails leaves the buffer as it is: as "busy", rather than "done".
    let mut buf = [0xff; 4];
    smmu.device().region_read(BAR0, &mut buf, reg);
    u32::from_le_bytes(buf)
}

fn write64(smmu: &NestedSmmu, reg: u64, value: u64) {
    smmu.device().region_write(BAR0, &value.to_le_bytes(), reg);
}

/// Checks that it is one, and allows it to do DMA.
pub fn enable(smmu: &NestedSmmu) -> Result<(), Error> {
    let mut buf = [0; 2];
    smmu.device().region_read(CONFIG, &mut buf, PCI_COMMAND);
    let command = u16::from_le_bytes(buf) | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    smmu.device()
        .region_write(CONFIG, &command.to_le_bytes(), PCI_COMMAND);

    let id = read32(smmu, REG_ID);
    if id & 0xff == 0xed && id >> 16 == 0x0100 {
        Ok(())
    } else {
        Err(Error::NotEdu(id))
    }
}

/// Copies `count` bytes from `iova` to `offset` in the device's buffer.
pub fn fetch(smmu: &NestedSmmu, iova: u64, offset: u64, count: u64) -> Result<(), Error> {
    dma(smmu, iova, BUFFER + offset, count, CMD_RUN)
}

/// Copies the first `count` bytes of the device's buffer to `iova`.
pub fn put(smmu: &NestedSmmu, iova: u64, count: u64) -> Result<(), Error> {
    dma(smmu, BUFFER, iova, count, CMD_RUN | CMD_TO_MEMORY)
}

fn dma(smmu: &NestedSmmu, src: u64, dst: u64, count: u64, cmd: u64) -> Result<(), Error> {
    write64(smmu, REG_DMA_SRC, src);
    write64(smmu, REG_DMA_DST, dst);
    write64(smmu, REG_DMA_COUNT, count);
    write64(smmu, REG_DMA_CMD, cmd);
    let start = Instant::now();
    while u64::from(read32(smmu, REG_DMA_CMD)) & CMD_RUN != 0 {
        if start.elapsed() > DEADLINE {
            return Err(Error::Stuck);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
