//! A signal to the first process of a container.

use super::processes::{
    end_by_monitor, end_for_good, running_init, wait_for_end, wait_for_monitor,
};
use super::{Engine, EngineError};
use crate::isolation::freezer;
use crate::signal::Signal;
use crate::state::{Container, Status};
use crate::sys;

impl Engine {
    /// Sends a signal to a container's first process. After SIGKILL this returns once the container
    /// has ended, so that the next call may rely on it. One of the signals that ask a command to
    /// end keeps the container from being started again by itself.
    ///
    /// # Errors
    /// [`EngineError::NotRunning`], and those of [`Engine::find`].
    pub fn kill(&self, wanted: &str, signal: Signal) -> Result<(), EngineError> {
        let container = self.find(wanted)?;
        let container = match ends(signal, &container) {
            true => end_for_good(&self.store, container),
            false => container,
        };
        if matches!(container.status, Status::Restarting { .. }) && container.stopped {
            // There is no process to signal, and there is to be none.
            end_by_monitor(&self.store, &container.id);
            return Ok(());
        }
        let init = running_init(&container)?;
        // Before what it brings about.
        self.note(&container, "kill");
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

/// Whether a signal is meant to end a container, and not to tell its command something.
fn ends(signal: Signal, container: &Container) -> bool {
    let raw = signal.as_raw();
    raw == container.stop_signal
        || [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT].contains(&raw)
}
