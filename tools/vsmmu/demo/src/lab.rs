// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The experiment that each row of the table is: two pages of the device's address space, DMA that
//! reads both, a change of what they lead to, an invalidation, and DMA again.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{Address, GuestAddress, GuestMemoryError};
use vsmmu_nested::ram::PAGE_SIZE;
use vsmmu_nested::stage1::{self, Stage1};
use vsmmu_nested::{Command, Failure, GuestRam, InvalidateArg, NestedSmmu, Outcome, edu};

/// The stream id that "the guest" uses: another number than the device's own, to see it translated.
pub const VSID: u32 = 0x1234;
/// A stream id that belongs to no device.
pub const UNLINKED_VSID: u32 = 0x4321;
/// The ASID of the context descriptor that is normally installed.
pub const ASID: u16 = 0x51;
/// The ASID of the other context descriptor, see [`Change::Descriptor`].
pub const ASID_2: u16 = 0x52;

/// The two pages that DMA reads. They are neighbours, so that one DMA can read both.
pub const PAGE_A: u64 = 0x1000_0000;
/// See [`PAGE_A`].
pub const PAGE_B: u64 = PAGE_A + PAGE_SIZE;
/// Where DMA writes what it has read.
const PAGE_OUT: u64 = 0x1100_0000;
/// A page that is not mapped: what arrays are filled up with invalidates this one.
pub const PAGE_ELSEWHERE: u64 = 0x2000_0000;

/// Guest memory; below 1 TiB, and clear of the window that the host keeps for MSIs.
const RAM_BASE: GuestAddress = GuestAddress(0x4000_0000);
const RAM_SIZE: usize = 1 << 20;

/// Why an experiment could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// iommufd or vfio.
    #[error(transparent)]
    Smmu(#[from] vsmmu_nested::Error),
    /// The DMA engine.
    #[error(transparent)]
    Edu(#[from] edu::Error),
    /// Guest memory.
    #[error("cannot access the guest memory")]
    Ram(#[from] GuestMemoryError),
    /// This process's memory.
    #[error("cannot map memory for the argument of a call")]
    Map(#[source] MmapRegionError),
    /// Guest memory, when it is made.
    #[error("cannot map memory for the guest")]
    NewRam(#[from] FromRangesError),
    /// A system call.
    #[error("{0}")]
    System(&'static str, #[source] io::Error),
    /// A fork, when there are threads: the child would have only one of them.
    #[error("there is more than one thread, so that it is not safe to fork")]
    Threads,
    /// A child that is to be killed in its ioctl.
    #[error("a child process had not begun its ioctl after {0:?}")]
    WontStart(Duration),
    /// The same, later.
    #[error("a killed process was still in its ioctl after {0:?}")]
    WontDie(Duration),
    /// The lab itself, with an invalidation that cannot fail.
    #[error("cannot clean up after the experiment")]
    CleanUp(#[source] Failure),
}

/// What is changed between the first and the second DMA, to make cached state stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing; there is no DMA either. For calls that promise nothing about translations.
    None,
    /// Both pages' page-table entries lead to other pages.
    Pages,
    /// The context descriptor has another ASID and other page tables. (Another ASID, so that what is
    /// cached of translations does not matter, only the cached descriptor.)
    Descriptor,
}

/// What DMA read from a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The content of the page from before the change.
    Old,
    /// The content of the page from after the change.
    New,
    /// Something else: the DMA did not reach either.
    Neither,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Seen::Old => "old",
            Seen::New => "new",
            Seen::Neither => "???",
        })
    }
}

/// What DMA read from the pages A and B.
pub type Sight = [Seen; 2];

/// The three DMAs of an experiment.
#[derive(Clone, Copy, Debug)]
pub struct Sights {
    /// Before the change. All must be old.
    pub first: Sight,
    /// After the change, before the invalidation. All must be old, or the rest proves nothing.
    pub stale: Sight,
    /// After the invalidation.
    pub after: Sight,
}

/// How a call ended.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// `None` when the caller did not live to see it.
    pub errno: Option<i32>,
    /// `entry_num` as the kernel left it.
    pub entry_num: u32,
    /// The driver's error code as the kernel left it.
    pub code: u32,
    /// Anything to add.
    pub note: Option<String>,
    /// What is wrong beside the numbers above.
    pub fault: Option<String>,
    /// It was not the call that it should have been: the experiment has to be made once more, from the
    /// beginning.
    pub again: bool,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        Answer {
            errno: Some(outcome.errno),
            entry_num: outcome.entry_num,
            code: outcome.code,
            ..Answer::default()
        }
    }
}

/// The device, its nested SMMU, and the two sets of pages.
pub struct Lab {
    /// The SMMU, for what rows do beyond an invalidation.
    pub smmu: NestedSmmu,
    tables: Stage1,
    /// For [`Change::Descriptor`].
    tables_2: Stage1,
    descriptor: GuestAddress,
    /// Guest pages that the tables lead to now: for the pages A and B.
    now: [GuestAddress; 2],
    /// Guest pages that they lead to after a change.
    next: [GuestAddress; 2],
    out: GuestAddress,
    tag: u64,
}

impl Lab {
    /// A lab with the edu device at `sysfs`.
    pub fn new(sysfs: &Path) -> Result<Self, Error> {
        let mut smmu = NestedSmmu::new(sysfs, GuestRam::new(RAM_BASE, RAM_SIZE)?, VSID)?;
        let ram = smmu.ram();
        let tables = Stage1::new(ram)?;
        let tables_2 = Stage1::new(ram)?;
        let descriptor = ram.alloc_page()?;
        let now = [ram.alloc_page()?, ram.alloc_page()?];
        let next = [ram.alloc_page()?, ram.alloc_page()?];
        let out = ram.alloc_page()?;
        tables.map(ram, PAGE_A, now[0])?;
        tables.map(ram, PAGE_B, now[1])?;
        for tables in [&tables, &tables_2] {
            tables.map(ram, PAGE_OUT, out)?;
        }
        stage1::write_cd(ram, descriptor, &tables, ASID)?;
        smmu.attach(stage1::ste(descriptor))?;
        edu::enable(&smmu)?;
        Ok(Lab {
            smmu,
            tables,
            tables_2,
            descriptor,
            now,
            next,
            out,
            tag: 0,
        })
    }

    /// A call for `commands` on the vIOMMU, for rows that then make it a special one.
    pub fn arg(&self, commands: &[Command]) -> InvalidateArg {
        InvalidateArg::new(self.smmu.viommu_id(), commands)
    }

    /// Has the vIOMMU execute `commands`.
    pub fn invalidate(&self, commands: &[Command]) -> Answer {
        self.call(self.arg(commands))
    }

    /// Makes the call.
    pub fn call(&self, mut arg: InvalidateArg) -> Answer {
        arg.call(self.smmu.iommufd()).into()
    }

    /// One experiment: `call` is the invalidation.
    pub fn experiment(
        &mut self,
        change: Change,
        call: &dyn Fn(&mut Lab) -> Result<Answer, Error>,
    ) -> Result<(Answer, Option<Sights>), Error> {
        if change == Change::None {
            return Ok((call(self)?, None));
        }
        loop {
            let (old, new) = self.tag_pages()?;
            self.look(0)?;
            self.change(change)?;
            self.look(1)?;
            let answer = call(self)?;
            if answer.again {
                self.restore(change)?;
                continue;
            }
            self.look(2)?;
            let sights = self.sights(old, new);
            self.restore(change)?;
            return Ok((answer, Some(sights?)));
        }
    }

    /// Writes something never used before into all four pages. Gives the old and the new content.
    fn tag_pages(&mut self) -> Result<([u64; 2], [u64; 2]), Error> {
        let mut tag = |page: GuestAddress| {
            self.tag += 1;
            // The bits around the number make it unlikely to be found by chance.
            let tag = 0x7e57_0000_0000_da7a | self.tag << 16;
            for offset in [0, PAGE_SIZE - 8] {
                self.smmu.ram().store(page.unchecked_add(offset), tag)?;
            }
            Ok::<u64, Error>(tag)
        };
        Ok((
            [tag(self.now[0])?, tag(self.now[1])?],
            [tag(self.next[0])?, tag(self.next[1])?],
        ))
    }

    /// Has the device read the end of page A and the beginning of page B, for [`Lab::sights`].
    fn look(&self, nth: u64) -> Result<(), Error> {
        Ok(edu::fetch(&self.smmu, PAGE_B - 8, nth * 16, 16)?)
    }

    /// What the device has read. Three looks are brought to memory at once, as a DMA takes long.
    fn sights(&self, old: [u64; 2], new: [u64; 2]) -> Result<Sights, Error> {
        edu::put(&self.smmu, PAGE_OUT, 3 * 16)?;
        let sight = |nth: u64| -> Result<Sight, Error> {
            let mut sight = [Seen::Neither; 2];
            for page in 0..2 {
                let at = self.out.unchecked_add(nth * 16 + page as u64 * 8);
                let content = self.smmu.ram().load(at)?;
                // So that a DMA that does not arrive next time is noticed.
                self.smmu.ram().store(at, 0)?;
                if content == old[page] {
                    sight[page] = Seen::Old;
                } else if content == new[page] {
                    sight[page] = Seen::New;
                }
            }
            Ok(sight)
        };
        Ok(Sights {
            first: sight(0)?,
            stale: sight(1)?,
            after: sight(2)?,
        })
    }

    fn change(&mut self, change: Change) -> Result<(), Error> {
        let ram = self.smmu.ram();
        let tables = match change {
            Change::None => return Ok(()),
            Change::Pages => &self.tables,
            Change::Descriptor => &self.tables_2,
        };
        tables.map(ram, PAGE_A, self.next[0])?;
        tables.map(ram, PAGE_B, self.next[1])?;
        if change == Change::Descriptor {
            stage1::write_cd(ram, self.descriptor, tables, ASID_2)?;
        }
        Ok(())
    }

    fn restore(&mut self, change: Change) -> Result<(), Error> {
        if change == Change::Pages {
            std::mem::swap(&mut self.now, &mut self.next);
        }
        stage1::write_cd(self.smmu.ram(), self.descriptor, &self.tables, ASID)?;
        let everything = [Command::cfgi_cd_all(VSID), Command::tlbi_nsnh_all()];
        self.smmu.invalidate(&everything).map_err(Error::CleanUp)
    }
}
