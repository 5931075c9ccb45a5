// SPDX-License-Identifier: GPL-2.0

//! A libFuzzer target: blocks of a guest's commands. `scripts/test/verify.sh` builds it, without
//! cargo-fuzz, which needs a nightly compiler.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use verify_sanitiser::{check_block, spec::Spec, Question};

static SMMUS: LazyLock<Vec<(Question, Spec)>> = LazyLock::new(|| {
    let sets = Question::feature_sets().into_iter();
    sets.map(|set| (set, Spec::new(&set))).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((&[smmu0, smmu1, found, vmid0, vmid1, ref sid @ ..], block)) =
        data.split_first_chunk::<9>()
    else {
        return;
    };
    let (set, spec) = &SMMUS[usize::from(u16::from_le_bytes([smmu0, smmu1])) % SMMUS.len()];
    let question = Question {
        found: found & 1 != 0,
        vmid: u16::from_le_bytes([vmid0, vmid1]),
        sid: u32::from_le_bytes(*sid),
        ..*set
    };
    let (words, _) = block.as_chunks::<8>();
    let (commands, _) = words.as_chunks::<2>();
    let block: Vec<[u64; 2]> = commands
        .iter()
        .map(|words| words.map(u64::from_le_bytes))
        .collect();

    if let Err(difference) = check_block(spec, &question, &block) {
        panic!("{difference}");
    }
});
