// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is tried.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::bench::{Act, Case, Forged, Pace};
use crate::host::Trouble;
use crate::smmu::{Fate, Kind};

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        4 => Just(Fate::Ok),
        1 => Just(Fate::Ill),
        1 => Just(Fate::Abt),
        2 => Just(Fate::Timeout),
        1 => Just(Fate::Later),
    ];
    prop_oneof![5 => Just(Vec::new()), 1 => vec(fate, 1..4)]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        12 => Just(Kind::Tlbi),
        6 => Just(Kind::Atc),
        1 => Just(Kind::Own),
        8 => (0_u8..3).prop_map(Kind::Sync),
        1 => prop_oneof![Just(Kind::Unknown), Just(Kind::Secure), Just(Kind::Sync(3))],
    ]
}

/// More than is read together.
fn long() -> impl Strategy<Value = Vec<(Kind, Vec<Fate>)>> {
    let rarely = prop_oneof![30 => Just(Vec::new()), 1 => fates()];
    let kind = prop_oneof![
        6 => Just(Kind::Tlbi),
        6 => Just(Kind::Atc),
        1 => Just(Kind::Sync(0)),
    ];
    vec((kind, rarely), 60..256)
}

fn max_batch() -> impl Strategy<Value = u32> {
    prop_oneof![0_u32..80, Just(4096)]
}

/// One that can be more often than one that cannot.
fn forged() -> impl Strategy<Value = Forged> {
    let version = prop_oneof![15 => Just(0), 1 => any::<u32>()];
    let cmdqs = prop_oneof![15 => Just(0), 1 => any::<u8>()];
    let base = prop_oneof![15 => (0_u64..0x400, 0_u64..10).prop_map(|(place, log2size)| place << 5 | log2size), 1 => any::<u64>()];
    let prod = prop_oneof![15 => 0_u32..1 << 20, 1 => any::<u32>()];
    let cons = prop_oneof![
        15 => (0_u32..4, 0_u32..1 << 20).prop_map(|(err, rd)| err << 24 | rd),
        1 => any::<u32>(),
    ];
    (version, cmdqs, base, prod, cons, any::<u8>()).prop_map(
        |(version, cmdqs, base, prod, cons, flags)| Forged {
            version,
            cmdqs,
            base,
            prod,
            cons,
            flags,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        16 => vec((kind(), fates()), 1..40).prop_map(Act::Push),
        2 => long().prop_map(Act::Push),
        1 => any::<u32>().prop_map(Act::Prod),
        1 => Just(Act::GiveUp),
        6 => Just(Act::Ack),
        1 => any::<u32>().prop_map(Act::Gerrorn),
        4 => Just(Act::Skip),
        2 => any::<bool>().prop_map(Act::Enable),
        2 => (any::<u8>(), any::<u8>(), any::<u32>())
            .prop_map(|(base, log2size, start)| Act::Setup { base, log2size, start }),
        1 => (any::<u64>(), any::<u32>()).prop_map(|(base, cons)| Act::Meddle { base, cons }),
        1 => Just(Act::Reset),
        1 => max_batch().prop_map(|max_batch| Act::Migrate { max_batch }),
        1 => Just(Act::Restore),
        1 => forged().prop_map(Act::Forge),
        1 => Just(Act::LateAnswer),
    ]
}

fn pace() -> impl Strategy<Value = Pace> {
    prop_oneof![
        1 => Just(Pace::Nothing),
        2 => Just(Pace::Step),
        3 => Just(Pace::Ioctl),
        3 => Just(Pace::Finish),
    ]
}

fn troubles() -> impl Strategy<Value = Vec<Option<Trouble>>> {
    let trouble = (any::<u8>(), any::<u8>());
    let trouble = trouble.prop_map(|(errno, percent)| Trouble { errno, percent });
    prop_oneof![
        Just(Vec::new()),
        vec(proptest::option::weighted(0.3, trouble), 0..40)
    ]
}

pub fn case() -> impl Strategy<Value = Case> {
    let acts = vec((act(), pace()), 1..60);
    (any::<bool>(), max_batch(), troubles(), acts).prop_map(|(exact, max_batch, troubles, acts)| {
        Case {
            exact,
            max_batch,
            troubles,
            acts,
        }
    })
}
