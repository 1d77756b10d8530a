//! File systems in memory at places of a container's: `--tmpfs PLACE[:OPTIONS]`.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown};
use rustix::mount::MountAttrFlags;
use serde::{Deserialize, Serialize};

use super::lookup::open_beneath;
use super::mounts::Detached;
use super::volume::{VolumeError, checked_target};
use crate::path_text;
use crate::units;

/// One file system in memory. It ends with the container's processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    #[serde(with = "path_text")]
    pub target: PathBuf,
    pub read_only: bool,
    /// Whether programs may be executed, setuid files have effect, devices can be opened.
    pub exec: bool,
    pub suid: bool,
    pub dev: bool,
    /// What it may hold at most, as `tmpfs(5)` takes it: bytes, or a part of the memory in percent.
    /// Half of the memory when not given.
    pub size: Option<String>,
    /// The permissions of its root. Those of the image's directory when not given, or 1777.
    pub mode: Option<u32>,
    /// The owner of its root, as the container numbers users. Those of the image's directory, or
    /// root.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Whether it begins with what the image has at its place.
    pub copy_up: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum TmpfsError {
    #[error(transparent)]
    Target(#[from] VolumeError),
    #[error("expected PLACE or PLACE:OPTIONS")]
    Form,
    #[error("{0} and {1} cannot be given together")]
    Contradiction(String, String),
    #[error("{0}")]
    Value(String),
    #[error(
        "unknown option {0:?}; there are ro, rw, [no]exec, [no]suid, [no]dev, size=, mode=, uid=, gid=, tmpcopyup \
         and notmpcopyup"
    )]
    UnknownOption(String),
}

impl Tmpfs {
    /// As Podman makes one when nothing more is said.
    pub fn new(target: &OsStr) -> Result<Self, TmpfsError> {
        Ok(Self {
            target: checked_target(target)?,
            read_only: false,
            exec: true,
            suid: false,
            dev: false,
            size: None,
            mode: None,
            uid: None,
            gid: None,
            copy_up: true,
        })
    }

    /// For clap.
    pub fn parse(text: &str) -> Result<Self, TmpfsError> {
        let (target, options) = match text.split_once(':') {
            Some((target, options)) => (target, Some(options)),
            None => (text, None),
        };
        if options.is_some_and(|options| options.contains(':')) {
            return Err(TmpfsError::Form);
        }
        let mut tmpfs = Self::new(target.as_ref())?;
        if let Some(options) = options {
            tmpfs.set_options(options.split(','))?;
        }
        Ok(tmpfs)
    }

    /// Each subject once.
    pub fn set_options<'a>(
        &mut self,
        options: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), TmpfsError> {
        let mut said: Vec<(&str, &str)> = Vec::new();
        for option in options {
            let subject = self.set(option)?;
            if let Some((_, other)) = said.iter().find(|(known, _)| *known == subject) {
                let (one, other) = ((*other).to_owned(), option.to_owned());
                return Err(TmpfsError::Contradiction(one, other));
            }
            said.push((subject, option));
        }
        Ok(())
    }

    /// Returns what the option is about.
    fn set(&mut self, option: &str) -> Result<&'static str, TmpfsError> {
        let unknown = || TmpfsError::UnknownOption(option.to_owned());
        if let Some((key, value)) = option.split_once('=') {
            let id = || {
                let id = value.parse().ok();
                id.ok_or_else(|| TmpfsError::Value(format!("{option}: expected a number")))
            };
            return match key {
                "size" => {
                    self.size = Some(size(value).map_err(TmpfsError::Value)?);
                    Ok("size")
                }
                "mode" => {
                    let mode = units::mode(value);
                    let wrong = |expected| TmpfsError::Value(format!("{option}: {expected}"));
                    self.mode = Some(mode.map_err(wrong)?);
                    Ok("mode")
                }
                "uid" => {
                    self.uid = Some(id()?);
                    Ok("uid")
                }
                "gid" => {
                    self.gid = Some(id()?);
                    Ok("gid")
                }
                _ => Err(unknown()),
            };
        }
        let (place, on, subject) = match option {
            "ro" | "rw" => (&mut self.read_only, option == "ro", "writing"),
            "exec" | "noexec" => (&mut self.exec, option == "exec", "exec"),
            "suid" | "nosuid" => (&mut self.suid, option == "suid", "suid"),
            "dev" | "nodev" => (&mut self.dev, option == "dev", "dev"),
            "tmpcopyup" | "notmpcopyup" => (&mut self.copy_up, option == "tmpcopyup", "copying"),
            // What it is in any case: nobody else has it mounted.
            "private" | "rprivate" => return Ok("propagation"),
            _ => return Err(unknown()),
        };
        *place = on;
        Ok(subject)
    }

    /// As `inspect` shows them.
    pub fn options(&self) -> String {
        let flag = |on: bool, word: &'static str, other: &'static str| {
            let word = if on { word } else { other };
            word.to_owned()
        };
        let mut options = vec![flag(self.read_only, "ro", "rw")];
        options.push("rprivate".to_owned());
        options.push(flag(self.exec, "exec", "noexec"));
        options.push(flag(self.suid, "suid", "nosuid"));
        options.push(flag(self.dev, "dev", "nodev"));
        options.extend(self.size.as_ref().map(|size| format!("size={size}")));
        options.extend(self.mode.map(|mode| format!("mode={mode:o}")));
        options.extend(self.uid.map(|uid| format!("uid={uid}")));
        options.extend(self.gid.map(|gid| format!("gid={gid}")));
        if self.copy_up {
            options.push("tmpcopyup".to_owned());
        }
        options.join(",")
    }

    /// Makes it, attached nowhere. To be done by root of the user namespace that uses it.
    pub(super) fn make(&self) -> io::Result<Detached> {
        /// What everybody may write to, and nobody may remove others' files from.
        const SHARED: u32 = 0o1777;
        let mut options = vec![("mode", format!("{:o}", self.mode.unwrap_or(SHARED)))];
        options.extend(self.size.clone().map(|size| ("size", size)));
        options.extend(self.uid.map(|uid| ("uid", uid.to_string())));
        options.extend(self.gid.map(|gid| ("gid", gid.to_string())));
        let options: Vec<_> = options
            .iter()
            .map(|(key, value)| (*key, &**value))
            .collect();
        let mut flags = MountAttrFlags::empty();
        flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, !self.exec);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !self.suid);
        flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, !self.dev);
        Detached::filesystem("tmpfs", &options, flags)
    }

    /// What is left to do once it has what the image has: that brings an owner and a mode along.
    pub(super) fn finish(&self, mount: &Detached) -> io::Result<()> {
        let root = open_beneath(mount, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?;
        let (owner, group) = (self.uid.map(Uid::from_raw), self.gid.map(Gid::from_raw));
        if owner.is_some() || group.is_some() {
            fchown(&root, owner, group)?;
        }
        if let Some(mode) = self.mode {
            fchmod(&root, Mode::from_raw_mode(mode))?;
        }
        if self.read_only {
            mount.restrict(MountAttrFlags::MOUNT_ATTR_RDONLY, false)?;
        }
        Ok(())
    }
}

/// Bytes or percents, checked.
fn size(text: &str) -> Result<String, String> {
    let percents = text
        .strip_suffix('%')
        .map(|number| number.parse::<u8>().is_ok_and(|number| number <= 100));
    match percents {
        Some(true) => Ok(text.to_owned()),
        Some(false) => Err(format!("size={text}: expected 0% to 100%")),
        None => units::size(text).map(|bytes| bytes.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn options_are_podmans() {
        let plain = Tmpfs::parse("/t/").unwrap();
        assert_eq!(plain.target, Path::new("/t"));
        assert_eq!(plain.options(), "rw,rprivate,exec,nosuid,nodev,tmpcopyup");
        let full =
            Tmpfs::parse("/t:ro,noexec,suid,dev,size=1m,mode=700,uid=5,gid=6,notmpcopyup,rprivate")
                .unwrap();
        assert_eq!(
            full.options(),
            "ro,rprivate,noexec,suid,dev,size=1048576,mode=700,uid=5,gid=6"
        );
        assert_eq!(
            Tmpfs::parse("/t:size=50%").unwrap().size.as_deref(),
            Some("50%")
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, named) in [
            ("t", "not an absolute path"),
            ("/t:", "unknown option \"\""),
            ("/t:foo", "unknown option \"foo\""),
            ("/t:ro:rw", "expected PLACE"),
            ("/t:ro,rw", "ro and rw"),
            ("/t:size=x", "size \"x\""),
            ("/t:size=101%", "0% to 100%"),
            ("/t:mode=9", "mode=9"),
            ("/t:uid=x", "uid=x"),
            ("/t:size=1,size=2", "size=1 and size=2"),
            ("/proc/x", "/proc cannot be"),
            ("/", "/ cannot be"),
        ] {
            let error = Tmpfs::parse(text).expect_err(text).to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", options in "[a-z0-9=,%:]{0,20}") {
            let _ = (Tmpfs::parse(&text), Tmpfs::parse(&format!("/t:{options}")));
        }
    }
}
