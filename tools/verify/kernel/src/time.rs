// SPDX-License-Identifier: GPL-2.0

//! Time.

use core::{
    marker::PhantomData,
    ops::{Add, Sub},
};
use std::sync::OnceLock;

/// A span of time in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delta(i64);

impl Delta {
    pub const ZERO: Self = Self(0);

    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub const fn from_micros(micros: i64) -> Self {
        Self(micros * 1_000)
    }

    pub const fn from_millis(millis: i64) -> Self {
        Self(millis * 1_000_000)
    }

    pub const fn from_secs(secs: i64) -> Self {
        Self(secs * 1_000_000_000)
    }

    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    pub fn is_negative(self) -> bool {
        self.0 < 0
    }
}

impl Add for Delta {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sub for Delta {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

pub struct Monotonic;

/// A point of time in nanoseconds.
pub struct Instant<C>(i64, PhantomData<C>);

impl<C> Instant<C> {
    /// Of a model's own clock.
    pub fn from_nanos(nanos: i64) -> Self {
        Self(nanos, PhantomData)
    }

    pub fn now() -> Self {
        static START: OnceLock<std::time::Instant> = OnceLock::new();

        Self::from_nanos(
            START
                .get_or_init(std::time::Instant::now)
                .elapsed()
                .as_nanos() as i64,
        )
    }

    pub fn elapsed(&self) -> Delta {
        Self::now() - *self
    }
}

impl<C> Clone for Instant<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Instant<C> {}

impl<C> PartialEq for Instant<C> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<C> PartialOrd for Instant<C> {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        self.0.partial_cmp(&other.0)
    }
}

impl<C> Sub for Instant<C> {
    type Output = Delta;

    fn sub(self, other: Self) -> Delta {
        Delta(self.0 - other.0)
    }
}

impl<C> Add<Delta> for Instant<C> {
    type Output = Self;

    fn add(self, delta: Delta) -> Self {
        Self::from_nanos(self.0 + delta.0)
    }
}
