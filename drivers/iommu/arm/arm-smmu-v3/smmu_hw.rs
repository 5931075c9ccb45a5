// SPDX-License-Identifier: GPL-2.0

//! A command queue of a physical SMMU: [`Hw`] on the registers, the memory and the messages of the
//! C driver.

use core::slice;

use kernel::{
    bindings,
    declare_trace,
    device::Device,
    prelude::*,
    processor::{
        cpu_relax,
        wfe, //
    },
    ratelimit::RateLimit,
    sync::aref::ARef,
    time::{
        delay::udelay,
        Delta, //
    }, //
};

#[cfg(CONFIG_ARM_SMMU_V3_FAULT_INJECTION)]
use kernel::{
    fault_injection::FaultAttr,
    str::CString, //
};

use super::{
    cmd::{
        Cmd,
        SyncSignal, //
    },
    hw::{
        Action,
        Cerror,
        Entry,
        Hw,
        Report, //
    }, //
};

declare_trace! {
    /// # Safety
    ///
    /// `dev` must be valid.
    unsafe fn arm_smmu_cmdq_batch(dev: *mut bindings::device, index: u32, cmds: u32, sync: bool);

    /// # Safety
    ///
    /// `dev` must be valid.
    unsafe fn arm_smmu_cmdq_error(
        dev: *mut bindings::device,
        cons: u32,
        word0: u64,
        word1: u64,
        action: u32,
        inline_: bool,
    );

    /// # Safety
    ///
    /// `dev` must be valid.
    unsafe fn arm_smmu_cmdq_replay(
        dev: *mut bindings::device,
        word0: u64,
        word1: u64,
        error: u32,
    );

    /// # Safety
    ///
    /// `dev` must be valid.
    unsafe fn arm_smmu_cmdq_backoff(dev: *mut bindings::device, sid: u32, msecs: u32);
}

/// The first looks at the queue have no delay between them: `ARM_SMMU_POLL_SPIN_COUNT`.
const LOOKS: u32 = bindings::ARM_SMMU_POLL_SPIN_COUNT;

/// How often to call `cpu_relax()` before the first look at a register. A read that comes too early
/// has to be repeated, and takes longer than this.
const FIRST_PAUSE: u32 = 16;

/// A wait is a long one from here on.
const LONG_WAIT: Delta = Delta::from_micros(100);

/// The longest delay between two looks at memory, for a completion MSI.
const MAX_MEMORY_DELAY: Delta = Delta::from_micros(100);

/// The longest delay between two looks at a register.
const MAX_REGISTER_DELAY: Delta = Delta::from_millis(5);

/// The registers and the memory of a command queue: `struct arm_smmu_queue`.
///
/// # Invariants
///
/// * `entries` is valid for `len` entries, which are accessed as [`Entry`] or by the SMMU only.
/// * The registers are mapped, and `cmdq` is valid.
/// * All of this is so for as long as the value exists.
#[pin_data]
pub(crate) struct SmmuHw {
    entries: *const Entry,
    len: usize,
    prod_reg: *mut c_void,
    cons_reg: *const c_void,
    gerror_reg: *const c_void,
    gerrorn_reg: *mut c_void,
    cmdq: *mut bindings::arm_smmu_cmdq,
    /// How the SMMU signals the completion of the `CMD_SYNC` in the first slot. If it does so by
    /// writing to a slot, each has its own address.
    signal: SyncSignal,
    dev: ARef<Device>,
    /// The same, for C.
    raw_dev: *mut bindings::device,
    /// Limits messages of errors that guests cause, so that they can neither fill the kernel's log
    /// nor hide the messages of the host's errors.
    #[pin]
    guests: RateLimit,
    /// Limits messages of errors of the host's commands.
    #[pin]
    errors: RateLimit,
    /// Limits messages of waits of the host that have timed out.
    #[pin]
    timeouts: RateLimit,
    /// Which of the guests' commands are to fail. Only for the queue that they are put into.
    #[cfg(CONFIG_ARM_SMMU_V3_FAULT_INJECTION)]
    fail_guest_cmd: Option<Pin<KBox<FaultAttr>>>,
}

// SAFETY: By the type invariants, what the pointers point to can be used from all threads, as the
// accesses are atomic.
unsafe impl Send for SmmuHw {}

// SAFETY: As above.
unsafe impl Sync for SmmuHw {}

impl SmmuHw {
    /// Takes what is needed out of the C structs.
    ///
    /// # Safety
    ///
    /// * `smmu` and `cmdq` must be valid, and a queue of the SMMU have been allocated for `cmdq`
    ///   with its registers set. It must remain so for as long as the value exists.
    /// * Nobody else may access the entries.
    pub(crate) unsafe fn new(
        smmu: *const bindings::arm_smmu_device,
        cmdq: *const bindings::arm_smmu_cmdq,
    ) -> impl PinInit<Self, Error> {
        // SAFETY: By the safety requirements.
        let (q, options, features, raw_dev) =
            unsafe { (&(*cmdq).q, (*smmu).options, (*smmu).features, (*smmu).dev) };
        // SAFETY: By the safety requirements.
        let dev: &Device = unsafe { Device::from_raw(raw_dev) };
        // SAFETY: By the safety requirements.
        let (gerror_reg, gerrorn_reg) = unsafe { ((*cmdq).gerror_reg, (*cmdq).gerrorn_reg) };
        // SAFETY: Only makes a pointer.
        let is_main = cmdq == unsafe { &raw const (*smmu).cmdq };

        // As arm_smmu_cmdq_needs_busy_polling() has it: the additional queues of Tegra241 can do
        // no more than that.
        let signal = if !is_main && options & bindings::ARM_SMMU_OPT_TEGRA241_CMDQV != 0 {
            SyncSignal::None
        } else if options & bindings::ARM_SMMU_OPT_MSIPOLL != 0 {
            SyncSignal::Msi(q.base_dma)
        } else if features & bindings::ARM_SMMU_FEAT_SEV != 0 {
            SyncSignal::Sev
        } else {
            SyncSignal::None
        };

        // INVARIANT: By the safety requirements.
        try_pin_init!(Self {
            entries: q.base.cast(),
            len: 1 << q.llq.max_n_shift,
            prod_reg: q.prod_reg.cast(),
            cons_reg: q.cons_reg.cast(),
            gerror_reg: gerror_reg.cast(),
            gerrorn_reg: gerrorn_reg.cast(),
            cmdq: cmdq.cast_mut(),
            signal,
            dev: dev.into(),
            raw_dev,
            guests <- RateLimit::default_for_messages(),
            errors <- RateLimit::default_for_messages(),
            timeouts <- RateLimit::default_for_messages(),
            #[cfg(CONFIG_ARM_SMMU_V3_FAULT_INJECTION)]
            fail_guest_cmd: if is_main {
                let name = CString::try_from_fmt(fmt!("fail_guest_cmd.{}", dev.name()))?;
                Some(KBox::pin_init(FaultAttr::new(&name), GFP_KERNEL)?)
            } else {
                None
            },
        }? Error)
    }

    /// What chooses the commands of guests that are to be made illegal, if there may be any.
    #[cfg(CONFIG_ARM_SMMU_V3_FAULT_INJECTION)]
    #[inline]
    pub(crate) fn fail_guest_cmd(&self) -> Option<&FaultAttr> {
        self.fail_guest_cmd
            .as_deref()
            .filter(|attr| attr.is_enabled())
    }

    /// The errors that are active: where `SMMU_GERROR` and `SMMU_GERRORN` differ.
    fn active_errors(&self) -> u32 {
        // SAFETY: By the type invariants.
        unsafe {
            bindings::readl_relaxed(self.gerror_reg) ^ bindings::readl_relaxed(self.gerrorn_reg)
        }
    }

    /// Acknowledges those active errors that are among `errors`.
    ///
    /// The caller holds the lock of the error log, as the other bits of the register are written as
    /// they were read.
    pub(crate) fn acknowledge_errors(&self, errors: u32) {
        // SAFETY: By the type invariants.
        unsafe {
            let gerrorn = bindings::readl_relaxed(self.gerrorn_reg);
            let active = bindings::readl_relaxed(self.gerror_reg) ^ gerrorn;
            bindings::writel(gerrorn ^ (active & errors), self.gerrorn_reg);
        }
    }
}

impl Hw for SmmuHw {
    #[inline]
    fn entries(&self) -> &[Entry] {
        // SAFETY: By the type invariants.
        unsafe { slice::from_raw_parts(self.entries, self.len) }
    }

    #[inline]
    fn write_prod(&self, prod: u32) {
        // SAFETY: By the type invariants.
        unsafe { bindings::writel_relaxed(prod, self.prod_reg) }
    }

    #[inline]
    fn read_cons(&self) -> u32 {
        // SAFETY: By the type invariants.
        unsafe { bindings::readl(self.cons_reg) }
    }

    fn error_is_active(&self) -> bool {
        self.active_errors() & bindings::GERROR_CMDQ_ERR != 0
    }

    fn acknowledge(&self) {
        self.acknowledge_errors(bindings::GERROR_CMDQ_ERR);
    }

    #[inline]
    fn make_sync(&self, index: usize) -> Cmd {
        Cmd::sync(match self.signal {
            SyncSignal::Msi(base) => {
                // CAST: `usize` has 64 bits here.
                SyncSignal::Msi(base + (index * size_of::<Entry>()) as u64)
            }
            signal => signal,
        })
    }

    #[inline]
    fn sync_has_msi(&self) -> bool {
        matches!(self.signal, SyncSignal::Msi(_))
    }

    fn pause(&self, looks: u32, waited: Delta, for_sync: bool) {
        if for_sync && self.signal == SyncSignal::Sev {
            // Ends with the completion of a CMD_SYNC, or with the event stream after 100
            // microseconds.
            wfe();
            return;
        }
        if looks < LOOKS {
            let is_register = !(for_sync && self.sync_has_msi());
            let count = if looks == 0 && is_register {
                FIRST_PAUSE
            } else {
                1
            };
            for _ in 0..count {
                cpu_relax();
            }
            return;
        }

        let max = if for_sync && self.sync_has_msi() {
            MAX_MEMORY_DELAY
        } else {
            MAX_REGISTER_DELAY
        };
        // The end of a short wait, which is the common one, is noticed 6 % later than it could be
        // at most. That of a long one may take more, so that it takes no more reads than in C.
        let delay = waited.as_nanos() / if waited < LONG_WAIT { 16 } else { 8 };
        udelay(Delta::from_nanos(delay.clamp(1, max.as_nanos())));
    }

    fn interrupts_are_disabled(&self) -> bool {
        kernel::interrupt::are_disabled()
    }

    #[cold]
    fn caller_is_killed(&self) -> bool {
        kernel::current!().fatal_signal_pending()
    }

    #[inline]
    fn trace_batch(&self, start: u64, cmds: usize, sync: bool) {
        // CAST: The index of a slot, and at most as many commands as there are slots.
        let (index, cmds) = ((start & (self.len as u64 - 1)) as u32, cmds as u32);
        // SAFETY: The device is valid, as `dev` is a reference to it.
        unsafe { arm_smmu_cmdq_batch(self.raw_dev, index, cmds, sync) };
    }

    fn trace_replay(&self, cmd: Cmd, failed: Option<Cerror>) {
        let [word0, word1] = cmd.words();
        let error = failed.map_or(0, |cerror| cerror as u32);
        // SAFETY: The device is valid, as `dev` is a reference to it.
        unsafe { arm_smmu_cmdq_replay(self.raw_dev, word0, word1, error) };
    }

    #[cold]
    fn trace_error(&self, report: &Report) {
        let [word0, word1] = report.cmd.map_or([0; 2], Cmd::words);
        // SAFETY: The device is valid, as `dev` is a reference to it.
        unsafe {
            arm_smmu_cmdq_error(
                self.raw_dev,
                report.cons,
                word0,
                word1,
                report.action as u32,
                report.inline,
            )
        };

        let limit = if report.is_guest {
            &self.guests
        } else {
            &self.errors
        };
        if !limit.allows(c"arm-smmu-v3 cmdq") {
            return;
        }
        let cerror = match report.cerror {
            None => "no error",
            Some(Cerror::Ill) => "illegal command",
            Some(Cerror::Abt) => "abort on command fetch",
            Some(Cerror::AtcInvSync) => "ATC invalidation timeout",
        };
        let action = match report.action {
            Action::Retry => "retrying",
            Action::Replace => "replaced by CMD_SYNC",
        };

        dev_warn!(
            self.dev,
            "CMDQ error at index {:#x} (cons {:#010x}): {}, command {:#018x} {:#018x}, {}, stopped for {} ms\n",
            report.index,
            report.cons,
            cerror,
            word0,
            word1,
            action,
            report.stopped_for.as_millis(),
        );
    }

    #[cold]
    fn block_ats(&self) {
        // SAFETY: By the type invariants, the queue is valid.
        unsafe { bindings::arm_smmu_rust_cmdq_block_ats(self.cmdq) };
    }

    #[cold]
    fn trace_backoff(&self, sid: u32, time: Delta, is_guest: bool) {
        // CAST: A minute.
        let msecs = time.as_millis() as u32;
        // SAFETY: The device is valid, as `dev` is a reference to it.
        unsafe { arm_smmu_cmdq_backoff(self.raw_dev, sid, msecs) };

        let limit = if is_guest { &self.guests } else { &self.errors };
        if limit.allows(c"arm-smmu-v3 cmdq") {
            dev_warn!(
                self.dev,
                "ATC of stream {:#x} does not answer; guests' invalidations are refused for {} ms\n",
                sid,
                msecs,
            );
        }
    }

    #[cold]
    fn trace_timeout(&self, position: u64, cons: u32, is_guest: bool) {
        let limit = if is_guest {
            &self.guests
        } else {
            &self.timeouts
        };
        if limit.allows(c"arm-smmu-v3 cmdq") {
            dev_err!(
                self.dev,
                "CMDQ timeout: waited for index {:#x}, cons {:#010x}\n",
                position & (self.len as u64 - 1),
                cons,
            );
        }
    }
}
