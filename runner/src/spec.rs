//! A container as it is to be: everything validated, nothing looked up again later.
//!
//! Made from flags by `commands::run`, handed to the container's init as JSON, and kept beside its
//! record for `exec`. Paths are absolute; what they lead to is checked where they are opened.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::inherited::SoftLimits;
use crate::path_text;
use crate::rootfs::Tree;
use crate::seccomp::Seccomp;
use crate::security::Capabilities;
use crate::state::read_regular;

/// All that init needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub hostname: String,
    pub tree: Tree,
    pub network: Network,
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
    /// As `user::resolve` takes it; empty for root.
    pub user: String,
    pub terminal: bool,
    pub capabilities: Capabilities,
    pub no_new_privs: bool,
    #[serde(default = "Seccomp::before_there_was_one")]
    pub seccomp: Seccomp,
    /// The caller's; `None` in a specification that an earlier version has written.
    #[serde(default)]
    pub limits: Option<SoftLimits>,
    /// Whether coracle stays as process 1, to pass signals on and to reap (`--init`).
    #[serde(default)]
    pub init: bool,
    /// Whether the container has one user and one group only. Told by whoever starts the process,
    /// which may not believe what it finds in the container's /proc.
    #[serde(default)]
    pub single_id: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Its own network with a way out through coracle-net.
    Default,
    /// Its own network with a loopback interface and nothing else.
    None,
}

impl ContainerSpec {
    /// Reads what `run` has kept in a container's data directory.
    pub fn load(data: &Path) -> Result<Self, SpecFileError> {
        let path = data.join(SPEC_FILE);
        let failed = |source| SpecFileError {
            path: path.clone(),
            source,
        };
        let text = read_regular(&path).map_err(failed)?;
        serde_json::from_slice(&text).map_err(|error| failed(error.into()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct SpecFileError {
    path: PathBuf,
    source: std::io::Error,
}

/// The [`ContainerSpec`] in a container's data directory, as JSON.
pub const SPEC_FILE: &str = "spec.json";

/// PATH of a container whose image and caller name none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `--rootfs DIR[:O|:rw]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsArg {
    pub dir: PathBuf,
    /// The directory itself is changed, instead of an overlay over it.
    pub in_place: bool,
}

/// `-e NAME=VALUE`, or `-e NAME` for the caller's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvArg {
    pub name: OsString,
    pub value: Option<OsString>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("{0:?} is not an absolute path")]
    NotAbsolute(String),
    #[error("coracle does not have ID-mapped root file systems yet")]
    RootfsIdmap,
    #[error("an empty path names no directory")]
    EmptyPath,
    #[error("expected NAME=VALUE or NAME")]
    Env,
    #[error(
        "a host name has 1 to 64 letters, digits, '-', '_' and '.', and begins with a letter or digit"
    )]
    Hostname,
}

impl RootfsArg {
    /// For clap.
    pub fn parse(text: &OsStr) -> Result<Self, SpecError> {
        let suffix = |suffix: &str| text.as_bytes().strip_suffix(suffix.as_bytes());
        // An overlay, which Podman has to be asked for, is what there is anyhow.
        let (dir, in_place) = match (suffix(":rw"), suffix(":O")) {
            (Some(dir), _) => (dir, true),
            (_, Some(dir)) => (dir, false),
            (None, None) => (text.as_bytes(), false),
        };
        if dir.is_empty() {
            return Err(SpecError::EmptyPath);
        }
        if let Some((_, option)) = text.to_string_lossy().rsplit_once(':')
            && (option == "idmap" || option.starts_with("idmap="))
        {
            return Err(SpecError::RootfsIdmap);
        }
        Ok(Self {
            dir: OsStr::from_bytes(dir).into(),
            in_place,
        })
    }
}

impl EnvArg {
    /// For clap. Names and values may hold any bytes but NUL, which no argument can hold.
    pub fn parse(text: &OsStr) -> Result<Self, SpecError> {
        let mut parts = text.as_bytes().splitn(2, |byte| *byte == b'=');
        let mut part = || parts.next().map(|part| OsStr::from_bytes(part).to_owned());
        let (name, value) = (part().unwrap_or_default(), part());
        if name.is_empty() {
            return Err(SpecError::Env);
        }
        Ok(Self { name, value })
    }
}

/// For clap: a host name that `sethostname(2)` and `/etc/hosts` both take.
pub fn parse_hostname(text: &str) -> Result<String, SpecError> {
    /// HOST_NAME_MAX of Linux.
    const HOSTNAME_MAX: usize = 64;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let starts_well = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let valid = starts_well && text.len() <= HOSTNAME_MAX && text.bytes().all(allowed);
    valid.then(|| text.to_owned()).ok_or(SpecError::Hostname)
}

/// For clap: a working directory.
pub fn parse_workdir(text: &OsStr) -> Result<PathBuf, SpecError> {
    let dir = PathBuf::from(text);
    if !dir.is_absolute() {
        return Err(SpecError::NotAbsolute(dir.display().to_string()));
    }
    Ok(dir)
}

/// A variable with its value.
pub type Variable = (OsString, OsString);

/// The environment of a program: `base` in order, each later setting of a name replacing an earlier
/// one.
pub fn environment(base: impl IntoIterator<Item = Variable>, asked: &[EnvArg]) -> Vec<OsString> {
    let mut variables: Vec<Variable> = Vec::new();
    let mut set =
        |name: OsString, value| match variables.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => variables.push((name, value)),
        };
    for (name, value) in base {
        set(name, value);
    }
    for arg in asked {
        // A name that the caller does not have either is left out, as with `podman run -e NAME`.
        if let Some(value) = arg.value.clone().or_else(|| std::env::var_os(&arg.name)) {
            set(arg.name.clone(), value);
        }
    }
    let join = |(mut entry, value): Variable| {
        entry.push("=");
        entry.push(value);
        entry
    };
    variables.into_iter().map(join).collect()
}

/// The parts of `NAME=VALUE`.
pub fn split_variable(entry: &OsStr) -> Option<Variable> {
    let EnvArg { name, value } = EnvArg::parse(entry).ok()?;
    Some((name, value?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rootfs() {
        let arg = |dir: &str, in_place| {
            Ok(RootfsArg {
                dir: dir.into(),
                in_place,
            })
        };
        let parse = |text: &str| RootfsArg::parse(OsStr::new(text));
        assert_eq!(parse("/srv/x"), arg("/srv/x", false));
        assert_eq!(parse("/srv/x:O"), arg("/srv/x", false));
        assert_eq!(parse("/srv/x:rw"), arg("/srv/x", true));
        assert_eq!(parse("/srv/x:rw/"), arg("/srv/x:rw/", false));
        assert_eq!(parse(":rw"), Err(SpecError::EmptyPath));
        assert_eq!(parse(":O"), Err(SpecError::EmptyPath));
        assert_eq!(parse("/x:idmap"), Err(SpecError::RootfsIdmap));
        assert_eq!(parse("/x:idmap=uids=0-1-2"), Err(SpecError::RootfsIdmap));
    }

    #[test]
    fn hostnames() {
        for good in ["a", "web-1", "my_host", "7.example.org", &"a".repeat(64)] {
            assert_eq!(parse_hostname(good), Ok(good.to_owned()));
        }
        for bad in ["", "-a", ".a", "a b", "a\n", "_a", &"a".repeat(65)] {
            assert_eq!(parse_hostname(bad), Err(SpecError::Hostname), "{bad}");
        }
    }

    #[test]
    fn later_settings_win_and_unknown_names_are_left_out() {
        let args: Vec<EnvArg> = ["A=1", "B=x=y", "A=", "CORACLE_TEST_UNSET"]
            .map(|text| EnvArg::parse(OsStr::new(text)).expect(text))
            .into();
        let base = [("A", "0"), ("C", "c")].map(|(name, value)| (name.into(), value.into()));
        assert_eq!(environment(base, &args), ["A=", "C=c", "B=x=y"]);
        assert_eq!(EnvArg::parse(OsStr::new("=x")), Err(SpecError::Env));
    }

    #[test]
    fn variables_may_hold_any_bytes() {
        let bytes = OsStr::from_bytes(b"B=\xff=\xfe");
        let arg = EnvArg::parse(bytes).expect("bytes");
        assert_eq!(environment([], &[arg]), [bytes]);
        let (name, value) = split_variable(bytes).expect("a variable");
        assert_eq!(
            (name.as_bytes(), value.as_bytes()),
            (&b"B"[..], &b"\xff=\xfe"[..])
        );
        assert_eq!(split_variable(OsStr::new("B")), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            let os = OsStr::new(&text);
            let _ = (RootfsArg::parse(os), EnvArg::parse(os), parse_hostname(&text));
        }
    }
}
