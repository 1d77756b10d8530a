//! What this program needs to run in a root file system that a test makes.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

/// The libraries that this process is linked to, the dynamic linker among them.
pub fn libraries() -> io::Result<BTreeSet<PathBuf>> {
    Ok(shared_objects(&std::fs::read_to_string("/proc/self/maps")?))
}

/// The shared objects among the mappings of `/proc/PID/maps`.
fn shared_objects(maps: &str) -> BTreeSet<PathBuf> {
    let paths = maps.lines().filter_map(|line| {
        line.split_once('/')
            .map(|(_, path)| PathBuf::from(format!("/{path}")))
    });
    paths
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().contains(".so"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn libraries_are_the_shared_objects_of_the_mappings() {
        let maps = "55d0-55d1 r--p 0 fe:00 1  /usr/bin/x\n\
                    7f00-7f01 r--p 0 fe:00 2  /usr/lib/libc.so.6\n\
                    7f01-7f02 r-xp 0 fe:00 2  /usr/lib/libc.so.6\n\
                    7f03-7f04 r--p 0 fe:00 3  /usr/lib/ld-linux-x86-64.so.2\n\
                    7ffd-7ffe rw-p 0 00:00 0  [stack]\n";
        let found: Vec<PathBuf> = shared_objects(maps).into_iter().collect();
        assert_eq!(
            found,
            [
                Path::new("/usr/lib/ld-linux-x86-64.so.2"),
                Path::new("/usr/lib/libc.so.6")
            ]
        );
    }
}
