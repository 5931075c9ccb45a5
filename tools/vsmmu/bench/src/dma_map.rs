// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidations of the host: of what a driver has mapped for its device, by the kernel's own benchmark
//! of that.

use std::error::Error;
use std::fs::File;
use std::io;
use std::path::Path;

use serde_json::json;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::{DEBUGFS, in_file};

/// `struct map_benchmark` of `include/uapi/linux/map_benchmark.h`.
#[repr(C)]
struct MapBenchmark {
    avg_map_100ns: u64,
    map_stddev: u64,
    avg_unmap_100ns: u64,
    unmap_stddev: u64,
    threads: u32,
    seconds: u32,
    node: i32,
    dma_bits: u32,
    dma_dir: u32,
    dma_trans_ns: u32,
    granule: u32,
    map_mode: u8,
    expansion: [u8; 75],
}

ioctl_iowr_nr!(DMA_MAP_BENCHMARK, 0x64, 1, MapBenchmark);

const DMA_MAP_FROM_DEVICE: u32 = 2;
const DMA_MAP_BENCH_SINGLE_MODE: u8 = 0;

/// Has the kernel map and unmap one page, again and again for a second. Gives the averages of both, in
/// units of 100 ns.
pub fn benchmark() -> io::Result<(u64, u64)> {
    let path = Path::new(DEBUGFS).join("dma_map_benchmark");
    let file = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| in_file(&path, e))?;
    let mut arg = MapBenchmark {
        avg_map_100ns: 0,
        map_stddev: 0,
        avg_unmap_100ns: 0,
        unmap_stddev: 0,
        threads: 1,
        seconds: 1,
        node: -1,
        dma_bits: 32,
        // In the other directions it writes to the page each time.
        dma_dir: DMA_MAP_FROM_DEVICE,
        dma_trans_ns: 0,
        granule: 1,
        map_mode: DMA_MAP_BENCH_SINGLE_MODE,
        expansion: [0; 75],
    };
    // SAFETY: the kernel reads and writes this structure and nothing else.
    if unsafe { ioctl_with_mut_ref(&file, DMA_MAP_BENCHMARK(), &mut arg) } < 0 {
        return Err(in_file(&path, io::Error::last_os_error()));
    }
    Ok((arg.avg_map_100ns, arg.avg_unmap_100ns))
}

/// Measures how many instructions that takes.
pub fn run(ns_per_instruction: u64) -> Result<(), Box<dyn Error>> {
    let (map, unmap) = benchmark()?;
    // Two averages, each rounded down to 100 ns.
    let average = |hundreds: u64| hundreds * 100 / ns_per_instruction;
    println!(
        "{}",
        json!({
            "id": "host: DMA API map + unmap",
            "n": 1,
            "average": average(map + unmap),
            "map": average(map),
            "unmap": average(unmap),
            "resolution": 200_u64.div_ceil(ns_per_instruction),
        })
    );
    Ok(())
}
