// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A plugin for QEMU that records what a guest's CPUs put into the command queue of its SMMUv3: which CPU,
//! which commands, and how many instructions it has executed since it queued the last ones. Instructions do
//! not depend on how busy the machine is that emulates the guest, and a CPU that is idle executes none.
//!
//!     -plugin libvsmmu_record.so,out=FILE,records=N
//!
//! It begins when the guest has printed STX (`printf '\002'`). There is a record for each time that a CPU has
//! queued commands: 16 bytes (which CPU, u32; how many commands, u32; after
//! how many instructions, u64; all of them little-endian), and then the commands as the queue holds them,
//! the last of which is a CMD_SYNC in most.

mod plugin;
mod queue;

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::{Mutex, OnceLock};

use plugin::{Block, Counter};
use queue::Queue;

/// The SMMUv3 and the serial ports of QEMU's machine `virt`.
const SMMU: u64 = 0x0905_0000;
const UARTS: [u64; 2] = [0x0900_0000, 0x0904_0000];

const CMDQ_BASE: u64 = SMMU + 0x90;
const CMDQ_PROD: u64 = SMMU + 0x98;
const STX: u8 = 2;

struct Recorder {
    /// Instructions that each CPU has executed.
    executed: Counter,
    work: Mutex<Work>,
}

struct Work {
    queue: Queue,
    out: BufWriter<File>,
    on: bool,
    /// How many records there are still to be.
    left: usize,
}

static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// What QEMU calls first.
///
/// # Safety
///
/// As QEMU does: with `argc` arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: those are QEMU's.
    let arguments = unsafe { plugin::arguments(argc, argv) };
    let value = |name| arguments.iter().find_map(|a| a.strip_prefix(name));
    let records = value("records=").and_then(|text| text.parse().ok());
    let (Some(path), Some(left)) = (value("out="), records) else {
        eprintln!("vsmmu-record: the arguments are out=FILE and records=N");
        return 1;
    };
    let out = match File::create(path) {
        Ok(file) => BufWriter::new(file),
        Err(e) => {
            eprintln!("vsmmu-record: {path}: {e}");
            return 1;
        }
    };
    let recorder = Recorder {
        executed: Counter::new(),
        work: Mutex::new(Work {
            queue: Queue::default(),
            out,
            on: false,
            left,
        }),
    };
    if RECORDER.set(recorder).is_err() {
        eprintln!("vsmmu-record: it can be there only once");
        return 1;
    }
    plugin::on_block(id, on_block);
    0
}

extern "C" fn on_block(_id: u64, block: *mut Block) {
    if let Some(recorder) = RECORDER.get() {
        // SAFETY: this is called by QEMU, with a block that it is translating.
        unsafe { plugin::watch(block, recorder.executed, on_store) }
    }
}

extern "C" fn on_store(cpu: c_uint, info: u32, address: u64, _data: *mut c_void) {
    // SAFETY: this is called by QEMU, for a store that is being made.
    let store = unsafe { plugin::store(info, address) };
    if let (Some(recorder), Some((at, bytes, len))) = (RECORDER.get(), store) {
        recorder.store(cpu, at, &bytes[..len]);
    }
}

impl Recorder {
    /// A CPU stores `bytes` to a physical address.
    fn store(&self, cpu: u32, at: u64, bytes: &[u8]) {
        let mut low = [0; 8];
        let len = bytes.len().min(8);
        low[..len].copy_from_slice(&bytes[..len]);
        let value = u64::from_le_bytes(low);
        let mut work = self.work.lock().expect("no other thread has panicked");
        if UARTS.contains(&at) {
            if bytes[0] == STX {
                work.on = true;
                work.queue.forget_times();
            }
        } else if at == CMDQ_BASE {
            work.queue = Queue::new(value);
        } else if at == CMDQ_PROD {
            let records = work.queue.prod(value as u32);
            if work.on {
                work.write(&records).expect("the file can be written");
            }
        } else if work.queue.contains(at) {
            let now = self.executed.get(cpu);
            work.queue.store(cpu, now, at, bytes);
        }
    }
}

impl Work {
    /// Writes them, as far as there are to be so many, and ends the recording with the last.
    fn write(&mut self, records: &[Vec<u8>]) -> io::Result<()> {
        for record in &records[..records.len().min(self.left)] {
            self.out.write_all(record)?;
            self.left -= 1;
        }
        if self.left == 0 {
            self.on = false;
            self.out.flush()?;
        }
        Ok(())
    }
}
