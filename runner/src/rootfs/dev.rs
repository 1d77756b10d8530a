//! The container's `/dev`: a small tmpfs with the six harmless devices, `pts`, `shm`, `mqueue` and
//! the customary links.
//!
//! A user namespace cannot make device nodes, so the host's are bound. Each is checked by
//! descriptor to be the device that its name says before the container can see it (CVE-2025-31133
//! masked files with what only looked like `/dev/null`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstat};
use rustix::mount::MountAttrFlags;

use super::lookup::open_beneath;
use super::mounts::{Detached, KERNEL_FS};

/// Bound from the host: name and device number, `Documentation/admin-guide/devices.txt`.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// The group `tty` of every distribution, which owns terminals.
const TTY_GID: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("cannot make /dev/{name}: {source}")]
    Make {
        name: &'static str,
        source: io::Error,
    },
    #[error("cannot bind the host's /dev/{name}: {source}")]
    Bind {
        name: &'static str,
        source: io::Error,
    },
    #[error("the host's /dev/{name} is not the device {major}:{minor}")]
    Impostor {
        name: &'static str,
        major: u32,
        minor: u32,
    },
}

/// Everything of `/dev`, attached nowhere.
#[derive(Debug)]
pub struct Dev {
    tmpfs: Detached,
    devices: Vec<(&'static str, Detached)>,
    filesystems: Vec<(&'static str, Detached)>,
}

impl Dev {
    /// Makes the parts while the host's devices are in sight. `maps_gid` tells whether the
    /// container has a group; `shm_len` is what `shm` may hold, in bytes.
    pub fn collect(maps_gid: impl Fn(u32) -> bool, shm_len: u64) -> Result<Self, DevError> {
        let make = |name| move |source| DevError::Make { name, source };
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let tmpfs = Detached::filesystem("tmpfs", &[("mode", "755"), ("size", "64m")], flags)
            .map_err(make(""))?;
        let mut devices = Vec::new();
        for (name, major, minor) in DEVICES {
            make_file(&tmpfs, name).map_err(make(name))?;
            devices.push((name, bind_device(name, major, minor)?));
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(target, &tmpfs, name)
                .map_err(|errno| make(name)(errno.into()))?;
        }

        let group = TTY_GID.to_string();
        let mut pts_options = vec![("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620")];
        if maps_gid(TTY_GID) {
            pts_options.push(("gid", &group));
        }
        let shm_len = shm_len.to_string();
        let pts_flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let filesystems = [
            ("pts", "devpts", &*pts_options, pts_flags),
            (
                "shm",
                "tmpfs",
                &[("mode", "1777"), ("size", &*shm_len)],
                KERNEL_FS,
            ),
            ("mqueue", "mqueue", &[], KERNEL_FS),
        ];
        let mut made = Vec::new();
        for (name, kind, options, flags) in filesystems {
            rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755))
                .map_err(|errno| make(name)(errno.into()))?;
            made.push((
                name,
                Detached::filesystem(kind, options, flags).map_err(make(name))?,
            ));
        }
        Ok(Self {
            tmpfs,
            devices,
            filesystems: made,
        })
    }

    /// Puts `/dev` over `place` and returns its root.
    pub fn attach(self, place: impl AsFd) -> Result<OwnedFd, DevError> {
        let make = |name| move |source| DevError::Make { name, source };
        let dev = self.tmpfs.attach(place).map_err(make(""))?;
        for (name, mount) in self.devices.into_iter().chain(self.filesystems) {
            let place = open_beneath(&dev, Path::new(name), OFlags::PATH | OFlags::NOFOLLOW)
                .map_err(make(name))?;
            mount.attach(place).map_err(make(name))?;
        }
        Ok(dev)
    }
}

/// Makes the place for the console, to be bound to a terminal later.
pub fn make_console(dev: &OwnedFd) -> io::Result<OwnedFd> {
    make_file(dev, "console")?;
    open_beneath(dev, Path::new("console"), OFlags::PATH | OFlags::NOFOLLOW)
}

fn make_file(dir: impl AsFd, name: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644))?;
    Ok(())
}

fn bind_device(name: &'static str, major: u32, minor: u32) -> Result<Detached, DevError> {
    let bind = |source: io::Error| DevError::Bind { name, source };
    let mount = Detached::copy_of_host(&Path::new("/dev").join(name), false).map_err(bind)?;
    let stat = fstat(&mount).map_err(|errno| bind(errno.into()))?;
    if stat.st_rdev != rustix::fs::makedev(major, minor)
        || stat.st_mode & libc::S_IFMT != libc::S_IFCHR
    {
        return Err(DevError::Impostor { name, major, minor });
    }
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount.restrict(flags, false).map_err(bind)?;
    Ok(mount)
}
