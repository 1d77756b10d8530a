//! Why a command ended without the container's own exit code, and which code says so.
//!
//! A failure crosses process boundaries as text plus kind, so that `main` alone prints it and picks
//! the exit code. The codes are those of `podman run` and `docker run`, which scripts test for.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A failed command: what `main` prints after `coracle: `, and the kind that decides the exit code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No container has that name.
    NoSuchContainer,
    /// The container would have to end first.
    StillRunning,
    /// No image has that name.
    NoSuchImage,
    /// A container uses the image.
    ImageInUse,
    /// No volume has that name.
    NoSuchVolume,
    /// A container uses the volume.
    VolumeInUse,
    /// No network has that name.
    NoSuchNetwork,
    /// A container is in the network.
    NetworkInUse,
    /// coracle itself could not do it: 125.
    Runner,
    /// The command was found and cannot be executed: 126.
    NotExecutable,
    /// A published port cannot be bound: 126.
    PortUnavailable,
    /// The command was not found: 127.
    NotFound,
}

impl FailureKind {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::NoSuchContainer
            | Self::StillRunning
            | Self::NoSuchImage
            | Self::ImageInUse
            | Self::NoSuchVolume
            | Self::VolumeInUse
            | Self::NoSuchNetwork
            | Self::NetworkInUse
            | Self::Runner => 125,
            Self::NotExecutable | Self::PortUnavailable => 126,
            Self::NotFound => 127,
        }
    }

    /// The code of `rm`, `rmi`, `volume rm` and `network rm`, which tell two failures apart that
    /// are like others elsewhere.
    pub fn exit_code_of_rm(self) -> u8 {
        match self {
            Self::NoSuchContainer
            | Self::NoSuchImage
            | Self::NoSuchVolume
            | Self::NoSuchNetwork => 1,
            Self::StillRunning | Self::ImageInUse | Self::VolumeInUse | Self::NetworkInUse => 2,
            other => other.exit_code(),
        }
    }
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub fn runner(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Runner, message)
    }

    /// For `map_err`: a failure of coracle itself, with what was being done.
    pub fn context<E: Error>(doing: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self::runner(format!("{doing}: {}", chain(&error)))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error with its sources, less those that the outer ones have quoted already.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// An error whose text says what was being done to what. An `io::Error` or errno does not: it
/// becomes a failure by [`Failure::context`] only.
pub trait Explained: Error {}

impl<E: Explained> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::runner(chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open x: {source}")]
    struct Quoting {
        source: std::io::Error,
    }

    impl Explained for Quoting {}

    #[test]
    fn a_cause_is_told_once() {
        let error = || Quoting {
            source: std::io::Error::from_raw_os_error(libc::ENOENT),
        };
        assert_eq!(
            Failure::from(error()).message,
            "cannot open x: No such file or directory (os error 2)"
        );
        let failure = Failure::context("cannot start")(error());
        assert_eq!(
            failure.message,
            "cannot start: cannot open x: No such file or directory (os error 2)"
        );
        assert_eq!(failure.kind.exit_code(), 125);
    }
}
