// SPDX-License-Identifier: GPL-2.0

//! What the handler of `ioctl(IOMMU_HWPT_INVALIDATE)` needs of iommufd's C side.

use kernel::{
    bindings,
    container_of,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*, //
};

use super::{
    Args,
    Output, //
};

/// An ioctl in progress: `struct iommufd_ucmd`.
///
/// # Invariants
///
/// The struct is valid and used by nobody else for `'a`. Its `ictx` is valid, and its `cmd` points
/// to a valid `struct iommu_hwpt_invalidate`.
pub(super) struct Ucmd<'a>(&'a mut bindings::iommufd_ucmd);

impl Ucmd<'_> {
    /// Takes over the ioctl from the dispatcher.
    ///
    /// # Safety
    ///
    /// The invariants of the type must hold for as long as the result is used.
    pub(super) unsafe fn from_raw(ucmd: *mut bindings::iommufd_ucmd) -> Self {
        // INVARIANT: By the safety requirements.
        // SAFETY: By the safety requirements.
        Self(unsafe { &mut *ucmd })
    }

    /// What user space asks for.
    pub(super) fn args(&self) -> Args {
        // SAFETY: By the type invariant.
        let cmd = unsafe { &*self.0.cmd.cast::<bindings::iommu_hwpt_invalidate>() };

        Args {
            hwpt_id: cmd.hwpt_id,
            data_uptr: cmd.data_uptr,
            data_type: cmd.data_type,
            entry_len: cmd.entry_len,
            entry_num: cmd.entry_num,
        }
    }

    /// Copies `output` back to user space.
    ///
    /// Fails with [`EFAULT`] if it cannot be written there.
    pub(super) fn respond(&mut self, output: &Output) -> Result {
        // SAFETY: By the type invariant, nobody else uses the struct.
        let cmd = unsafe { &mut *self.0.cmd.cast::<bindings::iommu_hwpt_invalidate>() };

        cmd.entry_num = output.entry_num;
        cmd.__bindgen_anon_1.out_driver_error_code = output.driver_error_code;

        // SAFETY: `cmd` is as large as is passed here, and `self.0` is valid.
        to_result(unsafe { bindings::iommufd_ucmd_respond(self.0, size_of_val(cmd)) })
    }
}

/// A reference to an object that user space named by its ID.
///
/// # Invariants
///
/// `obj` is a valid object of the context of `ucmd`, and a reference on it is held.
pub(super) struct Object<'a> {
    ucmd: &'a Ucmd<'a>,
    obj: *mut bindings::iommufd_object,
}

impl<'a> Object<'a> {
    /// Looks up an object of any type.
    ///
    /// Fails with [`ENOENT`] if there is none of that ID.
    pub(super) fn get(ucmd: &'a Ucmd<'a>, id: u32) -> Result<Self> {
        let any = bindings::iommufd_object_type_IOMMUFD_OBJ_ANY;
        // SAFETY: By the invariants of `Ucmd`, the context is valid.
        let obj = from_err_ptr(unsafe { bindings::iommufd_get_object(ucmd.0.ictx, id, any) })?;

        // INVARIANT: `iommufd_get_object()` found it, and took a reference.
        Ok(Self { ucmd, obj })
    }

    /// Calls the driver of a nested domain or of a vIOMMU for the requests of `array`.
    ///
    /// Fails with [`EINVAL`] if the object is of another type, with [`EOPNOTSUPP`] if its driver
    /// has no such operation, and else as the driver does.
    pub(super) fn cache_invalidate(
        &self,
        array: &mut bindings::iommu_user_data_array, //
    ) -> Result {
        let obj = self.obj;

        // SAFETY: By the type invariant, and the type of an object never changes.
        let ret = match unsafe { (*obj).type_ } {
            bindings::iommufd_object_type_IOMMUFD_OBJ_HWPT_NESTED => {
                // SAFETY: An object of this type is part of a `struct iommufd_hw_pagetable`.
                let hwpt = unsafe { container_of!(obj, bindings::iommufd_hw_pagetable, obj) };
                // SAFETY: A page table that can be looked up has a domain for all its life.
                let domain = unsafe { (*hwpt).domain };
                // SAFETY: The operations of a domain are NULL or valid, and are never changed.
                let ops = unsafe { (*domain).ops.as_ref() };
                let op = ops.and_then(|ops| ops.cache_invalidate_user);
                let op = op.ok_or(EOPNOTSUPP)?;

                // SAFETY: It is the domain's own operation, and the reference keeps the domain.
                unsafe { op(domain, array) }
            }
            bindings::iommufd_object_type_IOMMUFD_OBJ_VIOMMU => {
                // SAFETY: An object of this type is part of a `struct iommufd_viommu`.
                let viommu = unsafe { container_of!(obj, bindings::iommufd_viommu, obj) };
                // SAFETY: The operations of a vIOMMU are NULL or valid, and are never changed.
                let ops = unsafe { (*viommu).ops.as_ref() };
                let op = ops.and_then(|ops| ops.cache_invalidate);
                let op = op.ok_or(EOPNOTSUPP)?;

                // SAFETY: It is the vIOMMU's own operation, and the reference keeps the vIOMMU.
                unsafe { op(viommu, array) }
            }
            _ => return Err(EINVAL),
        };
        to_result(ret)
    }
}

impl Drop for Object<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a reference to put, and the context is valid.
        unsafe { bindings::iommufd_put_object(self.ucmd.0.ictx, self.obj) };
    }
}
