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

mod arguments;
mod bits;
mod effects;
mod killed;
mod memory;
mod refused;

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

impl vsmmu_rows::Row for Row {
    fn id(&self) -> &str {
        &self.id
    }

    fn what(&self) -> &str {
        &self.what
    }
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
            Err(e) => faults.push(vsmmu_nested::with_causes(e)),
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

/// All rows, in the order in which they are shown.
pub fn all() -> Vec<Row> {
    [
        effects::stale(),
        effects::control(),
        effects::flag(),
        effects::done(),
        refused::refused(),
        refused::refused_vsid(),
        bits::refused_bits(),
        bits::accepted_bits(),
        bits::ranges_of_pages(),
        memory::memory(),
        killed::killed(),
        arguments::probe(),
        arguments::argument(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    pub fn answer(errno: i32, entry_num: u32, code: u32) -> Answer {
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
}
