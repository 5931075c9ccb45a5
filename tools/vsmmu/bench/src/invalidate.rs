// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidations of a guest, as a VMM forwards them: arrays of the same kind of command.

use std::error::Error;
use std::path::Path;

use clap::{Args, ValueEnum};
use vm_memory::GuestAddress;
use vsmmu_nested::cmd::Range;
use vsmmu_nested::ram::PAGE_SIZE;
use vsmmu_nested::stage1::{self, Stage1};
use vsmmu_nested::{Command, GuestRam, NestedSmmu};

use crate::sample::Sampler;

/// What is in an array.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mix {
    /// A TLBI_NH_VA for each page
    Va,
    /// TLBI_NH_ASID
    Asid,
    /// A TLBI_NH_VA for each 32 pages
    Range,
    /// A CFGI_CD and a TLBI_NH_VA in turn
    Cd,
}

impl Mix {
    /// What figures are called that were measured with it.
    pub fn id(self) -> &'static str {
        match self {
            Mix::Va => "ioctl: TLBI_NH_VA",
            Mix::Asid => "ioctl: TLBI_NH_ASID",
            Mix::Range => "ioctl: TLBI_NH_VA, 32 pages",
            Mix::Cd => "ioctl: CFGI_CD, TLBI_NH_VA",
        }
    }

    /// The command with this index.
    pub fn command(self, index: u64) -> Command {
        match self {
            Mix::Va => page(index),
            Mix::Asid => Command::tlbi_nh_asid(ASID),
            Mix::Range => page(index * 32).with_range(Range {
                num: 31,
                tg: 1,
                ..Range::default()
            }),
            Mix::Cd if index.is_multiple_of(2) => Command::cfgi_cd(VSID, 0, true),
            Mix::Cd => page(index),
        }
    }

    /// An array of `n` commands.
    pub fn array(self, n: usize) -> Vec<Command> {
        (0..n as u64).map(|index| self.command(index)).collect()
    }
}

/// A block of the C code has 63 commands, and an array at most 2^19.
const LENGTHS: [usize; 11] = [1, 2, 8, 32, 63, 64, 128, 512, 4096, 65536, 524_288];

/// Which of the arrays.
#[derive(Args)]
pub struct Selection {
    /// Only arrays of this kind (may be given several times)
    #[arg(long = "mix", value_name = "MIX")]
    mixes: Vec<Mix>,
    /// Only arrays of this length (may be given several times)
    #[arg(long = "n", value_name = "N")]
    lengths: Vec<usize>,
}

impl Selection {
    /// The kinds and lengths of those that were selected. The longest arrays there are only of TLBI_NH_VA.
    pub fn cases(&self) -> impl Iterator<Item = (Mix, usize)> {
        let selected = |mix, n| {
            (self.mixes.is_empty() || self.mixes.contains(&mix))
                && (self.lengths.is_empty() || self.lengths.contains(&n))
                && (mix == Mix::Va || n < LENGTHS[LENGTHS.len() - 1])
        };
        let mixes = Mix::value_variants().iter().copied();
        mixes
            .flat_map(|mix| LENGTHS.map(|n| (mix, n)))
            .filter(move |(mix, n)| selected(*mix, *n))
    }
}

/// The stream id that "the guest" uses.
pub const VSID: u32 = 0x1234;
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

/// Measures those of the `selection`.
pub fn run(sampler: &Sampler, sysfs: &Path, selection: &Selection) -> Result<(), Box<dyn Error>> {
    let smmu = smmu(sysfs)?;
    for (mix, n) in selection.cases() {
        let commands = mix.array(n);
        sampler.case(mix.id(), n, || Ok(smmu.invalidate(&commands)?))?;
    }
    Ok(())
}

/// Measures an array of no commands: what remains of a call without any. Not all kernels take that for a
/// success.
pub fn probe(sampler: &Sampler, sysfs: &Path) -> Result<(), Box<dyn Error>> {
    let smmu = smmu(sysfs)?;
    sampler.case("ioctl: no commands", 0, || match smmu.invalidate(&[]) {
        Err(failure) if failure.errno != libc::EINVAL => Err(failure.into()),
        _ => Ok(()),
    })
}
