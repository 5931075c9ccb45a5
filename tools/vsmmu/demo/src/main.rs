// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shows, with real DMA, that `ioctl(IOMMU_HWPT_INVALIDATE)` keeps its contract.
//!
//! A device (QEMU's `edu`) is put behind a nested SMMUv3 whose stage 1 belongs to this program. Each
//! row of the table is one experiment: see [`lab`] for how it is made, [`rows`] for what the contract
//! says.

mod lab;
mod rows;
mod userbuf;

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use vsmmu_nested::{HwInfo, edu, pci};
use vsmmu_rows::{Choice, code_name};

use lab::{Change, Lab, Seen, Sight, Sights};
use rows::{Act, Found, Num, Report, Row, Want};

/// Shows, with real DMA, that ioctl(IOMMU_HWPT_INVALIDATE) keeps its contract.
///
/// Needs root, a kernel with iommufd and the vfio cdev, and QEMU's edu device behind an SMMUv3 with
/// nested translation. Exits with 0 when each row is as the contract says, 1 when one is not, and 2
/// when there was nothing to see.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// PCI address of the device, such as 0000:00:02.0. It is given to vfio-pci if it has another
    /// driver, or none. [default: the first edu]
    #[arg(long, value_name = "BDF")]
    device: Option<String>,
    #[command(flatten)]
    choice: Choice,
}

fn main() -> ExitCode {
    vsmmu_rows::end_with_reader();
    vsmmu_rows::exit(run(&Args::parse()))
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let choice = &args.choice;
    let Some(rows) = choice.of(rows::all())? else {
        return Ok(ExitCode::SUCCESS);
    };

    let bdf = match &args.device {
        Some(bdf) => bdf.clone(),
        None => pci::find(edu::PCI_ID.0, edu::PCI_ID.1)?,
    };
    let mut lab = Lab::new(&pci::bind_to_vfio(&bdf, edu::PCI_ID)?)?;
    let hw = lab.smmu.hw_info();
    print_header(choice.json, &bdf, &hw);

    let mut table = choice.table();
    for (i, row) in rows.iter().enumerate() {
        if !(row.applies)(&hw) {
            table.leave_out(row);
            continue;
        }
        table.start(row)?;
        let report = row.run(&mut lab);
        table.end(
            row,
            &cells(row, &report),
            object(row, &report),
            &faults(row, &report),
        );
        if report.found.is_err() {
            table.give_up(rows.len() - (i + 1));
            break;
        }
    }
    Ok(table.sum())
}

fn kernel_release() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease");
    text.map_or("(unknown: no /proc)".into(), |text| text.trim().into())
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn print_header(as_json: bool, bdf: &str, hw: &HwInfo) {
    if as_json {
        println!(
            "{}",
            json!({
                "kernel": kernel_release(),
                "cpus": cpus(),
                "device": bdf,
                "vsid": lab::VSID,
                "answers_exactly": hw.answers_exactly(),
                "hw_info": {
                    "flags": hw.flags,
                    "idr": hw.idr,
                    "ril": hw.ril(),
                    "asid16": hw.asid16(),
                    "ssid_bits": hw.ssid_bits(),
                    "ats": hw.ats(),
                    "ds": hw.ds(),
                },
            })
        );
        return;
    }
    let yes = |yes| if yes { "yes" } else { "no" };
    println!("Linux {}, {} CPU(s)", kernel_release(), cpus());
    println!("Device {bdf} (edu), for the guest stream {:#x}", lab::VSID);
    println!(
        "SMMU: RIL {}, ASID16 {}, SSIDSIZE {}, ATS {}, DS {}",
        yes(hw.ril()),
        yes(hw.asid16()),
        hw.ssid_bits(),
        yes(hw.ats()),
        yes(hw.ds())
    );
    println!(
        "The kernel says that it counts exactly and reports the error code: {}\n",
        yes(hw.answers_exactly())
    );
    println!(
        "Each row: DMA reads the pages A and B, what they lead to is changed, DMA reads them once\n\
         more (they must be stale, else the row proves nothing), the ioctl, and DMA reads them again.\n\
         Rows without DMA are about calls that promise nothing about pages.\n"
    );
    println!(
        "{:>3} | {:<66} | {:<20} | {:<24} | {:<18} | ok",
        "row", "what was done", "errno entry_num code", "as it should", "DMA read A B"
    );
    println!("{}", "-".repeat(149));
}

fn cells(row: &Row, report: &Report) -> String {
    let (got, sights) = match &report.found {
        Err(_) => ("-".into(), None),
        Ok(Found::Flag(flag)) => (if *flag { "flag" } else { "no flag" }.into(), None),
        Ok(Found::Call(answer, sights)) => (
            triple(answer.errno, &answer.entry_num.to_string(), answer.code),
            *sights,
        ),
    };
    let want = match &row.act {
        Act::Flag => "flag".into(),
        Act::Call(_) => {
            let any_of: Vec<_> = row.want.iter().map(wanted).collect();
            any_of.join(", ")
        }
    };
    let dma = sights.map_or(String::new(), |sights| {
        format!("{} -> {}", pair(sights.stale), pair(sights.after))
    });
    format!("{got:<20} | {want:<24} | {dma:<18}")
}

/// What is wrong, with what DMA should read if it is to read anything.
fn faults(row: &Row, report: &Report) -> Vec<String> {
    let mut faults = report.faults.clone();
    if !faults.is_empty() && row.change != Change::None {
        let sees = row.sees.map(|seen| seen.map_or("any".into(), name));
        faults.push(format!("DMA should then read: {} {}", sees[0], sees[1]));
    }
    faults
}

fn wanted(want: &Want) -> String {
    let num = match want.num {
        Num::Is(n) => n.to_string(),
        Num::Within(min, max) => format!("{min} to {max}"),
    };
    triple(want.errno, &num, want.code)
}

fn object(row: &Row, report: &Report) -> serde_json::Value {
    let want = match &row.act {
        Act::Flag => json!({"flag": true}),
        Act::Call(_) => {
            let any_of = row.want.iter().map(|want| {
                let (min, max) = match want.num {
                    Num::Is(n) => (n, n),
                    Num::Within(min, max) => (min, max),
                };
                json!({
                    "errno": want.errno,
                    "entry_num_min": min,
                    "entry_num_max": max,
                    "code": want.code,
                })
            });
            json!({
                "any_of": any_of.collect::<Vec<_>>(),
                "dma": (row.change != Change::None)
                    .then(|| row.sees.map(|seen| seen.map(name))),
            })
        }
    };
    let sight = |sight: Sight| sight.map(name);
    let dma = |sights: Sights| {
        json!({
            "first": sight(sights.first),
            "stale": sight(sights.stale),
            "after": sight(sights.after),
        })
    };
    let got = match &report.found {
        Err(_) => json!(null),
        Ok(Found::Flag(flag)) => json!({"flag": flag}),
        Ok(Found::Call(answer, sights)) => json!({
            "errno": answer.errno,
            "entry_num": answer.entry_num,
            "code": answer.code,
            "note": answer.note,
            "dma": sights.map(dma),
        }),
    };
    json!({"want": want, "got": got})
}

fn name(seen: Seen) -> String {
    seen.to_string()
}

fn pair(sight: Sight) -> String {
    format!("{} {}", sight[0], sight[1])
}

fn triple(errno: Option<i32>, num: &str, code: u32) -> String {
    let code = code_name(code, "-");
    format!("{} {num} {code}", errno.map_or("killed".into(), errno_name))
}

fn errno_name(errno: i32) -> String {
    match errno {
        0 => "0",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::E2BIG => "E2BIG",
        libc::ENOMEM => "ENOMEM",
        libc::EFAULT => "EFAULT",
        libc::EINVAL => "EINVAL",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ETIMEDOUT => "ETIMEDOUT",
        other => return format!("errno {other}"),
    }
    .into()
}
