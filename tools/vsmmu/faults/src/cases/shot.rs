// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One call, and what is expected of it.

use super::*;

impl Shot {
    /// The call succeeds, and quickly.
    pub(super) fn new(on: On, commands: Vec<Command>) -> Self {
        let want = Want {
            errno: 0,
            num: Num::Is(commands.len()),
            code: ErrorCode::None,
        };
        Shot {
            on,
            commands,
            rules: Vec::new(),
            want,
            raised: Raised::default(),
            time: (Duration::ZERO, QUICK),
            dma: None,
            atc_invs: 0,
            linger: Duration::ZERO,
            calm: false,
        }
    }

    pub(super) fn tlbis(n: usize) -> Self {
        Self::new(On::Edu, array(n, tlbi))
    }

    pub(super) fn atcs(n: usize) -> Self {
        Self::new(On::Net, array(n, atc))
    }

    pub(super) fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    pub(super) fn fails(mut self, k: usize, code: ErrorCode) -> Self {
        self.want = Want {
            errno: libc::EIO,
            num: Num::Is(k),
            code,
        };
        self
    }

    /// `most` entries can be known to be complete.
    pub(super) fn times_out(mut self, most: usize) -> Self {
        self.want = Want {
            errno: libc::ETIMEDOUT,
            num: if most == 0 {
                Num::Is(0)
            } else {
                Num::UpTo(most)
            },
            code: ErrorCode::None,
        };
        self
    }

    pub(super) fn ill(mut self, bounds: Bounds) -> Self {
        self.raised.ill = bounds;
        self
    }

    pub(super) fn abt(mut self, bounds: Bounds) -> Self {
        self.raised.abt = bounds;
        self
    }

    pub(super) fn atc(mut self, bounds: Bounds) -> Self {
        self.raised.atc = bounds;
        self
    }

    pub(super) fn stall(mut self, min: Duration, max: Duration) -> Self {
        self.raised.stalls = times(1);
        self.time = (min, max);
        self
    }

    /// The error does not end: the call is given up, and in the second after it nothing may go round in
    /// circles.
    pub(super) fn lasts(mut self) -> Self {
        self.linger = Duration::from_secs(1);
        self.time = GIVEN_UP;
        self.calm = true;
        self
    }

    /// DMA looks whether the first `k` entries are complete: the first and the last of them are for the
    /// pages that it reads. (Not with a rule for one of the two.)
    pub(super) fn with_dma(mut self, k: usize) -> Self {
        if k > 0 {
            self.commands[0] = Command::tlbi_nh_va(ASID, PAGE_A, false);
        }
        if k > 1 {
            self.commands[k - 1] = Command::tlbi_nh_va(ASID, PAGE_B, false);
        }
        self.dma = Some([k > 0, k > 1]);
        self
    }

    /// The ATC_INV of entry `k` of `n` times out once.
    pub(super) fn atc_once_at(k: usize, n: usize) -> Self {
        let mut shot = Self::atcs(n)
            .rule(at_atc(Kind::AtcInvSync, k))
            .atc(times(1));
        shot.atc_invs = n as u64 + 1;
        shot
    }

    /// CERROR_ILL at entry `k` of `n`.
    pub(super) fn ill_at(k: usize, n: usize) -> Self {
        Self::tlbis(n)
            .rule(at_tlbi(Kind::Ill, k))
            .ill(times(1))
            .fails(k, ErrorCode::Ill)
    }

    /// CERROR_ABT at entry `k` of `n`, twice.
    pub(super) fn abt_at(k: usize, n: usize) -> Self {
        Self::tlbis(n)
            .rule(at_tlbi(Kind::Abt, k).times(2))
            .abt(times(2))
            .fails(k, ErrorCode::Abt)
    }

    /// The ATC_INV of entry `k` of `n` times out whenever it is tried.
    pub(super) fn atc_at(k: usize, n: usize) -> Self {
        Self::atcs(n)
            .rule(at_atc(Kind::AtcInvSync, k).forever())
            .atc(times(2))
            .fails(k, ErrorCode::AtcInvSync)
    }

    pub(super) fn case(self, id: impl Into<String>, what: impl Into<String>) -> Case {
        let (want, on) = (lab::wanted(&self.want), self.on);
        let shots = [self];
        Case::new(id, what, want, move |lab| lab.shoot(&shots)).when(has(on))
    }
}
