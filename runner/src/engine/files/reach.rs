//! How the tree of a container is reached: by the root directory of its first process, or put
//! together anew where none runs.
//!
//! Two overlays must not share a directory for their changes. So whoever puts one together holds a
//! lock on the container's directory, and so does a monitor until its container runs.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::process::Pid;

use super::role::{Arrival, FILES_ROLE, Job, Reach, Work};
use crate::engine::processes::{init_pidfd, wait_for_end};
use crate::engine::{Engine, EngineError};
use crate::isolation::idmap::IdMaps;
use crate::process::owner;
use crate::rootfs::overlay::RootSource;
use crate::rootfs::{Sources, Tree};
use crate::spec::{ContainerSpec, ProcessSpec};
use crate::state::{Container, lock_directory};

/// A container whose tree can be worked in.
pub struct Reached {
    pub container: Container,
    pub process: ProcessSpec,
    pub maps: IdMaps,
    way: Way,
}

enum Way {
    /// The root directory of the first process.
    Running(OwnedFd),
    AtRest {
        lock: File,
        tree: Box<Tree>,
    },
}

impl Engine {
    /// Without `volumes`, a container that does not run shows its root file system only.
    pub(super) fn reach(
        &self,
        container: &Container,
        volumes: bool,
    ) -> Result<Reached, EngineError> {
        let dir = self.store.dir(container);
        let spec = ContainerSpec::load(&dir.data)?;
        let reached = |container: Container, way| {
            let maps = match &container.id_maps {
                Some(maps) => maps.clone(),
                None => IdMaps::discover(false)?.0,
            };
            let process = spec.process.clone();
            Ok(Reached {
                container,
                process,
                maps,
                way,
            })
        };
        if let Some(root) = running_root(container)? {
            return reached(container.clone(), Way::Running(root));
        }
        let lock = lock_directory(&dir.data).map_err(|source| EngineError::Lock {
            name: container.name.clone(),
            source,
        })?;
        // It may have been started meanwhile, and nobody starts it now.
        let container = self.find(container.id.as_str())?;
        if let Some(root) = running_root(&container)? {
            return reached(container, Way::Running(root));
        }
        let mut tree = Box::new(spec.tree.clone());
        tree.files.clear();
        tree.devices.clear();
        tree.tmpfs.clear();
        // What coracle itself shows is there while the container runs only.
        tree.binds
            .retain(|bind| volumes && !bind.source.starts_with(&container.run_dir));
        if let RootSource::Overlay(overlay) = &mut tree.root {
            // Else the kernel takes the directory for one that was cut short.
            overlay.volatile = false;
        }
        reached(container, Way::AtRest { lock, tree })
    }
}

/// The root directory of a container that runs.
fn running_root(container: &Container) -> Result<Option<OwnedFd>, EngineError> {
    let (Some(init), Some(pidfd)) = (&container.init, init_pidfd(container)) else {
        return Ok(None);
    };
    let path = format!("/proc/{}/root", init.pid);
    let opened = rustix::fs::open(
        &path,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    // Asked last: what was opened is that of the process that the record means.
    if wait_for_end(&pidfd, Some(Duration::ZERO)) {
        return Ok(None);
    }
    opened.map(Some).map_err(|errno| EngineError::Root {
        name: container.name.clone(),
        source: errno.into(),
    })
}

impl Reached {
    /// "in container web".
    pub fn whose(&self) -> String {
        format!("in container {}", self.container.name)
    }

    /// Has a process do the work in the tree, with this descriptor.
    pub fn carry_out(self, work: Work, data: Option<OwnedFd>) -> Result<(), EngineError> {
        let maps = self.maps;
        let (reach, anchor) = match self.way {
            Way::Running(root) => (Reach::Running, root),
            Way::AtRest { lock, tree } => (Reach::AtRest(tree), lock.into()),
        };
        let tree = match &reach {
            // It may not reach the paths.
            Reach::AtRest(tree) if maps.root_is_another() => Some(tree.clone()),
            _ => None,
        };
        let job = Job::Work { reach, work };
        owner::run_with(FILES_ROLE, &job, &maps, |pid| {
            let mut descriptors = vec![anchor];
            descriptors.extend(data);
            if let Some(tree) = &tree {
                descriptors.extend(open_for(tree, pid)?.into_descriptors());
            }
            Ok(descriptors)
        })
    }

    /// What arrives in the container. Its user gets the files where they are not to keep theirs.
    pub fn arrival(
        &self,
        wanted: super::Wanted,
        is_tar: bool,
        keeps: bool,
        replace: bool,
    ) -> Arrival {
        Arrival {
            wanted,
            is_tar,
            user: (!keeps).then(|| self.process.user.clone()),
            single: self.maps.is_single(),
            replace,
        }
    }
}

/// Opens what a tree is made of, for this process.
fn open_for(tree: &Tree, pid: Pid) -> Result<Sources, EngineError> {
    let path = format!("/proc/{pid}/ns/user");
    let namespace = File::open(&path).map_err(|source| EngineError::Make {
        path: path.into(),
        source,
    })?;
    let (sources, _) = Sources::open_for(tree, namespace.as_fd())?;
    Ok(sources)
}
