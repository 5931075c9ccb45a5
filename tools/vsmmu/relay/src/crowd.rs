// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether it is worth waiting for CPUs that are about to come back.
//!
//! A CPU of a Linux guest queues a command and a CMD_SYNC, and waits. While the host works for some of
//! them, others queue. So two groups of CPUs take turns, each of which waits for the other: of four busy
//! CPUs never more than two on an average go with one ioctl. If those that were let go with the ioctl before
//! have come back while this one was in flight, then those that are let go now can be expected to be as
//! quick, and it is better to wait for them: all go together from then on. Where that does not come true,
//! it is tried more and more rarely.

/// How many chances are passed over at most after one that was of no use.
const MOST: u32 = 16;

/// How many times PROD has been written, each by a CPU that waits for what it has queued.
#[derive(Debug)]
pub(crate) struct Crowd {
    /// Since the last ioctl was begun.
    waiting: u32,
    /// Before that one, and before the one before.
    sent: u32,
    before: u32,
    /// How many the next ioctl could be for: 0 if that is not known.
    expected: u32,
    /// The VMM has been asked to wait for them.
    asked: bool,
    /// The last ioctl was for all that were expected.
    complete: bool,
    /// How many chances are passed over, now and after the next one that is of no use.
    skip: u32,
    rest: u32,
}

impl Crowd {
    pub(crate) fn new() -> Self {
        Crowd {
            waiting: 0,
            sent: 0,
            before: 0,
            expected: 0,
            asked: false,
            complete: false,
            skip: 0,
            rest: 1,
        }
    }

    /// PROD is written.
    #[inline]
    pub(crate) fn come(&mut self) {
        self.waiting = self.waiting.saturating_add(1);
    }

    /// Whether some are there, and others are on their way.
    #[inline]
    pub(crate) fn is_gathering(&self) -> bool {
        0 < self.waiting && self.waiting < self.expected
    }

    /// Whether the VMM is to wait, which it is asked once for each ioctl.
    #[inline]
    pub(crate) fn ask(&mut self) -> bool {
        let ask = !self.asked && self.is_gathering();
        self.asked |= ask;
        ask
    }

    /// An ioctl is begun for all that wait.
    pub(crate) fn send(&mut self) {
        self.complete = self.expected > 0 && self.waiting >= self.expected;
        if self.complete {
            self.rest = 1;
        } else if self.asked {
            self.skip = self.rest - 1;
            self.rest = (2 * self.rest).min(MOST);
        }
        self.before = self.sent;
        self.sent = self.waiting;
        self.waiting = 0;
        self.expected = 0;
        self.asked = false;
    }

    /// The ioctl has returned, and all of it was good.
    pub(crate) fn release(&mut self) {
        let all = self.waiting.saturating_add(self.sent);
        if all < 2 {
            return;
        }
        if self.complete {
            self.expected = all;
        } else if self.before > 0 && self.waiting >= self.before {
            if self.skip > 0 {
                self.skip -= 1;
            } else {
                self.expected = all;
            }
        }
    }

    /// What has been seen so far means nothing for what comes, but how many wait.
    pub(crate) fn forget(&mut self) {
        *self = Crowd {
            waiting: self.waiting,
            skip: self.skip,
            rest: self.rest,
            ..Crowd::new()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ioctl, during which so many come.
    fn ioctl(crowd: &mut Crowd, come: u32) {
        crowd.send();
        (0..come).for_each(|_| crowd.come());
        crowd.release();
    }

    #[test]
    fn two_groups_become_one() {
        let mut crowd = Crowd::new();
        crowd.come();
        // Three come while the host works for one, and that one while it works for them.
        ioctl(&mut crowd, 3);
        assert!(!crowd.ask());
        ioctl(&mut crowd, 1);
        assert!(crowd.ask() && crowd.is_gathering());
        // Once.
        assert!(!crowd.ask());
        for _ in 0..3 {
            assert!(crowd.is_gathering());
            crowd.come();
        }
        assert!(!crowd.is_gathering());
        // From now on all of them are waited for, when the first is there.
        for _ in 0..5 {
            ioctl(&mut crowd, 0);
            assert!(!crowd.ask());
            crowd.come();
            assert!(crowd.ask());
            (0..3).for_each(|_| crowd.come());
        }
    }

    #[test]
    fn nobody_else() {
        let mut crowd = Crowd::new();
        for _ in 0..5 {
            crowd.come();
            assert!(!crowd.ask());
            ioctl(&mut crowd, 0);
        }
    }

    #[test]
    fn who_thinks_for_long_is_not_waited_for() {
        let mut crowd = Crowd::new();
        (0..2).for_each(|_| crowd.come());
        for _ in 0..5 {
            // One of two, each time.
            ioctl(&mut crowd, 1);
            assert!(!crowd.ask() || crowd.before == 1);
        }
    }

    #[test]
    fn in_vain_more_and_more_rarely() {
        let mut crowd = Crowd::new();
        crowd.come();
        // As if they came in turn, and never together.
        let mut asked = [false; 100];
        for asked in &mut asked {
            ioctl(&mut crowd, 1);
            *asked = crowd.ask();
        }
        let times = (0..100).filter(|i| asked[*i]);
        assert!(times.eq([1, 2, 4, 8, 16, 32, 48, 64, 80, 96]));
        // All that is forgotten at an error is who was there.
        crowd.forget();
        assert!(!crowd.is_gathering());
        assert_eq!((crowd.waiting, crowd.rest), (1, MOST));
    }
}
