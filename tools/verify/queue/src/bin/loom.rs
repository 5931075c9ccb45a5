// SPDX-License-Identifier: GPL-2.0

//! Runs the plans under loom, each exhaustively up to a number of preemptions. Prints a line for each:
//! `what TAB bound TAB inputs TAB seconds TAB result`.
//!
//! Usage: `queue-loom quick|long [TEXT]`, those of the plans that have the text in their name. With
//! `LOOM_MAX_PREEMPTIONS`, that many preemptions in each.

use std::{
    env,
    process::ExitCode,
    sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        Arc,
    },
    time::Instant,
};

use loom::model::Builder;
use verify_queue::orders;

/// The most accesses to memory in one execution. With more than that, nobody makes progress.
const MAX_BRANCHES: usize = 20_000;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let (is_long, text) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [tier @ ("quick" | "long")] => (tier == "long", ""),
        [tier @ ("quick" | "long"), text] => (tier == "long", text),
        _ => {
            eprintln!("usage: queue-loom quick|long [TEXT]");
            return ExitCode::from(2);
        }
    };

    for plan in orders::plans() {
        let mut builder = Builder::new();
        let bound = if is_long { plan.long } else { plan.quick };
        let bound = builder.preemption_bound.unwrap_or(bound);
        if !plan.name.contains(text) {
            continue;
        }
        builder.preemption_bound = Some(bound);
        builder.max_branches = MAX_BRANCHES;
        let start = Instant::now();
        let count = Arc::new(AtomicU64::new(0));
        let name = plan.name;
        let last_words = LastWords(name);
        let counter = count.clone();
        builder.check(move || {
            counter.fetch_add(1, Relaxed);
            orders::run(&plan);
        });
        drop(last_words);
        println!(
            "loom: {name}\t{bound} preemptions, exhaustive\t{} executions\t{:.1}\tok",
            count.load(Relaxed),
            start.elapsed().as_secs_f64(),
        );
    }
    ExitCode::SUCCESS
}

/// Tells which plan it was.
struct LastWords<'a>(&'a str);

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("queue: {}", self.0);
        }
    }
}
