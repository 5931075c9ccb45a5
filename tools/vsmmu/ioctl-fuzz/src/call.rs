// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calls that are ready to be made, in this thread or in several at the same time.

use std::io;
use std::os::fd::RawFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier};
use std::thread;

use vsmmu_nested::InvalidateArg;

use crate::kcov::{Coverage, Trace};
use crate::sys::{Arg, Base, Memory, Place};

/// A call.
#[derive(Debug)]
pub struct Call {
    /// Of iommufd or of a device.
    pub fd: RawFd,
    /// The number of the ioctl.
    pub number: u64,
    /// Its argument.
    pub arg: Arg,
    /// Where that is to be.
    pub place: Place,
    /// For invalidations: the array, and where it is to be.
    pub array: Option<(Vec<u8>, Base)>,
    /// What the argument leads to, which is only looked at by the kernel.
    pub more: Option<Box<[u64]>>,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// 0, or the positive errno.
    pub errno: i32,
    /// What the kernel has made of the argument.
    pub arg: Arg,
    /// How many instructions had not been seen before.
    pub new: usize,
}

/// What a thread makes calls with.
pub struct Caller {
    memory: Memory,
    trace: Option<Trace>,
}

impl Caller {
    /// For this thread.
    pub fn new(coverage: Option<Arc<Coverage>>) -> io::Result<Self> {
        let trace = coverage.map(Trace::start).transpose()?;
        Ok(Caller {
            memory: Memory::new()?,
            trace,
        })
    }

    /// For calls that are not part of a program.
    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// Makes the call, when the others are ready as well.
    pub fn make(&mut self, call: Call, others: Option<&Barrier>) -> Answer {
        let Call {
            fd,
            number,
            mut arg,
            place,
            array,
            more,
        } = call;
        if let Some((bytes, base)) = array {
            let mut invalidate: InvalidateArg = arg.get();
            invalidate.data_uptr = self.memory.put_array(&bytes, base);
            let (size, tail) = (arg.size(), arg);
            arg = Arg::new(invalidate);
            arg.set_size(size);
            arg.take_tail(&tail);
        }
        if let Some(trace) = &self.trace {
            trace.clear();
        }
        if let Some(others) = others {
            others.wait();
        }
        let errno = self.memory.ioctl(fd, number, &mut arg, place);
        // It may have led to this.
        drop(more);
        let new = self.trace.as_ref().map_or(0, Trace::take);
        Answer { errno, arg, new }
    }
}

type Job = (Call, Arc<Barrier>);

/// Threads that make calls at the same time.
pub struct Team {
    members: Vec<(Sender<Job>, Receiver<Answer>)>,
}

impl Team {
    /// Of so many.
    pub fn new(size: usize, coverage: Option<&Arc<Coverage>>) -> io::Result<Self> {
        let member = |_| {
            let (jobs, inbox) = mpsc::channel::<Job>();
            let (outbox, answers) = mpsc::channel();
            let (ready, started) = mpsc::channel();
            let coverage = coverage.cloned();
            thread::spawn(move || {
                let mut caller = match Caller::new(coverage) {
                    Ok(caller) => caller,
                    Err(e) => return drop(ready.send(Err(e))),
                };
                drop(ready.send(Ok(())));
                while let Ok((call, barrier)) = inbox.recv() {
                    if outbox.send(caller.make(call, Some(&barrier))).is_err() {
                        break;
                    }
                }
            });
            started
                .recv()
                .unwrap_or_else(|e| Err(io::Error::other(e)))?;
            Ok((jobs, answers))
        };
        Ok(Team {
            members: (0..size).map(member).collect::<io::Result<_>>()?,
        })
    }

    /// How many calls it can make at the same time.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// Makes all of them at the same time.
    ///
    /// # Panics
    ///
    /// If there are more than the team has members, or one of those is gone.
    pub fn make(&self, calls: Vec<Call>) -> Vec<Answer> {
        let barrier = Arc::new(Barrier::new(calls.len()));
        let busy = &self.members[..calls.len()];
        for ((jobs, _), call) in busy.iter().zip(calls) {
            jobs.send((call, barrier.clone()))
                .expect("it waits for jobs");
        }
        let answers = busy.iter().map(|(_, answers)| answers.recv());
        answers
            .map(|answer| answer.expect("it answers each job"))
            .collect()
    }
}
