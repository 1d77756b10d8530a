//! An OCI image layout: `index.json`, and blobs named by their content.
//!
//! Manifests are kept as they are. Of an image for several platforms the one for this machine is
//! taken.

use oci_spec::image::{Descriptor, ImageIndex};

use super::Found;
use super::files::Files;
use crate::images::digest::Digest;
use crate::images::error::StorageError;
use crate::images::platform::Platform;
use crate::images::reference::{ImageName, ImageRef};
use crate::images::store::{Adding, NAME_ANNOTATION, read_manifest};

pub const INDEX: &str = "index.json";

/// How containerd and Docker write the whole name; theirs in [`NAME_ANNOTATION`] is the tag.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// How deep an index may be within another.
const NESTED_MAX: u32 = 4;

/// Puts the blobs of all images into the store.
pub fn collect(files: &Files, adding: &Adding) -> Result<Vec<Found>, StorageError> {
    let index: ImageIndex = files.parse(INDEX)?;
    let mut found: Vec<Found> = Vec::new();
    for descriptor in index.manifests() {
        let next = keep(descriptor, files, adding, NESTED_MAX)?;
        // One line for each name.
        match found
            .iter_mut()
            .find(|other| other.manifest == next.manifest)
        {
            Some(other) => other.names.extend(next.names),
            None => found.push(next),
        }
    }
    Ok(found)
}

fn keep(
    descriptor: &Descriptor,
    files: &Files,
    adding: &Adding,
    nested: u32,
) -> Result<Found, StorageError> {
    let digest = digest_of(descriptor, files)?;
    let path = blob_path(&digest);
    let text = files.read(&path)?;
    let found = Digest::of(&text);
    if found != digest {
        return Err(StorageError::Mismatch {
            what: path,
            found,
            expected: digest,
        });
    }
    let names = name_of(descriptor).into_iter().collect();
    let fields: serde_json::Value = files.parse(&path)?;
    if fields.get("manifests").is_some() && fields.get("layers").is_none() {
        if nested == 0 {
            return Err(files.unusable("indexes are nested too deep in it".to_owned()));
        }
        let index: ImageIndex = files.parse(&path)?;
        let this = Platform::this();
        let ours = this
            .choose(index.manifests())
            .ok_or_else(|| files.unusable(format!("there is no image for {this} in it")))?;
        return Ok(Found {
            names,
            ..keep(ours, files, adding, nested - 1)?
        });
    }
    let manifest =
        read_manifest(path.as_ref(), &text).map_err(|error| files.unusable(error.to_string()))?;
    let config = digest_of(manifest.config(), files)?;
    for blob in manifest.layers().iter().chain([manifest.config()]) {
        let digest = digest_of(blob, files)?;
        files.keep(&blob_path(&digest), Some(&digest), adding)?;
    }
    let (manifest, manifest_len) = files.keep(&path, Some(&digest), adding)?;
    Ok(Found {
        manifest,
        manifest_len,
        config,
        names,
    })
}

fn digest_of(descriptor: &Descriptor, files: &Files) -> Result<Digest, StorageError> {
    let text = descriptor.digest().to_string();
    text.parse()
        .map_err(|error| files.unusable(format!("{error}")))
}

pub fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A name that can be none is not worth to refuse an image for.
fn name_of(descriptor: &Descriptor) -> Option<ImageRef> {
    let annotations = descriptor.annotations().as_ref()?;
    let name = annotations
        .get(CONTAINERD_NAME)
        .or_else(|| annotations.get(NAME_ANNOTATION))?;
    name.parse::<ImageName>().ok()?.to_tag().ok()
}
