//! A container as it is to be: everything validated, nothing looked up again later.
//!
//! Made from flags by `commands::run`, handed to the container's init as JSON, and kept beside its record for `exec`. Paths are
//! absolute; what they lead to is checked where they are opened.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::inherited::SoftLimits;
use crate::path_text;
use crate::rootfs::{Bind, Tree};
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
    /// The caller's; `None` in a specification that an earlier version has written.
    #[serde(default)]
    pub limits: Option<SoftLimits>,
    /// Whether coracle stays as process 1, to pass signals on and to reap (`--init`).
    #[serde(default)]
    pub init: bool,
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

/// `-v SRC:DST[:ro|:rw]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeArg(pub Bind);

/// `--rootfs DIR[:rw]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsArg {
    pub dir: PathBuf,
    /// The directory itself is changed, instead of an overlay over it.
    pub in_place: bool,
}

/// `-e NAME=VALUE`, or `-e NAME` for the caller's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvArg {
    pub name: String,
    pub value: Option<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("expected SRC:DST or SRC:DST:ro")]
    Volume,
    #[error("unknown option {0:?}, there are ro and rw")]
    VolumeOption(String),
    #[error("{0:?} is not an absolute path")]
    NotAbsolute(String),
    #[error("the container's own {0} cannot be mounted over")]
    Forbidden(&'static str),
    #[error("an empty path names no directory")]
    EmptyPath,
    #[error("expected NAME=VALUE or NAME")]
    Env,
    #[error(
        "a host name has 1 to 64 letters, digits, '-' and '.', and begins with a letter or digit"
    )]
    Hostname,
}

impl FromStr for VolumeArg {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut fields = text.split(':');
        let (source, target) = (
            fields.next().unwrap_or(""),
            fields.next().ok_or(SpecError::Volume)?,
        );
        let read_only = match fields.next() {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(other) => return Err(SpecError::VolumeOption(other.to_owned())),
        };
        if source.is_empty() || target.is_empty() || fields.next().is_some() {
            return Err(SpecError::Volume);
        }
        let target = Path::new(target);
        if !target.is_absolute() {
            return Err(SpecError::NotAbsolute(target.display().to_string()));
        }
        // Early and plain; where links lead is checked when the mount is attached.
        for forbidden in ["/proc", "/sys"] {
            if target.starts_with(forbidden) {
                return Err(SpecError::Forbidden(forbidden));
            }
        }
        if target.components().count() == 1 {
            return Err(SpecError::Forbidden("/"));
        }
        Ok(Self(Bind {
            source: source.into(),
            target: target.into(),
            read_only,
            options: Default::default(),
        }))
    }
}

impl FromStr for RootfsArg {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (dir, in_place) = match text.strip_suffix(":rw") {
            Some(dir) => (dir, true),
            None => (text, false),
        };
        if dir.is_empty() {
            return Err(SpecError::EmptyPath);
        }
        Ok(Self {
            dir: dir.into(),
            in_place,
        })
    }
}

impl FromStr for EnvArg {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() || text.contains('\0') {
            return Err(SpecError::Env);
        }
        Ok(Self {
            name: name.to_owned(),
            value,
        })
    }
}

/// For clap: a host name that `sethostname(2)` and `/etc/hosts` both take.
pub fn parse_hostname(text: &str) -> Result<String, SpecError> {
    /// HOST_NAME_MAX of Linux.
    const HOSTNAME_MAX: usize = 64;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    let starts_well = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let valid = starts_well && text.len() <= HOSTNAME_MAX && text.bytes().all(allowed);
    valid.then(|| text.to_owned()).ok_or(SpecError::Hostname)
}

/// For clap: a working directory.
pub fn parse_workdir(text: &str) -> Result<PathBuf, SpecError> {
    if !text.starts_with('/') {
        return Err(SpecError::NotAbsolute(text.to_owned()));
    }
    Ok(text.into())
}

/// The environment of a program: `base` in order, each later setting of a name replacing an earlier one.
pub fn environment<'a>(
    base: impl IntoIterator<Item = (&'a str, &'a str)>,
    asked: &[EnvArg],
) -> Vec<OsString> {
    let mut variables: Vec<(String, OsString)> = Vec::new();
    let mut set =
        |name: &str, value: OsString| match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => variables.push((name.to_owned(), value)),
        };
    for (name, value) in base {
        set(name, value.into());
    }
    for arg in asked {
        // A name that the caller does not have either is left out, as with `podman run -e NAME`.
        if let Some(value) = arg
            .value
            .clone()
            .map(OsString::from)
            .or_else(|| std::env::var_os(&arg.name))
        {
            set(&arg.name, value);
        }
    }
    let join = |(name, value): (String, OsString)| {
        let mut entry = OsString::from(name + "=");
        entry.push(value);
        entry
    };
    variables.into_iter().map(join).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn volumes() {
        let bind = |source: &str, target: &str, read_only| {
            Ok(VolumeArg(Bind {
                source: source.into(),
                target: target.into(),
                read_only,
                options: Default::default(),
            }))
        };
        assert_eq!("/a:/b".parse::<VolumeArg>(), bind("/a", "/b", false));
        assert_eq!(
            "./a:/b/c:ro".parse::<VolumeArg>(),
            bind("./a", "/b/c", true)
        );
        assert_eq!("a:/b:rw".parse::<VolumeArg>(), bind("a", "/b", false));
        for (text, error) in [
            ("/a", SpecError::Volume),
            (":/b", SpecError::Volume),
            ("/a:", SpecError::Volume),
            ("/a:/b:ro:x", SpecError::Volume),
            ("/a:/b:z", SpecError::VolumeOption("z".into())),
            ("/a:b", SpecError::NotAbsolute("b".into())),
            ("/a:/proc/sys", SpecError::Forbidden("/proc")),
            ("/a:/sys", SpecError::Forbidden("/sys")),
            ("/a:/", SpecError::Forbidden("/")),
            ("/a:///", SpecError::Forbidden("/")),
        ] {
            assert_eq!(text.parse::<VolumeArg>(), Err(error), "{text}");
        }
    }

    #[test]
    fn rootfs() {
        let arg = |dir: &str, in_place| {
            Ok(RootfsArg {
                dir: dir.into(),
                in_place,
            })
        };
        assert_eq!("/srv/x".parse::<RootfsArg>(), arg("/srv/x", false));
        assert_eq!("/srv/x:rw".parse::<RootfsArg>(), arg("/srv/x", true));
        assert_eq!("/srv/x:rw/".parse::<RootfsArg>(), arg("/srv/x:rw/", false));
        assert_eq!(":rw".parse::<RootfsArg>(), Err(SpecError::EmptyPath));
    }

    #[test]
    fn hostnames() {
        for good in ["a", "web-1", "7.example.org", &"a".repeat(64)] {
            assert_eq!(parse_hostname(good), Ok(good.to_owned()));
        }
        for bad in ["", "-a", ".a", "a b", "a\n", "a_b", &"a".repeat(65)] {
            assert_eq!(parse_hostname(bad), Err(SpecError::Hostname), "{bad}");
        }
    }

    #[test]
    fn later_settings_win_and_unknown_names_are_left_out() {
        let args: Vec<EnvArg> = ["A=1", "B=x=y", "A=", "CORACLE_TEST_UNSET"]
            .map(|text| text.parse().expect(text))
            .into();
        assert_eq!(
            environment([("A", "0"), ("C", "c")], &args),
            ["A=", "C=c", "B=x=y"]
        );
        assert_eq!("=x".parse::<EnvArg>(), Err(SpecError::Env));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            let _ = (text.parse::<VolumeArg>(), text.parse::<RootfsArg>(), text.parse::<EnvArg>(), parse_hostname(&text));
        }

        #[test]
        fn volume_paths_survive(source in "[^:\0]{1,20}", target in "/[a-z/]{1,20}", read_only: bool) {
            let text = format!("{source}:{target}{}", if read_only { ":ro" } else { "" });
            if let Ok(VolumeArg(bind)) = text.parse::<VolumeArg>() {
                prop_assert_eq!(bind.source.to_str(), Some(&*source));
                prop_assert_eq!(bind.target.to_str(), Some(&*target));
                prop_assert_eq!(bind.read_only, read_only);
            }
        }
    }
}
