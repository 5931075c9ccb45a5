// SPDX-License-Identifier: GPL-2.0

//! The sanitiser: decides whether a guest's command may go into the command queue that all users of
//! the physical SMMU share, and puts the IDs of the physical SMMU in place of the guest's.
//!
//! An SMMU stops its command queue at an illegal command, whoever sent it. It may find a command
//! illegal for an opcode that it does not know, and for a bit that is reserved or belongs to a
//! feature that it does not have (Arm IHI 0070, 4.1 and 7.1). So whatever is not known to be legal
//! is refused here.
//!
//! IDs and addresses that are out of range are not refused: the architecture confines the effect of
//! those to the guest, and none of them raises `CERROR_ILL`. Nor are a granule that the SMMU does
//! not have, and a scale of 40 or more, which software should not send but which are not reserved
//! (4.4.1.1).

use kernel::prelude::*;

use super::cmd::{
    AtcInv0,
    AtcInv1,
    Cfgi0,
    Cfgi1,
    Cmd,
    Opcode,
    Tlbi0,
    Tlbi1, //
};

/// What the physical SMMU implements, as far as it decides which commands are legal.
#[derive(Clone, Copy)]
pub(crate) struct Features {
    /// Range invalidation (`SMMU_IDR3.RIL`).
    pub(crate) range_inv: bool,
    /// 52-bit addresses with 4 KB and 16 KB granules (`SMMU_IDR5.DS`).
    pub(crate) ds: bool,
    /// ATS (`SMMU_IDR0.ATS`).
    pub(crate) ats: bool,
    /// Bits of an ASID, 8 or 16 (`SMMU_IDR0.ASID16`).
    pub(crate) asid_bits: u32,
    /// Bits of a substream ID, 0 to 20 (`SMMU_IDR1.SSIDSIZE`). 0 stands for no substreams.
    pub(crate) ssid_bits: u32,
}

/// What the host knows of the device behind a stream, as far as it concerns its commands.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    /// The stream ID of the physical SMMU.
    pub(crate) sid: u32,
    /// ATS is enabled.
    pub(crate) has_ats: bool,
    /// There are substreams: the device has PASIDs.
    pub(crate) has_substreams: bool,
}

/// Why a command is refused, for which the guest is to see a `CERROR_ILL`.
///
/// The physical SMMU would raise it, or is free to, or does not know what the guest means: a stream
/// ID without a device, which a virtual SMMU finds illegal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Illegal;

/// Commands that are fit for the command queue of the physical SMMU.
///
/// # Invariants
///
/// * Each of them is what [`Features::sanitise()`] makes of a guest's command, but for those that
///   were made illegal on purpose.
/// * `has_atc_inv` is set if there is a `CMD_ATC_INV` among them.
/// * `skipped` are what [`Cmd::skipped()`] makes of the requests that there is no command for, in
///   their order.
pub(crate) struct Batch<'a> {
    cmds: &'a mut [Cmd],
    skipped: &'a [Cmd],
    has_atc_inv: bool,
}

impl Batch<'_> {
    /// The commands, in their order.
    #[inline]
    pub(crate) fn cmds(&self) -> &[Cmd] {
        self.cmds
    }

    /// Whether there is a `CMD_ATC_INV` among them.
    #[inline]
    pub(crate) fn has_atc_inv(&self) -> bool {
        self.has_atc_inv
    }

    /// The number of requests that are complete when the first `count` commands are.
    ///
    /// They are as many, unless some were complete without a command.
    #[inline]
    pub(crate) fn requests(&self, count: usize) -> usize {
        let mut request = count;
        for skipped in self.skipped {
            request += usize::from(skipped.skipped_request() <= request);
        }
        request
    }

    /// Makes those commands illegal that `is_chosen` chooses, asked for one after another.
    #[cfg(CONFIG_ARM_SMMU_V3_FAULT_INJECTION)]
    #[cold]
    pub(crate) fn make_illegal(&mut self, is_chosen: impl Fn() -> bool) {
        for cmd in self.cmds.iter_mut() {
            if is_chosen() {
                // INVARIANT: On purpose.
                *cmd = Cmd::illegal();
            }
        }
    }
}

impl Features {
    /// Turns the guest's commands in `block` into a batch for the physical SMMU, up to the first
    /// one that is illegal.
    ///
    /// `vmid` is the VMID of the guest. `find_stream` looks up the device that the guest knows by a
    /// virtual stream ID.
    ///
    /// A `CMD_ATC_INV` has no effect, and so is complete without a command, if its device has ATS
    /// disabled, or if it is for a substream and the device has none. An SMMU that sends it to the
    /// device may get no answer (3.9.1.4 and 4.5).
    #[inline]
    pub(crate) fn sanitise_block<'a>(
        &self,
        block: &'a mut [Cmd],
        vmid: u16,
        find_stream: impl Fn(u32) -> Option<Stream>,
    ) -> (Batch<'a>, Result<(), Illegal>) {
        let mut has_atc_inv = false;
        let mut has_skipped = false;
        let mut result = Ok(());
        let mut len = 0;

        for cmd in block.iter_mut() {
            let sane = match self.sanitise_tlbi(*cmd, vmid) {
                Some(sane) => sane,
                None => match self.sanitise(*cmd, vmid, &find_stream) {
                    Ok(Some(sane)) => {
                        has_atc_inv |= sane.is_atc_inv();
                        sane
                    }
                    Ok(None) => {
                        has_skipped = true;
                        Cmd::skipped(len)
                    }
                    Err(e) => {
                        result = Err(e);
                        break;
                    }
                },
            };
            *cmd = sane;
            len += 1;
        }
        let block = &mut block[..len];
        if has_skipped {
            len = set_aside(block);
        }
        let (cmds, skipped) = block.split_at_mut(len);
        // INVARIANT: As many of them were replaced, and those set aside for which there is no
        // command.
        let batch = Batch {
            cmds,
            skipped,
            has_atc_inv,
        };
        (batch, result)
    }

    /// Turns a guest's command into one for the physical SMMU, or into none if it has no effect.
    ///
    /// Replaces `arm_vsmmu_convert_user_cmd()` and `arm_vsmmu_validate_user_cmd()`. See
    /// [`Self::sanitise_block()`] for the arguments.
    // Not inlined, so that plain commands do not pay for it.
    #[inline(never)]
    fn sanitise(
        &self,
        cmd: Cmd,
        vmid: u16,
        find_stream: impl FnOnce(u32) -> Option<Stream>,
    ) -> Result<Option<Cmd>, Illegal> {
        let [word0, word1] = cmd.words();
        let opcode = Tlbi0::from_raw(word0).opcode().map_err(|_| Illegal)?;

        // Each bit that is set has to mean something to this SMMU.
        let [allowed0, allowed1] = self.allowed(opcode);
        if (word0 & !allowed0) | (word1 & !allowed1) != 0 {
            return Err(Illegal);
        }

        Ok(Some(Cmd::new(match opcode {
            // To the guest this is all of its own translations, which on the physical SMMU are
            // those of its VMID.
            Opcode::TlbiNsnhAll => {
                let word0 = Tlbi0::zeroed().with_opcode(Opcode::TlbiNhAll);
                [word0.with_vmid(vmid).into_raw(), 0]
            }
            Opcode::TlbiNhAll | Opcode::TlbiNhAsid => {
                [Tlbi0::from_raw(word0).with_vmid(vmid).into_raw(), word1]
            }
            Opcode::TlbiNhVa | Opcode::TlbiNhVaa => {
                let word0 = Tlbi0::from_raw(word0);
                if !self.is_legal_range(word0, Tlbi1::from_raw(word1)) {
                    return Err(Illegal);
                }
                [word0.with_vmid(vmid).into_raw(), word1]
            }
            Opcode::CfgiCd | Opcode::CfgiCdAll => {
                let word0 = Cfgi0::from_raw(word0);
                let stream = find_stream(word0.sid().cast::<u32>().get()).ok_or(Illegal)?;
                [word0.with_sid(stream.sid).into_raw(), word1]
            }
            Opcode::AtcInv => {
                if !self.ats || AtcInv1::from_raw(word1).size().get() > AtcInv1::SIZE_ALL {
                    return Err(Illegal);
                }
                let word0 = AtcInv0::from_raw(word0);
                let stream = find_stream(word0.sid().cast::<u32>().get()).ok_or(Illegal)?;
                let has_substream = word0.ssv().get() != 0;
                if !stream.has_ats || (has_substream && !stream.has_substreams) {
                    return Ok(None);
                }
                [word0.with_sid(stream.sid).into_raw(), word1]
            }
        })))
    }

    /// A short way to what [`Self::sanitise()`] does, for the commands that come by the thousands.
    /// Returns [`None`] for others, and for illegal ones.
    #[inline]
    fn sanitise_tlbi(&self, cmd: Cmd, vmid: u16) -> Option<Cmd> {
        let [word0, word1] = cmd.words();

        // CAST: `usize` has 64 bits here. The index of a smaller opcode wraps around.
        let index = (word0 & Tlbi0::OPCODE_MASK).wrapping_sub(Opcode::TlbiNhAll as u64) as usize;
        let TlbiBits { bits, range } = TLBI_BITS.get(index)?;

        let word0 = Tlbi0::from_raw(word0);
        let more = [word0.into_raw() & !bits[0], word1 & !bits[1]];
        if more != [0, 0] {
            let is_range = (more[0] & !range[0]) | (more[1] & !range[1]) == 0;
            let word1 = Tlbi1::from_raw(word1);
            if !is_range || !self.range_inv || !self.is_legal_range(word0, word1) {
                return None;
            }
        }
        Some(Cmd::new([word0.with_vmid(vmid).into_raw(), word1]))
    }

    /// The bits that may be set in the command of that opcode, in both words.
    ///
    /// Each by itself: what the fields mean may be reserved all the same.
    #[inline]
    fn allowed(&self, opcode: Opcode) -> [u64; 2] {
        const CFGI: u64 = Cfgi0::OPCODE_MASK | Cfgi0::SID_MASK;
        const ATC_INV: u64 = AtcInv0::OPCODE_MASK | AtcInv0::SID_MASK;
        const ATC_INV_SUBSTREAM: u64 =
            AtcInv0::SSV_MASK | AtcInv0::SSID_MASK | AtcInv0::GLOBAL_MASK;

        match opcode {
            Opcode::TlbiNsnhAll => [Tlbi0::OPCODE_MASK, 0],
            Opcode::TlbiNhAll => [TLBI, 0],
            Opcode::TlbiNhAsid => [TLBI | self.asid(), 0],
            Opcode::TlbiNhVa => {
                let [range0, range1] = self.range();
                [TLBI | self.asid() | range0, ADDRESS | range1]
            }
            Opcode::TlbiNhVaa => {
                let [range0, range1] = self.range();
                [TLBI | range0, ADDRESS | range1]
            }
            Opcode::CfgiCd => [CFGI | self.substream(Cfgi0::SSID_MASK), Cfgi1::LEAF_MASK],
            Opcode::CfgiCdAll => [CFGI, 0],
            Opcode::AtcInv => [
                ATC_INV | self.substream(ATC_INV_SUBSTREAM),
                AtcInv1::SIZE_MASK | AtcInv1::ADDRESS_MASK,
            ],
        }
    }

    /// The bits of an ASID.
    #[inline]
    fn asid(&self) -> u64 {
        // The upper half is reserved if the SMMU has 8 bits for it (4.4).
        (((1 << self.asid_bits) - 1) << Tlbi0::ASID_SHIFT) & Tlbi0::ASID_MASK
    }

    /// The bits of a range, in both words.
    #[inline]
    fn range(&self) -> [u64; 2] {
        // All of them are reserved if the SMMU knows no ranges, and of the scale the uppermost one
        // without 52-bit addresses (4.4.1).
        match (self.range_inv, self.ds) {
            (false, _) => [0, 0],
            (true, false) => RANGE,
            (true, true) => [RANGE[0] | Tlbi0::SCALE_MASK, RANGE[1]],
        }
    }

    /// These bits, if there are substreams.
    #[inline]
    fn substream(&self, bits: u64) -> u64 {
        // Without `ssv`, the SMMU ignores the other fields: that is not the same as reserved.
        if self.ssid_bits != 0 {
            bits
        } else {
            0
        }
    }

    /// Whether the range fields make sense together: some combinations are reserved (4.4.1).
    ///
    /// Replaces `arm_vsmmu_validate_range()`.
    #[inline]
    fn is_legal_range(&self, word0: Tlbi0, word1: Tlbi1) -> bool {
        let range = word0.into_raw() & (Tlbi0::NUM_MASK | Tlbi0::SCALE_MASK) != 0;
        let ttl = word1.ttl().get();

        match word1.tg().get() {
            // No range.
            0 => !range && ttl == 0,
            // With a granule, one of the other fields has to be there.
            _ if !range && ttl == 0 => false,
            // Only with 52-bit addresses does a 16 KB granule have blocks at level 1.
            2 => ttl != 1 || self.ds,
            _ => true,
        }
    }
}

/// Moves what [`Cmd::skipped()`] has made to the end. Returns the number of the others.
#[cold]
fn set_aside(cmds: &mut [Cmd]) -> usize {
    let mut end = cmds.len();

    for index in (0..cmds.len()).rev() {
        if cmds[index].is_skipped() {
            cmds[index..end].rotate_left(1);
            end -= 1;
        }
    }
    end
}

/// Of the first word of a `CMD_TLBI_*`, the bits that each of them but `CMD_TLBI_NSNH_ALL` has.
const TLBI: u64 = Tlbi0::OPCODE_MASK | Tlbi0::VMID_MASK;

/// Of the second word, those of an address.
const ADDRESS: u64 = Tlbi1::LEAF_MASK | Tlbi1::ADDRESS_MASK;

/// Of both words, those of a range that each SMMU has which knows ranges: of the scale, not the
/// uppermost one.
const RANGE: [u64; 2] = [
    Tlbi0::NUM_MASK | (Tlbi0::SCALE_MASK & (Tlbi0::SCALE_MASK >> 1)),
    Tlbi1::TG_MASK | Tlbi1::TTL_MASK,
];

/// What [`Features::sanitise_tlbi()`] knows of an opcode.
struct TlbiBits {
    /// The bits that are legal on each SMMU whatever else is set, in both words.
    bits: [u64; 2],
    /// Those that are on each one that knows ranges, if they make sense together.
    range: [u64; 2],
}

/// For the opcodes from that of `CMD_TLBI_NH_ALL` on.
static TLBI_BITS: [TlbiBits; 4] = {
    // Each SMMU has 8 bits for it at least.
    const ASID: u64 = 0xff << Tlbi0::ASID_SHIFT;

    [
        // CMD_TLBI_NH_ALL
        TlbiBits {
            bits: [TLBI, 0],
            range: [0, 0],
        },
        // CMD_TLBI_NH_ASID
        TlbiBits {
            bits: [TLBI | ASID, 0],
            range: [0, 0],
        },
        // CMD_TLBI_NH_VA
        TlbiBits {
            bits: [TLBI | ASID, ADDRESS],
            range: RANGE,
        },
        // CMD_TLBI_NH_VAA
        TlbiBits {
            bits: [TLBI, ADDRESS],
            range: RANGE,
        },
    ]
};
