//! Secrets as files in memory, which end with the container's processes.
//!
//! Those below /run/secrets are a file system there; others are mounted at their places one by one,
//! from another one that no path leads to.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};

use super::mounts::{Detached, KERNEL_FS};
use super::places::Places;
use super::{RootfsError, open_root};
use crate::secrets::Content;

/// One file, whose owner is as the container numbers users.
#[derive(Debug)]
pub struct SecretFile {
    pub target: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub content: Content,
}

const DIR: &str = "/run/secrets";

/// Mounts that are attached nowhere, with their places.
pub struct SecretMounts(Vec<(PathBuf, Detached)>);

impl SecretMounts {
    /// While this process's root directory is not the container's yet.
    pub fn make(files: &[SecretFile]) -> Result<Self, RootfsError> {
        let mut mounts = Vec::new();
        let is_below = |file: &&SecretFile| file.target.starts_with(DIR);
        let (below, elsewhere): (Vec<_>, Vec<_>) = files.iter().partition(is_below);
        if !below.is_empty() {
            let memory = memory().map_err(failed(Path::new(DIR)))?;
            for file in below {
                let name = file.target.strip_prefix(DIR).expect("checked just now");
                write(memory.as_fd(), name, file).map_err(failed(&file.target))?;
            }
            memory
                .restrict(READ_ONLY, false)
                .map_err(failed(Path::new(DIR)))?;
            mounts.push((DIR.into(), memory));
        }
        if !elsewhere.is_empty() {
            // A file of it can be mounted elsewhere while it is itself.
            let dir = memory().and_then(|memory| memory.attach(open_root()?));
            let dir = dir.map_err(failed(Path::new(DIR)))?;
            for (number, file) in elsewhere.into_iter().enumerate() {
                let mount = file_mount(&dir, Path::new(&number.to_string()), file);
                mounts.push((file.target.clone(), mount.map_err(failed(&file.target))?));
            }
            // Means what is on top.
            unmount("/", UnmountFlags::DETACH)
                .map_err(|errno| failed(Path::new(DIR))(errno.into()))?;
        }
        Ok(Self(mounts))
    }

    pub fn attach(self, places: &mut Places) -> Result<(), RootfsError> {
        let mut mounts = self.0.into_iter();
        mounts.try_for_each(|(target, mount)| places.attach_secret(mount, &target))
    }
}

const READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

fn memory() -> io::Result<Detached> {
    Detached::filesystem("tmpfs", &[("mode", "755")], KERNEL_FS)
}

fn file_mount(dir: &OwnedFd, name: &Path, file: &SecretFile) -> io::Result<Detached> {
    write(dir, name, file)?;
    let mount = Detached::copy_of(dir, name, false)?;
    mount.restrict(READ_ONLY, false)?;
    Ok(mount)
}

/// Makes the file, with the directories that are missing.
fn write(dir: impl AsFd, name: &Path, file: &SecretFile) -> io::Result<()> {
    let mut above: Vec<_> = name.ancestors().skip(1).collect();
    // Without the empty one.
    above.pop();
    for parent in above.iter().rev() {
        match mkdirat(&dir, *parent, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => {}
            made => made?,
        }
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut opened = File::from(openat(&dir, name, flags, Mode::RUSR)?);
    opened.write_all(file.content.bytes())?;
    let (uid, gid) = (Uid::from_raw(file.uid), Gid::from_raw(file.gid));
    match fchown(&opened, Some(uid), Some(gid)) {
        Err(Errno::INVAL) => {
            let (uid, gid) = (file.uid, file.gid);
            let text = format!("user {uid} or group {gid} has no place in the container");
            return Err(io::Error::other(text));
        }
        owned => owned?,
    }
    Ok(fchmod(&opened, Mode::from_raw_mode(file.mode))?)
}

fn failed(target: &Path) -> impl FnOnce(io::Error) -> RootfsError {
    let path = target.to_owned();
    move |source| RootfsError::Secret { path, source }
}
