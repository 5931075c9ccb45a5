// SPDX-License-Identifier: GPL-2.0

//! Random numbers for the KUnit tests of the command queue, the same each time.

/// Random numbers that depend on nothing but a seed: xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    /// Starts a sequence of its own for each seed.
    pub(crate) fn new(seed: u64) -> Self {
        // The state must not be zero, and seeds that are small would begin alike.
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number from 0 up to but not including `end`, which must not be 0.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        // CAST: Less than `end`.
        ((bits * u64::from(end)) >> 32) as u32
    }

    /// True once in `n` times, or never if `n` is 0.
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        n != 0 && self.below(n) == 0
    }
}
