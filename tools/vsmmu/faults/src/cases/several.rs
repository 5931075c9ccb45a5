// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several failures in one array.

use super::*;

pub fn rows(cases: &mut Vec<Case>) {
    let ill = || Shot::ill_at(2, 10).with_dma(2);
    cases.push(
        ill()
            .rule(at_tlbi(Kind::Ill, 7))
            .ill(Bounds(1, 2))
            .case("two-ill-ill", "CERROR_ILL at the entries 2 and 7 of 10"),
    );
    cases.push(
        ill()
            .rule(at_tlbi(Kind::Abt, 7).times(2))
            .abt(Bounds(0, 2))
            .case(
                "two-ill-abt",
                "CERROR_ILL at entry 2, CERROR_ABT twice at entry 7",
            ),
    );
    cases.push(
        Shot::abt_at(2, 10)
            .rule(at_tlbi(Kind::Ill, 7))
            .ill(Bounds(0, 1))
            .with_dma(2)
            .case(
                "two-abt-ill",
                "CERROR_ABT twice at entry 2, CERROR_ILL at entry 7",
            ),
    );
    cases.push(
        Shot::ill_at(7, 10)
            .rule(at_tlbi(Kind::Abt, 2))
            .abt(times(1))
            .with_dma(7)
            .case(
                "two-healed-abt-ill",
                "CERROR_ABT once at entry 2, CERROR_ILL at entry 7",
            ),
    );
    cases.push(ill().rule(at_sync(Kind::Ill)).ill(times(2)).case(
        "two-ill-sync",
        "CERROR_ILL at entry 2, and once at a CMD_SYNC",
    ));
    // As the illegal command becomes a CMD_SYNC, that one takes the time-outs of the ATC_INVs before it.
    cases.push(
        Shot::atc_at(2, 10)
            .rule(at_atc(Kind::Ill, 7))
            .ill(Bounds(0, 1))
            .case(
                "two-atc-ill",
                "the ATC_INV of entry 2 times out for ever, CERROR_ILL at entry 7",
            ),
    );
    cases.push(
        Shot::atcs(10)
            .rule(at_atc(Kind::Ill, 2))
            .rule(at_atc(Kind::AtcInvSync, 7).forever())
            .ill(times(1))
            .atc(Bounds(0, 2))
            .fails(2, ErrorCode::Ill)
            .case(
                "two-ill-atc",
                "CERROR_ILL at entry 2, the ATC_INV of entry 7 times out for ever",
            ),
    );
    cases.push(
        Shot::atcs(10)
            .rule(at_atc(Kind::AtcInvSync, 2))
            .rule(at_atc(Kind::Ill, 7))
            .ill(times(1))
            .atc(times(1))
            .fails(7, ErrorCode::Ill)
            .case(
                "two-healed-atc-ill",
                "the ATC_INV of entry 2 times out once, CERROR_ILL at entry 7",
            ),
    );
    cases.push(
        Shot::atc_at(2, 10)
            .rule(at_atc(Kind::Abt, 7).times(2))
            .abt(Bounds(0, 2))
            .case(
                "two-atc-abt",
                "the ATC_INV of entry 2 times out for ever, CERROR_ABT at entry 7",
            ),
    );
    cases.push(sweep(
        "random",
        "300 arrays with up to three failures at random places",
        "as the first says",
        On::Net,
        || {
            let mut random = Random(0x5eed_cafe_f00d_d00d);
            (0..300).map(|_| random_shot(&mut random)).collect()
        },
    ));
}

/// A small generator of numbers, the same ones each time (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

/// TLBIs and ATC_INVs, and failures at up to three of them. The first one that does not heal is the
/// answer.
fn random_shot(random: &mut Random) -> Shot {
    let longest = [LONG, LONG, 10 * LONG][random.below(3)];
    let n = 1 + random.below(longest);
    // Where they are few, there are batches without any.
    let one_in = [2, 2, 200][random.below(3)];
    let is_atc: Vec<bool> = (0..n).map(|_| random.below(one_in) == 0).collect();
    let commands = (0..n).map(|i| if is_atc[i] { atc(i) } else { tlbi(i) });
    let mut shot = Shot::new(On::Net, commands.collect());
    let mut at: Vec<usize> = (0..random.below(4)).map(|_| random.below(n)).collect();
    at.sort();
    at.dedup();
    let mut answered = false;
    for k in at {
        let rule = |kind| {
            if is_atc[k] {
                at_atc(kind, k)
            } else {
                at_tlbi(kind, k)
            }
        };
        // What comes behind the one that is answered may happen or not.
        let some = |n| if answered { Bounds(0, n) } else { times(n) };
        let (rule, fatal) = match random.below(if is_atc[k] { 5 } else { 3 }) {
            0 => {
                shot.raised.ill.add(some(1));
                (rule(Kind::Ill), Some(ErrorCode::Ill))
            }
            1 => {
                shot.raised.abt.add(some(1));
                (rule(Kind::Abt), None)
            }
            2 => {
                shot.raised.abt.add(some(2));
                (rule(Kind::Abt).times(2), Some(ErrorCode::Abt))
            }
            // Two in one batch are one error.
            3 => {
                shot.raised.atc.add(Bounds(0, 1));
                (rule(Kind::AtcInvSync), None)
            }
            _ => {
                shot.raised.atc.add(Bounds(u64::from(!answered), 2));
                (
                    rule(Kind::AtcInvSync).forever(),
                    Some(ErrorCode::AtcInvSync),
                )
            }
        };
        shot.rules.push(rule);
        if let (Some(code), false) = (fatal, answered) {
            shot = shot.fails(k, code);
            answered = true;
        }
    }
    shot
}
