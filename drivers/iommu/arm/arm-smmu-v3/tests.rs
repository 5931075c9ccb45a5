// SPDX-License-Identifier: GPL-2.0

//! KUnit tests for the layouts of commands and for the sanitiser.
//!
//! What is legal is written down here a second time, in the specification's own terms: as bit
//! positions of a 128-bit command, from the figures and texts of IHI 0070, chapter 4.

use core::cell::Cell;

use kernel::{
    bindings,
    prelude::*, //
};

use super::{
    cmd::Cmd,
    ffi::features_of,
    sanitise::{
        Features,
        Illegal,
        Stream, //
    },
};

/// What a bit of a command needs of the SMMU in order to be legal.
#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    Asid16,
    Ril,
    RilAndDs,
    Substreams,
}

/// A field: its uppermost bit, its lowest bit, what it needs, and other bits.
///
/// The latter have to be set along with any bit of the field, as the combination of fields would be
/// reserved without them.
type Field = (u32, u32, Needs, u128);

const VMID: Field = (47, 32, Needs::Nothing, 0);
const ASID_LOW: Field = (55, 48, Needs::Nothing, 0);
const ASID_HIGH: Field = (63, 56, Needs::Asid16, 0);
const NUM: Field = (16, 12, Needs::Ril, TG_4K);
const SCALE: Field = (24, 20, Needs::Ril, TG_4K);
const SCALE_TOP: Field = (25, 25, Needs::RilAndDs, TG_4K);
const TTL: Field = (73, 72, Needs::Ril, TG_4K);
const TG: Field = (75, 74, Needs::Ril, NUM_1);
const LEAF: Field = (64, 64, Needs::Nothing, 0);
const ADDRESS: Field = (127, 76, Needs::Nothing, 0);
const SID: Field = (63, 32, Needs::Nothing, 0);
const SSID: Field = (31, 12, Needs::Substreams, 0);
const GLOBAL: Field = (9, 9, Needs::Substreams, 0);
const SSV: Field = (11, 11, Needs::Substreams, 0);
const SIZE: Field = (69, 64, Needs::Nothing, 0);

const TG_4K: u128 = 1 << 74;
const NUM_1: u128 = 1 << 12;

const CFGI_CD: u128 = 0x05;
const CFGI_CD_ALL: u128 = 0x06;
const TLBI_NH_ALL: u128 = 0x10;
const TLBI_NH_ASID: u128 = 0x11;
const TLBI_NH_VA: u128 = 0x12;
const TLBI_NH_VAA: u128 = 0x13;
const TLBI_NSNH_ALL: u128 = 0x30;
const ATC_INV: u128 = 0x40;

/// The commands that a guest may send, with the fields that they have besides the opcode.
const COMMANDS: [(u128, &[Field]); 8] = [
    (CFGI_CD, &[SID, SSID, LEAF]),
    (CFGI_CD_ALL, &[SID]),
    (TLBI_NH_ALL, &[VMID]),
    (TLBI_NH_ASID, &[VMID, ASID_LOW, ASID_HIGH]),
    (
        TLBI_NH_VA,
        &[
            VMID, ASID_LOW, ASID_HIGH, NUM, SCALE, SCALE_TOP, TTL, TG, LEAF, ADDRESS,
        ],
    ),
    (
        TLBI_NH_VAA,
        &[VMID, NUM, SCALE, SCALE_TOP, TTL, TG, LEAF, ADDRESS],
    ),
    (TLBI_NSNH_ALL, &[]),
    (ATC_INV, &[SID, SSID, GLOBAL, SSV, SIZE, ADDRESS]),
];

const HOST_VMID: u16 = 0xa5c3;
const HOST_SID: u32 = 0x1234_5678;

/// Every SMMU that there can be, as far as the features decide anything.
fn all_features() -> impl Iterator<Item = Features> {
    (0..32).map(|bits| Features {
        range_inv: bits & 1 != 0,
        ds: bits & 2 != 0,
        ats: bits & 4 != 0,
        asid_bits: if bits & 8 != 0 { 16 } else { 8 },
        ssid_bits: if bits & 16 != 0 { 20 } else { 0 },
    })
}

fn cmd(bits: u128) -> Cmd {
    Cmd::new([bits as u64, (bits >> 64) as u64])
}

fn bits(cmd: Cmd) -> u128 {
    let [low, high] = cmd.words();
    u128::from(high) << 64 | u128::from(low)
}

/// The stream of a device that has everything.
const STREAM: Stream = Stream {
    sid: HOST_SID,
    has_ats: true,
    has_substreams: true,
};

/// Sanitises one command for a guest whose vSIDs `find_stream` looks up.
fn sanitise_with(
    features: &Features,
    command: u128,
    find_stream: impl Fn(u32) -> Option<Stream>,
) -> Result<u128, Illegal> {
    let mut block = [cmd(command)];
    let (batch, rest) = features.sanitise_block(&mut block, HOST_VMID, find_stream);

    rest.map(|()| bits(batch.cmds()[0]))
}

/// Sanitises one command for a guest in which each vSID is linked.
fn sanitise(features: &Features, command: u128) -> Result<u128, Illegal> {
    sanitise_with(features, command, |_| Some(STREAM))
}

fn is_legal(features: &Features, command: u128) -> bool {
    sanitise(features, command).is_ok()
}

/// The range command with these fields, which covers any address.
fn range(opcode: u128, num: u128, scale: u128, tg: u128, ttl: u128) -> u128 {
    opcode | num << 12 | scale << 20 | ttl << 72 | tg << 74
}

#[kunit_tests(arm_smmu_v3_cmd)]
mod layouts {
    use super::super::cmd::{
        AtcInv0,
        AtcInv1,
        Cfgi0,
        Cfgi1,
        Opcode,
        Tlbi0,
        Tlbi1, //
    };
    use super::*;

    /// The words are little-endian in memory, whatever the CPU is.
    #[test]
    fn byte_order() {
        let command = Cmd::new([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        let mut bytes = [0u8; 16];
        // SAFETY: A command has 16 bytes, all of which are initialized.
        unsafe {
            core::ptr::copy_nonoverlapping(
                (&raw const command).cast(),
                bytes.as_mut_ptr(),
                bytes.len(),
            )
        };
        for (i, byte) in bytes.iter().enumerate() {
            assert_eq!(*byte as usize, i);
        }
    }

    #[test]
    fn tlbi() {
        let word0 = Tlbi0::zeroed()
            .with_opcode(Opcode::TlbiNhVa)
            .with_const_num::<0x15>()
            .with_const_scale::<0x2a>()
            .with_vmid(0xbeef_u16)
            .with_asid(0xcafe_u16);
        assert_eq!(word0.into_raw(), 0xcafe_beef_02a1_5012);

        let word1 = Tlbi1::zeroed()
            .with_leaf(true)
            .with_const_ttl::<2>()
            .with_const_tg::<3>()
            .with_const_address::<0xf_edcb_a987_6543>();
        assert_eq!(word1.into_raw(), 0xfedc_ba98_7654_3e01);
    }

    #[test]
    fn cfgi() {
        let word0 = Cfgi0::zeroed()
            .with_opcode(Opcode::CfgiCd)
            .with_const_ssid::<0xabcde>()
            .with_sid(0x8765_4321_u32);
        assert_eq!(word0.into_raw(), 0x8765_4321_abcd_e005);
        assert_eq!(Cfgi1::zeroed().with_leaf(true).into_raw(), 1);
    }

    #[test]
    fn atc_inv() {
        let word0 = AtcInv0::zeroed()
            .with_opcode(Opcode::AtcInv)
            .with_global(true)
            .with_ssv(true)
            .with_const_ssid::<0x54321>()
            .with_sid(0x1234_5678_u32);
        assert_eq!(word0.into_raw(), 0x1234_5678_5432_1a40);

        let word1 = AtcInv1::zeroed()
            .with_const_size::<52>()
            .with_const_address::<0x1_2345_6789_abcd>();
        assert_eq!(word1.into_raw(), 0x1234_5678_9abc_d034);
    }
}

#[kunit_tests(arm_smmu_v3_sanitise)]
mod sanitiser {
    use super::*;

    /// Of all 256 opcodes, the eight are legal. `ATC_INV` is only if the SMMU has ATS.
    #[test]
    fn opcodes() {
        for features in all_features() {
            for opcode in 0..=0xff {
                let known = COMMANDS.iter().any(|&(o, _)| o == opcode);
                let expected = known && (opcode != ATC_INV || features.ats);
                assert_eq!(is_legal(&features, opcode), expected);
            }
        }
    }

    /// Each bit of each command is legal if and only if the command has a field there, and the SMMU
    /// what the field needs.
    #[test]
    fn every_bit() {
        for features in all_features() {
            for (opcode, fields) in COMMANDS {
                if opcode == ATC_INV && !features.ats {
                    continue;
                }
                for bit in 8..128 {
                    let field = fields.iter().find(|f| f.1 <= bit && bit <= f.0);
                    let (legal, others) = match field {
                        None => (false, 0),
                        Some(&(_, _, needs, others)) => {
                            let legal = match needs {
                                Needs::Nothing => true,
                                Needs::Asid16 => features.asid_bits == 16,
                                Needs::Ril => features.range_inv,
                                Needs::RilAndDs => features.range_inv && features.ds,
                                Needs::Substreams => features.ssid_bits != 0,
                            };
                            (legal, others)
                        }
                    };
                    assert_eq!(is_legal(&features, opcode | 1 << bit | others), legal);
                }
            }
        }
    }

    /// Without ATS there is no legal `ATC_INV`, whatever is in it.
    #[test]
    fn atc_inv_needs_ats() {
        for features in all_features().filter(|f| !f.ats) {
            for bit in 8..128 {
                assert!(!is_legal(&features, ATC_INV | 1 << bit));
            }
        }
    }

    /// A span of more than all addresses is reserved.
    #[test]
    fn atc_inv_size() {
        for features in all_features().filter(|f| f.ats) {
            for size in 0..64 {
                assert_eq!(is_legal(&features, ATC_INV | size << 64), size <= 52);
            }
        }
    }

    /// Every combination of the range fields, rule by rule.
    #[test]
    fn range_fields() {
        for features in all_features() {
            for opcode in [TLBI_NH_VA, TLBI_NH_VAA] {
                let mut legal_count = 0;

                for num in 0..32 {
                    for scale in 0..64 {
                        for tg in 0..4 {
                            for ttl in 0..4 {
                                let all_zero = num == 0 && scale == 0 && ttl == 0;
                                let needs_ds = scale > 31 || (tg == 2 && ttl == 1);
                                let legal = if !features.range_inv || tg == 0 {
                                    all_zero && tg == 0
                                } else {
                                    !all_zero && (features.ds || !needs_ds)
                                };

                                let command = range(opcode, num, scale, tg, ttl);
                                assert_eq!(is_legal(&features, command), legal);
                                legal_count += u32::from(legal);
                            }
                        }
                    }
                }

                // The same once more, by counting: one command without a range, and for each of the
                // three granules all but one of the combinations. Without 52-bit addresses there
                // are half as many scales, and a granule of 16 KB has three levels, not four.
                let expected = match (features.range_inv, features.ds) {
                    (false, _) => 1,
                    (true, true) => 1 + 3 * (32 * 64 * 4 - 1),
                    (true, false) => 1 + 3 * (32 * 32 * 4 - 1) - 32 * 32,
                };
                assert_eq!(legal_count, expected);
            }
        }
    }

    /// Commands without an address have no range either, not even one that would make sense.
    #[test]
    fn no_range() {
        for features in all_features() {
            for opcode in [TLBI_NH_ALL, TLBI_NH_ASID, TLBI_NSNH_ALL] {
                for (num, scale, tg, ttl) in
                    [(1, 0, 1, 0), (0, 1, 2, 0), (0, 0, 3, 1), (7, 3, 1, 3)]
                {
                    assert!(is_legal(&features, opcode));
                    assert!(!is_legal(&features, range(opcode, num, scale, tg, ttl)));
                }
            }
        }
    }

    /// A block is sanitised up to the first command that is illegal, which is left alone.
    #[test]
    fn block() {
        const VSID: u32 = 7;
        let vsid = u128::from(VSID) << 32;
        let sid = u128::from(HOST_SID) << 32;
        let vmid = u128::from(HOST_VMID) << 32;
        let features = Features {
            range_inv: false,
            ds: false,
            ats: false,
            asid_bits: 16,
            ssid_bits: 0,
        };
        let guest = [
            TLBI_NSNH_ALL,
            CFGI_CD | vsid,
            TLBI_NH_ASID | 3 << 48,
            CFGI_CD_ALL | vsid,
        ];
        let host = [
            TLBI_NH_ALL | vmid,
            CFGI_CD | sid,
            TLBI_NH_ASID | 3 << 48 | vmid,
            CFGI_CD_ALL | sid,
        ];

        for bad_command in [0x46, ATC_INV | vsid, TLBI_NH_ALL | 1 << 10, CFGI_CD] {
            for bad in 0..=guest.len() {
                let mut block = guest.map(cmd);
                if let Some(command) = block.get_mut(bad) {
                    *command = cmd(bad_command);
                }

                let (batch, result) = features
                    .sanitise_block(&mut block, HOST_VMID, |id| (id == VSID).then_some(STREAM));
                assert_eq!(result.is_err(), bad < guest.len());
                assert_eq!(batch.cmds().len(), bad);
                for (command, expected) in batch.cmds().iter().zip(host) {
                    assert_eq!(bits(*command), expected);
                }
            }
        }
    }

    /// A batch knows whether it has a `CMD_ATC_INV`, wherever it is and whatever is behind it.
    #[test]
    fn atc_inv() {
        const VSID: u32 = 7;
        let vsid = u128::from(VSID) << 32;
        let features = Features {
            range_inv: true,
            ds: true,
            ats: true,
            asid_bits: 16,
            ssid_bits: 0,
        };
        let others = [
            TLBI_NH_ALL,
            CFGI_CD | vsid,
            TLBI_NH_VA | 1 << 12 | 1 << (64 + 10),
            TLBI_NSNH_ALL,
            CFGI_CD_ALL | vsid,
        ];

        for at in 0..=others.len() {
            let mut block = others.map(cmd);
            if let Some(command) = block.get_mut(at) {
                *command = cmd(ATC_INV | vsid);
            }
            let (batch, result) =
                features.sanitise_block(&mut block, HOST_VMID, |id| (id == VSID).then_some(STREAM));
            assert!(result.is_ok());
            assert_eq!(batch.has_atc_inv(), at < others.len());
        }
    }

    /// A `CMD_ATC_INV` for a device without ATS, or for a substream of one without substreams, is
    /// complete without a command, wherever it is. The counts are those of the requests.
    #[test]
    fn atc_inv_without_effect() {
        const VSID: u32 = 7;
        const SSV: u128 = 1 << 11;
        let vsid = u128::from(VSID) << 32;
        let features = Features {
            range_inv: true,
            ds: true,
            ats: true,
            asid_bits: 16,
            ssid_bits: 20,
        };

        for (has_ats, has_substreams, plain, substream) in [
            (true, true, true, true),
            (true, false, true, false),
            (false, true, false, false),
            (false, false, false, false),
        ] {
            let stream = Stream {
                has_ats,
                has_substreams,
                ..STREAM
            };
            for mask in 0..64u32 {
                // A command that has an effect where the bit is set.
                for (ssv, is_issued) in [(0, plain), (SSV, substream)] {
                    let mut block = [cmd(ATC_INV | vsid | ssv); 6];
                    for (index, command) in block.iter_mut().enumerate() {
                        if mask >> index & 1 != 0 {
                            *command = cmd(TLBI_NH_ALL);
                        }
                    }
                    let (batch, result) = features
                        .sanitise_block(&mut block, HOST_VMID, |id| (id == VSID).then_some(stream));

                    assert!(result.is_ok());
                    assert_eq!(batch.has_atc_inv(), is_issued && mask != 63);
                    let issued = if is_issued { 63 } else { mask };
                    assert_eq!(batch.cmds().len(), issued.count_ones() as usize);
                    // Before a command, those are complete that are not issued.
                    let mut count = 0;
                    for index in 0..6 {
                        if issued >> index & 1 != 0 {
                            assert_eq!(batch.requests(count), index);
                            let expected = if mask >> index & 1 != 0 {
                                TLBI_NH_ALL | u128::from(HOST_VMID) << 32
                            } else {
                                ATC_INV | ssv | u128::from(HOST_SID) << 32
                            };
                            assert_eq!(bits(batch.cmds()[count]), expected);
                            count += 1;
                        }
                    }
                    assert_eq!(batch.requests(count), 6);
                }
            }
        }

        // An unknown device, and bits that are reserved, are illegal all the same.
        let mut block = [cmd(ATC_INV | vsid), cmd(ATC_INV | 1 << 8)];
        let stream = Stream {
            has_ats: false,
            ..STREAM
        };
        let (batch, result) = features.sanitise_block(&mut block, HOST_VMID, |_| Some(stream));
        assert_eq!(
            (result, batch.cmds().len(), batch.requests(0)),
            (Err(Illegal), 0, 1)
        );
        let (batch, result) = features.sanitise_block(&mut block, HOST_VMID, |_| None);
        assert_eq!((result, batch.requests(0)), (Err(Illegal), 0));
    }

    /// Each feature comes from its own place in the driver's struct.
    #[test]
    fn features() {
        let bits = [
            bindings::ARM_SMMU_FEAT_RANGE_INV,
            bindings::ARM_SMMU_FEAT_DS,
            bindings::ARM_SMMU_FEAT_ATS,
        ];

        for bit in (0..32).map(|i| 1u32 << i) {
            for (features, set) in [
                (features_of(bit, 8, 0), true),
                (features_of(!bit, 16, 20), false),
            ] {
                assert_eq!(features.range_inv, (bit == bits[0]) == set);
                assert_eq!(features.ds, (bit == bits[1]) == set);
                assert_eq!(features.ats, (bit == bits[2]) == set);
                assert_eq!(features.asid_bits, if set { 8 } else { 16 });
                assert_eq!(features.ssid_bits, if set { 0 } else { 20 });
            }
        }
    }

    /// The guest's VMID is replaced, and nothing else of a command for translations changes.
    #[test]
    fn vmid() {
        let host_vmid = u128::from(HOST_VMID) << 32;

        for features in all_features() {
            let asid = 0x5a << 48;
            let guest_vmid = 0xffff << 32;

            for (command, expected) in [
                (TLBI_NH_ALL, TLBI_NH_ALL),
                (TLBI_NH_ASID | asid, TLBI_NH_ASID | asid),
                (
                    TLBI_NH_VA | asid | 0x1234_5678_9001 << 64,
                    TLBI_NH_VA | asid | 0x1234_5678_9001 << 64,
                ),
                (
                    TLBI_NH_VAA | 0xffff_ffff_ffff_f000 << 64,
                    TLBI_NH_VAA | 0xffff_ffff_ffff_f000 << 64,
                ),
            ] {
                let expected = Ok(expected | host_vmid);
                assert_eq!(sanitise(&features, command), expected);
                assert_eq!(sanitise(&features, command | guest_vmid), expected);
            }
        }
    }

    /// To the guest, the whole SMMU is its own VMID.
    #[test]
    fn nsnh_all() {
        let expected = TLBI_NH_ALL | u128::from(HOST_VMID) << 32;

        for features in all_features() {
            assert_eq!(sanitise(&features, TLBI_NSNH_ALL), Ok(expected));
        }
    }

    /// A vSID is looked up and replaced, and nothing else of the command changes.
    #[test]
    fn vsid() {
        const VSID: u32 = 0x8000_0001;
        let vsid = u128::from(VSID) << 32;
        let sid = u128::from(HOST_SID) << 32;
        let substream = 0x7_f00d << 12;

        for features in all_features() {
            for (opcode, rest) in [
                (CFGI_CD, 1 << 64),
                (CFGI_CD_ALL, 0),
                (ATC_INV, 0xabcd_e000 << 64 | 52 << 64),
                (CFGI_CD, substream),
                (ATC_INV, substream | 1 << 11),
            ] {
                if !is_legal(&features, opcode | rest) {
                    continue;
                }

                let lookup = |id| (id == VSID).then_some(STREAM);

                let linked = sanitise_with(&features, opcode | vsid | rest, lookup);
                assert_eq!(linked, Ok(opcode | sid | rest));

                let unlinked = sanitise_with(&features, opcode | rest, lookup);
                assert_eq!(unlinked, Err(Illegal));
            }
        }
    }

    /// No lock is taken for the look-up of a vSID in vain: neither for a command that has none nor
    /// for one that is illegal anyhow.
    #[test]
    fn vsid_is_not_looked_up_in_vain() {
        for features in all_features() {
            for command in [
                TLBI_NH_ALL,
                TLBI_NH_ASID,
                TLBI_NH_VA,
                TLBI_NH_VAA,
                TLBI_NSNH_ALL,
                CFGI_CD | 1 << 10,
                CFGI_CD_ALL | 1 << 64,
                ATC_INV | 53 << 64,
            ] {
                let looked_up = Cell::new(false);
                let _ = sanitise_with(&features, command, |_| {
                    looked_up.set(true);
                    Some(STREAM)
                });
                assert!(!looked_up.get());
            }
        }
    }
}
