// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What went through the command queue: as the kernel says in debugfs, or as the emulator says.

use std::cell::RefCell;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vsmmu_faults::control::Control;

use crate::{debugfs, in_file};

/// Who counts.
pub enum Counter {
    /// The kernel, in a file with a name and a number in each line.
    Kernel(PathBuf),
    /// The emulator.
    Emulator(RefCell<Control>),
}

/// How much went through the queue since the machine has started, or in some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Commands other than CMD_SYNC.
    pub commands: u64,
    /// CMD_SYNCs.
    pub syncs: u64,
    /// Reads and writes of the queue's registers, which only the emulator counts.
    pub reads: Option<u64>,
    pub writes: Option<u64>,
}

impl Counts {
    /// What has been added since `before`.
    pub fn since(self, before: Counts) -> Counts {
        let less = |now: Option<u64>, before: Option<u64>| Some(now? - before?);
        Counts {
            commands: self.commands - before.commands,
            syncs: self.syncs - before.syncs,
            reads: less(self.reads, before.reads),
            writes: less(self.writes, before.writes),
        }
    }
}

impl Counter {
    /// The kernel, for the queue of the first SMMU. There is none if the kernel does not count.
    pub fn kernel() -> io::Result<Option<Self>> {
        let mut files: Vec<_> = debugfs()?.iter().map(|dir| dir.join("cmdq")).collect();
        files.retain(|file| file.is_file());
        Ok(files.into_iter().min().map(Counter::Kernel))
    }

    /// The emulator.
    pub fn emulator() -> Result<Self, Box<dyn Error>> {
        Ok(Counter::Emulator(RefCell::new(Control::open()?)))
    }

    /// What it says now.
    pub fn counts(&self) -> Result<Counts, Box<dyn Error>> {
        match self {
            Counter::Kernel(file) => Ok(read(file)?),
            Counter::Emulator(control) => {
                let traffic = control.borrow_mut().traffic()?;
                Ok(Counts {
                    commands: traffic.commands,
                    syncs: traffic.syncs,
                    reads: Some(traffic.reads),
                    writes: Some(traffic.writes),
                })
            }
        }
    }
}

/// What a file of the kernel's says.
fn read(file: &Path) -> io::Result<Counts> {
    let text = fs::read_to_string(file).map_err(|e| in_file(file, e))?;
    let count = |name| {
        parse(&text, name).ok_or_else(|| {
            let what = format!("{}: no number {name}", file.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    };
    Ok(Counts {
        commands: count("commands")?,
        syncs: count("syncs")?,
        reads: None,
        writes: None,
    })
}

/// The number behind `name`.
fn parse(text: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().filter_map(|line| line.split_once(' '));
    words.find(|(key, _)| *key == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let text = "batches 12\ncommands 34\nsyncs x\n";
        assert_eq!(parse(text, "batches"), Some(12));
        assert_eq!(parse(text, "commands"), Some(34));
        assert_eq!(parse(text, "syncs"), None);
        assert_eq!(parse(text, "ill"), None);
    }
}
