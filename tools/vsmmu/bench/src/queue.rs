// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel says of the command queue in debugfs.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::{debugfs, in_file};

/// The counters of a command queue, in a file with a name and a number in each line.
pub struct Queue(PathBuf);

/// How much went through the queue since the machine has started.
pub struct Counts {
    /// Commands other than CMD_SYNC.
    pub commands: u64,
    /// CMD_SYNCs.
    pub syncs: u64,
}

impl Queue {
    /// The queue of the first SMMU. There is none if the kernel does not count.
    pub fn find() -> io::Result<Option<Self>> {
        let mut files: Vec<_> = debugfs()?.iter().map(|dir| dir.join("cmdq")).collect();
        files.retain(|file| file.is_file());
        Ok(files.into_iter().min().map(Queue))
    }

    /// What it says now.
    pub fn counts(&self) -> io::Result<Counts> {
        let text = fs::read_to_string(&self.0).map_err(|e| in_file(&self.0, e))?;
        let count = |name| {
            parse(&text, name).ok_or_else(|| {
                let what = format!("{}: no number {name}", self.0.display());
                io::Error::new(io::ErrorKind::InvalidData, what)
            })
        };
        Ok(Counts {
            commands: count("commands")?,
            syncs: count("syncs")?,
        })
    }
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
