//! The volumes of the same user, as far as containers have a say in them.

use super::{Engine, EngineError, Removed};
use crate::isolation::idmap::IdMaps;
use crate::spec::ContainerSpec;
use crate::state::Container;
use crate::volumes::{Users, Volume, Volumes, VolumesError};

impl Engine {
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
