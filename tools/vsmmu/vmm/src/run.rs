// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the command line to the end of the guest.

use std::error::Error;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use clap::Parser;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vsmmu_nested::{GuestRam, NestedSmmu, with_causes};
use vsmmu_vmm::bus::Bus;
use vsmmu_vmm::fdt::{self, Guest};
use vsmmu_vmm::layout::{
    CPUS_MAX, DEVICES_MAX, PCI_ECAM, PCI_MEMORY, RAM_BASE, SMMU, SMMU_EVENTQ_SPI, SMMU_GERROR_SPI,
    UART_SPIS, UARTS, stream_id,
};
use vsmmu_vmm::machine::{End, Machine};
use vsmmu_vmm::pci::{Assigned, Pci};
use vsmmu_vmm::smmu::{Nested, Outputs, Smmu};
use vsmmu_vmm::uart::Uart;

const SYSFS_DEVICES: &str = "/sys/bus/pci/devices";

/// The exit status when there was no guest, or it could not go on.
const FAILED: u8 = 2;
/// The exit status when the guest has ended otherwise than by switching itself off.
const OTHER_END: u8 = 1;

/// Boots an arm64 Linux under KVM, with PCI devices of the host's behind a virtual SMMUv3.
///
/// Exits with 0 when the guest has switched itself off, with 1 when it has ended in another way, such as
/// a panic, and with 2 when it could not be started or could not go on.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The kernel: an arm64 Image
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initrd
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel parameters
    #[arg(long, value_name = "TEXT", default_value = "console=ttyAMA0")]
    cmdline: String,
    /// How many CPUs it has
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=CPUS_MAX))]
    cpus: u64,
    /// The size of its memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(64..=65536))]
    memory: u64,
    /// Where its serial ports go to, ttyAMA0 and ttyAMA1: none, stdio, file:PATH, or pipe:PATH for the named
    /// pipes PATH.in and PATH.out
    #[arg(long, value_name = "WHERE", default_values_t = [Port::Stdio, Port::None])]
    serial: Vec<Port>,
    /// A PCI device of the host's that the guest gets, such as 0000:01:00.0, with vfio-pci as its driver; can be
    /// given several times
    #[arg(long = "device", value_name = "BDF")]
    devices: Vec<String>,
    /// Tell of each error of the command queue, and of its acknowledgment
    #[arg(long)]
    verbose: bool,
}

/// Where a serial port goes to.
#[derive(Clone)]
enum Port {
    None,
    Stdio,
    File(String),
    Pipe(String),
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "none" => Ok(Port::None),
            None if text == "stdio" => Ok(Port::Stdio),
            Some(("file", path)) => Ok(Port::File(path.into())),
            Some(("pipe", path)) => Ok(Port::Pipe(path.into())),
            _ => Err("it is none of: none, stdio, file:PATH, pipe:PATH".into()),
        }
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Port::None => f.write_str("none"),
            Port::Stdio => f.write_str("stdio"),
            Port::File(path) => write!(f, "file:{path}"),
            Port::Pipe(path) => write!(f, "pipe:{path}"),
        }
    }
}

pub fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(End::Off) => ExitCode::SUCCESS,
        Ok(End::Other(how)) => {
            eprintln!("vsmmu-vmm: the guest has not switched itself off: {how}");
            ExitCode::from(OTHER_END)
        }
        Ok(End::Failed(why)) => {
            eprintln!("vsmmu-vmm: the guest cannot go on: {why}");
            ExitCode::from(FAILED)
        }
        Err(e) => {
            eprintln!("vsmmu-vmm: {}", with_causes(&*e));
            ExitCode::from(FAILED)
        }
    }
}

fn run(args: &Args) -> Result<End, Box<dyn Error>> {
    let size = args.memory << 20;
    let ram = GuestRam::new(GuestAddress(RAM_BASE), size as usize)?;
    let memory = ram.memory().clone();
    let machine = Machine::new(&memory, args.cpus)?;
    let (initrd, start) = machine.load(&args.kernel, args.initrd.as_deref())?;

    let mut bus = Bus::default();
    for (i, port) in args.serial.iter().take(UARTS.len()).enumerate() {
        bus.add(UARTS[i], serial(port, &machine, UART_SPIS[i])?);
    }
    let mut ats = false;
    if !args.devices.is_empty() {
        let smmu = nested(&args.devices, ram)?;
        ats = smmu.hw_info().ats();
        passthrough(smmu, memory, &machine, &mut bus, args.verbose)?;
    }

    let fdt = fdt::build(&Guest {
        cmdline: &args.cmdline,
        cpus: args.cpus,
        memory: size,
        initrd,
        devices: args.devices.len(),
        ats,
    })?;
    Ok(machine.run(start, &fdt, bus)?)
}

/// The devices, which the host's SMMU lets go by the guest's addresses.
fn nested(devices: &[String], ram: GuestRam) -> Result<NestedSmmu, Box<dyn Error>> {
    if devices.len() > DEVICES_MAX {
        return Err(format!("a guest cannot have more than {DEVICES_MAX} devices").into());
    }
    let mut paths = devices.iter().map(|bdf| Path::new(SYSFS_DEVICES).join(bdf));
    let first = paths.next().ok_or("there is no device")?;
    let mut smmu = NestedSmmu::new(&first, ram, stream_id(0))?;
    for (i, path) in paths.enumerate() {
        smmu.add(&path, stream_id(i + 1))?;
    }
    Ok(smmu)
}

/// Puts the devices and their virtual SMMU onto the bus.
fn passthrough(
    smmu: NestedSmmu,
    memory: GuestMemoryMmap,
    machine: &Machine,
    bus: &mut Bus,
    verbose: bool,
) -> Result<(), Box<dyn Error>> {
    let devices: Vec<_> = smmu.devices().cloned().collect();
    let assigned = devices.into_iter().enumerate().map(|(i, device)| Assigned {
        device,
        route: machine.route(stream_id(i)),
    });
    let pci = Pci::new(assigned)?;
    bus.add(PCI_ECAM, pci.ecam());
    bus.add(PCI_MEMORY, pci.memory());

    let outputs = Outputs {
        gerror: machine.line(SMMU_GERROR_SPI),
        event: machine.line(SMMU_EVENTQ_SPI),
        verbose,
    };
    let info = smmu.hw_info();
    let streams = (0..smmu.devices().count()).map(stream_id).collect();
    let smmu = Smmu::new(Nested::new(smmu), &info, memory, streams, outputs)?;
    smmu.take_events()?;
    bus.add(SMMU, smmu);
    Ok(())
}

fn serial(port: &Port, machine: &Machine, spi: u32) -> Result<Arc<Uart>, Box<dyn Error>> {
    let line = machine.line(spi);
    let open = |path: &str, options: &mut OpenOptions| {
        let file = options.open(path);
        file.map_err(|e| format!("cannot open {path}: {e}"))
    };
    Ok(match port {
        Port::None => Uart::new(Box::new(io::sink()), line),
        Port::Stdio => {
            let uart = Uart::new(Box::new(io::stdout()), line);
            uart.feed(io::stdin());
            uart
        }
        Port::File(path) => {
            let mut options = OpenOptions::new();
            let file = open(path, options.write(true).create(true).truncate(true))?;
            Uart::new(Box::new(file), line)
        }
        Port::Pipe(path) => {
            // With both ends open, neither waits for the other side, nor ends with it.
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            let input = open(&format!("{path}.in"), &mut options)?;
            let output = open(&format!("{path}.out"), &mut options)?;
            let uart = Uart::new(Box::new(output), line);
            uart.feed(input);
            uart
        }
    })
}
