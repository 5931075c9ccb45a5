// SPDX-License-Identifier: GPL-2.0

//! Puts the kernel's own files where the compiler looks for modules.

use std::{env, fs, path::Path};

/// The files that work unchanged in user space: in `rust/kernel`, and as a module.
const FILES: [(&str, &str); 6] = [
    ("bitfield.rs", "bitfield.rs"),
    ("build_assert.rs", "build_assert.rs"),
    ("num.rs", "num/mod.rs"),
    ("num/bounded.rs", "num/bounded.rs"),
    ("num/casts.rs", "num/casts.rs"),
    ("transmute.rs", "transmute.rs"),
];

fn main() {
    println!("cargo::rerun-if-env-changed=KERNEL_SOURCE");
    let kernel = env::var("KERNEL_SOURCE").expect("KERNEL_SOURCE is not set: use `make verify`");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");

    for (file, module) in FILES {
        let from = Path::new(&kernel).join("rust/kernel").join(file);
        let to = Path::new(&out).join(module);
        println!("cargo::rerun-if-changed={}", from.display());
        let text = fs::read(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        fs::create_dir_all(to.parent().expect("it is in OUT_DIR"))
            .and_then(|()| fs::write(to, text))
            .expect("OUT_DIR can be written to");
    }
    // Paths of modules are relative to the file that has them.
    let modules = ["bitfield", "build_assert", "num", "transmute"];
    let modules: String = modules.map(|name| format!("pub mod {name};\n")).concat();
    fs::write(Path::new(&out).join("mod.rs"), modules).expect("OUT_DIR can be written to");
}
