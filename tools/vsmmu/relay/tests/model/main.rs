// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue against a model of the architecture: whatever a guest does, whenever it does it, and whatever
//! the host's kernel answers, the guest sees what an SMMU would have shown it, and what it sees as complete
//! is complete.

mod acts;
mod bench;
mod host;
mod smmu;

use proptest::prelude::*;

proptest! {
    // PROPTEST_CASES=n has it try more than 256.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_an_smmu(case in acts::case()) {
        case.run();
    }
}
