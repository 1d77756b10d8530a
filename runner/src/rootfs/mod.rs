//! The container's file system tree: from the host's view of the world to the container's.
//!
//! Runs in the container's init, in mount, PID, network, IPC and cgroup namespaces of its own.
//! [`enter`] first collects all that comes from the host or needs its view as detached mounts, then
//! makes the container's root file system this process's root, and only then looks up places to
//! attach them to. From that moment no path can lead outside, whatever the image holds.

mod copy_up;
mod dev;
pub mod device;
pub mod difference;
mod flatten;
pub mod give;
pub mod lookup;
mod mask;
pub mod mounts;
pub mod overlay;
mod places;
pub mod secrets;
mod sources;
pub mod tmpfs;
pub mod volume;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount};
use serde::{Deserialize, Serialize};

use crate::failure::Explained;
use crate::isolation::idmap::Extent;
use crate::isolation::sysctl::{Sysctl, SysctlError};
use crate::path_text;
use crate::sys;
use dev::Dev;
use give::Gift;
use lookup::Root;
pub use mask::{Masks, Uncovered};
use mounts::{Detached, KERNEL_FS};
use overlay::RootSource;
use places::{Places, Wanted};
use secrets::{SecretFile, SecretMounts};
pub use sources::Sources;
use tmpfs::Tmpfs;

#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("cannot keep mounts from spreading: {source}")]
    Propagation { source: io::Error },
    #[error(transparent)]
    Overlay(#[from] overlay::OverlayError),
    #[error(transparent)]
    Dev(#[from] dev::DevError),
    #[error(transparent)]
    Mask(#[from] mask::MaskError),
    #[error("cannot mount {kind}: {source}{hint}")]
    Filesystem {
        kind: &'static str,
        source: io::Error,
        hint: &'static str,
    },
    #[error("cannot bind {}: {source}{hint}", path.display())]
    Bind {
        path: PathBuf,
        source: io::Error,
        hint: &'static str,
    },
    #[error(transparent)]
    Give(#[from] give::GiveError),
    #[error(
        "other users of the host could run setuid programs that the container makes in {}, as root: close the directory, or one \
         above it, to them (chmod o-x)",
        path.display()
    )]
    Open { path: PathBuf },
    #[error("cannot make the container's root file system read-only: {source}")]
    ReadOnly { source: io::Error },
    #[error("cannot change the root directory: {source}")]
    Pivot { source: io::Error },
    #[error("the host's tree is still mounted on the container's root directory")]
    Exposed,
    #[error("cannot use {} of the container as a mount point: {source}", path.display())]
    MountPoint { path: PathBuf, source: io::Error },
    #[error("{} of the container leads to {}, where nothing may be mounted", path.display(), place.display())]
    Forbidden { path: PathBuf, place: PathBuf },
    #[error("cannot mount {} on {} of the container: {why}", mount.display(), path.display())]
    Unfit {
        mount: PathBuf,
        path: PathBuf,
        why: String,
    },
    #[error("cannot copy what the image has at {} to the volume for it: {source}", path.display())]
    CopyUp { path: PathBuf, source: io::Error },
    #[error("cannot give the container its secret at {}: {source}", path.display())]
    Secret { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

impl Explained for RootfsError {}

/// What the tree is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tree {
    pub root: RootSource,
    /// Whether the root file system cannot be changed. Volumes can.
    pub read_only: bool,
    /// Volumes, in any order.
    pub binds: Vec<Bind>,
    /// Devices of the host's.
    pub devices: Vec<Bind>,
    /// Those in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Files that coracle provides. Where the image leaves no place for one, the container runs
    /// without.
    pub files: Vec<Bind>,
    /// What /dev/shm may hold at most, in bytes.
    pub shm_len: u64,
    pub masks: Masks,
}

impl Tree {
    /// All that the user has bound.
    fn bound(&self) -> impl Iterator<Item = &Bind> {
        self.binds.iter().chain(&self.devices)
    }
}

/// As much as /dev/shm may hold when nothing is said of it, in bytes.
pub const SHM_LEN: u64 = 64 << 20;

/// A file or directory of the host's that the container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    #[serde(with = "path_text")]
    pub source: PathBuf,
    #[serde(with = "path_text")]
    pub target: PathBuf,
    pub read_only: bool,
    pub options: BindOptions,
    /// Where the container's changes go in place of the source, which is not written then: the
    /// directory that holds those of an overlay, [`Bind::UPPER`] and [`Bind::WORK`].
    #[serde(with = "path_text::option")]
    pub changes: Option<PathBuf>,
}

impl Bind {
    /// Names of the directories of an overlay in [`Bind::changes`].
    pub const UPPER: &str = "upper";
    pub const WORK: &str = "work";
}

/// How a bind mount differs from the mount that it is made from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindOptions {
    /// Whether programs may be executed, setuid files have effect, devices can be opened. `None`
    /// leaves it as it is.
    pub exec: Option<bool>,
    pub suid: Option<bool>,
    pub dev: Option<bool>,
    /// Leaves out the mounts below.
    pub top_only: bool,
    pub propagation: Propagation,
    /// Whether the mounts below propagate in the same way; else they are private.
    pub propagates_below: bool,
    /// Gives the files to the user that the container's command runs as.
    pub give_to_user: bool,
    /// Whether an empty directory gets what the image has at its place.
    pub copy_up: bool,
    /// Shows the owners of files as the container's of the same number, and what it makes as
    /// theirs.
    pub map_ids: bool,
}

/// Which mounts that come later are seen, `mount_namespaces(7)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    #[default]
    Private,
    /// The host's. A mount of the container's never reaches the host, whose namespace belongs to
    /// another user namespace.
    Slave,
    /// As `Slave`, and namespaces that the container makes see its own.
    Shared,
}

/// The container's tree, entered.
#[derive(Debug)]
pub struct Entered {
    pub root: Root,
    pub dev: OwnedFd,
    /// Trees that are to belong to the container's user, whom only the image knows.
    pub to_give: Vec<Gift>,
    pub warnings: Vec<String>,
}

/// Makes the container's tree this process's root and working directory. Without `sources`, they
/// are opened by their paths. `network` says whether the container has one of its own; `sysctls`
/// are set in its namespaces.
pub fn enter(
    tree: &Tree,
    sources: Option<Sources>,
    secrets: &[SecretFile],
    gids: &[Extent],
    network: bool,
    sysctls: &[Sysctl],
) -> Result<Entered, RootfsError> {
    // While binds are made, what the host mounts later still reaches them, so that they may go on
    // to follow it.
    spread(MountPropagationFlags::DOWNSTREAM)?;
    let Sources {
        dirs,
        layer,
        files,
        binds,
        changes,
        gifts,
    } = sources.map_or_else(|| Sources::open(tree), Ok)?;
    spread(MountPropagationFlags::PRIVATE)?;
    let secrets = SecretMounts::make(secrets)?;
    let kernel = KernelParts::collect(gids, network, sysctls, tree)?;
    let (root, copied) = overlay::mount_or_copy(&tree.root, dirs, layer)?;
    let binds = sources::lay_over(tree.bound(), binds, changes)?;
    let root = pivot(root).map_err(|source| RootfsError::Pivot { source })?;
    let attached = kernel.attach(&root, &tree.masks)?;
    ensure_alone(&attached.proc)?;
    let mut places = Places::new(root, attached.proc);
    let mut warnings: Vec<_> = copied.into_iter().collect();
    attach_all(&mut places, tree, binds)?;
    secrets.attach(&mut places)?;
    // A volume at /etc does not hide them, and one in the place of one of them stays.
    for (mount, file) in files.into_iter().zip(&tree.files) {
        if let Err(error) = places.attach_file(mount, file) {
            let target = file.target.display();
            warnings.push(format!("the container goes without {target}: {error}"));
        }
    }
    tree.masks.cover(&places.root, attached.dev.as_fd())?;
    if tree.read_only {
        // Only now: whatever is mounted may have needed a place.
        let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into();
        sys::mount_setattr(places.root.as_fd(), read_only, false)
            .map_err(|source| RootfsError::ReadOnly { source })?;
    }
    Ok(Entered {
        root: places.root,
        dev: attached.dev,
        to_give: gifts,
        warnings,
    })
}

/// Attaches what the user wants to be mounted; `binds` are [`Tree::bound`].
fn attach_all(places: &mut Places, tree: &Tree, binds: Vec<Detached>) -> Result<(), RootfsError> {
    let binds = binds.into_iter().zip(tree.bound());
    let mut wanted: Vec<_> = binds
        .map(|(mount, bind)| Wanted::bind(mount, bind))
        .collect();
    for tmpfs in &tree.tmpfs {
        wanted.push(Wanted::tmpfs(tmpfs)?);
    }
    // Whatever their order on the command line: else one would hide what is mounted below it.
    wanted.sort_by_key(|wanted| wanted.target.components().count());
    for wanted in wanted {
        places.attach(wanted)?;
    }
    Ok(())
}

/// Makes the tree of a container that does not run this process's root and working directory: its
/// root file system with its volumes, and nothing of the kernel's. Needs a mount namespace of its
/// own, and `/proc`. Without `sources`, they are opened by their paths.
pub fn assemble(tree: &Tree, sources: Option<Sources>) -> Result<Root, RootfsError> {
    spread(MountPropagationFlags::PRIVATE)?;
    let Sources {
        dirs,
        layer,
        binds,
        changes,
        ..
    } = sources.map_or_else(|| Sources::open(tree), Ok)?;
    let proc = rustix::fs::open(
        "/proc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| RootfsError::Pivot {
        source: errno.into(),
    })?;
    let (root, _) = overlay::mount_or_copy(&tree.root, dirs, layer)?;
    let binds = sources::lay_over(tree.bound(), binds, changes)?;
    let root = pivot(root).map_err(|source| RootfsError::Pivot { source })?;
    let mut places = Places::new(root, proc);
    attach_all(&mut places, tree, binds)?;
    Ok(places.root)
}

fn spread(how: MountPropagationFlags) -> Result<(), RootfsError> {
    mount_change("/", how | MountPropagationFlags::REC).map_err(|errno| RootfsError::Propagation {
        source: errno.into(),
    })
}

/// The file systems of the kernel's own and the devices, made while the host's tree is in sight.
struct KernelParts {
    proc: Detached,
    sys: Detached,
    cgroup: Option<Detached>,
    dev: Dev,
}

/// The roots of those that are asked for later.
struct Attached {
    proc: OwnedFd,
    dev: OwnedFd,
}

impl KernelParts {
    fn collect(
        gids: &[Extent],
        network: bool,
        sysctls: &[Sysctl],
        tree: &Tree,
    ) -> Result<Self, RootfsError> {
        let proc = Detached::filesystem("proc", &[], KERNEL_FS).map_err(|source| RootfsError::Filesystem {
            kind: "proc",
            hint: match source.raw_os_error() {
                Some(libc::EPERM) => "; an outer container covers parts of its /proc, run that one with them uncovered",
                _ => "",
            },
            source,
        })?;
        let own = network.then(|| network_settings(gids));
        for setting in own.iter().flatten().chain(sysctls) {
            set(&proc, setting)?;
        }
        let attributes = tree.masks.of_sys();
        Ok(Self {
            proc,
            sys: collect_sys(attributes)?,
            cgroup: Detached::filesystem("cgroup2", &[], attributes).ok(),
            dev: Dev::collect(
                |gid| crate::isolation::idmap::is_mapped(gids, gid),
                tree.shm_len,
            )?,
        })
    }

    /// Attaches everything and hides what is to be hidden, before anything that the image has a say
    /// in can come in between.
    fn attach(self, root: &Root, masks: &Masks) -> Result<Attached, RootfsError> {
        let at = |path: &'static str| {
            move |source| RootfsError::MountPoint {
                path: path.into(),
                source,
            }
        };
        let place = |path: &'static str| root.kernel_directory(Path::new(path)).map_err(at(path));
        let proc = self.proc.attach(place("/proc")?).map_err(at("/proc"))?;
        let sys = self.sys.attach(place("/sys")?).map_err(at("/sys"))?;
        // A host whose cgroups cannot be mounted, or have no place in sysfs, runs containers all
        // the same.
        let cgroup_place = lookup::open_beneath(
            &sys,
            Path::new("fs/cgroup"),
            OFlags::PATH | OFlags::DIRECTORY,
        );
        if let (Some(cgroup), Ok(place)) = (self.cgroup, cgroup_place) {
            cgroup.attach(place).map_err(at("/sys/fs/cgroup"))?;
        }
        let dev = self.dev.attach(place("/dev")?)?;
        masks.apply(proc.as_fd(), sys.as_fd(), dev.as_fd())?;
        Ok(Attached { proc, dev })
    }
}

/// Makes the terminal `slave` the container's /dev/console. Bound from its descriptor, not its name
/// (CVE-2025-52565).
pub fn attach_console(dev: &OwnedFd, slave: &OwnedFd) -> io::Result<()> {
    let place = dev::make_console(dev)?;
    Detached::copy_of(slave, Path::new(""), false)?.attach(place)?;
    Ok(())
}

/// A sysfs of the container's network namespace; where an outer container forbids a new one, the
/// outer one's own view.
fn collect_sys(attributes: MountAttrFlags) -> Result<Detached, RootfsError> {
    let failed = |source| RootfsError::Filesystem {
        kind: "sysfs",
        source,
        hint: "",
    };
    match Detached::filesystem("sysfs", &[], attributes) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let outer = Detached::copy_of_host(Path::new("/sys"), true).map_err(failed)?;
            outer.restrict(attributes, true).map_err(failed)?;
            Ok(outer)
        }
        other => other.map_err(failed),
    }
}

/// What a network of the container's own begins with: everyone may ping and bind every port there,
/// which is nobody else's business.
fn network_settings(gids: &[Extent]) -> [Sysctl; 2] {
    /// `net/ipv4/sysctl_net_ipv4.c`: the range ends at half the group IDs.
    const PING_GID_MAX: u32 = u32::MAX / 2;
    let last = crate::isolation::idmap::last_contiguous(gids).min(PING_GID_MAX);
    let setting = |name: &str, value| Sysctl {
        name: name.to_owned(),
        value,
    };
    [
        setting("net.ipv4.ping_group_range", format!("0 {last}")),
        setting("net.ipv4.ip_unprivileged_port_start", "0".to_owned()),
    ]
}

/// Sets one through the procfs just mounted, which no image can have replaced.
fn set(proc: &Detached, setting: &Sysctl) -> Result<(), SysctlError> {
    let write = || -> io::Result<()> {
        let file = lookup::open_beneath(proc, Path::new(&setting.path()), OFlags::WRONLY)?;
        rustix::io::write(&file, setting.value.as_bytes())?;
        Ok(())
    };
    write().map_err(|source| SysctlError::Set {
        name: setting.name.clone(),
        value: setting.value.clone(),
        source,
    })
}

/// Makes `new_root` the root of the mount namespace, and lets go of the old one with all that is
/// below it.
fn pivot(new_root: Detached) -> io::Result<Root> {
    // Stacked upon the old root: no directory of the host's is needed.
    let new_root = new_root.attach(open_root()?)?;
    rustix::process::fchdir(&new_root)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root is stacked upon the new one, where `.`
    // then finds it.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Root::open()
}

/// Nothing may be mounted beneath or upon the container's root directory: it would be the host's
/// tree, which whoever enters the mount namespace anew would see.
fn ensure_alone(proc: &OwnedFd) -> Result<(), RootfsError> {
    let read = || -> io::Result<Vec<u8>> {
        let pid = rustix::process::getpid().as_raw_nonzero().to_string();
        let file = lookup::open_beneath(proc, &Path::new(&pid).join("mountinfo"), OFlags::RDONLY)?;
        let mut text = Vec::new();
        io::Read::read_to_end(&mut std::fs::File::from(file), &mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| RootfsError::Pivot { source })?;
    let is_root = |line: &&[u8]| line.split(|byte| *byte == b' ').nth(4) == Some(b"/");
    match text.split(|byte| *byte == b'\n').filter(is_root).count() {
        1 => Ok(()),
        _ => Err(RootfsError::Exposed),
    }
}

/// This process's root directory.
fn open_root() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
