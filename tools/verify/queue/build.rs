// SPDX-License-Identifier: GPL-2.0

//! Finds the driver's files, which are compiled as they are.

use std::{env, fmt::Write, fs, path::Path};

const FILES: [&str; 6] = ["cmd", "cmdq", "error_log", "hw", "ring", "streams"];

/// Its KUnit tests, and what they need.
const TESTS: [&str; 8] = [
    "soft_random",
    "soft_smmu",
    "tests_cmdq",
    "tests_cmdq_concurrent",
    "tests_cmdq_errors",
    "tests_harness",
    "tests_soft_smmu",
    "tests_streams",
];

fn main() {
    println!("cargo::rerun-if-env-changed=DRIVER_SOURCE");
    println!("cargo::rustc-cfg=CONFIG_ARM_SMMU_V3_RUST_KUNIT_TEST");
    let driver = env::var("DRIVER_SOURCE").expect("DRIVER_SOURCE is not set: use `make verify`");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");

    let mut modules = String::new();
    for (attributes, names) in [("", &FILES[..]), ("#[cfg(test)]", &TESTS[..])] {
        for name in names {
            let file = Path::new(&driver).join(name).with_extension("rs");
            println!("cargo::rerun-if-changed={}", file.display());
            writeln!(
                modules,
                "{attributes} #[allow(dead_code, clippy::all)] #[path = {file:?}] mod {name};"
            )
            .expect("memory can be written to");
        }
    }
    fs::write(Path::new(&out).join("driver.rs"), modules).expect("OUT_DIR can be written to");
}
