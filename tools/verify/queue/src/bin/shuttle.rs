// SPDX-License-Identifier: GPL-2.0

//! Runs the scenarios under random schedules, and under those of PCT, which gives threads priorities
//! that change a few times. Prints a line for each of these: `what TAB bound TAB inputs TAB seconds
//! TAB result`.
//!
//! Usage: `queue-shuttle random|pct SCHEDULES [SEED [TEXT]]`, those of the scenarios that have the text
//! in their description. A schedule that shows a mistake is printed, and the same arguments find it
//! again.

use std::{env, process::ExitCode, sync::Arc, time::Instant};

use shuttle::{
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    Config, MaxSteps, Runner,
};
use verify_queue::scenarios::{self, Scenario};

/// How often PCT changes priorities, at most.
const DEPTHS: [usize; 3] = [2, 3, 5];
/// The number of schedules for a scenario that is made up.
const EACH: usize = 50;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let mut args = args.iter().map(String::as_str);
    let kind = args.next().filter(|kind| ["random", "pct"].contains(kind));
    let (Some(kind), Some(count)) = (kind, args.next()) else {
        eprintln!("usage: queue-shuttle random|pct SCHEDULES [SEED [TEXT]]");
        return ExitCode::from(2);
    };
    let (is_pct, count) = (kind == "pct", count.parse());
    let seed = args.next().unwrap_or("1").parse();
    let text = args.next().unwrap_or_default();
    let is_meant = |scenario: &Scenario| format!("{scenario:?}").contains(text);
    let (Ok(count), Ok(seed)) = (count, seed) else {
        eprintln!("error: not a number");
        return ExitCode::from(2);
    };
    let count: usize = count;
    let start = Instant::now();
    let what = if is_pct { "PCT" } else { "random schedules" };

    // Half of the schedules for each kind of scenario.
    let mut small = scenarios::small();
    small.retain(is_meant);
    let each = (count / 2).div_ceil(small.len().max(1));
    for (number, scenario) in small.iter().enumerate() {
        check(scenario, is_pct, each, seed + number as u64);
    }
    let many = (count / 2).div_ceil(EACH);
    let others = (seed..).map(|seed| (seed, scenarios::random(seed)));
    for (seed, scenario) in others.filter(|(_, scenario)| is_meant(scenario)).take(many) {
        check(&scenario, is_pct, EACH, seed);
    }

    println!(
        "queue: {what}\t{} scenarios from seed {seed}{}\t{} schedules\t{:.1}\tok",
        small.len() + many,
        if is_pct { ", depth 2, 3, 5" } else { "" },
        each * small.len() + EACH * many,
        start.elapsed().as_secs_f64(),
    );
    ExitCode::SUCCESS
}

/// Runs a scenario under so many schedules. Panics at the first one that shows a mistake.
fn check(scenario: &Scenario, is_pct: bool, count: usize, seed: u64) {
    let scheduler: Box<dyn Scheduler + Send> = if is_pct {
        let depth = DEPTHS[seed as usize % DEPTHS.len()];
        Box::new(PctScheduler::new_from_seed(seed, depth, count))
    } else {
        Box::new(RandomScheduler::new_from_seed(seed, count))
    };
    let mut config = Config::new();
    // Nobody makes progress.
    config.max_steps = MaxSteps::FailAfter(200_000);
    config.silence_warnings = true;
    let scenario = Arc::new(scenario.clone());
    let name = format!("{}, seed {seed}: {scenario:?}", scenario.name);
    let last_words = LastWords(&name);
    Runner::new(scheduler, config).run(move || scenarios::run(&scenario));
    drop(last_words);
}

/// Tells which scenario it was.
struct LastWords<'a>(&'a str);

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("queue: {}", self.0);
        }
    }
}
