// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several users of the queue.

use std::time::Instant;

use super::*;

pub fn rows(cases: &mut Vec<Case>) {
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
            "one: EIO 0 ABT, the other: ETIMEDOUT 0 -",
            |lab| {
                let (mine, others) = (lab.caller(On::Edu)?, lab.other_caller()?);
                let calls = vec![(mine, array(10, tlbi)), (others, array(10, tlbi))];
                let (before, start) = (lab.control.stats()?, Instant::now());
                let answers = lab.volley(&[Rule::new(Kind::Abt).forever()], calls)?;
                let want = |errno, code| Want {
                    errno,
                    num: Num::Is(0),
                    code,
                };
                let aborted = want(libc::EIO, ErrorCode::Abt);
                let wants = [aborted, want(libc::ETIMEDOUT, ErrorCode::None)];
                // On one CPU, one after the other.
                let mut finding = volley_finding(&answers, &wants, 3 * LIMIT);
                // The queue stands at one command, which is only one's own.
                let told = answers.iter().filter(|(got, _)| aborted.is(got)).count();
                if told != 1 {
                    let fault = format!("{told} have been told that it is their command");
                    finding.faults.push(fault);
                }
                finding.faults.extend(lab.check_calm(before, start)?);
                lab.after_volley(before, &mut finding)?;
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
        if lab.net.is_some() {
            lab.attach_net()?;
        }
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
