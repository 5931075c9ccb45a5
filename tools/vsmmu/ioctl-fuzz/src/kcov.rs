// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which code of the kernel has run: KCOV of each thread, and the sum over all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use std::os::fd::AsRawFd;

const PATH: &str = "/sys/kernel/debug/kcov";
/// What a call adds beyond that many is lost.
const WORDS: usize = 1 << 16;
/// From `_stext` on, more than the kernel has of text.
const TEXT: u64 = 64 << 20;

const KCOV_INIT_TRACE: u64 = 0x8008_6301;
const KCOV_ENABLE: u64 = 0x6364;
const KCOV_TRACE_PC: u64 = 0;

/// All instructions of the kernel's text that were seen, as bits.
pub struct Coverage {
    text: u64,
    bits: Vec<AtomicU64>,
}

impl Coverage {
    /// None, if this kernel has no KCOV.
    pub fn new() -> io::Result<Option<Arc<Self>>> {
        if !fs::exists(PATH)? {
            return Ok(None);
        }
        let symbols = fs::read_to_string("/proc/kallsyms")?;
        let text = symbols
            .lines()
            .filter(|line| line.ends_with(" _stext"))
            .filter_map(|line| line.split(' ').next())
            .find_map(|address| u64::from_str_radix(address, 16).ok())
            .filter(|text| *text != 0)
            .ok_or_else(|| io::Error::other("/proc/kallsyms does not say where _stext is"))?;
        let bits = (0..TEXT / 4 / 64).map(|_| AtomicU64::new(0)).collect();
        Ok(Some(Arc::new(Coverage { text, bits })))
    }

    /// Whether `pc` is new.
    fn add(&self, pc: u64) -> bool {
        let bit = pc.wrapping_sub(self.text) / 4;
        let Some(word) = self.bits.get(bit as usize / 64) else {
            return false;
        };
        let mask = 1 << (bit % 64);
        word.load(Ordering::Relaxed) & mask == 0
            && word.fetch_or(mask, Ordering::Relaxed) & mask == 0
    }

    /// All of them, in their order.
    pub fn pcs(&self) -> impl Iterator<Item = u64> {
        self.bits.iter().enumerate().flat_map(move |(i, word)| {
            let word = word.load(Ordering::Relaxed);
            let set = (0..64).filter(move |bit| word >> bit & 1 != 0);
            set.map(move |bit| self.text + (i as u64 * 64 + bit) * 4)
        })
    }

    /// How many.
    pub fn count(&self) -> u32 {
        let words = self.bits.iter().map(|word| word.load(Ordering::Relaxed));
        words.map(u64::count_ones).sum()
    }
}

/// What the thread runs in the kernel from here on.
pub struct Trace {
    // Tracing ends when it is closed.
    _file: File,
    area: *mut AtomicU64,
    coverage: Arc<Coverage>,
}

impl Trace {
    /// Begins, for the thread that calls this.
    pub fn start(coverage: Arc<Coverage>) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(PATH)?;
        let fd = file.as_raw_fd();
        // SAFETY: the ioctl takes a number.
        if unsafe { libc::ioctl(fd, KCOV_INIT_TRACE as _, WORDS) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let (prot, len) = (libc::PROT_READ | libc::PROT_WRITE, WORDS * 8);
        // SAFETY: a new mapping, where the kernel likes.
        let area = unsafe { libc::mmap(ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, 0) };
        if area == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the ioctl takes a number.
        if unsafe { libc::ioctl(fd, KCOV_ENABLE as _, KCOV_TRACE_PC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Trace {
            _file: file,
            area: area.cast(),
            coverage,
        })
    }

    fn word(&self, i: usize) -> &AtomicU64 {
        assert!(i < WORDS);
        // SAFETY: the mapping has so many words, and is there for as long as the process. The kernel
        // writes to them in this thread only, in system calls.
        unsafe { &*self.area.add(i) }
    }

    /// Forgets what has run.
    pub fn clear(&self) {
        self.word(0).store(0, Ordering::Relaxed);
    }

    /// Takes what has run since [`Trace::clear`]. Gives how many instructions of that were new.
    pub fn take(&self) -> usize {
        let len = self.word(0).load(Ordering::Relaxed) as usize;
        let pcs = (1..=len.min(WORDS - 1)).map(|i| self.word(i).load(Ordering::Relaxed));
        pcs.filter(|pc| self.coverage.add(*pc)).count()
    }
}
