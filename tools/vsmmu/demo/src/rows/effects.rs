// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it is all for, and what shows that it is not there anyhow.

use super::*;
use bits::range;

/// What it is all for: a stale translation goes away.
pub(super) fn stale() -> Vec<Row> {
    use Change::{Descriptor, Pages};
    use Seen::{New, Old};

    vec![
        row("stale/tlbi-nh-va", "TLBI_NH_VA of both pages")
            .change(Pages)
            .sends(|| {
                vec![
                    Command::tlbi_nh_va(ASID, PAGE_A, false),
                    Command::tlbi_nh_va(ASID, PAGE_B, false),
                ]
            })
            .entry_num(2)
            .sees(New, New),
        row(
            "stale/tlbi-nh-va-leaf",
            "TLBI_NH_VA, Leaf = 1, of page A only",
        )
        .change(Pages)
        .sends(|| vec![page_a()])
        .entry_num(1)
        .sees(New, Old),
        row("stale/tlbi-nh-vaa", "TLBI_NH_VAA of both pages")
            .change(Pages)
            .sends(|| {
                vec![
                    Command::tlbi_nh_vaa(PAGE_A, true),
                    Command::tlbi_nh_vaa(PAGE_B, true),
                ]
            })
            .entry_num(2)
            .sees(New, New),
        row("stale/tlbi-nh-asid", "TLBI_NH_ASID of their ASID")
            .change(Pages)
            .sends(|| vec![Command::tlbi_nh_asid(ASID)])
            .entry_num(1)
            .sees(New, New),
        row("stale/tlbi-nh-all", "TLBI_NH_ALL")
            .change(Pages)
            .sends(|| vec![Command::tlbi_nh_all()])
            .entry_num(1)
            .sees(New, New),
        row(
            "stale/tlbi-nh-all-vmid",
            "TLBI_NH_ALL with a VMID, which the host replaces",
        )
        .change(Pages)
        .sends(|| vec![Command::tlbi_nh_all().with_vmid(0xfffe)])
        .entry_num(1)
        .sees(New, New),
        row("stale/tlbi-nh-asid-vmid", "TLBI_NH_ASID with a VMID")
            .change(Pages)
            .sends(|| vec![Command::tlbi_nh_asid(ASID).with_vmid(0xfffe)])
            .entry_num(1)
            .sees(New, New),
        row(
            "stale/tlbi-nh-va-vmid",
            "TLBI_NH_VA of both pages, with VMIDs",
        )
        .change(Pages)
        .sends(|| vec![page_a().with_vmid(1), page_b().with_vmid(0xffff)])
        .entry_num(2)
        .sees(New, New),
        row(
            "stale/tlbi-nh-vaa-vmid",
            "TLBI_NH_VAA of both pages, with VMIDs",
        )
        .change(Pages)
        .sends(|| {
            vec![
                Command::tlbi_nh_vaa(PAGE_A, true).with_vmid(1),
                Command::tlbi_nh_vaa(PAGE_B, true).with_vmid(0xffff),
            ]
        })
        .entry_num(2)
        .sees(New, New),
        row("stale/tlbi-nsnh-all", "TLBI_NSNH_ALL")
            .change(Pages)
            .sends(|| vec![Command::tlbi_nsnh_all()])
            .entry_num(1)
            .sees(New, New),
        row(
            "stale/tlbi-nh-va-range",
            "TLBI_NH_VA of a range: NUM = 1, so two pages",
        )
        .when(HwInfo::ril)
        .change(Pages)
        .sends(|| vec![page_a().with_range(range(1, 0, 1, 0))])
        .entry_num(1)
        .sees(New, New),
        row(
            "stale/tlbi-nh-vaa-range",
            "TLBI_NH_VAA of a range: SCALE = 1, so two pages",
        )
        .when(HwInfo::ril)
        .change(Pages)
        .sends(|| vec![Command::tlbi_nh_vaa(PAGE_A, true).with_range(range(0, 1, 1, 3))])
        .entry_num(1)
        .sees(New, New),
        row(
            "stale/cfgi-cd",
            "CFGI_CD after the context descriptor has changed",
        )
        .change(Descriptor)
        .sends(|| vec![Command::cfgi_cd(VSID, 0, true)])
        .entry_num(1)
        .sees(New, New),
        row(
            "stale/cfgi-cd-all",
            "CFGI_CD_ALL after the context descriptor has changed",
        )
        .change(Descriptor)
        .sends(|| vec![Command::cfgi_cd_all(VSID)])
        .entry_num(1)
        .sees(New, New),
    ]
}

/// That DMA reads the new page is only worth something if it does not do so anyhow.
pub(super) fn control() -> Vec<Row> {
    use Change::{Descriptor, Pages};
    use Seen::Old;

    vec![
        row(
            "control/other-page",
            "control: TLBI_NH_VA, but of another page",
        )
        .change(Pages)
        .sends(|| vec![elsewhere(); 3])
        .entry_num(3)
        .sees(Old, Old),
        row(
            "control/other-asid",
            "control: TLBI_NH_ASID and _VA, but of another ASID",
        )
        .change(Pages)
        .sends(|| {
            vec![
                Command::tlbi_nh_asid(ASID_2),
                Command::tlbi_nh_va(ASID_2, PAGE_A, true),
                Command::tlbi_nh_va(ASID_2, PAGE_B, true),
            ]
        })
        .entry_num(3)
        .sees(Old, Old),
        row(
            "control/tlbi-for-cd",
            "control: TLBI_NH_ASID, but the context descriptor has changed",
        )
        .change(Descriptor)
        .sends(|| vec![Command::tlbi_nh_asid(ASID_2)])
        .entry_num(1)
        .sees(Old, Old),
        row("control/probe", "control: no command at all (n = 0)")
            .change(Pages)
            .sends(Vec::new)
            .entry_num(0)
            .sees(Old, Old),
    ]
}

/// How a VMM finds out that it can rely on all this: a flag in hw_info.
pub(super) fn flag() -> Vec<Row> {
    let mut row = row("flag", "hw_info has the flag that promises all this");
    row.act = Act::Flag;
    row.want.clear();
    vec![row]
}

/// All n entries done: 0, n, none.
pub(super) fn done() -> Vec<Row> {
    let mut rows = Vec::new();
    for n in [
        1,
        2,
        63,
        64,
        65,
        128,
        4096,
        262_144,
        262_145,
        ENTRY_NUM_MAX as usize,
    ] {
        rows.push(
            row(format!("done/n={n}"), format!("good entries: {n}"))
                .sends(move || good(n))
                .completes(n),
        );
    }
    for (entry_len, n) in [(24, 3), (4096, 3), (24, 130)] {
        rows.push(
            row(
                format!("done/entry_len={entry_len},n={n}"),
                format!("good entries: {n}, entry_len {entry_len}, zeroes in their tails"),
            )
            .calls(move |lab| {
                let bytes = spread(&good(n), entry_len);
                Ok(lab.call(array(lab, bytes.as_ptr() as u64, entry_len, n)))
            })
            .completes(n),
        );
    }
    rows.push(
        row("done/unaligned", "good entries: 3, at an odd address")
            .calls(|lab| {
                let mut bytes = vec![0];
                bytes.extend(spread(&good(3), 16));
                Ok(lab.call(array(lab, bytes.as_ptr() as u64 + 1, 16, 3)))
            })
            .completes(3),
    );
    rows
}
