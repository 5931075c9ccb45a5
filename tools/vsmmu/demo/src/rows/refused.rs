// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Entries that are refused, for what they are or for the stream that they name.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// Entry k has an opcode that is not supported, or a bit that must not be set: EIO, k, ILL.
pub(super) fn refused() -> Vec<Row> {
    let mut rows = Vec::new();
    rows.push(
        row("refused/middle", "[TLBI, TLBI, bad opcode, TLBI]")
            .sends(|| vec![page_a(), page_b(), unsupported(), elsewhere()])
            .illegal()
            .completes(2),
    );
    for k in BORDERS {
        rows.push(
            row(
                format!("refused/opcode/k={k}"),
                format!("entry {k} has an opcode that is not supported"),
            )
            .sends(move || bad_at(k, unsupported()))
            .illegal()
            .completes(k),
        );
    }
    for k in [0, 2, 64] {
        rows.push(
            row(
                format!("refused/ssec/k={k}"),
                format!("entry {k} has SSEC = 1"),
            )
            .sends(move || bad_at(k, elsewhere().flip_bit(10)))
            .illegal()
            .completes(k),
        );
        rows.push(
            row(
                format!("refused/atc/k={k}"),
                format!("entry {k} is an ATC_INV, and the SMMU has no ATS"),
            )
            .when(|hw| !hw.ats())
            .sends(move || bad_at(k, Command::atc_inv(VSID, PAGE_A, 0)))
            .illegal()
            .completes(k),
        );
    }
    rows.extend([
        row(
            "refused/first",
            "entries 2 and 3 are bad, in different ways: the first counts",
        )
        .sends(|| {
            let mut commands = bad_at(2, unsupported());
            commands[3] = elsewhere().flip_bit(10);
            commands
        })
        .illegal()
        .completes(2),
        row(
            "refused/before-hole",
            "entry 2 is bad, and from entry 3 on the array cannot be read",
        )
        .calls(|lab| {
            let memory = BeforeHole::new(&spread(&bad_at(2, unsupported())[..3], 16))?;
            Ok(lab.call(array(lab, memory.addr(), 16, 5)))
        })
        .illegal()
        .completes(2),
        row(
            "refused/before-tail",
            "entry_len 24, entry 2 is bad, and the tail of entry 3 is not zero",
        )
        .calls(|lab| {
            let mut bytes = spread(&bad_at(2, unsupported()), 24);
            bytes[3 * 24 + 16] = 1;
            Ok(lab.call(array(lab, bytes.as_ptr() as u64, 24, 4)))
        })
        .illegal()
        .completes(2),
    ]);
    rows.push(
        row("refused/opcodes", "each of the 248 other opcodes by itself")
            .calls(|lab| {
                let others = (0..=255).filter(|opcode| !op::FORWARDABLE.contains(opcode));
                let arrays = others.map(|opcode: u8| {
                    let command = Command::from_words(opcode.into(), 0);
                    (format!("opcode {opcode:#04x}"), vec![command])
                });
                Ok(each(lab, arrays, refused_alone()))
            })
            .illegal(),
    );
    rows
}

/// Entry k names a vSID with no vDEVICE: EIO, k, ILL.
pub(super) fn refused_vsid() -> Vec<Row> {
    let mut rows = Vec::new();
    for k in [0, 2, 64] {
        rows.push(
            row(
                format!("refused/vsid/k={k}"),
                format!("entry {k} is a CFGI_CD of a vSID without vDEVICE"),
            )
            .sends(move || bad_at(k, Command::cfgi_cd(UNLINKED_VSID, 0, true)))
            .illegal()
            .completes(k),
        );
    }
    rows.push(
        row(
            "refused/vsid/CFGI_CD_ALL",
            "CFGI_CD_ALL of a vSID without vDEVICE",
        )
        .sends(|| bad_at(0, Command::cfgi_cd_all(UNLINKED_VSID)))
        .illegal(),
    );
    // Without ATS an ATC_INV is refused for that.
    rows.push(
        row("refused/vsid/ATC_INV", "ATC_INV of a vSID without vDEVICE")
            .when(HwInfo::ats)
            .sends(|| bad_at(0, Command::atc_inv(UNLINKED_VSID, 0, 52)))
            .illegal(),
    );
    rows.push(
        row(
            "refused/vdevice-gone",
            "CFGI_CD of a vSID whose vDEVICE was destroyed, as entry 2",
        )
        .calls(|lab| {
            lab.smmu.vdevice().destroy()?;
            let commands = bad_at(2, Command::cfgi_cd(VSID, 0, true));
            let answer = lab.invalidate(&commands);
            lab.smmu.vdevice().create()?;
            Ok(answer)
        })
        .illegal()
        .completes(2),
    );
    let mut comes_and_goes = row(
        "refused/vdevice-race",
        "CFGI_CD as entry 2, while its vDEVICE comes and goes",
    )
    .calls(vdevice_comes_and_goes)
    .change(Change::Pages)
    .sees(Seen::New, Seen::New);
    comes_and_goes.want = vec![DONE_WITH_VDEVICE, REFUSED_WITHOUT];
    rows.push(comes_and_goes);
    rows
}

const DONE_WITH_VDEVICE: Want = Want {
    errno: Some(0),
    num: Num::Is(4),
    code: ErrorCode::None as u32,
};

const REFUSED_WITHOUT: Want = Want {
    errno: Some(libc::EIO),
    num: Num::Is(2),
    code: ErrorCode::Ill as u32,
};

/// Sends the same array again and again, while another thread destroys the vDEVICE and makes it again.
/// The answer is the first that is wrong, else the last.
fn vdevice_comes_and_goes(lab: &mut Lab) -> Result<Answer, Error> {
    /// Of each answer.
    const ENOUGH: u32 = 200;
    const DEADLINE: Duration = Duration::from_secs(15);
    let commands = [
        page_a(),
        page_b(),
        Command::cfgi_cd(VSID, 0, true),
        elsewhere(),
    ];
    let arg = lab.arg(&commands);
    let iommufd = lab.smmu.iommufd().clone();
    let vdevice = lab.smmu.vdevice();
    let stop = AtomicBool::new(false);

    thread::scope(|scope| {
        let other = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                vdevice.destroy()?;
                // With one CPU, the other thread would seldom see this state.
                thread::yield_now();
                vdevice.create()?;
                thread::yield_now();
            }
            Ok(())
        });

        let (mut done, mut refused) = (0, 0);
        let start = Instant::now();
        let mut answer = loop {
            let answer = Answer::from({ arg }.call(&iommufd));
            if DONE_WITH_VDEVICE.is(&answer) {
                done += 1;
            } else if REFUSED_WITHOUT.is(&answer) {
                refused += 1;
            } else {
                break answer;
            }
            let enough = done >= ENOUGH && refused >= ENOUGH;
            if enough || start.elapsed() > DEADLINE || other.is_finished() {
                break answer;
            }
        };
        stop.store(true, Ordering::Relaxed);
        let result: Result<(), vsmmu_nested::Error> = other.join().expect("it does not panic");
        result?;

        answer.note = Some(format!("done {done} times, refused {refused} times"));
        let right = DONE_WITH_VDEVICE.is(&answer) || REFUSED_WITHOUT.is(&answer);
        if right && (done == 0 || refused == 0) {
            answer.fault = Some("this proves nothing, as the answer was always the same".into());
        }
        Ok(answer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::answer;

    #[test]
    fn either_of_two_answers() {
        let mut row = row("", "");
        row.want = vec![DONE_WITH_VDEVICE, REFUSED_WITHOUT];
        for (answer, right) in [
            (answer(0, 4, 0), true),
            (answer(libc::EIO, 2, 1), true),
            (answer(libc::EIO, 4, 0), false),
            (answer(0, 2, 0), false),
        ] {
            let mut faults = Vec::new();
            row.judge(&answer, &mut faults);
            assert_eq!(faults.is_empty(), right, "{answer:?}");
        }
    }
}
