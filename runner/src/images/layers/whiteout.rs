//! What a layer takes away of those below it: an entry by a whiteout, all that a directory has by
//! an opaque one. What the layer itself has made stays, whatever comes first in its tar.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;

use super::apply::{ApplyError, DEPTH_MAX, Tree, failed, names, refused};

impl Tree {
    /// Takes away what lower layers have at `dir/name`.
    pub(super) fn white_out(&mut self, dir: &Path, name: &OsStr) -> Result<(), ApplyError> {
        let path = dir.join(name);
        if name.is_empty() || name == "." || name == ".." {
            return refused(&path, "cannot be a whiteout's name");
        }
        let Some(parent) = self.open_lower(dir)? else {
            return Ok(());
        };
        self.hide(&parent, name, &path, 0)
    }

    /// Takes away what lower layers have in `dir`.
    pub(super) fn make_opaque(&mut self, dir: &Path) -> Result<(), ApplyError> {
        match self.open_lower(dir)? {
            Some(opened) => self.hide_within(&opened, dir, 0),
            None => Ok(()),
        }
    }

    /// `None` where there is nothing that could be taken away.
    fn open_lower(&mut self, dir: &Path) -> Result<Option<OwnedFd>, ApplyError> {
        if self.own.is_none() {
            return Ok(None);
        }
        let opened = match self.open(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed("open", dir))?,
        };
        let found = fstat(&opened).map_err(failed("look at", dir))?;
        self.remember_once(dir, found.st_mtime)?;
        Ok(Some(opened))
    }

    /// Removes what is not this layer's own of an entry.
    fn hide(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        depth: u32,
    ) -> Result<(), ApplyError> {
        let found = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            found => found.map_err(failed("look at", path))?,
        };
        let own = self.own.as_ref();
        if !own.is_some_and(|own| own.contains(&(found.st_dev, found.st_ino))) {
            return self.remove(parent, name, path);
        }
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(parent, name, flags, Mode::empty());
        let dir = dir.map_err(failed("open", path))?;
        self.hide_within(&dir, path, depth + 1)
    }

    fn hide_within(&mut self, dir: &OwnedFd, path: &Path, depth: u32) -> Result<(), ApplyError> {
        if depth > DEPTH_MAX {
            return refused(path, "is nested too deep");
        }
        let names = names(dir).map_err(failed("list", path))?;
        let each = |name: OsString| self.hide(dir, &name, &path.join(&name), depth);
        names.into_iter().try_for_each(each)
    }
}
