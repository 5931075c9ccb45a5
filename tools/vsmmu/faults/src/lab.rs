// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What rows do: have the SMMU fail, make calls meanwhile, and look what came of it.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use iommufd_ioctls::IommufdError;
use vsmmu_nested::{Command, ErrorCode, Outcome, edu, pci};

use crate::control::{self, Control, Kind, Rule, Stats};
use crate::vm::{self, ASID, Caller, HostPage, NET_PCI_ID, Sights, Vm};

/// A call that nothing holds up is back by then, even if an error has to be serviced, and even on a busy
/// build machine. (A kernel that waits for an interrupt which it keeps off itself takes a second.)
pub const QUICK: Duration = Duration::from_millis(250);
/// The driver's time limit, after which it gives up an SMMU that consumes nothing.
pub const LIMIT: Duration = Duration::from_secs(1);
/// An error that does not go away is acknowledged at most once a millisecond, after this many at first.
/// (With a kernel that has no pauses it is some ten thousand in a second.)
const STORM: u64 = 100;
/// A thread that is not back by then never will be.
const STUCK: Duration = Duration::from_secs(30);
/// Wrong answers in a row of many calls, after which there is nothing to learn from more.
const ENOUGH: usize = 5;

/// Why a row could not be tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The emulator.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// A VM.
    #[error(transparent)]
    Vm(#[from] vm::Error),
    /// Mapping in stage 2, or unmapping.
    #[error("cannot map or unmap in stage 2")]
    Map(#[source] IommufdError),
    /// A device.
    #[error(transparent)]
    Pci(#[from] pci::Error),
    /// A device that is missing.
    #[error("the machine has no {0}")]
    Missing(&'static str),
    /// The kernel.
    #[error("{0} calls have not come back within {STUCK:?}")]
    Stuck(usize),
    /// The machine.
    #[error("the machine is too busy: a call of some milliseconds has taken a tenth of a second")]
    Slow,
    /// Placing threads and interrupts.
    #[error("{0}")]
    System(String, #[source] io::Error),
}

/// `entry_num` in an answer.
#[derive(Clone, Copy, Debug)]
pub enum Num {
    /// This number.
    Is(usize),
    /// This number or less.
    UpTo(usize),
}

/// What the kernel has to answer.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// The errno, 0 for success.
    pub errno: i32,
    /// `entry_num`.
    pub num: Num,
    /// The driver's error code.
    pub code: ErrorCode,
}

impl Want {
    /// Whether it is the answer.
    pub fn is(&self, answer: &Outcome) -> bool {
        let num = answer.entry_num as usize;
        let num = match self.num {
            Num::Is(n) => num == n,
            Num::UpTo(n) => num <= n,
        };
        num && answer.errno == self.errno && answer.code == self.code as u32
    }
}

/// From the first to the second, both included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds(pub u64, pub u64);

impl Bounds {
    /// The bounds of the sum.
    pub fn add(&mut self, other: Bounds) {
        self.0 += other.0;
        self.1 += other.1;
    }

    fn hold(self, value: u64) -> bool {
        (self.0..=self.1).contains(&value)
    }
}

/// How many errors of each kind the SMMU has to raise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raised {
    /// CERROR_ILLs.
    pub ill: Bounds,
    /// CERROR_ABTs.
    pub abt: Bounds,
    /// CERROR_ATC_INV_SYNCs.
    pub atc: Bounds,
    /// Stalls.
    pub stalls: Bounds,
}

impl Raised {
    /// The errors of both.
    pub fn add(&mut self, other: &Raised) {
        self.ill.add(other.ill);
        self.abt.add(other.abt);
        self.atc.add(other.atc);
        self.stalls.add(other.stalls);
    }

    /// Finds fault with what has been raised.
    pub fn judge(&self, stats: Stats, faults: &mut Vec<String>) {
        for (name, bounds, value) in [
            ("CERROR_ILL", self.ill, stats.ill),
            ("CERROR_ABT", self.abt, stats.abt),
            ("CERROR_ATC_INV_SYNC", self.atc, stats.atc),
            ("stall", self.stalls, stats.stalls),
        ] {
            if !bounds.hold(value) {
                let Bounds(min, max) = bounds;
                faults.push(format!("{name} happened {value} times, not {min} to {max}"));
            }
        }
        let raised = stats.ill + stats.abt + stats.atc;
        // There is none without an error, and one error can be left.
        if stats.acks > raised || stats.acks + 1 < raised {
            faults.push(format!("{raised} errors, {} acknowledgments", stats.acks));
        }
    }
}

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// The VM with the DMA engine.
    Edu,
    /// The VM with the device that has ATS.
    Net,
}

/// One call, with the SMMU set to fail in it.
#[derive(Clone)]
pub struct Shot {
    /// Whose.
    pub on: On,
    /// What is sent.
    pub commands: Vec<Command>,
    /// How the SMMU fails.
    pub rules: Vec<Rule>,
    /// What has to come back.
    pub want: Want,
    /// What the SMMU has to raise meanwhile.
    pub raised: Raised,
    /// How long it takes, at least and at most.
    pub time: (Duration, Duration),
    /// Whether DMA looks at the pages A and B, and which of them have to be fresh.
    pub dma: Option<[bool; 2]>,
    /// How many ATC_INVs the SMMU has to get at least: more than are sent, if some have to be replayed.
    pub atc_invs: u64,
    /// How long the SMMU goes on to fail after the call, with nobody calling.
    pub linger: Duration,
    /// The errors are not to come faster than the kernel is to acknowledge them.
    pub calm: bool,
}

/// How a row came out.
#[derive(Default)]
pub struct Finding {
    /// The answer, or the last of several.
    pub got: Option<Outcome>,
    /// What the SMMU has counted.
    pub stats: Stats,
    /// The time that the call took, or the longest of several.
    pub time: Duration,
    /// What is wrong, empty if nothing is.
    pub faults: Vec<String>,
    /// Anything to add.
    pub note: Option<String>,
}

impl Finding {
    /// The two in one.
    pub fn absorb(&mut self, other: Finding) {
        self.got = other.got.or(self.got);
        self.stats = self.stats.and(other.stats);
        self.time = self.time.max(other.time);
        self.faults.extend(other.faults);
        self.note = other.note.or(self.note.take());
    }
}

/// How long calls took in one arrangement.
pub struct Latency {
    /// The arrangement.
    pub what: String,
    /// The times, sorted.
    pub times: Vec<Duration>,
}

/// The machine.
pub struct Lab {
    /// The emulated SMMU.
    pub control: Control,
    /// The VM with the DMA engine.
    pub edu: Vm,
    /// Another one of that kind.
    pub other: Option<Vm>,
    /// The VM with the device that has ATS, if the SMMU has it as well.
    pub net: Option<Vm>,
    /// The VM with the DMA engine also has a device with ATS.
    pub edu_has_net: bool,
    /// Log2 of the entries that the command queue can have.
    pub cmdqs: u64,
    /// The SMMU completes CMD_SYNCs with MSIs.
    pub msi: bool,
    /// An ATC_INV was not answered since the devices with ATS were attached, so that the next ones are
    /// refused for some time.
    unanswered: bool,
    /// For the table at the end.
    pub latencies: Vec<Latency>,
}

impl Lab {
    /// All that the machine has.
    pub fn new() -> Result<Self, Error> {
        let mut control = Control::open()?;
        let (cmdqs, msi) = control.model()?;
        // What a former run may have left.
        control.set(&[])?;
        let edus = pci::find_all(edu::PCI_ID.0, edu::PCI_ID.1)?;
        let first = edus.first().ok_or(Error::Missing("edu device"))?;
        let mut edu = Vm::with_edu(first)?;
        let other = edus.get(1).map(|bdf| Vm::with_edu(bdf)).transpose()?;
        let mut nets = pci::find_all(NET_PCI_ID.0, NET_PCI_ID.1)?.into_iter();
        let mut net = None;
        let mut edu_has_net = false;
        if edu.smmu_has_ats() {
            net = nets.next().map(|bdf| Vm::with_net(&bdf)).transpose()?;
            if let Some(bdf) = nets.next() {
                edu.add_net(&bdf)?;
                edu_has_net = true;
            }
        }
        Ok(Lab {
            control,
            edu,
            other,
            net,
            edu_has_net,
            cmdqs,
            msi,
            unanswered: false,
            latencies: Vec::new(),
        })
    }

    /// Whether the host invalidates ranges, and not page by page.
    pub fn has_ranges(&self) -> bool {
        self.edu.smmu().hw_info().ril()
    }

    /// Attaches the devices with ATS anew, with which all that they have not answered is forgotten.
    pub fn attach_net(&mut self) -> Result<(), Error> {
        self.control.set(&[])?;
        self.vm(On::Net)?.attach()?;
        self.edu.attach_added()?;
        self.unanswered = false;
        Ok(())
    }

    /// One of the VMs.
    pub fn vm(&mut self, on: On) -> Result<&mut Vm, Error> {
        match on {
            On::Edu => Ok(&mut self.edu),
            On::Net => self.net.as_mut().ok_or(Error::Missing("device with ATS")),
        }
    }

    /// For calls.
    pub fn caller(&mut self, on: On) -> Result<Caller, Error> {
        Ok(self.vm(on)?.caller())
    }

    /// For calls of the VM with the DMA engine.
    pub fn edu_caller(&self) -> Caller {
        self.edu.caller()
    }

    /// For calls of somebody else.
    pub fn other_caller(&self) -> Result<Caller, Error> {
        let other = self.other.as_ref().ok_or(Error::Missing("second VM"))?;
        Ok(other.caller())
    }

    /// Fires the shots one after the other, and then looks whether the queue works.
    pub fn shoot(&mut self, shots: &[Shot]) -> Result<Finding, Error> {
        let mut finding = Finding::default();
        let before = self.control.stats()?;
        let mut raised = Raised::default();
        let (mut wrong, mut atc_invs) = (0, 0);
        for (i, shot) in shots.iter().enumerate() {
            raised.add(&shot.raised);
            atc_invs += shot.atc_invs;
            if self.unanswered {
                self.attach_net()?;
            }
            let storm = match shot.calm {
                true => Some(self.control.stats()?),
                false => None,
            };
            self.control.set(&shot.rules)?;
            let start = Instant::now();
            let ((got, time), sights) = match shot.dma {
                Some(_) => {
                    let vm = self.vm(shot.on)?;
                    let (result, sights) = vm.experiment(|caller| caller.call(&shot.commands))?;
                    (result, Some(sights))
                }
                None => (self.caller(shot.on)?.call(&shot.commands), None),
            };
            thread::sleep(shot.linger);
            self.unanswered |=
                shot.commands.iter().any(|command| command.is_atc_inv()) && got.errno != 0;
            let mut faults = judge(shot, &got, time, sights);
            if let Some(before) = storm {
                faults.extend(self.check_calm(before, start)?);
            }
            if !faults.is_empty() {
                wrong += 1;
                if shots.len() > 1 {
                    let n = shots.len();
                    faults.insert(0, format!("{} of {n}: {}", i + 1, show(&got)));
                }
                // A few show what it is about.
                if wrong <= 3 {
                    finding.faults.push(faults.join(", "));
                }
                // And each may take as long as it does for a call to fail.
                if wrong == ENOUGH {
                    finding
                        .faults
                        .push(format!("{wrong} are wrong, the rest not tried"));
                    finding.time = finding.time.max(time);
                    break;
                }
            }
            finding.time = finding.time.max(time);
            if wrong <= 1 {
                finding.got = Some(got);
            }
        }
        if (4..ENOUGH).contains(&wrong) {
            finding.faults.push(format!("{wrong} are wrong in all"));
        }
        if let [shot] = shots {
            self.check_hits(shot, before, &mut finding)?;
        }
        self.recover(shots[0].on, &mut finding)?;
        finding.stats = self.control.stats()?.since(before);
        raised.judge(finding.stats, &mut finding.faults);
        if finding.stats.atc_invs < atc_invs {
            let n = finding.stats.atc_invs;
            finding.faults.push(format!(
                "the SMMU got {n} ATC_INVs, not {atc_invs}: some have not been replayed"
            ));
        }
        Ok(finding)
    }

    /// Ends all failing. Whether there were more errors since then than a kernel that makes pauses has
    /// acknowledged.
    pub fn check_calm(&mut self, before: Stats, start: Instant) -> Result<Option<String>, Error> {
        self.control.set(&[])?;
        let time = start.elapsed();
        let stats = self.control.stats()?.since(before);
        let errors = stats.ill + stats.abt + stats.atc;
        let storm = u128::from(errors) > u128::from(STORM) + time.as_millis();
        Ok(storm.then(|| format!("an interrupt storm: {errors} errors in {time:?}")))
    }

    /// Whether the SMMU has raised what the rules say, and for no other reason.
    fn check_hits(
        &mut self,
        shot: &Shot,
        before: Stats,
        finding: &mut Finding,
    ) -> Result<(), Error> {
        // They have been ended already.
        if shot.calm {
            return Ok(());
        }
        let hits = self.control.hits()?;
        if hits.len() != shot.rules.len() {
            finding.faults.push("the SMMU has lost rules".into());
        }
        let stats = self.control.stats()?.since(before);
        let applied = |kind: fn(Kind) -> bool| -> u64 {
            let rules = shot.rules.iter().zip(&hits);
            rules
                .filter(|(rule, _)| kind(rule.kind))
                .map(|(_, n)| n)
                .sum()
        };
        let ill = applied(|kind| kind == Kind::Ill);
        let abt = applied(|kind| matches!(kind, Kind::Abt | Kind::AbtFor(_)));
        let atc = applied(|kind| matches!(kind, Kind::AtcInvSync | Kind::AtcTimeout(_)));
        let stalls = applied(|kind| matches!(kind, Kind::Stall(_)));
        // One error can be for several ATC_INVs.
        let right = (stats.ill, stats.abt, stats.stalls) == (ill, abt, stalls)
            && (u64::from(atc > 0)..=atc).contains(&stats.atc);
        if !right {
            finding.faults.push(format!(
                "{stats:?}, but the rules have been applied {hits:?} times"
            ));
        }
        Ok(())
    }

    /// Ends all failing, and checks that a call then succeeds, and quickly.
    pub fn recover(&mut self, on: On, finding: &mut Finding) -> Result<(), Error> {
        self.control.set(&[])?;
        let start = Instant::now();
        if let Err(e) = self.vm(on)?.invalidate_all() {
            finding
                .faults
                .push(format!("the next call: {}", crate::with_causes(&e)));
        }
        if start.elapsed() > QUICK {
            let time = start.elapsed();
            finding.faults.push(format!("the next call took {time:?}"));
        }
        // Once more for the pages' sake, if that has failed; it is a fault already.
        let _ = self.vm(on)?.invalidate_all();
        Ok(())
    }

    /// As [`Lab::shoot`], while another VM and the host use the queue as well: all that they do has to
    /// succeed. What the host does is for `host`.
    pub fn shoot_among_others(&mut self, shots: &[Shot], host: Caller) -> Result<Finding, Error> {
        self.among_others(host, |lab| lab.shoot(shots))
    }

    /// The same for anything else.
    pub fn among_others(
        &mut self,
        host: Caller,
        work: impl FnOnce(&mut Self) -> Result<Finding, Error>,
    ) -> Result<Finding, Error> {
        let other = self.other_caller()?;
        let (started, stop) = (Barrier::new(3), AtomicBool::new(false));
        let (finding, calls, maps) = thread::scope(|scope| {
            let calls = scope.spawn(|| innocent_calls(&other, &started, &stop));
            let maps = scope.spawn(|| innocent_maps(&host, &started, &stop));
            started.wait();
            let finding = work(self);
            stop.store(true, Ordering::Relaxed);
            let panicked = "does not panic";
            (
                finding,
                calls.join().expect(panicked),
                maps.join().expect(panicked),
            )
        });
        let mut finding = finding?;
        for (who, others) in [("another VM", &calls), ("the host", &maps)] {
            if others.done == 0 {
                finding.faults.push(format!("{who} has done nothing"));
            }
            if others.failed > 0 {
                let last = &others.last_failure;
                finding
                    .faults
                    .push(format!("{who}: {} failed, as {last}", others.failed));
            }
            if others.longest > 2 * QUICK {
                let longest = others.longest;
                finding
                    .faults
                    .push(format!("{who} had to wait for {longest:?}"));
            }
        }
        finding.note = Some(format!(
            "others: {} calls, longest {} ms; {} maps, longest {} ms",
            calls.done,
            calls.longest.as_millis(),
            maps.done,
            maps.longest.as_millis()
        ));
        Ok(finding)
    }

    /// Has several threads call at once, each with its own commands, under these rules. Gives the
    /// answers once all have come back.
    pub fn volley(
        &mut self,
        rules: &[Rule],
        calls: Vec<(Caller, Vec<Command>)>,
    ) -> Result<Vec<(Outcome, Duration)>, Error> {
        self.control.set(rules)?;
        let (sender, receiver) = mpsc::channel();
        let number = calls.len();
        for (i, (caller, commands)) in calls.into_iter().enumerate() {
            let sender = sender.clone();
            // Not a scoped one: who would wait for it if it hangs?
            thread::spawn(move || {
                let answer = caller.call(&commands);
                // Nobody listens if another one hangs.
                let _ = sender.send((i, answer));
            });
        }
        let end = Instant::now() + STUCK;
        let mut answers = Vec::new();
        while answers.len() < number {
            let left = end.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left) {
                Ok(answer) => answers.push(answer),
                Err(_) => return Err(Error::Stuck(number - answers.len())),
            }
        }
        answers.sort_by_key(|(i, _)| *i);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }

    /// After a [`Lab::volley`]: whether everybody's queue works again, and what has been raised since
    /// `before`.
    pub fn after_volley(&mut self, before: Stats, finding: &mut Finding) -> Result<(), Error> {
        self.recover(On::Edu, finding)?;
        if let Some(other) = &self.other
            && let Err(e) = other.invalidate_all()
        {
            finding.faults.push(format!(
                "another VM's next call: {}",
                crate::with_causes(&e)
            ));
        }
        finding.stats = self.control.stats()?.since(before);
        Ok(())
    }
}

/// What somebody has done who has nothing to do with the errors.
#[derive(Default)]
struct Others {
    done: u64,
    failed: u64,
    last_failure: String,
    longest: Duration,
}

impl Others {
    fn add(&mut self, failure: Option<String>, time: Duration) {
        self.done += 1;
        self.longest = self.longest.max(time);
        if let Some(failure) = failure {
            self.failed += 1;
            self.last_failure = failure;
        }
        // With one CPU, the one that all are about needs it too.
        thread::sleep(Duration::from_micros(200));
    }
}

fn innocent_calls(caller: &Caller, started: &Barrier, stop: &AtomicBool) -> Others {
    let mut others = Others::default();
    started.wait();
    while !stop.load(Ordering::Relaxed) {
        // One that fits in a batch, one that does not.
        for n in [1, 100] {
            let commands = vec![Command::tlbi_nh_asid(ASID); n];
            let (got, time) = caller.call(&commands);
            let right = (got.errno, got.entry_num as usize, got.code) == (0, n, 0);
            others.add((!right).then(|| show(&got)), time);
        }
    }
    others
}

fn innocent_maps(caller: &Caller, started: &Barrier, stop: &AtomicBool) -> Others {
    let mut others = Others::default();
    let page = HostPage::filled(1, 0);
    started.wait();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let result = caller.map_and_unmap(&page[0]);
        others.add(result.err().map(|e| e.to_string()), start.elapsed());
    }
    others
}

fn judge(shot: &Shot, got: &Outcome, time: Duration, sights: Option<Sights>) -> Vec<String> {
    let mut faults = Vec::new();
    if !shot.want.is(got) {
        faults.push(format!("the answer should be {}", wanted(&shot.want)));
    }
    if !(shot.time.0..=shot.time.1).contains(&time) {
        let (min, max) = shot.time;
        faults.push(format!("took {time:?}, not {min:?} to {max:?}"));
    }
    if let (Some(wanted), Some(sights)) = (shot.dma, sights) {
        if !sights.stale {
            faults.push("nothing was stale before: DMA proves nothing".into());
        }
        for (name, (wanted, fresh)) in ["A", "B"].iter().zip(wanted.iter().zip(sights.fresh)) {
            if *wanted && !fresh {
                faults.push(format!("DMA of page {name} is stale"));
            }
        }
    }
    faults
}

/// An answer, for people.
pub fn show(answer: &Outcome) -> String {
    triple(answer.errno, &answer.entry_num.to_string(), answer.code)
}

/// What should be answered, for people.
pub fn wanted(want: &Want) -> String {
    let num = match want.num {
        Num::Is(n) => n.to_string(),
        Num::UpTo(n) => format!("0..={n}"),
    };
    triple(want.errno, &num, want.code as u32)
}

fn triple(errno: i32, num: &str, code: u32) -> String {
    let code = match code {
        0 => "-".into(),
        1 => "ILL".into(),
        2 => "ABT".into(),
        3 => "ATC_INV_SYNC".into(),
        other => format!("{other:#x}"),
    };
    let errno = match errno {
        0 => "0".into(),
        libc::EIO => "EIO".into(),
        libc::ETIMEDOUT => "ETIMEDOUT".into(),
        other => format!("errno {other}"),
    };
    format!("{errno} {num} {code}")
}

/// A counter of the kernel's, in the file of the command queue in debugfs.
pub fn debugfs(name: &str) -> Result<u64, Error> {
    let dir = "/sys/kernel/debug";
    let entries = fs::read_dir(dir).map_err(|e| Error::System(dir.into(), e))?;
    let files = entries.flatten().map(|entry| entry.path().join("cmdq"));
    let text = files
        .filter_map(|file| fs::read_to_string(file).ok())
        .next()
        .ok_or(Error::Missing("statistics of the command queue in debugfs"))?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.parse().ok())
        .ok_or(Error::Missing("such counter in debugfs"))
}

/// A tracepoint of the driver's. With a kernel that does not have it, nothing is traced.
pub struct Trace(&'static str);

impl Trace {
    const DIR: &str = "/sys/kernel/tracing";

    /// Traces `event` from now on, and nothing else.
    pub fn start(event: &'static str) -> Self {
        let trace = Trace(event);
        let _ = fs::write(format!("{}/trace", Self::DIR), "");
        trace.enable("1");
        trace
    }

    fn enable(&self, on: &str) {
        let Trace(event) = self;
        let _ = fs::write(
            format!("{}/events/arm_smmu_v3/{event}/enable", Self::DIR),
            on,
        );
    }

    /// Ends that. The last word of each line.
    pub fn end(self) -> Vec<String> {
        self.enable("0");
        let text = fs::read_to_string(format!("{}/trace", Self::DIR)).unwrap_or_default();
        let lines = text.lines().filter(|line| line.contains(self.0));
        lines
            .filter_map(|line| line.split_whitespace().last().map(String::from))
            .collect()
    }
}

/// How many CPUs there are.
pub fn cpus() -> usize {
    // Not available_parallelism(), which goes by where this thread may run.
    // SAFETY: only asks.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(cpus).unwrap_or(1).max(1)
}

/// Has this thread run on these CPUs only.
pub fn run_on(cpus: impl Iterator<Item = usize>) -> Result<(), Error> {
    // SAFETY: a bit set, for which zeroes are the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        // SAFETY: the set is ours, and a number that does not fit is ignored.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the set is valid and as large as is said; 0 is this thread.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } != 0 {
        return Err(Error::System(
            "sched_setaffinity".into(),
            io::Error::last_os_error(),
        ));
    }
    Ok(())
}

/// Routes the SMMU's interrupt for global errors to these CPUs (such as `0-3`).
pub fn route_gerror(cpus: &str) -> Result<(), Error> {
    let path = "/proc/interrupts";
    let table = fs::read_to_string(path).map_err(|e| Error::System(path.into(), e))?;
    let line = table.lines().find(|line| line.contains("gerror"));
    let irq = line
        .and_then(|line| line.split(':').next())
        .ok_or(Error::Missing("interrupt of the SMMU for global errors"))?;
    let path = format!("/proc/irq/{}/smp_affinity_list", irq.trim());
    fs::write(&path, cpus).map_err(|e| Error::System(path, e))
}
