// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CERROR_ILL and CERROR_ABT, and rows without any error.

use super::*;

pub fn none(cases: &mut Vec<Case>) {
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
    cases.push(
        Case::new(
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
        )
        .when(|lab| lab.cmdqs > 7),
    );
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

pub fn ill(cases: &mut Vec<Case>) {
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

pub fn abt(cases: &mut Vec<Case>) {
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
    let mut command = Shot::abt_at(5, 10);
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
            .abt(Bounds(2, u64::MAX))
            .lasts()
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

pub fn sync(cases: &mut Vec<Case>) {
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
            .ill(Bounds(1, u64::MAX))
            .lasts()
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
