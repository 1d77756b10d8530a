//! A signal to the first process of a container.

use super::processes::{running_init, wait_for_end, wait_for_monitor};
use super::{Engine, EngineError};
use crate::isolation::freezer;
use crate::signal::Signal;
use crate::sys;

impl Engine {
    /// Sends a signal to a container's first process. After SIGKILL this returns once the container
    /// has ended, so that the next call may rely on it.
    ///
    /// # Errors
    /// [`EngineError::NotRunning`], and those of [`Engine::find`].
    pub fn kill(&self, wanted: &str, signal: Signal) -> Result<(), EngineError> {
        let container = self.find(wanted)?;
        let init = running_init(&container)?;
        sys::send_signal(&init, signal.as_raw()).map_err(|source| EngineError::Signal {
            signal: signal.to_string(),
            name: container.name.clone(),
            source,
        })?;
        if signal == Signal::KILL {
            freezer::thaw(&container.cgroups);
            // Nothing survives it.
            wait_for_end(&init, None);
            wait_for_monitor(&container);
        }
        Ok(())
    }
}
