//! What of `/proc` and `/sys` a container does not get to see, or not to write.
//!
//! Every path is opened below the root of a procfs or sysfs that this process has just mounted,
//! never by its name in the container's tree, where an image could have put something else
//! (CVE-2019-16884, CVE-2025-31133).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use rustix::mount::MountAttrFlags;

use super::lookup::{file_type, open_beneath};
use super::mounts::{Detached, KERNEL_FS};

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

/// Hides and write-protects paths of the attached `proc`, `sys` and `dev`, whose roots are given.
/// `sys` is read-only as a whole.
pub fn apply(proc: BorrowedFd, sys: BorrowedFd, dev: BorrowedFd) -> Result<(), MaskError> {
    for path in PROC_READ_ONLY {
        make_read_only(proc, Path::new(path)).map_err(error("write-protect", "/proc", path))?;
    }
    for path in PROC_MASKED {
        hide(proc, Path::new(path), dev).map_err(error("hide", "/proc", path))?;
    }
    for path in SYS_MASKED {
        hide(sys, Path::new(path), dev).map_err(error("hide", "/sys", path))?;
    }
    for path in cpu_counters(sys) {
        hide(sys, &path, dev).map_err(error("hide", "/sys", &path))?;
    }
    Ok(())
}

fn error(
    action: &'static str,
    base: &str,
    path: impl AsRef<Path>,
) -> impl FnOnce(io::Error) -> MaskError {
    let path = Path::new(base).join(path);
    move |source| MaskError {
        action,
        path,
        source,
    }
}

/// Covers a file with the null device and a directory with an empty read-only one. What does not
/// exist needs no cover.
fn hide(filesystem: BorrowedFd, path: &Path, dev: BorrowedFd) -> io::Result<()> {
    let Some(place) = find(filesystem, path)? else {
        return Ok(());
    };
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
