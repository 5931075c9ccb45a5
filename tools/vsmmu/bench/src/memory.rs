// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much memory the kernel allocates for a call, by its own tracepoints.

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;

use serde_json::json;

use crate::in_file;
use crate::invalidate::{self, Selection};

/// Trace events of one process, with tracefs where it belongs.
struct Tracing(PathBuf);

/// Allocations larger than this are made of whole pages, which have an event of their own.
const SLAB_MAX: u64 = 8192;
const PAGE: u64 = 4096;

impl Tracing {
    const EVENTS: [&str; 3] = ["kmalloc", "kmem_cache_alloc", "mm_page_alloc"];

    fn new() -> io::Result<Self> {
        let tracing = Tracing(PathBuf::from("/sys/kernel/tracing"));
        tracing.set("tracing_on", "0")?;
        tracing.set("set_event_pid", &process::id().to_string())?;
        for event in Self::EVENTS {
            tracing.set(&format!("events/kmem/{event}/enable"), "1")?;
        }
        Ok(tracing)
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        let path = self.0.join(file);
        fs::write(&path, value).map_err(|e| in_file(&path, e))
    }

    /// How many bytes `call` has the kernel allocate, whether or not it frees them again.
    fn bytes<T>(&self, call: impl FnOnce() -> T) -> io::Result<(T, u64)> {
        self.set("trace", "")?;
        self.set("tracing_on", "1")?;
        let result = call();
        self.set("tracing_on", "0")?;
        let path = self.0.join("trace");
        let trace = fs::read_to_string(&path).map_err(|e| in_file(&path, e))?;
        Ok((result, trace.lines().map(allocated).sum()))
    }
}

/// The bytes that a line of a trace says are allocated.
fn allocated(line: &str) -> u64 {
    let number = |name| {
        let (_, rest) = line.split_once(name)?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    if line.contains(" mm_page_alloc: ") {
        number(" order=").map_or(0, |order| PAGE << order)
    } else {
        let bytes = number(" bytes_alloc=").unwrap_or(0);
        if bytes > SLAB_MAX { 0 } else { bytes }
    }
}

/// Looks at one call of each kind, and prints the bytes.
pub fn run(sysfs: &Path, selection: &Selection) -> Result<(), Box<dyn Error>> {
    let smmu = invalidate::smmu(sysfs)?;
    let tracing = Tracing::new()?;
    // What the tracing does itself would be in all the figures.
    let (_, idle) = tracing.bytes(|| ())?;
    for (mix, n) in selection.cases() {
        let commands = mix.array(n);
        // Free lists are filled the first time.
        let _ = smmu.invalidate(&commands);
        let (result, bytes) = tracing.bytes(|| smmu.invalidate(&commands))?;
        println!(
            "{}",
            json!({
                "id": mix.id(),
                "n": n,
                "bytes": bytes.saturating_sub(idle),
                "errno": result.err().map(|failure| failure.errno),
            })
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_trace() {
        let slab =
            "x-1 [000] 1.0: kmalloc: call_site=f+0x1 ptr=1 bytes_req=48 bytes_alloc=64 gfp_flags=G";
        assert_eq!(allocated(slab), 64);
        let pages =
            "x-1 [000] 1.0: mm_page_alloc: page=1 pfn=0x1 order=3 migratetype=0 gfp_flags=G";
        assert_eq!(allocated(pages), 32768);
        let large = slab.replace("=64", "=32768");
        assert_eq!(allocated(&large), 0);
        assert_eq!(allocated("# tracer: nop"), 0);
    }
}
