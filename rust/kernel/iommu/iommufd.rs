// SPDX-License-Identifier: GPL-2.0

//! The driver's side of iommufd: invalidation requests that user space sends to a nested domain or
//! a vIOMMU.
//!
//! A driver implements [`CacheInvalidate`] for its nested domain or its vIOMMU. Its C operation
//! (`cache_invalidate_user` of `struct iommu_domain_ops`, or `cache_invalidate` of `struct
//! iommufd_viommu_ops`) converts its arguments and calls [`dispatch()`]. The conversions are
//! [`UserDataArray::from_raw()`] and [`Viommu::from_raw()`]. They are the only functions of this
//! module that take C structs.
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
    /// The `data_type` of `struct iommu_hwpt_invalidate` that user space passes for such requests.
    const DATA_TYPE: u32;

    /// The layout of one request in user memory.
    ///
    /// User space may use a larger distance between its requests than the size of this type. All
    /// bytes in between must be zero.
    type Entry: FromBytes;
}

/// An array of requests of any type, as the iommufd core passes it to a driver: `struct
/// iommu_user_data_array`.
///
/// [`dispatch()`] is the only use for it.
#[repr(transparent)]
pub struct UserDataArray(bindings::iommu_user_data_array);

impl UserDataArray {
    /// Makes a reference from a C pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to a valid `struct iommu_user_data_array` that nobody else accesses during
    /// `'a`. The core guarantees this for the duration of each call of an operation that has such
    /// an argument.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::iommu_user_data_array) -> &'a mut Self {
        // SAFETY: By the safety requirements, and `Self` is transparent over the C struct.
        unsafe { &mut *ptr.cast() }
    }
}

/// The requests of one call that are not handled yet.
///
/// [`read()`](Self::read) copies requests from user memory, each of them once and in order.
/// [`complete()`](Self::complete) reports requests that have taken effect. User space is told that
/// the requests which the driver does not report have not been handled.
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
    /// Sets the number of complete requests and the error code to 0, so that an error means this
    /// unless the driver reports something else.
    ///
    /// Fails with [`EINVAL`] if the array is of another type, or if it is not empty and its entries
    /// are smaller than [`Request::Entry`].
    fn new(array: &'a mut UserDataArray) -> Result<Self> {
        let raw = &mut array.0;
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

    /// Returns whether the array has no requests. User space uses such an array to ask whether the
    /// type is supported.
    #[inline]
    fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of requests that have not been read.
    #[inline]
    pub fn remaining(&self) -> usize {
        // CAST: From a smaller type.
        (self.len - self.read) as usize
    }

    /// Reads the next requests from user memory: as many as are left and fit into `block`.
    ///
    /// Returns fewer requests if a later one cannot be read; the next call then fails for that one.
    /// Fails if the first of them cannot be read:
    ///
    /// * with [`EFAULT`] if its memory is not accessible,
    /// * with [`E2BIG`] if it is larger than [`Request::Entry`] and the excess bytes are not zero.
    ///
    /// No request is read from user memory a second time after it was returned. User space can
    /// therefore not change a request after the driver has checked it.
    ///
    /// Must be called in the context of the process that called the ioctl. May sleep.
    pub fn read<'b>(
        &mut self,
        block: &'b mut [MaybeUninit<R::Entry>],
    ) -> Result<&'b mut [R::Entry]> {
        let wanted = block.len().min(self.remaining());
        let block = &mut block[..wanted];

        // If the copy of the whole block fails, copy each request to find the one that caused it.
        let packed = self.raw.entry_len == size_of::<R::Entry>();
        let count = if packed && self.read_all(block).is_ok() {
            block.len()
        } else {
            self.read_some(block)?
        };

        // INVARIANT: `count <= remaining()`, hence `read <= len`. CAST: So it fits into a `u32`.
        self.read += count as u32;

        let block = core::ptr::from_mut(&mut block[..count]) as *mut [R::Entry];
        // SAFETY: A `MaybeUninit` has the layout of what is in it. These entries are initialized
        // with bytes from user space, and by `FromBytes` any bytes make a valid entry.
        Ok(unsafe { &mut *block })
    }

    /// Fills `block` in one copy. The entries in user memory must be adjacent.
    fn read_all(&self, block: &mut [MaybeUninit<R::Entry>]) -> Result {
        let len = size_of_val(block);
        // SAFETY: The memory is borrowed for as long as the slice is used. Bytes need no alignment,
        // and any bytes are valid for a `MaybeUninit`.
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

    /// Copies the entry at `index`, counted from the first one that has not been read, like
    /// `copy_struct_from_user()`.
    fn read_one(&self, index: usize, entry: &mut MaybeUninit<R::Entry>) -> Result {
        let ptr = self.user_ptr(index);
        let size = size_of::<R::Entry>();
        let tail = self.raw.entry_len - size;

        if tail != 0 {
            // SAFETY: `check_zeroed_user()` checks that the range belongs to user space, and
            // handles faults.
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

    /// Returns the address of the entry at `index`, counted from the first one that has not been
    /// read.
    fn user_ptr(&self, index: usize) -> UserPtr {
        let index = self.read as usize + index;

        // User space chooses all of these values, so the address can wrap around. This is harmless,
        // as `copy_from_user()` checks the address.
        UserPtr::from_ptr(self.raw.uptr).wrapping_byte_add(index.wrapping_mul(self.raw.entry_len))
    }

    /// Reports that the next `count` requests are complete: the hardware has finished them.
    ///
    /// Fails with [`EOVERFLOW`] and reports none of them if there are fewer requests that have been
    /// read and not been reported yet.
    #[inline]
    pub fn complete(&mut self, count: usize) -> Result {
        let unreported = self.read - self.raw.entry_num;
        if count > unreported as usize {
            return Err(EOVERFLOW);
        }

        // INVARIANT: `count <= read - entry_num`, hence `entry_num <= read` afterwards.
        // CAST: `count` is at most `unreported`, which is a `u32`.
        self.raw.entry_num += count as u32;
        Ok(())
    }

    /// Sets the hardware's code for the error that the driver is about to return.
    ///
    /// The code describes the error of the first request that is not complete, in the encoding of
    /// the request's type: see `out_driver_error_code` in `struct iommu_hwpt_invalidate`. It has no
    /// effect if the driver returns success.
    #[inline]
    pub fn set_driver_error_code(&mut self, code: u32) {
        self.raw.driver_error_code = code;
    }
}

/// An object whose hardware caches user space may invalidate: a nested domain or a vIOMMU.
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
///     iommu::iommufd::{
///         dispatch,
///         CacheInvalidate,
///         Request,
///         UserArray,
///         UserDataArray, //
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
///         array.complete(good)?;
///
///         if good < block.len() {
///             return Err(EINVAL);
///         }
///         Ok(())
///     }
/// }
///
/// // The core makes the array. An empty one asks whether the type is supported.
/// # let mut raw = kernel::bindings::iommu_user_data_array {
/// #     type_: 42,
/// #     ..pin_init::zeroed()
/// # };
/// # let ptr = &raw mut raw;
/// // SAFETY: `ptr` is valid, and nobody else uses the array.
/// let array: &mut UserDataArray = unsafe { UserDataArray::from_raw(ptr) };
/// assert_eq!(dispatch(&Domain, array), Ok(()));
/// # raw.type_ = 43;
/// # // SAFETY: As above.
/// # assert_eq!(dispatch(&Domain, unsafe { UserDataArray::from_raw(&raw mut raw) }), Err(EINVAL));
/// # Ok::<(), Error>(())
/// ```
pub trait CacheInvalidate: Sync {
    /// The kind of requests that the driver accepts.
    type Request: Request;

    /// Handles requests from the beginning of `array`, which is not empty.
    ///
    /// A driver may return [`Ok`] before it has handled all requests, if it has completed at least
    /// one. The core then checks for a fatal signal, reschedules if needed, and calls again for the
    /// rest. A driver that handles one block in each call therefore needs no loop.
    ///
    /// An error applies to the first request that is not complete. The requests before it stay
    /// complete.
    ///
    /// Called in the context of the process that called the ioctl, without locks. May sleep.
    fn cache_invalidate(&self, array: &mut UserArray<'_, Self::Request>) -> Result;
}

/// Has `this` handle the requests of `array`: the body of the C operation.
///
/// An empty array only asks whether its type is supported, and does not reach the driver.
///
/// Fails with [`EINVAL`] if the array is not of the type [`CacheInvalidate::Request`], or if its
/// entries are smaller than [`Request::Entry`], and otherwise as
/// [`CacheInvalidate::cache_invalidate()`] does.
///
/// Must be called in the context of the process that called the ioctl. May sleep.
pub fn dispatch<T: CacheInvalidate>(this: &T, array: &mut UserDataArray) -> Result {
    let mut array = UserArray::new(array)?;
    if array.is_empty() {
        return Ok(());
    }
    this.cache_invalidate(&mut array)
}

/// A vIOMMU, the part of a physical IOMMU that a VM uses: `struct iommufd_viommu`.
///
/// `D` is what the driver of the IOMMU stores for each device with `dev_iommu_priv_set()`.
///
/// # Examples
///
/// A vIOMMU whose driver has to find the physical stream ID for a virtual one:
///
/// ```
/// use kernel::iommu::iommufd::Viommu;
///
/// struct Master {
///     stream_id: u32,
/// }
///
/// fn stream_id(viommu: &Viommu<Master>, virtual_stream_id: u32) -> Option<u32> {
///     viommu.with_vdevice(virtual_stream_id as usize, |master| master.stream_id)
/// }
/// ```
///
/// # Invariants
///
/// * The struct is valid, and the core has initialized its own part of it.
/// * The private data of each device that is linked to the vIOMMU is a valid `D`.
#[repr(transparent)]
pub struct Viommu<D>(Opaque<bindings::iommufd_viommu>, PhantomData<D>);

// SAFETY: The list of vDEVICEs is only accessed with its lock held. As several threads can get a
// reference to the same private data, that has to be `Sync`.
unsafe impl<D: Sync> Sync for Viommu<D> {}

impl<D> Viommu<D> {
    /// Makes a reference from a C pointer.
    ///
    /// # Safety
    ///
    /// * `ptr` must point to a vIOMMU that the core has initialized and that is valid for `'a`. The
    ///   core guarantees both for the duration of each vIOMMU operation.
    /// * For each device that is linked to the vIOMMU, `dev_iommu_priv_get()` must return a pointer
    ///   to a `D`, or to a C struct over which `D` is transparent. It must be valid for shared
    ///   references for as long as the device is linked. The core links a device only to a vIOMMU
    ///   of the IOMMU that the device is behind, so this is about one driver only.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::iommufd_viommu) -> &'a Self {
        // INVARIANT: By the safety requirements.
        // SAFETY: By the safety requirements, and `Self` is transparent over the C struct.
        unsafe { &*ptr.cast() }
    }

    /// Calls `f` with the private data of the device that is linked to this vIOMMU as `virt_id`.
    ///
    /// `virt_id` identifies the device within the vIOMMU: for an SMMUv3 it is the vSID. Returns
    /// [`None`] without calling `f` if there is no vDEVICE with that ID.
    ///
    /// The vDEVICE exists at least until `f` returns, because the lock of the vIOMMU's list of
    /// vDEVICEs is held. This lock is a spinlock, so `f` must not sleep. May be called in process
    /// context only, as the lock does not disable interrupts.
    #[inline]
    pub fn with_vdevice<R>(&self, virt_id: usize, f: impl FnOnce(&D) -> R) -> Option<R> {
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
            // SAFETY: While the lock is held, the device is valid and behind its IOMMU: a vDEVICE
            // is removed from the list before it releases its device. By the type invariant, the
            // private data is a valid `D`.
            Some(f(unsafe { &*bindings::dev_iommu_priv_get(dev).cast() }))
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

    fn array(ptr: UserPtr, stride: usize, len: usize) -> UserDataArray {
        UserDataArray(bindings::iommu_user_data_array {
            type_: Pair::DATA_TYPE,
            uptr: ptr.as_mut_ptr(),
            entry_len: stride,
            entry_num: len as u32,
            // The initial value must not be taken for the driver's answer.
            driver_error_code: 99,
        })
    }

    /// Reads blocks of `BLOCK` requests that count up.
    ///
    /// Returns how many there were, and why there are no more.
    fn read_to_end<const BLOCK: usize>(raw: &mut UserDataArray) -> Result<(usize, Result)> {
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
            array.complete(block.len())?;
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
            assert_eq!(raw.0.entry_num as usize, len);
            assert_eq!(raw.0.driver_error_code, 0);

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
                    assert_eq!(raw.0.entry_num as usize, bad);
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

    /// Requests that a driver does not report do not count, and it cannot report too many.
    #[test]
    fn progress() -> Result {
        let page = user_page()?;
        fill(page, 16)?;
        let mut block = [const { MaybeUninit::uninit() }; 10];

        let mut raw = array(page, 16, 25);
        let mut array = UserArray::<Pair>::new(&mut raw)?;
        assert_eq!(array.complete(1), Err(EOVERFLOW));
        array.read(&mut block)?;
        array.read(&mut block)?;
        assert_eq!(array.complete(21), Err(EOVERFLOW));
        assert_eq!(raw.0.entry_num, 0);

        let mut array = UserArray::<Pair>::new({
            raw.0.entry_num = 25;
            &mut raw
        })?;
        array.read(&mut block)?;
        array.complete(4)?;
        for excess in [7, 10, u32::MAX as usize, u32::MAX as usize + 1, usize::MAX] {
            assert_eq!(array.complete(excess), Err(EOVERFLOW));
        }
        array.complete(0)?;
        array.complete(6)?;
        assert_eq!(array.complete(1), Err(EOVERFLOW));
        array.set_driver_error_code(3);
        assert_eq!(raw.0.entry_num, 10);
        assert_eq!(raw.0.driver_error_code, 3);
        Ok(())
    }

    /// An empty array does not reach the driver, and errors of the driver are returned unchanged.
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
        assert_eq!(dispatch(&Refuses, &mut raw), Ok(()));
        assert_eq!(raw.0.driver_error_code, 0);

        let mut raw = array(null, 16, 1);
        assert_eq!(dispatch(&Refuses, &mut raw), Err(EPERM));
        assert_eq!(raw.0.driver_error_code, 5);

        raw.0.type_ = 8;
        assert_eq!(dispatch(&Refuses, &mut raw), Err(EINVAL));
        assert_eq!(raw.0.driver_error_code, 0);
        Ok(())
    }

    /// An array that is bad as a whole is refused before anything is read.
    #[test]
    fn bad_arrays() -> Result {
        let null = UserPtr::from_addr(0);

        let mut raw = array(null, 16, 1);
        raw.0.type_ = 8;
        assert_eq!(UserArray::<Pair>::new(&mut raw).err(), Some(EINVAL));
        assert_eq!(raw.0.entry_num, 0);
        assert_eq!(raw.0.driver_error_code, 0);

        for stride in [0, 1, 8, 15] {
            let mut raw = array(null, stride, 1);
            assert_eq!(UserArray::<Pair>::new(&mut raw).err(), Some(EINVAL));

            // Without requests, their length means nothing.
            assert!(UserArray::<Pair>::new(&mut array(null, stride, 0))?.is_empty());
        }
        Ok(())
    }

    /// A vIOMMU gives the private data of the device with the ID that is asked for.
    #[test]
    fn vdevices() -> Result {
        struct Master {
            stream_id: u32,
        }

        /// The C structs that lead from a vDEVICE to the private data.
        struct Link {
            vdev: bindings::iommufd_vdevice,
            idev: bindings::iommufd_device,
            dev: bindings::device,
            dev_iommu: bindings::dev_iommu,
        }

        impl Link {
            fn new(master: &Master) -> Result<KBox<Self>> {
                let mut link = KBox::<Self>::new_uninit(GFP_KERNEL)?;
                // SAFETY: The memory is valid, and all zero is valid for these C structs.
                let mut link = unsafe {
                    link.as_mut_ptr().write_bytes(0, 1);
                    link.assume_init()
                };
                link.dev_iommu.priv_ = core::ptr::from_ref(master).cast_mut().cast();
                link.dev.iommu = &raw mut link.dev_iommu;
                link.idev.dev = &raw mut link.dev;
                link.vdev.idev = &raw mut link.idev;
                Ok(link)
            }
        }

        let masters = [10, 20].map(|stream_id| Master { stream_id });
        let mut links = [Link::new(&masters[0])?, Link::new(&masters[1])?];

        let viommu = KBox::init(pin_init::zeroed::<bindings::iommufd_viommu>(), GFP_KERNEL)?;
        let viommu = KBox::into_raw(viommu);
        // SAFETY: `viommu` was just allocated, nothing else refers to it.
        let vdevs = unsafe { &raw mut (*viommu).vdevs };
        // SAFETY: As above.
        unsafe { bindings::xa_init_flags(vdevs, 0) };
        for (id, link) in links.iter_mut().enumerate() {
            let vdev = (&raw mut link.vdev).cast();
            // SAFETY: The array was just initialized.
            unsafe { bindings::xa_store(vdevs, id + 100, vdev, GFP_KERNEL.as_raw()) };
        }

        // SAFETY: The list of vDEVICEs is the only part that is used, and the private data of those
        // in there is a `Master`, which lives longer.
        let typed = unsafe { Viommu::<Master>::from_raw(viommu) };
        let found = [99, 100, 101, 102].map(|id| typed.with_vdevice(id, |m| m.stream_id));

        // SAFETY: Made above. `typed` is not used any more.
        unsafe {
            bindings::xa_destroy(vdevs);
            drop(KBox::from_raw(viommu));
        }
        assert_eq!(found, [None, Some(10), Some(20), None]);
        Ok(())
    }
}
