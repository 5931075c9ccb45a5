// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Plans invalidations: the argument, the array, and what is known of each command in it.

use fastrand::Rng;
use iommufd_bindings::iommufd as uapi;
use libc::{EINVAL, ENOENT, EOPNOTSUPP};
use vsmmu_nested::invalidate::ENTRY_NUM_MAX;
use vsmmu_nested::{Command, InvalidateArg};

use crate::commands::{self, Kind};
use crate::judge::{Entry, Question};
use crate::plan::{Expect, PAGE, Planned, Planner, Then};
use crate::program::{Array, Pick};
use crate::sys::{Arg, Base, Place};
use crate::vm::Object;

/// The size of a command.
const COMMAND: usize = 16;
/// No array is longer, but those that must be refused for it.
const ARRAY_MAX: usize = 8 << 20;

impl Planner<'_> {
    /// The ioctl.
    pub fn invalidate(&self, object: Pick, array: Array, data_type: u8, odd: u8) -> Planned {
        let mut rng = Rng::with_seed(array.seed);
        let id = self.pick(object, |object| matches!(object, Object::Viommu { .. }));
        let entry_len = match array.entry_len {
            0..=31 => [0, 1, 8, 15, 17, 24, 32, 40, 64, 128, 4096, 4097]
                [usize::from(array.entry_len) % 12],
            _ => COMMAND,
        };
        let length = usize::from(array.length);
        let entry_num = match array.magnitude {
            0..=7 => 0,
            8..=159 => 1 + length % 8,
            160..=231 => 1 + length % 80,
            232..=247 => 1 + length % 600,
            248..=252 => 1 + length % 4096,
            253 if length < 128 => ENTRY_NUM_MAX as usize,
            253 => 20_000,
            254 => ENTRY_NUM_MAX as usize + 1 + length,
            255 => u32::MAX as usize,
        };
        let base = match array.base {
            0..=2 => Base::Null,
            3..=5 => Base::Nowhere,
            6..=8 => Base::Kernel,
            9..=11 => Base::Wraps,
            12..=43 => Base::Cut(usize::from(array.cut) % 4096),
            _ => Base::Cut(0),
        };
        let type_ = if data_type < 8 {
            u32::from(data_type % 4)
        } else {
            1
        };
        let mut question = Question {
            before: (entry_num as u32, 0xdead),
            odd_size: false,
            weather: self.weather,
            ..Question::default()
        };
        let mut arg = InvalidateArg::new(id, &[]);
        arg.entry_num = entry_num as u32;
        arg.entry_len = entry_len as u32;
        arg.data_type = type_;
        arg.out_driver_error_code = 0xdead;
        let mut arg = Arg::new(arg);
        let mut place = Place::Memory;
        match odd {
            0 => {
                arg.set_size(rng.u32(..InvalidateArg::UAPI_SIZE));
                question.odd_size = true;
            }
            1 => arg.set_size(rng.u32(InvalidateArg::UAPI_SIZE..=Arg::MAX_SIZE)),
            2 => {
                arg.set_size(Arg::MAX_SIZE);
                arg.set_tail();
                question.odd_size = true;
            }
            3 => (place, question.no_answer) = (Place::ReadOnly, true),
            4 => (place, question.no_answer) = (Place::Nowhere, true),
            _ => {}
        }

        // What is wrong with the call as a whole.
        let in_vm = self.object(id);
        let refused = &mut question.refused;
        let array_is_bad = entry_num > 0
            && (base == Base::Null
                || !(COMMAND..=PAGE as usize).contains(&entry_len)
                || entry_num > ENTRY_NUM_MAX as usize);
        match in_vm {
            None => refused.push(ENOENT),
            Some(Object::Viommu { .. }) if type_ == 1 => {}
            Some(Object::Nested { .. }) => refused.extend([EOPNOTSUPP, EINVAL]),
            Some(_) => refused.push(EINVAL),
        }
        if array_is_bad {
            refused.push(EINVAL);
        }
        if self.meanwhile.busy && self.meanwhile.destroyed.contains(&id) {
            question.may_be_refused = vec![ENOENT, EINVAL, EOPNOTSUPP];
        }

        let mut bytes = Vec::new();
        if question.refused.is_empty() || entry_num <= 4096 && entry_len <= 64 {
            // As much of it as there is memory for.
            let room = ARRAY_MAX / entry_len.max(1);
            let entry_num = entry_num.min(room);
            if entry_num as u32 != question.before.0 && question.refused.is_empty() {
                let mut less: InvalidateArg = arg.get();
                less.entry_num = entry_num as u32;
                question.before.0 = entry_num as u32;
                let (size, tail) = (arg.size(), arg);
                arg = Arg::new(less);
                arg.set_size(size);
                arg.take_tail(&tail);
            }
            bytes = self.array(
                &mut rng,
                id,
                array.planted,
                entry_num,
                entry_len,
                base,
                &mut question,
            );
        }

        let mut planned = self.planned(
            uapi::IOMMUFD_CMD_HWPT_INVALIDATE,
            arg,
            Expect::Contract(Box::new(question)),
            Then::Nothing,
        );
        planned.call.place = place;
        planned.call.array = Some((bytes, base));
        planned
    }

    /// The bytes of the array, and what is known of each entry.
    #[allow(clippy::too_many_arguments)]
    fn array(
        &self,
        rng: &mut Rng,
        viommu: u32,
        planted: u8,
        entry_num: usize,
        entry_len: usize,
        base: Base,
        question: &mut Question,
    ) -> Vec<u8> {
        let vsids = self.vm.vsids(viommu);
        let planted: Vec<usize> = match planted {
            _ if entry_num == 0 => Vec::new(),
            0..=95 => vec![rng.usize(..entry_num)],
            96..=127 => (0..3).map(|_| rng.usize(..entry_num)).collect(),
            _ => Vec::new(),
        };
        let mut bytes = vec![0; entry_num * entry_len];
        let cut = match base {
            Base::Cut(cut) => cut.min(bytes.len()),
            _ => bytes.len(),
        };
        let readable = bytes.len() - cut;
        for i in 0..entry_num {
            let mut command = commands::legal(rng, &self.vm.hw, &vsids);
            let at = i * entry_len;
            let mut tail = false;
            if planted.contains(&i) {
                if entry_len > COMMAND && rng.bool() {
                    bytes[at + rng.usize(COMMAND..entry_len)] = 1 << rng.u8(..8);
                    tail = true;
                } else {
                    command = commands::planted(rng, command);
                }
            }
            let words = command.words().map(u64::to_le_bytes);
            let here = &mut bytes[at..];
            for (to, from) in here
                .iter_mut()
                .zip(words.as_flattened())
                .take(entry_len.min(COMMAND))
            {
                *to = *from;
            }
            let mut entry = self.entry(viommu, command);
            if at + COMMAND > readable {
                entry = Entry {
                    certain: true,
                    unreadable: true,
                    ..Entry::default()
                };
            } else if at + entry_len > readable {
                // How far a tail is looked at before it cannot be read is nobody's business.
                (entry.certain, entry.unreadable) = (true, true);
            }
            if tail && at + COMMAND <= readable {
                (entry.certain, entry.tail) = (true, true);
            }
            question.entries.push(entry);
        }
        bytes
    }

    /// What a command of a vIOMMU may come to.
    fn entry(&self, viommu: u32, command: Command) -> Entry {
        let illegal = Entry {
            certain: true,
            illegal: true,
            ..Entry::default()
        };
        match commands::kind(command, &self.vm.hw) {
            Kind::Illegal => illegal,
            Kind::Legal => Entry::default(),
            Kind::ForStream { vsid, atc_inv } => {
                let device = self.vm.device_of(viommu, vsid);
                let mut entry = match device {
                    Some(device) => Entry {
                        unanswered: atc_inv && (device.suspect || self.weather.atc),
                        ..Entry::default()
                    },
                    None => illegal,
                };
                if self.meanwhile.vdevices {
                    let any_suspect = self.vm.devices.iter().any(|device| device.suspect);
                    entry.certain = false;
                    entry.illegal = true;
                    entry.unanswered = atc_inv && (any_suspect || self.weather.atc);
                }
                entry
            }
        }
    }
}
