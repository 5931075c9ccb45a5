// SPDX-License-Identifier: GPL-2.0

//! What has happened to each command, as the SMMU knows it, and what must not happen.
//!
//! No scheduler knows of what is here: it is no part of what is checked.

use std::{
    collections::{HashMap, HashSet},
    sync::Mutex,
};

use crate::cmd::Cmd;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// `CMD_TLBI_NH_VA`, which is executed.
    Fine,
    /// An opcode that is reserved.
    Illegal,
    /// Cannot be fetched so many times.
    Abort(u32),
    /// `CMD_ATC_INV` that its device answers.
    Answered,
    /// `CMD_ATC_INV` that its device answers when it is sent again.
    AnsweredAgain,
    /// `CMD_ATC_INV` that its device never answers.
    Unanswered,
}

use Fate::*;

const TLBI_NH_VA: u64 = 0x12;
const ATC_INV: u64 = 0x40;
pub(crate) const CMD_SYNC: u64 = 0x46;
const RESERVED: u64 = 0x7e;
/// The second word of a `CMD_ATC_INV` for all addresses.
const ALL: u64 = 52;

/// The stream whose device never answers.
pub(crate) const UNANSWERED: u32 = 3;

/// The producer of those by which the driver finds out which device does not answer.
const PROBER: usize = usize::MAX;

/// What tells a command from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tag {
    pub(crate) producer: usize,
    /// Counts the batches of this producer.
    pub(crate) batch: usize,
    pub(crate) index: usize,
    /// The number of commands in the batch.
    pub(crate) len: usize,
    /// Whether there is a `CMD_SYNC` behind it.
    pub(crate) sync: bool,
    /// Whether it may end before a `CMD_ATC_INV` for a device that did not answer before.
    pub(crate) may_end: bool,
}

impl Tag {
    pub(crate) fn command(self, fate: Fate) -> Cmd {
        let (opcode, sid, fate) = match fate {
            Fine => (TLBI_NH_VA, 0, 0),
            Illegal => (RESERVED, 0, 1),
            Abort(count) => (TLBI_NH_VA, 0, 2 + u64::from(count)),
            Answered => (ATC_INV, 1, 0),
            AnsweredAgain => (ATC_INV, 2, 0),
            Unanswered => (ATC_INV, UNANSWERED.into(), 0),
        };
        let fields = [self.producer, self.batch, self.index, self.len];
        let tag = fields
            .iter()
            .fold(fate, |word, field| word << 8 | *field as u64);
        let tag = tag << 8 | u64::from(self.sync) | u64::from(self.may_end) << 1;
        Cmd::new([opcode | sid << 32, tag])
    }

    /// Reverts [`Self::command()`]. [`None`] if the words are not those of a whole command.
    pub(crate) fn of(cmd: Cmd) -> Option<(Self, Fate)> {
        let [word0, word1] = cmd.words();
        if word0 & 0xff == ATC_INV && word1 == ALL {
            return Self::of_probe(word0 >> 32);
        }
        let field = |n: u32| (word1 >> (8 * n)) as usize & 0xff;
        let tag = Self {
            producer: field(4),
            batch: field(3),
            index: field(2),
            len: field(1),
            sync: field(0) & 1 != 0,
            may_end: field(0) & 2 != 0,
        };
        let fate = match (word0 & 0xff, word0 >> 32, field(5)) {
            (TLBI_NH_VA, 0, 0) => Fine,
            (RESERVED, 0, 1) => Illegal,
            (TLBI_NH_VA, 0, count) if count > 2 => Abort(count as u32 - 2),
            (ATC_INV, 1, 0) => Answered,
            (ATC_INV, 2, 0) => AnsweredAgain,
            (ATC_INV, sid, 0) if sid == u64::from(UNANSWERED) => Unanswered,
            _ => return None,
        };
        (tag.len > 0).then_some((tag, fate))
    }

    /// One for all addresses of a stream is the driver's own.
    fn of_probe(sid: u64) -> Option<(Self, Fate)> {
        let tag = Self {
            producer: PROBER,
            batch: 0,
            index: 0,
            len: 1,
            sync: true,
            may_end: false,
        };
        match sid {
            1 | 2 => Some((tag, Answered)),
            sid if sid == u64::from(UNANSWERED) => Some((tag, Unanswered)),
            _ => None,
        }
    }
}

/// A command that was executed.
#[derive(Clone, Copy, Default)]
struct Executed {
    times: u32,
    answered: bool,
    /// How many `CMD_SYNC`s were complete before.
    syncs: u64,
}

#[derive(Default)]
struct Inner {
    executed: HashMap<Tag, Executed>,
    syncs: u64,
    /// The commands that the SMMU has got to.
    reached: HashSet<Tag>,
    /// The latest one, if there was no `CMD_SYNC` since, and whether that was a replay.
    previous: Option<(Tag, bool)>,
    /// The number of the latest batch of each producer.
    latest: HashMap<usize, usize>,
}

pub(crate) struct Facts {
    inner: Mutex<Inner>,
    /// Whether commands that were not complete in time are issued again.
    may_repeat: bool,
}

impl Facts {
    pub(crate) fn new(may_repeat: bool) -> Self {
        Self {
            inner: Mutex::default(),
            may_repeat,
        }
    }

    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self
            .inner
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Checks that a command is where it belongs when the SMMU gets to it: batches are whole, in
    /// the order of their producer, and not mixed. [`None`] is a `CMD_SYNC`.
    pub(crate) fn reach(&self, command: Option<Tag>) {
        self.with(|inner| {
            let previous = inner.previous.take();
            let Some(tag) = command else {
                // One that is nobody else's may follow a batch without one.
                let is_fine = previous.is_none_or(|(tag, is_replay)| {
                    is_replay || tag.may_end || tag.index + 1 == tag.len
                });
                assert!(is_fine, "CMD_SYNC behind {previous:?}");
                return;
            };

            // Some commands of an earlier batch make up a replay.
            let is_probe = tag.producer == PROBER;
            let is_replay = !is_probe && !inner.reached.insert(tag);
            let latest = inner.latest.insert(tag.producer, tag.batch);
            let is_first = tag.index == 0 && latest.is_none_or(|latest| tag.batch > latest);
            let is_fine = match previous {
                Some((before, false)) if before.index + 1 < before.len => {
                    tag == Tag {
                        index: before.index + 1,
                        ..before
                    }
                }
                Some((before, false)) if before.sync => false,
                _ => is_first || is_replay || is_probe,
            };
            assert!(
                is_fine,
                "{tag:?} behind {previous:?}, after batch {latest:?}"
            );
            inner.previous = Some((tag, is_replay));
        });
    }

    /// A command was executed.
    pub(crate) fn execute(&self, tag: Tag, fate: Fate) -> bool {
        self.with(|inner| {
            let syncs = inner.syncs;
            let executed = inner.executed.entry(tag).or_default();
            let is_atc_inv = matches!(fate, Answered | AnsweredAgain | Unanswered);

            executed.times += 1;
            executed.syncs = syncs;
            executed.answered = match fate {
                AnsweredAgain => executed.times > 1,
                fate => fate != Unanswered,
            };
            assert!(
                is_atc_inv || self.may_repeat || executed.times == 1,
                "{tag:?} was executed twice"
            );
            executed.answered
        })
    }

    /// A `CMD_SYNC` is complete.
    pub(crate) fn sync(&self) {
        self.with(|inner| inner.syncs += 1);
    }

    pub(crate) fn was_executed(&self, tag: Tag) -> bool {
        self.with(|inner| inner.executed.contains_key(&tag))
    }

    /// Whether the command was executed, with an answer if it needs one, and there has been a
    /// `CMD_SYNC` since.
    pub(crate) fn is_complete(&self, tag: Tag) -> bool {
        self.with(|inner| {
            let syncs = inner.syncs;
            let executed = inner.executed.get(&tag);
            executed.is_some_and(|executed| executed.answered && executed.syncs < syncs)
        })
    }
}
