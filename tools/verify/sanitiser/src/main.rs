// SPDX-License-Identifier: GPL-2.0

//! Asks the sanitiser, the C code and the specification the same questions, and prints a line for
//! each kind of question: `what TAB bound TAB inputs TAB seconds TAB result`.
//!
//! Usage: `verify-sanitiser brief|quick|long`. Stops at the first question to which they differ.

use std::{
    env,
    process::ExitCode,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        Mutex,
    },
    thread,
    time::Instant,
};

use fastrand::Rng;
use verify_sanitiser::{
    check_block, spec::Spec, verify_reference, verify_rust, Answer, Question, Verdict,
};

/// The opcodes that a guest may send.
const OPCODES: [u64; 8] = [0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x40];
/// Of them, those with a range.
const WITH_RANGE: [u64; 2] = [0x12, 0x13];
/// What the bits are flipped of: nothing, a page, a block of a level, a range.
const OPERANDS: [[u64; 2]; 4] = [
    [0, 0],
    [0, 1 << 10],
    [0, 2 << 10 | 1 << 8],
    [5 << 12, 3 << 10],
];
/// The most commands that the driver has sanitised at a time.
const BLOCK: usize = 63;

fn main() -> ExitCode {
    // Every so many of the sets of features.
    let (commands, blocks, operands, step) = match env::args().nth(1).as_deref() {
        Some("brief") => (1_000_000, 20_000, &OPERANDS[..1], 48),
        Some("quick") => (200_000_000, 2_000_000, &OPERANDS[..1], 1),
        Some("long") => (4_000_000_000, 40_000_000, &OPERANDS[..], 1),
        _ => {
            eprintln!("usage: verify-sanitiser brief|quick|long");
            return ExitCode::from(2);
        }
    };
    let sets: Vec<_> = Question::feature_sets().into_iter().step_by(step).collect();
    let seed = 0x5eed;
    let kinds: [Kind; 4] = [
        (
            "fields, Rust = C = specification",
            format!(
                "all of TG, TTL, NUM, SCALE; all sizes, ASIDs; {} SMMUs",
                sets.len()
            ),
            &|check| each_set(check, &sets, fields),
        ),
        (
            "blocks of up to 63, each command as alone",
            format!("random, seed {seed:#x}"),
            &|check| {
                in_turn(check, blocks, seed, |check, n, rng| {
                    in_blocks(check, &sets, n, rng)
                })
            },
        ),
        (
            "commands, Rust = C = specification",
            format!("random, seed {seed:#x}"),
            &|check| {
                in_turn(check, commands, seed, |check, n, rng| {
                    random(check, &sets, n, rng)
                })
            },
        ),
        (
            "bits, Rust = C = specification",
            format!(
                "256 opcodes x {} operands, 0 to 2 of 128 bits flipped, {} SMMUs",
                operands.len(),
                sets.len()
            ),
            &|check| each_set(check, &sets, |check, set| flips(check, operands, set)),
        ),
    ];

    let mut failed = false;
    for (what, bound, run) in kinds {
        let check = Check::default();
        let start = Instant::now();
        run(&check);
        let seconds = start.elapsed().as_secs_f64();
        let inputs = check.inputs.load(Relaxed);
        let difference = check
            .difference
            .lock()
            .expect("no thread has panicked")
            .take();
        let good = difference.is_none() && inputs != 0;
        failed |= !good;
        println!(
            "sanitiser: {what}\t{bound}\t{inputs}\t{seconds:.1}\t{}",
            if good { "ok" } else { "FAILED" }
        );
        if let Some(difference) = difference {
            eprintln!("{difference}");
            break;
        }
    }
    ExitCode::from(u8::from(failed))
}

/// A kind of question: what it is, which there are, and how to ask all of them.
type Kind<'a> = (&'a str, String, &'a (dyn Fn(&Check) + Sync));

/// What all threads have found.
#[derive(Default)]
struct Check {
    inputs: AtomicU64,
    ended: AtomicBool,
    difference: Mutex<Option<String>>,
}

impl Check {
    fn report(&self, difference: String) {
        self.ended.store(true, Relaxed);
        *self.difference.lock().expect("no thread has panicked") = Some(difference);
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// Asks all three.
    #[inline]
    fn ask(&self, spec: &Spec, question: &Question) {
        let mut rust = Answer::default();
        let mut c = Answer::default();
        verify_rust(question, &mut rust);
        verify_reference(question, &mut c);
        let expected = spec.answer(question);
        if rust != expected || c != expected {
            self.report(format!(
                "{question:#x?}\nRust: {rust:#x?}\nC: {c:#x?}\nexpected: {expected:#x?}"
            ));
        }
    }
}

/// Has the threads do `work` for each set of features.
fn each_set(check: &Check, sets: &[Question], work: impl Fn(&Check, &Question) -> u64 + Sync) {
    let next = AtomicU64::new(0);
    in_threads(|| {
        while let Some(set) = sets.get(next.fetch_add(1, Relaxed) as usize) {
            if check.has_ended() {
                break;
            }
            check.inputs.fetch_add(work(check, set), Relaxed);
        }
    });
}

/// Has the threads do `work` with random numbers, in portions, `total` times in all.
fn in_turn(
    check: &Check,
    total: u64,
    seed: u64,
    work: impl Fn(&Check, u64, &mut Rng) -> u64 + Sync,
) {
    const PORTION: u64 = 10_000;
    let next = AtomicU64::new(0);
    in_threads(|| loop {
        // A portion is the same whichever thread has it.
        let portion = next.fetch_add(1, Relaxed);
        if portion * PORTION >= total || check.has_ended() {
            break;
        }
        let mut rng = Rng::with_seed(seed + portion);
        check
            .inputs
            .fetch_add(work(check, PORTION, &mut rng), Relaxed);
    });
}

fn in_threads(work: impl Fn() + Sync) {
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(&work);
        }
    });
}

/// All commands that differ in up to two bits from one with these operands, for each opcode.
fn flips(check: &Check, operands: &[[u64; 2]], set: &Question) -> u64 {
    let spec = Spec::new(set);
    let mut asked = 0;

    for opcode in 0..=0xff {
        for &[operands0, operands1] in operands {
            for first in 0..=128 {
                // 128 stands for none; two different ones in one order only.
                for second in (first + 1..=128).chain((first == 128).then_some(128)) {
                    let mut words = [opcode | operands0, operands1];
                    for bit in [first, second] {
                        if bit < 128 {
                            words[bit / 64] ^= 1 << (bit % 64);
                        }
                    }
                    let question = Question {
                        words,
                        vmid: 0xa5c3,
                        sid: 0x1234_8765,
                        found: true,
                        ..*set
                    };
                    check.ask(&spec, &question);
                    asked += 1;
                }
            }
        }
    }
    asked
}

/// All values of the fields that are not free to have any.
fn fields(check: &Check, set: &Question) -> u64 {
    let spec = Spec::new(set);
    let asked = AtomicU64::new(0);
    let ask = |words, found| {
        let question = Question {
            words,
            vmid: 0xffff,
            sid: 7,
            found,
            ..*set
        };
        check.ask(&spec, &question);
        asked.fetch_add(1, Relaxed);
    };

    for opcode in WITH_RANGE {
        for value in 0..1 << 15 {
            let (tg, ttl, num, scale) = (value & 3, value >> 2 & 3, value >> 4 & 31, value >> 9);
            ask(
                [opcode | num << 12 | scale << 20, tg << 10 | ttl << 8],
                true,
            );
        }
    }
    for opcode in OPCODES {
        for value in 0..1 << 16 {
            ask([opcode | value << 48, 0], true);
        }
        for size in 0..64 {
            for found in [false, true] {
                ask([opcode | 1 << 32, 0x1000 | size], found);
            }
        }
    }
    asked.into_inner()
}

/// A random command, in one of three ways: with all bits random, with few bits set, and with what
/// is legal for some SMMUs, save for one bit now and then.
fn any_command(rng: &mut Rng) -> [u64; 2] {
    let opcode = match rng.u8(..8) {
        0 => rng.u64(..0x100),
        _ => OPCODES[rng.usize(..OPCODES.len())],
    };
    let mut words = [rng.u64(..), rng.u64(..)];
    match rng.u8(..4) {
        0 => {}
        1 => {
            words = [
                words[0] & rng.u64(..) & rng.u64(..),
                words[1] & rng.u64(..) & rng.u64(..),
            ]
        }
        _ => {
            let (bits0, bits1) = match opcode {
                0x05 => (0xffff_ffff_ffff_f000, 1),
                0x06 => (0xffff_ffff_0000_0000, 0),
                0x10 => (0x0000_ffff_0000_0000, 0),
                0x11 => (0xffff_ffff_0000_0000, 0),
                0x12 => (0xffff_ffff_03f1_f000, 0xffff_ffff_ffff_ff01),
                0x13 => (0x0000_ffff_03f1_f000, 0xffff_ffff_ffff_ff01),
                0x40 => (0xffff_ffff_ffff_fa00, 0xffff_ffff_ffff_f03f),
                _ => (0, 0),
            };
            words = [words[0] & bits0, words[1] & bits1];
            if rng.u8(..4) == 0 {
                // No range.
                words = [words[0] & !0x03ff_f000, words[1] & !0xf00];
            }
            if rng.u8(..4) == 0 {
                words[rng.usize(..2)] ^= 1 << rng.u8(..64);
            }
        }
    }
    words[0] = words[0] & !0xff | opcode;
    words
}

fn random(check: &Check, sets: &[Question], n: u64, rng: &mut Rng) -> u64 {
    // To read the table takes as long as some hundred questions.
    let set = sets[rng.usize(..sets.len())];
    let spec = Spec::new(&set);
    for _ in 0..n {
        let question = Question {
            words: any_command(rng),
            vmid: rng.u16(..),
            sid: rng.u32(..),
            found: rng.u8(..4) != 0,
            ..set
        };
        check.ask(&spec, &question);
    }
    n
}

/// Commands in blocks.
fn in_blocks(check: &Check, sets: &[Question], n: u64, rng: &mut Rng) -> u64 {
    let set = sets[rng.usize(..sets.len())];
    let spec = Spec::new(&set);
    let mut asked = 0;

    for _ in 0..n {
        let question = Question {
            vmid: rng.u16(..),
            sid: rng.u32(..),
            found: rng.u8(..16) != 0,
            ..set
        };
        let mut before: Vec<[u64; 2]> =
            (0..rng.usize(..=BLOCK)).map(|_| any_command(rng)).collect();
        let answer = |words: &[u64; 2]| {
            spec.answer(&Question {
                words: *words,
                ..question
            })
        };
        // Else there is hardly a long run without an illegal one.
        if rng.u8(..4) != 0 {
            before.retain(|words| answer(words).verdict == Verdict::Issue);
        }

        if let Err(difference) = check_block(&spec, &question, &before) {
            check.report(difference);
            break;
        }
        asked += before.len() as u64;
    }
    asked
}
