// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long calls take.

use super::*;

pub fn rows(cases: &mut Vec<Case>) {
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
