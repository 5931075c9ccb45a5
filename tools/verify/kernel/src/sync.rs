// SPDX-License-Identifier: GPL-2.0

//! Atomics, barriers, locks and threads: those of the standard library, or of a model checker.

#[cfg(feature = "loom")]
use loom as backend;
#[cfg(all(feature = "shuttle", not(feature = "loom")))]
use shuttle as backend;
#[cfg(not(any(feature = "shuttle", feature = "loom")))]
use std as backend;

/// What a model is made of besides.
pub use self::backend::{
    sync::{Condvar, Mutex, MutexGuard},
    thread,
};

use crate::{
    alloc::Flags,
    error::{Error, Result},
    init::{Init, PinInit},
};

/// Something that is shared.
pub struct Arc<T>(std::sync::Arc<T>);

impl<T> Arc<T> {
    pub fn pin_init<E>(init: impl PinInit<T, E>, _: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        Ok(Self(std::sync::Arc::new(init.build()?)))
    }
}

impl<T> Clone for Arc<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> core::ops::Deref for Arc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Something that others wait for.
pub struct Completion(Mutex<bool>, Condvar);

impl Completion {
    pub fn new() -> impl PinInit<Self> {
        Init(|| Ok(Self(Mutex::new(false), Condvar::new())))
    }

    pub fn complete_all(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    pub fn wait_for_completion(&self) {
        let mut done = self.0.lock().unwrap();
        while !*done {
            done = self.1.wait(done).unwrap();
        }
    }
}

pub mod barrier {
    //! Barriers.
    use super::backend::sync::atomic::{fence, Ordering};

    pub struct Full;
    pub struct Write;

    /// Orders writes to memory before later ones, as the SMMU sees them. There is none in C11 that
    /// orders no more than that.
    pub fn dma_mb(_: Write) {
        fence(Ordering::Release);
    }

    pub fn smp_mb(_: Full) {
        fence(Ordering::SeqCst);
    }
}

pub mod atomic {
    //! Atomics, with the orderings of C11 for those of the kernel.
    use super::backend::sync::atomic as of_backend;
    use std::sync::atomic::Ordering;

    pub struct Relaxed;
    pub struct Acquire;
    pub struct Release;
    pub struct Full;

    /// An ordering of a read, a write, and of both.
    pub trait Order {
        const READ: Ordering = Ordering::SeqCst;
        const WRITE: Ordering = Ordering::SeqCst;
        const BOTH: Ordering;
    }

    impl Order for Relaxed {
        const READ: Ordering = Ordering::Relaxed;
        const WRITE: Ordering = Ordering::Relaxed;
        const BOTH: Ordering = Ordering::Relaxed;
    }

    impl Order for Acquire {
        const READ: Ordering = Ordering::Acquire;
        const BOTH: Ordering = Ordering::Acquire;
    }

    impl Order for Release {
        const WRITE: Ordering = Ordering::Release;
        const BOTH: Ordering = Ordering::Release;
    }

    impl Order for Full {
        const BOTH: Ordering = Ordering::SeqCst;
    }

    /// A type of which there is an atomic one.
    pub trait Value: Copy {
        type Atomic;

        fn new(value: Self) -> Self::Atomic;
        fn load(atomic: &Self::Atomic, order: Ordering) -> Self;
        fn store(atomic: &Self::Atomic, value: Self, order: Ordering);
        fn swap(atomic: &Self::Atomic, value: Self, order: Ordering) -> Self;
        fn cmpxchg(
            atomic: &Self::Atomic,
            old: Self,
            new: Self,
            order: Ordering,
        ) -> Result<Self, Self>;
    }

    /// One that can be added to.
    pub trait Integer: Value {
        fn add(atomic: &Self::Atomic, value: Self, order: Ordering) -> Self;
        fn sub(atomic: &Self::Atomic, value: Self, order: Ordering) -> Self;
        fn and(atomic: &Self::Atomic, value: Self, order: Ordering) -> Self;
    }

    macro_rules! values {
        ($($type:ty: $atomic:ident),*) => { $(
            impl Value for $type {
                type Atomic = of_backend::$atomic;

                fn new(value: Self) -> Self::Atomic {
                    Self::Atomic::new(value)
                }

                fn load(atomic: &Self::Atomic, order: Ordering) -> Self {
                    atomic.load(order)
                }

                fn store(atomic: &Self::Atomic, value: Self, order: Ordering) {
                    atomic.store(value, order)
                }

                fn swap(atomic: &Self::Atomic, value: Self, order: Ordering) -> Self {
                    atomic.swap(value, order)
                }

                fn cmpxchg(
                    atomic: &Self::Atomic,
                    old: Self,
                    new: Self,
                    order: Ordering,
                ) -> Result<Self, Self> {
                    atomic.compare_exchange(old, new, order, Ordering::Relaxed)
                }
            }
        )* };
    }
    values!(bool: AtomicBool, i8: AtomicI8, i64: AtomicI64, u32: AtomicU32, u64: AtomicU64);

    macro_rules! integers {
        ($($type:ty),*) => { $(
            impl Integer for $type {
                fn add(atomic: &Self::Atomic, value: Self, order: Ordering) -> Self {
                    atomic.fetch_add(value, order)
                }

                fn sub(atomic: &Self::Atomic, value: Self, order: Ordering) -> Self {
                    atomic.fetch_sub(value, order)
                }

                fn and(atomic: &Self::Atomic, value: Self, order: Ordering) -> Self {
                    atomic.fetch_and(value, order)
                }
            }
        )* };
    }
    integers!(i64, u32, u64);

    #[repr(transparent)]
    pub struct Atomic<T: Value>(T::Atomic);

    impl<T: Value> Atomic<T> {
        pub fn new(value: T) -> Self {
            Self(T::new(value))
        }

        pub fn load<O: Order>(&self, _: O) -> T {
            T::load(&self.0, O::READ)
        }

        pub fn store<O: Order>(&self, value: T, _: O) {
            T::store(&self.0, value, O::WRITE)
        }

        pub fn xchg<O: Order>(&self, value: T, _: O) -> T {
            T::swap(&self.0, value, O::BOTH)
        }

        pub fn cmpxchg<O: Order>(&self, old: T, new: T, _: O) -> Result<T, T> {
            T::cmpxchg(&self.0, old, new, O::BOTH)
        }
    }

    impl<T: Integer> Atomic<T> {
        pub fn add<O: Order>(&self, value: T, _: O) {
            let _ = T::add(&self.0, value, O::BOTH);
        }

        pub fn fetch_add<O: Order>(&self, value: T, _: O) -> T {
            T::add(&self.0, value, O::BOTH)
        }

        pub fn fetch_sub<O: Order>(&self, value: T, _: O) -> T {
            T::sub(&self.0, value, O::BOTH)
        }

        /// For a model: the kernel has none.
        pub fn fetch_and<O: Order>(&self, value: T, _: O) -> T {
            T::and(&self.0, value, O::BOTH)
        }
    }
}

pub mod lock {
    //! Locks.
    pub mod raw_spinlock {
        //! One that is held with interrupts disabled.
        use super::super::{Mutex, MutexGuard};
        use crate::init::{Init, PinInit};

        pub struct RawSpinLockIrq<T>(Mutex<T>);

        impl<T> RawSpinLockIrq<T> {
            pub fn new(value: T) -> impl PinInit<Self> {
                Init(|| Ok(Self(Mutex::new(value))))
            }

            pub fn lock(&self) -> MutexGuard<'_, T> {
                self.0.lock().unwrap()
            }

            pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
                self.0.try_lock().ok()
            }
        }

        #[macro_export]
        macro_rules! new_raw_spinlock_irq {
            ($value:expr $(, $name:literal)?) => {
                $crate::sync::lock::raw_spinlock::RawSpinLockIrq::new($value)
            };
        }
        pub use new_raw_spinlock_irq;
    }
}
