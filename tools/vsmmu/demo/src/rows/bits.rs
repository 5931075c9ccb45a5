// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each bit and each combination of range fields: refused or accepted.

use super::*;

/// Bits `hi..=lo` of a command's 128.
fn bits(hi: u32, lo: u32) -> u128 {
    u128::MAX >> (127 - (hi - lo)) << lo
}

/// The opcodes by name, with the bits that each may have beside the opcode on this SMMU. The fields
/// of ranges and of stream ids are left out: there it depends on their values, and other rows have
/// them.
fn fields(opcode: u8, hw: &HwInfo) -> (&'static str, u128) {
    let asid = if hw.asid16() {
        bits(63, 48)
    } else {
        bits(55, 48)
    };
    let vmid = bits(47, 32);
    let leaf = bits(64, 64);
    let address = bits(127, 76);
    let ssid = if hw.ssid_bits() > 0 { bits(31, 12) } else { 0 };
    match opcode {
        op::CFGI_CD => ("CFGI_CD", ssid | leaf),
        op::CFGI_CD_ALL => ("CFGI_CD_ALL", 0),
        op::TLBI_NH_ALL => ("TLBI_NH_ALL", vmid),
        op::TLBI_NH_ASID => ("TLBI_NH_ASID", vmid | asid),
        op::TLBI_NH_VA => ("TLBI_NH_VA", vmid | asid | leaf | address),
        op::TLBI_NH_VAA => ("TLBI_NH_VAA", vmid | leaf | address),
        op::TLBI_NSNH_ALL => ("TLBI_NSNH_ALL", 0),
        op::ATC_INV => {
            // SSV and Global are there if substreams are.
            let ssv_global = if ssid != 0 {
                bits(11, 11) | bits(9, 9)
            } else {
                0
            };
            ("ATC_INV", ssid | ssv_global | bits(69, 64) | address)
        }
        _ => unreachable!("not an opcode that can be forwarded"),
    }
}

fn has_sid(opcode: u8) -> bool {
    matches!(opcode, op::CFGI_CD | op::CFGI_CD_ALL | op::ATC_INV)
}

fn has_range(opcode: u8) -> bool {
    matches!(opcode, op::TLBI_NH_VA | op::TLBI_NH_VAA)
}

/// A command that is good when its opcode is.
fn plain(opcode: u8) -> Command {
    let sid = if has_sid(opcode) { VSID } else { 0 };
    Command::from_words(u64::from(sid) << 32 | u64::from(opcode), 0)
}

/// The same with one bit more, for each bit that `chosen` has.
fn with_each_bit(opcode: u8, chosen: u128) -> Vec<(String, Vec<Command>)> {
    (0..128)
        .filter(|bit| chosen >> bit & 1 == 1)
        .map(|bit| (format!("bit {bit}"), vec![plain(opcode).flip_bit(bit)]))
        .collect()
}

pub(super) fn range(num: u8, scale: u8, tg: u8, ttl: u8) -> Range {
    Range {
        num,
        scale,
        tg,
        ttl,
    }
}

/// Each combination of range fields: NUM, SCALE, TG, TTL.
fn ranges() -> impl Iterator<Item = Range> {
    (0..1 << 15).map(|i: u16| {
        range(
            (i & 0x1f) as u8,
            (i >> 5 & 0x3f) as u8,
            (i >> 11 & 3) as u8,
            (i >> 13) as u8,
        )
    })
}

/// Whether the combination is legal on an SMMU that has RIL.
fn is_legal(range: &Range, ds: bool) -> bool {
    // SCALE has a sixth bit, and 16 KiB granules have blocks at level 1, only with DS.
    if !ds && (range.scale > 31 || (range.tg, range.ttl) == (2, 1)) {
        return false;
    }
    // Without a granule there is nothing to multiply. With one, all zero is reserved.
    let empty = (range.num, range.scale, range.ttl) == (0, 0, 0);
    if range.tg == 0 { empty } else { !empty }
}

/// Each single bit that is reserved, or not implemented by this SMMU: EIO, 0, ILL.
pub(super) fn refused_bits() -> Vec<Row> {
    let mut rows = Vec::new();
    for opcode in op::FORWARDABLE {
        let (name, _) = fields(opcode, &HwInfo::default());
        rows.push(
            row(
                format!("refused/bits/{name}"),
                format!("{name} with each bit by itself that it must not have"),
            )
            .when(match opcode {
                // Without ATS an ATC_INV is refused for that.
                op::ATC_INV => HwInfo::ats,
                _ => |_| true,
            })
            .calls(move |lab| {
                let hw = lab.smmu.hw_info();
                let mut reserved = !fields(opcode, &hw).1 & !bits(7, 0);
                if has_sid(opcode) {
                    reserved &= !bits(63, 32);
                }
                if has_range(opcode) && hw.ril() {
                    reserved &= !(bits(16, 12) | bits(25, 20) | bits(73, 72) | bits(75, 74));
                }
                let arrays = with_each_bit(opcode, reserved);
                Ok(each(lab, arrays, refused_alone()))
            })
            .illegal(),
        );
    }
    rows
}

/// The fields of a range: each of their combinations is either reserved (EIO, 0, ILL) or legal (0, n,
/// none).
pub(super) fn ranges_of_pages() -> Vec<Row> {
    let mut rows = Vec::new();
    for opcode in [op::TLBI_NH_VA, op::TLBI_NH_VAA] {
        let (name, _) = fields(opcode, &HwInfo::default());
        for ds in [false, true] {
            let (id, with_ds) = if ds { ("/ds", " (DS)") } else { ("", "") };
            let applies: fn(&HwInfo) -> bool = if ds {
                |hw| hw.ril() && hw.ds()
            } else {
                |hw| hw.ril() && !hw.ds()
            };
            let of = move |legal| {
                ranges()
                    .filter(move |range| is_legal(range, ds) == legal)
                    .map(move |range| (format!("{range:?}"), plain(opcode).with_range(range)))
            };
            let (n_legal, n_reserved) = (of(true).count(), of(false).count());
            rows.push(
                row(
                    format!("refused/range/{name}{id}"),
                    format!("{name}, each of {n_reserved} reserved ranges alone{with_ds}"),
                )
                .when(applies)
                .calls(move |lab| {
                    let arrays = of(false).map(|(name, command)| (name, vec![command]));
                    Ok(each(lab, arrays, refused_alone()))
                })
                .illegal(),
            );
            rows.push(
                row(
                    format!("accepted/range/{name}{id}"),
                    format!("{name}, all {n_legal} legal ranges in one call{with_ds}"),
                )
                .when(applies)
                .sends(move || of(true).map(|(_, command)| command).collect())
                .entry_num(n_legal as u32),
            );
        }
    }
    rows
}

/// Each single bit that may be set: refusing too much would be as wrong. (An ATC_INV would need a
/// device that has an ATC.)
pub(super) fn accepted_bits() -> Vec<Row> {
    let mut rows = Vec::new();
    for opcode in op::FORWARDABLE
        .into_iter()
        .filter(|opcode| *opcode != op::ATC_INV)
    {
        let (name, _) = fields(opcode, &HwInfo::default());
        rows.push(
            row(
                format!("accepted/bits/{name}"),
                format!("{name} plain, and with each bit by itself that it may have"),
            )
            .calls(move |lab| {
                let mut arrays = vec![("no other bit".into(), vec![plain(opcode)])];
                let allowed = fields(opcode, &lab.smmu.hw_info()).1;
                arrays.extend(with_each_bit(opcode, allowed));
                Ok(each(lab, arrays, accepted_alone()))
            })
            .entry_num(1),
        );
    }

    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_by_hand() {
        assert_eq!(ranges().count(), 1 << 15);
        for (fields, legal, legal_with_ds) in [
            (range(0, 0, 0, 0), true, true),
            (range(1, 0, 0, 0), false, false),
            (range(0, 0, 0, 1), false, false),
            (range(0, 0, 3, 0), false, false),
            (range(0, 0, 1, 3), true, true),
            (range(31, 31, 3, 3), true, true),
            (range(1, 0, 2, 1), false, true),
            (range(0, 32, 1, 0), false, true),
            (range(0, 32, 0, 0), false, false),
        ] {
            assert!(ranges().any(|other| other == fields));
            assert_eq!(is_legal(&fields, false), legal, "{fields:?}");
            assert_eq!(is_legal(&fields, true), legal_with_ds, "{fields:?}");
        }
    }

    #[test]
    fn bits_of_a_command() {
        assert_eq!(bits(7, 0), 0xff);
        assert_eq!(bits(64, 64), 1 << 64);
        assert_eq!(bits(127, 0), u128::MAX);
    }
}
