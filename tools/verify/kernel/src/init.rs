// SPDX-License-Identifier: GPL-2.0

//! The macros of the `pin_init` crate, for values that may be moved after all.

use core::convert::Infallible;

/// Something that makes a value.
pub trait PinInit<T, E = Infallible> {
    fn build(self) -> Result<T, E>;
}

pub struct Init<F>(pub F);

impl<T, E, F: FnOnce() -> Result<T, E>> PinInit<T, E> for Init<F> {
    fn build(self) -> Result<T, E> {
        (self.0)()
    }
}

#[macro_export]
macro_rules! pin_init {
    ($type:ident { $($fields:tt)* }) => {
        $crate::try_pin_init!($type { $($fields)* }? ::core::convert::Infallible)
    };
}

#[macro_export]
macro_rules! try_pin_init {
    ($type:ident { $($fields:tt)* }? $error:ty) => {
        $crate::init::Init(move || -> ::core::result::Result<$type, $error> {
            $crate::build_fields!($type [] $($fields)*)
        })
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! build_fields {
    ($type:ident [$($done:tt)*]) => {
        Ok($type { $($done)* })
    };
    ($type:ident [$($done:tt)*] $name:ident <- $init:expr, $($rest:tt)*) => {
        $crate::build_fields!($type [$($done)* $name: $crate::init::PinInit::build($init)?,] $($rest)*)
    };
    ($type:ident [$($done:tt)*] $name:ident: $value:expr, $($rest:tt)*) => {
        $crate::build_fields!($type [$($done)* $name: $value,] $($rest)*)
    };
    ($type:ident [$($done:tt)*] $name:ident, $($rest:tt)*) => {
        $crate::build_fields!($type [$($done)* $name,] $($rest)*)
    };
}
