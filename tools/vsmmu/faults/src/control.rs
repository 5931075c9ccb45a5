// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way to the emulator: QMP over a serial port on PCI, whose other end is the emulator's own
//! monitor.
//!
//! The port is driven from here, by its registers, as the kernel under test need not have a driver for
//! it. A few bytes go at a time, with no interrupts.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use vsmmu_nested::cmd::op;
use vsmmu_nested::pci;

/// QEMU's `pci-serial`: one 16550A, with its registers in I/O space.
const PORT_PCI_ID: (u16, u16) = (0x1b36, 0x0002);

/// CMD_TLBI_S2_IPA, which only the host sends.
pub const TLBI_S2_IPA: u8 = 0x2a;

/// For an answer. The monitor takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);

/// Why the emulator cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no port.
    #[error("no serial port to the emulator's monitor")]
    NoPort(#[source] pci::Error),
    /// A file of sysfs.
    #[error("{0}")]
    Sysfs(PathBuf, #[source] io::Error),
    /// The port's registers.
    #[error("cannot access the registers of the serial port")]
    Port(#[source] io::Error),
    /// No answer.
    #[error("the emulator's monitor has not answered within {DEADLINE:?}")]
    Silent,
    /// An answer that says so.
    #[error("the emulator refuses {0}: {1}")]
    Refused(String, Value),
    /// An answer that makes no sense.
    #[error("the emulator's answer to {0} is not as expected: {1}")]
    Odd(String, String),
    /// There is no SMMU, or more than one.
    #[error("the emulator has {0} SMMUs of the kind arm-smmuv3, not one")]
    NotOneSmmu(usize),
}

/// The registers of a 16550A, by sysfs.
struct Port(File);

impl Port {
    const DATA: u64 = 0;
    const FIFO_CONTROL: u64 = 2;
    const LINE_STATUS: u64 = 5;
    const FIFOS_ON: u8 = 1 << 0;
    const DATA_READY: u8 = 1 << 0;
    /// The FIFO is empty.
    const CAN_SEND: u8 = 1 << 5;
    const FIFO: usize = 16;

    fn open() -> Result<Self, Error> {
        let bdf = pci::find(PORT_PCI_ID.0, PORT_PCI_ID.1).map_err(Error::NoPort)?;
        let device = Path::new("/sys/bus/pci/devices").join(bdf);
        let enable = device.join("enable");
        fs::write(&enable, "1").map_err(|e| Error::Sysfs(enable, e))?;
        let bar = device.join("resource0");
        let file = OpenOptions::new().read(true).write(true).open(&bar);
        let port = Port(file.map_err(|e| Error::Sysfs(bar, e))?);
        port.write(Self::FIFO_CONTROL, Self::FIFOS_ON)?;
        Ok(port)
    }

    fn read(&self, register: u64) -> Result<u8, Error> {
        let mut byte = [0];
        let read = self.0.read_exact_at(&mut byte, register);
        read.map_err(Error::Port)?;
        Ok(byte[0])
    }

    fn write(&self, register: u64, byte: u8) -> Result<(), Error> {
        let written = self.0.write_all_at(&[byte], register);
        written.map_err(Error::Port)
    }

    fn wait(&self, for_what: u8) -> Result<(), Error> {
        let start = Instant::now();
        while self.read(Self::LINE_STATUS)? & for_what == 0 {
            if start.elapsed() > DEADLINE {
                return Err(Error::Silent);
            }
            // On one CPU, so that the kernel has time as well.
            std::thread::yield_now();
        }
        Ok(())
    }

    fn send(&self, text: &str) -> Result<(), Error> {
        for bytes in text.as_bytes().chunks(Self::FIFO) {
            self.wait(Self::CAN_SEND)?;
            for byte in bytes {
                self.write(Self::DATA, *byte)?;
            }
        }
        Ok(())
    }

    fn receive_line(&self) -> Result<String, Error> {
        let mut line = Vec::new();
        loop {
            self.wait(Self::DATA_READY)?;
            match self.read(Self::DATA)? {
                b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
                byte => line.push(byte),
            }
        }
    }
}

/// A session with the emulator's monitor.
struct Monitor {
    port: Port,
    last_id: u64,
}

impl Monitor {
    fn open() -> Result<Self, Error> {
        let mut monitor = Monitor {
            port: Port::open()?,
            last_id: 0,
        };
        // The ids of another program that talked to it before must not be those of this one.
        monitor.last_id = u64::from(std::process::id()) << 32;
        match monitor.execute("qmp_capabilities", json!({})) {
            // What it says if that program did this already.
            Err(Error::Refused(_, error)) if error["class"] == "CommandNotFound" => {}
            other => {
                other?;
            }
        }
        Ok(monitor)
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        self.last_id += 1;
        let request = json!({"execute": command, "arguments": arguments, "id": self.last_id});
        self.port.send(&format!("{request}\n"))?;
        loop {
            let line = self.port.receive_line()?;
            // Everything else is the greeting, of which the port may have lost a part when it was set
            // up, an event, or for somebody before us.
            let mut answer: Value = serde_json::from_str(line.trim()).unwrap_or_default();
            if answer["id"] == self.last_id {
                return match answer.get("error") {
                    Some(error) => Err(Error::Refused(command.into(), error.clone())),
                    None => Ok(answer["return"].take()),
                };
            }
        }
    }
}

/// An error that the SMMU is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// CERROR_ILL at the command.
    Ill,
    /// CERROR_ABT at the command.
    Abt,
    /// CERROR_ABT at each such command for so many microseconds of the guest's time, from the first on.
    AbtFor(u64),
    /// The command, an ATC_INV, times out: CERROR_ATC_INV_SYNC at the CMD_SYNC behind it.
    AtcInvSync,
    /// The same, after so many milliseconds in which the CMD_SYNC waits for the device.
    AtcTimeout(u32),
    /// The command is consumed, and has no effect.
    Drop,
    /// Nothing is consumed for so many milliseconds of the guest's time; 0: until the rules change.
    Stall(u32),
}

/// Which commands it is for, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The error.
    pub kind: Kind,
    opcode: Option<u8>,
    stream_id: Option<u32>,
    address: Option<u64>,
    skip: u32,
    count: u32,
}

impl Rule {
    /// The next command, whichever it is, once, or for the time that it says.
    pub fn new(kind: Kind) -> Self {
        Rule {
            kind,
            opcode: None,
            stream_id: None,
            address: None,
            skip: 0,
            count: u32::from(!matches!(kind, Kind::AbtFor(_))),
        }
    }

    /// Only commands with this opcode.
    pub fn opcode(self, opcode: u8) -> Self {
        Rule {
            opcode: Some(opcode),
            ..self
        }
    }

    /// Only commands with this in bits 63:12 of their second word.
    pub fn address(self, address: u64) -> Self {
        Rule {
            address: Some(address),
            ..self
        }
    }

    /// The same for commands whose addresses are so much higher.
    pub fn apart(self, distance: u64) -> Self {
        Rule {
            address: self.address.map(|address| address + distance),
            ..self
        }
    }

    /// Only commands for this stream.
    pub fn stream(self, stream_id: u32) -> Self {
        Rule {
            stream_id: Some(stream_id),
            ..self
        }
    }

    /// Lets so many of these commands pass first.
    pub fn skip(self, skip: u32) -> Self {
        Rule { skip, ..self }
    }

    /// So many times, each time that the command is fetched.
    pub fn times(self, count: u32) -> Self {
        assert!(count > 0);
        Rule { count, ..self }
    }

    /// Whenever such a command is fetched.
    pub fn forever(self) -> Self {
        Rule { count: 0, ..self }
    }

    fn to_json(self) -> Value {
        let mut rule = Map::new();
        let error = match self.kind {
            Kind::Ill => "ill",
            Kind::Abt => "abt",
            Kind::AbtFor(us) => {
                rule.insert("us".into(), us.into());
                "abt"
            }
            Kind::AtcInvSync => "atc-inv-sync",
            Kind::AtcTimeout(ms) => {
                rule.insert("ms".into(), ms.into());
                "atc-inv-sync"
            }
            Kind::Drop => "drop",
            Kind::Stall(ms) => {
                rule.insert("ms".into(), ms.into());
                "stall"
            }
        };
        rule.insert("error".into(), error.into());
        for (name, value) in [
            ("opcode", self.opcode.map(u64::from)),
            ("stream-id", self.stream_id.map(u64::from)),
            ("address", self.address),
        ] {
            if let Some(value) = value {
                rule.insert(name.into(), value.into());
            }
        }
        rule.insert("skip".into(), self.skip.into());
        rule.insert("count".into(), self.count.into());
        Value::Object(rule)
    }
}

/// What the SMMU has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CERROR_ILLs.
    pub ill: u64,
    /// CERROR_ABTs.
    pub abt: u64,
    /// CERROR_ATC_INV_SYNCs.
    pub atc: u64,
    /// Stalls.
    pub stalls: u64,
    /// Acknowledgments.
    pub acks: u64,
    /// ATC_INVs consumed, whether they have timed out or not.
    pub atc_invs: u64,
    /// TLBI_NH_VAs consumed.
    pub tlbi_nh_vas: u64,
    /// TLBI_S2_IPAs consumed, which only the host sends.
    pub tlbi_s2_ipas: u64,
    /// Reads of CMDQ_CONS, GERROR and GERRORN.
    pub reads: u64,
    /// CMD_SYNCs consumed.
    pub syncs: u64,
}

impl Stats {
    /// The sum.
    pub fn and(self, other: Stats) -> Stats {
        Stats {
            ill: self.ill + other.ill,
            abt: self.abt + other.abt,
            atc: self.atc + other.atc,
            stalls: self.stalls + other.stalls,
            acks: self.acks + other.acks,
            atc_invs: self.atc_invs + other.atc_invs,
            tlbi_nh_vas: self.tlbi_nh_vas + other.tlbi_nh_vas,
            tlbi_s2_ipas: self.tlbi_s2_ipas + other.tlbi_s2_ipas,
            reads: self.reads + other.reads,
            syncs: self.syncs + other.syncs,
        }
    }

    /// What has been added since `before`.
    pub fn since(self, before: Stats) -> Stats {
        Stats {
            ill: self.ill - before.ill,
            abt: self.abt - before.abt,
            atc: self.atc - before.atc,
            stalls: self.stalls - before.stalls,
            acks: self.acks - before.acks,
            atc_invs: self.atc_invs - before.atc_invs,
            tlbi_nh_vas: self.tlbi_nh_vas - before.tlbi_nh_vas,
            tlbi_s2_ipas: self.tlbi_s2_ipas - before.tlbi_s2_ipas,
            reads: self.reads - before.reads,
            syncs: self.syncs - before.syncs,
        }
    }
}

/// What went through the command queue, and how often its registers were used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Commands consumed other than CMD_SYNC.
    pub commands: u64,
    /// CMD_SYNCs consumed.
    pub syncs: u64,
    /// Reads of CONS, GERROR and GERRORN.
    pub reads: u64,
    /// Writes of PROD, and acknowledgments.
    pub writes: u64,
}

/// The emulated SMMU, as the emulator sees it.
pub struct Control {
    monitor: Monitor,
    smmu: String,
}

impl Control {
    /// Finds it.
    pub fn open() -> Result<Self, Error> {
        let mut monitor = Monitor::open()?;
        let parent = "/machine/unattached";
        let children = monitor.execute("qom-list", json!({"path": parent}))?;
        let smmus: Vec<_> = children
            .as_array()
            .into_iter()
            .flatten()
            .filter(|child| child["type"] == "child<arm-smmuv3>")
            .filter_map(|child| child["name"].as_str())
            .collect();
        let [name] = smmus[..] else {
            return Err(Error::NotOneSmmu(smmus.len()));
        };
        let smmu = format!("{parent}/{name}");
        Ok(Control { monitor, smmu })
    }

    fn get(&mut self, property: &str) -> Result<Value, Error> {
        let arguments = json!({"path": self.smmu, "property": property});
        self.monitor.execute("qom-get", arguments)
    }

    /// Has these rules in place of those before, and ends a stall.
    pub fn set(&mut self, rules: &[Rule]) -> Result<(), Error> {
        self.set_json(rules.iter().map(|rule| rule.to_json()).collect())
    }

    /// The same for rules as the emulator takes them.
    pub fn set_json(&mut self, rules: Value) -> Result<(), Error> {
        let arguments = json!({"path": self.smmu, "property": "x-cmdq-faults", "value": rules});
        self.monitor.execute("qom-set", arguments).map(|_| ())
    }

    /// `EATS` in the stream table entry of a stream, as it is in memory: 0 if the SMMU lets the device
    /// use no translations of its own.
    pub fn eats(&mut self, stream_id: u32) -> Result<u64, Error> {
        const STRTAB_BASE: u64 = 0x80;
        const STRTAB_BASE_CFG: u64 = 0x88;
        const ADDRESS: u64 = 0x000f_ffff_ffff_ffc0;

        let path = "/proc/iomem";
        let iomem = fs::read_to_string(path).map_err(|e| Error::Sysfs(path.into(), e))?;
        let smmu = iomem
            .lines()
            .find(|line| line.contains("arm-smmu-v3"))
            .and_then(|line| line.trim().split('-').next())
            .and_then(|start| u64::from_str_radix(start, 16).ok())
            .ok_or_else(|| Error::Odd(path.into(), iomem.clone()))?;
        let table = self.physical(smmu + STRTAB_BASE, 'g')? & ADDRESS;
        let config = self.physical(smmu + STRTAB_BASE_CFG, 'w')?;
        let (split, sid) = (config >> 6 & 0x1f, u64::from(stream_id));
        let entry = if config >> 16 & 3 == 0 {
            table + 64 * sid
        } else {
            // Two levels.
            let second = self.physical(table + 8 * (sid >> split), 'g')? & ADDRESS;
            second + 64 * (sid & ((1 << split) - 1))
        };
        Ok(self.physical(entry + 8, 'g')? >> 28 & 3)
    }

    /// What is at a physical address: four bytes for `w`, eight for `g`.
    fn physical(&mut self, address: u64, size: char) -> Result<u64, Error> {
        let line = format!("xp /1x{size} {address:#x}");
        let arguments = json!({"command-line": line});
        let answer = self.monitor.execute("human-monitor-command", arguments)?;
        let value = answer.as_str().and_then(|text| text.split("0x").nth(1));
        value
            .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
            .ok_or_else(|| Error::Odd(line, answer.to_string()))
    }

    /// How often each of the rules has been applied.
    pub fn hits(&mut self) -> Result<Vec<u64>, Error> {
        let rules = self.get("x-cmdq-faults")?;
        let hits = || -> Option<Vec<u64>> {
            let rules = rules.as_array()?.iter();
            rules.map(|rule| rule["hits"].as_u64()).collect()
        };
        hits().ok_or_else(|| Error::Odd("x-cmdq-faults".into(), rules.to_string()))
    }

    /// What it has counted.
    pub fn stats(&mut self) -> Result<Stats, Error> {
        let stats = self.get("x-cmdq-stats")?;
        let read = || {
            // Opcodes of which there were none are not in the list.
            let commands = stats["commands"].as_array()?;
            let consumed = |opcode: u8| {
                let entry = commands.iter().find(|of| of["opcode"] == opcode);
                entry.map_or(Some(0), |of| of["count"].as_u64())
            };
            let reads = ["cons-reads", "gerror-reads", "gerrorn-reads"];
            Some(Stats {
                atc_invs: consumed(op::ATC_INV)?,
                tlbi_nh_vas: consumed(op::TLBI_NH_VA)?,
                tlbi_s2_ipas: consumed(TLBI_S2_IPA)?,
                reads: reads
                    .iter()
                    .map(|name| stats[*name].as_u64())
                    .sum::<Option<_>>()?,
                ill: stats["errors"]["ill"].as_u64()?,
                abt: stats["errors"]["abt"].as_u64()?,
                atc: stats["errors"]["atc-inv-sync"].as_u64()?,
                stalls: stats["stalls"].as_u64()?,
                acks: stats["acks"].as_u64()?,
                syncs: stats["syncs"].as_u64()?,
            })
        };
        read().ok_or_else(|| Error::Odd("x-cmdq-stats".into(), stats.to_string()))
    }

    /// The use of the queue and its registers.
    pub fn traffic(&mut self) -> Result<Traffic, Error> {
        let stats = self.get("x-cmdq-stats")?;
        let sum = |names: &[&str]| -> Option<u64> {
            names.iter().map(|name| stats[*name].as_u64()).sum()
        };
        let read = || {
            let commands = stats["commands"].as_array()?.iter();
            let consumed: Option<u64> = commands.map(|of| of["count"].as_u64()).sum();
            let syncs = stats["syncs"].as_u64()?;
            Some(Traffic {
                commands: consumed? - syncs,
                syncs,
                reads: sum(&["cons-reads", "gerror-reads", "gerrorn-reads"])?,
                writes: sum(&["prod-writes", "acks"])?,
            })
        };
        read().ok_or_else(|| Error::Odd("x-cmdq-stats".into(), stats.to_string()))
    }

    /// Everything that it has counted, by name: opcodes as `0x12`, errors as in rules.
    pub fn counters(&mut self) -> Result<Vec<(String, u64)>, Error> {
        let stats = self.get("x-cmdq-stats")?;
        let read = || -> Option<Vec<(String, u64)>> {
            let commands = stats["commands"].as_array()?.iter().map(|of| {
                let opcode = of["opcode"].as_u64()?;
                Some((format!("{opcode:#04x}"), of["count"].as_u64()?))
            });
            let errors = stats["errors"].as_object()?.iter();
            let errors = errors.map(|(kind, n)| Some((kind.clone(), n.as_u64()?)));
            commands.chain(errors).collect()
        };
        read().ok_or_else(|| Error::Odd("x-cmdq-stats".into(), stats.to_string()))
    }

    /// Log2 of the entries that its command queue can have, and whether it sends MSIs.
    pub fn model(&mut self) -> Result<(u64, bool), Error> {
        let cmdqs = self.get("x-cmdqs")?;
        let msi = self.get("x-msi")?;
        match (cmdqs.as_u64(), msi.as_bool()) {
            (Some(cmdqs), Some(msi)) => Ok((cmdqs, msi)),
            _ => Err(Error::Odd(
                "x-cmdqs, x-msi".into(),
                format!("{cmdqs}, {msi}"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_as_the_emulator_takes_them() {
        for (rule, text) in [
            (
                Rule::new(Kind::Ill).opcode(0x46),
                json!({"error": "ill", "opcode": 0x46, "skip": 0, "count": 1}),
            ),
            (
                Rule::new(Kind::AtcInvSync).stream(0x100).forever(),
                json!({"error": "atc-inv-sync", "stream-id": 0x100, "skip": 0, "count": 0}),
            ),
            (
                Rule::new(Kind::Abt).address(0x2000).apart(1 << 32).times(2),
                json!({"error": "abt", "address": 0x1_0000_2000_u64, "skip": 0, "count": 2}),
            ),
            (
                Rule::new(Kind::Stall(300)).skip(5),
                json!({"error": "stall", "ms": 300, "skip": 5, "count": 1}),
            ),
            (
                Rule::new(Kind::AbtFor(10)).opcode(TLBI_S2_IPA),
                json!({"error": "abt", "us": 10, "opcode": 0x2a, "skip": 0, "count": 0}),
            ),
            (
                Rule::new(Kind::AtcTimeout(300)).times(3),
                json!({"error": "atc-inv-sync", "ms": 300, "skip": 0, "count": 3}),
            ),
        ] {
            assert_eq!(rule.to_json(), text);
        }
    }
}
