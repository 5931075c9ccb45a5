// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is sent with one ioctl, and where the CMD_SYNCs were in between.

use alloc::vec::Vec;

use crate::command::{Bytes, Command, Signal};

/// Commands for one `ioctl(IOMMU_HWPT_INVALIDATE)`: one at least.
///
/// It owns its copy of the commands, so that it can be moved to another thread. The kernel takes no
/// CMD_SYNC, so those that the guest has between the commands are not among them.
///
/// Should it ever get lost, in a thread that panics for example, then
/// [`Cmdq::restore`](crate::Cmdq::restore) with the queue's own [`Cmdq::state`](crate::Cmdq::state) has the
/// queue go on.
#[derive(Debug, Default)]
#[must_use = "the queue stands still until it gets this back with Cmdq::complete()"]
pub struct Batch {
    pub(crate) ticket: u64,
    commands: Vec<Bytes>,
    syncs: Vec<SyncEntry>,
}

/// A CMD_SYNC of the guest's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SyncEntry {
    /// How many commands of the batch are before it.
    pub(crate) behind: u32,
    pub(crate) signal: Signal,
}

impl Batch {
    /// How many commands there are, of 16 bytes each: `entry_num`.
    #[inline]
    pub fn count(&self) -> u32 {
        self.commands.len() as u32
    }

    /// The commands as the ioctl takes them: little-endian, one behind the other.
    pub fn as_bytes(&self) -> &[u8] {
        self.commands.as_flattened()
    }

    /// The address of [`Batch::as_bytes`]: `data_uptr`. It stays the same when the batch is moved.
    pub fn address(&self) -> u64 {
        self.as_bytes().as_ptr() as u64
    }

    /// The commands one by one.
    pub fn commands(&self) -> impl ExactSizeIterator<Item = Command> + '_ {
        self.commands.iter().map(Command::from_bytes)
    }

    /// How many CMD_SYNCs of the guest's are complete when all commands are.
    #[inline]
    pub fn sync_count(&self) -> u32 {
        self.syncs.len() as u32
    }

    pub(crate) fn clear(&mut self) {
        self.commands.clear();
        self.syncs.clear();
    }

    #[inline]
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.commands.push(bytes);
    }

    #[inline]
    pub(crate) fn push_sync(&mut self, signal: Signal) {
        let behind = self.count();
        self.syncs.push(SyncEntry { behind, signal });
    }

    pub(crate) fn sync(&self, index: u32) -> SyncEntry {
        self.syncs[index as usize]
    }

    /// How many CMD_SYNCs have none but the first `done` commands before them.
    pub(crate) fn syncs_within(&self, done: u32) -> u32 {
        self.syncs.partition_point(|sync| sync.behind <= done) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_cmd_syncs() {
        let mut batch = Batch::default();
        for word in [1_u8, 2, 3] {
            let mut bytes = [0; 16];
            bytes[0] = word;
            bytes[15] = word;
            batch.push(bytes);
            if word != 2 {
                batch.push_sync(Signal::Sev);
            }
        }
        batch.push_sync(Signal::None);
        assert_eq!((batch.count(), batch.sync_count()), (3, 3));
        assert_eq!(batch.as_bytes().len(), 48);
        assert_eq!(batch.as_bytes()[31], 2);
        assert_eq!(batch.address(), batch.as_bytes().as_ptr() as u64);
        let words = batch.commands().map(|command| command.words);
        assert!(words.eq([1, 2, 3].map(|n| [n, n << 56])));
        let within = [0, 1, 2, 3].map(|done| batch.syncs_within(done));
        assert_eq!(within, [0, 1, 1, 3]);
        assert_eq!(batch.sync(2).signal, Signal::None);
    }
}
