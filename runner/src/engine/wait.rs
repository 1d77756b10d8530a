//! Waiting for a container to end by itself, or to come to another point of its life.

use std::str::FromStr;
use std::thread;
use std::time::Duration;

use super::processes::wait_for_end;
use super::{Engine, EngineError};
use crate::health::HealthStatus;
use crate::state::{Container, ProcessRef, StateError, Status};

/// A point of a container's life that can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Never started.
    Created,
    Running,
    Paused,
    /// Not running: ended, or never started.
    Stopped,
    Exited,
    Healthy,
    Unhealthy,
}

impl Condition {
    /// What Podman calls them. What it has for moments on the way from one to the next, nobody
    /// here can see.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "configured" | "created" => Self::Created,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "stopped" => Self::Stopped,
            "exited" => Self::Exited,
            "healthy" => Self::Healthy,
            "unhealthy" => Self::Unhealthy,
            _ => return None,
        })
    }

    fn holds_for(self, container: &Container) -> bool {
        let status = container.status;
        let is_found = |health| status == Status::Running && container.health == Some(health);
        match self {
            Self::Created => status == Status::Created,
            Self::Running => status == Status::Running,
            Self::Paused => status == Status::Paused,
            Self::Stopped => status.can_remove(),
            Self::Exited => status.has_ended(),
            Self::Healthy => is_found(HealthStatus::Healthy),
            Self::Unhealthy => is_found(HealthStatus::Unhealthy),
        }
    }
}

impl FromStr for Condition {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::named(text)
            .ok_or("there are created, running, paused, exited, stopped, healthy and unhealthy")
    }
}

impl Engine {
    /// Waits until a container has ended, and returns its exit code as a shell would show it;
    /// `None` when it was removed at its end, and the code with it.
    ///
    /// # Errors
    /// [`EngineError::NotRunning`] for one that has not been started, and those of
    /// [`Engine::find`].
    pub fn wait(&self, wanted: &str) -> Result<Option<i32>, EngineError> {
        let container = self.find(wanted)?;
        if container.status == Status::Created {
            return Err(EngineError::NotRunning {
                name: container.name,
            });
        }
        self.wait_for(container.id.as_str(), &[Condition::Stopped], Duration::ZERO)
    }

    /// Waits until one of the conditions holds for a container. Its end is noticed at once; how
    /// often it is looked for other conditions, `interval` says. Returns the exit code, which is 0
    /// of a container that was never started; `None` of one that runs, or was removed at its end,
    /// which is an end to all waiting.
    ///
    /// # Errors
    /// Those of [`Engine::find`].
    pub fn wait_for(
        &self,
        wanted: &str,
        conditions: &[Condition],
        interval: Duration,
    ) -> Result<Option<i32>, EngineError> {
        let id = self.find(wanted)?.id;
        let for_the_end =
            |condition: &Condition| matches!(condition, Condition::Stopped | Condition::Exited);
        let looks = !conditions.iter().all(for_the_end);
        loop {
            let container = match self.store.find(id.as_str()) {
                Err(StateError::NotFound { .. }) => return Ok(None),
                found => found?,
            };
            let holds = |condition: &Condition| condition.holds_for(&container);
            if conditions.iter().any(holds) {
                return Ok(match container.status {
                    Status::Exited { code, .. } => Some(code),
                    Status::Created => Some(0),
                    _ => None,
                });
            }
            self.wait_for_change(&container, looks.then_some(interval))?;
        }
    }

    /// Waits until a container may be in another state, or until it is time to look.
    fn wait_for_change(
        &self,
        container: &Container,
        interval: Option<Duration>,
    ) -> Result<(), EngineError> {
        /// For conditions that no process tells of.
        const INTERVAL: Duration = Duration::from_millis(250);
        match container.monitor.as_ref().and_then(ProcessRef::open) {
            // It records the end before its own. One that was still the creator has handed the
            // container over, and the next round finds to whom.
            Some(monitor) => {
                wait_for_end(&monitor, interval);
            }
            None if container.status.can_remove() => thread::sleep(interval.unwrap_or(INTERVAL)),
            None => drop(self.repair()?),
        }
        Ok(())
    }
}
