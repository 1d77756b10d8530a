//! The root file system of a container: busybox, and the libraries that the guest's program needs.
//! No registry is asked.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use testbed::libraries::libraries;

use super::{Machine, skip};

/// Makes an archive of it, as engines import it, and returns its path.
pub fn archive(machine: &Machine) -> String {
    let root = make(machine);
    let archive = root.with_extension("tar");
    let [root, archive] = [&root, &archive].map(|path| path.to_str().expect("UTF-8"));
    machine
        .run(&["busybox", "tar", "-cf", archive, "-C", root, "."])
        .expect();
    archive.to_owned()
}

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
    for library in libraries().expect("our own mappings") {
        let name = library.file_name().expect("a file");
        fs::copy(&library, root.join("lib64").join(name)).expect("copy a library");
    }
    root
}

const BUSYBOX: &str = "/bin/busybox";
