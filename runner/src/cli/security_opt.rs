//! `--security-opt OPTION`, in the spellings of Podman and Docker.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::values::parse_bool;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecurityOpt {
    NoNewPrivileges(bool),
    Seccomp(SeccompChoice),
    /// No SELinux or AppArmor label of the container's own: what there is anyhow.
    Unlabelled,
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
            (
                "seccomp" | "label" | "apparmor" | "mask" | "unmask" | "systempaths" | "proc-opts",
                _,
            ) => Err(not_here(text)),
            _ => Err(THERE_ARE.to_owned()),
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

const THERE_ARE: &str = "there are no-new-privileges, seccomp=FILE, seccomp=unconfined, \
     label=disable and apparmor=unconfined";

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
        ] {
            assert_eq!(parse(text), Ok(option), "{text}");
        }
    }

    #[test]
    fn what_is_not_here_is_refused_by_name() {
        for text in [
            "label=type:x",
            "apparmor=docker-default",
            "unmask=ALL",
            "seccomp",
            "seccomp=",
        ] {
            let error = parse(text).expect_err(text);
            assert!(
                error.contains("does not have") && error.contains(text),
                "{error}"
            );
        }
        assert!(parse("no-new-privileges=maybe").is_err());
        assert!(parse("nonsense").is_err());
    }
}
