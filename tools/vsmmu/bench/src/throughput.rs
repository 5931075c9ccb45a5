// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How many commands get through when several use the queue at once. This is about real time, so of use
//! only beside another kernel on the same machine.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vsmmu_nested::invalidate::InvalidateArg;
use vsmmu_nested::{Command, NestedSmmu};

use crate::dma_map;
use crate::invalidate::{self, Mix};

/// Who uses the queue.
struct Case {
    vms: usize,
    threads: usize,
    host: bool,
}

const fn case(vms: usize, threads: usize, host: bool) -> Case {
    Case { vms, threads, host }
}

const CASES: [Case; 7] = [
    case(1, 1, false),
    case(1, 2, false),
    case(1, 4, false),
    case(2, 2, false),
    case(2, 4, false),
    case(1, 1, true),
    case(1, 2, true),
];

const LENGTHS: [usize; 2] = [1, 64];

/// How many commands of arrays like `commands` get through in a second: of four quarters of one, the best,
/// as whatever else the machine does can only make it worse.
fn run_case(
    case: &Case,
    smmus: &[NestedSmmu],
    commands: &[Command],
) -> Result<f64, Box<dyn Error>> {
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..case.threads)
            .map(|i| {
                let (stop, done) = (&stop, &done);
                // Threads share no more of a VM than this.
                let (iommufd, viommu) = {
                    let smmu = &smmus[i % case.vms];
                    (smmu.iommufd().clone(), smmu.viommu_id())
                };
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        match InvalidateArg::new(viommu, commands).call(&iommufd).errno {
                            0 => {}
                            errno => return Err(io::Error::from_raw_os_error(errno)),
                        }
                        done.fetch_add(commands.len() as u64, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        // The kernel's benchmark takes a second.
        let host = case.host.then(|| scope.spawn(dma_map::benchmark));
        let mut best = 0.0_f64;
        for _ in 0..4 {
            let (start, before) = (Instant::now(), done.load(Ordering::Relaxed));
            thread::sleep(Duration::from_millis(250));
            let commands = done.load(Ordering::Relaxed) - before;
            best = best.max(commands as f64 / start.elapsed().as_secs_f64());
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().expect("a worker does not panic")?;
        }
        if let Some(host) = host {
            host.join().expect("a worker does not panic")?;
        }
        Ok(best)
    })
}

/// Measures all cases, of up to as many VMs as there are devices in `sysfs`.
pub fn run(sysfs: &[PathBuf]) -> Result<(), Box<dyn Error>> {
    let smmus = sysfs
        .iter()
        .map(|path| invalidate::smmu(path))
        .collect::<Result<Vec<_>, _>>()?;
    for case in CASES.iter().filter(|case| case.vms <= smmus.len()) {
        for n in LENGTHS {
            let per_second = run_case(case, &smmus, &Mix::Va.array(n))?;
            println!(
                "{}",
                json!({
                    "id": "throughput",
                    "n": n,
                    "vms": case.vms,
                    "threads": case.threads,
                    "host": case.host,
                    "per_second": per_second.round(),
                })
            );
        }
    }
    Ok(())
}
