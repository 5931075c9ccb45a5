// SPDX-License-Identifier: GPL-2.0

//! What the KUnit tests of the command queue have in common.
//!
//! What to expect is written down there in the specification's terms: which slot an error is at,
//! and what it is (Arm IHI 0070, 4.1.2, 4.7.3 and 7.1).

use kernel::{
    prelude::*,
    sync::Arc, //
};

use super::{
    cmd::Cmd,
    cmdq::{
        Cmdq,
        Failure, //
    },
    hw::{
        Action,
        Cerror,
        Hw, //
    },
    soft_smmu::{
        Fate,
        Manner,
        Random,
        Serviced,
        SoftSmmu,
        Tag,
        BATCH,
        SID_UNANSWERED, //
    }, //
};

use Fate::*;

pub(super) const ILL: Cerror = Cerror::Ill;
pub(super) const ABT: Cerror = Cerror::Abt;
pub(super) const ATC: Cerror = Cerror::AtcInvSync;

/// How a batch is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// As the host does, without a `CMD_SYNC`.
    No,
    /// As a guest does.
    Complete,
}

pub(super) type Outcome = Result<(), Failure>;

/// Errors as they are expected: where, counted from the first slot of the batch, what, and what is
/// done about it.
pub(super) type Expected<'a> = &'a [(u64, Cerror, Action)];

/// Writes to the log of the tests.
macro_rules! tell {
    ($($arg:tt)*) => {
        kernel::kunit::err(kernel::prelude::fmt!($($arg)*))
    };
}
pub(super) use tell;

/// Evaluates to false in the enclosing function, and tells so, if a condition does not hold.
macro_rules! ensure {
    ($condition:expr $(,)?) => {
        if !$condition {
            tell!(
                "{}:{}: not so: {}\n",
                file!(),
                line!(),
                stringify!($condition)
            );
            return false;
        }
    };
}
pub(super) use ensure;

/// That the command at `index` failed.
pub(super) fn fails(index: usize, cerror: Cerror) -> Outcome {
    Err(Failure::Cmd { index, cerror })
}

/// That the queue did not get past a command because of its error.
pub(super) fn stuck(cerror: Cerror) -> Outcome {
    Err(Failure::Stuck {
        complete: 0,
        cerror,
    })
}

/// That it did not get as far as to the end of the batch, and there is no error of its commands.
pub(super) const TIMEOUT: Outcome = Err(Failure::Timeout {
    complete: 0,
    overdue: None,
});

/// The outcome without what depends on when it was looked at.
fn settled(outcome: Outcome) -> Outcome {
    outcome.map_err(|failure| match failure {
        Failure::Timeout { complete, .. } => Failure::Timeout {
            complete,
            overdue: None,
        },
        failure => failure,
    })
}

/// What is to come of a batch with these commands. Nobody is told about others' faults.
pub(super) fn outcome(fates: &[Fate], wait: Wait) -> Outcome {
    if wait == Wait::No {
        return Ok(());
    }

    // One abort heals, the second does not.
    let replaced = fates.iter().position(|fate| match fate {
        Illegal => true,
        Abort(count) => *count > 1,
        _ => false,
    });
    let before = &fates[..replaced.unwrap_or(fates.len())];

    if let Some(index) = before.iter().position(|fate| *fate == Unanswered) {
        return fails(index, ATC);
    }
    match replaced {
        None => Ok(()),
        Some(index) if fates[index] == Illegal => fails(index, ILL),
        Some(index) => fails(index, ABT),
    }
}

/// Somebody who uses the queue.
pub(super) struct Producer {
    pub(super) queue: Arc<Cmdq<SoftSmmu>>,
    /// The tag of the first command of the latest batch.
    pub(super) tag: Tag,
}

impl Producer {
    pub(super) fn new(queue: Arc<Cmdq<SoftSmmu>>, producer: u32) -> Self {
        Self {
            queue,
            tag: Tag {
                producer,
                batch: 0,
                index: 0,
            },
        }
    }

    pub(super) fn tag(&self, index: usize) -> Tag {
        // CAST: The length of a batch.
        Tag {
            index: index as u32,
            ..self.tag
        }
    }

    /// The commands of a new batch, and others behind them.
    pub(super) fn commands(&mut self, fates: &[Fate]) -> [Cmd; BATCH as usize] {
        let mut cmds = [Cmd::illegal(); BATCH as usize];

        self.tag.batch += 1;
        for (index, (cmd, fate)) in cmds.iter_mut().zip(fates).enumerate() {
            *cmd = self.tag(index).command(*fate);
        }
        cmds
    }

    /// Issues a batch: of the host if it is not waited for, or else of a guest.
    pub(super) fn issue(&mut self, fates: &[Fate], wait: Wait) -> Outcome {
        match wait {
            Wait::No => self.issue_host(fates, false),
            Wait::Complete => self.issue_guest(fates),
        }
    }

    /// Issues a batch of a guest.
    fn issue_guest(&mut self, fates: &[Fate]) -> Outcome {
        let cmds = &self.commands(fates)[..fates.len()];
        let has_atc_inv = cmds.iter().any(Cmd::is_atc_inv);

        settled(self.queue.issue_guest(cmds, has_atc_inv))
    }

    /// Issues a batch of the host.
    pub(super) fn issue_host(&mut self, fates: &[Fate], sync: bool) -> Outcome {
        let cmds = self.commands(fates);

        settled(self.queue.issue_host(&cmds[..fates.len()], sync))
    }

    /// Whether the commands of the last batch are complete which are by this outcome, and that is
    /// not complete which failed.
    pub(super) fn is_true(&self, len: usize, outcome: Outcome) -> bool {
        let smmu = &self.queue.hw;
        let (complete, failed) = match outcome {
            Ok(()) => (len, None),
            Err(Failure::Cmd { index, .. }) => (index, Some(index)),
            Err(Failure::Stuck { complete, .. } | Failure::Timeout { complete, .. }) => {
                (complete, None)
            }
            Err(Failure::Interrupted { complete }) => (complete, None),
        };

        (0..complete).all(|index| smmu.is_complete(self.tag(index)))
            && !failed.is_some_and(|index| smmu.is_complete(self.tag(index)))
    }
}

/// The least number of entries that there can be.
pub(super) const LEN: usize = 128;

pub(super) fn queue(manner: Manner) -> Result<Arc<Cmdq<SoftSmmu>>> {
    Arc::pin_init(Cmdq::new(SoftSmmu::new(LEN, manner), LEN), GFP_KERNEL)
}

/// A queue with one user, and what it is to look like.
pub(super) struct Bench(pub(super) Producer);

impl Bench {
    pub(super) fn smmu(&self) -> &SoftSmmu {
        &self.0.queue.hw
    }

    /// How many slots have ever been used.
    pub(super) fn slots(&self) -> u64 {
        let (cmds, syncs, _) = self.0.queue.counts();
        cmds + syncs
    }

    /// Sends a batch and compares what comes of it with what is expected: the outcome, the errors
    /// that were serviced meanwhile, and what is complete by then.
    pub(super) fn issue(
        &mut self,
        fates: &[Fate],
        wait: Wait,
        expected: Outcome,
        errors: Expected<'_>,
    ) -> bool {
        // What happened before is not to matter here.
        self.0.queue.forget_stream(SID_UNANSWERED);

        let start = self.slots();
        let outcome = self.0.issue(fates, wait);

        if outcome != expected {
            tell!("{:?}: {:?} instead of {:?}\n", fates, outcome, expected);
            return false;
        }
        ensure!(self.serviced(start, errors));
        ensure!(wait == Wait::No || self.0.is_true(fates.len(), outcome));
        true
    }

    /// As [`Self::issue()`] with a `CMD_SYNC`.
    pub(super) fn sync(&mut self, fates: &[Fate], expected: Outcome, errors: Expected<'_>) -> bool {
        self.issue(fates, Wait::Complete, expected, errors)
    }

    /// Whether exactly these errors were serviced since it was last asked for.
    pub(super) fn serviced(&self, start: u64, errors: Expected<'_>) -> bool {
        let log = self.smmu().take_log();
        let expected = errors.iter().map(|&(at, cerror, action)| Serviced {
            // CAST: A queue of 128 entries has an index and a wrap bit that are 8 bits together.
            // Positions before the batch are written as negative ones.
            cons: start.wrapping_add(at) as u32 & 0xff | (cerror as u32) << 24,
            cerror: Some(cerror),
            action,
        });

        if log.len() != errors.len() || !log.iter().eq(expected) {
            for error in log.iter() {
                tell!("slot {:#x}: {:?}\n", start & 0xff, error);
            }
            return false;
        }
        true
    }

    /// Whether nothing is left behind: the queue is empty, all of it can be used, nobody has a
    /// record, and nothing went on that must not.
    pub(super) fn is_clean(&mut self) -> bool {
        ensure!(!self.0.queue.log.has_records());
        self.can_be_used()
    }

    /// As [`Self::is_clean()`] where records may have been left to those who get the slots next.
    pub(super) fn can_be_used(&mut self) -> bool {
        ensure!(self.sync(&[], Ok(()), &[]));
        ensure!(self.sync(&[Fine; LEN - 1], Ok(()), &[]));
        ensure!(!self.0.queue.log.has_records());
        ensure!(self.smmu().is_idle());
        ensure!(!self.smmu().error_is_active());
        ensure!(self.smmu().violations() == 0);

        let (cmds, syncs, _) = self.0.queue.counts();
        ensure!(self.smmu().counts() == (cmds, syncs));
        true
    }
}

/// Runs a test on SMMUs of both kinds, each with several seeds, and with the first batch at several
/// places of the queue.
pub(super) fn each(test: impl Fn(&mut Bench) -> bool) -> Result<bool> {
    for overwrites in [false, true] {
        for seed in 0..4 {
            for start in [0, 64, 122, 124, 126, 127, 128, 252, 255] {
                let manner = Manner {
                    seed,
                    overwrites,
                    // CAST: A small number.
                    pace: [32, 4, 1, 8][seed as usize],
                    bad_syncs: 0,
                    stall: 20,
                    tick: 5,
                };
                let mut bench = Bench(Producer::new(queue(manner)?, 0));

                for i in 0..start {
                    // A CMD_SYNC on its own is as good as a command.
                    let is_ok = if i % 3 == 0 {
                        bench.sync(&[], Ok(()), &[])
                    } else {
                        bench.issue(&[Fine], Wait::No, Ok(()), &[])
                    };
                    if !is_ok {
                        return Ok(false);
                    }
                }
                if !test(&mut bench) {
                    tell!("with {:?}, from slot {:#x}\n", manner, start);
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// Makes up a batch. One in so many has faults. Returns its length and how long to wait.
pub(super) fn random_batch(
    random: &mut Random,
    faulty: u32,
    fates: &mut [Fate; 64],
) -> (usize, Wait) {
    // CAST: A small number.
    let len = match random.below(8) {
        0 => random.below(65),
        1 | 2 => random.below(17),
        _ => random.below(5),
    } as usize;
    let is_faulty = random.one_in(faulty);
    // A guest's commands, with or without some for the ATC, or the host's.
    let (wait, atc_invs) = match random.below(8) {
        0 | 1 => (Wait::Complete, 2),
        2 | 3 => (Wait::Complete, 1),
        4 => (Wait::Complete, 0),
        5 => (Wait::No, 0),
        _ => (Wait::Complete, 8),
    };

    for fate in &mut fates[..len] {
        let is_atc_inv = random.one_in(atc_invs);
        *fate = match (is_faulty && random.one_in(8), is_atc_inv) {
            (false, false) => Fine,
            (false, true) => Answered,
            (true, false) => match random.below(16) {
                0 => Slow,
                1..=7 => Illegal,
                n => Abort(1 + n % 3),
            },
            (true, true) => match random.below(8) {
                0 => Illegal,
                1 => Abort(1 + random.below(3)),
                2..=4 => AnsweredAgain,
                _ => Unanswered,
            },
        };
    }
    (len, wait)
}
