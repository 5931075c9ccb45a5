// SPDX-License-Identifier: GPL-2.0

//! Fault injection: failures that a test asks for.
//!
//! C header: [`include/linux/fault-inject.h`](srctree/include/linux/fault-inject.h)
//!
//! Reference: [`fault-injection.rst`](srctree/Documentation/fault-injection/fault-injection.rst)

use crate::{
    prelude::*,
    types::Opaque, //
};

/// A kind of failure that can be injected, with its directory in debugfs.
///
/// The directory has the usual files of the kernel's fault injection, such as `probability`,
/// `times` and `space`. Initially, nothing fails. The files in the directory change that. If the
/// directory cannot be created, or without `CONFIG_FAULT_INJECTION_DEBUG_FS`, the only way to
/// inject the failure is the `fail-nth` file of a task.
///
/// # Examples
///
/// ```
/// use kernel::fault_injection::FaultAttr;
///
/// let fail_example = KBox::pin_init(FaultAttr::new(c"fail_rust_example"), GFP_KERNEL)?;
///
/// // Initially, nothing fails.
/// assert!(!fail_example.is_enabled());
/// assert!(!fail_example.should_fail(1));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// * `attr` is initialized.
/// * `dir` is the directory of `attr` in debugfs, or an error pointer.
#[pin_data(PinnedDrop)]
pub struct FaultAttr {
    #[pin]
    attr: Opaque<bindings::fault_attr>,
    dir: *mut bindings::dentry,
}

// SAFETY: Neither the C struct nor the directory is tied to a thread.
unsafe impl Send for FaultAttr {}

// SAFETY: `should_fail()` may be called concurrently for the same C struct.
unsafe impl Sync for FaultAttr {}

impl FaultAttr {
    /// Creates the attributes, and a directory for them with this name in the root of debugfs.
    ///
    /// The directory is removed when the value is dropped. May sleep.
    pub fn new(name: &CStr) -> impl PinInit<Self> + use<'_> {
        pin_init!(&this in Self {
            // SAFETY: The pointer is valid.
            attr <- Opaque::ffi_init(|attr| unsafe { bindings::fault_attr_init(attr) }),
            // INVARIANT: `attr` was initialized above.
            // SAFETY: `name` is a valid C string, which is copied. `this` is pinned, so that `attr`
            // stays in its place until the directory is removed.
            dir: unsafe {
                bindings::fault_create_debugfs_attr(
                    name.as_char_ptr(),
                    core::ptr::null_mut(),
                    Opaque::cast_into(&raw const (*this.as_ptr()).attr),
                )
            },
        })
    }

    /// Returns whether [`Self::should_fail()`] can return true because of the settings in debugfs.
    ///
    /// This is a cheap check to do once before [`Self::should_fail()`] is called for each of many
    /// items. It does not take the `fail-nth` file of a task into account.
    #[inline]
    pub fn is_enabled(&self) -> bool {
        // SAFETY: By the type invariants. A concurrent write by user space is harmless, as the
        // field is a single word.
        unsafe { (&raw const (*self.attr.get()).probability).read_volatile() != 0 }
    }

    /// Returns whether the caller must simulate a failure.
    ///
    /// `size` is subtracted from the attribute `space`, and nothing fails before that is used up.
    /// May be called in any context.
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
