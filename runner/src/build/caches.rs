//! Directories that outlive builds: `RUN --mount=type=cache`.
//!
//! `DATA/build-cache/DIGEST[-N]` is the one with that id, by the digest of the id, and holds its
//! files in `files`, which is there once it has its owner and first contents. The lock is on the
//! directory: shared by those who use it together, held alone by who has it for itself, who fills
//! it, or who removes it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::BuildError;
use super::containerfile::mount::Sharing;
use crate::images::digest::Digest;
use crate::state::{lock_fleeting_directory, remove_tree};

/// The caches of one user.
#[derive(Debug, Clone)]
pub struct Caches {
    root: PathBuf,
}

/// A cache that nobody removes until this is dropped.
#[derive(Debug)]
pub struct Cache {
    /// Where its files are.
    pub files: PathBuf,
    _lock: File,
}

impl Caches {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The cache with this id. `fill` gives a new one its owner and first contents.
    pub fn open(
        &self,
        id: &str,
        sharing: Sharing,
        fill: impl Fn(&Path) -> Result<(), BuildError>,
    ) -> Result<Cache, BuildError> {
        fs::create_dir_all(&self.root).map_err(BuildError::io("create", &self.root))?;
        let digest = Digest::of(id.as_bytes());
        let first = self.root.join(digest.hex());
        loop {
            let (dir, lock) = match sharing {
                Sharing::Shared => held(&first, FlockOperation::LockShared)?,
                Sharing::Locked => held(&first, FlockOperation::LockExclusive)?,
                Sharing::Private => self.unused(digest.hex())?,
            };
            let files = dir.join(FILES);
            if files.exists() {
                return Ok(Cache { files, _lock: lock });
            }
            // Whoever fills it is alone with it.
            drop(lock);
            let (dir, _lock) = held(&dir, FlockOperation::LockExclusive)?;
            if !files.exists() {
                let begun = dir.join("begun");
                remove_tree(&begun).map_err(BuildError::io("remove", &begun))?;
                make(&begun)?;
                fill(&begun)?;
                fs::rename(&begun, &files).map_err(BuildError::io("create", &files))?;
            }
        }
    }

    /// The first of several of which nobody uses any.
    fn unused(&self, stem: &str) -> Result<(PathBuf, File), BuildError> {
        let numbered = (1..).map(|number| self.root.join(format!("{stem}-{number}")));
        for dir in std::iter::once(self.root.join(stem)).chain(numbered) {
            if let Some(lock) = hold(&dir, FlockOperation::NonBlockingLockExclusive)? {
                return Ok((dir, lock));
            }
        }
        unreachable!("there are more numbers than users of a cache")
    }

    /// Removes all that nobody uses.
    pub fn prune(&self) -> Result<(), BuildError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(BuildError::io("list", &self.root))?,
        };
        for entry in entries {
            let dir = entry.map_err(BuildError::io("list", &self.root))?.path();
            if let Some(_lock) = hold(&dir, FlockOperation::NonBlockingLockExclusive)? {
                remove_tree(&dir).map_err(BuildError::io("remove", &dir))?;
            }
        }
        Ok(())
    }
}

const FILES: &str = "files";

fn make(dir: &Path) -> Result<(), BuildError> {
    let made = DirBuilder::new().mode(0o700).create(dir);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(BuildError::io("create", dir)(error))
        }
        _ => Ok(()),
    }
}

/// As [`hold`], with an operation that waits.
fn held(dir: &Path, operation: FlockOperation) -> Result<(PathBuf, File), BuildError> {
    let lock = hold(dir, operation)?;
    Ok((dir.to_owned(), lock.expect("it was waited for")))
}

fn hold(dir: &Path, operation: FlockOperation) -> Result<Option<File>, BuildError> {
    let lock = lock_fleeting_directory(dir, operation);
    lock.map_err(|(action, error)| BuildError::io(action, dir)(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(caches: &Caches, sharing: Sharing) -> Cache {
        let opened = caches.open("id", sharing, |dir| {
            fs::write(dir.join("first"), "").map_err(BuildError::io("write", dir))
        });
        opened.expect("a cache")
    }

    #[test]
    fn a_cache_stays_until_nobody_uses_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let caches = Caches::new(dir.path().join("caches"));
        caches.prune().expect("nothing");
        let one = open(&caches, Sharing::Locked);
        assert!(one.files.join("first").exists());
        fs::write(one.files.join("kept"), "").expect("written");
        let other = open(&caches, Sharing::Private);
        assert_ne!(one.files, other.files);
        caches.prune().expect("pruned");
        assert!(one.files.exists() && other.files.exists());
        drop((one, other));
        let again = open(&caches, Sharing::Private);
        assert!(again.files.join("kept").exists());
        let path = again.files.clone();
        drop(again);
        caches.prune().expect("pruned");
        assert!(!path.exists());
        assert!(!open(&caches, Sharing::Shared).files.join("kept").exists());
    }

    #[test]
    fn what_was_cut_short_begins_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let caches = Caches::new(dir.path().to_owned());
        let failed = caches.open("id", Sharing::Locked, |dir| {
            fs::write(dir.join("half"), "").expect("written");
            Err(BuildError::io("fill", dir)(io::Error::other("full")))
        });
        failed.expect_err("it was not filled");
        let cache = open(&caches, Sharing::Locked);
        assert!(!cache.files.join("half").exists());
    }
}
