// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue against the model of `tests/model`, with cases that libFuzzer chooses.

#![no_main]

#[path = "../../tests/model/bench.rs"]
mod bench;
#[path = "../../tests/model/host.rs"]
mod host;
#[path = "../../tests/model/smmu.rs"]
mod smmu;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|case: bench::Case| case.run());
