// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The SMMU of the host, by way of iommufd.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};
use std::thread;

use iommufd_bindings::iommufd::{
    iommu_vevent_arm_smmuv3, iommu_veventq_alloc, iommu_veventq_type_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
    iommufd_vevent_header,
};
use iommufd_ioctls::{IommuFd, IommufdError};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vsmmu_nested::{NestedSmmu, with_causes};
use vsmmu_relay::{Batch, Outcome, iommufd};

use super::eventq::Record;
use super::ste::Ste;
use super::{Host, Smmu};

/// How many events wait for the VMM at most.
const DEPTH: u32 = 64;

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has not made a queue for them.
    #[error("cannot make a vEVENTQ")]
    Alloc(#[source] IommufdError),
    /// Nobody can wait for them.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}

/// A nested SMMU of the host's, with the guest's devices.
pub struct Nested {
    smmu: Mutex<NestedSmmu>,
    // What invalidations take, so that they need not wait for what else is done.
    iommufd: Arc<IommuFd>,
    viommu_id: u32,
}

impl Nested {
    /// One with these devices.
    pub fn new(smmu: NestedSmmu) -> Self {
        Nested {
            iommufd: smmu.iommufd().clone(),
            viommu_id: smmu.viommu_id(),
            smmu: Mutex::new(smmu),
        }
    }
}

impl Host for Nested {
    fn invalidate(&self, batch: &Batch) -> Outcome {
        iommufd::invalidate(&self.iommufd, self.viommu_id, batch)
    }

    fn set(&self, device: usize, ste: Option<Ste>) -> Result<(), String> {
        let mut smmu = self.smmu.lock().unwrap();
        let result = match ste {
            Some(ste) => smmu.attach_nth(device, ste),
            None => smmu.attach_nth_stage2(device),
        };
        result.map_err(|e| with_causes(&e))
    }
}

impl Smmu<Nested> {
    /// From now on a thread hands over the events that the host has for the guest.
    ///
    /// # Errors
    ///
    /// When the kernel has none.
    pub fn take_events(self: &Arc<Self>) -> Result<(), Error> {
        let mut alloc = iommu_veventq_alloc {
            size: size_of::<iommu_veventq_alloc>() as u32,
            viommu_id: self.host.viommu_id,
            type_: iommu_veventq_type_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
            veventq_depth: DEPTH,
            ..Default::default()
        };
        let (_, file) = self
            .host
            .iommufd
            .alloc_veventq(&mut alloc)
            .map_err(Error::Alloc)?;
        let epoll = Epoll::new().map_err(Error::Wait)?;
        let readable = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(
                ControlOperation::Add,
                std::os::fd::AsRawFd::as_raw_fd(&file),
                readable,
            )
            .map_err(Error::Wait)?;
        let smmu = self.clone();
        thread::spawn(move || {
            let mut ready = [EpollEvent::default()];
            loop {
                match epoll.wait(-1, &mut ready) {
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return eprintln!("vsmmu-vmm: {}", with_causes(&Error::Wait(e))),
                }
                for record in records(&file) {
                    smmu.event(&record);
                }
            }
        });
        Ok(())
    }
}

/// What there is to read.
fn records(mut file: &File) -> Vec<Record> {
    const ENTRY: usize = size_of::<iommufd_vevent_header>() + size_of::<iommu_vevent_arm_smmuv3>();
    let mut buf = [0; ENTRY * DEPTH as usize];
    let len = file.read(&mut buf).unwrap_or(0);
    split(&buf[..len])
}

/// The events behind their headers. A header that says that some are lost has none.
fn split(mut data: &[u8]) -> Vec<Record> {
    const LOST: u8 = 1;
    let mut records = Vec::new();
    while let Some((header, rest)) = data.split_first_chunk::<8>() {
        data = rest;
        if header[0] & LOST != 0 {
            eprintln!("vsmmu-vmm: the host has lost events of the guest's");
        } else if let Some((record, rest)) = data.split_first_chunk::<32>() {
            records.push(*record);
            data = rest;
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_behind_headers() {
        let mut data = vec![0; 8];
        data.extend([1; 32]);
        data.extend([1, 0, 0, 0, 2, 0, 0, 0]);
        data.extend([0, 0, 0, 0, 4, 0, 0, 0]);
        data.extend([2; 32]);
        assert_eq!(split(&data), [[1; 32], [2; 32]]);
        assert!(split(&[]).is_empty());
    }
}
