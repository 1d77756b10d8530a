//! Files on their way from one tree to another: as a tar, which one side writes while the other
//! applies it.
//!
//! A path is looked up below the root of its tree, so that nothing leads out of it. Where the tree
//! is the host's, the side that applies has the directory that was named for its root instead: what
//! comes out of a container is its to say, and must not lead anywhere else. The first member is
//! what was asked for, and decides with the place there what becomes of it:
//!
//! ```text
//! source      nothing there              a directory              a file
//! file        becomes that file          goes into it             replaces it
//! directory   becomes that directory     goes into it             is refused
//! DIR/.       becomes that directory     what it has goes in      is refused
//! ```

use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, readlinkat};
use serde::{Deserialize, Serialize};

use crate::build::copy::clean as clean_path;
use crate::build::pack::{Changes, Packer, Source};
use crate::images::layers::apply::{ApplyError, Owners, Tree, clean};
use crate::images::layers::tar::{Kind, Member, Members, TarError};
use crate::path_text;
use crate::rootfs::lookup::{file_type, open_in_root};

/// A path as somebody has typed it, of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// From the root.
    #[serde(with = "path_text")]
    path: PathBuf,
    /// Whether it can be nothing else: it ends in a slash.
    is_directory: bool,
    /// Whether what is in the directory is meant, not the directory: it ends in `.`.
    is_content: bool,
    /// Whose tree it is, for messages.
    whose: String,
}

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("there is no {} {whose}", path.display())]
    Missing { path: PathBuf, whose: String },
    #[error("there is no directory for {} {whose}: make it first", path.display())]
    NoParent { path: PathBuf, whose: String },
    #[error("{} {whose} is no directory", path.display())]
    NotDirectory { path: PathBuf, whose: String },
    #[error("{} {whose} is a device or a socket, which cannot be copied", path.display())]
    Device { path: PathBuf, whose: String },
    #[error("{} {whose} is no directory, as the destination of a directory is", path.display())]
    DirectoryOntoFile { path: PathBuf, whose: String },
    #[error("{} {whose} is no directory that a tar could be unpacked in", path.display())]
    TarOntoFile { path: PathBuf, whose: String },
    #[error("cannot open {} {whose}: {source}", path.display())]
    Open {
        path: PathBuf,
        whose: String,
        source: io::Error,
    },
    #[error("cannot read {} {whose}: {source}", path.display())]
    Read {
        path: PathBuf,
        whose: String,
        source: io::Error,
    },
    #[error("cannot read the tar: {0}")]
    Tar(#[from] TarError),
    #[error("cannot copy to {} {whose}: {source}", path.display())]
    Write {
        path: PathBuf,
        whose: String,
        source: ApplyError,
    },
    #[error("there is nothing to be copied: it ended before it began")]
    Nothing,
    #[error("what was to be copied became a symbolic link meanwhile")]
    BecameLink,
}

impl Wanted {
    /// `base` is where relative paths begin; `whose` says "in container web".
    pub fn new(text: &OsStr, base: &Path, whose: String) -> Self {
        let last = text.as_bytes().rsplit(|byte| *byte == b'/').next();
        Self {
            path: Path::new("/").join(base).join(text),
            is_directory: last == Some(b""),
            is_content: last == Some(b"."),
            whose,
        }
    }

    fn missing(&self) -> TransferError {
        TransferError::Missing {
            path: self.path.clone(),
            whose: self.whose.clone(),
        }
    }

    fn not_directory(&self) -> TransferError {
        TransferError::NotDirectory {
            path: self.path.clone(),
            whose: self.whose.clone(),
        }
    }

    fn open_failed(&self) -> impl FnOnce(io::Error) -> TransferError {
        move |source| TransferError::Open {
            path: self.path.clone(),
            whose: self.whose.clone(),
            source,
        }
    }

    fn read_failed(&self) -> impl FnOnce(io::Error) -> TransferError {
        move |source| TransferError::Read {
            path: self.path.clone(),
            whose: self.whose.clone(),
            source,
        }
    }
}

/// What is at a path, with the symbolic links that the path itself is followed.
struct Place {
    /// Where it is; links may still lead to its directory.
    path: PathBuf,
    /// `None` where nothing is.
    kind: Option<FileType>,
}

fn find(root: &OwnedFd, wanted: &Wanted) -> Result<Place, TransferError> {
    /// As the kernel's limit in `path_resolution(7)`.
    const LINKS_MAX: usize = 40;
    // Without a slash at the end, which would have a link followed unseen.
    let mut path: PathBuf = wanted.path.components().collect();
    for _ in 0..LINKS_MAX {
        let opened = match open_in_root(root, &path, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Place { path, kind: None });
            }
            opened => opened.map_err(wanted.open_failed())?,
        };
        let kind = file_type(&opened).map_err(wanted.open_failed())?;
        if kind != FileType::Symlink {
            let kind = Some(kind);
            return Ok(Place { path, kind });
        }
        let target = readlinkat(&opened, "", Vec::new());
        let target = target.map_err(|errno| wanted.open_failed()(errno.into()))?;
        let target = OsString::from_vec(target.into_bytes());
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    Err(wanted.open_failed()(rustix::io::Errno::LOOP.into()))
}

/// How what is sent is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// For [`receive`]: a directory whose content is meant comes before it, as `./`.
    Copy,
    /// For whoever reads a tar.
    Tar,
}

/// Writes what is `wanted` to `out` as a tar, whose owners are those of `owner` if that is given. A
/// reader that has left is no error: it knows why.
pub fn send(
    root: &OwnedFd,
    wanted: &Wanted,
    owner: Option<(u32, u32)>,
    form: Form,
    out: impl Write,
) -> Result<(), TransferError> {
    let Place { path, kind } = find(root, wanted)?;
    let kind = kind.ok_or_else(|| wanted.missing())?;
    let is_directory = kind == FileType::Directory;
    if (wanted.is_directory || wanted.is_content) && !is_directory {
        return Err(wanted.not_directory());
    }
    if !matches!(
        kind,
        FileType::Directory | FileType::RegularFile | FileType::Fifo
    ) {
        let (path, whose) = (wanted.path.clone(), wanted.whose.clone());
        return Err(TransferError::Device { path, whose });
    }
    let changes = Changes {
        owner,
        ..Changes::default()
    };
    let out = BufWriter::with_capacity(64 << 10, out);
    let mut packer = Packer::new(out, Source::Files, changes);
    let mut pack = || -> io::Result<()> {
        // The root has no other name; `..` has one that is not known here.
        let name = match path.file_name() {
            Some(name) if !wanted.is_content => name,
            _ => {
                let dir = open_in_root(root, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                if form == Form::Copy {
                    packer.add_root(&dir)?;
                }
                return packer.add_contents(&dir, Path::new(""), &|_, _| false);
            }
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let dir = open_in_root(root, parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
        packer.add(&dir, name, Path::new(name))
    };
    let written = pack().and_then(|()| packer.finish()?.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(wanted.read_failed()),
    }
}

/// Where a copy goes, and how.
#[derive(Debug)]
pub struct Receiving<'a> {
    pub root: &'a OwnedFd,
    pub wanted: &'a Wanted,
    /// Whether it is the host's tree.
    pub is_host: bool,
    /// Whether it is a tar of anybody's, which goes into a directory as it is.
    pub is_tar: bool,
    /// Whose all files are to be.
    pub owner: Option<(u32, u32)>,
    /// How owners are kept.
    pub owners: Owners,
    /// Whether directories and other files come into each other's places.
    pub replace: bool,
}

impl Receiving<'_> {
    /// Applies what is read from `input`.
    pub fn receive(&self, input: impl Read) -> Result<(), TransferError> {
        let mut members = Members::new(BufReader::with_capacity(64 << 10, input));
        let first = match members.next()? {
            None if !self.is_tar => return Err(TransferError::Nothing),
            // What is copied is what links lead to. A link in its place would lead whoever uses
            // the copy to where the container wants.
            Some(first) if !self.is_tar && first.kind == Kind::Symlink => {
                return Err(TransferError::BecameLink);
            }
            first => first,
        };
        let (root, placing) = self.place(first.as_ref())?;
        let write_failed = |source| TransferError::Write {
            path: self.wanted.path.clone(),
            whose: self.wanted.whose.clone(),
            source,
        };
        let mut tree = Tree::new(root, self.owners, true).adding(self.replace);
        let mut next = first;
        while let Some(mut member) = next {
            if placing.place(&mut member) {
                tree.apply_member(&member, &mut members)
                    .map_err(write_failed)?;
            }
            next = members.next()?;
        }
        tree.finish_directories().map_err(write_failed)?;
        // What fills the last block: its writer must not meet a closed pipe.
        let _ = io::copy(&mut members.into_inner(), &mut io::sink());
        Ok(())
    }

    /// The directory that members go to, and what becomes of their names.
    fn place(&self, first: Option<&Member>) -> Result<(OwnedFd, Placing), TransferError> {
        let Wanted {
            path,
            is_directory,
            is_content,
            whose,
        } = self.wanted;
        let there = find(self.root, self.wanted)?;
        let (path, whose) = (path.clone(), whose.clone());
        let from_directory = first.is_none_or(|first| first.kind == Kind::Directory);
        let (dir, rename) = match there.kind {
            Some(FileType::Directory) => (there.path, Rename::No),
            _ if self.is_tar => return Err(TransferError::TarOntoFile { path, whose }),
            Some(_) if from_directory => {
                return Err(TransferError::DirectoryOntoFile { path, whose });
            }
            Some(_) if *is_directory || *is_content => return Err(self.wanted.not_directory()),
            None if *is_directory || *is_content => return Err(self.wanted.missing()),
            // A file that is replaced, or a name that is new.
            _ => match (there.path.parent(), there.path.file_name()) {
                (Some(parent), Some(name)) => (parent.to_owned(), Rename::To(name.to_owned())),
                _ => return Err(self.wanted.missing()),
            },
        };
        let is_content = first.is_some_and(|first| clean(&first.path).as_os_str().is_empty());
        let rename = match rename {
            // The directory that is there stays as it is.
            Rename::No if is_content && !self.is_tar => Rename::Content,
            Rename::To(name) if is_content => Rename::Below(name),
            rename => rename,
        };
        let opened = match open_in_root(self.root, &dir, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(TransferError::NoParent { path, whose });
            }
            opened => opened.map_err(self.wanted.open_failed())?,
        };
        let (root, prefix) = match self.is_host {
            true => (opened, PathBuf::new()),
            false => {
                let root = self.root.try_clone().map_err(self.wanted.open_failed())?;
                (root, clean_path(&dir))
            }
        };
        let placing = Placing {
            prefix,
            rename,
            owner: self.owner,
            keeps_ids: !self.is_host,
        };
        Ok((root, placing))
    }
}

/// What becomes of the name of the first member, and of those below it.
enum Rename {
    No,
    /// It has another one.
    To(OsString),
    /// It has none, and is to have one.
    Below(OsString),
    /// It has none, and is left out itself.
    Content,
}

struct Placing {
    prefix: PathBuf,
    rename: Rename,
    owner: Option<(u32, u32)>,
    /// Whether programs may make their callers somebody else. Those of a container must not make
    /// others of the host its user.
    keeps_ids: bool,
}

impl Placing {
    /// Changes what a member is to be; false for one that is left out.
    fn place(&self, member: &mut Member) -> bool {
        let path = clean(&member.path);
        if matches!(self.rename, Rename::Content) && path.as_os_str().is_empty() {
            return false;
        }
        member.path = self.named(&path);
        if member.kind == Kind::HardLink {
            member.target = self.named(&clean(&member.target));
        }
        if let Some((uid, gid)) = self.owner {
            (member.uid, member.gid) = (uid.into(), gid.into());
        }
        if !self.keeps_ids {
            member.mode &= 0o1777;
        }
        true
    }

    fn named(&self, path: &Path) -> Vec<u8> {
        let path = match &self.rename {
            Rename::No | Rename::Content => self.prefix.join(path),
            Rename::Below(name) => self.prefix.join(name).join(path),
            Rename::To(name) => {
                let mut parts = path.components();
                parts.next();
                self.prefix.join(name).join(parts.as_path())
            }
        };
        path.into_os_string().into_vec()
    }
}
