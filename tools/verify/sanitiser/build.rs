// SPDX-License-Identifier: GPL-2.0

//! Finds the two sides of the comparison: the driver's files in Rust, which are compiled as they
//! are, and the functions in C that they replace, which are cut out of the kernel source.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The functions that are compared, and the type that they need.
const C_ITEMS: [&str; 4] = [
    "struct arm_vsmmu_invalidation_cmd {",
    "static int arm_vsmmu_validate_range(",
    "static int arm_vsmmu_validate_user_cmd(",
    "static int arm_vsmmu_convert_user_cmd(",
];

fn main() {
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let kernel = PathBuf::from(variable("KERNEL_SOURCE"));
    let driver = PathBuf::from(variable("DRIVER_SOURCE"));

    let mut modules = String::new();
    for name in ["cmd", "sanitise"] {
        let file = driver.join(name).with_extension("rs");
        println!("cargo::rerun-if-changed={}", file.display());
        modules += &format!("#[allow(dead_code)]\n#[path = {file:?}]\nmod {name};\n");
    }
    fs::write(out.join("driver.rs"), modules).expect("OUT_DIR can be written to");

    let c_driver = kernel.join("drivers/iommu/arm/arm-smmu-v3");
    let header = read(&c_driver.join("arm-smmu-v3.h"));
    let mut c = defines(&header, &["CMDQ_", "ATC_INV_", "ARM_SMMU_FEAT_"]);
    c += &item(&header, "struct arm_smmu_cmd {");
    c += &item(&header, "enum arm_smmu_cmdq_opcode {");
    c += &item(
        &read(&kernel.join("include/uapi/linux/iommufd.h")),
        "struct iommu_viommu_arm_smmuv3_invalidate {",
    );
    let source = read(&c_driver.join("arm-smmu-v3-iommufd.c"));
    for start in C_ITEMS {
        c += &item(&source, start);
    }
    fs::write(out.join("extracted.h"), c).expect("OUT_DIR can be written to");

    println!("cargo::rerun-if-changed=c/reference.c");
    cc::Build::new()
        .file("c/reference.c")
        .include(&out)
        // The kernel's headers for its own programs in user space.
        .include(kernel.join("tools/include"))
        .include(kernel.join("tools/include/uapi"))
        .flag("-std=gnu11")
        .flag("-fno-strict-aliasing")
        .opt_level(2)
        // Some of the headers are not up to -Wextra.
        .extra_warnings(false)
        .warnings_into_errors(true)
        .compile("reference");
}

fn variable(name: &str) -> String {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: use `make verify`"))
}

fn read(path: &Path) -> String {
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The macros whose names begin with one of `prefixes`.
fn defines(text: &str, prefixes: &[&str]) -> String {
    let mut found = String::new();
    let mut continues = false;

    for line in text.lines() {
        let name = line.strip_prefix("#define ").unwrap_or_default();
        if continues || prefixes.iter().any(|prefix| name.starts_with(prefix)) {
            found += line;
            found += "\n";
            continues = line.ends_with('\\');
        }
    }
    found
}

/// The one item that begins with `start` at the beginning of a line, to the closing brace.
fn item(text: &str, start: &str) -> String {
    let line = format!("\n{start}");
    let parts: Vec<&str> = text.split(&line).collect();
    let [_, rest] = parts[..] else {
        panic!("`{start}` is not there, or more than once");
    };
    let end = rest.find("\n}").expect("an item ends with a brace");
    let tail = if start.contains('(') {
        "\n}\n"
    } else {
        "\n};\n"
    };
    format!("{start}{}{tail}", &rest[..end])
}
