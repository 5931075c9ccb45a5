// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The SMMUv3 commands that a guest may forward, in the layout of the architecture
//! (Arm IHI 0070, chapter 4).
//!
//! A command is 128 bits, here two 64-bit words; bit 64 of the specification is bit 0 of the second
//! word.

use vm_memory::{ByteValued, Le64};

/// Opcodes, bits 7:0 of a command.
pub mod op {
    /// Invalidate the cached context descriptor of one substream.
    pub const CFGI_CD: u8 = 0x05;
    /// Invalidate all cached context descriptors of a stream.
    pub const CFGI_CD_ALL: u8 = 0x06;
    /// Invalidate all stage-1 translations of a VMID.
    pub const TLBI_NH_ALL: u8 = 0x10;
    /// Invalidate all stage-1 translations of an ASID, except global ones.
    pub const TLBI_NH_ASID: u8 = 0x11;
    /// Invalidate stage-1 translations of an address in one ASID.
    pub const TLBI_NH_VA: u8 = 0x12;
    /// Invalidate stage-1 translations of an address in every ASID.
    pub const TLBI_NH_VAA: u8 = 0x13;
    /// Invalidate everything that is Non-secure and not Hyp.
    pub const TLBI_NSNH_ALL: u8 = 0x30;
    /// Invalidate translations that a device holds in its ATC.
    pub const ATC_INV: u8 = 0x40;

    /// All of the above: what `IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3` takes.
    pub const FORWARDABLE: [u8; 8] = [
        CFGI_CD,
        CFGI_CD_ALL,
        TLBI_NH_ALL,
        TLBI_NH_ASID,
        TLBI_NH_VA,
        TLBI_NH_VAA,
        TLBI_NSNH_ALL,
        ATC_INV,
    ];
}

/// One command as the command queue holds it: two little-endian words.
///
/// A slice of these can be given to the kernel as it is, whatever the host's endianness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Command([Le64; 2]);

// SAFETY: `repr(transparent)` over an array of two integers: no padding, and any bit pattern is
// a valid value.
unsafe impl ByteValued for Command {}

/// How many granules a TLBI by address covers: `(num + 1) * 2^scale` of the granule `tg`.
///
/// Needs `SMMU_IDR3.RIL`. The default, all zero, stands for "no range": one address, any granule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// NUM, 0..=31.
    pub num: u8,
    /// SCALE, 0..=31 (0..=63 with `SMMU_IDR5.DS`).
    pub scale: u8,
    /// TG, the granule: 0 no range, 1 4 KiB, 2 16 KiB, 3 64 KiB.
    pub tg: u8,
    /// TTL, a hint at the level that holds the leaf: 0 any, else 1..=3.
    pub ttl: u8,
}

/// `value` in the bits `hi..=lo` of a word.
///
/// # Panics
///
/// If the value does not fit, as it would spill into a neighbouring field.
const fn field(hi: u32, lo: u32, value: u64) -> u64 {
    assert!(value <= u64::MAX >> (63 - (hi - lo)));
    value << lo
}

impl Command {
    /// A command of any two words, given in the CPU's endianness.
    pub fn from_words(w0: u64, w1: u64) -> Self {
        Command([w0.into(), w1.into()])
    }

    /// The two words, in the CPU's endianness.
    pub fn words(self) -> [u64; 2] {
        self.0.map(Le64::to_native)
    }

    /// Whether it is a CMD_ATC_INV.
    pub fn is_atc_inv(self) -> bool {
        self.words()[0] & 0xff == u64::from(op::ATC_INV)
    }

    /// The same command with bit `n` of the 128 inverted.
    ///
    /// # Panics
    ///
    /// If `n` is above 127.
    pub fn flip_bit(self, n: u32) -> Self {
        let mut words = self.words();
        words[n as usize / 64] ^= 1 << (n % 64);
        Command::from_words(words[0], words[1])
    }

    /// The same TLBI with another VMID, bits 47:32. A guest that has no stage 2 of its own uses 0.
    pub fn with_vmid(self, vmid: u16) -> Self {
        let [w0, w1] = self.words();
        Command::from_words(w0 & !field(47, 32, 0xffff) | field(47, 32, vmid.into()), w1)
    }

    /// The same TLBI_NH_VA or TLBI_NH_VAA for a range, starting at its address. It takes the place of
    /// a range that the command may have had.
    ///
    /// # Panics
    ///
    /// If a field of `range` has more bits than the architecture gives it.
    pub fn with_range(self, range: Range) -> Self {
        let [w0, w1] = self.words();
        let w0 = w0 & !(field(16, 12, 0x1f) | field(25, 20, 0x3f));
        let w1 = w1 & !(field(9, 8, 3) | field(11, 10, 3));
        Command::from_words(
            w0 | field(16, 12, range.num.into()) | field(25, 20, range.scale.into()),
            w1 | field(9, 8, range.ttl.into()) | field(11, 10, range.tg.into()),
        )
    }

    /// CMD_TLBI_NSNH_ALL. (For a guest: all that belongs to it.)
    pub fn tlbi_nsnh_all() -> Self {
        Command::from_words(op::TLBI_NSNH_ALL.into(), 0)
    }

    /// CMD_TLBI_NH_ALL.
    pub fn tlbi_nh_all() -> Self {
        Command::from_words(op::TLBI_NH_ALL.into(), 0)
    }

    /// CMD_TLBI_NH_ASID.
    pub fn tlbi_nh_asid(asid: u16) -> Self {
        Command::from_words(u64::from(op::TLBI_NH_ASID) | field(63, 48, asid.into()), 0)
    }

    /// CMD_TLBI_NH_VA. Bits 11:0 of `iova` are ignored; `leaf` limits it to last-level entries.
    pub fn tlbi_nh_va(asid: u16, iova: u64, leaf: bool) -> Self {
        Command::from_words(
            u64::from(op::TLBI_NH_VA) | field(63, 48, asid.into()),
            iova & !0xfff | u64::from(leaf),
        )
    }

    /// CMD_TLBI_NH_VAA. Bits 11:0 of `iova` are ignored; `leaf` limits it to last-level entries.
    pub fn tlbi_nh_vaa(iova: u64, leaf: bool) -> Self {
        Command::from_words(op::TLBI_NH_VAA.into(), iova & !0xfff | u64::from(leaf))
    }

    /// CMD_CFGI_CD of stream `sid` and substream `ssid` (20 bits, 0 if there are none).
    ///
    /// `leaf` limits it to the descriptor itself, not the tables that lead to it.
    ///
    /// # Panics
    ///
    /// If `ssid` has more than 20 bits.
    pub fn cfgi_cd(sid: u32, ssid: u32, leaf: bool) -> Self {
        Command::from_words(
            u64::from(op::CFGI_CD) | field(31, 12, ssid.into()) | field(63, 32, sid.into()),
            leaf.into(),
        )
    }

    /// CMD_CFGI_CD_ALL of stream `sid`.
    pub fn cfgi_cd_all(sid: u32) -> Self {
        Command::from_words(u64::from(op::CFGI_CD_ALL) | field(63, 32, sid.into()), 0)
    }

    /// CMD_ATC_INV of stream `sid`, without a substream: `2^size` pages of 4 KiB from `iova`.
    /// Bits 11:0 of `iova` are ignored; `size` 52 stands for everything.
    ///
    /// # Panics
    ///
    /// If `size` has more than 6 bits.
    pub fn atc_inv(sid: u32, iova: u64, size: u8) -> Self {
        Command::from_words(
            u64::from(op::ATC_INV) | field(63, 32, sid.into()),
            iova & !0xfff | field(5, 0, size.into()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words worked out by hand from the figures of the specification.
    #[test]
    fn layout() {
        let cases = [
            (Command::tlbi_nsnh_all(), [0x30, 0]),
            (Command::tlbi_nh_all(), [0x10, 0]),
            (
                Command::tlbi_nh_all().with_vmid(0xabcd),
                [0x0000_abcd_0000_0010, 0],
            ),
            (Command::tlbi_nh_asid(0x1234), [0x1234_0000_0000_0011, 0]),
            (
                Command::tlbi_nh_va(0xffff, 0x0000_7654_3210_1fff, true),
                [0xffff_0000_0000_0012, 0x0000_7654_3210_1001],
            ),
            (
                Command::tlbi_nh_vaa(0xffff_8000_0000_0000, false),
                [0x13, 0xffff_8000_0000_0000],
            ),
            (
                Command::tlbi_nh_vaa(0x1000, false).with_range(Range {
                    num: 0b10001,
                    scale: 0b100001,
                    tg: 0b01,
                    ttl: 0b11,
                }),
                [0x0211_1013, 0x1700],
            ),
            (
                Command::cfgi_cd(0xdead_beef, 0xf_ffff, true),
                [0xdead_beef_ffff_f005, 1],
            ),
            (Command::cfgi_cd(1, 0, false), [0x1_0000_0005, 0]),
            (
                Command::cfgi_cd_all(0xdead_beef),
                [0xdead_beef_0000_0006, 0],
            ),
            (
                Command::atc_inv(0x20, 0x5_6fff, 52),
                [0x20_0000_0040, 0x5_6034],
            ),
        ];
        for (cmd, words) in cases {
            assert_eq!(cmd.words(), words, "{cmd:x?}");
        }
    }

    #[test]
    fn little_endian_in_memory() {
        let cmd = Command::from_words(0x0102_0304_0506_0708, 0x1112_1314_1516_1718);
        assert_eq!(
            cmd.as_slice(),
            [
                8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11
            ]
        );
    }

    #[test]
    fn opcode_is_the_low_byte_and_nothing_else_by_default() {
        for opcode in op::FORWARDABLE {
            let cmd = Command::from_words(opcode.into(), 0);
            assert_eq!(cmd.as_slice()[0], opcode);
            assert_eq!(cmd.as_slice()[1..], [0; 15]);
        }
    }

    #[test]
    fn flipping() {
        for n in 0..128 {
            let [w0, w1] = Command::default().flip_bit(n).words();
            assert_eq!(u128::from(w0) | u128::from(w1) << 64, 1 << n);
            assert_eq!(
                Command::default().flip_bit(n).flip_bit(n),
                Command::default()
            );
        }
    }

    #[test]
    fn vmid_is_replaced_not_added() {
        let cmd = Command::tlbi_nh_asid(7).with_vmid(0xff00).with_vmid(0x00ff);
        assert_eq!(cmd.words(), [0x0007_00ff_0000_0011, 0]);
    }

    #[test]
    fn range_is_replaced_not_added() {
        let all = Range {
            num: 31,
            scale: 63,
            tg: 3,
            ttl: 3,
        };
        let plain = Command::tlbi_nh_va(7, 0x1000, true);
        assert_eq!(plain.with_range(all).with_range(Range::default()), plain);
    }

    #[test]
    #[should_panic]
    fn ssid_too_wide() {
        Command::cfgi_cd(0, 1 << 20, false);
    }

    #[test]
    #[should_panic]
    fn range_too_wide() {
        Command::default().with_range(Range {
            num: 32,
            ..Range::default()
        });
    }
}
