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
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use vsmmu_nested::with_causes;
use vsmmu_nested::{HwInfo, edu, pci};

use lab::{Change, Lab, Seen, Sight, Sights};
use rows::{Act, Found, Num, Report, Row, Want};

/// The exit status for it.
const NOTHING_TO_SEE: u8 = 2;

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
    /// Print JSON, one object a line: first the machine, then each row, then the sums
    #[arg(long)]
    json: bool,
    /// Only list the rows
    #[arg(long)]
    list: bool,
    /// Only the rows that have this in their id (see --list)
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
}

fn main() -> ExitCode {
    // As other programs do: with nobody to read the output (a pipe into head), this ends.
    // SAFETY: before there is anything that could depend on it.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("vsmmu-demo: {}", with_causes(&*e));
            ExitCode::from(NOTHING_TO_SEE)
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let mut rows = rows::all();
    if let Some(pattern) = &args.only {
        rows.retain(|row| row.id.contains(pattern.as_str()));
        if rows.is_empty() {
            return Err(format!("no row has {pattern:?} in its id, see --list").into());
        }
    }
    if args.list {
        for row in &rows {
            println!("{:<32} {}", row.id, row.what);
        }
        return Ok(ExitCode::SUCCESS);
    }

    let bdf = match &args.device {
        Some(bdf) => bdf.clone(),
        None => pci::find(edu::PCI_ID.0, edu::PCI_ID.1)?,
    };
    let mut lab = Lab::new(&pci::bind_to_vfio(&bdf, edu::PCI_ID)?)?;
    let hw = lab.smmu.hw_info();
    print_header(args.json, &bdf, &hw);

    let (mut passed, mut failed, mut not_applicable) = (0, 0, 0);
    for (i, row) in rows.iter().enumerate() {
        if !(row.applies)(&hw) {
            not_applicable += 1;
            print_not_applicable(args.json, i + 1, row);
            continue;
        }
        if !args.json {
            // Before it runs, so that one that hangs can be seen.
            print_start(&(i + 1).to_string(), &row.what);
            io::stdout().flush()?;
        }
        let report = row.run(&mut lab);
        if report.faults.is_empty() {
            passed += 1;
        } else {
            failed += 1;
        }
        print_row(args.json, i + 1, row, &report);
        if report.found.is_err() {
            // Nothing that comes after it can be trusted, and each row might take as long to fail.
            let left = rows.len() - (i + 1);
            eprintln!("vsmmu-demo: the experiment itself failed; rows not tried: {left}");
            failed += left;
            break;
        }
    }
    if args.json {
        println!(
            "{}",
            json!({"passed": passed, "failed": failed, "not_applicable": not_applicable})
        );
    } else {
        if not_applicable > 0 {
            println!("\nRows that are not for this SMMU: {not_applicable}");
        }
        println!("{passed} passed, {failed} failed");
    }
    Ok(match (passed, failed) {
        (0, 0) => ExitCode::from(NOTHING_TO_SEE),
        (_, 0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
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
    print_line(
        "row",
        "what was done",
        "errno entry_num code",
        "as it should",
        "DMA read A B",
        "ok",
    );
    println!("{}", "-".repeat(149));
}

fn print_line(row: &str, what: &str, got: &str, want: &str, dma: &str, ok: &str) {
    print_start(row, what);
    print_rest(got, want, dma, ok);
}

fn print_start(row: &str, what: &str) {
    print!("{row:>3} | {what:<66} | ");
}

fn print_rest(got: &str, want: &str, dma: &str, ok: &str) {
    println!("{got:<20} | {want:<24} | {dma:<18} | {ok}");
}

fn print_row(as_json: bool, number: usize, row: &Row, report: &Report) {
    if as_json {
        print_row_json(number, row, report);
        return;
    }
    let ok = report.faults.is_empty();
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
    print_rest(&got, &want, &dma, if ok { "ok" } else { "FAILED" });
    if !ok {
        let sees = row.sees.map(|seen| seen.map_or("any".into(), name));
        let expected = if row.change == Change::None {
            String::new()
        } else {
            format!(" (DMA should then read: {} {})", sees[0], sees[1])
        };
        println!("    |   wrong: {}{expected}", report.faults.join("; "));
    }
}

fn wanted(want: &Want) -> String {
    let num = match want.num {
        Num::Is(n) => n.to_string(),
        Num::Within(min, max) => format!("{min} to {max}"),
    };
    triple(want.errno, &num, want.code)
}

fn print_row_json(number: usize, row: &Row, report: &Report) {
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
    println!(
        "{}",
        json!({
            "row": number,
            "id": row.id,
            "what": row.what,
            "want": want,
            "got": got,
            "faults": report.faults,
            "ok": report.faults.is_empty(),
        })
    );
}

fn print_not_applicable(as_json: bool, number: usize, row: &Row) {
    if as_json {
        println!(
            "{}",
            json!({"row": number, "id": row.id, "what": row.what, "applies": false})
        );
    } else {
        print_line(
            &number.to_string(),
            &row.what,
            "",
            "",
            "",
            "not for this SMMU",
        );
    }
}

fn name(seen: Seen) -> String {
    seen.to_string()
}

fn pair(sight: Sight) -> String {
    format!("{} {}", sight[0], sight[1])
}

fn triple(errno: Option<i32>, num: &str, code: u32) -> String {
    let code = match code {
        0 => "-".into(),
        1 => "ILL".into(),
        2 => "ABT".into(),
        3 => "ATC_INV_SYNC".into(),
        other => format!("{other:#x}"),
    };
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
