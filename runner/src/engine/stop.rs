//! The stop signal, some patience, then SIGKILL: any number of containers at the same time, under
//! one deadline.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::processes::{end_by_monitor, init_pidfd, kill_init, wait_for_end, wait_for_monitor};
use super::{Engine, EngineError};
use crate::state::{Container, Status};
use crate::sys;

/// Containers that were asked to end. [`Stop::finish`] waits for them.
#[derive(Debug)]
#[must_use = "nobody waits for the containers, nor kills those that do not heed the signal"]
pub struct Stop {
    asked: Vec<Result<Stopping, EngineError>>,
    /// None when it is too far for the clock.
    deadline: Option<Instant>,
}

#[derive(Debug)]
struct Stopping {
    container: Container,
    /// `None` for one that has ended already, which is as wanted.
    init: Option<OwnedFd>,
}

impl Engine {
    /// Sends each container its stop signal. One that is just starting is ended at once; one that
    /// has ended is as wanted.
    pub fn stop(&self, wanted: &[String], patience: Duration) -> Stop {
        let ask = |wanted: &String| Ok(self.ask_to_end(self.find(wanted)?));
        Stop {
            asked: wanted.iter().map(ask).collect(),
            deadline: Instant::now().checked_add(patience),
        }
    }

    fn ask_to_end(&self, container: Container) -> Stopping {
        // A container that is just starting has none for the stop signal.
        let init = init_pidfd(&container);
        if init.is_none() && container.status == Status::Starting {
            end_by_monitor(&self.store, &container.id);
        }
        if let Some(init) = &init {
            // Fails only when it has ended meanwhile.
            let _ = sys::send_signal(init.as_fd(), container.stop_signal);
            if container.status == Status::Paused {
                // So that it can heed the signal. Where it cannot, SIGKILL does not mind.
                let _ = self.unpause(container.id.as_str());
            }
        }
        Stopping { container, init }
    }
}

impl Stop {
    /// The names of the containers that still run after `time`, or as soon as none does.
    pub fn still_running_after(&self, time: Duration) -> Vec<&str> {
        let until = Instant::now() + time;
        let still_runs = |stopping: &&Stopping| {
            let left = until.saturating_duration_since(Instant::now());
            let init = stopping.init.as_ref();
            init.is_some_and(|init| !wait_for_end(init, Some(left)))
        };
        self.asked
            .iter()
            .flatten()
            .filter(still_runs)
            .map(|stopping| stopping.container.name.as_str())
            .collect()
    }

    /// Waits for one container after the other, in the order in which they were named, and kills
    /// what still runs at the deadline. Each step of the iteration waits.
    ///
    /// # Errors
    /// Those of [`Engine::find`].
    pub fn finish(self) -> impl Iterator<Item = Result<(), EngineError>> {
        let deadline = self.deadline;
        self.asked
            .into_iter()
            .map(move |asked| asked?.finish(deadline))
    }
}

impl Stopping {
    fn finish(&self, deadline: Option<Instant>) -> Result<(), EngineError> {
        let Some(init) = &self.init else {
            return Ok(());
        };
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if !wait_for_end(init, left) {
            kill_init(&self.container, init)?;
            wait_for_end(init, None);
        }
        wait_for_monitor(&self.container);
        Ok(())
    }
}
