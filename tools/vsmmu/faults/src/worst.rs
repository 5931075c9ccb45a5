// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The worst that one guest or device can do to the others: how long interrupts are off, how long the
//! queue stands still for another VM and for the host, how long it takes to kill a program.
//!
//! Each is measured from user space, by the guest's own clock. With `-icount` that does not depend on the
//! machine. Four CPUs take part: one for the call, which also has the SMMU's interrupt for errors; one
//! that looks for how long the first does not answer; one each for another VM and for the host.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vsmmu_nested::cmd::op;
use vsmmu_nested::{Command, Outcome};

use crate::cases::{array, at_atc, at_sync, at_tlbi, atc, tlbi};
use crate::control::{Kind, Rule, TLBI_S2_IPA};
use crate::lab::{self, Error, Lab, On};
use crate::vm::{Caller, HostPage};

const CALLER: usize = 0;
const WATCHER: usize = 1;
const OTHER_VM: usize = 2;
const HOST: usize = 3;

/// How long the SMMU waits for a device that does not answer, in milliseconds.
const DEAD: u32 = 300;
/// How long a slow device takes.
const SLOW: u32 = 270;
/// How long the driver goes on to replay.
const REPLAYS: u32 = 1000;

/// A limit of so many milliseconds of waiting: it is looked less often the longer it takes, and each value
/// differs a little from run to run.
fn most(ms: u32) -> Limit {
    Limit::Most(u64::from(ms + ms / 8 + 50))
}

/// What a value is held against.
enum Limit {
    /// Not more than with the C code.
    C,
    /// Not more than this, as the C code does nothing of the kind.
    Most(u64),
    /// Not less than this.
    Least(u64),
    /// Nothing: another figure has the limit.
    No,
}

/// Measures everything, and prints a line for each: an id, the limit, a value, its unit, and what it is.
pub fn run(lab: &mut Lab) -> Result<(), Error> {
    if lab::cpus() <= HOST {
        return Err(Error::Missing("four CPUs"));
    }
    lab::route_gerror(&CALLER.to_string())?;
    interrupts_off(lab)?;
    dead_device(lab)?;
    slow_device(lab)?;
    kill(lab)?;
    log(lab)?;
    batches(lab)
}

fn print(id: &str, limit: Limit, value: u128, unit: &str, what: &str) {
    let limit = match limit {
        Limit::C => "c".into(),
        Limit::Most(n) => format!("<={n}"),
        Limit::Least(n) => format!(">={n}"),
        Limit::No => "-".into(),
    };
    println!("worst\t{id}\t{limit}\t{value}\t{unit}\t{what}");
}

/// Does something on the caller's CPU. Gives the longest time for which that had its interrupts off, as
/// another CPU sees it that interrupts it all the time.
fn watch<T>(work: impl FnOnce() -> T) -> Result<(T, Duration), Error> {
    lab::run_on([CALLER].into_iter())?;
    membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)?;
    let stop = AtomicBool::new(false);
    let (result, longest) = thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<Duration, Error> {
            lab::run_on([WATCHER].into_iter())?;
            let mut longest = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                // Interrupts each CPU on which this program runs, and waits until all have been there.
                membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)?;
                longest = longest.max(start.elapsed());
            }
            Ok(longest)
        });
        // So that it is at work.
        thread::sleep(Duration::from_millis(5));
        let result = work();
        stop.store(true, Ordering::Relaxed);
        (result, watcher.join().expect("does not panic"))
    });
    lab::run_on(0..lab::cpus())?;
    Ok((result, longest?))
}

fn membarrier(command: libc::c_int) -> Result<(), Error> {
    // SAFETY: it has no memory to look at.
    match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
        0 => Ok(()),
        _ => Err(Error::System(
            "membarrier".into(),
            io::Error::last_os_error(),
        )),
    }
}

fn interrupts_off(lab: &mut Lab) -> Result<(), Error> {
    let caller = lab.caller(On::Edu)?;
    lab.control.set(&[at_tlbi(Kind::Stall(0), 5)])?;
    let commands = array(10, tlbi);
    let (_, off) = watch(|| caller.call(&commands))?;
    lab.control.set(&[])?;
    let what = "interrupts off: a guest's call while nothing is consumed";
    print("irq-guest", Limit::C, off.as_millis(), "ms", what);

    for (id, kind, what) in [
        (
            "irq-host",
            Kind::Stall(0),
            "interrupts off: an unmapping while nothing is consumed",
        ),
        (
            "irq-host-abt",
            Kind::AbtFor(3_000_000),
            "interrupts off: an unmapping that cannot be fetched for 3 s",
        ),
    ] {
        let (_, off) = unmap(lab, On::Edu, &[Rule::new(kind).opcode(TLBI_S2_IPA)])?;
        print(id, Limit::C, off.as_millis(), "ms", what);
    }

    lab.attach_net()?;
    let before = lab.control.stats()?;
    let dead = Rule::new(Kind::AtcTimeout(DEAD)).opcode(op::ATC_INV);
    let (time, off) = unmap(lab, On::Net, &[dead.forever()])?;
    let what = "interrupts off: an unmapping for a device that does not answer";
    print("irq-host-atc", Limit::C, off.as_millis(), "ms", what);
    let what = "the whole of that unmapping, which finds out which device it is";
    print("host-atc", most(2 * DEAD), time.as_millis(), "ms", what);
    let n = lab.control.stats()?.since(before).atc;
    let what = "time-outs in that unmapping";
    print("host-atc-timeouts", Limit::Most(2), n.into(), "", what);
    lab.attach_net()
}

/// Unmaps under these rules. Gives how long it took, and had interrupts off.
fn unmap(lab: &mut Lab, on: On, rules: &[Rule]) -> Result<(Duration, Duration), Error> {
    let host = lab.caller(on)?;
    let page = HostPage::filled(1, 0);
    host.map(&page).map_err(Error::Map)?;
    lab.control.set(rules)?;
    let ((result, time), off) = watch(|| {
        let start = Instant::now();
        (host.unmap(&page), start.elapsed())
    })?;
    result.map_err(Error::Map)?;
    lab.control.set(&[])?;
    // Until nothing is left of it.
    while lab.caller(On::Edu)?.call(&[tlbi(0)]).0.errno != 0 {
        thread::sleep(Duration::from_millis(10));
    }
    Ok((time, off))
}

/// What the others have had to wait for meanwhile.
#[derive(Default)]
struct Others {
    vm: Duration,
    host: Duration,
    failed: u64,
}

/// Makes calls, while another VM and the host use the queue.
fn among_others<T>(lab: &Lab, work: impl FnOnce() -> T) -> Result<(T, Others), Error> {
    let (vm, host) = (lab.other_caller()?, lab.edu_caller());
    let stop = AtomicBool::new(false);
    let page = HostPage::filled(1, 0);
    lab::run_on([CALLER].into_iter())?;
    let ended = thread::scope(|scope| {
        let repeat = |cpu: usize, mut once: Box<dyn FnMut() -> bool + Send>| {
            let stop = &stop;
            scope.spawn(move || -> Result<(Duration, u64), Error> {
                lab::run_on([cpu].into_iter())?;
                let (mut longest, mut failed) = (Duration::ZERO, 0);
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    failed += u64::from(!once());
                    longest = longest.max(start.elapsed());
                    thread::sleep(Duration::from_millis(1));
                }
                Ok((longest, failed))
            })
        };
        let page = &page[0];
        let vm = repeat(OTHER_VM, Box::new(move || vm.call(&[tlbi(0)]).0.errno == 0));
        let host = repeat(HOST, Box::new(move || host.map_and_unmap(page).is_ok()));
        thread::sleep(Duration::from_millis(20));
        let result = work();
        // What waits now is to be counted as well.
        stop.store(true, Ordering::Relaxed);
        let panicked = "does not panic";
        (
            result,
            vm.join().expect(panicked),
            host.join().expect(panicked),
        )
    });
    lab::run_on(0..lab::cpus())?;
    let (result, vm, host) = ended;
    let ((vm, vm_failed), (host, host_failed)) = (vm?, host?);
    let failed = vm_failed + host_failed;
    Ok((result, Others { vm, host, failed }))
}

/// Four calls of one ATC_INV each to a device that does not answer.
fn dead_device(lab: &mut Lab) -> Result<(), Error> {
    lab.attach_net()?;
    let before = lab.control.stats()?;
    let caller = lab.caller(On::Net)?;
    let dead = at_atc(Kind::AtcTimeout(DEAD), 0);
    lab.control.set(&[dead.forever()])?;
    let (time, others) = among_others(lab, || {
        let start = Instant::now();
        for _ in 0..4 {
            caller.call(&[atc(0)]);
        }
        start.elapsed()
    })?;
    let stats = lab.control.stats()?.since(before);
    lab.attach_net()?;

    let what = "a device that does not answer, four calls: another VM's longest wait";
    print("dead-vm", Limit::C, others.vm.as_millis(), "ms", what);
    let what = "the host's longest wait";
    print("dead-host", Limit::C, others.host.as_millis(), "ms", what);
    let what = "the four calls";
    print("dead-time", Limit::C, time.as_millis(), "ms", what);
    let what = "time-outs, each of which stops the queue";
    print("dead-timeouts", Limit::C, stats.atc.into(), "", what);
    let what = "calls of others that failed";
    print(
        "dead-failed",
        Limit::Most(0),
        others.failed.into(),
        "",
        what,
    );
    Ok(())
}

/// 63 ATC_INVs time out together, and each is answered late when it is sent again.
fn slow_rules() -> Vec<Rule> {
    let mut rules = vec![at_atc(Kind::AtcTimeout(DEAD), 62)];
    rules.extend((0..63).map(|i| {
        // Together they take no longer than one.
        let skip = u32::from(i != 62);
        at_atc(Kind::Stall(SLOW), i).skip(skip).forever()
    }));
    rules
}

fn slow_device(lab: &mut Lab) -> Result<(), Error> {
    lab.attach_net()?;
    let caller = lab.caller(On::Net)?;
    let commands = array(63, atc);
    lab.control.set(&slow_rules())?;
    let (time, others) = among_others(lab, || caller.call(&commands).1)?;
    lab.attach_net()?;

    let what = "63 ATC_INVs to a slow device, the last times out once: another VM's longest wait";
    print("slow-vm", Limit::C, others.vm.as_millis(), "ms", what);
    let what = "the host's longest wait";
    print("slow-host", Limit::C, others.host.as_millis(), "ms", what);
    let what = "the whole call, which finds out which of them it is";
    print(
        "slow-time",
        most(DEAD + REPLAYS + SLOW),
        time.as_millis(),
        "ms",
        what,
    );
    let what = "calls of others that failed";
    print(
        "slow-failed",
        Limit::Most(0),
        others.failed.into(),
        "",
        what,
    );
    Ok(())
}

fn kill(lab: &mut Lab) -> Result<(), Error> {
    let caller = lab.caller(On::Edu)?;
    lab.control.set(&[at_sync(Kind::Stall(200)).forever()])?;
    let time = time_to_kill(&caller, &array(4096, tlbi), Duration::from_millis(50))?;
    lab.control.set(&[])?;
    let what = "SIGKILL in a call of 4096 TLBIs, each CMD_SYNC of which takes 200 ms";
    print("kill-tlbi", Limit::C, time.as_millis(), "ms", what);

    lab.attach_net()?;
    let caller = lab.caller(On::Net)?;
    lab.control.set(&slow_rules())?;
    // Among the replays.
    let wait = Duration::from_millis(u64::from(DEAD + SLOW / 2));
    let time = time_to_kill(&caller, &array(63, atc), wait)?;
    lab.attach_net()?;
    let what = "SIGKILL while ATC_INVs are sent again to a slow device";
    print("kill-replay", most(SLOW), time.as_millis(), "ms", what);
    Ok(())
}

/// How long it takes from SIGKILL to the end of a process that makes a call, killed after `wait`.
pub fn time_to_kill(
    caller: &Caller,
    commands: &[Command],
    wait: Duration,
) -> Result<Duration, Error> {
    let failed = |what: &str| Error::System(what.into(), io::Error::last_os_error());
    // SAFETY: there is no other thread now that could hold a lock; the child makes one system call.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Err(failed("fork")),
        0 => {
            let (Outcome { errno, .. }, _) = caller.call(commands);
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(i32::from(errno != 0)) }
        }
        _ => thread::sleep(wait),
    }
    let start = Instant::now();
    // SAFETY: it is our child, which is not waited for yet.
    if unsafe { libc::kill(child, libc::SIGKILL) } != 0 {
        return Err(failed("kill"));
    }
    let mut status = 0;
    // SAFETY: the status is ours to be written to.
    if unsafe { libc::waitpid(child, &mut status, 0) } != child {
        return Err(failed("waitpid"));
    }
    Ok(start.elapsed())
}

/// Messages of the kernel that have come since then.
struct Messages(std::fs::File);

impl Messages {
    fn from_now() -> Result<Self, Error> {
        let path = "/dev/kmsg";
        let open = || -> io::Result<std::fs::File> {
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(path)?;
            // It takes no other than these two ends.
            io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().map_err(|e| Error::System(path.into(), e))?;
        Ok(Messages(file))
    }

    /// How many of the SMMU's.
    fn count(&mut self) -> u64 {
        let mut record = [0; 8192];
        let mut n = 0;
        // One at a time, and an error when there is none.
        while let Ok(len) = self.0.read(&mut record) {
            let text = String::from_utf8_lossy(&record[..len]);
            n += u64::from(text.contains("arm-smmu-v3"));
        }
        n
    }
}

/// What a guest's errors do to the kernel's log.
fn log(lab: &mut Lab) -> Result<(), Error> {
    const ERRORS: u32 = 20;
    // After that time, there is no limit to messages from what was before.
    thread::sleep(Duration::from_secs(6));
    let caller = lab.caller(On::Edu)?;
    let mut messages = Messages::from_now()?;
    lab.control.set(&[at_tlbi(Kind::Ill, 0).times(ERRORS)])?;
    for _ in 0..ERRORS {
        caller.call(&[tlbi(0)]);
    }
    let n = messages.count();
    let what = "lines in the kernel's log for 20 errors of a guest";
    print("log-guest", Limit::C, n.into(), "", what);

    let abt = Rule::new(Kind::Abt).opcode(TLBI_S2_IPA);
    unmap(lab, On::Edu, &[abt])?;
    let what = "lines there for an error of the host right behind them";
    print(
        "log-host",
        Limit::Least(1),
        messages.count().into(),
        "",
        what,
    );
    Ok(())
}

/// What has no limit of its own here.
fn batches(lab: &mut Lab) -> Result<(), Error> {
    let caller = lab.caller(On::Edu)?;
    let commands = array(4096, tlbi);
    let before = lab.control.stats()?;
    caller.call(&commands);
    let stats = lab.control.stats()?.since(before);
    let n = stats.tlbi_nh_vas.div_ceil(stats.syncs.max(1));
    let what = "TLBIs for each CMD_SYNC, in a call of 4096";
    print("tlbis-per-sync", Limit::No, n.into(), "", what);

    let before = lab.control.stats()?;
    lab.control.set(&[at_tlbi(Kind::Stall(500), 5)])?;
    caller.call(&commands[..10]);
    let stats = lab.control.stats()?.since(before);
    lab.control.set(&[])?;
    let what = "reads of registers in a call that waits for 500 ms";
    print("reads", Limit::No, stats.reads.into(), "", what);
    Ok(())
}
