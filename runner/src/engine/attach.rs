//! Attaching to a container that runs: its streams, from now on.

use std::os::fd::AsFd;

use super::{Attach, Engine, EngineError};
use crate::process::channel::Channel;
use crate::process::messages::{FromMonitor, ToMonitor};
use crate::process::monitor::DOOR;
use crate::state::{Container, Status};
use crate::stdio::{self, CallerEnds, Input};

/// This process, attached to a container that does not depend on it. Dropped, it has left.
#[derive(Debug)]
pub struct Attached {
    pub container: Container,
    /// What the container writes, from now on.
    pub streams: CallerEnds,
    events: Channel<ToMonitor, FromMonitor>,
}

impl Engine {
    /// Attaches this process to a container that runs. Of the outputs that `attach` leaves out
    /// nothing is seen; to its input something can be written where it was made with one.
    ///
    /// # Errors
    /// [`EngineError::NotRunning`], [`EngineError::Attach`], and those of [`Engine::find`].
    pub fn attach(&self, wanted: &str, attach: Attach) -> Result<Attached, EngineError> {
        let container = self.find(wanted)?;
        match container.status {
            Status::Running => {}
            Status::Paused => {
                return Err(EngineError::Paused {
                    name: container.name,
                });
            }
            _ => {
                return Err(EngineError::NotRunning {
                    name: container.name,
                });
            }
        }
        let door = self.store.dir(&container).run.join(DOOR);
        let events: Channel<ToMonitor, FromMonitor> =
            Channel::connect(&door).map_err(|source| EngineError::Attach {
                name: container.name.clone(),
                source,
            })?;
        let (streams, mut theirs) = stdio::pipes(Input::Empty).map_err(EngineError::streams)?;
        for (output, is_taken) in [
            (&mut theirs.stdout, attach.stdout),
            (&mut theirs.stderr, attach.stderr),
        ] {
            if !is_taken {
                *output = stdio::null().map_err(EngineError::streams)?;
            }
        }
        let outputs = [theirs.stdout.as_fd(), theirs.stderr.as_fd()];
        let input = attach.stdin;
        events.send(&ToMonitor::Attach { input }, &outputs)?;
        self.note(&container, "attach");
        Ok(Attached {
            container,
            streams,
            events,
        })
    }
}

impl Attached {
    /// For whoever serves the caller's terminal and signals meanwhile.
    pub(crate) fn into_parts(self) -> (Channel<ToMonitor, FromMonitor>, CallerEnds) {
        (self.events, self.streams)
    }
}
