// SPDX-License-Identifier: GPL-2.0

//! Limits on how often something may happen, such as messages that somebody else can provoke.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use crate::{
    prelude::*,
    types::Opaque, //
};

/// A limit on how often something may happen.
///
/// # Examples
///
/// ```
/// use kernel::ratelimit::RateLimit;
///
/// // 2 times in 5 seconds.
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
/// The struct is initialized.
#[pin_data]
pub struct RateLimit {
    #[pin]
    inner: Opaque<bindings::ratelimit_state>,
}

// SAFETY: The C struct belongs to no thread.
unsafe impl Send for RateLimit {}

// SAFETY: The C struct has a lock for those who use it at the same time.
unsafe impl Sync for RateLimit {}

impl RateLimit {
    /// Allows for `burst` times in any `interval` jiffies.
    pub fn new(interval: crate::time::Jiffies, burst: u32) -> impl PinInit<Self> {
        // More than what fits is no limit in practice.
        let interval = c_int::try_from(interval).unwrap_or(c_int::MAX);
        let burst = c_int::try_from(burst).unwrap_or(c_int::MAX);

        pin_init!(Self {
            // INVARIANT: It is initialized here.
            // SAFETY: The pointer is valid and pinned.
            inner <- Opaque::ffi_init(|state| unsafe {
                bindings::ratelimit_state_init(state, interval, burst)
            }),
        })
    }

    /// Allows for as often as the kernel's own `*_ratelimited()` messages: 10 times in 5 seconds.
    pub fn default_for_messages() -> impl PinInit<Self> {
        Self::new(
            crate::time::msecs_to_jiffies(5000),
            bindings::DEFAULT_RATELIMIT_BURST,
        )
    }

    /// Whether it may happen now. If so, it counts as having happened.
    ///
    /// Once in a while the kernel's log tells how often it was not allowed for, with `name`. May be
    /// called in any context.
    pub fn allows(&self, name: &CStr) -> bool {
        // SAFETY: By the type invariant, and `name` is a C string.
        unsafe { bindings::ratelimit(self.inner.get(), name.as_char_ptr()) }
    }
}
