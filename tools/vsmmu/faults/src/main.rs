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
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use vsmmu_faults::{control, vm};
use vsmmu_nested::with_causes;

use cases::Case;
use control::Control;
use lab::{Finding, Lab, cpus};

/// The exit status for it.
const NOTHING_TO_SEE: u8 = 2;

/// Has an emulated SMMU fail on demand, and holds the answers of ioctl(IOMMU_HWPT_INVALIDATE) against
/// its contract.
///
/// Needs root, and QEMU with an SMMUv3 that fails on demand, its monitor on a PCI serial port, and an
/// edu device; a second edu, and a virtio-net with ATS behind a root port, make for more rows. Exits
/// with 0 when each row is as the contract says, 1 when one is not, and 2 when there was nothing to see.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Leave out the rows on which a kernel may hang that does not bound its waiting
    #[arg(long)]
    comparison: bool,
    /// Only list the rows
    #[arg(long)]
    list: bool,
    /// Only give the SMMU these rules, which are JSON as its x-cmdq-faults takes it
    #[arg(long, value_name = "JSON")]
    rules: Option<String>,
    /// Only show what the SMMU has counted: a name and a number on each line
    #[arg(long)]
    stats: bool,
    /// Only have this NVMe, which has no driver, read from where its SMMU maps nothing
    #[arg(long, value_name = "BDF")]
    stray: Option<String>,
    /// Only measure the worst that one guest or device can do to the others: figures, not rows
    #[arg(long)]
    worst: bool,
    /// Only the rows that have this in their id (see --list); can be given several times
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("vsmmu-faults: {}", with_causes(&*e));
            ExitCode::from(NOTHING_TO_SEE)
        }
    }
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
        for (name, count) in Control::open()?.counters()? {
            println!("{name} {count}");
        }
        return Ok(ExitCode::SUCCESS);
    }

    let mut cases = cases::all();
    if !args.only.is_empty() {
        cases.retain(|case| args.only.iter().any(|part| case.id.contains(part.as_str())));
        if cases.is_empty() {
            return Err("no row has that in its id, see --list".into());
        }
    }
    if args.list {
        for case in &cases {
            println!("{:<28} {}", case.id, case.what);
        }
        return Ok(ExitCode::SUCCESS);
    }

    let mut lab = Lab::new()?;
    if args.worst {
        worst::run(&mut lab)?;
        return Ok(ExitCode::SUCCESS);
    }
    print_header(&lab);
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    for (i, case) in cases.iter().enumerate() {
        if !(case.applies)(&lab) || args.comparison && case.may_hang {
            left_out += 1;
            continue;
        }
        // Before it runs, so that one that hangs can be seen.
        print!("{:>3} | {:<22} | {:<66} | ", i + 1, case.id, case.what);
        io::stdout().flush()?;
        match (case.run)(&mut lab) {
            Ok(finding) => {
                if finding.faults.is_empty() {
                    passed += 1;
                } else {
                    failed += 1;
                }
                print_rest(case, &finding);
            }
            Err(e) => {
                println!("FAILED\n    |   wrong: {}", with_causes(&e));
                // Nothing that comes after it can be trusted, and each row might take as long to fail.
                let left = cases.len() - (i + 1);
                eprintln!("vsmmu-faults: the experiment itself failed; rows not tried: {left}");
                failed += 1 + left;
                break;
            }
        }
    }
    print_latencies(&lab);
    if left_out > 0 {
        println!("\nRows that are not for this machine or kernel: {left_out}");
    }
    println!("{passed} passed, {failed} failed");
    Ok(match (passed, failed) {
        (0, 0) => ExitCode::from(NOTHING_TO_SEE),
        (_, 0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
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

fn print_rest(case: &Case, finding: &Finding) {
    let stats = finding.stats;
    println!(
        "{:<22} | {:<22} | {:<12} | {:>5} | {}",
        finding.got.as_ref().map_or("-".into(), lab::show),
        case.want,
        format!("{:>3} {:>3} {:>3}", stats.ill, stats.abt, stats.atc),
        finding.time.as_millis(),
        if finding.faults.is_empty() {
            "ok"
        } else {
            "FAILED"
        }
    );
    for fault in &finding.faults {
        println!("    |   wrong: {fault}");
    }
    if let Some(note) = &finding.note {
        println!("    |   {note}");
    }
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
