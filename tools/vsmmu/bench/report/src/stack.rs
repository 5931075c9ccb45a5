// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much stack the ioctl takes, from the disassembly of a kernel.
//!
//! What counts is the deepest chain of calls, whether it is ever made or not, from the ioctl's function
//! on and through the functions of iommufd, of the driver's queue and of the Rust abstractions. What those
//! call elsewhere (copying from user memory, printing) is left out.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::process::Command;

use serde_json::json;

const ROOT: &str = "iommufd_hwpt_invalidate";
/// The driver's operation, which is called by a pointer.
const OPERATION: &str = "arm_vsmmu_cache_invalidate";
/// What is only called when the SMMU raises an error, a time-out expires or the queue is full.
const RARE: [&str; 7] = [
    "resolve",
    "take_errors",
    "service_error",
    "issue_once_more",
    "timed_out",
    "wait_for_room",
    "trace_",
];

#[derive(Default)]
struct Function {
    frame: u64,
    calls: Vec<String>,
}

/// The functions in the output of a disassembler.
fn parse(text: &str) -> HashMap<String, Function> {
    let mut functions = HashMap::<String, Function>::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(name) = line
            .strip_suffix(">:")
            .and_then(|line| line.split_once('<'))
        {
            current = Some(functions.entry(name.1.to_owned()).or_default());
            continue;
        }
        let Some(function) = current.as_mut() else {
            continue;
        };
        let Some((_, code)) = line.split_once(':') else {
            continue;
        };
        let mut words = code.split_whitespace();
        let mnemonic = words.next().unwrap_or_default();
        let operands = words.collect::<Vec<_>>().join(" ");
        function.frame += lowers_stack(mnemonic, &operands);
        if (mnemonic == "bl" || mnemonic == "b")
            && let Some((_, name)) = operands.split_once('<')
        {
            // A branch within a function has an offset in its name.
            let name = name.trim_end_matches('>');
            if !name.contains('+') {
                function.calls.push(name.to_owned());
            }
        }
    }
    functions
}

/// By how much an instruction lowers the stack pointer.
fn lowers_stack(mnemonic: &str, operands: &str) -> u64 {
    let number = |text: &str| {
        let text = text.trim();
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    };
    let by = match mnemonic {
        "sub" => operands.strip_prefix("sp, sp, #"),
        "stp" | "str" => operands
            .strip_suffix("]!")
            .and_then(|operands| Some(operands.split_once("[sp, #-")?.1)),
        _ => None,
    };
    match by.and_then(|by| by.split_once(", lsl #12")) {
        Some((pages, _)) => number(pages).map_or(0, |pages| pages << 12),
        None => by.and_then(number).unwrap_or(0),
    }
}

/// The deepest chain that begins with `name`: its bytes and its functions. `above` are those that have
/// called it, each of which is called only once. Functions that have one of `without` in their name do
/// not count.
fn deepest(
    functions: &HashMap<String, Function>,
    name: &str,
    without: &[&str],
    above: &mut Vec<String>,
) -> (u64, Vec<String>) {
    let Some(function) = functions.get(name) else {
        return (0, Vec::new());
    };
    if above.iter().any(|caller| caller == name) || without.iter().any(|part| name.contains(part)) {
        return (0, Vec::new());
    }
    above.push(name.to_owned());
    let operation = (name == ROOT).then(|| OPERATION.to_owned());
    let below = function
        .calls
        .iter()
        .chain(&operation)
        .map(|callee| deepest(functions, callee, without, above))
        .max()
        .unwrap_or_default();
    above.pop();
    let mut chain = vec![format!("{} ({})", short(name), function.frame)];
    chain.extend(below.1);
    (function.frame + below.0, chain)
}

/// The name of a function without hashes and type parameters.
fn short(name: &str) -> String {
    let name = format!("{:#}", rustc_demangle::demangle(name)).replace("->", "");
    let mut depth = 0;
    let plain = name.chars().filter(|c| {
        depth += i32::from(*c == '<');
        let keep = depth == 0;
        depth -= i32::from(*c == '>');
        keep
    });
    let plain: String = plain.collect();
    // Of "<module::Type<T>>::function" that leaves the function only.
    plain.trim_matches(':').to_owned()
}

/// Whether a function is one that counts.
fn is_ours(name: &str) -> bool {
    let ours = ["iommufd_", "arm_smmu_", "arm_vsmmu_", "__arm_smmu_"];
    // Mangled names have those of crates and modules in them.
    let rust = [
        "arm_smmu_v3_rust",
        "hwpt_invalidate",
        "7iommufd",
        "7uaccess",
    ];
    let tests = ["tests", "soft_smmu", "kunit", "doctest"];
    (ours.iter().any(|prefix| name.starts_with(prefix))
        || name.starts_with("_R") && rust.iter().any(|part| name.contains(part)))
        && !tests.iter().any(|part| name.contains(part))
}

/// Prints the deepest chains of the kernel `vmlinux`, with `objdump` as the disassembler.
pub fn run(vmlinux: &Path, objdump: &str) -> Result<(), Box<dyn Error>> {
    let output = |args: &[&str]| -> Result<String, Box<dyn Error>> {
        let output = Command::new(objdump).args(args).arg(vmlinux).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let symbols = output(&["--syms"])?;
    let names: Vec<_> = symbols
        .lines()
        .filter(|line| line.contains(" F "))
        .filter_map(|line| line.split_whitespace().last())
        .filter(|name| is_ours(name))
        .collect();
    let select = format!("--disassemble-symbols={}", names.join(","));
    let functions = parse(&output(&["--disassemble", "--no-show-raw-insn", &select])?);
    for needed in [ROOT, OPERATION] {
        if !functions.contains_key(needed) {
            return Err(format!("{}: no function {needed}", vmlinux.display()).into());
        }
    }
    for (id, without) in [("no error", &RARE[..]), ("at most", &[])] {
        let (bytes, chain) = deepest(&functions, ROOT, without, &mut Vec::new());
        println!(
            "{}",
            json!({"id": id, "n": 1, "bytes": bytes, "chain": chain})
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(lowers_stack("sub", "sp, sp, #0x450"), 0x450);
        assert_eq!(lowers_stack("sub", "sp, sp, #0x1, lsl #12"), 4096);
        assert_eq!(lowers_stack("stp", "x29, x30, [sp, #-0x60]!"), 0x60);
        assert_eq!(lowers_stack("str", "x30, [sp, #-16]!"), 16);
        assert_eq!(lowers_stack("stp", "x29, x30, [sp, #0x10]"), 0);
        assert_eq!(lowers_stack("sub", "x8, sp, #0x10"), 0);
        assert_eq!(lowers_stack("add", "sp, sp, #0x10"), 0);
    }

    #[test]
    fn the_deepest_and_no_circle() {
        let text = "\
ffff800080000000 <iommufd_hwpt_invalidate>:
ffff800080000000: \tsub\tsp, sp, #0x40
ffff800080000004: \tb.ne\t0xffff800080000000 <iommufd_hwpt_invalidate+0x4>
ffff800080000008: \tbl\t0xffff800080000100 <small>
<arm_vsmmu_cache_invalidate>:
ffff800080000010: \tstp\tx29, x30, [sp, #-0x20]!
ffff800080000014: \tbl\t0xffff800080000100 <iommufd_hwpt_invalidate>
<small>:
ffff800080000100: \tsub\tsp, sp, #0x10
";
        let (bytes, chain) = deepest(&parse(text), ROOT, &[], &mut Vec::new());
        assert_eq!(bytes, 0x60);
        assert_eq!(
            chain,
            [
                "iommufd_hwpt_invalidate (64)",
                "arm_vsmmu_cache_invalidate (32)"
            ]
        );
    }

    #[test]
    fn names() {
        let name = "_RNvMs_NtCs1JnQZzTAGdz_16arm_smmu_v3_rust4cmdqINtB4_4CmdqNtNtB6_4port8SmmuPortE15issue_once_moreB6_";
        assert_eq!(short(name), "issue_once_more");
        assert_eq!(short("plain"), "plain");
    }
}
