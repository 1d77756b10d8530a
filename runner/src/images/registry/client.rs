//! A registry that answers: which protocol it speaks, what it wants to be told, and its manifests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use oci_spec::image::ImageIndex;
use tokio::time::timeout;

use super::auth::{self, Credentials};
use super::error::RegistryError;
use super::{Access, Chosen};
use crate::images::digest::Digest;
use crate::images::platform::Platform;
use crate::images::registries::Endpoint;
use crate::images::store::JSON_LEN_MAX;

/// A connection may take so long to be made, and then be silent for so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A registry may take so long to store what it has got, silently.
pub const STORING_MAX: Duration = Duration::from_secs(300);

/// Manifests and indexes of OCI's and Docker's.
const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

pub struct Connection {
    pub client: Client,
    pub reference: Reference,
    auth: RegistryAuth,
    /// For messages.
    pub registry: String,
    pub image: String,
}

impl Connection {
    /// Finds out how the registry is to be talked to, and gets the right to pull or push. Where it
    /// need not be secure, TLS with any certificate is tried first, and then none.
    pub async fn make(
        endpoint: &Endpoint,
        access: &Access,
        operation: RegistryOperation,
    ) -> Result<Self, RegistryError> {
        let registry = endpoint.image.registry().to_owned();
        let repository = endpoint.image.name();
        let credentials = match &access.credentials {
            Some(credentials) => Some(credentials.clone()),
            None => auth::find(&repository, access.auth_file.as_deref())?,
        };
        // What is sent counts as silence to the client, which only watches what it gets.
        let read_timeout = (operation == RegistryOperation::Pull).then_some(PATIENCE);
        let auth = match credentials {
            Some(Credentials { user, password }) => RegistryAuth::Basic(user, password),
            None => RegistryAuth::Anonymous,
        };
        let protocols = match endpoint.insecure {
            true => &[ClientProtocol::Https, ClientProtocol::Http][..],
            false => &[ClientProtocol::Https],
        };
        let mut last = None;
        for protocol in protocols {
            let client = Client::new(ClientConfig {
                protocol: protocol.clone(),
                accept_invalid_certificates: endpoint.insecure,
                extra_root_certificates: certificates(&registry, access.cert_dir.as_deref())?,
                connect_timeout: Some(PATIENCE),
                read_timeout,
                use_monolithic_push: true,
                user_agent: concat!("coracle/", env!("CARGO_PKG_VERSION")),
                ..ClientConfig::default()
            });
            let connection = Self {
                client,
                reference: endpoint.image.reference().clone(),
                auth: auth.clone(),
                registry: registry.clone(),
                image: endpoint.image.to_string(),
            };
            match connection.authenticate(operation).await {
                Ok(()) => return Ok(connection),
                Err(error) => {
                    let error = RegistryError::of(&error, &registry, &connection.image);
                    let is_protocol = matches!(
                        error,
                        RegistryError::NoTls { .. } | RegistryError::Unreachable { .. }
                    );
                    if !is_protocol {
                        return Err(error);
                    }
                    last.get_or_insert(error);
                }
            }
        }
        Err(last.expect("one protocol was tried at least"))
    }

    async fn authenticate(&self, operation: RegistryOperation) -> Result<(), OciDistributionError> {
        let asked = self.client.auth(&self.reference, &self.auth, operation);
        match timeout(PATIENCE, asked).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(OciDistributionError::GenericError(Some(
                "it does not answer in time".to_owned(),
            ))),
        }
    }

    /// Whether the registry takes the credentials that it was made with, though it may not have the
    /// image.
    pub async fn try_credentials(&self) -> Result<(), RegistryError> {
        match self
            .client
            .list_tags(&self.reference, &self.auth, Some(1), None)
            .await
        {
            Ok(_) => Ok(()),
            Err(error) => match RegistryError::of(&error, &self.registry, &self.image) {
                RegistryError::NotFound { .. } => Ok(()),
                RegistryError::NoAccess { .. } => Err(RegistryError::Credentials {
                    registry: self.registry.clone(),
                }),
                other => Err(other),
            },
        }
    }

    /// A page of the names of repositories, behind `last`.
    pub async fn repositories(
        &self,
        count: usize,
        last: Option<&str>,
    ) -> Result<Vec<String>, RegistryError> {
        let asked = self
            .client
            .catalog(&self.reference, &self.auth, Some(count), last);
        let answer = self.in_time(asked).await;
        answer
            .map(|answer| answer.repositories)
            .map_err(|error| match error {
                RegistryError::NotFound { .. } | RegistryError::NoAccess { .. } => {
                    RegistryError::NoCatalogue {
                        registry: self.registry.clone(),
                    }
                }
                other => other,
            })
    }

    /// A page of the tags of the image's repository, behind `last`.
    pub async fn tags(
        &self,
        count: usize,
        last: Option<&str>,
    ) -> Result<Vec<String>, RegistryError> {
        let asked = self
            .client
            .list_tags(&self.reference, &self.auth, Some(count), last);
        Ok(self.in_time(asked).await?.tags)
    }

    /// An answer, which has to come before our patience ends.
    async fn in_time<T>(
        &self,
        asked: impl Future<Output = Result<T, OciDistributionError>>,
    ) -> Result<T, RegistryError> {
        match timeout(PATIENCE, asked).await {
            Ok(answer) => answer.map_err(|error| self.failed(&error)),
            Err(_) => Err(self.unreachable("it does not answer in time")),
        }
    }

    /// The manifest, or index, that the image's name stands for, or the one with this digest.
    pub async fn manifest(&self, digest: Option<&Digest>) -> Result<Chosen, RegistryError> {
        let reference = match digest {
            Some(digest) => self.reference.clone_with_digest(digest.to_string()),
            None => self.reference.clone(),
        };
        let asked = self
            .client
            .pull_manifest_raw(&reference, &self.auth, &ACCEPTED);
        let (text, _) = self.in_time(asked).await?;
        if text.len() as u64 > JSON_LEN_MAX {
            return Err(self.wrong("its manifest is too long".to_owned()));
        }
        let found = Digest::of(&text);
        match reference.digest() {
            Some(expected) if expected != found.to_string() => {
                Err(self.wrong(format!("its manifest is {found}, and was to be {expected}")))
            }
            _ => Ok(Chosen {
                text: text.to_vec(),
                digest: found,
            }),
        }
    }

    /// Whether the registry has the blob. One that does not tell is sent it.
    pub async fn has(&self, digest: &Digest) -> bool {
        let digest = digest.to_string();
        let asked = self.client.blob_exists(&self.reference, &digest);
        matches!(timeout(PATIENCE, asked).await, Ok(Ok(true)))
    }

    /// Gives the image's name to what the manifest is about.
    pub async fn put_manifest(&self, text: Vec<u8>, media_type: &str) -> Result<(), RegistryError> {
        let media_type = media_type
            .parse()
            .map_err(|_| self.wrong(format!("{media_type:?} is no type of a manifest")))?;
        let put = self
            .client
            .push_manifest_raw(&self.reference, text, media_type);
        match timeout(STORING_MAX, put).await {
            Ok(answer) => answer
                .map(drop)
                .map_err(|error| RegistryError::of_sending(&error, &self.registry, &self.image)),
            Err(_) => Err(self.unreachable("it does not answer in time")),
        }
    }

    pub fn failed(&self, error: &OciDistributionError) -> RegistryError {
        RegistryError::of(error, &self.registry, &self.image)
    }

    pub fn wrong(&self, defect: String) -> RegistryError {
        RegistryError::wrong(&self.registry, &self.image, defect)
    }

    pub fn no_platform(&self, wanted: &Platform, index: &ImageIndex) -> RegistryError {
        let platforms = index.manifests().iter().filter_map(|descriptor| {
            let platform = descriptor.platform().as_ref()?;
            Some(format!("{}/{}", platform.os(), platform.architecture()))
        });
        RegistryError::Platform {
            registry: self.registry.clone(),
            image: self.image.clone(),
            platform: wanted.to_string(),
            there: platforms.collect::<Vec<_>>().join(", "),
        }
    }

    fn unreachable(&self, cause: &str) -> RegistryError {
        RegistryError::Unreachable {
            registry: self.registry.clone(),
            cause: cause.to_owned(),
        }
    }
}

/// Of the authorities that the user trusts for a registry, containers-certs.d(5): those in `dir`
/// where one is given.
fn certificates(registry: &str, dir: Option<&Path>) -> Result<Vec<Certificate>, RegistryError> {
    let dirs = match dir {
        Some(dir) => {
            std::fs::read_dir(dir).map_err(RegistryError::io("list", dir))?;
            vec![dir.to_owned()]
        }
        None => {
            let home = std::env::var_os("HOME").map(PathBuf::from);
            let own = home.map(|home| home.join(".config/containers/certs.d"));
            let places = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
            let places = own.into_iter().chain(places);
            places.map(|place| place.join(registry)).collect()
        }
    };
    let mut certificates = Vec::new();
    for dir in dirs {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.extension().and_then(|ending| ending.to_str()) {
                Some("crt") => certificates.push(certificate(&path)?),
                Some("cert" | "key") => {
                    return Err(RegistryError::CertificateFile {
                        path,
                        cause: "coracle does not show certificates of its own yet".to_owned(),
                    });
                }
                _ => {}
            }
        }
    }
    Ok(certificates)
}

fn certificate(path: &Path) -> Result<Certificate, RegistryError> {
    let data = std::fs::read(path).map_err(RegistryError::io("read", path))?;
    // What is none would make the client go without all of them, unsaid.
    if !data.starts_with(b"-----BEGIN") {
        return Err(RegistryError::CertificateFile {
            path: path.to_owned(),
            cause: "it is not in PEM".to_owned(),
        });
    }
    Ok(Certificate {
        encoding: CertificateEncoding::Pem,
        data,
    })
}
