// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a command queue has to know of its commands (IHI 0070, chapter 4).

/// Opcodes.
pub mod op {
    /// CMD_PREFETCH_CONFIG
    pub const PREFETCH_CONFIG: u8 = 0x01;
    /// CMD_PREFETCH_ADDR
    pub const PREFETCH_ADDR: u8 = 0x02;
    /// CMD_CFGI_STE
    pub const CFGI_STE: u8 = 0x03;
    /// CMD_CFGI_STE_RANGE, and CMD_CFGI_ALL, which is one of its ranges
    pub const CFGI_STE_RANGE: u8 = 0x04;
    /// CMD_CFGI_CD
    pub const CFGI_CD: u8 = 0x05;
    /// CMD_CFGI_CD_ALL
    pub const CFGI_CD_ALL: u8 = 0x06;
    /// CMD_TLBI_NH_ALL
    pub const TLBI_NH_ALL: u8 = 0x10;
    /// CMD_TLBI_NH_ASID
    pub const TLBI_NH_ASID: u8 = 0x11;
    /// CMD_TLBI_NH_VA
    pub const TLBI_NH_VA: u8 = 0x12;
    /// CMD_TLBI_NH_VAA
    pub const TLBI_NH_VAA: u8 = 0x13;
    /// CMD_TLBI_NSNH_ALL
    pub const TLBI_NSNH_ALL: u8 = 0x30;
    /// CMD_ATC_INV
    pub const ATC_INV: u8 = 0x40;
    /// CMD_PRI_RESP
    pub const PRI_RESP: u8 = 0x41;
    /// CMD_RESUME
    pub const RESUME: u8 = 0x44;
    /// CMD_STALL_TERM
    pub const STALL_TERM: u8 = 0x45;
    /// CMD_SYNC, which the queue sees to by itself
    pub const SYNC: u8 = 0x46;
}

/// A command as it was in the guest's queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    /// Its two words, in the CPU's endianness. Bit 64 of the specification is bit 0 of the second.
    pub words: [u64; 2],
}

/// The size of a command, in bytes.
pub(crate) const COMMAND_LEN: usize = 16;

/// A command in memory, little-endian.
pub(crate) type Bytes = [u8; COMMAND_LEN];

impl Command {
    #[inline]
    pub(crate) fn from_bytes(bytes: &Bytes) -> Self {
        let both = u128::from_le_bytes(*bytes);
        Command {
            words: [both as u64, (both >> 64) as u64],
        }
    }

    /// Its opcode, see [`op`].
    #[inline]
    pub fn opcode(self) -> u8 {
        self.words[0] as u8
    }

    /// The stream ID in commands that have one: CFGI_STE, CFGI_STE_RANGE, CFGI_CD, CFGI_CD_ALL, ATC_INV.
    pub fn stream_id(self) -> u32 {
        (self.words[0] >> 32) as u32
    }

    /// Whether `IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3` takes commands with this opcode.
    #[inline]
    pub fn is_forwardable(self) -> bool {
        matches!(
            self.opcode(),
            op::CFGI_CD
                | op::CFGI_CD_ALL
                | op::TLBI_NH_ALL
                | op::TLBI_NH_ASID
                | op::TLBI_NH_VA
                | op::TLBI_NH_VAA
                | op::TLBI_NSNH_ALL
                | op::ATC_INV
        )
    }

    /// For the Secure programming interface only: illegal in a Non-secure queue, whatever it is.
    #[inline]
    pub(crate) fn is_secure(self) -> bool {
        self.words[0] & 1 << 10 != 0
    }

    /// Of a CMD_SYNC, how its completion is signalled. There is none for the reserved encoding.
    #[inline]
    pub(crate) fn signal(self) -> Option<Signal> {
        match self.words[0] >> 12 & 3 {
            0 => Some(Signal::None),
            1 => Some(Signal::Irq {
                address: self.words[1] & 0x00ff_ffff_ffff_fffc,
                data: (self.words[0] >> 32) as u32,
            }),
            2 => Some(Signal::Sev),
            _ => None,
        }
    }
}

/// How the completion of a CMD_SYNC is signalled (its field CS).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Not at all: the guest polls CMDQ_CONS.
    None,
    /// With an MSI if the virtual SMMU has `IDR0.MSI` and the address is not 0, and with the wired
    /// interrupt if it has one.
    Irq {
        /// Where `data` is written. A guest that polls memory gives an address in its RAM.
        address: u64,
        /// Four bytes, little-endian in memory.
        data: u32,
    },
    /// With an event, as from the instruction SEV.
    Sev,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let mut bytes = [0; COMMAND_LEN];
        bytes[..8].copy_from_slice(&[0x46, 0x10, 0, 0, 0x44, 0x33, 0x22, 0x11]);
        bytes[8..].copy_from_slice(&[0xff; 8]);
        let command = Command::from_bytes(&bytes);
        assert_eq!(command.words, [0x1122_3344_0000_1046, u64::MAX]);
        assert_eq!(command.opcode(), op::SYNC);
        assert_eq!(command.stream_id(), 0x1122_3344);
        assert_eq!(
            command.signal(),
            Some(Signal::Irq {
                address: 0x00ff_ffff_ffff_fffc,
                data: 0x1122_3344,
            })
        );
        assert!(!command.is_secure());
        assert!(Command { words: [0x400, 0] }.is_secure());
    }

    #[test]
    fn all_that_is_forwarded() {
        let forwardable = (0..=0xff_u8).filter(|opcode| {
            let words = [(*opcode).into(), 0];
            Command { words }.is_forwardable()
        });
        assert!(forwardable.eq([0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x40]));
    }
}
