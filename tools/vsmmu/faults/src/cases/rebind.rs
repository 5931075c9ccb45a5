// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device that goes from one driver to another, and back, while others use the queue.

use vsmmu_nested::pci;

use crate::vm::{NET_PCI_ID, Vm};

use super::*;

/// CMD_CFGI_STE, which no guest can send.
const CFGI_STE: u8 = 0x03;
/// How often it does so under each of the rules.
const ROUNDS: usize = 2;

pub fn rows(cases: &mut Vec<Case>) {
    let mut row = |id: &str, what: &str, rule: fn(u32) -> Option<Rule>| {
        let what = format!("a device changes its driver, {what}, among others");
        let run = move |lab: &mut Lab| rebind(lab, rule);
        let case = Case::new(id, what, "0 1 -", run);
        cases.push(case.when(|lab| lab.other.is_some() && lab.net.is_some()));
    };
    row("rebind-plain", "without a failure", |_| None);
    row("rebind-atc", "and answers no ATC_INV", |sid| {
        let dead = Rule::new(Kind::AtcInvSync).opcode(op::ATC_INV);
        Some(dead.stream(sid).forever())
    });
    row("rebind-abt", "CERROR_ABT at its CFGI_STEs", |sid| {
        let abt = Rule::new(Kind::Abt).opcode(CFGI_STE);
        Some(abt.stream(sid).times(10))
    });
}

fn rebind(lab: &mut Lab, rule: fn(u32) -> Option<Rule>) -> Result<Finding, Error> {
    let bdf = pci::find_all(NET_PCI_ID.0, NET_PCI_ID.1)?.remove(0);
    let rule = rule(pci::requester_id(&bdf));
    let before = lab.control.stats()?;
    let host = lab.other_caller()?;
    let mut finding = lab.among_others(host, |lab| {
        for _ in 0..ROUNDS {
            lab.control.set(rule.as_slice())?;
            // Its page tables and its stage 1 go, and it gets the host's.
            lab.net = None;
            pci::give_back(&bdf)?;
            lab.net = Some(Vm::with_net(&bdf)?);
        }
        let mut finding = Finding::default();
        if rule.is_some() && lab.control.hits()? == [0] {
            finding.faults.push("the SMMU has not failed".into());
        }
        Ok(finding)
    })?;

    // What the former owners have left is nothing to the new one.
    lab.control.set(&[])?;
    lab.attach_net()?;
    let (got, _) = lab.caller(On::Net)?.call(&[atc(0)]);
    if (got.errno, got.entry_num) != (0, 1) {
        finding
            .faults
            .push(format!("in the end: {}", lab::show(&got)));
    }
    finding.got = Some(got);
    lab.recover(On::Net, &mut finding)?;
    finding.stats = lab.control.stats()?.since(before);
    Ok(finding)
}
