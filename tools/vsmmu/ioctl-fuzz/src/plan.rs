// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From an operation to a call, and to what the answer has to be.

use std::os::fd::AsRawFd;

use iommufd_bindings::iommufd as uapi;
use libc::{E2BIG, EBUSY, EFAULT, EINVAL, EIO, ENOENT};
use vfio_bindings::bindings::vfio;
use vsmmu_nested::InvalidateArg;

use crate::call::{Answer, Call};
use crate::judge::{Question, Weather};
use crate::program::{Op, Passing, Pick};
use crate::sys::{self, Arg, Place};
use crate::vm::{DEVICE_ATTACH_IOMMUFD_PT, DEVICE_DETACH_IOMMUFD_PT, Object, Vm};

/// The stream IDs that VMs use.
const VSIDS: [u64; 8] = [
    0,
    1,
    0x1234,
    0x1235,
    0xffff,
    0xffff_ffff,
    0x1_0000_1234,
    u64::MAX,
];
/// Where pages are mapped, clear of the window for MSIs.
const IOVA: u64 = 0x4000_0000;
/// The pages that are mapped.
const PAGES: usize = 64;
/// The size of a page, of the kernel and of the SMMU.
pub const PAGE: u64 = 4096;
/// No ID of an object.
const NO_OBJECT: u32 = 0x7fff_ff00;

/// What the answer has to be.
#[derive(Debug)]
pub enum Expect {
    /// Success.
    Success,
    /// This errno.
    Errno(i32),
    /// Some errno.
    Failure,
    /// Success or some errno.
    Either,
    /// What the contract says.
    Contract(Box<Question>),
}

/// What is different after a success.
#[derive(Debug)]
pub enum Then {
    Nothing,
    New(Object, fn(&Arg) -> (u32, Option<i32>)),
    Attached { device: usize, to: u32 },
    Detached { device: usize },
    Destroyed(u32),
}

/// A call, and what is known of it.
#[derive(Debug)]
pub struct Planned {
    pub call: Call,
    pub expect: Expect,
    pub then: Then,
}

/// What else is done at the same time, in the same VM.
#[derive(Debug, Default)]
pub struct Meanwhile {
    /// Something is.
    pub busy: bool,
    /// These are destroyed, perhaps.
    pub destroyed: Vec<u32>,
    /// vDEVICEs come and go.
    pub vdevices: bool,
    /// Devices are attached or detached.
    pub attached: Vec<usize>,
}

/// Memory to be mapped, of which nobody cares what is in it.
pub struct Ram(Box<[Page]>);

#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page([u8; PAGE as usize]);

impl Ram {
    pub fn new() -> Self {
        Ram(vec![Page([0; PAGE as usize]); PAGES].into())
    }

    fn address(&self) -> u64 {
        // The first byte, so that the field is of some use.
        self.0[0].0.as_ptr() as u64
    }
}

/// Errnos that a call may fail with which is not bound by the contract.
const SANE: [i32; 16] = [
    libc::E2BIG,
    libc::EADDRINUSE,
    libc::EADDRNOTAVAIL,
    libc::EBUSY,
    libc::EEXIST,
    libc::EFAULT,
    libc::EINVAL,
    libc::EIO,
    libc::EMSGSIZE,
    libc::ENODEV,
    libc::ENOENT,
    libc::ENOSPC,
    libc::ENOTTY,
    libc::EOPNOTSUPP,
    libc::EOVERFLOW,
    libc::EPERM,
];

impl Expect {
    /// Whether this is what was expected. If not, what is wrong.
    pub fn judge(&self, answer: &Answer) -> Result<(), String> {
        let errno = answer.errno;
        let right = match self {
            Expect::Success => errno == 0,
            Expect::Errno(due) => errno == *due,
            Expect::Failure => SANE.contains(&errno),
            Expect::Either => errno == 0 || SANE.contains(&errno),
            Expect::Contract(question) => {
                let arg: InvalidateArg = answer.arg.get();
                let outcome = vsmmu_nested::Outcome {
                    errno,
                    entry_num: arg.entry_num,
                    code: arg.out_driver_error_code,
                };
                return question.judge(outcome).map_err(|e| {
                    let n = question.entries.len();
                    format!("{outcome:?} of {n} entries: {e}")
                });
            }
        };
        if right {
            Ok(())
        } else {
            Err(format!("errno {errno} where {self:?} is due"))
        }
    }
}

fn success_if(yes: bool) -> Expect {
    if yes {
        Expect::Success
    } else {
        Expect::Failure
    }
}

/// Plans calls of one VM.
pub struct Planner<'a> {
    pub vm: &'a Vm,
    pub ram: &'a Ram,
    pub weather: Weather,
    pub meanwhile: &'a Meanwhile,
}

impl Planner<'_> {
    /// An object that `is` of the right type, or one that was chosen to be wrong.
    pub fn pick(&self, pick: Pick, is: impl Fn(&Object) -> bool) -> u32 {
        let nth = |ids: Vec<u32>| {
            let n = usize::from(pick.nth).checked_rem(ids.len())?;
            Some(ids[n])
        };
        let of = |any: bool| {
            let objects = self
                .vm
                .objects
                .iter()
                .filter(|(_, object)| any || is(object));
            nth(objects.map(|(id, _)| *id).collect())
        };
        let chosen = if pick.wrong < 4 {
            None
        } else {
            of(pick.wrong < 16)
        };
        chosen.unwrap_or(NO_OBJECT + u32::from(pick.nth))
    }

    fn device(&self, n: u8) -> usize {
        usize::from(n) % self.vm.devices.len()
    }

    /// What is known of an object.
    pub fn object(&self, id: u32) -> Option<&Object> {
        self.vm.objects.get(&id)
    }

    fn is_device(&self, id: u32) -> bool {
        matches!(self.object(id), Some(Object::Device))
    }

    /// A call of iommufd.
    pub fn planned(&self, command: u32, arg: Arg, expect: Expect, then: Then) -> Planned {
        let call = Call {
            fd: self.vm.fd(),
            number: sys::iommufd(command),
            arg,
            place: Place::Memory,
            array: None,
            more: None,
        };
        Planned { call, expect, then }
    }

    /// Passes the argument in an odd way, perhaps. `answers` if the kernel writes to it.
    fn pass(mut planned: Planned, passing: Passing, answers: bool) -> Planned {
        let (call, expect) = (&mut planned.call, &mut planned.expect);
        match passing.odd {
            0 => {
                call.arg.set_size(4);
                *expect = Expect::Errno(EINVAL);
            }
            // Behind what the kernel knows are zeroes.
            1 => call.arg.set_size(Arg::MAX_SIZE),
            2 => {
                call.arg.set_size(Arg::MAX_SIZE);
                call.arg.set_tail();
                *expect = Expect::Errno(E2BIG);
            }
            3 => {
                call.place = Place::Nowhere;
                *expect = Expect::Errno(EFAULT);
            }
            4 if answers => {
                call.place = Place::ReadOnly;
                *expect = match expect {
                    Expect::Success => Expect::Errno(EFAULT),
                    _ => Expect::Failure,
                };
            }
            _ => {}
        }
        planned
    }

    /// The call for an operation that is a single call. None if it cannot be made at the same time as the
    /// others.
    pub fn plan(&self, op: Op) -> Option<Planned> {
        let size = |bytes: usize| bytes as u32;
        let mut planned = match op {
            Op::Nest { .. } | Op::CloseQueues | Op::Dma { .. } | Op::Rule { .. } => return None,
            Op::Invalidate {
                object,
                array,
                data_type,
                odd,
            } => {
                return Some(self.invalidate(object, array, data_type, odd));
            }
            Op::IoasAlloc { flags, passing } => {
                let flags = u32::from(flags.saturating_sub(240));
                Self::pass(self.ioas_alloc(flags), passing, true)
            }
            Op::HwptAlloc {
                device,
                parent,
                nested,
                flags,
                ste,
                flip,
                odd,
                passing,
            } => {
                let device = self.pick(device, |object| matches!(object, Object::Device));
                let planned = if nested {
                    let parent =
                        self.pick(parent, |object| matches!(object, Object::Viommu { .. }));
                    self.nested_alloc(device, parent, flags, [ste, flip, odd])
                } else {
                    let parent = self.pick(parent, |object| matches!(object, Object::Ioas));
                    self.paging_alloc(device, parent, flags)
                };
                Self::pass(planned, passing, true)
            }
            Op::ViommuAlloc {
                device,
                hwpt,
                kind,
                passing,
            } => {
                let device = self.pick(device, |object| matches!(object, Object::Device));
                let nest = |object: &Object| matches!(object, Object::Paging { nest: true, .. });
                let hwpt = self.pick(hwpt, nest);
                let kind = if kind < 8 { u32::from(kind) } else { 1 };
                Self::pass(self.viommu_alloc(device, hwpt, kind), passing, true)
            }
            Op::VdeviceAlloc {
                device,
                viommu,
                vsid,
                passing,
            } => {
                let device = self.pick(device, |object| matches!(object, Object::Device));
                let viommu = self.pick(viommu, |object| matches!(object, Object::Viommu { .. }));
                let vsid = VSIDS[usize::from(vsid) % VSIDS.len()];
                Self::pass(self.vdevice_alloc(device, viommu, vsid), passing, true)
            }
            Op::VeventqAlloc {
                viommu,
                kind,
                depth,
                passing,
            } => {
                let viommu = self.pick(viommu, |object| matches!(object, Object::Viommu { .. }));
                let type_ = if kind < 16 { u32::from(kind) } else { 1 };
                let arg = Arg::new(uapi::iommu_veventq_alloc {
                    size: size(size_of::<uapi::iommu_veventq_alloc>()),
                    viommu_id: viommu,
                    type_,
                    veventq_depth: u32::from(depth),
                    ..Default::default()
                });
                let there = self.vm.objects.values().any(|object| match *object {
                    Object::Veventq {
                        viommu: of, kind, ..
                    } => of == viommu && kind == type_,
                    _ => false,
                });
                let right = matches!(self.object(viommu), Some(Object::Viommu { .. }));
                let expect = success_if(right && !there && type_ != 0 && depth != 0);
                let object = Object::Veventq {
                    viommu,
                    kind: type_,
                    file: None,
                };
                let then = Then::New(object, |arg| {
                    let arg: uapi::iommu_veventq_alloc = arg.get();
                    (arg.out_veventq_id, Some(arg.out_veventq_fd as i32))
                });
                let command = uapi::IOMMUFD_CMD_VEVENTQ_ALLOC;
                Self::pass(self.planned(command, arg, expect, then), passing, true)
            }
            Op::FaultAlloc { flags, passing } => {
                let flags = u32::from(flags.saturating_sub(240));
                let arg = Arg::new(uapi::iommu_fault_alloc {
                    size: size(size_of::<uapi::iommu_fault_alloc>()),
                    flags,
                    ..Default::default()
                });
                let then = Then::New(Object::Fault { file: None }, |arg| {
                    let arg: uapi::iommu_fault_alloc = arg.get();
                    (arg.out_fault_id, Some(arg.out_fault_fd as i32))
                });
                let command = uapi::IOMMUFD_CMD_FAULT_QUEUE_ALLOC;
                let planned = self.planned(command, arg, success_if(flags == 0), then);
                Self::pass(planned, passing, true)
            }
            Op::HwQueueAlloc {
                viommu,
                kind,
                passing,
            } => {
                let viommu = self.pick(viommu, |object| matches!(object, Object::Viommu { .. }));
                let arg = Arg::new(uapi::iommu_hw_queue_alloc {
                    size: size(size_of::<uapi::iommu_hw_queue_alloc>()),
                    viommu_id: viommu,
                    type_: u32::from(kind % 3),
                    nesting_parent_iova: IOVA,
                    length: PAGE,
                    ..Default::default()
                });
                let command = uapi::IOMMUFD_CMD_HW_QUEUE_ALLOC;
                Self::pass(
                    self.planned(command, arg, Expect::Failure, Then::Nothing),
                    passing,
                    false,
                )
            }
            Op::Attach { device, to, ioas } => {
                let device = self.device(device);
                let to = self.pick(to, |object| match object {
                    Object::Ioas => ioas,
                    Object::Paging { .. } | Object::Nested { .. } => !ioas,
                    _ => false,
                });
                if self.meanwhile.attached.contains(&device) {
                    return None;
                }
                self.attach(device, to)
            }
            Op::Detach { device } => {
                let device = self.device(device);
                if self.meanwhile.attached.contains(&device) {
                    return None;
                }
                self.detach(device)
            }
            Op::Destroy { object, type_ } => {
                let id = self.pick(object, |object| match object {
                    Object::Device => false,
                    Object::Ioas => type_ < 32,
                    Object::Paging { .. } => (32..64).contains(&type_),
                    Object::Nested { .. } => (64..128).contains(&type_),
                    Object::Viommu { .. } => (128..160).contains(&type_),
                    Object::Vdevice { .. } => (160..224).contains(&type_),
                    Object::Fault { .. } | Object::Veventq { .. } => type_ >= 224,
                });
                if self.meanwhile.destroyed.contains(&id) {
                    return None;
                }
                self.destroy(id)
            }
            Op::Map {
                ioas,
                page,
                pages,
                flags,
                passing,
            } => {
                let ioas = self.pick(ioas, |object| matches!(object, Object::Ioas));
                let planned = self.map(ioas, page, pages, u32::from(flags));
                Self::pass(planned, passing, false)
            }
            Op::Unmap {
                ioas,
                page,
                pages,
                passing,
            } => {
                let ioas = self.pick(ioas, |object| matches!(object, Object::Ioas));
                let page = usize::from(page) % PAGES;
                let all = pages >= 240;
                let arg = Arg::new(uapi::iommu_ioas_unmap {
                    size: size(size_of::<uapi::iommu_ioas_unmap>()),
                    ioas_id: ioas,
                    iova: if all { 0 } else { IOVA + page as u64 * PAGE },
                    length: if all {
                        u64::MAX
                    } else {
                        u64::from(pages) * PAGE
                    },
                });
                let command = uapi::IOMMUFD_CMD_IOAS_UNMAP;
                Self::pass(
                    self.planned(command, arg, Expect::Either, Then::Nothing),
                    passing,
                    false,
                )
            }
            Op::HwInfo {
                device,
                kind,
                passing,
            } => {
                let device = self.pick(device, |object| matches!(object, Object::Device));
                let mut data: Box<[u64]> = vec![0; 16].into();
                let length = if kind < 128 {
                    128
                } else {
                    u32::from(kind) - 128
                };
                let arg = Arg::new(uapi::iommu_hw_info {
                    size: size(size_of::<uapi::iommu_hw_info>()),
                    dev_id: device,
                    data_len: length,
                    data_uptr: data.as_mut_ptr() as u64,
                    ..Default::default()
                });
                let expect = success_if(self.is_device(device));
                let command = uapi::IOMMUFD_CMD_GET_HW_INFO;
                let mut planned = self.planned(command, arg, expect, Then::Nothing);
                planned.call.more = Some(data);
                Self::pass(planned, passing, true)
            }
            Op::Other {
                which,
                object,
                value,
                passing,
            } => {
                let planned = self.other(which, object, value);
                // What is not an ioctl does not look at its argument.
                if which % 8 == 7 {
                    planned
                } else {
                    Self::pass(planned, passing, false)
                }
            }
        };
        if self.meanwhile.busy {
            planned.expect = Expect::Either;
        }
        Some(planned)
    }

    pub fn ioas_alloc(&self, flags: u32) -> Planned {
        let arg = Arg::new(uapi::iommu_ioas_alloc {
            size: size_of::<uapi::iommu_ioas_alloc>() as u32,
            flags,
            ..Default::default()
        });
        let then = Then::New(Object::Ioas, |arg| {
            (arg.get::<uapi::iommu_ioas_alloc>().out_ioas_id, None)
        });
        self.planned(
            uapi::IOMMUFD_CMD_IOAS_ALLOC,
            arg,
            success_if(flags == 0),
            then,
        )
    }

    pub fn map(&self, ioas: u32, page: u8, pages: u8, flags: u32) -> Planned {
        let page = usize::from(page) % PAGES;
        // One more than there are, now and then.
        let pages = u64::from(pages) % (PAGES as u64 + 2 - page as u64);
        let known = uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
            | uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
        let arg = Arg::new(uapi::iommu_ioas_map {
            size: size_of::<uapi::iommu_ioas_map>() as u32,
            flags: if flags < 16 { flags } else { known | flags & 2 },
            ioas_id: ioas,
            user_va: self.ram.address() + page as u64 * PAGE,
            length: pages * PAGE,
            iova: IOVA + page as u64 * PAGE,
            ..Default::default()
        });
        self.planned(
            uapi::IOMMUFD_CMD_IOAS_MAP,
            arg,
            Expect::Either,
            Then::Nothing,
        )
    }

    pub fn paging_alloc(&self, device: u32, ioas: u32, flags: u8) -> Planned {
        let nest = uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT;
        let value = match flags {
            0..=159 => nest,
            160..=223 => 0,
            _ => u32::from(flags) - 224,
        };
        let has_fault = uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID & value != 0;
        let fault_id = self.pick(
            Pick {
                nth: flags,
                wrong: flags,
            },
            |object| matches!(object, Object::Fault { .. }),
        );
        let arg = Arg::new(uapi::iommu_hwpt_alloc {
            size: size_of::<uapi::iommu_hwpt_alloc>() as u32,
            flags: value,
            dev_id: device,
            pt_id: ioas,
            fault_id,
            ..Default::default()
        });
        let right = self.is_device(device) && matches!(self.object(ioas), Some(Object::Ioas));
        let plain = value & !nest == 0;
        let expect = match right {
            true if plain => Expect::Success,
            true => Expect::Either,
            false => Expect::Failure,
        };
        let object = Object::Paging {
            ioas,
            nest: value & nest != 0,
            plain,
            fault: has_fault.then_some(fault_id),
        };
        let then = Then::New(object, |arg| {
            (arg.get::<uapi::iommu_hwpt_alloc>().out_hwpt_id, None)
        });
        self.planned(uapi::IOMMUFD_CMD_HWPT_ALLOC, arg, expect, then)
    }

    /// `odds` are which STE, a bit to be flipped in it, and how it is passed.
    pub fn nested_alloc(&self, device: u32, parent: u32, flags: u8, odds: [u8; 3]) -> Planned {
        const VALID: u64 = 1;
        const CD: u64 = IOVA;
        const EATS: u64 = 1 << 28;
        let [ste, flip, odd] = odds;
        let (config, known) = match ste {
            0..=7 => (0, true),
            8..=23 => (4, true),
            // What a guest may not ask for.
            24..=27 => ([1, 2, 3, 6][usize::from(ste) - 24], false),
            _ => (5, true),
        };
        let valid = if (28..32).contains(&ste) { 0 } else { VALID };
        // S1CIR, S1COR and S1CSH are those of normal memory.
        let mut words = [CD | config << 1 | valid, 0xd4];
        if ste & 1 != 0 {
            words[1] |= EATS;
        }
        let flipped = odd < 48;
        if flipped {
            words[usize::from(flip) / 64 % 2] ^= 1 << (flip % 64);
        }
        let value = u32::from(flags.saturating_sub(248));
        let has_fault = uapi::iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID & value != 0;
        let fault_id = self.pick(
            Pick {
                nth: flags,
                wrong: flags,
            },
            |object| matches!(object, Object::Fault { .. }),
        );
        let data: Box<[u64]> = words.map(u64::to_le).into_iter().chain([0; 2]).collect();
        let smmuv3 = uapi::iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3;
        let (data_type, data_len, pointer) = match odd {
            48 => (0, 16, data.as_ptr() as u64),
            49 => (smmuv3, 0, data.as_ptr() as u64),
            50 => (smmuv3, 8, data.as_ptr() as u64),
            51 => (smmuv3, 24, data.as_ptr() as u64),
            52 => (smmuv3, 16, 64),
            53 => (smmuv3 + 1, 16, data.as_ptr() as u64),
            _ => (smmuv3, 16, data.as_ptr() as u64),
        };
        let arg = Arg::new(uapi::iommu_hwpt_alloc {
            size: size_of::<uapi::iommu_hwpt_alloc>() as u32,
            flags: value,
            dev_id: device,
            pt_id: parent,
            data_type,
            data_len,
            data_uptr: pointer,
            fault_id,
            ..Default::default()
        });
        let right =
            self.is_device(device) && matches!(self.object(parent), Some(Object::Viommu { .. }));
        let certain = !flipped && value == 0 && odd != 51 && !(48..54).contains(&odd);
        let expect = match (right, certain) {
            (false, _) => Expect::Failure,
            // With the valid bit off nothing else counts.
            (true, true) if valid == 0 || known => Expect::Success,
            (true, true) => Expect::Errno(EIO),
            (true, false) => Expect::Either,
        };
        let object = Object::Nested {
            viommu: parent,
            translates: valid != 0 && config == 5,
            plain: certain,
            fault: has_fault.then_some(fault_id),
        };
        let then = Then::New(object, |arg| {
            (arg.get::<uapi::iommu_hwpt_alloc>().out_hwpt_id, None)
        });
        let mut planned = self.planned(uapi::IOMMUFD_CMD_HWPT_ALLOC, arg, expect, then);
        planned.call.more = Some(data);
        planned
    }

    pub fn viommu_alloc(&self, device: u32, hwpt: u32, kind: u32) -> Planned {
        let arg = Arg::new(uapi::iommu_viommu_alloc {
            size: size_of::<uapi::iommu_viommu_alloc>() as u32,
            type_: kind,
            dev_id: device,
            hwpt_id: hwpt,
            ..Default::default()
        });
        let nest = matches!(self.object(hwpt), Some(Object::Paging { nest: true, .. }));
        let expect = success_if(self.is_device(device) && nest && kind == 1);
        let then = Then::New(Object::Viommu { hwpt }, |arg| {
            (arg.get::<uapi::iommu_viommu_alloc>().out_viommu_id, None)
        });
        self.planned(uapi::IOMMUFD_CMD_VIOMMU_ALLOC, arg, expect, then)
    }

    pub fn vdevice_alloc(&self, device: u32, viommu: u32, vsid: u64) -> Planned {
        let arg = Arg::new(uapi::iommu_vdevice_alloc {
            size: size_of::<uapi::iommu_vdevice_alloc>() as u32,
            viommu_id: viommu,
            dev_id: device,
            virt_id: vsid,
            ..Default::default()
        });
        let taken = self.vm.objects.values().any(|object| match *object {
            Object::Vdevice {
                viommu: of,
                vsid: taken,
                ..
            } => of == viommu && taken == vsid,
            _ => false,
        });
        let right =
            self.is_device(device) && matches!(self.object(viommu), Some(Object::Viommu { .. }));
        let expect = success_if(right && !taken && !self.vm.has_vdevice(device, None));
        let then = Then::New(
            Object::Vdevice {
                viommu,
                device,
                vsid,
            },
            |arg| (arg.get::<uapi::iommu_vdevice_alloc>().out_vdevice_id, None),
        );
        self.planned(uapi::IOMMUFD_CMD_VDEVICE_ALLOC, arg, expect, then)
    }

    pub fn attach(&self, device: usize, to: u32) -> Planned {
        let arg = Arg::new(vfio::vfio_device_attach_iommufd_pt {
            argsz: size_of::<vfio::vfio_device_attach_iommufd_pt>() as u32,
            pt_id: to,
            ..Default::default()
        });
        let id = self.vm.devices[device].id;
        let expect = match self.object(to) {
            None => Expect::Errno(ENOENT),
            // Nothing is done then, so that its vDEVICE may be gone.
            Some(Object::Nested { .. }) if self.vm.devices[device].attached == Some(to) => {
                Expect::Success
            }
            Some(Object::Ioas | Object::Paging { plain: true, .. }) => Expect::Success,
            Some(&Object::Nested {
                viommu,
                translates,
                plain: true,
                ..
            }) => {
                // What translates needs a vDEVICE.
                success_if(!translates || self.vm.has_vdevice(id, Some(viommu)))
            }
            Some(Object::Paging { .. } | Object::Nested { .. }) => Expect::Either,
            Some(_) => Expect::Failure,
        };
        let then = Then::Attached { device, to };
        let mut planned = self.planned(0, arg, expect, then);
        planned.call.fd = self.vm.devices[device].file.as_raw_fd();
        planned.call.number = sys::vfio(DEVICE_ATTACH_IOMMUFD_PT);
        planned
    }

    pub fn detach(&self, device: usize) -> Planned {
        let arg = Arg::new(vfio::vfio_device_detach_iommufd_pt {
            argsz: size_of::<vfio::vfio_device_detach_iommufd_pt>() as u32,
            ..Default::default()
        });
        let mut planned = self.planned(0, arg, Expect::Success, Then::Detached { device });
        planned.call.fd = self.vm.devices[device].file.as_raw_fd();
        planned.call.number = sys::vfio(DEVICE_DETACH_IOMMUFD_PT);
        planned
    }

    pub fn destroy(&self, id: u32) -> Planned {
        let arg = Arg::new(uapi::iommu_destroy {
            size: size_of::<uapi::iommu_destroy>() as u32,
            id,
        });
        let expect = match self.object(id) {
            None => Expect::Errno(ENOENT),
            Some(_) if self.vm.is_busy(id) => Expect::Errno(EBUSY),
            Some(_) => Expect::Success,
        };
        self.planned(uapi::IOMMUFD_CMD_DESTROY, arg, expect, Then::Destroyed(id))
    }

    // The macro is for structures of all kinds.
    #[expect(clippy::needless_update)]
    fn other(&self, which: u8, object: Pick, value: u8) -> Planned {
        let ioas = self.pick(object, |object| matches!(object, Object::Ioas));
        let hwpt = self.pick(object, |object| matches!(object, Object::Paging { .. }));
        let mut data: Box<[u64]> = vec![0; 512].into();
        let pointer = data.as_mut_ptr() as u64;
        let number = u64::from(value);
        macro_rules! arg {
            ($name:ident { $($field:ident: $value:expr),* $(,)? }) => {
                Arg::new(uapi::$name {
                    size: size_of::<uapi::$name>() as u32,
                    $($field: $value,)*
                    ..Default::default()
                })
            };
        }
        let (command, arg) = match which % 8 {
            0 | 1 => {
                // Options that change no more than how memory is mapped.
                let huge = uapi::iommufd_option_IOMMU_OPTION_HUGE_PAGES;
                let option_id = if value >= 200 { number as u32 } else { huge };
                let op = u16::from(value >> 2 & 3);
                let arg = arg!(iommu_option {
                    option_id: option_id,
                    op: op,
                    object_id: ioas,
                    val64: number & 1
                });
                (uapi::IOMMUFD_CMD_OPTION, arg)
            }
            2 => {
                let num_iovas = u32::from(value % 16);
                let arg = arg!(iommu_ioas_iova_ranges {
                    ioas_id: ioas,
                    num_iovas: num_iovas,
                    allowed_iovas: pointer
                });
                (uapi::IOMMUFD_CMD_IOAS_IOVA_RANGES, arg)
            }
            3 => {
                let arg = arg!(iommu_ioas_copy {
                    flags: u32::from(value & 7),
                    dst_ioas_id: self.pick(
                        Pick {
                            nth: value,
                            wrong: 255
                        },
                        |object| matches!(object, Object::Ioas)
                    ),
                    src_ioas_id: ioas,
                    length: (number % 8) * PAGE,
                    dst_iova: IOVA + (number % 64) * PAGE,
                    src_iova: IOVA,
                });
                (uapi::IOMMUFD_CMD_IOAS_COPY, arg)
            }
            4 => {
                let arg = arg!(iommu_hwpt_set_dirty_tracking {
                    flags: u32::from(value & 3),
                    hwpt_id: hwpt
                });
                (uapi::IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING, arg)
            }
            5 => {
                let arg = arg!(iommu_hwpt_get_dirty_bitmap {
                    hwpt_id: hwpt,
                    flags: u32::from(value & 3),
                    iova: IOVA,
                    length: (number % 64) * PAGE,
                    page_size: PAGE << (value >> 6),
                    data: pointer,
                });
                (uapi::IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP, arg)
            }
            6 => (
                uapi::IOMMUFD_CMD_IOAS_CHANGE_PROCESS,
                arg!(iommu_ioas_change_process {}),
            ),
            // Numbers that are those of no ioctl, or of one with another argument.
            _ => (
                uapi::IOMMUFD_CMD_HW_QUEUE_ALLOC + 1 + u32::from(value & 63),
                arg!(iommu_destroy { id: 0 }),
            ),
        };
        let mut planned = self.planned(command, arg, Expect::Either, Then::Nothing);
        planned.call.more = Some(data);
        planned
    }
}
