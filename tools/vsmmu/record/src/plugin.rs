// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The part of QEMU's interface for TCG plugins, version 4, that is needed here.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// The version of the interface.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 4;

/// Some instructions that are executed one after the other.
#[repr(C)]
pub struct Block {
    _opaque: [u8; 0],
}

/// One of them.
#[repr(C)]
pub struct Instruction {
    _opaque: [u8; 0],
}

#[repr(C)]
struct Scoreboard {
    _opaque: [u8; 0],
}

#[repr(C)]
struct PhysicalAddress {
    _opaque: [u8; 0],
}

/// A number for each CPU.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Counter {
    scoreboard: *mut Scoreboard,
    offset: usize,
}

// SAFETY: the numbers are QEMU's, which has locks for them, and are there until it ends.
unsafe impl Send for Counter {}
// SAFETY: see above.
unsafe impl Sync for Counter {}

/// What was stored. The union is as large as the largest of its members, two u64.
#[repr(C)]
struct Value {
    kind: c_uint,
    data: [u64; 2],
}

const INLINE_ADD: c_uint = 0;
const NO_REGISTERS: c_uint = 0;
const WRITES: c_uint = 2;

/// Called for each block that is translated.
pub type OnBlock = extern "C" fn(id: u64, block: *mut Block);
/// Called for each store.
pub type OnStore = extern "C" fn(cpu: c_uint, info: u32, address: u64, data: *mut c_void);

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, call: OnBlock);
    fn qemu_plugin_tb_vaddr(block: *const Block) -> u64;
    fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    fn qemu_plugin_scoreboard_new(size: usize) -> *mut Scoreboard;
    fn qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
        block: *mut Block,
        op: c_uint,
        counter: Counter,
        value: u64,
    );
    fn qemu_plugin_register_vcpu_mem_cb(
        instruction: *mut Instruction,
        call: OnStore,
        flags: c_uint,
        which: c_uint,
        data: *mut c_void,
    );
    fn qemu_plugin_mem_get_value(info: u32) -> Value;
    fn qemu_plugin_get_hwaddr(info: u32, address: u64) -> *mut PhysicalAddress;
    fn qemu_plugin_hwaddr_phys_addr(address: *const PhysicalAddress) -> u64;
    fn qemu_plugin_u64_get(counter: Counter, cpu: c_uint) -> u64;
}

impl Counter {
    /// Zeroes.
    pub fn new() -> Self {
        Counter {
            // SAFETY: this can be called at any time.
            scoreboard: unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) },
            offset: 0,
        }
    }

    /// What it is now for that CPU, one that there is.
    pub fn get(self, cpu: u32) -> u64 {
        // SAFETY: the scoreboard is there until QEMU ends.
        unsafe { qemu_plugin_u64_get(self, cpu) }
    }
}

/// Has `call` called for each block of the plugin `id`.
pub fn on_block(id: u64, call: OnBlock) {
    // SAFETY: it is called with the identifier that QEMU gave to this plugin.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, call) }
}

/// Where kernels are, on arm64.
const KERNEL: u64 = 0xffff_0000_0000_0000;

/// Counts the instructions of a block each time that it is executed, and has `call` called for each store in
/// it if it is a kernel's. Of the firmware's stores to flash memory, QEMU 10.0 cannot tell the address.
///
/// # Safety
///
/// The block is one that [`OnBlock`] is being called with.
pub unsafe fn watch(block: *mut Block, counter: Counter, call: OnStore) {
    // SAFETY: the caller's block is a valid one, and so are its instructions.
    unsafe {
        let instructions = qemu_plugin_tb_n_insns(block);
        qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
            block,
            INLINE_ADD,
            counter,
            instructions as u64,
        );
        if qemu_plugin_tb_vaddr(block) < KERNEL {
            return;
        }
        for index in 0..instructions {
            let instruction = qemu_plugin_tb_get_insn(block, index);
            let data = std::ptr::null_mut();
            qemu_plugin_register_vcpu_mem_cb(instruction, call, NO_REGISTERS, WRITES, data);
        }
    }
}

/// The physical address of a store, and what was stored: so many bytes of it.
///
/// # Safety
///
/// [`OnStore`] is being called with these.
pub unsafe fn store(info: u32, address: u64) -> Option<(u64, [u8; 16], usize)> {
    // SAFETY: the caller's information is that of the store that is being made.
    unsafe {
        let physical = qemu_plugin_get_hwaddr(info, address);
        if physical.is_null() {
            return None;
        }
        let Value { kind, data } = qemu_plugin_mem_get_value(info);
        let mut bytes = [0; 16];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(data) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        // The kinds are 1, 2, 4, 8 and 16 bytes.
        Some((qemu_plugin_hwaddr_phys_addr(physical), bytes, 1 << kind))
    }
}

/// The arguments of the plugin, each `name=value`.
///
/// # Safety
///
/// They are those that QEMU has called `qemu_plugin_install` with.
pub unsafe fn arguments(argc: c_int, argv: *const *const c_char) -> Vec<String> {
    (0..argc as usize)
        .map(|i| {
            // SAFETY: there are `argc` strings, as the caller says.
            let argument = unsafe { std::ffi::CStr::from_ptr(*argv.add(i)) };
            argument.to_string_lossy().into_owned()
        })
        .collect()
}
