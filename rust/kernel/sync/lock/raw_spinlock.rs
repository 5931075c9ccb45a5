// SPDX-License-Identifier: GPL-2.0

//! A kernel raw spinlock.
//!
//! This module allows Rust code to use the kernel's `raw_spinlock_t`.
//!
//! C header: [`include/linux/spinlock.h`](srctree/include/linux/spinlock.h)

use super::{
    Backend,
    Guard,
    Lock, //
};
use crate::{
    interrupt::LocalInterruptDisabled,
    prelude::*, //
};

/// A spinlock that never sleeps.
///
/// Exposes the kernel's [`raw_spinlock_t`]. It differs from [`SpinLock`] on real-time kernels only,
/// where that one sleeps. The interrupt state is not changed. Data that an interrupt handler uses
/// as well needs a [`RawSpinLockIrq`].
///
/// [`raw_spinlock_t`]: srctree/include/linux/spinlock_types_raw.h
/// [`SpinLock`]: crate::sync::SpinLock
pub type RawSpinLock<T> = Lock<T, RawSpinLockBackend>;

/// A [`Guard`] acquired from locking a [`RawSpinLock`], or a [`RawSpinLockIrq`] by [`lock_with()`].
///
/// The lock is released when the guard is dropped.
///
/// [`lock_with()`]: RawSpinLockIrq::lock_with
pub type RawSpinLockGuard<'a, T> = Guard<'a, T, RawSpinLockBackend>;

/// A kernel `raw_spinlock_t` lock backend.
pub struct RawSpinLockBackend;

// SAFETY: The underlying kernel `raw_spinlock_t` object ensures mutual exclusion. `relock` uses the
// default implementation that always calls the same locking method.
unsafe impl Backend for RawSpinLockBackend {
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
        unsafe { bindings::raw_spin_lock(ptr) }
    }

    #[inline]
    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        // SAFETY: The safety requirements ensure that `ptr` has been initialised.
        let locked = unsafe { bindings::raw_spin_trylock(ptr) };

        (locked != 0).then_some(())
    }

    #[inline]
    unsafe fn unlock(ptr: *mut Self::State, _guard_state: &Self::GuardState) {
        // SAFETY: The safety requirements ensure that `ptr` has been initialised, and that the
        // caller is the owner of the lock.
        unsafe { bindings::raw_spin_unlock(ptr) }
    }

    #[inline]
    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: The safety requirements ensure that `ptr` has been initialised.
        unsafe { bindings::raw_spin_assert_is_held(ptr) }
    }
}

/// Creates a [`RawSpinLockIrq`] initialiser with the given name and a newly-created lock class.
///
/// It uses the name if one is given, otherwise it generates one based on the file name and line
/// number.
#[macro_export]
macro_rules! new_raw_spinlock_irq {
    ($inner:expr $(, $name:literal)? $(,)?) => {
        $crate::sync::RawSpinLockIrq::new(
            $inner, $crate::optional_name!($($name)?), $crate::static_lock_class!())
    };
}
pub use new_raw_spinlock_irq;

/// A spinlock that never sleeps, and ensures that interrupts are disabled in the critical section.
///
/// Exposes the kernel's [`raw_spinlock_t`]. It differs from [`SpinLockIrq`] on real-time kernels
/// only, where that one sleeps and does not disable interrupts. Critical sections must be short, as
/// they add to the latency of interrupts. The lock may be acquired in any context except an NMI.
///
/// As with [`SpinLockIrq`], there are two ways to acquire it:
///
/// - [`lock()`] disables local interrupts for as long as the [`RawSpinLockIrqGuard`] exists.
/// - [`lock_with()`] takes a [`LocalInterruptDisabled`] token as proof that local interrupts are
///   disabled already, and leaves them as they are. This is cheaper.
///
/// # Examples
///
/// ```
/// use kernel::{
///     interrupt::{
///         local_interrupt_disable,
///         LocalInterruptDisabled, //
///     },
///     sync::{
///         new_raw_spinlock_irq,
///         RawSpinLockIrq, //
///     }, //
/// };
///
/// #[pin_data]
/// struct Example {
///     #[pin]
///     count: RawSpinLockIrq<u32>,
/// }
///
/// impl Example {
///     fn new() -> impl PinInit<Self> {
///         pin_init!(Self {
///             count <- new_raw_spinlock_irq!(0),
///         })
///     }
///
///     /// For callers that may have interrupts enabled.
///     fn increment(&self) {
///         *self.count.lock() += 1;
///     }
///
///     /// For callers that have disabled interrupts.
///     fn increment_with(&self, irq: &LocalInterruptDisabled) {
///         *self.count.lock_with(irq) += 1;
///     }
/// }
///
/// let example = KBox::pin_init(Example::new(), GFP_KERNEL)?;
///
/// example.increment();
///
/// let irq = local_interrupt_disable();
/// example.increment_with(&irq);
/// drop(irq);
///
/// assert_eq!(*example.count.lock(), 2);
/// # Ok::<(), Error>(())
/// ```
///
/// [`raw_spinlock_t`]: srctree/include/linux/spinlock_types_raw.h
/// [`SpinLockIrq`]: crate::sync::SpinLockIrq
/// [`lock()`]: RawSpinLockIrq::lock
/// [`lock_with()`]: RawSpinLockIrq::lock_with
pub type RawSpinLockIrq<T> = Lock<T, RawSpinLockIrqBackend>;

/// A [`Guard`] acquired from locking a [`RawSpinLockIrq`] using [`lock()`].
///
/// When the guard is dropped, the lock is released, and local interrupts are enabled again unless
/// something else keeps them disabled.
///
/// [`lock()`]: RawSpinLockIrq::lock
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

impl<T: ?Sized> Lock<T, RawSpinLockIrqBackend> {
    /// Casts the lock to a [`RawSpinLock`].
    #[inline]
    fn as_lock_in_interrupt<'a>(
        &'a self,
        _context: &'a LocalInterruptDisabled,
    ) -> &'a RawSpinLock<T> {
        // SAFETY:
        // - Both types have the same layout, as both backends have the same `State`.
        // - `_context` is proof that local interrupts are disabled for `'a`, so the lock needs not
        //   do that.
        unsafe { core::mem::transmute(self) }
    }

    /// Acquires the lock without changing the local interrupt state.
    ///
    /// Use this instead of the more expensive [`Lock::lock()`] where there is a token.
    #[inline]
    pub fn lock_with<'a>(&'a self, context: &'a LocalInterruptDisabled) -> RawSpinLockGuard<'a, T> {
        self.as_lock_in_interrupt(context).lock()
    }

    /// Tries to acquire the lock without changing the local interrupt state.
    ///
    /// Use this instead of the more expensive [`Lock::try_lock()`] where there is a token.
    ///
    /// Returns a guard that can be used to access the data protected by the lock if successful.
    #[must_use = "if unused, the lock will be immediately unlocked"]
    #[inline]
    pub fn try_lock_with<'a>(
        &'a self,
        context: &'a LocalInterruptDisabled,
    ) -> Option<RawSpinLockGuard<'a, T>> {
        self.as_lock_in_interrupt(context).try_lock()
    }
}

#[kunit_tests(rust_raw_spinlock_irq)]
mod tests {
    use crate::interrupt::local_interrupt_disable;
    use pin_init::stack_pin_init;

    fn irqs_disabled() -> bool {
        // SAFETY: Always safe to call.
        unsafe { bindings::irqs_disabled() }
    }

    /// Interrupts are disabled from the first guard to the last, in any order of dropping them.
    #[test]
    fn lock_disables_interrupts() {
        stack_pin_init!(let first = new_raw_spinlock_irq!(1));
        stack_pin_init!(let second = new_raw_spinlock_irq!(2));
        assert!(!irqs_disabled());

        let first = first.lock();
        assert!(irqs_disabled());
        let second = second.lock();
        assert_eq!((*first, *second), (1, 2));

        drop(first);
        assert!(irqs_disabled());
        drop(second);
        assert!(!irqs_disabled());
    }

    /// An attempt that fails leaves the interrupts as they were.
    #[test]
    fn try_lock() {
        stack_pin_init!(let lock = new_raw_spinlock_irq!(()));

        let guard = lock.try_lock();
        assert!(guard.is_some());
        assert!(irqs_disabled());
        // Only a lock that is aware of other CPUs can be seen to be held.
        if cfg!(CONFIG_SMP) {
            assert!(lock.try_lock().is_none());
            assert!(irqs_disabled());
        }
        drop(guard);
        assert!(!irqs_disabled());
    }

    /// With a token, it is the token alone that keeps interrupts disabled.
    #[test]
    fn lock_with_token() {
        stack_pin_init!(let lock = new_raw_spinlock_irq!(1));

        let irq = local_interrupt_disable();
        let mut guard = lock.lock_with(&irq);
        *guard += 1;
        // Both ways to acquire it mean the same lock.
        if cfg!(CONFIG_SMP) {
            assert!(lock.try_lock().is_none());
            assert!(lock.try_lock_with(&irq).is_none());
        }
        drop(guard);
        assert!(irqs_disabled());

        assert_eq!(lock.try_lock_with(&irq).as_deref(), Some(&2));
        assert!(irqs_disabled());

        assert_eq!(*lock.lock(), 2);
        assert!(irqs_disabled());

        drop(irq);
        assert!(!irqs_disabled());
        assert!(lock.try_lock().is_some());
    }
}
