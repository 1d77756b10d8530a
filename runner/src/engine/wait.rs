//! Waiting for a container to end by itself.

use super::processes::wait_for_end;
use super::{Engine, EngineError};
use crate::state::{ProcessRef, StateError, Status};

impl Engine {
    /// Waits until a container has ended, and returns its exit code as a shell would show it;
    /// `None` when it was removed at its end, and the code with it.
    ///
    /// # Errors
    /// [`EngineError::NotRunning`] for one that has not been started, and those of
    /// [`Engine::find`].
    pub fn wait(&self, wanted: &str) -> Result<Option<i32>, EngineError> {
        let id = self.find(wanted)?.id;
        loop {
            let container = match self.store.find(id.as_str()) {
                Err(StateError::NotFound { .. }) => return Ok(None),
                found => found?,
            };
            match container.status {
                Status::Exited { code, .. } => return Ok(Some(code)),
                Status::Created => {
                    return Err(EngineError::NotRunning {
                        name: container.name,
                    });
                }
                Status::Starting | Status::Running => {}
            }
            match container.monitor.as_ref().and_then(ProcessRef::open) {
                // It records the end before its own. One that was still the creator has handed the
                // container over, and the next round finds to whom.
                Some(monitor) => {
                    wait_for_end(&monitor, None);
                }
                None => drop(self.repair()?),
            }
        }
    }
}
