// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue that stands still, and one that is full.

use crate::worst::time_to_kill;

use super::*;

pub fn rows(cases: &mut Vec<Case>) {
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
            .stall(GIVEN_UP.0, GIVEN_UP.1)
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
        .stall(GIVEN_UP.0, GIVEN_UP.1)
        .times_out(63);
    again.want.num = Num::Is(63);
    cases.push(again.case(
        "stall-replay",
        "the ATC_INV of entry 63 of 70 times out, and a stall of 1500 ms when it is replayed",
    ));
    let forever = Shot::tlbis(10)
        .rule(at_tlbi(Kind::Stall(0), 5))
        .stall(GIVEN_UP.0, GIVEN_UP.1)
        .times_out(0);
    cases.push(forever.case(
        "stall-open-end",
        "nothing is consumed any more from entry 5 of 10 on",
    ));
}

pub fn full(cases: &mut Vec<Case>) {
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
            "full-killed",
            "two calls fill the queue, nothing is consumed, SIGKILL of one that waits for room",
            "at once",
            |lab| {
                // With their CMD_SYNCs.
                let n = (1 << lab.cmdqs) / 2 - 1;
                let caller = lab.caller(On::Edu)?;
                lab.control.set(&[Rule::new(Kind::Stall(0))])?;
                let mut finding = Finding::default();
                for _ in 0..2 {
                    let (got, _) = caller.call(&array(n, tlbi));
                    if got.errno != libc::ETIMEDOUT {
                        let fault = format!("a call that fills it: {}", lab::show(&got));
                        finding.faults.push(fault);
                    }
                }
                let wait = Duration::from_millis(50);
                finding.time = time_to_kill(&caller, &array(1, tlbi), wait)?;
                if finding.time > QUICK {
                    let fault = format!("it has ended after {:?}", finding.time);
                    finding.faults.push(fault);
                }
                lab.recover(On::Edu, &mut finding)?;
                Ok(finding)
            },
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
