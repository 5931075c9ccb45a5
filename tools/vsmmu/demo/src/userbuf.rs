// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory of this process that a `Vec` cannot be: with a hole behind it, at the end of the address
//! space, not to be written, or shared with a child.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use vsmmu_nested::{InvalidateArg, NestedSmmu};

use crate::lab::{Answer, Error};

/// The page size of this process, in bytes.
pub fn page_size() -> usize {
    // SAFETY: sysconf only returns a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).expect("every Linux has a page size")
}

/// Bytes that end where readable memory ends.
pub struct BeforeHole {
    region: MmapRegion,
    start: usize,
}

impl BeforeHole {
    /// A copy of `bytes`, right before a page that cannot be read.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        let page = page_size();
        let readable = bytes.len().next_multiple_of(page);
        let region = MmapRegion::new(readable + page).map_err(Error::Map)?;
        let start = readable - bytes.len();
        region
            .as_volatile_slice()
            .write_slice(bytes, start)
            .expect("the region was made to hold them");
        // SAFETY: the page belongs to `region`, and nothing refers to it.
        let ret =
            unsafe { libc::mprotect(region.as_ptr().add(readable).cast(), page, libc::PROT_NONE) };
        if ret != 0 {
            return Err(Error::System("mprotect", io::Error::last_os_error()));
        }
        Ok(BeforeHole { region, start })
    }

    /// The address of the first byte.
    pub fn addr(&self) -> u64 {
        self.region.as_ptr() as u64 + self.start as u64
    }
}

/// Bytes at the very end of what a process can map.
pub struct BeforeEnd {
    page: *mut libc::c_void,
    start: u64,
}

impl BeforeEnd {
    /// A copy of `bytes`, not more than a page, right before the end.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        let size = page_size();
        assert!(bytes.len() <= size);
        // How large the address space is depends on the kernel and the CPU.
        for bits in (36..=56).rev() {
            let last = ((1 << bits) - size) as *mut libc::c_void;
            // SAFETY: with MAP_FIXED_NOREPLACE this takes nothing away that is there.
            let page = unsafe {
                libc::mmap(
                    last,
                    size,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            if page != libc::MAP_FAILED {
                let start = size - bytes.len();
                // SAFETY: the page is new, and the bytes fit in behind `start`.
                unsafe {
                    let to = page.cast::<u8>().add(start);
                    to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
                }
                return Ok(BeforeEnd {
                    page,
                    start: page as u64 + start as u64,
                });
            }
        }
        let what = "cannot map the last page of the address space";
        Err(Error::System(what, io::Error::last_os_error()))
    }

    /// The address of the first byte.
    pub fn addr(&self) -> u64 {
        self.start
    }
}

impl Drop for BeforeEnd {
    fn drop(&mut self) {
        // SAFETY: the page is our own, and nothing refers to it.
        unsafe { libc::munmap(self.page, page_size()) };
    }
}

/// Makes the call `arg` with the argument on a page that can only be read. The answer has it as it is
/// afterwards.
pub fn call_read_only(smmu: &NestedSmmu, arg: InvalidateArg) -> Result<Answer, Error> {
    let region: MmapRegion = MmapRegion::new(page_size()).map_err(Error::Map)?;
    let at = region.as_ptr().cast::<InvalidateArg>();
    // SAFETY: a new page, which is aligned and larger.
    unsafe { at.write(arg) };
    // SAFETY: the page belongs to `region`, and nothing refers to it.
    if unsafe { libc::mprotect(at.cast(), page_size(), libc::PROT_READ) } != 0 {
        return Err(Error::System("mprotect", io::Error::last_os_error()));
    }
    // SAFETY: nothing refers to the page, and the whole of `arg` is on it.
    let errno = unsafe { InvalidateArg::call_at(smmu.iommufd(), at) };
    // SAFETY: written above, can be read, and consists of integers.
    let arg = unsafe { at.read_volatile() };
    Ok(Answer {
        errno: Some(errno),
        entry_num: arg.entry_num,
        code: arg.out_driver_error_code,
        ..Answer::default()
    })
}

// What the page has that is shared with the child: the argument, how far the child is, and the errno.
const AT_ARG: usize = 0;
const AT_STATE: usize = 128;
const AT_ERRNO: usize = 132;
const _: () = assert!(AT_ARG + size_of::<InvalidateArg>() <= AT_STATE);
const ABOUT_TO_CALL: u32 = 1;
const RETURNED: u32 = 2;
/// For the start of a child, which takes microseconds, and for its end.
const DEADLINE: Duration = Duration::from_secs(20);

/// Makes the call `arg` in a child process, and kills that `delay` after it was about to begin.
///
/// The answer has no errno if it was killed before it could say that the call had returned, and the
/// argument as the kernel left it.
pub fn call_and_kill(
    smmu: &NestedSmmu,
    arg: InvalidateArg,
    delay: Duration,
) -> Result<Answer, Error> {
    let region: MmapRegion = MmapRegionBuilder::new(page_size())
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_ANONYMOUS)
        .build()
        .map_err(Error::Map)?;
    let shared = region.as_volatile_slice();
    let get = |at| {
        shared
            .load::<u32>(at, Ordering::SeqCst)
            .expect("in the page")
    };
    let set = |at, value: u32| {
        shared
            .store(value, at, Ordering::SeqCst)
            .expect("in the page")
    };
    let at_arg = region.as_ptr().wrapping_add(AT_ARG).cast::<InvalidateArg>();
    // SAFETY: a new page, which is aligned, larger, and nobody else's yet.
    unsafe { at_arg.write(arg) };

    one_thread()?;
    // SAFETY: there is one thread, so the child may do whatever this process could.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => return Err(Error::System("fork", io::Error::last_os_error())),
        0 => {
            // So that the child does not stay for ever if the parent is not there to kill it.
            // SAFETY: sets a timer, whose signal ends the child.
            unsafe { libc::alarm(2 * DEADLINE.as_secs() as u32) };
            set(AT_STATE, ABOUT_TO_CALL);
            // SAFETY: nothing refers to the argument; the parent does not look until the child is gone.
            let errno = unsafe { InvalidateArg::call_at(smmu.iommufd(), at_arg) };
            set(AT_ERRNO, errno as u32);
            set(AT_STATE, RETURNED);
            loop {
                // Waits for the signal, so that there is only one way to end.
                // SAFETY: only waits.
                unsafe { libc::pause() };
            }
        }
        _ => {}
    }

    let start = Instant::now();
    while get(AT_STATE) == 0 && start.elapsed() < DEADLINE {
        std::thread::yield_now();
    }
    let started = get(AT_STATE) != 0;
    if started {
        std::thread::sleep(delay);
    }
    // SAFETY: our child, which has not been waited for, so that the id is still its own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let mut status = 0;
    let start = Instant::now();
    loop {
        // SAFETY: as above, and the pointer is to an integer of ours.
        match unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } {
            0 if start.elapsed() > DEADLINE => return Err(Error::WontDie(DEADLINE)),
            0 => std::thread::sleep(Duration::from_millis(1)),
            -1 => return Err(Error::System("waitpid", io::Error::last_os_error())),
            _ => break,
        }
    }
    if !started {
        return Err(Error::WontStart(DEADLINE));
    }
    if !libc::WIFSIGNALED(status) || libc::WTERMSIG(status) != libc::SIGKILL {
        let how = io::Error::other(format!("wait status {status:#x}"));
        return Err(Error::System("the child ended by itself", how));
    }
    // SAFETY: initialised above, only integers, and the child is gone.
    let arg = unsafe { at_arg.read_volatile() };
    Ok(Answer {
        errno: (get(AT_STATE) == RETURNED).then(|| get(AT_ERRNO) as i32),
        entry_num: arg.entry_num,
        code: arg.out_driver_error_code,
        ..Answer::default()
    })
}

/// Fails if there are other threads. One that has just been joined may take a moment to be gone.
fn one_thread() -> Result<(), Error> {
    for _ in 0..1000 {
        let tasks = std::fs::read_dir("/proc/self/task")
            .map_err(|e| Error::System("/proc/self/task", e))?;
        if tasks.count() == 1 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(Error::Threads)
}
