// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rows: how the SMMU fails, and what has to come of it.
//!
//! | what happens | errno | entry_num | code |
//! |---|---|---|---|
//! | CERROR_ILL on the command made from entry k | EIO | k | ILL |
//! | CERROR_ABT there once | 0 | n | 0 |
//! | CERROR_ABT there, and again after the retry | EIO | k | ABT |
//! | CERROR_ABT whatever is fetched, from entry k on | EIO | first one not known to be complete | ABT |
//! | the ATC_INV of entry k times out, and not when replayed | 0 | n | 0 |
//! | it times out again when replayed alone | EIO | k | ATC_INV_SYNC |
//! | a CMD_SYNC is illegal once, or aborts up to twice | 0 | n | 0 |
//! | CMD_SYNCs are illegal for ever | ETIMEDOUT | first one not known to be complete | 0 |
//! | nothing is consumed for less than a second | 0 | n | 0 |
//! | nothing is consumed for more than a second | ETIMEDOUT | first one not known to be complete | 0 |
//!
//! Of several errors in one array, the one of the lowest entry counts. How many commands the kernel hands
//! over at a time is its own affair; but it
//! has room for 63 at least, so that in an array of up to 63 none is complete before all are.

use std::ops::RangeInclusive;
use std::time::Duration;

use vsmmu_nested::cmd::op;
use vsmmu_nested::{Command, ErrorCode, Outcome};

use crate::control::{Kind, Rule};
use crate::lab::{
    self, Bounds, Error, Finding, LIMIT, Lab, Latency, Num, On, QUICK, Raised, STORM, Shot, Want,
};
use crate::vm::{ASID, PAGE_A, PAGE_B, VSID};

/// CMD_SYNC, which no guest can send.
const CMD_SYNC: u8 = 0x46;

/// A long array: more than three batches.
const LONG: usize = 200;
/// A very long one: more than one CMD_SYNC.
const MANY: usize = 4096;
/// How many CMD_SYNCs it may take: few, but a CMD_SYNC of the host's is not to wait for all of it.
const SYNCS: RangeInclusive<u64> = 4..=9;
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
    (1007, 1008),
    (1008, 1009),
    (1008, 2500),
    (2399, 2500),
];

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

fn tlbi(i: usize) -> Command {
    Command::tlbi_nh_va(ASID, page(i), false)
}

fn atc(i: usize) -> Command {
    Command::atc_inv(VSID, page(i), 0)
}

fn array(n: usize, command: fn(usize) -> Command) -> Vec<Command> {
    (0..n).map(command).collect()
}

/// At entry `k`, if that is a TLBI.
fn at_tlbi(kind: Kind, k: usize) -> Rule {
    Rule::new(kind).opcode(op::TLBI_NH_VA).address(page(k))
}

/// At entry `k`, if that is an ATC_INV.
fn at_atc(kind: Kind, k: usize) -> Rule {
    Rule::new(kind).opcode(op::ATC_INV).address(page(k))
}

fn at_sync(kind: Kind) -> Rule {
    Rule::new(kind).opcode(CMD_SYNC)
}

const fn times(n: u64) -> Bounds {
    Bounds(n, n)
}

impl Shot {
    /// The call succeeds, and quickly.
    fn new(on: On, commands: Vec<Command>) -> Self {
        let want = Want {
            errno: 0,
            num: Num::Is(commands.len()),
            code: ErrorCode::None,
        };
        Shot {
            on,
            commands,
            rules: Vec::new(),
            want,
            raised: Raised::default(),
            time: (Duration::ZERO, QUICK),
            dma: None,
            atc_invs: 0,
            linger: Duration::ZERO,
        }
    }

    fn tlbis(n: usize) -> Self {
        Self::new(On::Edu, array(n, tlbi))
    }

    fn atcs(n: usize) -> Self {
        Self::new(On::Net, array(n, atc))
    }

    fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    fn fails(mut self, k: usize, code: ErrorCode) -> Self {
        self.want = Want {
            errno: libc::EIO,
            num: Num::Is(k),
            code,
        };
        self
    }

    /// `most` entries can be known to be complete.
    fn times_out(mut self, most: usize) -> Self {
        self.want = Want {
            errno: libc::ETIMEDOUT,
            num: if most == 0 {
                Num::Is(0)
            } else {
                Num::UpTo(most)
            },
            code: ErrorCode::None,
        };
        self
    }

    fn ill(mut self, bounds: Bounds) -> Self {
        self.raised.ill = bounds;
        self
    }

    fn abt(mut self, bounds: Bounds) -> Self {
        self.raised.abt = bounds;
        self
    }

    fn atc(mut self, bounds: Bounds) -> Self {
        self.raised.atc = bounds;
        self
    }

    fn stall(mut self, min: Duration, max: Duration) -> Self {
        self.raised.stalls = times(1);
        self.time = (min, max);
        self
    }

    /// The SMMU goes on to fail for a second, in which nothing may go round in circles.
    fn lingers(mut self) -> Self {
        self.linger = Duration::from_secs(1);
        self
    }

    /// DMA looks whether the first `k` entries are complete: the first and the last of them are for the
    /// pages that it reads. (Not with a rule for one of the two.)
    fn with_dma(mut self, k: usize) -> Self {
        if k > 0 {
            self.commands[0] = Command::tlbi_nh_va(ASID, PAGE_A, false);
        }
        if k > 1 {
            self.commands[k - 1] = Command::tlbi_nh_va(ASID, PAGE_B, false);
        }
        self.dma = Some([k > 0, k > 1]);
        self
    }

    /// The ATC_INV of entry `k` of `n` times out once.
    fn atc_once_at(k: usize, n: usize) -> Self {
        let mut shot = Self::atcs(n)
            .rule(at_atc(Kind::AtcInvSync, k))
            .atc(times(1));
        shot.atc_invs = n as u64 + 1;
        shot
    }

    /// CERROR_ILL at entry `k` of `n`.
    fn ill_at(k: usize, n: usize) -> Self {
        Self::tlbis(n)
            .rule(at_tlbi(Kind::Ill, k))
            .ill(times(1))
            .fails(k, ErrorCode::Ill)
    }

    /// CERROR_ABT at entry `k` of `n`, twice.
    fn abt_at(k: usize, n: usize) -> Self {
        Self::tlbis(n)
            .rule(at_tlbi(Kind::Abt, k).times(2))
            .abt(times(2))
            .fails(k, ErrorCode::Abt)
    }

    /// The ATC_INV of entry `k` of `n` times out whenever it is tried.
    fn atc_at(k: usize, n: usize) -> Self {
        Self::atcs(n)
            .rule(at_atc(Kind::AtcInvSync, k).forever())
            .atc(times(2))
            .fails(k, ErrorCode::AtcInvSync)
    }

    fn case(self, id: impl Into<String>, what: impl Into<String>) -> Case {
        let (want, on) = (lab::wanted(&self.want), self.on);
        let shots = [self];
        Case::new(id, what, want, move |lab| lab.shoot(&shots)).when(has(on))
    }
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
    none(&mut cases);
    ill(&mut cases);
    abt(&mut cases);
    atc_inv(&mut cases);
    sync(&mut cases);
    stall(&mut cases);
    several(&mut cases);
    shared(&mut cases);
    full(&mut cases);
    latency(&mut cases);
    cases
}

fn none(cases: &mut Vec<Case>) {
    let quiet = Shot::tlbis(LONG).with_dma(LONG);
    cases.push(quiet.case("none", "control: 200 TLBIs, no failure"));
    // What makes the rows with DMA mean something.
    let idle = Shot::tlbis(1);
    cases.push(Case::new(
        "none-stale",
        "control: a TLBI of another page leaves both pages stale",
        lab::wanted(&idle.want),
        move |lab| {
            let (_, sights) = lab.edu.experiment(|caller| caller.call(&idle.commands))?;
            // Which cleans up as well.
            let mut finding = lab.shoot(std::slice::from_ref(&idle))?;
            if !sights.stale || sights.fresh != [false; 2] {
                finding.faults.push(format!("{sights:?}"));
            }
            Ok(finding)
        },
    ));
    // A round trip to the SMMU for each batch is what takes the time on hardware.
    let many = Shot::tlbis(MANY).with_dma(MANY);
    cases.push(Case::new(
        "none-syncs",
        format!(
            "control: {MANY} TLBIs, in at most {} CMD_SYNCs",
            SYNCS.end()
        ),
        lab::wanted(&many.want),
        move |lab| {
            let (_, syncs) = call_and_count(lab, &many)?;
            let mut finding = lab.shoot(std::slice::from_ref(&many))?;
            if !SYNCS.contains(&syncs) {
                finding.faults.push(format!("{syncs} CMD_SYNCs"));
            }
            Ok(finding)
        },
    ));
    // All before a command that is refused have to be complete, for which it takes a CMD_SYNC.
    let mut refused = Shot::tlbis(200).with_dma(150).fails(150, ErrorCode::Ill);
    refused.commands[150] = Command::from_words(u64::from(CMD_SYNC), 0);
    cases.push(Case::new(
        "none-refused",
        "control: entry 150 of 200 is refused, after a CMD_SYNC",
        lab::wanted(&refused.want),
        move |lab| {
            let (_, syncs) = call_and_count(lab, &refused)?;
            let mut finding = lab.shoot(std::slice::from_ref(&refused))?;
            if syncs == 0 {
                finding.faults.push("no CMD_SYNC".into());
            }
            Ok(finding)
        },
    ));
    let atcs = Shot::atcs(LONG);
    cases.push(atcs.case("none-atc", "control: 200 ATC_INVs, no failure"));
}

fn ill(cases: &mut Vec<Case>) {
    for (k, n) in BORDERS {
        cases.push(Shot::ill_at(k, n).with_dma(k).case(
            format!("ill-{k}-of-{n}"),
            format!("CERROR_ILL at entry {k} of {n}"),
        ));
    }
    for (opcode, command) in [
        (op::CFGI_CD, Command::cfgi_cd(VSID, 0, true)),
        (op::CFGI_CD_ALL, Command::cfgi_cd_all(VSID)),
        (op::TLBI_NH_ALL, Command::tlbi_nh_all()),
        (op::TLBI_NH_ASID, Command::tlbi_nh_asid(ASID)),
        (op::TLBI_NH_VAA, Command::tlbi_nh_vaa(page(3), true)),
    ] {
        let mut shot = Shot::tlbis(7)
            .rule(Rule::new(Kind::Ill).opcode(opcode))
            .ill(times(1))
            .fails(3, ErrorCode::Ill);
        shot.commands[3] = command;
        cases.push(shot.case(
            format!("ill-opcode-{opcode:#04x}"),
            format!("CERROR_ILL at the only command of opcode {opcode:#04x}"),
        ));
    }
    cases.push(sweep(
        "ill-each-index",
        "CERROR_ILL at entry k of 200, for each k",
        "EIO k ILL",
        On::Edu,
        || each_index(Shot::ill_at),
    ));
    cases.push(sweep(
        "ill-each-size",
        "CERROR_ILL at the first, middle, last entry of n, for n up to 200",
        "EIO k ILL",
        On::Edu,
        || all_sizes(Shot::ill_at),
    ));
    let mut shot = Shot::ill_at(3, 7);
    shot.rules = vec![at_tlbi(Kind::Ill, 3).forever()];
    cases.push(shot.case(
        "ill-forever",
        "CERROR_ILL at entry 3 of 7 whenever it is fetched",
    ));
}

fn abt(cases: &mut Vec<Case>) {
    for (k, n) in [(0, 1), (5, 10), (130, LONG)] {
        let once = Shot::tlbis(n).rule(at_tlbi(Kind::Abt, k)).abt(times(1));
        // The first and the last entry are those that DMA looks at.
        let once = if k > 0 { once.with_dma(n) } else { once };
        cases.push(once.case(
            format!("abt-once-{k}-of-{n}"),
            format!("CERROR_ABT once, at entry {k} of {n}"),
        ));
    }
    for (k, n) in BORDERS {
        cases.push(Shot::abt_at(k, n).with_dma(k).case(
            format!("abt-twice-{k}-of-{n}"),
            format!("CERROR_ABT twice, at entry {k} of {n}"),
        ));
    }
    cases.push(sweep(
        "abt-twice-each-index",
        "CERROR_ABT twice at entry k of 200, for each k",
        "EIO k ABT",
        On::Edu,
        || each_index(Shot::abt_at),
    ));
    let places = Shot::tlbis(LONG)
        .rule(at_tlbi(Kind::Abt, 5))
        .rule(at_tlbi(Kind::Abt, 6))
        .rule(at_tlbi(Kind::Abt, 150))
        .abt(times(3))
        .with_dma(LONG);
    cases.push(places.case(
        "abt-once-thrice",
        "CERROR_ABT once at each of the entries 5, 6 and 150 of 200",
    ));
    let mut command = Shot::abt_at(5, 10).abt(Bounds(2, STORM));
    command.rules = vec![at_tlbi(Kind::Abt, 5).forever()];
    cases.push(
        command
            .case(
                "abt-forever-command",
                "CERROR_ABT at entry 5 of 10 whenever it is fetched",
            )
            .may_hang(),
    );
    for (k, n) in [(0, 1), (5, 10), (62, 63), (150, LONG)] {
        let skip = k as u32;
        let mut all = Shot::tlbis(n)
            .rule(Rule::new(Kind::Abt).skip(skip).forever())
            .abt(Bounds(2, STORM))
            .lingers()
            .fails(0, ErrorCode::Abt);
        if n > 63 {
            all.want.num = Num::UpTo(k);
        }
        cases.push(
            all.case(
                format!("abt-forever-{k}-of-{n}"),
                format!("CERROR_ABT for ever, from entry {k} of {n} on"),
            )
            .may_hang(),
        );
    }
}

fn atc_inv(cases: &mut Vec<Case>) {
    for (k, n) in BORDERS {
        cases.push(Shot::atc_once_at(k, n).case(
            format!("atc-once-{k}-of-{n}"),
            format!("the ATC_INV of entry {k} of {n} times out once"),
        ));
        cases.push(Shot::atc_at(k, n).case(
            format!("atc-forever-{k}-of-{n}"),
            format!("the ATC_INV of entry {k} of {n} times out for ever"),
        ));
    }
    cases.push(sweep(
        "atc-once-each-index",
        "the ATC_INV of entry k of 200 times out once, for each k",
        "0 200 -",
        On::Net,
        || each_index(Shot::atc_once_at),
    ));
    cases.push(sweep(
        "atc-forever-each-index",
        "the ATC_INV of entry k of 200 times out for ever, for each k",
        "EIO k ATC_INV_SYNC",
        On::Net,
        || each_index(Shot::atc_at),
    ));
    cases.push(sweep(
        "atc-forever-each-size",
        "the same at the first, middle, last of n, for n up to 200",
        "EIO k ATC_INV_SYNC",
        On::Net,
        || all_sizes(Shot::atc_at),
    ));
    let two = Shot::atc_at(20, 50).rule(at_atc(Kind::AtcInvSync, 30).forever());
    cases.push(two.case(
        "atc-forever-two",
        "the ATC_INVs of the entries 20 and 30 of 50 time out for ever",
    ));
    let mut each = Shot::atcs(50)
        .rule(Rule::new(Kind::AtcInvSync).opcode(op::ATC_INV).times(50))
        .atc(times(1));
    each.atc_invs = 100;
    cases.push(each.case("atc-once-all", "all of 50 ATC_INVs time out once, together"));
    cases.push(
        Case::new(
            "atc-dead",
            "all 50 ATC_INVs to the device time out, always",
            "EIO 0 ATC_INV_SYNC",
            |lab| {
                let stream = lab.net.as_ref().ok_or(Error::Missing("device with ATS"))?;
                let dead = Rule::new(Kind::AtcInvSync).stream(stream.stream_id());
                // One time-out more, not one for each.
                lab.shoot(&[Shot::atcs(50)
                    .rule(dead.opcode(op::ATC_INV).forever())
                    .atc(times(2))
                    .fails(0, ErrorCode::AtcInvSync)])
            },
        )
        .when(has(On::Net)),
    );
    // An SMMU that has ATS takes an ATC_INV for a device that has none, and DMA can look.
    for (k, n) in [(5, 10), (130, LONG)] {
        let mut shot = Shot::atc_at(k, n).with_dma(k);
        shot.on = On::Edu;
        let what =
            format!("TLBIs before the ATC_INV of entry {k} of {n}, which times out for ever");
        cases.push(
            shot.case(format!("atc-forever-dma-{k}"), what)
                .when(|lab| lab.edu.smmu_has_ats()),
        );
    }
    let mixed = |i| if i % 2 == 0 { tlbi(i) } else { atc(i) };
    let mixed = Shot::new(On::Net, array(LONG, mixed))
        .rule(at_atc(Kind::AtcInvSync, 101).forever())
        .atc(times(2))
        .fails(101, ErrorCode::AtcInvSync);
    cases.push(mixed.case(
        "atc-forever-mixed",
        "TLBIs and ATC_INVs in turns; that of entry 101 times out for ever",
    ));
    let foreign = Shot::tlbis(10)
        .rule(at_sync(Kind::AtcInvSync))
        .atc(times(1))
        .with_dma(10);
    cases.push(foreign.case(
        "atc-foreign",
        "CERROR_ATC_INV_SYNC in an array without any ATC_INV",
    ));
    let ill = Shot::atcs(10)
        .rule(at_atc(Kind::Ill, 7))
        .ill(times(1))
        .fails(7, ErrorCode::Ill);
    cases.push(ill.case("atc-ill", "CERROR_ILL at the ATC_INV of entry 7 of 10"));
}

fn sync(cases: &mut Vec<Case>) {
    let ill = |n| {
        Shot::tlbis(n)
            .rule(at_sync(Kind::Ill))
            .ill(times(1))
            .with_dma(n)
    };
    cases.push(ill(10).case("sync-ill-once", "CERROR_ILL once, at the CMD_SYNC"));
    cases.push(ill(2500).case(
        "sync-ill-once-long",
        "CERROR_ILL once, at the first CMD_SYNC of an array of 2500",
    ));
    for n in [1, 2] {
        let abt = Shot::tlbis(10)
            .rule(at_sync(Kind::Abt).times(n))
            .abt(times(n.into()))
            .with_dma(10);
        cases.push(abt.case(
            format!("sync-abt-{n}"),
            format!("CERROR_ABT at the CMD_SYNC, {n} times"),
        ));
    }
    for n in [10, LONG] {
        let forever = Shot::tlbis(n)
            .rule(at_sync(Kind::Ill).forever())
            .ill(Bounds(1, STORM))
            .lingers()
            .times_out(0);
        cases.push(
            forever
                .case(
                    format!("sync-ill-forever-{n}"),
                    format!("each CMD_SYNC is illegal, in an array of {n}"),
                )
                .may_hang(),
        );
    }
}

fn stall(cases: &mut Vec<Case>) {
    let ms = Duration::from_millis;
    let short = Shot::tlbis(10)
        .rule(at_tlbi(Kind::Stall(300), 5))
        .stall(ms(290), ms(800))
        .with_dma(10);
    cases.push(short.case(
        "stall-300",
        "nothing is consumed for 300 ms, from entry 5 of 10 on",
    ));
    for (k, n, most) in [(5, 10, 0), (0, 1, 0), (130, LONG, 130), (1500, 2500, 1500)] {
        let long = Shot::tlbis(n)
            .rule(at_tlbi(Kind::Stall(1500), k))
            .stall(LIMIT - ms(100), LIMIT + ms(400))
            .times_out(most);
        cases.push(long.case(
            format!("stall-1500-{k}-of-{n}"),
            format!("nothing is consumed for 1500 ms, from entry {k} of {n} on"),
        ));
    }
    // As far as it got, nobody can know what is complete without a CMD_SYNC.
    let unknown = Shot::tlbis(1000)
        .rule(at_tlbi(Kind::Stall(0), 500))
        .times_out(500);
    cases.push(Case::new(
        "stall-count",
        "nothing is consumed any more from entry 500 of 1000 on",
        lab::wanted(&unknown.want),
        move |lab| {
            let (got, syncs) = call_and_count(lab, &unknown)?;
            // Which cleans up as well.
            let mut finding = lab.shoot(&[Shot::tlbis(1)])?;
            if got.errno != libc::ETIMEDOUT
                || got.entry_num > 500
                || (got.entry_num > 0 && syncs == 0)
            {
                finding
                    .faults
                    .push(format!("after {syncs} CMD_SYNCs: {}", lab::show(&got)));
            }
            finding.got = Some(got);
            Ok(finding)
        },
    ));
    // The CMD_SYNC behind entry 63 has completed all before, but for an ATC_INV that is sent again.
    let mut commands = array(63, tlbi);
    commands.extend((63..70).map(atc));
    let mut again = Shot::new(On::Net, commands)
        .rule(at_atc(Kind::AtcInvSync, 63))
        .rule(at_atc(Kind::Stall(1500), 63))
        .atc(times(1))
        .stall(LIMIT - ms(100), LIMIT + ms(400))
        .times_out(63);
    again.want.num = Num::Is(63);
    cases.push(again.case(
        "stall-replay",
        "the ATC_INV of entry 63 of 70 times out, and a stall of 1500 ms when it is replayed",
    ));
    let forever = Shot::tlbis(10)
        .rule(at_tlbi(Kind::Stall(0), 5))
        .stall(LIMIT - ms(100), LIMIT + ms(400))
        .times_out(0);
    cases.push(forever.case(
        "stall-open-end",
        "nothing is consumed any more from entry 5 of 10 on",
    ));
}

fn several(cases: &mut Vec<Case>) {
    let ill = || Shot::ill_at(2, 10).with_dma(2);
    cases.push(
        ill()
            .rule(at_tlbi(Kind::Ill, 7))
            .ill(Bounds(1, 2))
            .case("two-ill-ill", "CERROR_ILL at the entries 2 and 7 of 10"),
    );
    cases.push(
        ill()
            .rule(at_tlbi(Kind::Abt, 7).times(2))
            .abt(Bounds(0, 2))
            .case(
                "two-ill-abt",
                "CERROR_ILL at entry 2, CERROR_ABT twice at entry 7",
            ),
    );
    cases.push(
        Shot::abt_at(2, 10)
            .rule(at_tlbi(Kind::Ill, 7))
            .ill(Bounds(0, 1))
            .with_dma(2)
            .case(
                "two-abt-ill",
                "CERROR_ABT twice at entry 2, CERROR_ILL at entry 7",
            ),
    );
    cases.push(
        Shot::ill_at(7, 10)
            .rule(at_tlbi(Kind::Abt, 2))
            .abt(times(1))
            .with_dma(7)
            .case(
                "two-healed-abt-ill",
                "CERROR_ABT once at entry 2, CERROR_ILL at entry 7",
            ),
    );
    cases.push(ill().rule(at_sync(Kind::Ill)).ill(times(2)).case(
        "two-ill-sync",
        "CERROR_ILL at entry 2, and once at a CMD_SYNC",
    ));
    // As the illegal command becomes a CMD_SYNC, that one takes the time-outs of the ATC_INVs before it.
    cases.push(
        Shot::atc_at(2, 10)
            .rule(at_atc(Kind::Ill, 7))
            .ill(Bounds(0, 1))
            .case(
                "two-atc-ill",
                "the ATC_INV of entry 2 times out for ever, CERROR_ILL at entry 7",
            ),
    );
    cases.push(
        Shot::atcs(10)
            .rule(at_atc(Kind::Ill, 2))
            .rule(at_atc(Kind::AtcInvSync, 7).forever())
            .ill(times(1))
            .atc(Bounds(0, 2))
            .fails(2, ErrorCode::Ill)
            .case(
                "two-ill-atc",
                "CERROR_ILL at entry 2, the ATC_INV of entry 7 times out for ever",
            ),
    );
    cases.push(
        Shot::atcs(10)
            .rule(at_atc(Kind::AtcInvSync, 2))
            .rule(at_atc(Kind::Ill, 7))
            .ill(times(1))
            .atc(times(1))
            .fails(7, ErrorCode::Ill)
            .case(
                "two-healed-atc-ill",
                "the ATC_INV of entry 2 times out once, CERROR_ILL at entry 7",
            ),
    );
    cases.push(
        Shot::atc_at(2, 10)
            .rule(at_atc(Kind::Abt, 7).times(2))
            .abt(Bounds(0, 2))
            .case(
                "two-atc-abt",
                "the ATC_INV of entry 2 times out for ever, CERROR_ABT at entry 7",
            ),
    );
    cases.push(sweep(
        "random",
        "300 arrays with up to three failures at random places",
        "as the first says",
        On::Net,
        || {
            let mut random = Random(0x5eed_cafe_f00d_d00d);
            (0..300).map(|_| random_shot(&mut random)).collect()
        },
    ));
}

/// A small generator of numbers, the same ones each time (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

/// TLBIs and ATC_INVs, and failures at up to three of them. The first one that does not heal is the
/// answer.
fn random_shot(random: &mut Random) -> Shot {
    let longest = [LONG, LONG, 10 * LONG][random.below(3)];
    let n = 1 + random.below(longest);
    // Where they are few, there are batches without any.
    let one_in = [2, 2, 200][random.below(3)];
    let is_atc: Vec<bool> = (0..n).map(|_| random.below(one_in) == 0).collect();
    let commands = (0..n).map(|i| if is_atc[i] { atc(i) } else { tlbi(i) });
    let mut shot = Shot::new(On::Net, commands.collect());
    let mut at: Vec<usize> = (0..random.below(4)).map(|_| random.below(n)).collect();
    at.sort();
    at.dedup();
    let mut answered = false;
    for k in at {
        let rule = |kind| {
            if is_atc[k] {
                at_atc(kind, k)
            } else {
                at_tlbi(kind, k)
            }
        };
        // What comes behind the one that is answered may happen or not.
        let some = |n| if answered { Bounds(0, n) } else { times(n) };
        let (rule, fatal) = match random.below(if is_atc[k] { 5 } else { 3 }) {
            0 => {
                shot.raised.ill.add(some(1));
                (rule(Kind::Ill), Some(ErrorCode::Ill))
            }
            1 => {
                shot.raised.abt.add(some(1));
                (rule(Kind::Abt), None)
            }
            2 => {
                shot.raised.abt.add(some(2));
                (rule(Kind::Abt).times(2), Some(ErrorCode::Abt))
            }
            // Two in one batch are one error.
            3 => {
                shot.raised.atc.add(Bounds(0, 1));
                (rule(Kind::AtcInvSync), None)
            }
            _ => {
                shot.raised.atc.add(Bounds(u64::from(!answered), 2));
                (
                    rule(Kind::AtcInvSync).forever(),
                    Some(ErrorCode::AtcInvSync),
                )
            }
        };
        shot.rules.push(rule);
        if let (Some(code), false) = (fatal, answered) {
            shot = shot.fails(k, code);
            answered = true;
        }
    }
    shot
}

fn shared(cases: &mut Vec<Case>) {
    const ROUNDS: usize = 30;
    cases.push(among_others(
        "shared-none",
        "control: no failure, among others",
        "0 200 -",
        On::Edu,
        || vec![Shot::tlbis(LONG); ROUNDS],
    ));
    cases.push(among_others(
        "shared-ill",
        "CERROR_ILL at entry 100 of 200, among others",
        "EIO 100 ILL",
        On::Edu,
        || vec![Shot::ill_at(100, LONG); ROUNDS],
    ));
    cases.push(among_others(
        "shared-abt",
        "CERROR_ABT twice at entry 100 of 200, among others",
        "EIO 100 ABT",
        On::Edu,
        || vec![Shot::abt_at(100, LONG); ROUNDS],
    ));
    cases.push(among_others(
        "shared-atc",
        "the ATC_INV of entry 100 of 200 times out for ever, among others",
        "EIO 100 ATC_INV_SYNC",
        On::Net,
        || {
            // Whoever has the next CMD_SYNC in the queue takes the error: it can take more of them.
            let shot = Shot::atc_at(100, LONG).atc(Bounds(2, 4));
            vec![shot; ROUNDS]
        },
    ));
    cases.push(among_others(
        "shared-sync-ill",
        "CERROR_ILL once at a CMD_SYNC, whosever it is, among others",
        "0 200 -",
        On::Edu,
        || {
            let shot = Shot::tlbis(LONG).rule(at_sync(Kind::Ill)).ill(times(1));
            vec![shot; ROUNDS]
        },
    ));
    cases.push(among_others(
        "shared-sync-abt",
        "CERROR_ABT twice at a CMD_SYNC, whosever it is, among others",
        "0 200 -",
        On::Edu,
        || {
            let shot = Shot::tlbis(LONG)
                .rule(at_sync(Kind::Abt).times(2))
                .abt(times(2));
            vec![shot; ROUNDS]
        },
    ));
    cases.push(among_others(
        "shared-sync-atc",
        "CERROR_ATC_INV_SYNC at a CMD_SYNC, whosever it is, among others",
        "0 200 -",
        On::Edu,
        || {
            let shot = Shot::tlbis(LONG)
                .rule(at_sync(Kind::AtcInvSync))
                .atc(times(1));
            vec![shot; ROUNDS]
        },
    ));
    cases.push(
        Case::new(
            "shared-ill-irq",
            "CERROR_ILL among others, the interrupt on each CPU in turn",
            "EIO 100 ILL",
            |lab| {
                let mut sum = Finding::default();
                for cpu in 0..lab::cpus() {
                    lab::route_gerror(&cpu.to_string())?;
                    let host = lab.other_caller()?;
                    let shots = vec![Shot::ill_at(100, LONG); 10];
                    sum.absorb(lab.shoot_among_others(&shots, host)?);
                }
                lab::route_gerror(&format!("0-{}", lab::cpus() - 1))?;
                Ok(sum)
            },
        )
        .when(|lab| lab.other.is_some() && lab::cpus() > 1),
    );
    cases.push(
        Case::new(
            "shared-host-atc",
            "each ATC_INV of the host, in unmapping, times out, among others",
            "0 200 -",
            |lab| {
                let net = lab.net.as_ref().ok_or(Error::Missing("device with ATS"))?;
                let (host, stream) = (net.caller(), net.stream_id());
                let dead = Rule::new(Kind::AtcInvSync).opcode(op::ATC_INV);
                let shot = Shot::tlbis(LONG).rule(dead.stream(stream).forever());
                let mut shots = vec![shot; ROUNDS];
                // How many there are depends on the host alone.
                shots[0].raised.atc = Bounds(1, u64::MAX);
                lab.shoot_among_others(&shots, host)
            },
        )
        .when(|lab| lab.other.is_some() && lab.net.is_some()),
    );
    cases.push(
        Case::new(
            "shared-each-own",
            "calls of several VMs at once, each with a failure of its own or none",
            "each its own",
            |lab| each_own(lab, ROUNDS),
        )
        .when(|lab| lab.other.is_some()),
    );
    cases.push(
        Case::new(
            "shared-abt-forever",
            "CERROR_ABT for ever: two VMs call at the same time",
            "both: EIO 0 ABT",
            |lab| {
                let (mine, others) = (lab.caller(On::Edu)?, lab.other_caller()?);
                let calls = vec![(mine, array(10, tlbi)), (others, array(10, tlbi))];
                let before = lab.control.stats()?;
                let answers = lab.volley(&[Rule::new(Kind::Abt).forever()], calls)?;
                let want = Want {
                    errno: libc::EIO,
                    num: Num::Is(0),
                    code: ErrorCode::Abt,
                };
                let mut finding = volley_finding(&answers, &[want], 2 * QUICK);
                lab.after_volley(before, &mut finding)?;
                if finding.stats.abt > 2 * STORM {
                    finding.faults.push("an interrupt storm".into());
                }
                Ok(finding)
            },
        )
        .when(|lab| lab.other.is_some())
        .may_hang(),
    );
}

/// Several calls at once, over and over; which command fails is told by the address in it.
fn each_own(lab: &mut Lab, rounds: usize) -> Result<Finding, Error> {
    let mut shots = vec![
        (lab.caller(On::Edu)?, Shot::ill_at(10, LONG)),
        (lab.other_caller()?, Shot::abt_at(130, LONG)),
        (lab.caller(On::Edu)?, Shot::tlbis(LONG)),
        (lab.other_caller()?, Shot::ill_at(199, LONG)),
    ];
    if lab.net.is_some() {
        // Whoever has the next CMD_SYNC in the queue takes the error: it can take more of them.
        let shot = Shot::atc_at(70, 100).atc(Bounds(2, 8));
        shots.push((lab.caller(On::Net)?, shot));
    }
    let mut rules = Vec::new();
    let mut raised = Raised::default();
    for (i, (_, shot)) in shots.iter_mut().enumerate() {
        let apart = (i as u64) << 32;
        for command in &mut shot.commands {
            let [w0, w1] = command.words();
            *command = Command::from_words(w0, w1 + apart);
        }
        for rule in &shot.rules {
            rules.push(rule.apart(apart));
        }
        raised.add(&shot.raised);
    }
    let mut sum = Finding::default();
    for _ in 0..rounds {
        let before = lab.control.stats()?;
        let calls = shots
            .iter()
            .map(|(caller, shot)| (caller.clone(), shot.commands.clone()));
        let answers = lab.volley(&rules, calls.collect())?;
        let mut finding = Finding::default();
        for (i, ((got, time), (_, shot))) in answers.iter().zip(&shots).enumerate() {
            finding.time = finding.time.max(*time);
            if !shot.want.is(got) || *time > 2 * QUICK {
                finding.faults.push(format!(
                    "call {i}: {} after {time:?} should be {}",
                    lab::show(got),
                    lab::wanted(&shot.want)
                ));
            }
        }
        lab.after_volley(before, &mut finding)?;
        raised.judge(finding.stats, &mut finding.faults);
        sum.absorb(finding);
        if sum.faults.len() > 10 {
            break;
        }
    }
    Ok(sum)
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

fn full(cases: &mut Vec<Case>) {
    const CALLS: usize = 6;
    const COMMANDS: usize = 100;
    let volley = |lab: &mut Lab, stall: u32, wants: &[Want], most: Duration| {
        let before = lab.control.stats()?;
        let mut calls = Vec::new();
        for i in 0..CALLS {
            let caller = match i % 2 {
                0 => lab.caller(On::Edu)?,
                _ => lab.other_caller()?,
            };
            calls.push((caller, array(COMMANDS, tlbi)));
        }
        let answers = lab.volley(&[Rule::new(Kind::Stall(stall))], calls)?;
        let mut finding = volley_finding(&answers, wants, most);
        lab.after_volley(before, &mut finding)?;
        Ok(finding)
    };
    let applies: fn(&Lab) -> bool = |lab| lab.other.is_some() && 1 << lab.cmdqs < CALLS * COMMANDS;
    let done = Want {
        errno: 0,
        num: Num::Is(COMMANDS),
        code: ErrorCode::None,
    };
    let late = Want {
        errno: libc::ETIMEDOUT,
        num: Num::UpTo(COMMANDS - 1),
        code: ErrorCode::None,
    };
    cases.push(
        Case::new(
            "full-short",
            "6 calls of 100 fill the queue while nothing is consumed for 400 ms",
            lab::wanted(&done),
            move |lab| volley(lab, 400, &[done], LIMIT),
        )
        .when(applies)
        .may_hang(),
    );
    cases.push(
        Case::new(
            "full-open-end",
            "6 calls of 100 fill the queue, and nothing is consumed any more",
            lab::wanted(&late),
            // On one CPU a call may have to wait for the others' time limits.
            move |lab| volley(lab, 0, &[late], 2 * LIMIT * CALLS as u32),
        )
        .when(applies)
        .may_hang(),
    );
}

fn latency(cases: &mut Vec<Case>) {
    const ROUNDS: usize = 20;
    let row = |id: &str, what: &'static str, want: &str, irq: fn() -> usize, shot: fn() -> Shot| {
        Case::new(id, what, want, move |lab| {
            let here = 0;
            lab::run_on([here].into_iter())?;
            if lab::cpus() > 1 {
                lab::route_gerror(&irq().to_string())?;
            }
            let mut sum = Finding::default();
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let finding = lab.shoot(&[shot()])?;
                times.push(finding.time);
                sum.absorb(finding);
            }
            sum.faults.truncate(3);
            times.sort();
            lab.latencies.push(Latency {
                what: what.into(),
                times,
            });
            if lab::cpus() > 1 {
                lab::route_gerror(&format!("0-{}", lab::cpus() - 1))?;
            }
            lab::run_on(0..lab::cpus())?;
            Ok(sum)
        })
    };
    let quiet = || Shot::tlbis(10);
    let ill = || Shot::ill_at(5, 10);
    cases.push(row(
        "latency-none",
        "10 TLBIs, no failure",
        "0 10 -",
        || 0,
        quiet,
    ));
    cases.push(row(
        "latency-ill-here",
        "CERROR_ILL at entry 5 of 10, the interrupt on this CPU",
        "EIO 5 ILL",
        || 0,
        ill,
    ));
    cases.push(
        row(
            "latency-ill-elsewhere",
            "CERROR_ILL at entry 5 of 10, the interrupt on another CPU",
            "EIO 5 ILL",
            || lab::cpus() - 1,
            ill,
        )
        .when(|_| lab::cpus() > 1),
    );
}
