// SPDX-License-Identifier: GPL-2.0

//! As much of the `kernel` crate as the checked files need. The difficult part of what the sanitiser
//! needs is the kernel's own source, compiled from where it lies. The rest is here, with the names
//! that it has there.

#![allow(clippy::all, missing_docs)]
// Where those files are included from is no concern of theirs.
#![allow(
    macro_expanded_macro_exports_accessed_by_absolute_paths,
    unused_imports
)]

// The kernel's files call their own crate so, and expect another one of this name.
extern crate self as build_error;
extern crate self as kernel;

include!(concat!(env!("OUT_DIR"), "/mod.rs"));

pub mod alloc;
pub mod init;
pub mod sync;
pub mod time;

pub mod macros {
    //! Macros of the kernel that crates.io has as well.
    pub use paste::paste;
}

pub mod error {
    //! Errors: those that the checked files name.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Error(&'static str);
    pub type Result<T = (), E = Error> = core::result::Result<T, E>;
    pub mod code {
        use super::Error;
        pub const EINVAL: Error = Error("EINVAL");
        pub const ENOMEM: Error = Error("ENOMEM");
        pub const EOVERFLOW: Error = Error("EOVERFLOW");
    }

    impl From<core::convert::Infallible> for Error {
        fn from(never: core::convert::Infallible) -> Self {
            match never {}
        }
    }
}

pub use core::fmt;

pub mod prelude {
    //! What the checked files use without naming it.
    pub use crate::{
        alloc::{KBox, KVVec, GFP_KERNEL},
        build_assert::{build_assert, build_error, const_assert, static_assert},
        error::{code::*, Error, Result},
        init::PinInit,
        pin_init, try_pin_init, Zeroable,
    };
    pub use core::{format_args as fmt, pin::Pin};
    pub use kernel_macros::{kunit_tests, pin_data};
}

pub mod interrupt {
    //! A CPU is a thread, and an interrupt is another one.
    pub struct LocalInterruptDisabled;

    impl Drop for LocalInterruptDisabled {
        fn drop(&mut self) {}
    }

    pub fn local_interrupt_disable() -> LocalInterruptDisabled {
        LocalInterruptDisabled
    }
}

pub mod processor {
    //! The CPU.
    pub fn cpu_relax() {
        crate::sync::thread::yield_now();
    }
}

pub mod cpu {
    //! A thread is a CPU of its own.
    #[cfg(not(feature = "loom"))]
    const MAX: u32 = 64;
    /// What loom has, at most.
    #[cfg(feature = "loom")]
    const MAX: u32 = loom::MAX_THREADS as u32;

    pub fn nr_cpu_ids() -> u32 {
        MAX
    }

    pub struct CpuId(u32);

    impl CpuId {
        #[cfg(feature = "shuttle")]
        pub fn current() -> Self {
            Self(usize::from(shuttle::current::me()) as u32)
        }

        #[cfg(not(feature = "shuttle"))]
        pub fn current() -> Self {
            USED.with(|used| Self(used.0))
        }

        pub fn as_u32(&self) -> u32 {
            self.0
        }
    }

    #[cfg(not(feature = "shuttle"))]
    use used::USED;

    #[cfg(feature = "loom")]
    mod used {
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

        /// The number of a thread.
        pub struct Used(pub u32);

        // Of one execution.
        loom::lazy_static! {
            static ref NEXT: AtomicU32 = AtomicU32::new(0);
        }

        loom::thread_local! {
            pub static USED: Used = Used(NEXT.fetch_add(1, Relaxed));
        }
    }

    #[cfg(not(any(feature = "shuttle", feature = "loom")))]
    mod used {
        use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

        /// A bit for each number that a thread has.
        static ALL: AtomicU64 = AtomicU64::new(0);

        /// The number of a thread, for as long as that lives.
        pub struct Used(pub u32);

        thread_local! {
            pub static USED: Used = {
                let lowest = |all: u64| all | all.wrapping_add(1);
                let before = ALL.update(Relaxed, Relaxed, lowest);
                assert_ne!(before, u64::MAX, "there are no more than {} threads", super::MAX);
                Used(before.trailing_ones())
            };
        }

        impl Drop for Used {
            fn drop(&mut self) {
                ALL.fetch_and(!(1 << self.0), Relaxed);
            }
        }
    }
}

pub mod task {
    //! Scheduling.
    pub fn cond_resched() {
        crate::sync::thread::yield_now();
    }
}

pub mod kunit {
    //! The log of the tests.
    pub fn err(args: core::fmt::Arguments<'_>) {
        eprint!("{args}");
    }
}

pub mod bindings {
    //! Of C.
    #[allow(non_upper_case_globals)]
    pub static mut system_dfl_wq: crate::workqueue::Queue = crate::workqueue::Queue;
}

pub mod workqueue {
    //! Threads.
    pub struct Queue;

    impl Queue {
        /// # Safety
        ///
        /// None.
        pub unsafe fn from_raw(_: Queue) -> &'static Self {
            &Queue
        }

        pub fn try_spawn(
            &self,
            _: crate::alloc::Flags,
            f: impl FnOnce() + Send + 'static,
        ) -> crate::error::Result {
            std::thread::spawn(f);
            Ok(())
        }
    }

    impl Clone for Queue {
        fn clone(&self) -> Self {
            *self
        }
    }

    impl Copy for Queue {}
}

/// The trait of the `pin_init` crate.
///
/// # Safety
///
/// All bits zero must be a valid value.
pub unsafe trait Zeroable: Sized {
    /// All bits zero.
    fn zeroed() -> Self {
        // SAFETY: By the requirement of the trait.
        unsafe { core::mem::zeroed() }
    }
}

/// A check at build time that the compiler could not decide. In the kernel, such code does not link.
#[doc(hidden)]
pub const fn build_error(message: &str) -> ! {
    panic!("{}", message)
}
