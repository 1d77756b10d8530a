//! `--security-opt OPTION`, in the spellings of Podman and Docker.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::values::parse_bool;
use crate::rootfs::Uncovered;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecurityOpt {
    NoNewPrivileges(bool),
    Seccomp(SeccompChoice),
    /// No SELinux or AppArmor label of the container's own: what there is anyhow.
    Unlabelled,
    /// Paths to be hidden.
    Mask(Vec<PathBuf>),
    /// What is not to be hidden or write-protected, as it is otherwise.
    Unmask(Uncovered),
}

/// The value of `seccomp=`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeccompChoice {
    Default,
    Unconfined,
    File(PathBuf),
}

impl SecurityOpt {
    /// For clap.
    pub fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        // Docker once had a colon in place of the equals sign.
        let separator = bytes.iter().position(|byte| matches!(byte, b'=' | b':'));
        let (name, value) = match separator {
            Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]))),
            None => (bytes, None),
        };
        let name = String::from_utf8_lossy(name);
        match (&*name, value) {
            ("no-new-privileges", None) => Ok(Self::NoNewPrivileges(true)),
            ("no-new-privileges", Some(value)) => {
                parse_bool(&value.to_string_lossy()).map(Self::NoNewPrivileges)
            }
            ("seccomp", Some(value)) if !value.is_empty() => Ok(Self::Seccomp(match value {
                value if value == "default" => SeccompChoice::Default,
                value if value == "unconfined" => SeccompChoice::Unconfined,
                file => SeccompChoice::File(file.into()),
            })),
            ("label", Some(value)) if value == "disable" => Ok(Self::Unlabelled),
            ("apparmor", Some(value)) if value == "unconfined" => Ok(Self::Unlabelled),
            ("mask", Some(value)) => paths(value).map(Self::Mask),
            ("unmask", Some(value)) if value == "ALL" => Ok(Self::Unmask(Uncovered::Everything)),
            ("unmask", Some(value)) => {
                let paths = paths(value)?;
                let plain = |path: PathBuf| match path.file_name() {
                    Some(name) if name == "*" => path.parent().map(PathBuf::from).unwrap_or(path),
                    _ => path,
                };
                let paths: Vec<_> = paths.into_iter().map(plain).collect();
                let is_pattern = |path: &PathBuf| {
                    let special = |byte: &u8| matches!(byte, b'*' | b'?' | b'[');
                    path.as_os_str().as_bytes().iter().any(special)
                };
                match paths.iter().find(|path| is_pattern(path)) {
                    Some(path) => Err(format!(
                        "{}: a pattern has its * at the end, as /proc/*",
                        path.display()
                    )),
                    None => Ok(Self::Unmask(Uncovered::Paths(paths))),
                }
            }
            ("systempaths", Some(value)) if value == "unconfined" => {
                Ok(Self::Unmask(Uncovered::Everything))
            }
            ("label", Some(_)) => Err(no_module(text, "SELinux", "/sys/fs/selinux")),
            ("apparmor", Some(_)) => {
                Err(no_module(text, "AppArmor", "/sys/kernel/security/apparmor"))
            }
            ("seccomp" | "label" | "apparmor" | "systempaths" | "proc-opts", _) => {
                Err(not_here(text))
            }
            _ => Err(THERE_ARE.to_owned()),
        }
    }
}

/// With colons between them.
fn paths(text: &OsStr) -> Result<Vec<PathBuf>, String> {
    let parts = text.as_bytes().split(|byte| *byte == b':');
    let paths: Vec<_> = parts
        .map(|part| PathBuf::from(OsStr::from_bytes(part)))
        .collect();
    match paths.iter().find(|path| !path.is_absolute()) {
        Some(path) => Err(format!(
            "{:?} is not an absolute path",
            path.display().to_string()
        )),
        None => Ok(paths),
    }
}

/// Why a label cannot be set.
fn no_module(text: &OsStr, name: &str, place: &str) -> String {
    let text = text.to_string_lossy();
    match Path::new(place).exists() {
        false => format!("{text} needs {name}, which is off on this host"),
        true => {
            format!("coracle does not set labels of {name} yet, as {text} asks for; {THERE_ARE}")
        }
    }
}

fn not_here(text: &OsStr) -> String {
    let text = OsString::from(text);
    format!(
        "coracle does not have {} yet; {THERE_ARE}",
        text.to_string_lossy()
    )
}

const THERE_ARE: &str = "there are no-new-privileges, seccomp=FILE, seccomp=unconfined, mask=PATHS, unmask=PATHS, \
     unmask=ALL, label=disable and apparmor=unconfined";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SecurityOpt, String> {
        SecurityOpt::parse(OsStr::new(text))
    }

    #[test]
    fn spellings_of_podman_and_docker() {
        use SeccompChoice::{Default, File, Unconfined};
        for (text, option) in [
            ("no-new-privileges", SecurityOpt::NoNewPrivileges(true)),
            ("no-new-privileges:true", SecurityOpt::NoNewPrivileges(true)),
            (
                "no-new-privileges=false",
                SecurityOpt::NoNewPrivileges(false),
            ),
            ("seccomp=unconfined", SecurityOpt::Seccomp(Unconfined)),
            ("seccomp:unconfined", SecurityOpt::Seccomp(Unconfined)),
            ("seccomp=default", SecurityOpt::Seccomp(Default)),
            (
                "seccomp=a=b.json",
                SecurityOpt::Seccomp(File("a=b.json".into())),
            ),
            ("label=disable", SecurityOpt::Unlabelled),
            ("apparmor=unconfined", SecurityOpt::Unlabelled),
            (
                "mask=/a:/b",
                SecurityOpt::Mask(vec!["/a".into(), "/b".into()]),
            ),
            ("unmask=ALL", SecurityOpt::Unmask(Uncovered::Everything)),
            (
                "systempaths=unconfined",
                SecurityOpt::Unmask(Uncovered::Everything),
            ),
            (
                "unmask=/proc/*:/sys/firmware",
                SecurityOpt::Unmask(Uncovered::Paths(vec![
                    "/proc".into(),
                    "/sys/firmware".into(),
                ])),
            ),
        ] {
            assert_eq!(parse(text), Ok(option), "{text}");
        }
    }

    #[test]
    fn what_is_not_here_is_refused_by_name() {
        for text in ["proc-opts=hidepid=2", "seccomp", "seccomp="] {
            let error = parse(text).expect_err(text);
            assert!(
                error.contains("does not have") && error.contains(text),
                "{error}"
            );
        }
        for text in ["label=type:x", "apparmor=docker-default"] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(text), "{error}");
        }
        for text in ["mask=a", "unmask=", "unmask=/proc/a*", "unmask=/p*/x"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("no-new-privileges=maybe").is_err());
        assert!(parse("nonsense").is_err());
    }
}
