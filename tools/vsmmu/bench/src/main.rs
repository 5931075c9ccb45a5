// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Measures what invalidations through an SMMUv3's command queue cost: a guest's, and the host's own.
//!
//! All times are those of `CLOCK_MONOTONIC`, less what reading it takes. On a machine that QEMU
//! emulates with `-icount shift=0,sleep=off` and one CPU, a nanosecond is an instruction.

mod dma_map;
mod error;
mod invalidate;
mod ioas_map;
mod marks;
mod memory;
mod queue;
mod relay;
mod sample;
mod throughput;
mod trace;

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vsmmu_nested::{edu, pci, with_causes};

use invalidate::Selection;
use queue::Counter;
use sample::Sampler;

/// Measures invalidations through an SMMUv3's command queue: a guest's, and the host's own.
///
/// Needs root, and QEMU's edu device behind an SMMUv3. Prints a JSON object a line, one for each case.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// PCI address of the device, such as 0000:00:02.0. It is given to vfio-pci if it has another
    /// driver, or none. [default: the first edu]
    #[arg(long, value_name = "BDF")]
    device: Option<String>,
    /// How many calls are measured in each case
    #[arg(long, value_name = "N", default_value_t = 101, value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    /// Has the emulator count commands and register accesses of a call, which it must offer on a PCI serial
    /// port, instead of the kernel, which must not be C
    #[arg(long)]
    emulator: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// ioctl(IOMMU_HWPT_INVALIDATE) with arrays of several kinds and lengths
    Invalidate(Selection),
    /// The same without any commands
    Probe,
    /// The same with the commands of a recorded guest, one call for those between two CMD_SYNCs
    Trace,
    /// One call of each kind and length, between marks that a trace of the emulator's shows
    Marks(Selection),
    /// How many bytes the kernel allocates in one call of each kind and length
    Memory(Selection),
    /// Commands per second from several threads, on one vIOMMU and on two, and beside the kernel's
    /// dma_map_benchmark. Takes the first two edu devices. In real time
    Throughput,
    /// ioctl(IOMMU_HWPT_INVALIDATE) with a command that the SMMU finds illegal. Needs a kernel with
    /// CONFIG_ARM_SMMU_V3_FAULT_INJECTION
    Error,
    /// What the CPUs of a Linux guest have queued, relayed by a VMM that waits for more before an ioctl,
    /// does not, or makes one for each command
    Relay,
    /// Mapping and unmapping a page of an IOAS that the device is attached to
    IoasMap,
    /// Mapping and unmapping a page with the kernel's DMA API, by its dma_map_benchmark: that has to be
    /// the driver of some device
    DmaMap {
        /// How many nanoseconds of the machine's time an instruction takes. The benchmark averages in
        /// units of 100 ns, so the more, the finer are the results, which are in instructions
        #[arg(long, value_name = "NS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        ns_per_instruction: u64,
    },
}

/// Where the kernel has files for people who debug it.
const DEBUGFS: &str = "/sys/kernel/debug";

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vsmmu-bench: {}", with_causes(&*e));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let counter = if args.emulator {
        Some(Counter::emulator()?)
    } else {
        Counter::kernel()?
    };
    let sampler = Sampler::new(args.calls, counter);
    match &args.what {
        What::Invalidate(selection) => invalidate::run(&sampler, &device(args)?, selection),
        What::Probe => invalidate::probe(&sampler, &device(args)?),
        What::Trace => trace::run(&sampler, &device(args)?),
        What::Marks(selection) => marks::run(&device(args)?, selection),
        What::Memory(selection) => memory::run(&device(args)?, selection),
        What::Throughput => throughput::run(&two_devices()?),
        What::Error => error::run(&sampler, &device(args)?),
        What::Relay => relay::run(&sampler, &device(args)?),
        What::IoasMap => ioas_map::run(&sampler, &device(args)?),
        What::DmaMap { ns_per_instruction } => dma_map::run(*ns_per_instruction),
    }
}

/// The device's directory in sysfs, with vfio-pci as its driver.
fn device(args: &Args) -> Result<PathBuf, pci::Error> {
    let bdf = match &args.device {
        Some(bdf) => bdf.clone(),
        None => pci::find(edu::PCI_ID.0, edu::PCI_ID.1)?,
    };
    pci::bind_to_vfio(&bdf, edu::PCI_ID)
}

/// The first two of them.
fn two_devices() -> Result<Vec<PathBuf>, pci::Error> {
    let found = pci::find_all(edu::PCI_ID.0, edu::PCI_ID.1)?;
    let two = found.iter().take(2);
    two.map(|bdf| pci::bind_to_vfio(bdf, edu::PCI_ID)).collect()
}

/// The directories in debugfs.
fn debugfs() -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(DEBUGFS).map_err(|e| in_file(Path::new(DEBUGFS), e))?;
    entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect()
}

/// The same error with the name of the file, which those of [`fs`] do not tell.
fn in_file(path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}
