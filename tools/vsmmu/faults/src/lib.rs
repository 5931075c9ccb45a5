// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What programs have in common that try invalidations, with an SMMU that fails on demand or without:
//! VMs with a device each, and the way to the emulator.

pub mod control;
pub mod vm;
