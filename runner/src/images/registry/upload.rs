//! Uploading a blob: one request asks for a place, and a second brings the whole of it there
//! (OCI distribution-spec, "Pushing a blob monolithically"), which every registry takes.
//!
//! An upload that breaks off begins again. The client of registries does not watch what it sends,
//! so it is watched here.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{TryStreamExt, stream};
use oci_client::errors::OciDistributionError;
use tokio::time::sleep;

use super::BlobProgress;
use super::client::{Connection, PATIENCE, STORING_MAX};
use super::error::RegistryError;
use crate::images::digest::Digest;
use crate::images::error::StorageError;

/// A file that is to be sent, and what it is named by.
pub struct Blob {
    pub digest: Digest,
    pub len: u64,
    pub file: File,
}

const ATTEMPTS_MAX: u32 = 3;

/// Sends a blob that the registry does not have.
pub async fn blob(
    connection: &Connection,
    blob: &Blob,
    progress: Box<dyn BlobProgress>,
) -> Result<(), StorageError> {
    let progress: Arc<dyn BlobProgress> = progress.into();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let cause = match attempt(connection, blob, &progress).await {
            Ok(()) => break,
            Err(RegistryError::Unreachable { cause, .. } | RegistryError::Server { cause, .. }) => {
                cause
            }
            Err(other) => return Err(other.into()),
        };
        if attempts == ATTEMPTS_MAX {
            return Err(RegistryError::UploadBrokenOff {
                registry: connection.registry.clone(),
                image: connection.image.clone(),
                cause,
            }
            .into());
        }
        sleep(Duration::from_millis(200 << attempts)).await;
    }
    progress.done();
    Ok(())
}

async fn attempt(
    connection: &Connection,
    blob: &Blob,
    progress: &Arc<dyn BlobProgress>,
) -> Result<(), RegistryError> {
    let broken = |error: io::Error| RegistryError::io("read", blob.digest.hex())(error);
    let mut file = blob.file.try_clone().map_err(broken)?;
    file.rewind().map_err(broken)?;
    let sent = Arc::new(AtomicU64::new(0));
    let content = stream::iter(Chunks {
        file,
        left: blob.len,
        sent: Arc::clone(&sent),
        progress: Arc::clone(progress),
    });
    let content = content.map_ok(Into::into);
    let digest = blob.digest.to_string();
    let upload =
        connection
            .client
            .push_blob_stream(&connection.reference, content, &digest, Some(blob.len));
    let uploaded = tokio::select! {
        uploaded = upload => uploaded,
        () = silence(&sent, blob.len) => {
            return Err(RegistryError::Unreachable {
                registry: connection.registry.clone(),
                cause: "it takes nothing any more".to_owned(),
            });
        }
    };
    uploaded
        .map(drop)
        .map_err(|error| RegistryError::of_sending(&error, &connection.registry, &connection.image))
}

/// Ends when nothing has been taken for too long.
async fn silence(sent: &AtomicU64, len: u64) {
    loop {
        let before = sent.load(Ordering::Relaxed);
        sleep(match before < len {
            true => PATIENCE,
            false => STORING_MAX,
        })
        .await;
        if sent.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// A file as the client takes it.
struct Chunks {
    file: File,
    left: u64,
    sent: Arc<AtomicU64>,
    progress: Arc<dyn BlobProgress>,
}

impl Iterator for Chunks {
    type Item = Result<Vec<u8>, OciDistributionError>;

    fn next(&mut self) -> Option<Self::Item> {
        const LEN: u64 = 128 * 1024;
        // When more is asked for, what was given before has gone.
        self.progress.at(self.sent.load(Ordering::Relaxed));
        if self.left == 0 {
            return None;
        }
        let len = self.left.min(LEN);
        let mut chunk = vec![0; usize::try_from(len).expect("it is small")];
        self.left -= len;
        let read = self.file.read_exact(&mut chunk);
        self.sent.fetch_add(len, Ordering::Relaxed);
        Some(read.map(|()| chunk).map_err(OciDistributionError::from))
    }
}
