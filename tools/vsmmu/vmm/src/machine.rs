// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM: memory, CPUs and their interrupt controller.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2,
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID,
    KVM_SYSTEM_EVENT_SHUTDOWN, KVM_VGIC_ITS_ADDR_TYPE, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, KvmIrqRouting, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
    kvm_irq_routing_entry, kvm_irq_routing_msi, kvm_userspace_memory_region, kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuExit, VcpuFd, VmFd};
use linux_loader::loader::{KernelLoader, pe::PE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;
use vsmmu_nested::with_causes;

use crate::bus::{Bus, Line};
use crate::layout::{GIC_DIST, GIC_INTERRUPTS, GIC_ITS, GIC_REDIST, RAM_BASE, Range};
use crate::msix::Message;
use crate::pci::Route;

/// The first shared interrupt of a GIC.
const FIRST_SPI: u32 = 32;
/// X0 and PC, as KVM names them.
const REG_X0: u64 = 0x6030_0000_0010_0000;
const REG_PC: u64 = 0x6030_0000_0010_0040;
/// The doorbell of an ITS, from its base.
const GITS_TRANSLATER: u64 = 0x1_0040;
/// The tree has this at the end of memory for itself.
const FDT_SPACE: u64 = 0x20_0000;

/// Why there is no virtual machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is named first could not be done with KVM.
    #[error("cannot {0}")]
    Kvm(&'static str, #[source] errno::Error),
    /// A file could not be used.
    #[error("cannot read {0}")]
    File(String, #[source] io::Error),
    /// It is not a kernel.
    #[error("cannot load the kernel {0}, which has to be an arm64 Image")]
    Kernel(String, #[source] linux_loader::loader::Error),
    /// Kernel, initrd and device tree do not fit.
    #[error("the guest's memory is too small for {0}")]
    Memory(String),
}

/// How a guest has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It has switched itself off.
    Off,
    /// It has asked for a reset, as Linux does after a panic, or for something else.
    Other(String),
    /// A CPU cannot go on.
    Failed(String),
}

fn kvm<T>(what: &'static str, result: Result<T, errno::Error>) -> Result<T, Error> {
    result.map_err(|e| Error::Kvm(what, e))
}

/// A virtual machine that has not started.
pub struct Machine {
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
    memory: GuestMemoryMmap,
    routes: Arc<Mutex<Routes>>,
}

impl Machine {
    /// One with this memory, which is in one piece.
    ///
    /// # Errors
    ///
    /// When KVM does not have what it takes.
    pub fn new(memory: &GuestMemoryMmap, cpus: u64) -> Result<Self, Error> {
        let hypervisor = kvm("open /dev/kvm", Kvm::new())?;
        let vm = Arc::new(kvm("make a virtual machine", hypervisor.create_vm())?);
        for (slot, region) in memory.iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                flags: 0,
            };
            // SAFETY: the memory stays mapped as long as the machine has it, and nothing in Rust relies on
            // its content staying the same.
            let result = unsafe { vm.set_user_memory_region(slot) };
            kvm("give the virtual machine its memory", result)?;
        }
        let mut init = kvm_vcpu_init::default();
        kvm("ask for a kind of CPU", vm.get_preferred_target(&mut init))?;
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        let mut vcpus = Vec::new();
        for i in 0..cpus {
            let vcpu = kvm("make a CPU", vm.create_vcpu(i))?;
            kvm("initialise a CPU", vcpu.vcpu_init(&init))?;
            vcpus.push(vcpu);
            // All but the first wait until the guest has them start.
            init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        gic(&vm)?;
        Ok(Machine {
            vm,
            vcpus,
            memory: memory.clone(),
            routes: Arc::default(),
        })
    }

    /// A shared interrupt.
    pub fn line(&self, spi: u32) -> Line {
        let vm = self.vm.clone();
        let irq = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (FIRST_SPI + spi);
        Box::new(move |level| {
            // There is such an interrupt, so that this does not fail.
            let _ = vm.set_irq_line(irq, level);
        })
    }

    /// How messages of the device with this ID reach the guest.
    pub fn route(&self, device: u32) -> Route {
        let (vm, routes) = (self.vm.clone(), self.routes.clone());
        Box::new(move |vector, signal, message| {
            let mut routes = routes.lock().unwrap();
            let result = routes.set(&vm, device, vector, signal, message);
            result.map_err(|e| with_causes(&e))
        })
    }

    /// Puts kernel and initrd into memory. Gives the place of the initrd, and the address where the kernel
    /// starts.
    ///
    /// # Errors
    ///
    /// When they cannot be read, or do not fit.
    pub fn load(
        &self,
        kernel: &Path,
        initrd: Option<&Path>,
    ) -> Result<(Option<Range>, u64), Error> {
        let open = |path: &Path| {
            let name = path.display().to_string();
            File::open(path).map_err(|e| Error::File(name, e))
        };
        let loaded = PE::load(
            &self.memory,
            Some(GuestAddress(RAM_BASE)),
            &mut open(kernel)?,
            None,
        )
        .map_err(|e| Error::Kernel(kernel.display().to_string(), e))?;
        let start = loaded.kernel_load.0;
        let Some(path) = initrd else {
            return Ok((None, start));
        };
        let mut file = open(path)?;
        let name = path.display().to_string();
        let size = file
            .metadata()
            .map_err(|e| Error::File(name.clone(), e))?
            .len();
        // As far up as it can be, for what the kernel needs besides its image.
        let base = self.fdt_address().saturating_sub(size) & !0xffff;
        if base < loaded.kernel_end {
            return Err(Error::Memory(name));
        }
        self.memory
            .read_exact_volatile_from(GuestAddress(base), &mut file, size as usize)
            .map_err(|e| Error::File(name, io::Error::other(e)))?;
        Ok((Some(Range { base, size }), start))
    }

    fn fdt_address(&self) -> u64 {
        (self.memory.last_addr().0 + 1).saturating_sub(FDT_SPACE)
    }

    /// Runs the guest from `start` until it ends.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn run(self, start: u64, fdt: &[u8], bus: Bus) -> Result<End, Error> {
        let at = self.fdt_address();
        self.memory
            .write_slice(fdt, GuestAddress(at))
            .map_err(|_| Error::Memory("its device tree".into()))?;
        for (register, value) in [(REG_PC, start), (REG_X0, at)] {
            let result = self.vcpus[0].set_one_reg(register, &value.to_le_bytes());
            kvm("set a register", result)?;
        }
        let bus = Arc::new(bus);
        let (ended, end) = mpsc::channel();
        for vcpu in self.vcpus {
            let (bus, ended) = (bus.clone(), ended.clone());
            thread::spawn(move || run_vcpu(vcpu, &bus, &ended));
        }
        drop(ended);
        Ok(end.recv().unwrap_or(End::Failed("no CPU is left".into())))
    }
}

/// The messages of all devices. KVM knows each by a number.
#[derive(Default)]
struct Routes(Vec<(u32, u32, Message)>);

impl Routes {
    fn set(
        &mut self,
        vm: &VmFd,
        device: u32,
        vector: u32,
        signal: &EventFd,
        message: Message,
    ) -> Result<(), Error> {
        let is_it = |route: &(u32, u32, _)| (route.0, route.1) == (device, vector);
        match self.0.iter().position(is_it) {
            Some(at) => self.0[at].2 = message,
            None => {
                self.0.push((device, vector, message));
                let number = self.0.len() as u32 - 1;
                kvm("connect an interrupt", vm.register_irqfd(signal, number))?;
            }
        }
        let mut table = KvmIrqRouting::new(self.0.len())
            .map_err(|_| Error::Kvm("route interrupts", errno::Error::new(libc::ENOMEM)))?;
        for (entry, (number, (device, _, message))) in
            table.as_mut_slice().iter_mut().zip((0..).zip(&self.0))
        {
            *entry = kvm_irq_routing_entry {
                gsi: number,
                type_: KVM_IRQ_ROUTING_MSI,
                flags: KVM_MSI_VALID_DEVID,
                ..Default::default()
            };
            // The guest's address may be an IOVA. It has but one doorbell.
            let doorbell = GIC_ITS.base + GITS_TRANSLATER;
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: doorbell as u32,
                address_hi: (doorbell >> 32) as u32,
                data: message.data,
                ..Default::default()
            };
            entry.u.msi.__bindgen_anon_1.devid = *device;
        }
        kvm("route interrupts", vm.set_gsi_routing(&table))
    }
}

fn run_vcpu(mut vcpu: VcpuFd, bus: &Bus, ended: &Sender<End>) {
    let end = loop {
        match vcpu.run() {
            Ok(VcpuExit::MmioRead(address, data)) => bus.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.write(address, data),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => break End::Off,
            Ok(VcpuExit::SystemEvent(event, _)) => {
                break End::Other(format!("system event {event}"));
            }
            Ok(exit) => break End::Failed(format!("{exit:?}")),
            Err(e) if [libc::EINTR, libc::EAGAIN].contains(&e.errno()) => {}
            Err(e) => break End::Failed(e.to_string()),
        }
    };
    // Nobody listens after the first.
    let _ = ended.send(end);
}

fn gic(vm: &VmFd) -> Result<(), Error> {
    let create = |kind| {
        let mut device = kvm_create_device {
            type_: kind,
            ..Default::default()
        };
        kvm("make a GICv3", vm.create_device(&mut device))
    };
    let gic = create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3)?;
    let set = |group, attr, value| set_attr(&gic, group, attr, value);
    set(
        KVM_DEV_ARM_VGIC_GRP_ADDR,
        KVM_VGIC_V3_ADDR_TYPE_DIST,
        Some(GIC_DIST.base),
    )?;
    set(
        KVM_DEV_ARM_VGIC_GRP_ADDR,
        KVM_VGIC_V3_ADDR_TYPE_REDIST,
        Some(GIC_REDIST.base),
    )?;
    set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, Some(GIC_INTERRUPTS.into()))?;
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None)?;

    let its = create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS)?;
    let set = |group, attr, value| set_attr(&its, group, attr, value);
    set(
        KVM_DEV_ARM_VGIC_GRP_ADDR,
        KVM_VGIC_ITS_ADDR_TYPE,
        Some(GIC_ITS.base),
    )?;
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None)
}

fn set_attr(gic: &DeviceFd, group: u32, attr: u32, value: Option<u64>) -> Result<(), Error> {
    let attr = kvm_device_attr {
        group,
        attr: attr.into(),
        addr: value.as_ref().map_or(0, |value| &raw const *value as u64),
        flags: 0,
    };
    kvm("set up the GICv3", gic.set_device_attr(&attr))
}
