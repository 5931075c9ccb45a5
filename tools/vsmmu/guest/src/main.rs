// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Plays a VMM that embeds `vsmmu-relay`, and a guest above it that reacts to errors of its command queue
//! as Linux does. At the end of each row DMA must not find a stale translation.
//!
//! See [`rows`] for what is tried, [`linux`] for the guest.

mod linux;
mod rows;

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use vsmmu_faults::control::{self, Control};
use vsmmu_faults::vm::{NET_PCI_ID, Sights, Vm};
use vsmmu_nested::{edu, pci};
use vsmmu_relay::Config;
use vsmmu_rows::{Choice, code_name};

use linux::{Guest, Parts, Seen};
use rows::{Row, Want, Where};

/// Plays a VMM that relays the command queue of its guest, and a guest that reacts to errors as Linux
/// does, and looks for stale translations.
///
/// Needs root, a kernel with iommufd and the vfio cdev, and QEMU's edu device behind an SMMUv3 with
/// nested translation. With an SMMU that fails on demand (see vsmmu-faults) the rows are those for that.
/// Exits with 0 when each row is as it should be, 1 when one is not, and 2 when there was nothing to see.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    choice: Choice,
}

fn main() -> ExitCode {
    vsmmu_rows::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let Some(rows) = args.choice.of(rows::all())? else {
        return Ok(ExitCode::SUCCESS);
    };

    let mut control = match Control::open() {
        Ok(control) => Some(control),
        Err(control::Error::NoPort(_)) => None,
        Err(e) => return Err(e.into()),
    };
    let mut vm = Vm::with_edu(&pci::find(edu::PCI_ID.0, edu::PCI_ID.1)?)?;
    if control.is_some() {
        vm.add_net(&pci::find(NET_PCI_ID.0, NET_PCI_ID.1)?)?;
    }
    let exact = vm.answers_exactly();
    let smmu = vm.smmu();
    let parts = Parts {
        memory: smmu.ram().memory().clone(),
        ring: smmu.ram().alloc_page()?,
        iommufd: smmu.iommufd().clone(),
        viommu_id: smmu.viommu_id(),
    };
    if !args.choice.json {
        print_header(exact, control.is_some());
    }

    let mut table = args.choice.table();
    for row in &rows {
        let applies = match row.on {
            Where::Sound => control.is_none(),
            Where::Failing => control.is_some() && exact,
            Where::Inexact => control.is_none() && !exact,
        };
        if !applies {
            table.leave_out(row);
            continue;
        }
        table.start(row)?;
        let (guest, sights) = try_row(row, &mut vm, &parts, control.as_mut())?;
        let faults = judge(&row.want, &guest, sights, exact);
        let object = json!({"ioctls": guest.ioctls()});
        table.end(row, &cells(row, &guest, sights), object, &faults);
    }
    Ok(table.sum())
}

fn try_row(
    row: &Row,
    vm: &mut Vm,
    parts: &Parts,
    mut control: Option<&mut Control>,
) -> Result<(Guest, Sights), Box<dyn Error>> {
    let mut config = Config::new(vm.smmu().hw_info().flags);
    (row.config)(&mut config);
    if let Some(control) = &mut control {
        control.set(&row.rules)?;
    }
    let (guest, sights) = vm.experiment(|_| {
        let mut guest = Guest::new(parts.clone(), config, row.log2size);
        (row.act)(&mut guest, parts);
        guest
    })?;
    if let Some(control) = &mut control {
        control.set(&[])?;
        // What it has not answered is not to concern the next row.
        vm.attach_added()?;
    }
    vm.invalidate_all()?;
    Ok((guest, sights))
}

/// What is wrong.
fn judge(want: &Want, guest: &Guest, sights: Sights, exact: bool) -> Vec<String> {
    let mut faults: Vec<_> = guest.fault.iter().cloned().collect();
    if let Some(seen) = &want.seen
        && *seen != guest.seen
    {
        let seen: Vec<_> = seen.iter().map(show).collect();
        faults.push(format!("the guest should see: {}", seen.join(", ")));
    }
    if guest.problems != want.problems {
        let problems = &guest.problems;
        faults.push(format!("problems of the host: {problems:?}"));
    }
    if guest.own() != want.own {
        faults.push(format!("commands that are the VMM's: {}", guest.own()));
    }
    if let Some([of_exact, of_fallback]) = want.ioctls {
        let ioctls = if exact { of_exact } else { of_fallback };
        if guest.ioctls() != ioctls {
            faults.push(format!("it should take {ioctls} ioctls"));
        }
    }
    if !sights.stale {
        faults.push("nothing was stale, so this proves nothing".into());
    }
    if sights.fresh != want.fresh {
        faults.push(format!("DMA should then read: {}", pages(want.fresh)));
    }
    faults
}

fn print_header(exact: bool, fails: bool) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let yes = |yes| if yes { "yes" } else { "no" };
    println!("Linux {}", release.trim());
    println!("The SMMU fails on demand: {}", yes(fails));
    println!(
        "The kernel says that it counts exactly and reports the error code: {}\n",
        yes(exact)
    );
    println!(
        "Each row: DMA reads the pages A and B, what they lead to is changed, DMA reads them once\n\
         more (they must be stale), the guest's commands are relayed, and DMA reads them again.\n"
    );
    println!(
        "{:>3} | {:<66} | {:<24} | {:>6} | {:<18} | ok",
        "row", "what was done", "the guest saw", "ioctls", "DMA read A B"
    );
    println!("{}", "-".repeat(135));
}

fn cells(row: &Row, guest: &Guest, sights: Sights) -> String {
    let mut seen: Vec<_> = guest.seen.iter().take(3).map(show).collect();
    if row.want.seen.is_none() && seen.len() < guest.seen.len() {
        seen = vec![format!("{} errors", guest.seen.len())];
    }
    let stale = if sights.stale { "old old" } else { "???" };
    format!(
        "{:<24} | {:>6} | {:<18}",
        if seen.is_empty() {
            "-".into()
        } else {
            seen.join(", ")
        },
        guest.ioctls(),
        format!("{stale} -> {}", pages(sights.fresh))
    )
}

fn show(seen: &Seen) -> String {
    format!("{} {}", code_name(seen.code, "0"), seen.rd)
}

fn pages(fresh: [bool; 2]) -> String {
    fresh
        .map(|fresh| if fresh { "new" } else { "old" })
        .join(" ")
}
