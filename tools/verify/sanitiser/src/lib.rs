// SPDX-License-Identifier: GPL-2.0

//! The sanitiser behind a plain interface, which the C code has too: a question and an answer.
//!
//! The programs that check it, and the prover that reads its machine code, know nothing else of
//! it. What a stream's look-up finds is part of the question.

use std::cell::Cell;

// The kernel's macros name that crate.
extern crate kernel as pin_init;

include!(concat!(env!("OUT_DIR"), "/driver.rs"));

use cmd::Cmd;
use sanitise::{Features, Illegal, Stream};
use spec::Spec;

pub mod spec;

/// A command of a guest, the SMMU that it is meant for, and what there is to know of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Question {
    pub words: [u64; 2],
    pub asid_bits: u32,
    pub ssid_bits: u32,
    /// The stream ID that the look-up gives, if it has `found` any.
    pub sid: u32,
    pub vmid: u16,
    pub range_inv: bool,
    pub ds: bool,
    pub ats: bool,
    pub found: bool,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Answer {
    /// The command, afterwards.
    pub words: [u64; 2],
    /// The virtual stream ID that was looked up last, and how often one was.
    pub vsid: u32,
    pub lookups: u32,
    pub verdict: Verdict,
    pub has_atc_inv: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    #[default]
    Illegal = 0,
    /// It goes to the physical SMMU.
    Issue = 1,
    /// What no command can be.
    Nonsense = 2,
}

impl Question {
    fn features(&self) -> Features {
        Features {
            range_inv: self.range_inv,
            ds: self.ds,
            ats: self.ats,
            asid_bits: self.asid_bits,
            ssid_bits: self.ssid_bits,
        }
    }

    /// A device with ATS and substreams. Without, a `CMD_ATC_INV` may have no effect, which is not
    /// for its bits to say, and which KUnit tests look at.
    fn find_stream(&self) -> Option<Stream> {
        self.found.then_some(Stream {
            sid: self.sid,
            has_ats: true,
            has_substreams: true,
        })
    }

    /// Each combination of what an SMMU may have.
    pub fn feature_sets() -> Vec<Self> {
        let mut sets = Vec::new();
        for flags in 0..16 {
            for ssid_bits in 0..=20 {
                sets.push(Self {
                    range_inv: flags & 1 != 0,
                    ds: flags & 2 != 0,
                    ats: flags & 4 != 0,
                    asid_bits: if flags & 8 != 0 { 16 } else { 8 },
                    ssid_bits,
                    ..Self::default()
                });
            }
        }
        sets
    }
}

/// Asks the sanitiser.
#[no_mangle]
pub extern "C" fn verify_rust(question: &Question, answer: &mut Answer) {
    let mut block = [Cmd::new(question.words)];
    let lookups = Cell::new((0, 0));

    let (batch, result) = question
        .features()
        .sanitise_block(&mut block, question.vmid, |vsid| {
            lookups.set((vsid, lookups.get().1 + 1));
            question.find_stream()
        });
    let has_atc_inv = batch.has_atc_inv();
    let verdict = match (batch.cmds().len(), result) {
        (1, Ok(())) => Verdict::Issue,
        (0, Err(Illegal)) => Verdict::Illegal,
        _ => Verdict::Nonsense,
    };
    *answer = Answer {
        words: block[0].words(),
        vsid: lookups.get().0,
        lookups: lookups.get().1,
        verdict,
        has_atc_inv,
    };
}

/// Asks the C code.
#[no_mangle]
pub extern "C" fn verify_reference(question: &Question, answer: &mut Answer) {
    mod ffi {
        extern "C" {
            pub fn verify_c(question: &super::Question, answer: &mut super::Answer);
        }
    }
    // SAFETY: The structs have the same layout there, and it writes no verdict but 0 and 1.
    unsafe { ffi::verify_c(question, answer) }
}

/// Has commands sanitised that come together, of which the features, the VMID and the look-up are
/// those of `question`. Fails with a description unless each of them becomes what it becomes alone,
/// up to the first illegal one, and the rest stays as it was.
pub fn check_block(spec: &Spec, question: &Question, before: &[[u64; 2]]) -> Result<(), String> {
    let mut cmds: Vec<Cmd> = before.iter().map(|words| Cmd::new(*words)).collect();
    let (batch, result) = question
        .features()
        .sanitise_block(&mut cmds, question.vmid, |_| question.find_stream());
    let said = (batch.cmds().len(), result.is_ok(), batch.has_atc_inv());
    let after: Vec<[u64; 2]> = cmds.iter().map(|cmd| cmd.words()).collect();

    let mut expected = before.to_vec();
    let mut has_atc_inv = false;
    let mut len = 0;
    for words in &mut expected {
        let answer = spec.answer(&Question {
            words: *words,
            ..*question
        });
        if answer.verdict != Verdict::Issue {
            break;
        }
        *words = answer.words;
        has_atc_inv |= answer.has_atc_inv;
        len += 1;
    }
    if after == expected && said == (len, len == before.len(), has_atc_inv) {
        return Ok(());
    }
    Err(format!(
        "{question:#x?}\nblock: {before:#x?}\nafterwards: {after:#x?}\nexpected: {expected:#x?}\n\
         said: {said:?}"
    ))
}
