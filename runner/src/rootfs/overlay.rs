//! The container's root file system: an overlay over the given directories, or a directory itself.
//!
//! The overlay is a native one inside the user namespace (`userxattr`, Linux 5.11). Directories are
//! handed to the kernel as open descriptors: names with `:`, `,` or `\` need no escapes, however
//! long they are, and the container's mount table does not tell the host's paths.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountFlags, UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

use super::lookup::{OVERLAYFS_SUPER_MAGIC, filesystem_magic, open_beneath};
use super::mounts::Detached;
use crate::path_text;

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
    let overlay = match source {
        RootSource::InPlace(_) => return Ok(dirs.swap_remove(0)),
        RootSource::Overlay(overlay) => overlay,
    };
    let (upper, work) = (&overlay.upper, &overlay.work);
    // The kernel takes layers from mounts of this namespace only.
    let mut stack = Stack::default();
    let named = dirs.into_iter().zip(&overlay.lowers);
    let lowers = named.map(|(mount, path)| stack.push(mount, path));
    let lowers = lowers.collect::<Result<Vec<_>, _>>()?;
    let (upper_dir, work_dir) = match layer {
        Some(layer) => {
            let layer = stack.push(layer, upper)?;
            (open_in(&layer, upper)?, open_in(&layer, work)?)
        }
        None => (open_dir(upper)?, open_dir(work)?),
    };
    let layers = Layers {
        lowers,
        upper: upper_dir,
        work: work_dir,
        volatile: overlay.volatile,
    };
    let mounted = match layers.mount() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            layers.mount_by_text(&mut stack)
        }
        other => other,
    };
    let root = mounted.map_err(|source| OverlayError::Mount {
        lowers: listed(&overlay.lowers),
        upper: upper.clone(),
        hint: hint(&overlay.lowers, &layers.upper),
        source,
    })?;
    stack.clear()?;
    Ok(root)
}

/// The directories of an overlay, opened.
struct Layers {
    lowers: Vec<OwnedFd>,
    upper: OwnedFd,
    work: OwnedFd,
    volatile: bool,
}

impl Layers {
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
    fn mount_by_text(&self, stack: &mut Stack) -> io::Result<Detached> {
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
        let places = stack.attach(places)?;
        rustix::fs::mkdirat(&places, PLACE, Mode::RWXU)?;
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
    fn clear(self) -> Result<(), OverlayError> {
        for _ in 0..self.height {
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
    /// `linux/magic.h`.
    const NETWORKED: [(i64, &str); 5] = [
        (0x6969, "NFS"),
        (0x0102_1997, "9p"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB"),
        (0x6573_5546, "FUSE"),
    ];
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
    let magic = filesystem_magic(upper_dir).unwrap_or_default();
    let kind = NETWORKED
        .iter()
        .find(|(known, _)| *known == magic)
        .map(|(_, name)| *name)
        .or((magic == OVERLAYFS_SUPER_MAGIC).then_some("an overlay itself"));
    match kind {
        Some(kind) => format!(
            "; the data directory is on a file system that cannot hold the changes of one ({kind}): set XDG_DATA_HOME to a \
             directory on ext4, xfs, btrfs or tmpfs, or use :rw ({in_place})"
        ),
        None => format!("; {in_place}"),
    }
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
            let layers = Layers {
                lowers: lowers.collect(),
                upper: open(&format!("{way}/upper")),
                work: open(&format!("{way}/work")),
                volatile: true,
            };
            let mut stack = Stack::default();
            let mounted = match way {
                "text" => layers.mount_by_text(&mut stack),
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
            stack.clear().unwrap();
            assert_eq!(fs::read_dir(path("place")).unwrap().count(), COUNT + 1);
            assert_eq!(fs::read_to_string(path("place/top")).unwrap(), "0");
            fs::write(path("place/new"), "").unwrap();
            assert!(path(&format!("{way}/upper/new")).exists());
            unmount(path("place"), UnmountFlags::DETACH).unwrap();
        }
    }
}
