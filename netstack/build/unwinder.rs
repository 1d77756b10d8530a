//! Links the unwinder into the programs of a crate, which would otherwise load libgcc_s.so for it.
//! That library asks the processor for its features when it is loaded. In a virtual machine each
//! answer leaves the machine: a tenth of a millisecond at each start, of a helper that is ready
//! after three.

use std::env;
use std::path::Path;
use std::process::Command;

/// Leaves programs as they are where the C compiler has no `libgcc_eh.a`, or is not GNU's. A linker
/// that looks at libraries in order keeps loading libgcc_s.so, which does no harm.
pub fn link() {
    let is_gnu = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu");
    if !is_gnu || env::var("HOST") != env::var("TARGET") {
        return;
    }
    let asked = Command::new("cc")
        .arg("-print-file-name=libgcc_eh.a")
        .output();
    let Ok(path) = asked.map(|told| String::from_utf8_lossy(&told.stdout).trim().to_owned()) else {
        return;
    };
    // What it does not find it gives back as it is.
    if Path::new(&path).is_absolute() {
        println!("cargo::rustc-link-arg-bins=-Wl,--whole-archive,{path},--no-whole-archive");
    }
}
