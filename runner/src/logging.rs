//! What coracle logs about itself, for whoever looks for a fault. (What containers write is kept by
//! `logs`.)
//!
//! `--log-level` or `CORACLE_LOG` says how much. Commands log to stderr. The processes beside and
//! in a container have no stderr of coracle's, so that they log to a file in the container's run
//! directory, a [`ProcessLog`]. Nothing ever gets into the container's own output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use netstack::logging::{self, Filter};
use serde::{Deserialize, Serialize};
use tracing::Dispatch;

use crate::failure::Explained;
use crate::path_text;
use crate::printable::{self, complain};

/// The values of `--log-level`. Podman has two more names for messages that coracle gives always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    #[value(aliases = ["fatal", "panic"])]
    Error,
    #[value(alias = "warning")]
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    fn filter(self) -> Filter {
        let name = match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        };
        name.parse().expect("a level is a filter")
    }
}

/// How much is logged: the flag goes before `CORACLE_LOG`.
pub fn filter(level: Option<LogLevel>) -> Filter {
    if let Some(level) = level {
        return level.filter();
    }
    Filter::from_environment().unwrap_or_else(|error| {
        complain(format_args!("{}: {error}", logging::VARIABLE));
        Filter::default()
    })
}

/// Logs to stderr from here on.
pub fn to_stderr(filter: &Filter) {
    logging::to_writer(filter, || Stderr);
}

/// A line at a time, made fit for a terminal like all that coracle says there.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        printable::put(&String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The file that the processes of one container log to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessLog {
    #[serde(with = "path_text")]
    path: PathBuf,
    pub filter: Filter,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot open {}: {source}", path.display())]
pub struct ProcessLogError {
    path: PathBuf,
    source: io::Error,
}

impl Explained for ProcessLogError {}

impl ProcessLog {
    pub fn new(run_dir: &Path, filter: Filter) -> Self {
        Self {
            path: run_dir.join("coracle.log"),
            filter,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For lines at the end, by any number of processes.
    pub fn open(&self) -> Result<File, ProcessLogError> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(|source| ProcessLogError {
                path: self.path.clone(),
                source,
            })
    }

    /// For lines of this process, in a file that [`ProcessLog::open`] has opened here or elsewhere.
    pub fn dispatch(&self, file: File) -> Dispatch {
        logging::to_file(&self.filter, file)
    }
}
