//! A container as it is to be: everything validated, nothing looked up again later.
//!
//! Made by `engine::create` from what it was asked for, kept beside the container's record for its
//! monitor and for `exec`, and handed to its init as JSON. Paths are absolute; what they lead to is
//! checked where they are opened.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Explained;
use crate::health::HealthCheck;
use crate::isolation::capabilities::Capabilities;
use crate::isolation::namespaces::Namespaces;
use crate::isolation::resources::Resources;
use crate::isolation::seccomp::Seccomp;
use crate::isolation::sysctl::Sysctl;
use crate::network::names::Names;
use crate::network::options::NetworkOptions;
use crate::path_text;
use crate::process::inherited::SoftLimits;
use crate::process::ulimit::Ulimit;
use crate::rootfs::Tree;
use crate::secrets::SecretUse;
use crate::state::read_regular;
use crate::state::version::{self, Kept, Versioned};

/// All that init needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub hostname: String,
    pub tree: Tree,
    pub namespaces: Namespaces,
    pub sysctls: Vec<Sysctl>,
    /// Whether it has control groups of its own where it can.
    pub own_cgroups: bool,
    pub resources: Resources,
    pub network: Network,
    pub names: Names,
    /// The file of its time zone on the host, if it has one of its own.
    #[serde(with = "path_text::option")]
    pub timezone: Option<PathBuf>,
    /// Whether the input of its command stays open while nobody is there to write to it.
    pub open_stdin: bool,
    /// What the secrets say is kept apart, in their order.
    pub secrets: Vec<SecretUse>,
    /// Whether it was to have all that its caller has (`--privileged`).
    pub privileged: bool,
    /// How its health is checked, if it is.
    pub health: Option<HealthCheck>,
    pub process: ProcessSpec,
}

/// A program to run in a container: its command, or one that `exec` adds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessSpec {
    pub args: Vec<OsString>,
    /// `NAME=VALUE`. HOME is added from the user's entry in `/etc/passwd` when absent.
    pub env: Vec<OsString>,
    /// Inside the container.
    #[serde(with = "path_text")]
    pub workdir: PathBuf,
    /// Whether the working directory is made where it is missing, as an image's is.
    pub make_workdir: bool,
    /// As `user::resolve` takes it; empty for root.
    pub user: String,
    pub terminal: bool,
    pub capabilities: Capabilities,
    pub no_new_privs: bool,
    pub seccomp: Seccomp,
    /// The caller's; `None` where they were not kept.
    pub limits: Option<SoftLimits>,
    /// Over these.
    pub ulimits: Vec<Ulimit>,
    pub umask: u32,
    /// The caller's when not given, `proc_pid_oom_score_adj(5)`.
    pub oom_score_adj: Option<i32>,
    pub groups: ExtraGroups,
    /// Whether coracle stays as process 1, to pass signals on and to reap (`--init`).
    pub init: bool,
    /// Whether the container has one user and one group only. Told by whoever starts the process,
    /// which may not believe what it finds in the container's /proc.
    pub single_id: bool,
}

/// Groups besides those of the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExtraGroups {
    /// The container's, by names or numbers.
    Named(Vec<String>),
    /// Those of the caller on the host, in place of the user's. They have no names in the
    /// container.
    Callers,
}

impl Default for ExtraGroups {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Its own network with a way out through coracle-net.
    Coracle(NetworkOptions),
    /// Its own network with a loopback interface and nothing else.
    None,
    /// Its own network with an interface in each of the networks that the container's record names.
    Bridge,
    /// The host's.
    Host,
}

impl Default for Network {
    fn default() -> Self {
        Self::Coracle(NetworkOptions::default())
    }
}

impl ContainerSpec {
    /// What is kept in a container's data directory.
    pub fn to_kept(&self) -> Vec<u8> {
        serde_json::to_vec(&Versioned::new(self))
            .expect("a specification has only strings, numbers and lists")
    }

    /// Reads what `run` has kept in a container's data directory.
    pub fn load(data: &Path) -> Result<Self, SpecFileError> {
        let path = data.join(SPEC_FILE);
        let failed = |source| SpecFileError {
            path: path.clone(),
            source,
        };
        let text = read_regular(&path).map_err(failed)?;
        version::read(Kept::Spec, &text).map_err(|error| failed(io::Error::other(error)))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct SpecFileError {
    path: PathBuf,
    source: io::Error,
}

impl Explained for SpecFileError {}

/// The [`ContainerSpec`] in a container's data directory, as JSON.
pub const SPEC_FILE: &str = "spec.json";

/// PATH of a container whose image and caller name none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The permissions that new files of a container do not get when nothing is said of it.
pub const UMASK: u32 = 0o022;

/// A variable with its value.
pub type Variable = (OsString, OsString);

/// The environment of a program: in order, each later setting of a name replacing an earlier one.
pub fn environment(settings: impl IntoIterator<Item = Variable>) -> Vec<OsString> {
    let mut variables: Vec<Variable> = Vec::new();
    for (name, value) in settings {
        match variables.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => variables.push((name, value)),
        }
    }
    let join = |(mut entry, value): Variable| {
        entry.push("=");
        entry.push(value);
        entry
    };
    variables.into_iter().map(join).collect()
}

/// The parts of `NAME=VALUE`; `None` when it is none.
pub fn split_variable(entry: &OsStr) -> Option<Variable> {
    let mut parts = entry.as_bytes().splitn(2, |byte| *byte == b'=');
    let mut part = || parts.next().map(|part| OsStr::from_bytes(part).to_owned());
    let (name, value) = (part()?, part()?);
    (!name.is_empty()).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_settings_win() {
        let settings = ["A=1", "C=c", "B=x=y", "A="];
        let settings = settings.map(|entry| split_variable(entry.as_ref()).expect(entry));
        assert_eq!(environment(settings), ["A=", "C=c", "B=x=y"]);
    }

    #[test]
    fn variables_may_hold_any_bytes() {
        let bytes = OsStr::from_bytes(b"B=\xff=\xfe");
        let (name, value) = split_variable(bytes).expect("a variable");
        assert_eq!(
            (name.as_bytes(), value.as_bytes()),
            (&b"B"[..], &b"\xff=\xfe"[..])
        );
        assert_eq!(environment([(name, value)]), [bytes]);
        for none in ["B", "=x", ""] {
            assert_eq!(split_variable(OsStr::new(none)), None, "{none}");
        }
    }
}
