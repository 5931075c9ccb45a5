// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Single calls between marks that an emulator's own trace shows, so that somebody else can count what
//! the call does to the SMMU.
//!
//! A mark is an invalidation too, of an ASID that nobody uses. What it costs is in the first pair, which
//! has no call in between.

use std::error::Error;
use std::path::Path;

use serde_json::json;
use vsmmu_nested::ram::PAGE_SIZE;
use vsmmu_nested::{Command, NestedSmmu};

use crate::invalidate::{self, Selection};
use crate::trace;

const ASID: u16 = 0xbeef;

/// A call that nothing else looks like: the trace shows ASID and address.
fn mark(smmu: &NestedSmmu, number: u64) -> Result<(), Box<dyn Error>> {
    let command = Command::tlbi_nh_va(ASID, number * PAGE_SIZE, true);
    Ok(smmu.invalidate(&[command])?)
}

/// Makes each call once, with the mark 2k before and 2k + 1 behind it, and prints the k.
pub fn run(sysfs: &Path, selection: &Selection) -> Result<(), Box<dyn Error>> {
    let smmu = invalidate::smmu(sysfs)?;
    let mut pair = 0;
    let mut between = |id: &str, n: usize, batches: &[Vec<Command>]| {
        mark(&smmu, 2 * pair)?;
        let mut errno = None;
        for batch in batches {
            if let Err(failure) = smmu.invalidate(batch) {
                errno = Some(failure.errno);
            }
        }
        mark(&smmu, 2 * pair + 1)?;
        println!(
            "{}",
            json!({"mark": pair, "id": id, "n": n, "errno": errno})
        );
        pair += 1;
        Ok::<_, Box<dyn Error>>(())
    };
    between("marks", 0, &[])?;
    for (mix, n) in selection.cases() {
        between(mix.id(), n, &[mix.array(n)])?;
    }
    for (id, batches) in trace::traces() {
        between(id, batches.iter().map(Vec::len).sum(), &batches)?;
    }
    Ok(())
}
