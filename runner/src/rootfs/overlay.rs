//! The container's root file system: an overlay over the given directories, or a directory itself.
//!
//! The overlay is a native one inside the user namespace (`userxattr`, Linux 5.11). Directories are
//! handed to the kernel as open descriptors: names with `:`, `,` or `\` need no escapes, however
//! long they are, and the container's mount table does not tell the host's paths. Where the data
//! directory cannot hold the changes of one (it is on an overlay, NFS, or the kernel is old), a
//! container gets a copy of its layers (`flatten`).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat};
use rustix::mount::{MountAttrFlags, MountFlags, UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use super::copy_up::is_empty;
use super::flatten;
use super::lookup::{OVERLAYFS_SUPER_MAGIC, filesystem_magic, open_beneath};
use super::mounts::Detached;
use crate::path_text;
use crate::state::remove_tree;

/// What the root file system is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum RootSource {
    /// A directory, which itself is changed.
    InPlace(#[serde(with = "path_text")] PathBuf),
    Overlay(Overlay),
}

/// Directories that lie over each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overlay {
    /// What never changes: 1 to [`LOWERS_MAX`] directories, the uppermost first, as in overlayfs's
    /// `lowerdir`. (The manifest of an OCI image lists its layers the other way round.)
    #[serde(with = "path_text::list")]
    pub lowers: Vec<PathBuf>,
    /// Where changes go. It and `work` are beside each other.
    #[serde(with = "path_text")]
    pub upper: PathBuf,
    #[serde(with = "path_text")]
    pub work: PathBuf,
    /// The two do not outlive the container, so that nothing need reach the disk before it ends.
    pub volatile: bool,
}

impl Overlay {
    /// Whether the layers are copied to where changes go.
    pub fn is_copied(&self) -> bool {
        self.work.join(COPIED).exists()
    }
}

/// `OVL_MAX_STACK` of `fs/overlayfs/params.h`.
pub const LOWERS_MAX: usize = 500;

impl RootSource {
    /// The directories that it is made from, the uppermost first.
    pub fn dirs(&self) -> &[PathBuf] {
        match self {
            Self::InPlace(dir) => std::slice::from_ref(dir),
            Self::Overlay(overlay) => &overlay.lowers,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot unmount the layers of the overlay: {source}")]
    Clear { source: io::Error },
    #[error("cannot copy {lowers} to {}: {source}", upper.display())]
    Copy {
        lowers: String,
        upper: PathBuf,
        source: io::Error,
    },
    #[error("cannot mount an overlay over {lowers} with its changes in {}: {source}{hint}", upper.display())]
    Mount {
        lowers: String,
        upper: PathBuf,
        source: io::Error,
        hint: String,
    },
}

/// The container's root, attached nowhere. `dirs` are the mounts of [`RootSource::dirs`]; `layer`
/// the one that holds the overlay's own directories, where their paths are out of reach.
pub fn mount(
    source: &RootSource,
    mut dirs: Vec<Detached>,
    layer: Option<Detached>,
) -> Result<Detached, OverlayError> {
    match source {
        RootSource::InPlace(_) => Ok(dirs.swap_remove(0)),
        RootSource::Overlay(overlay) => {
            let mut layers = Layers::open(overlay, dirs, layer)?;
            let mounted = layers.mount_somehow();
            let root = mounted.map_err(|source| layers.failed(overlay, source))?;
            layers.stack.clear()?;
            Ok(root)
        }
    }
}

/// As [`mount`]. Where the data directory cannot hold the changes of an overlay, the layers are
/// copied there instead, once; the text says so.
pub fn mount_or_copy(
    source: &RootSource,
    mut dirs: Vec<Detached>,
    layer: Option<Detached>,
) -> Result<(Detached, Option<String>), OverlayError> {
    let overlay = match source {
        RootSource::InPlace(_) => return Ok((dirs.swap_remove(0), None)),
        RootSource::Overlay(overlay) => overlay,
    };
    let mut layers = Layers::open(overlay, dirs, layer)?;
    let error = match layers.mount_somehow() {
        Ok(root) => {
            layers.stack.clear()?;
            return Ok((root, None));
        }
        Err(error) => error,
    };
    // A copy of the whole host is not what anybody wants.
    let is_host = overlay.lowers.iter().any(|lower| lower == Path::new("/"));
    if is_host || layers.can_hold_changes() {
        return Err(layers.failed(overlay, error));
    }
    let copied = |source| OverlayError::Copy {
        lowers: listed(&overlay.lowers),
        upper: overlay.upper.clone(),
        source,
    };
    let is_new = layers.copy().map_err(copied)?;
    let root = Detached::copy_of(&layers.upper, Path::new(""), false).map_err(copied)?;
    layers.stack.clear()?;
    let kind = kind_of(&layers.upper).unwrap_or("an old kernel, or its file system");
    let said = format!(
        "the container has a copy of its whole image, which takes time and room: no overlay can have its changes in the data \
         directory ({kind})"
    );
    Ok((root, is_new.then_some(said)))
}

/// The directories of an overlay, opened.
struct Layers {
    lowers: Vec<OwnedFd>,
    upper: OwnedFd,
    work: OwnedFd,
    volatile: bool,
    /// Where they are mounted: the kernel takes layers from mounts of this namespace only.
    stack: Stack,
}

/// In the work directory, once the layers are copied.
const COPIED: &str = "copied";
/// There while they are.
const COPYING: &str = "copying";
const PROBE: &str = "probe";

impl Layers {
    fn open(
        overlay: &Overlay,
        dirs: Vec<Detached>,
        layer: Option<Detached>,
    ) -> Result<Self, OverlayError> {
        let (upper, work) = (&overlay.upper, &overlay.work);
        let mut stack = Stack::default();
        let named = dirs.into_iter().zip(&overlay.lowers);
        let lowers = named.map(|(mount, path)| stack.push(mount, path));
        let lowers = lowers.collect::<Result<Vec<_>, _>>()?;
        let (upper, work) = match layer {
            Some(layer) => {
                let layer = stack.push(layer, upper)?;
                (open_in(&layer, upper)?, open_in(&layer, work)?)
            }
            None => (open_dir(upper)?, open_dir(work)?),
        };
        Ok(Self {
            lowers,
            upper,
            work,
            volatile: overlay.volatile,
            stack,
        })
    }

    /// In whichever way the kernel takes them.
    fn mount_somehow(&mut self) -> io::Result<Detached> {
        if has(&self.work, COPIED) || has(&self.work, COPYING) {
            // There is a tree, and no changes of one.
            return Err(io::ErrorKind::Unsupported.into());
        }
        match self.mount() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.mount_by_text(),
            other => other,
        }
    }

    fn failed(&self, overlay: &Overlay, source: io::Error) -> OverlayError {
        OverlayError::Mount {
            lowers: listed(&overlay.lowers),
            upper: overlay.upper.clone(),
            hint: hint(&overlay.lowers, &self.upper),
            source,
        }
    }

    /// Whether an overlay over nothing could have its changes there, so that it is the layers that
    /// stand in the way.
    fn can_hold_changes(&mut self) -> bool {
        if has(&self.work, COPIED) || has(&self.work, COPYING) {
            return false;
        }
        let is_possible = self.probe().is_ok();
        let probe = format!("/proc/self/fd/{}/{PROBE}", self.work.as_raw_fd());
        // What stays is within the directory that goes with the container.
        let _ = remove_tree(Path::new(&probe));
        is_possible
    }

    /// Mounts an overlay over nothing, in directories of its own: an attempt that has failed may
    /// have left marks in the others.
    fn probe(&mut self) -> io::Result<Detached> {
        mkdirat(&self.work, PROBE, Mode::RWXU)?;
        let make = |name: &str| {
            let path = format!("{PROBE}/{name}");
            mkdirat(&self.work, &path, Mode::RWXU)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(&self.work, &path, flags, Mode::empty())
        };
        let (upper, work) = (make("upper")?, make("work")?);
        let empty = Detached::filesystem("tmpfs", &[], MountAttrFlags::empty())?;
        let over_nothing = Self {
            lowers: vec![self.stack.attach(empty)?],
            upper,
            work,
            volatile: false,
            stack: Stack::default(),
        };
        over_nothing.mount()
    }

    /// Copies the layers into the directory for changes, unless they are there; tells whether they
    /// were not.
    fn copy(&self) -> io::Result<bool> {
        if has(&self.work, COPIED) {
            return Ok(false);
        }
        let open = |path: &str| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(&self.upper, path, flags, Mode::empty())
        };
        let target = open(".")?;
        if has(&self.work, COPYING) {
            // It was cut short.
            flatten::clear(&target)?;
        } else if !is_empty(&target)? {
            // Changes of an overlay, which a copy would be mixed with.
            let text = "it has changes already, which need the file system that they were made on";
            return Err(io::Error::other(text));
        }
        let mark = |name: &str| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            rustix::fs::openat(&self.work, name, flags, Mode::RUSR | Mode::WUSR).map(drop)
        };
        mark(COPYING)?;
        flatten::flatten(&self.lowers, &target)?;
        mark(COPIED)?;
        rustix::fs::unlinkat(&self.work, COPYING, AtFlags::empty())?;
        Ok(true)
    }

    /// # Errors
    /// EINVAL for several lower directories where the kernel does not take them one by one, as it
    /// does since Linux 6.7.
    fn mount(&self) -> io::Result<Detached> {
        let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let key = match self.lowers.len() {
            1 => "lowerdir",
            _ => "lowerdir+",
        };
        let lowers: Vec<_> = self.lowers.iter().map(name).collect();
        let (upper, work) = (name(&self.upper), name(&self.work));
        let mut options: Vec<_> = lowers.iter().map(|name| (key, &**name)).collect();
        options.extend([
            ("upperdir", &*upper),
            ("workdir", &*work),
            ("userxattr", ""),
        ]);
        if self.volatile {
            options.push(("volatile", ""));
        }
        Detached::filesystem("overlay", &options, MountAttrFlags::empty())
    }

    /// As [`Layers::mount`], with all options in one text, which mount(2) takes up to a page of.
    /// (fsconfig(2) takes 255 bytes at a time.) Descriptors are named from their directory, which
    /// is made this process's working directory: [`LOWERS_MAX`] names take less than 3,000 bytes.
    fn mount_by_text(&mut self) -> io::Result<Detached> {
        const PLACE: &str = "root";
        let numbers: Vec<_> = self
            .lowers
            .iter()
            .map(|fd| fd.as_raw_fd().to_string())
            .collect();
        let mut options = format!(
            "lowerdir={},upperdir={},workdir={},userxattr",
            numbers.join(":"),
            self.upper.as_raw_fd(),
            self.work.as_raw_fd()
        );
        if self.volatile {
            options += ",volatile";
        }
        // Needs a place in the tree, unlike what fsmount(2) makes.
        let places = Detached::filesystem("tmpfs", &[], MountAttrFlags::empty())?;
        let places = self.stack.attach(places)?;
        mkdirat(&places, PLACE, Mode::RWXU)?;
        rustix::process::chdir("/proc/self/fd")?;
        let place = format!("{}/{PLACE}", places.as_raw_fd());
        let options = CString::new(options)?;
        let flags = MountFlags::empty();
        rustix::mount::mount("overlay", place, "overlay", flags, &*options)?;
        rustix::process::chdir("/")?;
        Detached::copy_of(&places, Path::new(PLACE), false)
    }
}

/// Mounts stacked upon this process's root directory, where no path leads to them.
#[derive(Debug, Default)]
struct Stack {
    height: u32,
}

impl Stack {
    fn push(&mut self, mount: Detached, named: &Path) -> Result<OwnedFd, OverlayError> {
        self.attach(mount).map_err(|source| OverlayError::Open {
            path: named.into(),
            source,
        })
    }

    fn attach(&mut self, mount: Detached) -> io::Result<OwnedFd> {
        let root = mount.attach(super::open_root()?)?;
        self.height += 1;
        Ok(root)
    }

    /// The overlay has got mounts of its own: these must not be in the way of the old root's end.
    fn clear(&mut self) -> Result<(), OverlayError> {
        for _ in 0..std::mem::take(&mut self.height) {
            // Means what is on top.
            unmount("/", UnmountFlags::DETACH).map_err(|errno| OverlayError::Clear {
                source: errno.into(),
            })?;
        }
        Ok(())
    }
}

/// For messages, which are to stay short.
fn listed(lowers: &[PathBuf]) -> String {
    match lowers {
        [one] => one.display().to_string(),
        [] => "nothing".to_owned(),
        [first, others @ ..] => format!("{} and {} more", first.display(), others.len()),
    }
}

/// What most likely forbids the overlay, and the ways out.
fn hint(lowers: &[PathBuf], upper_dir: &OwnedFd) -> String {
    if lowers.iter().any(|lower| lower == Path::new("/")) {
        return "; the host's own root has other file systems mounted in it, which an overlay cannot lie over: copy it, or use \
                a directory"
            .to_owned();
    }
    let below: Vec<_> = lowers
        .iter()
        .flat_map(|lower| mounts_below(lower))
        .collect();
    if !below.is_empty() {
        return format!(
            "; an overlay cannot lie over what is mounted at {}: unmount it, or give it to the container by -v",
            below.join(" and ")
        );
    }
    let in_place = match lowers {
        [rootfs] => format!(
            "--rootfs {}:rw does without an overlay, and changes the directory",
            rootfs.display()
        ),
        _ => "a single directory does without an overlay".to_owned(),
    };
    match kind_of(upper_dir) {
        Some(kind) => format!(
            "; the data directory is on a file system that cannot hold the changes of one ({kind}): set XDG_DATA_HOME to a \
             directory on ext4, xfs, btrfs or tmpfs, or use :rw ({in_place})"
        ),
        None => format!("; {in_place}"),
    }
}

/// A file system that is known to hold no changes of an overlay.
fn kind_of(dir: &OwnedFd) -> Option<&'static str> {
    /// `linux/magic.h`.
    const KNOWN: [(i64, &str); 6] = [
        (0x6969, "NFS"),
        (0x0102_1997, "9p"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB"),
        (0x6573_5546, "FUSE"),
        (OVERLAYFS_SUPER_MAGIC, "an overlay itself"),
    ];
    let magic = filesystem_magic(dir).unwrap_or_default();
    let found = KNOWN.iter().find(|(known, _)| *known == magic);
    found.map(|(_, name)| *name)
}

fn has(dir: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Where in a tree something is mounted, `proc_pid_mountinfo(5)`.
fn mounts_below(rootfs: &Path) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| *point != "/" && Path::new(point).starts_with(rootfs))
        .filter(|point| Path::new(point) != rootfs)
        .map(str::to_owned)
        .collect()
}

fn open_in(layer: &OwnedFd, path: &Path) -> Result<OwnedFd, OverlayError> {
    let name = Path::new(path.file_name().unwrap_or_default());
    open_beneath(layer.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY).map_err(|source| {
        OverlayError::Open {
            path: path.into(),
            source,
        }
    })
}

fn open_dir(path: &Path) -> Result<OwnedFd, OverlayError> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| OverlayError::Open {
        path: path.into(),
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    /// Executes itself once more, in namespaces of its own.
    #[test]
    fn many_layers_are_mounted_in_either_way() {
        const INSIDE: &str = "CORACLE_TEST_INSIDE";
        const NAME: &str = "rootfs::overlay::tests::many_layers_are_mounted_in_either_way";
        if std::env::var_os(INSIDE).is_some() {
            mount_in_both_ways();
            return;
        }
        let inside = || {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--mount"]);
            command
        };
        let mut probe = inside();
        if !probe
            .arg("true")
            .status()
            .is_ok_and(|status| status.success())
        {
            println!("skipped {NAME}: no user namespace can be made");
            return;
        }
        let this = std::env::current_exe().unwrap();
        let mut again = inside();
        again.arg(this).args(["--exact", NAME]).env(INSIDE, "1");
        let output = again.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("1 passed"), "{said}");
    }

    fn mount_in_both_ways() {
        /// By their whole names longer than a page.
        const COUNT: usize = 300;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let open = |name: &str| {
            fs::create_dir_all(path(name)).unwrap();
            open_dir(&path(name)).unwrap()
        };
        for way in ["parameters", "text"] {
            let lowers = (0..COUNT).map(|number| {
                let lower = open(&number.to_string());
                fs::write(path(&format!("{number}/file-{number}")), "").unwrap();
                fs::write(path(&format!("{number}/top")), number.to_string()).unwrap();
                lower
            });
            let mut layers = Layers {
                lowers: lowers.collect(),
                upper: open(&format!("{way}/upper")),
                work: open(&format!("{way}/work")),
                volatile: true,
                stack: Stack::default(),
            };
            let mounted = match way {
                "text" => layers.mount_by_text(),
                _ => layers.mount(),
            };
            let mounted = match mounted {
                // A kernel that does not take them one by one.
                Err(error) if way != "text" && error.kind() == io::ErrorKind::InvalidInput => {
                    continue;
                }
                other => other.unwrap(),
            };
            mounted.attach(open("place")).unwrap();
            layers.stack.clear().unwrap();
            assert_eq!(fs::read_dir(path("place")).unwrap().count(), COUNT + 1);
            assert_eq!(fs::read_to_string(path("place/top")).unwrap(), "0");
            fs::write(path("place/new"), "").unwrap();
            assert!(path(&format!("{way}/upper/new")).exists());
            unmount(path("place"), UnmountFlags::DETACH).unwrap();
        }
    }
}
