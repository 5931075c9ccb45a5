// SPDX-License-Identifier: GPL-2.0

//! Failures on demand, for tests of how code copes with them.
//!
//! C header: [`include/linux/fault-inject.h`](srctree/include/linux/fault-inject.h)
//!
//! Reference: [`fault-injection.rst`](srctree/Documentation/fault-injection/fault-injection.rst)

use crate::{
    prelude::*,
    types::Opaque, //
};

/// A kind of failure that can be asked for in a directory of debugfs.
///
/// That directory has the files `probability`, `times`, `space` and so on of the kernel's fault
/// injection. Nothing fails until somebody writes to them. If the directory cannot be made, or
/// without `CONFIG_FAULT_INJECTION_DEBUG_FS`, nothing ever does.
///
/// # Examples
///
/// ```
/// use kernel::fault_injection::FaultAttr;
///
/// let fail_example = KBox::pin_init(FaultAttr::new(c"fail_rust_example"), GFP_KERNEL)?;
///
/// // Nobody has asked for it.
/// assert!(!fail_example.is_enabled());
/// assert!(!fail_example.should_fail(1));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `attr` is initialized. `dir` is its directory in debugfs, or an error pointer.
#[pin_data(PinnedDrop)]
pub struct FaultAttr {
    #[pin]
    attr: Opaque<bindings::fault_attr>,
    dir: *mut bindings::dentry,
}

// SAFETY: Neither the C struct nor the directory belongs to a thread.
unsafe impl Send for FaultAttr {}

// SAFETY: The C struct is made to be used by many threads at once.
unsafe impl Sync for FaultAttr {}

impl FaultAttr {
    /// Makes a directory with this name at the root of debugfs, to ask for failures.
    ///
    /// It is removed when the value is dropped. May sleep.
    pub fn new(name: &CStr) -> impl PinInit<Self> + use<'_> {
        pin_init!(&this in Self {
            // SAFETY: The pointer is valid.
            attr <- Opaque::ffi_init(|attr| unsafe { bindings::fault_attr_init(attr) }),
            // INVARIANT: The attributes were initialized before.
            // SAFETY: `name` is a C string and is copied. `this` is pinned, so that `attr` stays
            // where it is until the directory is removed.
            dir: unsafe {
                bindings::fault_create_debugfs_attr(
                    name.as_char_ptr(),
                    core::ptr::null_mut(),
                    Opaque::cast_into(&raw const (*this.as_ptr()).attr),
                )
            },
        })
    }

    /// Whether [`Self::should_fail()`] may say so.
    ///
    /// Cheaper to ask than that, if there are many who might fail. Does not know of failures that a
    /// task asks for by its `fail-nth`.
    #[inline]
    pub fn is_enabled(&self) -> bool {
        // SAFETY: By the type invariants. User space may write to it at any time, which is as good
        // as before or after.
        unsafe { (&raw const (*self.attr.get()).probability).read_volatile() != 0 }
    }

    /// Whether the caller is to act as if it had failed.
    ///
    /// `size` is how much of `space` this is worth. May be called in any context.
    #[inline]
    pub fn should_fail(&self, size: isize) -> bool {
        // SAFETY: By the type invariants.
        unsafe { bindings::should_fail(self.attr.get(), size) }
    }
}

#[pinned_drop]
impl PinnedDrop for FaultAttr {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants; error pointers are ignored.
        unsafe { bindings::fault_remove_debugfs_attr(self.dir) };
    }
}
