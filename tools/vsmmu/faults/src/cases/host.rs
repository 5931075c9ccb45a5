// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's own invalidations, when the SMMU cannot fetch them: an unmapping in stage 2, and DMA that
//! shows whether a device still goes by the old translation after the queue has healed.
//!
//! All of this is so with the C code, too.

use std::thread;
use std::time::Instant;

use crate::control::TLBI_S2_IPA;
use crate::vm::{HOST_IOVA, HostPage};

use super::*;

/// Pages of a large unmapping: several full batches without a CMD_SYNC. From 512 pages on the host
/// invalidates everything with one command.
const PAGES: usize = 256;
/// The page that DMA looks at, in the first of these batches.
const LOOK_AT: usize = 10;
/// The queue is dead if it has not healed by then.
const DEADLINE: Duration = Duration::from_secs(60);

/// What cannot be fetched.
#[derive(Clone, Copy)]
enum Target {
    /// The only TLBI, which has a CMD_SYNC behind it in its batch.
    Tlbi,
    /// A TLBI in a full batch, which has none.
    FullBatch,
    /// The CMD_SYNC.
    Sync,
}

impl Target {
    fn pages(self) -> usize {
        match self {
            Target::FullBatch => PAGES,
            Target::Tlbi | Target::Sync => 1,
        }
    }

    fn page(self) -> usize {
        match self {
            Target::FullBatch => LOOK_AT,
            Target::Tlbi | Target::Sync => 0,
        }
    }

    fn address(self) -> u64 {
        HOST_IOVA + self.page() as u64 * size_of::<HostPage>() as u64
    }

    fn rule(self, kind: Kind) -> Rule {
        match self {
            Target::Tlbi | Target::FullBatch => {
                Rule::new(kind).opcode(TLBI_S2_IPA).address(self.address())
            }
            Target::Sync => at_sync(kind),
        }
    }
}

pub fn rows(cases: &mut Vec<Case>) {
    for (name, what, target) in [
        ("tlbi", "the TLBI of an unmapping", Target::Tlbi),
        ("batch", "a TLBI in a full batch", Target::FullBatch),
        ("sync", "the CMD_SYNC of an unmapping", Target::Sync),
    ] {
        let applies: fn(&Lab) -> bool = match target {
            // With ranges, a few commands are enough for the largest unmapping.
            Target::FullBatch => |lab| !lab.has_ranges(),
            Target::Tlbi | Target::Sync => |_| true,
        };
        let mut row = |id: String, what: String, want: &str, rule: Rule, stale: bool| {
            let run = move |lab: &mut Lab| unmap(lab, target, rule, stale);
            cases.push(Case::new(id, what, want, run).when(applies));
        };
        if !matches!(target, Target::Sync) {
            row(
                format!("unmap-{name}-lost"),
                format!("control: {what} is lost, which DMA shows"),
                "stale",
                target.rule(Kind::Drop),
                true,
            );
        }
        for n in [1, 2, 3, 10, 100] {
            row(
                format!("unmap-{name}-abt-{n}"),
                format!("CERROR_ABT at {what}, {}", how_often(n)),
                "fresh",
                target.rule(Kind::Abt).times(n),
                false,
            );
        }
        // The last one is longer than anybody waits.
        for (us, time) in [
            (10, "10us"),
            (1_000, "1ms"),
            (300_000, "300ms"),
            (3_000_000, "3s"),
        ] {
            row(
                format!("unmap-{name}-abt-{time}"),
                format!("CERROR_ABT at {what}, for {time}"),
                "fresh",
                target.rule(Kind::AbtFor(us)),
                false,
            );
        }
    }
}

fn how_often(n: u32) -> String {
    match n {
        1 => "once".into(),
        n => format!("{n} times"),
    }
}

/// Unmaps in stage 2 what a device has just read, while the SMMU fails by `rule`; maps something else
/// there when the queue goes on; and looks what the device reads now.
fn unmap(lab: &mut Lab, target: Target, rule: Rule, stale: bool) -> Result<Finding, Error> {
    lab.control.set(&[])?;
    lab.edu.attach_stage2()?;
    let finding = unmap_in_stage2(lab, target, rule, stale);
    lab.control.set(&[])?;
    lab.edu.attach()?;
    let mut finding = finding?;
    lab.recover(On::Edu, &mut finding)?;
    Ok(finding)
}

fn unmap_in_stage2(
    lab: &mut Lab,
    target: Target,
    rule: Rule,
    want_stale: bool,
) -> Result<Finding, Error> {
    const OLD: u64 = 0x7e57_01d0;
    const NEW: u64 = 0x7e57_4e30;

    let mut finding = Finding::default();
    let caller = lab.caller(On::Edu)?;
    let old = HostPage::filled(target.pages(), OLD);
    let new = HostPage::filled(target.pages(), NEW);

    caller.map(&old).map_err(Error::Map)?;
    if lab.edu.read_stage2(target.address())? != OLD {
        finding.faults.push("DMA does not work".into());
    }

    let before = lab.control.stats()?;
    lab.control.set(&[rule])?;
    let start = Instant::now();
    let unmapped = caller.unmap(&old);
    finding.time = start.elapsed();
    if let Err(e) = unmapped {
        finding.faults.push(format!("unmapping: {e}"));
    }
    // Any CMD_SYNC comes behind what is still in the queue.
    let probe = [Command::tlbi_nh_asid(0)];
    while caller.call(&probe).0.errno != 0 {
        if start.elapsed() > DEADLINE {
            finding.faults.push("the queue does not heal".into());
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let hits = lab.control.hits()?;
    lab.control.set(&[])?;

    finding.stats = lab.control.stats()?.since(before);
    let errors = finding.stats.abt;
    if hits.iter().all(|hits| *hits == 0) {
        finding.faults.push("the SMMU has not failed".into());
    }
    let most = match target {
        Target::FullBatch => target.pages() as u64,
        Target::Tlbi | Target::Sync => 1,
    };
    let tlbis = finding.stats.tlbi_s2_ipas;
    if tlbis < most {
        let fault = format!("of {most} TLBIs the SMMU has executed {tlbis}");
        finding.faults.push(fault);
    }
    finding.note = Some(format!(
        "{errors} aborts, {tlbis} TLBIs executed, unmapped after {} us",
        finding.time.as_micros()
    ));

    caller.map(&new).map_err(Error::Map)?;
    let seen = lab.edu.read_stage2(target.address())?;
    let want = if want_stale { OLD } else { NEW };
    if seen != want {
        let what = match seen {
            OLD => "a stale translation is left: DMA reads the page that was unmapped".into(),
            NEW => "nothing is stale: DMA proves nothing".into(),
            other => format!("DMA reads {other:#x}"),
        };
        finding.faults.push(what);
    }
    caller.unmap(&new).map_err(Error::Map)?;
    Ok(finding)
}
