//! Removing a directory tree that a container has written.
//!
//! Its depth and its modes are hostile: a container may nest directories without end, and overlayfs
//! leaves a work directory of mode 000. So the walk holds no descriptor per level and does not
//! recurse: each subdirectory that is not empty is moved up to the top, and the top is emptied
//! again. Every name is resolved below an open directory and no symbolic link is followed.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, chmodat, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Removes `path` and all below it; a tree that is not there is fine. Fails with EACCES or EPERM
/// for what belongs to users whom the caller has no power over; what could be removed is removed
/// all the same.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match open_dir(CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlinkat(CWD, path, AtFlags::empty())?),
        opened => opened?,
    };
    let mut moved: u64 = 0;
    loop {
        let moved_before = moved;
        let mut first_error = None;
        for_each_entry(&top, |name, kind| {
            if let Err(error) = remove_entry(&top, name, kind, &mut moved) {
                first_error.get_or_insert(error);
            }
        })?;
        if let Some(error) = first_error {
            return Err(error.into());
        }
        // Each round empties every directory that it saw at the top, so a round that moves none up
        // is the last.
        if moved == moved_before {
            return Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?);
        }
    }
}

/// Removes one entry of `top`; subdirectories of it that are not empty are moved into `top`, under
/// new names.
fn remove_entry(top: &OwnedFd, name: &CStr, kind: FileType, moved: &mut u64) -> Result<(), Errno> {
    if kind != FileType::Directory {
        return unlink(top, name, AtFlags::empty());
    }
    if unlink(top, name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(());
    }
    let dir = open_dir(top, name)?;
    let mut first_error = None;
    for_each_entry(&dir, |child, kind| {
        let result = if kind == FileType::Directory {
            unlink(&dir, child, AtFlags::REMOVEDIR).or_else(|_| move_up(&dir, child, top, moved))
        } else {
            unlink(&dir, child, AtFlags::empty())
        };
        if let Err(error) = result {
            first_error.get_or_insert(error);
        }
    })?;
    match first_error {
        Some(error) => Err(error),
        None => unlink(top, name, AtFlags::REMOVEDIR),
    }
}

fn move_up(dir: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        let new_name = format!("{}.{moved}", std::process::id());
        match renameat(dir, name, top, &new_name) {
            // The name is in use, by chance or by an earlier removal that was cut short: take the
            // next.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR) => {}
            // To move a directory its `..` has to be written, which its own mode may forbid.
            Err(Errno::ACCESS) if chmodat(dir, name, Mode::RWXU, AtFlags::empty()).is_ok() => {
                return renameat(dir, name, top, &new_name);
            }
            result => return result,
        }
    }
}

/// `unlinkat`, where an entry that somebody else has removed meanwhile counts as removed.
fn unlink(dir: &OwnedFd, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(dir, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Opens a directory for reading and for changing its entries, whatever its mode, as long as it is
/// ours.
fn open_dir(parent: impl AsFd, name: impl rustix::path::Arg + Copy) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || openat(&parent, name, flags, Mode::empty());
    let dir = match open() {
        // chmodat follows symbolic links, but one would have failed above with ENOTDIR, not with
        // EACCES.
        Err(Errno::ACCESS) => {
            chmodat(&parent, name, Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        opened => opened?,
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&dir)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        // Fails for other users' directories; then the entries tell whether it mattered.
        let _ = rustix::fs::fchmod(&dir, mode | Mode::RWXU);
    }
    Ok(dir)
}

/// Calls `act` for each entry but `.` and `..`. Entries that `act` adds may be seen or not.
fn for_each_entry(dir: &OwnedFd, mut act: impl FnMut(&CStr, FileType)) -> Result<(), Errno> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            act(name, known_type(dir, name, entry.file_type())?);
        }
    }
    Ok(())
}

/// The type of an entry on file systems that do not tell it while listing.
fn known_type(dir: &OwnedFd, name: &CStr, listed: FileType) -> Result<FileType, Errno> {
    match listed {
        FileType::Unknown => {
            let found = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(FileType::from_raw_mode(found.st_mode))
        }
        known => Ok(known),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn removes_what_is_closed_nested_or_linked_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let tree = base.path().join("tree");
        let outside = base.path().join("outside");
        fs::create_dir_all(tree.join("a/b/c/d")).unwrap();
        fs::create_dir_all(tree.join("work/work")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        symlink(&outside, tree.join("a/b/link")).unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        fs::set_permissions(tree.join("work/work"), Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(tree.join("a/b/c"), Permissions::from_mode(0o500)).unwrap();
        fs::set_permissions(tree.join("a"), Permissions::from_mode(0o000)).unwrap();

        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("kept").exists());
        remove_tree(&tree).expect("nothing to remove is fine");

        symlink(&outside, &tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(outside.join("kept").exists() && !tree.is_symlink());
    }

    #[test]
    fn removes_a_tree_deeper_than_any_path_or_stack() {
        const DEPTH: usize = 5_000;
        let base = tempfile::tempdir().unwrap();
        let tree = base.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut dir = open_dir(CWD, &tree).unwrap();
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&dir, "down", Mode::RWXU).unwrap();
            openat(&dir, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
            dir = open_dir(&dir, c"down").unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
