// SPDX-License-Identifier: GPL-2.0

//! A kernel raw spinlock.
//!
//! C header: [`include/linux/spinlock.h`](srctree/include/linux/spinlock.h)

use super::{
    Backend,
    Guard,
    Lock, //
};

/// Creates a [`RawSpinLockIrq`] initialiser with the given name and a newly-created lock class.
///
/// It uses the name if one is given, otherwise it generates one based on the file name and line
/// number.
#[macro_export]
macro_rules! new_raw_spinlock_irq {
    ($inner:expr $(, $name:literal)? $(,)?) => {
        $crate::sync::lock::raw_spinlock::RawSpinLockIrq::new(
            $inner, $crate::optional_name!($($name)?), $crate::static_lock_class!())
    };
}
pub use new_raw_spinlock_irq;

/// A spinlock that spins on all kernels, with interrupts disabled.
///
/// Exposes the kernel's [`raw_spinlock_t`]. It differs from [`SpinLockIrq`] on real-time kernels
/// only, where that one sleeps, and so cannot be taken where this one can: in any context but an
/// NMI. Sections in which it is held have to be short, as they add to the latency of interrupts.
///
/// # Examples
///
/// ```
/// use kernel::sync::lock::raw_spinlock::{
///     new_raw_spinlock_irq,
///     RawSpinLockIrq, //
/// };
///
/// #[pin_data]
/// struct Example {
///     #[pin]
///     count: RawSpinLockIrq<u32>,
/// }
///
/// let example = KBox::pin_init(
///     pin_init!(Example {
///         count <- new_raw_spinlock_irq!(0),
///     }),
///     GFP_KERNEL,
/// )?;
///
/// *example.count.lock() += 1;
///
/// let count = example.count.lock();
/// assert_eq!(*count, 1);
/// # Ok::<(), Error>(())
/// ```
///
/// [`raw_spinlock_t`]: srctree/include/linux/spinlock_types_raw.h
/// [`SpinLockIrq`]: crate::sync::SpinLockIrq
pub type RawSpinLockIrq<T> = Lock<T, RawSpinLockIrqBackend>;

/// A [`Guard`] of a [`RawSpinLockIrq`].
///
/// When it is dropped, the lock is released, and interrupts are enabled again unless they were
/// disabled before.
pub type RawSpinLockIrqGuard<'a, T> = Guard<'a, T, RawSpinLockIrqBackend>;

/// A kernel `raw_spinlock_t` lock backend that disables interrupts.
pub struct RawSpinLockIrqBackend;

// SAFETY: The underlying kernel `raw_spinlock_t` object ensures mutual exclusion. `relock` uses the
// default implementation that always calls the same locking method.
unsafe impl Backend for RawSpinLockIrqBackend {
    type State = bindings::raw_spinlock_t;
    type GuardState = ();

    #[inline]
    unsafe fn init(
        ptr: *mut Self::State,
        name: *const crate::ffi::c_char,
        key: *mut bindings::lock_class_key,
    ) {
        // SAFETY: The safety requirements ensure that `ptr` is valid for writes, and `name` and
        // `key` are valid for read indefinitely.
        unsafe { bindings::raw_spin_lock_init(ptr, name, key) }
    }

    #[inline]
    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: The safety requirements ensure that `ptr` has been initialised.
        unsafe { bindings::raw_spin_lock_irq_disable(ptr) }
    }

    #[inline]
    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        // SAFETY: The safety requirements ensure that `ptr` has been initialised.
        let locked = unsafe { bindings::raw_spin_trylock_irq_disable(ptr) };

        (locked != 0).then_some(())
    }

    #[inline]
    unsafe fn unlock(ptr: *mut Self::State, _guard_state: &Self::GuardState) {
        // SAFETY: The safety requirements ensure that `ptr` has been initialised, and that the
        // caller is the owner of the lock.
        unsafe { bindings::raw_spin_unlock_irq_enable(ptr) }
    }

    #[inline]
    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: The safety requirements ensure that `ptr` has been initialised.
        unsafe { bindings::raw_spin_assert_is_held(ptr) }
    }
}
