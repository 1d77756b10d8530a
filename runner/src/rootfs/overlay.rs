//! The container's root file system: an overlay over the given directory, or the directory itself.
//!
//! The overlay is a native one inside the user namespace (`userxattr`, Linux 5.11). Directories are handed to the kernel as open
//! descriptors: names with `:` or `\` need no escapes, and the container's mount table does not tell the host's paths.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;
use serde::{Deserialize, Serialize};

use super::mounts::Detached;

/// Where changes to the root file system go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Changes {
    /// Into an overlay whose two directories are these. `volatile`: they do not outlive the container, so that nothing need reach
    /// the disk before it ends.
    Overlay {
        upper: PathBuf,
        work: PathBuf,
        volatile: bool,
    },
    /// Into the directory itself.
    InPlace,
}

#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "cannot mount an overlay over {} with its changes in {}: {source}; \
         --rootfs {}:rw does without, and changes the directory", lower.display(), upper.display(), lower.display()
    )]
    Mount {
        lower: PathBuf,
        upper: PathBuf,
        source: io::Error,
    },
    #[error("cannot bind {}: {source}", path.display())]
    Bind { path: PathBuf, source: io::Error },
}

/// The container's root, attached nowhere.
pub fn mount(rootfs: &Path, changes: &Changes) -> Result<Detached, OverlayError> {
    let (upper, work, volatile) = match changes {
        Changes::InPlace => {
            let bind = |source| OverlayError::Bind {
                path: rootfs.into(),
                source,
            };
            return Detached::copy_of_host(rootfs, true).map_err(bind);
        }
        Changes::Overlay {
            upper,
            work,
            volatile,
        } => (upper, work, *volatile),
    };
    let (lower_dir, upper_dir, work_dir) = (open_dir(rootfs)?, open_dir(upper)?, open_dir(work)?);
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let (lower_name, upper_name, work_name) = (name(&lower_dir), name(&upper_dir), name(&work_dir));
    let mut options = vec![
        ("lowerdir", &*lower_name),
        ("upperdir", &*upper_name),
        ("workdir", &*work_name),
        ("userxattr", ""),
    ];
    if volatile {
        options.push(("volatile", ""));
    }
    Detached::filesystem("overlay", &options, MountAttrFlags::empty()).map_err(|source| {
        OverlayError::Mount {
            lower: rootfs.into(),
            upper: upper.clone(),
            source,
        }
    })
}

fn open_dir(path: &Path) -> Result<OwnedFd, OverlayError> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| OverlayError::Open {
        path: path.into(),
        source: errno.into(),
    })
}
