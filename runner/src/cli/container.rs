//! Values that say what a container is made from and how it looks from inside.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::spec::Variable;

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

/// `--entrypoint`: a program with its arguments, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entrypoint(pub Vec<OsString>);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContainerArgError {
    #[error("{0:?} is not an absolute path")]
    NotAbsolute(String),
    #[error("coracle does not have ID-mapped root file systems yet")]
    RootfsIdmap,
    #[error("an empty path names no directory")]
    EmptyPath,
    #[error("expected NAME=VALUE or NAME")]
    Env,
    #[error("a label has a key: expected KEY=VALUE or KEY")]
    Label,
    #[error(
        "a host name has 1 to 64 letters, digits, '-', '_' and '.', and begins with a letter or digit"
    )]
    Hostname,
}

impl RootfsArg {
    /// For clap.
    pub fn parse(text: &OsStr) -> Result<Self, ContainerArgError> {
        let suffix = |suffix: &str| text.as_bytes().strip_suffix(suffix.as_bytes());
        // An overlay, which Podman has to be asked for, is what there is anyhow.
        let (dir, in_place) = match (suffix(":rw"), suffix(":O")) {
            (Some(dir), _) => (dir, true),
            (_, Some(dir)) => (dir, false),
            (None, None) => (text.as_bytes(), false),
        };
        if dir.is_empty() {
            return Err(ContainerArgError::EmptyPath);
        }
        if let Some((_, option)) = text.to_string_lossy().rsplit_once(':')
            && (option == "idmap" || option.starts_with("idmap="))
        {
            return Err(ContainerArgError::RootfsIdmap);
        }
        Ok(Self {
            dir: OsStr::from_bytes(dir).into(),
            in_place,
        })
    }
}

impl EnvArg {
    /// What it sets. A name that the caller does not have either is left out, as with
    /// `podman run -e NAME`.
    pub fn variable(&self) -> Option<Variable> {
        let value = self
            .value
            .clone()
            .or_else(|| std::env::var_os(&self.name))?;
        Some((self.name.clone(), value))
    }

    /// For clap. Names and values may hold any bytes but NUL, which no argument can hold.
    pub fn parse(text: &OsStr) -> Result<Self, ContainerArgError> {
        let mut parts = text.as_bytes().splitn(2, |byte| *byte == b'=');
        let mut part = || parts.next().map(|part| OsStr::from_bytes(part).to_owned());
        let (name, value) = (part().unwrap_or_default(), part());
        if name.is_empty() {
            return Err(ContainerArgError::Env);
        }
        Ok(Self { name, value })
    }
}

/// For clap. What is no list of strings in JSON is a program.
pub fn parse_entrypoint(text: &OsStr) -> Result<Entrypoint, ContainerArgError> {
    let list = text
        .to_str()
        .and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
    Ok(Entrypoint(match list {
        Some(list) => list.into_iter().map(OsString::from).collect(),
        None if text.is_empty() => Vec::new(),
        None => vec![text.to_owned()],
    }))
}

/// For clap: a label's key and value, which is empty where none is given.
pub fn parse_label(text: &str) -> Result<(String, String), ContainerArgError> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => Err(ContainerArgError::Label),
        (key, value) => Ok((key.to_owned(), value.to_owned())),
    }
}

/// For clap: ports that are exposed.
pub fn parse_expose(text: &str) -> Result<String, &'static str> {
    const EXPECTED: &str = "expected PORT, PORT-PORT, or either with /tcp or /udp behind";
    let rule: portfwd::spec::Publish = text.parse().map_err(|_| EXPECTED)?;
    // Where it is published is another matter.
    match text.contains(':') || rule.guest_ports.ports().is_empty() {
        true => Err(EXPECTED),
        false => Ok(text.to_owned()),
    }
}

/// For clap: a host name that `sethostname(2)` and `/etc/hosts` both take.
pub fn parse_hostname(text: &str) -> Result<String, ContainerArgError> {
    /// HOST_NAME_MAX of Linux.
    const HOSTNAME_MAX: usize = 64;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let starts_well = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let valid = starts_well && text.len() <= HOSTNAME_MAX && text.bytes().all(allowed);
    valid
        .then(|| text.to_owned())
        .ok_or(ContainerArgError::Hostname)
}

/// For clap: a working directory.
pub fn parse_workdir(text: &OsStr) -> Result<PathBuf, ContainerArgError> {
    let dir = PathBuf::from(text);
    if !dir.is_absolute() {
        return Err(ContainerArgError::NotAbsolute(dir.display().to_string()));
    }
    Ok(dir)
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
        assert_eq!(parse(":rw"), Err(ContainerArgError::EmptyPath));
        assert_eq!(parse(":O"), Err(ContainerArgError::EmptyPath));
        assert_eq!(parse("/x:idmap"), Err(ContainerArgError::RootfsIdmap));
        assert_eq!(
            parse("/x:idmap=uids=0-1-2"),
            Err(ContainerArgError::RootfsIdmap)
        );
    }

    #[test]
    fn hostnames() {
        for good in ["a", "web-1", "my_host", "7.example.org", &"a".repeat(64)] {
            assert_eq!(parse_hostname(good), Ok(good.to_owned()));
        }
        for bad in ["", "-a", ".a", "a b", "a\n", "_a", &"a".repeat(65)] {
            assert_eq!(
                parse_hostname(bad),
                Err(ContainerArgError::Hostname),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_variable_has_its_value_or_the_callers() {
        let parse = |text| EnvArg::parse(OsStr::new(text));
        let set = parse("B=x=y").expect("a variable").variable();
        assert_eq!(set, Some(("B".into(), "x=y".into())));
        let inherited = parse("PATH").expect("a name").variable();
        assert_eq!(inherited.map(|(_, value)| value), std::env::var_os("PATH"));
        let unknown = parse("CORACLE_TEST_UNSET").expect("a name").variable();
        assert_eq!(unknown, None);
        assert_eq!(parse("=x"), Err(ContainerArgError::Env));
    }

    #[test]
    fn an_entry_point_is_a_program_or_a_list() {
        let parse = |text: &str| parse_entrypoint(OsStr::new(text)).expect(text).0;
        assert_eq!(parse("/bin/sh -c"), ["/bin/sh -c"]);
        assert_eq!(parse(r#"["sh", "-c"]"#), ["sh", "-c"]);
        assert_eq!(parse("[sh"), ["[sh"]);
        assert!(parse("").is_empty() && parse("[]").is_empty());
    }

    #[test]
    fn a_label_has_a_key() {
        let label = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(parse_label("a=b=c"), label("a", "b=c"));
        assert_eq!(parse_label("a="), label("a", ""));
        assert_eq!(parse_label("org.example.a"), label("org.example.a", ""));
        for text in ["", "=", "=b"] {
            assert_eq!(parse_label(text), Err(ContainerArgError::Label), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            let os = OsStr::new(&text);
            let _ = (RootfsArg::parse(os), EnvArg::parse(os), parse_hostname(&text));
        }
    }
}
