// SPDX-License-Identifier: GPL-2.0

//! Memory, of which there is always enough.

use core::{
    ops::{Deref, DerefMut},
    pin::Pin,
};

use crate::{
    error::{Error, Result},
    init::PinInit,
};

#[derive(Clone, Copy)]
pub struct Flags;

pub const GFP_KERNEL: Flags = Flags;

pub struct KVVec<T>(Vec<T>);

impl<T> KVVec<T> {
    pub fn with_capacity(len: usize, _: Flags) -> Result<Self> {
        Ok(Self(Vec::with_capacity(len)))
    }

    pub fn push(&mut self, value: T, _: Flags) -> Result {
        self.0.push(value);
        Ok(())
    }
}

impl<T> Deref for KVVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for KVVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

pub struct KBox<T>(Box<T>);

impl<T> KBox<T> {
    pub fn pin_init<E>(init: impl PinInit<T, E>, _: Flags) -> Result<Pin<Self>>
    where
        Error: From<E>,
    {
        let value = Self(Box::new(init.build()?));
        // SAFETY: Nobody gets at what is in the box but by the pin.
        Ok(unsafe { Pin::new_unchecked(value) })
    }
}

impl<T> Deref for KBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
