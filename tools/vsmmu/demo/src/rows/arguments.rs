// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calls that ask, and calls with an argument that is wrong.

use super::*;

/// n = 0 only asks whether the type is supported: 0, 0, none, or as without the contract.
pub(super) fn probe() -> Vec<Row> {
    let probe = |id: &str, what: &str, alter: fn(&Lab, &mut InvalidateArg)| {
        row(format!("probe/{id}"), format!("n = 0: {what}")).sends_with(Vec::new, alter)
    };
    vec![
        probe("ok", "the right type", |_, _| {}),
        probe("null", "the right type, no array, entry_len 0", |_, arg| {
            arg.data_uptr = 0;
            arg.entry_len = 0;
        }),
        probe(
            "ignored",
            "the right type, wild data_uptr and entry_len",
            |_, arg| {
                arg.data_uptr = u64::MAX;
                arg.entry_len = u32::MAX;
            },
        ),
        probe("type", "a type that is not supported", |_, arg| {
            arg.data_type = 0
        })
        .errno(libc::EINVAL),
        probe("type-high", "a type that does not exist", |_, arg| {
            arg.data_type = 0x8000_0001;
        })
        .errno(libc::EINVAL),
        probe("no-object", "no such object", |_, arg| {
            arg.hwpt_id = u32::MAX
        })
        .errno(libc::ENOENT),
        probe(
            "old-code",
            "an old error code in the structure",
            |_, arg| {
                arg.out_driver_error_code = ErrorCode::Ill as u32;
            },
        ),
        probe("ioas", "the object is an IOAS", |lab, arg| {
            arg.hwpt_id = lab.smmu.ioas_id();
        })
        .errno(libc::EINVAL),
        probe("s2", "the object is the stage-2 HWPT", |lab, arg| {
            arg.hwpt_id = lab.smmu.s2_hwpt_id();
        })
        .errno(libc::EINVAL),
        probe("nested", "the object is the nested HWPT", |lab, arg| {
            arg.hwpt_id = lab.smmu.s1_hwpt_id().expect("the lab has attached one");
        })
        .errno(libc::EOPNOTSUPP),
    ]
}

/// `entry_len` below the 16 bytes of a command: EINVAL, 0, none. Any other bad argument: as without the
/// contract, 0, none.
pub(super) fn argument() -> Vec<Row> {
    let bad = |id: &str, what: &str, errno: i32, alter: fn(&Lab, &mut InvalidateArg)| {
        row(format!("argument/{id}"), what)
            .sends_with(|| good(3), alter)
            .errno(errno)
    };
    vec![
        bad("entry_len=0", "entry_len 0", libc::EINVAL, |_, arg| {
            arg.entry_len = 0
        }),
        bad(
            "entry_len=8",
            "entry_len 8: half a command",
            libc::EINVAL,
            |_, arg| arg.entry_len = 8,
        ),
        bad("entry_len=15", "entry_len 15", libc::EINVAL, |_, arg| {
            arg.entry_len = 15
        }),
        bad(
            "entry_len-high",
            "entry_len of a page and a byte",
            libc::EINVAL,
            |_, arg| {
                arg.entry_len = userbuf::page_size() as u32 + 1;
            },
        ),
        bad(
            "n-high",
            "one entry more than allowed",
            libc::EINVAL,
            |_, arg| {
                arg.entry_num = ENTRY_NUM_MAX + 1;
            },
        ),
        bad("n-max", "2^32 - 1 entries", libc::EINVAL, |_, arg| {
            arg.entry_num = u32::MAX
        }),
        bad("null", "no array", libc::EINVAL, |_, arg| arg.data_uptr = 0),
        bad(
            "type",
            "a type that is not supported",
            libc::EINVAL,
            |_, arg| arg.data_type = 0,
        ),
        bad("no-object", "no such object", libc::ENOENT, |_, arg| {
            arg.hwpt_id = u32::MAX
        }),
        bad("ioas", "the object is an IOAS", libc::EINVAL, |lab, arg| {
            arg.hwpt_id = lab.smmu.ioas_id();
        }),
        bad(
            "s2",
            "the object is the stage-2 HWPT",
            libc::EINVAL,
            |lab, arg| {
                arg.hwpt_id = lab.smmu.s2_hwpt_id();
            },
        ),
        bad(
            "nested",
            "the object is the nested HWPT",
            libc::EOPNOTSUPP,
            |lab, arg| {
                arg.hwpt_id = lab.smmu.s1_hwpt_id().expect("the lab has attached one");
            },
        ),
        row(
            "argument/old-code",
            "a wild error code in the structure on input",
        )
        .sends_with(
            || good(3),
            |_, arg| {
                arg.out_driver_error_code = 0xdead_beef;
            },
        )
        .completes(3),
        bad(
            "old-code-no-object",
            "an old error code in the structure, no such object",
            libc::ENOENT,
            |_, arg| {
                arg.hwpt_id = u32::MAX;
                arg.out_driver_error_code = ErrorCode::Ill as u32;
            },
        ),
        row(
            "argument/reused",
            "the structure of a call that failed with an error code, used again",
        )
        .calls(|lab| {
            let (illegal, commands) = ([unsupported()], good(3));
            let mut arg = lab.arg(&illegal);
            let first = arg.call(lab.smmu.iommufd());
            arg.data_uptr = commands.as_ptr() as u64;
            arg.entry_num = commands.len() as u32;
            let mut answer = lab.call(arg);
            if (first.errno, first.code) != (libc::EIO, ErrorCode::Ill as u32) {
                answer.fault = Some(format!("the first call: {first:?}"));
            }
            Ok(answer)
        })
        .completes(3),
        // The size of the structure is checked before anything is written to it.
        bad(
            "size-small",
            "a structure of 28 bytes (left as it was)",
            libc::EINVAL,
            |_, arg| {
                arg.size = InvalidateArg::UAPI_SIZE - 4;
            },
        )
        .entry_num(3),
        bad(
            "size-tail",
            "a larger structure, its tail not zero (left as it was)",
            libc::E2BIG,
            |_, arg| {
                arg.size = size_of::<InvalidateArg>() as u32;
                arg.tail[7] = 1;
            },
        )
        .entry_num(3),
        row("argument/size-large", "a larger structure, its tail zero")
            .sends_with(
                || good(3),
                |_, arg| {
                    arg.size = size_of::<InvalidateArg>() as u32;
                },
            )
            .completes(3),
        // The call has been made by then, so nothing is known of the entries.
        row(
            "argument/read-only",
            "the kernel cannot write to the argument (left as it was)",
        )
        .calls(|lab| {
            let commands = good(3);
            userbuf::call_read_only(&lab.smmu, lab.arg(&commands))
        })
        .errno(libc::EFAULT)
        .entry_num(3),
    ]
}
