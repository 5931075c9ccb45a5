// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long it takes to learn of a command that the SMMU finds illegal.

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vsmmu_nested::{ErrorCode, Failure};

use crate::sample::Sampler;
use crate::{debugfs, in_file, invalidate};

/// The fault injection into guests' commands, as the kernel's documentation of fault injection has it.
struct Injection(PathBuf);

impl Injection {
    fn find() -> io::Result<Option<Self>> {
        let mut dirs = debugfs()?;
        dirs.retain(|dir| {
            let name = dir.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|name| name.starts_with("fail_guest_cmd."))
        });
        Ok(dirs.into_iter().min().map(Injection))
    }

    fn set(&self, file: &str, value: i32) -> io::Result<()> {
        let path = self.0.join(file);
        fs::write(&path, value.to_string()).map_err(|e| in_file(&path, e))
    }

    /// Makes all commands from now on illegal. `verbose` is off: the log is not part of what is measured.
    fn start(&self) -> io::Result<()> {
        self.set("verbose", 0)?;
        self.set("space", 0)?;
        self.set("times", -1)?;
        self.set("probability", 100)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // Whoever comes next is not to get errors that nobody expects.
        let _ = self.set("probability", 0);
    }
}

/// Measures an array of one command.
pub fn run(sampler: &Sampler, sysfs: &Path) -> Result<(), Box<dyn Error>> {
    let injection = Injection::find()?.ok_or("this kernel has no fault injection into commands")?;
    let smmu = invalidate::smmu(sysfs)?;
    let commands = [invalidate::page(0)];
    let expected = Failure {
        errno: libc::EIO,
        complete: Some(0),
        code: Some(ErrorCode::Ill),
    };

    injection.start()?;
    sampler.case("ioctl: CERROR_ILL", 1, || {
        match smmu.invalidate(&commands) {
            Err(failure) if failure == expected => Ok(()),
            other => Err(format!("expected CERROR_ILL, got {other:?}").into()),
        }
    })
}
