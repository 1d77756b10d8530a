//! Locks on directories (flock(2)). They take no file, and so no room on a full disk, and go with
//! the process that holds them.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

/// Waits until nobody else has the lock; it is held until the file is dropped.
pub fn lock_directory(path: &Path) -> io::Result<File> {
    let lock = lock(path, FlockOperation::LockExclusive)?;
    Ok(lock.expect("it was waited for"))
}

/// `None` where somebody else has the lock.
pub fn try_lock_directory(path: &Path) -> io::Result<Option<File>> {
    lock(path, FlockOperation::NonBlockingLockExclusive)
}

/// Locks a directory that whoever has the lock for itself may remove: makes it, private, where
/// there is none, and once more if it was removed meanwhile. `None` where somebody else has the
/// lock and `operation` does not wait for that.
///
/// # Errors
/// What could not be done to it, for "cannot ... PATH", and why.
pub fn lock_fleeting_directory(
    path: &Path,
    operation: FlockOperation,
) -> Result<Option<File>, (&'static str, io::Error)> {
    loop {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(("create", error));
            }
            _ => {}
        }
        let locked = match lock(path, operation) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            locked => locked.map_err(|error| ("lock", error))?,
        };
        let Some(locked) = locked else {
            return Ok(None);
        };
        let id = |found: fs::Metadata| (found.dev(), found.ino());
        let own = locked.metadata().map_err(|error| ("examine", error))?;
        if fs::metadata(path).is_ok_and(|there| id(there) == id(own)) {
            return Ok(Some(locked));
        }
    }
}

fn lock(path: &Path, operation: FlockOperation) -> io::Result<Option<File>> {
    let directory = File::open(path)?;
    match retry_on_intr(|| flock(&directory, operation)) {
        Ok(()) => Ok(Some(directory)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
