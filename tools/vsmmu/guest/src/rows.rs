// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The rows: what the guest queues, what goes wrong, and what has to come of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vm_memory::{Bytes, GuestAddress};
use vsmmu_faults::control::{Kind, Rule};
use vsmmu_faults::vm::{ASID, ATS_VSID, PAGE_A, PAGE_B, VSID};
use vsmmu_nested::Command;
use vsmmu_nested::cmd::op;
use vsmmu_relay::Config;

use crate::linux::{Guest, LOG2SIZE, Parts, Seen, cmd_sync};

const ILL: u32 = 1;
const ABT: u32 = 2;
const ATC_INV_SYNC: u32 = 3;

/// A stream that has no device.
const NO_DEVICE: u32 = 0x4321;
/// Nothing is there in any guest's memory.
const NO_MEMORY: GuestAddress = GuestAddress(0x20_0000_0000);

/// Where a row can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// With an SMMU that does as it should.
    Sound,
    /// With an SMMU that fails on demand, on a kernel that tells.
    Failing,
    /// With an SMMU that does as it should, on a kernel that does not answer exactly.
    Inexact,
}

/// What the guest and the VMM have to see.
#[derive(Clone, Debug)]
pub struct Want {
    /// The errors, in their order. `None`: whatever there is.
    pub seen: Option<Vec<Seen>>,
    /// How many ioctls it takes, on a kernel that answers exactly and on one that does not.
    pub ioctls: Option<[u32; 2]>,
    /// The problems of the host.
    pub problems: Vec<i32>,
    /// Commands that are the VMM's.
    pub own: u32,
    /// Which of the pages A and B are no longer stale.
    pub fresh: [bool; 2],
}

type Act = dyn Fn(&mut Guest, &Parts);

/// One row.
pub struct Row {
    /// To choose it by.
    pub id: &'static str,
    /// What is done, for people.
    pub what: &'static str,
    /// Where it can be tried.
    pub on: Where,
    /// How the SMMU fails.
    pub rules: Vec<Rule>,
    /// What the VMM changes in the configuration of the queue.
    pub config: fn(&mut Config),
    /// Log2 of the entries of the queue.
    pub log2size: u32,
    /// What the guest does.
    pub act: Box<Act>,
    /// What has to come of it.
    pub want: Want,
}

impl vsmmu_rows::Row for Row {
    fn id(&self) -> &str {
        self.id
    }

    fn what(&self) -> &str {
        self.what
    }
}

impl Row {
    fn new(
        id: &'static str,
        what: &'static str,
        act: impl Fn(&mut Guest, &Parts) + 'static,
    ) -> Self {
        Row {
            id,
            what,
            on: Where::Sound,
            rules: Vec::new(),
            config: |_| {},
            log2size: LOG2SIZE,
            act: Box::new(act),
            want: Want {
                seen: Some(Vec::new()),
                ioctls: None,
                problems: Vec::new(),
                own: 0,
                fresh: [true; 2],
            },
        }
    }

    /// The guest queues these, and a CMD_SYNC.
    fn submits(id: &'static str, what: &'static str, commands: Vec<Command>) -> Self {
        Row::new(id, what, move |guest, _| guest.submit(&commands))
    }

    fn sees(mut self, code: u32, rd: u32) -> Self {
        let seen = self.want.seen.get_or_insert_default();
        seen.push(Seen { code, rd });
        self
    }

    fn ioctls(mut self, exact: u32, fallback: u32) -> Self {
        self.want.ioctls = Some([exact, fallback]);
        self
    }

    fn fails(mut self, rule: Rule) -> Self {
        self.on = Where::Failing;
        self.rules.push(rule);
        self
    }

    fn with(self, config: fn(&mut Config)) -> Self {
        Row { config, ..self }
    }
}

fn a() -> Command {
    Command::tlbi_nh_va(ASID, PAGE_A, false)
}

fn b() -> Command {
    Command::tlbi_nh_va(ASID, PAGE_B, false)
}

/// Another page for each `i`, with nothing there.
fn page(i: u64) -> u64 {
    0x2000_0000 + (i << 12)
}

fn other(i: u64) -> Command {
    Command::tlbi_nh_va(ASID, page(i), false)
}

/// To the device that has ATS.
fn atc(i: u64) -> Command {
    Command::atc_inv(ATS_VSID, page(i), 0)
}

fn unknown() -> Command {
    Command::from_words(0xff, 0)
}

/// A first, then `n` - 2 others, then B.
fn between(n: u64) -> Vec<Command> {
    let mut commands = vec![a()];
    commands.extend((0..n - 2).map(other));
    commands.push(b());
    commands
}

/// A CMD_SYNC behind each but the last, as several CPUs of a guest queue them.
fn with_syncs(commands: [Command; 3]) -> Vec<Command> {
    let [first, second, last] = commands;
    vec![first, cmd_sync(), second, cmd_sync(), last]
}

fn at_other(kind: Kind, i: u64) -> Rule {
    Rule::new(kind).opcode(op::TLBI_NH_VA).address(page(i))
}

fn at_atc(i: u64) -> Rule {
    let rule = Rule::new(Kind::AtcInvSync).opcode(op::ATC_INV);
    rule.address(page(i))
}

/// All rows, in their order.
pub fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    sound(&mut rows);
    illegal(&mut rows);
    unusual(&mut rows);
    failing(&mut rows);
    rows
}

fn sound(rows: &mut Vec<Row>) {
    rows.push(Row::submits("none", "TLBIs of both pages", vec![a(), b()]).ioctls(1, 1));
    let mut control = Row::submits(
        "none-stale",
        "control: a TLBI of another page leaves both stale",
        vec![other(0)],
    );
    control.want.fresh = [false; 2];
    rows.push(control);
    rows.push(
        Row::submits(
            "long",
            "200 commands, in one ioctl if possible",
            between(200),
        )
        .ioctls(1, 4),
    );
    let mut wrap = Row::submits("wrap", "200 commands in a queue of 16", between(200));
    wrap.log2size = 4;
    rows.push(wrap);
    rows.push(
        Row::submits(
            "syncs",
            "three commands, each with a CMD_SYNC behind: one ioctl",
            with_syncs([a(), other(0), b()]),
        )
        .ioctls(1, 1),
    );
    let ste = Command::from_words(
        u64::from(vsmmu_relay::op::CFGI_STE) | u64::from(VSID) << 32,
        1,
    );
    let mut own = Row::submits(
        "own",
        "a CFGI_STE between two, which is the VMM's",
        vec![a(), ste, b()],
    )
    .ioctls(2, 2);
    own.want.own = 1;
    rows.push(own);
    rows.push(
        Row::new(
            "msi",
            "a CMD_SYNC that ends with an MSI to memory, which the guest polls",
            |guest, parts| {
                const DATA: u32 = 0x1234;
                // The last entry, which is not in use.
                let at = parts.ring.0 + (16 << LOG2SIZE) - 16;
                let word0 = u64::from(vsmmu_relay::op::SYNC) | 1 << 12 | u64::from(DATA) << 32;
                let mut commands = [a(), b(), Command::from_words(word0, at)].into_iter();
                guest.push(&mut commands);
                guest.run();
                let polled = parts.memory.read_obj::<u32>(GuestAddress(at));
                if polled.ok().map(u32::from_le) != Some(DATA) {
                    guest.fault = Some("the MSI has not arrived".into());
                }
            },
        )
        .ioctls(1, 1),
    );
}

fn illegal(rows: &mut Vec<Row>) {
    rows.push(
        Row::submits(
            "ill-vmm",
            "an opcode that the VMM does not know",
            vec![a(), other(0), unknown(), b()],
        )
        .sees(ILL, 2)
        .ioctls(2, 2),
    );
    rows.push(
        Row::submits(
            "ill-ssec",
            "SSEC = 1, and a CMD_SYNC with a reserved CS",
            vec![a(), other(0).flip_bit(10), cmd_sync().flip_bit(12), b()],
        )
        .sees(ILL, 1)
        .sees(ILL, 2),
    );
    let no_device = Command::cfgi_cd(NO_DEVICE, 0, true);
    rows.push(
        Row::submits(
            "ill-kernel",
            "a CFGI_CD of a stream without a device, as entry 3",
            vec![a(), other(0), other(1), no_device, b()],
        )
        .sees(ILL, 3)
        // The batch, four commands by themselves, and the last.
        .ioctls(2, 6),
    );
    let commands = vec![a(), other(0), other(1), no_device, b()];
    rows.push(
        Row::submits(
            "ill-fallback",
            "the same, with a VMM that does not rely on the kernel's answers",
            commands,
        )
        .with(|config| config.exact = false)
        .sees(ILL, 3)
        .ioctls(6, 6),
    );
    rows.push(
        Row::submits(
            "ill-syncs",
            "a CFGI_CD without a device between two CMD_SYNCs",
            with_syncs([a(), no_device, b()]),
        )
        .sees(ILL, 2)
        // The batch, two commands by themselves, and the last.
        .ioctls(2, 4),
    );
    let mut many = between(200);
    for i in [60, 61, 130] {
        many[i] = other(0).flip_bit(11);
    }
    rows.push(
        Row::submits(
            "ill-kernel-many",
            "a reserved bit in the entries 60, 61 and 130 of 200",
            many,
        )
        .sees(ILL, 60)
        .sees(ILL, 61)
        .sees(ILL, 130),
    );
    let lies = vec![a(), b(), no_device];
    let mut control = Row::submits(
        "believed",
        "control: counts of such a kernel believed, [A, B, no device]",
        lies,
    )
    .with(|config| config.exact = true);
    control.on = Where::Inexact;
    control.want.fresh = [false; 2];
    // It has no code either, so the VMM gives up.
    control.want.problems = vec![libc::EIO; 5];
    rows.push(control);
}

fn unusual(rows: &mut Vec<Row>) {
    rows.push(
        Row::new(
            "abt-memory",
            "a queue that is not in memory, and then one that is",
            |guest, parts| {
                guest.start(NO_MEMORY);
                guest.push(&mut [a(), b(), cmd_sync()].into_iter());
                for _ in 0..2 {
                    if guest.consume() {
                        guest.interrupt();
                    }
                }
                guest.consume();
                guest.start(parts.ring);
                guest.acknowledge();
                guest.submit(&[a(), b()]);
            },
        )
        .sees(ABT, 0)
        .sees(ABT, 0)
        .ioctls(1, 1),
    );
    rows.push(
        Row::new(
            "take-back",
            "PROD back to CONS while there is an error, then both again",
            |guest, _| {
                guest.push(&mut [unknown(), a(), b(), cmd_sync()].into_iter());
                guest.consume();
                guest.take_back();
                guest.acknowledge();
                guest.submit(&[a(), b()]);
            },
        )
        .ioctls(1, 1),
    );
    rows.push(
        Row::new(
            "off-and-on",
            "the queue off and on while there is an error",
            |guest, _| {
                guest.push(&mut [a(), unknown(), b(), cmd_sync()].into_iter());
                guest.consume();
                guest.toggle();
                guest.consume();
                if !guest.has_error() {
                    guest.fault = Some("the error is gone".into());
                }
                guest.interrupt();
                guest.submit(&[]);
            },
        )
        .sees(ILL, 1),
    );
    rows.push(
        Row::new(
            "migrated",
            "the VM migrates between the error and its acknowledgment",
            |guest, _| {
                guest.push(&mut [a(), unknown(), b(), cmd_sync()].into_iter());
                guest.consume();
                guest.migrate();
                guest.interrupt();
                guest.submit(&[]);
            },
        )
        .sees(ILL, 1)
        .ioctls(2, 2),
    );
    let mut scribble = Row::new(
        "scribble",
        "another CPU writes into the ring meanwhile; then both pages",
        scribble,
    );
    scribble.want.seen = None;
    rows.push(scribble);
}

/// Has commands relayed while another thread turns some into others all the time, until that has been
/// noticed some times.
fn scribble(guest: &mut Guest, parts: &Parts) {
    const ENOUGH: usize = 10;
    const MOST: u32 = 20_000;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let others = [
                unknown(),
                cmd_sync(),
                other(0).flip_bit(127),
                other(1),
                Command::atc_inv(VSID, page(0), 0),
            ];
            for command in others.into_iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                for i in [3, 40, 41, 100] {
                    let at = GuestAddress(parts.ring.0 + i * 16);
                    // It was there a moment ago.
                    let _ = parts.memory.write_obj(command, at);
                }
            }
        });
        for _ in 0..MOST {
            let mut commands = (0..200).map(other).chain([cmd_sync()]).peekable();
            while commands.peek().is_some() && guest.fault.is_none() {
                guest.push(&mut commands);
                guest.run();
            }
            if guest.seen.len() >= ENOUGH || guest.fault.is_some() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    if guest.seen.is_empty() {
        let fault = "the other CPU has done nothing that was noticed";
        guest.fault.get_or_insert(fault.into());
    }
    guest.submit(&[a(), b()]);
}

fn failing(rows: &mut Vec<Row>) {
    rows.push(
        Row::submits(
            "smmu-ill",
            "the SMMU finds entry 4 of 10 illegal",
            between(10),
        )
        .fails(at_other(Kind::Ill, 3))
        .sees(ILL, 4)
        .ioctls(2, 0),
    );
    rows.push(
        Row::submits(
            "smmu-abt",
            "the SMMU cannot fetch entry 0, four times; the guest retries",
            vec![a(), other(0), b()],
        )
        .fails(Rule::new(Kind::Abt).address(PAGE_A).times(4))
        // The kernel has tried each of them twice.
        .sees(ABT, 0)
        .sees(ABT, 0)
        .ioctls(3, 0),
    );
    rows.push(
        Row::submits("smmu-abt-once", "the same, once", vec![a(), other(0), b()])
            .fails(Rule::new(Kind::Abt).address(PAGE_A))
            .ioctls(1, 0),
    );
    let atcs = |n: u64| {
        let mut commands = vec![a()];
        commands.extend((0..n).map(atc));
        commands.push(b());
        commands
    };
    rows.push(
        Row::submits(
            "atc-once",
            "the ATC_INV of entry 3 of 6 times out once",
            atcs(4),
        )
        .fails(at_atc(2))
        .ioctls(1, 0),
    );
    rows.push(
        Row::submits("atc-forever", "the same, whenever it is tried", atcs(4))
            .fails(at_atc(2).forever())
            .sees(ATC_INV_SYNC, 6)
            // The next one to that device is refused.
            .ioctls(3, 0),
    );
    rows.push(
        Row::submits(
            "atc-two",
            "two of them, in batches of 2: one error at the CMD_SYNC",
            atcs(4),
        )
        .with(|config| config.max_batch = 2)
        .fails(at_atc(0).forever())
        .fails(at_atc(2).forever())
        .sees(ATC_INV_SYNC, 6)
        // The three others are refused, each at the beginning of a batch.
        .ioctls(5, 0),
    );
    rows.push(
        Row::submits(
            "atc-syncs",
            "one between two CMD_SYNCs: the second of them has the error",
            with_syncs([a(), atc(0), b()]),
        )
        .fails(at_atc(0).forever())
        .sees(ATC_INV_SYNC, 3)
        .ioctls(2, 0),
    );
    rows.push(
        Row::submits(
            "atc-then-ill",
            "an ATC_INV times out before an illegal command",
            vec![a(), atc(0), unknown(), b()],
        )
        .fails(at_atc(0).forever())
        .sees(ILL, 2)
        .sees(ATC_INV_SYNC, 2)
        .ioctls(2, 0),
    );
    let mut stall = Row::submits(
        "stall",
        "the SMMU stands still for 1.5 s: the guest sees nothing",
        vec![a(), b()],
    )
    .fails(Rule::new(Kind::Stall(1500)))
    .ioctls(2, 0);
    stall.want.problems = vec![libc::ETIMEDOUT];
    rows.push(stall);
}
