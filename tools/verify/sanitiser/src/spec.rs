// SPDX-License-Identifier: GPL-2.0

//! What the sanitiser has to do, stated from the architecture and not from the code: the table of
//! commands in `commands.tsv`, and the few rules that are not about single bits.

use crate::{Answer, Question, Verdict};

const OPCODE: u64 = 0xff;
const VMID: u64 = 0xffff << 32;
const STREAM_ID: u64 = 0xffff_ffff << 32;

const TLBI_NH_ALL: u64 = 0x10;
const TLBI_NSNH_ALL: u64 = 0x30;
const ATC_INV: u64 = 0x40;

/// The specification for the SMMUs with one set of features.
pub struct Spec {
    commands: [Option<Command>; 256],
    ds: bool,
    ats: bool,
}

#[derive(Clone, Copy, Default)]
struct Command {
    /// Which bits are not reserved.
    bits: [u64; 2],
    has_vmid: bool,
    has_sid: bool,
    has_range: bool,
    has_size: bool,
}

impl Spec {
    /// Reads the table, for the features of `smmu`.
    pub fn new(smmu: &Question) -> Self {
        let mut commands = [None; 256];

        for line in include_str!("../commands.tsv").lines() {
            if line.starts_with('#') {
                continue;
            }
            let columns: Vec<&str> = line.split('\t').collect();
            let [_, opcode, word, high, low, field, when] = columns[..] else {
                panic!("not seven columns: {line}");
            };
            let number = |text: &str| -> usize { text.parse().expect("a number") };
            let opcode = usize::from_str_radix(opcode.trim_start_matches("0x"), 16);
            let command = commands[opcode.expect("an opcode")].get_or_insert(Command {
                bits: [OPCODE, 0],
                ..Command::default()
            });

            match field {
                "VMID" => command.has_vmid = true,
                "StreamID" => command.has_sid = true,
                "TG" => command.has_range = true,
                "Size" => command.has_size = true,
                _ => {}
            }
            let holds = match when {
                "always" => true,
                "asid16" => smmu.asid_bits == 16,
                "ril" => smmu.range_inv,
                "ril+ds" => smmu.range_inv && smmu.ds,
                "substreams" => smmu.ssid_bits != 0,
                _ => panic!("unknown condition: {line}"),
            };
            if holds {
                let (high, low) = (number(high), number(low));
                command.bits[number(word)] |= u64::MAX << low & u64::MAX >> (63 - high);
            }
        }
        Self {
            commands,
            ds: smmu.ds,
            ats: smmu.ats,
        }
    }

    /// The answer to a question about such an SMMU.
    pub fn answer(&self, question: &Question) -> Answer {
        let words = question.words;
        let mut answer = Answer {
            words,
            ..Answer::default()
        };
        let Some(command) = self.legal(words) else {
            return answer;
        };

        if command.has_sid {
            answer.lookups = 1;
            answer.vsid = (words[0] >> 32) as u32;
            if !question.found {
                return answer;
            }
            answer.words[0] = words[0] & !STREAM_ID | u64::from(question.sid) << 32;
        }
        if command.has_vmid {
            answer.words[0] = words[0] & !VMID | u64::from(question.vmid) << 32;
        }
        // All of the guest's translations are those of its VMID.
        if words[0] & OPCODE == TLBI_NSNH_ALL {
            answer.words = [TLBI_NH_ALL | u64::from(question.vmid) << 32, 0];
        }
        answer.verdict = Verdict::Issue;
        answer.has_atc_inv = words[0] & OPCODE == ATC_INV;
        answer
    }

    fn legal(&self, words: [u64; 2]) -> Option<&Command> {
        let command = self.commands[(words[0] & OPCODE) as usize].as_ref()?;
        let bits =
            |word: usize, high: u32, low: u32| words[word] << (63 - high) >> (63 - high + low);

        let reserved = words[0] & !command.bits[0] | words[1] & !command.bits[1];
        let (num, scale, ttl, tg) = (
            bits(0, 16, 12),
            bits(0, 25, 20),
            bits(1, 9, 8),
            bits(1, 11, 10),
        );
        let reserved_range = match tg {
            // No granule, no range.
            0 => num != 0 || scale != 0 || ttl != 0,
            // A 16 KB granule has no blocks at level 1 without 52-bit addresses.
            2 if ttl == 1 => !self.ds,
            // With a granule, one of the others has to be there.
            _ => num == 0 && scale == 0 && ttl == 0,
        };
        let illegal = reserved != 0
            || command.has_range && reserved_range
            || command.has_size && (!self.ats || bits(1, 5, 0) > 52);
        (!illegal).then_some(command)
    }
}
