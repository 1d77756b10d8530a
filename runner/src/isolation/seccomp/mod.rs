//! Which system calls a container may make: the choice of `--security-opt seccomp=…`, and the
//! filter that follows from it.
//!
//! [`default`] is the profile of a container that names none, [`profile`] the JSON of one that
//! does, [`syscalls`] the names; `netstack::seccomp` has the filter as the kernel takes it. The
//! filter is made from the profile when a program is about to start in the container, `exec`
//! included, and installed as the last thing but the program itself (`process::rights`).

mod default;
mod profile;
mod syscalls;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use netstack::seccomp::{Program, TooLong, compile};
use serde::{Deserialize, Serialize};

use crate::failure::Explained;
use crate::isolation::capabilities::Capabilities;
use crate::state::REGULAR_LEN_MAX;
use profile::{Profile, ProfileError};
use syscalls::Machine;

/// What a container was started with. A profile is kept as a whole: the file may change or go.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// The profile that comes with coracle.
    #[default]
    Default,
    Profile(Box<Profile>),
    /// Every system call.
    Unconfined,
}

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("cannot read the seccomp profile {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot use the seccomp profile {}: {source}", path.display())]
    Profile { path: PathBuf, source: ProfileError },
    #[error("cannot make the container's seccomp filter: {0}")]
    Rule(#[from] ProfileError),
    #[error("cannot make the container's seccomp filter: {0}")]
    Length(#[from] TooLong),
    #[error("cannot make the container's seccomp filter: {0}")]
    Machine(io::Error),
    #[error("cannot install the container's seccomp filter: {0}")]
    Install(io::Error),
}

impl Explained for SeccompError {}

impl Seccomp {
    /// The profile in a file.
    pub fn from_file(path: &Path) -> Result<Self, SeccompError> {
        // Longer ones could not be kept.
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(REGULAR_LEN_MAX).read_to_end(&mut text))
            .map_err(|source| SeccompError::Read {
                path: path.to_owned(),
                source,
            })?;
        let profile = Profile::parse(&text).map_err(|source| SeccompError::Profile {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::Profile(Box::new(profile)))
    }

    /// The filter for a program with `capabilities`; `None` for none.
    pub fn filter(&self, capabilities: Capabilities) -> Result<Option<Filter>, SeccompError> {
        let default;
        let profile = match self {
            Self::Unconfined => return Ok(None),
            Self::Profile(profile) => profile,
            Self::Default => {
                default = default::profile();
                &default
            }
        };
        let machine = Machine::this().map_err(SeccompError::Machine)?;
        let decisions = profile.decisions(capabilities, &machine)?;
        Ok(Some(Filter {
            program: compile(&decisions, profile.default_action()?)?,
            flags: profile.flags(),
        }))
    }
}

/// A filter that is ready to be installed.
#[derive(Debug)]
pub struct Filter {
    program: Program,
    flags: u64,
}

impl Filter {
    /// For the calling thread and all that comes from it, for good. Needs `no_new_privs` or
    /// CAP_SYS_ADMIN in the caller's user namespace.
    pub fn install(&self) -> Result<(), SeccompError> {
        self.program
            .install(self.flags)
            .map_err(SeccompError::Install)
    }
}

#[cfg(test)]
mod tests;
