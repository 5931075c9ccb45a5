// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots a Linux guest, see the library of the same name.

use std::process::ExitCode;

#[cfg(target_arch = "aarch64")]
mod run;

#[cfg(target_arch = "aarch64")]
fn main() -> ExitCode {
    run::main()
}

#[cfg(not(target_arch = "aarch64"))]
fn main() -> ExitCode {
    eprintln!("vsmmu-vmm: this runs on arm64 only");
    ExitCode::from(2)
}
