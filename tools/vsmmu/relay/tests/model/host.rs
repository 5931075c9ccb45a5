// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernels: one that keeps its contract, and one that answers as the C code of Linux 7.3. And the rest of
//! the VMM.

use std::collections::{HashSet, VecDeque};

use libc::{EAGAIN, EFAULT, EINTR, EINVAL, EIO, ENOMEM, ETIMEDOUT};
use vsmmu_relay::{Batch, Command, Handled, HostError, Outcome};

use crate::smmu::{Fate, Fates, next_fate};

/// A problem of the host's in one ioctl.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
pub struct Trouble {
    /// Which of [`ERRNOS`].
    pub errno: u8,
    /// So many of a hundred commands are complete before.
    pub percent: u8,
}

const ERRNOS: [i32; 6] = [EINTR, EAGAIN, ENOMEM, EFAULT, ETIMEDOUT, EINVAL];

impl Trouble {
    fn errno(self) -> i32 {
        ERRNOS[usize::from(self.errno) % ERRNOS.len()]
    }

    /// How many of `n` commands are complete before.
    fn done(self, n: usize) -> usize {
        n * usize::from(self.percent % 101) / 100
    }
}

/// A kernel, and the rest of the VMM.
pub struct Host {
    pub exact: bool,
    pub fates: Fates,
    pub troubles: VecDeque<Option<Trouble>>,
    /// What it has answered that the guest must not see.
    pub problems: HashSet<i32>,
    /// The tags of what it has executed.
    pub executed: HashSet<u64>,
}

impl Host {
    pub fn invalidate(&mut self, batch: &Batch) -> Outcome {
        let commands: Vec<_> = batch.commands().map(|command| command.words).collect();
        let trouble = self.troubles.pop_front().flatten();
        if self.exact {
            self.as_the_contract_says(&commands, trouble)
        } else {
            self.as_7_3(&commands, trouble)
        }
    }

    fn answer(&mut self, errno: i32, done: usize, code: u32) -> Outcome {
        if errno != 0 && code == 0 {
            self.problems.insert(errno);
        }
        Outcome {
            errno,
            done: done as u32,
            code,
        }
    }

    fn as_the_contract_says(&mut self, commands: &[[u64; 2]], trouble: Option<Trouble>) -> Outcome {
        let n = commands.len();
        let stop = trouble.map_or(n, |trouble| trouble.done(n));
        for (k, [word0, word1]) in commands[..stop].iter().enumerate() {
            let tag = word1 >> 12;
            match next_fate(&mut self.fates, tag) {
                Fate::Ill => return self.answer(EIO, k, 1),
                Fate::Abt => return self.answer(EIO, k, 2),
                Fate::Timeout if word0 & 0xff == 0x40 => return self.answer(EIO, k, 3),
                _ => self.executed.insert(tag),
            };
        }
        match trouble {
            // It leaves the argument as it was.
            Some(trouble) if trouble.errno() == EINVAL && stop == 0 => self.answer(EINVAL, n, 0),
            Some(trouble) if stop < n => self.answer(trouble.errno(), stop, 0),
            _ => self.answer(0, n, 0),
        }
    }

    /// Nothing has been issued of a batch with a command that it does not take, and the count says
    /// otherwise.
    fn as_7_3(&mut self, commands: &[[u64; 2]], trouble: Option<Trouble>) -> Outcome {
        let n = commands.len();
        if let Some(trouble) = trouble {
            return self.answer(trouble.errno(), trouble.done(n), 0);
        }
        // In a batch that is longer than the ring there are commands twice.
        let mut fates = self.fates.clone();
        let refused = commands
            .iter()
            .position(|[_, word1]| next_fate(&mut fates, word1 >> 12) == Fate::Ill);
        if let Some(k) = refused {
            if n == 1 {
                next_fate(&mut self.fates, commands[0][1] >> 12);
            }
            return Outcome {
                errno: EIO,
                done: k as u32,
                code: 0,
            };
        }
        for [_, word1] in commands {
            next_fate(&mut self.fates, word1 >> 12);
            self.executed.insert(word1 >> 12);
        }
        self.answer(0, n, 0)
    }

    /// What the VMM does with a command that is not forwarded.
    pub fn execute(&mut self, command: Command) -> Handled {
        let tag = command.words[1] >> 12;
        if command.opcode() != 0x03 {
            return Handled::Illegal;
        }
        match next_fate(&mut self.fates, tag) {
            Fate::Ill => Handled::Illegal,
            Fate::Later => {
                self.problems.insert(EAGAIN);
                Handled::Later(HostError { errno: EAGAIN })
            }
            _ => {
                self.executed.insert(tag);
                Handled::Done
            }
        }
    }
}
