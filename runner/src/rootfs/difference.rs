//! How one tree differs from another, where both are layers that lie over each other: `diff`.
//!
//! Nothing is mounted. What layers take away of those below them, in the way of overlayfs's option
//! `userxattr`, is heeded. Directories that are the same ones in both trees are passed over, so
//! that it takes no longer than the container has changes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::flatten::is_opaque;
use crate::isolation::idmap::IdMaps;
use crate::path_text;

/// How deep a tree may be nested: a few descriptors each.
const DEPTH_MAX: u32 = 200;

/// What an engine makes in every container, which nobody wants to be told of.
const ENGINES_OWN: [&str; 11] = [
    "/dev",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/mtab",
    "/etc/resolv.conf",
    "/proc",
    "/run",
    "/run/.containerenv",
    "/run/notify",
    "/run/secrets",
    "/sys",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    Added,
    Changed,
    Deleted,
}

/// One path of a tree that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub kind: ChangeKind,
    #[serde(with = "path_text")]
    pub path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot compare {}: {source}", path.display())]
pub struct DifferenceError {
    path: PathBuf,
    source: io::Error,
}

impl DifferenceError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { path, source }
    }
}

/// A directory that is a part of a tree.
#[derive(Debug)]
pub struct Layer {
    dir: OwnedFd,
    /// Of whoever its files belong to, where these are other IDs than this process has.
    maps: Option<IdMaps>,
}

impl Layer {
    /// Opens directories by their paths.
    pub fn open_all(
        paths: &[PathBuf],
        maps: Option<&IdMaps>,
    ) -> Result<Vec<Self>, DifferenceError> {
        let open = |path: &PathBuf| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::open(path, flags, Mode::empty());
            let dir = dir.map_err(|errno| DifferenceError::at(path)(errno.into()))?;
            let maps = maps.cloned();
            Ok(Self { dir, maps })
        };
        paths.iter().map(open).collect()
    }

    /// User and group as the container has them.
    fn owner(&self, found: &Stat) -> (u32, u32) {
        match &self.maps {
            None => (found.st_uid, found.st_gid),
            Some(maps) => maps.inside(found.st_uid, found.st_gid),
        }
    }
}

/// A directory as layers show it, the uppermost first.
struct Merged(Vec<Layer>);

/// What a directory has under a name.
struct Entry {
    found: Stat,
    owner: (u32, u32),
}

impl Entry {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.found.st_mode)
    }

    fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }

    /// Whether it is no whiteout.
    fn is_there(&self) -> bool {
        self.kind() != FileType::CharacterDevice || self.found.st_rdev != 0
    }

    fn id(&self) -> (u64, u64) {
        (self.found.st_dev, self.found.st_ino)
    }

    fn differs(&self, other: &Self) -> bool {
        let what = |entry: &Self| (entry.found.st_mode, entry.owner, entry.found.st_rdev);
        let content = |entry: &Self| {
            let found = &entry.found;
            (found.st_size, found.st_mtime, found.st_mtime_nsec)
        };
        what(self) != what(other) || (!self.is_directory() && content(self) != content(other))
    }
}

impl Merged {
    fn of(layers: Vec<Layer>) -> Self {
        let last = layers.iter().position(|layer| is_opaque(&layer.dir));
        let shown = last.map_or(layers.len(), |last| last + 1);
        Self(layers.into_iter().take(shown).collect())
    }

    /// Which directories it is made of.
    fn ids(&self) -> io::Result<Vec<(u64, u64)>> {
        let id = |layer: &Layer| {
            let found = fstat(&layer.dir)?;
            Ok((found.st_dev, found.st_ino))
        };
        self.0.iter().map(id).collect()
    }

    fn entries(&self) -> io::Result<BTreeMap<OsString, Entry>> {
        let mut entries = BTreeMap::new();
        for layer in &self.0 {
            for entry in Dir::read_from(&layer.dir)? {
                let entry = entry?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name == "." || name == ".." || entries.contains_key(name) {
                    continue;
                }
                let found = match statat(&layer.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                    // A container that runs has removed it.
                    Err(Errno::NOENT) => continue,
                    found => found?,
                };
                let owner = layer.owner(&found);
                entries.insert(name.to_owned(), Entry { found, owner });
            }
        }
        entries.retain(|_, entry| entry.is_there());
        Ok(entries)
    }

    /// The directory `name` in it.
    fn enter(&self, name: &OsStr) -> io::Result<Self> {
        let mut layers = Vec::new();
        for layer in &self.0 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(&layer.dir, name, flags, Mode::empty()) {
                Err(Errno::NOENT) => {}
                // Hides what is below.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                opened => layers.push(Layer {
                    dir: opened?,
                    maps: layer.maps.clone(),
                }),
            }
        }
        Ok(Self::of(layers))
    }
}

/// What is in the tree of `new` and not in that of `old`, and the other way round, in the order of
/// the paths. Both are the uppermost first.
pub fn changes(new: Vec<Layer>, old: Vec<Layer>) -> Result<Vec<Change>, DifferenceError> {
    compare(&Merged::of(new), &Merged::of(old), Path::new("/"), 0)
}

fn compare(
    new: &Merged,
    old: &Merged,
    path: &Path,
    depth: u32,
) -> Result<Vec<Change>, DifferenceError> {
    let failed = || DifferenceError::at(path);
    if depth > DEPTH_MAX {
        return Err(failed()(io::Error::other("it is nested too deep")));
    }
    if new.ids().map_err(failed())? == old.ids().map_err(failed())? {
        return Ok(Vec::new());
    }
    let (now, before) = (
        new.entries().map_err(failed())?,
        old.entries().map_err(failed())?,
    );
    let names: BTreeSet<&OsString> = now.keys().chain(before.keys()).collect();
    let mut all = Vec::new();
    for name in names {
        let path = path.join(name);
        if ENGINES_OWN.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        let mut tell = |kind| {
            let path = path.clone();
            all.push(Change { kind, path });
        };
        let (entry, was_directory) = match (now.get(name), before.get(name)) {
            (None, _) => {
                tell(ChangeKind::Deleted);
                continue;
            }
            (Some(entry), None) => {
                tell(ChangeKind::Added);
                (entry, false)
            }
            (Some(entry), Some(was)) => {
                if entry.id() != was.id() && entry.differs(was) {
                    tell(ChangeKind::Changed);
                }
                (entry, was.is_directory())
            }
        };
        if !entry.is_directory() {
            continue;
        }
        let failed = || DifferenceError::at(&path);
        let below = match was_directory {
            true => old.enter(name).map_err(failed())?,
            false => Merged(Vec::new()),
        };
        let inner = compare(
            &new.enter(name).map_err(failed())?,
            &below,
            &path,
            depth + 1,
        )?;
        if !inner.is_empty() && all.last().is_none_or(|last: &Change| last.path != path) {
            let (kind, path) = (ChangeKind::Changed, path.clone());
            all.push(Change { kind, path });
        }
        all.extend(inner);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn layers_differ_by_what_they_add_change_and_take_away() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| {
            fs::create_dir_all(path(name).parent().expect("a directory")).expect("made");
            fs::write(path(name), text).expect("written");
        };
        write("low/same/file", "");
        write("low/dir/gone", "");
        write("low/dir/changed", "a");
        write("low/opaque/old", "");
        write("low/was-dir/x", "");
        write("low/etc/hosts", "");
        symlink("/", path("low/link")).expect("a link");
        write("high/dir/changed", "bc");
        write("high/dir/new/below", "");
        write("high/opaque/new", "");
        write("high/was-dir", "");
        write("high/etc/hosts", "engine");
        write("high/link/below", "not the host's root");
        let opaque = c"user.overlay.opaque";
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(path("high/opaque"), opaque, b"y", flags).expect("an attribute");
        let layers = |names: &[&str]| {
            let paths: Vec<_> = names.iter().map(|name| path(name)).collect();
            Layer::open_all(&paths, None).expect("opened")
        };
        let told = |new: &[&str], old: &[&str]| -> Vec<String> {
            let changes = changes(layers(new), layers(old)).expect("compared");
            let line = |change: &Change| format!("{:?} {}", change.kind, change.path.display());
            changes.iter().map(line).collect()
        };
        assert_eq!(
            told(&["high", "low"], &["low"]),
            [
                "Changed /dir",
                "Changed /dir/changed",
                "Added /dir/new",
                "Added /dir/new/below",
                "Changed /link",
                "Added /link/below",
                "Changed /opaque",
                "Added /opaque/new",
                "Deleted /opaque/old",
                "Changed /was-dir",
            ]
        );
        assert_eq!(told(&["low"], &["low"]), [""; 0]);
        assert!(told(&["low"], &["high", "low"]).contains(&"Added /was-dir/x".to_owned()));
    }
}
