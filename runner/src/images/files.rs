//! Files of the storage: locks between processes, and content that is replaced as a whole or not at
//! all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{StorageError, io_error};
use crate::state::remove_tree;

/// A lock, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Waits for a lock (flock(2)).
pub fn lock(path: &Path, operation: FlockOperation) -> Result<Lock, StorageError> {
    let file = lock_file(path)?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation))
        .map_err(|errno| io_error("lock", path)(errno.into()))?;
    Ok(Lock { _file: file })
}

/// `None` where somebody else has it.
pub fn try_lock_alone(path: &Path) -> Result<Option<Lock>, StorageError> {
    let file = lock_file(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(io_error("lock", path)(errno.into())),
    }
}

fn lock_file(path: &Path) -> Result<File, StorageError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io_error("open", path))
}

/// Removes all that is in a directory, which may be missing.
pub fn clear(dir: &Path) -> Result<(), StorageError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(io_error("list", dir))?,
    };
    for entry in entries {
        let path = entry.map_err(io_error("list", dir))?.path();
        remove_tree(&path).map_err(io_error("remove", &path))?;
    }
    Ok(())
}

/// Puts a file with this content at `path`, in one step, and on the disk.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), StorageError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let attempt = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(dir)?.sync_all()
    };
    attempt().map_err(io_error("write", path))
}

pub fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, StorageError> {
    serde_json::from_slice(text).map_err(|error| StorageError::Damaged {
        path: path.to_owned(),
        defect: error.to_string(),
    })
}

pub fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("it has only strings, numbers and lists")
}
