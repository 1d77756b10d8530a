//! Directory trees as tars: an image's layer from what a container has changed, and what `copy`
//! brings into one.
//!
//! The same tree makes the same tar: names in order, whole seconds, nothing of this machine.
//! Whiteouts and opaque directories of overlayfs become OCI's. Sockets mean nothing in an image and
//! are left out.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, StatxAttributes, StatxFlags, fgetxattr, flistxattr,
    getxattr, listxattr, major, minor, openat, readlinkat, statat, statx,
};
use rustix::io::Errno;
use tar::{EntryType, Header};

use crate::images::layers::apply::{OPAQUE, WHITEOUT};
use crate::images::layers::attributes::{OVERRIDE_STAT, is_kept, override_stat_of};

/// What the entries of a tar are to be, other than in the tree.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changes {
    /// User and group.
    pub owner: Option<(u32, u32)>,
    /// Permissions of files and directories.
    pub mode: Option<u32>,
    /// Seconds since 1970.
    pub modified: Option<i64>,
}

/// Where the entries come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A tree as it is seen, for an image.
    Tree,
    /// The same for anything else: names mean nothing but themselves.
    Files,
    /// The upper directory of an overlay.
    Upper,
}

/// A tar that is being written.
pub struct Packer<W: Write> {
    tar: tar::Builder<W>,
    changes: Changes,
    source: Source,
    /// Where a file with several links went first.
    links: HashMap<(u64, u64), PathBuf>,
    entries: u64,
    /// Whether what is mounted in the tree stays out, but for the place that it has.
    on_one_mount: bool,
}

impl<W: Write> Packer<W> {
    pub fn new(out: W, source: Source, changes: Changes) -> Self {
        Self {
            tar: tar::Builder::new(out),
            changes,
            source,
            links: HashMap::new(),
            entries: 0,
            on_one_mount: false,
        }
    }

    /// Leaves out what is mounted in the tree.
    pub fn on_one_mount(self) -> Self {
        Self {
            on_one_mount: true,
            ..self
        }
    }

    /// How many entries there are.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    pub fn finish(self) -> io::Result<W> {
        self.tar.into_inner()
    }

    /// Adds what is in the directory `dir`, below `at` in the tar, which is relative; but for what
    /// is `left_out`, which is told a path below `dir` and whether a directory is there.
    pub fn add_contents(
        &mut self,
        dir: &OwnedFd,
        at: &Path,
        left_out: &dyn Fn(&Path, bool) -> bool,
    ) -> io::Result<()> {
        self.add_below(dir, at, Path::new(""), left_out)
    }

    /// Adds what `dir` has under `name`, with all below it.
    pub fn add(&mut self, dir: &OwnedFd, name: &OsStr, at: &Path) -> io::Result<()> {
        self.add_entry(dir, name, at, Path::new(name), &|_, _| false)
    }

    /// Adds an entry for the tree's own root.
    pub fn add_root(&mut self, dir: &OwnedFd) -> io::Result<()> {
        let found = rustix::fs::fstat(dir)?;
        let mut header = self.header(&found, dir);
        self.add_attributes(dir)?;
        header.set_entry_type(EntryType::Directory);
        self.append(&mut header, Path::new("./"), io::empty())
    }

    /// Adds a regular file that is open for reading.
    pub fn add_opened(&mut self, file: OwnedFd, at: &Path) -> io::Result<()> {
        let found = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no file any more"));
        }
        let mut header = self.header(&found, &file);
        self.add_attributes(&file)?;
        let len = u64::try_from(found.st_size).unwrap_or(0);
        header.set_entry_type(EntryType::Regular);
        header.set_size(len);
        let mut content = Exactly {
            inner: File::from(file),
            left: len,
        };
        self.append(&mut header, at, &mut content)
    }

    fn add_below(
        &mut self,
        dir: &OwnedFd,
        at: &Path,
        below: &Path,
        left_out: &dyn Fn(&Path, bool) -> bool,
    ) -> io::Result<()> {
        for name in sorted_names(dir)? {
            let below = below.join(&name);
            let explained = |error: io::Error| match error.get_ref() {
                // Said already, further down.
                Some(_) => error,
                None => io::Error::new(error.kind(), format!("{}: {error}", below.display())),
            };
            self.add_entry(dir, &name, &at.join(&name), &below, left_out)
                .map_err(explained)?;
        }
        Ok(())
    }

    fn add_entry(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        at: &Path,
        below: &Path,
        left_out: &dyn Fn(&Path, bool) -> bool,
    ) -> io::Result<()> {
        let found = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(found.st_mode);
        if left_out(below, kind == FileType::Directory) {
            return Ok(());
        }
        let is_device = kind == FileType::CharacterDevice;
        if self.source == Source::Upper && is_device && found.st_rdev == 0 {
            return self.white_out(at);
        }
        if self.on_one_mount && is_mounted(dir, name)? {
            return self.add_place(at, &found);
        }
        if self.source != Source::Files && name.as_bytes().starts_with(WHITEOUT) {
            let text = "its name would take another file away in an image: rename it";
            let text = format!("{}: {text}", below.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        match kind {
            FileType::Directory => self.add_directory(dir, name, at, below, left_out),
            FileType::RegularFile => self.add_file(dir, name, at, &found),
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new())?;
                let recorded = recorded_by_name(dir, name, &found);
                let mut header = self.bare_header(&found, recorded);
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                self.entries += 1;
                let target = OsStr::from_bytes(target.as_bytes());
                self.tar.append_link(&mut header, at, target)
            }
            FileType::Fifo => {
                let recorded = recorded_by_name(dir, name, &found);
                self.add_special(at, &found, recorded, EntryType::Fifo)
            }
            FileType::CharacterDevice => self.add_special(at, &found, None, EntryType::Char),
            FileType::BlockDevice => self.add_special(at, &found, None, EntryType::Block),
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    /// Where something is mounted, with nothing in it. What is beneath cannot be seen: a volume has
    /// the attributes of the directory that it hides, and the kernel's file systems, which are
    /// nobody's, hide root's.
    fn add_place(&mut self, at: &Path, found: &Stat) -> io::Result<()> {
        const NOBODY: u32 = 65534;
        let mut header = self.bare_header(found, None);
        if found.st_uid == NOBODY {
            header.set_uid(0);
            header.set_gid(0);
            header.set_mode(0o755);
        }
        let kind = match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => EntryType::Directory,
            _ => EntryType::Regular,
        };
        header.set_entry_type(kind);
        self.append(&mut header, at, io::empty())
    }

    fn add_directory(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        at: &Path,
        below: &Path,
        left_out: &dyn Fn(&Path, bool) -> bool,
    ) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(dir, name, flags, Mode::empty())?;
        let found = rustix::fs::fstat(&opened)?;
        let mut header = self.header(&found, &opened);
        self.add_attributes(&opened)?;
        header.set_entry_type(EntryType::Directory);
        let mut with_slash = at.as_os_str().to_owned();
        with_slash.push("/");
        self.append(&mut header, Path::new(&with_slash), io::empty())?;
        if self.source == Source::Upper && is_opaque(&opened) {
            self.take_away(&at.join(OsStr::from_bytes(OPAQUE)))?;
        }
        self.add_below(&opened, at, below, left_out)
    }

    fn add_file(&mut self, dir: &OwnedFd, name: &OsStr, at: &Path, found: &Stat) -> io::Result<()> {
        if found.st_nlink > 1 {
            let id = (found.st_dev, found.st_ino);
            if let Some(first) = self.links.get(&id) {
                let mut header = self.bare_header(found, None);
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                self.entries += 1;
                let first = first.clone();
                return self.tar.append_link(&mut header, at, first);
            }
            self.links.insert(id, at.to_owned());
        }
        // A FIFO that somebody puts into its place must not hold this up.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(dir, name, flags, Mode::empty())?;
        self.add_opened(opened, at)
    }

    fn add_special(
        &mut self,
        at: &Path,
        found: &Stat,
        recorded: Option<Recorded>,
        kind: EntryType,
    ) -> io::Result<()> {
        let mut header = self.bare_header(found, recorded);
        header.set_entry_type(kind);
        header.set_size(0);
        if kind != EntryType::Fifo {
            header.set_device_major(major(found.st_rdev))?;
            header.set_device_minor(minor(found.st_rdev))?;
        }
        self.append(&mut header, at, io::empty())
    }

    /// Takes away what layers below have at `at`.
    fn white_out(&mut self, at: &Path) -> io::Result<()> {
        let mut name = OsStr::from_bytes(WHITEOUT).to_owned();
        name.push(at.file_name().unwrap_or_default());
        self.take_away(&at.with_file_name(name))
    }

    /// An empty file whose name says what it takes away.
    fn take_away(&mut self, at: &Path) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        self.append(&mut header, at, io::empty())
    }

    fn append(&mut self, header: &mut Header, at: &Path, content: impl Read) -> io::Result<()> {
        self.entries += 1;
        self.tar.append_data(header, at, content)
    }

    fn header(&self, found: &Stat, opened: &OwnedFd) -> Header {
        self.bare_header(found, recorded_owner(opened))
    }

    /// With the owner and the mode that were kept apart, where there was but one ID for them.
    fn bare_header(&self, found: &Stat, recorded: Option<Recorded>) -> Header {
        let (uid, gid, mode) =
            recorded.unwrap_or((found.st_uid, found.st_gid, found.st_mode & 0o7777));
        let (uid, gid) = self.changes.owner.unwrap_or((uid, gid));
        let mut header = Header::new_gnu();
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mode(self.changes.mode.unwrap_or(mode));
        let modified = self.changes.modified.unwrap_or(found.st_mtime);
        header.set_mtime(u64::try_from(modified).unwrap_or(0));
        header.set_size(0);
        header
    }

    /// Extended attributes, which come before what they belong to.
    fn add_attributes(&mut self, file: &OwnedFd) -> io::Result<()> {
        let mut attributes = attributes(file)?;
        if attributes.is_empty() {
            return Ok(());
        }
        attributes.sort();
        let named: Vec<_> = attributes
            .iter()
            .filter_map(|(name, value)| {
                let name = str::from_utf8(name).ok()?;
                Some((format!("SCHILY.xattr.{name}"), &**value))
            })
            .collect();
        let records = named.iter().map(|(name, value)| (name.as_str(), *value));
        self.tar.append_pax_extensions(records)
    }
}

/// A file that is read while it grows or shrinks has the length that was told.
struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.inner.read(&mut buffer[..len])?;
        if read == 0 && len > 0 {
            return Err(io::Error::other("it was cut short while it was read"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// In the order of their bytes.
pub fn sorted_names(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}

/// Whether something is mounted there.
fn is_mounted(dir: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = statx(dir, name, flags, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn is_opaque(dir: &OwnedFd) -> bool {
    value(dir, OsStr::new("user.overlay.opaque")).is_ok_and(|value| value == b"y")
}

/// User, group and mode, as unpacking has kept them.
type Recorded = (u32, u32, u32);

fn recorded_owner(file: &OwnedFd) -> Option<Recorded> {
    let text = value(file, OsStr::new(OVERRIDE_STAT)).ok()?;
    read_recorded(&mut str::from_utf8(&text).ok()?.split(':'))
}

/// The same of what has no attributes of the user's.
fn recorded_by_name(dir: &OwnedFd, name: &OsStr, found: &Stat) -> Option<Recorded> {
    let text = value(dir, &override_stat_of(name)?).ok()?;
    let mut fields = str::from_utf8(&text).ok()?.split(':');
    let recorded = read_recorded(&mut fields)?;
    let modified: i64 = fields.next()?.parse().ok()?;
    // Else it is another one.
    (modified == found.st_mtime).then_some(recorded)
}

fn read_recorded<'a>(fields: &mut impl Iterator<Item = &'a str>) -> Option<Recorded> {
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
    Some((uid, gid, mode & 0o7777))
}

/// Those that an image may give its files.
fn attributes(file: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match read_whole(|buffer| flistxattr(file, buffer)) {
        // Of a descriptor of a path only.
        Err(Errno::BADF) => read_whole(|buffer| listxattr(proc_path(file), buffer)),
        names => names,
    };
    let names = match names {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        names => names?,
    };
    let kept = names.split(|byte| *byte == 0).filter(|name| is_kept(name));
    kept.map(|name| Ok((name.to_vec(), value(file, OsStr::from_bytes(name))?)))
        .collect()
}

fn value(file: &OwnedFd, name: &OsStr) -> io::Result<Vec<u8>> {
    let value = match read_whole(|buffer| fgetxattr(file, name, buffer)) {
        Err(Errno::BADF) => read_whole(|buffer| getxattr(proc_path(file), name, buffer)),
        value => value,
    };
    Ok(value?)
}

/// For what takes no descriptor of a path only. A process may have no `/proc` in its root.
fn proc_path(file: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// All of what a call puts into a buffer, however long it is.
fn read_whole(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    /// XATTR_SIZE_MAX and XATTR_LIST_MAX.
    const LEN_MAX: usize = 64 * 1024;
    let mut buffer = vec![0; 512];
    loop {
        match call(&mut buffer) {
            Err(Errno::RANGE) if buffer.len() < LEN_MAX => buffer.resize(LEN_MAX, 0),
            Err(errno) => return Err(errno),
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
        }
    }
}
