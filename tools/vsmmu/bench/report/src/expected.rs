// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The figures that a change is held against: those of the last commit that meant to change them.

use std::error::Error;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::rows::{Measured, Pair};

/// By how much a figure may be above what is expected. There is no noise in the figures, so this is
/// for a word in a structure that has moved, not for chance.
const TOLERANCE: f64 = 0.02;

#[derive(Debug, Deserialize, Serialize)]
struct Expected {
    id: String,
    n: u64,
    c: u64,
    rust: u64,
    ratio: f64,
    /// ioctls on the Rust kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    ioctls: Option<u64>,
    /// CMD_SYNCs of the Rust kernel, by its own statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    syncs: Option<u64>,
}

impl Expected {
    fn of(pair: &Pair) -> Option<Self> {
        Some(Expected {
            id: pair.rust.id.clone(),
            n: pair.rust.n,
            c: pair.c.as_ref()?.instructions()?,
            rust: pair.rust.instructions()?,
            ratio: (pair.ratio()? * 1000.0).round() / 1000.0,
            ioctls: pair.rust.ioctls.filter(|ioctls| *ioctls > 1),
            syncs: pair.rust.syncs,
        })
    }
}

/// Writes what was measured as what is expected from now on.
pub fn update(measured: &Measured, path: &Path) -> Result<(), Box<dyn Error>> {
    let rows: Vec<_> = measured.instructions().filter_map(Expected::of).collect();
    let mut text = serde_json::to_string_pretty(&rows)?;
    text.push('\n');
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?;
    println!("{} cases are in {} now", rows.len(), path.display());
    Ok(())
}

/// What is wrong with `now` when `then` was expected, and what is better.
fn compare(then: &Expected, now: Option<&Expected>) -> (Vec<String>, Vec<String>) {
    let Some(now) = now else {
        return (vec!["not measured".into()], Vec::new());
    };
    let (mut worse, mut better) = (Vec::new(), Vec::new());
    let mut look = |what: &str, then: f64, now: f64| {
        let percent = (now / then - 1.0) * 100.0;
        let text = format!("{what} {now}, expected {then} ({percent:+.1} %)");
        if now > then * (1.0 + TOLERANCE) {
            worse.push(text);
        } else if now < then * (1.0 - TOLERANCE) {
            better.push(text);
        }
    };
    look(
        "instructions on the Rust kernel",
        then.rust as f64,
        now.rust as f64,
    );
    look("instructions on the C kernel", then.c as f64, now.c as f64);
    look("Rust/C", then.ratio, now.ratio);
    if let (Some(then), Some(now)) = (then.ioctls, now.ioctls) {
        look("ioctls", then as f64, now as f64);
    }
    match (then.syncs, now.syncs) {
        (Some(then), Some(now)) => look("CMD_SYNCs", then as f64, now as f64),
        (Some(_), None) => worse.push("no CMD_SYNCs counted".into()),
        (None, _) => {}
    }
    (worse, better)
}

/// Compares what was measured with what is expected, a line for each case, and gives how many are as
/// expected and how many are worse.
pub fn check(measured: &Measured, path: &Path) -> Result<(usize, usize), Box<dyn Error>> {
    let text = fs::read(path).map_err(|e| {
        let what = "make bench-check UPDATE=1 makes it";
        format!("{}: {e} ({what})", path.display())
    })?;
    let expected: Vec<Expected> =
        serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let now: Vec<_> = measured.instructions().filter_map(Expected::of).collect();
    let (mut passed, mut failed, mut gains) = (0, 0, 0);
    for then in &expected {
        let same = now
            .iter()
            .find(|now| (&now.id, now.n) == (&then.id, then.n));
        let (worse, better) = compare(then, same);
        let name = format!("{}, n = {}", then.id, then.n);
        match (worse.is_empty(), same) {
            (true, Some(now)) => {
                passed += 1;
                println!(
                    "ok    {name}: C {}, Rust {}, {:.2}",
                    now.c, now.rust, now.ratio
                );
            }
            _ => {
                failed += 1;
                println!("FAIL  {name}: {}", worse.join("; "));
            }
        }
        for better in better {
            gains += 1;
            println!("      {name} is better: {better}");
        }
    }
    for new in &now {
        if !expected
            .iter()
            .any(|then| (&then.id, then.n) == (&new.id, new.n))
        {
            failed += 1;
            println!("FAIL  {}, n = {}: not in {}", new.id, new.n, path.display());
        }
    }
    if failed > 0 {
        println!(
            "These are instructions, counted with the compilers that the build root pins: the same on\n\
             each machine, to within a per cent. So it is the last change, be it of the code, of the\n\
             kernel's configuration or of the compilers. `make bench` measures all else that it may\n\
             have changed. If it is to cost this: make bench-check UPDATE=1, and commit {}\n\
             with the reason.",
            path.display()
        );
    } else if gains > 0 {
        println!(
            "To hold what was gained: make bench-check UPDATE=1, and commit {}.",
            path.display()
        );
    }
    Ok((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(c: u64, rust: u64, syncs: Option<u64>) -> Expected {
        Expected {
            id: "x".into(),
            n: 1,
            c,
            rust,
            ratio: rust as f64 / c as f64,
            ioctls: Some(10),
            syncs,
        }
    }

    #[test]
    fn worse_and_better() {
        let then = case(1000, 500, Some(66));
        let count = |now: Option<Expected>| {
            let (worse, better) = compare(&then, now.as_ref());
            (worse.len(), better.len())
        };
        assert_eq!(count(Some(case(1000, 510, Some(66)))), (0, 0));
        // The number itself and the ratio.
        assert_eq!(count(Some(case(1000, 511, Some(66)))), (2, 0));
        assert_eq!(count(Some(case(1000, 480, Some(66)))), (0, 2));
        // With both kernels slower the ratio stays.
        assert_eq!(count(Some(case(1100, 550, Some(66)))), (2, 0));
        assert_eq!(count(Some(case(1000, 500, Some(68)))), (1, 0));
        assert_eq!(count(Some(case(1000, 500, None))), (1, 0));
        let more = Expected {
            ioctls: Some(11),
            ..case(1000, 500, Some(66))
        };
        assert_eq!(count(Some(more)), (1, 0));
        assert_eq!(count(None), (1, 0));
    }
}
