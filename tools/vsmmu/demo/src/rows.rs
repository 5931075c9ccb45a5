// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The contract of `ioctl(IOMMU_HWPT_INVALIDATE)`, row by row: what is sent, what has to come back,
//! and what DMA has to read then.
//!
//! "entry_num = k" means that the entries before k are complete. Wherever a row has that and k > 0,
//! the first of those entries invalidates page A and the last one page B, and DMA must read the new
//! content of both.

use std::time::{Duration, Instant};

use vm_memory::ByteValued;
use vsmmu_nested::cmd::{Range, op};
use vsmmu_nested::invalidate::ENTRY_NUM_MAX;
use vsmmu_nested::{Command, ErrorCode, HwInfo, InvalidateArg};

use crate::lab::{
    ASID, ASID_2, Answer, Change, Error, Lab, PAGE_A, PAGE_B, PAGE_ELSEWHERE, Seen, Sights,
    UNLINKED_VSID, VSID,
};
use crate::userbuf::{self, BeforeHole, Killed};

/// Around the sizes at which a kernel might cut an array into pieces: 63 commands and a CMD_SYNC,
/// a block of 64, twice that.
const BORDERS: [usize; 9] = [0, 1, 62, 63, 64, 65, 126, 127, 200];

/// `entry_num` in an answer.
#[derive(Clone, Copy, Debug)]
pub enum Num {
    /// This number.
    Is(u32),
    /// At least one, but not all of this many.
    SomeOf(u32),
}

/// What the kernel has to answer.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// The errno, 0 for success, `None` if nobody lives to see it.
    pub errno: Option<i32>,
    /// `entry_num`.
    pub num: Num,
    /// The driver's error code.
    pub code: u32,
}

type Send = Box<dyn Fn(&mut Lab) -> Result<Answer, Error>>;

/// One row of the contract.
pub struct Row {
    /// To choose it by.
    pub id: String,
    /// What is done, for people.
    pub what: String,
    /// Whether the row makes sense on this SMMU.
    pub applies: fn(&HwInfo) -> bool,
    /// What is changed before.
    pub change: Change,
    /// Does it.
    pub send: Send,
    /// What has to come back.
    pub want: Want,
    /// What DMA has to read from the pages A and B then; `None` where nothing is promised.
    pub sees: [Option<Seen>; 2],
}

/// How a row came out.
pub struct Report {
    /// The answer and the DMAs, or why there are none.
    pub result: Result<(Answer, Option<Sights>), Error>,
    /// What is wrong, empty if nothing is.
    pub faults: Vec<String>,
}

impl Row {
    /// Makes the experiment, and holds it against what has to come out.
    pub fn run(&self, lab: &mut Lab) -> Report {
        let result = lab.experiment(self.change, &*self.send);
        let mut faults = Vec::new();
        match &result {
            Err(e) => faults.push(e.to_string()),
            Ok((answer, sights)) => {
                self.judge(answer, &mut faults);
                if let Some(sights) = sights {
                    self.judge_sights(sights, &mut faults);
                }
                if !faults.is_empty() {
                    faults.extend(answer.note.clone());
                }
            }
        }
        Report { result, faults }
    }

    fn judge(&self, answer: &Answer, faults: &mut Vec<String>) {
        let mut check = |ok: bool, what: &str| {
            if !ok {
                faults.push(what.into());
            }
        };
        check(answer.errno == self.want.errno, "errno");
        check(
            match self.want.num {
                Num::Is(n) => answer.entry_num == n,
                Num::SomeOf(n) => (1..n).contains(&answer.entry_num),
            },
            "entry_num",
        );
        check(answer.code == self.want.code, "code");
    }

    fn judge_sights(&self, sights: &Sights, faults: &mut Vec<String>) {
        if sights.first != [Seen::Old; 2] {
            faults.push("DMA does not work even before the change".into());
        } else if sights.stale != [Seen::Old; 2] {
            faults.push("nothing was stale after the change: this proves nothing".into());
        }
        for (page, want) in self.sees.iter().enumerate() {
            if want.is_some_and(|want| want != sights.after[page]) {
                let name = ["A", "B"][page];
                faults.push(format!("page {name} reads {}", sights.after[page]));
            }
        }
    }
}

// How rows are written: `row(id, what)`, then what differs from an innocent call.

fn row(id: impl Into<String>, what: impl Into<String>) -> Row {
    Row {
        id: id.into(),
        what: what.into(),
        applies: |_| true,
        change: Change::None,
        send: Box::new(|lab| Ok(lab.smmu.invalidate(&[]).into())),
        want: Want {
            errno: Some(0),
            num: Num::Is(0),
            code: ErrorCode::None as u32,
        },
        sees: [None; 2],
    }
}

impl Row {
    fn when(self, applies: fn(&HwInfo) -> bool) -> Self {
        Row { applies, ..self }
    }

    /// The two pages are changed before.
    fn change(self, change: Change) -> Self {
        Row { change, ..self }
    }

    /// DMA reads these contents of A and B afterwards.
    fn sees(self, a: Seen, b: Seen) -> Self {
        Row {
            sees: [Some(a), Some(b)],
            ..self
        }
    }

    /// `k` entries are complete: the first invalidates page A, the last one B.
    fn completes(mut self, k: usize) -> Self {
        self.want.num = Num::Is(k as u32);
        if k > 0 {
            self.change = Change::Pages;
        }
        self.sees = [
            (k > 0).then_some(Seen::New),
            // A single entry has done A only.
            (k > 1).then_some(Seen::New),
        ];
        self
    }

    fn calls(self, send: impl Fn(&mut Lab) -> Result<Answer, Error> + 'static) -> Self {
        Row {
            send: Box::new(send),
            ..self
        }
    }

    fn sends(self, commands: impl Fn() -> Vec<Command> + 'static) -> Self {
        self.calls(move |lab| Ok(lab.smmu.invalidate(&commands()).into()))
    }

    /// An array of 16-byte entries, and a call that is not what it should be.
    fn sends_with(
        self,
        commands: impl Fn() -> Vec<Command> + 'static,
        spoil: impl Fn(&Lab, &mut InvalidateArg) + 'static,
    ) -> Self {
        self.calls(move |lab| {
            let commands = commands();
            let mut arg = lab.arg(&commands);
            spoil(lab, &mut arg);
            Ok(lab.call(arg))
        })
    }

    fn errno(mut self, errno: i32) -> Self {
        self.want.errno = Some(errno);
        self
    }

    fn entry_num(mut self, n: u32) -> Self {
        self.want.num = Num::Is(n);
        self
    }

    /// EIO, and the entry was illegal.
    fn illegal(mut self) -> Self {
        self.want.code = ErrorCode::Ill as u32;
        self.errno(libc::EIO)
    }
}

// What arrays are made of.

fn page_a() -> Command {
    Command::tlbi_nh_va(ASID, PAGE_A, true)
}

fn page_b() -> Command {
    Command::tlbi_nh_va(ASID, PAGE_B, true)
}

fn elsewhere() -> Command {
    Command::tlbi_nh_va(ASID, PAGE_ELSEWHERE, true)
}

/// `n` commands: the first invalidates page A, the last one page B.
fn good(n: usize) -> Vec<Command> {
    let mut commands = vec![elsewhere(); n];
    if n > 1 {
        commands[n - 1] = page_b();
    }
    if n > 0 {
        commands[0] = page_a();
    }
    commands
}

/// `k` good commands, then `bad`, then another good one that has nothing to do with A or B.
fn spoilt(k: usize, bad: Command) -> Vec<Command> {
    let mut commands = good(k);
    commands.push(bad);
    commands.push(elsewhere());
    commands
}

fn unsupported() -> Command {
    // CMD_SYNC: a VMM never forwards it.
    Command::from_words(0x46, 0)
}

/// The entries at a distance of `entry_len` bytes, zeroes between them.
fn spread(commands: &[Command], entry_len: usize) -> Vec<u8> {
    let mut bytes = vec![0; commands.len() * entry_len];
    for (entry, command) in bytes.chunks_exact_mut(entry_len).zip(commands) {
        entry[..size_of::<Command>()].copy_from_slice(command.as_slice());
    }
    bytes
}

/// A call for `n` entries of `entry_len` bytes at `addr`.
fn array(lab: &Lab, addr: u64, entry_len: usize, n: usize) -> InvalidateArg {
    InvalidateArg {
        data_uptr: addr,
        entry_len: entry_len as u32,
        entry_num: n as u32,
        ..lab.arg(&[])
    }
}

/// Sends each array by itself. The answer is the first that differs from `want`, else the last.
fn each(
    lab: &Lab,
    arrays: impl IntoIterator<Item = (String, Vec<Command>)>,
    want: (i32, u32, ErrorCode),
) -> Answer {
    let mut last = None;
    for (name, commands) in arrays {
        let outcome = lab.smmu.invalidate(&commands);
        let differs =
            (outcome.errno, outcome.entry_num, outcome.code) != (want.0, want.1, want.2 as u32);
        last = Some(Answer {
            note: Some(format!("with {name}")),
            ..outcome.into()
        });
        if differs {
            break;
        }
    }
    last.expect("there is something to send")
}

const REFUSED: (i32, u32, ErrorCode) = (libc::EIO, 0, ErrorCode::Ill);
const ACCEPTED: (i32, u32, ErrorCode) = (0, 1, ErrorCode::None);

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

fn range(num: u8, scale: u8, tg: u8, ttl: u8) -> Range {
    Range {
        num,
        scale,
        tg,
        ttl,
    }
}

/// Combinations of range fields, and whether they are legal on an SMMU with or without DS.
fn ranges(ds: bool) -> Vec<(Range, bool)> {
    vec![
        (range(0, 0, 0, 0), true),
        // The fields are reserved without a granule.
        (range(1, 0, 0, 0), false),
        (range(0, 1, 0, 0), false),
        (range(0, 0, 0, 1), false),
        (range(31, 31, 0, 3), false),
        // With one, all zero is reserved.
        (range(0, 0, 1, 0), false),
        (range(0, 0, 2, 0), false),
        (range(0, 0, 3, 0), false),
        (range(0, 0, 1, 3), true),
        (range(1, 0, 1, 0), true),
        (range(0, 1, 1, 0), true),
        (range(31, 5, 1, 3), true),
        (range(1, 0, 2, 2), true),
        (range(1, 0, 3, 3), true),
        // 16 KiB granules have no blocks at level 1, and SCALE has five bits, unless there is DS.
        (range(1, 0, 2, 1), ds),
        (range(0, 32, 1, 0), ds),
    ]
}

fn of_ranges(opcode: u8, ds: bool, legal: bool) -> impl Iterator<Item = (String, Vec<Command>)> {
    ranges(ds)
        .into_iter()
        .filter(move |(_, is_legal)| *is_legal == legal)
        .map(move |(range, _)| {
            let command = plain(opcode).with_range(range);
            (format!("{range:?}"), vec![command])
        })
}

/// All rows, in the order in which they are shown.
pub fn all() -> Vec<Row> {
    use Change::{Descriptor, Pages};
    use Seen::{New, Old};

    let mut rows = vec![
        // What it is all for: a stale translation goes away.
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
        // That DMA reads the new page is only worth something if it does not do so anyhow.
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
        // How a VMM finds out that it can rely on the code.
        row(
            "flag",
            "hw_info has the flag that promises the code (else EOPNOTSUPP)",
        )
        .calls(|lab| {
            Ok(Answer {
                errno: Some(if lab.smmu.hw_info().reports_error_code() {
                    0
                } else {
                    libc::EOPNOTSUPP
                }),
                entry_num: 0,
                code: 0,
                note: None,
            })
        }),
    ];

    // All n done.
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

    // Entry k is refused; those before it are complete.
    rows.push(
        row("refused/famous", "[TLBI, TLBI, bad opcode, TLBI]")
            .sends(|| vec![page_a(), page_b(), unsupported(), elsewhere()])
            .illegal()
            .completes(2),
    );
    for k in BORDERS {
        rows.push(
            row(
                format!("refused/opcode/k={k}"),
                format!("entry {k} has an opcode that is not supported"),
            )
            .sends(move || spoilt(k, unsupported()))
            .illegal()
            .completes(k),
        );
    }
    for k in [0, 2, 64] {
        rows.push(
            row(
                format!("refused/ssec/k={k}"),
                format!("entry {k} has SSEC = 1"),
            )
            .sends(move || spoilt(k, elsewhere().flip_bit(10)))
            .illegal()
            .completes(k),
        );
        rows.push(
            row(
                format!("refused/vsid/k={k}"),
                format!("entry {k} is a CFGI_CD of a vSID without vDEVICE"),
            )
            .sends(move || spoilt(k, Command::cfgi_cd(UNLINKED_VSID, 0, true)))
            .illegal()
            .completes(k),
        );
        rows.push(
            row(
                format!("refused/atc/k={k}"),
                format!("entry {k} is an ATC_INV, and the SMMU has no ATS"),
            )
            .when(|hw| !hw.ats())
            .sends(move || spoilt(k, Command::atc_inv(VSID, PAGE_A, 0)))
            .illegal()
            .completes(k),
        );
    }
    for (name, command) in [
        ("CFGI_CD_ALL", Command::cfgi_cd_all(UNLINKED_VSID)),
        ("ATC_INV", Command::atc_inv(UNLINKED_VSID, 0, 52)),
    ] {
        rows.push(
            row(
                format!("refused/vsid/{name}"),
                format!("{name} of a vSID without vDEVICE"),
            )
            .sends(move || spoilt(0, command))
            .illegal(),
        );
    }
    rows.extend([
        row(
            "refused/first",
            "entries 2 and 3 are bad, in different ways: the first counts",
        )
        .sends(|| {
            let mut commands = spoilt(2, unsupported());
            commands[3] = elsewhere().flip_bit(10);
            commands
        })
        .illegal()
        .completes(2),
        row(
            "refused/before-hole",
            "entry 2 is bad, and from entry 3 on the array cannot be read",
        )
        .calls(|lab| {
            let memory = BeforeHole::new(&spread(&spoilt(2, unsupported())[..3], 16))?;
            Ok(lab.call(array(lab, memory.addr(), 16, 5)))
        })
        .illegal()
        .completes(2),
        row(
            "refused/before-tail",
            "entry_len 24, entry 2 is bad, and the tail of entry 3 is not zero",
        )
        .calls(|lab| {
            let mut bytes = spread(&spoilt(2, unsupported()), 24);
            bytes[3 * 24 + 16] = 1;
            Ok(lab.call(array(lab, bytes.as_ptr() as u64, 24, 4)))
        })
        .illegal()
        .completes(2),
    ]);
    rows.push(
        row(
            "refused/vdevice-gone",
            "CFGI_CD of a vSID whose vDEVICE was destroyed, as entry 2",
        )
        .calls(|lab| {
            lab.smmu.destroy_vdevice()?;
            let commands = spoilt(2, Command::cfgi_cd(VSID, 0, true));
            let outcome = lab.smmu.invalidate(&commands);
            lab.smmu.create_vdevice()?;
            Ok(outcome.into())
        })
        .illegal()
        .completes(2),
    );
    rows.push(
        row("refused/opcodes", "each of the 248 other opcodes by itself")
            .calls(|lab| {
                let others = (0..=255).filter(|opcode| !op::FORWARDABLE.contains(opcode));
                let arrays = others.map(|opcode: u8| {
                    let command = Command::from_words(opcode.into(), 0);
                    (format!("opcode {opcode:#04x}"), vec![command])
                });
                Ok(each(lab, arrays, REFUSED))
            })
            .illegal(),
    );
    for opcode in op::FORWARDABLE {
        let (name, _) = fields(opcode, &HwInfo::default());
        rows.push(
            row(
                format!("refused/bits/{name}"),
                format!("{name} with each bit by itself that it must not have"),
            )
            .calls(move |lab| {
                let hw = lab.smmu.hw_info();
                let mut reserved = !fields(opcode, &hw).1 & !bits(7, 0);
                if has_sid(opcode) {
                    reserved &= !bits(63, 32);
                }
                if has_range(opcode) && hw.ril() {
                    reserved &= !(bits(16, 12) | bits(25, 20) | bits(73, 72) | bits(75, 74));
                }
                Ok(each(lab, with_each_bit(opcode, reserved), REFUSED))
            })
            .illegal(),
        );
    }
    for opcode in [op::TLBI_NH_VA, op::TLBI_NH_VAA] {
        let (name, _) = fields(opcode, &HwInfo::default());
        rows.push(
            row(
                format!("refused/range/{name}"),
                format!("{name} with each reserved combination of range fields"),
            )
            .when(HwInfo::ril)
            .calls(move |lab| {
                let ds = lab.smmu.hw_info().ds();
                Ok(each(lab, of_ranges(opcode, ds, false), REFUSED))
            })
            .illegal(),
        );
        rows.push(
            row(
                format!("accepted/range/{name}"),
                format!("{name} with each legal combination of range fields"),
            )
            .when(HwInfo::ril)
            .calls(move |lab| {
                let ds = lab.smmu.hw_info().ds();
                Ok(each(lab, of_ranges(opcode, ds, true), ACCEPTED))
            })
            .entry_num(1),
        );
    }
    // Refusing too much would be as wrong. (An ATC_INV would need a device that has an ATC.)
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
                Ok(each(lab, arrays, ACCEPTED))
            })
            .entry_num(1),
        );
    }

    // User memory that cannot be read, or says more than the kernel knows.
    for k in BORDERS {
        rows.push(
            row(
                format!("memory/hole/k={k}"),
                format!("the array cannot be read from entry {k} on"),
            )
            .calls(move |lab| {
                let memory = BeforeHole::new(&spread(&good(k), 16))?;
                Ok(lab.call(array(lab, memory.addr(), 16, k + 2)))
            })
            .errno(libc::EFAULT)
            .completes(k),
        );
        rows.push(
            row(
                format!("memory/straddle/k={k}"),
                format!("only half of entry {k} can be read"),
            )
            .calls(move |lab| {
                let mut bytes = spread(&spoilt(k, elsewhere()), 16);
                bytes.truncate(k * 16 + 8);
                let memory = BeforeHole::new(&bytes)?;
                Ok(lab.call(array(lab, memory.addr(), 16, k + 2)))
            })
            .errno(libc::EFAULT)
            .completes(k),
        );
        rows.push(
            row(
                format!("memory/tail/k={k}"),
                format!("entry_len 24, the last byte of entry {k} is not zero"),
            )
            .calls(move |lab| {
                let mut bytes = spread(&spoilt(k, elsewhere()), 24);
                bytes[k * 24 + 23] = 1;
                Ok(lab.call(array(lab, bytes.as_ptr() as u64, 24, k + 2)))
            })
            .errno(libc::E2BIG)
            .completes(k),
        );
    }
    rows.push(
        row(
            "memory/tail-hole",
            "entry_len 24, the tail of entry 2 cannot be read",
        )
        .calls(|lab| {
            let mut bytes = spread(&spoilt(2, elsewhere()), 24);
            bytes.truncate(2 * 24 + 16);
            let memory = BeforeHole::new(&bytes)?;
            Ok(lab.call(array(lab, memory.addr(), 24, 4)))
        })
        .errno(libc::EFAULT)
        .completes(2),
    );
    rows.push(
        row(
            "memory/kernel",
            "the array is where only the kernel may look",
        )
        .calls(|lab| Ok(lab.call(array(lab, 0xffff_8000_0000_0000, 16, 2))))
        .errno(libc::EFAULT),
    );

    // The caller is being killed.
    let mut killed = row(
        "killed",
        format!("the caller is killed in a call of {ENTRY_NUM_MAX} entries"),
    )
    .calls(killed)
    .completes(1);
    killed.want = Want {
        errno: None,
        num: Num::SomeOf(ENTRY_NUM_MAX),
        code: 0,
    };
    rows.push(killed);

    // n = 0 only asks whether the type is supported.
    let probe = |id: &str, what: &str, spoil: fn(&Lab, &mut InvalidateArg)| {
        row(format!("probe/{id}"), format!("n = 0: {what}")).sends_with(Vec::new, spoil)
    };
    rows.extend([
        probe("ok", "the right type", |_, _| {}),
        probe("null", "the right type, no array, entry_len 0", |_, arg| {
            arg.data_uptr = 0;
            arg.entry_len = 0;
        }),
        probe(
            "ignored",
            "the right type, wild data_uptr and entry_len",
            |_, arg| {
                arg.data_uptr = u64::MAX;
                arg.entry_len = u32::MAX;
            },
        ),
        probe("type", "a type that is not supported", |_, arg| {
            arg.data_type = 0
        })
        .errno(libc::EINVAL),
        probe("type-high", "a type that does not exist", |_, arg| {
            arg.data_type = 0x8000_0001;
        })
        .errno(libc::EINVAL),
        probe("no-object", "no such object", |_, arg| {
            arg.hwpt_id = u32::MAX
        })
        .errno(libc::ENOENT),
        probe("reserved", "the output word is not 0 on input", |_, arg| {
            arg.out_driver_error_code = 1;
        })
        .errno(libc::EOPNOTSUPP),
    ]);

    // Bad arguments: nothing is done, and says so.
    let bad = |id: &str, what: &str, errno: i32, spoil: fn(&Lab, &mut InvalidateArg)| {
        row(format!("argument/{id}"), what)
            .sends_with(|| good(3), spoil)
            .errno(errno)
    };
    rows.extend([
        bad("entry_len=0", "entry_len 0", libc::EINVAL, |_, arg| {
            arg.entry_len = 0
        }),
        bad(
            "entry_len=8",
            "entry_len 8: half a command",
            libc::EINVAL,
            |_, arg| arg.entry_len = 8,
        ),
        bad("entry_len=15", "entry_len 15", libc::EINVAL, |_, arg| {
            arg.entry_len = 15
        }),
        bad(
            "entry_len-high",
            "entry_len of a page and a byte",
            libc::EINVAL,
            |_, arg| {
                arg.entry_len = userbuf::page_size() as u32 + 1;
            },
        ),
        bad(
            "n-high",
            "one entry more than allowed",
            libc::EINVAL,
            |_, arg| {
                arg.entry_num = ENTRY_NUM_MAX + 1;
            },
        ),
        bad("n-max", "2^32 - 1 entries", libc::EINVAL, |_, arg| {
            arg.entry_num = u32::MAX
        }),
        bad("null", "no array", libc::EINVAL, |_, arg| arg.data_uptr = 0),
        bad(
            "type",
            "a type that is not supported",
            libc::EINVAL,
            |_, arg| arg.data_type = 0,
        ),
        bad("no-object", "no such object", libc::ENOENT, |_, arg| {
            arg.hwpt_id = u32::MAX
        }),
        bad("ioas", "the object is an IOAS", libc::EINVAL, |lab, arg| {
            arg.hwpt_id = lab.smmu.ioas_id();
        }),
        bad(
            "s2",
            "the object is the stage-2 HWPT",
            libc::EINVAL,
            |lab, arg| {
                arg.hwpt_id = lab.smmu.s2_hwpt_id();
            },
        ),
        bad(
            "nested",
            "the object is the nested HWPT",
            libc::EOPNOTSUPP,
            |lab, arg| {
                arg.hwpt_id = lab.smmu.s1_hwpt_id().expect("the lab has attached one");
            },
        ),
        bad(
            "reserved",
            "the output word is not 0 on input",
            libc::EOPNOTSUPP,
            |_, arg| {
                arg.out_driver_error_code = 0xdead_beef;
            },
        ),
        // The size of the structure is checked before anything is written to it.
        bad(
            "size-small",
            "a structure of 28 bytes (left as it was)",
            libc::EINVAL,
            |_, arg| {
                arg.size = InvalidateArg::UAPI_SIZE - 4;
            },
        )
        .entry_num(3),
        bad(
            "size-tail",
            "a larger structure, its tail not zero (left as it was)",
            libc::E2BIG,
            |_, arg| {
                arg.size = size_of::<InvalidateArg>() as u32;
                arg.tail[7] = 1;
            },
        )
        .entry_num(3),
        row("argument/size-large", "a larger structure, its tail zero")
            .sends_with(
                || good(3),
                |_, arg| {
                    arg.size = size_of::<InvalidateArg>() as u32;
                },
            )
            .completes(3),
    ]);
    rows
}

/// Calls with as many entries as there may be in a child process, and kills that in the middle.
///
/// Page A is only proof in the first try that gets that far: a call that returns too early has done
/// all of it. So the first try is made early in the call.
fn killed(lab: &mut Lab) -> Result<Answer, Error> {
    const TRIES: u32 = 12;
    let commands = good(ENTRY_NUM_MAX as usize);

    // How long the whole call would take. The first command is left out: it would do what the row
    // wants to see done by the call that is killed. Twice, as the first time is slower.
    let part = &commands[1..][..4096];
    let mut whole = Duration::ZERO;
    for _ in 0..2 {
        let start = Instant::now();
        lab.smmu.invalidate(part);
        whole = start.elapsed() * (ENTRY_NUM_MAX / part.len() as u32);
    }

    let mut delay = whole / 8;
    let mut answer = None;
    for _ in 0..TRIES {
        let killed = userbuf::call_and_kill(&lab.smmu, lab.arg(&commands), delay)?;
        let (arg, note) = match killed {
            Killed::InCall(arg) => (arg, "killed in the call"),
            Killed::TooLate(arg) => (arg, "the call returned before the signal"),
        };
        // Else it was killed before it had begun, or too late: entry_num is what it was, or all.
        let in_the_middle = (1..ENTRY_NUM_MAX).contains(&arg.entry_num);
        answer = Some(Answer {
            errno: None,
            entry_num: arg.entry_num,
            code: arg.out_driver_error_code,
            note: Some(format!("{note}, {delay:?} after it had begun")),
        });
        if in_the_middle {
            break;
        }
        delay = match killed {
            Killed::TooLate(_) => delay / 2,
            Killed::InCall(_) => delay + Duration::from_millis(1),
        };
    }
    Ok(answer.expect("there was a try"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn answer(errno: i32, entry_num: u32, code: u32) -> Answer {
        Answer {
            errno: Some(errno),
            entry_num,
            code,
            note: None,
        }
    }

    fn faults(row: &Row, answer: &Answer, stale: [Seen; 2], after: [Seen; 2]) -> Vec<String> {
        let mut faults = Vec::new();
        row.judge(answer, &mut faults);
        let sights = Sights {
            first: [Seen::Old; 2],
            stale,
            after,
        };
        row.judge_sights(&sights, &mut faults);
        faults
    }

    #[test]
    fn each_deviation_is_a_fault() {
        use Seen::{Neither, New, Old};
        let row = row("", "").illegal().completes(2);
        let right = answer(libc::EIO, 2, 1);
        let stale = [Old; 2];
        assert!(faults(&row, &right, stale, [New; 2]).is_empty());
        for wrong in [
            answer(0, 2, 1),
            answer(libc::EINVAL, 2, 1),
            answer(libc::EIO, 1, 1),
            answer(libc::EIO, 3, 1),
            answer(libc::EIO, 2, 0),
            answer(libc::EIO, 2, 2),
            Answer {
                errno: None,
                ..right.clone()
            },
        ] {
            assert_eq!(faults(&row, &wrong, stale, [New; 2]).len(), 1, "{wrong:?}");
        }
        for (stale, after) in [
            (stale, [Old, New]),
            (stale, [New, Old]),
            (stale, [New, Neither]),
            ([Old, New], [New; 2]),
            ([Neither, Old], [New; 2]),
        ] {
            assert_eq!(
                faults(&row, &right, stale, after).len(),
                1,
                "{stale:?} {after:?}"
            );
        }
    }

    #[test]
    fn a_killed_call_has_done_some_but_not_all() {
        let rows = all();
        let row = rows.iter().find(|row| row.id == "killed").unwrap();
        for (entry_num, right) in [
            (0, false),
            (1, true),
            (ENTRY_NUM_MAX - 1, true),
            (ENTRY_NUM_MAX, false),
        ] {
            let answer = Answer {
                errno: None,
                ..answer(0, entry_num, 0)
            };
            let mut faults = Vec::new();
            row.judge(&answer, &mut faults);
            assert_eq!(faults.is_empty(), right, "{entry_num}");
        }
    }

    #[test]
    fn ids_are_unique() {
        let rows = all();
        let ids: HashSet<_> = rows.iter().map(|row| &row.id).collect();
        assert_eq!(ids.len(), rows.len());
    }

    /// What a row says of complete entries is what its array is made of.
    #[test]
    fn arrays() {
        assert_eq!(good(1), [page_a()]);
        assert_eq!(good(2), [page_a(), page_b()]);
        assert_eq!(good(4), [page_a(), elsewhere(), elsewhere(), page_b()]);
        assert_eq!(spoilt(0, unsupported()), [unsupported(), elsewhere()]);
        assert_eq!(
            spoilt(2, unsupported()),
            [page_a(), page_b(), unsupported(), elsewhere()]
        );
        let bytes = spread(&good(2), 24);
        assert_eq!(bytes.len(), 48);
        assert_eq!(&bytes[24..40], page_b().as_slice());
        assert_eq!(bytes[40..], [0; 8]);
    }

    #[test]
    fn bits_of_a_command() {
        assert_eq!(bits(7, 0), 0xff);
        assert_eq!(bits(64, 64), 1 << 64);
        assert_eq!(bits(127, 0), u128::MAX);
    }
}
