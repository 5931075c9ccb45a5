// SPDX-License-Identifier: GPL-2.0

//! The driver's side of iommufd: invalidation requests that user space sends to a nested domain or
//! a vIOMMU.
//!
//! A driver implements [`CacheInvalidate`] for its nested domain or its vIOMMU and forwards the C
//! operation (`cache_invalidate_user` of `struct iommu_domain_ops`, or `cache_invalidate` of
//! `struct iommufd_viommu_ops`) to [`dispatch()`].
//!
//! C headers: [`include/linux/iommufd.h`](srctree/include/linux/iommufd.h),
//! [`include/linux/iommu.h`](srctree/include/linux/iommu.h),
//! [`include/uapi/linux/iommufd.h`](srctree/include/uapi/linux/iommufd.h)

use core::{
    marker::PhantomData,
    mem::MaybeUninit, //
};

use crate::{
    bindings,
    error::to_result,
    prelude::*,
    transmute::FromBytes,
    types::Opaque,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

/// A kind of invalidation request: one value of `enum iommu_hwpt_invalidate_data_type`.
pub trait Request {
    /// What user space passes as the `data_type` of `struct iommu_hwpt_invalidate`.
    const DATA_TYPE: u32;

    /// The layout of one request in user memory.
    ///
    /// User space may place its requests further apart than the size of this type, if what lies
    /// between them is zero.
    type Entry: FromBytes;
}

/// The requests of one call that are not handled yet.
///
/// [`read()`](Self::read) takes requests from user memory, each of them once and in their order.
/// [`complete()`](Self::complete) reports those that have taken effect. What is not reported when
/// the driver returns has not been handled, as far as user space is told.
///
/// # Invariants
///
/// * `raw.entry_num` is the number of requests that are complete.
/// * `raw.entry_num <= read <= len`.
pub struct UserArray<'a, R: Request> {
    raw: &'a mut bindings::iommu_user_data_array,
    len: u32,
    read: u32,
    _request: PhantomData<R>,
}

impl<'a, R: Request> UserArray<'a, R> {
    /// Takes over the array that the iommufd core passes to a driver.
    ///
    /// From here on, an error of the driver says that no request is complete and carries no error
    /// code, unless the driver reports otherwise.
    ///
    /// Fails with [`EINVAL`] if the array is of another type, or if it is not empty and its entries
    /// are smaller than [`Request::Entry`].
    pub fn new(raw: &'a mut bindings::iommu_user_data_array) -> Result<Self> {
        let len = core::mem::take(&mut raw.entry_num);
        raw.driver_error_code = 0;

        if raw.type_ != R::DATA_TYPE {
            return Err(EINVAL);
        }
        if len != 0 && raw.entry_len < size_of::<R::Entry>() {
            return Err(EINVAL);
        }

        // INVARIANT: `raw.entry_num` was just set to 0, and no request was read.
        Ok(Self {
            raw,
            len,
            read: 0,
            _request: PhantomData,
        })
    }

    /// Returns whether there are no requests: user space then only asks whether the type is known.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether all requests have been read.
    #[inline]
    pub fn is_read(&self) -> bool {
        self.read == self.len
    }

    /// Reads the next requests from user memory: as many as are left and fit into `block`.
    ///
    /// Returns fewer if user memory cannot be read further. Fails only if that is so for the very
    /// next request:
    ///
    /// * with [`EFAULT`] if it cannot be read,
    /// * with [`E2BIG`] if it is larger than [`Request::Entry`], and what is beyond is not zero.
    ///
    /// The bytes are copied before the caller sees them, and no request is read again once it was
    /// returned: what the driver checks is what it issues. Must be called in the context of the
    /// process that called the ioctl. May sleep.
    pub fn read<'b>(
        &mut self,
        block: &'b mut [MaybeUninit<R::Entry>],
    ) -> Result<&'b mut [R::Entry]> {
        let left = (self.len - self.read) as usize;
        let wanted = block.len().min(left);
        let block = &mut block[..wanted];

        // If one copy of everything fails, copies of single requests find the one that is to blame.
        let packed = self.raw.entry_len == size_of::<R::Entry>();
        let count = if packed && self.read_all(block).is_ok() {
            block.len()
        } else {
            self.read_some(block)?
        };

        // INVARIANT: `count <= left`, hence `read <= len`. CAST: `left` came from a `u32`.
        self.read += count as u32;

        let block = core::ptr::from_mut(&mut block[..count]) as *mut [R::Entry];
        // SAFETY: A `MaybeUninit` has the layout of what is in it. These entries are initialized
        // with bytes from user space, and by `FromBytes` any bytes make a valid entry.
        Ok(unsafe { &mut *block })
    }

    /// Fills `block` in one copy. Nothing may lie between the entries in user memory.
    fn read_all(&self, block: &mut [MaybeUninit<R::Entry>]) -> Result {
        let len = size_of_val(block);
        // SAFETY: The memory is borrowed for as long as the slice is used, bytes need no alignment,
        // and `MaybeUninit` asks nothing of what is written.
        let bytes = unsafe { core::slice::from_raw_parts_mut(block.as_mut_ptr().cast(), len) };

        UserSlice::new(self.user_ptr(0), len)
            .reader()
            .read_raw(bytes)
    }

    /// Fills `block` entry by entry up to the first one that cannot be read.
    ///
    /// Fails if that is the first one of the block.
    fn read_some(&self, block: &mut [MaybeUninit<R::Entry>]) -> Result<usize> {
        for (i, entry) in block.iter_mut().enumerate() {
            if let Err(e) = self.read_one(i, entry) {
                return if i == 0 { Err(e) } else { Ok(i) };
            }
        }
        Ok(block.len())
    }

    /// Copies the entry at `index` behind the last one that was read, like
    /// `copy_struct_from_user()`.
    fn read_one(&self, index: usize, entry: &mut MaybeUninit<R::Entry>) -> Result {
        let ptr = self.user_ptr(index);
        let size = size_of::<R::Entry>();
        let tail = self.raw.entry_len - size;

        if tail != 0 {
            // SAFETY: `check_zeroed_user()` checks by itself that the range belongs to user space,
            // and copes with faults.
            let ret = unsafe {
                bindings::check_zeroed_user(ptr.wrapping_byte_add(size).as_const_ptr(), tail)
            };
            to_result(ret)?;
            if ret == 0 {
                return Err(E2BIG);
            }
        }

        entry.write(UserSlice::new(ptr, size).reader().read()?);
        Ok(())
    }

    /// The address of the entry at `index` behind the last one that was read.
    fn user_ptr(&self, index: usize) -> UserPtr {
        let index = self.read as usize + index;

        // User space chose all of it, so the address may wrap around. That is fine:
        // `copy_from_user()` refuses bad addresses, whatever they came from.
        UserPtr::from_ptr(self.raw.uptr).wrapping_byte_add(index.wrapping_mul(self.raw.entry_len))
    }

    /// Reports that the next `count` requests are complete: their effect has taken place, not only
    /// been asked for.
    ///
    /// Reporting more than has been read reports no more than that.
    #[inline]
    pub fn complete(&mut self, count: usize) {
        let unreported = self.read - self.raw.entry_num;

        // INVARIANT: `entry_num <= read` by the `min()`. CAST: The result is at most `unreported`.
        self.raw.entry_num += count.min(unreported as usize) as u32;
    }

    /// Sets the hardware's code for the error that the driver is about to return.
    ///
    /// It is about the first request that is not complete. The encoding is that of the request's
    /// type, see `out_driver_error_code` in `struct iommu_hwpt_invalidate`.
    #[inline]
    pub fn set_driver_error_code(&mut self, code: u32) {
        self.raw.driver_error_code = code;
    }
}

/// Something whose hardware caches user space may invalidate: a nested domain or a vIOMMU.
///
/// Several threads may invalidate at the same time.
///
/// # Examples
///
/// A driver whose requests are addresses that must be aligned to a page:
///
/// ```
/// use core::mem::MaybeUninit;
/// use kernel::{
///     bindings,
///     iommu::iommufd::{
///         dispatch,
///         CacheInvalidate,
///         Request,
///         UserArray, //
///     },
///     page::PAGE_SIZE, //
/// };
///
/// struct Address;
///
/// impl Request for Address {
///     const DATA_TYPE: u32 = 42;
///     type Entry = u64;
/// }
///
/// struct Domain;
///
/// impl Domain {
///     fn flush_and_wait(&self, _addresses: &[u64]) -> Result {
///         Ok(())
///     }
/// }
///
/// impl CacheInvalidate for Domain {
///     type Request = Address;
///
///     fn cache_invalidate(&self, array: &mut UserArray<'_, Address>) -> Result {
///         let mut block = [const { MaybeUninit::uninit() }; 32];
///         let block = array.read(&mut block)?;
///
///         let good = block
///             .iter()
///             .take_while(|&address| address % PAGE_SIZE as u64 == 0)
///             .count();
///         self.flush_and_wait(&block[..good])?;
///         array.complete(good);
///
///         if good < block.len() {
///             return Err(EINVAL);
///         }
///         Ok(())
///     }
/// }
///
/// // An empty array asks whether the type is known.
/// let mut array = bindings::iommu_user_data_array {
///     type_: 42,
///     ..pin_init::zeroed()
/// };
/// assert_eq!(dispatch(&Domain, &mut array), 0);
///
/// array.type_ = 43;
/// assert_eq!(dispatch(&Domain, &mut array), EINVAL.to_errno());
/// # Ok::<(), Error>(())
/// ```
pub trait CacheInvalidate: Sync {
    /// The requests that it understands.
    type Request: Request;

    /// Handles requests from the beginning of `array`, which is not empty.
    ///
    /// `Ok` says that all is well so far. The core calls again for what is left, so that a driver
    /// which works in blocks needs no loop, no check for signals and no `cond_resched()` of its
    /// own, unless it handles several blocks in a call. It must complete at least one request to be
    /// called again.
    ///
    /// An error is about the first request that is not complete. Those before it stay complete.
    ///
    /// Called in process context without locks. May sleep.
    fn cache_invalidate(&self, array: &mut UserArray<'_, Self::Request>) -> Result;
}

/// Serves the C operation with `this`.
///
/// Returns 0 or a negative errno, as the operation does.
pub fn dispatch<T: CacheInvalidate>(
    this: &T,
    array: &mut bindings::iommu_user_data_array,
) -> c_int {
    let result = UserArray::new(array).and_then(|mut array| {
        if array.is_empty() {
            return Ok(());
        }
        this.cache_invalidate(&mut array)
    });

    match result {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}

/// A vIOMMU: the part of a physical IOMMU that a VM is given.
///
/// # Invariants
///
/// The object is a valid `struct iommufd_viommu`, whose part that belongs to the core is
/// initialized.
#[repr(transparent)]
pub struct Viommu(Opaque<bindings::iommufd_viommu>);

// SAFETY: What this type gives access to is only used with the lock of the list held.
unsafe impl Sync for Viommu {}

impl Viommu {
    /// Makes a reference from a C pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to a vIOMMU that the core has initialized and that is valid for `'a`. Both
    /// holds for the duration of each vIOMMU operation.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::iommufd_viommu) -> &'a Self {
        // INVARIANT: By the safety requirements.
        // SAFETY: By the safety requirements, and `Self` is transparent over the C struct.
        unsafe { &*ptr.cast() }
    }

    /// Calls `f` for the device that is linked to this vIOMMU as `virt_id`.
    ///
    /// `virt_id` is what the vIOMMU knows the device by, such as the vSID of an SMMUv3. `f` gets
    /// what the driver stored with `dev_iommu_priv_set()` for the device. Returns [`None`] if there
    /// is no vDEVICE of that ID.
    ///
    /// The vDEVICE cannot go away while `f` runs, as the lock of the vIOMMU's list is held: a
    /// spinlock, so `f` must not sleep.
    #[inline]
    pub fn with_vdevice<R>(
        &self,
        virt_id: usize,
        f: impl FnOnce(*mut c_void) -> R, //
    ) -> Option<R> {
        let viommu = self.0.get();
        // SAFETY: By the type invariant `viommu` is valid.
        let vdevs = unsafe { &raw mut (*viommu).vdevs };

        // SAFETY: By the type invariant the list is initialized.
        unsafe { bindings::xa_lock(vdevs) };

        // SAFETY: `viommu` is valid, and the lock that protects the result is held.
        let dev = unsafe { bindings::iommufd_viommu_find_dev(viommu, virt_id) };
        let result = if dev.is_null() {
            None
        } else {
            // SAFETY: The device of a vDEVICE is valid and has its IOMMU, and it stays so while the
            // lock is held: a vDEVICE leaves the list before it lets go of its device.
            Some(f(unsafe { bindings::dev_iommu_priv_get(dev) }))
        };

        // SAFETY: The lock was taken above.
        unsafe { bindings::xa_unlock(vdevs) };

        result
    }
}

#[cfg(CONFIG_RUST_IOMMUFD_KUNIT_TEST)]
#[kunit_tests(rust_iommufd)]
mod tests {
    use super::*;
    use crate::page::PAGE_SIZE;

    /// The number of requests that fit into the user memory of the tests.
    const COUNT: usize = PAGE_SIZE / 16;

    struct Pair;

    impl Request for Pair {
        const DATA_TYPE: u32 = 7;
        type Entry = [u64; 2];
    }

    /// Maps user memory of one page, with nothing behind it, until the test ends.
    fn user_page() -> Result<UserPtr> {
        const PROT_READ_WRITE: c_ulong = 0x3;
        const MAP_PRIVATE_ANONYMOUS: c_ulong = 0x22;

        // SAFETY: The test that is running is valid, and an anonymous mapping needs no file.
        let addr = unsafe {
            bindings::kunit_vm_mmap(
                bindings::kunit_get_current_test(),
                core::ptr::null_mut(),
                0,
                2 * PAGE_SIZE,
                PROT_READ_WRITE,
                MAP_PRIVATE_ANONYMOUS,
                0,
            )
        };
        if addr == 0 {
            return Err(ENOMEM);
        }

        // SAFETY: Nobody else uses the memory of the test.
        to_result(unsafe { bindings::vm_munmap(addr + PAGE_SIZE, PAGE_SIZE) })?;
        Ok(UserPtr::from_addr(addr))
    }

    /// Fills the page with requests that are `stride` bytes apart and count up from 0.
    fn fill(page: UserPtr, stride: usize) -> Result {
        for i in 0..PAGE_SIZE / stride {
            UserSlice::new(page.wrapping_byte_add(i * stride), 16)
                .writer()
                .write(&[i as u64, !(i as u64)])?;
        }
        Ok(())
    }

    fn array(ptr: UserPtr, stride: usize, len: usize) -> bindings::iommu_user_data_array {
        bindings::iommu_user_data_array {
            type_: Pair::DATA_TYPE,
            uptr: ptr.as_mut_ptr(),
            entry_len: stride,
            entry_num: len as u32,
            // What the array comes with must not pass for the driver's answer.
            driver_error_code: 99,
        }
    }

    /// Reads blocks of `BLOCK` requests that count up.
    ///
    /// Returns how many there were, and why there are no more.
    fn read_to_end<const BLOCK: usize>(
        raw: &mut bindings::iommu_user_data_array,
    ) -> Result<(usize, Result)> {
        let mut array = UserArray::<Pair>::new(raw)?;
        let mut count = 0;

        loop {
            let mut block = [const { MaybeUninit::uninit() }; BLOCK];
            let block = match array.read(&mut block) {
                Ok([]) => return Ok((count, Ok(()))),
                Ok(block) => block,
                Err(e) => return Ok((count, Err(e))),
            };
            for entry in &*block {
                if *entry != [count as u64, !(count as u64)] {
                    return Err(EILSEQ);
                }
                count += 1;
            }
            array.complete(block.len());
        }
    }

    /// An array is read whole, however the blocks fall.
    #[test]
    fn blocks() -> Result {
        let page = user_page()?;
        fill(page, 16)?;

        for len in [0, 1, 62, 63, 64, 126, COUNT] {
            let mut raw = array(page, 16, len);
            assert_eq!(read_to_end::<63>(&mut raw)?, (len, Ok(())));
            assert_eq!(raw.entry_num as usize, len);
            assert_eq!(raw.driver_error_code, 0);

            assert_eq!(read_to_end::<1>(&mut array(page, 16, len))?, (len, Ok(())));
        }
        Ok(())
    }

    /// Memory that ends in the middle of a block costs none of the requests before that.
    #[test]
    fn fault() -> Result {
        let page = user_page()?;
        fill(page, 16)?;

        for present in [1, 2, 62, 63, 64, 100] {
            // The next request begins behind the page, or reaches beyond it.
            for missing in [16, 15, 8, 1] {
                let ptr = page.wrapping_byte_add(PAGE_SIZE - 16 * present - (16 - missing));
                let mut raw = array(ptr, 16, present + 10);

                // Unaligned requests do not count up: only their number is looked at.
                let mut array = UserArray::<Pair>::new(&mut raw)?;
                let mut read = 0;
                let error = loop {
                    let mut block = [const { MaybeUninit::uninit() }; 63];
                    match array.read(&mut block) {
                        Ok(block) => read += block.len(),
                        Err(e) => break e,
                    }
                };
                assert_eq!(read, present);
                assert_eq!(error, EFAULT);
            }
        }
        Ok(())
    }

    /// A request may be longer than is known, but then the rest of it must be zero.
    #[test]
    fn tail() -> Result {
        for stride in [17, 24, 32, 100] {
            let page = user_page()?;
            fill(page, stride)?;
            let len = PAGE_SIZE / stride;

            let mut raw = array(page, stride, len);
            assert_eq!(read_to_end::<63>(&mut raw)?, (len, Ok(())));

            for bad in [len - 1, 10, 0] {
                for offset in [16, stride - 1] {
                    let ptr = page.wrapping_byte_add(bad * stride + offset);
                    UserSlice::new(ptr, 1).writer().write(&1u8)?;
                    let mut raw = array(page, stride, len);
                    assert_eq!(read_to_end::<63>(&mut raw)?, (bad, Err(E2BIG)));
                    assert_eq!(raw.entry_num as usize, bad);
                    UserSlice::new(ptr, 1).writer().write(&0u8)?;
                }
            }

            // The tail of the last request cannot be read.
            let ptr = page.wrapping_byte_add(PAGE_SIZE - 16);
            let mut raw = array(ptr, stride, 1);
            let mut array = UserArray::<Pair>::new(&mut raw)?;
            let mut block = [const { MaybeUninit::uninit() }; 1];
            assert_eq!(array.read(&mut block).err(), Some(EFAULT));
        }
        Ok(())
    }

    /// What a driver does not report does not count, and it cannot report too much.
    #[test]
    fn progress() -> Result {
        let page = user_page()?;
        fill(page, 16)?;
        let mut block = [const { MaybeUninit::uninit() }; 10];

        let mut raw = array(page, 16, 25);
        let mut array = UserArray::<Pair>::new(&mut raw)?;
        array.complete(1);
        array.read(&mut block)?;
        array.read(&mut block)?;
        assert_eq!(raw.entry_num, 0);

        let mut array = UserArray::<Pair>::new({
            raw.entry_num = 25;
            &mut raw
        })?;
        array.read(&mut block)?;
        array.complete(4);
        array.complete(100);
        array.set_driver_error_code(3);
        assert_eq!(raw.entry_num, 10);
        assert_eq!(raw.driver_error_code, 3);
        Ok(())
    }

    /// A driver is asked about requests only, and its errors come back as they are.
    #[test]
    fn dispatching() -> Result {
        struct Refuses;

        impl CacheInvalidate for Refuses {
            type Request = Pair;

            fn cache_invalidate(&self, array: &mut UserArray<'_, Pair>) -> Result {
                array.set_driver_error_code(5);
                Err(EPERM)
            }
        }

        let null = UserPtr::from_addr(0);

        let mut raw = array(null, 16, 0);
        assert_eq!(dispatch(&Refuses, &mut raw), 0);
        assert_eq!(raw.driver_error_code, 0);

        let mut raw = array(null, 16, 1);
        assert_eq!(dispatch(&Refuses, &mut raw), EPERM.to_errno());
        assert_eq!(raw.driver_error_code, 5);

        raw.type_ = 8;
        assert_eq!(dispatch(&Refuses, &mut raw), EINVAL.to_errno());
        assert_eq!(raw.driver_error_code, 0);
        Ok(())
    }

    /// What is wrong with the array as a whole is found before anything is read.
    #[test]
    fn bad_arrays() -> Result {
        let null = UserPtr::from_addr(0);

        let mut raw = array(null, 16, 1);
        raw.type_ = 8;
        assert_eq!(UserArray::<Pair>::new(&mut raw).err(), Some(EINVAL));
        assert_eq!(raw.entry_num, 0);
        assert_eq!(raw.driver_error_code, 0);

        for stride in [0, 1, 8, 15] {
            let mut raw = array(null, stride, 1);
            assert_eq!(UserArray::<Pair>::new(&mut raw).err(), Some(EINVAL));

            // Without requests, their length means nothing.
            assert!(UserArray::<Pair>::new(&mut array(null, stride, 0))?.is_empty());
        }
        Ok(())
    }
}
