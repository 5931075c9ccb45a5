// SPDX-License-Identifier: GPL-2.0

//! As much of the `kernel` crate as the checked files need. The difficult part is the kernel's own
//! source, compiled from where it lies. The rest is here, with the names that it has there.

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

pub mod macros {
    //! Macros of the kernel that crates.io has as well.
    pub use paste::paste;
}

pub mod error {
    //! Errors: those that the macros name.
    pub struct Error;
    pub type Result<T = (), E = Error> = core::result::Result<T, E>;
    pub mod code {
        pub const EOVERFLOW: super::Error = super::Error;
    }
}

pub use core::fmt;

pub mod prelude {
    //! What the checked files use without naming it.
    pub use crate::{
        build_assert::{build_assert, build_error, const_assert, static_assert},
        error::Result,
        Zeroable,
    };
    pub use core::format_args as fmt;
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
