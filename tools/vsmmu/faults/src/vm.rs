// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMs: each has a device behind a nested SMMU of its own, all on the one SMMU.

use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iommufd_bindings::iommufd::{
    iommu_ioas_map, iommu_ioas_unmap, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
};
use iommufd_ioctls::{IommuFd, IommufdError};
use vm_memory::mmap::FromRangesError;
use vm_memory::{Address, GuestAddress, GuestMemoryError};
use vsmmu_nested::ram::PAGE_SIZE;
use vsmmu_nested::stage1::{self, Stage1};
use vsmmu_nested::{Command, Failure, GuestRam, InvalidateArg, NestedSmmu, Outcome, edu, pci};

/// The stream id that each "guest" uses for its device.
pub const VSID: u32 = 0x1234;
/// That of a second device, which has ATS.
pub const ATS_VSID: u32 = 0x1235;
/// The ASID of each context descriptor.
pub const ASID: u16 = 0x51;
/// The two pages that DMA reads. They are neighbours, so that one DMA can read both.
pub const PAGE_A: u64 = 0x1000_0000;
/// See [`PAGE_A`].
pub const PAGE_B: u64 = PAGE_A + PAGE_SIZE;
const PAGE_OUT: u64 = 0x1100_0000;

/// Guest memory; below 1 TiB, and clear of the window that the host keeps for MSIs.
const RAM_BASE: GuestAddress = GuestAddress(0x4000_0000);
const RAM_SIZE: usize = 1 << 20;
/// Where [`Caller::map`] maps something beside it.
pub const HOST_IOVA: u64 = 0x8000_0000;

/// QEMU's virtio-net, which can have ATS.
pub const NET_PCI_ID: (u16, u16) = (0x1af4, 0x1041);

/// Why there is no VM, or no experiment with it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// iommufd or vfio.
    #[error(transparent)]
    Smmu(#[from] vsmmu_nested::Error),
    /// The device.
    #[error(transparent)]
    Pci(#[from] pci::Error),
    /// The DMA engine.
    #[error(transparent)]
    Edu(#[from] edu::Error),
    /// Guest memory.
    #[error("cannot access the guest memory")]
    Ram(#[from] GuestMemoryError),
    /// Guest memory, when it is made.
    #[error("cannot map memory for the guest")]
    NewRam(#[from] FromRangesError),
    /// An invalidation that cannot fail, after an experiment.
    #[error("cannot clean up after the experiment")]
    CleanUp(#[source] Failure),
}

/// What DMA has seen, see [`Vm::experiment`].
#[derive(Clone, Copy, Debug)]
pub struct Sights {
    /// Whether pages A and B both had stale translations before the call.
    pub stale: bool,
    /// Whether their new content was read after it.
    pub fresh: [bool; 2],
}

/// What a thread needs of a VM to make calls.
#[derive(Clone)]
pub struct Caller {
    iommufd: Arc<IommuFd>,
    viommu_id: u32,
    ioas_id: u32,
}

impl Caller {
    /// Has the vIOMMU execute `commands`. Gives the answer and the time that it took.
    pub fn call(&self, commands: &[Command]) -> (Outcome, Duration) {
        let mut arg = InvalidateArg::new(self.viommu_id, commands);
        let start = Instant::now();
        let outcome = arg.call(&self.iommufd);
        (outcome, start.elapsed())
    }

    /// Maps `page` in stage 2 where nothing is, and unmaps it, for which the host has to invalidate.
    pub fn map_and_unmap(&self, page: &HostPage) -> Result<(), IommufdError> {
        let pages = slice::from_ref(page);
        self.map(pages)?;
        self.unmap(pages)
    }

    /// Maps `pages` in stage 2 at [`HOST_IOVA`], where nothing is.
    pub fn map(&self, pages: &[HostPage]) -> Result<(), IommufdError> {
        self.iommufd.map_iommu_ioas(&iommu_ioas_map {
            size: size_of::<iommu_ioas_map>() as u32,
            flags: iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE
                | iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
            ioas_id: self.ioas_id,
            user_va: pages.as_ptr() as u64,
            length: size_of_val(pages) as u64,
            iova: HOST_IOVA,
            ..Default::default()
        })
    }

    /// Unmaps as many pages there.
    pub fn unmap(&self, pages: &[HostPage]) -> Result<(), IommufdError> {
        self.iommufd.unmap_iommu_ioas(&mut iommu_ioas_unmap {
            size: size_of::<iommu_ioas_unmap>() as u32,
            ioas_id: self.ioas_id,
            iova: HOST_IOVA,
            length: size_of_val(pages) as u64,
        })
    }
}

/// Memory to map for a device that only reads it.
#[derive(Clone, Copy)]
#[repr(align(4096))]
pub struct HostPage(#[allow(dead_code)] [u64; PAGE_SIZE as usize / 8]);

impl HostPage {
    /// `n` of them, filled with `value`.
    pub fn filled(n: usize, value: u64) -> Vec<Self> {
        vec![HostPage([value; PAGE_SIZE as usize / 8]); n]
    }
}

/// A VM with one device.
pub struct Vm {
    smmu: NestedSmmu,
    stream_id: u32,
    /// The stream table entry, and the same without ATS.
    ste: [u64; 2],
    ste_without_ats: [u64; 2],
    tables: Stage1,
    /// Guest pages that the tables lead to now: for the pages A and B.
    now: [GuestAddress; 2],
    /// Guest pages that they lead to after a change.
    next: [GuestAddress; 2],
    out: GuestAddress,
    tag: u64,
}

impl Vm {
    /// A VM with the edu device at the PCI address `bdf`.
    pub fn with_edu(bdf: &str) -> Result<Self, Error> {
        let vm = Self::new(bdf, edu::PCI_ID, |ste| ste)?;
        edu::enable(&vm.smmu)?;
        Ok(vm)
    }

    /// A VM with the network device at the PCI address `bdf`, which has ATS switched on.
    pub fn with_net(bdf: &str) -> Result<Self, Error> {
        Self::new(bdf, NET_PCI_ID, stage1::with_ats)
    }

    /// Adds the network device at the PCI address `bdf`, which has ATS switched on, as [`ATS_VSID`].
    pub fn add_net(&mut self, bdf: &str) -> Result<(), Error> {
        let sysfs = pci::bind_to_vfio(bdf, NET_PCI_ID)?;
        self.smmu.add(&sysfs, ATS_VSID)?;
        self.attach_added()
    }

    /// As [`Vm::attach`], for the device that was added.
    pub fn attach_added(&mut self) -> Result<(), Error> {
        let ste = stage1::with_ats(self.ste_without_ats);
        Ok(self.smmu.attach_added(ste)?)
    }

    fn new(bdf: &str, ids: (u16, u16), ste: fn([u64; 2]) -> [u64; 2]) -> Result<Self, Error> {
        let sysfs = pci::bind_to_vfio(bdf, ids)?;
        let mut smmu = NestedSmmu::new(&sysfs, GuestRam::new(RAM_BASE, RAM_SIZE)?, VSID)?;
        let ram = smmu.ram();
        let tables = Stage1::new(ram)?;
        let descriptor = ram.alloc_page()?;
        let now = [ram.alloc_page()?, ram.alloc_page()?];
        let next = [ram.alloc_page()?, ram.alloc_page()?];
        let out = ram.alloc_page()?;
        tables.map(ram, PAGE_A, now[0])?;
        tables.map(ram, PAGE_B, now[1])?;
        tables.map(ram, PAGE_OUT, out)?;
        stage1::write_cd(ram, descriptor, &tables, ASID)?;
        let ste_without_ats = stage1::ste(descriptor);
        let ste = ste(ste_without_ats);
        smmu.attach(ste)?;
        Ok(Vm {
            smmu,
            stream_id: pci::requester_id(bdf),
            ste,
            ste_without_ats,
            tables,
            now,
            next,
            out,
            tag: 0,
        })
    }

    /// The nested SMMU.
    pub fn smmu(&self) -> &NestedSmmu {
        &self.smmu
    }

    /// The stream id that the SMMU knows the device by.
    pub fn stream_id(&self) -> u32 {
        self.stream_id
    }

    /// Attaches the device anew, to the same. What the kernel has against it is forgotten.
    pub fn attach(&mut self) -> Result<(), Error> {
        Ok(self.smmu.attach(self.ste)?)
    }

    /// Attaches the device to the same, but with ATS off.
    pub fn attach_without_ats(&mut self) -> Result<(), Error> {
        Ok(self.smmu.attach(self.ste_without_ats)?)
    }

    /// Resets the device.
    pub fn reset(&self) {
        self.smmu.device().reset();
    }

    /// Attaches the device to stage 2 alone.
    pub fn attach_stage2(&mut self) -> Result<(), Error> {
        Ok(self.smmu.attach_stage2()?)
    }

    /// What the device reads at the beginning of a page in stage 2, to which it is attached alone.
    pub fn read_stage2(&self, gpa: u64) -> Result<u64, Error> {
        self.smmu.ram().store(self.out, 0)?;
        edu::fetch(&self.smmu, gpa, 0, 8)?;
        edu::put(&self.smmu, self.out.raw_value(), 8)?;
        let value = self.smmu.ram().load(self.out)?;
        self.smmu.ram().store(self.out, 0)?;
        Ok(value)
    }

    /// The SMMU has ATS, by what the kernel says.
    pub fn smmu_has_ats(&self) -> bool {
        self.smmu.hw_info().ats()
    }

    /// The kernel counts exactly and reports the error code, by what it says.
    pub fn answers_exactly(&self) -> bool {
        self.smmu.hw_info().answers_exactly()
    }

    /// For calls.
    pub fn caller(&self) -> Caller {
        Caller {
            iommufd: self.smmu.iommufd().clone(),
            viommu_id: self.smmu.viommu_id(),
            ioas_id: self.smmu.ioas_id(),
        }
    }

    /// Has DMA read the pages A and B, changes what they lead to, has DMA read them once more, makes the
    /// `call`, and looks again.
    ///
    /// Only with an edu.
    pub fn experiment<T>(&mut self, call: impl FnOnce(&Caller) -> T) -> Result<(T, Sights), Error> {
        let old = self.tag_pages(self.now)?;
        let new = self.tag_pages(self.next)?;
        self.look(0)?;
        for (page, gpa) in [PAGE_A, PAGE_B].into_iter().zip(self.next) {
            self.tables.map(self.smmu.ram(), page, gpa)?;
        }
        self.look(1)?;
        let result = call(&self.caller());
        self.look(2)?;

        edu::put(&self.smmu, PAGE_OUT, 3 * 16)?;
        let mut seen = [[0; 2]; 3];
        for (i, word) in seen.iter_mut().flatten().enumerate() {
            let at = self.out.unchecked_add(i as u64 * 8);
            *word = self.smmu.ram().load(at)?;
            // So that a DMA that does not arrive next time is noticed.
            self.smmu.ram().store(at, 0)?;
        }
        std::mem::swap(&mut self.now, &mut self.next);
        Ok((
            result,
            Sights {
                stale: seen[0] == old && seen[1] == old,
                fresh: [seen[2][0] == new[0], seen[2][1] == new[1]],
            },
        ))
    }

    /// Leaves nothing cached of this VM's translations.
    pub fn invalidate_all(&self) -> Result<(), Error> {
        let everything = [Command::cfgi_cd_all(VSID), Command::tlbi_nsnh_all()];
        self.smmu.invalidate(&everything).map_err(Error::CleanUp)
    }

    /// Writes something never used before to both ends of two pages.
    fn tag_pages(&mut self, pages: [GuestAddress; 2]) -> Result<[u64; 2], Error> {
        let mut tags = [0; 2];
        for (page, tag) in pages.into_iter().zip(&mut tags) {
            self.tag += 1;
            // The bits around the number make it unlikely to be found by chance.
            *tag = 0x7e57_0000_0000_da7a | self.tag << 16;
            for offset in [0, PAGE_SIZE - 8] {
                self.smmu.ram().store(page.unchecked_add(offset), *tag)?;
            }
        }
        Ok(tags)
    }

    /// Has the device read the end of page A and the beginning of page B.
    fn look(&self, nth: u64) -> Result<(), Error> {
        Ok(edu::fetch(&self.smmu, PAGE_B - 8, nth * 16, 16)?)
    }
}
