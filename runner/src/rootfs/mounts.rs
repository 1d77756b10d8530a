//! Mounts as values.
//!
//! A [`Detached`] mount is made while the host's tree is in sight and attached after the
//! container's root has become `/`, so that no path of the container is ever resolved where it
//! could lead to the host (the class of CVE-2021-30465 and CVE-2024-45310). Flags are added to a
//! mount, so that those locked by an outer namespace stay as they are and need no care; they are
//! taken away only where the caller asked for just that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    move_mount, open_tree,
};

use super::Propagation;
use super::lookup::file_type;
use crate::sys::{self, MountChange};

/// nosuid, nodev and noexec: what a file system of the kernel's own needs none of.
pub const KERNEL_FS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// A mount, or a tree of them, that is attached nowhere. Dropped without being attached, it is
/// gone.
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

    /// A bind mount of `path`, with the mounts below it where `recursive`. Symbolic links are
    /// followed.
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

    /// Takes attributes away, and from the mounts below where `recursive`.
    ///
    /// # Errors
    /// EPERM for an attribute that the owner of an outer mount namespace has set.
    pub fn allow(&self, attributes: MountAttrFlags, recursive: bool) -> io::Result<()> {
        let change = MountChange {
            clear: attributes.bits().into(),
            ..MountChange::default()
        };
        sys::change_mount(self.0.as_fd(), change, recursive)
    }

    /// Sets how later mounts reach this one, and the mounts below where `recursive`.
    ///
    /// A slave of nobody is private: only what is made from a mount that takes part in propagation
    /// can follow it.
    pub fn propagate(&self, propagation: Propagation, recursive: bool) -> io::Result<()> {
        let propagation = match propagation {
            Propagation::Private => MountPropagationFlags::PRIVATE,
            Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
            Propagation::Shared => MountPropagationFlags::SHARED,
        };
        let change = MountChange {
            propagation: propagation.bits().into(),
            ..MountChange::default()
        };
        sys::change_mount(self.0.as_fd(), change, recursive)
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

impl From<OwnedFd> for Detached {
    /// A mount that another process has detached.
    fn from(mount: OwnedFd) -> Self {
        Self(mount)
    }
}

impl From<Detached> for OwnedFd {
    fn from(mount: Detached) -> Self {
        mount.0
    }
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
