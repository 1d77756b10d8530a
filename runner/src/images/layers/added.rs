//! Files that are added to a tree and are no layer, as those of `cp`: their names mean nothing but
//! themselves, and what is there is replaced with care.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, openat};

use super::apply::{ApplyError, Tree, failed, refused};
use super::tar::{Kind, Member};

/// What a tar says of a tree that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It is a layer, which takes away what it names so, and replaces whatever has another kind.
    Layer,
    /// It has files to be added, whatever their names are. Unless they are to `replace` each other,
    /// neither a directory nor anything else comes into the other's place.
    Files { replace: bool },
}

impl Tree {
    /// For files that are added to a tree.
    pub fn adding(mut self, replace: bool) -> Self {
        self.manner = Manner::Files { replace };
        self
    }

    /// Writes to a file that is mounted there, as /etc/hosts is: it cannot be replaced.
    pub(super) fn rewrite(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        content: &mut impl Read,
    ) -> Result<(), ApplyError> {
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat(parent, name, flags | OFlags::CLOEXEC, Mode::empty());
        let mut file = std::fs::File::from(file.map_err(failed("write", path))?);
        self.bytes += io::copy(content, &mut file).map_err(failed("write", path))?;
        Ok(())
    }

    /// Whether `member` comes into the place of something of another kind. A link to a directory
    /// stays as one.
    pub(super) fn may_replace(
        &self,
        there: FileType,
        path: &Path,
        member: &Member,
    ) -> Result<bool, ApplyError> {
        let is_directory = member.kind == Kind::Directory;
        match self.manner {
            Manner::Layer => Ok(true),
            Manner::Files { .. }
                if is_directory && there == FileType::Symlink && self.open(path).is_ok() =>
            {
                Ok(false)
            }
            Manner::Files { replace: false } if is_directory => {
                refused(path, "is there and no directory: --overwrite replaces it")
            }
            Manner::Files { replace: false } if there == FileType::Directory => {
                refused(path, "is a directory there: --overwrite replaces it")
            }
            Manner::Files { .. } => Ok(true),
        }
    }
}
