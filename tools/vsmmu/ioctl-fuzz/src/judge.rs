// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The contract of `ioctl(IOMMU_HWPT_INVALIDATE)`, as far as the answer to a call is bound by it.
//!
//! If the SMMU does not fail, and nobody does anything to the same objects at the same time, that is the
//! answer itself. Where several rows of the contract apply to a call or to a command, any of them will do.

use libc::{E2BIG, EFAULT, EINVAL, EIO, ETIMEDOUT};
use vsmmu_nested::{ErrorCode, Outcome};

/// How the SMMU may fail, or may have failed at some time in the call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// It may say that commands are illegal.
    pub ill: bool,
    /// It may fail to fetch commands.
    pub abt: bool,
    /// ATC_INVs may time out.
    pub atc: bool,
    /// It may take longer than the kernel waits.
    pub slow: bool,
}

/// What may be wrong with one command by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Something is: it cannot be complete.
    pub certain: bool,
    /// It may be illegal.
    pub illegal: bool,
    /// It may be unreadable.
    pub unreadable: bool,
    /// There may be something else than zeroes behind it.
    pub tail: bool,
    /// It is a CMD_ATC_INV whose device may not answer.
    pub unanswered: bool,
}

/// What is known of a call.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// What the structure had in it before.
    pub before: (u32, u32),
    /// The size of the structure is not one that the kernel takes.
    pub odd_size: bool,
    /// The structure cannot be read or written.
    pub no_answer: bool,
    /// The call is refused as a whole, with one of these.
    pub refused: Vec<i32>,
    /// It may be refused so.
    pub may_be_refused: Vec<i32>,
    /// The array.
    pub entries: Vec<Entry>,
    /// The SMMU.
    pub weather: Weather,
}

impl Question {
    /// Whether the kernel may answer this. If not, what is wrong.
    pub fn judge(&self, got: Outcome) -> Result<(), String> {
        let refused =
            |errnos: &[i32]| errnos.contains(&got.errno) && got.entry_num == 0 && got.code == 0;
        let as_it_was = (got.entry_num, got.code) == self.before;

        if self.odd_size || self.no_answer {
            let mut errnos = Vec::new();
            if self.odd_size {
                errnos.extend([EINVAL, E2BIG]);
            }
            if self.no_answer {
                errnos.push(EFAULT);
            }
            if !errnos.contains(&got.errno) || !as_it_was {
                return Err(format!(
                    "the structure is bad: one of {errnos:?}, and nothing changed"
                ));
            }
            return Ok(());
        }
        if refused(&self.refused) || refused(&self.may_be_refused) {
            return Ok(());
        }
        if !self.refused.is_empty() {
            return Err(format!("one of {:?} with 0 0 is due", self.refused));
        }
        self.judge_entries(got)
    }

    fn judge_entries(&self, got: Outcome) -> Result<(), String> {
        let n = self.entries.len();
        let k = got.entry_num as usize;
        let complete = self
            .entries
            .get(..k)
            .ok_or("it counts more than there are")?;
        if let Some(i) = complete.iter().position(|entry| entry.certain) {
            return Err(format!("it counts command {i}, which cannot be complete"));
        }
        if got.errno == 0 {
            return match (k == n, got.code) {
                (true, 0) => Ok(()),
                _ => Err("success is for all commands, with no code".into()),
            };
        }
        let Some(entry) = self.entries.get(k) else {
            return Err("all are complete, and it is an error".into());
        };
        let weather = self.weather;
        let may = match (got.errno, ErrorCode::try_from(got.code)) {
            (EIO, Ok(ErrorCode::Ill)) => entry.illegal || weather.ill,
            (EIO, Ok(ErrorCode::Abt)) => weather.abt,
            (EIO, Ok(ErrorCode::AtcInvSync)) => entry.unanswered,
            (EFAULT, Ok(ErrorCode::None)) => entry.unreadable,
            (E2BIG, Ok(ErrorCode::None)) => entry.tail,
            (ETIMEDOUT, Ok(ErrorCode::None)) => weather.slow || entry.unanswered,
            _ => false,
        };
        if !may {
            return Err(format!("command {k} is {entry:?}, the SMMU {weather:?}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libc::{EINTR, ENOENT, ENOMEM};

    fn ok(question: &Question, errno: i32, entry_num: u32, code: u32) -> bool {
        let outcome = Outcome {
            errno,
            entry_num,
            code,
        };
        question.judge(outcome).is_ok()
    }

    fn with(entries: &[Entry]) -> Question {
        Question {
            before: (entries.len() as u32, 9),
            entries: entries.into(),
            ..Question::default()
        }
    }

    const GOOD: Entry = Entry {
        certain: false,
        illegal: false,
        unreadable: false,
        tail: false,
        unanswered: false,
    };
    const BAD: Entry = Entry {
        certain: true,
        illegal: true,
        ..GOOD
    };

    #[test]
    fn one_answer_in_good_weather() {
        let all_good = with(&[GOOD; 3]);
        assert!(ok(&all_good, 0, 3, 0));
        for (errno, entry_num, code) in [
            (0, 2, 0),
            (0, 3, 1),
            (0, 4, 0),
            (EIO, 3, 1),
            (EIO, 1, 1),
            (ENOMEM, 0, 0),
            (EINTR, 1, 0),
            (EFAULT, 0, 0),
        ] {
            assert!(
                !ok(&all_good, errno, entry_num, code),
                "{errno} {entry_num} {code}"
            );
        }
        let one_bad = with(&[GOOD, BAD, GOOD]);
        assert!(ok(&one_bad, EIO, 1, 1));
        for (errno, entry_num, code) in [
            (0, 3, 0),
            (EIO, 0, 1),
            (EIO, 2, 1),
            (EIO, 1, 0),
            (EIO, 1, 2),
            (EINVAL, 1, 1),
            (ETIMEDOUT, 1, 0),
        ] {
            assert!(
                !ok(&one_bad, errno, entry_num, code),
                "{errno} {entry_num} {code}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read() {
        let hole = Entry {
            certain: true,
            unreadable: true,
            ..GOOD
        };
        let tail = Entry {
            certain: true,
            tail: true,
            ..GOOD
        };
        assert!(ok(&with(&[GOOD, hole, tail]), EFAULT, 1, 0));
        assert!(!ok(&with(&[GOOD, hole, tail]), EFAULT, 0, 0));
        assert!(!ok(&with(&[GOOD, hole, tail]), E2BIG, 2, 0));
        assert!(ok(&with(&[tail, hole]), E2BIG, 0, 0));
    }

    #[test]
    fn bad_weather_allows_no_more_than_it_explains() {
        let atc = Entry {
            unanswered: true,
            ..GOOD
        };
        let mut question = with(&[GOOD, atc, BAD, GOOD]);
        question.weather = Weather {
            atc: true,
            slow: true,
            ..Weather::default()
        };
        assert!(ok(&question, EIO, 1, 3));
        assert!(ok(&question, EIO, 2, 1));
        assert!(ok(&question, ETIMEDOUT, 0, 0));
        assert!(!ok(&question, EIO, 0, 3));
        assert!(!ok(&question, EIO, 0, 2));
        assert!(!ok(&question, EIO, 3, 3));
        assert!(!ok(&question, ETIMEDOUT, 3, 0));
        assert!(!ok(&question, 0, 4, 0));
    }

    #[test]
    fn refused_as_a_whole() {
        let mut question = with(&[GOOD]);
        question.refused = vec![ENOENT];
        assert!(ok(&question, ENOENT, 0, 0));
        assert!(!ok(&question, ENOENT, 1, 9));
        assert!(!ok(&question, 0, 1, 0));
        question.odd_size = true;
        assert!(ok(&question, E2BIG, 1, 9));
        assert!(!ok(&question, ENOENT, 0, 0));
        question.odd_size = false;
        question.no_answer = true;
        assert!(ok(&question, EFAULT, 1, 9));
        assert!(!ok(&question, 0, 1, 9));
    }
}
