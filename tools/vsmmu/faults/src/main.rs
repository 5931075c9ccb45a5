// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Has an emulated SMMU fail on demand, and holds what `ioctl(IOMMU_HWPT_INVALIDATE)` then answers, and
//! what DMA then sees, against the contract.
//!
//! See [`cases`] for what is tried, [`lab`] for how, [`control`] for how the emulator is told, and
//! [`worst`] for what is measured.

mod cases;
mod lab;
mod stray;
mod worst;

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use vsmmu_faults::{control, vm};
use vsmmu_nested::with_causes;
use vsmmu_rows::Choice;

use cases::Case;
use control::Control;
use lab::{Finding, Lab, cpus};

/// Has an emulated SMMU fail on demand, and holds the answers of ioctl(IOMMU_HWPT_INVALIDATE) against
/// its contract.
///
/// Needs root, and QEMU with an SMMUv3 that fails on demand, its monitor on a PCI serial port, and an
/// edu device; a second edu, and a virtio-net with ATS behind a root port, make for more rows. Exits
/// with 0 when each row is as the contract says, 1 when one is not, and 2 when there was nothing to see.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// For the C kernel: leave out the rows on which it may hang, as it does not bound its waiting, and
    /// keep away from the CPU that serves the SMMU's errors, as it waits there with interrupts off
    #[arg(long)]
    comparison: bool,
    /// Only give the SMMU these rules, which are JSON as its x-cmdq-faults takes it
    #[arg(long, value_name = "JSON")]
    rules: Option<String>,
    /// Only show what the SMMU has counted, and how often its rules have hit: a name and a number on each line
    #[arg(long)]
    stats: bool,
    /// Only have this NVMe, which has no driver, read from where its SMMU maps nothing
    #[arg(long, value_name = "BDF")]
    stray: Option<String>,
    /// Only measure the worst that one guest or device can do to the others: figures, not rows
    #[arg(long)]
    worst: bool,
    #[command(flatten)]
    choice: Choice,
}

fn main() -> ExitCode {
    vsmmu_rows::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    if let Some(rules) = &args.rules {
        Control::open()?.set_json(serde_json::from_str(rules)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(bdf) = &args.stray {
        stray::run(bdf)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.stats {
        let mut control = Control::open()?;
        for (name, count) in control.counters()? {
            println!("{name} {count}");
        }
        // Of the rules that there are now.
        println!("hits {}", control.hits()?.iter().sum::<u64>());
        return Ok(ExitCode::SUCCESS);
    }

    let Some(cases) = args.choice.of(cases::all())? else {
        return Ok(ExitCode::SUCCESS);
    };

    let mut lab = Lab::new()?;
    if args.worst {
        worst::run(&mut lab)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.choice.json {
        print_header(&lab);
    }
    let mut table = args.choice.table();
    for (i, case) in cases.iter().enumerate() {
        if !(case.applies)(&lab) || args.comparison && case.may_hang {
            table.leave_out(case);
            continue;
        }
        table.start(case)?;
        if args.comparison && cpus() > 1 {
            lab::route_gerror("0")?;
            lab::run_on(1..cpus())?;
        }
        match (case.run)(&mut lab) {
            Ok(finding) => {
                let object = json!({"ms": finding.time.as_millis() as u64});
                table.end(case, &cells(case, &finding), object, &finding.faults);
                if let Some(note) = &finding.note {
                    args.choice.say(&format!("    |   {note}"));
                }
            }
            Err(e) => {
                table.end(case, "", json!({}), &[with_causes(&e)]);
                table.give_up(cases.len() - (i + 1));
                break;
            }
        }
    }
    if !args.choice.json {
        print_latencies(&lab);
    }
    Ok(table.sum())
}

fn print_header(lab: &Lab) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let yes = |yes| if yes { "yes" } else { "no" };
    println!("Linux {}, {} CPU(s)", release.trim(), cpus());
    println!(
        "Emulated SMMU: command queue of up to 2^{} entries, MSIs {}, ATS {}; second VM {}",
        lab.cmdqs,
        yes(lab.msi),
        yes(lab.net.is_some()),
        yes(lab.other.is_some())
    );
    println!(
        "The kernel says that it counts exactly and reports the error code: {}\n",
        yes(lab.edu.answers_exactly())
    );
    println!(
        "{:>3} | {:<22} | {:<66} | {:<22} | {:<22} | {:<12} | {:>5} | ok",
        "row", "id", "what was done", "answer", "as it should", "ill abt atc", "ms"
    );
    println!("{}", "-".repeat(174));
}

fn cells(case: &Case, finding: &Finding) -> String {
    let stats = finding.stats;
    format!(
        "{:<22} | {:<22} | {:<12} | {:>5}",
        finding.got.as_ref().map_or("-".into(), lab::show),
        case.want,
        format!("{:>3} {:>3} {:>3}", stats.ill, stats.abt, stats.atc),
        finding.time.as_millis()
    )
}

fn print_latencies(lab: &Lab) {
    if lab.latencies.is_empty() {
        return;
    }
    println!("\nlatency of a call in microseconds: median, longest");
    for latency in &lab.latencies {
        let times = &latency.times;
        println!(
            "latency: {:<58} {:>9} {:>9}",
            latency.what,
            times[times.len() / 2].as_micros(),
            times[times.len() - 1].as_micros()
        );
    }
}
