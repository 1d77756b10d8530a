//! One tree of several layers, copied: where no overlay can be mounted that has its changes in the
//! data directory.
//!
//! Layers are copied the lowest first, and what one takes away of those below it, in the way of
//! overlayfs's option `userxattr`, is taken away. The same care is taken as for volumes
//! ([`super::copy_up`]): a layer's names are never followed.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, Stat, fgetxattr, fremovexattr, linkat, mkdirat, statat,
};
use rustix::io::Errno;

use super::copy_up::{copy, finish_directory, open_dir};
use crate::state::remove_tree;

/// Copies layers, the uppermost first, into an empty directory.
pub fn flatten(layers: &[OwnedFd], target: &OwnedFd) -> io::Result<()> {
    let target = open_dir(target, Path::new("."))?;
    layers
        .iter()
        .rev()
        .try_for_each(|layer| lay_over(&open_dir(layer, Path::new("."))?, &target))
}

fn lay_over(layer: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut left = vec![PathBuf::from(".")];
    let mut dirs = Vec::new();
    while let Some(path) = left.pop() {
        let from = open_dir(layer, &path)?;
        let to = open_dir(target, &path)?;
        if is_opaque(&from) {
            clear(&to)?;
        }
        for entry in Dir::read_from(&from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let below = path.join(OsStr::from_bytes(name.to_bytes()));
            let found = statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if make_room(&to, name, &found)? {
                let is_linked = found.st_nlink > 1 && !is_directory(&found);
                let id = (found.st_dev, found.st_ino);
                match links.get(&id) {
                    Some(first) if is_linked => link(target, first, &to, name)?,
                    _ => drop(copy(&from, &to, name)?),
                }
                if is_linked {
                    links.entry(id).or_insert_with(|| below.clone());
                }
            }
            if is_directory(&found) {
                left.push(below);
            }
        }
        dirs.push(path);
    }
    // What is written in a directory changes its time.
    for path in dirs.iter().rev() {
        let (from, to) = (open_dir(layer, path)?, open_dir(target, path)?);
        finish_directory(&from, &to)?;
        for name in [OPAQUE, c"user.overlay.origin", c"user.overlay.impure"] {
            // It is no layer any more; most have none.
            let _ = fremovexattr(&to, name);
        }
    }
    Ok(())
}

const OPAQUE: &CStr = c"user.overlay.opaque";

/// Makes room for an entry, and tells whether it is to be copied: neither a whiteout, nor a
/// directory where there is one.
fn make_room(to: &OwnedFd, name: &CStr, found: &Stat) -> io::Result<bool> {
    let there = match statat(to, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => None,
        there => Some(there?),
    };
    let is_device = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
    let is_whiteout = is_device && found.st_rdev == 0;
    match there {
        Some(there) if is_directory(&there) && is_directory(found) => return Ok(false),
        Some(_) => remove(to, name)?,
        None => {}
    }
    if is_directory(found) {
        // With its own attributes, not those of what was there.
        mkdirat(to, name, Mode::RWXU)?;
        return Ok(false);
    }
    Ok(!is_whiteout)
}

fn is_directory(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
}

fn link(target: &OwnedFd, first: &Path, to: &OwnedFd, name: &CStr) -> io::Result<()> {
    let parent = first.parent().unwrap_or(Path::new("."));
    let dir = open_dir(target, parent)?;
    let first = first.file_name().unwrap_or_default();
    Ok(linkat(&dir, first, to, name, AtFlags::empty())?)
}

/// Whether a directory hides what layers below have at its place.
pub(super) fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0; 2];
    fgetxattr(dir, OPAQUE, &mut value).is_ok_and(|len| value[..len] == *b"y")
}

/// Removes all that is in a directory.
pub fn clear(dir: &OwnedFd) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if *name != *c"." && *name != *c".." {
            names.push(name);
        }
    }
    names.iter().try_for_each(|name| remove(dir, name))
}

fn remove(dir: &OwnedFd, name: &CStr) -> io::Result<()> {
    let name = OsStr::from_bytes(name.to_bytes());
    remove_tree(&Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn layers_replace_merge_and_hide() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| {
            fs::create_dir_all(path(name).parent().expect("a directory")).expect("made");
            fs::write(path(name), text).expect("written");
        };
        write("low/merged/a", "low");
        write("low/merged/b", "low");
        write("low/opaque/old", "");
        write("low/dir-then-file/x", "");
        write("low/file-then-dir", "");
        fs::hard_link(path("low/merged/a"), path("low/linked")).expect("a link");
        symlink("/", path("low/link")).expect("a link");
        write("high/merged/b", "high");
        write("high/opaque/new", "");
        write("high/dir-then-file", "");
        write("high/file-then-dir/x", "");
        write("high/link/within", "not the host's root");
        fs::set_permissions(path("high/merged"), PermissionsExt::from_mode(0o710)).expect("a mode");
        rustix::fs::setxattr(
            path("high/opaque"),
            OPAQUE,
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .expect("an attribute");
        fs::create_dir(path("whole")).expect("made");
        let open = |name: &str| OwnedFd::from(File::open(path(name)).expect("a directory"));
        flatten(&[open("high"), open("low")], &open("whole")).expect("copied");
        let read = |name: &str| fs::read_to_string(path("whole").join(name)).expect(name);
        assert_eq!(
            (read("merged/a"), read("merged/b")),
            ("low".into(), "high".into())
        );
        assert!(!path("whole/opaque/old").exists() && path("whole/opaque/new").exists());
        assert!(path("whole/dir-then-file").is_file() && path("whole/file-then-dir/x").exists());
        assert_eq!(read("link/within"), "not the host's root");
        assert!(
            path("whole/link")
                .symlink_metadata()
                .expect("there")
                .is_dir()
        );
        let found = |name: &str| fs::metadata(path(name)).expect(name);
        assert_eq!(found("whole/linked").ino(), found("whole/merged/a").ino());
        assert_eq!(found("whole/merged").mode() & 0o7777, 0o710);
        assert_eq!(
            found("whole/merged/a").mtime_nsec(),
            found("low/merged/a").mtime_nsec()
        );
        let mut value = [0; 2];
        rustix::fs::getxattr(path("whole/opaque"), OPAQUE, &mut value).expect_err("no layer");
    }
}
