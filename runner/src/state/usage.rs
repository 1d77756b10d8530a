//! How many bytes are in a directory tree that a container has written.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, statat};
use rustix::io::Errno;

use crate::rootfs::lookup::open_beneath;

/// The lengths of all files of a tree, which may be missing. No symbolic link is followed.
///
/// # Errors
/// EACCES for directories that the caller may not read.
pub fn tree_size(path: &Path) -> io::Result<u64> {
    let root = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        opened => OwnedFd::from(opened?),
    };
    let (mut size, mut left) = (0, vec![PathBuf::from(".")]);
    while let Some(path) = left.pop() {
        let dir = match open_beneath(&root, &path, OFlags::RDONLY | OFlags::DIRECTORY) {
            // Somebody has removed it meanwhile; or it is deeper than any path is long.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(Errno::NAMETOOLONG.raw_os_error()) =>
            {
                continue;
            }
            opened => opened?,
        };
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let found = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                found => found?,
            };
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => {
                    let name = std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes());
                    left.push(path.join::<&std::ffi::OsStr>(name));
                }
                FileType::RegularFile => size += u64::try_from(found.st_size).unwrap_or(0),
                _ => {}
            }
        }
    }
    Ok(size)
}
