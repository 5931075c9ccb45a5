// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Arrays that cannot be read, or have something where there must be zeroes.

use super::*;

/// Entry k cannot be read, or its tail beyond what the kernel knows is not zero: EFAULT or E2BIG, k,
/// none.
pub(super) fn memory() -> Vec<Row> {
    let mut rows = Vec::new();
    for k in BORDERS {
        rows.push(
            row(
                format!("memory/hole/k={k}"),
                format!("the array cannot be read from entry {k} on"),
            )
            .calls(move |lab| {
                let memory = BeforeHole::new(&spread(&good(k), 16))?;
                Ok(lab.call(array(lab, memory.addr(), 16, k + 2)))
            })
            .errno(libc::EFAULT)
            .completes(k),
        );
        rows.push(
            row(
                format!("memory/straddle/k={k}"),
                format!("only half of entry {k} can be read"),
            )
            .calls(move |lab| {
                let mut bytes = spread(&bad_at(k, elsewhere()), 16);
                bytes.truncate(k * 16 + 8);
                let memory = BeforeHole::new(&bytes)?;
                Ok(lab.call(array(lab, memory.addr(), 16, k + 2)))
            })
            .errno(libc::EFAULT)
            .completes(k),
        );
        rows.push(
            row(
                format!("memory/tail/k={k}"),
                format!("entry_len 24, the last byte of entry {k} is not zero"),
            )
            .calls(move |lab| {
                let mut bytes = spread(&bad_at(k, elsewhere()), 24);
                bytes[k * 24 + 23] = 1;
                Ok(lab.call(array(lab, bytes.as_ptr() as u64, 24, k + 2)))
            })
            .errno(libc::E2BIG)
            .completes(k),
        );
    }
    rows.push(
        row(
            "memory/tail-hole",
            "entry_len 24, the tail of entry 2 cannot be read",
        )
        .calls(|lab| {
            let mut bytes = spread(&bad_at(2, elsewhere()), 24);
            bytes.truncate(2 * 24 + 16);
            let memory = BeforeHole::new(&bytes)?;
            Ok(lab.call(array(lab, memory.addr(), 24, 4)))
        })
        .errno(libc::EFAULT)
        .completes(2),
    );
    rows.push(
        row(
            "memory/kernel",
            "the array is where only the kernel may look",
        )
        .calls(|lab| Ok(lab.call(array(lab, 0xffff_8000_0000_0000, 16, 2))))
        .errno(libc::EFAULT),
    );

    for (id, entry_len, at) in [
        ("memory/tail-first", 24, 16),
        ("memory/tail-page", 4096, 4095),
    ] {
        rows.push(
            row(
                id,
                format!("entry_len {entry_len}, byte {at} of entry 2 is not zero"),
            )
            .calls(move |lab| {
                let mut bytes = spread(&bad_at(2, elsewhere()), entry_len);
                bytes[2 * entry_len + at] = 1;
                Ok(lab.call(array(lab, bytes.as_ptr() as u64, entry_len, 4)))
            })
            .errno(libc::E2BIG)
            .completes(2),
        );
    }
    rows.push(
        row(
            "memory/end",
            "from entry 2 on the array is beyond the address space",
        )
        .calls(|lab| {
            let memory = BeforeEnd::new(&spread(&good(2), 16))?;
            Ok(lab.call(array(lab, memory.addr(), 16, 4)))
        })
        .errno(libc::EFAULT)
        .completes(2),
    );
    rows.push(
        row(
            "memory/wrap",
            "entry 1 is where 64-bit addresses begin anew",
        )
        .calls(|lab| Ok(lab.call(array(lab, u64::MAX - 15, 16, 3))))
        .errno(libc::EFAULT),
    );
    rows
}
