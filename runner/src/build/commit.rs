//! An image of what a working container is by now.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType};

use super::BuildError;
use super::config::{ImageConfig, Step};
use super::pack::{Changes, Packer, Source};
use super::store::{Working, WorkingStore};
use super::tree::{self, open_directory};
use crate::images::archive::descriptor;
use crate::images::digest::Digest;
use crate::images::files::to_json;
use crate::images::reference::ImageRef;
use crate::images::store::{Adding, BlobWriter, Image, ImageStore};

/// What the image is to be.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    pub names: Vec<ImageRef>,
    /// Whether all is to be in one layer, those of the image that the container began with among
    /// it.
    pub squash: bool,
    /// When it and its new files are to have been made, in seconds since 1970; now, and as they
    /// are, when not given.
    pub timestamp: Option<i64>,
    /// Whether nothing but the configuration can have changed.
    pub config_only: bool,
    /// Whether a step that changes nothing gets a layer all the same.
    pub keep_empty: bool,
    /// Whether the history tells of all steps already.
    pub is_told: bool,
}

/// The layer that a commit has made.
struct NewLayer {
    digest: Digest,
    len: u64,
    is_empty: bool,
}

/// Makes an image of a container, which stays as it is. Nobody changes the container meanwhile.
pub fn commit(
    store: &WorkingStore,
    images: &ImageStore,
    container: &Working,
    request: CommitRequest,
    warn: &mut dyn FnMut(&str),
) -> Result<Image, BuildError> {
    let shared = images.share_content()?;
    let base = match &container.image_id {
        Some(id) if !request.squash => Some(images.find(&id.to_string())?.0),
        _ => None,
    };
    let adding = images.add_content()?;
    let changes = Changes {
        modified: request.timestamp,
        ..Changes::default()
    };
    let layer = match request.config_only && base.is_some() {
        true => None,
        false => {
            let blob = adding.blob()?;
            let layer = match request.squash && container.image_id.is_some() {
                true => {
                    let mounted = tree::mount(store, images, container, warn)?;
                    write_tree(&mounted.path(), Source::Tree, blob, changes, &adding)?
                }
                false => {
                    let dir = store.dir(container);
                    let _lock = dir.lock()?;
                    write_tree(&dir.upper(), Source::Upper, blob, changes, &adding)?
                }
            };
            Some(layer)
        }
    };
    // An image has one layer at least.
    let layer = layer.filter(|layer| base.is_none() || request.keep_empty || !layer.is_empty);

    let created = match request.timestamp {
        None => Timestamp::now(),
        Some(seconds) => Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH),
    };
    let mut config = container.config.clone();
    if base.is_none() && container.image_id.is_some() {
        config.rootfs.diff_ids.clear();
        config.history.clear();
    }
    config.created = Some(created.to_string());
    let created_by = container.created_by.as_deref().unwrap_or("/bin/sh");
    let step = Step {
        created: config.created.clone(),
        created_by: Some(created_by.to_owned()),
        author: config.author.clone(),
        comment: container.comment.clone(),
        empty_layer: layer.is_none(),
    };
    config.history.extend((!request.is_told).then_some(step));
    let mut layers = base.as_ref().map(layers_of).unwrap_or_default();
    if let Some(layer) = layer {
        config.rootfs.diff_ids.push(layer.digest.clone());
        layers.push(descriptor(MediaType::ImageLayer, &layer.digest, layer.len));
    }
    let (id, manifest, len) = write_manifest(&adding, &config, layers)?;
    drop(shared);
    Ok(images.admit(&id, &manifest, len, request.names, warn)?)
}

fn write_tree(
    dir: &Path,
    source: Source,
    blob: BlobWriter,
    changes: Changes,
    adding: &Adding,
) -> Result<NewLayer, BuildError> {
    let opened = open_directory(dir)?;
    let out = io::BufWriter::with_capacity(256 << 10, blob);
    let mut packer = Packer::new(out, source, changes);
    let pack = || -> io::Result<_> {
        packer.add_root(&opened)?;
        packer.add_contents(&opened, Path::new(""), &|_, _| false)?;
        let is_empty = packer.entries() == 1;
        let blob = packer
            .finish()?
            .into_inner()
            .map_err(|error| error.into_error())?;
        Ok((blob, is_empty))
    };
    let (blob, is_empty) = pack().map_err(|source| BuildError::Layer { source })?;
    let len = blob.len();
    Ok(NewLayer {
        digest: adding.finish(blob, None)?,
        len,
        is_empty,
    })
}

/// Those of an image, in the words of OCI.
fn layers_of(image: &Image) -> Vec<Descriptor> {
    let in_oci = |layer: &Descriptor| {
        let kind = layer.media_type().to_string();
        let kind = match () {
            () if kind.ends_with("gzip") => MediaType::ImageLayerGzip,
            () if kind.ends_with("zstd") => MediaType::ImageLayerZstd,
            () => MediaType::ImageLayer,
        };
        Descriptor::new(kind, layer.size(), layer.digest().clone())
    };
    image.manifest.layers().iter().map(in_oci).collect()
}

/// Returns the digests of the configuration and the manifest, and the length of the latter.
fn write_manifest(
    adding: &Adding,
    config: &ImageConfig,
    layers: Vec<Descriptor>,
) -> Result<(Digest, Digest, u64), BuildError> {
    let text = to_json(config);
    let id = adding.write(&text)?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(oci_spec::image::SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(MediaType::ImageConfig, &id, text.len() as u64))
        .layers(layers)
        .build()
        .expect("all that is required is given");
    let text = to_json(&manifest);
    Ok((id, adding.write(&text)?, text.len() as u64))
}
