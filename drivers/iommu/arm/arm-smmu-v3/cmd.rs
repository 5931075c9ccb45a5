// SPDX-License-Identifier: GPL-2.0

//! Layouts of the commands that a guest may send: Arm SMMU architecture specification (IHI 0070),
//! chapter 4.
//!
//! A command has 128 bits: two words of 64 bits, of which the first one begins with the opcode.
//! There are three layouts for the eight commands. A field that a command does not have is reserved
//! there. Which fields a command has depends on the SMMU too, see [`super::sanitise`].

use kernel::{
    bitfield,
    num::Bounded,
    prelude::*,
    transmute::FromBytes, //
};

/// The commands that a guest may send, with their opcodes.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Opcode {
    /// Invalidates one context descriptor (4.3.3).
    CfgiCd = 0x05,
    /// Invalidates all context descriptors of a stream (4.3.4).
    CfgiCdAll = 0x06,
    /// Invalidates all stage 1 translations of a VMID (4.4.2).
    TlbiNhAll = 0x10,
    /// Invalidates the translations of an ASID (4.4.2).
    TlbiNhAsid = 0x11,
    /// Invalidates the translations of an address, or of a range, in one ASID (4.4.2).
    TlbiNhVa = 0x12,
    /// Invalidates the translations of an address, or of a range, in all ASIDs (4.4.2).
    TlbiNhVaa = 0x13,
    /// Invalidates all translations that are neither Secure nor of a hypervisor (4.4.4).
    TlbiNsnhAll = 0x30,
    /// Invalidates what a device caches by ATS (4.5.1).
    AtcInv = 0x40,
}

/// An opcode that a guest may not send.
#[derive(Debug)]
pub(crate) struct UnknownOpcode;

impl TryFrom<Bounded<u64, 8>> for Opcode {
    type Error = UnknownOpcode;

    fn try_from(opcode: Bounded<u64, 8>) -> Result<Self, UnknownOpcode> {
        Ok(match opcode.get() {
            0x05 => Self::CfgiCd,
            0x06 => Self::CfgiCdAll,
            0x10 => Self::TlbiNhAll,
            0x11 => Self::TlbiNhAsid,
            0x12 => Self::TlbiNhVa,
            0x13 => Self::TlbiNhVaa,
            0x30 => Self::TlbiNsnhAll,
            0x40 => Self::AtcInv,
            _ => return Err(UnknownOpcode),
        })
    }
}

impl From<Opcode> for Bounded<u64, 8> {
    fn from(opcode: Opcode) -> Self {
        (opcode as u8).into()
    }
}

bitfield! {
    /// First word of the commands that invalidate translations: `CMD_TLBI_*`.
    pub(crate) struct Tlbi0(u64) {
        63:48   asid;
        /// The guest's value means nothing: its translations have the VMID of its vIOMMU.
        47:32   vmid;
        /// Range: its length is `(num + 1) << scale` translation granules.
        25:20   scale;
        16:12   num;
        7:0     opcode ?=> Opcode;
    }
}

bitfield! {
    /// Second word of the commands that invalidate translations: `CMD_TLBI_*`.
    pub(crate) struct Tlbi1(u64) {
        /// The address without its lower 12 bits.
        63:12   address;
        /// Translation granule: 1 is 4 KB, 2 is 16 KB, 3 is 64 KB. 0 if the command has no range.
        11:10   tg;
        /// Level of the table that holds the leaf entries. 0 if it may be any.
        9:8     ttl;
        /// Only the entry of the last level has changed.
        0:0     leaf;
    }
}

bitfield! {
    /// First word of the commands that invalidate configuration: `CMD_CFGI_*`.
    pub(crate) struct Cfgi0(u64) {
        63:32   sid;
        31:12   ssid;
        7:0     opcode ?=> Opcode;
    }
}

bitfield! {
    /// Second word of the commands that invalidate configuration: `CMD_CFGI_*`.
    pub(crate) struct Cfgi1(u64) {
        /// Only the descriptor itself has changed, no table that leads to it.
        0:0     leaf;
    }
}

bitfield! {
    /// First word of `CMD_ATC_INV`.
    pub(crate) struct AtcInv0(u64) {
        63:32   sid;
        31:12   ssid;
        /// `ssid` is valid.
        11:11   ssv;
        /// The invalidation is for all substreams.
        9:9     global;
        7:0     opcode ?=> Opcode;
    }
}

bitfield! {
    /// Second word of `CMD_ATC_INV`.
    pub(crate) struct AtcInv1(u64) {
        /// The address without its lower 12 bits.
        63:12   address;
        /// The span is `1 << size` pages of 4 KB.
        5:0     size;
    }
}

impl AtcInv1 {
    /// The `size` that spans all addresses, which is the largest one that is legal.
    pub(crate) const SIZE_ALL: u64 = 52;
}

bitfield! {
    /// First word of `CMD_SYNC` (4.7.3).
    pub(crate) struct Sync0(u64) {
        /// What is written to the address in the second word.
        63:32   msi_data;
        /// Memory attributes of that.
        27:24   msi_attr;
        /// Shareability of that.
        23:22   msh;
        /// How the SMMU signals the completion.
        13:12   cs;
        7:0     opcode;
    }
}

/// How an SMMU signals that a `CMD_SYNC` is complete. In any case, `SMMU_CMDQ_CONS` moves past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SyncSignal {
    /// Not at all.
    None,
    /// Writes 32 bits of zeroes to this address, which is a multiple of 4.
    Msi(u64),
    /// Sends an event to the CPUs, which ends a `wfe`.
    Sev,
}

/// A command as it lies in the command queue and in user memory: two little-endian words.
///
/// In C, this is `struct iommu_viommu_arm_smmuv3_invalidate`. `struct arm_smmu_cmd` differs from it
/// on a CPU that is big-endian, which Rust for arm64 does not support.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Cmd([u64; 2]);

// SAFETY: Any bits make two integers. Whether they also make a command is for the sanitiser to say.
unsafe impl FromBytes for Cmd {}

impl Cmd {
    /// Makes a command of two words in the byte order of the CPU.
    #[inline]
    pub(crate) fn new(words: [u64; 2]) -> Self {
        Self(words.map(u64::to_le))
    }

    /// `CMD_SYNC`. The words of the C driver's, for which see `arm_smmu_make_cmd_sync()`.
    #[inline]
    pub(crate) fn sync(signal: SyncSignal) -> Self {
        const OPCODE: u64 = 0x46;
        const INNER_SHAREABLE: u64 = 3;
        const WRITE_BACK: u64 = 0xf;

        let (cs, address) = match signal {
            SyncSignal::None => (0, 0),
            SyncSignal::Msi(address) => (1, address),
            SyncSignal::Sev => (2, 0),
        };
        let word0 = Sync0::zeroed()
            .with_opcode(Bounded::from_expr(OPCODE))
            .with_cs(Bounded::from_expr(cs))
            .with_msh(Bounded::from_expr(INNER_SHAREABLE))
            .with_msi_attr(Bounded::from_expr(WRITE_BACK));
        Self::new([word0.into_raw(), address])
    }

    /// A command with an opcode that is reserved in all versions of the architecture (4.1.1), and
    /// the rest zero.
    #[cfg(any(CONFIG_ARM_SMMU_V3_FAULT_INJECTION, CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST))]
    pub(crate) fn illegal() -> Self {
        Self::new([0, 0])
    }

    /// What stands in a block for a request that is complete without a command: its index, with an
    /// opcode that is reserved (4.1.1).
    #[inline]
    pub(crate) fn skipped(request: usize) -> Self {
        // CAST: `usize` has 64 bits here.
        Self::new([0, request as u64])
    }

    /// Whether this is what [`Self::skipped()`] makes.
    #[inline]
    pub(crate) fn is_skipped(&self) -> bool {
        self.words()[0] == 0
    }

    /// The index of the request.
    #[inline]
    pub(crate) fn skipped_request(&self) -> usize {
        // CAST: It was one.
        self.words()[1] as usize
    }

    /// `CMD_ATC_INV` for all addresses of a stream.
    pub(crate) fn atc_inv_all(sid: u32) -> Self {
        let word0 = AtcInv0::zeroed().with_opcode(Opcode::AtcInv).with_sid(sid);
        let word1 = AtcInv1::zeroed().with_size(Bounded::from_expr(AtcInv1::SIZE_ALL));

        Self::new([word0.into_raw(), word1.into_raw()])
    }

    /// Whether this is `CMD_ATC_INV`.
    #[inline]
    pub(crate) fn is_atc_inv(&self) -> bool {
        matches!(
            AtcInv0::from_raw(self.words()[0]).opcode(),
            Ok(Opcode::AtcInv)
        )
    }

    /// The stream ID of a `CMD_ATC_INV`. [`None`] for other commands.
    #[inline]
    pub(crate) fn atc_inv_sid(&self) -> Option<u32> {
        let sid = AtcInv0::from_raw(self.words()[0]).sid().get();

        // CAST: 32 bits.
        self.is_atc_inv().then_some(sid as u32)
    }

    /// The two words in the byte order of the queue.
    #[inline]
    pub(crate) fn le_words(self) -> [u64; 2] {
        self.0
    }

    /// Reverts [`Self::le_words()`].
    #[inline]
    pub(crate) fn from_le_words(words: [u64; 2]) -> Self {
        Self(words)
    }

    /// The two words in the byte order of the CPU.
    #[inline]
    pub(crate) fn words(self) -> [u64; 2] {
        self.0.map(u64::from_le)
    }
}
