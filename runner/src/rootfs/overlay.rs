//! The container's root file system: an overlay over the given directory, or the directory itself.
//!
//! The overlay is a native one inside the user namespace (`userxattr`, Linux 5.11). Directories are
//! handed to the kernel as open descriptors: names with `:` or `\` need no escapes, and the
//! container's mount table does not tell the host's paths.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use super::lookup::{OVERLAYFS_SUPER_MAGIC, filesystem_magic, open_beneath};
use super::mounts::Detached;
use crate::path_text;

/// Where changes to the root file system go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Changes {
    /// Into an overlay whose two directories are these, beside each other. `volatile`: they do not
    /// outlive the container, so that nothing need reach the disk before it ends.
    Overlay {
        #[serde(with = "path_text")]
        upper: PathBuf,
        #[serde(with = "path_text")]
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
    #[error("cannot unmount the layers of the overlay: {source}")]
    Clear { source: io::Error },
    #[error("cannot mount an overlay over {} with its changes in {}: {source}{hint}", lower.display(), upper.display())]
    Mount {
        lower: PathBuf,
        upper: PathBuf,
        source: io::Error,
        hint: String,
    },
}

/// The container's root, attached nowhere. `lower` is the mount of `rootfs`; `layer` the one that
/// holds the overlay's own directories, where their paths are out of reach.
pub fn mount(
    rootfs: &Path,
    changes: &Changes,
    lower: Detached,
    layer: Option<Detached>,
) -> Result<Detached, OverlayError> {
    let Changes::Overlay {
        upper,
        work,
        volatile,
    } = changes
    else {
        return Ok(lower);
    };
    // The kernel takes layers from mounts of this namespace only.
    let mut stack = Stack::default();
    let lower_dir = stack.push(lower, rootfs)?;
    let (upper_dir, work_dir) = match layer {
        Some(layer) => {
            let layer = stack.push(layer, upper)?;
            (open_in(&layer, upper)?, open_in(&layer, work)?)
        }
        None => (open_dir(upper)?, open_dir(work)?),
    };
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let (lower_name, upper_name, work_name) = (name(&lower_dir), name(&upper_dir), name(&work_dir));
    let mut options = vec![
        ("lowerdir", &*lower_name),
        ("upperdir", &*upper_name),
        ("workdir", &*work_name),
        ("userxattr", ""),
    ];
    if *volatile {
        options.push(("volatile", ""));
    }
    let overlay = Detached::filesystem("overlay", &options, MountAttrFlags::empty());
    let overlay = overlay.map_err(|source| OverlayError::Mount {
        lower: rootfs.into(),
        upper: upper.clone(),
        hint: hint(rootfs, &upper_dir),
        source,
    })?;
    stack.clear()?;
    Ok(overlay)
}

/// Mounts stacked upon this process's root directory, where no path leads to them.
#[derive(Debug, Default)]
struct Stack {
    height: u32,
}

impl Stack {
    fn push(&mut self, mount: Detached, named: &Path) -> Result<OwnedFd, OverlayError> {
        let attach = || -> io::Result<OwnedFd> { mount.attach(super::open_root()?) };
        let root = attach().map_err(|source| OverlayError::Open {
            path: named.into(),
            source,
        })?;
        self.height += 1;
        Ok(root)
    }

    /// The overlay has got mounts of its own: these must not be in the way of the old root's end.
    fn clear(self) -> Result<(), OverlayError> {
        for _ in 0..self.height {
            // Means what is on top.
            unmount("/", UnmountFlags::DETACH).map_err(|errno| OverlayError::Clear {
                source: errno.into(),
            })?;
        }
        Ok(())
    }
}

/// What most likely forbids the overlay, and the ways out.
fn hint(rootfs: &Path, upper_dir: &OwnedFd) -> String {
    /// `linux/magic.h`.
    const NETWORKED: [(i64, &str); 5] = [
        (0x6969, "NFS"),
        (0x0102_1997, "9p"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB"),
        (0x6573_5546, "FUSE"),
    ];
    if rootfs == Path::new("/") {
        return "; the host's own root has other file systems mounted in it, which an overlay cannot lie over: copy it, or use \
                a directory"
            .to_owned();
    }
    let below = mounts_below(rootfs);
    if !below.is_empty() {
        return format!(
            "; an overlay cannot lie over what is mounted at {}: unmount it, or give it to the container by -v",
            below.join(" and ")
        );
    }
    let in_place = format!(
        "--rootfs {}:rw does without an overlay, and changes the directory",
        rootfs.display()
    );
    let magic = filesystem_magic(upper_dir).unwrap_or_default();
    let kind = NETWORKED
        .iter()
        .find(|(known, _)| *known == magic)
        .map(|(_, name)| *name)
        .or((magic == OVERLAYFS_SUPER_MAGIC).then_some("an overlay itself"));
    match kind {
        Some(kind) => format!(
            "; the data directory is on a file system that cannot hold the changes of one ({kind}): set XDG_DATA_HOME to a \
             directory on ext4, xfs, btrfs or tmpfs, or use :rw ({in_place})"
        ),
        None => format!("; {in_place}"),
    }
}

/// Where in a tree something is mounted, `proc_pid_mountinfo(5)`.
fn mounts_below(rootfs: &Path) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| *point != "/" && Path::new(point).starts_with(rootfs))
        .filter(|point| Path::new(point) != rootfs)
        .map(str::to_owned)
        .collect()
}

fn open_in(layer: &OwnedFd, path: &Path) -> Result<OwnedFd, OverlayError> {
    let name = Path::new(path.file_name().unwrap_or_default());
    open_beneath(layer.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY).map_err(|source| {
        OverlayError::Open {
            path: path.into(),
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
