//! Downloading a blob.
//!
//! What has come is kept in `STORAGE/partial` under the blob's name, locked by whoever downloads
//! it: a download that breaks off goes on where it ended, now or by a later call, and a second
//! process waits for the first. Nothing of it counts before the whole has its digest.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use oci_client::client::BlobResponse;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tokio::time::sleep;

use super::BlobProgress;
use super::client::Connection;
use super::error::RegistryError;
use crate::images::digest::{Digest, Hashing};
use crate::images::error::{StorageError, io_error};
use crate::images::store::{Adding, ImageStore};

/// In a row, without a byte between them.
const FAILURES_MAX: u32 = 5;

/// Gets a blob into the store.
pub async fn blob(
    store: &ImageStore,
    connection: &Connection,
    digest: &Digest,
    len: u64,
    adding: &Adding,
    progress: &dyn BlobProgress,
) -> Result<(), StorageError> {
    let dir = store.partial_dir();
    std::fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
    let path = dir.join(digest.hex());
    let Some(mut partial) = Partial::open(&path, store, digest).await? else {
        return Ok(());
    };
    // What came before may have come from somebody who lies.
    let mut is_resumed = partial.content.len() > 0;
    loop {
        partial.complete(connection, digest, len, progress).await?;
        let found = partial.content.digest();
        if found == *digest && partial.content.len() == len {
            break;
        }
        if std::mem::take(&mut is_resumed) {
            partial.begin_again()?;
            continue;
        }
        // It would be no better the next time.
        std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
        let defect = match found == *digest {
            true => format!("{digest} is not of the length that the manifest says"),
            false => format!("what should be {digest} is {found}"),
        };
        return Err(connection.wrong(defect).into());
    }
    adding.adopt(&path, digest)?;
    std::fs::remove_file(&path).map_err(io_error("remove", &path))
}

/// A file with the first bytes of a blob, locked.
struct Partial {
    path: PathBuf,
    content: Hashing<File>,
}

impl Partial {
    /// `None` when the blob is there: another process has got it meanwhile.
    async fn open(
        path: &Path,
        store: &ImageStore,
        digest: &Digest,
    ) -> Result<Option<Self>, StorageError> {
        /// The other may take its time.
        const POLL: Duration = Duration::from_millis(100);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(io_error("open", path))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => {
                    sleep(POLL).await;
                    continue;
                }
                locked => locked.map_err(|errno| io_error("lock", path)(errno.into()))?,
            }
            if store.has_blob(digest) {
                return Ok(None);
            }
            // Its name may be gone, and then it is not what the next process opens.
            let found = file.metadata().map_err(io_error("examine", path))?;
            if found.nlink() == 0 {
                continue;
            }
            let mut content = Hashing::new(file);
            io::copy(&mut content, &mut io::sink()).map_err(io_error("read", path))?;
            return Ok(Some(Self {
                path: path.to_owned(),
                content,
            }));
        }
    }

    /// Asks for what is missing, again and again where that breaks off.
    async fn complete(
        &mut self,
        connection: &Connection,
        digest: &Digest,
        len: u64,
        progress: &dyn BlobProgress,
    ) -> Result<(), StorageError> {
        let mut failures = 0;
        while self.content.len() < len {
            let before = self.content.len();
            progress.at(before);
            let Err(cause) = self.go_on(connection, digest, len, progress).await? else {
                break;
            };
            failures = match self.content.len() > before {
                true => 1,
                false => failures + 1,
            };
            if failures >= FAILURES_MAX {
                return Err(RegistryError::BrokenOff {
                    registry: connection.registry.clone(),
                    blob: digest.to_string(),
                    cause,
                }
                .into());
            }
            sleep(Duration::from_millis(100 << failures)).await;
        }
        Ok(())
    }

    /// Asks for what is missing. The inner result says why it did not all come.
    async fn go_on(
        &mut self,
        connection: &Connection,
        digest: &Digest,
        len: u64,
        progress: &dyn BlobProgress,
    ) -> Result<Result<(), String>, StorageError> {
        let name = digest.to_string();
        let asked = connection.client.pull_blob_stream_partial(
            &connection.reference,
            &*name,
            self.content.len(),
            None,
        );
        let mut stream = match asked.await {
            Ok(BlobResponse::Partial(stream)) => stream,
            Ok(BlobResponse::Full(stream)) => {
                self.begin_again()?;
                stream
            }
            Err(error) => {
                return match connection.failed(&error) {
                    RegistryError::Unreachable { cause, .. }
                    | RegistryError::Server { cause, .. } => Ok(Err(cause)),
                    other => Err(other.into()),
                };
            }
        };
        while let Some(chunk) = stream.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => return Ok(Err(error.to_string())),
            };
            if self.content.len() + chunk.len() as u64 > len {
                std::fs::remove_file(&self.path).map_err(io_error("remove", &self.path))?;
                let defect = format!("{digest} is longer than the manifest says");
                return Err(connection.wrong(defect).into());
            }
            self.content
                .write_all(&chunk)
                .map_err(io_error("write", &self.path))?;
            progress.at(self.content.len());
        }
        Ok(match self.content.len() < len {
            true => Err("the connection was closed".to_owned()),
            false => Ok(()),
        })
    }

    /// The registry does not send parts.
    fn begin_again(&mut self) -> Result<(), StorageError> {
        let begin = |content: &Hashing<File>| -> io::Result<File> {
            let mut file = content.get_ref().try_clone()?;
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            Ok(file)
        };
        let file = begin(&self.content).map_err(io_error("write", &self.path))?;
        self.content = Hashing::new(file);
        Ok(())
    }
}
