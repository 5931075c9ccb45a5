// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The tables of what was measured.

use crate::floor;
use crate::rows::{Measured, Row};
use crate::table::{Table, figure, ratio};

/// What a case is called, with what is not in a column of its own.
fn name(row: &Row) -> String {
    match row.smp {
        0 | 1 => row.id.clone(),
        cpus => format!("{}, {cpus} CPUs", row.id),
    }
}

/// The figure of a row, or why there is none.
fn or_errno(row: Option<&Row>, get: impl Fn(&Row) -> Option<u64>) -> String {
    match row {
        Some(row) => match &row.errno {
            Some(serde_json::Value::String(name)) => name.clone(),
            Some(serde_json::Value::Number(errno)) if errno.as_i64() == Some(12) => "ENOMEM".into(),
            Some(errno) => format!("errno {errno}"),
            None => figure(get(row)),
        },
        None => "-".into(),
    }
}

fn each(row: Option<&Row>) -> String {
    let per_command = |row: &Row| {
        let instructions = row.instructions()? as f64;
        (row.n > 0).then(|| format!("{:.1}", instructions / row.n as f64))
    };
    figure(row.and_then(per_command))
}

fn instructions(measured: &Measured) -> Table {
    let rows = measured
        .instructions()
        .map(|pair| {
            let (c, rust) = (pair.c.as_ref(), Some(&pair.rust));
            let floor = ["ioctl", "trace"]
                .contains(&&*pair.rust.group)
                .then(|| floor::calls(measured, pair.rust.ioctls?, pair.rust.n))
                .flatten()
                .filter(|_| pair.rust.n > 0);
            vec![
                name(&pair.rust),
                pair.rust.n.to_string(),
                or_errno(c, Row::instructions),
                or_errno(rust, Row::instructions),
                figure(floor),
                ratio(pair.ratio()),
                each(c),
                each(rust),
                figure(floor.map(|floor| format!("{:.1}", floor as f64 / pair.rust.n as f64))),
            ]
        })
        .collect();
    Table {
        title: "Instructions",
        about: "Of a call, and for each of its n commands. A trace is all the calls that one guest has \
                made. The median of up to 101 calls; of the DMA API, an average, to within 13 instructions. \
                The floor is explained below."
            .into(),
        header: vec![
            "", "n", "C", "Rust", "floor", "Rust/C", "C each", "Rust each", "floor each",
        ],
        rows,
    }
}

/// Calls that did not all take the same: timer interrupts hit the longer ones, and where in the queue a
/// batch begins makes a small difference.
fn spread(measured: &Measured) -> Table {
    let mut rows = Vec::new();
    for pair in measured.instructions() {
        for (kernel, row) in [("C", pair.c.as_ref()), ("Rust", Some(&pair.rust))] {
            if let Some(row) = row
                && row.min != row.median
            {
                let cells = [row.min, row.median, row.max].map(figure);
                rows.push(
                    [
                        vec![name(row), kernel.into(), row.n.to_string()],
                        cells.to_vec(),
                    ]
                    .concat(),
                );
            }
        }
    }
    Table {
        title: "Where most calls are not the shortest",
        about: "Timer interrupts get into the longer calls, and it makes a small difference where in the \
                queue a batch begins. What is in the middle then differs from run to run, by a per cent at \
                most."
            .into(),
        header: vec!["", "kernel", "n", "at least", "median", "at most"],
        rows,
    }
}

fn counts(measured: &Measured) -> Table {
    let rows = measured
        .group("counts")
        .map(|pair| {
            let (c, rust) = (pair.c.as_ref(), Some(&pair.rust));
            let by_driver = ["ioctl", "trace"]
                .iter()
                .find_map(|group| measured.find(group, &pair.rust.id, pair.rust.n));
            vec![
                name(&pair.rust),
                pair.rust.n.to_string(),
                or_errno(c, |row| row.syncs),
                or_errno(rust, |row| row.syncs),
                figure(by_driver.and_then(|pair| pair.rust.syncs)),
                or_errno(c, |row| row.writes),
                or_errno(rust, |row| row.writes),
                or_errno(c, |row| row.reads),
                or_errno(rust, |row| row.reads),
            ]
        })
        .collect();
    Table {
        title: "What the SMMU sees of a call",
        about: "CMD_SYNCs, and accesses to its registers, as the emulator's trace has them. Those of the \
                driver's statistics are counted by the Rust kernel itself."
            .into(),
        header: vec![
            "", "n", "SYNCs: C", "Rust", "its own count", "writes: C", "Rust", "reads: C", "Rust",
        ],
        rows,
    }
}

fn waiting(measured: &Measured) -> Table {
    let rows = measured
        .group("waiting")
        .map(|pair| {
            let (c, rust) = (pair.c.as_ref(), Some(&pair.rust));
            vec![
                name(&pair.rust),
                pair.rust.n.to_string(),
                format!("{}, {}", pair.rust.smmu, pair.rust.completion),
                or_errno(c, |row| row.ns),
                or_errno(rust, |row| row.ns),
                ratio(pair.time_ratio()),
                or_errno(c, |row| row.reads),
                or_errno(rust, |row| row.reads),
                or_errno(c, |row| row.syncs),
                or_errno(rust, |row| row.syncs),
            ]
        })
        .collect();
    let mut smmus: Vec<String> = measured
        .group("waiting")
        .map(|pair| {
            let [command, sync, read] = pair.rust.latencies;
            format!("{command}, {sync} and {read} on the {} one", pair.rust.smmu)
        })
        .collect();
    smmus.sort();
    smmus.dedup();
    Table {
        title: "Time, with an SMMU that takes its time",
        about: format!(
            "Nanoseconds of a call with all its waiting, if each instruction takes one; reads of CONS, GERROR \
             and GERRORN; and CMD_SYNCs. The SMMU consumes its queue beside the CPU: a command, a CMD_SYNC \
             and a read of a register take {} (nanoseconds). A CMD_SYNC tells that it is complete by writing \
             to memory (MSI), or is found complete by reading CONS.",
            smmus.join(", ")
        ),
        header: vec![
            "", "n", "SMMU", "ns: C", "Rust", "Rust/C", "reads: C", "Rust", "SYNCs: C", "Rust",
        ],
        rows,
    }
}

fn relay(measured: &Measured) -> Table {
    let each = |row: Option<&Row>, get: fn(&Row) -> Option<u64>, digits: usize| {
        let value = row.and_then(|row| Some(get(row)? as f64 / row.n as f64));
        figure(value.map(|value| format!("{value:.digits$}")))
    };
    let rows = measured
        .group("relay")
        .map(|pair| {
            let (c, rust) = (pair.c.as_ref(), Some(&pair.rust));
            vec![
                name(&pair.rust),
                pair.rust.smmu.clone(),
                each(c, |row| row.ioctls, 3),
                each(rust, |row| row.ioctls, 3),
                each(c, |row| row.syncs, 3),
                each(rust, |row| row.syncs, 3),
                each(c, |row| row.ns, 0),
                each(rust, |row| row.ns, 0),
                each(c, |row| row.end, 0),
                each(rust, |row| row.end, 0),
            ]
        })
        .collect();
    Table {
        title: "A guest's CMD_SYNC through the relay of a VMM",
        about: "For each CMD_SYNC that the four CPUs of a busy Linux guest have queued: ioctls; CMD_SYNCs of the \
                physical SMMU; nanoseconds that the VMM and the ioctls take, instructions if the SMMU is \
                an instant one; and nanoseconds until the guest is ready. A CPU queues the next command when \
                it has executed as many instructions as in the recording, after its CMD_SYNC is complete."
            .into(),
        header: vec![
            "", "SMMU", "ioctls: C", "Rust", "SYNCs: C", "Rust", "ns: C", "Rust", "ready: C", "Rust",
        ],
        rows,
    }
}

fn memory(measured: &Measured) -> Table {
    let rows = measured
        .group("memory")
        .map(|pair| {
            vec![
                name(&pair.rust),
                pair.rust.n.to_string(),
                or_errno(pair.c.as_ref(), |row| row.bytes),
                or_errno(Some(&pair.rust), |row| row.bytes),
            ]
        })
        .collect();
    Table {
        title: "Bytes allocated in a call",
        about: "By the tracepoints of the kernel's allocators: kmalloc, kmem_cache_alloc, mm_page_alloc.".into(),
        header: vec!["", "n", "C", "Rust"],
        rows,
    }
}

fn stack(measured: &Measured) -> Table {
    let mut rows = Vec::new();
    for pair in measured.group("stack") {
        for (kernel, row) in [("C", pair.c.as_ref()), ("Rust", Some(&pair.rust))] {
            if let Some(row) = row {
                rows.push(vec![
                    row.id.clone(),
                    kernel.into(),
                    figure(row.bytes),
                    row.chain.join(" > "),
                ]);
            }
        }
    }
    Table {
        title: "Stack",
        about: "The deepest chain of calls from the ioctl's function on, through the functions of iommufd, \
                the driver and the Rust abstractions, by the disassembly of the kernels. \"At most\" is with the \
                handling of errors of the SMMU and of a full queue. What those functions call elsewhere is \
                left out."
            .into(),
        header: vec!["", "kernel", "bytes", "functions (frame)"],
        rows,
    }
}

fn throughput(measured: &Measured) -> Table {
    let rows = measured
        .group("throughput")
        .map(|pair| {
            let row = &pair.rust;
            let plural = |n: u64| if n == 1 { "" } else { "s" };
            let c = pair.c.as_ref().and_then(|row| row.per_second);
            vec![
                format!(
                    "{} thread{}, {} vIOMMU{}{}",
                    row.threads,
                    plural(row.threads),
                    row.vms,
                    plural(row.vms),
                    if row.host { ", and the host" } else { "" }
                ),
                row.n.to_string(),
                figure(c),
                figure(row.per_second),
                ratio(c.zip(row.per_second).map(|(c, rust)| c / rust)),
            ]
        })
        .collect();
    Table {
        title: "Commands per second",
        about: "In real time on four emulated CPUs, the best quarter of a second, with arrays of n \
                TLBI_NH_VA. The host is the kernel's dma_map_benchmark on another device. Only the ratios \
                say anything (below 1.00: more get through on the Rust kernel), and not much: with fewer \
                idle CPUs than the emulator has, who waits keeps the one from running that is ahead. No \
                test is made of them."
            .into(),
        header: vec!["", "n", "C", "Rust", "C/Rust"],
        rows,
    }
}

/// What the floor is made of.
fn floor_table(measured: &Measured) -> Table {
    let row = |what: &str, n: String| vec![what.to_owned(), n];
    let mut rows = Vec::new();
    rows.extend(floor::COMMAND.map(|(what, n)| row(what, n.to_string())));
    rows.push(row("a command", floor::per_command().to_string()));
    rows.extend(floor::SYNC.map(|(what, n)| row(what, n.to_string())));
    rows.push(row("a CMD_SYNC", floor::per_sync().to_string()));
    rows.push(row(
        "a call without commands, as measured on the Rust kernel",
        figure(floor::per_call(measured)),
    ));
    Table {
        title: "The floor",
        about: "What must be done at the very least, in arm64 instructions: a call, one CMD_SYNC, and n \
                times a command. A command has to be read from user memory, which may sleep, before there \
                is room for it in the queue, as nobody may sleep who keeps others waiting there; so it is \
                stored twice, and there are two loops. What can be done once for many commands counts for \
                nothing: the masks of what is legal are in a table, the stream ID is at hand, the block \
                does not reach the end of the ring. No loop is unrolled, no error is looked at."
            .into(),
        header: vec!["", "instructions"],
        rows,
    }
}

fn with_rows(mut tables: Vec<Table>) -> Vec<Table> {
    tables.retain(|table| !table.rows.is_empty());
    tables
}

/// All tables of results that have something in them.
pub fn all(measured: &Measured) -> Vec<Table> {
    with_rows(vec![
        instructions(measured),
        counts(measured),
        waiting(measured),
        relay(measured),
        memory(measured),
        stack(measured),
        throughput(measured),
    ])
}

/// Tables for those who want to know more.
pub fn background(measured: &Measured) -> Vec<Table> {
    with_rows(vec![floor_table(measured), spread(measured)])
}
