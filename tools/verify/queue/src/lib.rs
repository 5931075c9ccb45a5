// SPDX-License-Identifier: GPL-2.0

//! The command queue in user space: the very files that the kernel compiles, with their KUnit tests,
//! and with a small SMMU and a list of scenarios for model checkers.

// The macros of the kernel's files expect a crate of this name.
extern crate kernel as pin_init;

include!(concat!(env!("OUT_DIR"), "/driver.rs"));

mod facts;
#[cfg(feature = "loom")]
pub mod orders;
pub mod scenarios;
mod smmu;
