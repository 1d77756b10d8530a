//! The root file system of a container: busybox, and the libraries that the guest's program needs.
//! No registry is asked.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Machine, skip};

/// Makes it in a directory of the user's.
pub fn make(machine: &Machine) -> PathBuf {
    let root = machine.make_dir("image");
    for dir in ["bin", "etc", "lib64", "tmp"] {
        fs::create_dir(root.join(dir)).expect("make a directory of the image");
    }
    symlink("lib64", root.join("lib")).expect("link /lib");
    if let Err(error) = fs::copy(BUSYBOX, root.join("bin/busybox")) {
        skip(format!(
            "{BUSYBOX} cannot be copied (package busybox-static): {error}"
        ));
    }
    for name in ["sh", "ping", "nslookup", "ip", "cat"] {
        symlink("busybox", root.join("bin").join(name)).expect("link an applet");
    }
    // Where the dynamic linker looks without a cache.
    for library in libraries() {
        let name = library.file_name().expect("a file");
        fs::copy(&library, root.join("lib64").join(name)).expect("copy a library");
    }
    root
}

/// The libraries of this process, which are those of the guest's program.
fn libraries() -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").expect("our mappings");
    let paths = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5));
    paths
        .map(Path::new)
        .filter(|path| path.is_absolute() && path.to_string_lossy().contains(".so"))
        .map(Path::to_owned)
        .collect()
}

const BUSYBOX: &str = "/bin/busybox";
