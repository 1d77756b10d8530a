//! `-v [SRC:]DST[:OPTIONS]`, as Podman and Docker have it.
//!
//! Owns the grammar and what may not be asked for; `rootfs` carries the options out. A source is a
//! path when it begins with `/` or `.`. Any other is the name of a volume, and without one it is a
//! volume that nobody has named (`volumes`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::failure::Explained;
use crate::rootfs::{Bind, BindOptions, Propagation};
use crate::volumes::is_valid_name;

/// One `-v`. The target has no `.` and no `..` left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeArg {
    pub source: VolumeSource,
    /// Its source is the path as typed, and empty for a volume.
    pub bind: Bind,
    /// `z` or `Z`: labels for SELinux.
    pub relabel: bool,
    /// `O`: the container's changes go to a layer of its own.
    pub apart: bool,
}

/// What is shown in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// A file or directory of the host's.
    Path,
    /// The volume of that name, made where there is none.
    Named(String),
    /// A new volume.
    Anonymous,
}

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("expected SRC:DST or SRC:DST:OPTIONS")]
    Form,
    #[error("{0:?} cannot name a volume; for a directory write ./{0}")]
    Named(String),
    #[error("{0} is for volumes, and {1:?} is a path of the host's")]
    CopyOfPath(String, String),
    #[error("{0:?} is not an absolute path")]
    NotAbsolute(String),
    #[error("the container's own {0} cannot be mounted over")]
    Forbidden(&'static str),
    #[error("coracle does not have the option {0:?} yet")]
    OptionElsewhere(String),
    #[error(
        "unknown option {0:?}; there are ro, rw, [no]exec, [no]suid, [no]dev, bind, rbind, \
         [r]private, [r]slave, [r]shared, [no]copy, O, U, z and Z"
    )]
    UnknownOption(String),
    #[error("{0} and {1} cannot be given together")]
    Contradiction(String, String),
    #[error("cannot bind {}: {source}", source_path.display())]
    Source {
        source_path: PathBuf,
        source: std::io::Error,
    },
    #[error("two mounts cannot have the same place: {0} and {1} are both for {2}")]
    SamePlace(String, String, String),
    #[error(
        "{0} cannot be labelled for SELinux, which is on here: coracle does not set labels yet; \
         `chcon -R -t container_file_t` does"
    )]
    Label(String),
    #[error("the files of {0} are the system's and will not be given to a container's user")]
    SystemFiles(String),
    #[error("only a directory can have its changes apart, and {0} is none: leave out the option O")]
    ApartFromFile(String),
}

impl Explained for VolumeError {}

impl VolumeArg {
    /// For clap. Paths may hold any bytes but `:`.
    pub fn parse(text: &OsStr) -> Result<Self, VolumeError> {
        let mut fields = text
            .as_bytes()
            .split(|byte| *byte == b':')
            .map(OsStr::from_bytes);
        let source = fields.next().unwrap_or_default();
        let Some(target) = fields.next() else {
            return match source.as_bytes() {
                [b'/', ..] => Self::anonymous(source),
                _ => Err(VolumeError::Form),
            };
        };
        let options = fields.next();
        if source.is_empty() || target.is_empty() || fields.next().is_some() {
            return Err(VolumeError::Form);
        }
        let mut volume = match source.as_bytes() {
            [b'/' | b'.', ..] => Self::path(source, target)?,
            _ => Self::named(&lossy(source), target)?,
        };
        if let Some(options) = options {
            volume.set_options(options)?;
        }
        Ok(volume)
    }

    /// A file or directory of the host's.
    pub fn path(source: &OsStr, target: &OsStr) -> Result<Self, VolumeError> {
        Ok(Self {
            source: VolumeSource::Path,
            bind: Bind {
                source: source.into(),
                target: checked_target(target)?,
                read_only: false,
                options: BindOptions::default(),
                changes: None,
            },
            relabel: false,
            apart: false,
        })
    }

    pub fn named(name: &str, target: &OsStr) -> Result<Self, VolumeError> {
        match is_valid_name(name) {
            true => Self::volume(VolumeSource::Named(name.to_owned()), target),
            false => Err(VolumeError::Named(name.to_owned())),
        }
    }

    /// A new volume for this place.
    pub fn anonymous(target: &OsStr) -> Result<Self, VolumeError> {
        Self::volume(VolumeSource::Anonymous, target)
    }

    fn volume(source: VolumeSource, target: &OsStr) -> Result<Self, VolumeError> {
        Ok(Self {
            source,
            bind: Bind {
                source: PathBuf::new(),
                target: checked_target(target)?,
                read_only: false,
                // As Podman has it.
                options: BindOptions {
                    suid: Some(false),
                    dev: Some(false),
                    copy_up: true,
                    ..BindOptions::default()
                },
                changes: None,
            },
            relabel: false,
            apart: false,
        })
    }

    /// For messages.
    pub fn name(&self) -> String {
        match &self.source {
            VolumeSource::Path => self.bind.source.display().to_string(),
            VolumeSource::Named(name) => name.clone(),
            VolumeSource::Anonymous => "a volume without a name".to_owned(),
        }
    }

    /// With commas between them.
    pub fn set_options(&mut self, options: &OsStr) -> Result<(), VolumeError> {
        let mut set: Vec<(Kind, String)> = Vec::new();
        for option in options.as_bytes().split(|byte| *byte == b',') {
            let option = lossy(OsStr::from_bytes(option));
            let kind = self.set_option(&option)?;
            if let Some((_, other)) = set.iter().find(|(known, _)| *known == kind) {
                return Err(VolumeError::Contradiction(other.clone(), option));
            }
            set.push((kind, option));
        }
        Ok(())
    }

    fn set_option(&mut self, option: &str) -> Result<Kind, VolumeError> {
        use Propagation::{Private, Shared, Slave};
        let options = &mut self.bind.options;
        let kind = match option {
            "ro" | "rw" => {
                self.bind.read_only = option == "ro";
                Kind::Writing
            }
            "exec" | "noexec" => {
                options.exec = Some(option == "exec");
                Kind::Exec
            }
            "suid" | "nosuid" => {
                options.suid = Some(option == "suid");
                Kind::Suid
            }
            "dev" | "nodev" => {
                options.dev = Some(option == "dev");
                Kind::Dev
            }
            "bind" | "rbind" => {
                options.top_only = option == "bind";
                Kind::Depth
            }
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" => {
                options.propagation = match option.strip_prefix('r').unwrap_or(option) {
                    "slave" => Slave,
                    "shared" => Shared,
                    _ => Private,
                };
                options.propagates_below = option.starts_with('r');
                Kind::Propagation
            }
            "copy" | "nocopy" => {
                options.copy_up = option == "copy";
                if self.source == VolumeSource::Path {
                    return Err(VolumeError::CopyOfPath(option.to_owned(), self.name()));
                }
                Kind::Copy
            }
            "O" => {
                self.apart = true;
                Kind::Changes
            }
            "U" => {
                options.give_to_user = true;
                Kind::Owner
            }
            "idmap" => {
                options.map_ids = true;
                Kind::Mapping
            }
            "z" | "Z" => {
                self.relabel = true;
                Kind::Label
            }
            _ => return Err(not_an_option(option)),
        };
        Ok(kind)
    }

    /// Refuses what this machine would not carry out. `source` is the real path.
    pub fn check(&self, source: &Path) -> Result<(), VolumeError> {
        let name = || source.display().to_string();
        if self.relabel && Path::new(SELINUX).exists() {
            return Err(VolumeError::Label(name()));
        }
        if self.bind.options.give_to_user && SYSTEM_DIRS.iter().any(|dir| Path::new(dir) == source)
        {
            return Err(VolumeError::SystemFiles(name()));
        }
        if self.apart && !source.is_dir() {
            return Err(VolumeError::ApartFromFile(name()));
        }
        Ok(())
    }
}

/// There when SELinux is on.
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// Whose files nobody means to give away, as Podman has it.
const SYSTEM_DIRS: [&str; 17] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/opt", "/proc",
    "/root", "/run", "/sbin", "/sys", "/usr", "/var",
];

/// What an option is about. Each can be said once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Writing,
    Exec,
    Suid,
    Dev,
    Depth,
    Propagation,
    Owner,
    Mapping,
    Label,
    Copy,
    Changes,
}

fn not_an_option(option: &str) -> VolumeError {
    let name = option.split('=').next().unwrap_or_default();
    match name {
        // Maps that are spelled out.
        "idmap" => VolumeError::OptionElsewhere(option.to_owned()),
        "upperdir" | "workdir" | "cached" | "delegated" | "consistent" | "unbindable"
        | "runbindable" => VolumeError::OptionElsewhere(name.to_owned()),
        _ => VolumeError::UnknownOption(option.to_owned()),
    }
}

/// Early and plain; where links lead is checked when the mount is attached.
pub(super) fn checked_target(target: &OsStr) -> Result<PathBuf, VolumeError> {
    if !Path::new(target).is_absolute() {
        return Err(VolumeError::NotAbsolute(lossy(target)));
    }
    let target = normalised(Path::new(target));
    for forbidden in ["/proc", "/sys"] {
        if target.starts_with(forbidden) {
            return Err(VolumeError::Forbidden(forbidden));
        }
    }
    if target == Path::new("/") {
        return Err(VolumeError::Forbidden("/"));
    }
    Ok(target)
}

/// `/a` for `/a/`, `/a/.` and `/b/../a`, whatever links there are.
fn normalised(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            // `..` of the root is the root.
            Component::ParentDir => drop(plain.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

/// The mounts that the volumes ask for, from real paths. `data_of` tells where the files of a
/// volume are, by its name or of a new one; changes that are to go elsewhere go to directories in
/// `changes`.
pub fn binds<E: From<VolumeError>>(
    volumes: &[VolumeArg],
    changes: &Path,
    mut data_of: impl FnMut(Option<&str>) -> Result<PathBuf, E>,
) -> Result<Vec<Bind>, E> {
    let mut binds = Vec::new();
    for (index, volume) in volumes.iter().enumerate() {
        let bind = volume.bind.clone();
        let source = match &volume.source {
            VolumeSource::Path => bind.source.clone(),
            VolumeSource::Named(name) => data_of(Some(name))?,
            VolumeSource::Anonymous => data_of(None)?,
        };
        let source = std::fs::canonicalize(&source).map_err(|error| VolumeError::Source {
            source_path: source,
            source: error,
        })?;
        volume.check(&source)?;
        let changes = volume.apart.then(|| changes.join(index.to_string()));
        binds.push(Bind {
            source,
            changes,
            ..bind
        });
    }
    Ok(binds)
}

/// Refuses two mounts for one place, of which only one could be seen. Each has a name for messages.
pub fn check_places(mounts: &[(String, &Path)]) -> Result<(), VolumeError> {
    for (index, (name, place)) in mounts.iter().enumerate() {
        if let Some((other, _)) = mounts[..index].iter().find(|(_, other)| other == place) {
            let place = place.display().to_string();
            return Err(VolumeError::SamePlace(other.clone(), name.clone(), place));
        }
    }
    Ok(())
}

fn lossy(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<VolumeArg, VolumeError> {
        VolumeArg::parse(OsStr::new(text))
    }

    #[test]
    fn volumes() {
        let bind = |source: &str, target: &str, read_only| {
            let options = BindOptions::default();
            let (source, target) = (source.into(), target.into());
            let bind = Bind {
                source,
                target,
                read_only,
                options,
                changes: None,
            };
            VolumeArg {
                source: VolumeSource::Path,
                bind,
                relabel: false,
                apart: false,
            }
        };
        for (text, expected) in [
            ("/a:/b", bind("/a", "/b", false)),
            ("./a:/b/c:ro", bind("./a", "/b/c", true)),
            ("../a:/b:rw", bind("../a", "/b", false)),
            (".:/b/", bind(".", "/b", false)),
            ("..:/b", bind("..", "/b", false)),
        ] {
            assert_eq!(parse(text).expect(text), expected);
        }
        for (text, error) in [
            ("a", VolumeError::Form),
            (":/b", VolumeError::Form),
            ("/a:", VolumeError::Form),
            ("/a:/b:ro:x", VolumeError::Form),
            ("vol:/proc", VolumeError::Forbidden("/proc")),
            ("/sys", VolumeError::Forbidden("/sys")),
            ("a/b:/v", VolumeError::Named("a/b".into())),
            ("~/a:/v:ro", VolumeError::Named("~/a".into())),
            ("/a:b", VolumeError::NotAbsolute("b".into())),
            ("/a:./b", VolumeError::NotAbsolute("./b".into())),
            ("/a:/proc/sys", VolumeError::Forbidden("/proc")),
            ("/a:/sys", VolumeError::Forbidden("/sys")),
            ("/a:/b/../proc", VolumeError::Forbidden("/proc")),
            ("/a:/", VolumeError::Forbidden("/")),
            ("/a:///", VolumeError::Forbidden("/")),
            ("/a:/b/..", VolumeError::Forbidden("/")),
        ] {
            let found = parse(text).expect_err(text);
            assert_eq!(format!("{found:?}"), format!("{error:?}"), "{text}");
        }
        let message = parse("a/b:/v").expect_err("no name").to_string();
        assert!(message.contains("./a/b"), "{message}");
        let named = parse("vol:/v/:ro,nocopy").expect("a volume");
        assert_eq!(named.source, VolumeSource::Named("vol".into()));
        assert!(named.bind.read_only && !named.bind.options.copy_up);
        assert_eq!(named.bind.target, PathBuf::from("/v"));
        let anonymous = parse("/v").expect("a volume");
        assert_eq!(anonymous.source, VolumeSource::Anonymous);
        assert!(anonymous.bind.options.copy_up);
        let error = parse("/a:/b:copy").expect_err("a path").to_string();
        assert!(error.contains("copy is for volumes"), "{error}");
    }

    #[test]
    fn options() {
        let options = |text: &str| parse(&format!("/a:/b:{text}")).expect(text);
        assert!(options("ro,z").bind.read_only && options("ro,z").relabel && options("Z").relabel);
        assert!(options("U").bind.options.give_to_user);
        assert!(options("bind").bind.options.top_only && !options("rbind").bind.options.top_only);
        let all = options("noexec,nosuid,nodev").bind.options;
        assert_eq!(
            (all.exec, all.suid, all.dev),
            (Some(false), Some(false), Some(false))
        );
        let all = options("exec,suid,dev,rslave").bind.options;
        assert_eq!(
            (all.exec, all.suid, all.dev),
            (Some(true), Some(true), Some(true))
        );
        assert_eq!(
            (all.propagation, all.propagates_below),
            (Propagation::Slave, true)
        );
        let shared = options("shared").bind.options;
        assert_eq!(
            (shared.propagation, shared.propagates_below),
            (Propagation::Shared, false)
        );

        for both in [
            "ro,rw",
            "rw,ro",
            "ro,ro",
            "exec,noexec",
            "z,Z",
            "slave,rslave",
            "bind,rbind",
            "suid,nosuid",
        ] {
            let error = parse(&format!("/a:/b:{both}")).expect_err(both);
            assert!(
                matches!(error, VolumeError::Contradiction(..)),
                "{both}: {error}"
            );
        }
        assert!(options("O").apart && !options("ro").apart);
        for elsewhere in ["idmap=uids=0-1-2", "upperdir=/x"] {
            let error = parse(&format!("/a:/b:{elsewhere}")).expect_err(elsewhere);
            assert!(
                matches!(error, VolumeError::OptionElsewhere(_)),
                "{elsewhere}: {error}"
            );
        }
        for unknown in ["", "x", "ro,", ",ro", "RO", "u"] {
            let error = parse(&format!("/a:/b:{unknown}")).expect_err(unknown);
            assert!(
                matches!(error, VolumeError::UnknownOption(_)),
                "{unknown}: {error}"
            );
        }
    }

    #[test]
    fn two_mounts_have_two_places() {
        let check = |targets: [&str; 2]| {
            let volumes = targets.map(|target| parse(&format!("/x:{target}")).expect(target));
            let places = volumes.each_ref().map(|v| (v.name(), &*v.bind.target));
            check_places(&places)
        };
        check(["/a", "/a/b"]).expect("two places");
        for same in ["/a", "/a/", "/a/.", "//a", "/b/../a", "/../a", "/./a"] {
            let error = check(["/a", same]).expect_err(same).to_string();
            assert!(error.ends_with("are both for /a"), "{error}");
        }
    }

    #[test]
    fn changes_apart_have_a_directory_each() {
        let volumes = ["/:/d", "/usr:/a:O", "/etc:/b:O"].map(|text| parse(text).expect(text));
        let none = |_: Option<&str>| -> Result<PathBuf, VolumeError> { panic!("all are paths") };
        let made = |volumes: &[VolumeArg]| binds(volumes, Path::new("/c"), none);
        let changes: Vec<_> = made(&volumes)
            .expect("binds")
            .into_iter()
            .map(|bind| bind.changes)
            .collect();
        assert_eq!(changes, [None, Some("/c/1".into()), Some("/c/2".into())]);
        for (text, named) in [
            ("/no/such:/x", "/no/such"),
            ("/etc/passwd:/x:O", "option O"),
        ] {
            let error = made(&[parse(text).expect(text)])
                .expect_err(text)
                .to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn system_files_are_not_given_away() {
        let volume = parse("/etc:/x:U").expect("a volume");
        volume.check(Path::new("/etc")).expect_err("the system's");
        volume
            .check(Path::new("/srv/site"))
            .expect("the user's own");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn paths_survive(source in "[./][^:\0]{1,20}", target in "(/[a-z]{1,5}){1,4}", read_only: bool) {
            let text = format!("{source}:{target}{}", if read_only { ":ro" } else { "" });
            if let Ok(VolumeArg { bind, .. }) = parse(&text) {
                prop_assert_eq!(bind.source.to_str(), Some(&*source));
                prop_assert_eq!(bind.target.to_str(), Some(&*target));
                prop_assert_eq!(bind.read_only, read_only);
            }
        }
    }
}
