//! The container's file system tree: from the host's view of the world to the container's.
//!
//! Runs in the container's init, in mount, PID, network, IPC and cgroup namespaces of its own. [`enter`] first collects all that comes
//! from the host or needs its view as detached mounts, then makes the container's root file system this process's root, and only
//! then looks up places to attach them to. From that moment no path can lead outside, whatever the image holds.

mod dev;
pub mod lookup;
mod mask;
pub mod mounts;
pub mod overlay;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount};
use serde::{Deserialize, Serialize};

use crate::idmap::Extent;
use dev::Dev;
use lookup::{Missing, PROC_SUPER_MAGIC, Root, SYSFS_MAGIC, filesystem_magic};
use mounts::{Detached, KERNEL_FS};
use overlay::Changes;

#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("cannot keep mounts from spreading: {source}")]
    Propagation { source: io::Error },
    #[error(transparent)]
    Overlay(#[from] overlay::OverlayError),
    #[error(transparent)]
    Dev(#[from] dev::DevError),
    #[error(transparent)]
    Mask(#[from] mask::MaskError),
    #[error("cannot mount {kind}: {source}{hint}")]
    Filesystem {
        kind: &'static str,
        source: io::Error,
        hint: &'static str,
    },
    #[error("cannot bind {}: {source}", path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("cannot change the root directory: {source}")]
    Pivot { source: io::Error },
    #[error("cannot use {} of the container as a mount point: {source}", path.display())]
    MountPoint { path: PathBuf, source: io::Error },
    #[error("{} of the container leads into /proc or /sys, where nothing may be mounted", path.display())]
    Forbidden { path: PathBuf },
    #[error("cannot set {name} in the container: {source}")]
    Sysctl {
        name: &'static str,
        source: io::Error,
    },
}

/// What the tree is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tree {
    pub rootfs: PathBuf,
    pub changes: Changes,
    /// An existing directory of the host's that serves as mount point for a moment, in this mount namespace only.
    pub staging: PathBuf,
    /// `-v` mounts, in order.
    pub binds: Vec<Bind>,
    /// Files that coracle provides. Where the image leaves no place for one, the container runs without.
    pub files: Vec<Bind>,
}

/// A file or directory of the host's that the container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
}

/// The container's tree, entered.
#[derive(Debug)]
pub struct Entered {
    pub root: Root,
    pub dev: OwnedFd,
    pub warnings: Vec<String>,
}

/// Makes the container's tree this process's root and working directory.
pub fn enter(tree: &Tree, gids: &[Extent]) -> Result<Entered, RootfsError> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(|errno| RootfsError::Propagation {
        source: errno.into(),
    })?;
    let parts = Parts::collect(tree, gids)?;
    let root = overlay::mount(&tree.rootfs, &tree.changes)?;
    let root = pivot(root, &tree.staging).map_err(|source| RootfsError::Pivot { source })?;
    parts.attach(root, tree)
}

/// What is made while the host's tree is in sight.
struct Parts {
    proc: Detached,
    sys: Detached,
    cgroup: Option<Detached>,
    dev: Dev,
    files: Vec<Detached>,
    binds: Vec<Detached>,
}

impl Parts {
    fn collect(tree: &Tree, gids: &[Extent]) -> Result<Parts, RootfsError> {
        let bind = |bind: &Bind| -> Result<Detached, RootfsError> {
            let failed = |source| RootfsError::Bind {
                path: bind.source.clone(),
                source,
            };
            let mount = Detached::copy_of_host(&bind.source, true).map_err(failed)?;
            if bind.read_only {
                mount
                    .restrict(MountAttrFlags::MOUNT_ATTR_RDONLY, true)
                    .map_err(failed)?;
            }
            Ok(mount)
        };
        let proc = Detached::filesystem("proc", &[], KERNEL_FS).map_err(|source| RootfsError::Filesystem {
            kind: "proc",
            hint: match source.raw_os_error() {
                Some(libc::EPERM) => "; an outer container covers parts of its /proc, run that one with them uncovered",
                _ => "",
            },
            source,
        })?;
        set_sysctls(&proc, gids)?;
        Ok(Parts {
            proc,
            sys: collect_sys()?,
            cgroup: Detached::filesystem(
                "cgroup2",
                &[],
                KERNEL_FS | MountAttrFlags::MOUNT_ATTR_RDONLY,
            )
            .ok(),
            dev: Dev::collect(|gid| crate::idmap::is_mapped(gids, gid))?,
            files: tree.files.iter().map(bind).collect::<Result<_, _>>()?,
            binds: tree.binds.iter().map(bind).collect::<Result<_, _>>()?,
        })
    }

    fn attach(self, root: Root, tree: &Tree) -> Result<Entered, RootfsError> {
        let mut warnings = Vec::new();
        let kernel_place = |path: &'static str| {
            root.kernel_directory(Path::new(path))
                .map_err(|source| RootfsError::MountPoint {
                    path: path.into(),
                    source,
                })
        };
        let at = |path: &'static str| {
            move |source| RootfsError::MountPoint {
                path: path.into(),
                source,
            }
        };
        let proc = self
            .proc
            .attach(kernel_place("/proc")?)
            .map_err(at("/proc"))?;
        let sys = self.sys.attach(kernel_place("/sys")?).map_err(at("/sys"))?;
        // A host whose cgroups cannot be mounted, or have no place in sysfs, runs containers all the same.
        let cgroup_place = lookup::open_beneath(
            &sys,
            Path::new("fs/cgroup"),
            OFlags::PATH | OFlags::DIRECTORY,
        );
        if let (Some(cgroup), Ok(place)) = (self.cgroup, cgroup_place) {
            cgroup.attach(place).map_err(at("/sys/fs/cgroup"))?;
        }
        let dev = self.dev.attach(kernel_place("/dev")?)?;

        for (mount, file) in self.files.into_iter().zip(&tree.files) {
            if let Err(error) = attach_bind(&root, mount, file) {
                warnings.push(format!(
                    "the container goes without {}: {error}",
                    file.target.display()
                ));
            }
        }
        for (mount, bind) in self.binds.into_iter().zip(&tree.binds) {
            attach_bind(&root, mount, bind)?;
        }
        mask::apply(proc.as_fd(), sys.as_fd(), dev.as_fd())?;
        Ok(Entered {
            root,
            dev,
            warnings,
        })
    }
}

/// Makes the terminal `slave` the container's /dev/console. Bound from its descriptor, not its name (CVE-2025-52565).
pub fn attach_console(dev: &OwnedFd, slave: &OwnedFd) -> io::Result<()> {
    let place = dev::make_console(dev)?;
    Detached::copy_of(slave, Path::new(""), false)?.attach(place)?;
    Ok(())
}

fn attach_bind(root: &Root, mount: Detached, bind: &Bind) -> Result<(), RootfsError> {
    let failed = |source| RootfsError::MountPoint {
        path: bind.target.clone(),
        source,
    };
    let missing = if mount.is_directory().map_err(failed)? {
        Missing::Directory
    } else {
        Missing::File
    };
    let place = root.ensure(&bind.target, missing).map_err(failed)?;
    // By where the path leads, not by what it is called: the image may hold a link to /proc.
    if matches!(
        filesystem_magic(&place).map_err(failed)?,
        PROC_SUPER_MAGIC | SYSFS_MAGIC
    ) {
        return Err(RootfsError::Forbidden {
            path: bind.target.clone(),
        });
    }
    mount.attach(place).map_err(failed)?;
    Ok(())
}

/// A sysfs of the container's network namespace; where an outer container forbids a new one, the outer one's own view.
fn collect_sys() -> Result<Detached, RootfsError> {
    let failed = |source| RootfsError::Filesystem {
        kind: "sysfs",
        source,
        hint: "",
    };
    let read_only = KERNEL_FS | MountAttrFlags::MOUNT_ATTR_RDONLY;
    match Detached::filesystem("sysfs", &[], read_only) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let outer = Detached::copy_of_host(Path::new("/sys"), true).map_err(failed)?;
            outer.restrict(read_only, true).map_err(failed)?;
            Ok(outer)
        }
        other => other.map_err(failed),
    }
}

/// Lets everyone in the container ping and bind every port: both are its own network's business. Written through the procfs just
/// mounted, which no image can have replaced.
fn set_sysctls(proc: &Detached, gids: &[Extent]) -> Result<(), RootfsError> {
    /// `net/ipv4/sysctl_net_ipv4.c`: the range ends at half the group IDs.
    const PING_GID_MAX: u32 = u32::MAX / 2;
    let last = crate::idmap::last_contiguous(gids).min(PING_GID_MAX);
    let settings = [
        ("ping_group_range", format!("0 {last}")),
        ("ip_unprivileged_port_start", "0".to_owned()),
    ];
    for (name, value) in settings {
        let failed = |source| RootfsError::Sysctl { name, source };
        let path = Path::new("sys/net/ipv4").join(name);
        let file = lookup::open_beneath(proc, &path, OFlags::WRONLY).map_err(failed)?;
        rustix::io::write(&file, value.as_bytes()).map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

/// Makes `new_root` the root of the mount namespace, and lets go of the old one with all that is below it.
fn pivot(new_root: Detached, staging: &Path) -> io::Result<Root> {
    let place = rustix::fs::open(
        staging,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let new_root = new_root.attach(place)?;
    rustix::process::fchdir(&new_root)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root is stacked upon the new one, where `.` then finds it.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Root::open()
}
