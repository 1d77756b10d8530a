//! Bringing files into a container's tree.
//!
//! What is copied goes through a tar, and is applied as a layer is: every path is looked up below
//! the container's root, whatever symbolic links the image has. Sources are looked up below a root
//! of their own in the same way, so that none leads out of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, OFlags};

use super::BuildError;
use super::pack::{Changes, Packer, Source, sorted_names};
use super::pattern::{is_pattern, match_name};
use crate::images::digest::{Digest, Hashing};
use crate::images::layers::apply::{Owners, Tree};
use crate::images::layers::decompress::decompress;
use crate::images::layers::tar::Members;
use crate::process::user;
use crate::rootfs::lookup::open_in_root;

/// What is copied, from where to where.
#[derive(Clone)]
pub struct CopyRequest<'a> {
    /// The root directory of the sources.
    pub from: &'a OwnedFd,
    /// Where relative sources begin, below it.
    pub base: &'a Path,
    /// Paths or patterns.
    pub sources: &'a [String],
    /// A directory where it ends in a slash, where it is one, or with several sources.
    pub dest: &'a str,
    /// Where a relative destination begins.
    pub workdir: &'a Path,
    pub changes: Changes,
    /// Whether local archives are unpacked, as by `ADD`.
    pub unpack: bool,
    /// What of the sources stays out: told a path below the root, and whether it is a directory.
    pub left_out: &'a dyn LeftOut,
    pub owners: Owners,
}

/// What stays out.
pub trait LeftOut: Sync {
    fn is_left_out(&self, path: &Path, is_directory: bool) -> bool;
}

/// Nothing does.
pub struct Nothing;

impl LeftOut for Nothing {
    fn is_left_out(&self, _: &Path, _: bool) -> bool {
        false
    }
}

/// One source that was found.
struct Found {
    /// Below the root of the sources.
    path: PathBuf,
    opened: OwnedFd,
    kind: FileType,
}

/// User and group as `--chown` has them, of the container's own users. A user alone is its own
/// group.
pub fn owner(text: &str, root: &OwnedFd) -> Result<(u32, u32), BuildError> {
    let identity = user::resolve(text, root.as_fd()).map_err(|source| BuildError::Owner {
        owner: text.to_owned(),
        source,
    })?;
    // A number that is nobody's has the group of the same number, as with buildah.
    let gid = match text.parse::<u32>() {
        Ok(uid) if identity.home.is_empty() => uid,
        _ => identity.gid,
    };
    Ok((identity.uid, gid))
}

/// Copies into the tree `root`, and returns a digest of what was copied.
pub fn copy(request: &CopyRequest, root: &OwnedFd) -> Result<Digest, BuildError> {
    let found = find(request)?;
    let dest = clean(&request.workdir.join(request.dest));
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let exists = open_in_root(root, &at_root(&dest), flags).is_ok();
    let into = exists || found.len() > 1 || names_directory(request.dest);
    let (archives, plain): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|found| request.unpack && is_archive(found));
    let mut digest = Hashing::new(io::sink());
    if !plain.is_empty() {
        let content = transfer(request, plain, &dest, into, root)?;
        let _ = digest.write_all(content.hex().as_bytes());
    }
    for archive in archives {
        let content = unpack(request, archive, &dest, root)?;
        let _ = digest.write_all(content.hex().as_bytes());
    }
    Ok(digest.digest())
}

/// Whether a destination can be nothing else.
fn names_directory(dest: &str) -> bool {
    dest.is_empty() || dest.ends_with('/') || matches!(dest.rsplit('/').next(), Some("." | ".."))
}

/// A digest of what would be copied, whenever it was changed last.
pub fn digest(request: &CopyRequest) -> Result<Digest, BuildError> {
    let found = find(request)?;
    let mut packer = Packer::new(
        Hashing::new(io::sink()),
        Source::Tree,
        Changes {
            modified: Some(0),
            ..request.changes
        },
    );
    let several = found.len() > 1;
    for source in found {
        let path = source.path.clone();
        pack(request, &mut packer, source, Path::new("x"), several)
            .map_err(|source| BuildError::Pack { path, source })?;
    }
    let written = packer.finish();
    let written = written.map_err(|source| BuildError::Layer { source })?;
    Ok(written.digest())
}

/// One thread packs, this one unpacks.
fn transfer(
    request: &CopyRequest,
    sources: Vec<Found>,
    dest: &Path,
    into: bool,
    root: &OwnedFd,
) -> Result<Digest, BuildError> {
    let failed = |source| BuildError::Layer { source };
    let (reader, writer) = io::pipe().map_err(failed)?;
    let tree_root = root.try_clone().map_err(failed)?;
    std::thread::scope(|scope| {
        let packed = scope.spawn(move || -> Result<Digest, BuildError> {
            let out = Hashing::new(BufWriter::with_capacity(64 << 10, writer));
            let mut packer = Packer::new(out, Source::Tree, request.changes);
            for source in sources {
                let path = source.path.clone();
                pack(request, &mut packer, source, dest, into)
                    .map_err(|source| BuildError::Pack { path, source })?;
            }
            let mut written = packer.finish().map_err(failed)?;
            written.flush().map_err(failed)?;
            Ok(written.digest())
        });
        let mut members = Members::new(BufReader::new(reader));
        let applied = Tree::new(tree_root, request.owners, true).apply(&mut members);
        if applied.is_ok() {
            // What fills the last block: its writer must not meet a closed pipe.
            let _ = io::copy(&mut members.into_inner(), &mut io::sink());
        } else {
            drop(members);
        }
        let packed = packed.join().expect("packing does not panic");
        match (applied, packed) {
            (_, Err(error)) if !is_broken_pipe(&error) => Err(error),
            (Err(source), _) => Err(BuildError::Apply { source }),
            (Ok(_), packed) => packed,
        }
    })
}

fn is_broken_pipe(error: &BuildError) -> bool {
    match error {
        BuildError::Pack { source, .. } | BuildError::Layer { source } => {
            source.kind() == io::ErrorKind::BrokenPipe
        }
        _ => false,
    }
}

fn pack<W: Write>(
    request: &CopyRequest,
    packer: &mut Packer<W>,
    source: Found,
    dest: &Path,
    into: bool,
) -> io::Result<()> {
    let name = source.path.file_name().unwrap_or(OsStr::new(""));
    match source.kind {
        FileType::Directory => {
            let left_out = |below: &Path, is_directory: bool| {
                let path = source.path.join(below);
                request.left_out.is_left_out(&path, is_directory)
            };
            packer.add_contents(&source.opened, dest, &left_out)
        }
        FileType::RegularFile if into => packer.add_opened(source.opened, &dest.join(name)),
        FileType::RegularFile => packer.add_opened(source.opened, dest),
        _ => Err(io::Error::other("it is neither a file nor a directory")),
    }
}

fn unpack(
    request: &CopyRequest,
    archive: Found,
    dest: &Path,
    root: &OwnedFd,
) -> Result<Digest, BuildError> {
    let path = archive.path;
    let failed = |source| BuildError::Pack {
        path: path.clone(),
        source,
    };
    ensure_directory(dest, request.owners, root)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let below = open_in_root(root, &at_root(dest), flags).map_err(BuildError::io("open", dest))?;
    let tar = decompress(File::from(archive.opened)).map_err(failed)?;
    let mut members = Members::new(Hashing::new(tar));
    Tree::new(below, request.owners, true)
        .apply(&mut members)
        .map_err(|source| BuildError::Apply { source })?;
    Ok(members.into_inner().digest())
}

/// Makes a directory of the container's, with those above it.
pub fn ensure_directory(dest: &Path, owners: Owners, root: &OwnedFd) -> Result<(), BuildError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let dest = clean(dest);
    if open_in_root(root, &at_root(&dest), flags).is_ok() {
        return Ok(());
    }
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    let now = jiff::Timestamp::now().as_second();
    header.set_mtime(u64::try_from(now).unwrap_or(0));
    header.set_size(0);
    let failed = |source| BuildError::Layer { source };
    tar.append_data(&mut header, &dest, io::empty())
        .map_err(failed)?;
    let bytes = tar.into_inner().map_err(failed)?;
    let root = root.try_clone().map_err(failed)?;
    Tree::new(root, owners, true)
        .apply(&mut Members::new(&bytes[..]))
        .map(drop)
        .map_err(|source| BuildError::Apply { source })
}

/// All that the sources mean, each of which has to mean something.
fn find(request: &CopyRequest) -> Result<Vec<Found>, BuildError> {
    let mut found = Vec::new();
    for source in request.sources {
        if source.starts_with("http://")
            || source.starts_with("https://")
            || source.starts_with("git@")
        {
            return Err(BuildError::Url {
                url: source.clone(),
            });
        }
        let path = clean(&request.base.join(source));
        let paths = match is_pattern(source) {
            true => expand(request.from, &path)?,
            false => vec![path],
        };
        let kept = |path: &PathBuf| !request.left_out.is_left_out(path, false);
        let paths: Vec<_> = paths.into_iter().filter(kept).collect();
        if paths.is_empty() {
            return Err(BuildError::NoSource {
                path: source.into(),
            });
        }
        for path in paths {
            found.push(open(request.from, path, source)?);
        }
    }
    Ok(found)
}

fn open(from: &OwnedFd, path: PathBuf, source: &str) -> Result<Found, BuildError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let opened = match open_in_root(from, &at_root(&path), flags) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(BuildError::NoSource {
                path: source.into(),
            });
        }
        opened => opened.map_err(BuildError::io("open", &path))?,
    };
    let status = rustix::fs::fstat(&opened).map_err(BuildError::io("examine", &path))?;
    Ok(Found {
        kind: FileType::from_raw_mode(status.st_mode),
        path,
        opened,
    })
}

/// The paths that a pattern stands for, in order.
fn expand(from: &OwnedFd, pattern: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let mut paths = vec![PathBuf::new()];
    for part in pattern {
        let mut next = Vec::new();
        for path in paths {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let Ok(dir) = open_in_root(from, &at_root(&path), flags) else {
                continue;
            };
            let names = sorted_names(&dir).map_err(BuildError::io("list", &path))?;
            let part = part.to_string_lossy();
            let fits = |name: &&std::ffi::OsString| match_name(&part, &name.to_string_lossy());
            next.extend(names.iter().filter(fits).map(|name| path.join(name)));
        }
        paths = next;
    }
    Ok(paths)
}

/// Whether it is a tar, compressed or not.
fn is_archive(found: &Found) -> bool {
    const MAGIC: std::ops::Range<usize> = 257..262;
    let beginning = || -> io::Result<Vec<u8>> {
        let mut file = File::from(found.opened.try_clone()?);
        let mut beginning = Vec::new();
        decompress(&file)?.take(512).read_to_end(&mut beginning)?;
        file.rewind()?;
        Ok(beginning)
    };
    found.kind == FileType::RegularFile
        && beginning().is_ok_and(|bytes| bytes.get(MAGIC) == Some(b"ustar"))
}

/// A path as it is below its root: `..` taken by its word.
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// For `openat2(2)`, which takes no empty path.
fn at_root(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}
