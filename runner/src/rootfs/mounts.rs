//! Mounts as values, and places in the container's tree to attach them to.
//!
//! A [`Detached`] mount is made while the host's tree is in sight and attached after the container's root has become `/`, so that no
//! path of the container is ever resolved where it could lead to the host (the class of CVE-2021-30465 and CVE-2024-45310). Flags
//! are only ever added to a mount, so that those locked by an outer namespace stay as they are and need no care.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::sys;

/// `linux/magic.h`.
pub const PROC_SUPER_MAGIC: i64 = 0x9fa0;
pub const SYSFS_MAGIC: i64 = 0x6265_6572;
pub const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// nosuid, nodev and noexec: what a file system of the kernel's own needs none of.
pub const KERNEL_FS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// A mount, or a tree of them, that is attached nowhere. Dropped without being attached, it is gone.
#[derive(Debug)]
pub struct Detached(OwnedFd);

impl Detached {
    /// A new instance of a file system.
    ///
    /// # Errors
    /// EPERM for proc and sysfs where an outer container covers parts of its own.
    pub fn filesystem(
        kind: &str,
        options: &[(&str, &str)],
        attributes: MountAttrFlags,
    ) -> io::Result<Self> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        // What the mount table shows as the device.
        fsconfig_set_string(&context, "source", kind)?;
        for (key, value) in options {
            match *value {
                "" => fsconfig_set_flag(&context, *key)?,
                value => fsconfig_set_string(&context, *key, value)?,
            }
        }
        fsconfig_create(&context)?;
        Ok(Self(fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            attributes,
        )?))
    }

    /// A bind mount of `path`, with the mounts below it where `recursive`. Symbolic links are followed.
    pub fn copy_of(dir: impl AsFd, path: &Path, recursive: bool) -> io::Result<Self> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_os_str().is_empty());
        Ok(Self(open_tree(dir, path, flags)?))
    }

    /// A bind mount of a path of the host.
    pub fn copy_of_host(path: &Path, recursive: bool) -> io::Result<Self> {
        Self::copy_of(CWD, path, recursive)
    }

    /// Adds attributes, and to the mounts below where `recursive`.
    pub fn restrict(&self, attributes: MountAttrFlags, recursive: bool) -> io::Result<()> {
        sys::mount_setattr(self.0.as_fd(), attributes.bits().into(), recursive)
    }

    pub fn is_directory(&self) -> io::Result<bool> {
        Ok(file_type(self.0.as_fd())? == FileType::Directory)
    }

    /// Puts the mount over `place` and returns its root, now a part of the tree.
    pub fn attach(self, place: impl AsFd) -> io::Result<OwnedFd> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.0, c"", place, c"", flags)?;
        Ok(self.0)
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The container's tree, once it is this process's root directory. What is looked up here follows the image's symbolic
/// links, which now lead nowhere but inside; magic links of procfs are refused.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// What [`Root::ensure`] makes where there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Directory,
    File,
}

impl Root {
    /// Call this after pivot_root.
    pub fn open() -> io::Result<Self> {
        Ok(Self(rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?))
    }

    /// What is at `path`, as an O_PATH descriptor.
    pub fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(
            &self.0,
            path,
            flags | OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )?)
    }

    /// The directory at `path`, made if missing. A symbolic link in its place is refused, not followed: whoever puts one
    /// where a kernel file system belongs wants something else mounted upon.
    pub fn kernel_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let place = self.ensure(path, Missing::Directory)?;
        let named = self.resolve(path, OFlags::NOFOLLOW)?;
        match file_type(named.as_fd())? {
            FileType::Directory => Ok(place),
            _ => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        }
    }

    /// What is at `path`; where nothing is, an empty directory or file is made, with the directories above it. Dangling
    /// symbolic links are followed to where they point inside.
    pub fn ensure(&self, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
        self.ensure_from(self.0.try_clone()?, path, missing, SYMLINKS_MAX)
    }

    fn ensure_from(
        &self,
        start: OwnedFd,
        path: &Path,
        missing: Missing,
        links_left: u32,
    ) -> io::Result<OwnedFd> {
        let mut here = if path.is_absolute() {
            self.0.try_clone()?
        } else {
            start
        };
        let mut components = path.components().peekable();
        while let Some(component) = components.next() {
            let make = if components.peek().is_some() {
                Missing::Directory
            } else {
                missing
            };
            here = match component {
                Component::RootDir | Component::CurDir | Component::Prefix(_) => here,
                // `..` of the root is the root.
                Component::ParentDir => open_path(&here, Path::new(".."), OFlags::DIRECTORY)?,
                Component::Normal(name) => self.step(here, Path::new(name), make, links_left)?,
            };
        }
        Ok(here)
    }

    fn step(
        &self,
        here: OwnedFd,
        name: &Path,
        missing: Missing,
        links_left: u32,
    ) -> io::Result<OwnedFd> {
        match open_path(&here, name, OFlags::empty()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let made = match missing {
            Missing::Directory => rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o755)),
            Missing::File => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                rustix::fs::openat(&here, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        match made {
            Ok(()) => open_path(&here, name, OFlags::NOFOLLOW),
            // There is something after all: a symbolic link to nowhere.
            Err(rustix::io::Errno::EXIST) if links_left > 0 => {
                let target = rustix::fs::readlinkat(&here, name, Vec::new())?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                self.ensure_from(here, target, missing, links_left - 1)
            }
            Err(rustix::io::Errno::EXIST) => Err(rustix::io::Errno::LOOP.into()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// As the kernel's limit in `path_resolution(7)`.
const SYMLINKS_MAX: u32 = 40;

/// What `name` below `dir` is, without following a link out of it and without crossing into a magic link.
pub fn open_beneath(dir: impl AsFd, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(
        dir,
        name,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?)
}

pub fn file_type(fd: impl AsFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode))
}

/// The magic number of the file system that `fd` is on, `statfs(2)`.
pub fn filesystem_magic(fd: impl AsFd) -> io::Result<i64> {
    Ok(fstatfs(fd)?.f_type)
}

/// Symbolic links are followed, seen from this process's root directory.
fn open_path(dir: &OwnedFd, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    Ok(openat2(
        dir,
        name,
        flags,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )?)
}
