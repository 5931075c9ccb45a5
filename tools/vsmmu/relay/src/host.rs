// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the host's kernel is asked, and what can be believed of its answer.

use core::fmt;

/// Flag in the `flags` of `struct iommu_hw_info_arm_smmuv3`: the kernel says exactly how many commands
/// are complete, and why the next one is not.
pub const IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE: u32 = 1 << 1;

/// The answer to a [`Batch`](crate::Batch), as the kernel gave it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// 0, or the positive errno.
    pub errno: i32,
    /// `entry_num` as it is after the call.
    pub done: u32,
    /// `out_driver_error_code`, which older headers call `__reserved`, as it is after the call.
    pub code: u32,
}

/// A problem of the host's that is not the guest's fault. The guest sees no error, and the queue stands at
/// the first command that is not known to be complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostError {
    /// The positive errno.
    pub errno: i32,
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the host cannot invalidate (errno {}), and the guest's command queue stands still",
            self.errno
        )
    }
}

impl core::error::Error for HostError {}

/// CMDQ_CONS.ERR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cerror {
    Ill = 1,
    Abt = 2,
    AtcInvSync = 3,
}

/// What an [`Outcome`] means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// All are complete.
    Done,
    /// So many are complete, and the next one has failed.
    Failed(u32, Cerror),
    /// So many are complete, and then the host had a problem.
    Problem(u32, HostError),
    /// Nothing can be said of any.
    Unknown,
}

impl Outcome {
    /// What can be believed of this answer to `asked` commands, by a kernel that answers exactly or not.
    pub(crate) fn judge(self, asked: u32, exact: bool) -> Answer {
        let errno = match self.errno {
            // No kernel should, but commands that are skipped would never be missed.
            0 if self.done != asked => libc::EPROTO,
            errno => errno,
        };
        let problem = |done| Answer::Problem(done, HostError { errno });
        let ill = |done| Answer::Failed(done, Cerror::Ill);
        match (errno, exact) {
            (0, _) => Answer::Done,
            (libc::EIO, true) if self.done < asked => match self.code {
                1 => ill(self.done),
                2 => Answer::Failed(self.done, Cerror::Abt),
                3 => Answer::Failed(self.done, Cerror::AtcInvSync),
                // What the guest should see is not known, so that it is not a problem of the guest's yet.
                _ => problem(self.done),
            },
            // At least one has failed: if none has, this is still our own number.
            (_, true) if self.done < asked => problem(self.done),
            (_, true) => problem(0),
            // There is no code. But that is what it answers to a command that it does not take.
            (libc::EIO, false) if asked == 1 => ill(0),
            (_, false) if asked == 1 => problem(0),
            // The count includes commands that were never issued.
            (_, false) => Answer::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_believe() {
        let judge = |errno, done, code, asked, exact| {
            let outcome = Outcome { errno, done, code };
            outcome.judge(asked, exact)
        };
        let problem = |done, errno| Answer::Problem(done, HostError { errno });

        for exact in [true, false] {
            assert_eq!(judge(0, 3, 0, 3, exact), Answer::Done);
            assert_eq!(judge(0, 0, 0, 1, exact), problem(0, libc::EPROTO));
        }
        assert_eq!(judge(0, 2, 0, 3, true), problem(2, libc::EPROTO));
        assert_eq!(judge(0, 4, 0, 3, true), problem(0, libc::EPROTO));
        assert_eq!(judge(0, 2, 0, 3, false), Answer::Unknown);
        for (code, cerror) in [(1, Cerror::Ill), (2, Cerror::Abt), (3, Cerror::AtcInvSync)] {
            let answer = judge(libc::EIO, 2, code, 3, true);
            assert_eq!(answer, Answer::Failed(2, cerror));
            // What a kernel that promises nothing has in that word means nothing.
            assert_eq!(judge(libc::EIO, 2, code, 3, false), Answer::Unknown);
        }
        for code in [0, 4, 1 << 24] {
            assert_eq!(judge(libc::EIO, 2, code, 3, true), problem(2, libc::EIO));
        }
        assert_eq!(judge(libc::EIO, 3, 1, 3, true), problem(0, libc::EIO));
        assert_eq!(judge(libc::EFAULT, 2, 0, 3, true), problem(2, libc::EFAULT));
        assert_eq!(judge(libc::EINVAL, 3, 0, 3, true), problem(0, libc::EINVAL));
        for errno in [libc::EIO, libc::ENOMEM, libc::ETIMEDOUT] {
            assert_eq!(judge(errno, 2, 0, 3, false), Answer::Unknown);
        }
        for done in [0, 1] {
            let ill = Answer::Failed(0, Cerror::Ill);
            assert_eq!(judge(libc::EIO, done, 0, 1, false), ill);
            let timeout = problem(0, libc::ETIMEDOUT);
            assert_eq!(judge(libc::ETIMEDOUT, done, 0, 1, false), timeout);
        }
    }
}
