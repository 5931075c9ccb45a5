// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory of this process that a `Vec` cannot be: with a hole behind it, or shared with a child.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};
use vsmmu_nested::{InvalidateArg, NestedSmmu};

use crate::lab::Error;

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

/// How a call ended that was made in a child process, to be killed.
pub enum Killed {
    /// The child was killed before it could say that the call had returned. The argument is as the
    /// kernel left it.
    InCall(InvalidateArg),
    /// The call returned before the signal came.
    TooLate(InvalidateArg),
}

const AT_ARG: usize = 0;
const AT_STATE: usize = 128;
const ABOUT_TO_CALL: u32 = 1;
const RETURNED: u32 = 2;
/// For things that take microseconds, or a kernel that lost its way.
const DEADLINE: Duration = Duration::from_secs(120);

/// Makes the call `arg` in a child process, and kills that `delay` after it was about to begin.
pub fn call_and_kill(
    smmu: &NestedSmmu,
    arg: InvalidateArg,
    delay: Duration,
) -> Result<Killed, Error> {
    let region: MmapRegion = MmapRegionBuilder::new(page_size())
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_ANONYMOUS)
        .build()
        .map_err(Error::Map)?;
    let shared = region.as_volatile_slice();
    let state = |order| shared.load::<u32>(AT_STATE, order).expect("in the page");
    let set_state = |s: u32| {
        shared
            .store(s, AT_STATE, Ordering::SeqCst)
            .expect("in the page")
    };
    let at_arg = region.as_ptr().wrapping_add(AT_ARG).cast::<InvalidateArg>();
    // SAFETY: a new page, which is aligned, larger, and nobody else's yet.
    unsafe { at_arg.write(arg) };

    // SAFETY: this program has one thread, so the child may do whatever it could.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => return Err(Error::System("fork", io::Error::last_os_error())),
        0 => {
            // SAFETY: as above; the parent does not look until the child is gone.
            let arg = unsafe { &mut *at_arg };
            set_state(ABOUT_TO_CALL);
            arg.call(smmu.iommufd());
            set_state(RETURNED);
            // SAFETY: ends the child without running what the parent has to run at its end.
            unsafe { libc::_exit(0) };
        }
        _ => {}
    }

    let start = Instant::now();
    while state(Ordering::SeqCst) == 0 && start.elapsed() < DEADLINE {
        std::thread::yield_now();
    }
    std::thread::sleep(delay);
    // SAFETY: our child, which has not been waited for, so that the id is still its own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let start = Instant::now();
    loop {
        // SAFETY: as above; a null pointer says that the status is not wanted.
        match unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) } {
            0 if start.elapsed() > DEADLINE => return Err(Error::WontDie(DEADLINE)),
            0 => std::thread::sleep(Duration::from_millis(1)),
            -1 => return Err(Error::System("waitpid", io::Error::last_os_error())),
            _ => break,
        }
    }
    // SAFETY: initialised above, only integers, and the child is gone.
    let arg = unsafe { at_arg.read_volatile() };
    Ok(if state(Ordering::SeqCst) == RETURNED {
        Killed::TooLate(arg)
    } else {
        Killed::InCall(arg)
    })
}
