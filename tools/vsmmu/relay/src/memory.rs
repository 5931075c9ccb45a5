// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory, as far as a queue looks at it.

/// The guest's physical address space.
///
/// With the feature `vm-memory`, everything that is a [`vm_memory::GuestMemoryBackend`] is one.
pub trait Memory {
    /// Copies what is at `address` into `buf`, or says that not all of it can be read: there is no memory,
    /// or there are registers of a device, which an SMMU would not read either.
    ///
    /// The guest may change it meanwhile.
    ///
    /// # Errors
    ///
    /// What an SMMU would see as an external abort. To the guest that is a CERROR_ABT.
    fn fetch(&self, address: u64, buf: &mut [u8]) -> Result<(), Unreadable>;
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
}

#[cfg(all(test, feature = "vm-memory"))]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    #[test]
    fn all_or_an_error() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[
            (GuestAddress(0x1000), 0x1000),
            (GuestAddress(0x2000), 0x1000),
        ])
        .unwrap();
        mem.write_obj([0x1234_u64, 0x5678], GuestAddress(0x1ff8))
            .unwrap();
        let mut buf = [0; 16];
        // In two regions.
        assert_eq!(mem.fetch(0x1ff8, &mut buf), Ok(()));
        assert_eq!(buf[..8], 0x1234_u64.to_le_bytes());
        assert_eq!(buf[8..], 0x5678_u64.to_le_bytes());
        assert_eq!(mem.fetch(0x2ff8, &mut buf), Err(Unreadable));
        assert_eq!(mem.fetch(u64::MAX - 7, &mut buf), Err(Unreadable));
    }
}
