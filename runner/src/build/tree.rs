//! The tree of a working container, mounted.
//!
//! It lies over the layers of its image; one that began with nothing is its own directory. It is
//! mounted at one place only, since two overlays must not share a directory for their changes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, statx};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::BuildError;
use super::store::{Working, WorkingDir, WorkingStore};
use crate::images::store::ImageStore;
use crate::rootfs::mounts::Detached;
use crate::rootfs::overlay::{self, Overlay, RootSource};
use crate::sys::{self, NewNamespaces};

/// A tree that is mounted, and that nobody else uses meanwhile. Dropped, it is unmounted if it was
/// mounted for this only.
#[derive(Debug)]
pub struct Mounted {
    dir: WorkingDir,
    stays: bool,
    _lock: File,
}

impl Mounted {
    pub fn path(&self) -> PathBuf {
        self.dir.merged()
    }

    /// The root of the tree.
    pub fn open(&self) -> Result<OwnedFd, BuildError> {
        open_directory(&self.path())
    }

    /// Leaves it mounted for good.
    pub fn stay(mut self) -> PathBuf {
        self.stays = true;
        self.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.stays {
            // What cannot be unmounted now goes with the namespace.
            let _ = unmount(&self.dir);
        }
    }
}

/// Mounts the tree of a container, unless it is mounted.
pub fn mount(
    store: &WorkingStore,
    images: &ImageStore,
    container: &Working,
    warn: &mut dyn FnMut(&str),
) -> Result<Mounted, BuildError> {
    let dir = store.dir(container);
    let mut mounted = Mounted {
        stays: true,
        _lock: dir.lock()?,
        dir,
    };
    if is_mounted(&mounted.dir)? {
        return Ok(mounted);
    }
    let (upper, merged) = (mounted.dir.upper(), mounted.dir.merged());
    let lowers = match &container.image_id {
        None => Vec::new(),
        Some(id) => {
            let _shared = images.share_content()?;
            let (image, _) = images.find(&id.to_string())?;
            images.provide_layers(&image, warn)?
        }
    };
    let make = || -> Result<Detached, BuildError> {
        if lowers.is_empty() {
            return Detached::copy_of_host(&upper, false).map_err(BuildError::io("open", &upper));
        }
        overlay_over(lowers, &mounted.dir)
    };
    apart(make)?
        .attach(open_directory(&merged)?)
        .map_err(BuildError::io("mount the container at", &merged))?;
    mounted.stays = false;
    Ok(mounted)
}

/// Mounts an overlay over a directory at the place of a container that began with nothing, whose
/// changes the container has.
pub fn mount_over(
    store: &WorkingStore,
    container: &Working,
    lower: &Path,
) -> Result<Mounted, BuildError> {
    let dir = store.dir(container);
    attach(&dir, || overlay_over(vec![lower.to_owned()], &dir))
}

/// Mounts an empty file system in memory at the place of a container, of at most so many bytes.
pub fn mount_memory(
    store: &WorkingStore,
    container: &Working,
    size: Option<u64>,
) -> Result<Mounted, BuildError> {
    let dir = store.dir(container);
    let size = size.map(|size| size.to_string());
    let mut options = vec![("mode", "1777")];
    options.extend(size.as_deref().map(|size| ("size", size)));
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    attach(&dir, || {
        Detached::filesystem("tmpfs", &options, attributes).map_err(BuildError::io(
            "mount a file system in memory at",
            &dir.merged(),
        ))
    })
}

/// Mounts what `make` makes at the place of a container.
fn attach(
    dir: &WorkingDir,
    make: impl FnOnce() -> Result<Detached, BuildError>,
) -> Result<Mounted, BuildError> {
    let merged = dir.merged();
    let lock = dir.lock()?;
    apart(make)?
        .attach(open_directory(&merged)?)
        .map_err(BuildError::io("mount the container at", &merged))?;
    Ok(Mounted {
        dir: dir.clone(),
        stays: false,
        _lock: lock,
    })
}

/// Unmounts the tree of a container, if it is mounted here.
pub fn unmount(dir: &WorkingDir) -> Result<bool, BuildError> {
    if !is_mounted(dir)? {
        return Ok(false);
    }
    let merged = dir.merged();
    rustix::mount::unmount(&merged, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(BuildError::io("unmount", &merged))?;
    Ok(true)
}

/// Whether the tree of a container is mounted in this mount namespace.
pub fn is_mounted(dir: &WorkingDir) -> Result<bool, BuildError> {
    let merged = dir.merged();
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = match statx(CWD, &merged, flags, StatxFlags::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        found => found.map_err(BuildError::io("examine", &merged))?,
    };
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// `lowers` are the lowest first.
fn overlay_over(mut lowers: Vec<PathBuf>, dir: &WorkingDir) -> Result<Detached, BuildError> {
    lowers.reverse();
    let open =
        |path: &PathBuf| Detached::copy_of_host(path, false).map_err(BuildError::io("open", path));
    let dirs = lowers.iter().map(open).collect::<Result<_, _>>()?;
    let source = RootSource::Overlay(Overlay {
        lowers,
        upper: dir.upper(),
        work: dir.work(),
        // What is committed is read back from there.
        volatile: false,
    });
    Ok(overlay::mount(&source, dirs, None)?)
}

/// Makes a mount in a mount namespace of its own, and returns to this one: an overlay is made of
/// mounts upon the root directory, where others would meet them.
fn apart(make: impl FnOnce() -> Result<Detached, BuildError>) -> Result<Detached, BuildError> {
    let failed = |source: io::Error| BuildError::Io {
        action: "make mounts beside those of",
        path: "/".into(),
        source,
    };
    let prepare = || -> io::Result<(File, PathBuf)> {
        let here = (File::open("/proc/self/ns/mnt")?, std::env::current_dir()?);
        sys::unshare(NewNamespaces::MOUNT)?;
        Ok(here)
    };
    let (namespace, working_dir) = prepare().map_err(failed)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    let made = mount_change("/", private)
        .map_err(|errno| failed(errno.into()))
        .and_then(|()| make());
    let back = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount));
    back.map_err(|errno| failed(errno.into()))?;
    std::env::set_current_dir(working_dir).map_err(failed)?;
    made
}

pub fn open_directory(path: &Path) -> Result<OwnedFd, BuildError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(BuildError::io("open", path))
}
