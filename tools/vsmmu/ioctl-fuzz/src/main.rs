// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fuzzes iommufd and the SMMUv3 driver through their ioctls, and holds each answer against the contract.
//!
//! Programs make and destroy all kinds of objects, attach and detach devices, and invalidate, one call
//! after the other or several at the same time, while the SMMU fails on demand. One that reaches code
//! which none has reached before is kept, and others are made of it.
//!
//! See [`program`] for what is done, [`plan`] and [`invalidation`] for what the answers have to be,
//! [`judge`] for the contract of the invalidation, [`commands`] for which commands are legal, and [`kcov`] for what is reached.

mod call;
mod commands;
mod invalidation;
mod judge;
mod kcov;
mod plan;
mod program;
mod run;
mod sys;
mod vm;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use fastrand::Rng;
use vsmmu_faults::vm::Vm;
use vsmmu_nested::{edu, pci};

use kcov::Coverage;
use program::Program;
use run::Runner;

/// Fuzzes iommufd and the SMMUv3 driver through their ioctls, and holds each answer against the contract.
///
/// Needs root, and an edu device behind an SMMUv3. With KCOV in the kernel it goes by coverage, with a
/// virtio-net behind a root port there is ATS, with the monitor of a QEMU that fails on demand on a PCI
/// serial port the SMMU fails. Exits with 0 when nothing is wrong, 1 when something is, and 2 when it could
/// not begin.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// End after so many ioctls
    #[arg(long, default_value_t = 200_000)]
    ops: u64,
    /// What the programs are made from; the same seed gives the same programs, as far as the coverage
    /// that threads reach is the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many threads make calls at the same time
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// Only run this program, as one was printed, and tell of each call
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Tell of the progress after so many ioctls
    #[arg(long, default_value_t = 20_000)]
    every: u64,
    /// At the end, print each instruction that was reached, as KCOV tells of it
    #[arg(long)]
    pcs: bool,
}

fn main() -> ExitCode {
    vsmmu_rows::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let coverage = Coverage::new()?;
    let mut runner = Runner::new(args.threads, coverage.clone(), args.replay.is_some())?;
    println!("{}", runner.describe());
    println!(
        "seed {}, {} threads, {} ioctls, {}",
        args.seed,
        args.threads,
        args.ops,
        if coverage.is_some() {
            "by coverage"
        } else {
            "without coverage, as this kernel has no KCOV"
        }
    );
    let violation = match &args.replay {
        Some(file) => {
            let program: Program = fs::read_to_string(file)?.parse()?;
            let violation = runner.run(&program)?.violation;
            violation.map(|violation| (violation, program))
        }
        None => fuzz(&mut runner, args, coverage.as_deref())?,
    };
    progress(&runner, coverage.as_deref(), None);
    if args.pcs {
        for pc in coverage
            .iter()
            .flat_map(|coverage: &Arc<Coverage>| coverage.pcs())
        {
            println!("pc {pc:x}");
        }
    }
    if let Some((violation, program)) = violation {
        println!("violation: {violation}");
        println!(
            "# seed {}, after {} ioctls; for --replay:\n{program}",
            args.seed, runner.ioctls
        );
        println!("0 passed, 1 failed");
        return Ok(ExitCode::FAILURE);
    }
    // With all files closed.
    drop(runner);
    look_at_dma()?;
    look_for_leaks()?;
    println!("1 passed, 0 failed");
    Ok(ExitCode::SUCCESS)
}

/// Runs programs until one is not behaved in, or there were enough.
fn fuzz(
    runner: &mut Runner,
    args: &Args,
    coverage: Option<&Coverage>,
) -> Result<Option<(String, Program)>, Box<dyn Error>> {
    let mut rng = Rng::with_seed(args.seed);
    let mut corpus: Vec<Program> = Vec::new();
    let mut next = args.every;
    while runner.ioctls < args.ops {
        let program = match (rng.choice(&corpus), rng.choice(&corpus)) {
            (Some(one), Some(other)) if rng.u8(..4) != 0 => one.mutated(&mut rng, other),
            _ => Program::random(&mut rng),
        };
        let report = runner.run(&program)?;
        if let Some(violation) = report.violation {
            return Ok(Some((violation, program)));
        }
        // Without coverage, each may be as good as any other.
        if report.new > 0 || coverage.is_none() && corpus.len() < 256 {
            corpus.push(program);
        }
        if runner.ioctls >= next {
            next = runner.ioctls + args.every;
            progress(runner, coverage, Some(corpus.len()));
        }
    }
    Ok(None)
}

fn progress(runner: &Runner, coverage: Option<&Coverage>, corpus: Option<usize>) {
    let pcs = coverage.map_or("-".into(), |coverage| coverage.count().to_string());
    let corpus = corpus.map_or("-".into(), |corpus| corpus.to_string());
    println!(
        "{} ioctls, {} invalidations, {} with others, {} with rules for the SMMU; {pcs} instructions, {corpus} programs",
        runner.ioctls, runner.invalidations, runner.parallel, runner.stormy
    );
}

/// The SMMU still does what it should.
fn look_at_dma() -> Result<(), Box<dyn Error>> {
    let mut vm = Vm::with_edu(&pci::find(edu::PCI_ID.0, edu::PCI_ID.1)?)?;
    let commands = [
        vsmmu_nested::Command::tlbi_nh_va(vsmmu_faults::vm::ASID, vsmmu_faults::vm::PAGE_A, true),
        vsmmu_nested::Command::tlbi_nh_va(vsmmu_faults::vm::ASID, vsmmu_faults::vm::PAGE_B, true),
    ];
    let ((outcome, _), sights) = vm.experiment(|caller| caller.call(&commands))?;
    if outcome.errno != 0 || !sights.stale || sights.fresh != [true, true] {
        return Err(format!("DMA after it all: {outcome:?}, {sights:?}").into());
    }
    Ok(())
}

/// What the kernel's own search for leaks says, if it has one.
fn look_for_leaks() -> Result<(), Box<dyn Error>> {
    const PATH: &str = "/sys/kernel/debug/kmemleak";
    if !fs::exists(PATH)? {
        return Ok(());
    }
    // What is still in a register at first is not at last.
    for _ in 0..2 {
        fs::write(PATH, "scan")?;
    }
    let leaks = fs::read_to_string(PATH)?;
    if !leaks.is_empty() {
        return Err(format!("leaks:\n{leaks}").into());
    }
    Ok(())
}
