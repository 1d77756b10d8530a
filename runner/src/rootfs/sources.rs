//! What of a container's tree comes from the host, as mounts that are attached nowhere yet.
//!
//! Whoever may reach the paths makes them: init where the container's root has the caller's user
//! ID, the monitor where it is another one (the host's root and its containers), which hands them
//! to init in the order of [`Sources::into_descriptors`]. The root file system is then shown with
//! the container's owners for its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Stat, Uid, fchmod, fchown, fstat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::give::Gift;
use super::lookup::open_beneath;
use super::mounts::Detached;
use super::overlay::{self, Overlay, RootSource};
use super::{Bind, BindOptions, Propagation, RootfsError, Tree};
use crate::sys;

#[derive(Debug)]
pub struct Sources {
    /// Those of the root file system, the uppermost first.
    pub dirs: Vec<Detached>,
    /// Holds the two directories of the overlay. `None` where they can be named instead.
    pub layer: Option<Detached>,
    pub files: Vec<Detached>,
    pub binds: Vec<Detached>,
    /// Each holds the directories of an overlay over a bind, in their order. Empty where these can
    /// be named instead.
    pub changes: Vec<Detached>,
    /// Trees that are to belong to the container's user.
    pub gifts: Vec<Gift>,
}

impl Sources {
    /// Opens everything by its path, in a mount namespace that this process has the rights over.
    pub fn open(tree: &Tree) -> Result<Self, RootfsError> {
        let why =
            "the option idmap is for containers of the host's root, whose IDs are not its own";
        refuse(tree, |options| options.map_ids, why)?;
        let given = tree.binds.iter().filter(|bind| bind.options.give_to_user);
        let mut sources = Self::collect(tree)?;
        sources.gifts = given.map(Gift::collect).collect::<Result<_, _>>()?;
        Ok(sources)
    }

    /// As [`Sources::open`], for an init that may not reach the paths and is root of
    /// `user_namespace`. The warning says what the container has to do without.
    pub fn open_for(
        tree: &Tree,
        user_namespace: BorrowedFd,
    ) -> Result<(Self, Option<String>), RootfsError> {
        let why = "the option U is for users; the host's root gives files away itself, to the IDs in the container's \
                   /proc/self/uid_map, or shows them by the option idmap";
        refuse(tree, |options| options.give_to_user, why)?;
        if let RootSource::InPlace(dir) = &tree.root {
            ensure_closed(dir)?;
        }
        let written = tree
            .binds
            .iter()
            .filter(|bind| bind.options.map_ids && !bind.read_only);
        written
            .map(|bind| &bind.source)
            .try_for_each(|path| ensure_closed(path))?;
        let mut sources = Self::collect(tree)?;
        for (mount, bind) in sources.binds.iter().zip(tree.bound()) {
            if bind.options.map_ids {
                let mapped = sys::map_mount_ids(mount.as_fd(), user_namespace);
                mapped.map_err(|source| RootfsError::Bind {
                    path: bind.source.clone(),
                    source,
                    hint: " (its file system cannot show other owners, which the option idmap asks for)",
                })?;
            }
        }
        // One that cannot be mapped is warning enough: the others tend to be beside it.
        let mut unmapped = None;
        for (mount, dir) in sources.dirs.iter().zip(tree.root.dirs()) {
            if let Err(error) = sys::map_mount_ids(mount.as_fd(), user_namespace) {
                unmapped = Some((dir, error));
            }
        }
        if let RootSource::Overlay(overlay) = &tree.root
            && let Some(layer) = overlay.upper.parent()
        {
            sources.layer = Some(open_private(layer, false)?);
        }
        let changes = tree.binds.iter().filter_map(|bind| bind.changes.as_ref());
        sources.changes = changes
            .map(|dir| open_private(dir, false))
            .collect::<Result<_, _>>()?;
        let warning = unmapped.map(|(dir, error)| {
            format!(
                "the owners of files in {} cannot be mapped for the container ({error}): root's belong to nobody there",
                dir.display()
            )
        });
        Ok((sources, warning))
    }

    fn collect(tree: &Tree) -> Result<Self, RootfsError> {
        let dirs = tree.root.dirs().iter();
        Ok(Self {
            dirs: dirs
                .map(|dir| open_private(dir, true))
                .collect::<Result<_, _>>()?,
            layer: None,
            files: tree.files.iter().map(open_bind).collect::<Result<_, _>>()?,
            binds: tree.bound().map(open_bind).collect::<Result<_, _>>()?,
            changes: Vec::new(),
            gifts: Vec::new(),
        })
    }

    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        self.dirs
            .into_iter()
            .chain(self.layer)
            .chain(self.files)
            .chain(self.binds)
            .chain(self.changes)
            .map(OwnedFd::from)
            .collect()
    }

    /// `None` when these are not the descriptors that [`Sources::into_descriptors`] gives for this
    /// tree.
    pub fn from_descriptors(tree: &Tree, descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut mounts = descriptors.into_iter().map(Detached::from);
        let count = tree.root.dirs().len();
        let dirs: Vec<_> = mounts.by_ref().take(count).collect();
        let layer = match tree.root {
            RootSource::Overlay(_) => Some(mounts.next()?),
            RootSource::InPlace(_) => None,
        };
        let files: Vec<_> = mounts.by_ref().take(tree.files.len()).collect();
        let binds: Vec<_> = mounts.by_ref().take(tree.bound().count()).collect();
        let changes: Vec<_> = mounts.collect();
        let has_changes = |bind: &&Bind| bind.changes.is_some();
        let expected = [
            count,
            tree.files.len(),
            tree.bound().count(),
            tree.binds.iter().filter(has_changes).count(),
        ];
        let found = [dirs.len(), files.len(), binds.len(), changes.len()];
        (found == expected).then_some(Self {
            dirs,
            layer,
            files,
            binds,
            changes,
            gifts: Vec::new(),
        })
    }
}

/// What the container's root makes in a tree with mapped owners belongs to the host's root, setuid
/// programs among it. Nobody else on the host may get there to run them.
fn ensure_closed(path: &Path) -> Result<(), RootfsError> {
    use std::os::unix::fs::PermissionsExt;
    let is_closed = |dir: &Path| {
        let found = std::fs::metadata(dir);
        found.is_ok_and(|found| found.permissions().mode() & 0o001 == 0)
    };
    match path.ancestors().any(is_closed) {
        true => Ok(()),
        false => Err(RootfsError::Open {
            path: path.to_owned(),
        }),
    }
}

/// Refuses a volume whose options ask for what is not to be had here.
fn refuse(tree: &Tree, asks: impl Fn(&BindOptions) -> bool, why: &str) -> Result<(), RootfsError> {
    match tree.binds.iter().find(|bind| asks(&bind.options)) {
        None => Ok(()),
        Some(bind) => Err(RootfsError::Unfit {
            mount: bind.source.clone(),
            path: bind.target.clone(),
            why: why.to_owned(),
        }),
    }
}

/// A directory of the host's as a mount that nothing spreads from, or to.
fn open_private(path: &Path, recursive: bool) -> Result<Detached, RootfsError> {
    let open = || -> io::Result<Detached> {
        let mount = Detached::copy_of_host(path, recursive)?;
        mount.propagate(Propagation::Private, recursive)?;
        Ok(mount)
    };
    open().map_err(|source| RootfsError::Bind {
        path: path.to_owned(),
        source,
        hint: "",
    })
}

/// A bind mount as its options have it, attached nowhere.
fn open_bind(bind: &Bind) -> Result<Detached, RootfsError> {
    let options = &bind.options;
    let recursive = !options.top_only;
    let failed = |hint| {
        move |source| RootfsError::Bind {
            path: bind.source.clone(),
            source,
            hint,
        }
    };
    let hint = match options.top_only {
        true => " (the mounts below it can only be shown with it: leave out the option `bind`)",
        false => "",
    };
    let mount = Detached::copy_of_host(&bind.source, recursive).map_err(failed(hint))?;
    set_attributes(&mount, bind, recursive)?;
    // Below first: the top is a part of the tree.
    let below = match options.propagates_below {
        true => options.propagation,
        false => Propagation::Private,
    };
    mount.propagate(below, true).map_err(failed(""))?;
    mount
        .propagate(options.propagation, false)
        .map_err(failed(""))?;
    Ok(mount)
}

/// Lays an overlay over each of `mounts`, which are those of `binds`, whose changes go elsewhere.
/// `changes` are those of [`Sources`].
pub fn lay_over<'a>(
    binds: impl Iterator<Item = &'a Bind>,
    mounts: Vec<Detached>,
    changes: Vec<Detached>,
) -> Result<Vec<Detached>, RootfsError> {
    let mut changes = changes.into_iter();
    let lay_over = |(bind, mount): (&Bind, Detached)| {
        let Some(dir) = &bind.changes else {
            return Ok(mount);
        };
        let failed = |source| RootfsError::Bind {
            path: bind.source.clone(),
            source,
            hint: "",
        };
        let below = fstat(&mount).map_err(|errno| failed(errno.into()))?;
        let overlay = RootSource::Overlay(Overlay {
            lowers: vec![bind.source.clone()],
            upper: dir.join(Bind::UPPER),
            work: dir.join(Bind::WORK),
            // The container may be started again.
            volatile: false,
        });
        let mount = overlay::mount(&overlay, vec![mount], changes.next())?;
        take_after(&mount, &below).map_err(failed)?;
        set_attributes(&mount, bind, false)?;
        Ok(mount)
    };
    binds.zip(mounts).map(lay_over).collect()
}

/// Gives the root of an overlay, which it has from its directory for changes, the owner and the
/// mode of what it lies over.
fn take_after(mount: &Detached, below: &Stat) -> io::Result<()> {
    let root = open_beneath(mount, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?;
    let (owner, group) = (Uid::from_raw(below.st_uid), Gid::from_raw(below.st_gid));
    match fchown(&root, Some(owner), Some(group)) {
        // Nobody of the container's.
        Err(Errno::INVAL) => {}
        other => other?,
    }
    fchmod(&root, Mode::from_raw_mode(below.st_mode & 0o7777))?;
    Ok(())
}

/// What may be done on a bind mount, or on what lies over it.
fn set_attributes(mount: &Detached, bind: &Bind, recursive: bool) -> Result<(), RootfsError> {
    let options = &bind.options;
    let failed = |hint| {
        move |source| RootfsError::Bind {
            path: bind.source.clone(),
            source,
            hint,
        }
    };
    let flags = [
        (Some(!bind.read_only), MountAttrFlags::MOUNT_ATTR_RDONLY),
        (options.exec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (options.suid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (options.dev, MountAttrFlags::MOUNT_ATTR_NODEV),
    ];
    let (mut forbidden, mut allowed) = (MountAttrFlags::empty(), MountAttrFlags::empty());
    for (is_allowed, flag) in flags {
        match is_allowed {
            Some(false) => forbidden |= flag,
            // A mount that is read-only on the host stays so, unsaid, as `rw` is the default.
            Some(true) if flag != MountAttrFlags::MOUNT_ATTR_RDONLY => allowed |= flag,
            _ => {}
        }
    }
    mount.restrict(forbidden, recursive).map_err(failed(""))?;
    mount.allow(allowed, recursive).map_err(failed(
        " (the host's own mount forbids what an option allows)",
    ))?;
    Ok(())
}
