//! One image: its manifest and its configuration, as they are in the store.

use std::io::{self, Read};
use std::path::Path;

use jiff::Timestamp;
use oci_spec::image::{
    Config, Descriptor, ImageConfiguration, ImageIndex, ImageIndexBuilder, ImageManifest,
};

use super::Entry;
use crate::images::digest::{Digest, Hashing};
use crate::images::error::{StorageError, io_error};
use crate::images::files::parse;
use crate::images::layers::{Layer, layers};
use crate::images::reference::ImageRef;
use crate::rootfs::overlay::LOWERS_MAX;

/// Of manifests, indexes and configurations, in bytes; registries keep to the same.
pub const JSON_LEN_MAX: u64 = 4 << 20;

/// An image that is there.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of its configuration.
    pub id: Digest,
    pub manifest_digest: Digest,
    pub names: Vec<ImageRef>,
    pub manifest: ImageManifest,
    pub config: ImageConfiguration,
}

impl Image {
    pub(super) fn read(blobs: &Path, entry: &Entry) -> Result<Self, StorageError> {
        let manifest_path = blobs.join(entry.manifest.hex());
        let manifest = read_blob(&manifest_path, &entry.manifest)?;
        let manifest = read_manifest(&manifest_path, &manifest)?;
        let config_path = blobs.join(entry.id.hex());
        let config = read_blob(&config_path, &entry.id)?;
        let image = Self {
            id: entry.id.clone(),
            manifest_digest: entry.manifest.clone(),
            names: entry.name.clone().into_iter().collect(),
            manifest,
            config: parse(&config_path, &config)?,
        };
        image.check(&manifest_path)?;
        Ok(image)
    }

    /// What everybody who uses it relies on.
    fn check(&self, path: &Path) -> Result<(), StorageError> {
        let damaged = |defect: String| StorageError::Damaged {
            path: path.to_owned(),
            defect,
        };
        let (blobs, diffs) = (
            self.manifest.layers().len(),
            self.config.rootfs().diff_ids().len(),
        );
        if blobs != diffs {
            return Err(damaged(format!(
                "it has {blobs} layers, and its configuration {diffs}"
            )));
        }
        if !(1..=LOWERS_MAX).contains(&blobs) {
            return Err(damaged(format!(
                "it has {blobs} layers, and may have 1 to {LOWERS_MAX}"
            )));
        }
        let digests = self.layer_digests();
        let diffs = self.config.rootfs().diff_ids().iter();
        let texts = digests.chain(diffs.cloned());
        for text in texts {
            text.parse::<Digest>()
                .map_err(|error| damaged(error.to_string()))?;
        }
        Ok(())
    }

    fn layer_digests(&self) -> impl Iterator<Item = String> {
        let layers = self.manifest.layers().iter();
        layers.map(|layer| layer.digest().to_string())
    }

    /// The lowest first.
    pub fn layers(&self) -> Vec<Layer> {
        let read = |text: String| text.parse().expect("checked when it was read");
        let blobs = self.layer_digests().map(read);
        let diffs = self.config.rootfs().diff_ids().iter().cloned().map(read);
        layers(blobs.collect(), diffs.collect())
    }

    /// All that it needs in the store.
    pub fn blobs(&self) -> Vec<Digest> {
        let layers = self.layers().into_iter().map(|layer| layer.blob);
        [self.manifest_digest.clone(), self.id.clone()]
            .into_iter()
            .chain(layers)
            .collect()
    }

    /// Seconds since 1970; 0 where the image does not tell.
    pub fn created(&self) -> i64 {
        let text = self.config.created().as_deref().unwrap_or_default();
        text.parse::<Timestamp>().map_or(0, Timestamp::as_second)
    }

    /// How it wants to be run.
    pub fn run_config(&self) -> Config {
        self.config.config().clone().unwrap_or_default()
    }
}

/// A manifest of one image.
///
/// # Errors
/// [`StorageError::Damaged`] for one that could be taken for an index as well (CVE-2021-41190).
pub fn read_manifest(path: &Path, text: &[u8]) -> Result<ImageManifest, StorageError> {
    let fields: serde_json::Map<String, serde_json::Value> = parse(path, text)?;
    if fields.contains_key("manifests") {
        return Err(StorageError::Damaged {
            path: path.to_owned(),
            defect: "it is a manifest and an index at once".to_owned(),
        });
    }
    parse(path, text)
}

pub(super) fn read_blob(path: &Path, digest: &Digest) -> Result<Vec<u8>, StorageError> {
    let file = std::fs::File::open(path).map_err(io_error("open", path))?;
    let len = file
        .metadata()
        .map_or(0, |found| found.len())
        .min(JSON_LEN_MAX);
    let mut hashing = Hashing::new(file.take(JSON_LEN_MAX));
    // One byte more, so that a single read meets the end.
    let mut text = Vec::with_capacity(usize::try_from(len).unwrap_or(0) + 1);
    hashing
        .read_to_end(&mut text)
        .map_err(io_error("read", path))?;
    match hashing.digest() == *digest {
        true => Ok(text),
        false => Err(io_error("read", path)(io::Error::other(
            "its content is not what its name says",
        ))),
    }
}

/// An index of images.
pub fn index(manifests: Vec<Descriptor>) -> ImageIndex {
    ImageIndexBuilder::default()
        .schema_version(oci_spec::image::SCHEMA_VERSION)
        .media_type(oci_spec::image::MediaType::ImageIndex)
        .manifests(manifests)
        .build()
        .expect("all that is required is given")
}
