//! Forgetting containers, and putting right what crashes have left of them.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};

use super::processes::{
    MONITOR_PATIENCE, end_by_monitor, end_for_good, init_pidfd, kill_init, wait_for_end,
    wait_for_monitor,
};
use super::{Engine, EngineError, owner};
use crate::isolation::idmap::IdMaps;
use crate::isolation::{cgroup, freezer};
use crate::state::{Container, ContainerId, ProcessRef, StateError, Status};

/// What [`Engine::remove`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    Removed,
    /// There was none, which is as wanted.
    WasNotThere,
}

/// A container that has ended, was to be removed, and cannot be.
#[derive(Debug, thiserror::Error)]
#[error("container {name} is left over: {error}")]
pub struct LeftOver {
    pub name: String,
    #[source]
    pub error: EngineError,
}

impl Engine {
    /// Removes a container with all its files. `force` ends one that runs, and is content with one
    /// that is not there.
    ///
    /// # Errors
    /// Without `force`, [`ErrorKind::StillRunning`](super::ErrorKind::StillRunning) and
    /// [`ErrorKind::NoSuchContainer`](super::ErrorKind::NoSuchContainer).
    pub fn remove(&self, wanted: &str, force: bool) -> Result<Removed, EngineError> {
        let container = match self.store.find(wanted) {
            Err(StateError::NotFound { .. }) if force => return Ok(Removed::WasNotThere),
            Err(StateError::Damaged { id, .. }) => {
                self.end_unknown(&id, force)?;
                let run_dir = self.store.run_dir(&id);
                self.or_as_owner(self.store.remove_damaged(&id), &id, &run_dir, None)?;
                return Ok(Removed::Removed);
            }
            found => found?,
        };
        let goes_on = matches!(container.status, Status::Restarting { .. });
        if !force && (goes_on || init_pidfd(&container).is_some()) {
            return Err(EngineError::StillRunning {
                name: container.name,
                wanted: wanted.to_owned(),
            });
        }
        let container = match force {
            true => end_for_good(&self.store, container),
            false => container,
        };
        if let Some(init) = init_pidfd(&container) {
            kill_init(&container, &init)?;
            wait_for_end(&init, None);
            wait_for_monitor(&container);
        }
        if container.status.has_ended() {
            // Its monitor may be cleaning up.
            wait_for_monitor(&container);
        } else {
            // One that is just starting, or whose record is wrong.
            self.end_unknown(&container.id, force)?;
        }
        match self.store.find(container.id.as_str()) {
            // Its monitor has removed it.
            Err(StateError::NotFound { .. }) => {}
            found => self.remove_ended(&found?)?,
        }
        Ok(Removed::Removed)
    }

    /// Puts right what a crash may have left: a container whose monitor was killed is ended, and
    /// removed if it was to be. Returns those that could not be removed.
    pub fn repair(&self) -> Result<Vec<LeftOver>, EngineError> {
        let mut containers = self.store.list()?.containers;
        let orphans: Vec<_> = containers
            .iter()
            .filter(|c| is_orphan(c))
            .filter_map(|c| c.init.as_ref()?.open())
            .collect();
        if !orphans.is_empty() {
            for init in orphans {
                // Its pdeathsig was to do this; a program that changes its IDs loses that setting.
                let _ = pidfd_send_signal(&init, Signal::KILL);
                wait_for_end(&init, Some(Duration::from_secs(5)));
            }
            containers = self.store.list()?.containers;
        }
        containers.retain(|c| c.remove && c.status.has_ended() && !has_monitor(c));
        let remove = |container: Container| {
            let error = self.remove_ended(&container).err()?;
            // No reason for other containers to be out of reach.
            Some(LeftOver {
                name: container.name,
                error,
            })
        };
        Ok(containers.into_iter().filter_map(remove).collect())
    }

    /// Removes a container that has ended, files of its sub-IDs among the rest.
    fn remove_ended(&self, container: &Container) -> Result<(), EngineError> {
        let anonymous = match container.remove {
            true => self.anonymous_volumes(container),
            false => Vec::new(),
        };
        let removed = self.store.remove(container);
        let maps = container.id_maps.as_ref();
        self.or_as_owner(removed, &container.id, &container.run_dir, maps)?;
        self.note(container, "remove");
        Ok(self.volumes().remove_unused(&anonymous, &self.store)?)
    }

    /// Goes on with a removal where it takes the rights of the container's own users. Those whose
    /// maps are not known have the IDs that a new container would have.
    fn or_as_owner(
        &self,
        removed: Result<(), StateError>,
        id: &ContainerId,
        run_dir: &Path,
        maps: Option<&IdMaps>,
    ) -> Result<(), EngineError> {
        match removed {
            Err(StateError::NotOurs { .. }) => {
                let maps = match maps {
                    Some(maps) => maps.clone(),
                    None => IdMaps::discover(false)?.0,
                };
                Ok(owner::remove_files(&self.store, id, run_dir, &maps)?)
            }
            other => Ok(other?),
        }
    }

    /// Ends a container of which nothing is known but who answers for it, or, if nobody does, its
    /// first process.
    fn end_unknown(&self, id: &ContainerId, force: bool) -> Result<(), EngineError> {
        let init = self.store.claimed_init(id).and_then(|init| init.open());
        let id_shown = || id.short().to_owned();
        if !force && (self.store.claimant(id).is_some() || init.is_some()) {
            return Err(EngineError::RunsUnrecorded { id: id_shown() });
        }
        if !end_by_monitor(&self.store, id) {
            return Err(EngineError::RunsOn { id: id_shown() });
        }
        // One that changed its IDs has outlived its monitor.
        if let Some(init) = init {
            let _ = pidfd_send_signal(&init, Signal::KILL);
            freezer::thaw(&cgroup::named(&cgroup::name(id.short())));
            wait_for_end(&init, Some(MONITOR_PATIENCE));
        }
        Ok(())
    }
}

/// Not at its end, with nobody to answer for it.
fn is_orphan(container: &Container) -> bool {
    !container.status.has_ended() && !has_monitor(container)
}

fn has_monitor(container: &Container) -> bool {
    container.monitor.as_ref().is_some_and(ProcessRef::is_alive)
}
