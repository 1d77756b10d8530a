//! Where `push` takes images, as `TRANSPORT:DETAILS`, containers-transports(5).

use std::path::PathBuf;
use std::str::FromStr;

use super::error::StorageError;
use super::reference::{ImageName, ImageRef, NameError};

/// Where an image goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// `docker://NAME`, and a name without a transport.
    Registry(ImageName),
    /// A file, which must not be there.
    DockerArchive(PathBuf, Option<ImageRef>),
    OciArchive(PathBuf, Option<String>),
    /// A directory, which may be there.
    OciDirectory(PathBuf, Option<String>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    #[error("{transport}: needs a path, as {transport}:./image")]
    NoPath { transport: String },
    #[error(
        "coracle does not push to {transport}: there are docker://, oci:, oci-archive: and docker-archive:"
    )]
    Elsewhere { transport: String },
    #[error(
        "coracle does not write into Podman's storage: `coracle push IMAGE docker-archive:FILE` and `podman load -i FILE` take \
         an image there"
    )]
    Podman,
    #[error("{0}")]
    Name(String),
}

impl From<NameError> for DestinationError {
    fn from(error: NameError) -> Self {
        Self::Name(error.to_string())
    }
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        const ELSEWHERE: [&str; 6] = ["dir", "docker-daemon", "ostree", "sif", "tarball", "atomic"];
        if let Some(name) = text.strip_prefix("docker://") {
            return Ok(Self::Registry(name.parse()?));
        }
        let (transport, details) = text.split_once(':').unwrap_or(("", text));
        if transport == "containers-storage" {
            return Err(DestinationError::Podman);
        }
        if ELSEWHERE.contains(&transport) {
            return Err(DestinationError::Elsewhere {
                transport: transport.to_owned(),
            });
        }
        if !matches!(transport, "docker-archive" | "oci-archive" | "oci") {
            return Ok(Self::Registry(text.parse()?));
        }
        let (path, name) = match details.split_once(':') {
            Some((path, name)) => (path, Some(name)),
            None => (details, None),
        };
        if path.is_empty() {
            return Err(DestinationError::NoPath {
                transport: transport.to_owned(),
            });
        }
        let path = PathBuf::from(path);
        Ok(match transport {
            // As Docker reads it, to whom it goes: a short name is one of Docker Hub's.
            "docker-archive" => Self::DockerArchive(path, name.map(str::parse).transpose()?),
            "oci-archive" => Self::OciArchive(path, name.map(str::to_owned)),
            _ => Self::OciDirectory(path, name.map(str::to_owned)),
        })
    }
}

impl Destination {
    /// The registry of an image's own name.
    ///
    /// # Errors
    /// For a name that no registry gave, which would lead nowhere.
    pub fn of(image: Option<&ImageRef>, wanted: &str) -> Result<Self, StorageError> {
        match image.filter(|name| name.registry() != "localhost") {
            Some(name) => Ok(Self::Registry(ImageName::Full(name.clone()))),
            None => Err(StorageError::NoDestination {
                name: image.map_or_else(|| wanted.to_owned(), ToString::to_string),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_are_told_from_names() {
        let name = |text: &str| Destination::Registry(text.parse().expect(text));
        for (text, expected) in [
            ("docker://quay.io/a/b:1", name("quay.io/a/b:1")),
            ("quay.io/a/b:1", name("quay.io/a/b:1")),
            ("localhost:5000/oci:1", name("localhost:5000/oci:1")),
            (
                "oci-archive:/x/y.tar",
                Destination::OciArchive("/x/y.tar".into(), None),
            ),
            (
                "oci:dir:a:b",
                Destination::OciDirectory("dir".into(), Some("a:b".into())),
            ),
            (
                "docker-archive:f:web:2",
                Destination::DockerArchive("f".into(), "docker.io/library/web:2".parse().ok()),
            ),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for (text, said) in [
            ("oci:", "needs a path"),
            ("oci-archive::x", "needs a path"),
            ("dir:/tmp/x", "does not push to dir"),
            ("containers-storage:localhost/x", "podman load"),
            ("docker-archive:f:A", "cannot name an image"),
            ("docker://", "cannot name an image"),
        ] {
            let error = text.parse::<Destination>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_of_no_registry_is_no_destination() {
        let of = |name: &str| Destination::of(name.parse().ok().as_ref(), name);
        of("quay.io/a/b:1").expect("a registry");
        of("localhost:5000/a:1").expect("a registry");
        for name in ["localhost/a:1", ""] {
            assert!(matches!(of(name), Err(StorageError::NoDestination { .. })));
        }
    }
}
