// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's side of translation: stage-1 page tables, the context descriptor (CD) that points at
//! them, and the stream table entry (STE) that points at the CD.
//!
//! Page tables are AArch64 (VMSAv8-64) with a granule of 4 KiB and 48 bits of input: four levels,
//! pages only.

use vm_memory::{Address, GuestAddress, GuestMemoryError};

use crate::ram::GuestRam;

/// Bits of IOVA that stage 1 translates.
pub const IOVA_BITS: u32 = 48;

const LEVELS: u32 = 4;
const VALID: u64 = 1 << 0;
/// At levels 0..=2: leads to the next table. At level 3: is a page.
const TABLE_OR_PAGE: u64 = 1 << 1;
const AP_UNPRIVILEGED: u64 = 1 << 6;
const SH_INNER: u64 = 3 << 8;
const AF: u64 = 1 << 10;
/// Not global, so that the translation belongs to the ASID.
const NG: u64 = 1 << 11;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// A tree of stage-1 page tables in guest memory.
///
/// Changes go to memory only. What the SMMU has cached stays as it is until it is invalidated.
#[derive(Clone, Copy, Debug)]
pub struct Stage1 {
    root: GuestAddress,
}

impl Stage1 {
    /// An empty tree.
    ///
    /// # Errors
    ///
    /// When there is no page left for its root.
    pub fn new(ram: &GuestRam) -> Result<Self, GuestMemoryError> {
        Ok(Stage1 {
            root: ram.alloc_page()?,
        })
    }

    /// Maps the page at `iova` to the page at `gpa`, readable and writable, in place of what may
    /// have been there. Bits 11:0 of both are ignored.
    ///
    /// One valid entry takes the place of another at once. A guest that cannot rule out accesses in
    /// between has to break before it makes (clear the entry, invalidate, write the new one), or the
    /// SMMU may go by either of the two.
    ///
    /// # Errors
    ///
    /// When there is no page left for a table.
    ///
    /// # Panics
    ///
    /// If `iova` has more than [`IOVA_BITS`] bits.
    pub fn map(
        &self,
        ram: &GuestRam,
        iova: u64,
        gpa: GuestAddress,
    ) -> Result<(), GuestMemoryError> {
        let mut table = self.root;
        for level in 0..LEVELS - 1 {
            let at = entry(table, level, iova);
            let mut descriptor = ram.load(at)?;
            if descriptor & VALID == 0 {
                descriptor = ram.alloc_page()?.raw_value() | TABLE_OR_PAGE | VALID;
                ram.store(at, descriptor)?;
            }
            table = GuestAddress(descriptor & ADDRESS);
        }
        // AttrIndx 0: the first attribute in the CD's MAIR.
        let page = gpa.raw_value() & ADDRESS
            | NG
            | AF
            | SH_INNER
            | AP_UNPRIVILEGED
            | TABLE_OR_PAGE
            | VALID;
        ram.store(entry(table, LEVELS - 1, iova), page)
    }
}

/// The address of the entry for `iova` in a table of `level`.
fn entry(table: GuestAddress, level: u32, iova: u64) -> GuestAddress {
    assert!(iova >> IOVA_BITS == 0);
    let shift = 12 + 9 * (LEVELS - 1 - level);
    table.unchecked_add((iova >> shift & 0x1ff) * 8)
}

/// The first two words of an STE for stage 1 with a single CD, as `struct iommu_hwpt_arm_smmuv3`
/// takes them; in the CPU's endianness.
///
/// No substreams, no stalls, no ATS.
///
/// # Panics
///
/// If `cd` is not a multiple of 64.
pub fn ste(cd: GuestAddress) -> [u64; 2] {
    const V: u64 = 1 << 0;
    const CONFIG_S1: u64 = 0b101 << 1;
    const S1CIR_WBRA: u64 = 1 << 2;
    const S1COR_WBRA: u64 = 1 << 4;
    const S1CSH_INNER: u64 = 3 << 6;
    assert!(cd.raw_value() & 0x3f == 0);
    [
        cd.raw_value() | CONFIG_S1 | V,
        S1CSH_INNER | S1COR_WBRA | S1CIR_WBRA,
    ]
}

/// The same STE with ATS: the device may ask for translations and keep them (EATS = 1).
///
/// The kernel takes it if the device, the SMMU and the root complex all have ATS.
pub fn with_ats(ste: [u64; 2]) -> [u64; 2] {
    const EATS_TRANSLATE: u64 = 1 << 28;
    [ste[0], ste[1] | EATS_TRANSLATE]
}

/// Writes a CD for the page tables under `stage1` and `asid` to `at`.
///
/// The SMMU may have cached the old one: CFGI_CD makes it look again. The CD limits what comes out of
/// stage 1 to 40 bits, so guest memory has to end below 1 TiB.
///
/// # Errors
///
/// When `at` is not in the memory.
///
/// # Panics
///
/// If `at` is not a multiple of 64.
pub fn write_cd(
    ram: &GuestRam,
    at: GuestAddress,
    stage1: &Stage1,
    asid: u16,
) -> Result<(), GuestMemoryError> {
    let words = cd(stage1.root, asid);
    assert!(at.raw_value() & 0x3f == 0);
    // The word with the valid bit goes last.
    for (i, word) in words.iter().enumerate().rev() {
        ram.store(at.unchecked_add(i as u64 * 8), *word)?;
    }
    Ok(())
}

/// The eight words of a CD for page tables at `root`.
fn cd(root: GuestAddress, asid: u16) -> [u64; 8] {
    const T0SZ: u64 = 64 - IOVA_BITS as u64;
    const IR0_WBRA: u64 = 1 << 8;
    const OR0_WBRA: u64 = 1 << 10;
    const SH0_INNER: u64 = 3 << 12;
    /// No walks in the upper half of the address space.
    const EPD1: u64 = 1 << 30;
    const V: u64 = 1 << 31;
    /// Output addresses of 40 bits.
    const IPS_40: u64 = 2 << 32;
    const AA64: u64 = 1 << 41;
    /// Record faults, and abort the transaction, as an SMMU without the stall model requires.
    const R: u64 = 1 << 45;
    const A: u64 = 1 << 46;
    /// This ASID is not shared with the CPUs.
    const ASET: u64 = 1 << 47;
    /// Attribute 0: normal memory, write-back, read- and write-allocate.
    const MAIR: u64 = 0xff;
    [
        u64::from(asid) << 48
            | ASET
            | A
            | R
            | AA64
            | IPS_40
            | V
            | EPD1
            | SH0_INNER
            | OR0_WBRA
            | IR0_WBRA
            | T0SZ,
        root.raw_value(),
        0,
        MAIR,
        0,
        0,
        0,
        0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::PAGE_SIZE;

    fn ram(pages: usize) -> GuestRam {
        GuestRam::new(GuestAddress(0x40_0000_0000), pages * PAGE_SIZE as usize).unwrap()
    }

    /// Where the tables say that the page at `iova` leads.
    fn lookup(ram: &GuestRam, stage1: &Stage1, iova: u64) -> Option<u64> {
        let mut table = stage1.root;
        for level in 0..LEVELS {
            let descriptor = ram.load(entry(table, level, iova)).unwrap();
            if descriptor & VALID == 0 {
                return None;
            }
            table = GuestAddress(descriptor & ADDRESS);
        }
        Some(table.raw_value())
    }

    #[test]
    fn map_and_map_again() {
        let ram = ram(64);
        let s1 = Stage1::new(&ram).unwrap();
        let pages = [
            (0, 0x40_0001_0000),
            (0x1000, 0x40_0001_1000),
            (0x20_0000, 0x40_0001_2000),
            (0x4000_0000, 0x40_0001_3000),
            (0x80_0000_0000, 0x40_0001_4000),
            (0xffff_ffff_f000, 0x40_0001_5000),
        ];
        for (iova, gpa) in pages {
            assert_eq!(lookup(&ram, &s1, iova), None);
            s1.map(&ram, iova, GuestAddress(gpa)).unwrap();
        }
        for (iova, gpa) in pages {
            assert_eq!(lookup(&ram, &s1, iova), Some(gpa));
        }
        s1.map(&ram, 0x1000, GuestAddress(0x40_0002_0000)).unwrap();
        assert_eq!(lookup(&ram, &s1, 0x1000), Some(0x40_0002_0000));
        assert_eq!(lookup(&ram, &s1, 0), Some(0x40_0001_0000));
    }

    #[test]
    fn descriptors_in_memory() {
        let ram = ram(8);
        let s1 = Stage1::new(&ram).unwrap();
        let iova = 5 << 39 | 6 << 30 | 7 << 21 | 8 << 12;
        s1.map(&ram, iova, GuestAddress(0x40_0000_7000)).unwrap();
        let root = s1.root.raw_value();
        for (at, value) in [
            (root + 5 * 8, root + 0x1003),
            (root + 0x1000 + 6 * 8, root + 0x2003),
            (root + 0x2000 + 7 * 8, root + 0x3003),
            (root + 0x3000 + 8 * 8, 0x40_0000_7f43),
        ] {
            assert_eq!(ram.load(GuestAddress(at)).unwrap(), value, "{at:#x}");
        }
    }

    #[test]
    fn runs_out_of_pages() {
        let ram = ram(2);
        let s1 = Stage1::new(&ram).unwrap();
        assert!(s1.map(&ram, 0, GuestAddress(0)).is_err());
    }

    #[test]
    #[should_panic]
    fn iova_too_wide() {
        let ram = ram(8);
        let s1 = Stage1::new(&ram).unwrap();
        let _ = s1.map(&ram, 1 << 48, GuestAddress(0));
    }

    #[test]
    fn ste_and_cd() {
        let plain = ste(GuestAddress(0x40_0000_1040));
        assert_eq!(plain, [0x40_0000_104b, 0xd4]);
        assert_eq!(with_ats(plain), [0x40_0000_104b, 0x1000_00d4]);

        let ram = ram(8);
        let s1 = Stage1::new(&ram).unwrap();
        let at = ram.alloc_page().unwrap();
        write_cd(&ram, at, &s1, 0x1234).unwrap();
        let words: Vec<u64> = (0..8)
            .map(|i| ram.load(at.unchecked_add(i * 8)).unwrap())
            .collect();
        assert_eq!(
            words,
            [
                0x1234_e202_c000_3510,
                s1.root.raw_value(),
                0,
                0xff,
                0,
                0,
                0,
                0
            ]
        );
    }
}
