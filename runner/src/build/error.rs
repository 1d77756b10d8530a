//! Why an image could not be made.

use std::io;
use std::path::{Path, PathBuf};

use crate::failure::Explained;
use crate::images::error::StorageError;
use crate::images::layers::apply::ApplyError;
use crate::process::user::UserError;
use crate::rootfs::overlay::OverlayError;
use crate::state::StateError;

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{wanted}: no such working container; `coracle containers` lists those that are there")]
    NotFound { wanted: String },
    #[error("{prefix} begins the ids of several working containers: give more digits")]
    Ambiguous { prefix: String },
    #[error(
        "{name:?} cannot name a container: use a letter or digit, then letters, digits, '_', '.' and '-', 128 at most"
    )]
    InvalidName { name: String },
    #[error("the name {name} is in use by container {holder}")]
    NameTaken { name: String, holder: String },
    #[error("{} is damaged: {defect}; `coracle rm {}` forgets the container", path.display(), id)]
    Damaged {
        id: String,
        path: PathBuf,
        defect: String,
    },
    #[error("{}: there is no such file or directory", path.display())]
    NoSource { path: PathBuf },
    #[error("{url}: coracle does not fetch what it adds: get it first, by curl or wget")]
    Url { url: String },
    #[error("cannot read {}: {source}", path.display())]
    Pack { path: PathBuf, source: io::Error },
    #[error("cannot write into the container: {source}")]
    Apply { source: ApplyError },
    #[error("cannot make a layer of what has changed: {source}")]
    Layer { source: io::Error },
    #[error("{owner:?}: {source}")]
    Owner { owner: String, source: UserError },
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    State(#[from] StateError),
}

impl Explained for BuildError {}

impl BuildError {
    /// For `map_err`: what was being done to which path.
    pub fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }
}
