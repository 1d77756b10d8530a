//! `-v SRC:DST:U`: giving the files of a volume to the user that the container's command runs as.
//!
//! Runs as root of the container's user namespace, which limits it to files of the caller's own
//! IDs. The tree may have been written by a container: every name is looked up in an open
//! directory, no symbolic link is followed, and nesting costs neither stack nor descriptors.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, OFlags, Uid, chownat, statat};
use rustix::io::Errno;

use super::lookup::open_beneath;
use super::mounts::Detached;
use super::{Bind, RootfsError};
use crate::failure::Explained;

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot give {} to user {uid} of the container: {source}; the option U takes files of the \
     caller and of the caller's sub-IDs",
    path.display()
)]
pub struct GiveError {
    path: PathBuf,
    uid: u32,
    source: io::Error,
}

impl Explained for GiveError {}

/// A tree of the host's, writable even where the container may only read it.
#[derive(Debug)]
pub struct Gift {
    source: PathBuf,
    mount: Detached,
}

impl Gift {
    pub(super) fn collect(bind: &Bind) -> Result<Self, RootfsError> {
        let failed = |source| RootfsError::Bind {
            path: bind.source.clone(),
            source,
            hint: "",
        };
        Ok(Self {
            source: bind.source.clone(),
            mount: Detached::copy_of_host(&bind.source, !bind.options.top_only).map_err(failed)?,
        })
    }

    /// Makes `uid` and `gid`, as seen inside, the owner of everything in the tree.
    pub fn give(&self, uid: u32, gid: u32) -> Result<(), GiveError> {
        let owner = (Uid::from_raw(uid), Gid::from_raw(gid));
        let failed = |path: &Path| {
            let path = match path.as_os_str().is_empty() {
                true => self.source.clone(),
                false => self.source.join(path),
            };
            move |source| GiveError { path, uid, source }
        };
        chown(&self.mount, c"", owner).map_err(failed(Path::new("")))?;
        if !self.mount.is_directory().map_err(failed(Path::new("")))? {
            return Ok(());
        }
        let mut left = vec![PathBuf::new()];
        while let Some(path) = left.pop() {
            let dir = open_beneath(
                &self.mount,
                &Path::new(".").join(&path),
                OFlags::RDONLY | OFlags::DIRECTORY,
            )
            .map_err(failed(&path))?;
            chown_entries(&dir, owner, |name, kind| {
                if kind == FileType::Directory {
                    left.push(path.join(name));
                }
            })
            .map_err(|(name, source)| failed(&path.join(name))(source))?;
        }
        Ok(())
    }
}

/// Changes the owner of each entry and shows it to `seen`. A failure comes with the name.
fn chown_entries(
    dir: &OwnedFd,
    owner: (Uid, Gid),
    mut seen: impl FnMut(&OsStr, FileType),
) -> Result<(), (PathBuf, io::Error)> {
    let unlisted = |errno: Errno| (PathBuf::new(), errno.into());
    for entry in Dir::read_from(dir).map_err(unlisted)? {
        let entry = entry.map_err(unlisted)?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let os_name = OsStr::from_bytes(name.to_bytes());
        let kind = match chown(dir, name, owner) {
            // Somebody has removed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            changed => changed.map_err(|error| (os_name.into(), error))?,
        };
        seen(os_name, kind);
    }
    Ok(())
}

/// With an empty name, of `dir` itself. Returns what kind of file it is. What has the owner already
/// is left alone, so that its setuid bit stays.
fn chown(dir: impl AsFd, name: &std::ffi::CStr, (uid, gid): (Uid, Gid)) -> io::Result<FileType> {
    let flags = match name.is_empty() {
        true => AtFlags::EMPTY_PATH,
        false => AtFlags::SYMLINK_NOFOLLOW,
    };
    let found = statat(&dir, name, flags)?;
    if (found.st_uid, found.st_gid) != (uid.as_raw(), gid.as_raw()) {
        chownat(&dir, name, Some(uid), Some(gid), flags)?;
    }
    Ok(FileType::from_raw_mode(found.st_mode))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_tree_is_given_and_nothing_that_it_links_to() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root may give files away");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("tree/a/b")).expect("a tree");
        for file in ["tree/file", "tree/a/b/file", "outside"] {
            fs::write(path(file), "").expect("a file");
        }
        symlink(path("outside"), path("tree/a/link")).expect("a link");
        symlink(dir.path(), path("tree/a/b/up")).expect("a link");
        let gift = |name: &str| Gift {
            source: path(name),
            mount: Detached::copy_of_host(&path(name), true).expect("a mount"),
        };
        gift("tree").give(1234, 1235).expect("given");
        gift("outside").give(0, 7).expect("given");
        let owner = |name: &str| {
            let found = fs::symlink_metadata(path(name)).expect(name);
            (found.uid(), found.gid())
        };
        for name in [
            "tree",
            "tree/file",
            "tree/a",
            "tree/a/link",
            "tree/a/b/up",
            "tree/a/b/file",
        ] {
            assert_eq!(owner(name), (1234, 1235), "{name}");
        }
        assert_eq!((owner("outside"), owner(".").0), ((0, 7), 0));
    }
}
