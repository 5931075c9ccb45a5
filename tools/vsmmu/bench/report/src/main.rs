// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shows what `vsmmu-bench` has measured on a C and a Rust kernel.

mod expected;
mod floor;
mod page;
mod rows;
mod stack;
mod table;
mod tables;
mod targets;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use rows::Measured;

/// Shows what vsmmu-bench has measured on a C and on a Rust kernel.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Prints the tables, and writes pictures and a page next to the figures. Fails if a target is not
    /// met
    Show {
        /// Where c.json and rust.json are
        dir: PathBuf,
        /// Only reports: does not fail
        #[arg(long)]
        report: bool,
    },
    /// Compares the instructions with those that are expected. Fails if there are more
    Check {
        /// Where c.json and rust.json are
        dir: PathBuf,
        /// The file with what is expected
        expected: PathBuf,
        /// Writes that file
        #[arg(long)]
        update: bool,
    },
    /// Prints how much stack the ioctl takes, as a JSON object
    Stack {
        /// The kernel
        vmlinux: PathBuf,
        /// The disassembler
        #[arg(long, default_value = "llvm-objdump")]
        objdump: String,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().what) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("vsmmu-bench-report: {e}");
            ExitCode::from(2)
        }
    }
}

/// Does it, and tells whether all is well.
fn run(what: What) -> Result<bool, Box<dyn Error>> {
    match what {
        What::Show { dir, report } => {
            let measured = Measured::load(&dir)?;
            let (targets, missed) = targets::table(&measured);
            let tables = [vec![targets], tables::all(&measured)].concat();
            let page = [tables.clone(), tables::background(&measured)].concat();
            page::write(&dir, &measured, &page)?;
            // The verdict last, where it is seen.
            for table in tables[1..].iter().chain(&tables[..1]) {
                if !table.rows.is_empty() {
                    print!("{table}");
                }
            }
            Ok(report || missed == 0)
        }
        What::Check {
            dir,
            expected,
            update,
        } => {
            let measured = Measured::load(&dir)?;
            if update {
                expected::update(&measured, &expected)?;
                return Ok(true);
            }
            let (passed, failed) = expected::check(&measured, &expected)?;
            println!("{passed} passed, {failed} failed");
            Ok(failed == 0 && passed > 0)
        }
        What::Stack { vmlinux, objdump } => {
            stack::run(&vmlinux, &objdump)?;
            Ok(true)
        }
    }
}
