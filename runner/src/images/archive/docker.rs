//! docker-archive: `manifest.json` lists images, each with the files of its configuration and its
//! layers.
//!
//! There is no manifest of OCI's in it, so one is made. The configuration stays as it is, and the
//! image's id with it.

use oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType};
use serde::Deserialize;

use super::Found;
use super::files::Files;
use crate::images::digest::Digest;
use crate::images::error::StorageError;
use crate::images::files::to_json;
use crate::images::layers::decompress::Compression;
use crate::images::store::Adding;

pub const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Puts the blobs of all images into the store.
pub fn collect(files: &Files, adding: &Adding) -> Result<Vec<Found>, StorageError> {
    let items: Vec<Item> = files.parse(MANIFEST)?;
    items
        .into_iter()
        .map(|item| keep(item, files, adding))
        .collect()
}

fn keep(item: Item, files: &Files, adding: &Adding) -> Result<Found, StorageError> {
    let tags = item.repo_tags.unwrap_or_default();
    let names = tags.iter().map(|tag| tag.parse());
    let names = names.collect::<Result<_, _>>()?;
    let layers = item.layers.iter().map(|path| {
        let compression = Compression::detect(&files.peek(path)?)
            .map_err(|error| files.unusable(format!("{path}: {error}")))?;
        let media_type = match compression {
            Compression::None => MediaType::ImageLayer,
            Compression::Gzip => MediaType::ImageLayerGzip,
            Compression::Zstd => MediaType::ImageLayerZstd,
        };
        let (digest, len) = files.keep(path, None, adding)?;
        Ok(descriptor(media_type, &digest, len))
    });
    let layers = layers.collect::<Result<Vec<_>, StorageError>>()?;
    let (config, config_len) = files.keep(&item.config, None, adding)?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(oci_spec::image::SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(MediaType::ImageConfig, &config, config_len))
        .layers(layers)
        .build()
        .expect("all that is required is given");
    let text = to_json(&manifest);
    Ok(Found {
        manifest: adding.write(&text)?,
        manifest_len: text.len() as u64,
        config,
        names,
    })
}

pub fn descriptor(media_type: MediaType, digest: &Digest, len: u64) -> Descriptor {
    let digest = digest.to_string().parse::<oci_spec::image::Digest>();
    Descriptor::new(media_type, len, digest.expect("ours are well-formed"))
}
