//! What a container has written, and what it is still to write.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::{Engine, EngineError};
use crate::logs::{Line, LogDriver, LogReader};
use crate::state::ProcessRef;

/// A container's log, being read.
#[derive(Debug)]
pub struct ContainerLog {
    path: PathBuf,
    reader: LogReader,
    monitor: Option<ProcessRef>,
}

impl Engine {
    /// Opens a container's log at its beginning, or `tail` lines before its end.
    pub fn logs(&self, wanted: &str, tail: Option<usize>) -> Result<ContainerLog, EngineError> {
        let container = self.find(wanted)?;
        if container.log.driver == LogDriver::None {
            return Err(EngineError::NoLog {
                name: container.name,
            });
        }
        let path = self.store.dir(&container).log();
        let reader = LogReader::open(&path, tail).map_err(|source| EngineError::Log {
            path: path.clone(),
            source,
        })?;
        Ok(ContainerLog {
            path,
            reader,
            monitor: container.monitor,
        })
    }
}

impl ContainerLog {
    /// Whoever may still write to the log, for [`ContainerLog::wait`]; `None` when it is complete.
    /// To be asked before the lines are read, so that those are seen which come in between.
    pub fn writer(&self) -> Option<OwnedFd> {
        self.monitor.as_ref()?.open()
    }

    /// The next line, oldest first; `None` when there is none yet.
    pub fn next_line(&mut self) -> Result<Option<Line>, EngineError> {
        self.reader.next_line().map_err(|e| self.unreadable(e))
    }

    /// Waits until there may be another line, or until the writer ends or the time is up.
    pub fn wait(&mut self, writer: &OwnedFd, limit: Duration) -> Result<(), EngineError> {
        let waited = self.reader.wait(Some(writer.as_fd()), limit);
        waited.map_err(|error| self.unreadable(error))
    }

    fn unreadable(&self, source: io::Error) -> EngineError {
        EngineError::Log {
            path: self.path.clone(),
            source,
        }
    }
}
