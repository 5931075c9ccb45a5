// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Programs: what is done one after the other or at the same time, as bytes that can be changed at will,
//! and as what they mean.

use std::fmt;
use std::str::FromStr;

use arbitrary::{Arbitrary, Unstructured};
use fastrand::Rng;

/// How many bytes an operation is made of.
const CHUNK: usize = 32;
/// No program has more operations.
const MAX_OPS: usize = 64;

/// A program, as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program(Vec<[u8; CHUNK]>);

/// Chooses an object.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Pick {
    /// Which of those that are of the right type.
    pub nth: u8,
    /// If it is less than 16: of any type. Less than 4: none.
    pub wrong: u8,
}

/// How an argument is passed.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Passing {
    /// 0 to 5 are odd sizes and places.
    pub odd: u8,
}

/// The array of an invalidation.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Array {
    /// What it is made from.
    pub seed: u64,
    /// How long it is, by order of magnitude.
    pub magnitude: u8,
    /// How far between the orders.
    pub length: u16,
    /// The length of an entry, if it is less than 32.
    pub entry_len: u8,
    /// Where it is.
    pub base: u8,
    /// How much of it cannot be read.
    pub cut: u16,
    /// How many commands are not what they were: 0 to 3, if it is less than 128.
    pub planted: u8,
}

/// An operation.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// All that a device needs to be behind a nested SMMU.
    Nest { device: u8, vsid: u8, ats: bool },
    /// The ioctl.
    Invalidate {
        object: Pick,
        array: Array,
        /// If it is less than 8, another type than that of SMMUv3 commands.
        data_type: u8,
        /// 0 to 7 are odd sizes and places.
        odd: u8,
    },
    /// An IOAS.
    IoasAlloc { flags: u8, passing: Passing },
    /// A paging or nested HWPT.
    HwptAlloc {
        device: Pick,
        parent: Pick,
        nested: bool,
        flags: u8,
        ste: u8,
        flip: u8,
        odd: u8,
        passing: Passing,
    },
    /// A vIOMMU.
    ViommuAlloc {
        device: Pick,
        hwpt: Pick,
        kind: u8,
        passing: Passing,
    },
    /// A vDEVICE.
    VdeviceAlloc {
        device: Pick,
        viommu: Pick,
        vsid: u8,
        passing: Passing,
    },
    /// A vEVENTQ.
    VeventqAlloc {
        viommu: Pick,
        kind: u8,
        depth: u8,
        passing: Passing,
    },
    /// A queue of page faults.
    FaultAlloc { flags: u8, passing: Passing },
    /// A queue that the hardware would read.
    HwQueueAlloc {
        viommu: Pick,
        kind: u8,
        passing: Passing,
    },
    /// Attaches a device.
    Attach { device: u8, to: Pick, ioas: bool },
    /// Detaches a device.
    Detach { device: u8 },
    /// Destroys an object.
    Destroy { object: Pick, type_: u8 },
    /// Maps a page or some.
    Map {
        ioas: Pick,
        page: u8,
        pages: u8,
        flags: u8,
        passing: Passing,
    },
    /// Unmaps as many.
    Unmap {
        ioas: Pick,
        page: u8,
        pages: u8,
        passing: Passing,
    },
    /// What the hardware is.
    HwInfo {
        device: Pick,
        kind: u8,
        passing: Passing,
    },
    /// The ioctls that have nothing to do with this.
    Other {
        which: u8,
        object: Pick,
        value: u8,
        passing: Passing,
    },
    /// Reads the queues of events, and closes them.
    CloseQueues,
    /// Has the device do DMA, of which most fail.
    Dma { device: u8, address: u8 },
    /// Has the SMMU fail from now on.
    Rule {
        kind: u8,
        opcode: u8,
        skip: u8,
        times: u8,
    },
}

/// An operation, and where it is done.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// In which of the VMs.
    pub vm: u8,
    /// At the same time as those before and behind it that have this set as well.
    pub parallel: bool,
    /// What is done.
    pub op: Op,
}

impl<'a> Arbitrary<'a> for Op {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let choice: u8 = u.arbitrary()?;
        Ok(match choice {
            0..=13 => Op::Nest {
                device: u.arbitrary()?,
                vsid: u.arbitrary()?,
                ats: u.arbitrary()?,
            },
            14..=152 => Op::Invalidate {
                object: u.arbitrary()?,
                array: u.arbitrary()?,
                data_type: u.arbitrary()?,
                odd: u.arbitrary()?,
            },
            153..=155 => Op::IoasAlloc {
                flags: u.arbitrary()?,
                passing: u.arbitrary()?,
            },
            156..=168 => Op::HwptAlloc {
                device: u.arbitrary()?,
                parent: u.arbitrary()?,
                nested: u.arbitrary()?,
                flags: u.arbitrary()?,
                ste: u.arbitrary()?,
                flip: u.arbitrary()?,
                odd: u.arbitrary()?,
                passing: u.arbitrary()?,
            },
            169..=174 => Op::ViommuAlloc {
                device: u.arbitrary()?,
                hwpt: u.arbitrary()?,
                kind: u.arbitrary()?,
                passing: u.arbitrary()?,
            },
            175..=186 => Op::VdeviceAlloc {
                device: u.arbitrary()?,
                viommu: u.arbitrary()?,
                vsid: u.arbitrary()?,
                passing: u.arbitrary()?,
            },
            187..=190 => Op::VeventqAlloc {
                viommu: u.arbitrary()?,
                kind: u.arbitrary()?,
                depth: u.arbitrary()?,
                passing: u.arbitrary()?,
            },
            191..=192 => Op::FaultAlloc {
                flags: u.arbitrary()?,
                passing: u.arbitrary()?,
            },
            193 => Op::HwQueueAlloc {
                viommu: u.arbitrary()?,
                kind: u.arbitrary()?,
                passing: u.arbitrary()?,
            },
            194..=205 => Op::Attach {
                device: u.arbitrary()?,
                to: u.arbitrary()?,
                ioas: u.arbitrary()?,
            },
            206..=209 => Op::Detach {
                device: u.arbitrary()?,
            },
            210..=223 => Op::Destroy {
                object: u.arbitrary()?,
                type_: u.arbitrary()?,
            },
            224..=229 => Op::Map {
                ioas: u.arbitrary()?,
                page: u.arbitrary()?,
                pages: u.arbitrary()?,
                flags: u.arbitrary()?,
                passing: u.arbitrary()?,
            },
            230..=235 => Op::Unmap {
                ioas: u.arbitrary()?,
                page: u.arbitrary()?,
                pages: u.arbitrary()?,
                passing: u.arbitrary()?,
            },
            236..=239 => Op::HwInfo {
                device: u.arbitrary()?,
                kind: u.arbitrary()?,
                passing: u.arbitrary()?,
            },
            240..=245 => Op::Other {
                which: u.arbitrary()?,
                object: u.arbitrary()?,
                value: u.arbitrary()?,
                passing: u.arbitrary()?,
            },
            246..=249 => Op::CloseQueues,
            250..=252 => Op::Dma {
                device: u.arbitrary()?,
                address: u.arbitrary()?,
            },
            253..=255 => Op::Rule {
                kind: u.arbitrary()?,
                opcode: u.arbitrary()?,
                skip: u.arbitrary()?,
                times: u.arbitrary()?,
            },
        })
    }
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let place: u8 = u.arbitrary()?;
        Ok(Step {
            vm: place & 1,
            parallel: place & 4 != 0,
            op: u.arbitrary()?,
        })
    }
}

fn chunk(rng: &mut Rng) -> [u8; CHUNK] {
    let mut chunk = [0; CHUNK];
    rng.fill(&mut chunk);
    chunk
}

impl Program {
    /// A new one.
    pub fn random(rng: &mut Rng) -> Self {
        Program((0..rng.usize(4..24)).map(|_| chunk(rng)).collect())
    }

    /// One that is like this, with something of `other`.
    pub fn mutated(&self, rng: &mut Rng, other: &Program) -> Self {
        let mut chunks = self.0.clone();
        for _ in 0..rng.usize(1..6) {
            let len = chunks.len();
            let at = rng.usize(..len.max(1));
            match rng.u8(..8) {
                _ if len == 0 => chunks.push(chunk(rng)),
                0 | 1 => chunks[at][rng.usize(..CHUNK)] = rng.u8(..),
                2 => chunks[at][rng.usize(..CHUNK)] ^= 1 << rng.u8(..8),
                3 => chunks.insert(at, chunk(rng)),
                4 if len > 1 => drop(chunks.remove(at)),
                5 => chunks.swap(at, rng.usize(..len)),
                6 => chunks.insert(at, chunks[rng.usize(..len)]),
                _ if !other.0.is_empty() => {
                    let from = rng.usize(..other.0.len());
                    let to = (from + rng.usize(1..8)).min(other.0.len());
                    chunks.splice(at..at, other.0[from..to].iter().copied());
                }
                _ => {}
            }
        }
        chunks.truncate(MAX_OPS);
        Program(chunks)
    }

    /// What it does.
    pub fn steps(&self) -> Vec<Step> {
        let steps = self
            .0
            .iter()
            .map(|chunk| Step::arbitrary(&mut Unstructured::new(chunk)));
        // What is missing at the end of the bytes is zero, so that none fails.
        steps.filter_map(Result::ok).collect()
    }
}

/// An operation in each line, in hexadecimal digits.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in &self.0 {
            for byte in chunk {
                write!(f, "{byte:02x}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl FromStr for Program {
    type Err = String;

    /// Lines that begin with `#` are not part of it.
    fn from_str(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let parse = |line: &str| -> Option<[u8; CHUNK]> {
            let digits = line.as_bytes();
            let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
            let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
            bytes?.try_into().ok()
        };
        let chunks = lines.map(|line| parse(line).ok_or(format!("not an operation: {line}")));
        Ok(Program(chunks.collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let mut rng = Rng::with_seed(3);
        let (a, b) = (Program::random(&mut rng), Program::random(&mut rng));
        for _ in 0..1000 {
            let program = a.mutated(&mut rng, &b);
            let text = format!("# seed 3\n{program}\n");
            assert_eq!(text.parse(), Ok(program));
        }
        assert!("00".parse::<Program>().is_err());
    }

    #[test]
    fn each_chunk_means_something() {
        let mut rng = Rng::with_seed(4);
        for _ in 0..1000 {
            let program = Program::random(&mut rng);
            assert_eq!(program.steps().len(), program.0.len());
        }
    }
}
