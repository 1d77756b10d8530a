//! Images from registries.
//!
//! A pull is one call that blocks: it has a runtime of tokio's for itself, and nothing of it is
//! there before or after. Manifest, configuration and layers are named by their content, and each
//! is checked against its name before a byte of it is used. Layers come several at a time, and go
//! so in a `push`.

pub mod auth;
mod client;
mod download;
mod error;
pub mod form;
mod push;
pub mod search;
mod upload;

use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use oci_client::RegistryOperation;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde_json::Value;

use super::digest::Digest;
use super::error::StorageError;
use super::platform::Platform;
use super::reference::ImageRef;
use super::registries::{Endpoint, Registries};
use super::store::{Adding, Image, ImageStore, JSON_LEN_MAX, read_manifest};
use auth::Credentials;
use client::Connection;

pub use error::RegistryError;

/// How an image is to be got.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// This machine's when not given.
    pub platform: Option<Platform>,
    pub access: Access,
}

/// How a registry is to be talked to.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// In place of an entry in the user's files.
    pub credentials: Option<Credentials>,
    /// In place of the user's files.
    pub auth_file: Option<PathBuf>,
    /// What registries.conf says, when not given.
    pub tls_verify: Option<bool>,
    /// Holds certificates of authorities, in place of the registry's own directory in certs.d.
    pub cert_dir: Option<PathBuf>,
}

/// Who is told how a pull or a push goes on.
pub trait Progress {
    /// The image is asked for.
    fn trying(&self, image: &ImageRef);
    /// The image is there.
    fn found(&self);
    /// A layer comes or goes, of so many bytes.
    fn layer(&self, layer: &Digest, len: u64) -> Box<dyn BlobProgress>;
    /// A layer need not come, or go.
    fn layer_is_there(&self, layer: &Digest);
    fn config(&self, config: &Digest);
    fn manifest(&self);
}

/// Who is told how a layer comes or goes.
pub trait BlobProgress: Send + Sync {
    /// So many bytes are there, from the beginning.
    fn at(&self, len: u64);
    fn done(&self);
}

/// Layers that come, or go, at the same time.
const AT_ONCE: usize = 4;

impl ImageStore {
    /// Gets an image from its registry, or a mirror of that.
    pub fn pull(
        &self,
        image: &ImageRef,
        request: &PullRequest,
        progress: &dyn Progress,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Image, StorageError> {
        progress.trying(image);
        let endpoints = endpoints(image, &request.access)?;
        let adding = self.add_content()?;
        let got = run(async {
            let mut last = None;
            for endpoint in &endpoints {
                match self.fetch(endpoint, request, progress, &adding).await {
                    Err(StorageError::Registry(error)) if error.is_about_registry() => {
                        // Of several, the image's own says best what is wrong.
                        last = Some(StorageError::Registry(error));
                    }
                    got => return got,
                }
            }
            Err(last.expect("there is one endpoint at least"))
        })?;
        progress.manifest();
        let names = vec![image.clone()];
        let pulled = self.admit(&got.config, &got.manifest, got.manifest_len, names, warn)?;
        let platform = request.platform.clone().unwrap_or_else(Platform::this);
        let (os, architecture) = (pulled.config.os(), pulled.config.architecture());
        if !platform.is(&os.to_string(), &architecture.to_string()) {
            warn(&format!(
                "the image is for {os}/{architecture}, not for {platform}"
            ));
        }
        Ok(pulled)
    }

    /// Whether the image that is here is the one that the registry has for the wanted platform at
    /// the moment.
    pub fn is_current(
        &self,
        image: &ImageRef,
        there: &Image,
        request: &PullRequest,
    ) -> Result<bool, StorageError> {
        let endpoints = endpoints(image, &request.access)?;
        run(async {
            let mut last = None;
            for endpoint in &endpoints {
                let found = async {
                    let connection =
                        Connection::make(endpoint, &request.access, RegistryOperation::Pull)
                            .await?;
                    self.choose(&connection, request).await
                };
                match found.await {
                    Ok(chosen) => return Ok(chosen.digest == there.manifest_digest),
                    Err(error) => last = Some(error),
                }
            }
            Err(last.expect("there is one endpoint at least").into())
        })
    }

    async fn fetch(
        &self,
        endpoint: &Endpoint,
        request: &PullRequest,
        progress: &dyn Progress,
        adding: &Adding,
    ) -> Result<Fetched, StorageError> {
        let connection =
            Connection::make(endpoint, &request.access, RegistryOperation::Pull).await?;
        let Chosen { text, digest } = self.choose(&connection, request).await?;
        let wrong = |defect: String| connection.wrong(defect);
        let manifest: ImageManifest = read_manifest(digest.hex().as_ref(), &text)
            .map_err(|error| wrong(error.to_string()))?;
        let config = digest_of(manifest.config(), &connection)?;
        if manifest.config().size() > JSON_LEN_MAX {
            return Err(wrong("its configuration is too long".to_owned()).into());
        }
        progress.found();
        // Each once, however often a manifest names it.
        let mut layers: Vec<(Digest, u64)> = Vec::new();
        for layer in manifest.layers() {
            let digest = digest_of(layer, &connection)?;
            if !layers.iter().any(|(other, _)| *other == digest) {
                layers.push((digest, layer.size()));
            }
        }
        let download = |(digest, len): (Digest, u64)| {
            let connection = &connection;
            async move {
                if self.has_blob(&digest) {
                    progress.layer_is_there(&digest);
                    return Ok(());
                }
                let shown = progress.layer(&digest, len);
                download::blob(self, connection, &digest, len, adding, &*shown).await?;
                shown.done();
                Ok::<(), StorageError>(())
            }
        };
        stream::iter(layers)
            .map(download)
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        progress.config(&config);
        if !self.has_blob(&config) {
            let len = manifest.config().size();
            download::blob(self, &connection, &config, len, adding, &Silent).await?;
        }
        adding.write(&text)?;
        Ok(Fetched {
            manifest: digest,
            manifest_len: text.len() as u64,
            config,
        })
    }

    /// The manifest of the image for the platform that is wanted.
    async fn choose(
        &self,
        connection: &Connection,
        request: &PullRequest,
    ) -> Result<Chosen, RegistryError> {
        let first = connection.manifest(None).await?;
        let fields: Value = serde_json::from_slice(&first.text)
            .map_err(|error| connection.wrong(error.to_string()))?;
        if fields.get("manifests").is_none() || fields.get("layers").is_some() {
            return match fields.get("schemaVersion").and_then(Value::as_u64) {
                Some(2) => Ok(first),
                _ => {
                    Err(connection
                        .wrong("its manifest is of a form that went out of use".to_owned()))
                }
            };
        }
        let index: ImageIndex = serde_json::from_slice(&first.text)
            .map_err(|error| connection.wrong(error.to_string()))?;
        let platform = request.platform.clone().unwrap_or_else(Platform::this);
        let Some(ours) = platform.choose(index.manifests()) else {
            return Err(connection.no_platform(&platform, &index));
        };
        connection
            .manifest(Some(&digest_of(ours, connection)?))
            .await
    }
}

/// What is in the store now.
struct Fetched {
    manifest: Digest,
    manifest_len: u64,
    config: Digest,
}

/// A manifest or an index.
struct Chosen {
    text: Vec<u8>,
    digest: Digest,
}

struct Silent;

impl BlobProgress for Silent {
    fn at(&self, _: u64) {}

    fn done(&self) {}
}

fn digest_of(descriptor: &Descriptor, connection: &Connection) -> Result<Digest, RegistryError> {
    let digest = descriptor.digest().to_string().parse();
    digest.map_err(|error| connection.wrong(format!("{error}")))
}

fn endpoints(image: &ImageRef, access: &Access) -> Result<Vec<Endpoint>, StorageError> {
    let endpoints = Registries::load()?.endpoints(image);
    let mut endpoints = endpoints.ok_or_else(|| RegistryError::Blocked {
        image: image.to_string(),
    })?;
    if let Some(verify) = access.tls_verify {
        for endpoint in &mut endpoints {
            endpoint.insecure = !verify;
        }
    }
    Ok(endpoints)
}

/// Whether a registry takes the credentials in `access`.
pub fn try_credentials(registry: &str, access: &Access) -> Result<(), StorageError> {
    let image: ImageRef = format!("{registry}/coracle/login").parse()?;
    let endpoints = endpoints(&image, access)?;
    let own = endpoints.last().expect("there is one endpoint at least");
    run(async {
        let connection = Connection::make(own, access, RegistryOperation::Pull).await?;
        Ok(connection.try_credentials().await?)
    })
}

/// Runs what waits for the network, on this thread.
fn run<T>(task: impl Future<Output = Result<T, StorageError>>) -> Result<T, StorageError> {
    static PROVIDER: Once = Once::new();
    // Fails where the program around has chosen another, which does as well.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RegistryError::Runtime)?;
    let result = runtime.block_on(task);
    // A look-up of a name may hang in a thread of its own.
    runtime.shutdown_timeout(Duration::ZERO);
    result
}
