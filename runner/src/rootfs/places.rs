//! Where in the container's tree files and directories of the host's are mounted.
//!
//! The image has a say in where a path leads: it may hold `/etc/hosts -> /dev/null` or `/srv -> /`.
//! What decides is the place that the kernel has found, by the name that it has there, not the path
//! that was asked for (CVE-2025-31133).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::lookup::{Missing, Root, file_type};
use super::mounts::Detached;
use super::{Bind, RootfsError, copy_up};

/// The container's tree, with the kernel's file systems in place.
pub struct Places {
    pub root: Root,
    /// The root of its procfs.
    proc: OwnedFd,
    /// Where something of the user's is mounted: the place, and the path that was asked for.
    taken: Vec<(PathBuf, PathBuf)>,
}

impl Places {
    pub fn new(root: Root, proc: OwnedFd) -> Self {
        Self {
            root,
            proc,
            taken: Vec::new(),
        }
    }

    /// Mounts a file that coracle provides; not upon the kernel's own file systems. Where the user
    /// has mounted something, that stays.
    pub fn attach_file(&self, mount: Detached, file: &Bind) -> Result<(), RootfsError> {
        let (place, name) = self.find(&mount, file)?;
        if self.taken.iter().any(|(taken, _)| *taken == name) {
            return Ok(());
        }
        if ["/proc", "/sys", "/dev"]
            .iter()
            .any(|top| name.starts_with(top))
        {
            return Err(forbidden(file, name));
        }
        attach(mount, place, file)
    }

    /// Mounts what `-v` asks for.
    pub fn attach_bind(&mut self, mount: Detached, bind: &Bind) -> Result<(), RootfsError> {
        let (place, name) = self.find(&mount, bind)?;
        let leads_to = |top: &str| name.starts_with(top);
        // Devices may be added by name; a link of the image's must not lead there.
        let replaces_device = leads_to("/dev") && !bind.target.starts_with("/dev");
        if leads_to("/proc") || leads_to("/sys") || replaces_device || name == Path::new("/") {
            return Err(forbidden(bind, name));
        }
        if let Some((_, earlier)) = self.taken.iter().find(|(taken, _)| *taken == name) {
            let why = format!("{} is the same place, and mounted on", earlier.display());
            return Err(unfit(bind, why));
        }
        let is_directory = |kind| {
            if kind == FileType::Directory {
                "a directory"
            } else {
                "a file"
            }
        };
        let failed = |source| mount_point(bind, source);
        let upper = file_type(mount.as_fd()).map_err(failed)?;
        let lower = file_type(place.as_fd()).map_err(failed)?;
        let (upper, lower) = (is_directory(upper), is_directory(lower));
        if upper != lower {
            return Err(unfit(
                bind,
                format!("the first is {upper}, the second {lower}"),
            ));
        }
        if bind.options.copy_up && !bind.read_only && upper == "a directory" {
            copy_up::fill(&mount, &place).map_err(|source| RootfsError::CopyUp {
                path: bind.target.clone(),
                source,
            })?;
        }
        attach(mount, place, bind)?;
        self.taken.push((name, bind.target.clone()));
        Ok(())
    }

    /// The place for a mount, made where there is nothing, and its name in the container's tree.
    fn find(&self, mount: &Detached, bind: &Bind) -> Result<(OwnedFd, PathBuf), RootfsError> {
        let find = || -> io::Result<(OwnedFd, PathBuf)> {
            let missing = match mount.is_directory()? {
                true => Missing::Directory,
                false => Missing::File,
            };
            let place = self.root.ensure(&bind.target, missing)?;
            let link = format!("self/fd/{}", place.as_raw_fd());
            let name = rustix::fs::readlinkat(&self.proc, link, Vec::new())?;
            Ok((place, OsStr::from_bytes(name.as_bytes()).into()))
        };
        find().map_err(|source| mount_point(bind, source))
    }
}

fn attach(mount: Detached, place: OwnedFd, bind: &Bind) -> Result<(), RootfsError> {
    mount
        .attach(place)
        .map(drop)
        .map_err(|source| mount_point(bind, source))
}

fn mount_point(bind: &Bind, source: io::Error) -> RootfsError {
    RootfsError::MountPoint {
        path: bind.target.clone(),
        source,
    }
}

fn forbidden(bind: &Bind, place: PathBuf) -> RootfsError {
    RootfsError::Forbidden {
        path: bind.target.clone(),
        place,
    }
}

fn unfit(bind: &Bind, why: String) -> RootfsError {
    RootfsError::Unfit {
        mount: bind.source.clone(),
        path: bind.target.clone(),
        why,
    }
}
