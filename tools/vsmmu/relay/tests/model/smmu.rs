// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model: an SMMU that takes one command at a time, and knows nothing of batches, kernels and counts.

use std::collections::{HashMap, VecDeque};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vsmmu_relay::{Signal, State};

/// IDR1.CMDQS: there are guests that ask for more.
pub const CMDQS: u8 = 8;

/// What happens to a command when it is fetched for the nth time. At the end of the list all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
pub enum Fate {
    Ok,
    Ill,
    Abt,
    /// Of an ATC_INV. With other commands all is well.
    Timeout,
    /// Of a command that the VMM executes: tried again, and the guest is none the wiser.
    Later,
}

/// By the tag of the command.
pub type Fates = HashMap<u64, VecDeque<Fate>>;

pub fn next_fate(fates: &mut Fates, tag: u64) -> Fate {
    let fate = fates.get_mut(&tag).and_then(VecDeque::pop_front);
    fate.unwrap_or(Fate::Ok)
}

/// Commands carry a number, by which their fates are known.
#[derive(Clone, Debug)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
pub enum Kind {
    Tlbi,
    Atc,
    Own,
    Unknown,
    Secure,
    /// With this CS.
    Sync(u8),
}

pub fn encode(kind: &Kind, tag: u64) -> [u64; 2] {
    match kind {
        Kind::Tlbi => [0x12, tag << 12],
        Kind::Atc => [0x40 | 7 << 32, tag << 12],
        Kind::Own => [0x03, tag << 12],
        Kind::Unknown => [0x7f, tag << 12],
        Kind::Secure => [0x12 | 1 << 10, tag << 12],
        Kind::Sync(cs) => [0x46 | u64::from(cs & 3) << 12 | tag << 32, tag << 12],
    }
}

/// What the SMMU has done with the command at CONS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is none that it may take.
    Idle,
    /// CONS stays where it is.
    Error,
    /// The host has executed it.
    Executed(u64),
    /// The VMM has.
    Own(u64),
    TimedOut,
    Sync(Signal),
}

/// An index and its wrap bit are apart here.
#[derive(Default)]
pub struct Model {
    pub base: u64,
    pub prod: u32,
    pub cons: (u32, bool),
    pub err: u32,
    pub on: bool,
    pub gerror: u32,
    pub gerrorn: u32,
    pub unanswered: bool,
    pub fates: Fates,
}

impl Model {
    /// What goes on from that.
    pub fn restored(state: &State) -> Self {
        let mut model = Model {
            base: state.base,
            prod: state.prod,
            err: state.cons >> 24,
            on: state.enabled,
            gerror: state.gerror.into(),
            gerrorn: state.gerrorn.into(),
            unanswered: state.atc_inv_failed,
            ..Model::default()
        };
        model.cons = model.split(state.cons);
        model
    }

    pub fn log2size(&self) -> u32 {
        (self.base & 31).min(CMDQS.into()) as u32
    }

    pub fn entries(&self) -> u32 {
        1 << self.log2size()
    }

    pub fn place(&self, pointer: u32) -> GuestAddress {
        let size = 16_u64 << self.log2size();
        let ring = self.base % (1 << 56) / size.max(32) * size.max(32);
        GuestAddress(ring + u64::from(pointer) * 16 % size)
    }

    fn split(&self, pointer: u32) -> (u32, bool) {
        let size = self.entries();
        (pointer % size, pointer / size % 2 == 1)
    }

    pub fn cons_register(&self) -> u32 {
        self.cons.0 + (u32::from(self.cons.1) << self.log2size())
    }

    pub fn left(&self) -> u32 {
        self.prod.wrapping_sub(self.cons_register()) % (2 * self.entries())
    }

    pub fn halted(&self) -> bool {
        self.gerror != self.gerrorn
    }

    /// The guest writes a register. Some cannot be written while commands are executed.
    pub fn write(&mut self, offset: u64, value: u64, busy: bool) {
        let fixed = self.on || busy;
        match offset {
            0x20 => self.on = value & 8 != 0,
            0x64 => self.gerrorn = value as u32 & 1,
            0x90 if !fixed => self.base = value & 0x40ff_ffff_ffff_ffff,
            0x98 => self.prod = value as u32 & 0xf_ffff,
            0x9c if !fixed => {
                self.cons = self.split(value as u32);
                self.err = value as u32 >> 24 & 0x7f;
            }
            _ => {}
        }
    }

    fn error(&mut self, code: u32) -> Step {
        self.err = code;
        self.gerror = 1 - self.gerrorn;
        Step::Error
    }

    /// Takes one command, if the queue is on and has no error. What is `fetched` is executed even so.
    pub fn step(&mut self, mem: &GuestMemoryMmap<()>, fetched: bool) -> Step {
        if self.split(self.prod) == self.cons || !fetched && (!self.on || self.halted()) {
            return Step::Idle;
        }
        let Ok([word0, word1]) = mem.read_obj::<[u64; 2]>(self.place(self.cons.0)) else {
            return self.error(2);
        };
        let tag = word1 >> 12;
        if word0 >> 10 & 1 == 1 {
            return self.error(1);
        }
        let step = match word0 & 0xff {
            0x12 | 0x40 => match next_fate(&mut self.fates, tag) {
                Fate::Ill => return self.error(1),
                Fate::Abt => return self.error(2),
                Fate::Timeout if word0 & 0xff == 0x40 => {
                    self.unanswered = true;
                    Step::TimedOut
                }
                _ => Step::Executed(tag),
            },
            0x03 => {
                // The guest knows nothing of delays.
                let mut fate = Fate::Later;
                while fate == Fate::Later {
                    fate = next_fate(&mut self.fates, tag);
                }
                if fate == Fate::Ill {
                    return self.error(1);
                }
                Step::Own(tag)
            }
            0x46 => {
                let signal = match word0 >> 12 & 3 {
                    0 => Signal::None,
                    1 => Signal::Irq {
                        address: word1 & !3,
                        data: (word0 >> 32) as u32,
                    },
                    2 => Signal::Sev,
                    _ => return self.error(1),
                };
                if std::mem::take(&mut self.unanswered) {
                    return self.error(3);
                }
                Step::Sync(signal)
            }
            _ => return self.error(1),
        };
        self.cons.0 += 1;
        if self.cons.0 == self.entries() {
            self.cons = (0, !self.cons.1);
        }
        step
    }
}
