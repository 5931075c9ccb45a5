// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stops the SMMU's command queue at a command of the host that cannot be fetched, and has another kernel
//! take over with that error active.

use std::error::Error;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use vsmmu_faults::control::{Control, Kind, Rule, TLBI_S2_IPA};
use vsmmu_faults::vm::{HostPage, Vm};
use vsmmu_nested::{edu, pci};

/// Stops the SMMU's command queue with an error, and has another kernel take over.
///
/// Needs root, and QEMU with an SMMUv3 that fails on demand, its monitor on a PCI serial port, and an edu
/// device. Returns only if that has failed. The rule by which the SMMU fails stays.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The kernel
    #[arg(long)]
    image: PathBuf,
    /// Its initrd
    #[arg(long)]
    initrd: PathBuf,
}

fn main() -> ExitCode {
    let Err(e) = run(&Args::parse());
    eprintln!("error: {}", vsmmu_nested::with_causes(&*e));
    ExitCode::FAILURE
}

fn run(args: &Args) -> Result<std::convert::Infallible, Box<dyn Error>> {
    load(args)?;

    let mut control = Control::open()?;
    control.set(&[])?;
    let vm = Vm::with_edu(&pci::find(edu::PCI_ID.0, edu::PCI_ID.1)?)?;
    let caller = vm.caller();
    let page = HostPage::filled(1, 0);
    caller.map(&page)?;
    control.set(&[Rule::new(Kind::Abt).opcode(TLBI_S2_IPA).forever()])?;
    // The host gives up waiting. The command stays in the queue.
    caller.unmap(&page)?;

    let stats = control.stats()?;
    println!("{} aborts, {} acknowledged", stats.abt, stats.acks);
    if stats.abt <= stats.acks {
        return Err("no error is active".into());
    }
    // SAFETY: No pointer is involved.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    Err(io::Error::last_os_error().into())
}

/// Loads the other kernel, with the command line of this one.
fn load(args: &Args) -> Result<(), Box<dyn Error>> {
    let image = File::open(&args.image)?;
    let initrd = File::open(&args.initrd)?;
    let command_line = CString::new(fs::read_to_string("/proc/cmdline")?.trim_end())?;
    // SAFETY: The string is valid, and its length includes the NUL.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            image.as_raw_fd(),
            initrd.as_raw_fd(),
            command_line.count_bytes() + 1,
            command_line.as_ptr(),
            0,
        )
    };
    if loaded < 0 {
        let e = io::Error::last_os_error();
        return Err(format!("cannot load {}: {e}", args.image.display()).into());
    }
    Ok(())
}
