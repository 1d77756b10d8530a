//! The stop signal, some patience, then SIGKILL: any number of containers at the same time.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::processes::{
    end_by_monitor, end_for_good, init_pidfd, kill_init, wait_for_end, wait_for_monitor,
};
use super::{Engine, EngineError};
use crate::events::{Event, Journal};
use crate::state::{Container, Status};
use crate::sys;

/// Containers that were asked to end. [`Stop::finish`] waits for them.
#[derive(Debug)]
#[must_use = "nobody waits for the containers, nor kills those that do not heed the signal"]
pub struct Stop {
    asked: Vec<Result<Stopping, EngineError>>,
}

#[derive(Debug)]
struct Stopping {
    container: Container,
    /// `None` for one that has ended already, which is as wanted.
    init: Option<OwnedFd>,
    /// How long it has from when it was asked until it is killed.
    patience: Duration,
    /// When that is; `None` when it is too far for the clock.
    deadline: Option<Instant>,
    journal: Journal,
}

impl Engine {
    /// Sends each container its stop signal, and lets it have `patience` for its end, or the time
    /// that it was made with. One that is just starting is ended at once; one that has ended is as
    /// wanted. None is started again by itself.
    pub fn stop(&self, wanted: &[String], patience: Option<Duration>) -> Stop {
        let now = Instant::now();
        let ask = |wanted: &String| {
            let container = self.find(wanted)?;
            let own = Duration::from_secs(container.stop_timeout.into());
            let patience = patience.unwrap_or(own);
            Ok(self.ask_to_end(container, now, patience))
        };
        Stop {
            asked: wanted.iter().map(ask).collect(),
        }
    }

    fn ask_to_end(&self, container: Container, now: Instant, patience: Duration) -> Stopping {
        let container = end_for_good(&self.store, container);
        // A container that is just starting has none for the stop signal.
        let init = init_pidfd(&container);
        if init.is_none() && !container.status.can_remove() {
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
        Stopping {
            container,
            init,
            patience,
            deadline: now.checked_add(patience),
            journal: self.store.journal(),
        }
    }
}

impl Stop {
    /// How long the last of those that ran when they were asked has until it is killed.
    pub fn patience(&self) -> Duration {
        let asked = self.asked.iter().flatten();
        let ran = asked.filter(|stopping| stopping.init.is_some());
        let patience = ran.map(|stopping| stopping.patience);
        patience.max().unwrap_or_default()
    }

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
    /// what still runs at its deadline. Each step of the iteration waits.
    ///
    /// # Errors
    /// Those of [`Engine::find`].
    pub fn finish(self) -> impl Iterator<Item = Result<(), EngineError>> {
        self.asked.into_iter().map(|asked| asked?.finish())
    }
}

impl Stopping {
    fn finish(&self) -> Result<(), EngineError> {
        let Some(init) = &self.init else {
            return Ok(());
        };
        let left = self
            .deadline
            .map(|at| at.saturating_duration_since(Instant::now()));
        if !wait_for_end(init, left) {
            kill_init(&self.container, init)?;
            wait_for_end(init, None);
        }
        wait_for_monitor(&self.container);
        self.journal.write(&Event::of(&self.container, "stop"));
        Ok(())
    }
}
