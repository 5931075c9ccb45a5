// SPDX-License-Identifier: GPL-2.0

//! Rate limits, for example for messages that user space or a guest can provoke.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use crate::{
    prelude::*,
    types::Opaque, //
};

/// A limit on how often something may happen, such as a message.
///
/// # Examples
///
/// ```
/// use kernel::ratelimit::RateLimit;
///
/// // At most 2 times in 5 seconds.
/// let interval = kernel::time::msecs_to_jiffies(5000);
/// let limit = KBox::pin_init(RateLimit::new(interval, 2), GFP_KERNEL)?;
///
/// assert!(limit.allows(c"example"));
/// assert!(limit.allows(c"example"));
/// assert!(!limit.allows(c"example"));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `inner` is initialized.
#[pin_data]
pub struct RateLimit {
    #[pin]
    inner: Opaque<bindings::ratelimit_state>,
}

// SAFETY: The C struct is not tied to a thread.
unsafe impl Send for RateLimit {}

// SAFETY: The C struct has a lock against concurrent use.
unsafe impl Sync for RateLimit {}

impl RateLimit {
    /// Creates a limit of `burst` times in `interval` jiffies.
    ///
    /// An `interval` of 0 means no limit. Values that do not fit are reduced to the
    /// maximum.
    pub fn new(interval: crate::time::Jiffies, burst: u32) -> impl PinInit<Self> {
        let interval = c_int::try_from(interval).unwrap_or(c_int::MAX);
        let burst = c_int::try_from(burst).unwrap_or(c_int::MAX);

        pin_init!(Self {
            // INVARIANT: `inner` is initialized here.
            // SAFETY: The pointer is valid and pinned.
            inner <- Opaque::ffi_init(|state| unsafe {
                bindings::ratelimit_state_init(state, interval, burst)
            }),
        })
    }

    /// Creates the limit that C's `*_ratelimited()` messages have: 10 times in 5 seconds.
    pub fn default_for_messages() -> impl PinInit<Self> {
        Self::new(
            crate::time::msecs_to_jiffies(5000),
            bindings::DEFAULT_RATELIMIT_BURST,
        )
    }

    /// Returns whether the limit allows it now. If so, counts it.
    ///
    /// At the end of an interval, a message with `name` in the kernel's log says how often it was
    /// not allowed. May be called in any context.
    pub fn allows(&self, name: &CStr) -> bool {
        // SAFETY: By the type invariant, and `name` is a valid C string.
        unsafe { bindings::ratelimit(self.inner.get(), name.as_char_ptr()) }
    }
}
