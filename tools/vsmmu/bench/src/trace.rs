// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The commands of a real guest, as a VMM forwards them: those between two CMD_SYNCs in one call.

use std::error::Error;
use std::path::Path;

use vsmmu_nested::cmd::{Range, op};
use vsmmu_nested::ram::PAGE_SIZE;
use vsmmu_nested::{Command, NestedSmmu};

use crate::invalidate::{self, VSID};
use crate::sample::Sampler;

/// What a guest's queue held, see `traces/README.md`.
const LINUX: &[u8] = include_bytes!("../traces/linux.bin");

const CMD_SYNC: u8 = 0x46;

/// The opcode of a command.
fn opcode(command: Command) -> u8 {
    command.words()[0].to_le_bytes()[0]
}

/// What a CPU has queued together, the last of which is a CMD_SYNC in most.
pub struct Issue {
    /// Which CPU.
    pub cpu: usize,
    /// How many instructions it has executed since it queued the last ones, of which it has waited for
    /// nothing: the SMMU has answered at once.
    pub after: u64,
    /// The commands.
    pub commands: Vec<Command>,
}

/// What is in a file of records.
fn parse(file: &[u8]) -> Vec<Issue> {
    let (words, rest) = file.as_chunks::<8>();
    assert!(rest.is_empty());
    let mut words = words.iter().map(|bytes| u64::from_le_bytes(*bytes));
    let mut issues = Vec::new();
    while let Some(head) = words.next() {
        let mut word = || words.next().expect("the file ends with a record");
        let after = word();
        let command = |_| Command::from_words(word(), word());
        issues.push(Issue {
            cpu: (head & 0xffff_ffff) as usize,
            after,
            commands: (0..head >> 32).map(command).map(with_our_sid).collect(),
        });
    }
    issues
}

/// The same command of a guest whose device has the stream id [`VSID`].
fn with_our_sid(command: Command) -> Command {
    let [w0, w1] = command.words();
    match opcode(command) {
        op::CFGI_CD | op::CFGI_CD_ALL | op::ATC_INV => {
            Command::from_words(w0 & 0xffff_ffff | u64::from(VSID) << 32, w1)
        }
        _ => command,
    }
}

/// All that the guest has queued, in the order of its queue.
pub fn recorded() -> Vec<Issue> {
    parse(LINUX)
}

/// Whether it is a CMD_SYNC.
pub fn is_sync(command: Command) -> bool {
    opcode(command) == CMD_SYNC
}

/// What a VMM has to do for the guest up to each CMD_SYNC. What it does not forward is left out, as are
/// CMD_SYNCs with nothing before them.
fn batches(commands: impl Iterator<Item = Command>) -> Vec<Vec<Command>> {
    let mut batches = vec![Vec::new()];
    for command in commands {
        let batch = batches.last_mut().expect("there is always one");
        match opcode(command) {
            CMD_SYNC if !batch.is_empty() => batches.push(Vec::new()),
            opcode if op::FORWARDABLE.contains(&opcode) => batch.push(command),
            _ => {}
        }
    }
    batches.retain(|batch| !batch.is_empty());
    batches
}

/// What a guest sends in place of `command` if its SMMU has no range invalidation: a TLBI for each page.
fn without_range(command: Command) -> Vec<Command> {
    let [w0, w1] = command.words();
    if opcode(command) != op::TLBI_NH_VA || w1 >> 10 & 3 == 0 {
        return vec![command];
    }
    let pages = ((w0 >> 12 & 0x1f) + 1) << (w0 >> 20 & 0x1f);
    let one = command.with_range(Range::default());
    let [w0, w1] = one.words();
    let page = |i| Command::from_words(w0, w1 + i * PAGE_SIZE);
    (0..pages).map(page).collect()
}

fn play(smmu: &NestedSmmu, batches: &[Vec<Command>]) -> Result<(), Box<dyn Error>> {
    for batch in batches {
        smmu.invalidate(batch)?;
    }
    Ok(())
}

/// The traces, by the names of their figures.
pub fn traces() -> [(&'static str, Vec<Vec<Command>>); 2] {
    let plain = batches(recorded().into_iter().flat_map(|issue| issue.commands));
    let pages = plain
        .iter()
        .map(|batch| batch.iter().copied().flat_map(without_range).collect())
        .collect();
    [
        ("trace: a Linux guest", plain),
        ("trace: the same, no ranges", pages),
    ]
}

/// Measures how long all of a trace takes.
pub fn run(sampler: &Sampler, sysfs: &Path) -> Result<(), Box<dyn Error>> {
    let smmu = invalidate::smmu(sysfs)?;
    for (id, batches) in traces() {
        let n = batches.iter().map(Vec::len).sum();
        sampler.case_of_calls(id, n, batches.len(), || play(&smmu, &batches))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a script counts them that reads the file.
    #[test]
    fn linux() {
        let issues = recorded();
        assert_eq!(issues.len(), 2000);
        assert!(issues.iter().all(|issue| issue.cpu < 4));
        let synced = |issue: &Issue| issue.commands.last().is_some_and(|last| is_sync(*last));
        assert!(issues.iter().all(synced));
        let [(_, plain), (_, pages)] = traces();
        assert_eq!(plain.len(), 2000);
        assert!(plain.iter().all(|batch| batch.len() == 1));
        assert_eq!(pages.iter().map(Vec::len).max(), Some(32));
    }

    #[test]
    fn batches_end_at_syncs() {
        let sync = || Command::from_words(CMD_SYNC.into(), 0);
        let config = Command::from_words(1, 0);
        let tlbi = Command::tlbi_nh_asid(1);
        let queue = [
            sync(),
            config,
            sync(),
            tlbi,
            tlbi,
            config,
            sync(),
            sync(),
            tlbi,
        ];
        let lengths: Vec<_> = batches(queue.into_iter()).iter().map(Vec::len).collect();
        assert_eq!(lengths, [2, 1]);
    }

    #[test]
    fn a_range_is_pages() {
        let range = Range {
            num: 2,
            scale: 1,
            tg: 1,
            ttl: 3,
        };
        let pages = without_range(Command::tlbi_nh_va(7, 0x5000, true).with_range(range));
        let expected: Vec<_> = (5..11)
            .map(|page| Command::tlbi_nh_va(7, page << 12, true))
            .collect();
        assert_eq!(pages, expected);
    }
}
