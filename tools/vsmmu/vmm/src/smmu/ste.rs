// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The stream table, and what the host takes of its entries (IHI 0070, 5.2).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The first two words of an STE, in the CPU's endianness.
pub type Ste = [u64; 2];

/// One that is not valid: the SMMU aborts what the device does.
pub const INVALID: Ste = [0, 0];

const STE_SIZE: u64 = 64;
const VALID: u64 = 1 << 0;
const CONFIG_SHIFT: u32 = 1;
const CONFIG_ABORT: u64 = 0b000;
const CONFIG_BYPASS: u64 = 0b100;
const CONFIG_S1: u64 = 0b101;
/// V, Config, S1Fmt, S1ContextPtr, S1CDMax.
const ALLOWED_0: u64 = 0xf80f_ffff_ffff_ffff;
/// S1DSS, S1CIR, S1COR, S1CSH, S1STALLD, EATS.
const ALLOWED_1: u64 = 0x3800_00ff;

/// What the host takes of an STE. One that needs a stage 2 of the guest's, or that is reserved, is as good
/// as invalid, as the guest has been told of no such thing.
pub fn nested(ste: Ste) -> Ste {
    let config = ste[0] >> CONFIG_SHIFT & 7;
    if ste[0] & VALID == 0 || !matches!(config, CONFIG_ABORT | CONFIG_BYPASS | CONFIG_S1) {
        return INVALID;
    }
    [ste[0] & ALLOWED_0, ste[1] & ALLOWED_1]
}

/// The stream table, as registers have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamTable {
    /// STRTAB_BASE
    pub base: u64,
    /// STRTAB_BASE_CFG
    pub config: u32,
}

impl StreamTable {
    /// What it has for a stream. For one that it does not have, that is an entry which is not valid. `bits` is how
    /// many of a stream ID there are.
    pub fn lookup(self, memory: &GuestMemoryMmap, stream: u32, bits: u32) -> Ste {
        const ADDRESS: u64 = 0x000f_ffff_ffff_ffc0;
        const LOG2SIZE: u32 = 0x3f;
        const FORMAT: u32 = 3 << 16;
        let log2size = (self.config & LOG2SIZE).min(bits);
        // The guest has been told that there are linear tables only.
        if self.config & FORMAT != 0 || stream >> log2size != 0 {
            return INVALID;
        }
        // A table is aligned to its size.
        let base = self.base & ADDRESS & !((STE_SIZE << log2size) - 1);
        let at = GuestAddress(base + u64::from(stream) * STE_SIZE);
        match memory.read_obj::<Ste>(at) {
            Ok(words) => nested(words.map(u64::from_le)),
            Err(_) => INVALID,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CD: u64 = 0x4567_8000;

    #[test]
    fn what_the_host_takes() {
        let config = |config: u64| VALID | config << CONFIG_SHIFT | CD;
        // As Linux has it: with SHCFG, MEV, STRW, and EATS.
        let words = [
            config(CONFIG_S1) | 1 << 59,
            1 << 44 | 1 << 30 | 1 << 28 | 1 << 19 | 0xd6,
        ];
        assert_eq!(nested(words), [config(CONFIG_S1) | 1 << 59, 1 << 28 | 0xd6]);
        assert_eq!(
            nested([config(CONFIG_BYPASS), 1 << 44]),
            [config(CONFIG_BYPASS), 0]
        );
        assert_eq!(nested([config(CONFIG_ABORT), 0]), [config(CONFIG_ABORT), 0]);
        for bad in [0b001, 0b010, 0b011, 0b110, 0b111] {
            assert_eq!(nested([config(bad), 0]), INVALID);
        }
        assert_eq!(nested([config(CONFIG_S1) & !VALID, 0]), INVALID);
        // All other bits, with that configuration.
        let all = nested([!(1 << 2), u64::MAX]);
        assert_eq!(all, [0xf80f_ffff_ffff_fffb, 0x3800_00ff]);
    }

    #[test]
    fn the_table() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x10_0000), 0x1_0000)]).unwrap();
        let ste: Ste = [VALID | CONFIG_S1 << CONFIG_SHIFT | CD, 0x54];
        let put = |at| {
            memory
                .write_obj(ste.map(u64::to_le), GuestAddress(at))
                .unwrap()
        };
        put(0x10_0000 + 8 * 64);
        let table = StreamTable {
            base: 1 << 62 | 0x10_0000,
            config: 4,
        };
        assert_eq!(table.lookup(&memory, 8, 9), ste);
        assert_eq!(table.lookup(&memory, 7, 9), INVALID);
        // Not in the table, which has 16; as many as a stream ID allows; another format; no memory.
        put(0x10_0000 + 16 * 64);
        assert_eq!(table.lookup(&memory, 16, 9), INVALID);
        let with = |base, config| StreamTable { base, config };
        assert_eq!(with(0x10_0000, 5).lookup(&memory, 16, 9), ste);
        assert_eq!(with(0x10_0000, 5).lookup(&memory, 16, 4), INVALID);
        assert_eq!(with(0x10_0000, 1 << 16 | 5).lookup(&memory, 8, 9), INVALID);
        assert_eq!(with(0x20_0000, 4).lookup(&memory, 8, 9), INVALID);
        // Bits of the address below its alignment do not count.
        assert_eq!(with(0x10_0040, 4).lookup(&memory, 8, 9), ste);
    }
}
