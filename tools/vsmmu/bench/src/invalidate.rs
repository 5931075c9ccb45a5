// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidations of a guest, as a VMM forwards them.

use std::error::Error;
use std::path::Path;

use vm_memory::GuestAddress;
use vsmmu_nested::ram::PAGE_SIZE;
use vsmmu_nested::stage1::{self, Stage1};
use vsmmu_nested::{Command, GuestRam, NestedSmmu};

use crate::sample::Sampler;

/// An array of commands.
struct Case {
    id: &'static str,
    n: usize,
    /// The command with this index.
    command: fn(u64) -> Command,
}

impl Case {
    const fn tlbi_nh_va(n: usize) -> Self {
        Case {
            id: "ioctl: TLBI_NH_VA",
            n,
            command: page,
        }
    }
}

/// Up to 63 commands go into the queue at once, so that 64 are the first to go there in two batches.
const CASES: [Case; 6] = [
    Case::tlbi_nh_va(1),
    Case::tlbi_nh_va(8),
    Case::tlbi_nh_va(63),
    Case::tlbi_nh_va(64),
    Case::tlbi_nh_va(512),
    Case::tlbi_nh_va(4096),
];

/// The stream id that "the guest" uses.
const VSID: u32 = 0x1234;
const ASID: u16 = 0x51;
const IOVA: u64 = 0x2000_0000;

/// Invalidates the page with this index.
pub fn page(index: u64) -> Command {
    Command::tlbi_nh_va(ASID, IOVA + index * PAGE_SIZE, true)
}

/// A vIOMMU for the vfio device at `sysfs`, which is attached to a stage 1 with no page mapped.
pub fn smmu(sysfs: &Path) -> Result<NestedSmmu, Box<dyn Error>> {
    let ram = GuestRam::new(GuestAddress(0x4000_0000), 16 * PAGE_SIZE as usize)?;
    let mut smmu = NestedSmmu::new(sysfs, ram, VSID)?;
    let ram = smmu.ram();
    let tables = Stage1::new(ram)?;
    let descriptor = ram.alloc_page()?;
    stage1::write_cd(ram, descriptor, &tables, ASID)?;
    smmu.attach(stage1::ste(descriptor))?;
    Ok(smmu)
}

/// Measures the cases, or those with `only` commands.
pub fn run(sampler: &Sampler, sysfs: &Path, only: Option<usize>) -> Result<(), Box<dyn Error>> {
    let smmu = smmu(sysfs)?;
    for case in CASES.iter().filter(|case| only.is_none_or(|n| n == case.n)) {
        let commands: Vec<_> = (0..case.n as u64).map(case.command).collect();
        sampler.case(case.id, case.n, || Ok(smmu.invalidate(&commands)?))?;
    }
    Ok(())
}
