//! Places in the container's tree: paths that the image has a say in, resolved so that they cannot
//! lead out of it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat2};
use rustix::io::Errno;

/// `linux/magic.h`.
pub const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
pub const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
pub const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;

/// The container's tree, once it is this process's root directory. What is looked up here follows
/// the image's symbolic links, which now lead nowhere but inside; magic links of procfs are
/// refused.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// What [`Root::ensure`] makes where there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Directory,
    File,
}

impl Root {
    /// Call this after pivot_root.
    pub fn open() -> io::Result<Self> {
        Ok(Self(rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?))
    }

    /// What is at `path`, as an O_PATH descriptor.
    pub fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        open_in_root(&self.0, path, flags | OFlags::PATH)
    }

    /// The directory at `path`, made if missing. A symbolic link in its place is refused, not
    /// followed: whoever puts one where a kernel file system belongs wants something else mounted
    /// upon.
    pub fn kernel_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let place = self.ensure(path, Missing::Directory)?;
        let named = self.resolve(path, OFlags::NOFOLLOW)?;
        match file_type(named.as_fd())? {
            FileType::Directory => Ok(place),
            _ => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        }
    }

    /// What is at `path`; where nothing is, an empty directory or file is made, with the
    /// directories above it. Dangling symbolic links are followed to where they point inside.
    pub fn ensure(&self, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
        self.ensure_from(self.0.try_clone()?, path, missing, SYMLINKS_MAX)
    }

    fn ensure_from(
        &self,
        start: OwnedFd,
        path: &Path,
        missing: Missing,
        links_left: u32,
    ) -> io::Result<OwnedFd> {
        let mut here = if path.is_absolute() {
            self.0.try_clone()?
        } else {
            start
        };
        let mut components = path.components().peekable();
        while let Some(component) = components.next() {
            let make = if components.peek().is_some() {
                Missing::Directory
            } else {
                missing
            };
            here = match component {
                Component::RootDir | Component::CurDir | Component::Prefix(_) => here,
                // `..` of the root is the root.
                Component::ParentDir => open_path(&here, Path::new(".."), OFlags::DIRECTORY)?,
                Component::Normal(name) => self.step(here, Path::new(name), make, links_left)?,
            };
        }
        Ok(here)
    }

    fn step(
        &self,
        here: OwnedFd,
        name: &Path,
        missing: Missing,
        links_left: u32,
    ) -> io::Result<OwnedFd> {
        match open_path(&here, name, OFlags::empty()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let made = match missing {
            Missing::Directory => rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o755)),
            Missing::File => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                rustix::fs::openat(&here, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        match made {
            Ok(()) => open_path(&here, name, OFlags::NOFOLLOW),
            // There is something after all: a symbolic link to nowhere.
            Err(Errno::EXIST) if links_left > 0 => {
                let target = rustix::fs::readlinkat(&here, name, Vec::new())?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                self.ensure_from(here, target, missing, links_left - 1)
            }
            Err(Errno::EXIST) => Err(Errno::LOOP.into()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// As the kernel's limit in `path_resolution(7)`.
const SYMLINKS_MAX: u32 = 40;

/// Opens `path` as a process with the root directory `root` sees it, except that magic links are
/// refused.
///
/// # Errors
/// Those of `openat2(2)`; ELOOP for a magic link.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    open(
        root,
        path,
        flags,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Opens `path` below `dir`, without following a link and without leaving `dir`.
///
/// # Errors
/// Those of `openat2(2)`; ELOOP for a link, EXDEV for a way out.
pub fn open_beneath(dir: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    open(dir, path, flags, resolve)
}

/// As [`open_beneath`], without entering another mount.
///
/// # Errors
/// As there; EXDEV for a mount.
pub fn open_on_mount(dir: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    open(dir, path, flags, resolve)
}

/// Opens `path` with the symbolic links in it followed, seen from this process's root directory.
fn open_path(dir: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    open(dir, path, flags | OFlags::PATH, ResolveFlags::NO_MAGICLINKS)
}

/// A rename or a mount anywhere on the machine, not only in this tree, makes the kernel refuse the
/// `..` of a scoped look-up with EAGAIN rather than decide whether it escapes, so a busy machine
/// needs several attempts; an image that renames for ever to wear us out gets its error after
/// these.
const ATTEMPTS_MAX: u32 = 10_000;

fn open(dir: impl AsFd, path: &Path, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    let mut attempt = 1;
    loop {
        match openat2(&dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if attempt < ATTEMPTS_MAX => attempt += 1,
            opened => return Ok(opened?),
        }
    }
}

pub fn file_type(fd: impl AsFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode))
}

/// The magic number of the file system that `fd` is on, `statfs(2)`.
pub fn filesystem_magic(fd: impl AsFd) -> io::Result<i64> {
    Ok(fstatfs(fd)?.f_type)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    /// What any other process of the machine may do at any time.
    #[test]
    fn renames_elsewhere_fail_no_lookup() {
        let dir = tempfile::tempdir().expect("a directory");
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a")).expect("a tree");
        fs::write(tree.join("file"), "").expect("a file");
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("another tree");
        let root = fs::File::open(&tree).expect("the tree");
        let path = "a/../".repeat(20) + "file";

        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let (one, other) = (elsewhere.join("1"), elsewhere.join("2"));
                fs::create_dir(&one).expect("a directory");
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&one, &other).expect("renamed");
                    fs::rename(&other, &one).expect("renamed");
                }
            });
            let opened = (0..1000)
                .try_for_each(|_| open_in_root(&root, Path::new(&path), OFlags::RDONLY).map(drop));
            done.store(true, Ordering::Relaxed);
            opened.expect("each look-up");
        });
    }
}
