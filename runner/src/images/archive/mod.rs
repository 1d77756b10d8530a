//! Images in files: what `load` reads and `save` writes.
//!
//! Three forms: docker-archive, a tar whose `manifest.json` names configurations and layers;
//! oci-archive, a tar of an OCI image layout; and that layout as a directory. They are told apart
//! by what is in them, and may come through a pipe: a tar is read once, its files put down in the
//! store as they come.

mod docker;
mod files;
mod oci;
mod save;

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

pub use docker::descriptor;
use files::Files;
pub use save::ArchiveForm;

use super::digest::Digest;
use super::error::StorageError;
use super::reference::ImageRef;
use super::store::{Adding, Image, ImageStore};

/// Where an image is, other than in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// An archive of either kind, compressed or not, or the directory of an OCI layout.
    File(PathBuf),
    DockerArchive(PathBuf),
    OciArchive(PathBuf),
    OciDirectory(PathBuf),
    /// The name or id of an image that Podman or buildah of the same user has.
    ContainersStorage(String),
}

/// Which form is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Any,
    Docker,
    Oci,
}

/// An image whose blobs are in the store, and which is not entered yet.
struct Found {
    manifest: Digest,
    manifest_len: u64,
    config: Digest,
    names: Vec<ImageRef>,
}

impl Place {
    /// Reads `oci-archive:FILE`, `docker-archive:FILE`, `oci:DIR` or `containers-storage:IMAGE`;
    /// `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (transport, path) = text.split_once(':')?;
        if transport == "containers-storage" && !path.is_empty() {
            return Some(Self::ContainersStorage(path.to_owned()));
        }
        let place = match transport {
            "docker-archive" => Self::DockerArchive,
            "oci-archive" => Self::OciArchive,
            "oci" => Self::OciDirectory,
            _ => return None,
        };
        (!path.is_empty()).then(|| place(path.into()))
    }
}

impl ImageStore {
    /// Adds the images at `place` to the store. `warn` is told of what is not as it should be.
    pub fn load(
        &self,
        place: &Place,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Vec<Image>, StorageError> {
        let (path, form) = match place {
            Place::File(path) => (path, Form::Any),
            Place::DockerArchive(path) => (path, Form::Docker),
            Place::OciArchive(path) | Place::OciDirectory(path) => (path, Form::Oci),
            Place::ContainersStorage(name) => return Ok(vec![self.load_from_podman(name, warn)?]),
        };
        let origin = path.display().to_string();
        let file = File::open(path).map_err(super::error::io_error("open", path))?;
        let is_dir = file.metadata().is_ok_and(|found| found.is_dir());
        let adding = self.add_content()?;
        let files = match is_dir {
            true => Files::directory(file, &origin),
            false => Files::unpack(file, &origin, &adding)?,
        };
        self.admit_all(&adding, &files, form, &origin, warn)
    }

    /// As [`ImageStore::load`], from a stream.
    pub fn load_from(
        &self,
        stream: impl Read,
        origin: &str,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Vec<Image>, StorageError> {
        let adding = self.add_content()?;
        let files = Files::unpack(stream, origin, &adding)?;
        self.admit_all(&adding, &files, Form::Any, origin, warn)
    }

    fn admit_all(
        &self,
        adding: &Adding,
        files: &Files,
        form: Form,
        origin: &str,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Vec<Image>, StorageError> {
        // Docker's own archives are of both forms, and name their images in the older one.
        let docker = form != Form::Oci && files.has(docker::MANIFEST);
        let found = match docker {
            true => docker::collect(files, adding)?,
            false if form != Form::Docker && files.has(oci::INDEX) => oci::collect(files, adding)?,
            false => {
                return Err(StorageError::Unusable {
                    origin: origin.to_owned(),
                    defect: match form {
                        Form::Any => format!(
                            "there is neither {} nor {} in it",
                            docker::MANIFEST,
                            oci::INDEX
                        ),
                        Form::Docker => format!("there is no {} in it", docker::MANIFEST),
                        Form::Oci => format!("there is no {} in it", oci::INDEX),
                    },
                });
            }
        };
        if found.is_empty() {
            return Err(StorageError::Unusable {
                origin: origin.to_owned(),
                defect: "there is no image in it".to_owned(),
            });
        }
        let admit = |found: Found| {
            self.admit(
                &found.config,
                &found.manifest,
                found.manifest_len,
                found.names,
                warn,
            )
        };
        found.into_iter().map(admit).collect()
    }
}
