//! Why a registry did not give, or take, what it was asked for: each with its name, the image and a
//! way out.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use oci_client::errors::{OciDistributionError, OciErrorCode};

use crate::failure::{Explained, chain};
use crate::images::digest::InvalidDigest;

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("registry {registry} has no image {image}: check its name and tag")]
    NotFound { registry: String, image: String },
    #[error(
        "registry {registry} gives no access to {image}: `coracle login {registry}` first, or check the name, since many registries \
         say so of what they do not have"
    )]
    NoAccess { registry: String, image: String },
    #[error("registry {registry} does not take this user name and password")]
    Credentials { registry: String },
    #[error(
        "registry {registry} allows no more requests for now: wait, or `coracle login {registry}` for a larger share"
    )]
    RateLimit { registry: String },
    #[error(
        "cannot trust registry {registry}: {cause}; the certificate of its authority belongs into /etc/containers/certs.d/{registry}/ca.crt"
    )]
    Certificate { registry: String, cause: String },
    #[error(
        "registry {registry} does not speak TLS: if it is yours and the network is, too, `insecure = true` in registries.conf \
         or --tls-verify=false allows that"
    )]
    NoTls { registry: String },
    #[error("cannot reach registry {registry}: {cause}")]
    Unreachable { registry: String, cause: String },
    #[error("registry {registry} failed: {cause}; it may help to try again later")]
    Server { registry: String, cause: String },
    #[error("registry {registry} sent something else for {image} than it should have: {defect}")]
    Wrong {
        registry: String,
        image: String,
        defect: String,
    },
    #[error("registry {registry} has {image} for other platforms than {platform}: {there}")]
    Platform {
        registry: String,
        image: String,
        platform: String,
        there: String,
    },
    #[error(
        "the download of {blob} from {registry} broke off: {cause}; pulling again goes on there"
    )]
    BrokenOff {
        registry: String,
        blob: String,
        cause: String,
    },
    #[error(
        "the upload of {image} to {registry} broke off: {cause}; pushing again sends what is missing"
    )]
    UploadBrokenOff {
        registry: String,
        image: String,
        cause: String,
    },
    #[error("registry {registry} does not take {image}: {cause}")]
    NotTaken {
        registry: String,
        image: String,
        cause: String,
    },
    #[error(
        "registry {registry} does not list what it has: only the tags of a repository can be asked for, by --list-tags"
    )]
    NoCatalogue { registry: String },
    #[error("registries.conf blocks {image}")]
    Blocked { image: String },
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is no list of credentials: {source}", path.display())]
    AuthFile {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{}: what it has for {registry} is no user name and password", path.display())]
    AuthEntry { path: PathBuf, registry: String },
    #[error("the credential helper {helper} failed: {cause}")]
    Helper { helper: String, cause: String },
    #[error("{} holds no certificate: {cause}", path.display())]
    CertificateFile { path: PathBuf, cause: String },
    #[error("cannot start what talks to registries: {0}")]
    Runtime(io::Error),
}

impl Explained for RegistryError {}

impl RegistryError {
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub fn wrong(registry: &str, image: &str, defect: impl ToString) -> Self {
        Self::Wrong {
            registry: registry.to_owned(),
            image: image.to_owned(),
            defect: defect.to_string(),
        }
    }

    pub fn digest(registry: &str, image: &str, error: &InvalidDigest) -> Self {
        Self::wrong(registry, image, error)
    }

    /// What a failed request means.
    pub fn of(error: &OciDistributionError, registry: &str, image: &str) -> Self {
        let (registry, image) = (registry.to_owned(), image.to_owned());
        match error {
            OciDistributionError::RegistryError { envelope, .. } => {
                let code = envelope.errors.first().map(|error| &error.code);
                match code {
                    Some(
                        OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound
                        | OciErrorCode::BlobUnknown
                        | OciErrorCode::ManifestBlobUnknown,
                    ) => Self::NotFound { registry, image },
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => {
                        Self::NoAccess { registry, image }
                    }
                    Some(OciErrorCode::Toomanyrequests) => Self::RateLimit { registry },
                    _ => Self::Server {
                        registry,
                        cause: envelope.to_string(),
                    },
                }
            }
            OciDistributionError::ImageManifestNotFoundError(_) => {
                Self::NotFound { registry, image }
            }
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_) => Self::NoAccess { registry, image },
            OciDistributionError::ServerError { code, message, .. } => match code {
                401 | 403 => Self::NoAccess { registry, image },
                404 => Self::NotFound { registry, image },
                429 => Self::RateLimit { registry },
                code => Self::Server {
                    registry,
                    cause: format!("{code} {}", beginning(message)),
                },
            },
            OciDistributionError::RequestError(error) => Self::of_request(error, registry),
            OciDistributionError::DigestError(error) => Self::wrong(&registry, &image, error),
            other => Self::Server {
                registry,
                cause: chain(other),
            },
        }
    }

    /// As [`RegistryError::of`], for what was to be sent.
    pub fn of_sending(error: &OciDistributionError, registry: &str, image: &str) -> Self {
        let not_taken = |cause| Self::NotTaken {
            registry: registry.to_owned(),
            image: image.to_owned(),
            cause,
        };
        match error {
            OciDistributionError::ServerError { code, message, .. } => match code {
                401 | 403 | 429 | 500.. => Self::of(error, registry, image),
                _ => not_taken(format!("{code} {}", beginning(message))),
            },
            OciDistributionError::SpecViolationError(cause) => not_taken(cause.clone()),
            _ => Self::of(error, registry, image),
        }
    }

    fn of_request(error: &dyn Error, registry: String) -> Self {
        let mut cause: &dyn Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let cause = cause.to_string();
        match &*cause {
            text if text.contains("certificate") || text.contains("UnknownIssuer") => {
                Self::Certificate { registry, cause }
            }
            text if text.contains("InvalidContentType") => Self::NoTls { registry },
            _ => Self::Unreachable { registry, cause },
        }
    }

    /// Whether another address of the same image may do better.
    pub fn is_about_registry(&self) -> bool {
        !matches!(
            self,
            Self::Io { .. } | Self::Blocked { .. } | Self::Runtime(_) | Self::AuthFile { .. }
        )
    }
}

/// A server's page may be long.
fn beginning(message: &str) -> String {
    const LEN_MAX: usize = 200;
    message.trim_end().chars().take(LEN_MAX).collect()
}
