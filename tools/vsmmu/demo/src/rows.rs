// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The contract of `ioctl(IOMMU_HWPT_INVALIDATE)`, row by row: what is sent, what has to come back,
//! and what DMA has to read then.
//!
//! | what happens | errno | entry_num | code |
//! |---|---|---|---|
//! | all n entries done | 0 | n | 0 |
//! | entry k: an opcode that is not supported, a bit that is reserved or not implemented by this SMMU, a vSID with no vDEVICE | EIO | k | ILL |
//! | the SMMU raises CERROR_ILL on the command made from entry k | EIO | k | ILL |
//! | the SMMU raises CERROR_ABT there, and again after the retry | EIO | k | ABT |
//! | the ATC invalidation of entry k times out, and again when replayed alone | EIO | k | ATC_INV_SYNC |
//! | the SMMU consumes nothing for the driver's time limit and reports no error | ETIMEDOUT | first entry not known complete | 0 |
//! | entry k cannot be read, or its tail beyond what the kernel knows is not zero | EFAULT, E2BIG | k | 0 |
//! | the caller is being killed | EINTR | entries complete | 0 |
//! | n = 0 and the type is supported | 0 | 0 | 0 |
//! | `entry_len` below the 16 bytes of a command | EINVAL | 0 | 0 |
//! | n = 0 and the type is not supported, or any other bad argument | as without the contract | 0 | 0 |
//!
//! The four lines about an SMMU that fails have no rows here. They need an SMMU that does so on demand,
//! and a kernel that keeps the second line sends it nothing that it finds illegal.
//!
//! "entry_num = k" means that the entries before k are complete; nothing is promised about those after
//! it. Wherever a row has that and k > 0, the first of those entries invalidates page A and, if k > 1,
//! the last one page B: DMA must read the new content. With k = 1 page B may be either.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::ByteValued;
use vsmmu_nested::cmd::{Range, op};
use vsmmu_nested::invalidate::ENTRY_NUM_MAX;
use vsmmu_nested::{Command, ErrorCode, HwInfo, InvalidateArg};

use crate::lab::{
    ASID, ASID_2, Answer, Change, Error, Lab, PAGE_A, PAGE_B, PAGE_ELSEWHERE, Seen, Sights,
    UNLINKED_VSID, VSID,
};
use crate::userbuf::{self, BeforeEnd, BeforeHole};

/// Around the sizes at which a kernel might cut an array into pieces: 63 commands and a CMD_SYNC,
/// a block of 64, twice that.
const BORDERS: [usize; 9] = [0, 1, 62, 63, 64, 65, 126, 127, 200];

/// `entry_num` in an answer.
#[derive(Clone, Copy, Debug)]
pub enum Num {
    /// This number.
    Is(u32),
    /// From the first to the second, both included.
    Within(u32, u32),
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

impl Want {
    fn is(&self, answer: &Answer) -> bool {
        self.differences(answer).is_empty()
    }

    /// The names of the parts of the answer that are wrong.
    fn differences(&self, answer: &Answer) -> Vec<&'static str> {
        let num = match self.num {
            Num::Is(n) => answer.entry_num == n,
            Num::Within(min, max) => (min..=max).contains(&answer.entry_num),
        };
        let parts = [
            (answer.errno == self.errno, "errno"),
            (num, "entry_num"),
            (answer.code == self.code, "code"),
        ];
        let wrong = parts.into_iter().filter(|(right, _)| !right);
        wrong.map(|(_, name)| name).collect()
    }
}

type Call = dyn Fn(&mut Lab) -> Result<Answer, Error>;

/// What a row does.
pub enum Act {
    /// Only looks whether hw_info has the flag by which a kernel promises all the rest.
    Flag,
    /// Makes a call.
    Call(Box<Call>),
}

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
    pub act: Act,
    /// What has to come back: one of these, if it depends on the time which. Not for [`Act::Flag`].
    pub want: Vec<Want>,
    /// What DMA has to read from the pages A and B then; `None` where nothing is promised.
    pub sees: [Option<Seen>; 2],
}

/// How a row came out.
pub struct Report {
    /// What came back, or why nothing did.
    pub found: Result<Found, Error>,
    /// What is wrong, empty if nothing is.
    pub faults: Vec<String>,
}

/// What came back.
pub enum Found {
    /// Whether hw_info has the flag.
    Flag(bool),
    /// How the call ended, and what DMA read.
    Call(Answer, Option<Sights>),
}

impl Row {
    /// Makes the experiment, and holds it against what has to come out.
    pub fn run(&self, lab: &mut Lab) -> Report {
        let found = match &self.act {
            Act::Flag => Ok(Found::Flag(lab.smmu.hw_info().answers_exactly())),
            Act::Call(call) => lab
                .experiment(self.change, call)
                .map(|(answer, sights)| Found::Call(answer, sights)),
        };
        let mut faults = Vec::new();
        match &found {
            Err(e) => faults.push(crate::with_causes(e)),
            Ok(Found::Flag(true)) => {}
            Ok(Found::Flag(false)) => faults.push("no flag".into()),
            Ok(Found::Call(answer, sights)) => {
                self.judge(answer, &mut faults);
                if let Some(sights) = sights {
                    self.judge_sights(sights, &mut faults);
                }
                if !faults.is_empty() {
                    faults.extend(answer.note.clone());
                }
            }
        }
        Report { found, faults }
    }

    fn judge(&self, answer: &Answer, faults: &mut Vec<String>) {
        faults.extend(answer.fault.clone());
        if self.want.iter().any(|want| want.is(answer)) {
            return;
        }
        let names = match &self.want[..] {
            [want] => want.differences(answer).join(", "),
            _ => "the answer is none of these".into(),
        };
        faults.push(names);
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

fn want(errno: i32, entry_num: u32, code: ErrorCode) -> Want {
    Want {
        errno: Some(errno),
        num: Num::Is(entry_num),
        code: code as u32,
    }
}

fn row(id: impl Into<String>, what: impl Into<String>) -> Row {
    Row {
        id: id.into(),
        what: what.into(),
        applies: |_| true,
        change: Change::None,
        act: Act::Call(Box::new(|lab| Ok(lab.invalidate(&[])))),
        want: vec![want(0, 0, ErrorCode::None)],
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
        self.want[0].num = Num::Is(k as u32);
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

    fn calls(self, call: impl Fn(&mut Lab) -> Result<Answer, Error> + 'static) -> Self {
        Row {
            act: Act::Call(Box::new(call)),
            ..self
        }
    }

    fn sends(self, commands: impl Fn() -> Vec<Command> + 'static) -> Self {
        self.calls(move |lab| Ok(lab.invalidate(&commands())))
    }

    /// The call for `commands`, but with an argument that `alter` changes.
    fn sends_with(
        self,
        commands: impl Fn() -> Vec<Command> + 'static,
        alter: impl Fn(&Lab, &mut InvalidateArg) + 'static,
    ) -> Self {
        self.calls(move |lab| {
            let commands = commands();
            let mut arg = lab.arg(&commands);
            alter(lab, &mut arg);
            Ok(lab.call(arg))
        })
    }

    fn errno(mut self, errno: i32) -> Self {
        self.want[0].errno = Some(errno);
        self
    }

    fn entry_num(mut self, n: u32) -> Self {
        self.want[0].num = Num::Is(n);
        self
    }

    /// EIO, and the entry was illegal.
    fn illegal(mut self) -> Self {
        self.want[0].code = ErrorCode::Ill as u32;
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
fn bad_at(k: usize, bad: Command) -> Vec<Command> {
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

/// Sends each array by itself. The answer is the first that is not as wanted, else the last.
fn each(lab: &Lab, arrays: impl IntoIterator<Item = (String, Vec<Command>)>, want: Want) -> Answer {
    let mut last = None;
    for (name, commands) in arrays {
        let answer = lab.invalidate(&commands);
        let right = want.is(&answer);
        last = Some(Answer {
            note: Some(format!("with {name}")),
            ..answer
        });
        if !right {
            break;
        }
    }
    last.expect("there is something to send")
}

fn refused_alone() -> Want {
    want(libc::EIO, 0, ErrorCode::Ill)
}

fn accepted_alone() -> Want {
    want(0, 1, ErrorCode::None)
}

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

/// All rows, in the order in which they are shown.
pub fn all() -> Vec<Row> {
    [
        stale(),
        control(),
        flag(),
        done(),
        refused(),
        refused_vsid(),
        refused_bits(),
        accepted_bits(),
        ranges_of_pages(),
        memory(),
        killed(),
        probe(),
        argument(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What it is all for: a stale translation goes away.
fn stale() -> Vec<Row> {
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
fn control() -> Vec<Row> {
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
fn flag() -> Vec<Row> {
    let mut row = row("flag", "hw_info has the flag that promises all this");
    row.act = Act::Flag;
    row.want.clear();
    vec![row]
}

/// All n entries done: 0, n, none.
fn done() -> Vec<Row> {
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

/// Entry k has an opcode that is not supported, or a bit that must not be set: EIO, k, ILL.
fn refused() -> Vec<Row> {
    let mut rows = Vec::new();
    rows.push(
        row("refused/middle", "[TLBI, TLBI, bad opcode, TLBI]")
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
            .sends(move || bad_at(k, unsupported()))
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
            .sends(move || bad_at(k, elsewhere().flip_bit(10)))
            .illegal()
            .completes(k),
        );
        rows.push(
            row(
                format!("refused/atc/k={k}"),
                format!("entry {k} is an ATC_INV, and the SMMU has no ATS"),
            )
            .when(|hw| !hw.ats())
            .sends(move || bad_at(k, Command::atc_inv(VSID, PAGE_A, 0)))
            .illegal()
            .completes(k),
        );
    }
    rows.extend([
        row(
            "refused/first",
            "entries 2 and 3 are bad, in different ways: the first counts",
        )
        .sends(|| {
            let mut commands = bad_at(2, unsupported());
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
            let memory = BeforeHole::new(&spread(&bad_at(2, unsupported())[..3], 16))?;
            Ok(lab.call(array(lab, memory.addr(), 16, 5)))
        })
        .illegal()
        .completes(2),
        row(
            "refused/before-tail",
            "entry_len 24, entry 2 is bad, and the tail of entry 3 is not zero",
        )
        .calls(|lab| {
            let mut bytes = spread(&bad_at(2, unsupported()), 24);
            bytes[3 * 24 + 16] = 1;
            Ok(lab.call(array(lab, bytes.as_ptr() as u64, 24, 4)))
        })
        .illegal()
        .completes(2),
    ]);
    rows.push(
        row("refused/opcodes", "each of the 248 other opcodes by itself")
            .calls(|lab| {
                let others = (0..=255).filter(|opcode| !op::FORWARDABLE.contains(opcode));
                let arrays = others.map(|opcode: u8| {
                    let command = Command::from_words(opcode.into(), 0);
                    (format!("opcode {opcode:#04x}"), vec![command])
                });
                Ok(each(lab, arrays, refused_alone()))
            })
            .illegal(),
    );
    rows
}

/// Entry k names a vSID with no vDEVICE: EIO, k, ILL.
fn refused_vsid() -> Vec<Row> {
    let mut rows = Vec::new();
    for k in [0, 2, 64] {
        rows.push(
            row(
                format!("refused/vsid/k={k}"),
                format!("entry {k} is a CFGI_CD of a vSID without vDEVICE"),
            )
            .sends(move || bad_at(k, Command::cfgi_cd(UNLINKED_VSID, 0, true)))
            .illegal()
            .completes(k),
        );
    }
    rows.push(
        row(
            "refused/vsid/CFGI_CD_ALL",
            "CFGI_CD_ALL of a vSID without vDEVICE",
        )
        .sends(|| bad_at(0, Command::cfgi_cd_all(UNLINKED_VSID)))
        .illegal(),
    );
    // Without ATS an ATC_INV is refused for that.
    rows.push(
        row("refused/vsid/ATC_INV", "ATC_INV of a vSID without vDEVICE")
            .when(HwInfo::ats)
            .sends(|| bad_at(0, Command::atc_inv(UNLINKED_VSID, 0, 52)))
            .illegal(),
    );
    rows.push(
        row(
            "refused/vdevice-gone",
            "CFGI_CD of a vSID whose vDEVICE was destroyed, as entry 2",
        )
        .calls(|lab| {
            lab.smmu.vdevice().destroy()?;
            let commands = bad_at(2, Command::cfgi_cd(VSID, 0, true));
            let answer = lab.invalidate(&commands);
            lab.smmu.vdevice().create()?;
            Ok(answer)
        })
        .illegal()
        .completes(2),
    );
    let mut comes_and_goes = row(
        "refused/vdevice-race",
        "CFGI_CD as entry 2, while its vDEVICE comes and goes",
    )
    .calls(vdevice_comes_and_goes)
    .change(Change::Pages)
    .sees(Seen::New, Seen::New);
    comes_and_goes.want = vec![DONE_WITH_VDEVICE, REFUSED_WITHOUT];
    rows.push(comes_and_goes);
    rows
}

/// Each single bit that is reserved, or not implemented by this SMMU: EIO, 0, ILL.
fn refused_bits() -> Vec<Row> {
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
fn ranges_of_pages() -> Vec<Row> {
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
fn accepted_bits() -> Vec<Row> {
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

/// Entry k cannot be read, or its tail beyond what the kernel knows is not zero: EFAULT or E2BIG, k,
/// none.
fn memory() -> Vec<Row> {
    let mut rows = Vec::new();
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
                let mut bytes = spread(&bad_at(k, elsewhere()), 16);
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
                let mut bytes = spread(&bad_at(k, elsewhere()), 24);
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
            let mut bytes = spread(&bad_at(2, elsewhere()), 24);
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

    for (id, entry_len, at) in [
        ("memory/tail-first", 24, 16),
        ("memory/tail-page", 4096, 4095),
    ] {
        rows.push(
            row(
                id,
                format!("entry_len {entry_len}, byte {at} of entry 2 is not zero"),
            )
            .calls(move |lab| {
                let mut bytes = spread(&bad_at(2, elsewhere()), entry_len);
                bytes[2 * entry_len + at] = 1;
                Ok(lab.call(array(lab, bytes.as_ptr() as u64, entry_len, 4)))
            })
            .errno(libc::E2BIG)
            .completes(2),
        );
    }
    rows.push(
        row(
            "memory/end",
            "from entry 2 on the array is beyond the address space",
        )
        .calls(|lab| {
            let memory = BeforeEnd::new(&spread(&good(2), 16))?;
            Ok(lab.call(array(lab, memory.addr(), 16, 4)))
        })
        .errno(libc::EFAULT)
        .completes(2),
    );
    rows.push(
        row(
            "memory/wrap",
            "entry 1 is where 64-bit addresses begin anew",
        )
        .calls(|lab| Ok(lab.call(array(lab, u64::MAX - 15, 16, 3))))
        .errno(libc::EFAULT),
    );
    rows
}

/// The caller is being killed: EINTR, which nobody lives to see, the entries complete, none.
fn killed() -> Vec<Row> {
    // Made while the row runs: how long to wait before the kill, and how often that may be tried.
    let (delay, tries_left) = (Cell::new(None), Cell::new(12));
    let mut row = row(
        "killed",
        format!("the caller is killed in a call of {ENTRY_NUM_MAX} entries"),
    )
    .calls(move |lab| kill_in_call(lab, &delay, &tries_left))
    .change(Change::Pages)
    .sees(Seen::New, Seen::New);
    row.want = vec![Want {
        errno: None,
        num: Num::Within(KILLED_PAGE_B + 1, ENTRY_NUM_MAX - 1),
        code: 0,
    }];
    vec![row]
}

/// n = 0 only asks whether the type is supported: 0, 0, none, or as without the contract.
fn probe() -> Vec<Row> {
    let probe = |id: &str, what: &str, alter: fn(&Lab, &mut InvalidateArg)| {
        row(format!("probe/{id}"), format!("n = 0: {what}")).sends_with(Vec::new, alter)
    };
    vec![
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
        probe(
            "old-code",
            "an old error code in the structure",
            |_, arg| {
                arg.out_driver_error_code = ErrorCode::Ill as u32;
            },
        ),
        probe("ioas", "the object is an IOAS", |lab, arg| {
            arg.hwpt_id = lab.smmu.ioas_id();
        })
        .errno(libc::EINVAL),
        probe("s2", "the object is the stage-2 HWPT", |lab, arg| {
            arg.hwpt_id = lab.smmu.s2_hwpt_id();
        })
        .errno(libc::EINVAL),
        probe("nested", "the object is the nested HWPT", |lab, arg| {
            arg.hwpt_id = lab.smmu.s1_hwpt_id().expect("the lab has attached one");
        })
        .errno(libc::EOPNOTSUPP),
    ]
}

/// `entry_len` below the 16 bytes of a command: EINVAL, 0, none. Any other bad argument: as without the
/// contract, 0, none.
fn argument() -> Vec<Row> {
    let bad = |id: &str, what: &str, errno: i32, alter: fn(&Lab, &mut InvalidateArg)| {
        row(format!("argument/{id}"), what)
            .sends_with(|| good(3), alter)
            .errno(errno)
    };
    vec![
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
        row(
            "argument/old-code",
            "a wild error code in the structure on input",
        )
        .sends_with(
            || good(3),
            |_, arg| {
                arg.out_driver_error_code = 0xdead_beef;
            },
        )
        .completes(3),
        bad(
            "old-code-no-object",
            "an old error code in the structure, no such object",
            libc::ENOENT,
            |_, arg| {
                arg.hwpt_id = u32::MAX;
                arg.out_driver_error_code = ErrorCode::Ill as u32;
            },
        ),
        row(
            "argument/reused",
            "the structure of a call that failed with an error code, used again",
        )
        .calls(|lab| {
            let (illegal, commands) = ([unsupported()], good(3));
            let mut arg = lab.arg(&illegal);
            let first = arg.call(lab.smmu.iommufd());
            arg.data_uptr = commands.as_ptr() as u64;
            arg.entry_num = commands.len() as u32;
            let mut answer = lab.call(arg);
            if (first.errno, first.code) != (libc::EIO, ErrorCode::Ill as u32) {
                answer.fault = Some(format!("the first call: {first:?}"));
            }
            Ok(answer)
        })
        .completes(3),
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
        // The call has been made by then, so nothing is known of the entries.
        row(
            "argument/read-only",
            "the kernel cannot write to the argument (left as it was)",
        )
        .calls(|lab| {
            let commands = good(3);
            userbuf::call_read_only(&lab.smmu, lab.arg(&commands))
        })
        .errno(libc::EFAULT)
        .entry_num(3),
    ]
}

/// The place of page B's command in the call that is killed: after many pieces, however a kernel cuts
/// them, and long before a kill can be expected.
const KILLED_PAGE_B: u32 = 1023;

/// Calls with as many entries as there may be in a child process, and kills that in the middle: when
/// page B's command is complete, and the last one is not.
fn kill_in_call(
    lab: &mut Lab,
    delay: &Cell<Option<Duration>>,
    tries_left: &Cell<u32>,
) -> Result<Answer, Error> {
    const PART: u32 = 4096;
    let mut commands = vec![elsewhere(); ENTRY_NUM_MAX as usize];
    // How long the whole call would take. Twice, as the first time is slower.
    let mut whole = Duration::ZERO;
    for _ in 0..2 {
        let start = Instant::now();
        lab.invalidate(&commands[..PART as usize]);
        whole = start.elapsed() * (ENTRY_NUM_MAX / PART);
    }
    commands[0] = page_a();
    commands[KILLED_PAGE_B as usize] = page_b();

    let now = delay.get().unwrap_or(whole / 8);
    let mut answer = userbuf::call_and_kill(&lab.smmu, lab.arg(&commands), now)?;
    answer.note = Some(format!("signal {now:?} after the call was to begin"));

    let too_late = (answer.errno, answer.entry_num) == (Some(0), ENTRY_NUM_MAX);
    // Before the call had begun, or before it had come to page B.
    let too_early = answer.errno.is_none()
        && (answer.entry_num <= KILLED_PAGE_B || answer.entry_num == ENTRY_NUM_MAX);
    if (too_late || too_early) && tries_left.get() > 0 {
        tries_left.set(tries_left.get() - 1);
        // Never longer than the call takes, so the row comes to an end.
        delay.set(Some(if too_late {
            now / 2
        } else {
            (now * 2).min(whole)
        }));
        answer.again = true;
    }
    Ok(answer)
}

const DONE_WITH_VDEVICE: Want = Want {
    errno: Some(0),
    num: Num::Is(4),
    code: ErrorCode::None as u32,
};
const REFUSED_WITHOUT: Want = Want {
    errno: Some(libc::EIO),
    num: Num::Is(2),
    code: ErrorCode::Ill as u32,
};

/// Sends the same array again and again, while another thread destroys the vDEVICE and makes it again.
/// The answer is the first that is wrong, else the last.
fn vdevice_comes_and_goes(lab: &mut Lab) -> Result<Answer, Error> {
    /// Of each answer.
    const ENOUGH: u32 = 200;
    const DEADLINE: Duration = Duration::from_secs(15);
    let commands = [
        page_a(),
        page_b(),
        Command::cfgi_cd(VSID, 0, true),
        elsewhere(),
    ];
    let arg = lab.arg(&commands);
    let iommufd = lab.smmu.iommufd().clone();
    let vdevice = lab.smmu.vdevice();
    let stop = AtomicBool::new(false);

    thread::scope(|scope| {
        let other = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                vdevice.destroy()?;
                // With one CPU, the other thread would seldom see this state.
                thread::yield_now();
                vdevice.create()?;
                thread::yield_now();
            }
            Ok(())
        });

        let (mut done, mut refused) = (0, 0);
        let start = Instant::now();
        let mut answer = loop {
            let answer = Answer::from({ arg }.call(&iommufd));
            if DONE_WITH_VDEVICE.is(&answer) {
                done += 1;
            } else if REFUSED_WITHOUT.is(&answer) {
                refused += 1;
            } else {
                break answer;
            }
            let enough = done >= ENOUGH && refused >= ENOUGH;
            if enough || start.elapsed() > DEADLINE || other.is_finished() {
                break answer;
            }
        };
        stop.store(true, Ordering::Relaxed);
        let result: Result<(), vsmmu_nested::Error> = other.join().expect("it does not panic");
        result?;

        answer.note = Some(format!("done {done} times, refused {refused} times"));
        let right = DONE_WITH_VDEVICE.is(&answer) || REFUSED_WITHOUT.is(&answer);
        if right && (done == 0 || refused == 0) {
            answer.fault = Some("this proves nothing, as the answer was always the same".into());
        }
        Ok(answer)
    })
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
            ..Answer::default()
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
            (KILLED_PAGE_B, false),
            (KILLED_PAGE_B + 1, true),
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
        assert_eq!(bad_at(0, unsupported()), [unsupported(), elsewhere()]);
        assert_eq!(
            bad_at(2, unsupported()),
            [page_a(), page_b(), unsupported(), elsewhere()]
        );
        let bytes = spread(&good(2), 24);
        assert_eq!(bytes.len(), 48);
        assert_eq!(&bytes[24..40], page_b().as_slice());
        assert_eq!(bytes[40..], [0; 8]);
    }

    #[test]
    fn a_call_that_returned_was_not_killed() {
        let rows = killed();
        assert!(!rows[0].want[0].is(&answer(libc::EINTR, KILLED_PAGE_B + 1, 0)));
    }

    #[test]
    fn either_of_two_answers() {
        let mut row = row("", "");
        row.want = vec![DONE_WITH_VDEVICE, REFUSED_WITHOUT];
        for (answer, right) in [
            (answer(0, 4, 0), true),
            (answer(libc::EIO, 2, 1), true),
            (answer(libc::EIO, 4, 0), false),
            (answer(0, 2, 0), false),
        ] {
            let mut faults = Vec::new();
            row.judge(&answer, &mut faults);
            assert_eq!(faults.is_empty(), right, "{answer:?}");
        }
    }

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
