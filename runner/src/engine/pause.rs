//! Freezing the processes of a container, and letting them go on.

use super::{Engine, EngineError};
use crate::isolation::freezer;
use crate::state::Status;

impl Engine {
    /// Freezes all processes of a container that runs, by its control group.
    ///
    /// # Errors
    /// [`EngineError::Pause`] where it has no group that can be frozen,
    /// [`ErrorKind::WrongState`](super::ErrorKind::WrongState) where it does not run, and those of
    /// [`Engine::find`].
    pub fn pause(&self, wanted: &str) -> Result<(), EngineError> {
        let mut container = self.find(wanted)?;
        container.enter(Status::Paused)?;
        let frozen = freezer::freeze(&container.cgroups);
        frozen.map_err(|source| EngineError::Pause {
            name: container.name.clone(),
            source,
        })?;
        let paused = self.store.enter(&container.id, Status::Paused, |_| {});
        match paused {
            Ok(_) => {
                self.note(&container, "pause");
                Ok(())
            }
            Err(error) => {
                // It has ended meanwhile, or somebody else has paused it, who thaws it in time.
                let now = self.store.read(&container.id);
                if !now.is_ok_and(|now| now.status == Status::Paused) {
                    freezer::thaw(&container.cgroups);
                }
                Err(error.into())
            }
        }
    }

    /// Lets the processes of a paused container go on.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`](super::ErrorKind::WrongState) for one that is not paused, and
    /// those of [`Engine::find`].
    pub fn unpause(&self, wanted: &str) -> Result<(), EngineError> {
        let container = self.find(wanted)?;
        if container.status != Status::Paused {
            return Err(EngineError::NotPaused {
                name: container.name,
            });
        }
        let thawed = freezer::unfreeze(&container.cgroups);
        thawed.map_err(|source| EngineError::Unpause {
            name: container.name.clone(),
            source,
        })?;
        let running = self.store.enter(&container.id, Status::Running, |_| {});
        self.note(&running?, "unpause");
        Ok(())
    }
}
