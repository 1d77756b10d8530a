//! Sending an image to a registry: its layers, its configuration, and last its manifest, which
//! names them.
//!
//! A blob that is compressed goes as it is, and the image keeps its digest. A plain tar is
//! compressed first; then the manifest is another one there, and the image still has its id.

use std::fs::File;
use std::io;
use std::path::Path;

use flate2::Compression as Level;
use flate2::write::GzEncoder;
use futures_util::{StreamExt, TryStreamExt, stream};
use oci_client::RegistryOperation;
use oci_spec::image::{Descriptor, MediaType};

use super::client::Connection;
use super::form::ManifestForm;
use super::upload::{self, Blob};
use super::{AT_ONCE, Access, Progress, RegistryError, Silent, endpoints, run};
use crate::images::archive::descriptor;
use crate::images::digest::{Digest, Hashing};
use crate::images::error::{StorageError, io_error};
use crate::images::files::to_json;
use crate::images::layers::decompress::Compression;
use crate::images::reference::{ImageRef, NameError};
use crate::images::store::{Adding, Image, ImageStore};

impl ImageStore {
    /// Sends an image to a registry, never to a mirror. [`ImageStore::share_content`] comes before
    /// the image is looked up. Without a form the manifest is in the words that it has here.
    /// Returns the digest of the manifest that the registry has.
    pub fn push(
        &self,
        image: &Image,
        to: &ImageRef,
        form: Option<ManifestForm>,
        access: &Access,
        progress: &dyn Progress,
    ) -> Result<Digest, StorageError> {
        if to.digest().is_some() {
            return Err(NameError::TaggedByDigest {
                name: to.to_string(),
            }
            .into());
        }
        // Before anything is sent: what is packed on the way has a name in any words.
        form.map(|form| form.express(&image.manifest)).transpose()?;
        let endpoints = endpoints(to, access)?;
        let own = endpoints.last().expect("there is one endpoint at least");
        let adding = self.add_content()?;
        run(async {
            let connection = Connection::make(own, access, RegistryOperation::Push).await?;
            progress.found();
            let send = |layer: &Descriptor| {
                let (layer, connection, adding) = (layer.clone(), &connection, &adding);
                async move { self.send_layer(layer, connection, adding, progress).await }
            };
            let layers: Vec<Descriptor> = stream::iter(image.manifest.layers())
                .map(send)
                .buffered(AT_ONCE)
                .try_collect()
                .await?;
            progress.config(&image.id);
            if !connection.has(&image.id).await {
                let config = self.blob(&image.id)?;
                upload::blob(&connection, &config, Box::new(Silent)).await?;
            }
            let mut manifest = image.manifest.clone();
            manifest.set_layers(layers);
            if let Some(form) = form {
                manifest = form.express(&manifest)?;
            }
            let text = match manifest == image.manifest {
                true => self.read_blob(&image.manifest_digest)?,
                false => to_json(&manifest),
            };
            let media_type = manifest.media_type().clone();
            let media_type = media_type.unwrap_or(MediaType::ImageManifest).to_string();
            progress.manifest();
            let digest = Digest::of(&text);
            connection.put_manifest(text, &media_type).await?;
            Ok(digest)
        })
    }

    /// Sends what the registry does not have. Returns what the manifest there has to say of it.
    async fn send_layer(
        &self,
        layer: Descriptor,
        connection: &Connection,
        adding: &Adding,
        progress: &dyn Progress,
    ) -> Result<Descriptor, StorageError> {
        let digest: Digest = layer.digest().to_string().parse().map_err(|error| {
            RegistryError::digest(&connection.registry, &connection.image, &error)
        })?;
        let mut blob = self.blob(&digest)?;
        let mut sent = layer;
        // Until it is sent.
        let dir = adding.dir()?;
        if is_plain(&blob.file).map_err(io_error("read", Path::new(digest.hex())))? {
            let packed = dir.path().join("layer");
            blob = compress(blob.file, &packed).await?;
            let media_type = match sent.media_type() {
                MediaType::Other(name) => MediaType::Other(format!("{name}.gzip")),
                _ => MediaType::ImageLayerGzip,
            };
            let annotations = sent.annotations().clone();
            sent = descriptor(media_type, &blob.digest, blob.len);
            sent.set_annotations(annotations);
        }
        if connection.has(&blob.digest).await {
            progress.layer_is_there(&blob.digest);
            return Ok(sent);
        }
        let shown = progress.layer(&blob.digest, blob.len);
        upload::blob(connection, &blob, shown).await?;
        Ok(sent)
    }

    fn blob(&self, digest: &Digest) -> Result<Blob, StorageError> {
        let file = self.open_blob(digest)?;
        let found = file.metadata();
        let found = found.map_err(io_error("examine", Path::new(digest.hex())))?;
        Ok(Blob {
            digest: digest.clone(),
            len: found.len(),
            file,
        })
    }
}

fn is_plain(mut blob: &File) -> io::Result<bool> {
    use std::io::{Read, Seek};
    let mut beginning = Vec::new();
    blob.take(6).read_to_end(&mut beginning)?;
    blob.rewind()?;
    let found = Compression::detect(&beginning);
    Ok(found.is_ok_and(|compression| compression == Compression::None))
}

/// Into a new file. On a thread of its own, since other layers are on their way.
async fn compress(mut tar: File, path: &Path) -> Result<Blob, StorageError> {
    let file = File::create_new(path).map_err(io_error("write", path))?;
    let packing = tokio::task::spawn_blocking(move || -> io::Result<_> {
        let mut encoder = GzEncoder::new(Hashing::new(file), Level::default());
        io::copy(&mut tar, &mut encoder)?;
        let packed = encoder.finish()?;
        Ok((packed.digest(), packed.len(), packed.into_inner()))
    });
    let packed = packing.await.map_err(io::Error::other).flatten();
    let (digest, len, file) = packed.map_err(io_error("write", path))?;
    Ok(Blob { digest, len, file })
}
