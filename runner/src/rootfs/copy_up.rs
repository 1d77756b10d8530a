//! Filling an empty volume with what the image has at its place, as Docker and Podman do.
//!
//! Runs as root of the container's user namespace, on trees that the image and other containers
//! have written: every name is looked up in an open directory, no symbolic link is followed, no
//! mount is entered, and nesting costs neither stack nor descriptors. What is no file, directory,
//! symbolic link or FIFO stays out.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chownat, fchmod, fchown, fgetxattr, flistxattr, flock, fsetxattr, futimens,
    ioctl_ficlone, mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::lookup::open_on_mount;

/// Copies `place`, a directory, to `volume` if nothing is in that, with owner and mode.
pub fn fill(volume: impl AsFd, place: impl AsFd) -> io::Result<()> {
    let volume = open_dir(&volume, Path::new("."))?;
    // Other containers may be doing the same.
    flock(&volume, FlockOperation::LockExclusive)?;
    if !is_empty(&volume)? {
        return Ok(());
    }
    let place = open_dir(&place, Path::new("."))?;
    let mut left = vec![PathBuf::from(".")];
    let mut dirs = Vec::new();
    while let Some(path) = left.pop() {
        // A mount is not the image's.
        let from = match open_dir(&place, &path) {
            Err(error) if error.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => continue,
            opened => opened?,
        };
        let to = open_dir(&volume, &path)?;
        for entry in Dir::read_from(&from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if copy(&from, &to, name)? == FileType::Directory {
                left.push(path.join(OsStr::from_bytes(name.to_bytes())));
            }
        }
        dirs.push(path);
    }
    // What is written in a directory changes its time.
    for path in dirs.iter().rev() {
        let (from, to) = (open_dir(&place, path)?, open_dir(&volume, path)?);
        finish_directory(&from, &to)?;
    }
    Ok(())
}

/// Attributes, owner, mode and times, once all is in it.
pub(super) fn finish_directory(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let found = statat(from, c"", AtFlags::EMPTY_PATH)?;
    copy_attributes(from, to)?;
    finish(to, &found)
}

pub(super) fn is_empty(dir: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(false);
        }
    }
    Ok(true)
}

/// One entry; of a directory the name only.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> io::Result<FileType> {
    let found = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    match kind {
        FileType::Directory => mkdirat(to, name, Mode::RWXU)?,
        FileType::RegularFile => {
            let path = Path::new(OsStr::from_bytes(name.to_bytes()));
            let opened = open_on_mount(from, path, OFlags::RDONLY | OFlags::NONBLOCK);
            let mut source = match opened {
                Err(error) if error.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
                    return Ok(kind);
                }
                opened => File::from(opened?),
            };
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut target = File::from(openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
            // The blocks are shared where the file system can do that.
            if ioctl_ficlone(&target, &source).is_err() {
                io::copy(&mut source, &mut target)?;
            }
            copy_attributes(&source, &target)?;
            finish(&target, &found)?;
        }
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new())?;
            symlinkat(target, to, name)?;
            own(to, name, &found)?;
        }
        FileType::Fifo => {
            mknodat(
                to,
                name,
                FileType::Fifo,
                Mode::from_raw_mode(found.st_mode),
                0,
            )?;
            own(to, name, &found)?;
        }
        _ => {}
    }
    Ok(kind)
}

/// Owner before mode: a change of owner takes setuid away.
fn finish(file: impl AsFd, found: &Stat) -> io::Result<()> {
    fchown(
        &file,
        Some(Uid::from_raw(found.st_uid)),
        Some(Gid::from_raw(found.st_gid)),
    )?;
    fchmod(&file, Mode::from_raw_mode(found.st_mode & 0o7777))?;
    Ok(futimens(&file, &times(found))?)
}

fn own(dir: &OwnedFd, name: &CStr, found: &Stat) -> io::Result<()> {
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    chownat(dir, name, Some(uid), Some(gid), nofollow)?;
    Ok(utimensat(dir, name, &times(found), nofollow)?)
}

fn times(found: &Stat) -> Timestamps {
    let time = |seconds: i64, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or(0),
    };
    Timestamps {
        last_access: time(found.st_atime, found.st_atime_nsec),
        last_modification: time(found.st_mtime, found.st_mtime_nsec),
    }
}

/// Extended attributes, as far as the volume's file system takes them.
fn copy_attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let mut names = vec![0; 64 * 1024];
    let len = match flistxattr(&from, &mut names) {
        Err(Errno::NOTSUP) => return Ok(()),
        len => len?,
    };
    let mut value = vec![0; 64 * 1024];
    for name in names[..len].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let Ok(len) = fgetxattr(&from, name, &mut value) else {
            continue;
        };
        match fsetxattr(&to, name, &value[..len], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

pub(super) fn open_dir(dir: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    open_on_mount(dir, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn an_empty_volume_gets_the_images_files_and_a_full_one_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("image/a/b")).expect("a tree");
        fs::write(path("image/a/b/file"), "text").expect("a file");
        symlink("/etc", path("image/link")).expect("a link");
        for (name, mode) in [
            ("image", 0o1777),
            ("image/a/b/file", 0o640),
            ("image/a", 0o750),
        ] {
            fs::set_permissions(path(name), PermissionsExt::from_mode(mode)).expect("a mode");
        }
        fs::create_dir(path("volume")).expect("a volume");
        let attempt = || {
            let (volume, place) = (File::open(path("volume")), File::open(path("image")));
            fill(volume.expect("it"), place.expect("it"))
        };
        attempt().expect("filled");
        assert_eq!(
            fs::read_to_string(path("volume/a/b/file")).expect("copied"),
            "text"
        );
        assert_eq!(
            fs::read_link(path("volume/link")).expect("a link"),
            Path::new("/etc")
        );
        for name in ["", "/a", "/a/b", "/a/b/file", "/link"] {
            let found = |tree: &str| {
                let found = fs::symlink_metadata(path(&format!("{tree}{name}"))).expect(name);
                (found.mode(), found.uid(), found.mtime(), found.mtime_nsec())
            };
            assert_eq!(found("volume"), found("image"), "{name}");
        }
        fs::write(path("image/new"), "").expect("a file");
        attempt().expect("left alone");
        assert!(!path("volume/new").exists());
    }
}
