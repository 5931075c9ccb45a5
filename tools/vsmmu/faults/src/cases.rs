// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rows: how the SMMU fails, and what has to come of it.
//!
//! | what happens | errno | entry_num | code |
//! |---|---|---|---|
//! | CERROR_ILL on the command made from entry k | EIO | k | ILL |
//! | CERROR_ABT there once | 0 | n | 0 |
//! | CERROR_ABT there, and again after the retry | EIO | k | ABT |
//! | CERROR_ABT whatever is fetched, from entry k on, for more than a second | EIO | first one not known to be complete | ABT |
//! | the same at somebody else's command | ETIMEDOUT | first one not known to be complete | 0 |
//! | the ATC_INV of entry k times out, and not when replayed | 0 | n | 0 |
//! | it times out again when replayed alone | EIO | k | ATC_INV_SYNC |
//! | an ATC_INV of entry k to that device in the next second (then 2, 4 .. 64), until it is attached or answers | EIO | k, which is not issued | ATC_INV_SYNC |
//! | the ATC_INV of entry k needs more than a second to time out | ETIMEDOUT | first one not known to be complete | 0 |
//! | the next ATC_INV to that device, of entry k, while that is so | ETIMEDOUT | k, which is not issued | 0 |
//! | the next one when it has timed out | EIO | k, which is not issued | ATC_INV_SYNC |
//! | an ATC_INV to a device with ATS off | 0 | n, nothing is issued | 0 |
//! | a CMD_SYNC is illegal once, or aborts up to twice | 0 | n | 0 |
//! | CMD_SYNCs are illegal for ever | ETIMEDOUT | first one not known to be complete | 0 |
//! | nothing is consumed for less than a second | 0 | n | 0 |
//! | nothing is consumed for more than a second | ETIMEDOUT | first one not known to be complete | 0 |
//!
//! Of several errors in one array, the one of the lowest entry counts. How many commands the kernel hands
//! over at a time is its own affair; but it
//! has room for 63 at least, so that in an array of up to 63 none is complete before all are.
//!
//! The host is not told of errors, and goes on as if its commands were complete. So each of them has to be
//! executed in the end, however often it cannot be fetched: see [`host`].

mod atc;
mod errors;
mod host;
mod latency;
mod rebind;
mod several;
mod shared;
mod shot;
mod stall;

use std::ops::RangeInclusive;
use std::time::Duration;

use vsmmu_nested::cmd::op;
use vsmmu_nested::{Command, ErrorCode, Outcome};

use crate::control::{Kind, Rule, Stats};
use crate::lab::{
    self, Bounds, Error, Finding, LIMIT, Lab, Latency, Num, On, QUICK, Raised, Shot, Want,
};
use crate::vm::{ASID, ATS_VSID, PAGE_A, PAGE_B, VSID};

/// CMD_SYNC, which no guest can send.
const CMD_SYNC: u8 = 0x46;

/// A long array: more than three batches.
const LONG: usize = 200;
/// A very long one: more than one CMD_SYNC.
const MANY: usize = 4096;
/// How many CMD_SYNCs it may take: few, but a CMD_SYNC of the host's is not to wait for all of it. (A small
/// queue takes more of them.)
const SYNCS: RangeInclusive<u64> = 4..=17;
/// Around the sizes at which a kernel cuts an array into batches, and waits until it is complete.
const BORDERS: [(usize, usize); 13] = [
    (0, 1),
    (1, 2),
    (5, 10),
    (62, 63),
    (62, 64),
    (63, 64),
    (64, 65),
    (126, 127),
    (199, LONG),
    (254, 255),
    (255, 256),
    (510, 2500),
    (2399, 2500),
];

/// How long it takes until a call is given up.
const GIVEN_UP: (Duration, Duration) = (Duration::from_millis(900), Duration::from_millis(1400));

/// One row.
pub struct Case {
    /// To choose it by.
    pub id: String,
    /// What is done, for people.
    pub what: String,
    /// What has to be answered, for people.
    pub want: String,
    /// Whether the machine has what it takes.
    pub applies: fn(&Lab) -> bool,
    /// Whether a kernel that does not bound its waiting may hang.
    pub may_hang: bool,
    /// Tries it.
    pub run: Box<Run>,
}

impl vsmmu_rows::Row for Case {
    fn id(&self) -> &str {
        &self.id
    }

    fn what(&self) -> &str {
        &self.what
    }

    fn head(&self) -> String {
        format!("{:<22} | {:<66}", self.id, self.what)
    }
}

type Run = dyn Fn(&mut Lab) -> Result<Finding, Error>;

impl Case {
    fn new(
        id: impl Into<String>,
        what: impl Into<String>,
        want: impl Into<String>,
        run: impl Fn(&mut Lab) -> Result<Finding, Error> + 'static,
    ) -> Self {
        Case {
            id: id.into(),
            what: what.into(),
            want: want.into(),
            applies: |_| true,
            may_hang: false,
            run: Box::new(run),
        }
    }

    fn when(self, applies: fn(&Lab) -> bool) -> Self {
        Case { applies, ..self }
    }

    fn may_hang(self) -> Self {
        Case {
            may_hang: true,
            ..self
        }
    }
}

/// The page that entry `i` invalidates: each another one, so that a rule can choose an entry. Nothing is
/// mapped there.
fn page(i: usize) -> u64 {
    0x2000_0000 + ((i as u64) << 12)
}

/// A TLBI of the page of entry `i`.
pub fn tlbi(i: usize) -> Command {
    Command::tlbi_nh_va(ASID, page(i), false)
}

/// An ATC_INV of the page of entry `i`.
pub fn atc(i: usize) -> Command {
    Command::atc_inv(VSID, page(i), 0)
}

/// An array of `n` of them.
pub fn array(n: usize, command: fn(usize) -> Command) -> Vec<Command> {
    (0..n).map(command).collect()
}

/// At entry `k`, if that is a TLBI.
pub fn at_tlbi(kind: Kind, k: usize) -> Rule {
    Rule::new(kind).opcode(op::TLBI_NH_VA).address(page(k))
}

/// At entry `k`, if that is an ATC_INV.
pub fn at_atc(kind: Kind, k: usize) -> Rule {
    Rule::new(kind).opcode(op::ATC_INV).address(page(k))
}

/// At each CMD_SYNC.
pub fn at_sync(kind: Kind) -> Rule {
    Rule::new(kind).opcode(CMD_SYNC)
}

const fn times(n: u64) -> Bounds {
    Bounds(n, n)
}

fn has(on: On) -> fn(&Lab) -> bool {
    match on {
        On::Edu => |_| true,
        On::Net => |lab| lab.net.is_some(),
    }
}

/// A row of many shots.
fn sweep(
    id: &str,
    what: &str,
    want: &str,
    on: On,
    shots: impl Fn() -> Vec<Shot> + 'static,
) -> Case {
    Case::new(id, what, want, move |lab| lab.shoot(&shots())).when(has(on))
}

/// The same among the traffic of others.
fn among_others(
    id: &str,
    what: &str,
    want: &str,
    on: On,
    shots: impl Fn() -> Vec<Shot> + 'static,
) -> Case {
    let applies: fn(&Lab) -> bool = match on {
        On::Edu => |lab| lab.other.is_some(),
        On::Net => |lab| lab.other.is_some() && lab.net.is_some(),
    };
    let run = move |lab: &mut Lab| {
        let host = lab.other_caller()?;
        lab.shoot_among_others(&shots(), host)
    };
    Case::new(id, what, want, run).when(applies)
}

/// Every size of array up to the longest, with the failing entry at its beginning, middle and end.
fn all_sizes(shot: fn(usize, usize) -> Shot) -> Vec<Shot> {
    let mut shots = Vec::new();
    for n in 1..=LONG {
        let mut at = vec![0, n / 2, n - 1];
        at.dedup();
        shots.extend(at.into_iter().map(|k| shot(k, n)));
    }
    shots
}

fn each_index(shot: fn(usize, usize) -> Shot) -> Vec<Shot> {
    (0..LONG).map(|k| shot(k, LONG)).collect()
}

/// Makes the call of a shot, and counts the CMD_SYNCs that the SMMU consumes meanwhile.
fn call_and_count(lab: &mut Lab, shot: &Shot) -> Result<(Outcome, u64), Error> {
    let caller = lab.caller(shot.on)?;
    lab.control.set(&shot.rules)?;
    let before = lab.control.stats()?;
    let (outcome, _) = caller.call(&shot.commands);
    Ok((outcome, lab.control.stats()?.since(before).syncs))
}

/// All rows, in their order.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    errors::none(&mut cases);
    errors::ill(&mut cases);
    errors::abt(&mut cases);
    atc::rows(&mut cases);
    errors::sync(&mut cases);
    stall::rows(&mut cases);
    several::rows(&mut cases);
    shared::rows(&mut cases);
    stall::full(&mut cases);
    host::rows(&mut cases);
    rebind::rows(&mut cases);
    latency::rows(&mut cases);
    cases
}

/// What came of calls that may each be answered in one of these ways.
fn volley_finding(
    answers: &[(vsmmu_nested::Outcome, Duration)],
    wants: &[Want],
    most: Duration,
) -> Finding {
    let mut finding = Finding {
        got: answers.first().map(|(got, _)| *got),
        ..Finding::default()
    };
    for (i, (got, time)) in answers.iter().enumerate() {
        finding.time = finding.time.max(*time);
        if !wants.iter().any(|want| want.is(got)) {
            let got = lab::show(got);
            finding.faults.push(format!("call {i}: {got}"));
        }
        if *time > most {
            finding
                .faults
                .push(format!("call {i} took {time:?}, more than {most:?}"));
        }
    }
    finding
}
