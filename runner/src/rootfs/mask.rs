//! What of `/proc` and `/sys` a container does not get to see, or not to write.
//!
//! Every path is opened below the root of a procfs or sysfs that this process has just mounted,
//! never by its name in the container's tree, where an image could have put something else
//! (CVE-2019-16884, CVE-2025-31133).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use rustix::mount::MountAttrFlags;
use serde::{Deserialize, Serialize};

use super::lookup::{file_type, open_beneath, open_in_root};
use super::mounts::{Detached, KERNEL_FS};
use crate::path_text;

/// Hidden: they tell about the host or reach its hardware. As Podman 6 has it.
const PROC_MASKED: [&str; 9] = [
    "acpi",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
    "interrupts",
];
const SYS_MASKED: [&str; 3] = ["devices/virtual/powercap", "firmware", "fs/selinux"];
/// Below each CPU: the counters are a side channel between containers.
const CPU_MASKED: &str = "thermal_throttle";

/// Readable, not writable. `sys` keeps the container from settings that its user namespace happens
/// to own.
const PROC_READ_ONLY: [&str; 6] = ["asound", "bus", "fs", "irq", "sys", "sysrq-trigger"];

#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct MaskError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Which of all these a container has, and which more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masks {
    pub uncovered: Uncovered,
    /// Hidden besides; anywhere in the container.
    #[serde(with = "path_text::list")]
    pub covered: Vec<PathBuf>,
    /// Whether /sys can be written to, as far as the kernel lets the container's root.
    pub writable_sys: bool,
}

/// What is left as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Uncovered {
    #[default]
    Nothing,
    /// These, and what is below them.
    Paths(#[serde(with = "path_text::list")] Vec<PathBuf>),
    Everything,
}

impl Uncovered {
    fn has(&self, path: &Path) -> bool {
        match self {
            Self::Nothing => false,
            Self::Paths(paths) => paths.iter().any(|above| path.starts_with(above)),
            Self::Everything => true,
        }
    }
}

impl Masks {
    /// Of a container that is to see everything.
    pub fn none() -> Self {
        Self {
            uncovered: Uncovered::Everything,
            covered: Vec::new(),
            writable_sys: true,
        }
    }

    /// Leaves more as it is.
    pub fn uncover(&mut self, more: &Uncovered) {
        self.uncovered = match (std::mem::take(&mut self.uncovered), more) {
            (Uncovered::Everything, _) | (_, Uncovered::Everything) => Uncovered::Everything,
            (before, Uncovered::Nothing) => before,
            (Uncovered::Nothing, Uncovered::Paths(paths)) => Uncovered::Paths(paths.clone()),
            (Uncovered::Paths(before), Uncovered::Paths(paths)) => {
                Uncovered::Paths([before, paths.clone()].concat())
            }
        };
    }

    /// How /sys and the control groups are mounted.
    pub(super) fn of_sys(&self) -> MountAttrFlags {
        match self.writable_sys {
            true => KERNEL_FS,
            false => KERNEL_FS | MountAttrFlags::MOUNT_ATTR_RDONLY,
        }
    }

    /// Hides and write-protects paths of the attached `proc`, `sys` and `dev`, whose roots are
    /// given. `sys` is read-only as a whole.
    pub(super) fn apply(
        &self,
        proc: BorrowedFd,
        sys: BorrowedFd,
        dev: BorrowedFd,
    ) -> Result<(), MaskError> {
        let (in_proc, in_sys) = (Path::new("/proc"), Path::new("/sys"));
        for path in PROC_READ_ONLY.map(Path::new) {
            if !self.uncovered.has(&in_proc.join(path)) {
                make_read_only(proc, path).map_err(error("write-protect", in_proc, path))?;
            }
        }
        for path in PROC_MASKED.map(Path::new) {
            if !self.uncovered.has(&in_proc.join(path)) {
                hide(proc, path, dev).map_err(error("hide", in_proc, path))?;
            }
        }
        let counters = cpu_counters(sys);
        let all = SYS_MASKED.map(PathBuf::from).into_iter().chain(counters);
        for path in all {
            if !self.uncovered.has(&in_sys.join(&path)) {
                hide(sys, &path, dev).map_err(error("hide", in_sys, &path))?;
            }
        }
        Ok(())
    }

    /// Hides what is to be hidden besides, once everything has been mounted. Of the kernel's file
    /// systems these are the names below their roots; of the rest, wherever the image leads to.
    pub(super) fn cover(&self, root: impl AsFd, dev: BorrowedFd) -> Result<(), MaskError> {
        for path in &self.covered {
            let hidden = match open_in_root(&root, path, OFlags::PATH) {
                Ok(place) => cover(place, dev),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            };
            hidden.map_err(error("hide", Path::new("/"), path))?;
        }
        Ok(())
    }
}

fn error(action: &'static str, base: &Path, path: &Path) -> impl FnOnce(io::Error) -> MaskError {
    let path = base.join(path);
    move |source| MaskError {
        action,
        path,
        source,
    }
}

/// Covers a file with the null device and a directory with an empty read-only one. What does not
/// exist needs no cover.
fn hide(filesystem: BorrowedFd, path: &Path, dev: BorrowedFd) -> io::Result<()> {
    match find(filesystem, path)? {
        Some(place) => cover(place, dev),
        None => Ok(()),
    }
}

fn cover(place: OwnedFd, dev: BorrowedFd) -> io::Result<()> {
    let cover = match file_type(&place)? {
        FileType::Directory => {
            let read_only = KERNEL_FS | MountAttrFlags::MOUNT_ATTR_RDONLY;
            Detached::filesystem("tmpfs", &[("mode", "755"), ("nr_inodes", "1")], read_only)?
        }
        _ => Detached::copy_of(dev, Path::new("null"), false)?,
    };
    cover.attach(place)?;
    Ok(())
}

fn make_read_only(filesystem: BorrowedFd, path: &Path) -> io::Result<()> {
    let Some(place) = find(filesystem, path)? else {
        return Ok(());
    };
    let same = Detached::copy_of(&place, Path::new(""), true)?;
    same.restrict(MountAttrFlags::MOUNT_ATTR_RDONLY, true)?;
    same.attach(place)?;
    Ok(())
}

/// What even this process, root of the container with every capability, may not reach needs no
/// cover either.
fn find(filesystem: BorrowedFd, path: &Path) -> io::Result<Option<OwnedFd>> {
    match open_beneath(filesystem, path, OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(place) => Ok(Some(place)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// `devices/system/cpu/cpuN/thermal_throttle` of each CPU.
fn cpu_counters(sys: BorrowedFd) -> impl Iterator<Item = PathBuf> {
    let exists = move |path: &PathBuf| matches!(find(sys, path), Ok(Some(_)));
    let cpus = (0..)
        .map(|cpu: u32| PathBuf::from(format!("devices/system/cpu/cpu{cpu}")))
        .take_while(exists);
    cpus.map(|cpu| cpu.join(CPU_MASKED)).filter(exists)
}
