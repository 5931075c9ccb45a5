// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ATC_INVs that are not answered.

use std::thread;
use std::time::Instant;

use crate::lab::Trace;
use crate::vm::HostPage;

use super::*;

pub fn rows(cases: &mut Vec<Case>) {
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
    // Here DMA can look, by another device of the VM.
    for (k, n) in [(5, 10), (130, LONG)] {
        let mut shot = Shot::tlbis(n).with_dma(k);
        shot.commands[k] = Command::atc_inv(ATS_VSID, page(k), 0);
        let shot = shot
            .rule(at_atc(Kind::AtcInvSync, k).forever())
            .atc(times(2))
            .fails(k, ErrorCode::AtcInvSync);
        let what =
            format!("TLBIs before the ATC_INV of entry {k} of {n}, which times out for ever");
        cases.push(
            shot.case(format!("atc-forever-dma-{k}"), what)
                .when(|lab| lab.edu_has_net),
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
    unknown(cases);
    ats_off(cases);
    blocked(cases);
    late(cases);
    backoff(cases);
}

/// How many ATC_INVs the SMMU has got since then.
fn issued(lab: &mut Lab, before: Stats) -> Result<u64, Error> {
    Ok(lab.control.stats()?.since(before).atc_invs)
}

/// There is not enough time to find out which ATC_INV it was.
fn unknown(cases: &mut Vec<Case>) {
    // Each that is sent again is answered after 270 ms: of four, that is more than the second.
    let mut shot = Shot::atcs(10)
        .rule(at_atc(Kind::AtcInvSync, 9))
        .atc(times(1))
        .fails(4, ErrorCode::AtcInvSync);
    for k in 0..10 {
        shot = shot.rule(
            at_atc(Kind::Stall(270), k)
                .skip(u32::from(k != 9))
                .forever(),
        );
    }
    shot.raised.stalls = times(4);
    // The time for sending them again is over; how long 270 ms are is up to the emulator.
    shot.time = (Duration::from_secs(1), GIVEN_UP.1);
    shot.atc_invs = 14;
    cases.push(shot.case(
        "atc-unknown",
        "the ATC_INV of entry 9 of 10 times out, and each takes 270 ms when it is sent again",
    ));
}

/// A device that does not answer the host has its ATS blocked.
fn blocked(cases: &mut Vec<Case>) {
    let run = |lab: &mut Lab| {
        let mut calls = Calls::to_dead_device(lab, 0)?;
        calls.lab.control.set(&[])?;
        calls.eats("at first", true)?;
        let sid = calls.lab.vm(On::Net)?.stream_id();
        let answer = |lab: &mut Lab| lab.control.set(&[]);

        // One time-out is none: it answers the second.
        let dead = Rule::new(Kind::AtcInvSync).opcode(op::ATC_INV).stream(sid);
        calls.unmap(&[dead])?;
        calls.eats("after one time-out", true)?;

        calls.unmap(&[dead.forever()])?;
        calls.eats("after two time-outs", false)?;
        answer(calls.lab)?;
        // ATS stays enabled in this.
        calls.lab.vm(On::Net)?.attach()?;
        calls.eats("after an attach that changes nothing", false)?;
        calls.lab.vm(On::Net)?.attach_without_ats()?;
        calls.lab.vm(On::Net)?.attach()?;
        calls.eats("after an attach that enables ATS", true)?;

        calls.unmap(&[dead.forever()])?;
        calls.eats("after two time-outs more", false)?;
        answer(calls.lab)?;
        calls.lab.vm(On::Net)?.reset();
        calls.eats("after a reset", true)?;
        calls.end()
    };
    let what = "the host's ATC_INVs time out twice: ATS is blocked, until it is enabled anew";
    cases.push(Case::new("ats-blocked", what, "EATS 0", run).when(has(On::Net)));
}

/// A device that can do nothing with an ATC_INV: it is complete, and nobody has to wait for it.
fn ats_off(cases: &mut Vec<Case>) {
    let mut shot = Shot::tlbis(10).with_dma(10);
    shot.commands[3] = atc(3);
    shot.commands[7] = atc(7);
    let of_edu = shot.clone();
    cases.push(
        Case::new(
            "atc-off",
            "ATC_INVs among TLBIs, to a device without ATS, which would time out",
            "0 10 -",
            move |lab| {
                if lab.net.is_some() {
                    lab.attach_net()?;
                }
                let before = lab.control.stats()?;
                let mut shot = of_edu.clone();
                shot.rules = vec![Rule::new(Kind::AtcInvSync).opcode(op::ATC_INV).forever()];
                let mut finding = lab.shoot(&[shot])?;
                let n = issued(lab, before)?;
                if n != 0 {
                    finding.faults.push(format!("{n} were issued"));
                }
                Ok(finding)
            },
        )
        .when(|lab| lab.edu.smmu_has_ats()),
    );
    shot.on = On::Net;
    shot.dma = None;
    cases.push(
        Case::new(
            "atc-off-ste",
            "the same for a device whose STE has ATS off, and then on",
            "0 10 -",
            move |lab| {
                let net = lab.net.as_mut().ok_or(Error::Missing("device with ATS"))?;
                net.attach_without_ats()?;
                let before = lab.control.stats()?;
                let mut finding = lab.shoot(std::slice::from_ref(&shot))?;
                let off = issued(lab, before)?;
                lab.attach_net()?;
                let before = lab.control.stats()?;
                finding.absorb(lab.shoot(std::slice::from_ref(&shot))?);
                let on = issued(lab, before)?;
                if (off, on) != (0, 2) {
                    let fault = format!("{off} issued with ATS off, {on} of 2 with ATS on");
                    finding.faults.push(fault);
                }
                Ok(finding)
            },
        )
        .when(has(On::Net)),
    );
}

/// What a sequence of calls is answered, and how many ATC_INVs come of it.
struct Calls<'a> {
    lab: &'a mut Lab,
    finding: Finding,
    before: Stats,
    counted: Stats,
}

impl<'a> Calls<'a> {
    /// The device is attached anew, and answers no ATC_INV; the SMMU waits for it for so long.
    fn to_dead_device(lab: &'a mut Lab, ms: u32) -> Result<Self, Error> {
        lab.attach_net()?;
        let before = lab.control.stats()?;
        let mut calls = Calls {
            lab,
            finding: Finding::default(),
            before,
            counted: before,
        };
        calls.is_dead(ms)?;
        Ok(calls)
    }

    fn is_dead(&mut self, ms: u32) -> Result<(), Error> {
        let dead = Rule::new(Kind::AtcTimeout(ms)).opcode(op::ATC_INV);
        Ok(self.lab.control.set(&[dead.forever()])?)
    }

    /// Makes a call of `commands`. Gives when it was. The emulator is not asked for anything, as the time
    /// that this takes would be missing between two calls.
    fn call(
        &mut self,
        what: &str,
        commands: &[Command],
        want: Want,
    ) -> Result<(Instant, Instant), Error> {
        let caller = self.lab.caller(On::Net)?;
        let start = Instant::now();
        let (got, time) = caller.call(commands);
        let end = Instant::now();
        if !want.is(&got) {
            let (got, want) = (lab::show(&got), lab::wanted(&want));
            let fault = format!("{what}: {got}, not {want}");
            self.finding.faults.push(fault);
        }
        self.finding.got = Some(got);
        self.finding.time = self.finding.time.max(time);
        Ok((start, end))
    }

    /// The host unmaps something under these rules.
    fn unmap(&mut self, rules: &[Rule]) -> Result<(), Error> {
        let host = self.lab.caller(On::Net)?;
        let page = HostPage::filled(1, 0);
        host.map(&page).map_err(Error::Map)?;
        self.lab.control.set(rules)?;
        host.unmap(&page).map_err(Error::Map)
    }

    /// Whether the stream table entry of the device allows ATS.
    fn eats(&mut self, when: &str, want: bool) -> Result<(), Error> {
        let stream_id = self.lab.vm(On::Net)?.stream_id();
        // A work of the kernel's sees to it.
        thread::sleep(QUICK);
        let eats = self.lab.control.eats(stream_id)?;
        if (eats != 0) != want {
            self.finding.faults.push(format!("{when}: EATS is {eats}"));
        }
        Ok(())
    }

    /// So many ATC_INVs have been issued since this was asked last.
    fn issued(&mut self, want: u64) -> Result<(), Error> {
        let n = issued(self.lab, self.counted)?;
        if n != want {
            let fault = format!("{n} ATC_INVs issued, not {want}");
            self.finding.faults.push(fault);
        }
        self.counted = self.lab.control.stats()?;
        Ok(())
    }

    /// The device is attached anew, and the queue works.
    fn end(mut self) -> Result<Finding, Error> {
        self.lab.attach_net()?;
        self.lab.recover(On::Net, &mut self.finding)?;
        self.finding.stats = self.lab.control.stats()?.since(self.before);
        Ok(self.finding)
    }
}

fn done(n: usize) -> Want {
    Want {
        errno: 0,
        num: Num::Is(n),
        code: ErrorCode::None,
    }
}

fn not_answered(k: usize) -> Want {
    Want {
        errno: libc::EIO,
        num: Num::Is(k),
        code: ErrorCode::AtcInvSync,
    }
}

const TOO_LATE: Want = Want {
    errno: libc::ETIMEDOUT,
    num: Num::Is(0),
    code: ErrorCode::None,
};

/// An error that comes when its submitter is gone.
fn late(cases: &mut Vec<Case>) {
    let mut row =
        |id: &str, what: &str, want: &str, run: fn(&mut Lab) -> Result<Finding, Error>| {
            cases.push(Case::new(id, what, want, run).when(has(On::Net)));
        };
    row(
        "late-1500",
        "an ATC_INV that times out after 1.5 s: the next call is told, and once",
        "ETIMEDOUT 0 -, EIO 1 ATC_INV_SYNC, 0 2 -",
        |lab| {
            let mut calls = Calls::to_dead_device(lab, 1500)?;
            let commands = [tlbi(0), atc(1)];
            calls.call("the first", &commands, TOO_LATE)?;
            let (_, told) = calls.call("the second", &commands, not_answered(1))?;
            calls.issued(1)?;
            calls.lab.control.set(&[])?;
            sleep_until(told + LIMIT);
            calls.call("after a second", &commands, done(2))?;
            calls.issued(1)?;
            calls.end()
        },
    );
    row(
        "late-2500",
        "an ATC_INV that times out after 2.5 s: nothing is issued until then",
        "ETIMEDOUT 0 - twice, EIO 0 ATC_INV_SYNC",
        |lab| {
            let mut calls = Calls::to_dead_device(lab, 2500)?;
            let commands = [atc(0)];
            calls.call("the first", &commands, TOO_LATE)?;
            calls.call("the second", &commands, TOO_LATE)?;
            calls.call("the third", &commands, not_answered(0))?;
            calls.issued(1)?;
            calls.end()
        },
    );
    row(
        "late-answer",
        "an ATC_INV that is answered after 1.5 s: the next one is issued then",
        "ETIMEDOUT 0 -, 0 1 -",
        |lab| {
            let mut calls = Calls::to_dead_device(lab, 0)?;
            calls.lab.control.set(&[at_atc(Kind::Stall(1500), 0)])?;
            calls.call("the first", &[atc(0)], TOO_LATE)?;
            calls.call("the second", &[atc(1)], done(1))?;
            calls.issued(2)?;
            calls.end()
        },
    );
    cases.push(
        Case::new(
            "late-others",
            "an ATC_INV that times out after 1.5 s: another VM is told of nothing",
            "ETIMEDOUT 0 -; the other: 0 2 -",
            |lab| {
                let other = lab.other_caller()?;
                let mut calls = Calls::to_dead_device(lab, 1500)?;
                calls.call("the first", &[atc(0)], TOO_LATE)?;
                // The error comes while this waits, behind the CMD_SYNC that fails.
                let (got, _) = other.call(&array(2, tlbi));
                if !done(2).is(&got) {
                    let fault = format!("the other: {}", lab::show(&got));
                    calls.finding.faults.push(fault);
                }
                calls.end()
            },
        )
        .when(|lab| lab.other.is_some() && lab.net.is_some()),
    );
}

fn sleep_until(time: Instant) {
    thread::sleep(time.saturating_duration_since(Instant::now()));
}

/// The tracepoint of a back-off, which ends with its length.
const BACKOFF_EVENT: &str = "arm_smmu_cmdq_backoff";

/// A device that does not answer may not hold up the queue again and again.
fn backoff(cases: &mut Vec<Case>) {
    const SECOND: Duration = Duration::from_secs(1);
    let mut row =
        |id: &str, what: &str, want: &str, run: fn(&mut Lab) -> Result<Finding, Error>| {
            cases.push(Case::new(id, what, want, run).when(has(On::Net)));
        };
    row(
        "backoff-doubles",
        "a dead device: ATC_INVs are refused for 1 s, then 2, 4 .. 64, and again for 64",
        "EIO 0 ATC_INV_SYNC",
        |lab| {
            // A kernel that refuses none does not count them.
            let count = || lab::debugfs("refused").unwrap_or(0);
            let refused = count();
            let trace = Trace::start(BACKOFF_EVENT);
            let mut calls = Calls::to_dead_device(lab, 0)?;
            let mut expected = 0;
            let all_seconds = [1, 2, 4, 8, 16, 32, 64, 64];
            for seconds in all_seconds {
                let time = seconds * SECOND;
                let (start, end) = calls.call("issued", &[atc(0)], not_answered(0))?;
                // Just before it is over.
                for at in [start, start + time - SECOND / 10] {
                    sleep_until(at);
                    let (_, now) = calls.call("refused", &[atc(0)], not_answered(0))?;
                    if now >= start + time {
                        return Err(Error::Slow);
                    }
                    expected += 1;
                }
                // It, and once more by itself.
                calls.issued(2)?;
                sleep_until(end + time);
            }
            let refused = count() - refused;
            if refused != expected {
                let fault = format!("{refused} refused in debugfs, not {expected}");
                calls.finding.faults.push(fault);
            }
            let traced = trace.end();
            if traced != all_seconds.map(|seconds| format!("msecs={seconds}000")) {
                let fault = format!("{BACKOFF_EVENT} was traced as {traced:?}");
                calls.finding.faults.push(fault);
            }
            calls.end()
        },
    );
    row(
        "backoff-before",
        "in that time: what is before the ATC_INV of entry 5 of 10 is executed",
        "EIO 5 ATC_INV_SYNC",
        |lab| {
            let mut calls = Calls::to_dead_device(lab, 0)?;
            let mut commands = array(10, tlbi);
            commands[5] = atc(5);
            calls.call("issued", &[atc(0)], not_answered(0))?;
            calls.call("refused", &commands, not_answered(5))?;
            calls.issued(2)?;
            let stats = calls.lab.control.stats()?;
            let tlbis = stats.since(calls.before).tlbi_nh_vas;
            if tlbis != 5 {
                calls.finding.faults.push(format!("{tlbis} TLBIs executed"));
            }
            calls.end()
        },
    );
    row(
        "backoff-attach",
        "in that time: an attach ends it, if the device answers then",
        "EIO 0 ATC_INV_SYNC",
        |lab| {
            let mut calls = Calls::to_dead_device(lab, 0)?;
            calls.call("issued", &[atc(0)], not_answered(0))?;
            let (_, end) = calls.call("refused", &[atc(0)], not_answered(0))?;
            calls.issued(2)?;
            // Of the second time-out it is two seconds.
            sleep_until(end + SECOND);
            calls.call("issued", &[atc(0)], not_answered(0))?;
            // The host invalidates all of the ATC then, which the device does not answer either.
            calls.lab.vm(On::Net)?.attach()?;
            calls.counted = calls.lab.control.stats()?;
            calls.call("after an attach in vain", &[atc(0)], not_answered(0))?;
            calls.issued(0)?;
            calls.lab.control.set(&[])?;
            calls.lab.vm(On::Net)?.attach()?;
            calls.is_dead(0)?;
            calls.counted = calls.lab.control.stats()?;
            calls.call("after the attach", &[atc(0)], not_answered(0))?;
            calls.issued(2)?;
            calls.end()
        },
    );
    row(
        "backoff-reset",
        "in that time: a reset of the device ends it, if the device answers then",
        "EIO 0 ATC_INV_SYNC",
        |lab| {
            let mut calls = Calls::to_dead_device(lab, 0)?;
            calls.call("issued", &[atc(0)], not_answered(0))?;
            calls.call("refused", &[atc(0)], not_answered(0))?;
            calls.issued(2)?;
            calls.lab.control.set(&[])?;
            calls.lab.vm(On::Net)?.reset();
            calls.is_dead(0)?;
            calls.counted = calls.lab.control.stats()?;
            calls.call("after the reset", &[atc(0)], not_answered(0))?;
            calls.issued(2)?;
            calls.end()
        },
    );
    row(
        "backoff-answer",
        "an answer after that time: the next one that is missing counts as the first",
        "EIO 0 ATC_INV_SYNC",
        |lab| {
            let mut calls = Calls::to_dead_device(lab, 0)?;
            let (_, end) = calls.call("issued", &[atc(0)], not_answered(0))?;
            calls.lab.control.set(&[])?;
            sleep_until(end + SECOND);
            calls.call("answered", &[atc(0)], done(1))?;
            calls.is_dead(0)?;
            let (_, end) = calls.call("dead again", &[atc(0)], not_answered(0))?;
            sleep_until(end + SECOND);
            calls.call("after a second", &[atc(0)], not_answered(0))?;
            calls.issued(2 + 1 + 2 + 2)?;
            calls.end()
        },
    );
    row(
        "backoff-host",
        "in that time: the host's own ATC_INVs are issued",
        "EIO 0 ATC_INV_SYNC",
        |lab| {
            let mut calls = Calls::to_dead_device(lab, 0)?;
            calls.call("issued", &[atc(0)], not_answered(0))?;
            let host = calls.lab.caller(On::Net)?;
            let page = HostPage::filled(1, 0);
            host.map_and_unmap(&page[0]).map_err(Error::Map)?;
            if issued(calls.lab, calls.before)? <= 2 {
                calls.finding.faults.push("none of the host's".into());
            }
            calls.end()
        },
    );
}
