//! The volumes of the same user, as far as containers have a say in them.

use std::str::FromStr;

use super::{Engine, EngineError, Removed};
use crate::isolation::idmap::IdMaps;
use crate::rootfs::Bind;
use crate::spec::ContainerSpec;
use crate::state::Container;
use crate::volumes::{Users, Volume, Volumes, VolumesError};

/// The volumes of another container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumesFrom {
    /// Name or id.
    pub container: String,
    /// Whether they cannot be changed; as they are there when not given.
    pub read_only: Option<bool>,
}

/// What becomes of the places where an image wants volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageVolumes {
    /// They get some.
    Volumes,
    /// They are in memory.
    Memory,
    Ignored,
}

impl FromStr for VolumesFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (container, options) = text.split_once(':').unwrap_or((text, ""));
        let mut read_only = None;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" | "rw" if read_only.is_none() => read_only = Some(option == "ro"),
                // Of SELinux, where that is on they are labelled already.
                "z" => {}
                _ => return Err(format!("{option:?} is not known: there are ro, rw and z")),
            }
        }
        match container.is_empty() {
            true => Err("expected CONTAINER or CONTAINER:ro".to_owned()),
            false => Ok(Self {
                container: container.to_owned(),
                read_only,
            }),
        }
    }
}

impl Engine {
    /// The volumes of other containers, as a new one is to have them: of a place that several
    /// have, the last one's.
    pub(super) fn inherited_binds(&self, from: &[VolumesFrom]) -> Result<Vec<Bind>, EngineError> {
        let mut binds: Vec<Bind> = Vec::new();
        for from in from {
            let container = self.find(&from.container)?;
            let spec = self.spec(&container)?;
            // What coracle itself shows is that container's own.
            let of_volumes = spec.tree.binds.into_iter();
            let of_volumes = of_volumes.filter(|bind| !bind.source.starts_with(&container.run_dir));
            for bind in of_volumes {
                binds.retain(|other| other.target != bind.target);
                binds.push(Bind {
                    // What that container writes stays its own.
                    read_only: from.read_only.unwrap_or(bind.read_only) || bind.changes.is_some(),
                    changes: None,
                    ..bind
                });
            }
        }
        Ok(binds)
    }

    pub fn volumes(&self) -> Volumes {
        Volumes::of(&self.store)
    }

    /// The containers that use volumes.
    pub fn volume_users(&self) -> Users {
        self.volumes().users(&self.store)
    }

    /// The lengths of a volume's files, in bytes.
    pub fn volume_size(&self, volume: &Volume) -> Result<u64, EngineError> {
        Ok(self.images()?.measure(&volume.data, volume.id_maps())?)
    }

    /// The lengths of the files that a container has written to its root file system, in bytes.
    pub fn size(&self, container: &Container) -> Result<u64, EngineError> {
        let maps = match &container.id_maps {
            Some(maps) => maps.clone(),
            None => IdMaps::discover(false)?.0,
        };
        let upper = self.store.dir(container).upper();
        Ok(self.images()?.measure(&upper, &maps)?)
    }

    /// Removes a volume. `force` removes the containers that use it as well.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchVolume`](super::ErrorKind::NoSuchVolume); without `force`,
    /// [`ErrorKind::VolumeInUse`](super::ErrorKind::VolumeInUse).
    pub fn remove_volume(&self, name: &str, force: bool) -> Result<(), EngineError> {
        let volume = self.volumes().find(name)?;
        if force {
            for container in self.volume_users().remove(name).unwrap_or_default() {
                self.remove(container.id.as_str(), true)?;
            }
        }
        match self.volumes().remove(&volume, &self.store) {
            // An anonymous one has gone with its container.
            Err(VolumesError::NotFound { .. }) if force => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// As [`Engine::remove`], with the container's anonymous volumes.
    pub fn remove_with_volumes(&self, wanted: &str, force: bool) -> Result<Removed, EngineError> {
        let anonymous = match self.find(wanted) {
            Ok(container) => self.anonymous_volumes(&container),
            // What is wrong with it is told below.
            Err(_) => Vec::new(),
        };
        let removed = self.remove(wanted, force)?;
        self.volumes().remove_unused(&anonymous, &self.store)?;
        Ok(removed)
    }

    /// Those that go with a container. One whose specification cannot be read tells of none.
    pub(super) fn anonymous_volumes(&self, container: &Container) -> Vec<Volume> {
        let spec = ContainerSpec::load(&self.store.dir(container).data);
        spec.map(|spec| self.volumes().anonymous_of(&spec))
            .unwrap_or_default()
    }
}
