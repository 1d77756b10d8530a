//! Adding blobs to the store.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use crate::images::digest::{Digest, Hashing};
use crate::images::error::{StorageError, io_error};
use crate::images::files::Lock;

/// The right to add blobs.
#[derive(Debug)]
pub struct Adding {
    _lock: Lock,
    new: PathBuf,
    blobs: PathBuf,
}

/// A blob that is being written. Dropped before it is finished, it is gone.
pub struct BlobWriter {
    file: Hashing<NamedTempFile>,
}

impl Adding {
    pub(super) fn new(lock: Lock, new: PathBuf, blobs: PathBuf) -> Self {
        Self {
            _lock: lock,
            new,
            blobs,
        }
    }

    pub fn blob(&self) -> Result<BlobWriter, StorageError> {
        let file = NamedTempFile::new_in(&self.new).map_err(io_error("write in", &self.new))?;
        Ok(BlobWriter {
            file: Hashing::new(file),
        })
    }

    /// A directory for what is to become blobs, on the same file system.
    pub fn dir(&self) -> Result<TempDir, StorageError> {
        TempDir::new_in(&self.new).map_err(io_error("write in", &self.new))
    }

    /// Keeps a blob that is complete. Where its content is known beforehand, other content is
    /// refused.
    pub fn finish(
        &self,
        blob: BlobWriter,
        expected: Option<&Digest>,
    ) -> Result<Digest, StorageError> {
        let digest = blob.file.digest();
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(StorageError::Mismatch {
                what: "a blob".to_owned(),
                found: digest,
                expected: expected.clone(),
            });
        }
        let file = blob.file.into_inner();
        self.keep(&digest, |path| {
            file.as_file().sync_all()?;
            file.persist(path).map(drop).map_err(|error| error.error)
        })?;
        Ok(digest)
    }

    /// Keeps a small blob.
    pub fn write(&self, content: &[u8]) -> Result<Digest, StorageError> {
        let mut blob = self.blob()?;
        blob.write_all(content)
            .map_err(io_error("write in", &self.new))?;
        self.finish(blob, None)
    }

    /// Makes a blob of a file in [`Adding::dir`], whose content is known. The file stays as well.
    pub fn adopt(&self, path: &Path, digest: &Digest) -> Result<(), StorageError> {
        self.keep(digest, |place| {
            File::open(path)?.sync_all()?;
            match std::fs::hard_link(path, place) {
                // Another process was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            }
        })
    }

    /// Where the blob is not there yet, `put` brings its content to the disk and the file to its
    /// place.
    fn keep(
        &self,
        digest: &Digest,
        put: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), StorageError> {
        let path = self.blobs.join(digest.hex());
        if path.exists() {
            return Ok(());
        }
        let keep = || -> io::Result<()> {
            put(&path)?;
            File::open(&self.blobs)?.sync_all()
        };
        keep().map_err(io_error("write", &path))
    }
}

impl BlobWriter {
    /// How many bytes were written so far.
    pub fn len(&self) -> u64 {
        self.file.len()
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
