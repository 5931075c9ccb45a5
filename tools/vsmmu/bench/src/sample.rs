// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calling something many times and looking at the clock.

use std::error::Error;
use std::time::Instant;

use serde_json::json;
use vsmmu_nested::Failure;

use crate::queue::{Counter, Counts};

/// Calls before the first one that counts: caches of the kernel's allocators are full then, and all
/// pages there.
const WARM_UP: u32 = 10;

/// How many commands all the measured calls of a case may have: of long arrays there are fewer.
const COMMANDS: usize = 101 * 4096;

/// Measures cases, all in the same way.
pub struct Sampler {
    calls: u32,
    counter: Option<Counter>,
    /// What the measuring itself takes.
    overhead: u64,
}

impl Sampler {
    /// `calls` are made in each case. The `counter` tells how many commands there were in each.
    pub fn new(calls: u32, counter: Option<Counter>) -> Self {
        let overhead = times(calls, || Ok(())).expect("nothing cannot fail")[0];
        Sampler {
            calls,
            counter,
            overhead,
        }
    }

    /// Measures `call`, and prints the result under the name `id`. `n` is how many things each call
    /// does. A kernel that runs out of memory is a result.
    pub fn case(
        &self,
        id: &str,
        n: usize,
        call: impl FnMut() -> Result<(), Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        self.case_of_calls(id, n, 1, call)
    }

    /// The same, for what makes so many `ioctls` each time.
    pub fn case_of_calls(
        &self,
        id: &str,
        n: usize,
        ioctls: usize,
        mut call: impl FnMut() -> Result<(), Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        // A call with nothing in it takes as long as some commands.
        let most = COMMANDS / (n + 16 * ioctls);
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let calls = self.calls.min(most.max(3));
        for _ in 0..WARM_UP.min(calls / 3) {
            if let Err(e) = call() {
                match e.downcast::<Failure>() {
                    Ok(failure) if failure.errno == libc::ENOMEM => {
                        println!("{}", json!({"id": id, "n": n, "errno": "ENOMEM"}));
                        return Ok(());
                    }
                    Ok(failure) => return Err(failure),
                    Err(e) => return Err(e),
                }
            }
        }
        // By itself, as reading the counters is a lot of work.
        let before = self.counts()?;
        call()?;
        let counts = self.counts()?.zip(before);
        let counts = counts.map(|(after, before)| after.since(before));

        let times = times(calls, call)?;
        let time = |i: usize| times[i].saturating_sub(self.overhead);
        println!(
            "{}",
            json!({
                "id": id,
                "n": n,
                "ioctls": ioctls,
                "calls": times.len(),
                "min": time(0),
                "median": time(times.len() / 2),
                "max": time(times.len() - 1),
                "as_min": times.iter().filter(|time| **time == times[0]).count(),
                "commands": counts.map(|counts| counts.commands),
                "syncs": counts.map(|counts| counts.syncs),
                "reads": counts.and_then(|counts| counts.reads),
                "writes": counts.and_then(|counts| counts.writes),
            })
        );
        Ok(())
    }

    /// What went through the queue so far, if anybody counts.
    pub fn counts(&self) -> Result<Option<Counts>, Box<dyn Error>> {
        self.counter.as_ref().map(Counter::counts).transpose()
    }
}

/// How many nanoseconds each of so many calls takes, the shortest first.
fn times(
    calls: u32,
    mut call: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<Vec<u64>, Box<dyn Error>> {
    // With its pages there: a page fault costs more than most of what is measured.
    let mut times = vec![u64::MAX; calls as usize];
    for time in &mut times {
        let start = Instant::now();
        call()?;
        *time = start.elapsed().as_nanos().try_into()?;
    }
    times.sort_unstable();
    Ok(times)
}
