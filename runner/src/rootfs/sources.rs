//! What of a container's tree comes from the host, as mounts that are attached nowhere yet.
//!
//! Whoever may reach the paths makes them: init where the container's root has the caller's user ID, the monitor where it is
//! another one (the host's root and its containers), which hands them to init in the order of [`Sources::into_descriptors`]. The
//! root file system is then shown with the container's owners for its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::mount::MountAttrFlags;

use super::mounts::Detached;
use super::overlay::Changes;
use super::{Bind, RootfsError, Tree};
use crate::sys;

#[derive(Debug)]
pub struct Sources {
    pub rootfs: Detached,
    /// Holds the two directories of the overlay. `None` where they can be named instead.
    pub layer: Option<Detached>,
    pub files: Vec<Detached>,
    pub binds: Vec<Detached>,
}

impl Sources {
    /// Opens everything by its path, in a mount namespace that this process has the rights over.
    pub fn open(tree: &Tree) -> Result<Self, RootfsError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RootfsError::Bind { path, source }
        };
        let rootfs = Detached::copy_of_host(&tree.rootfs, true).map_err(failed(&tree.rootfs))?;
        Ok(Self {
            rootfs,
            layer: None,
            files: tree.files.iter().map(open_bind).collect::<Result<_, _>>()?,
            binds: tree.binds.iter().map(open_bind).collect::<Result<_, _>>()?,
        })
    }

    /// As [`Sources::open`], for an init that may not reach the paths and is root of `user_namespace`. The warning says what the
    /// container has to do without.
    pub fn open_for(
        tree: &Tree,
        user_namespace: BorrowedFd,
    ) -> Result<(Self, Option<String>), RootfsError> {
        let mut sources = Self::open(tree)?;
        let unmapped = sys::map_mount_ids(sources.rootfs.as_fd(), user_namespace).err();
        if let Changes::Overlay { upper, .. } = &tree.changes
            && let Some(layer) = upper.parent()
        {
            let opened = Detached::copy_of_host(layer, false);
            sources.layer = Some(opened.map_err(|source| RootfsError::Bind {
                path: layer.to_owned(),
                source,
            })?);
        }
        let warning = unmapped.map(|error| {
            format!(
                "the owners of files in {} cannot be mapped for the container ({error}): root's belong to nobody there",
                tree.rootfs.display()
            )
        });
        Ok((sources, warning))
    }

    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        std::iter::once(self.rootfs)
            .chain(self.layer)
            .chain(self.files)
            .chain(self.binds)
            .map(OwnedFd::from)
            .collect()
    }

    /// `None` when these are not the descriptors that [`Sources::into_descriptors`] gives for this tree.
    pub fn from_descriptors(tree: &Tree, descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut mounts = descriptors.into_iter().map(Detached::from);
        let rootfs = mounts.next()?;
        let layer = match tree.changes {
            Changes::Overlay { .. } => Some(mounts.next()?),
            Changes::InPlace => None,
        };
        let files: Vec<_> = mounts.by_ref().take(tree.files.len()).collect();
        let binds: Vec<_> = mounts.by_ref().take(tree.binds.len()).collect();
        let complete = (files.len(), binds.len()) == (tree.files.len(), tree.binds.len());
        (complete && mounts.next().is_none()).then_some(Self {
            rootfs,
            layer,
            files,
            binds,
        })
    }
}

fn open_bind(bind: &Bind) -> Result<Detached, RootfsError> {
    let open = || -> io::Result<Detached> {
        let mount = Detached::copy_of_host(&bind.source, true)?;
        if bind.read_only {
            mount.restrict(MountAttrFlags::MOUNT_ATTR_RDONLY, true)?;
        }
        Ok(mount)
    };
    open().map_err(|source| RootfsError::Bind {
        path: bind.source.clone(),
        source,
    })
}
