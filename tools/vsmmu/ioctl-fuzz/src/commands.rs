// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands: which are legal, by the architecture and the documentation of the ioctl, and arrays of them
//! that are legal but for what was planted.

use fastrand::Rng;
use vsmmu_nested::cmd::{Range, op};
use vsmmu_nested::{Command, HwInfo};

/// What a command is, as far as it can be told by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The answer is CERROR_ILL.
    Illegal,
    /// It is legal.
    Legal,
    /// It is legal if there is a vDEVICE with this ID.
    ForStream {
        /// The ID.
        vsid: u32,
        /// It is a CMD_ATC_INV.
        atc_inv: bool,
    },
}

const fn bits(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

fn get(word: u64, high: u32, low: u32) -> u64 {
    (word & bits(high, low)) >> low
}

/// What `command` is to an SMMU like this.
pub fn kind(command: Command, hw: &HwInfo) -> Kind {
    const OPCODE: u64 = bits(7, 0);
    const VMID: u64 = bits(47, 32);
    const SID: u64 = bits(63, 32);
    const SSID: u64 = bits(31, 12);
    const ADDRESS: u64 = bits(63, 12);
    const LEAF: u64 = bits(0, 0);

    let [w0, w1] = command.words();
    let asid = bits(if hw.asid16() { 63 } else { 55 }, 48);
    let range = if hw.ril() {
        let scale = bits(if hw.ds() { 25 } else { 24 }, 20);
        [bits(16, 12) | scale, bits(11, 8)]
    } else {
        [0, 0]
    };
    let if_ssids = |mask| if hw.ssid_bits() > 0 { mask } else { 0 };
    let may_have = match get(w0, 7, 0) as u8 {
        op::TLBI_NSNH_ALL => [0, 0],
        op::TLBI_NH_ALL => [VMID, 0],
        op::TLBI_NH_ASID => [VMID | asid, 0],
        op::TLBI_NH_VA => [VMID | asid | range[0], ADDRESS | LEAF | range[1]],
        op::TLBI_NH_VAA => [VMID | range[0], ADDRESS | LEAF | range[1]],
        op::CFGI_CD => [SID | if_ssids(SSID), LEAF],
        op::CFGI_CD_ALL => [SID, 0],
        op::ATC_INV if hw.ats() => {
            // SSV, Global, SSID.
            let substream = if_ssids(bits(11, 11) | bits(9, 9) | SSID);
            [SID | substream, ADDRESS | bits(5, 0)]
        }
        _ => return Kind::Illegal,
    };
    if w0 & !(OPCODE | may_have[0]) != 0 || w1 & !may_have[1] != 0 {
        return Kind::Illegal;
    }
    match get(w0, 7, 0) as u8 {
        op::TLBI_NH_VA | op::TLBI_NH_VAA => {
            let covers = get(w0, 16, 12) != 0 || get(w0, 25, 20) != 0;
            let (ttl, tg) = (get(w1, 9, 8), get(w1, 11, 10));
            let reserved = match tg {
                0 => covers || ttl != 0,
                2 if ttl == 1 && !hw.ds() => true,
                _ => !covers && ttl == 0,
            };
            if reserved { Kind::Illegal } else { Kind::Legal }
        }
        op::ATC_INV if get(w1, 5, 0) > 52 => Kind::Illegal,
        opcode @ (op::ATC_INV | op::CFGI_CD | op::CFGI_CD_ALL) => Kind::ForStream {
            vsid: get(w0, 63, 32) as u32,
            atc_inv: opcode == op::ATC_INV,
        },
        _ => Kind::Legal,
    }
}

/// A command that is legal if one of `vsids` is.
pub fn legal(rng: &mut Rng, hw: &HwInfo, vsids: &[u32]) -> Command {
    let vsid = rng.choice(vsids).copied();
    let iova = rng.u64(..) >> rng.u32(..52) & !0xfff;
    let asid = rng.u16(..) & if hw.asid16() { 0xffff } else { 0xff };
    let (leaf, vmid) = (rng.bool(), if rng.bool() { 0 } else { rng.u16(..) });
    let range = |rng: &mut Rng, command: Command| {
        if !hw.ril() || rng.u8(..4) != 0 {
            return command;
        }
        command.with_range(Range {
            num: rng.u8(..32),
            scale: rng.u8(..if hw.ds() { 64 } else { 32 }),
            tg: [1, 3][usize::from(rng.bool())],
            ttl: rng.u8(1..4),
        })
    };
    match (rng.u8(..16), vsid) {
        (0, _) => Command::tlbi_nsnh_all(),
        (1, _) => Command::tlbi_nh_all().with_vmid(vmid),
        (2 | 3, _) => Command::tlbi_nh_asid(asid).with_vmid(vmid),
        (4 | 5, _) => range(rng, Command::tlbi_nh_vaa(iova, leaf)).with_vmid(vmid),
        (6, Some(vsid)) => {
            let ssid = if hw.ssid_bits() > 0 {
                rng.u32(..1 << 20)
            } else {
                0
            };
            Command::cfgi_cd(vsid, ssid, leaf)
        }
        (7, Some(vsid)) => Command::cfgi_cd_all(vsid),
        (8..=10, Some(vsid)) if hw.ats() => {
            let command = Command::atc_inv(vsid, iova, rng.u8(..53));
            if hw.ssid_bits() > 0 && rng.u8(..4) == 0 {
                let [w0, w1] = command.words();
                // A substream, SSV.
                Command::from_words(w0 | u64::from(rng.u32(..1 << 20)) << 12 | 1 << 11, w1)
            } else {
                command
            }
        }
        _ => range(rng, Command::tlbi_nh_va(asid, iova, leaf)).with_vmid(vmid),
    }
}

/// Something that need not be legal, made of one that is.
pub fn planted(rng: &mut Rng, command: Command) -> Command {
    let [w0, w1] = command.words();
    match rng.u8(..8) {
        0..=4 => command.flip_bit(rng.u32(..128)),
        5 => Command::from_words(w0 & !0xff | u64::from(rng.u8(..)), w1),
        6 => Command::from_words(w0 & 0xffff_ffff | u64::from(rng.u32(..)) << 32, w1),
        _ => Command::from_words(rng.u64(..), rng.u64(..)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With everything.
    const ALL: HwInfo = HwInfo {
        flags: 2,
        idr: [1 << 12 | 1 << 10, 8 << 6, 0, 1 << 10, 0, 1 << 7],
    };

    #[test]
    fn legal_ones_are() {
        for hw in [ALL, HwInfo::default()] {
            let mut rng = Rng::with_seed(1);
            for _ in 0..100_000 {
                let command = legal(&mut rng, &hw, &[7]);
                let stream = |atc_inv| Kind::ForStream { vsid: 7, atc_inv };
                assert!(
                    [Kind::Legal, stream(false), stream(true)].contains(&kind(command, &hw)),
                    "{command:x?}"
                );
            }
        }
    }

    #[test]
    fn what_is_reserved_is_not() {
        let plain = HwInfo::default();
        let range = Range {
            num: 1,
            tg: 1,
            ..Range::default()
        };
        let va = Command::tlbi_nh_va(1, 0x1000, true);
        let refused = |command, hw: &HwInfo| kind(command, hw) == Kind::Illegal;
        assert!(!refused(va.with_range(range), &ALL));
        assert!(refused(va.with_range(range), &plain));
        assert!(refused(Command::tlbi_nh_asid(0x100), &plain));
        assert!(refused(Command::atc_inv(1, 0, 53), &ALL));
        assert!(refused(Command::atc_inv(1, 0, 52), &plain));
        assert!(refused(Command::cfgi_cd(1, 1, true), &plain));
        assert!(refused(Command::tlbi_nsnh_all().with_vmid(1), &ALL));
        for opcode in 0..=255 {
            let known = op::FORWARDABLE.contains(&opcode);
            assert_eq!(refused(Command::from_words(opcode.into(), 0), &ALL), !known);
        }
    }
}
