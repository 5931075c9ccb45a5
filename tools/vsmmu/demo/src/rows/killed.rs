// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A caller that is killed.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::*;

/// The caller is being killed: EINTR, which nobody lives to see, the entries complete, none.
pub(super) fn killed() -> Vec<Row> {
    // Made while the row runs: how long to wait before the kill, and how often that may be tried.
    let (delay, tries_left) = (Cell::new(None), Cell::new(12));
    let mut row = row(
        "killed",
        format!("the caller is killed in a call of {ENTRY_NUM_MAX} entries"),
    )
    .calls(move |lab| kill_in_call(lab, &delay, &tries_left))
    .change(Change::Pages)
    .sees(Seen::New, Seen::New);
    row.want = vec![Want {
        errno: None,
        num: Num::Within(KILLED_PAGE_B + 1, ENTRY_NUM_MAX - 1),
        code: 0,
    }];
    vec![row]
}

/// The place of page B's command in the call that is killed: after many pieces, however a kernel cuts
/// them, and long before a kill can be expected.
const KILLED_PAGE_B: u32 = 1023;

/// Calls with as many entries as there may be in a child process, and kills that in the middle: when
/// page B's command is complete, and the last one is not.
fn kill_in_call(
    lab: &mut Lab,
    delay: &Cell<Option<Duration>>,
    tries_left: &Cell<u32>,
) -> Result<Answer, Error> {
    const PART: u32 = 4096;
    let mut commands = vec![elsewhere(); ENTRY_NUM_MAX as usize];
    // How long the whole call would take. Twice, as the first time is slower.
    let mut whole = Duration::ZERO;
    for _ in 0..2 {
        let start = Instant::now();
        lab.invalidate(&commands[..PART as usize]);
        whole = start.elapsed() * (ENTRY_NUM_MAX / PART);
    }
    commands[0] = page_a();
    commands[KILLED_PAGE_B as usize] = page_b();

    let now = delay.get().unwrap_or(whole / 8);
    let mut answer = userbuf::call_and_kill(&lab.smmu, lab.arg(&commands), now)?;
    answer.note = Some(format!("signal {now:?} after the call was to begin"));

    let too_late = (answer.errno, answer.entry_num) == (Some(0), ENTRY_NUM_MAX);
    // Before the call had begun, or before it had come to page B.
    let too_early = answer.errno.is_none()
        && (answer.entry_num <= KILLED_PAGE_B || answer.entry_num == ENTRY_NUM_MAX);
    if (too_late || too_early) && tries_left.get() > 0 {
        tries_left.set(tries_left.get() - 1);
        // Never longer than the call takes, so the row comes to an end.
        delay.set(Some(if too_late {
            now / 2
        } else {
            (now * 2).min(whole)
        }));
        answer.again = true;
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::answer;

    #[test]
    fn a_killed_call_has_done_some_but_not_all() {
        let rows = all();
        let row = rows.iter().find(|row| row.id == "killed").unwrap();
        for (entry_num, right) in [
            (0, false),
            (KILLED_PAGE_B, false),
            (KILLED_PAGE_B + 1, true),
            (ENTRY_NUM_MAX - 1, true),
            (ENTRY_NUM_MAX, false),
        ] {
            let answer = Answer {
                errno: None,
                ..answer(0, entry_num, 0)
            };
            let mut faults = Vec::new();
            row.judge(&answer, &mut faults);
            assert_eq!(faults.is_empty(), right, "{entry_num}");
        }
    }

    #[test]
    fn a_call_that_returned_was_not_killed() {
        let rows = killed();
        assert!(!rows[0].want[0].is(&answer(libc::EINTR, KILLED_PAGE_B + 1, 0)));
    }
}
