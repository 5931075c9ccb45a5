// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory: what stage 2 maps, and what the device and the SMMU's table walker read.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use vm_memory::mmap::FromRangesError;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

/// The granule of stage 1, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Guest memory in one piece, with pages handed out one after the other.
pub struct GuestRam {
    mem: GuestMemoryMmap,
    base: GuestAddress,
    size: usize,
    next: Cell<u64>,
}

impl GuestRam {
    /// `size` bytes of zeroed memory at `base`.
    ///
    /// A host with larger pages than [`PAGE_SIZE`] maps the memory in stage 2 only if both are
    /// multiples of its own page size.
    ///
    /// # Errors
    ///
    /// When the memory cannot be mapped.
    ///
    /// # Panics
    ///
    /// If one of them is not a multiple of [`PAGE_SIZE`].
    pub fn new(base: GuestAddress, size: usize) -> Result<Self, FromRangesError> {
        assert!(base.0.is_multiple_of(PAGE_SIZE) && (size as u64).is_multiple_of(PAGE_SIZE));
        Ok(GuestRam {
            mem: GuestMemoryMmap::from_ranges(&[(base, size)])?,
            base,
            size,
            next: Cell::new(base.0),
        })
    }

    /// The first address.
    pub fn base(&self) -> GuestAddress {
        self.base
    }

    /// The size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// All of it, for those who make accesses of their own.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.mem
    }

    /// Where the first byte is in this process.
    pub fn host_address(&self) -> *mut u8 {
        self.mem
            .get_host_address(self.base)
            .expect("the first address is in the memory")
    }

    /// A page that nobody has yet, all zeroes.
    ///
    /// # Errors
    ///
    /// When the memory is used up.
    pub fn alloc_page(&self) -> Result<GuestAddress, GuestMemoryError> {
        let page = GuestAddress(self.next.get());
        if !self.mem.check_range(page, PAGE_SIZE as usize) {
            return Err(GuestMemoryError::InvalidGuestAddress(page));
        }
        self.next.set(page.0 + PAGE_SIZE);
        Ok(page)
    }

    /// Stores a word, which goes into memory as little-endian, in a single access.
    ///
    /// A store is visible to the SMMU before any later system call, such as the one that invalidates.
    ///
    /// # Errors
    ///
    /// When `at` is not an aligned address in this memory.
    pub fn store(&self, at: GuestAddress, value: u64) -> Result<(), GuestMemoryError> {
        self.mem.store(value.to_le(), at, Ordering::Release)
    }

    /// Loads a little-endian word in a single access.
    ///
    /// # Errors
    ///
    /// When `at` is not an aligned address in this memory.
    pub fn load(&self, at: GuestAddress) -> Result<u64, GuestMemoryError> {
        self.mem.load(at, Ordering::Acquire).map(u64::from_le)
    }
}
