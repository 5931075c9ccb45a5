// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was measured, as it stands in the JSON files: an object for each case.

use std::error::Error;
use std::fs;
use std::path::Path;

use serde::Deserialize;

/// One case on one kernel. What a case does not have is `None`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Row {
    pub group: String,
    pub id: String,
    /// How many commands, or other things, a call does.
    pub n: u64,
    /// CPUs of the machine.
    pub smp: u64,
    /// Instructions: the median of the calls, or an average.
    pub median: Option<u64>,
    pub average: Option<u64>,
    /// How coarse the average is.
    pub resolution: u64,
    /// The fewest and the most instructions that a call took, and how many calls took the fewest.
    pub min: Option<u64>,
    pub max: Option<u64>,
    pub ioctls: Option<u64>,
    /// When a guest is ready whose commands a VMM relays.
    pub end: Option<u64>,
    /// Why there is no figure.
    pub errno: Option<serde_json::Value>,
    /// CMD_SYNCs: of the driver's own statistics, or of the emulator's trace.
    pub syncs: Option<u64>,
    /// Accesses to registers of the SMMU.
    pub reads: Option<u64>,
    pub writes: Option<u64>,
    /// Bytes that were allocated, or those of stack.
    pub bytes: Option<u64>,
    /// Functions that call each other.
    pub chain: Vec<String>,
    pub vms: u64,
    pub threads: u64,
    /// With the host's own traffic beside it.
    pub host: bool,
    pub per_second: Option<f64>,
    /// With an SMMU that takes its time: nanoseconds of a call, which SMMU, how a CMD_SYNC tells that it is
    /// complete, and what a command, a CMD_SYNC and a read of a register take there.
    pub ns: Option<u64>,
    pub smmu: String,
    pub completion: String,
    pub latencies: [u64; 3],
}

impl Row {
    /// Instructions of a call.
    pub fn instructions(&self) -> Option<u64> {
        self.median.or(self.average)
    }

    /// The same case on another kernel has the same.
    fn key(&self) -> impl PartialEq {
        let Row {
            group,
            id,
            n,
            smp,
            vms,
            threads,
            host,
            smmu,
            completion,
            ..
        } = self;
        ((group, id, smmu, completion), (n, smp, vms, threads, host))
    }
}

/// A case on both kernels. The C kernel may not have it.
pub struct Pair {
    pub c: Option<Row>,
    pub rust: Row,
}

impl Pair {
    /// Instructions on the Rust kernel, divided by those on the C kernel.
    pub fn ratio(&self) -> Option<f64> {
        let c = self.c.as_ref()?.instructions()?;
        Some(self.rust.instructions()? as f64 / c as f64)
    }

    /// The same if what was measured for the Rust kernel is too much by as much as it may be.
    pub fn least_ratio(&self) -> Option<f64> {
        let c = self.c.as_ref()?.instructions()?;
        let rust = self.rust.instructions()?;
        Some(rust.saturating_sub(self.rust.resolution) as f64 / c as f64)
    }

    /// Nanoseconds on the Rust kernel, divided by those on the C kernel.
    pub fn time_ratio(&self) -> Option<f64> {
        let c = self.c.as_ref()?.ns?;
        Some(self.rust.ns? as f64 / c as f64)
    }
}

/// All that was measured.
pub struct Measured(Vec<Pair>);

impl Measured {
    /// Reads `c.json` and `rust.json`.
    pub fn load(dir: &Path) -> Result<Self, Box<dyn Error>> {
        let read = |name: &str| -> Result<Vec<Row>, Box<dyn Error>> {
            let path = dir.join(name);
            let text = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            Ok(serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", path.display()))?)
        };
        Ok(Measured::new(&read("c.json")?, read("rust.json")?))
    }

    /// Puts together what belongs together.
    pub fn new(c: &[Row], rust: Vec<Row>) -> Self {
        let pairs = rust.into_iter().map(|rust| Pair {
            c: c.iter().find(|c| c.key() == rust.key()).cloned(),
            rust,
        });
        Measured(pairs.collect())
    }

    /// The cases of a group, in the order in which they were measured.
    pub fn group(&self, group: &str) -> impl Iterator<Item = &Pair> {
        self.0.iter().filter(move |pair| pair.rust.group == group)
    }

    /// The case of a group with this id and n.
    pub fn find(&self, group: &str, id: &str, n: u64) -> Option<&Pair> {
        self.group(group)
            .find(|pair| pair.rust.id == id && pair.rust.n == n)
    }

    /// All cases with a number of instructions.
    pub fn instructions(&self) -> impl Iterator<Item = &Pair> {
        self.0.iter().filter(|pair| {
            let rows = [Some(&pair.rust), pair.c.as_ref()];
            rows.iter()
                .flatten()
                .any(|row| row.instructions().is_some())
        })
    }
}
