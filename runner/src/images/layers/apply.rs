//! A layer's tar, applied to a tree.
//!
//! The tree is what the layers below show, with the new layer's directory on top as an overlay's
//! upper one. So a link to a file of a lower layer, a path through a lower layer's symbolic link
//! and the attributes of a directory that the tar does not mention are as the image's maker saw
//! them, and what is deleted here becomes a whiteout there. The lowest layer is a plain directory.
//!
//! The tar is hostile. Each path is taken apart first (`..` ends at the root), looked up below the
//! tree with symbolic links that lead nowhere but inside, and its last component is never followed.
//! Devices are left out, and so are attributes that mean something to overlayfs. What a layer may
//! make is bounded.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fchmod, fchown, fsetxattr, fstat, linkat, mkdirat, mknodat, openat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use super::added::Manner;
use super::attributes::{OVERRIDE_STAT, is_kept, override_stat_of};
use super::tar::{Kind, Member, Members, TarError};
use crate::rootfs::lookup::open_in_root;

/// Members of a layer. A whole distribution has some 500,000 files.
const MEMBERS_MAX: u64 = 4_000_000;
/// Bytes of the paths of directories, which are kept until the end.
const DIR_PATHS_MAX: usize = 64 << 20;
/// How deep a directory that a layer takes away may be nested; one descriptor each.
pub(super) const DEPTH_MAX: u32 = 256;

/// Before the name of what a layer takes away.
pub const WHITEOUT: &[u8] = b".wh.";
/// Takes away all that lower layers have in this directory.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// What aufs kept for itself.
const AUFS: &[u8] = b".wh..wh.";

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path:?} {defect}")]
    Refused { path: PathBuf, defect: &'static str },
    #[error(
        "{path:?} belongs to user {uid} and group {gid}, who have no place in the user namespace: it takes larger ranges in \
         /etc/subuid and /etc/subgid"
    )]
    Unmapped { path: PathBuf, uid: u64, gid: u64 },
    #[error("it has more than {MEMBERS_MAX} files")]
    TooMany,
    #[error("the paths of its directories are longer than {DIR_PATHS_MAX} bytes in all")]
    PathsTooLong,
}

/// Whether files get their owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    Kept,
    /// There is but one ID. The real owner goes into the attribute `user.containers.override_stat`;
    /// that of links and FIFOs into another of their directory.
    Recorded,
}

/// What a layer is applied to.
pub struct Tree {
    root: OwnedFd,
    owners: Owners,
    pub(super) manner: Manner,
    /// What this layer has made, where there are layers below: device and inode number.
    pub(super) own: Option<HashSet<(u64, u64)>>,
    /// The directory that the last member was in.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Directories with the times that they are to have at the end: the layer's or, where it does
    /// not mention them, those that they had.
    dirs: BTreeMap<PathBuf, i64>,
    dir_paths_len: usize,
    /// Of all files.
    pub(super) bytes: u64,
}

impl Tree {
    /// `is_lowest` when there are no layers below.
    pub fn new(root: OwnedFd, owners: Owners, is_lowest: bool) -> Self {
        Self {
            root,
            owners,
            manner: Manner::Layer,
            own: (!is_lowest).then(HashSet::new),
            parent: None,
            dirs: BTreeMap::new(),
            dir_paths_len: 0,
            bytes: 0,
        }
    }

    /// Applies all members and returns how many bytes their files have.
    pub fn apply<R: Read>(mut self, members: &mut Members<R>) -> Result<u64, ApplyError> {
        let mut count = 0;
        while let Some(member) = members.next()? {
            count += 1;
            if count > MEMBERS_MAX {
                return Err(ApplyError::TooMany);
            }
            self.apply_member(&member, members)?;
        }
        self.finish_directories()
    }

    /// Applies one member, which `members` has returned last.
    pub fn apply_member<R: Read>(
        &mut self,
        member: &Member,
        members: &mut Members<R>,
    ) -> Result<(), ApplyError> {
        let path = clean(&member.path);
        let Some(name) = path.file_name() else {
            return self.apply_to_root(member);
        };
        let dir = path.parent().unwrap_or(Path::new(""));
        if self.manner != Manner::Layer {
            return self.make(&path, dir, name, member, members);
        }
        if dir.iter().any(|part| part.as_bytes().starts_with(WHITEOUT)) {
            return refused(&path, "is within a whiteout");
        }
        match name.as_bytes() {
            OPAQUE => self.make_opaque(dir),
            aufs if aufs.starts_with(AUFS) => Ok(()),
            hidden if hidden.starts_with(WHITEOUT) => {
                self.white_out(dir, OsStr::from_bytes(&hidden[WHITEOUT.len()..]))
            }
            _ => self.make(&path, dir, name, member, members),
        }
    }

    /// Comes after the last member. Returns how many bytes the files have.
    pub fn finish_directories(mut self) -> Result<u64, ApplyError> {
        // Deepest first: a change within a directory changes its time.
        for (path, modified) in std::mem::take(&mut self.dirs).into_iter().rev() {
            // It may be gone by now, or reached through a link.
            if let Ok(dir) = self.open(&path) {
                set_time(&dir, Path::new(""), modified)
                    .map_err(failed("set the time of", &path))?;
            }
        }
        Ok(self.bytes)
    }

    fn apply_to_root(&mut self, member: &Member) -> Result<(), ApplyError> {
        let path = Path::new("/");
        if member.kind != Kind::Directory {
            return refused(path, "is no directory in the layer");
        }
        let root = self.open(Path::new("")).map_err(failed("open", path))?;
        self.finish(&root, path, member)?;
        self.remember(Path::new(""), member.modified)
    }

    /// The directory at `path` below the root, which the empty path means.
    pub(super) fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        open_in_root(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn make<R: Read>(
        &mut self,
        path: &Path,
        dir: &Path,
        name: &OsStr,
        member: &Member,
        members: &mut Members<R>,
    ) -> Result<(), ApplyError> {
        let target = match member.kind {
            // Before the parent, which stays the last that was looked up.
            Kind::HardLink => Some(self.link_target(path, member)?),
            _ => None,
        };
        self.enter(dir)?;
        let parent = self.parent()?;
        let there = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Some(FileType::from_raw_mode(found.st_mode)),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed("look at", path)(errno)),
        };
        let stays = there == Some(FileType::Directory) && member.kind == Kind::Directory;
        if let Some(there) = there
            && !stays
            && !self.may_replace(there, path, member)?
        {
            return Ok(());
        }
        if there.is_some() && !stays {
            // A link to itself would be gone.
            if let Some((of, target)) = &target
                && is_same(of, target, &parent, name)
            {
                return Ok(());
            }
            match self.remove(&parent, name, path) {
                Err(ApplyError::Io { source, .. })
                    if source.kind() == io::ErrorKind::ResourceBusy
                        && member.kind == Kind::File
                        && there == Some(FileType::RegularFile) =>
                {
                    return self.rewrite(&parent, name, path, members);
                }
                removed => removed?,
            }
        }
        let private = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match member.kind {
            Kind::Directory => {
                if !stays {
                    mkdirat(&parent, name, Mode::RWXU)
                        .map_err(failed("make the directory", path))?;
                }
                let opened = openat(&parent, name, flags | OFlags::DIRECTORY, Mode::empty());
                let made = opened.map_err(failed("open", path))?;
                self.finish(&made, path, member)?;
                self.remember(path, member.modified)?;
            }
            Kind::File => {
                let flags = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let file = openat(&parent, name, flags, private).map_err(failed("create", path))?;
                let mut file = std::fs::File::from(file);
                let copied = io::copy(members, &mut file).map_err(failed("write", path))?;
                self.bytes += copied;
                let file = OwnedFd::from(file);
                self.finish(&file, path, member)?;
                set_time(&file, Path::new(""), member.modified)
                    .map_err(failed("set the time of", path))?;
            }
            Kind::Symlink => {
                let to = OsStr::from_bytes(&member.target);
                symlinkat(to, &parent, name).map_err(failed("make the link", path))?;
                self.own_by_name(&parent, name, path, member)?;
            }
            Kind::HardLink => {
                if let Some((of, target)) = &target {
                    linkat(of, target, &parent, name, AtFlags::empty())
                        .map_err(failed("make the link", path))?;
                }
            }
            Kind::Fifo => {
                mknodat(&parent, name, FileType::Fifo, private, 0)
                    .map_err(failed("make the FIFO", path))?;
                let mode = Mode::from_raw_mode(member.mode);
                rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())
                    .map_err(failed("set the mode of", path))?;
                self.own_by_name(&parent, name, path, member)?;
            }
            // A container has its own.
            Kind::Device => return Ok(()),
        }
        if let Some(own) = &mut self.own {
            let found = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
            let found = found.map_err(failed("look at", path))?;
            own.insert((found.st_dev, found.st_ino));
        }
        Ok(())
    }

    /// The directory that holds what a hard link leads to, and the name there.
    fn link_target(
        &mut self,
        path: &Path,
        member: &Member,
    ) -> Result<(OwnedFd, OsString), ApplyError> {
        let target = clean(&member.target);
        let (Some(name), Some(dir)) = (target.file_name(), target.parent()) else {
            return refused(path, "is a link to the root");
        };
        let dir = self.open(dir).map_err(failed("open", &target))?;
        Ok((dir, name.to_owned()))
    }

    /// Makes `dir` the directory that [`Tree::parent`] is, with what is missing of it.
    fn enter(&mut self, dir: &Path) -> Result<(), ApplyError> {
        if self.parent.as_ref().is_some_and(|(path, _)| path == dir) {
            return Ok(());
        }
        self.parent = None;
        let whole = match self.own {
            // Nobody asks for what is between.
            None => self.open(dir).ok(),
            Some(_) => None,
        };
        let opened = match whole {
            Some(whole) => whole,
            None => self.walk(dir)?,
        };
        self.parent = Some((dir.to_owned(), opened));
        Ok(())
    }

    /// From the root to `dir`, with what is missing on the way.
    fn walk(&mut self, dir: &Path) -> Result<OwnedFd, ApplyError> {
        let mut path = PathBuf::new();
        let mut here = self.open(&path).map_err(failed("open", Path::new("/")))?;
        for part in dir {
            path.push(part);
            here = self.step(&here, &path, part)?;
            if self.own.is_some() {
                let found = fstat(&here).map_err(failed("look at", &path))?;
                self.remember_once(&path, found.st_mtime)?;
                let own = self.own.as_mut();
                own.map(|own| own.insert((found.st_dev, found.st_ino)));
            }
        }
        Ok(here)
    }

    /// From `here` to `part`, which is at `path`, and is made where nothing is.
    fn step(&self, here: &OwnedFd, path: &Path, part: &OsStr) -> Result<OwnedFd, ApplyError> {
        match self.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened.map_err(failed("enter", path)),
        }
        match mkdirat(here, part, Mode::from_raw_mode(0o755)) {
            Ok(()) => self.open(path).map_err(failed("open", path)),
            // There is something after all.
            Err(Errno::EXIST) => refused(path, "leads nowhere, and the layer has files in it"),
            Err(errno) => Err(failed("make the directory", path)(errno)),
        }
    }

    /// Gives a directory its time at the end.
    fn remember(&mut self, path: &Path, modified: i64) -> Result<(), ApplyError> {
        if self.dirs.insert(path.to_owned(), modified).is_none() {
            self.dir_paths_len += path.as_os_str().len();
        }
        match self.dir_paths_len > DIR_PATHS_MAX {
            true => Err(ApplyError::PathsTooLong),
            false => Ok(()),
        }
    }

    /// As [`Tree::remember`], for a directory that the layer may not mention.
    pub(super) fn remember_once(&mut self, path: &Path, modified: i64) -> Result<(), ApplyError> {
        match self.dirs.contains_key(path) {
            true => Ok(()),
            false => self.remember(path, modified),
        }
    }

    /// A handle of its own, so that the tree can be changed meanwhile.
    fn parent(&self) -> Result<OwnedFd, ApplyError> {
        let (path, dir) = self.parent.as_ref().expect("entered before");
        dir.try_clone().map_err(failed("open", path))
    }

    /// Owner, mode and attributes, in the order in which one does not undo another.
    fn finish(&self, file: &OwnedFd, path: &Path, member: &Member) -> Result<(), ApplyError> {
        let mut mode = member.mode;
        match self.owners {
            Owners::Kept => {
                let (uid, gid) = self.ids(path, member)?;
                fchown(file, uid, gid).map_err(|errno| unowned(errno, path, member))?;
            }
            Owners::Recorded if (member.uid, member.gid) != (0, 0) => {
                let stat = format!("{}:{}:0{:o}", member.uid, member.gid, member.mode);
                let set = fsetxattr(file, OVERRIDE_STAT, stat.as_bytes(), XattrFlags::empty());
                // Where the file system has no attributes, the owner is lost.
                tolerate(set).map_err(failed("keep the owner of", path))?;
                // It would make its caller somebody else than its owner was to be.
                mode &= 0o777;
            }
            Owners::Recorded => {}
        }
        fchmod(file, Mode::from_raw_mode(mode)).map_err(failed("set the mode of", path))?;
        for (name, value) in member.xattrs.iter().filter(|(name, _)| is_kept(name)) {
            let name = OsStr::from_bytes(name);
            let set = fsetxattr(file, name, value, XattrFlags::empty());
            tolerate(set).map_err(failed("set the attributes of", path))?;
        }
        Ok(())
    }

    /// For what is not opened.
    fn own_by_name(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        member: &Member,
    ) -> Result<(), ApplyError> {
        match self.owners {
            Owners::Kept => {
                let (uid, gid) = self.ids(path, member)?;
                chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| unowned(errno, path, member))?;
            }
            Owners::Recorded if (member.uid, member.gid) != (0, 0) => {
                if let Some(attribute) = override_stat_of(name) {
                    let Member {
                        uid,
                        gid,
                        mode,
                        modified,
                        ..
                    } = member;
                    let stat = format!("{uid}:{gid}:0{mode:o}:{modified}");
                    let flags = XattrFlags::empty();
                    match fsetxattr(parent, &attribute, stat.as_bytes(), flags) {
                        // A directory has room for so many.
                        Err(Errno::NOSPC | Errno::TOOBIG) => {}
                        set => tolerate(set).map_err(failed("keep the owner of", path))?,
                    }
                }
            }
            Owners::Recorded => {}
        }
        set_time(parent, Path::new(name), member.modified).map_err(failed("set the time of", path))
    }

    fn ids(&self, path: &Path, member: &Member) -> Result<(Option<Uid>, Option<Gid>), ApplyError> {
        // The last stands for no ID at all.
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        match (id(member.uid), id(member.gid)) {
            (Some(uid), Some(gid)) => Ok((Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))),
            _ => Err(unowned(Errno::INVAL, path, member)),
        }
    }

    /// Removes an entry, whatever it is.
    pub(super) fn remove(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), ApplyError> {
        // It may be, or lead to, the directory that is known by its path.
        self.parent = None;
        remove_all(parent, name, 0).map_err(failed("replace", path))
    }
}

/// On an overlay no directory can be moved, so that it takes a descriptor for each level.
fn remove_all(parent: &OwnedFd, name: &OsStr, depth: u32) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) if depth < DEPTH_MAX => {}
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    for child in names(&dir)? {
        remove_all(&dir, &child, depth + 1)?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

pub(super) fn names(dir: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn is_same(one: &OwnedFd, name: &OsStr, other: &OwnedFd, other_name: &OsStr) -> bool {
    let id = |dir, name| {
        let found = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((found.st_dev, found.st_ino))
    };
    id(one, name).is_some_and(|one| Some(one) == id(other, other_name))
}

/// A path as it is below the root: without `.` and empty parts, `..` taken by its word.
pub fn clean(path: &[u8]) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(clean.pop()),
            name => clean.push(OsStr::from_bytes(name)),
        }
    }
    clean
}

/// Not every file system has attributes, nor every kind for root of a user namespace.
fn tolerate(set: Result<(), Errno>) -> io::Result<()> {
    match set {
        Err(Errno::NOTSUP | Errno::PERM) => Ok(()),
        other => Ok(other?),
    }
}

fn set_time(dir: impl AsFd, name: &Path, modified: i64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: modified,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let result = match name.as_os_str().is_empty() {
        true => rustix::fs::futimens(dir, &times),
        false => utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
    };
    Ok(result?)
}

fn unowned(errno: Errno, path: &Path, member: &Member) -> ApplyError {
    match errno {
        Errno::INVAL => ApplyError::Unmapped {
            path: path.to_owned(),
            uid: member.uid,
            gid: member.gid,
        },
        errno => failed("set the owner of", path)(errno),
    }
}

pub(super) fn refused<T>(path: &Path, defect: &'static str) -> Result<T, ApplyError> {
    Err(ApplyError::Refused {
        path: path.to_owned(),
        defect,
    })
}

pub(super) fn failed<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> ApplyError {
    move |source| ApplyError::Io {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_end_at_the_root() {
        for (path, cleaned) in [
            ("a/b", "a/b"),
            ("./a//b/.", "a/b"),
            ("/etc/passwd", "etc/passwd"),
            ("../../etc", "etc"),
            ("a/../../b", "b"),
            ("./", ""),
        ] {
            assert_eq!(clean(path.as_bytes()), Path::new(cleaned), "{path}");
        }
    }
}
