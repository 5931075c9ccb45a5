// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs programs, and looks at each answer.

use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vsmmu_faults::control::{Control, Kind, Rule, TLBI_S2_IPA};
use vsmmu_faults::vm::NET_PCI_ID;
use vsmmu_nested::cmd::op;
use vsmmu_nested::{edu, pci};

use crate::call::{Answer, Call, Caller, Team};
use crate::judge::Weather;
use crate::kcov::Coverage;
use crate::plan::{Meanwhile, Planned, Planner, Ram, Then};
use crate::program::{Op, Pick, Program, Step};
use crate::vm::{Messages, Object, Vm, own};

/// CMD_SYNC.
const SYNC: u8 = 0x46;
/// After rules: longer than anything that they have started.
const CALM: Duration = Duration::from_secs(10);

/// A program that the kernel has not behaved in.
pub type Violation = String;

/// What a program has shown.
#[derive(Debug, Default)]
pub struct Report {
    /// How many instructions had not been seen before.
    pub new: usize,
    /// What was wrong.
    pub violation: Option<Violation>,
}

/// What programs run on.
pub struct Runner {
    vms: Vec<Vm>,
    ram: Ram,
    control: Option<Control>,
    weather: Weather,
    caller: Caller,
    team: Team,
    messages: Messages,
    verbose: bool,
    new: usize,
    /// How many ioctls there were.
    pub ioctls: u64,
    /// How many of these were invalidations.
    pub invalidations: u64,
    /// How many of these were made at the same time as others.
    pub parallel: u64,
    /// How many had a rule for the SMMU.
    pub stormy: u64,
}

impl Runner {
    /// Opens the devices and the way to the emulator, if there is one.
    pub fn new(
        threads: usize,
        coverage: Option<Arc<Coverage>>,
        verbose: bool,
    ) -> Result<Self, Box<dyn Error>> {
        let edus = pci::find_all(edu::PCI_ID.0, edu::PCI_ID.1)?;
        let nets = pci::find_all(NET_PCI_ID.0, NET_PCI_ID.1)?;
        let team = Team::new(threads, coverage.as_ref())?;
        let mut caller = Caller::new(coverage)?;
        let mut vms = Vec::new();
        for (i, bdf) in edus.iter().take(2).enumerate() {
            let mut devices = vec![(bdf.clone(), edu::PCI_ID)];
            devices.extend(nets.get(i).map(|bdf| (bdf.clone(), NET_PCI_ID)));
            vms.push(Vm::new(&devices, caller.memory())?);
        }
        if vms.is_empty() {
            return Err("there is no edu device".into());
        }
        Ok(Runner {
            vms,
            ram: Ram::new(),
            control: Control::open().ok(),
            weather: Weather::default(),
            caller,
            team,
            messages: Messages::new()?,
            verbose,
            new: 0,
            ioctls: 0,
            invalidations: 0,
            parallel: 0,
            stormy: 0,
        })
    }

    /// What it runs on, for people.
    pub fn describe(&self) -> String {
        let devices: Vec<_> = self
            .vms
            .iter()
            .map(|vm| vm.devices.len().to_string())
            .collect();
        let hw = self.vms[0].hw;
        format!(
            "VMs with {} devices; the SMMU {} on demand; ATS {}, ranges {}, substreams of {} bits; the kernel \
             says that it answers exactly: {}",
            devices.join(" and "),
            if self.control.is_some() {
                "fails"
            } else {
                "does not fail"
            },
            hw.ats(),
            hw.ril(),
            hw.ssid_bits(),
            hw.answers_exactly(),
        )
    }

    /// Runs the program, and takes back all that it has made.
    pub fn run(&mut self, program: &Program) -> Result<Report, Box<dyn Error>> {
        self.new = 0;
        let mut violation = self.steps(&program.steps())?.err();
        if violation.is_none() {
            violation = self.take_back()?.err();
        }
        let messages = self.messages.bad();
        if violation.is_none() && !messages.is_empty() {
            violation = Some(format!("the kernel says: {}", messages.join("; ")));
        }
        Ok(Report {
            new: self.new,
            violation,
        })
    }

    fn steps(&mut self, steps: &[Step]) -> Result<Result<(), Violation>, Box<dyn Error>> {
        let mut rest = steps;
        while let Some((first, more)) = rest.split_first() {
            let together = rest
                .iter()
                .take_while(|step| step.parallel)
                .count()
                .min(self.team.size());
            let result = if together > 1 {
                let (group, more) = rest.split_at(together);
                rest = more;
                self.group(group)
            } else {
                rest = more;
                self.single(*first)?
            };
            if let Err(violation) = result {
                return Ok(Err(violation));
            }
        }
        Ok(Ok(()))
    }

    /// Alone, what is more than a call as well.
    fn single(&mut self, step: Step) -> Result<Result<(), Violation>, Box<dyn Error>> {
        let n = usize::from(step.vm) % self.vms.len();
        match step.op {
            Op::Nest { device, vsid, ats } => return Ok(self.nest(n, device, vsid, ats)),
            Op::CloseQueues => self.vms[n].close_queues(),
            Op::Dma { device, address } => {
                let vm = &self.vms[n];
                let device = &vm.devices[usize::from(device) % vm.devices.len()];
                device.dma(0x4000_0000 + u64::from(address) * 4096)?;
            }
            Op::Rule {
                kind,
                opcode,
                skip,
                times,
            } => self.rule([kind, opcode, skip, times])?,
            op => return Ok(self.one(n, |planner| planner.plan(op)).map(|_| ())),
        }
        Ok(Ok(()))
    }

    /// All at the same time.
    fn group(&mut self, steps: &[Step]) -> Result<(), Violation> {
        let mut meanwhile: Vec<_> = self.vms.iter().map(|_| Meanwhile::default()).collect();
        let vm = |step: &Step| usize::from(step.vm) % self.vms.len();
        // What there will be has to be known before the first call is planned.
        let mut chosen = Vec::new();
        for step in steps {
            let n = vm(step);
            let planner = Planner {
                vm: &self.vms[n],
                ram: &self.ram,
                weather: self.weather,
                meanwhile: &meanwhile[n],
            };
            let Some(planned) = planner.plan(step.op) else {
                continue;
            };
            chosen.push((n, step.op));
            match planned.then {
                Then::Destroyed(id) => {
                    meanwhile[n].destroyed.push(id);
                    let object = self.vms[n].objects.get(&id);
                    meanwhile[n].vdevices |= matches!(object, Some(Object::Vdevice { .. }));
                }
                Then::New(Object::Vdevice { .. }, _) => meanwhile[n].vdevices = true,
                Then::Attached { device, .. } | Then::Detached { device } => {
                    meanwhile[n].attached.push(device);
                }
                _ => {}
            }
        }
        let mut busy = vec![0; self.vms.len()];
        for (n, _) in &chosen {
            busy[*n] += 1;
        }
        let mut calls = Vec::new();
        let mut due = Vec::new();
        for (n, op) in chosen {
            // What is done to an object by this call itself is not done by another.
            let known = Meanwhile {
                busy: busy[n] > 1,
                destroyed: if matches!(op, Op::Invalidate { .. }) {
                    meanwhile[n].destroyed.clone()
                } else {
                    Vec::new()
                },
                vdevices: meanwhile[n].vdevices,
                attached: Vec::new(),
            };
            let planner = Planner {
                vm: &self.vms[n],
                ram: &self.ram,
                weather: self.weather,
                meanwhile: &known,
            };
            let Some(Planned { call, expect, then }) = planner.plan(op) else {
                continue;
            };
            calls.push(call);
            due.push((n, op, expect, then));
        }
        if calls.is_empty() {
            return Ok(());
        }
        for (_, op, ..) in &due {
            self.count(matches!(op, Op::Invalidate { .. }));
        }
        self.parallel += calls.len() as u64;
        let answers = self.team.make(calls);
        for (answer, (_, op, expect, _)) in answers.iter().zip(&due) {
            self.new += answer.new;
            self.say(&format!("{op:?}, with others"), answer);
            expect
                .judge(answer)
                .map_err(|e| format!("{op:?}, with others: {e}"))?;
        }
        // The IDs of what was destroyed may have been given to what is new.
        let mut done: Vec<_> = answers.into_iter().zip(due).collect();
        done.sort_by_key(|(_, (.., then))| !matches!(then, Then::Destroyed(_)));
        for (answer, (n, _, _, then)) in done {
            self.apply(n, then, &answer)?;
        }
        Ok(())
    }

    /// One call. Gives the ID of what it has made, 0 if that is nothing.
    fn one(
        &mut self,
        n: usize,
        plan: impl FnOnce(&Planner<'_>) -> Option<Planned>,
    ) -> Result<u32, Violation> {
        let planner = Planner {
            vm: &self.vms[n],
            ram: &self.ram,
            weather: self.weather,
            meanwhile: &Meanwhile::default(),
        };
        let Some(Planned { call, expect, then }) = plan(&planner) else {
            return Ok(0);
        };
        let what = describe(&call, &then);
        self.count(call.array.is_some());
        let answer = self.caller.make(call, None);
        self.new += answer.new;
        self.say(&what, &answer);
        expect.judge(&answer).map_err(|e| format!("{what}: {e}"))?;
        self.apply(n, then, &answer)
    }

    fn count(&mut self, invalidation: bool) {
        self.ioctls += 1;
        self.invalidations += u64::from(invalidation);
        self.stormy += u64::from(self.weather != Weather::default());
    }

    fn say(&self, what: &str, answer: &Answer) {
        if self.verbose {
            let new = answer.new;
            println!("{what}: errno {}, {new} new", answer.errno);
        }
    }

    fn apply(&mut self, n: usize, then: Then, answer: &Answer) -> Result<u32, Violation> {
        if answer.errno != 0 {
            return Ok(0);
        }
        let vm = &mut self.vms[n];
        match then {
            Then::Nothing => {}
            Then::New(mut object, out) => {
                let (id, fd) = out(&answer.arg);
                if let (Object::Fault { file } | Object::Veventq { file, .. }, Some(fd)) =
                    (&mut object, fd)
                {
                    let opened = own(fd).map_err(|e| format!("the file of a queue: {e}"))?;
                    *file = Some(opened);
                }
                if vm.objects.insert(id, object).is_some() {
                    return Err(format!("there are two objects with the ID {id}"));
                }
                return Ok(id);
            }
            Then::Attached { device, to } => {
                let device = &mut vm.devices[device];
                device.attached = Some(to);
                // What the kernel has against a device is forgotten then.
                device.suspect = self.weather.atc;
            }
            Then::Detached { device } => vm.devices[device].attached = None,
            Then::Destroyed(id) => drop(vm.objects.remove(&id)),
        }
        Ok(0)
    }

    /// Puts a device behind a nested SMMU, with what there is or else with something new.
    fn nest(&mut self, n: usize, device: u8, vsid: u8, ats: bool) -> Result<(), Violation> {
        let index = usize::from(device) % self.vms[n].devices.len();
        let id = self.vms[n].devices[index].id;
        let find = |vm: &Vm, is: fn(&Object) -> bool| {
            let mut objects = vm.objects.iter().filter(|(_, object)| is(object));
            objects.next().map(|(id, _)| *id)
        };
        let right = |nth| Pick { nth, wrong: 255 };
        let viommu = match find(&self.vms[n], |object| {
            matches!(object, Object::Viommu { .. })
        }) {
            Some(viommu) => viommu,
            None => {
                let ioas = self.one(n, |planner| Some(planner.ioas_alloc(0)))?;
                self.one(n, |planner| Some(planner.map(ioas, 0, 32, 255)))?;
                let hwpt = self.one(n, |planner| Some(planner.paging_alloc(id, ioas, 0)))?;
                self.one(n, |planner| Some(planner.viommu_alloc(id, hwpt, 1)))?
            }
        };
        if !self.vms[n].has_vdevice(id, None) {
            let viommu = Pick { nth: 0, ..right(0) };
            let device = right(index as u8);
            let passing = crate::program::Passing { odd: 255 };
            let op = Op::VdeviceAlloc {
                device,
                viommu,
                vsid,
                passing,
            };
            self.one(n, |planner| planner.plan(op))?;
        }
        // As it is: with EATS or without.
        let ste = 32 | u8::from(ats);
        let hwpt = self.one(n, |planner| {
            Some(planner.nested_alloc(id, viommu, 0, [ste, 0, 255]))
        })?;
        self.one(n, |planner| Some(planner.attach(index, hwpt)))?;
        Ok(())
    }

    /// Has the SMMU fail.
    fn rule(&mut self, [kind, opcode, skip, times]: [u8; 4]) -> Result<(), Box<dyn Error>> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        let weather = &mut self.weather;
        let kind = match kind % 16 {
            0..=4 => {
                weather.ill = true;
                Kind::Ill
            }
            5 | 6 => {
                weather.abt = true;
                Kind::Abt
            }
            7 => {
                weather.abt = true;
                Kind::AbtFor([100, 10_000, 500_000, 1_500_000][usize::from(times) % 4])
            }
            8..=11 => Kind::AtcInvSync,
            12 => Kind::AtcTimeout([10, 300, 1200, 2500][usize::from(times) % 4]),
            _ => Kind::Stall([1, 100, 900, 1500][usize::from(times) % 4]),
        };
        let is_atc = matches!(kind, Kind::AtcInvSync | Kind::AtcTimeout(_));
        // Each of the others may be fetched again and again for some time.
        weather.slow |= kind != Kind::Ill;
        let opcodes = [
            op::TLBI_NH_VA,
            op::TLBI_NH_ASID,
            op::CFGI_CD_ALL,
            op::ATC_INV,
            SYNC,
            TLBI_S2_IPA,
        ];
        let opcode = if is_atc {
            op::ATC_INV
        } else {
            opcodes[usize::from(opcode) % opcodes.len()]
        };
        // Mostly the next one, as there may not be many.
        let skip = if skip < 176 { 0 } else { u32::from(skip) % 32 };
        let rule = Rule::new(kind).opcode(opcode).skip(skip);
        let rule = match kind {
            Kind::AbtFor(_) => rule,
            _ => rule.times(1 + u32::from(times % 4)),
        };
        // An error at a CMD_SYNC is nobody's, and only costs time.
        weather.slow |= opcode == SYNC;
        if is_atc {
            weather.atc = true;
            for device in self.vms.iter_mut().flat_map(|vm| &mut vm.devices) {
                device.suspect = true;
            }
        }
        control.set(&[rule])?;
        Ok(())
    }

    /// Has the SMMU work again.
    fn calm(&mut self) -> Result<(), Box<dyn Error>> {
        if self.weather == Weather::default() {
            return Ok(());
        }
        if let Some(control) = &mut self.control {
            control.set(&[])?;
        }
        if self.weather.slow || self.weather.atc {
            thread::sleep(CALM);
        }
        self.weather = Weather::default();
        Ok(())
    }

    /// Destroys all objects, each of which must be possible, and leaves the SMMU as it was.
    fn take_back(&mut self) -> Result<Result<(), Violation>, Box<dyn Error>> {
        self.calm()?;
        for n in 0..self.vms.len() {
            self.vms[n].close_queues();
            for device in 0..self.vms[n].devices.len() {
                if self.vms[n].devices[device].attached.is_some()
                    && let Err(violation) = self.one(n, |planner| Some(planner.detach(device)))
                {
                    return Ok(Err(violation));
                }
            }
            loop {
                let unused = self.vms[n].unused();
                if unused.is_empty() {
                    break;
                }
                for id in unused {
                    if let Err(violation) = self.one(n, |planner| Some(planner.destroy(id))) {
                        return Ok(Err(violation));
                    }
                }
            }
            let left = self.vms[n].objects.len() - self.vms[n].devices.len();
            if left > 0 {
                return Ok(Err(format!(
                    "{left} objects cannot be destroyed: {:?}",
                    self.vms[n].objects
                )));
            }
        }
        Ok(Ok(()))
    }
}

fn describe(call: &Call, then: &Then) -> String {
    match &call.array {
        Some((bytes, base)) => {
            let arg: vsmmu_nested::InvalidateArg = call.arg.get();
            format!(
                "{arg:x?} with {} bytes at {base:?}, passed in {:?}",
                bytes.len(),
                call.place
            )
        }
        None => format!(
            "ioctl {:#x}, passed in {:?}, for {then:?}",
            call.number, call.place
        ),
    }
}
