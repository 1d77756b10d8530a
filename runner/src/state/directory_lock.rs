//! Locks on directories (flock(2)). They take no file, and so no room on a full disk, and go with
//! the process that holds them.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

/// Waits until nobody else has the lock; it is held until the file is dropped.
pub fn lock_directory(path: &Path) -> io::Result<File> {
    let directory = File::open(path)?;
    retry_on_intr(|| flock(&directory, FlockOperation::LockExclusive))?;
    Ok(directory)
}

/// `None` where somebody else has the lock.
pub fn try_lock_directory(path: &Path) -> io::Result<Option<File>> {
    let directory = File::open(path)?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
