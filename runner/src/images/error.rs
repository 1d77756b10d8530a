//! Why the storage of images did not do what it was asked for.

use std::io;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::reference::NameError;
use super::registries::RegistriesError;
use super::registry::RegistryError;
use crate::failure::Explained;
use crate::isolation::idmap::IdMapError;
use crate::isolation::namespaces::NamespaceError;

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Registry(Box<RegistryError>),
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("{name}: image not known; `coracle images` lists those that are there")]
    NotFound { name: String },
    #[error(
        "{name} says of no registry where it is to go: name a destination, as docker://REGISTRY/NAME"
    )]
    NoDestination { name: String },
    #[error("containers-storage:{name}: Podman has no such image in {}", place.display())]
    NotInPodman { name: String, place: PathBuf },
    #[error("{prefix} begins the ids of several images: give more digits")]
    Ambiguous { prefix: String },
    #[error(
        "{} has version {version}, and this coracle knows version {known}: use the coracle that wrote it, or a newer one",
        path.display()
    )]
    Newer {
        path: PathBuf,
        version: u32,
        known: u32,
    },
    #[error("{} is damaged: {defect}", path.display())]
    Damaged { path: PathBuf, defect: String },
    #[error("somebody is just adding images: try again when that is done")]
    Busy,
    #[error("the image has a layer that {form} has no name for, {kind}: push it without --format")]
    NoForm { form: &'static str, kind: String },
    #[error("cannot write the archive: {source}")]
    Archive { source: io::Error },
    #[error("cannot use the image in {origin}: {defect}")]
    Unusable { origin: String, defect: String },
    #[error("{what} is {found}, and was to be {expected}")]
    Mismatch {
        what: String,
        found: Digest,
        expected: Digest,
    },
    #[error("image {} is used by container {container}: `coracle rm {container}` removes that, `coracle rmi -f` both", id.short())]
    InUse { id: Digest, container: String },
    #[error("cannot tell which containers use the image: {source}")]
    Containers {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "image {} has several names: remove them one by one, or by `coracle rmi -f`: {}",
        id.short(),
        names.join(", ")
    )]
    SeveralNames { id: Digest, names: Vec<String> },
}

impl Explained for StorageError {}

impl From<RegistryError> for StorageError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// For `map_err`: an I/O error with what was being done to which path.
pub fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::Io {
        action,
        path,
        source,
    }
}
