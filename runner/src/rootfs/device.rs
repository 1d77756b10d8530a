//! `--device SRC[:DST][:PERMISSIONS]`: devices of the host's in the container.
//!
//! A container without root on the host cannot make device nodes, so the host's are bound. It may
//! do with one what the caller may.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::volume::{VolumeError, checked_target};
use super::{Bind, BindOptions};
use crate::failure::Explained;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceArg {
    /// A device, or a directory of devices.
    pub source: PathBuf,
    pub target: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(transparent)]
    Target(#[from] VolumeError),
    #[error("expected SRC, SRC:DST or SRC:DST:rwm, and SRC as /dev/fuse")]
    Form,
    #[error(
        "{0:?}: a device cannot be had for less than reading and writing, since control groups do not \
         guard devices of rootless containers; rw and rwm are what there is"
    )]
    Permissions(String),
    #[error("cannot find the device {}: {source}", path.display())]
    Find { path: PathBuf, source: io::Error },
    #[error("{} is no device, and no directory that holds one", path.display())]
    NoDevice { path: PathBuf },
}

impl Explained for DeviceError {}

impl DeviceArg {
    /// For clap.
    pub fn parse(text: &OsStr) -> Result<Self, DeviceError> {
        let mut fields: Vec<&[u8]> = text.as_bytes().split(|byte| *byte == b':').collect();
        let is_permissions = |field: &[u8]| field.iter().all(|byte| b"rwm".contains(byte));
        if fields.len() > 1
            && let Some(last) = fields.pop_if(|last| is_permissions(last))
        {
            let has = |permission: u8| last.contains(&permission);
            if !has(b'r') || !has(b'w') {
                let said = String::from_utf8_lossy(last).into_owned();
                return Err(DeviceError::Permissions(said));
            }
        }
        let (source, target) = match fields[..] {
            [source] => (source, source),
            [source, target] => (source, target),
            _ => return Err(DeviceError::Form),
        };
        if source.first() != Some(&b'/') {
            return Err(DeviceError::Form);
        }
        Ok(Self {
            source: OsStr::from_bytes(source).into(),
            target: checked_target(OsStr::from_bytes(target))?,
        })
    }

    /// The mounts that bring it into the container: one, or one for each device of a directory.
    pub fn binds(&self) -> Result<Vec<Bind>, DeviceError> {
        let find = |source| DeviceError::Find {
            path: self.source.clone(),
            source,
        };
        let real = fs::canonicalize(&self.source).map_err(find)?;
        let binds: Vec<_> = match real.is_dir() {
            true => devices_below(&real)
                .map(|device| {
                    let rest = device.strip_prefix(&real).unwrap_or(&device);
                    bind(&device, &self.target.join(rest))
                })
                .collect(),
            false if is_device(&real) => vec![bind(&real, &self.target)],
            false => Vec::new(),
        };
        match binds.is_empty() {
            true => Err(DeviceError::NoDevice {
                path: self.source.clone(),
            }),
            false => Ok(binds),
        }
    }
}

/// Every device of the host's that the caller may open, for `--privileged`. Terminals are not among
/// them: the container has its own.
pub fn all() -> Vec<Bind> {
    let dev = Path::new("/dev");
    let is_usable = |path: &PathBuf| access(path, Access::READ_OK | Access::WRITE_OK).is_ok();
    let devices = devices_below(dev).filter(|path| {
        let name = path.strip_prefix(dev).unwrap_or(path);
        let is_terminal = name.as_os_str().as_bytes().starts_with(b"tty");
        !is_terminal && !KEPT.iter().any(|kept| name.starts_with(kept))
    });
    devices
        .filter(is_usable)
        .map(|path| bind(&path, &path))
        .collect()
}

/// What a container has of its own in /dev.
const KEPT: [&str; 10] = [
    "null", "zero", "full", "random", "urandom", "ptmx", "pts", "shm", "mqueue", "console",
];

fn bind(source: &Path, target: &Path) -> Bind {
    Bind {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only: false,
        options: BindOptions {
            dev: Some(true),
            suid: Some(false),
            exec: Some(false),
            ..BindOptions::default()
        },
        changes: None,
    }
}

/// The devices in a directory and those below it. What cannot be read holds none.
fn devices_below(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            // Not that of what a link leads to: each device is there once.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => left.push(entry.path()),
                Ok(kind) if kind.is_char_device() || kind.is_block_device() => {
                    found.push(entry.path());
                }
                _ => {}
            }
        }
    }
    found.sort();
    found.into_iter()
}

fn is_device(path: &Path) -> bool {
    let kind = fs::metadata(path).map(|found| found.file_type());
    kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_a_place_and_permissions() {
        let parse = |text: &str| {
            let arg = DeviceArg::parse(text.as_ref()).expect(text);
            (arg.source, arg.target)
        };
        let pair = |source: &str, target: &str| (source.into(), target.into());
        assert_eq!(parse("/dev/fuse"), pair("/dev/fuse", "/dev/fuse"));
        assert_eq!(parse("/dev/fuse:rwm"), pair("/dev/fuse", "/dev/fuse"));
        assert_eq!(parse("/dev/fuse:/dev/x"), pair("/dev/fuse", "/dev/x"));
        assert_eq!(parse("/dev/fuse:/dev/x:rw"), pair("/dev/fuse", "/dev/x"));
        for (text, named) in [
            ("fuse", "/dev/fuse"),
            ("", "expected SRC"),
            ("vendor.com/gpu=all", "expected SRC"),
            ("/dev/fuse:r", "reading and writing"),
            ("/dev/fuse:/dev/x:m", "reading and writing"),
            ("/dev/fuse:x", "not an absolute path"),
            ("/dev/fuse:/a:/b", "expected SRC"),
            ("/dev/fuse:/proc/x", "/proc"),
        ] {
            let error = DeviceArg::parse(text.as_ref()).expect_err(text).to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let binds = |text: &str| DeviceArg::parse(text.as_ref()).unwrap().binds();
        let null = binds("/dev/null:/dev/x").unwrap();
        assert_eq!((&*null[0].target, null.len()), (Path::new("/dev/x"), 1));
        let error = binds("/etc/passwd").unwrap_err().to_string();
        assert!(error.contains("no device"), "{error}");
        let error = binds("/etc/ssl").unwrap_err().to_string();
        assert!(error.contains("no device"), "{error}");
        binds("/dev/no-such").unwrap_err();
        let terminals = binds("/dev/pts:/dev/terminals").unwrap();
        assert!(
            terminals
                .iter()
                .all(|bind| bind.target.starts_with("/dev/terminals"))
        );
    }
}
