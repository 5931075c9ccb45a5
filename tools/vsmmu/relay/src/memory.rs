// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory, as far as a queue looks at it.

/// The guest's physical address space.
///
/// With the feature `vm-memory` all that is a [`vm_memory::GuestMemoryBackend`] is one. Others need
/// [`Memory::fetch`]; the rest makes it faster.
pub trait Memory {
    /// Copies what is at `address` into `buf`, or says that it cannot all be read: there is no memory, or
    /// registers of a device, which an SMMU would not read either.
    ///
    /// The guest may change it meanwhile.
    ///
    /// # Errors
    ///
    /// What an SMMU would see as an external abort. To the guest that is a CERROR_ABT.
    fn fetch(&self, address: u64, buf: &mut [u8]) -> Result<(), Unreadable>;

    /// Calls `f` with the address in this process of `len` bytes of guest memory at `address`. They have
    /// to be RAM, in one piece, and mapped until `f` is back. If they are not, there is no call.
    ///
    /// The kernel reads commands at that address, and nobody else does. That the guest can change them at
    /// any moment is the kernel's to cope with: it takes a copy and checks that.
    fn with_host_address<T>(
        &self,
        address: u64,
        len: usize,
        f: impl FnOnce(u64) -> T,
    ) -> Option<T> {
        let _ = (address, len, f);
        None
    }
}

/// There is no guest memory where there should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreadable;

#[cfg(feature = "vm-memory")]
impl<M: vm_memory::GuestMemoryBackend + ?Sized> Memory for M {
    fn fetch(&self, address: u64, buf: &mut [u8]) -> Result<(), Unreadable> {
        use vm_memory::{Bytes, GuestAddress};

        self.read_slice(buf, GuestAddress(address))
            .map_err(|_| Unreadable)
    }

    /// A slice is in one region, and regions that are no memory of this process give none.
    fn with_host_address<T>(
        &self,
        address: u64,
        len: usize,
        f: impl FnOnce(u64) -> T,
    ) -> Option<T> {
        let slice = self.get_slice(vm_memory::GuestAddress(address), len).ok()?;
        // What is mapped on demand is mapped until the guard is dropped.
        let guard = slice.ptr_guard();
        Some(f(guard.as_ptr() as u64))
    }
}

#[cfg(all(test, feature = "vm-memory"))]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    use super::*;

    #[test]
    fn one_region_only() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[
            (GuestAddress(0x1000), 0x1000),
            (GuestAddress(0x2000), 0x1000),
        ])
        .unwrap();
        mem.write_obj(0x1234_u64, GuestAddress(0x1ff8)).unwrap();
        let address = |at, len| mem.with_host_address(at, len, |address| address);

        let host = mem.get_host_address(GuestAddress(0x1ff0)).unwrap() as u64;
        assert_eq!(address(0x1ff0, 16), Some(host));
        assert_eq!(address(0x1ff0, 17), None);
        assert_eq!(address(0x3000, 16), None);
        assert_eq!(address(u64::MAX - 7, 16), None);

        let mut buf = [0; 16];
        assert_eq!(mem.fetch(0x1ff8, &mut buf), Ok(()));
        assert_eq!(buf[..8], 0x1234_u64.to_le_bytes());
        assert_eq!(mem.fetch(0x2ff8, &mut buf), Err(Unreadable));
        assert_eq!(mem.fetch(u64::MAX - 7, &mut buf), Err(Unreadable));
    }
}
