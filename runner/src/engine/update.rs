//! Other limits and another restart policy for a container that is there already.

use super::{Engine, EngineError, RestartPolicy};
use crate::isolation::resources::{self, Resources};
use crate::spec::{ContainerSpec, SPEC_FILE};
use crate::state::{Container, Status, lock_directory, replace_regular};

/// What is to change; the rest stays.
#[derive(Debug, Clone, Default)]
pub struct UpdateRequest {
    pub resources: Resources,
    pub restart: Option<RestartPolicy>,
}

impl Engine {
    /// Changes what a container may use, at once if it runs, and what follows its end. `warn` is
    /// told of limits that cannot hold.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](super::ErrorKind::Invalid) for a policy that starts a container again
    /// which is to be forgotten at its end, what the kernel says of a limit, and those of
    /// [`Engine::find`]. A limit that the kernel refuses leaves those before it changed.
    pub fn update(
        &self,
        wanted: &str,
        request: &UpdateRequest,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Container, EngineError> {
        let mut container = self.find(wanted)?;
        if let Some(policy) = request.restart {
            if container.remove && policy != RestartPolicy::No {
                return Err(EngineError::RestartForgotten);
            }
            container = self
                .store
                .modify(&container.id, |record| record.restart = policy)?;
        }
        if request.resources != Resources::default() {
            self.limit(&container, &request.resources, warn)?;
        }
        self.note(&container, "update");
        Ok(container)
    }

    /// Keeps other limits with the container's specification, and sets them if it runs.
    fn limit(
        &self,
        container: &Container,
        more: &Resources,
        warn: &mut dyn FnMut(&str),
    ) -> Result<(), EngineError> {
        let dir = self.store.dir(container).data;
        // Nobody else changes it meanwhile, nor starts the container with what was there before.
        let _lock = lock_directory(&dir).map_err(|source| EngineError::Lock {
            name: container.name.clone(),
            source,
        })?;
        let mut spec = ContainerSpec::load(&dir)?;
        if !spec.own_cgroups {
            return Err(EngineError::NoGroups {
                name: container.name.clone(),
            });
        }
        let resources = spec.resources.with(more);
        // Paused or running: as it is by now, since a start may have come between.
        let now = self.store.read(&container.id)?;
        if matches!(now.status, Status::Running | Status::Paused) {
            let unmet = resources.apply(&now.cgroups)?;
            if !unmet.is_empty() {
                warn(&resources::warning(&unmet));
            }
        }
        spec.resources = resources;
        let path = dir.join(SPEC_FILE);
        let written = replace_regular(&path, &spec.to_kept());
        written.map_err(|source| EngineError::Write { path, source })
    }
}
