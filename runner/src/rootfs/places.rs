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

use rustix::fs::{FileType, OFlags};

use super::lookup::open_in_root;
use super::lookup::{Missing, Root, file_type};
use super::mounts::Detached;
use super::tmpfs::Tmpfs;
use super::{Bind, RootfsError, copy_up};

/// The container's tree, with the kernel's file systems in place.
pub struct Places {
    pub root: Root,
    /// The root of its procfs.
    proc: OwnedFd,
    /// Where something of the user's is mounted: the place, and the path that was asked for.
    taken: Vec<(PathBuf, PathBuf)>,
}

/// What the user wants at a place of the container's.
pub struct Wanted<'a> {
    mount: Detached,
    pub target: &'a Path,
    /// What is mounted, for messages.
    what: &'a Path,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Bind(&'a Bind),
    Tmpfs(&'a Tmpfs),
}

impl<'a> Wanted<'a> {
    pub fn bind(mount: Detached, bind: &'a Bind) -> Self {
        Self {
            mount,
            target: &bind.target,
            what: &bind.source,
            kind: Kind::Bind(bind),
        }
    }

    /// Makes the file system.
    pub fn tmpfs(tmpfs: &'a Tmpfs) -> Result<Self, RootfsError> {
        let failed = |source| RootfsError::Filesystem {
            kind: "tmpfs",
            source,
            hint: "",
        };
        Ok(Self {
            mount: tmpfs.make().map_err(failed)?,
            target: &tmpfs.target,
            what: Path::new("tmpfs"),
            kind: Kind::Tmpfs(tmpfs),
        })
    }

    /// Whether it gets what the image has at its place. A file system in memory is as it is made
    /// where the image has none.
    fn is_filled(&self, root: &Root) -> bool {
        match self.kind {
            Kind::Bind(bind) => bind.options.copy_up && !bind.read_only,
            Kind::Tmpfs(tmpfs) => {
                tmpfs.copy_up && open_in_root(root, self.target, OFlags::PATH).is_ok()
            }
        }
    }

    fn fill(&self, place: &OwnedFd, is_filled: bool) -> io::Result<()> {
        if is_filled && self.mount.is_directory()? {
            copy_up::fill(&self.mount, place)?;
        }
        match self.kind {
            Kind::Bind(_) => Ok(()),
            Kind::Tmpfs(tmpfs) => tmpfs.finish(&self.mount),
        }
    }

    fn mount_point(&self, source: io::Error) -> RootfsError {
        mount_point(self.target, source)
    }

    fn unfit(&self, why: String) -> RootfsError {
        RootfsError::Unfit {
            mount: self.what.to_owned(),
            path: self.target.to_owned(),
            why,
        }
    }
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
        let (place, name) = self.find(&mount, &file.target)?;
        if self.taken.iter().any(|(taken, _)| *taken == name) {
            return Ok(());
        }
        if ["/proc", "/sys", "/dev"]
            .iter()
            .any(|top| name.starts_with(top))
        {
            return Err(forbidden(&file.target, name));
        }
        attach(mount, place, &file.target)
    }

    /// Mounts a secret; not upon the kernel's own file systems, nor upon what the user has mounted.
    pub fn attach_secret(&mut self, mount: Detached, target: &Path) -> Result<(), RootfsError> {
        let (place, name) = self.find(&mount, target)?;
        let kernels = ["/proc", "/sys", "/dev"];
        if kernels.iter().any(|top| name.starts_with(top)) || name == Path::new("/") {
            return Err(forbidden(target, name));
        }
        if let Some((_, earlier)) = self.taken.iter().find(|(taken, _)| *taken == name) {
            return Err(RootfsError::Unfit {
                mount: "a secret".into(),
                path: target.to_owned(),
                why: format!("{} is the same place, and mounted on", earlier.display()),
            });
        }
        let is_directory = |fd: &dyn AsFd| file_type(fd.as_fd()).map(FileType::is_dir);
        let (upper, lower) = (is_directory(&mount), is_directory(&place));
        let failed = |source| mount_point(target, source);
        if upper.map_err(failed)? != lower.map_err(failed)? {
            return Err(RootfsError::Unfit {
                mount: "a secret".into(),
                path: target.to_owned(),
                why: "one is a directory, the other a file".to_owned(),
            });
        }
        self.taken.push((name, target.to_owned()));
        attach(mount, place, target)
    }

    /// Mounts what the user asks for.
    pub fn attach(&mut self, wanted: Wanted) -> Result<(), RootfsError> {
        // Before one is made.
        let is_filled = wanted.is_filled(&self.root);
        let (place, name) = self.find(&wanted.mount, wanted.target)?;
        let leads_to = |top: &str| name.starts_with(top);
        // Devices may be added by name; a link of the image's must not lead there.
        let replaces_device = leads_to("/dev") && !wanted.target.starts_with("/dev");
        if leads_to("/proc") || leads_to("/sys") || replaces_device || name == Path::new("/") {
            return Err(forbidden(wanted.target, name));
        }
        if let Some((_, earlier)) = self.taken.iter().find(|(taken, _)| *taken == name) {
            let why = format!("{} is the same place, and mounted on", earlier.display());
            return Err(wanted.unfit(why));
        }
        let is_directory = |kind| {
            if kind == FileType::Directory {
                "a directory"
            } else {
                "a file"
            }
        };
        let upper = file_type(wanted.mount.as_fd()).map_err(|error| wanted.mount_point(error))?;
        let lower = file_type(place.as_fd()).map_err(|error| wanted.mount_point(error))?;
        let (upper, lower) = (is_directory(upper), is_directory(lower));
        if upper != lower {
            let why = format!("the first is {upper}, the second {lower}");
            return Err(wanted.unfit(why));
        }
        let filled = wanted.fill(&place, is_filled);
        filled.map_err(|source| RootfsError::CopyUp {
            path: wanted.target.to_owned(),
            source,
        })?;
        self.taken.push((name, wanted.target.to_owned()));
        attach(wanted.mount, place, wanted.target)
    }

    /// The place for a mount, made where there is nothing, and its name in the container's tree.
    fn find(&self, mount: &Detached, target: &Path) -> Result<(OwnedFd, PathBuf), RootfsError> {
        let find = || -> io::Result<(OwnedFd, PathBuf)> {
            let missing = match mount.is_directory()? {
                true => Missing::Directory,
                false => Missing::File,
            };
            let place = self.root.ensure(target, missing)?;
            let link = format!("self/fd/{}", place.as_raw_fd());
            let name = rustix::fs::readlinkat(&self.proc, link, Vec::new())?;
            Ok((place, OsStr::from_bytes(name.as_bytes()).into()))
        };
        find().map_err(|source| mount_point(target, source))
    }
}

fn attach(mount: Detached, place: OwnedFd, target: &Path) -> Result<(), RootfsError> {
    mount
        .attach(place)
        .map(drop)
        .map_err(|source| mount_point(target, source))
}

fn mount_point(target: &Path, source: io::Error) -> RootfsError {
    RootfsError::MountPoint {
        path: target.to_owned(),
        source,
    }
}

fn forbidden(target: &Path, place: PathBuf) -> RootfsError {
    RootfsError::Forbidden {
        path: target.to_owned(),
        place,
    }
}
