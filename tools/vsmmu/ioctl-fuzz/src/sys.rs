// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calls of the kernel with arguments that need not make sense, at addresses that need not either.

use std::io;
use std::os::fd::RawFd;
use std::ptr;

use iommufd_bindings::iommufd as uapi;
use vfio_bindings::bindings::vfio;
use vsmmu_nested::InvalidateArg;

/// Where the first byte behind user space is, for any size of it.
const KERNEL: u64 = 0xffff_8000_0000_0000;
/// Where nothing is mapped, as the first pages never are.
const NOTHING: u64 = 64;
/// Room for the longest array, and then a page that nobody can read.
const ARRAY: usize = (8 << 20) + PAGE;
const PAGE: usize = 4096;
/// The longest argument in 64-bit words.
const WORDS: usize = 16;

/// A structure of the uAPI.
///
/// # Safety
///
/// It is all integers, with no padding, and at most 128 bytes long.
pub unsafe trait Uapi: Copy {}

macro_rules! uapi {
    ($($name:ty),* $(,)?) => {$(
        // SAFETY: it is so for the kernel's structures.
        unsafe impl Uapi for $name {}
    )*};
}
uapi!(
    uapi::iommu_destroy,
    uapi::iommu_fault_alloc,
    uapi::iommu_hw_info,
    uapi::iommu_hw_queue_alloc,
    uapi::iommu_hwpt_alloc,
    uapi::iommu_hwpt_get_dirty_bitmap,
    uapi::iommu_hwpt_set_dirty_tracking,
    uapi::iommu_ioas_alloc,
    uapi::iommu_ioas_allow_iovas,
    uapi::iommu_ioas_change_process,
    uapi::iommu_ioas_copy,
    uapi::iommu_ioas_iova_ranges,
    uapi::iommu_ioas_map,
    uapi::iommu_ioas_unmap,
    uapi::iommu_option,
    uapi::iommu_vdevice_alloc,
    uapi::iommu_veventq_alloc,
    uapi::iommu_vfio_ioas,
    uapi::iommu_viommu_alloc,
    vfio::vfio_device_attach_iommufd_pt,
    vfio::vfio_device_bind_iommufd,
    vfio::vfio_device_detach_iommufd_pt,
    vfio::vfio_region_info,
    InvalidateArg,
);

/// The argument of an ioctl, as it goes to the kernel and as it comes back.
#[derive(Clone, Copy, Debug)]
pub struct Arg([u64; WORDS]);

impl Arg {
    /// `value`, and zeroes behind it.
    pub fn new<T: Uapi>(value: T) -> Self {
        const { assert!(size_of::<T>() <= WORDS * 8 && align_of::<T>() <= 8) };
        let mut words = [0; WORDS];
        // SAFETY: it fits, and is aligned.
        unsafe { words.as_mut_ptr().cast::<T>().write(value) };
        Arg(words)
    }

    /// What it is now.
    pub fn get<T: Uapi>(&self) -> T {
        // SAFETY: it fits, is aligned, and any bits will do.
        unsafe { self.0.as_ptr().cast::<T>().read() }
    }

    /// Says another size than that of the structure, which is the first word of each.
    pub fn set_size(&mut self, size: u32) {
        self.0[0] = self.0[0] & !0xffff_ffff | u64::from(size);
    }

    /// Says the size.
    pub fn size(&self) -> u32 {
        self.0[0] as u32
    }

    /// Has something at the end, behind all structures.
    pub fn set_tail(&mut self) {
        self.0[WORDS - 1] = 1;
    }

    /// Has the same at the end as `other`.
    pub fn take_tail(&mut self, other: &Arg) {
        self.0[WORDS - 1] = other.0[WORDS - 1];
    }

    /// The largest size that there is memory for.
    pub const MAX_SIZE: u32 = (WORDS * 8) as u32;
}

/// Where an argument is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory.
    Memory,
    /// In memory that cannot be written.
    ReadOnly,
    /// Where nothing is.
    Nowhere,
}

/// Where an array is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// In memory, but the last so many bytes, which cannot be read.
    Cut(usize),
    /// The null pointer.
    Null,
    /// Where nothing is.
    Nowhere,
    /// In the kernel's half.
    Kernel,
    /// At the end of all addresses.
    Wraps,
}

/// The memory of a thread for what it passes to the kernel.
pub struct Memory {
    argument: *mut u8,
    array: *mut u8,
}

// SAFETY: the addresses are those of mappings of this process, which belong to this alone.
unsafe impl Send for Memory {}

fn map(len: usize, prot: i32) -> io::Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, where the kernel likes.
    let at = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(at.cast())
}

impl Memory {
    /// Some, which stays.
    pub fn new() -> io::Result<Self> {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let array = map(ARRAY + PAGE, libc::PROT_NONE)?;
        // SAFETY: a part of the mapping that was made just now.
        if unsafe { libc::mprotect(array.cast(), ARRAY, both) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Memory {
            argument: map(PAGE, both)?,
            array,
        })
    }

    /// Has `bytes` of an array at `base`, as far as something can be there. Gives the address.
    ///
    /// # Panics
    ///
    /// If it is too long.
    pub fn put_array(&mut self, bytes: &[u8], base: Base) -> u64 {
        match base {
            Base::Null => 0,
            Base::Nowhere => NOTHING,
            Base::Kernel => KERNEL,
            Base::Wraps => u64::MAX - 15,
            Base::Cut(cut) => {
                let readable = bytes.len() - cut.min(bytes.len());
                assert!(readable <= ARRAY && bytes.len() - readable <= PAGE);
                let start = ARRAY - readable;
                // SAFETY: there is room for so many before the end, and nobody else has the memory.
                unsafe {
                    let to = self.array.add(start);
                    ptr::copy_nonoverlapping(bytes.as_ptr(), to, readable);
                }
                self.array as u64 + start as u64
            }
        }
    }

    /// Makes the call. Gives 0 or the errno, and leaves in `arg` what the kernel has made of it.
    pub fn ioctl(&mut self, fd: RawFd, number: u64, arg: &mut Arg, place: Place) -> i32 {
        let words = self.argument.cast::<[u64; WORDS]>();
        // SAFETY: it is a page of ours.
        unsafe { words.write(arg.0) };
        if place == Place::ReadOnly {
            self.protect(libc::PROT_READ);
        }
        let at = if place == Place::Nowhere {
            NOTHING
        } else {
            words as u64
        };
        // SAFETY: the kernel looks at as much as the size says, which is there or not: it checks. What
        // pointers in it lead to is memory that belongs to nobody else, see where they are made.
        let ret = unsafe { libc::ioctl(fd, number as _, at) };
        let errno = if ret < 0 {
            io::Error::last_os_error().raw_os_error().unwrap_or(-1)
        } else {
            0
        };
        // SAFETY: as above.
        arg.0 = unsafe { words.read_volatile() };
        if place == Place::ReadOnly {
            self.protect(libc::PROT_READ | libc::PROT_WRITE);
        }
        errno
    }

    fn protect(&mut self, prot: i32) {
        // SAFETY: it is a page of ours.
        let ret = unsafe { libc::mprotect(self.argument.cast(), PAGE, prot) };
        assert_eq!(ret, 0, "mprotect: {}", io::Error::last_os_error());
    }
}

/// The number of an ioctl of iommufd.
pub const fn iommufd(command: u32) -> u64 {
    (b';' as u64) << 8 | command as u64
}

/// The number of an ioctl of vfio.
pub const fn vfio(command: u64) -> u64 {
    (b';' as u64) << 8 | (100 + command)
}
