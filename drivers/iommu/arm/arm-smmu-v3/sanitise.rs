// SPDX-License-Identifier: GPL-2.0

//! The sanitiser: decides whether a guest's command may go into the command queue that all users of
//! the physical SMMU share, and puts the IDs of the physical SMMU in place of the guest's.
//!
//! An SMMU stops its command queue at a command that it finds illegal, whoever sent it. It may find
//! a command illegal for an opcode that it does not know and for a bit that is reserved, or that
//! belongs to a feature that it does not have (IHI 0070, 4.1 and 7.1). So whatever is not known to
//! be legal is refused here.
//!
//! IDs and addresses that are out of range are not: the architecture confines the effect of those
//! to the guest, and none of them stops the queue.

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
/// Each of them is what [`Features::sanitise()`] made of a guest's command.
pub(crate) struct Batch<'a>(&'a [Cmd]);

impl Batch<'_> {
    /// The commands, in their order.
    #[inline]
    pub(crate) fn cmds(&self) -> &[Cmd] {
        self.0
    }
}

impl Features {
    /// Turns the guest's commands in `block` into a batch for the physical SMMU, up to the first
    /// one that is illegal.
    ///
    /// `vmid` is the VMID of the guest. `vsid_to_sid` looks up the stream ID of the device that the
    /// guest knows by a virtual one.
    #[inline]
    pub(crate) fn sanitise_block<'a>(
        &self,
        block: &'a mut [Cmd],
        vmid: u16,
        vsid_to_sid: impl Fn(u32) -> Option<u32>,
    ) -> (Batch<'a>, Result<(), Illegal>) {
        for i in 0..block.len() {
            match self.sanitise(block[i], vmid, &vsid_to_sid) {
                Ok(cmd) => block[i] = cmd,
                // INVARIANT: Those before this one were replaced.
                Err(e) => return (Batch(&block[..i]), Err(e)),
            }
        }
        // INVARIANT: All of them were replaced.
        (Batch(block), Ok(()))
    }

    /// Turns a guest's command into one for the physical SMMU.
    ///
    /// Replaces `arm_vsmmu_convert_user_cmd()`. See [`Self::sanitise_block()`] for the arguments.
    #[inline]
    pub(crate) fn sanitise(
        &self,
        cmd: Cmd,
        vmid: u16,
        vsid_to_sid: impl FnOnce(u32) -> Option<u32>,
    ) -> Result<Cmd, Illegal> {
        let opcode = self.check(cmd)?;
        let [word0, word1] = cmd.words();

        Ok(Cmd::new(match opcode {
            // To the guest this is all of its own translations, which on the physical SMMU are
            // those of its VMID.
            Opcode::TlbiNsnhAll => {
                let word0 = Tlbi0::zeroed()
                    .with_opcode(Opcode::TlbiNhAll)
                    .with_vmid(vmid);
                [word0.into_raw(), 0]
            }
            Opcode::TlbiNhAll | Opcode::TlbiNhAsid | Opcode::TlbiNhVa | Opcode::TlbiNhVaa => {
                [Tlbi0::from_raw(word0).with_vmid(vmid).into_raw(), word1]
            }
            Opcode::CfgiCd | Opcode::CfgiCdAll => {
                let word0 = Cfgi0::from_raw(word0);
                let sid = vsid_to_sid(word0.sid().cast::<u32>().get()).ok_or(Illegal)?;
                [word0.with_sid(sid).into_raw(), word1]
            }
            Opcode::AtcInv => {
                let word0 = AtcInv0::from_raw(word0);
                let sid = vsid_to_sid(word0.sid().cast::<u32>().get()).ok_or(Illegal)?;
                [word0.with_sid(sid).into_raw(), word1]
            }
        }))
    }

    /// Checks that each bit of `cmd` that is set means something to this SMMU.
    ///
    /// Replaces `arm_vsmmu_validate_user_cmd()`.
    #[inline]
    fn check(&self, cmd: Cmd) -> Result<Opcode, Illegal> {
        let [word0, word1] = cmd.words();
        let opcode = Tlbi0::from_raw(word0).opcode().map_err(|_| Illegal)?;

        let allowed = self.allowed(opcode);
        if word0 & !allowed[0] != 0 || word1 & !allowed[1] != 0 {
            return Err(Illegal);
        }

        // Each bit by itself may be set. What the fields mean may be reserved all the same.
        let legal = match opcode {
            Opcode::TlbiNhVa | Opcode::TlbiNhVaa if self.range_inv => {
                self.is_legal_range(Tlbi0::from_raw(word0), Tlbi1::from_raw(word1))
            }
            Opcode::AtcInv => {
                self.ats && AtcInv1::from_raw(word1).size().get() <= AtcInv1::SIZE_ALL
            }
            _ => true,
        };

        legal.then_some(opcode).ok_or(Illegal)
    }

    /// The bits that may be set in the command of that opcode.
    #[inline]
    fn allowed(&self, opcode: Opcode) -> [u64; 2] {
        match opcode {
            Opcode::TlbiNsnhAll => [Tlbi0::OPCODE_MASK, 0],
            Opcode::TlbiNhAll => [Tlbi0::OPCODE_MASK | Tlbi0::VMID_MASK, 0],
            Opcode::TlbiNhAsid => [Tlbi0::OPCODE_MASK | Tlbi0::VMID_MASK | self.asid_mask(), 0],
            Opcode::TlbiNhVa => {
                let [range0, range1] = self.range_mask();
                [
                    Tlbi0::OPCODE_MASK | Tlbi0::VMID_MASK | self.asid_mask() | range0,
                    Tlbi1::LEAF_MASK | Tlbi1::ADDRESS_MASK | range1,
                ]
            }
            Opcode::TlbiNhVaa => {
                let [range0, range1] = self.range_mask();
                [
                    Tlbi0::OPCODE_MASK | Tlbi0::VMID_MASK | range0,
                    Tlbi1::LEAF_MASK | Tlbi1::ADDRESS_MASK | range1,
                ]
            }
            Opcode::CfgiCd => [
                Cfgi0::OPCODE_MASK | Cfgi0::SID_MASK | self.if_substreams(Cfgi0::SSID_MASK),
                Cfgi1::LEAF_MASK,
            ],
            Opcode::CfgiCdAll => [Cfgi0::OPCODE_MASK | Cfgi0::SID_MASK, 0],
            // Without `ssv`, the SMMU ignores the other two: that is not the same as reserved.
            Opcode::AtcInv => [
                AtcInv0::OPCODE_MASK
                    | AtcInv0::SID_MASK
                    | self.if_substreams(
                        AtcInv0::SSV_MASK | AtcInv0::SSID_MASK | AtcInv0::GLOBAL_MASK,
                    ),
                AtcInv1::SIZE_MASK | AtcInv1::ADDRESS_MASK,
            ],
        }
    }

    /// The upper half of an ASID is reserved if the SMMU has 8 bits for it (4.4.1).
    #[inline]
    fn asid_mask(&self) -> u64 {
        (((1 << self.asid_bits) - 1) << Tlbi0::ASID_SHIFT) & Tlbi0::ASID_MASK
    }

    /// The fields of a range are reserved if the SMMU knows no ranges, and of its scale the
    /// uppermost bit without 52-bit addresses (4.4.1).
    #[inline]
    fn range_mask(&self) -> [u64; 2] {
        if !self.range_inv {
            return [0, 0];
        }

        let scale = if self.ds {
            Tlbi0::SCALE_MASK
        } else {
            Tlbi0::SCALE_MASK & (Tlbi0::SCALE_MASK >> 1)
        };
        [Tlbi0::NUM_MASK | scale, Tlbi1::TG_MASK | Tlbi1::TTL_MASK]
    }

    /// `mask` if the SMMU has substreams, as the fields of a substream are reserved otherwise.
    #[inline]
    fn if_substreams(&self, mask: u64) -> u64 {
        if self.ssid_bits != 0 {
            mask
        } else {
            0
        }
    }

    /// Whether the range fields make sense together: some combinations are reserved (4.4.1).
    ///
    /// Replaces `arm_vsmmu_validate_range()`.
    #[inline]
    fn is_legal_range(&self, word0: Tlbi0, word1: Tlbi1) -> bool {
        let range = word0.num().get() != 0 || word0.scale().get() != 0;
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
